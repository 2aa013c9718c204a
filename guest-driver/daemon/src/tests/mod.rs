//! The daemon between clients and a server that are both pretended, with everything but the kernel's part in it: pages are those of
//! ordinary files, and the connections are sockets of this process.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails

mod server;

use std::fs;
use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ringfort_protocol::control::envelope::Envelope;
use ringfort_protocol::control::message::{
    Features, Given, Hello, Invitation, Kind, Message, NO_RING, PAGE_HEAD_BYTES, Place, Reason, Role,
    Subject, Want,
};
use ringfort_protocol::version::Version;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use zerocopy::FromBytes;

use self::server::{FakeServer, Instead, ToFake, rings_through};
use crate::daemon::Daemon;
use crate::holdings::Bounds;
use crate::link::Dialler;
use crate::pages::Store;
use crate::peer::Peer;
use crate::status::Status;
use crate::{client, status, stream};

const HUGE_SHIFT: u32 = 21;
const HUGE_BYTES: u64 = 1 << HUGE_SHIFT;
const SOON: Duration = Duration::from_secs(10);
/// A user, not root.
const USER: u32 = 1000;

/// A daemon that is at work.
struct Stage {
    folder: tempfile::TempDir,
    server: Arc<FakeServer>,
    daemon: Arc<Daemon>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Stage {
    fn new() -> Self {
        Self::with(HUGE_SHIFT, 60_000)
    }

    fn with(page_shift: u32, silence_ms_max: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = FakeServer::new(folder.path(), 1 << page_shift, silence_ms_max);
        let bounds = Bounds { memory_bytes_max: 8 * HUGE_BYTES, user_memory_bytes_max: 4 * HUGE_BYTES };
        let daemon = Arc::new(Daemon::new(Store::pretend(folder.path(), page_shift), bounds));
        let stop = Arc::new(AtomicBool::new(false));
        let (serving, dialler, stopping) = (
            Arc::clone(&daemon),
            Arc::new(ToFake(Arc::clone(&server))) as Arc<dyn Dialler>,
            Arc::clone(&stop),
        );
        let find = || Ok(Invitation::new(Version::LATEST, 7, [3; 16]));
        let thread = thread::spawn(move || serving.keep_linked(find, &dialler, &stopping));
        let stage = Self { folder, server, daemon, stop, thread: Some(thread) };
        stage.wait_linked();
        stage
    }

    fn wait_linked(&self) {
        until("the server is reached", || self.daemon.holdings.link().is_some());
    }

    fn client(&self, uid: u32) -> Client {
        let (own, other) = UnixStream::pair().unwrap();
        own.set_read_timeout(Some(SOON)).unwrap();
        let daemon = Arc::clone(&self.daemon);
        let peer = Peer { pid: 1, uid, gid: uid, groups: vec![7, 8] };
        let thread = thread::spawn(move || client::serve(&daemon.holdings, &other, &peer));
        Client { stream: own, thread }
    }

    /// The names of the files that clients' memory lies in.
    fn files(&self) -> Vec<String> {
        names(self.folder.path())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || thread::panicking());
    }
}

fn names(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = names.map(|name| name.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < deadline, "waited for: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// A client of the daemon.
struct Client {
    stream: UnixStream,
    thread: JoinHandle<()>,
}

/// What a client was given.
struct Gift {
    given: Given,
    places: Vec<Place>,
    memory: fs::File,
    doorbells: Vec<UnixStream>,
}

fn hello() -> Message {
    Message::Hello(Hello {
        oldest: 1.into(),
        newest: 1.into(),
        role: Role::Process.number().into(),
        features: Features::GIVES_MEMORY.0.into(),
        ..Hello::default()
    })
}

fn want(ring_count: u32) -> Message {
    Message::Want(Want {
        ring_count: ring_count.into(),
        slot_count: 16.into(),
        data_bytes: (64 << 10).into(),
        ..Want::default()
    })
}

impl Client {
    fn say(&self, message: &Message) {
        stream::say(&self.stream, message, &[]).unwrap();
    }

    fn ask(&self, message: &Message) -> Message {
        self.say(message);
        stream::hear(&self.stream).unwrap()
    }

    fn refused(&self, message: &Message) -> Reason {
        match self.ask(message) {
            Message::Refused(subject, text) => {
                assert!(!text.is_empty());
                Reason::from_number(subject.reason.get()).unwrap()
            }
            other => panic!("{other:?}"),
        }
    }

    /// Gets memory with rings in it.
    fn begin(&self, ring_count: u32) -> Gift {
        let Message::Welcome(welcome) = self.ask(&hello()) else { panic!("not welcome") };
        assert_eq!(welcome.features.get(), Features::GIVES_MEMORY.0);
        self.say(&want(ring_count));
        let (message, mut descriptors) = self.hear_with_descriptors();
        let Message::Given(given, places) = message else { panic!("{message:?}") };
        let memory = fs::File::from(descriptors.remove(0));
        Gift { given, places, memory, doorbells: descriptors.into_iter().map(UnixStream::from).collect() }
    }

    fn hear_with_descriptors(&self) -> (Message, Vec<OwnedFd>) {
        let mut bytes = [0; size_of::<Envelope>()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(65))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut into = [IoSliceMut::new(&mut bytes)];
        recvmsg(&self.stream, &mut into, &mut ancillary, RecvFlags::CMSG_CLOEXEC).unwrap();
        let mut descriptors = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        let envelope = Envelope::read_from_bytes(&bytes).unwrap();
        let mut body = vec![0; envelope.body_bytes.get() as usize];
        (&self.stream).read_exact(&mut body).unwrap();
        (Message::decode(envelope.kind.get(), &body).unwrap(), descriptors)
    }

    /// Returns when the daemon has hung up.
    fn hears_the_end(&self) {
        while stream::hear(&self.stream).is_ok() {}
        assert!(matches!(stream::hear(&self.stream), Err(stream::StreamError::HungUp)));
    }

    /// Hangs up, and returns when the daemon is through with this client.
    fn leave(self) {
        drop(self.stream);
        self.thread.join().unwrap();
    }
}

#[test]
fn a_client_is_given_memory_that_was_proved_with_rings_attached_and_doorbells() {
    let stage = Stage::new();
    let client = stage.client(USER);
    let gift = client.begin(2);
    let told = [Kind::Hello, Kind::Pages, Kind::Prove, Kind::Credential];
    let rings = [Kind::Attach, Kind::Hello, Kind::Attach, Kind::Hello];
    assert_eq!(stage.server.told(), [&told[..], &rings].concat());
    assert_eq!((gift.given.ring_count.get(), gift.given.page_shift.get()), (2, HUGE_SHIFT));
    assert_eq!((gift.places.len(), gift.doorbells.len()), (2, 2));
    assert_eq!(gift.memory.metadata().unwrap().len(), gift.given.len_bytes.get());
    // What proofs have left is gone: rings begin as zeros.
    let mut bytes = vec![1; gift.given.len_bytes.get() as usize];
    gift.memory.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0));
    for (own, other) in gift.doorbells.iter().zip(&stage.server.doorbells()) {
        rings_through(own, other);
        rings_through(other, own);
    }
    assert_eq!(client.refused(&want(1)), Reason::Message, "once");
    client.leave();
    assert_eq!(stage.server.told(), [Kind::Detach]);
    assert_eq!(stage.files(), [""; 0]);
}

#[test]
fn pages_go_back_only_when_the_server_has_let_go_of_them() {
    let stage = Stage::new();
    let client = stage.client(USER);
    let _gift = client.begin(1);
    stage.server.instead(Kind::Detach, Some(Instead::SayNothing));
    drop(client.stream);
    until("the end is asked for", || stage.server.told().contains(&Kind::Detach));
    assert_eq!(stage.files(), ["region-1"]);
    stage.server.instead(Kind::Detach, None);
    stage.server.say(&Message::Done(Subject { kind: Kind::Detach.number().into(), ..Subject::default() }));
    client.thread.join().unwrap();
    assert_eq!(stage.files(), [""; 0]);

    // The server goes before it answers: the next welcome is the answer.
    let client = stage.client(USER);
    let _gift = client.begin(1);
    stage.server.instead(Kind::Detach, Some(Instead::HangUp));
    stage.server.instead(Kind::Hello, Some(Instead::HangUp));
    client.leave();
    assert_eq!(stage.files(), ["region-2"]);
    stage.server.instead(Kind::Hello, None);
    until("a later connection", || stage.files().is_empty());
}

#[test]
fn whoever_dies_at_any_point_leaves_nothing() {
    let stage = Stage::new();
    for said in 0..3 {
        let client = stage.client(USER);
        [hello(), want(2)].iter().take(said).for_each(|message| client.say(message));
        client.leave();
        assert_eq!(stage.files(), [""; 0], "after {said} messages");
    }
    let client = stage.client(USER);
    stage.server.instead(Kind::Attach, Some(Instead::HangUp));
    client.say(&hello());
    client.say(&want(1));
    client.leave();
    stage.server.instead(Kind::Attach, None);
    until("a later connection", || stage.files().is_empty() && stage.daemon.holdings.link().is_some());
}

#[test]
fn what_the_server_refuses_keeps_no_pages() {
    let stage = Stage::new();
    for kind in [Kind::Pages, Kind::Prove, Kind::Credential, Kind::Attach] {
        // A server that knows of no pages knows no region either.
        let unknown = (kind == Kind::Pages).then_some(Instead::Refuse(Reason::Unknown));
        stage.server.instead(kind, Some(Instead::Refuse(Reason::Limit)));
        stage.server.instead(Kind::Detach, unknown);
        for _ in 0..6 {
            let client = stage.client(USER);
            assert!(matches!(client.ask(&hello()), Message::Welcome(_)));
            assert_eq!(client.refused(&want(1)), Reason::Limit, "{kind:?}");
            client.leave();
            assert_eq!(stage.files(), [""; 0], "{kind:?}");
        }
        stage.server.instead(kind, None);
    }
    stage.server.instead(Kind::Prove, Some(Instead::WrongNonce));
    let client = stage.client(USER);
    assert!(matches!(client.ask(&hello()), Message::Welcome(_)));
    stage.server.told();
    assert!(matches!(client.ask(&want(1)), Message::Refused(..)), "it sees other memory");
    client.leave();
    assert_eq!(stage.server.told(), [Kind::Pages, Kind::Prove, Kind::Detach]);
}

#[test]
fn a_region_that_was_suspended_is_proved_in_the_heads_of_its_pages_alone() {
    let stage = Stage::new();
    let client = stage.client(USER);
    let gift = client.begin(3);
    let len_bytes = gift.given.len_bytes.get();
    let content: Vec<u8> = (0..len_bytes).map(|at| (at % 251) as u8 | 1).collect();
    gift.memory.write_all_at(&content, 0).unwrap();
    stage.server.told();
    stage.server.suspend(1);
    until("it is proved", || stage.server.told().contains(&Kind::Prove));
    let mut found = vec![0; len_bytes as usize];
    let head = |at: usize| at as u64 % HUGE_BYTES < PAGE_HEAD_BYTES as u64;
    until("the nonces are cleared", || {
        gift.memory.read_exact_at(&mut found, 0).unwrap();
        found.iter().enumerate().all(|(at, byte)| !head(at) || at as u64 % HUGE_BYTES >= 32 || *byte == 0)
    });
    assert!(
        found.iter().zip(&content).enumerate().all(|(at, (found, written))| head(at) || found == written)
    );

    // While the machine's device does not run yet it is tried again.
    stage.server.instead(Kind::Prove, Some(Instead::Refuse(Reason::MachineGone)));
    stage.server.suspend(1);
    until("it is tried", || stage.server.told().contains(&Kind::Prove));
    until("it is tried again", || stage.server.told().contains(&Kind::Prove));
    stage.server.instead(Kind::Prove, None);
    // Of one whose client took its pages away the client hears, and nobody else.
    let other = stage.client(USER);
    let _other_gift = other.begin(1);
    stage.server.instead(Kind::Prove, Some(Instead::Refuse(Reason::Nonce)));
    stage.server.suspend(1);
    client.hears_the_end();
    client.thread.join().unwrap();
    // Whoever has tried to prove it may hold it for a moment longer.
    until("its pages are given back", || stage.files() == ["region-2"]);
    other.leave();
}

#[test]
fn a_machine_that_is_stopped_while_a_client_begins_is_waited_for() {
    let stage = Stage::new();
    let stopped = [
        (Kind::Pages, Reason::MachineGone),
        (Kind::Prove, Reason::MachineGone),
        // After its proof: whoever hears of the stop proves it again.
        (Kind::Attach, Reason::Nonce),
    ];
    for (kind, reason) in stopped {
        stage.server.instead(kind, Some(Instead::Refuse(reason)));
        stage.server.told();
        let client = stage.client(USER);
        assert!(matches!(client.ask(&hello()), Message::Welcome(_)));
        client.say(&want(2));
        for _ in 0..2 {
            until("it is asked again", || stage.server.told().contains(&kind));
        }
        stage.server.instead(kind, None);
        let (message, _) = client.hear_with_descriptors();
        assert!(matches!(message, Message::Given(..)), "{kind:?}: {message:?}");
        client.leave();
        assert_eq!(stage.files(), [""; 0]);
    }
}

#[test]
fn clients_hear_of_the_end_of_the_server_and_of_their_region() {
    let stage = Stage::new();
    let (client, other) = (stage.client(USER), stage.client(0));
    let (_gift, _other_gift) = (client.begin(1), other.begin(1));
    stage.server.say(&Message::detached(Reason::MemoryChanged, 1, NO_RING, "as the test says"));
    client.hears_the_end();
    client.leave();
    assert_eq!(stage.files(), ["region-2"]);
    stage.server.hang_up();
    other.hears_the_end();
    other.leave();
    // And begin anew with the next.
    until("a later connection", || stage.files().is_empty());
    stage.wait_linked();
    let client = stage.client(USER);
    client.begin(1);
    client.leave();
}

#[test]
fn a_server_that_says_nothing_is_one_that_is_gone() {
    let stage = Stage::with(HUGE_SHIFT, 100);
    let client = stage.client(USER);
    let _gift = client.begin(1);
    // It answers as long as it is there.
    thread::sleep(Duration::from_millis(500));
    client.stream.set_nonblocking(true).unwrap();
    assert!(matches!(stream::hear(&client.stream), Err(stream::StreamError::System(_))));
    client.stream.set_nonblocking(false).unwrap();
    stage.server.instead(Kind::Ping, Some(Instead::SayNothing));
    client.hears_the_end();
    stage.server.instead(Kind::Ping, None);
    client.leave();
}

#[test]
fn clients_that_do_not_keep_to_the_protocol_are_refused_for_themselves_alone() {
    let stage = Stage::new();
    let mut bad = Vec::new();
    for change in [
        (|hello| hello.role = Role::GuestDaemon.number().into()) as fn(&mut Hello),
        |hello| hello.role = Role::Doorbell.number().into(),
        |hello| hello.role = 99.into(),
        |hello| hello.features = 0.into(),
        |hello| (hello.oldest, hello.newest) = (90.into(), 99.into()),
        |hello| (hello.oldest, hello.newest) = (2.into(), 1.into()),
    ] {
        let Message::Hello(mut said) = hello() else { unreachable!() };
        change(&mut said);
        bad.push(Message::Hello(said));
    }
    bad.push(want(1));
    bad.push(Message::Pages(Default::default(), vec![]));
    // A body that is longer than it says.
    bad.push(Message::Pages(Default::default(), vec![0]));
    for message in &bad {
        let client = stage.client(USER);
        client.refused(message);
        client.hears_the_end();
        client.leave();
    }
    let client = stage.client(USER);
    assert!(matches!(client.ask(&hello()), Message::Welcome(_)));
    let too_much = Want { data_bytes: u32::MAX.into(), ..Want::default() };
    assert_eq!(client.refused(&Message::Want(too_much)), Reason::Limit);
    assert_eq!(client.refused(&Message::Prove(Default::default())), Reason::Message);
    let more_than_a_user_has =
        Want { ring_count: 16.into(), data_bytes: (2 << 20).into(), ..Want::default() };
    assert_eq!(client.refused(&Message::Want(more_than_a_user_has)), Reason::Limit);
    std::io::Write::write_all(&mut &client.stream, &[0xff; 64]).unwrap();
    client.hears_the_end();
    client.leave();
    assert_eq!(stage.files(), [""; 0]);
    assert!(!stage.server.told().contains(&Kind::Pages));
}

#[test]
fn no_user_takes_all_memory() {
    let stage = Stage::new();
    let clients: Vec<Client> = (0..4).map(|_| stage.client(USER)).collect();
    let gifts: Vec<Gift> = clients.iter().map(|client| client.begin(1)).collect();
    let last = stage.client(USER);
    assert!(matches!(last.ask(&hello()), Message::Welcome(_)));
    assert_eq!(last.refused(&want(1)), Reason::Limit);
    let others: Vec<Client> = (0..4).map(|_| stage.client(0)).collect();
    let other_gifts: Vec<Gift> = others.iter().map(|client| client.begin(1)).collect();
    let root = stage.client(0);
    assert!(matches!(root.ask(&hello()), Message::Welcome(_)));
    assert_eq!(root.refused(&want(1)), Reason::Limit, "root neither, beyond all");
    clients.into_iter().chain(others).for_each(Client::leave);
    drop((gifts, other_gifts));
    last.say(&want(1));
    assert!(matches!(last.hear_with_descriptors().0, Message::Given(..)));
    last.leave();
    root.leave();
}

#[test]
fn what_clients_hold_that_have_hung_up_counts_against_their_user() {
    let stage = Stage::new();
    let mut kept: Vec<fs::File> = Vec::new();
    for _ in 0..4 {
        let client = stage.client(USER);
        kept.push(client.begin(1).memory);
        client.leave();
        assert_eq!(stage.files(), [""; 0], "no name is left of it");
    }
    let client = stage.client(USER);
    assert!(matches!(client.ask(&hello()), Message::Welcome(_)));
    assert_eq!(client.refused(&want(1)), Reason::Limit);
    let other = stage.client(0);
    other.begin(1);
    other.leave();
    kept.pop();
    client.say(&want(1));
    assert!(matches!(client.hear_with_descriptors().0, Message::Given(..)));
    client.leave();
}

#[test]
fn memory_that_a_client_makes_longer_is_cut_off_and_costs_it_its_connection() {
    let stage = Stage::new();
    let (client, other) = (stage.client(USER), stage.client(USER));
    let (gift, _other_gift) = (client.begin(1), other.begin(1));
    let len_bytes = gift.given.len_bytes.get();
    gift.memory.set_len(len_bytes + HUGE_BYTES).unwrap();
    client.hears_the_end();
    assert_eq!(gift.memory.metadata().unwrap().len(), len_bytes);
    client.leave();
    gift.memory.set_len(len_bytes + HUGE_BYTES).unwrap();
    until("it is cut off", || gift.memory.metadata().unwrap().len() == len_bytes);
    assert!(matches!(other.ask(&Message::Ping(Default::default())), Message::Pong(_)));
    other.leave();
}

#[test]
fn what_an_earlier_daemon_left_is_deleted_when_the_server_has_let_go_of_it() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("region-77"), "pages").unwrap();
    let server = FakeServer::new(folder.path(), HUGE_BYTES, 60_000);
    server.instead(Kind::Hello, Some(Instead::Refuse(Reason::Busy)));
    let bounds = Bounds { memory_bytes_max: HUGE_BYTES, user_memory_bytes_max: HUGE_BYTES };
    let daemon = Arc::new(Daemon::new(Store::pretend(folder.path(), HUGE_SHIFT), bounds));
    let stop = Arc::new(AtomicBool::new(false));
    let (serving, stopping) = (Arc::clone(&daemon), Arc::clone(&stop));
    let dialler = Arc::new(ToFake(Arc::clone(&server))) as Arc<dyn Dialler>;
    let find = || Ok(Invitation::new(Version::LATEST, 7, [3; 16]));
    let thread = thread::spawn(move || serving.keep_linked(find, &dialler, &stopping));
    until("it is refused", || server.told().contains(&Kind::Hello));
    assert_eq!(names(folder.path()), ["region-77"]);
    server.instead(Kind::Hello, None);
    until("it is welcome", || daemon.holdings.link().is_some());
    assert_eq!(names(folder.path()), [""; 0]);
    stop.store(true, Ordering::SeqCst);
    thread.join().unwrap();
}

#[test]
fn a_status_says_who_has_how_much() {
    let stage = Stage::new();
    let clients = stage.folder.path().join("guestd.sock");
    assert!(Status::ask(&clients).unwrap_err().to_string().contains("guestd.status"), "nobody answers yet");
    let listener = status::listen(&clients).unwrap();
    let mode = fs::metadata(status::socket(&clients)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let daemon = Arc::clone(&stage.daemon);
    thread::spawn(move || status::serve(&listener, &daemon.holdings));

    let ask = || Status::ask(&clients).unwrap();
    let idle = ask();
    assert!(idle.connected && idle.server.is_some() && idle.volume.is_some());
    assert_eq!((idle.regions, idle.bytes, idle.bytes_max), (0, 0, 8 * HUGE_BYTES));
    let (one, other) = (stage.client(USER), stage.client(0));
    let (first, second) = (one.begin(2), other.begin(1));
    let busy = ask();
    let bytes = [first.given.len_bytes.get(), second.given.len_bytes.get()];
    let shown: Vec<_> =
        busy.clients.iter().map(|client| (client.uid, client.pid, client.rings, client.bytes)).collect();
    assert_eq!(shown, [(USER, 1, 2, bytes[0]), (0, 1, 1, bytes[1])]);
    assert_eq!((busy.regions, busy.bytes), (2, bytes[0] + bytes[1]));
    assert!(busy.to_string().contains("process 1 of user 1000: 2 rings"), "{busy}");
    drop(one);
    until("the memory of a client that is gone is taken back", || ask().regions == 1);
}

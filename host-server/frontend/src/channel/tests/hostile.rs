//! Clients that keep to nothing: each costs itself an error, is counted, and holds up nobody.

use std::io::Write;
use std::os::unix::net::UnixStream;

use ringfort_protocol::control::envelope::Envelope;
use ringfort_protocol::control::message::{Attach, Hello, Message, Reason, Role};
use ringfort_protocol::version::Version;

use super::*;
use crate::channel::connection::{Connection, Ended};
use crate::channel::control::{Conversation, Identity, Limits, Peer};
use crate::channel::fuzzing::Yes;
use crate::channel::share::TURN_BYTES;

/// Where commands begin in a ring that begins at 0, and how long a slot is.
const COMMANDS_START: u64 = 256;
const SLOT_BYTES: u64 = 64;

impl Client {
    /// Fills the slot of the command of this number, whatever else is under way.
    fn overwrite(&self, number: u32, command: &Command) {
        let mut slot = command.encode().to_bytes();
        slot[60..].copy_from_slice(&number.wrapping_add(1).to_le_bytes());
        let place = COMMANDS_START + u64::from(number % SLOTS) * SLOT_BYTES;
        self.memory.write(place, &slot).unwrap();
    }

    fn answered(&self) -> u64 {
        self.metrics.commands().iter().map(|(_, latencies)| latencies.count()).sum()
    }

    fn bad_input(&self) -> Vec<(&'static str, u64)> {
        self.metrics.bad_input().filter(|(_, count)| *count > 0).collect()
    }
}

#[test]
fn bad_input_is_counted_by_its_kind() {
    with_client(async |client| {
        let file = client.create("/file").await;
        let read = Command { target: file, ..client.command(Opcode::Read) };
        let area = |start, len_bytes| Area { start, len_bytes };
        let nop = client.command(Opcode::Nop);
        for (command, errno, kind) in [
            (Command { flags: Flags(1 << 15), ..nop }, Errno::EINVAL, "flags"),
            (Command { operand: 1, ..nop }, Errno::EINVAL, "field"),
            (Command { credential: 77, ..nop }, Errno::EPERM, "credential"),
            (Command { target: 4711, ..read }, Errno::EBADF, "handle"),
            (Command { output: area(0, 64), ..read }, Errno::EFAULT, "area"),
            (Command { output: area(u32::MAX, 64), ..read }, Errno::EFAULT, "area"),
            (Command { output: area(DATA_START, u32::MAX), ..read }, Errno::E2BIG, "length"),
        ] {
            let before = client.metrics.bad_input().find(|(name, _)| *name == kind).unwrap().1;
            assert_eq!(client.call(command).await.status, status(errno), "{command:?}");
            // Counted right behind the completion.
            client.engine.yield_now().await;
            let after = client.metrics.bad_input().find(|(name, _)| *name == kind).unwrap().1;
            assert_eq!(after, before + 1, "{kind}");
        }
        let mut unknown = nop.encode().to_bytes();
        unknown[8] = 0xee;
        client.requester.submit(&Slot::from_bytes(&unknown)).unwrap();
        assert_eq!(client.next().await.status, status(Errno::ENOSYS));
        let kinds: Vec<_> = client.bad_input().into_iter().map(|(kind, _)| kind).collect();
        assert_eq!(kinds, ["opcode", "flags", "field", "credential", "handle", "area", "length"]);
        assert_eq!(client.metrics.errors.get(), 8);
        assert_eq!(client.call(nop).await.status, 0, "and the ring goes on");
    });
}

#[test]
fn sequence_numbers_that_lie_are_no_commands() {
    with_client(async |client| {
        let nop = client.command(Opcode::Nop);
        for lie in [1, 2, SLOTS, SLOTS + 1, 1 << 31, u32::MAX] {
            let mut slot = nop.encode().to_bytes();
            slot[60..].copy_from_slice(&lie.wrapping_add(1).to_le_bytes());
            client.memory.write(COMMANDS_START, &slot).unwrap();
            client.engine.yield_now().await;
        }
        assert_eq!(client.answered(), 0);
        assert_eq!(client.call(nop).await.status, 0);
    });
}

#[test]
fn a_slot_that_changes_after_its_submission_changes_nothing() {
    on_a_volume(async |engine, service| {
        let mut holder = Client::attach(&engine, &service).await;
        let file = holder.create("/file").await;
        let lock = holder.lock(file, 2, 0);
        assert_eq!(holder.call(lock).await.status, 0);
        let mut client = Client::attach(&engine, &service).await;
        let file = client.create("/file").await;
        let waiting = client.lock(file, 2, 1);
        client.submit(&waiting);
        engine.yield_now().await;
        let mut other = client.command(Opcode::Unlink);
        other.tag = 99;
        // The first command of this client was the one that made the file.
        client.overwrite(1, &other);
        client.memory.write(INPUT.into(), &[0xff; 64]).unwrap();
        holder.detach().await;
        let completion = client.next().await;
        assert_eq!((completion.tag, completion.status), (waiting.tag, 0));
        assert!(client.stat("/file").await.is_ok());
        client.detach().await;
    });
}

#[test]
fn completions_that_are_never_taken_keep_nobody_waiting_and_nothing_in_memory() {
    on_a_volume(async |engine, service| {
        let mut greedy = Client::attach(&engine, &service).await;
        let mut other = Client::attach(&engine, &service).await;
        let mut number = 0;
        for _ in 0..1000 {
            for _ in 0..SLOTS {
                let nop = greedy.command(Opcode::Nop);
                greedy.overwrite(number, &nop);
                number += 1;
            }
            let nop = other.command(Opcode::Nop);
            assert_eq!(other.call(nop).await.status, 0);
        }
        assert_eq!(greedy.answered(), u64::from(number), "each was answered once");
        greedy.detach().await;
        other.detach().await;
    });
}

#[test]
fn commands_under_way_are_no_more_than_slots_however_many_are_submitted() {
    on_a_volume(async |engine, service| {
        let mut client = Client::attach(&engine, &service).await;
        // A chain that never ends is kept back, and is as long as the ring.
        for number in 0..4 * SLOTS {
            let linked = Command { flags: Flags::LINK, ..client.command(Opcode::Nop) };
            client.overwrite(number, &linked);
            engine.yield_now().await;
        }
        assert_eq!(client.answered(), 0);
        let mut other = Client::attach(&engine, &service).await;
        let nop = other.command(Opcode::Nop);
        assert_eq!(other.call(nop).await.status, 0);
        // Such a client can be detached all the same.
        client.detach().await;
        other.detach().await;
    });
}

/// Between two looks at a ring the server takes one batch of every other: a flood delays others by that.
#[test]
fn a_flood_delays_others_by_a_batch() {
    on_a_volume(async |engine, service| {
        let mut flood = Client::attach(&engine, &service).await;
        let mut other = Client::attach(&engine, &service).await;
        let mut number = 0;
        for _ in 0..200 {
            let before = flood.answered();
            let nop = other.command(Opcode::Nop);
            other.submit(&nop);
            let mut looks = 0;
            let completion = loop {
                if let Some(slot) = other.requester.take() {
                    break Completion::decode(slot);
                }
                // As full as it can be at each look.
                let have = flood.answered();
                while u64::from(number) < have + u64::from(SLOTS) {
                    let nop = flood.command(Opcode::Nop);
                    flood.overwrite(number, &nop);
                    number += 1;
                }
                looks += 1;
                engine.yield_now().await;
            };
            assert_eq!(completion.tag, nop.tag);
            assert!(looks <= 2, "{looks}");
            assert!(flood.answered() - before <= 2 * u64::from(SLOTS));
        }
        assert!(flood.answered() > 1000);
        flood.detach().await;
        other.detach().await;
    });
}

/// As above, counted in bytes: what is copied for another in one turn is bounded, however much its commands ask for at once.
#[test]
fn a_flood_of_large_reads_and_writes_delays_others_by_a_turns_bytes() {
    on_a_volume(async |engine, service| {
        let mut flood = Client::attach(&engine, &service).await;
        let file = flood.create("/large").await;
        flood.write(file, 0, &vec![7; COMMAND_BYTES_MAX as usize]).await;
        let area = Area { start: DATA_START, len_bytes: COMMAND_BYTES_MAX };
        let mut other = Client::attach(&engine, &service).await;
        let copied = |flood: &Client| flood.metrics.read_bytes.get() + flood.metrics.written_bytes.get();
        // Those of the file's making are the first.
        let (mut number, begun) = (flood.tag as u32, copied(&flood));
        let answered = flood.answered();
        for _ in 0..100 {
            let before = copied(&flood);
            let nop = other.command(Opcode::Nop);
            other.submit(&nop);
            let completion = loop {
                if let Some(slot) = other.requester.take() {
                    break Completion::decode(slot);
                }
                while u64::from(number) < flood.answered() + u64::from(SLOTS) {
                    let opcode = if number.is_multiple_of(2) { Opcode::Read } else { Opcode::Write };
                    let (input, output) = if opcode == Opcode::Read {
                        (Area::default(), area)
                    } else {
                        (area, Area::default())
                    };
                    let command = Command { target: file, input, output, ..flood.command(opcode) };
                    flood.overwrite(number, &command);
                    number += 1;
                }
                engine.yield_now().await;
            };
            assert_eq!((completion.tag, completion.status), (nop.tag, 0));
            // The turn in which it came, and the one in which it was taken.
            let turn = TURN_BYTES + u64::from(COMMAND_BYTES_MAX);
            assert!(copied(&flood) - before <= 2 * turn, "{}", copied(&flood) - before);
        }
        let done = flood.answered() - answered;
        assert!(done > 50, "{done}");
        assert_eq!(copied(&flood) - begun, done * u64::from(COMMAND_BYTES_MAX), "each did all of its bytes");
        flood.detach().await;
        other.detach().await;
    });
}

/// Says `bytes` over a connection and hangs up. How the server's end of it ended, and what was counted.
fn say(bytes: &[u8]) -> (Ended, Arc<ChannelMetrics>) {
    let (mut client, server) = UnixStream::pair().unwrap();
    let peer = Peer { uid: 1000, gid: 1000, groups: Vec::new() };
    let identity = Identity { server: [7; 16], volume: [9; 16] };
    let limits = Limits::default();
    let conversation = Conversation::new(peer, limits, identity, Yes);
    let metrics = Arc::<ChannelMetrics>::default();
    let connection = Connection::new(server, conversation, &limits, Arc::clone(&metrics));
    client.write_all(bytes).unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    (connection.converse(), metrics)
}

fn hello() -> Vec<u8> {
    let hello = Hello {
        oldest: Version::CHANNEL.0.into(),
        newest: Version::LATEST.0.into(),
        role: Role::Process.number().into(),
        ..Hello::default()
    };
    Message::Hello(hello).encode(Version::CHANNEL)
}

fn refusals(metrics: &ChannelMetrics) -> Vec<(&'static str, u64)> {
    metrics.refusals().filter(|(_, count)| *count > 0).collect()
}

#[test]
fn control_messages_that_are_none_are_refused_or_end_their_connection_and_are_counted() {
    let hello = hello();
    // Cut off anywhere: the client has hung up, that is all.
    for len_bytes in 0..hello.len() {
        let (ended, metrics) = say(&hello[..len_bytes]);
        assert!(matches!(ended, Ended::HungUp), "{len_bytes}: {ended}");
        assert_eq!(refusals(&metrics), []);
    }
    // An envelope that is none.
    let (ended, metrics) = say(&[&hello[..], &[0xa5; 64]].concat());
    assert!(matches!(ended, Ended::Envelope(_)), "{ended}");
    assert_eq!(metrics.broken_connections.get(), 1);
    // A body that is not its kind's is refused, and what follows is heard.
    let mut short = Message::Attach(Attach::default()).encode(Version::CHANNEL);
    let body_bytes = short.len() - size_of::<Envelope>() - 4;
    short.truncate(short.len() - 4);
    short[8..12].copy_from_slice(&(body_bytes as u32).to_le_bytes());
    // A message once more, and one about what is not there.
    let unknown = Message::Attach(Attach { region: 9.into(), ..Attach::default() }).encode(Version::CHANNEL);
    let (ended, metrics) = say(&[&hello[..], &short, &hello, &unknown].concat());
    assert!(matches!(ended, Ended::HungUp), "{ended}");
    let messages = Reason::Message.number();
    assert_eq!(messages, 6);
    assert_eq!(refusals(&metrics), [("message", 2), ("unknown", 1)]);
}

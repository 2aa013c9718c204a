//! What is agreed on over a control connection: a conversation of messages, without the connection.
//!
//! Everything that the other side says is checked here. What it may do is kept within [`Limits`]; what it may be is what the kernel says of it
//! ([`Peer`]).

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};

use ringfort_filesystem::operation::Credentials;
use ringfort_protocol::command::Area;
use ringfort_protocol::control::message::{
    Attach, Credential, Echo, Hello, Memory, Message, NO_RING, Proof, Reason, Role, SECRET_BYTES, Subject,
    Welcome, nonce,
};
use ringfort_protocol::ring::layout::{RingLayout, SLOT_COUNT_MAX};
use ringfort_protocol::ring::memory::SharedMemory;
use ringfort_protocol::version::{Range, Version};

use super::region;

/// What one connection may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub region_count_max: u32,
    /// Of all regions together.
    pub ring_count_max: u32,
    /// Of a region, for its commands to name.
    pub credential_count_max: usize,
    /// Of all regions together.
    pub memory_bytes_max: u32,
    /// Of one command's input or output.
    pub command_bytes_max: u32,
    /// The connection ends when nothing was heard for so long.
    pub silence_ms_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            region_count_max: 64,
            ring_count_max: 64,
            credential_count_max: 64,
            memory_bytes_max: 1 << 30,
            command_bytes_max: 1 << 20,
            silence_ms_max: 30_000,
        }
    }
}

/// Who is at the other end, as the kernel says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

impl Peer {
    /// Root may speak for anybody, others for themselves, with no more groups than they have.
    fn may_speak_for(&self, credentials: &Credentials) -> bool {
        let own = |gid: &u32| *gid == self.gid || self.groups.contains(gid);
        self.uid == 0
            || (credentials.uid == self.uid && own(&credentials.gid) && credentials.groups.iter().all(own))
    }
}

/// Why a message was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reason: Reason,
    /// For people.
    pub text: String,
}

impl Refusal {
    pub fn new(reason: Reason, text: impl Into<String>) -> Self {
        Self { reason, text: text.into() }
    }
}

type Result<T> = std::result::Result<T, Refusal>;

/// What a ring needs to be served.
pub struct RingAttachment {
    pub memory: SharedMemory,
    pub layout: RingLayout,
    pub data: Area,
    pub command_bytes_max: u32,
    /// The client rings here.
    pub doorbell: OwnedFd,
    /// The client is rung here.
    pub wake: OwnedFd,
}

/// Whoever serves rings. Calls return when what they ask for is done.
pub trait Rings {
    fn credential(&mut self, region: u32, number: u32, credentials: Credentials) -> Result<()>;

    fn attach(&mut self, region: u32, ring: u32, attachment: RingAttachment) -> Result<()>;

    /// Ends a ring; or all of a region, with its handles and locks, where none is named. Nothing of their memory is used afterwards.
    fn detach(&mut self, region: u32, ring: Option<u32>) -> Result<()>;
}

struct Region {
    memory: SharedMemory,
    proved: bool,
    credentials: Vec<u32>,
    rings: Vec<u32>,
}

/// What a server says of itself in each conversation.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Another number after each start.
    pub server: [u8; 16],
    pub volume: [u8; 16],
}

/// One conversation.
pub struct Conversation<R: Rings> {
    peer: Peer,
    limits: Limits,
    identity: Identity,
    rings: R,
    version: Option<Version>,
    regions: BTreeMap<u32, Region>,
    proofs: u64,
}

/// What follows from a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    Say(Message),
    /// Nothing.
    Listen,
    /// Say this, and end the connection.
    SayAndEnd(Message),
}

fn unknown_region(region: u32) -> Refusal {
    Refusal::new(Reason::Unknown, format!("there is no region {region} on this connection"))
}

impl<R: Rings> Conversation<R> {
    pub fn new(peer: Peer, limits: Limits, identity: Identity, rings: R) -> Self {
        Self { peer, limits, identity, rings, version: None, regions: BTreeMap::new(), proofs: 0 }
    }

    /// The version that is spoken; the oldest before one was agreed on.
    pub fn version(&self) -> Version {
        self.version.unwrap_or(Version::ENVELOPE)
    }

    /// Takes a message, with the descriptors that came with it.
    pub fn hear(&mut self, message: Message, descriptors: Vec<OwnedFd>) -> Next {
        let kind = message.kind().number();
        let about = match &message {
            Message::Memory(body) => (body.region.get(), NO_RING),
            Message::Prove(body) => (body.region.get(), NO_RING),
            Message::Credential(body, _) => (body.region.get(), NO_RING),
            Message::Attach(body) => (body.region.get(), body.ring.get()),
            Message::Detach(body) => (body.region.get(), body.ring.get()),
            _ => (0, NO_RING),
        };
        let begun = self.version.is_some();
        let answer = match (begun, message) {
            (false, Message::Hello(hello)) => self.hello(&hello).map(Message::Welcome),
            (false, _) => Err(Refusal::new(Reason::Message, "the first message of a connection is Hello")),
            (true, Message::Memory(memory)) => self.memory(&memory, descriptors).map(|()| done(kind, about)),
            (true, Message::Prove(proof)) => self.prove(&proof).map(Message::Proved),
            (true, Message::Credential(credential, groups)) => {
                self.credential(&credential, groups).map(|()| done(kind, about))
            }
            (true, Message::Attach(attach)) => self.attach(&attach, descriptors).map(|()| done(kind, about)),
            (true, Message::Detach(subject)) => self.detach(&subject).map(|()| done(kind, about)),
            (true, Message::Ping(echo)) => Ok(Message::Pong(echo)),
            (true, Message::Pong(_)) => return Next::Listen,
            (true, Message::Pages(..)) => Err(Refusal::new(
                Reason::NotAllowed,
                "pages of a machine belong to connections from machines",
            )),
            (true, message) => {
                let text = format!("{:?} is not for a client to send now", message.kind());
                Err(Refusal::new(Reason::Message, text))
            }
        };
        match answer {
            Ok(message) => Next::Say(message),
            Err(refusal) => {
                let message = Message::refuse(kind, refusal.reason, about.0, about.1, &refusal.text);
                if self.version.is_some() { Next::Say(message) } else { Next::SayAndEnd(message) }
            }
        }
    }

    /// Ends everything that the other side has begun.
    pub fn end(&mut self) {
        for region in std::mem::take(&mut self.regions).into_keys() {
            if let Err(refusal) = self.rings.detach(region, None) {
                tracing::debug!(region, text = refusal.text, "a region was gone before it was detached");
            }
        }
    }

    fn hello(&mut self, hello: &Hello) -> Result<Welcome> {
        let ours = Range::new(Version::CHANNEL, Version::LATEST);
        let theirs = Range::new(Version(hello.oldest.get()), Version(hello.newest.get()));
        let version = ours.zip(theirs).and_then(|(ours, theirs)| ours.negotiate(theirs)).ok_or_else(|| {
            let (oldest, newest) = (hello.oldest, hello.newest);
            let text = format!(
                "the client speaks versions {oldest} to {newest}, the server {} to {}; use releases that have one in common",
                Version::CHANNEL.0,
                Version::LATEST.0
            );
            Refusal::new(Reason::Version, text)
        })?;
        match Role::from_number(hello.role.get()) {
            Some(Role::Process) => {}
            Some(role) => {
                let text = format!("{role:?} may not connect here: this socket is for processes of the host");
                return Err(Refusal::new(Reason::NotAllowed, text));
            }
            None => {
                let text = format!("role {}, which this server does not know", hello.role);
                return Err(Refusal::new(Reason::Message, text));
            }
        }
        self.version = Some(version);
        let limits = &self.limits;
        Ok(Welcome {
            version: version.0.into(),
            server: self.identity.server,
            volume: self.identity.volume,
            region_count_max: limits.region_count_max.into(),
            ring_count_max: limits.ring_count_max.into(),
            slot_count_max: SLOT_COUNT_MAX.into(),
            memory_bytes_max: limits.memory_bytes_max.into(),
            command_bytes_max: limits.command_bytes_max.into(),
            silence_ms_max: limits.silence_ms_max.into(),
            ..Welcome::default()
        })
    }

    fn memory(&mut self, memory: &Memory, descriptors: Vec<OwnedFd>) -> Result<()> {
        let (number, len_bytes) = (memory.region.get(), memory.len_bytes.get());
        if self.regions.contains_key(&number) {
            return Err(Refusal::new(Reason::Exists, format!("region {number} exists; detach it first")));
        }
        if self.regions.len() >= self.limits.region_count_max as usize {
            let text = format!("a connection has at most {} regions", self.limits.region_count_max);
            return Err(Refusal::new(Reason::Limit, text));
        }
        let held: u64 = self.regions.values().map(|region| region.memory.len_bytes()).sum();
        let most = u64::from(self.limits.memory_bytes_max);
        if len_bytes > most.saturating_sub(held) {
            let text = format!("{len_bytes} bytes more than the {held} that are shared; at most {most} are");
            return Err(Refusal::new(Reason::Limit, text));
        }
        let [descriptor] = <[OwnedFd; 1]>::try_from(descriptors).map_err(|found| {
            let text = format!("a region comes with one descriptor, found {}", found.len());
            Refusal::new(Reason::Descriptor, text)
        })?;
        let memory = region::map(descriptor, len_bytes)
            .map_err(|error| Refusal::new(Reason::Descriptor, error.to_string()))?;
        let region = Region { memory, proved: false, credentials: Vec::new(), rings: Vec::new() };
        self.regions.insert(number, region);
        Ok(())
    }

    /// Both sides see the same bytes in each page: reads the other's nonces, and only when all match writes its own.
    fn prove(&mut self, proof: &Proof) -> Result<Proof> {
        let number = proof.region.get();
        let region = self.regions.get_mut(&number).ok_or_else(|| unknown_region(number))?;
        if !region.rings.is_empty() {
            return Err(Refusal::new(Reason::Message, format!("region {number} has rings already")));
        }
        // Pages of this kind of memory have one size.
        const PAGE_BYTES: u64 = 4096;
        let pages = || (0..).zip((0..region.memory.len_bytes()).step_by(PAGE_BYTES as usize));
        for (page, start) in pages() {
            let mut found = [0; SECRET_BYTES];
            if region.memory.read(start, &mut found).is_none() || found != nonce(proof.nonce, page) {
                let text = format!("page {page} of region {number} does not hold its nonce");
                return Err(Refusal::new(Reason::Nonce, text));
            }
        }
        self.proofs += 1;
        let answer = u128::from_le_bytes(self.identity.server).wrapping_mul(u128::from(self.proofs) | 1);
        let answer = answer.to_le_bytes();
        for (page, start) in pages() {
            let written = region.memory.write(start + SECRET_BYTES as u64, &nonce(answer, page));
            assert!(written.is_some(), "the page was read");
        }
        region.proved = true;
        Ok(Proof { region: proof.region, nonce: answer, ..Proof::default() })
    }

    fn credential(&mut self, credential: &Credential, groups: Vec<u32>) -> Result<()> {
        let (number, name) = (credential.region.get(), credential.credential.get());
        let credentials = Credentials {
            uid: credential.uid.get(),
            gid: credential.gid.get(),
            groups,
            check_permissions: true,
        };
        if !self.peer.may_speak_for(&credentials) {
            let text = format!(
                "user {} may not act as user {} of group {} with {} more groups",
                self.peer.uid,
                credentials.uid,
                credentials.gid,
                credentials.groups.len()
            );
            return Err(Refusal::new(Reason::NotAllowed, text));
        }
        let region = self.regions.get_mut(&number).ok_or_else(|| unknown_region(number))?;
        if region.credentials.contains(&name) {
            return Err(Refusal::new(Reason::Exists, format!("credential {name} of region {number} exists")));
        }
        if region.credentials.len() >= self.limits.credential_count_max {
            let text = format!("a region has at most {} credentials", self.limits.credential_count_max);
            return Err(Refusal::new(Reason::Limit, text));
        }
        self.rings.credential(number, name, credentials)?;
        region.credentials.push(name);
        Ok(())
    }

    fn attach(&mut self, attach: &Attach, descriptors: Vec<OwnedFd>) -> Result<()> {
        let (number, ring) = (attach.region.get(), attach.ring.get());
        let ring_count: usize = self.regions.values().map(|region| region.rings.len()).sum();
        let region = self.regions.get_mut(&number).ok_or_else(|| unknown_region(number))?;
        if !region.proved {
            let text = format!("region {number} was not proved; send Prove first");
            return Err(Refusal::new(Reason::Nonce, text));
        }
        if ring == NO_RING || region.rings.contains(&ring) {
            return Err(Refusal::new(Reason::Exists, format!("ring {ring} of region {number} exists")));
        }
        if ring_count >= self.limits.ring_count_max as usize {
            let text = format!("a connection has at most {} rings", self.limits.ring_count_max);
            return Err(Refusal::new(Reason::Limit, text));
        }
        let (start, slot_count) = (attach.start.get(), attach.slot_count.get());
        let data = Area { start: attach.data_start.get(), len_bytes: attach.data_bytes.get() };
        let memory_bytes = region.memory.len_bytes();
        let layout = RingLayout::new(start.into(), slot_count, memory_bytes).ok_or_else(|| {
            let text = format!("no ring of {slot_count} slots lies at {start} in {memory_bytes} bytes");
            Refusal::new(Reason::Layout, text)
        })?;
        let ring_end = u64::from(start) + RingLayout::len_bytes(slot_count).unwrap_or(0);
        let data_end = u64::from(data.start) + u64::from(data.len_bytes);
        let overlaps = u64::from(data.start) < ring_end && u64::from(start) < data_end;
        if data_end > memory_bytes || overlaps {
            let text = format!(
                "a data area of {} bytes at {} leaves the region of {memory_bytes} bytes, or the ring lies in it",
                data.len_bytes, data.start
            );
            return Err(Refusal::new(Reason::Layout, text));
        }
        let [doorbell, wake] = <[OwnedFd; 2]>::try_from(descriptors).map_err(|found| {
            let text = format!("a ring comes with two descriptors, found {}", found.len());
            Refusal::new(Reason::Descriptor, text)
        })?;
        // Anything else may be readable for ever, or announce nothing.
        let link = std::fs::read_link(format!("/proc/self/fd/{}", doorbell.as_raw_fd()));
        if !link.is_ok_and(|found| found.as_os_str() == "anon_inode:[eventfd]") {
            let text = "the descriptor by which the server is to be rung is no eventfd";
            return Err(Refusal::new(Reason::Descriptor, text));
        }
        let attachment = RingAttachment {
            memory: region.memory.clone(),
            layout,
            data,
            command_bytes_max: self.limits.command_bytes_max,
            doorbell,
            wake,
        };
        self.rings.attach(number, ring, attachment)?;
        region.rings.push(ring);
        Ok(())
    }

    fn detach(&mut self, subject: &Subject) -> Result<()> {
        let (number, ring) = (subject.region.get(), subject.ring.get());
        let region = self.regions.get_mut(&number).ok_or_else(|| unknown_region(number))?;
        if ring == NO_RING {
            self.rings.detach(number, None)?;
            self.regions.remove(&number);
            return Ok(());
        }
        let Some(place) = region.rings.iter().position(|held| *held == ring) else {
            return Err(Refusal::new(Reason::Unknown, format!("region {number} has no ring {ring}")));
        };
        self.rings.detach(number, Some(ring))?;
        region.rings.swap_remove(place);
        Ok(())
    }
}

fn done(kind: u16, (region, ring): (u32, u32)) -> Message {
    Message::Done(Subject {
        kind: kind.into(),
        region: region.into(),
        ring: ring.into(),
        ..Subject::default()
    })
}

/// Asks whether the other side is there.
pub fn ping(number: u64) -> Message {
    Message::Ping(Echo { number: number.into() })
}

#[cfg(test)]
mod tests {
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    use nix::sys::eventfd::EventFd;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::unistd::{ftruncate, pipe};

    use super::*;

    /// Says yes to everything.
    struct Yes;

    impl Rings for Yes {
        fn credential(&mut self, _: u32, _: u32, _: Credentials) -> Result<()> {
            Ok(())
        }
        fn attach(&mut self, _: u32, _: u32, _: RingAttachment) -> Result<()> {
            Ok(())
        }
        fn detach(&mut self, _: u32, _: Option<u32>) -> Result<()> {
            Ok(())
        }
    }

    const LEN_BYTES: u64 = 16 * 4096;

    fn reason(next: Next) -> Option<Reason> {
        match next {
            Next::Say(Message::Refused(subject, _)) | Next::SayAndEnd(Message::Refused(subject, _)) => {
                Reason::from_number(subject.reason.get())
            }
            _ => None,
        }
    }

    /// A conversation with one region, and its memory.
    fn conversation() -> (Conversation<Yes>, SharedMemory) {
        let peer = Peer { uid: 1000, gid: 1000, groups: vec![24] };
        let identity = Identity { server: [7; 16], volume: [9; 16] };
        let mut conversation = Conversation::new(peer, Limits::default(), identity, Yes);
        let early = Message::Ping(Echo::default());
        assert_eq!(reason(conversation.hear(early, Vec::new())), Some(Reason::Message));
        let hello = Hello {
            oldest: Version::CHANNEL.0.into(),
            newest: Version::LATEST.0.into(),
            role: Role::Process.number().into(),
            ..Hello::default()
        };
        assert_eq!(reason(conversation.hear(Message::Hello(hello), Vec::new())), None);
        let memfd = memfd_create("region", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap();
        ftruncate(&memfd, LEN_BYTES as i64).unwrap();
        fcntl(&memfd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)).unwrap();
        let memory = region::map(memfd.try_clone().unwrap(), LEN_BYTES).unwrap();
        let body = Memory { region: 1.into(), len_bytes: LEN_BYTES.into(), ..Memory::default() };
        assert_eq!(reason(conversation.hear(Message::Memory(body), vec![memfd])), None);
        (conversation, memory)
    }

    fn prove(conversation: &mut Conversation<Yes>) -> Option<Reason> {
        let proof = Proof { region: 1.into(), nonce: [3; 16], ..Proof::default() };
        reason(conversation.hear(Message::Prove(proof), Vec::new()))
    }

    fn write_nonces(memory: &SharedMemory) {
        for page in 0..16 {
            memory.write(u64::from(page) * 4096, &nonce([3; 16], page)).unwrap();
        }
    }

    #[test]
    fn nothing_is_written_before_every_page_holds_its_nonce() {
        let (mut conversation, memory) = conversation();
        write_nonces(&memory);
        memory.write(15 * 4096, &[0; 16]).unwrap();
        assert_eq!(prove(&mut conversation), Some(Reason::Nonce));
        let mut answer = [1; 16];
        memory.read(16, &mut answer).unwrap();
        assert_eq!(answer, [0; 16]);
        write_nonces(&memory);
        assert_eq!(prove(&mut conversation), None);
        memory.read(16, &mut answer).unwrap();
        assert_ne!(answer, [0; 16]);
    }

    #[test]
    fn a_ring_is_attached_to_a_proved_region_with_an_eventfd_to_ring_it() {
        let (mut conversation, memory) = conversation();
        let attach = Attach {
            region: 1.into(),
            slot_count: 16.into(),
            data_start: 8192.into(),
            data_bytes: 8192.into(),
            ..Attach::default()
        };
        let attach_with = |conversation: &mut Conversation<Yes>, attach: Attach, sound: bool| {
            let (pipe, wake) = pipe().unwrap();
            let doorbell = if sound { EventFd::new().unwrap().into() } else { pipe };
            reason(conversation.hear(Message::Attach(attach), vec![doorbell, wake]))
        };
        assert_eq!(attach_with(&mut conversation, attach, true), Some(Reason::Nonce));
        write_nonces(&memory);
        assert_eq!(prove(&mut conversation), None);
        let overlapping = Attach { data_start: 0.into(), ..attach };
        assert_eq!(attach_with(&mut conversation, overlapping, true), Some(Reason::Layout));
        assert_eq!(attach_with(&mut conversation, attach, false), Some(Reason::Descriptor));
        assert_eq!(attach_with(&mut conversation, attach, true), None);
        assert_eq!(attach_with(&mut conversation, attach, true), Some(Reason::Exists));
    }

    #[test]
    fn a_user_speaks_for_itself_alone() {
        let (mut conversation, _) = conversation();
        let mut ask = |uid: u32, groups: &[u32]| {
            let credential = Credential {
                region: 1.into(),
                credential: (uid + groups.len() as u32).into(),
                uid: uid.into(),
                gid: 1000.into(),
                group_count: (groups.len() as u32).into(),
                ..Credential::default()
            };
            reason(conversation.hear(Message::Credential(credential, groups.to_vec()), Vec::new()))
        };
        assert_eq!(ask(0, &[]), Some(Reason::NotAllowed));
        assert_eq!(ask(1000, &[24, 27]), Some(Reason::NotAllowed));
        assert_eq!(ask(1000, &[24]), None);
    }
}

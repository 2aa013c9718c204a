//! What is agreed on over a control connection: a conversation of messages, without the connection.
//!
//! Everything that the other side says is checked here. What it may do is kept within [`Limits`]; what it may be is what the kernel says of it
//! ([`Peer`]).

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use ringfort_filesystem::operation::Credentials;
use ringfort_protocol::command::Area;
use ringfort_protocol::control::message::{
    Attach, Credential, Echo, Hello, Memory, Message, NO_RING, Pages, Proof, Reason, Role, SECRET_BYTES,
    Subject, Welcome, nonce,
};
use ringfort_protocol::ring::layout::{RingLayout, SLOT_COUNT_MAX};
use ringfort_protocol::ring::memory::SharedMemory;
use ringfort_protocol::version::{Range, Version};

use super::extents::{self, PAGE_SHIFTS, Taken};
use super::region;
use crate::machine::{LetGo, Machine, Memory as MachineMemory};

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
    /// How long whoever connects may take to say all of its first message.
    pub hello_ms_max: u32,
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
            hello_ms_max: 5_000,
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
    pub bells: Bells,
}

/// By what client and server ring each other.
pub enum Bells {
    /// The client rings the first, an eventfd, and is rung through the other.
    Descriptors { doorbell: OwnedFd, wake: OwnedFd },
    /// Both will be a connection that names this secret.
    Connection([u8; SECRET_BYTES]),
}

/// Whoever serves rings. Calls return when what they ask for is done.
pub trait Rings {
    fn credential(&mut self, region: u32, number: u32, credentials: Credentials) -> Result<()>;

    fn attach(&mut self, region: u32, ring: u32, attachment: RingAttachment) -> Result<()>;

    /// Ends a ring; or all of a region, with its handles and locks, where none is named. Nothing of their memory is used afterwards.
    fn detach(&mut self, region: u32, ring: Option<u32>) -> Result<()>;

    /// Rings of the region take no more commands, and nothing of their memory is used afterwards.
    fn suspend(&mut self, region: u32) -> Result<()>;

    /// Rings of the region go on where they stood, in this memory.
    fn resume(&mut self, region: u32, memory: SharedMemory) -> Result<()>;

    /// From now on this connection speaks for the machine's guest. An earlier one has ended when this returns.
    fn speak_for_guest(&mut self, secret: [u8; SECRET_BYTES]) -> Result<()>;

    /// Counts this connection with those of its user, where one more is welcome.
    fn welcome_process(&mut self) -> Result<()>;

    /// Whether a ring waits for a doorbell of this secret, and this connection is to be it.
    fn claim_doorbell(&mut self, secret: &[u8; SECRET_BYTES]) -> bool;
}

struct Region {
    origin: Origin,
    /// None where the pages of a guest are not tied to memory: before the first proof, and while it is suspended.
    memory: Option<SharedMemory>,
    len_bytes: u64,
    proved: bool,
    credentials: Vec<u32>,
    rings: Vec<u32>,
}

/// Where a region's memory comes from.
enum Origin {
    Descriptor,
    Pages(GuestPages),
}

/// What a guest has said of the pages of a region.
struct GuestPages {
    addresses: Vec<Option<u64>>,
    page_shift: u32,
}

impl GuestPages {
    fn whole(&self) -> Option<Vec<u64>> {
        self.addresses.iter().copied().collect()
    }

    /// Whether pages have heads that proofs may use while rings are attached.
    fn have_heads(&self) -> bool {
        self.page_shift > PAGE_SHIFTS[0]
    }
}

impl Region {
    fn new(origin: Origin, memory: Option<SharedMemory>, len_bytes: u64) -> Self {
        Self { origin, memory, len_bytes, proved: false, credentials: Vec::new(), rings: Vec::new() }
    }

    fn page_bytes(&self) -> u64 {
        match &self.origin {
            // Pages of this kind of memory have one size.
            Origin::Descriptor => 4096,
            Origin::Pages(pages) => 1 << pages.page_shift,
        }
    }
}

/// The machine whose guest is at the other end, and what of its memory is shared.
struct GuestSide {
    machine: Arc<Machine>,
    taken: Taken,
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
    /// None for processes of this host.
    guest: Option<GuestSide>,
}

/// What follows from a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    Say(Message),
    /// Nothing.
    Listen,
    /// Say this, and end the connection.
    SayAndEnd(Message),
    /// Say this. The connection is the doorbell of the ring that was attached with the secret.
    SayAndRing(Message, [u8; SECRET_BYTES]),
}

fn unknown_region(region: u32) -> Refusal {
    Refusal::new(Reason::Unknown, format!("there is no region {region} on this connection"))
}

impl<R: Rings> Conversation<R> {
    pub fn new(peer: Peer, limits: Limits, identity: Identity, rings: R) -> Self {
        Self {
            peer,
            limits,
            identity,
            rings,
            version: None,
            regions: BTreeMap::new(),
            proofs: 0,
            guest: None,
        }
    }

    /// A conversation with the daemon of a machine's guest, or with a doorbell of it.
    pub fn with_guest(machine: Arc<Machine>, limits: Limits, identity: Identity, rings: R) -> Self {
        // The daemon is root there, and speaks for all users of its machine.
        let root = Peer { uid: 0, gid: 0, groups: Vec::new() };
        let guest = GuestSide { machine, taken: Taken::default() };
        Self { guest: Some(guest), ..Self::new(root, limits, identity, rings) }
    }

    /// Whether the first message was answered with a welcome.
    pub fn has_begun(&self) -> bool {
        self.version.is_some()
    }

    /// Whether the machine at the other end stands still.
    pub fn stands_still(&self) -> bool {
        self.guest.as_ref().is_some_and(|guest| guest.machine.stands_still())
    }

    /// Whether nobody at the other end could answer all the time since the machine's stops were counted as so many.
    pub fn stood_still_since(&self, stops: u64) -> bool {
        self.stands_still() || self.stops() != stops
    }

    /// How often the machine at the other end was stopped. Always 0 for processes of this host.
    pub fn stops(&self) -> u64 {
        self.guest.as_ref().map_or(0, |guest| guest.machine.stops())
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
            Message::Pages(body, _) => (body.region.get(), NO_RING),
            Message::Prove(body) => (body.region.get(), NO_RING),
            Message::Credential(body, _) => (body.region.get(), NO_RING),
            Message::Attach(body) => (body.region.get(), body.ring.get()),
            Message::Detach(body) => (body.region.get(), body.ring.get()),
            _ => (0, NO_RING),
        };
        let begun = self.version.is_some();
        let answer = match (begun, message) {
            (false, Message::Hello(hello)) => match self.hello(&hello) {
                Ok((welcome, Role::Doorbell)) => {
                    return Next::SayAndRing(Message::Welcome(welcome), hello.secret);
                }
                answer => answer.map(|(welcome, _)| Message::Welcome(welcome)),
            },
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
            (true, Message::Pages(pages, addresses)) => {
                self.pages(&pages, &addresses).map(|()| done(kind, about))
            }
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
        let regions: Vec<u32> = self.regions.keys().copied().collect();
        for region in regions {
            if let Err(refusal) = self.forget_region(region) {
                tracing::debug!(region, text = refusal.text, "a region was gone before it was detached");
            }
        }
    }

    /// Lets go of the machine's memory. What to say to the other side.
    pub fn let_go(&mut self, why: LetGo) -> Vec<Message> {
        let touched = |region: &Region| matches!(region.origin, Origin::Pages(_)) && region.memory.is_some();
        let numbers: Vec<u32> =
            self.regions.iter().filter(|(_, region)| touched(region)).map(|(number, _)| *number).collect();
        numbers.into_iter().map(|number| self.let_go_of(number, why)).collect()
    }

    fn let_go_of(&mut self, number: u32, why: LetGo) -> Message {
        let survives = |region: &Region| match &region.origin {
            Origin::Descriptor => false,
            Origin::Pages(pages) => why != LetGo::Gone && (pages.have_heads() || region.rings.is_empty()),
        };
        let suspended = match self.regions.get_mut(&number) {
            Some(region) if survives(region) => {
                (region.memory, region.proved) = (None, false);
                self.rings.suspend(number)
            }
            _ => Err(Refusal::new(Reason::MachineGone, "the machine is gone, or has begun anew")),
        };
        match suspended {
            Ok(()) => Message::Suspended(Subject {
                region: number.into(),
                ring: NO_RING.into(),
                ..Subject::default()
            }),
            Err(_) if why == LetGo::Gone => self.end_region(number, Reason::MachineGone, "the machine is gone"),
            Err(_) => self.end_region(
                number,
                Reason::MemoryChanged,
                "the machine was stopped or its memory has changed, and this region cannot be proved while it is in use; begin anew",
            ),
        }
    }

    /// Ends a region that the other side did not ask to end.
    fn end_region(&mut self, number: u32, reason: Reason, text: &str) -> Message {
        if let Err(refusal) = self.forget_region(number) {
            tracing::debug!(region = number, text = refusal.text, "a region was gone before it was detached");
        }
        Message::detached(reason, number, NO_RING, text)
    }

    fn forget_region(&mut self, number: u32) -> Result<()> {
        let ended = self.rings.detach(number, None);
        if let (Some(region), Some(guest)) = (self.regions.remove(&number), &mut self.guest)
            && let Origin::Pages(pages) = region.origin
        {
            pages.addresses.into_iter().flatten().for_each(|address| guest.taken.remove(address));
        }
        ended
    }

    fn hello(&mut self, hello: &Hello) -> Result<(Welcome, Role)> {
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
        let role = Role::from_number(hello.role.get()).ok_or_else(|| {
            let text = format!("role {}, which this server does not know", hello.role);
            Refusal::new(Reason::Message, text)
        })?;
        match (role, self.guest.is_some()) {
            (Role::Process, false) => self.rings.welcome_process()?,
            (Role::GuestDaemon, true) => self.rings.speak_for_guest(hello.secret)?,
            (Role::Doorbell, true) if self.rings.claim_doorbell(&hello.secret) => {}
            (Role::Doorbell, true) => {
                let text = "no ring was attached with this secret, or its doorbell is here already";
                return Err(Refusal::new(Reason::NotAllowed, text));
            }
            (Role::Process, true) => {
                let text = "programs of a guest ask its daemon, ringfort-guestd; this port is for that alone";
                return Err(Refusal::new(Reason::NotAllowed, text));
            }
            (role, false) => {
                let text = format!("{role:?} may not connect here: this socket is for processes of the host");
                return Err(Refusal::new(Reason::NotAllowed, text));
            }
        }
        self.version = Some(version);
        let limits = &self.limits;
        let welcome = Welcome {
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
        };
        Ok((welcome, role))
    }

    /// Whether a region of this number and length may begin.
    fn check_new_region(&self, number: u32, len_bytes: u64) -> Result<()> {
        if self.regions.contains_key(&number) {
            return Err(Refusal::new(Reason::Exists, format!("region {number} exists; detach it first")));
        }
        if self.regions.len() >= self.limits.region_count_max as usize {
            let text = format!("a connection has at most {} regions", self.limits.region_count_max);
            return Err(Refusal::new(Reason::Limit, text));
        }
        let held: u64 = self.regions.values().map(|region| region.len_bytes).sum();
        let most = u64::from(self.limits.memory_bytes_max);
        if len_bytes > most.saturating_sub(held) {
            let text = format!("{len_bytes} bytes more than the {held} that are shared; at most {most} are");
            return Err(Refusal::new(Reason::Limit, text));
        }
        Ok(())
    }

    fn memory(&mut self, memory: &Memory, descriptors: Vec<OwnedFd>) -> Result<()> {
        let (number, len_bytes) = (memory.region.get(), memory.len_bytes.get());
        if self.guest.is_some() {
            let text = "a guest names the pages of its memory; descriptors are for processes of the host";
            return Err(Refusal::new(Reason::NotAllowed, text));
        }
        self.check_new_region(number, len_bytes)?;
        let [descriptor] = <[OwnedFd; 1]>::try_from(descriptors).map_err(|found| {
            let text = format!("a region comes with one descriptor, found {}", found.len());
            Refusal::new(Reason::Descriptor, text)
        })?;
        let memory = region::map(descriptor, len_bytes)
            .map_err(|error| Refusal::new(Reason::Descriptor, error.to_string()))?;
        self.regions.insert(number, Region::new(Origin::Descriptor, Some(memory), len_bytes));
        Ok(())
    }

    /// Takes some pages of a region, all of them or none.
    fn pages(&mut self, pages: &Pages, addresses: &[u64]) -> Result<()> {
        let (number, page_shift) = (pages.region.get(), pages.page_shift.get());
        let (page_count, first) = (pages.page_count.get() as usize, pages.first.get() as usize);
        if self.guest.is_none() {
            let text = "pages of a machine belong to connections from machines";
            return Err(Refusal::new(Reason::NotAllowed, text));
        }
        if !PAGE_SHIFTS.contains(&page_shift) {
            let text = format!("pages of 2^{page_shift} bytes; {PAGE_SHIFTS:?} are known");
            return Err(Refusal::new(Reason::Message, text));
        }
        if addresses.is_empty() || first.saturating_add(addresses.len()) > page_count {
            let text = format!("{} pages from page {first} on, of a region of {page_count}", addresses.len());
            return Err(Refusal::new(Reason::Message, text));
        }
        let is_new = !self.regions.contains_key(&number);
        if is_new {
            self.check_new_region(number, (page_count as u64) << page_shift)?;
        }
        let Some(guest) = &mut self.guest else { unreachable!("checked above") };
        let memory = running(&guest.machine)?;
        let new_region = || {
            let origin = Origin::Pages(GuestPages { addresses: vec![None; page_count], page_shift });
            Region::new(origin, None, (page_count as u64) << page_shift)
        };
        let region = self.regions.entry(number).or_insert_with(new_region);
        let outcome = match &mut region.origin {
            Origin::Pages(known) if known.page_shift == page_shift && known.addresses.len() == page_count => {
                take_pages(known, &mut guest.taken, &memory, first, addresses)
            }
            _ => {
                let text = format!("region {number} has pages of another size or number");
                Err(Refusal::new(Reason::Exists, text))
            }
        };
        if outcome.is_err() && is_new {
            self.regions.remove(&number);
        }
        outcome
    }

    /// Both sides see the same bytes in each page: reads the other's nonces, and only when all match writes its own.
    fn prove(&mut self, proof: &Proof) -> Result<Proof> {
        let number = proof.region.get();
        let memory = self.memory_to_prove(number)?;
        let region = self.regions.get_mut(&number).ok_or_else(|| unknown_region(number))?;
        let page_bytes = region.page_bytes();
        let pages = || (0..).zip((0..memory.len_bytes()).step_by(page_bytes as usize));
        for (page, start) in pages() {
            let mut found = [0; SECRET_BYTES];
            if memory.read(start, &mut found).is_none() || found != nonce(proof.nonce, page) {
                let text = format!("page {page} of region {number} does not hold its nonce");
                return Err(Refusal::new(Reason::Nonce, text));
            }
        }
        self.proofs += 1;
        let answer = u128::from_le_bytes(self.identity.server).wrapping_mul(u128::from(self.proofs) | 1);
        let answer = answer.to_le_bytes();
        for (page, start) in pages() {
            let written = memory.write(start + SECRET_BYTES as u64, &nonce(answer, page));
            assert!(written.is_some(), "the page was read");
        }
        let has_rings = !region.rings.is_empty();
        // Before rings go on: whoever has the machine let go looks here for what uses its memory.
        (region.memory, region.proved) = (Some(memory.clone()), true);
        if has_rings && let Err(refusal) = self.rings.resume(number, memory) {
            self.end_region(number, refusal.reason, &refusal.text);
            return Err(refusal);
        }
        Ok(Proof { region: proof.region, nonce: answer, ..Proof::default() })
    }

    /// The memory of a region that may be proved now; a guest's is looked up in the machine's present table.
    fn memory_to_prove(&mut self, number: u32) -> Result<SharedMemory> {
        let region = self.regions.get(&number).ok_or_else(|| unknown_region(number))?;
        if region.memory.is_some() && !region.rings.is_empty() {
            return Err(Refusal::new(Reason::Message, format!("region {number} has rings already")));
        }
        let (pages, guest) = match (&region.origin, &self.guest) {
            (Origin::Pages(pages), Some(guest)) => (pages, guest),
            _ => return region.memory.clone().ok_or_else(|| unknown_region(number)),
        };
        let addresses = pages.whole().ok_or_else(|| {
            let missing = pages.addresses.iter().filter(|address| address.is_none()).count();
            Refusal::new(Reason::Message, format!("{missing} pages of region {number} were not named yet"))
        })?;
        match extents::resolve(&running(&guest.machine)?, &addresses, pages.page_shift) {
            Ok(memory) => Ok(memory),
            Err(error) => {
                // They were in the table when they were named.
                let Message::Detached(_, text) =
                    self.end_region(number, Reason::MemoryChanged, &error.to_string())
                else {
                    unreachable!("the end of a region is told so")
                };
                Err(Refusal::new(Reason::MemoryChanged, format!("the machine's memory has changed: {text}")))
            }
        }
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
        let Some(memory) = region.memory.as_ref().filter(|_| region.proved) else {
            let text = format!("region {number} was not proved; send Prove first");
            return Err(Refusal::new(Reason::Nonce, text));
        };
        if ring == NO_RING || region.rings.contains(&ring) {
            return Err(Refusal::new(Reason::Exists, format!("ring {ring} of region {number} exists")));
        }
        if ring_count >= self.limits.ring_count_max as usize {
            let text = format!("a connection has at most {} rings", self.limits.ring_count_max);
            return Err(Refusal::new(Reason::Limit, text));
        }
        let (start, slot_count) = (attach.start.get(), attach.slot_count.get());
        let data = Area { start: attach.data_start.get(), len_bytes: attach.data_bytes.get() };
        let memory_bytes = memory.len_bytes();
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
        let bells =
            if self.guest.is_some() { Bells::Connection(attach.secret) } else { bells_of(descriptors)? };
        let command_bytes_max = self.limits.command_bytes_max;
        let attachment = RingAttachment { memory: memory.clone(), layout, data, command_bytes_max, bells };
        self.rings.attach(number, ring, attachment)?;
        region.rings.push(ring);
        Ok(())
    }

    fn detach(&mut self, subject: &Subject) -> Result<()> {
        let (number, ring) = (subject.region.get(), subject.ring.get());
        let region = self.regions.get_mut(&number).ok_or_else(|| unknown_region(number))?;
        if ring == NO_RING {
            return self.forget_region(number);
        }
        let Some(place) = region.rings.iter().position(|held| *held == ring) else {
            return Err(Refusal::new(Reason::Unknown, format!("region {number} has no ring {ring}")));
        };
        self.rings.detach(number, Some(ring))?;
        region.rings.swap_remove(place);
        Ok(())
    }
}

/// The memory of a machine that runs.
fn running(machine: &Machine) -> Result<Arc<MachineMemory>> {
    machine.memory().ok_or_else(|| {
        let text = format!(
            "the virtio-fs device of {} does not run, so that its memory is not known; mount it",
            machine.name()
        );
        Refusal::new(Reason::MachineGone, text)
    })
}

/// Notes pages of a region, all or none.
fn take_pages(
    known: &mut GuestPages,
    taken: &mut Taken,
    memory: &MachineMemory,
    first: usize,
    addresses: &[u64],
) -> Result<()> {
    let refuse = |error: extents::PageError| Refusal::new(error.reason(), error.to_string());
    for (index, address) in (first..).zip(addresses) {
        extents::check(memory, index, *address, known.page_shift).map_err(refuse)?;
        if known.addresses.get(index).is_none_or(Option::is_some) {
            return Err(Refusal::new(Reason::Exists, format!("page {index} was named before")));
        }
    }
    for (done, address) in addresses.iter().enumerate() {
        if !taken.insert(*address, known.page_shift) {
            addresses.iter().take(done).for_each(|address| taken.remove(*address));
            return Err(refuse(extents::PageError::Taken { index: first + done, address: *address }));
        }
    }
    for (slot, address) in known.addresses.iter_mut().skip(first).zip(addresses) {
        *slot = Some(*address);
    }
    Ok(())
}

/// The doorbells of a process of this host.
fn bells_of(descriptors: Vec<OwnedFd>) -> Result<Bells> {
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
    Ok(Bells::Descriptors { doorbell, wake })
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
#[path = "control_tests.rs"]
mod tests;

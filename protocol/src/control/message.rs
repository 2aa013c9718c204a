//! Kinds of control messages, and their bodies.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::envelope::{BODY_BYTES_MAX, Envelope};
use crate::layout::{Record, numbers, record};
use crate::version::Version;

numbers! {
    /// What the body of a control message is.
    pub enum Kind: u16 {
        /// Client: the first message of every connection.
        Hello = 1,
        /// Server: answers [`Kind::Hello`].
        Welcome = 2,
        /// Client in a guest: where some pages of a region lie.
        Pages = 3,
        /// Client on the host: a region is the memory of the descriptor that comes with the message.
        Memory = 4,
        /// Client: each page of a region begins with its nonce.
        Prove = 5,
        /// Server: has read all nonces, and has written its answers.
        Proved = 6,
        /// Client: on whose behalf commands of a region's rings may run.
        Credential = 7,
        /// Client: begins a ring.
        Attach = 8,
        /// Server: answers [`Kind::Credential`], [`Kind::Pages`], [`Kind::Memory`], [`Kind::Attach`] and [`Kind::Detach`].
        Done = 9,
        /// Client: ends a ring, or a region with all its rings, handles and locks.
        Detach = 10,
        /// Server: a ring or region has ended, and why.
        Detached = 11,
        /// Server: rings stand still until the regions are proved again ([`Kind::Prove`]).
        Suspended = 12,
        /// Server: answers a message that it does not do, and says why.
        Refused = 13,
        /// Either: are you there?
        Ping = 14,
        /// Either: answers [`Kind::Ping`].
        Pong = 15,
        /// Client, where [`Features::GIVES_MEMORY`] was returned: asks for a region, proved, with rings attached.
        Want = 16,
        /// Server, or whoever stands for it: answers [`Kind::Want`].
        Given = 17,
    }
}

numbers! {
    /// Why something was refused, or has ended.
    pub enum Reason: u16 {
        /// The client asked for it.
        Asked = 1,
        /// The two sides have no version in common.
        Version = 2,
        /// The connection does not prove that it speaks for guest root, or for a user who may connect.
        NotAllowed = 3,
        /// Another daemon speaks for this machine.
        Busy = 4,
        /// More than the server grants one machine or client.
        Limit = 5,
        /// A message that is none, or not now.
        Message = 6,
        /// A page lies outside of the machine's memory, or across its end.
        PageOutside = 7,
        /// A page is in a region already.
        PageTaken = 8,
        /// A page does not begin at a multiple of its size.
        PageUnaligned = 9,
        /// A page does not hold its nonce.
        Nonce = 10,
        /// No such region, ring or credential.
        Unknown = 11,
        /// A region, ring or credential of this number exists.
        Exists = 12,
        /// A ring or data area that does not lie in the region as it must.
        Layout = 13,
        /// The descriptor is no memory that cannot shrink.
        Descriptor = 14,
        /// The machine's memory has changed, and the region is not in it any more.
        MemoryChanged = 15,
        /// The machine is gone, or has begun anew.
        MachineGone = 16,
        /// Nothing was heard for too long.
        Silent = 17,
        /// The server is being stopped.
        Stopping = 18,
        /// The volume has failed.
        Volume = 19,
    }
}

numbers! {
    /// Who opens a connection.
    pub enum Role: u16 {
        /// The daemon of a guest; its secret is the one that root of the guest reads through virtio-fs.
        GuestDaemon = 1,
        /// A process of the machine that the socket is on.
        Process = 2,
        /// Not a control connection: after the welcome every byte on it, either way, is one ring of a doorbell. Its secret is the one that
        /// the ring was attached with.
        Doorbell = 3,
    }
}

/// Length of secrets and nonces.
pub const SECRET_BYTES: usize = 16;

/// The begin of each page, which proofs use. Whoever keeps rings and data out of it can prove a region again while rings are attached.
pub const PAGE_HEAD_BYTES: u32 = 64;

/// Where guests reach the server through vsock, unless it says otherwise.
pub const PORT_DEFAULT: u32 = 21062;

/// An extended attribute of the root directory of a virtio-fs mount. Its value is an [`Invitation`]; kernels let only root read
/// attributes of this kind.
pub const INVITATION_XATTR: &str = "trusted.ringfort.channel";

/// What the two sides can do beyond their version, as bits of [`Hello::features`] and [`Welcome::features`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(pub u64);

impl Features {
    /// The other side gives memory in which rings are attached already: a client sends [`Kind::Want`] in place of Memory, Prove,
    /// Credential and Attach.
    pub const GIVES_MEMORY: Features = Features(1);

    pub fn has(self, feature: Features) -> bool {
        self.0 & feature.0 == feature.0
    }
}

record! {
    /// Body of [`Kind::Hello`].
    pub struct Hello: 48 {
        /// The versions that the client speaks, both included.
        pub oldest: U16,
        pub newest: U16,
        /// See [`Role`].
        pub role: U16,
        pub reserved: U16,
        /// [`Features`] that the client knows.
        pub features: U64,
        /// What the role says. Zeros for a process, whose socket tells who it is.
        pub secret: [u8; SECRET_BYTES],
        pub reserved_end: [u8; 16],
    }
}

record! {
    /// Body of [`Kind::Welcome`].
    pub struct Welcome: 80 {
        /// What both sides speak from now on.
        pub version: U16,
        pub reserved: [u8; 6],
        /// Bits of the client's that the server knows, too.
        pub features: U64,
        /// Another number after each start of the server, so that a client knows whether its handles still exist.
        pub server: [u8; 16],
        pub volume: [u8; 16],
        pub region_count_max: U32,
        pub ring_count_max: U32,
        pub slot_count_max: U32,
        /// Bytes of all regions of this connection together.
        pub memory_bytes_max: U32,
        /// Bytes of one command's input or output.
        pub command_bytes_max: U32,
        /// The connection ends when nothing was heard for so long.
        pub silence_ms_max: U32,
        pub reserved_end: [u8; 8],
    }
}

record! {
    /// Body of [`Kind::Pages`]; the guest physical address of each of `count` pages follows, as [`U64`]s. A region's pages may
    /// come in several messages and any order, and it is whole when all have come.
    pub struct Pages: 24 {
        pub region: U32,
        /// Of the region.
        pub page_count: U32,
        /// The first page of this message.
        pub first: U32,
        pub count: U32,
        /// A page has 2 to the power of this many bytes: 12 or 21.
        pub page_shift: U32,
        pub reserved: U32,
    }
}

record! {
    /// Body of [`Kind::Memory`].
    pub struct Memory: 16 {
        pub region: U32,
        pub reserved: U32,
        /// Of the descriptor's memory, all of which is the region.
        pub len_bytes: U64,
    }
}

record! {
    /// Body of [`Kind::Prove`] and [`Kind::Proved`]. Page *i* of the region begins with [`nonce`]`(nonce, i)`; the server's answer stands
    /// right behind, made in the same way from a nonce of its own. The client clears both before it attaches a ring.
    pub struct Proof: 24 {
        pub region: U32,
        pub reserved: U32,
        pub nonce: [u8; SECRET_BYTES],
    }
}

record! {
    /// Body of [`Kind::Credential`]; `group_count` supplementary groups follow, as [`U32`]s.
    pub struct Credential: 24 {
        pub region: U32,
        /// By which the commands of this region's rings name it.
        pub credential: U32,
        pub uid: U32,
        pub gid: U32,
        pub group_count: U32,
        pub reserved: U32,
    }
}

record! {
    /// Body of [`Kind::Attach`]. From a process on the host two descriptors come with it: an eventfd by which the server is
    /// rung, and a stream socket into which it puts a byte to ring, if there is room for one. From a guest, a connection of [`Role::Doorbell`] rings both ways.
    pub struct Attach: 48 {
        pub region: U32,
        pub ring: U32,
        /// Where the ring begins in the region.
        pub start: U32,
        /// Of each direction.
        pub slot_count: U32,
        /// The data area of the ring's commands. Rings of a region may share one.
        pub data_start: U32,
        pub data_bytes: U32,
        /// For the doorbell's connection.
        pub secret: [u8; SECRET_BYTES],
        pub reserved: [u8; 8],
    }
}

record! {
    /// Body of [`Kind::Detach`], [`Kind::Done`], [`Kind::Detached`], [`Kind::Suspended`] and [`Kind::Refused`]. For `Detached` and `Refused`
    /// a sentence for people follows, in UTF-8.
    pub struct Subject: 16 {
        /// The kind of the message that is answered; 0 for none.
        pub kind: U16,
        /// See [`Reason`]; 0 where there is none to give.
        pub reason: U16,
        pub region: U32,
        /// `u32::MAX` for a region with all its rings, or where none is meant.
        pub ring: U32,
        /// Of the sentence.
        pub text_bytes: U32,
    }
}

record! {
    /// Body of [`Kind::Want`].
    pub struct Want: 16 {
        pub ring_count: U32,
        /// Of each direction of each ring, at least. The answer may have more.
        pub slot_count: U32,
        /// Of each ring's data area, at least, page heads not counted. The answer may have more.
        pub data_bytes: U32,
        pub reserved: U32,
    }
}

record! {
    /// Body of [`Kind::Given`]; a [`Place`] for each of `ring_count` rings follows. With it come descriptors: of the region's memory, then for each
    /// ring a stream on which every byte, either way, is one ring of the doorbell.
    pub struct Given: 24 {
        /// Of the region, all of which is the descriptor's memory.
        pub len_bytes: U64,
        /// A page has 2 to the power of this many bytes, and the client keeps out of the first [`PAGE_HEAD_BYTES`] of each. 0: pages
        /// have no heads.
        pub page_shift: U32,
        /// That commands have to name.
        pub credential: U32,
        pub ring_count: U32,
        pub reserved: U32,
    }
}

record! {
    /// A ring in a region that was given.
    pub struct Place: 16 {
        /// Where the ring begins in the region.
        pub start: U32,
        /// Of each direction.
        pub slot_count: U32,
        /// The data area of the ring's commands. Heads of pages lie in it.
        pub data_start: U32,
        pub data_bytes: U32,
    }
}

record! {
    /// How root of a guest reaches the server: the value of [`INVITATION_XATTR`].
    pub struct Invitation: 32 {
        /// [`INVITATION_MAGIC`]
        pub magic: U32,
        /// The newest version that the server speaks.
        pub version: U16,
        pub reserved: U16,
        /// On the host (CID 2).
        pub port: U32,
        pub reserved_end: U32,
        /// For [`Hello::secret`] of a [`Role::GuestDaemon`]. Another one after each boot.
        pub secret: [u8; SECRET_BYTES],
    }
}

/// `RFin`, little-endian.
pub const INVITATION_MAGIC: u32 = u32::from_le_bytes(*b"RFin");

impl Invitation {
    pub fn new(version: Version, port: u32, secret: [u8; SECRET_BYTES]) -> Self {
        Self {
            magic: INVITATION_MAGIC.into(),
            version: version.0.into(),
            port: port.into(),
            secret,
            ..Self::default()
        }
    }

    /// None where the bytes are none, or of a layout that only later versions have.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        Self::read_from_bytes(bytes).ok().filter(|invitation| invitation.magic.get() == INVITATION_MAGIC)
    }
}

record! {
    /// Body of [`Kind::Ping`] and [`Kind::Pong`].
    pub struct Echo: 8 {
        pub number: U64,
    }
}

/// No ring in particular.
pub const NO_RING: u32 = u32::MAX;

/// The most supplementary groups of a credential: as many as Linux gives a process would be 65,536; more than these do not help anybody.
pub const GROUP_COUNT_MAX: usize = 1024;

/// The most rings that are given in one answer: their descriptors come with one message.
pub const GIVEN_RINGS_MAX: usize = 64;

/// The longest sentence for people, in bytes.
pub const TEXT_BYTES_MAX: usize = 1024;

/// What stands at the begin of a page: the nonce as a little-endian number, plus the page's index, wrapping.
pub fn nonce(nonce: [u8; SECRET_BYTES], page: u32) -> [u8; SECRET_BYTES] {
    u128::from_le_bytes(nonce).wrapping_add(page.into()).to_le_bytes()
}

/// A control message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    Hello(Hello),
    Welcome(Welcome),
    Pages(Pages, Vec<u64>),
    Memory(Memory),
    Prove(Proof),
    Proved(Proof),
    Credential(Credential, Vec<u32>),
    Attach(Attach),
    Done(Subject),
    Detach(Subject),
    Detached(Subject, String),
    Suspended(Subject),
    Refused(Subject, String),
    Ping(Echo),
    Pong(Echo),
    Want(Want),
    Given(Given, Vec<Place>),
}

/// A body that is not what its kind says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    #[error("control message of kind {0}, which this side does not know")]
    Kind(u16),
    #[error("{kind:?} with a body of {found} bytes, expected {expected}")]
    Length { kind: Kind, found: usize, expected: usize },
    #[error("{kind:?} with {found} {what}; at most {most} are taken")]
    TooMany { kind: Kind, what: &'static str, found: u32, most: usize },
    #[error("{kind:?} with reserved bytes that are not zero")]
    Reserved { kind: Kind },
    #[error("{kind:?} with a sentence that is not UTF-8")]
    Text { kind: Kind },
}

impl MessageError {
    /// The kind of the message that was refused.
    pub fn kind(&self) -> u16 {
        match *self {
            Self::Kind(number) => number,
            Self::Length { kind, .. }
            | Self::TooMany { kind, .. }
            | Self::Reserved { kind }
            | Self::Text { kind } => kind.number(),
        }
    }
}

/// Reads the parts of a body in turn.
struct Body<'a> {
    kind: Kind,
    len_bytes: usize,
    rest: &'a [u8],
}

impl Body<'_> {
    fn length(&self, expected: usize) -> MessageError {
        MessageError::Length { kind: self.kind, found: self.len_bytes, expected }
    }

    fn record<R: Record>(&mut self) -> Result<R, MessageError> {
        let (record, rest) = R::split(self.rest).ok_or_else(|| self.length(size_of::<R>()))?;
        self.rest = rest;
        Ok(record)
    }

    fn count(&self, what: &'static str, count: U32, most: usize) -> Result<usize, MessageError> {
        let (found, kind) = (count.get(), self.kind);
        if found as usize > most {
            return Err(MessageError::TooMany { kind, what, found, most });
        }
        Ok(found as usize)
    }

    fn list<T>(&mut self, count: usize) -> Result<Vec<T>, MessageError>
    where
        T: FromBytes + Immutable + KnownLayout + Unaligned + Copy + 'static,
    {
        let error = self.length(self.len_bytes - self.rest.len() + count * size_of::<T>());
        let (list, rest) = <[T]>::ref_from_prefix_with_elems(self.rest, count).map_err(|_| error)?;
        self.rest = rest;
        Ok(list.to_vec())
    }

    fn text(&mut self, text_bytes: U32) -> Result<String, MessageError> {
        let count = self.count("bytes of text", text_bytes, TEXT_BYTES_MAX)?;
        let bytes = self.list::<u8>(count)?;
        String::from_utf8(bytes).map_err(|_| MessageError::Text { kind: self.kind })
    }

    fn zeros(&self, reserved: &[u8]) -> Result<(), MessageError> {
        match reserved.iter().all(|byte| *byte == 0) {
            true => Ok(()),
            false => Err(MessageError::Reserved { kind: self.kind }),
        }
    }

    fn end(self) -> Result<(), MessageError> {
        match self.rest {
            [] => Ok(()),
            rest => Err(self.length(self.len_bytes - rest.len())),
        }
    }
}

impl Message {
    pub fn kind(&self) -> Kind {
        match self {
            Self::Hello(..) => Kind::Hello,
            Self::Welcome(..) => Kind::Welcome,
            Self::Pages(..) => Kind::Pages,
            Self::Memory(..) => Kind::Memory,
            Self::Prove(..) => Kind::Prove,
            Self::Proved(..) => Kind::Proved,
            Self::Credential(..) => Kind::Credential,
            Self::Attach(..) => Kind::Attach,
            Self::Done(..) => Kind::Done,
            Self::Detach(..) => Kind::Detach,
            Self::Detached(..) => Kind::Detached,
            Self::Suspended(..) => Kind::Suspended,
            Self::Refused(..) => Kind::Refused,
            Self::Ping(..) => Kind::Ping,
            Self::Pong(..) => Kind::Pong,
            Self::Want(..) => Kind::Want,
            Self::Given(..) => Kind::Given,
        }
    }

    /// The bytes of the message, envelope first. The counts in the body's record must be those of what follows it.
    pub fn encode(&self, version: Version) -> Vec<u8> {
        let mut body = Vec::new();
        match self {
            Self::Hello(record) => body.extend(record.as_bytes()),
            Self::Welcome(record) => body.extend(record.as_bytes()),
            Self::Pages(record, addresses) => {
                body.extend(record.as_bytes());
                body.extend(addresses.iter().flat_map(|address| address.to_le_bytes()));
            }
            Self::Memory(record) => body.extend(record.as_bytes()),
            Self::Prove(record) | Self::Proved(record) => body.extend(record.as_bytes()),
            Self::Credential(record, groups) => {
                body.extend(record.as_bytes());
                body.extend(groups.iter().flat_map(|group| group.to_le_bytes()));
            }
            Self::Attach(record) => body.extend(record.as_bytes()),
            Self::Done(record) | Self::Detach(record) | Self::Suspended(record) => {
                body.extend(record.as_bytes());
            }
            Self::Detached(record, text) | Self::Refused(record, text) => {
                body.extend(record.as_bytes());
                body.extend(text.as_bytes());
            }
            Self::Ping(record) | Self::Pong(record) => body.extend(record.as_bytes()),
            Self::Want(record) => body.extend(record.as_bytes()),
            Self::Given(record, places) => {
                body.extend(record.as_bytes());
                body.extend(places.as_bytes());
            }
        }
        let envelope = Envelope::new(version, self.kind().number(), body.len() as u32);
        [envelope.as_bytes(), &body].concat()
    }

    /// Checks the body that followed an envelope of `kind`. What numbers mean is for the receiver to say.
    pub fn decode(kind: u16, body: &[u8]) -> Result<Self, MessageError> {
        let kind = Kind::from_number(kind).ok_or(MessageError::Kind(kind))?;
        let mut body = Body { kind, len_bytes: body.len(), rest: body };
        let message = match kind {
            Kind::Hello => {
                let record: Hello = body.record()?;
                body.zeros(record.reserved.as_bytes())?;
                Self::Hello(record)
            }
            Kind::Welcome => Self::Welcome(body.record()?),
            Kind::Pages => {
                let record: Pages = body.record()?;
                body.zeros(record.reserved.as_bytes())?;
                let count = body.count("pages", record.count, PAGES_A_MESSAGE_MAX)?;
                let addresses = body.list::<U64>(count)?;
                Self::Pages(record, addresses.into_iter().map(U64::get).collect())
            }
            Kind::Memory => {
                let record: Memory = body.record()?;
                body.zeros(record.reserved.as_bytes())?;
                Self::Memory(record)
            }
            Kind::Prove | Kind::Proved => {
                let record: Proof = body.record()?;
                body.zeros(record.reserved.as_bytes())?;
                if kind == Kind::Prove { Self::Prove(record) } else { Self::Proved(record) }
            }
            Kind::Credential => {
                let record: Credential = body.record()?;
                body.zeros(record.reserved.as_bytes())?;
                let count = body.count("groups", record.group_count, GROUP_COUNT_MAX)?;
                let groups = body.list::<U32>(count)?;
                Self::Credential(record, groups.into_iter().map(U32::get).collect())
            }
            Kind::Attach => {
                let record: Attach = body.record()?;
                body.zeros(&record.reserved)?;
                Self::Attach(record)
            }
            Kind::Done => Self::Done(body.record()?),
            Kind::Detach => Self::Detach(body.record()?),
            Kind::Suspended => Self::Suspended(body.record()?),
            Kind::Detached | Kind::Refused => {
                let record: Subject = body.record()?;
                let text = body.text(record.text_bytes)?;
                if kind == Kind::Refused { Self::Refused(record, text) } else { Self::Detached(record, text) }
            }
            Kind::Ping => Self::Ping(body.record()?),
            Kind::Pong => Self::Pong(body.record()?),
            Kind::Want => {
                let record: Want = body.record()?;
                body.zeros(record.reserved.as_bytes())?;
                Self::Want(record)
            }
            Kind::Given => {
                let record: Given = body.record()?;
                let count = body.count("rings", record.ring_count, GIVEN_RINGS_MAX)?;
                Self::Given(record, body.list(count)?)
            }
        };
        body.end()?;
        Ok(message)
    }

    /// An answer that says what was refused, and why, in a number for programs and a sentence for people.
    pub fn refuse(kind: u16, reason: Reason, region: u32, ring: u32, text: &str) -> Self {
        let text = clipped(text);
        let subject = Subject {
            kind: kind.into(),
            reason: reason.number().into(),
            region: region.into(),
            ring: ring.into(),
            text_bytes: (text.len() as u32).into(),
        };
        Self::Refused(subject, text)
    }

    /// Tells that a ring or region has ended, and why.
    pub fn detached(reason: Reason, region: u32, ring: u32, text: &str) -> Self {
        let Self::Refused(subject, text) = Self::refuse(0, reason, region, ring, text) else {
            unreachable!("a refusal is one")
        };
        Self::Detached(subject, text)
    }
}

/// As much of a sentence as a message takes.
fn clipped(text: &str) -> String {
    text[..text.floor_char_boundary(TEXT_BYTES_MAX)].to_owned()
}

/// The most pages that one message names.
pub const PAGES_A_MESSAGE_MAX: usize = (BODY_BYTES_MAX as usize - size_of::<Pages>()) / size_of::<U64>();

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filled<R: Record>() -> R {
        let bytes: Vec<u8> = (1..=size_of::<R>()).map(|index| index as u8).collect();
        R::read_from_bytes(&bytes).unwrap()
    }

    fn every_message() -> Vec<Message> {
        let subject: Subject = filled();
        let text = "the page does not hold its nonce – again".to_owned();
        let with_text = Subject { text_bytes: (text.len() as u32).into(), ..subject };
        vec![
            Message::Hello(Hello { reserved: U16::ZERO, ..filled() }),
            Message::Welcome(filled()),
            Message::Pages(
                Pages { count: 2.into(), reserved: U32::ZERO, ..filled() },
                vec![0x1_4020_0000, 0x2_8040_0000],
            ),
            Message::Memory(Memory { reserved: U32::ZERO, ..filled() }),
            Message::Prove(Proof { reserved: U32::ZERO, ..filled() }),
            Message::Proved(Proof { reserved: U32::ZERO, ..filled() }),
            Message::Credential(
                Credential { group_count: 3.into(), reserved: U32::ZERO, ..filled() },
                vec![4, 24, 1000],
            ),
            Message::Attach(Attach { reserved: [0; 8], ..filled() }),
            Message::Done(subject),
            Message::Detach(subject),
            Message::Detached(with_text, text.clone()),
            Message::Suspended(subject),
            Message::Refused(with_text, text),
            Message::Ping(filled()),
            Message::Pong(filled()),
            Message::Want(Want { reserved: U32::ZERO, ..filled() }),
            Message::Given(
                Given { ring_count: 2.into(), ..filled() },
                vec![filled(), Place { start: 0x0020_1000.into(), ..filled() }],
            ),
        ]
    }

    /// Kind and body of an encoded message.
    fn parts(bytes: &[u8]) -> (u16, &[u8]) {
        let (envelope, body) = Envelope::read_from_prefix(bytes).unwrap();
        assert_eq!(envelope.check(), Ok(()));
        assert_eq!(envelope.body_bytes.get() as usize, body.len());
        (envelope.kind.get(), body)
    }

    #[test]
    fn messages_have_the_bytes_of_their_golden_file_and_are_decoded_as_they_were_encoded() {
        let mut all = Vec::new();
        for (message, kind) in every_message().into_iter().zip(Kind::ALL) {
            let bytes = message.encode(Version::LATEST);
            let (number, body) = parts(&bytes);
            assert_eq!(Kind::from_number(number), Some(*kind));
            assert_eq!(Message::decode(number, body), Ok(message));
            all.extend(bytes);
        }
        assert_eq!(&all[..], include_bytes!("../../tests/golden/control.bin"));
    }

    #[test]
    fn a_body_that_is_cut_or_goes_on_is_refused() {
        for message in every_message() {
            let bytes = message.encode(Version::LATEST);
            let (number, body) = parts(&bytes);
            for len_bytes in 0..body.len() {
                assert!(
                    Message::decode(number, &body[..len_bytes]).is_err(),
                    "{message:?} cut to {len_bytes}"
                );
            }
            let longer = [body, &[0]].concat();
            let error = Message::decode(number, &longer).unwrap_err();
            assert_eq!(error.kind(), number);
            assert!(matches!(error, MessageError::Length { .. }), "{message:?}: {error}");
        }
    }

    #[test]
    fn counts_beyond_their_bounds_are_refused_before_anything_is_made_of_them() {
        let pages = Message::Pages(Pages { count: u32::MAX.into(), ..Pages::default() }, Vec::new());
        let groups = Credential { group_count: 1025.into(), ..Credential::default() };
        let text = Subject { text_bytes: 1025.into(), ..Subject::default() };
        for message in
            [pages, Message::Credential(groups, vec![0; 1025]), Message::Refused(text, "x".repeat(1025))]
        {
            let bytes = message.encode(Version::LATEST);
            let (number, body) = parts(&bytes);
            assert!(matches!(Message::decode(number, body), Err(MessageError::TooMany { .. })));
        }
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let Message::Refused(subject, text) =
            Message::refuse(3, Reason::Limit, 1, NO_RING, &"é€".repeat(400))
        else {
            panic!("a refusal")
        };
        assert!(text.len() <= TEXT_BYTES_MAX && text.len() > TEXT_BYTES_MAX - 4);
        assert_eq!(subject.text_bytes.get() as usize, text.len());
    }

    #[test]
    fn an_invitation_has_the_bytes_of_its_golden_file() {
        let invitation = Invitation::new(Version::CHANNEL, PORT_DEFAULT, *b"sixteen bytes of");
        assert_eq!(invitation.as_bytes(), include_bytes!("../../tests/golden/invitation.bin"));
        assert_eq!(Invitation::decode(invitation.as_bytes()), Some(invitation));
        assert_eq!(Invitation::decode(&[0; 32]), None);
        assert_eq!(Invitation::decode(&invitation.as_bytes()[1..]), None);
    }

    #[test]
    fn nonces_of_pages_differ() {
        assert_eq!(nonce([0xff; 16], 1), [0; 16]);
        assert_eq!(nonce([0; 16], 0x0102)[..3], [2, 1, 0]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_an_error(kind in 0u16..20, body in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(message) = Message::decode(kind, &body) {
                let bytes = message.encode(Version::LATEST);
                prop_assert_eq!(parts(&bytes), (kind, &body[..]));
            }
        }
    }
}

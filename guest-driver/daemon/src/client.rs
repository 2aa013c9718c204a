//! A client of this guest: a conversation in which it gets memory with rings, and then nothing but its end.

use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use ringfort_protocol::control::message::{
    Attach, Credential, Features, GROUP_COUNT_MAX, Given, Hello, Message, NO_RING, Place, Reason, Role, Want,
    Welcome,
};
use ringfort_protocol::ring::layout::SLOT_COUNT_MAX;
use ringfort_protocol::version::{Range, Version};

use crate::holdings::{Grant, Holdings};
use crate::layout::lay_out;
use crate::link::{Link, LinkError};
use crate::peer::Peer;
use crate::region::{self, RegionError};
use crate::stream::{self, StreamError};

/// Rings of one client.
const RINGS_MAX: u32 = 16;
/// The longest data area of a ring.
const DATA_BYTES_MAX: u32 = 64 << 20;
/// The credential of its user, which is all that a client may act as.
const CREDENTIAL: u32 = 1;
/// How long whoever connects may take to say what it wants.
const WANTS_WITHIN: Duration = Duration::from_secs(10);

/// Why a client does not get what it asks for.
struct Refusal {
    reason: Reason,
    text: String,
}

fn refuse(reason: Reason, text: impl Into<String>) -> Refusal {
    Refusal { reason, text: text.into() }
}

impl From<RegionError> for Refusal {
    fn from(error: RegionError) -> Self {
        let reason = match &error {
            RegionError::Link(LinkError::Refused { reason: Some(reason), .. }) => *reason,
            _ => Reason::Stopping,
        };
        refuse(reason, error.to_string())
    }
}

impl From<LinkError> for Refusal {
    fn from(error: LinkError) -> Self {
        RegionError::from(error).into()
    }
}

/// Serves a client until one side hangs up.
pub fn serve(holdings: &Holdings, stream: &UnixStream, peer: &Peer) {
    let mut given = None;
    let mut greeted = false;
    let _ = stream.set_read_timeout(Some(WANTS_WITHIN));
    loop {
        let (kind, heard) = match stream::hear(stream) {
            Ok(message) => (message.kind().number(), Ok(message)),
            Err(StreamError::Message(error)) => {
                (error.kind(), Err(refuse(Reason::Message, error.to_string())))
            }
            Err(_) => break,
        };
        let answer = heard.and_then(|message| match message {
            Message::Hello(hello) if !greeted => welcome(holdings, &hello).map(|welcome| {
                greeted = true;
                Some(welcome)
            }),
            Message::Ping(echo) => Ok(Some(Message::Pong(echo))),
            Message::Pong(_) => Ok(None),
            Message::Want(want) if greeted && given.is_none() => {
                given = Some(give(holdings, stream, peer, &want)?);
                let _ = stream.set_read_timeout(None);
                Ok(None)
            }
            other => {
                Err(refuse(Reason::Message, format!("{:?} is not for a client to send now", other.kind())))
            }
        });
        let (answer, goes_on) = match answer {
            Ok(None) => continue,
            Ok(Some(answer)) => (answer, true),
            Err(refusal) => {
                tracing::debug!(pid = peer.pid, uid = peer.uid, text = refusal.text, "a client was refused");
                (Message::refuse(kind, refusal.reason, 0, NO_RING, &refusal.text), greeted)
            }
        };
        if stream::say(stream, &answer, &[]).is_err() || !goes_on {
            break;
        }
    }
    let _ = stream.shutdown(Shutdown::Both);
    if let Some(grant) = given {
        holdings.take_back(grant);
    }
}

fn welcome(holdings: &Holdings, hello: &Hello) -> Result<Message, Refusal> {
    let ours = Range::new(Version::CHANNEL, Version::LATEST);
    let theirs = Range::new(Version(hello.oldest.get()), Version(hello.newest.get()));
    let version = ours.zip(theirs).and_then(|(ours, theirs)| ours.negotiate(theirs));
    let version = version.ok_or_else(|| {
        let (oldest, newest) = (hello.oldest, hello.newest);
        refuse(
            Reason::Version,
            format!("the client speaks versions {oldest} to {newest}, this daemon {}", Version::LATEST.0),
        )
    })?;
    if Role::from_number(hello.role.get()) != Some(Role::Process) {
        return Err(refuse(Reason::NotAllowed, "this socket is for programs of this guest"));
    }
    if !Features(hello.features.get()).has(Features::GIVES_MEMORY) {
        let text = "the client brings memory of its own, which only a server on the same host takes; use a newer client";
        return Err(refuse(Reason::NotAllowed, text));
    }
    let link = linked(holdings)?;
    Ok(Message::Welcome(Welcome {
        version: version.0.into(),
        features: Features::GIVES_MEMORY.0.into(),
        region_count_max: 1.into(),
        ring_count_max: RINGS_MAX.into(),
        ..link.welcome
    }))
}

fn linked(holdings: &Holdings) -> Result<Arc<Link>, Refusal> {
    holdings.link().ok_or_else(|| refuse(Reason::Stopping, "the server is not there; try again when it runs"))
}

/// Makes a region with rings for a client, and gives it to it.
fn give(holdings: &Holdings, stream: &UnixStream, peer: &Peer, want: &Want) -> Result<Grant, Refusal> {
    let link = linked(holdings)?;
    let ring_count = want.ring_count.get().clamp(1, RINGS_MAX.min(link.welcome.ring_count_max.get()));
    let slot_count = want.slot_count.get().clamp(2, SLOT_COUNT_MAX).next_power_of_two();
    let data_bytes = want.data_bytes.get();
    if data_bytes > DATA_BYTES_MAX {
        return Err(refuse(
            Reason::Limit,
            format!("{data_bytes} bytes of data a ring; at most {DATA_BYTES_MAX} are given"),
        ));
    }
    let store = holdings.store();
    let layout = lay_out(ring_count, slot_count, data_bytes, store.page_bytes(), store.has_heads())
        .ok_or_else(|| refuse(Reason::Limit, "more than a region can have"))?;
    let grant = holdings
        .grant(peer, (layout.len_bytes, ring_count), &link, stream)
        .map_err(|error| refuse(Reason::Limit, format!("{error:#}")))?;
    match hand_over(holdings, &link, stream, peer, &grant, &layout.places) {
        Ok(()) => Ok(grant),
        Err(refusal) => {
            holdings.take_back(grant);
            Err(refusal)
        }
    }
}

fn hand_over(
    holdings: &Holdings,
    link: &Link,
    stream: &UnixStream,
    peer: &Peer,
    grant: &Grant,
    places: &[Place],
) -> Result<(), Refusal> {
    let (number, store) = (grant.number, holdings.store());
    region::register(link, number, &grant.pages, store.page_shift())?;
    let groups: Vec<u32> = peer.groups.iter().copied().take(GROUP_COUNT_MAX).collect();
    let credential = Credential {
        region: number.into(),
        credential: CREDENTIAL.into(),
        uid: peer.uid.into(),
        gid: peer.gid.into(),
        group_count: (groups.len() as u32).into(),
        ..Credential::default()
    };
    link.done(&Message::Credential(credential, groups))?;
    let mut doorbells = Vec::new();
    for (ring, place) in (0u32..).zip(places) {
        let secret = region::secret().map_err(RegionError::Chance)?;
        let attach = Attach {
            region: number.into(),
            ring: ring.into(),
            start: place.start,
            slot_count: place.slot_count,
            data_start: place.data_start,
            data_bytes: place.data_bytes,
            secret,
            ..Attach::default()
        };
        region::attach(link, attach)?;
        doorbells.push(link.doorbell(secret)?);
    }
    let given = Given {
        len_bytes: grant.pages.len_bytes().into(),
        page_shift: if store.has_heads() { store.page_shift() } else { 0 }.into(),
        credential: CREDENTIAL.into(),
        ring_count: (places.len() as u32).into(),
        ..Given::default()
    };
    let file = grant.pages.open_for_client().map_err(RegionError::Pages)?;
    let mut descriptors = vec![file.as_fd()];
    descriptors.extend(doorbells.iter().map(AsFd::as_fd));
    stream::say(stream, &Message::Given(given, places.to_vec()), &descriptors)
        .map_err(|error| refuse(Reason::Stopping, format!("give memory to the client: {error}")))
}

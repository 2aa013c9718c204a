//! Regions: pages that the server was told of, and that were proved to be the same memory on both sides.

use std::fs::File;
use std::io::{self, Read};
use std::time::Duration;

use ringfort_protocol::control::message::{
    Attach, Message, PAGES_A_MESSAGE_MAX, Pages as PagesMessage, Proof, Reason, SECRET_BYTES, nonce,
};

use crate::link::{Link, LinkError};
use crate::pages::Pages;

/// From one try to the next, while the machine stands still or a region is not proved again yet.
const TRY_AGAIN: Duration = Duration::from_millis(20);

/// As long as that is tried.
const TRIES: u32 = 500;

/// A region that is not there.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("reach the pages of a region: {0}")]
    Pages(#[source] io::Error),
    #[error("page {page} does not hold the server's answer: it sees other memory")]
    OtherMemory { page: u32 },
    #[error("read /dev/urandom: {0}")]
    Chance(#[source] io::Error),
}

impl RegionError {
    /// It has ended meanwhile.
    pub fn says_unknown(&self) -> bool {
        matches!(self, Self::Link(error) if error.says_unknown())
    }
}

/// Numbers that nobody guesses.
pub fn secret() -> io::Result<[u8; SECRET_BYTES]> {
    let mut secret = [0; SECRET_BYTES];
    File::open("/dev/urandom")?.read_exact(&mut secret)?;
    Ok(secret)
}

/// Tells the server of pages, and proves them.
pub fn register(link: &Link, region: u32, pages: &Pages, page_shift: u32) -> Result<(), RegionError> {
    let page_count = pages.addresses().len() as u32;
    for (part, addresses) in (0..).zip(pages.addresses().chunks(PAGES_A_MESSAGE_MAX)) {
        let body = PagesMessage {
            region: region.into(),
            page_count: page_count.into(),
            first: (part * PAGES_A_MESSAGE_MAX as u32).into(),
            count: (addresses.len() as u32).into(),
            page_shift: page_shift.into(),
            ..PagesMessage::default()
        };
        let message = Message::Pages(body, addresses.to_vec());
        while_refused(Reason::MachineGone, || Ok(link.done(&message)?))?;
    }
    prove(link, region, pages, page_shift)
}

/// Attaches a ring. Where the machine was stopped since the region was proved, whoever hears of that proves it again.
pub fn attach(link: &Link, attach: Attach) -> Result<(), RegionError> {
    let message = Message::Attach(attach);
    while_refused(Reason::Nonce, || Ok(link.done(&message)?))
}

/// Asks again and again, for a while, as long as it is refused for this reason.
fn while_refused<T>(passing: Reason, ask: impl Fn() -> Result<T, RegionError>) -> Result<T, RegionError> {
    for _ in 0..TRIES {
        match ask() {
            Err(RegionError::Link(LinkError::Refused { reason: Some(reason), .. })) if reason == passing => {
                std::thread::sleep(TRY_AGAIN);
            }
            outcome => return outcome,
        }
    }
    ask()
}

/// Proves a region, as soon as the machine runs: touches nothing but the heads of its pages.
pub fn prove(link: &Link, region: u32, pages: &Pages, page_shift: u32) -> Result<(), RegionError> {
    while_refused(Reason::MachineGone, || prove_once(link, region, pages, page_shift))
}

fn prove_once(link: &Link, region: u32, pages: &Pages, page_shift: u32) -> Result<(), RegionError> {
    let _proof = pages.one_proof_at_a_time();
    let seed = secret().map_err(RegionError::Chance)?;
    let starts = || (0..).zip((0..pages.len_bytes()).step_by(1 << page_shift));
    for (page, start) in starts() {
        pages.write(start, &nonce(seed, page)).map_err(RegionError::Pages)?;
    }
    let body = Proof { region: region.into(), nonce: seed, ..Proof::default() };
    let answer = match link.ask(&Message::Prove(body))? {
        Message::Proved(answer) => answer.nonce,
        other => return Err(LinkError::Unexpected(format!("{:?}", other.kind())).into()),
    };
    for (page, start) in starts() {
        let mut found = [0; SECRET_BYTES];
        pages.read(start + SECRET_BYTES as u64, &mut found).map_err(RegionError::Pages)?;
        if found != nonce(answer, page) {
            return Err(RegionError::OtherMemory { page });
        }
        pages.write(start, &[0; 2 * SECRET_BYTES]).map_err(RegionError::Pages)?;
    }
    Ok(())
}

//! Conversations, message by message.

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
    fn suspend(&mut self, _: u32) -> Result<()> {
        Ok(())
    }
    fn resume(&mut self, _: u32, _: SharedMemory) -> Result<()> {
        Ok(())
    }
    fn speak_for_guest(&mut self, _: [u8; SECRET_BYTES]) -> Result<()> {
        Ok(())
    }
    fn welcome_process(&mut self) -> Result<()> {
        Ok(())
    }
    fn claim_doorbell(&mut self, _: &[u8; SECRET_BYTES]) -> bool {
        false
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

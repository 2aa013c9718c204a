//! Chains: an open file's whole life in one submission, with members that fail.

use anyhow::{Result, ensure};
use ringfort_guest::{Open, Outcome};
use ringfort_protocol::command::Opcode;
use ringfort_reference::{Answer, Errno};

use crate::contents::{allowed, bytes};
use crate::stage::Stage;

/// What is done to the file that a chain has opened.
enum Member {
    Write(Vec<u8>, u64),
    Read(usize, u64),
    Sync,
}

/// What the reference makes of a chain so far.
struct Course {
    opened: Answer<usize>,
    writes: bool,
    /// Whether the last member succeeded.
    went_well: bool,
}

fn members(stage: &mut Stage) -> Vec<(Member, bool)> {
    let count = stage.random.below(5);
    let member = |stage: &mut Stage| match stage.random.below(5) {
        0 | 1 => Member::Write(bytes(stage), stage.random.length()),
        2 | 3 => Member::Read(1 + stage.random.length() as usize, stage.random.length()),
        _ => Member::Sync,
    };
    (0..count).map(|_| (member(stage), stage.random.below(3) == 0)).collect()
}

pub fn step(stage: &mut Stage) -> Result<()> {
    let (spot, members) = (stage.spot(), members(stage));
    let (writes, creates) = (stage.random.below(4) > 0, stage.random.below(2) == 0);
    let how = if writes { Open::to_write() } else { Open::to_read() };
    let how = if creates { how.create(0o664) } else { how };
    let volume = stage.volume();
    let outcomes = {
        let mut chain = volume.batch();
        chain.open(spot.real(stage), how);
        for (member, always) in &members {
            if *always {
                chain.then_always()
            } else {
                chain.then()
            };
            match member {
                Member::Write(bytes, offset) => chain.write_opened(bytes, *offset),
                Member::Read(len, offset) => chain.read_opened(*len, *offset),
                Member::Sync => chain.sync_opened(),
            };
        }
        chain.then_always().close_opened();
        chain.run()?
    };
    ensure!(outcomes.len() == members.len() + 2, "{} outcomes", outcomes.len());
    let (who, place, mask) = (stage.who(), spot.model_of(stage), if writes { 6 } else { 4 });
    let opened = match creates {
        true => stage.reference.open_or_make_by(&who, place, mask, (0o664, false, false)),
        false => stage.reference.open_by(&who, place, mask, false),
    };
    let mut outcomes = outcomes.into_iter();
    let mut next = move || outcomes.next().unwrap_or_else(|| Ok(Outcome::default()));
    let what = format!("{} in a chain of {}", spot.shown(), members.len());
    stage.same(Opcode::Open, &what, next().map(drop), opened.map(drop))?;
    let mut course = Course { opened, writes, went_well: opened.is_ok() };
    for (member, always) in &members {
        // The link to the one before.
        let begins = course.went_well || *always;
        let expected = if begins { course.carry_out(stage, member) } else { Err(Errno::ECANCELED) };
        course.went_well = expected.is_ok();
        let opcode = match member {
            Member::Write(..) => Opcode::Write,
            Member::Read(..) => Opcode::Read,
            Member::Sync => Opcode::Sync,
        };
        let found = next().map(|outcome| match member {
            Member::Write(..) => vec![outcome.value as u8],
            _ => outcome.bytes,
        });
        stage.same_bytes(opcode, &what, found, expected)?;
    }
    let closed = course.opened.map(drop).map_err(|_| Errno::ECANCELED);
    stage.same(Opcode::Close, &what, next().map(drop), closed).map(drop)
}

impl Course {
    /// What was read, or the last byte of how much was written.
    fn carry_out(&self, stage: &mut Stage, member: &Member) -> Answer<Vec<u8>> {
        let Ok(node) = self.opened else { return Err(Errno::ECANCELED) };
        let is_directory = stage.reference.names(node).is_ok();
        match member {
            Member::Write(..) if is_directory => Err(Errno::EBADF),
            Member::Write(bytes, offset) => {
                allowed(self.writes)?;
                let who = stage.who();
                let written = stage.reference.write_by(&who, node, Some(*offset as usize), bytes);
                Ok(vec![written as u8])
            }
            Member::Read(len, offset) => {
                stage.reference.read_at(node, *offset as usize, *len).map(<[u8]>::to_vec)
            }
            Member::Sync => Ok(Vec::new()),
        }
    }
}

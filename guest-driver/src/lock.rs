//! Advisory locks.

use std::ops::{Bound, RangeBounds};

use ringfort_protocol::argument::LockRecord;
use ringfort_protocol::command::Opcode;
use ringfort_protocol::layout::Record;

use crate::error::Error;
use crate::place::Place;
use crate::request::{Request, broken};

/// The last byte that a lock can be on.
const LAST: u64 = i64::MAX as u64;

/// Owners that are open files, in place of numbers of the caller's.
const OPEN_FILE: u64 = 1 << 63;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    /// Others may hold it, too, but not exclusively.
    Shared,
    Exclusive,
}

/// A lock to take or to give up. On the whole file as `flock` has them, or with [`range`](Self::range) on some bytes as `fcntl` has them; the two kinds know
/// nothing of each other. Owned by the open file, which gives it up when it is closed.
#[derive(Clone, Copy, Debug)]
pub struct Lock {
    mode: Option<LockMode>,
    range: Option<(u64, u64)>,
    owner: Option<u64>,
}

impl Lock {
    pub fn shared() -> Self {
        Self { mode: Some(LockMode::Shared), range: None, owner: None }
    }

    pub fn exclusive() -> Self {
        Self { mode: Some(LockMode::Exclusive), range: None, owner: None }
    }

    /// What is held is given up.
    pub fn none() -> Self {
        Self { mode: None, range: None, owner: None }
    }

    /// Some bytes only. An empty range is refused by the server.
    #[must_use]
    pub fn range(self, bytes: impl RangeBounds<u64>) -> Self {
        let start = match bytes.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match bytes.end_bound() {
            Bound::Included(end) => Some(*end),
            Bound::Excluded(behind) => behind.checked_sub(1),
            Bound::Unbounded => Some(LAST),
        };
        // What ends before it begins is no range to the server either.
        Self { range: Some(end.map_or((1, 0), |end| (start, end))), ..self }
    }

    /// Owned by a number of the caller's choice, below 2⁶³, in place of the open file. Locks of one owner do not keep each other out, through whichever open file of
    /// this connection they were taken; a file that is closed gives up those that were taken through it.
    #[must_use]
    pub fn owner(self, owner: u64) -> Self {
        Self { owner: Some(owner & !OPEN_FILE), ..self }
    }

    fn request<'a>(
        &self,
        operation: &'static str,
        opcode: Opcode,
        file: Place<'a>,
        wait: bool,
    ) -> Request<'a, ()> {
        let (start, end) = self.range.unwrap_or((0, LAST));
        let record = LockRecord {
            start: start.into(),
            end: end.into(),
            mode: self.mode.map_or(0, |mode| if mode == LockMode::Shared { 1 } else { 2 }),
            family: u8::from(self.range.is_none()),
            wait: wait.into(),
            pid: std::process::id().into(),
            ..LockRecord::default()
        };
        let owner = self.owner.unwrap_or(file.handle | OPEN_FILE);
        Request::of_handle(operation, opcode, file).operand(owner).record(&record)
    }
}

/// A lock that keeps another out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldLock {
    pub mode: LockMode,
    /// The first and the last byte.
    pub start: u64,
    pub end: u64,
    /// Its holder's process; 0 where that is not of this connection.
    pub pid: u32,
}

impl HeldLock {
    fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let (record, _) = LockRecord::split(bytes).ok_or_else(|| broken("bytes of a lock"))?;
        let mode = match record.mode {
            1 => LockMode::Shared,
            2 => LockMode::Exclusive,
            _ => return Err(broken("bytes of a lock")),
        };
        Ok(Self { mode, start: record.start.get(), end: record.end.get(), pid: record.pid.get() })
    }
}

/// Takes, changes or gives up a lock; waits until that is possible, or answers `EAGAIN`.
pub fn set<'a>(file: Place<'a>, lock: &Lock, wait: bool) -> Request<'a, ()> {
    lock.request("lock", Opcode::SetLock, file, wait)
}

/// What would keep a range lock from being taken.
pub fn get<'a>(file: Place<'a>, lock: &Lock) -> Request<'a, Option<HeldLock>> {
    lock.request("look for locks", Opcode::GetLock, file, false).gives(
        size_of::<LockRecord>(),
        |completion, bytes| match completion.value {
            0 => Ok(None),
            _ => HeldLock::decode(bytes).map(Some),
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_first_and_last_byte() {
        assert_eq!(Lock::shared().range(..).range, Some((0, LAST)));
        assert_eq!(Lock::shared().range(5..10).range, Some((5, 9)));
        assert_eq!(Lock::shared().range(5..=10).range, Some((5, 10)));
        for empty in [Lock::shared().range(5..5), Lock::shared().range(0..0)] {
            let (start, end) = empty.range.unwrap();
            assert!(start > end);
        }
    }
}

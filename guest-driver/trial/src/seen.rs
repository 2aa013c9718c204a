//! What a trial has met: it is one only where it met everything.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::{Result, ensure};
use ringfort_protocol::command::Opcode;
use ringfort_reference::Errno;

/// Errors that a program can come by through the library with what it asks; those of slots and areas that no library submits are for the server's own tests.
const ERRORS: &[Errno] = &[
    Errno::E2BIG,
    Errno::EACCES,
    Errno::EAGAIN,
    Errno::EBADF,
    Errno::EBUSY,
    Errno::ECANCELED,
    Errno::EDEADLK,
    Errno::EEXIST,
    Errno::EFBIG,
    Errno::EINVAL,
    Errno::EISDIR,
    Errno::ELOOP,
    Errno::ENAMETOOLONG,
    Errno::ENODATA,
    Errno::ENOENT,
    Errno::ENOLCK,
    Errno::ENOSPC,
    Errno::ENOTDIR,
    Errno::ENOTEMPTY,
    Errno::ENXIO,
    Errno::EOPNOTSUPP,
    Errno::EPERM,
    Errno::ERANGE,
    Errno::ETIMEDOUT,
];

/// Those of them that nobody gets who may do everything.
const OF_PERMISSIONS: &[Errno] = &[Errno::EACCES, Errno::EPERM];

#[derive(Debug, Default)]
pub struct Seen {
    calls: BTreeMap<u16, u64>,
    errors: BTreeSet<Errno>,
    /// Connections of several users.
    pub users: bool,
}

impl Seen {
    pub fn new(users: bool) -> Self {
        Self { users, ..Self::default() }
    }

    pub fn call(&mut self, opcode: Opcode) {
        *self.calls.entry(opcode.number()).or_default() += 1;
    }

    pub fn error(&mut self, errno: Errno) {
        self.errors.insert(errno);
    }

    pub fn require_everything(&self) -> Result<()> {
        let all = (0..).map_while(Opcode::from_number);
        let missing: Vec<_> = all.filter(|opcode| !self.calls.contains_key(&opcode.number())).collect();
        ensure!(missing.is_empty(), "no call was {missing:?}");
        let wanted = |errno: &&Errno| self.users || !OF_PERMISSIONS.contains(*errno);
        let missing: Vec<_> =
            ERRORS.iter().filter(wanted).filter(|errno| !self.errors.contains(*errno)).collect();
        ensure!(missing.is_empty(), "no call failed with {missing:?}");
        Ok(())
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} calls of {} kinds", self.calls.values().sum::<u64>(), self.calls.len())?;
        write!(f, ", {} kinds of errors", self.errors.len())
    }
}

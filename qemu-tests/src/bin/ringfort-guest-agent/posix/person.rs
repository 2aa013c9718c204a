//! Deeds done as somebody else: a thread takes another user's identity, acts and ends. On Linux each thread has its own.

use std::thread;

use anyhow::{Context, Result, anyhow};
use rustix::fs::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

/// Somebody: a user, a group, further groups.
#[derive(Clone, Copy, Debug)]
pub struct Person {
    pub user: u32,
    pub group: u32,
    pub groups: &'static [u32],
}

/// Owns what the checks give away.
pub const OWNER: Person = Person { user: 1000, group: 1000, groups: &[] };
/// In the owner's group.
pub const MEMBER: Person = Person { user: 1001, group: 1001, groups: &[1000] };
/// Has nothing to do with either.
pub const STRANGER: Person = Person { user: 1002, group: 1002, groups: &[] };

impl Person {
    /// What `deed` gives when this person does it.
    pub fn does<T: Send>(self, deed: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let act = || {
            let groups: Vec<Gid> = self.groups.iter().map(|group| Gid::from_raw(*group)).collect();
            let (user, group) = (Uid::from_raw(self.user), Gid::from_raw(self.group));
            set_thread_groups(&groups).context("taking groups")?;
            set_thread_res_gid(group, group, group).context("taking a group")?;
            // Last: it gives up the right to the others.
            set_thread_res_uid(user, user, user).context("taking a user")?;
            deed()
        };
        thread::scope(|scope| scope.spawn(act).join())
            .map_err(|_| anyhow!("a thread of {self:?} panicked"))?
            .with_context(|| format!("as user {}", self.user))
    }
}

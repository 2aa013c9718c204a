//! Users, and connections of theirs.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::unistd::{Gid, Uid, getegid, geteuid, getgroups, setegid, seteuid, setgroups};
use ringfort_guest::{Options, Volume, connect_with};
use ringfort_reference::Person;

/// A group that some of them have besides their own.
pub const SHARED_GROUP: u32 = 3000;

/// Whose connections a trial has: root's and those of two others, where this process may become them, else two of its own user.
pub fn all() -> Result<Vec<Person>> {
    let groups = getgroups().context("asking for this process's groups")?;
    let own = Person {
        uid: geteuid().as_raw(),
        gid: getegid().as_raw(),
        groups: groups.into_iter().map(Gid::as_raw).collect(),
    };
    if !own.is_root() {
        return Ok(vec![own.clone(), own]);
    }
    let user = |uid, groups: &[u32]| Person { uid, gid: uid, groups: groups.to_vec() };
    Ok(vec![Person::ROOT, user(1000, &[SHARED_GROUP]), user(1001, &[SHARED_GROUP, 3001])])
}

/// Connects as somebody: the other side asks the kernel who connects.
pub fn connect(person: &Person, socket: &Path, timeout: Option<Duration>) -> Result<Volume> {
    let options = Options { rings: 1, queues: 1, timeout, ..Options::default() };
    let connect =
        || connect_with(socket, &options).with_context(|| format!("connecting as user {}", person.uid));
    if !geteuid().is_root() {
        return connect();
    }
    let groups: Vec<_> = person.groups.iter().copied().map(Gid::from_raw).collect();
    setgroups(&groups).context("taking on groups")?;
    setegid(Gid::from_raw(person.gid)).context("taking on a group")?;
    seteuid(Uid::from_raw(person.uid)).context("becoming a user")?;
    let connected = connect();
    seteuid(Uid::from_raw(0)).context("becoming root again")?;
    setegid(Gid::from_raw(0)).context("taking root's group again")?;
    setgroups(&[]).context("leaving groups")?;
    connected
}

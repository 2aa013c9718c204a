//! Random steps on what inodes carry beside their contents: modes, access control lists, attributes, locks.

use std::collections::BTreeSet;

use ringfort_filesystem::operation::*;
use ringfort_reference::{
    Errno, FileKind as Kind, GROUP, List, MASK, NAMED_GROUP, NOBODY, OTHERS, OWNER, Person, Random,
    Reference, USER,
};
use ringfort_store::volume::Volume;

use crate::world::Guest;

const ACCESS: &[u8] = b"system.posix_acl_access";
const DEFAULT: &[u8] = b"system.posix_acl_default";

/// Somebody whom lists name now and then.
const STRANGER: u32 = 1000;

pub async fn step<V: Volume>(random: &mut Random, guest: &Guest<V>, reference: &mut Reference, base: &str) {
    let path = random.path(base);
    match random.below(8) {
        0 | 1 => {
            let permissions = random.below(0o10000) as u16;
            let result = guest.chmod(&path, permissions).await.map(|_| ());
            assert_eq!(result, reference.chmod(&path, permissions), "chmod {path}");
        }
        2..=4 => set_list(random, guest, reference, &path).await,
        5 => attribute(random, guest, reference, &path).await,
        6 => access(random, guest, reference, &path).await,
        _ => lock(random, guest, reference, &path).await,
    }
}

fn list(random: &mut Random) -> List {
    let mut any = || random.below(8) as u16;
    let (owner, group, others, user, named, mask) = (any(), any(), any(), any(), any(), any());
    let mut entries = vec![(OWNER, owner, NOBODY)];
    let shape = random.below(4);
    if shape > 1 {
        entries.push((USER, user, STRANGER));
    }
    entries.push((GROUP, group, NOBODY));
    if shape == 3 {
        entries.push((NAMED_GROUP, named, STRANGER));
    }
    if shape > 0 {
        entries.push((MASK, mask, NOBODY));
    }
    entries.push((OTHERS, others, NOBODY));
    List(entries)
}

/// Sets or takes away.
async fn put_or_remove<V: Volume>(
    guest: &Guest<V>,
    path: &str,
    name: &[u8],
    value: Option<&[u8]>,
) -> Result<(), Errno> {
    match value {
        Some(value) => guest.set_xattr(path, name, value, SetXattrMode::Any).await,
        None => guest.remove_xattr(path, name).await,
    }
}

async fn set_list<V: Volume>(random: &mut Random, guest: &Guest<V>, reference: &mut Reference, path: &str) {
    let is_default = random.below(2) == 0;
    let list = (random.below(5) > 0).then(|| list(random));
    let name = if is_default { DEFAULT } else { ACCESS };
    let result = put_or_remove(guest, path, name, list.as_ref().map(List::value).as_deref()).await;
    assert_eq!(result, reference.set_list(path, is_default, list.clone()), "{list:?} of {path}");
}

async fn attribute<V: Volume>(random: &mut Random, guest: &Guest<V>, reference: &mut Reference, path: &str) {
    let name = format!("trusted.{}", random.below(3)).into_bytes();
    let value = (random.below(3) > 0).then(|| vec![7; random.below(200) as usize]);
    let result = put_or_remove(guest, path, &name, value.as_deref()).await;
    let expected = reference.node_mut(path).and_then(|node| match value {
        Some(value) => {
            node.xattrs.insert(name, value);
            Ok(())
        }
        None => node.xattrs.remove(&name).map(|_| ()).ok_or(Errno::ENODATA),
    });
    assert_eq!(result, expected, "attribute of {path}");
}

/// What a stranger may do.
async fn access<V: Volume>(random: &mut Random, guest: &Guest<V>, reference: &Reference, path: &str) {
    let mask = 1 + random.below(7) as u8;
    let result = match guest.resolve(path).await {
        Ok(node) => guest.user(STRANGER, STRANGER).done(Operation::Access { node, mask }).await,
        Err(errno) => Err(errno),
    };
    let expected = reference.node(path).and_then(|node| {
        let stranger = Person { uid: STRANGER, gid: STRANGER, groups: Vec::new() };
        if node.grants(&stranger, mask.into()) { Ok(()) } else { Err(Errno::EACCES) }
    });
    assert_eq!(result, expected, "access {mask} to {path}");
}

/// A lock keeps another owner out until it goes, or its owner closes.
async fn lock<V: Volume>(random: &mut Random, guest: &Guest<V>, reference: &Reference, path: &str) {
    let Ok(handle) = guest.open(path, "rw").await else { return };
    reference.file(path).unwrap();
    let start = random.below(1000);
    let range = LockRange::new(start, start + random.below(1000)).unwrap();
    let (mine, other) = (LockOwner(1), LockOwner(2));
    let family = LockFamily::Range;
    let set = |owner, mode| Operation::SetLock { handle, owner, family, range, mode, pid: 5, wait: false };
    let held = async || {
        let mode = LockMode::Shared;
        match guest.execute(Operation::GetLock { handle, owner: other, range, mode }).await {
            Ok(Reply::Lock(held)) => held,
            found => panic!("{found:?}"),
        }
    };
    guest.done(set(mine, Some(LockMode::Exclusive))).await.unwrap();
    assert_eq!(held().await, Some(HeldLock { range, mode: LockMode::Exclusive, pid: 5 }), "{path}");
    assert_eq!(guest.done(set(other, Some(LockMode::Shared))).await, Err(Errno::EAGAIN));
    let ends =
        if random.below(2) == 0 { set(mine, None) } else { Operation::Flush { handle, owner: Some(mine) } };
    guest.done(ends).await.unwrap();
    assert_eq!(held().await, None, "{path}");
    guest.close(handle).await.unwrap();
}

/// Every list and attribute of a path.
pub async fn compare<V: Volume>(guest: &Guest<V>, reference: &Reference, path: &str) {
    let node = reference.node(path).unwrap();
    let mut names: BTreeSet<_> = node.xattrs.keys().cloned().collect();
    for (name, list) in [(ACCESS, &node.lists.access), (DEFAULT, &node.lists.default)] {
        let expected = match list {
            _ if node.kind() == Kind::Symlink => Err(Errno::EOPNOTSUPP),
            None => Err(Errno::ENODATA),
            Some(list) => Ok(list.value()),
        };
        assert_eq!(guest.xattr(path, name).await, expected, "{path}");
        names.extend(list.as_ref().map(|_| name.to_vec()));
    }
    for (name, value) in &node.xattrs {
        assert_eq!(guest.xattr(path, name).await.as_ref(), Ok(value), "{path}");
    }
    let number = guest.resolve(path).await.unwrap();
    let Ok(Reply::Value(listed)) = guest.execute(Operation::ListXattr { node: number }).await else {
        panic!()
    };
    let listed: BTreeSet<_> =
        listed.split(|&byte| byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect();
    assert_eq!(listed, names, "{path}");
}

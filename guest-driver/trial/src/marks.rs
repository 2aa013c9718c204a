//! Steps about what inodes carry: modes, owners, sizes by path, extended attributes, lists of access control.

use anyhow::Result;
use ringfort_guest::{SetAttributes, SetXattrMode};
use ringfort_protocol::command::Opcode;
use ringfort_reference::{
    Change, GROUP, List, MASK, NAMED_GROUP, NOBODY, OTHERS, OWNER, Place, ROOT, SetXattrMode as Mode, USER,
};

use crate::people::SHARED_GROUP;
use crate::stage::Stage;

const NAMES: &[&str] = &[
    "user.one",
    "user.two",
    "trusted.one",
    "security.one",
    "user.",
    "nothing.one",
    "system.posix_acl_access",
    "system.posix_acl_default",
];

/// Lets everybody into the root directory, from which a history may have kept them: it would not come to much any more.
pub fn open_root(stage: &mut Stage) -> Result<()> {
    stage.choose_first();
    let (volume, who, root) = (stage.volume(), stage.who(), Place::new("/"));
    let open = Change { permissions: Some(0o777), ..Change::default() };
    for (name, default) in [("system.posix_acl_access", false), ("system.posix_acl_default", true)] {
        let expected = stage.reference.set_list_by(&who, root, default, None);
        stage.same(Opcode::RemoveXattr, "a list of the root", volume.remove_xattr("/", name), expected)?;
    }
    let found = volume.set_attributes("/", &SetAttributes::new().permissions(0o777)).map(drop);
    let expected = stage.reference.change_by(&who, ROOT, &open, false);
    stage.same(Opcode::SetAttributes, "of the root", found, expected).map(drop)
}

pub fn step(stage: &mut Stage) -> Result<()> {
    match stage.random.below(8) {
        0..=2 => change(stage),
        3 => set_xattr(stage),
        4 => get_xattr(stage),
        5 => list_xattrs(stage),
        6 => remove_xattr(stage),
        _ => set_list(stage),
    }
}

fn change(stage: &mut Stage) -> Result<()> {
    let spot = stage.spot_to_reach();
    let mut change = Change::default();
    let mut wish = SetAttributes::new();
    match stage.random.below(6) {
        0..=2 => {
            let special = [0, 0, 0, 0o4000, 0o2010, 0o1000, 0o6010][stage.random.below(7) as usize];
            let permissions = stage.random.below(0o1000) as u16 | special;
            change.permissions = Some(permissions);
            wish = wish.permissions(permissions.into());
        }
        3 => {
            let uid = [0, 1000, 1001][stage.random.below(3) as usize];
            change.uid = Some(uid);
            wish = wish.uid(uid);
        }
        4 => {
            let gid = [0, 1000, 1001, SHARED_GROUP, 3001][stage.random.below(5) as usize];
            change.gid = Some(gid);
            wish = wish.gid(gid);
        }
        _ => {
            let size = stage.random.length();
            change.size = Some(size as usize);
            wish = wish.size_bytes(size);
        }
    }
    let found = stage.volume().set_attributes(spot.real(stage), &wish);
    let attributes = found.as_ref().ok().copied();
    let who = stage.who();
    let node = stage.reference.reach(&who, spot.model_of(stage));
    let expected = node.and_then(|node| stage.reference.change_by(&who, node, &change, false));
    let what = format!("{change:?} of {}", spot.shown());
    stage.same(Opcode::SetAttributes, &what, found.map(drop), expected)?;
    match (attributes, node) {
        (Some(found), Ok(node)) => stage.same_attributes(node, &found),
        _ => Ok(()),
    }
}

fn name(stage: &mut Stage) -> &'static str {
    NAMES[stage.random.below(NAMES.len() as u64) as usize]
}

fn set_xattr(stage: &mut Stage) -> Result<()> {
    let (spot, name) = (stage.spot_to_reach(), NAMES[stage.random.below(6) as usize]);
    let value = vec![stage.random.below(256) as u8; stage.random.below(300) as usize];
    let (mode, model) = match stage.random.below(4) {
        0 => (SetXattrMode::Create, Mode::Create),
        1 => (SetXattrMode::Replace, Mode::Replace),
        _ => (SetXattrMode::Any, Mode::Any),
    };
    let found = stage.volume().set_xattr(spot.real(stage), name, &value, mode);
    let who = stage.who();
    let place = spot.model_of(stage);
    let expected = stage.reference.set_xattr_by(&who, place, (name, &value), model);
    stage.same(Opcode::SetXattr, &format!("{mode:?} {name} of {}", spot.shown()), found, expected).map(drop)
}

fn get_xattr(stage: &mut Stage) -> Result<()> {
    let (spot, name) = (stage.spot_to_reach(), name(stage));
    let found = stage.volume().xattr(spot.real(stage), name);
    let expected = stage.reference.xattr_by(&stage.who(), spot.model_of(stage), name);
    stage.same(Opcode::GetXattr, &format!("{name} of {}", spot.shown()), found, expected).map(drop)
}

fn list_xattrs(stage: &mut Stage) -> Result<()> {
    let spot = stage.spot_to_reach();
    let found = stage.volume().list_xattrs(spot.real(stage)).map(|mut names| {
        names.sort();
        names
    });
    let expected = stage.reference.xattr_names_by(&stage.who(), spot.model_of(stage));
    stage.same(Opcode::ListXattr, &spot.shown(), found, expected).map(drop)
}

fn remove_xattr(stage: &mut Stage) -> Result<()> {
    let (spot, name) = (stage.spot_to_reach(), name(stage));
    let found = stage.volume().remove_xattr(spot.real(stage), name);
    let (who, place) = (stage.who(), spot.model_of(stage));
    let expected = match name {
        "system.posix_acl_access" => stage.reference.set_list_by(&who, place, false, None),
        "system.posix_acl_default" => stage.reference.set_list_by(&who, place, true, None),
        _ => stage.reference.remove_xattr_by(&who, place, name),
    };
    stage.same(Opcode::RemoveXattr, &format!("{name} of {}", spot.shown()), found, expected).map(drop)
}

/// A list that is one: with a mask where it names anybody.
fn list(stage: &mut Stage) -> List {
    let mut any = || stage.random.below(8) as u16;
    let (owner, group, others, user, named, mask) = (any(), any(), any(), any(), any(), any());
    let mut entries = vec![(OWNER, owner, NOBODY)];
    let shape = stage.random.below(4);
    if shape > 1 {
        entries.push((USER, user, 1000));
    }
    entries.push((GROUP, group, NOBODY));
    if shape == 3 {
        entries.push((NAMED_GROUP, named, SHARED_GROUP));
    }
    if shape > 0 {
        entries.push((MASK, mask, NOBODY));
    }
    entries.push((OTHERS, others, NOBODY));
    List(entries)
}

fn set_list(stage: &mut Stage) -> Result<()> {
    let (spot, list, default) = (stage.spot_to_reach(), list(stage), stage.random.below(3) == 0);
    let name = if default { "system.posix_acl_default" } else { "system.posix_acl_access" };
    let found = stage.volume().set_xattr(spot.real(stage), name, list.value(), SetXattrMode::Any);
    let (who, place) = (stage.who(), spot.model_of(stage));
    let expected = stage.reference.set_list_by(&who, place, default, Some(list));
    stage.same(Opcode::SetXattr, &format!("{name} of {}", spot.shown()), found, expected).map(drop)
}

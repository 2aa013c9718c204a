//! Steps about names: what makes, moves, removes and opens them.

use anyhow::{Context, Result, ensure};
use ringfort_guest::{Access, NodeKind, Open, RenameMode};
use ringfort_protocol::command::Opcode;
use ringfort_reference::{Answer, Body, FileKind as Kind, RenameMode as Mode};

use crate::stage::{Opened, Spot, Stage, answer, kind_of};

pub fn step(stage: &mut Stage) -> Result<()> {
    match stage.random.below(20) {
        0..=3 => make_directory(stage),
        4 | 5 => make_node(stage),
        6 | 7 => make_symlink(stage),
        8 | 9 => link(stage),
        10 => remove(stage, false),
        11 => remove(stage, true),
        12..=15 => rename(stage),
        16 => access(stage),
        17 => read_link(stage),
        18 => list(stage),
        _ => stat(stage),
    }
}

/// What was made is what the reference has made.
fn made(
    stage: &mut Stage,
    opcode: Opcode,
    spot: &Spot,
    found: Result<(), ringfort_guest::Error>,
    made: Answer<usize>,
) -> Result<()> {
    stage.same(opcode, &spot.shown(), found, made.map(drop))?;
    match made {
        // Who may make a name may look at it.
        Ok(node) => stage.require_node(&Spot { follow: false, ..spot.clone() }, node),
        Err(_) => Ok(()),
    }
}

fn permissions(stage: &mut Stage) -> u16 {
    // Mostly enough for others to go on.
    let usual = [0o755, 0o777, 0o700, 0o1777, 0o2775, 0o750];
    match stage.random.below(3) {
        0 => stage.random.below(0o1000) as u16,
        _ => usual[stage.random.below(usual.len() as u64) as usize],
    }
}

fn make_directory(stage: &mut Stage) -> Result<()> {
    let (spot, permissions) = (stage.spot_to_name(), permissions(stage));
    let found = stage.volume().create_directory(spot.real(stage), permissions.into());
    let (who, body) = (stage.who(), Body::Directory(Default::default()));
    let expected = stage.reference.make_by(&who, spot.model_of(stage), body, permissions);
    made(stage, Opcode::MakeDirectory, &spot, found, expected)
}

fn make_node(stage: &mut Stage) -> Result<()> {
    let (spot, permissions) = (stage.spot_to_name(), permissions(stage) & 0o777);
    let (kind, body) = match stage.random.below(6) {
        0 => (NodeKind::Fifo, Body::Special(Kind::Fifo, 0)),
        1 => (NodeKind::Socket, Body::Special(Kind::Socket, 0)),
        2 => {
            let kind = NodeKind::CharacterDevice { major: 1, minor: 3 };
            (kind, Body::Special(Kind::CharacterDevice, 0x103))
        }
        3 => (NodeKind::BlockDevice { major: 7, minor: 300 }, Body::Special(Kind::BlockDevice, 0x10_072c)),
        _ => (NodeKind::Regular, Body::File(Vec::new())),
    };
    let found = stage.volume().make_node(spot.real(stage), kind, permissions.into());
    let who = stage.who();
    let expected = stage.reference.make_by(&who, spot.model_of(stage), body, permissions);
    made(stage, Opcode::MakeNode, &spot, found, expected)
}

fn make_symlink(stage: &mut Stage) -> Result<()> {
    let spot = stage.spot_to_name();
    let target = match stage.random.below(8) {
        0 => String::new(),
        1 => "t".repeat(4096),
        2 => "..".to_owned(),
        3 => format!("../{}", stage.random.path("").trim_start_matches('/')),
        4 => stage.random.path("").trim_start_matches('/').to_owned(),
        _ => stage.random.path(""),
    };
    let found = stage.volume().symlink(&target, spot.real(stage));
    let (who, body) = (stage.who(), Body::Symlink(target.into_bytes()));
    let expected = stage.reference.make_by(&who, spot.model_of(stage), body, 0o777);
    made(stage, Opcode::MakeSymlink, &spot, found, expected)
}

fn link(stage: &mut Stage) -> Result<()> {
    let (from, to) = (stage.spot_to_reach(), stage.spot_to_name());
    let found = stage.volume().link(from.real(stage), to.real(stage));
    let who = stage.who();
    let (existing, new) = (from.model_of(stage), to.model_of(stage));
    let expected = stage.reference.link_by(&who, existing, new);
    stage.same(Opcode::Link, &format!("{} to {}", from.shown(), to.shown()), found, expected).map(drop)
}

fn remove(stage: &mut Stage, directory: bool) -> Result<()> {
    let spot = stage.spot_to_name();
    let volume = stage.volume();
    let found = match directory {
        true => volume.remove_directory(spot.real(stage)),
        false => volume.remove_file(spot.real(stage)),
    };
    let who = stage.who();
    let expected = stage.reference.remove_by(&who, spot.model_of(stage), directory);
    stage.same(Opcode::Unlink, &spot.shown(), found, expected).map(drop)
}

fn rename(stage: &mut Stage) -> Result<()> {
    let (from, to) = (stage.spot_to_name(), stage.spot_to_name());
    let (mode, model) = match stage.random.below(5) {
        0 => (RenameMode::NoReplace, Mode::NoReplace),
        1 => (RenameMode::Exchange, Mode::Exchange),
        _ => (RenameMode::Replace, Mode::Replace),
    };
    let found = stage.volume().rename_with(from.real(stage), to.real(stage), mode);
    let who = stage.who();
    let (old, new) = (from.model_of(stage), to.model_of(stage));
    let expected = stage.reference.rename_by(&who, old, new, model);
    let what = format!("{mode:?} {} to {}", from.shown(), to.shown());
    stage.same(Opcode::Rename, &what, found, expected).map(drop)
}

fn access(stage: &mut Stage) -> Result<()> {
    let spot = stage.spot_to_reach();
    let mut access = Access::EXISTS;
    let mut mask = 0;
    for (bit, one) in [(4, Access::READ), (2, Access::WRITE), (1, Access::EXECUTE)] {
        if stage.random.below(2) == 0 {
            (access, mask) = (access.and(one), mask | bit);
        }
    }
    let found = stage.volume().access(spot.real(stage), access);
    let expected = stage.reference.access_by(&stage.who(), spot.model_of(stage), mask);
    stage.same(Opcode::Access, &format!("{mask} to {}", spot.shown()), found, expected).map(drop)
}

fn read_link(stage: &mut Stage) -> Result<()> {
    let spot = Spot { follow: false, ..stage.spot_to_reach() };
    let found = stage.volume().read_link(spot.real(stage));
    let expected = stage.reference.read_link_by(&stage.who(), spot.model_of(stage));
    stage.same(Opcode::ReadLink, &spot.shown(), found, expected).map(drop)
}

fn stat(stage: &mut Stage) -> Result<()> {
    let spot = stage.spot_to_reach();
    let found = stage.volume().stat(spot.real(stage));
    let expected = stage.reference.reach(&stage.who(), spot.model_of(stage));
    let (shown, attributes) = (spot.shown(), found.as_ref().ok().copied());
    stage.same(Opcode::Stat, &shown, found.map(drop), expected.map(drop))?;
    match (attributes, expected) {
        (Some(found), Ok(node)) => stage.same_attributes(node, &found).with_context(|| shown),
        _ => Ok(()),
    }
}

/// All entries, with their attributes or without.
pub fn list(stage: &mut Stage) -> Result<()> {
    let spot = stage.spot_to_reach();
    list_at(stage, &spot)
}

fn list_at(stage: &mut Stage, spot: &Spot) -> Result<()> {
    let with_attributes = stage.random.below(2) == 0;
    let directory = stage.reference.open_directory_by(&stage.who(), spot.model_of(stage));
    let opened = stage.volume().read_directory(spot.real(stage), with_attributes);
    let Some(entries) = ({
        let found = answer(opened)?;
        let shown = found.as_ref().map(drop).map_err(|errno| *errno);
        ensure!(
            shown == directory.map(drop),
            "open {}: the server answers {shown:?}, the reference {directory:?}",
            spot.shown()
        );
        found.ok()
    }) else {
        return Ok(());
    };
    let (Ok(directory), entries) = (directory, entries.collect::<Result<Vec<_>, _>>()?) else {
        return Ok(());
    };
    let names = |mut names: Vec<String>| {
        names.sort();
        names
    };
    let found = entries.iter().map(|entry| String::from_utf8_lossy(&entry.name).into_owned()).collect();
    let expected = stage.reference.names(directory);
    stage.same(Opcode::ReadDirectory, &spot.shown(), Ok(names(found)), expected)?;
    for entry in &entries {
        let name = String::from_utf8_lossy(&entry.name).into_owned();
        let place = ringfort_reference::Place { start: directory, path: &name, follow: false };
        let node = stage.reference.reach(&ringfort_reference::Person::ROOT, place);
        let Ok(node) = node else { continue };
        ensure!(kind_of(entry.kind) == stage.reference.at(node).kind(), "{name} is no {:?}", entry.kind);
        ensure!(entry.attributes.is_some() == with_attributes, "{name} has attributes or not");
        if let Some(found) = &entry.attributes {
            ensure!(found.node == entry.node, "{name} is {} and {}", entry.node, found.node);
            stage.same_attributes(node, found).with_context(|| format!("{name} of {}", spot.shown()))?;
        }
    }
    Ok(())
}

pub fn open_or_close(stage: &mut Stage) -> Result<()> {
    match stage.random.below(10) {
        0 | 1 => match stage.pick(|_| true) {
            Some(index) => stage.close(index),
            None => Ok(()),
        },
        2 => open_temporary(stage),
        3 | 4 => open_directory(stage),
        _ => open(stage),
    }
}

fn open(stage: &mut Stage) -> Result<()> {
    let spot = stage.spot_to_name();
    let (mut how, mask) = match stage.random.below(5) {
        0 => (Open::to_read(), 4),
        1 => (Open::to_write_only(), 2),
        _ => (Open::to_write(), 6),
    };
    let writes = mask & 2 != 0;
    let creates = stage.random.below(3) > 0;
    let exclusive = creates && stage.random.below(5) == 0;
    let truncates = writes && stage.random.below(6) == 0;
    let appends = writes && stage.random.below(6) == 0;
    let permissions = permissions(stage) & 0o777;
    for (wanted, with) in
        [(creates, how.create(permissions.into())), (exclusive, how.create(permissions.into()).exclusive())]
    {
        how = if wanted { with } else { how };
    }
    how = if truncates { how.truncate() } else { how };
    how = if appends { how.append() } else { how };
    how = match stage.random.below(20) {
        0 => how.sync(),
        1 => how.data_sync(),
        _ => how,
    };
    let who = stage.who();
    let found = stage.volume().open_with_attributes(spot.real(stage), how);
    let place = spot.model_of(stage);
    let expected = match creates {
        true => stage.reference.open_or_make_by(&who, place, mask, (permissions, exclusive, truncates)),
        false => stage.reference.open_by(&who, place, mask, truncates),
    };
    let opened = (mask & 4 != 0, writes, appends, false);
    let what = format!("{} {how:?}", spot.shown());
    came_open(stage, &what, found, expected, opened)
}

fn open_directory(stage: &mut Stage) -> Result<()> {
    let spot = stage.spot_to_reach();
    let found = stage.volume().open_with_attributes(spot.real(stage), Open::directory());
    let expected = stage.reference.open_directory_by(&stage.who(), spot.model_of(stage));
    let what = format!("{} as a directory", spot.shown());
    came_open(stage, &what, found, expected, (true, false, false, true))
}

fn open_temporary(stage: &mut Stage) -> Result<()> {
    let (spot, linkable) = (stage.spot_to_reach(), stage.random.below(4) > 0);
    let permissions = permissions(stage) & 0o777;
    let how = Open::temporary(permissions.into());
    let how = if linkable { how } else { how.exclusive() };
    let found = stage.volume().open_with_attributes(spot.real(stage), how);
    let who = stage.who();
    let expected = stage.reference.temporary_by(&who, spot.model_of(stage), permissions, linkable);
    came_open(
        stage,
        &format!("without a name in {}", spot.shown()),
        found,
        expected,
        (true, true, false, false),
    )?;
    // It is given a name here, if at all: by whoever made it.
    let Ok(node) = expected else { return Ok(()) };
    let made = stage.opened.iter().position(|opened| opened.node == node);
    if let (Some(index), true) = (made, stage.random.below(3) > 0) {
        let to = Spot { base: None, ..stage.spot() };
        let found = stage.volume().link(&stage.opened[index].file, to.real(stage));
        let place = ringfort_reference::Place { start: node, path: "", follow: true };
        let new = to.model_of(stage);
        let expected = stage.reference.link_by(&who, place, new);
        stage.same(Opcode::Link, &format!("what has no name to {}", to.shown()), found, expected)?;
    }
    Ok(())
}

/// Keeps what was opened, if both sides have opened it.
fn came_open(
    stage: &mut Stage,
    what: &str,
    found: Result<(ringfort_guest::File, ringfort_guest::Attributes), ringfort_guest::Error>,
    expected: Answer<usize>,
    (reads, writes, appends, is_directory): (bool, bool, bool, bool),
) -> Result<()> {
    let found = answer(found)?;
    let (shown, opened) = match found {
        Ok(opened) => (Ok(()), Some(opened)),
        Err(errno) => (Err(errno), None),
    };
    ensure!(
        shown == expected.map(drop),
        "open {what}: the server answers {shown:?}, the reference {expected:?}"
    );
    stage.seen.call(Opcode::Open);
    if let Err(errno) = shown {
        stage.seen.error(errno);
    }
    if let (Some((file, attributes)), Ok(node)) = (opened, expected) {
        stage.same_attributes(node, &attributes).with_context(|| what.to_owned())?;
        let is_directory = is_directory || stage.reference.at(node).kind() == Kind::Directory;
        let (actor, holder) = (stage.actor(), stage.new_holder());
        stage.opened(Opened { file, actor, node, holder, reads, writes, appends, is_directory })?;
    }
    Ok(())
}

/// Every path: its attributes, entries and contents.
pub fn compare_all(stage: &mut Stage) -> Result<()> {
    stage.choose_first();
    if !stage.seen.users {
        // Whoever is not root may not see all of it.
        return compare_visible(stage);
    }
    for path in stage.reference.paths() {
        compare(stage, &path).with_context(|| format!("comparing {path}"))?;
    }
    Ok(())
}

fn compare_visible(stage: &mut Stage) -> Result<()> {
    let who = stage.who();
    let seen = |path: &&String| {
        let place = ringfort_reference::Place { follow: false, ..ringfort_reference::Place::new(path) };
        let readable = |node| stage.reference.at(node).grants(&who, 4);
        stage.reference.reach(&who, place).is_ok_and(readable)
    };
    let paths = stage.reference.paths();
    let visible: Vec<_> = paths.iter().filter(seen).cloned().collect();
    for path in visible {
        compare(stage, &path).with_context(|| format!("comparing {path}"))?;
    }
    Ok(())
}

fn compare(stage: &mut Stage, path: &str) -> Result<()> {
    let spot = Spot { follow: false, ..Spot::root(if path.is_empty() { "/" } else { path }) };
    let node = stage.reference.resolve(path).ok().context("a path of the reference")?;
    stage.require_node(&spot, node)?;
    match stage.reference.at(node).body.clone() {
        Body::File(bytes) => {
            let found = stage.volume().read_file(spot.real(stage));
            stage.same_bytes(Opcode::Read, "of a whole file", found, Ok(bytes))?;
        }
        Body::Symlink(target) => {
            let found = stage.volume().read_link(spot.real(stage));
            stage.same(Opcode::ReadLink, "of a link", found, Ok(target))?;
        }
        Body::Directory(_) => list_at(stage, &spot)?,
        Body::Special(_, device) => {
            let found = stage.volume().stat(spot.real(stage))?;
            ensure!(found.device == device, "device {:#x}, not {device:#x}", found.device);
        }
    }
    let xattrs = stage.reference.xattr_names_by(&stage.who(), spot.model_of(stage));
    let found = stage.volume().list_xattrs(spot.real(stage)).map(|mut names| {
        names.sort();
        names
    });
    let names = stage.same(Opcode::ListXattr, "names", found, xattrs)?.unwrap_or_default();
    for name in names {
        let expected =
            stage.reference.xattr_by(&stage.who(), spot.model_of(stage), &String::from_utf8_lossy(&name));
        let found = stage.volume().xattr(spot.real(stage), &name);
        stage.same_bytes(Opcode::GetXattr, "value", found, expected)?;
    }
    Ok(())
}

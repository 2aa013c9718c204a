//! What each user may do to what each owns, under every mode that matters: directories that are sticky, that hand their group down, that may be entered and not listed.

use anyhow::{Context, Result};
use ringfort_guest::{Access, NodeKind, Open, RenameMode, SetAttributes, SetTime, SetXattrMode};
use ringfort_protocol::command::Opcode;
use ringfort_reference::{Body, Change, Place, RenameMode as Mode, SetXattrMode as XattrMode};

use crate::people::SHARED_GROUP;
use crate::stage::Stage;

const DIRECTORY: &str = "/permissions";
const FILE: &str = "/permissions/file";
const OTHER: &str = "/permissions/other";
const NEW: &str = "/permissions/new";

const DIRECTORY_MODES: &[u16] =
    &[0o777, 0o1777, 0o755, 0o1775, 0o2775, 0o770, 0o711, 0o733, 0o744, 0o1773, 0o007, 0o070];
const FILE_MODES: &[u16] = &[0o644, 0o060, 0o606, 0o4755, 0o2750];

/// Who owns something, and how it may be used.
#[derive(Clone, Copy, Debug)]
struct Holding {
    uid: u32,
    gid: u32,
    mode: u16,
}

pub fn each_may_what_the_modes_say(stage: &mut Stage) -> Result<()> {
    if !stage.seen.users {
        return Ok(());
    }
    let owners: Vec<u32> = stage.actors.iter().map(|actor| actor.person.uid).collect();
    for &mode in DIRECTORY_MODES {
        for &uid in &owners {
            let directory = Holding { uid, gid: SHARED_GROUP, mode };
            for (at, &file_mode) in FILE_MODES.iter().enumerate() {
                let gid = if at % 2 == 0 { SHARED_GROUP } else { 3001 };
                let file = Holding { uid: owners[(at + mode as usize) % owners.len()], gid, mode: file_mode };
                for (actor, user) in owners.iter().enumerate() {
                    try_all(stage, directory, file, actor)
                        .with_context(|| format!("{directory:?} with {file:?}, by user {user}"))?;
                }
            }
        }
    }
    Ok(())
}

/// Makes both, lets somebody try, and removes what is left.
fn try_all(stage: &mut Stage, directory: Holding, file: Holding, actor: usize) -> Result<()> {
    stage.choose_first();
    let (volume, root) = (stage.volume(), stage.who());
    volume.create_directory(DIRECTORY, 0o700)?;
    volume.make_node(FILE, NodeKind::Regular, 0o600)?;
    let made = [(DIRECTORY, Body::Directory(Default::default())), (FILE, Body::File(vec![]))]
        .map(|(path, body)| stage.reference.make_by(&root, Place::new(path), body, 0o600));
    for ((path, holding), node) in [(DIRECTORY, directory), (FILE, file)].into_iter().zip(made) {
        let Holding { uid, gid, mode } = holding;
        let wish = SetAttributes::new().uid(uid).gid(gid).permissions(mode.into());
        let found = volume.set_attributes(path, &wish)?;
        let change = Change { uid: Some(uid), gid: Some(gid), permissions: Some(mode), ..Change::default() };
        let node = node.ok().context("the reference has something there")?;
        stage.reference.change_by(&root, node, &change, false).ok().context("root may not own something")?;
        stage.same_attributes(node, &found)?;
    }
    stage.choose(actor);
    look(stage)?;
    change(stage)?;
    move_and_remove(stage)?;
    stage.choose_first();
    for path in [FILE, OTHER, NEW] {
        let found = stage.volume().remove_file(path);
        let expected = stage.reference.remove_by(&root, Place::new(path), false);
        stage.same(Opcode::Unlink, path, found, expected)?;
    }
    let expected = stage.reference.remove_by(&root, Place::new(DIRECTORY), true);
    stage.same(Opcode::Unlink, DIRECTORY, stage.volume().remove_directory(DIRECTORY), expected).map(drop)
}

fn look(stage: &mut Stage) -> Result<()> {
    let (volume, who) = (stage.volume(), stage.who());
    for (path, mask, access) in [
        (FILE, 0, Access::EXISTS),
        (FILE, 4, Access::READ),
        (FILE, 2, Access::WRITE),
        (FILE, 1, Access::EXECUTE),
        (DIRECTORY, 6, Access::READ.and(Access::WRITE)),
        (DIRECTORY, 1, Access::EXECUTE),
    ] {
        let expected = stage.reference.access_by(&who, Place::new(path), mask);
        stage.same(Opcode::Access, &format!("{mask} to {path}"), volume.access(path, access), expected)?;
    }
    for (mask, how) in [(4, Open::to_read()), (2, Open::to_write_only())] {
        let found = volume.open(FILE, how).and_then(|file| file.close());
        let expected = stage.reference.open_by(&who, Place::new(FILE), mask, false).map(drop);
        stage.same(Opcode::Open, &format!("{mask} of {FILE}"), found, expected)?;
    }
    let expected = stage.reference.open_directory_by(&who, Place::new(DIRECTORY)).map(drop);
    stage.same(Opcode::ReadDirectory, DIRECTORY, volume.list(DIRECTORY).map(drop), expected).map(drop)
}

fn change(stage: &mut Stage) -> Result<()> {
    let (volume, who) = (stage.volume(), stage.who());
    for (what, wish, change) in [
        ("size", SetAttributes::new().size_bytes(5), Change { size: Some(5), ..Change::default() }),
        (
            "group",
            SetAttributes::new().gid(SHARED_GROUP),
            Change { gid: Some(SHARED_GROUP), ..Change::default() },
        ),
        (
            "mode",
            SetAttributes::new().permissions(0o6751),
            Change { permissions: Some(0o6751), ..Change::default() },
        ),
        (
            "times",
            SetAttributes::new().modified(SetTime::Now).accessed(SetTime::Now),
            Change { times: Some(false), ..Change::default() },
        ),
    ] {
        let found = volume.set_attributes(FILE, &wish);
        let attributes = found.as_ref().ok().copied();
        let node = stage.reference.reach(&who, Place::new(FILE));
        let expected = node.and_then(|node| stage.reference.change_by(&who, node, &change, false));
        stage.same(Opcode::SetAttributes, what, found.map(drop), expected)?;
        if let (Some(found), Ok(node)) = (attributes, node) {
            stage.same_attributes(node, &found)?;
        }
    }
    for path in [FILE, DIRECTORY] {
        let found = volume.set_xattr(path, "user.one", "value", SetXattrMode::Any);
        let value: (&str, &[u8]) = ("user.one", b"value");
        let expected = stage.reference.set_xattr_by(&who, Place::new(path), value, XattrMode::Any);
        stage.same(Opcode::SetXattr, path, found, expected)?;
    }
    Ok(())
}

fn move_and_remove(stage: &mut Stage) -> Result<()> {
    let (volume, who) = (stage.volume(), stage.who());
    let found = volume.open(NEW, Open::to_write().create(0o2770)).and_then(|file| file.close());
    let expected = stage.reference.open_or_make_by(&who, Place::new(NEW), 6, (0o2770, false, false));
    stage.same(Opcode::Open, NEW, found, expected.map(drop))?;
    if let Ok(node) = expected {
        let found = volume.stat(NEW)?;
        stage.same_attributes(node, &found)?;
    }
    for (from, to) in [(FILE, OTHER), (OTHER, NEW), (NEW, FILE)] {
        let found = volume.rename_with(from, to, RenameMode::Replace);
        let expected = stage.reference.rename_by(&who, Place::new(from), Place::new(to), Mode::Replace);
        stage.same(Opcode::Rename, &format!("{from} to {to}"), found, expected)?;
    }
    let expected = stage.reference.link_by(&who, Place::new(FILE), Place::new(OTHER));
    stage.same(Opcode::Link, OTHER, volume.link(FILE, OTHER), expected)?;
    let expected = stage.reference.remove_by(&who, Place::new(FILE), false);
    stage.same(Opcode::Unlink, FILE, volume.remove_file(FILE), expected).map(drop)
}

//! Random steps on what files hold.

use ringfort_filesystem::operation::*;
use ringfort_reference::{Errno, Random, Reference};
use ringfort_store::volume::Volume;

use crate::model::facts;
use crate::world::{Guest, allocate_mode_of, flags, name, pattern};

const MODES: [AllocateMode; 7] = [
    AllocateMode::Allocate { keep_size: false },
    AllocateMode::Allocate { keep_size: true },
    AllocateMode::PunchHole,
    AllocateMode::ZeroRange { keep_size: false },
    AllocateMode::ZeroRange { keep_size: true },
    AllocateMode::CollapseRange,
    AllocateMode::InsertRange,
];

/// The longest that files are made: collapses and insertions must not make histories slow.
const FILE_BYTES_MAX: u64 = 400_000;

pub async fn step<V: Volume>(random: &mut Random, guest: &Guest<V>, reference: &mut Reference, base: &str) {
    let path = random.path(base);
    match random.below(12) {
        0..=2 => write(random, guest, reference, &path).await,
        3 => {
            let size = random.length();
            let result = guest.truncate(&path, size).await.map(|_| ());
            assert_eq!(result, reference.truncate(&path, size as usize), "truncate {path} to {size}");
        }
        4..=6 => allocate(random, guest, reference, &path).await,
        7 | 8 => {
            let target = random.path(base);
            copy(random, guest, reference, &path, &target).await;
        }
        9 => temporary(random, guest, reference, &path).await,
        10 => unlinked_while_open(random, guest, reference, &path).await,
        _ => seek(random, guest, reference, &path).await,
    }
}

async fn write<V: Volume>(random: &mut Random, guest: &Guest<V>, reference: &mut Reference, path: &str) {
    let bytes = pattern(random.below(256) as u8, random.length() as usize);
    let appends = random.below(4) == 0;
    let size = || reference.facts(path).map_or(0, |facts| facts.size_bytes);
    let offset = if appends { size().min(FILE_BYTES_MAX) } else { random.length() };
    let how = if appends { "rwa" } else { "rw" };
    let result = async {
        let handle = guest.create_mode(path, how, 0o644).await?;
        let written = guest.write_at(handle, if appends { 7 } else { offset }, &bytes).await;
        guest.close(handle).await?;
        written.map(|_| ())
    };
    let result = result.await;
    let expected = reference.write(path, offset as usize, &bytes);
    assert_eq!(result, expected, "write {} at {offset} of {path}", bytes.len());
}

async fn allocate<V: Volume>(random: &mut Random, guest: &Guest<V>, reference: &mut Reference, path: &str) {
    let mode = MODES[random.below(MODES.len() as u64) as usize];
    let (mut offset_bytes, mut len_bytes) = (random.length(), random.length());
    let moves = matches!(mode, AllocateMode::CollapseRange | AllocateMode::InsertRange);
    if moves && random.below(8) > 0 {
        (offset_bytes, len_bytes) = (random.below(20) * 4096, (1 + random.below(8)) * 4096);
    }
    if mode == AllocateMode::InsertRange
        && reference.facts(path).is_ok_and(|facts| facts.size_bytes > FILE_BYTES_MAX)
    {
        return;
    }
    let result = async {
        let handle = guest.open(path, "rw").await?;
        let done = guest.done(Operation::Allocate { handle, offset_bytes, len_bytes, mode }).await;
        guest.close(handle).await?;
        done
    };
    let result = result.await;
    let expected =
        reference.allocate(path, allocate_mode_of(mode), offset_bytes as usize, len_bytes as usize);
    assert_eq!(result, expected, "{mode:?} {len_bytes} at {offset_bytes} of {path}");
}

async fn copy<V: Volume>(
    random: &mut Random,
    guest: &Guest<V>,
    reference: &mut Reference,
    source: &str,
    target: &str,
) {
    let unit = if random.below(2) == 0 { 4096 } else { 1 };
    let (from_bytes, to_bytes) = (random.length() / unit * unit, random.length() / unit * unit);
    let len_bytes = random.length();
    let result = async {
        let from = guest.open(source, "r").await?;
        let to = match guest.open(target, "rw").await {
            Ok(to) => to,
            Err(errno) => {
                guest.close(from).await?;
                return Err(errno);
            }
        };
        let copy = Operation::CopyRange { from, from_bytes, to, to_bytes, len_bytes };
        let copied = guest.execute(copy).await;
        guest.close(from).await?;
        guest.close(to).await?;
        match copied? {
            Reply::Written { len_bytes } => Ok(len_bytes as usize),
            other => panic!("{other:?}"),
        }
    };
    let result = result.await;
    let (from_bytes, to_bytes) = (from_bytes as usize, to_bytes as usize);
    let expected = reference.copy((source, from_bytes), (target, to_bytes), len_bytes as usize);
    assert_eq!(result, expected, "copy {len_bytes} from {from_bytes} of {source} to {to_bytes} of {target}");
}

/// A file without a name that is written, and perhaps given one.
async fn temporary<V: Volume>(random: &mut Random, guest: &Guest<V>, reference: &mut Reference, path: &str) {
    let (directory, last) = path.rsplit_once('/').unwrap();
    let (permissions, umask) = (random.below(0o1000) as u16, random.below(0o1000) as u16);
    let (linkable, links) = (random.below(4) > 0, random.below(3) > 0);
    let bytes = pattern(random.below(256) as u8, random.length() as usize);
    let result = async {
        let parent = guest.resolve(directory).await?;
        let new = NewNode { parent, name: name("unused"), permissions, umask };
        let make = Operation::CreateTemporary { new, flags: flags("rw"), linkable };
        let Reply::Created { attributes, handle } = guest.execute(make).await? else { panic!() };
        let node = attributes.node;
        guest.forget(node).await;
        guest.write_at(handle, 0, &bytes).await?;
        let mut linked = Ok(());
        if links {
            let reply = guest.execute(Operation::Link { node, parent, name: name(last) }).await;
            linked = reply.map(|_| ());
            if linked.is_ok() {
                guest.forget(node).await;
            }
        }
        let found = guest.stat_node(node).await?;
        guest.close(handle).await?;
        linked.map(|()| facts(&found))
    };
    let result = result.await;
    let expected = reference.temporary(directory, permissions, umask).and_then(|node| {
        reference.write_node(node, 0, &bytes);
        match (links, linkable, reference.facts(path)) {
            (true, _, Ok(_)) => return Err(Errno::EEXIST),
            (true, false, _) => return Err(Errno::ENOENT),
            (true, true, _) => reference.link_node(node, path)?,
            _ => {}
        }
        Ok(reference.facts_of(node))
    });
    assert_eq!(result, expected, "temporary file for {path}, linked: {links}");
}

/// What is open stays as it is without a name.
async fn unlinked_while_open<V: Volume>(
    random: &mut Random,
    guest: &Guest<V>,
    reference: &mut Reference,
    path: &str,
) {
    let Ok(handle) = guest.open(path, "rw").await else { return };
    let file = reference.file(path).unwrap();
    assert_eq!(guest.unlink(path).await, reference.remove(path, false), "unlink {path} while it is open");
    let (offset, bytes) = (random.length(), pattern(3, random.length() as usize));
    guest.write_at(handle, offset, &bytes).await.unwrap();
    reference.write_node(file, offset as usize, &bytes);
    assert!(guest.read_at(handle, 0, u32::MAX).await.unwrap() == *reference.bytes(file), "{path}, unlinked");
    guest.close(handle).await.unwrap();
}

/// What is said to be a hole reads as zeros, and nothing else is promised.
async fn seek<V: Volume>(random: &mut Random, guest: &Guest<V>, reference: &mut Reference, path: &str) {
    let offset_bytes = random.length();
    let Ok(handle) = guest.open(path, "r").await else { return };
    let bytes = reference.read(path).unwrap();
    let mut found = Vec::new();
    for whence in [Whence::Data, Whence::Hole] {
        found.push(match guest.execute(Operation::Seek { handle, offset_bytes, whence }).await {
            Ok(Reply::Offset(offset)) => Ok(offset as usize),
            Ok(other) => panic!("{other:?}"),
            Err(errno) => Err(errno),
        });
    }
    guest.close(handle).await.unwrap();
    let start = offset_bytes as usize;
    if start >= bytes.len() {
        assert_eq!(found, [Err(Errno::ENXIO), Err(Errno::ENXIO)], "seek from {start} in {path}");
        return;
    }
    let data = *found[0].as_ref().unwrap_or(&bytes.len());
    assert!(data >= start && bytes[start..data].iter().all(|&byte| byte == 0), "{path}: data at {data}");
    let hole = found[1].unwrap();
    assert!(hole >= start && hole <= bytes.len(), "{path}: hole at {hole}");
    // One of the two is here.
    assert!(data == start || hole == start, "{path}: from {start} data at {data}, hole at {hole}");
}

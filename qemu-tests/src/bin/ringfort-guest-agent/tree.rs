//! A tree that a seed describes in full: made, then compared entry by entry and byte by byte.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File, FileTimes, Permissions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};

use crate::content::{PIECE_BYTES, Stream};

const MIB: u64 = 1 << 20;

/// One entry, as it must be found.
#[derive(Clone, Debug)]
enum Entry {
    Folder,
    File(Contents),
    Symlink(PathBuf),
    /// A second name of the file at this path.
    HardLink(PathBuf),
}

#[derive(Clone, Debug)]
struct Contents {
    seed: u64,
    /// A hole at the start, never written.
    hole_bytes: u64,
    data_bytes: u64,
    permissions: u32,
    modified: SystemTime,
    /// How much one write carries.
    write_bytes: usize,
}

type Plan = BTreeMap<PathBuf, Entry>;

/// Makes the tree of `seed` with `files` files below `root`, every file and folder fsynced.
pub fn make(root: &Path, seed: u64, files: u64) -> Result<()> {
    let plan = plan(seed, files);
    fs::create_dir(root).with_context(|| format!("creating {}", root.display()))?;
    // A folder sorts before what is in it; hard links wait until every file has its first name.
    for (below, entry) in &plan {
        let path = root.join(below);
        match entry {
            Entry::Folder => fs::create_dir(&path),
            Entry::Symlink(target) => symlink(target, &path),
            Entry::File(contents) => write_file(&path, contents),
            Entry::HardLink(_) => Ok(()),
        }
        .with_context(|| format!("making {}", path.display()))?;
    }
    for (below, entry) in &plan {
        if let Entry::HardLink(first) = entry {
            let path = root.join(below);
            fs::hard_link(root.join(first), &path).with_context(|| format!("linking {}", path.display()))?;
        }
    }
    for below in
        plan.iter().filter(|(_, entry)| matches!(entry, Entry::Folder)).map(|(below, _)| below.as_path())
    {
        sync_folder(&root.join(below))?;
    }
    sync_folder(root)?;
    if let Some(above) = root.parent() {
        sync_folder(above)?;
    }
    println!("made {}", summary(&plan));
    Ok(())
}

/// Compares everything below `root` with the tree of `seed`.
pub fn verify(root: &Path, seed: u64, files: u64) -> Result<()> {
    let plan = plan(seed, files);
    let mut found = BTreeSet::new();
    list(root, Path::new(""), &mut found)?;
    for path in &found {
        ensure!(plan.contains_key(path), "{} is there and was never made", path.display());
    }
    for (below, entry) in &plan {
        ensure!(found.contains(below), "{} is not listed in its folder", below.display());
        let path = root.join(below);
        verify_entry(root, &path, entry).with_context(|| format!("comparing {}", path.display()))?;
    }
    println!("verified {}", summary(&plan));
    Ok(())
}

fn plan(seed: u64, files: u64) -> Plan {
    let mut random = Stream::new(seed);
    let mut plan = Plan::new();
    let mut folders = vec![PathBuf::new()];
    for number in 0..files / 10 + 1 {
        // Every other folder goes below the newest one, which makes some paths deep.
        let above =
            if number % 2 == 0 { folders.len() - 1 } else { random.below(folders.len() as u64) as usize };
        let mut path = folders[above].join(name(&mut random, number, "d"));
        if path.as_os_str().len() > 2000 {
            path = name(&mut random, number, "d");
        }
        plan.insert(path.clone(), Entry::Folder);
        folders.push(path);
    }
    let mut first_names = Vec::new();
    for number in 0..files {
        let folder = folders[random.below(folders.len() as u64) as usize].clone();
        let path = folder.join(name(&mut random, number, "f"));
        let entry = match number % 10 {
            8 => Entry::Symlink(name(&mut random, number, "t")),
            9 if !first_names.is_empty() => {
                let first: &PathBuf = &first_names[random.below(first_names.len() as u64) as usize];
                Entry::HardLink(first.clone())
            }
            _ => {
                first_names.push(path.clone());
                Entry::File(contents(&mut random, number))
            }
        };
        plan.insert(path, entry);
    }
    plan
}

fn contents(random: &mut Stream, number: u64) -> Contents {
    let data_bytes = match number % 20 {
        0 => 0,
        1 => 1 + random.below(3),
        2 => 4095,
        3 => 4096,
        4 => 4097,
        5 => 65_536 + random.below(5) - 2,
        6 => random.below(MIB),
        7 if number % 100 == 7 => 2 * MIB,
        10 if number % 40 == 10 => random.below(2 * MIB),
        _ => random.below(20_000),
    };
    Contents {
        seed: random.number(),
        hole_bytes: if number % 13 == 5 { random.below(300_000) } else { 0 },
        data_bytes,
        permissions: 0o400 | (random.below(0o1000) as u32),
        modified: SystemTime::UNIX_EPOCH
            + Duration::new(random.below(4_000_000_000), random.below(1_000_000_000) as u32),
        write_bytes: if number % 7 == 3 { 1000 } else { PIECE_BYTES },
    }
}

/// Names that trip programs: spaces, line ends, leading dashes and dots, quotes, bytes that are no UTF-8, the longest.
fn name(random: &mut Stream, number: u64, mark: &str) -> PathBuf {
    let mut bytes = match random.below(12) {
        0 => b" leading and  double spaces ".to_vec(),
        1 => b"line\nend\tand\rreturn".to_vec(),
        2 => b"--dash".to_vec(),
        3 => b"...dots.".to_vec(),
        4 => b"quote'\"`$(no)\\\\*?[".to_vec(),
        5 => vec![0xff, 0xfe, 0x80, b'x', 0xc3],
        6 => "größer-雪-🦀".as_bytes().to_vec(),
        7 => vec![1, 2, 3, 27, 127],
        8 => vec![b'n'; 240],
        _ => b"plain".to_vec(),
    };
    bytes.extend_from_slice(format!("-{mark}{number}").as_bytes());
    PathBuf::from(OsStr::from_bytes(&bytes))
}

fn write_file(path: &Path, contents: &Contents) -> std::io::Result<()> {
    let mut file = File::options().write(true).create_new(true).open(path)?;
    file.seek(SeekFrom::Start(contents.hole_bytes))?;
    let mut bytes = vec![0; contents.data_bytes as usize];
    Stream::new(contents.seed).fill(&mut bytes);
    for piece in bytes.chunks(contents.write_bytes) {
        file.write_all(piece)?;
    }
    if bytes.is_empty() {
        file.set_len(contents.hole_bytes)?;
    }
    file.set_permissions(Permissions::from_mode(contents.permissions))?;
    file.set_times(FileTimes::new().set_modified(contents.modified))?;
    file.sync_all()
}

fn verify_entry(root: &Path, path: &Path, entry: &Entry) -> Result<()> {
    let found = fs::symlink_metadata(path)?;
    match entry {
        Entry::Folder => ensure!(found.is_dir(), "no folder but {:?}", found.file_type()),
        Entry::Symlink(target) => {
            ensure!(found.is_symlink(), "no symbolic link but {:?}", found.file_type());
            let points = fs::read_link(path)?;
            ensure!(&points == target, "points to {points:?}, not to {target:?}");
        }
        Entry::HardLink(first) => {
            let other = fs::symlink_metadata(root.join(first))?;
            ensure!(found.ino() == other.ino(), "inode {} but its other name {}", found.ino(), other.ino());
            ensure!(found.nlink() >= 2, "{} links", found.nlink());
        }
        Entry::File(contents) => {
            ensure!(found.is_file(), "no file but {:?}", found.file_type());
            let length_bytes = contents.hole_bytes + contents.data_bytes;
            ensure!(found.len() == length_bytes, "{} bytes long, not {length_bytes}", found.len());
            let mode = found.mode() & 0o7777;
            ensure!(mode == contents.permissions, "mode {mode:o}, not {:o}", contents.permissions);
            let modified = found.modified()?;
            ensure!(modified == contents.modified, "modified {modified:?}, not {:?}", contents.modified);
            verify_bytes(path, contents)?;
        }
    }
    Ok(())
}

fn verify_bytes(path: &Path, contents: &Contents) -> Result<()> {
    let mut file = File::open(path)?;
    let mut expected = vec![0; contents.hole_bytes as usize];
    let mut data = vec![0; contents.data_bytes as usize];
    Stream::new(contents.seed).fill(&mut data);
    expected.append(&mut data);
    let mut found = vec![0; PIECE_BYTES];
    for (number, expected) in expected.chunks(PIECE_BYTES).enumerate() {
        let found = &mut found[..expected.len()];
        file.read_exact(found)?;
        if found != expected {
            let within =
                found.iter().zip(expected).position(|(found, expected)| found != expected).unwrap_or(0);
            let wrong = found.iter().zip(expected).filter(|(found, expected)| found != expected).count();
            bail!(
                "byte {} is {:#04x}, not {:#04x} ({wrong} wrong in this piece of {})",
                number * PIECE_BYTES + within,
                found[within],
                expected[within],
                expected.len()
            );
        }
    }
    ensure!(file.read(&mut found[..1])? == 0, "more bytes than its length says");
    Ok(())
}

fn list(root: &Path, below: &Path, found: &mut BTreeSet<PathBuf>) -> Result<()> {
    let folder = root.join(below);
    for entry in fs::read_dir(&folder).with_context(|| format!("listing {}", folder.display()))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        ensure!(found.insert(path.clone()), "{} is listed twice", path.display());
        if entry.file_type()?.is_dir() {
            list(root, &path, found)?;
        }
    }
    Ok(())
}

/// Makes the names in a folder durable.
pub fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder)
        .and_then(|open| open.sync_all())
        .with_context(|| format!("syncing the folder {}", folder.display()))
}

fn summary(plan: &Plan) -> String {
    let (mut files, mut folders, mut links, mut bytes) = (0, 0, 0, 0);
    for entry in plan.values() {
        match entry {
            Entry::Folder => folders += 1,
            Entry::Symlink(_) | Entry::HardLink(_) => links += 1,
            Entry::File(contents) => {
                files += 1;
                bytes += contents.hole_bytes + contents.data_bytes;
            }
        }
    }
    format!("{files} files, {folders} folders, {links} links, {bytes} bytes")
}

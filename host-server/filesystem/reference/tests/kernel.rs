//! The reference is what Linux is: random calls by paths, compared with those of the kernel that runs this test, in a folder of its own.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

use ringfort_reference::{Answer, Body, Errno, FileKind, Person, Place, ROOT, Random, Reference, RenameMode};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, linkat, mkdirat, mknodat, openat, readlinkat,
    renameat, renameat_with, statat, symlinkat, unlinkat,
};
use rustix::io::Errno as Kernels;

const STEPS: u64 = 20_000;

/// Both sides, in the hands of whoever runs the test.
struct Pair {
    folder: OwnedFd,
    reference: Reference,
    person: Person,
    random: Random,
}

fn answer<T>(result: Result<T, Kernels>) -> Answer<T> {
    result.map_err(|errno| Errno::of(errno.raw_os_error()))
}

fn place(path: &str, follow: bool) -> Place<'_> {
    Place { start: ROOT, path, follow }
}

impl Pair {
    /// A path that never leaves the folder: `..` comes behind names alone, and links lead down.
    fn path(&mut self) -> String {
        let path = self.random.path("").trim_start_matches('/').to_owned();
        match self.random.below(40) {
            0 => format!("./{path}"),
            1 => path.replace('/', "//./"),
            2 => format!("{path}/../{}", path.chars().next().unwrap()),
            3 => path + &"n".repeat(256),
            4 => "./".repeat(2100) + &path,
            _ => path,
        }
    }

    /// Of what is made, moved or removed: with ends that are no names.
    fn path_to_name(&mut self) -> String {
        let path = self.path();
        match self.random.below(12) {
            0 | 1 => path + "/",
            2 => path + "/.",
            3 => path + "/..",
            4 => [".", "..", "", "./", "..//"][self.random.below(5) as usize].to_owned(),
            _ => path,
        }
    }

    fn step(&mut self) {
        match self.random.below(16) {
            0..=2 => self.make_directory(),
            3 => self.make_node(),
            4 | 5 => self.make_symlink(),
            6 | 7 => self.link(),
            8 | 9 => self.remove(),
            10 | 11 => self.rename(),
            12..=14 => self.open(),
            _ => self.look(),
        }
    }

    fn make_directory(&mut self) {
        let path = self.path_to_name();
        let found = answer(mkdirat(&self.folder, &*path, Mode::from_raw_mode(0o755)));
        let body = Body::Directory(Default::default());
        let expected = self.reference.make_by(&self.person, place(&path, false), body, 0o755).map(drop);
        assert_eq!(found, expected, "mkdir {path}");
    }

    fn make_node(&mut self) {
        let path = self.path_to_name();
        let mode = Mode::from_raw_mode(0o644);
        let found = answer(mknodat(&self.folder, &*path, FileType::RegularFile, mode, 0));
        let body = Body::File(Vec::new());
        let expected = self.reference.make_by(&self.person, place(&path, false), body, 0o644).map(drop);
        assert_eq!(found, expected, "mknod {path}");
    }

    fn make_symlink(&mut self) {
        let path = self.path_to_name();
        let target = match self.random.below(10) {
            0 => String::new(),
            1 => "t".repeat(4096),
            _ => self.random.path("").trim_start_matches('/').to_owned(),
        };
        let found = answer(symlinkat(&*target, &self.folder, &*path));
        let body = Body::Symlink(target.clone().into_bytes());
        let expected = self.reference.make_by(&self.person, place(&path, false), body, 0o777).map(drop);
        assert_eq!(found, expected, "symlink {target} at {path}");
    }

    fn link(&mut self) {
        let (from, to, follow) = (self.path_to_name(), self.path_to_name(), self.random.below(2) == 0);
        // The kernel takes an empty path for the folder only where it is told to.
        if from.is_empty() {
            return;
        }
        let flags = if follow { AtFlags::SYMLINK_FOLLOW } else { AtFlags::empty() };
        let found = answer(linkat(&self.folder, &*from, &self.folder, &*to, flags));
        let expected = self.reference.link_by(&self.person, place(&from, follow), place(&to, false));
        assert_eq!(found, expected, "link {from} to {to}, following: {follow}");
    }

    fn remove(&mut self) {
        let (path, directory) = (self.path_to_name(), self.random.below(2) == 0);
        let flags = if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        let found = answer(unlinkat(&self.folder, &*path, flags));
        let expected = self.reference.remove_by(&self.person, place(&path, false), directory);
        assert_eq!(found, expected, "remove {path}, a directory: {directory}");
    }

    fn rename(&mut self) {
        let (from, to) = (self.path_to_name(), self.path_to_name());
        let (mode, found) = match self.random.below(4) {
            0 => (
                RenameMode::NoReplace,
                renameat_with(&self.folder, &*from, &self.folder, &*to, RenameFlags::NOREPLACE),
            ),
            1 => (
                RenameMode::Exchange,
                renameat_with(&self.folder, &*from, &self.folder, &*to, RenameFlags::EXCHANGE),
            ),
            _ => (RenameMode::Replace, renameat(&self.folder, &*from, &self.folder, &*to)),
        };
        let expected = self.reference.rename_by(&self.person, place(&from, false), place(&to, false), mode);
        assert_eq!(answer(found), expected, "{mode:?} {from} to {to}");
    }

    fn open(&mut self) {
        let path = self.path_to_name();
        let [creates, exclusive, truncates, follow] =
            [2, 4, 5, 2].map(|one_in| self.random.below(one_in) == 0);
        // What an empty path means is the protocol's affair.
        if path.is_empty() {
            return;
        }
        let mut flags = OFlags::RDWR;
        for (wanted, flag) in [
            (creates, OFlags::CREATE),
            (creates && exclusive, OFlags::EXCL),
            (truncates, OFlags::TRUNC),
            (!follow, OFlags::NOFOLLOW),
        ] {
            flags |= if wanted { flag } else { OFlags::empty() };
        }
        let found = answer(openat(&self.folder, &*path, flags, Mode::from_raw_mode(0o644)));
        let place = place(&path, follow);
        let expected = match creates {
            true => {
                let how = (0o644, exclusive, truncates);
                self.reference.open_or_make_by(&self.person, place, 6, how)
            }
            false => self.reference.open_by(&self.person, place, 6, truncates),
        };
        assert_eq!(
            found.as_ref().map(drop).map_err(|errno| *errno),
            expected.map(drop),
            "open {path} {flags:?}"
        );
        if let (Ok(file), Ok(node)) = (found, expected) {
            let bytes = path.as_bytes();
            rustix::io::pwrite(&file, bytes, 3).unwrap();
            self.reference.write_by(&self.person, node, Some(3), bytes);
        }
    }

    fn look(&mut self) {
        let (path, follow) = (self.path_to_name(), self.random.below(2) == 0);
        if path.is_empty() || path.starts_with("..") {
            return;
        }
        let flags = if follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
        let found = answer(statat(&self.folder, &*path, flags))
            .map(|found| kind(FileType::from_raw_mode(found.st_mode)));
        let expected = self.reference.reach(&self.person, place(&path, follow));
        assert_eq!(found, expected.map(|node| self.reference.at(node).kind()), "stat {path}");
        let found = answer(readlinkat(&self.folder, &*path, Vec::new())).map(|target| target.into_bytes());
        let expected = self.reference.read_link_by(&self.person, place(&path, false));
        assert_eq!(found, expected, "readlink {path}");
    }

    /// Every name and every byte.
    fn compare(&self, folder: &Path) {
        for path in self.reference.paths() {
            let (real, node) =
                (folder.join(path.trim_start_matches('/')), self.reference.resolve(&path).unwrap());
            match &self.reference.at(node).body {
                Body::Directory(entries) => {
                    let names = fs::read_dir(&real).unwrap().map(|entry| entry.unwrap().file_name());
                    let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
                    names.sort();
                    assert!(names.iter().eq(entries.keys()), "{path}: {names:?}");
                }
                Body::File(bytes) => assert!(fs::read(&real).unwrap() == *bytes, "{path}"),
                Body::Symlink(_) | Body::Special(..) => {}
            }
        }
    }
}

fn kind(of: FileType) -> FileKind {
    match of {
        FileType::RegularFile => FileKind::Regular,
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::Symlink,
        other => panic!("{other:?}"),
    }
}

#[test]
fn paths_and_names_are_treated_as_this_kernel_treats_them() {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    for seed in 1..=4 {
        let folder = tempfile::tempdir().unwrap();
        let mut reference = Reference::new();
        reference.own_root(uid, gid, 0o755);
        let mut pair = Pair {
            folder: openat(CWD, folder.path(), OFlags::DIRECTORY, Mode::empty()).unwrap(),
            reference,
            person: Person { uid, gid, groups: Vec::new() },
            random: Random::new(seed),
        };
        for number in 1..=STEPS {
            pair.step();
            if number % 1000 == 0 {
                pair.compare(folder.path());
            }
        }
    }
}

//! An advisory lock, held until the program is killed, so that a test can see who waits for whom.

use std::fs::File;
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, Flock, FlockArg, fcntl};
use nix::libc;

/// Takes a lock of `family` (`flock` or `fcntl`) and `kind` (`shared` or `exclusive`) on `file`, waiting for it or not
/// (`wait` or `try`), says `locked` or `refused`, and holds what it has for ever.
pub fn hold(path: &Path, family: &str, kind: &str, patience: &str) -> Result<()> {
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .with_context(|| format!("opening {}", path.display()))?;
    let (shared, wait) = (kind == "shared", patience == "wait");
    let taken = match family {
        "flock" => {
            let argument = match (shared, wait) {
                (true, true) => FlockArg::LockShared,
                (true, false) => FlockArg::LockSharedNonblock,
                (false, true) => FlockArg::LockExclusive,
                (false, false) => FlockArg::LockExclusiveNonblock,
            };
            Flock::lock(file, argument).map(Held::Flock).map_err(|(_, errno)| errno)
        }
        "fcntl" => {
            let range = whole_file(if shared { libc::F_RDLCK } else { libc::F_WRLCK });
            let argument = if wait { FcntlArg::F_SETLKW(&range) } else { FcntlArg::F_SETLK(&range) };
            fcntl(&file, argument).map(|_| Held::Fcntl(file))
        }
        other => bail!("{other:?} is no family of locks: flock or fcntl"),
    };
    match taken {
        Ok(_held) => {
            println!("locked");
            loop {
                thread::park();
            }
        }
        // Both mean that somebody else has it; which of the two is the system's choice.
        Err(Errno::EAGAIN | Errno::EACCES) => {
            println!("refused");
            Ok(())
        }
        Err(errno) => Err(errno).with_context(|| format!("locking {}", path.display())),
    }
}

/// What keeps the lock: closing the file would give it up.
enum Held {
    Flock(#[expect(dead_code)] Flock<File>),
    Fcntl(#[expect(dead_code)] File),
}

fn whole_file(kind: i32) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

//! How to reach the server: an extended attribute that only root of the guest can read, on a virtio-fs mount of the volume.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ringfort_protocol::control::message::{INVITATION_XATTR, Invitation};
use rustix::fs::getxattr;

const MOUNTS: &str = "/proc/self/mountinfo";

/// A mount that takes longer to answer has no server, or one that is of no use now.
const ANSWERS_WITHIN: Duration = Duration::from_secs(3);

/// What a mount has answered: its invitation, if it has one.
type Answer = Result<Option<Invitation>>;

/// Asks a mount. Where the mount's server is gone this may never return.
type Ask = dyn Fn(&Path) -> Answer + Send + Sync;

/// Looks for an invitation: on one mount, or on all of virtio-fs.
pub struct Search {
    mount: Option<PathBuf>,
    ask: Arc<Ask>,
    answers_within: Duration,
    /// Mounts that have not answered yet. None is asked twice at a time, so that those which never answer hold one thread each.
    asked: Mutex<HashMap<u64, Receiver<Answer>>>,
}

/// A mount, by its number in the kernel's table: another mount of the same place has another.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount {
    number: u64,
    place: PathBuf,
}

impl Search {
    pub fn new(mount: Option<PathBuf>) -> Self {
        Self { mount, ask: Arc::new(ask_aside), answers_within: ANSWERS_WITHIN, asked: Mutex::default() }
    }

    /// The invitation of the mount, or of the first virtio-fs mount that has one and answers.
    pub fn find(&self) -> Result<Invitation> {
        let table = fs::read_to_string(MOUNTS).with_context(|| format!("read {MOUNTS}"))?;
        self.find_in(&mounts(&table, self.mount.as_deref()))
    }

    fn find_in(&self, mounts: &[Mount]) -> Result<Invitation> {
        if mounts.is_empty() {
            bail!("no virtio-fs is mounted; mount the volume first: mount -t virtiofs TAG DIRECTORY");
        }
        let mut failure = None;
        for mount in mounts {
            match self.answer_of(mount) {
                Ok(Some(invitation)) => return Ok(invitation),
                Ok(None) => {}
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        if let Some(failure) = failure {
            return Err(failure);
        }
        let looked: Vec<_> = mounts.iter().map(|mount| mount.place.display().to_string()).collect();
        bail!(
            "{} has no channel: start the server with --channel NAME:cid=N or NAME:vsock-unix=PATH for this machine, and run this as root",
            looked.join(", ")
        )
    }

    fn answer_of(&self, mount: &Mount) -> Answer {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let (answer, patience) = match asked.remove(&mount.number) {
            Some(answer) => (answer, Duration::ZERO),
            None => (self.begin_to_ask(&mount.place)?, self.answers_within),
        };
        match answer.recv_timeout(patience) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Disconnected) => bail!("nobody could ask {}", mount.place.display()),
            Err(RecvTimeoutError::Timeout) => {
                asked.insert(mount.number, answer);
                bail!(
                    "{} does not answer: its server is gone. Where it runs again, plug its device in anew, and mount that",
                    mount.place.display()
                )
            }
        }
    }

    fn begin_to_ask(&self, place: &Path) -> io::Result<Receiver<Answer>> {
        let (sender, answer) = channel();
        let (ask, place) = (Arc::clone(&self.ask), place.to_owned());
        // Whoever asked may have given up.
        thread::Builder::new().name("search".to_owned()).spawn(move || sender.send(ask(&place)))?;
        Ok(answer)
    }
}

/// Has a process of its own ask: one that waits for a server that is gone cannot be ended, and would keep whatever it shares with others.
fn ask_aside(place: &Path) -> Answer {
    let mut asking = Command::new("/proc/self/exe");
    let said = asking.arg("--ask").arg(place).stdin(Stdio::null()).output().context("begin to ask")?;
    if !said.status.success() {
        bail!("{}", String::from_utf8_lossy(&said.stderr).trim_end());
    }
    decode(place, &said.stdout)
}

/// Writes the invitation of a mount to standard output, as it is; nothing where there is none.
pub fn tell(place: &Path) -> Result<()> {
    io::stdout().write_all(&attribute(place)?).context("tell of the invitation")
}

fn decode(place: &Path, bytes: &[u8]) -> Answer {
    if bytes.is_empty() {
        return Ok(None);
    }
    Invitation::decode(bytes).with_context(|| format!("{}: it is no invitation", what(place))).map(Some)
}

fn what(place: &Path) -> String {
    format!("read the attribute {INVITATION_XATTR} of {}", place.display())
}

/// Empty where there is none.
fn attribute(place: &Path) -> Result<Vec<u8>> {
    let mut value = vec![0; 256];
    match getxattr(place, INVITATION_XATTR, &mut value[..]) {
        Ok(len_bytes) => value.truncate(len_bytes),
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => value.clear(),
        Err(errno) => return Err(io::Error::from(errno)).with_context(|| what(place)),
    }
    Ok(value)
}

/// The mount at this place, whatever it is; or those of virtio-fs, in the order of the mounts.
fn mounts(table: &str, place: Option<&Path>) -> Vec<Mount> {
    let listed = table.lines().filter_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut fields = mount.split(' ');
        let mount = Mount { number: fields.next()?.parse().ok()?, place: unescaped(fields.nth(3)?).into() };
        Some((mount, file_system.split(' ').next()?))
    });
    let Some(place) = place else {
        return listed.filter(|(_, kind)| *kind == "virtiofs").map(|(mount, _)| mount).collect();
    };
    // What was mounted last hides what was before. A directory that is no mount itself has no number, and needs none.
    let number = listed.filter(|(mount, _)| mount.place == place).map(|(mount, _)| mount.number).next_back();
    vec![Mount { number: number.unwrap_or_default(), place: place.to_owned() }]
}

/// The kernel writes some characters of a path as `\ooo`.
fn unescaped(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut path = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (code, part.get(3..)) {
            (Some(code), Some(rest)) => {
                path.push(code.into());
                path.push_str(rest);
            }
            _ => {
                path.push('\\');
                path.push_str(part);
            }
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use ringfort_protocol::version::Version;

    use super::*;

    #[test]
    fn virtio_fs_mounts_are_found_in_the_kernel_s_table() {
        let table = "22 28 0:21 / /proc rw,nosuid shared:12 - proc proc rw\n\
                     40 28 0:35 / /mnt/my\\040data rw,relatime - virtiofs data rw\n\
                     41 28 0:36 / /b rw shared:7 master:3 - virtiofs b rw\n\
                     42 28 0:37 / /b rw - virtiofs c rw\n";
        let mount = |number, place: &str| Mount { number, place: place.into() };
        assert_eq!(mounts(table, None), [mount(40, "/mnt/my data"), mount(41, "/b"), mount(42, "/b")]);
        assert_eq!(mounts(table, Some(Path::new("/b"))), [mount(42, "/b")]);
        assert_eq!(mounts(table, Some(Path::new("/b/in"))), [mount(0, "/b/in")]);
        assert_eq!(unescaped("a\\134b\\9"), "a\\b\\9");
    }

    #[test]
    fn a_directory_without_the_attribute_has_no_channel() {
        let folder = tempfile::tempdir().unwrap();
        let find = |place: &Path| {
            let ask = |place: &Path| decode(place, &attribute(place)?);
            let search = Search { ask: Arc::new(ask), ..Search::new(Some(place.to_owned())) };
            search.find().unwrap_err().to_string()
        };
        let error = find(folder.path());
        assert!(error.contains("--channel"), "{error}");
        let error = find(&folder.path().join("none"));
        assert!(error.contains("none"), "{error}");
    }

    #[test]
    fn a_mount_that_does_not_answer_hides_no_other_and_is_asked_once_at_a_time() {
        let (release, stuck) = channel::<()>();
        let stuck = Mutex::new(Some(stuck));
        let ask = move |place: &Path| match place.to_str() {
            Some("/stuck") => {
                let first = stuck.lock().unwrap().take().expect("not asked while it has not answered");
                let _ = first.recv();
                bail!("the connection was aborted")
            }
            _ => Ok(Some(Invitation::new(Version::LATEST, 7, [3; 16]))),
        };
        let search =
            Search { ask: Arc::new(ask), answers_within: Duration::from_millis(20), ..Search::new(None) };
        let mount = |number, place: &str| Mount { number, place: place.into() };
        let stuck = mount(1, "/stuck");
        for _ in 0..3 {
            let error = search.find_in(std::slice::from_ref(&stuck)).unwrap_err().to_string();
            assert!(error.contains("/stuck does not answer"), "{error}");
            search.find_in(&[stuck.clone(), mount(2, "/sound")]).unwrap();
        }
        drop(release);
        let deadline = Instant::now() + Duration::from_secs(10);
        while !search.find_in(std::slice::from_ref(&stuck)).unwrap_err().to_string().contains("aborted") {
            assert!(Instant::now() < deadline);
            thread::sleep(Duration::from_millis(1));
        }
        // What is mounted there now is another mount.
        search.find_in(&[mount(3, "/sound")]).unwrap();
    }
}

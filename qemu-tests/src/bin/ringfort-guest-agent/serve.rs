//! Runs the host's commands: one thread reads frames from the port, and each task has threads that carry its output back.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ringfort_qemu_tests::frame::{Frame, Kind, PAYLOAD_MAX_BYTES};

const PORT_NAME: &str = "ringfort.agent";
const PORT_TIMEOUT: Duration = Duration::from_secs(60);

/// Frames go out whole: the port is written under this lock only.
type Port = Arc<Mutex<File>>;

/// Process groups of the running tasks.
type Running = Arc<Mutex<HashMap<u32, u32>>>;

/// Serves the port for ever.
pub fn serve() -> Result<()> {
    let nonce: Arc<str> = nonce()?.into();
    let path = port()?;
    let mut reading =
        File::options().read(true).write(true).open(&path).with_context(|| format!("opening {path:?}"))?;
    let port: Port = Arc::new(Mutex::new(reading.try_clone().context("cloning the port")?));
    let running = Running::default();
    fs::write("/dev/console", format!("ringfort-guest: ready {nonce}\n")).context("writing the console")?;
    loop {
        match Frame::read_from(&mut reading) {
            Ok(Frame { kind: Kind::Start, task, payload }) => {
                let (port, running, nonce) = (Arc::clone(&port), Arc::clone(&running), Arc::clone(&nonce));
                thread::spawn(move || start(task, &payload, &port, &running, &nonce));
            }
            Ok(Frame { kind: Kind::Kill, task, .. }) => {
                let group = running.lock().unwrap_or_else(PoisonError::into_inner).get(&task).copied();
                if let Some(group) = group {
                    let _ = Command::new("/bin/kill").args(["-9", &format!("-{group}")]).status();
                }
            }
            Ok(_) => {}
            // The port reads as ended while the host has not connected.
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

fn start(task: u32, payload: &[u8], port: &Port, running: &Running, nonce: &str) {
    let arguments: Vec<String> = payload
        .split(|byte| *byte == 0)
        .map(|argument| String::from_utf8_lossy(argument).into_owned())
        .collect();
    // The last argument too ends in NUL, which leaves an empty piece behind it.
    let arguments = &arguments[..arguments.len().saturating_sub(1)];
    let status = match spawn(arguments) {
        Ok(child) => {
            running.lock().unwrap_or_else(PoisonError::into_inner).insert(task, child.id());
            let status = follow(child, task, port);
            running.lock().unwrap_or_else(PoisonError::into_inner).remove(&task);
            status
        }
        Err(error) => {
            send(port, &Frame::new(Kind::Stderr, task, format!("{error:#}\n")));
            127
        }
    };
    let mut payload = status.to_le_bytes().to_vec();
    payload.extend_from_slice(nonce.as_bytes());
    send(port, &Frame::new(Kind::Exited, task, payload));
}

fn spawn(arguments: &[String]) -> Result<Child> {
    let (program, rest) = arguments.split_first().context("an empty command")?;
    Command::new(program)
        .args(rest)
        .env("PATH", "/bin")
        .env("HOME", "/root")
        .env("LD_LIBRARY_PATH", "/lib")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .with_context(|| format!("starting {program}"))
}

fn follow(mut child: Child, task: u32, port: &Port) -> i32 {
    let errors = child.stderr.take().map(|from| {
        let port = Arc::clone(port);
        thread::spawn(move || carry(from, Kind::Stderr, task, &port))
    });
    if let Some(from) = child.stdout.take() {
        carry(from, Kind::Stdout, task, port);
    }
    if let Some(errors) = errors {
        let _ = errors.join();
    }
    child.wait().map_or(126, code)
}

fn code(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(126)
}

fn carry(mut from: impl Read, kind: Kind, task: u32, port: &Port) {
    let mut piece = vec![0u8; PAYLOAD_MAX_BYTES];
    while let Ok(count) = from.read(&mut piece) {
        if count == 0 {
            return;
        }
        send(port, &Frame::new(kind, task, &piece[..count]));
    }
}

fn send(port: &Port, frame: &Frame) {
    let mut port = port.lock().unwrap_or_else(PoisonError::into_inner);
    if let Err(error) = frame.write_to(&mut *port) {
        let _ = fs::write("/dev/console", format!("ringfort-guest: a frame was not sent: {error}\n"));
    }
}

fn nonce() -> Result<String> {
    let line = fs::read_to_string("/proc/cmdline").context("reading the kernel's command line")?;
    line.split_whitespace()
        .find_map(|word| word.strip_prefix("ringfort.nonce="))
        .map(str::to_owned)
        .context("the kernel's command line has no ringfort.nonce")
}

/// The port's device node. QEMU tells the driver of its ports and their names some time after the driver is there.
fn port() -> Result<PathBuf> {
    let deadline = Instant::now() + PORT_TIMEOUT;
    loop {
        if let Some(path) = named_port() {
            return Ok(path);
        }
        if Instant::now() > deadline {
            anyhow::bail!("no virtio port is named {PORT_NAME}");
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn named_port() -> Option<PathBuf> {
    let ports = fs::read_dir("/sys/class/virtio-ports").ok()?;
    ports.flatten().find_map(|entry| {
        let name = fs::read_to_string(entry.path().join("name")).ok()?;
        let path = PathBuf::from("/dev").join(entry.file_name());
        (name.trim() == PORT_NAME && path.exists()).then_some(path)
    })
}

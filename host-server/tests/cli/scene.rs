//! Volumes and servers for the tests: the real binary on real files.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

pub const SIZE: &str = "64MiB";
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn ringfort(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ringfort")).args(arguments).output().unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A program of another package of this workspace, built as it is now.
pub fn workspace_program(package: &str, name: &str) -> PathBuf {
    build(&["--package", package]).join(name)
}

/// Builds what the arguments say, and returns the directory that it is in.
pub fn build(arguments: &[&str]) -> PathBuf {
    // Of this test's own build, so that what is built already is not built again.
    let target = Path::new(env!("CARGO_BIN_EXE_ringfort")).parent().unwrap().parent().unwrap();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["build", "--quiet", "--target-dir"])
        .arg(target)
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "cargo build {arguments:?}: {}", text(&output.stderr));
    target.join("debug")
}

/// The message of a command that must be refused.
pub fn refused(arguments: &[&str]) -> String {
    let output = ringfort(arguments);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {message}");
    message
}

pub fn succeeds(arguments: &[&str]) -> String {
    let output = ringfort(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

pub fn contains_all(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

/// A volume in a directory of its own.
pub struct Volume {
    pub root: TempDir,
}

impl Volume {
    pub fn create(more: &[&str]) -> Self {
        let volume = Self { root: tempfile::tempdir().unwrap() };
        let mut arguments = vec!["volume", "create", volume.path(), "--size", SIZE];
        arguments.extend(more);
        succeeds(&arguments);
        volume
    }

    pub fn directory(&self) -> PathBuf {
        self.root.path().join("volume")
    }

    pub fn path(&self) -> &str {
        // Leaked: a few bytes a test.
        Box::leak(self.directory().to_string_lossy().into_owned().into_boxed_str())
    }

    pub fn component(&self, index: usize) -> PathBuf {
        self.directory().join(format!("component-{index}"))
    }

    pub fn status(&self) -> Value {
        serde_json::from_str(&succeeds(&["volume", "status", self.path(), "--json"])).unwrap()
    }

    pub fn states(&self) -> Vec<String> {
        let status = self.status();
        let components = status["tree"]["components"].as_array().unwrap();
        components.iter().map(|component| component["state"].as_str().unwrap().to_owned()).collect()
    }

    pub fn serve(&self) -> Server {
        Server::start(serve_command(&[self.path(), "--virtiofs", self.socket("guest").to_str().unwrap()]))
    }

    pub fn socket(&self, name: &str) -> PathBuf {
        self.root.path().join(format!("{name}.sock"))
    }
}

/// `ringfort serve` with `arguments`.
pub fn serve_command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringfort"));
    command.arg("serve").args(arguments);
    command
}

/// A server that listens. Killed when dropped.
pub struct Server {
    pub child: Child,
    log: BufReader<std::process::ChildStderr>,
    /// Read so far.
    seen: String,
}

impl Server {
    /// Runs `command` until it says that it is ready.
    pub fn start(command: Command) -> Self {
        let mut server = Self::spawn(command);
        server.wait_for_line("ready");
        server
    }

    pub fn spawn(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        Self { child, log, seen: String::new() }
    }

    /// The next line with `part` in it.
    pub fn wait_for_line(&mut self, part: &str) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(self.log.read_line(&mut line).unwrap(), 0, "the server ended: {}", self.seen);
            self.seen.push_str(&line);
            if line.contains(part) {
                return line;
            }
        }
    }

    /// Everything that the server has logged, when it has ended.
    pub fn rest_of_log(&mut self) -> String {
        self.log.read_to_string(&mut self.seen).unwrap();
        self.seen.clone()
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    pub fn wait(&mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(started.elapsed() < PATIENCE, "the server does not stop");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn stop(mut self) {
        self.signal(nix::sys::signal::Signal::SIGTERM);
        assert_eq!(self.wait().code(), Some(0));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

//! The command line as its users meet it: the real binary on real files.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

const SIZE: &str = "64MiB";
const PATIENCE: Duration = Duration::from_secs(60);

fn ringfort(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ringfort")).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The message of a command that must be refused.
fn refused(arguments: &[&str]) -> String {
    let output = ringfort(arguments);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {message}");
    message
}

fn succeeds(arguments: &[&str]) -> String {
    let output = ringfort(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

fn contains_all(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

/// A volume in a directory of its own.
struct Volume {
    root: TempDir,
}

impl Volume {
    fn create(more: &[&str]) -> Self {
        let volume = Self { root: tempfile::tempdir().unwrap() };
        let mut arguments = vec!["volume", "create", volume.path(), "--size", SIZE];
        arguments.extend(more);
        succeeds(&arguments);
        volume
    }

    fn directory(&self) -> PathBuf {
        self.root.path().join("volume")
    }

    fn path(&self) -> &str {
        // Leaked: a few bytes a test.
        Box::leak(self.directory().to_string_lossy().into_owned().into_boxed_str())
    }

    fn component(&self, index: usize) -> PathBuf {
        self.directory().join(format!("component-{index}"))
    }

    fn status(&self) -> Value {
        serde_json::from_str(&succeeds(&["volume", "status", self.path(), "--json"])).unwrap()
    }

    fn states(&self) -> Vec<String> {
        let status = self.status();
        let components = status["tree"]["components"].as_array().unwrap();
        components.iter().map(|component| component["state"].as_str().unwrap().to_owned()).collect()
    }

    fn serve(&self) -> Server {
        Server::start(self.path(), &self.socket("guest"))
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.root.path().join(format!("{name}.sock"))
    }
}

/// A server that listens. Killed when dropped.
struct Server {
    child: Child,
    log: BufReader<std::process::ChildStderr>,
}

impl Server {
    fn start(volume: &str, socket: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_ringfort"))
            .args(["serve", volume, "--virtiofs"])
            .arg(socket)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let mut server = Self { child, log };
        server.wait_for_line("ready");
        server
    }

    fn wait_for_line(&mut self, end: &str) {
        let mut seen = String::new();
        loop {
            let mut line = String::new();
            assert_ne!(self.log.read_line(&mut line).unwrap(), 0, "the server ended: {seen}");
            seen.push_str(&line);
            if line.trim_end().ends_with(end) {
                return;
            }
        }
    }

    fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    fn wait(&mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(started.elapsed() < PATIENCE, "the server does not stop");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn stop(mut self) {
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

#[test]
fn a_new_volume_is_healthy_and_its_status_lists_every_component() {
    let volume = Volume::create(&[]);
    let status = volume.status();
    assert_eq!(status["health"], "healthy");
    assert_eq!(status["served"], Value::Null);
    assert_eq!(status["tree"]["data_columns"], 4);
    assert_eq!(status["tree"]["parity_columns"], 2);
    assert_eq!(status["tree"]["metadata_mirrors"], 3);
    assert_eq!(volume.states(), ["live"; 6]);
    let text = succeeds(&["volume", "status", volume.path()]);
    contains_all(&text, &["healthy", "component-0", "data+metadata", "data 4+2"]);
}

#[test]
fn components_may_be_given_and_metadata_may_have_its_own() {
    let elsewhere = tempfile::tempdir().unwrap();
    let path = |name: &str| elsewhere.path().join(name).to_string_lossy().into_owned();
    let [a, b, c, m, n] = ["a", "b", "c", "m", "n"].map(path);
    let mut arguments = vec!["--data", "2+1"];
    for component in [&a, &b, &c] {
        arguments.extend(["--component", component]);
    }
    for component in [&m, &n] {
        arguments.extend(["--metadata-component", component]);
    }
    let volume = Volume::create(&arguments);
    let status = volume.status();
    let holds: Vec<_> = status["tree"]["components"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["holds"].as_str().unwrap())
        .collect();
    assert_eq!(holds, ["data", "data", "data", "metadata", "metadata"]);
    assert!(!volume.component(0).exists());
}

#[test]
fn an_existing_volume_or_file_is_never_overwritten() {
    let volume = Volume::create(&[]);
    let message = refused(&["volume", "create", volume.path(), "--size", SIZE]);
    contains_all(&message, &["holds a volume already"]);

    let other = tempfile::tempdir().unwrap();
    let kept = other.path().join("component-3");
    fs::write(&kept, "precious").unwrap();
    let message = refused(&["volume", "create", other.path().to_str().unwrap(), "--size", SIZE]);
    contains_all(&message, &["component-3", "exists"]);
    assert_eq!(fs::read(&kept).unwrap(), b"precious");
    assert!(!other.path().join("component-0").exists());
}

#[test]
fn a_failed_creation_leaves_nothing_behind() {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("volume");
    let directory = directory.to_str().unwrap();
    let cases: [(&[&str], &[&str]); 4] = [
        (&["--size", "2PiB", "--memory", "1PiB"], &["make room", "--component"]),
        (&["--size", "64GiB", "--memory", "1MiB"], &["--memory", "maps"]),
        (&["--size", SIZE, "--component", "a"], &["1 component", "6 for 4+2"]),
        (&["--size", "1MiB"], &["at least 64 MiB"]),
    ];
    for (arguments, parts) in cases {
        let message = refused(&[&["volume", "create", directory], arguments].concat());
        contains_all(&message, parts);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0, "{arguments:?}");
    }
}

#[test]
fn wrong_flags_are_refused_with_the_right_form() {
    contains_all(&refused(&["volume", "create", "x"]), &["--size"]);
    contains_all(&refused(&["volume", "create", "x", "--size", "8GiG"]), &["GiG", "GiB"]);
    contains_all(&refused(&["volume", "create", "x", "--size", "8GiB", "--data", "4"]), &["K+M"]);
    contains_all(&refused(&["volume", "create", "x", "--size", "8GiB", "--data", "20+2"]), &["1 to 16"]);
    contains_all(&refused(&["serve", "x"]), &["--virtiofs"]);
    contains_all(
        &refused(&["serve", "x", "--virtiofs", "s", "--cache", "some"]),
        &["never", "auto", "always"],
    );
    contains_all(&refused(&["serve", "x", "--virtiofs", "s", "--commit-interval-ms", "0"]), &["60000"]);
    contains_all(&refused(&["volume", "melt", "x"]), &["melt"]);
    contains_all(&refused(&["volume", "status", "/nonexistent"]), &["no volume", "volume create"]);
}

#[test]
fn every_command_shows_examples_and_exit_codes() {
    for command in [
        vec!["serve"],
        vec!["volume", "create"],
        vec!["volume", "status"],
        vec!["volume", "check"],
        vec!["volume", "export"],
    ] {
        let help = succeeds(&[command.as_slice(), &["--help"]].concat());
        contains_all(&help, &["Examples:", "Exit codes:"]);
    }
}

#[test]
fn a_served_volume_answers_and_is_held() {
    let volume = Volume::create(&[]);
    let server = volume.serve();
    let pid = server.child.id();
    let status = volume.status();
    assert_eq!(status["served"]["pid"], pid);
    assert_eq!(status["served"]["guests"].as_array().unwrap().len(), 1);
    assert!(status["space"]["total_bytes"].as_u64().unwrap() > 0);
    assert!(status["log"]["size_bytes"].as_u64().unwrap() > 0);

    let second = volume.socket("second");
    let message = refused(&["serve", volume.path(), "--virtiofs", second.to_str().unwrap()]);
    contains_all(&message, &["in use", &pid.to_string(), "ringfort serve"]);
    let message = refused(&["volume", "check", volume.path()]);
    contains_all(&message, &["in use", &pid.to_string()]);
    assert!(!second.exists());

    server.stop();
    assert!(!volume.socket("guest").exists(), "the socket is removed");
    assert!(!volume.directory().join("admin.sock").exists());
    let id = status["volume"].as_str().unwrap().replace('-', "");
    let kept = Path::new("/dev/shm/ringfort").join(format!("volume-{id}"));
    assert!(!kept.exists(), "a closed volume keeps no memory");
    assert_eq!(volume.status()["served"], Value::Null);
}

#[test]
fn a_service_manager_is_told_when_every_socket_listens() {
    let volume = Volume::create(&[]);
    let manager = volume.socket("manager");
    let notices = std::os::unix::net::UnixDatagram::bind(&manager).unwrap();
    notices.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_ringfort"))
        .args(["serve", volume.path(), "--virtiofs"])
        .arg(volume.socket("guest"))
        .env("NOTIFY_SOCKET", &manager)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut notice = [0; 256];
    let len = notices.recv(&mut notice).unwrap();
    assert!(text(&notice[..len]).starts_with("READY=1"));
    assert!(volume.socket("guest").exists());
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::Signal::SIGINT)
        .unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_killed_server_leaves_a_volume_that_serves_again() {
    let volume = Volume::create(&[]);
    let mut server = volume.serve();
    server.child.kill().unwrap();
    server.wait();
    assert_eq!(volume.status()["health"], "healthy");
    volume.serve().stop();
}

#[test]
fn a_volume_serves_without_as_many_components_as_it_has_parity() {
    let volume = Volume::create(&[]);
    fs::remove_file(volume.component(1)).unwrap();
    fs::remove_file(volume.component(4)).unwrap();
    assert_eq!(volume.status()["health"], "degraded");
    assert_eq!(volume.states(), ["live", "missing", "live", "live", "missing", "live"]);
    volume.serve().stop();

    fs::remove_file(volume.component(0)).unwrap();
    let socket = volume.socket("guest");
    let message = refused(&["serve", volume.path(), "--virtiofs", socket.to_str().unwrap()]);
    contains_all(&message, &["component-0", "component-1", "component-4", "4 of 6"]);
}

#[test]
fn foreign_doubled_and_damaged_components_are_named() {
    let volume = Volume::create(&[]);
    let other = Volume::create(&[]);
    let kept = volume.root.path().join("kept");

    fs::rename(volume.component(2), &kept).unwrap();
    fs::copy(other.component(2), volume.component(2)).unwrap();
    let found = volume.status()["tree"]["findings"].to_string();
    contains_all(&found, &["component-2"]);
    assert_eq!(volume.status()["health"], "degraded");

    fs::copy(volume.component(3), volume.component(2)).unwrap();
    let message = refused(&["volume", "status", volume.path()]);
    contains_all(&message, &["twice", "component-2", "component-3"]);

    fs::write(volume.component(2), vec![0xa5; 1 << 20]).unwrap();
    let found = volume.status()["tree"]["findings"].to_string();
    contains_all(&found, &["component-2"]);

    fs::rename(&kept, volume.component(2)).unwrap();
    assert_eq!(volume.status()["health"], "healthy");
}

#[test]
fn a_check_tells_clean_from_degraded_from_damaged() {
    let volume = Volume::create(&[]);
    volume.serve().stop();
    let report: Value =
        serde_json::from_str(&succeeds(&["volume", "check", volume.path(), "--json"])).unwrap();
    assert_eq!(report["clean"], true);
    assert_eq!(report["filesystem"]["inodes"], 1);

    fs::remove_file(volume.component(5)).unwrap();
    let text = succeeds(&["volume", "check", volume.path()]);
    contains_all(&text, &["degraded: component 5", "clean"]);

    fs::remove_file(volume.component(3)).unwrap();
    fs::remove_file(volume.component(4)).unwrap();
    contains_all(&refused(&["volume", "check", volume.path()]), &["component-3", "4 of 6"]);
}

#[test]
fn damage_that_no_copy_survives_is_found_and_told() {
    let volume = Volume::create(&[]);
    // The roots on every mirror: behind the label region.
    for index in 0..3 {
        let file = fs::OpenOptions::new().write(true).open(volume.component(index)).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &vec![0xa5; 1 << 20], 1 << 20).unwrap();
    }
    let output = ringfort(&["volume", "check", volume.path()]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    contains_all(&text(&output.stdout), &["damage:", "DAMAGED"]);
}

#[test]
fn a_socket_path_in_use_is_refused_and_not_removed() {
    let volume = Volume::create(&[]);
    let occupied = volume.socket("occupied");
    fs::write(&occupied, "not a socket").unwrap();
    let message = refused(&["serve", volume.path(), "--virtiofs", occupied.to_str().unwrap()]);
    contains_all(&message, &["occupied.sock", "not a socket"]);
    assert_eq!(fs::read(&occupied).unwrap(), b"not a socket");
    volume.serve().stop();
}

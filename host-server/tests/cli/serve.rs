//! Volumes served, killed and stopped.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::scene::{PATIENCE, Server, Volume, contains_all, refused, serve_command, text};

/// Between taking the volume and answering operators, and after that again, a server has the volume and answers nobody.
#[test]
fn who_asks_for_the_status_of_a_volume_waits_for_a_server_that_comes_or_goes() {
    let volume = Volume::create(&[]);
    let lock = fs::File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(volume.directory().join("lock"))
        .unwrap();
    let held = Flock::lock(lock, FlockArg::LockExclusiveNonblock).unwrap();
    fs::write(volume.directory().join("lock"), "1 ringfort serve\n").unwrap();
    let stopping = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(500));
        drop(held);
    });
    assert_eq!(volume.status()["served"], Value::Null);
    stopping.join().unwrap();
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

/// What a service manager hears.
struct Manager {
    notices: UnixDatagram,
}

impl Manager {
    fn bind(path: &Path) -> Self {
        let notices = UnixDatagram::bind(path).unwrap();
        notices.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { notices }
    }

    /// The next notice that says `what`.
    fn wait_for(&self, what: &str) -> String {
        loop {
            let mut notice = [0; 1024];
            let len = self.notices.recv(&mut notice).unwrap();
            let notice = text(&notice[..len]);
            if notice.lines().any(|line| line.starts_with(what)) {
                return notice;
            }
        }
    }
}

#[test]
fn a_service_manager_hears_when_every_socket_listens_that_the_server_lives_and_that_it_stops() {
    let volume = Volume::create(&[]);
    let path = volume.socket("manager");
    let manager = Manager::bind(&path);
    let socket = volume.socket("guest");
    let mut command = serve_command(&[volume.path(), "--virtiofs", socket.to_str().unwrap()]);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "300000");
    let mut server = Server::spawn(command);
    contains_all(&manager.wait_for("STATUS="), &["opening"]);
    contains_all(&manager.wait_for("READY=1"), &["STATUS=serving volume", "healthy"]);
    assert!(socket.exists());
    for _ in 0..3 {
        manager.wait_for("WATCHDOG=1");
    }
    server.signal(Signal::SIGINT);
    manager.wait_for("STOPPING=1");
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn a_hangup_changes_nothing() {
    let volume = Volume::create(&[]);
    let server = volume.serve();
    server.signal(Signal::SIGHUP);
    assert_eq!(volume.status()["served"]["pid"], server.child.id());
    server.stop();
}

#[test]
fn the_log_says_what_is_served_and_is_json_where_wanted() {
    let volume = Volume::create(&[]);
    let socket = volume.socket("guest");
    let arguments = [volume.path(), "--virtiofs", socket.to_str().unwrap(), "--log-format", "json"];
    let mut server = Server::start(serve_command(&arguments));
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0));
    let lines: Vec<Value> =
        server.rest_of_log().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let line = |part: &str| {
        let found = lines.iter().find(|line| line["message"].as_str().unwrap_or_default().contains(part));
        found.unwrap_or_else(|| panic!("{part} is not in {lines:?}"))
    };
    let serving = line("serving 64 MiB");
    assert_eq!(serving["health"], "healthy");
    assert!(serving["volume"].as_str().unwrap().len() >= 32);
    let listening = line("listening on");
    contains_all(listening["message"].as_str().unwrap(), &["guest.sock"]);
    assert_eq!(listening["cache"], "auto");
    line("everything is durable");
}

#[test]
fn the_loss_of_a_component_is_logged_once_with_its_path() {
    let volume = Volume::create(&[]);
    fs::remove_file(volume.component(2)).unwrap();
    let mut server = volume.serve();
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0));
    let log = server.rest_of_log();
    contains_all(&log, &["degraded", "5 of 6 components", "volume replace"]);
    assert_eq!(log.lines().filter(|line| line.contains("component-2")).count(), 1, "{log}");
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
fn a_socket_path_in_use_is_refused_and_not_removed() {
    let volume = Volume::create(&[]);
    let occupied = volume.socket("occupied");
    fs::write(&occupied, "not a socket").unwrap();
    let message = refused(&["serve", volume.path(), "--virtiofs", occupied.to_str().unwrap()]);
    contains_all(&message, &["occupied.sock", "not a socket"]);
    assert_eq!(fs::read(&occupied).unwrap(), b"not a socket");
    volume.serve().stop();
}

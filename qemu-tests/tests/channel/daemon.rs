//! The daemon of a guest, and programs of the guest that use the volume through it.

use ringfort_qemu_tests::agent::Task;
use ringfort_qemu_tests::machine::{Board, Guest, Machine};
use ringfort_qemu_tests::programs::Program;
use ringfort_qemu_tests::scene::{MOUNTED, Scene};

/// A machine with what the channel takes.
fn machine(scene: &Scene) -> Machine {
    Machine::new(Board::MicroVm).vsock(&scene.vsock(0)).programs(&[Program::Guestd, Program::Rf])
}

/// The daemon of a guest.
struct Daemon<'guest> {
    guest: &'guest Guest,
    _task: Task<'guest>,
}

impl<'guest> Daemon<'guest> {
    /// Starts it, and returns when it serves clients.
    fn start(guest: &'guest Guest, options: &str) -> Daemon<'guest> {
        let script = format!("exec ringfort-guestd {options} >> /tmp/guestd.log 2>&1");
        let daemon = Daemon { guest, _task: guest.start(&["/bin/sh", "-c", &script]).unwrap() };
        daemon.rf("for wait in $(seq 100); do rf ls / > /dev/null 2>&1 && exit 0; sleep 0.1; done; rf ls /");
        daemon
    }

    /// Runs a script with clients in it, which must succeed.
    fn rf(&self, script: &str) -> String {
        let said =
            self.guest.shell(&format!("export RINGFORT_CONNECT=unix:/run/ringfort/guestd.sock; {script}"));
        said.unwrap().success().unwrap_or_else(|error| panic!("{error:#}\ndaemon:\n{}", self.log()))
    }

    fn log(&self) -> String {
        self.guest.must("cat /tmp/guestd.log").unwrap()
    }
}

#[test]
fn programs_of_a_guest_use_the_volume_through_the_daemon() {
    let scene = Scene::new("channel-daemon", "1GiB").unwrap();
    let server = scene.serve_with(1, &["--cache", "never", "--channel", &scene.channel(0)]).unwrap();
    let guest = scene.boot(&machine(&scene), 0).unwrap();
    let daemon = Daemon::start(&guest, "");

    // What one writes through the channel, the other reads through virtio-fs, and the other way round.
    let said = daemon.rf(&format!(
        "head -c 3000003 /dev/urandom > /tmp/sent && rf mkdir /a && rf put /tmp/sent /a/one &&
             cp {MOUNTED}/a/one {MOUNTED}/a/two && rf get /a/two /tmp/back &&
             sha256sum < /tmp/sent && sha256sum < {MOUNTED}/a/one && sha256sum < /tmp/back"
    ));
    let sums: Vec<&str> = said.lines().collect();
    assert!(sums.len() == 3 && sums[0] == sums[1] && sums[1] == sums[2], "{said}");
    println!("{}", daemon.rf("rf bench --json"));
    println!("{}", daemon.log());
    drop(daemon);
    scene.end(server, guest).unwrap();
}

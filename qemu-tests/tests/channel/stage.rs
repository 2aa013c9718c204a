//! What the tests of the channel in a guest begin with: a volume, its server, a guest, and the daemon in it.

use std::time::{Duration, Instant};

use ringfort_qemu_tests::agent::{Outcome, Task};
use ringfort_qemu_tests::machine::{Board, Guest, Machine};
use ringfort_qemu_tests::programs::Program;
use ringfort_qemu_tests::scene::{MOUNTED, Scene};
use ringfort_qemu_tests::server::Server;

/// For what takes moments.
pub const SOON: Duration = Duration::from_secs(90);
/// Calls that take longer than any test.
pub const LONG: u32 = 10_000_000;
/// The files of the memory that clients have.
pub const PAGES: &str = "/run/ringfort/pages/ringfort-guestd";

/// A volume that is served to one guest, whose machine has what the channel takes.
pub struct Stage {
    pub scene: Scene,
    pub server: Server,
    pub guest: Guest,
}

impl Stage {
    pub fn new(name: &str) -> Stage {
        Stage::with(name, |machine| machine)
    }

    pub fn with(name: &str, change: impl Fn(Machine) -> Machine) -> Stage {
        let scene = Scene::new(name, "1GiB").unwrap();
        let server = serve(&scene);
        let machine =
            Machine::new(Board::MicroVm).vsock(&scene.vsock(0)).programs(&[Program::Guestd, Program::Rf]);
        let guest = scene.boot(&change(machine), 0).unwrap();
        Stage { scene, server, guest }
    }

    /// Without what carries the control connection.
    pub fn without_vsock(name: &str) -> Stage {
        let scene = Scene::new(name, "1GiB").unwrap();
        let server = scene.serve_with(1, &["--channel", &scene.channel(0)]).unwrap();
        let guest = scene.guest(0).unwrap();
        Stage { scene, server, guest }
    }

    pub fn end(self) {
        self.scene.end(self.server, self.guest).unwrap();
    }
}

/// Serves the volume of a scene to its guest, with a channel.
pub fn serve(scene: &Scene) -> Server {
    scene.serve_with(1, &["--cache", "never", "--channel", &scene.channel(0)]).unwrap()
}

/// The daemon of a guest.
pub struct Daemon<'guest> {
    guest: &'guest Guest,
    task: Task<'guest>,
}

impl<'guest> Daemon<'guest> {
    /// Starts it, and returns when it serves clients.
    pub fn start(guest: &'guest Guest) -> Daemon<'guest> {
        Daemon::start_with(guest, "")
    }

    pub fn start_with(guest: &'guest Guest, options: &str) -> Daemon<'guest> {
        let script = format!("exec ringfort-guestd {options} >> /tmp/guestd.log 2>&1");
        let daemon = Daemon { guest, task: guest.start(&["/bin/sh", "-c", &script]).unwrap() };
        daemon.must("for wait in $(seq 100); do rf ls > /dev/null 2>&1 && exit 0; sleep 0.1; done; rf ls");
        daemon
    }

    /// Runs a script that must succeed.
    pub fn must(&self, script: &str) -> String {
        let said = self.guest.shell(script).unwrap().success();
        said.unwrap_or_else(|error| panic!("{error:#}\ndaemon:\n{}", self.log()))
    }

    /// Runs a script that must fail as programs do that say why.
    pub fn must_not(&self, script: &str) -> String {
        let said = self.guest.shell(script).unwrap();
        assert!(said.status == 2 && !said.stderr.is_empty(), "{said:?}\ndaemon:\n{}", self.log());
        said.stderr
    }

    /// Starts a client that makes so many calls of each kind, and returns when it has memory and calls with it.
    pub fn work(&self, calls: u32) -> Task<'guest> {
        // Of clients that were killed, and process numbers begin anew with each boot.
        self.must(&format!("rm -f {MOUNTED}/.rf-bench-*"));
        let mut client =
            self.guest.start(&["/bin/rf", "bench", "--json", "--calls", &calls.to_string()]).unwrap();
        let deadline = Instant::now() + SOON;
        while self.guest.must(&format!("ls {PAGES}; sleep 0.2")).unwrap().is_empty() {
            client.poll().unwrap();
            if client.has_ended() || Instant::now() > deadline {
                panic!("{:?}\n{}", client.finish(Duration::ZERO), self.log());
            }
        }
        client
    }

    /// Returns when no client has memory and no huge page is in use.
    pub fn require_all_taken_back(&self) {
        self.must(&format!(
            "for wait in $(seq 100); do
                 free=$(sed -n 's/HugePages_Free: *//p' /proc/meminfo)
                 [ -z \"$(ls {PAGES})\" -a $free = $(sed -n 's/HugePages_Total: *//p' /proc/meminfo) ] && exit 0
                 sleep 0.1
             done; ls -l {PAGES}; grep Huge /proc/meminfo; exit 1"
        ));
    }

    pub fn kill(self) {
        self.task.kill().unwrap();
        self.task.finish(SOON).unwrap();
    }

    pub fn log(&self) -> String {
        self.guest.must("cat /tmp/guestd.log").unwrap()
    }
}

pub fn failed_clearly(client: Task<'_>) -> String {
    let outcome: Outcome = client.finish(SOON).unwrap();
    assert!(outcome.status == 2 && outcome.stderr.starts_with("rf: "), "{outcome:?}");
    outcome.stderr
}

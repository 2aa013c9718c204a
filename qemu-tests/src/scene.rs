//! What most tests begin with: a volume in a folder of its own, served to a guest that has mounted it. One scene at a
//! time runs on a machine: each holds the guest lock, so that guests do not starve each other under emulation.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::agent::AGENT;
use crate::machine::{Board, Guest, Machine};
use crate::place::{Lock, RunFolder};
use crate::server::{Server, Volume};

/// To write or compare a tree of some hundred files under emulation.
pub const TREE_TIMEOUT: Duration = Duration::from_secs(400);

/// The tag that guests mount by.
pub const TAG: &str = "volume";

/// Where [`Guest::mount`] puts it.
pub const MOUNTED: &str = "/mnt/volume";

/// A volume and the folder that holds it.
#[derive(Debug)]
pub struct Scene {
    // Fields drop in this order: the lock is given up last.
    pub volume: Volume,
    pub folder: RunFolder,
    _turn: Lock,
}

impl Scene {
    /// Waits for its turn, then creates a volume of `size`.
    pub fn new(name: &str, size: &str) -> Result<Scene> {
        Scene::create_with(name, size, &[])
    }

    /// Waits for its turn, then creates a volume of `size` with further options of `volume create`.
    pub fn create_with(name: &str, size: &str, options: &[&str]) -> Result<Scene> {
        let turn = Lock::acquire("guest")?;
        let folder = RunFolder::new(name)?;
        let volume = Volume::create_with(&folder.path().join("volume"), size, options)?;
        Ok(Scene { volume, folder, _turn: turn })
    }

    /// The socket of guest `number`.
    pub fn socket(&self, number: usize) -> PathBuf {
        self.folder.socket(&format!("virtiofs-{number}"))
    }

    /// The path that stands for the vsock of guest `number`, see [`Machine::vsock`].
    pub fn vsock(&self, number: usize) -> PathBuf {
        self.folder.socket(&format!("vsock-{number}"))
    }

    /// What `--channel` of `ringfort serve` says for guest `number`.
    pub fn channel(&self, number: usize) -> String {
        format!("virtiofs-{number}:vsock-unix={}", self.vsock(number).display())
    }

    /// Serves the volume to `guests` guests.
    pub fn serve(&self, guests: usize) -> Result<Server> {
        self.serve_with(guests, &[])
    }

    /// Serves the volume to `guests` guests with further options of `ringfort serve`.
    pub fn serve_with(&self, guests: usize, options: &[&str]) -> Result<Server> {
        let sockets: Vec<PathBuf> = (0..guests).map(|number| self.socket(number)).collect();
        let sockets: Vec<_> = sockets.iter().map(PathBuf::as_path).collect();
        Server::start(&self.volume, &sockets, options, &self.folder.path().join("server.log"))
    }

    /// Boots guest `number` on a microvm and mounts the volume.
    pub fn guest(&self, number: usize) -> Result<Guest> {
        self.boot(&Machine::new(Board::MicroVm), number)
    }

    /// Boots guest `number` on a machine of the caller's and mounts the volume.
    pub fn boot(&self, machine: &Machine, number: usize) -> Result<Guest> {
        let guest = machine.clone().share(TAG, &self.socket(number)).boot("guest")?;
        guest.mount(TAG).context("mounting the volume")?;
        Ok(guest)
    }

    /// Serves to one guest on a microvm.
    pub fn serve_and_boot(&self) -> Result<(Server, Guest)> {
        let server = self.serve(1)?;
        let guest = self.guest(0)?;
        Ok((server, guest))
    }

    /// Shared maps show what was written, and what is written through them is read, at once in this guest and after its caches
    /// are gone. For mounts that cache.
    pub fn require_shared_maps(&self, guest: &Guest) -> Result<()> {
        let said = guest.must(&format!(
            "cd {MOUNTED} && head -c 700001 /dev/urandom > map && sha256sum < map && {AGENT} map-read map | sha256sum &&
             sync && echo 3 > /proc/sys/vm/drop_caches && {AGENT} map-read map | sha256sum"
        ))?;
        let sums: Vec<&str> = said.lines().collect();
        ensure!(sums.len() == 3 && sums[0] == sums[1] && sums[1] == sums[2], "{said}");
        let said = guest.must(&format!(
            "cd {MOUNTED} && {AGENT} map-mix map && sha256sum < map && echo 3 > /proc/sys/vm/drop_caches && sha256sum < map"
        ))?;
        let sums: Vec<&str> = said.lines().collect();
        ensure!(sums.len() == 2 && sums[0] == sums[1], "{said}");
        let said = guest.must(&format!(
            "cd {MOUNTED} && {AGENT} map-fill map 120 && echo 3 > /proc/sys/vm/drop_caches && wc -c < map && tr -d x < map | wc -c;
             {AGENT} map-read-beyond map; echo $?; wc -c < map; rm map"
        ))?;
        // 128 and the number of SIGBUS.
        ensure!(said.starts_with("700001\n0\n") && said.ends_with("135\n4096\n"), "{said}");
        Ok(())
    }

    /// Ends a guest and its server cleanly, and checks the volume.
    pub fn end(&self, server: Server, guest: Guest) -> Result<()> {
        guest.shut_down()?;
        server.stop()?;
        self.volume.require_clean().map(drop)
    }
}

/// A tree that a seed describes, at a path in the guest.
#[derive(Clone, Debug)]
pub struct Tree {
    pub path: String,
    pub seed: u64,
    pub files: u64,
}

impl Tree {
    /// A tree in the mounted volume.
    pub fn new(name: &str, seed: u64, files: u64) -> Tree {
        Tree { path: format!("{MOUNTED}/{name}"), seed, files }
    }

    /// Makes it in the guest, synced; returns the agent's summary.
    pub fn make(&self, guest: &Guest) -> Result<String> {
        self.command(guest, "tree-make")
    }

    /// Compares it in the guest, byte by byte, with nothing cached there; returns the agent's summary.
    pub fn verify(&self, guest: &Guest) -> Result<String> {
        guest.must("sync; echo 3 > /proc/sys/vm/drop_caches")?;
        self.command(guest, "tree-verify")
    }

    fn command(&self, guest: &Guest, what: &str) -> Result<String> {
        guest
            .run(&[AGENT, what, &self.path, &self.seed.to_string(), &self.files.to_string()], TREE_TIMEOUT)
            .map(|said| said.trim().to_owned())
    }
}

/// A writer that acknowledges what it has synced.
#[derive(Clone, Debug)]
pub struct Ledger {
    pub path: String,
    pub seed: u64,
}

impl Ledger {
    /// A ledger in the mounted volume.
    pub fn new(name: &str, seed: u64) -> Ledger {
        Ledger { path: format!("{MOUNTED}/{name}"), seed }
    }

    /// Writes until at least `steps` are acknowledged, then calls `crash` while the writer runs on; returns how many steps
    /// the guest had acknowledged before it was cut off.
    pub fn write_until_crash(
        &self,
        guest: &Guest,
        steps: u64,
        crash: impl FnOnce() -> Result<()>,
    ) -> Result<u64> {
        let mut writer =
            guest.start(&[AGENT, "ledger-write", &self.path, &self.seed.to_string(), "1000000"])?;
        writer.wait_until(|said| acknowledged(said) >= steps, TREE_TIMEOUT)?;
        crash()?;
        Ok(acknowledged(&writer.drain(Duration::from_secs(10))))
    }

    /// Holds the volume to the first `steps` steps.
    pub fn verify(&self, guest: &Guest, steps: u64) -> Result<String> {
        guest
            .run(
                &[AGENT, "ledger-verify", &self.path, &self.seed.to_string(), &steps.to_string()],
                TREE_TIMEOUT,
            )
            .map(|said| said.trim().to_owned())
    }
}

/// Whole lines only: the last one may be cut.
fn acknowledged(said: &str) -> u64 {
    said.split_inclusive('\n').filter(|line| line.starts_with("synced ") && line.ends_with('\n')).count()
        as u64
}

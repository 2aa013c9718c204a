//! What outlives a crash, and what a test can do to it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use super::RunOutcome;
use super::boot::Boot;
use super::disk::Disk;
use super::engine::SimEngine;
use super::fault::Fault;
use super::random::Random;
use crate::buffer::BLOCK_BYTES;
use crate::engine::{Engine, MemoryOpen};
use crate::error::{EngineError, ErrorKind};
use crate::memory::{MemoryFile, check_request};

/// What ends a life of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashMode {
    /// The machine: unflushed writes may be lost or torn, memory files are gone.
    PowerLoss,
    /// The process alone: completed writes and memory files stay.
    ProcessDeath,
}

/// Devices, memory files and the clock.
pub(super) struct World {
    disks: RefCell<BTreeMap<PathBuf, Rc<RefCell<Disk>>>>,
    memory_files: RefCell<BTreeMap<String, MemoryFile>>,
    clock: Rc<Cell<Duration>>,
    pub(super) wall_clock_offset: Cell<Duration>,
}

impl World {
    pub(super) fn disk(&self, path: &Path) -> Option<Rc<RefCell<Disk>>> {
        self.disks.borrow().get(path).map(Rc::clone)
    }

    pub(super) fn add_disk(&self, path: &Path, disk: Disk) -> Rc<RefCell<Disk>> {
        let disk = Rc::new(RefCell::new(disk));
        self.disks.borrow_mut().insert(path.to_owned(), Rc::clone(&disk));
        disk
    }

    pub(super) fn memory_file(
        &self,
        name: &str,
        len_bytes: usize,
        open: MemoryOpen,
    ) -> Result<MemoryFile, EngineError> {
        let fail = |kind, found: &str| {
            Err(EngineError::new(kind, "open memory file", name.to_owned(), found.to_owned()))
        };
        check_request(name, len_bytes)?;
        let mut files = self.memory_files.borrow_mut();
        if files.get(name).is_some_and(MemoryFile::is_held_elsewhere) {
            return fail(ErrorKind::Busy, "open in this process");
        }
        match open {
            MemoryOpen::Create => {
                let file = MemoryFile::on_heap(len_bytes);
                files.insert(name.to_owned(), file.clone());
                Ok(file)
            }
            MemoryOpen::Attach => match files.get(name) {
                None => fail(ErrorKind::NotFound, "no memory file of this name"),
                Some(file) if file.block_count() * BLOCK_BYTES != len_bytes => {
                    fail(ErrorKind::Failed, "it has another length")
                }
                Some(file) => Ok(file.clone()),
            },
        }
    }

    pub(super) fn remove_memory_file(&self, name: &str) {
        self.memory_files.borrow_mut().remove(name);
    }
}

/// Handle for tests on what the simulated process cannot know. Cloned freely, also into tasks.
#[derive(Clone)]
pub struct Controls {
    world: Rc<World>,
    boot: Rc<RefCell<Rc<Boot>>>,
}

impl Controls {
    fn boot(&self) -> Rc<Boot> {
        Rc::clone(&self.boot.borrow())
    }

    #[track_caller]
    fn disk(&self, path: impl AsRef<Path>) -> Rc<RefCell<Disk>> {
        let path = path.as_ref();
        self.world.disk(path).unwrap_or_else(|| panic!("no simulated device {}", path.display()))
    }

    /// Persistence points passed since the last restart.
    pub fn count_points(&self) -> u64 {
        self.boot().point_count()
    }

    /// Crashes this life when its `point`th persistence point (from 1) is passed.
    pub fn crash_at_point(&self, point: u64) {
        self.boot().crash_at_point.set(Some(point));
    }

    /// Crashes at once: nothing submitted or completed from now on happens.
    pub fn crash_now(&self) {
        self.boot().crash();
    }

    /// How long a request may take (30 s unless told); none: for ever. Lasts until the next restart.
    pub fn set_request_timeout(&self, timeout: Option<Duration>) {
        self.boot().request_timeout.set(timeout);
    }

    /// How much virtual time one run may take before it is declared endless (6 h unless told). Lasts until the next restart.
    pub fn set_time_limit(&self, limit: Duration) {
        self.boot().time_limit.set(limit);
    }

    /// Virtual time since the world began.
    pub fn now(&self) -> Duration {
        self.world.clock.get()
    }

    /// Moves the wall clock, and not the monotonic one.
    pub fn set_wall_clock(&self, since_epoch: Duration) {
        self.world.wall_clock_offset.set(since_epoch.saturating_sub(self.now()));
    }

    /// Adds a block device for `Engine::create` to take over. It reads as zeros.
    pub fn add_block_device(&self, path: impl AsRef<Path>, len_bytes: u64) {
        self.world.add_disk(path.as_ref(), Disk::new(len_bytes, true));
    }

    /// Makes `path` not exist. Open handles keep working, as on an unlinked file.
    pub fn remove(&self, path: impl AsRef<Path>) {
        self.world.disks.borrow_mut().remove(path.as_ref());
    }

    /// Puts the device at `from` in the place of whatever is at `to`.
    pub fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) {
        let disk = self.disk(&from);
        self.remove(&from);
        self.world.disks.borrow_mut().insert(to.as_ref().to_owned(), disk);
    }

    /// Puts a copy of the bytes at `from` in the place of whatever is at `to`: an old state of a component, say.
    pub fn copy(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) {
        let copy = self.disk(from).borrow().copy();
        self.world.add_disk(to.as_ref(), copy);
    }

    /// Changes the length that later opens find.
    pub fn set_len(&self, path: impl AsRef<Path>, len_bytes: u64) {
        self.disk(path).borrow_mut().len_bytes = len_bytes;
    }

    pub fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.world.disk(path.as_ref()).is_some()
    }

    /// Every device, in order of its path.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.world.disks.borrow().keys().cloned().collect()
    }

    /// What a read would find.
    pub fn peek(&self, path: impl AsRef<Path>, offset_bytes: u64, len_bytes: usize) -> Vec<u8> {
        let mut bytes = vec![0; len_bytes];
        self.disk(path).borrow().read(offset_bytes, &mut bytes);
        bytes
    }

    /// Changes stored bytes silently, on stable media and in what reads see. Any offset and length.
    pub fn poke(&self, path: impl AsRef<Path>, offset_bytes: u64, bytes: &[u8]) {
        self.disk(path).borrow_mut().overwrite(offset_bytes, bytes);
    }

    /// Flips one stored bit silently.
    pub fn flip_bit(&self, path: impl AsRef<Path>, offset_bytes: u64, bit: u32) {
        let byte = self.peek(&path, offset_bytes, 1)[0];
        self.poke(path, offset_bytes, &[byte ^ (1 << (bit % 8))]);
    }

    /// Whether a power loss now could lose a completed write.
    pub fn has_unflushed(&self, path: impl AsRef<Path>) -> bool {
        self.disk(path).borrow().has_unflushed()
    }

    /// Gives a device a fault, from now on.
    pub fn inject(&self, path: impl AsRef<Path>, fault: Fault) {
        self.disk(path).borrow_mut().faults.add(fault);
    }

    /// Takes a device's faults away. Requests that hung stay so until they time out.
    pub fn heal(&self, path: impl AsRef<Path>) {
        self.disk(path).borrow_mut().faults.clear();
    }
}

/// A simulated machine and the process that runs on it. One seed, one history.
pub struct SimWorld {
    controls: Controls,
    engine: RefCell<Rc<dyn Engine>>,
}

impl Deref for SimWorld {
    type Target = Controls;

    fn deref(&self) -> &Controls {
        &self.controls
    }
}

impl SimWorld {
    pub fn new(seed: u64) -> Self {
        let clock: Rc<Cell<Duration>> = Rc::default();
        let world = Rc::new(World {
            disks: RefCell::default(),
            memory_files: RefCell::default(),
            clock: Rc::clone(&clock),
            // Any fixed moment after the code was written will do.
            wall_clock_offset: Cell::new(Duration::from_secs(1_800_000_000)),
        });
        let (boot, engine) = start(&world, seed);
        let controls = Controls { world, boot: Rc::new(RefCell::new(boot)) };
        Self { controls, engine: RefCell::new(engine) }
    }

    /// The engine of the current life.
    pub fn engine(&self) -> Rc<dyn Engine> {
        Rc::clone(&self.engine.borrow())
    }

    /// For tasks that change the world around them.
    pub fn controls(&self) -> Controls {
        self.controls.clone()
    }

    /// Runs `future` and every spawned task until it is done or the machine crashes. Tasks that are not done go on in the
    /// next run.
    pub fn run<F: Future>(&self, future: F) -> RunOutcome<F::Output> {
        let boot = self.controls.boot();
        boot.run(future)
    }

    /// Ends the current life, crashed or not, and begins the next one on what survived. Nothing of the old life may be
    /// kept: a memory file that somebody still holds (or memory lent from it) panics here.
    pub fn restart(&self, mode: CrashMode, seed: u64) -> Rc<dyn Engine> {
        let world = &self.controls.world;
        let mut random = Random::new(seed);
        let mut in_flight = self.controls.boot().end();
        for disk in world.disks.borrow().values() {
            let (of_disk, others) = in_flight.into_iter().partition(|(other, ..)| Rc::ptr_eq(other, disk));
            in_flight = others;
            let of_disk: Vec<_> = of_disk;
            let writes = of_disk.into_iter().map(|(_, offset_bytes, bytes)| (offset_bytes, bytes)).collect();
            match mode {
                CrashMode::PowerLoss => disk.borrow_mut().lose_power(&mut random, writes),
                CrashMode::ProcessDeath => disk.borrow_mut().lose_process(&mut random, writes),
            }
        }
        // The old life's engine goes before its memory is looked at.
        let (boot, engine) = start(world, random.next_u64());
        self.controls.boot.replace(boot);
        self.engine.replace(Rc::clone(&engine));
        let mut files = world.memory_files.borrow_mut();
        match mode {
            CrashMode::PowerLoss => files.clear(),
            CrashMode::ProcessDeath => {
                for (name, file) in files.iter_mut().filter(|(_, file)| file.is_held_elsewhere()) {
                    assert!(
                        !file.has_loans(),
                        "memory of {name} is still lent: drop what belongs to the dead process before the restart"
                    );
                    *file = file.duplicate();
                }
            }
        }
        engine
    }
}

impl Drop for SimWorld {
    fn drop(&mut self) {
        // Tasks hold the engine, and the engine holds the executor.
        self.controls.boot().end();
    }
}

fn start(world: &Rc<World>, seed: u64) -> (Rc<Boot>, Rc<dyn Engine>) {
    let mut random = Random::new(seed);
    let engine_random = Random::new(random.next_u64());
    let boot = Rc::new(Boot::new(Rc::clone(&world.clock), random));
    let engine = Rc::new(SimEngine::new(Rc::clone(world), Rc::clone(&boot), engine_random));
    (boot, engine)
}

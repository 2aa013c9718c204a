//! [`Engine`] and [`Device`] over one life of a simulated process.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use super::boot::{Boot, InFlight, Request};
use super::disk::Disk;
use super::random::Random;
use super::world::World;
use crate::buffer::{BLOCK_BYTES, Buffer, Slice};
use crate::completion::{Completion, completion};
use crate::device::{Device, DeviceCounters, check_range, check_write};
use crate::engine::{Engine, MemoryOpen};
use crate::error::{EngineError, ErrorKind};
use crate::executor::{Task, YieldNow};
use crate::memory::MemoryFile;

/// Which paths are open in this life, and whether for writing.
type Locks = Rc<RefCell<Vec<(Rc<str>, bool)>>>;

pub(super) struct SimEngine {
    world: Rc<World>,
    boot: Rc<Boot>,
    random: RefCell<Random>,
    locks: Locks,
}

/// A lock that goes with the device handle and the last of its requests.
pub(super) struct Lock {
    locks: Locks,
    path: Rc<str>,
    write: bool,
}

impl Drop for Lock {
    fn drop(&mut self) {
        let mut locks = self.locks.borrow_mut();
        if let Some(index) = locks.iter().position(|(path, write)| *path == self.path && *write == self.write)
        {
            locks.swap_remove(index);
        }
    }
}

struct SimDevice {
    boot: Rc<Boot>,
    disk: Rc<RefCell<Disk>>,
    name: Rc<str>,
    len_bytes: u64,
    writable: bool,
    counters: Rc<Cell<DeviceCounters>>,
    lock: Rc<Lock>,
}

impl SimEngine {
    pub(super) fn new(world: Rc<World>, boot: Rc<Boot>, random: Random) -> Self {
        Self { world, boot, random: RefCell::new(random), locks: Rc::default() }
    }

    fn check_alive(&self, operation: &str, place: &str) -> Result<(), EngineError> {
        if self.boot.is_crashed() {
            return Err(EngineError::new(ErrorKind::Failed, operation, place, "the machine has crashed"));
        }
        Ok(())
    }

    fn device(
        &self,
        path: &Path,
        disk: Rc<RefCell<Disk>>,
        write: bool,
    ) -> Result<Rc<dyn Device>, EngineError> {
        let name: Rc<str> = path.to_string_lossy().into();
        let mut locks = self.locks.borrow_mut();
        if locks.iter().any(|(path, exclusive)| *path == name && (write || *exclusive)) {
            let found = "locked by this process";
            return Err(EngineError::new(ErrorKind::Busy, "open component", &*name, found));
        }
        locks.push((Rc::clone(&name), write));
        let lock = Rc::new(Lock { locks: Rc::clone(&self.locks), path: Rc::clone(&name), write });
        let len_bytes = disk.borrow().len_bytes;
        Ok(Rc::new(SimDevice {
            boot: Rc::clone(&self.boot),
            disk,
            name,
            len_bytes,
            writable: write,
            counters: Rc::default(),
            lock,
        }))
    }
}

impl Engine for SimEngine {
    fn open(&self, path: &Path, write: bool) -> Result<Rc<dyn Device>, EngineError> {
        let place = path.to_string_lossy();
        self.check_alive("open component", &place)?;
        match self.world.disk(path) {
            Some(disk) if disk.borrow().faults.vanished() => {
                Err(EngineError::new(ErrorKind::Failed, "open component", place, "the device is gone"))
            }
            Some(disk) => self.device(path, disk, write),
            None => Err(EngineError::new(ErrorKind::NotFound, "open component", place, "no such device")),
        }
    }

    fn create(&self, path: &Path, len_bytes: u64) -> Result<Rc<dyn Device>, EngineError> {
        let place = path.to_string_lossy();
        self.check_alive("create component", &place)?;
        let fail =
            |kind, found: String| Err(EngineError::new(kind, "create component", place.clone(), found));
        if len_bytes == 0 || !len_bytes.is_multiple_of(BLOCK_BYTES as u64) {
            return fail(
                ErrorKind::OutOfRange,
                format!("{len_bytes} bytes is not a positive multiple of {BLOCK_BYTES}"),
            );
        }
        let disk = match self.world.disk(path) {
            None => self.world.add_disk(path, Disk::new(len_bytes, false)),
            Some(disk) => {
                let (is_block_device, present_bytes) =
                    (disk.borrow().is_block_device, disk.borrow().len_bytes);
                if !is_block_device {
                    return fail(ErrorKind::Exists, "a file of this name exists".into());
                }
                if present_bytes < len_bytes {
                    let found = format!("the device has {present_bytes} bytes, {len_bytes} are needed");
                    return fail(ErrorKind::OutOfRange, found);
                }
                disk
            }
        };
        self.device(path, disk, true)
    }

    fn extend(&self, path: &Path, len_bytes: u64) -> Result<(), EngineError> {
        let place = path.to_string_lossy();
        let present_bytes = self.open(path, true)?.len_bytes();
        let Some(disk) = self.world.disk(path).filter(|_| present_bytes < len_bytes) else { return Ok(()) };
        let fail =
            |found: String| Err(EngineError::new(ErrorKind::OutOfRange, "extend component", place, found));
        if !len_bytes.is_multiple_of(BLOCK_BYTES as u64) {
            return fail(format!("{len_bytes} bytes is not a multiple of {BLOCK_BYTES}"));
        }
        if disk.borrow().is_block_device {
            return fail(format!("the device has {present_bytes} bytes, {len_bytes} are needed"));
        }
        disk.borrow_mut().len_bytes = len_bytes;
        Ok(())
    }

    fn memory_file(&self, name: &str, len_bytes: usize, open: MemoryOpen) -> Result<MemoryFile, EngineError> {
        self.check_alive("open memory file", name)?;
        self.world.memory_file(name, len_bytes, open)
    }

    fn remove_memory_file(&self, name: &str) -> Result<(), EngineError> {
        self.check_alive("remove memory file", name)?;
        self.world.remove_memory_file(name);
        Ok(())
    }

    fn monotonic(&self) -> Duration {
        self.boot.clock.get()
    }

    fn wall_clock(&self) -> Duration {
        self.boot.clock.get() + self.world.wall_clock_offset.get()
    }

    fn random_u64(&self) -> u64 {
        self.random.borrow_mut().next_u64()
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(self.boot.timers.sleep_until(self.boot.clock.get() + duration))
    }

    fn yield_now(&self) -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(YieldNow::default())
    }

    fn spawn(&self, task: Task) {
        self.boot.executor.spawn(task);
    }
}

impl SimDevice {
    fn submit(&self, request: Request) {
        self.boot.submit(InFlight {
            disk: Rc::clone(&self.disk),
            name: Rc::clone(&self.name),
            counters: Rc::clone(&self.counters),
            _lock: Rc::clone(&self.lock),
            request,
        });
    }

    fn check_writable(&self, operation: &str) -> Result<(), EngineError> {
        if self.writable {
            return Ok(());
        }
        Err(EngineError::new(ErrorKind::Denied, operation, &*self.name, "opened for reading only"))
    }

    fn submit_write(&self, offset_bytes: u64, data: Vec<Slice>, durably: bool) -> Completion<()> {
        if let Err(error) = self.check_writable("write").and_then(|()| check_write(self, offset_bytes, &data))
        {
            return Completion::ready(Err(error));
        }
        let (done, completion) = completion();
        self.submit(Request::Write { offset_bytes, data, durably, done: Some(done) });
        completion
    }
}

impl Device for SimDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn read(&self, offset_bytes: u64, buffer: Buffer) -> Completion<Buffer> {
        if let Err(error) = check_range("read", self, offset_bytes, buffer.len()) {
            return Completion::ready(Err(error));
        }
        let (done, completion) = completion();
        self.submit(Request::Read { offset_bytes, buffer, done: Some(done) });
        completion
    }

    fn write(&self, offset_bytes: u64, data: Vec<Slice>) -> Completion<()> {
        self.submit_write(offset_bytes, data, false)
    }

    fn write_durably(&self, offset_bytes: u64, data: Vec<Slice>) -> Completion<()> {
        self.submit_write(offset_bytes, data, true)
    }

    fn flush(&self) -> Completion<()> {
        let mark = self.disk.borrow().flush_mark();
        let (done, completion) = completion();
        self.submit(Request::Flush { mark, done: Some(done) });
        completion
    }

    fn counters(&self) -> DeviceCounters {
        self.counters.get()
    }
}

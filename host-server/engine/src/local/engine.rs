//! [`Engine`] and [`Device`] on this machine, and what its runtime does between tasks.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::future::Future;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::component::{self, Component};
use super::operation::{Operation, Request};
use super::threads::Pool;
use super::uring::{Flavour, Ring};
use super::window::Window;
use super::{LocalOptions, Transport, mapping};
use crate::buffer::{Buffer, Slice};
use crate::completion::{Completion, completion};
use crate::device::{Device, DeviceCounters, check_range, check_write};
use crate::engine::{Engine, MemoryOpen};
use crate::error::{EngineError, ErrorKind};
use crate::executor::{Executor, Kick, ReadyQueue, Task, YieldNow};
use crate::memory::MemoryFile;
use crate::runtime::{Driver, Runtime};
use crate::source::{Source, Sources, Watch};
use crate::timer::Timers;

/// Carries operations to the kernel and back.
pub(super) trait Transfers {
    /// Takes an operation in. Fails it towards its caller if it is not answered by `deadline`.
    fn start(&self, operation: Operation, deadline: Option<Instant>);

    /// Submits what was taken in and completes what was answered, without waiting.
    fn turn(&self);

    /// Submits what was taken in and waits for an answer, a kick or the end of `limit`. Completes nothing: that is for the
    /// `turn` that follows, when the thread no longer counts as asleep and whoever it wakes need not ring for it.
    fn wait(&self, limit: Option<Duration>);

    /// Fails what has passed its deadline.
    fn expire(&self, now: Instant);

    /// The earliest moment at which `expire` could have something to do.
    fn next_deadline(&self) -> Option<Instant>;

    /// Ends every `wait` during which `descriptor` becomes readable. The number by which it is let go; none where this
    /// carrier cannot.
    fn watch(&self, descriptor: Box<dyn AsRawFd>) -> Option<usize>;

    /// Lets go of what `watch` gave this number.
    fn unwatch(&self, number: usize);
}

struct Watching {
    transfers: Rc<dyn Transfers>,
    number: usize,
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.transfers.unwatch(self.number);
    }
}

/// Starts an engine that belongs to the calling thread.
pub fn start(options: LocalOptions) -> Result<Runtime, EngineError> {
    const START: &str = "start the local engine with";
    let flavour = match options.transport {
        Transport::Threads => None,
        Transport::PlainUring => Some(Flavour::Plain),
        Transport::Uring | Transport::Automatic => Some(Flavour::Newest),
    };
    let uring = match flavour.map(|flavour| Ring::new(flavour, options.registered_bytes)) {
        None => None,
        Some(Ok(ring)) => Some(ring),
        Some(Err(error)) if options.transport == Transport::Automatic => {
            tracing::warn!(
                %error,
                "the kernel refuses io_uring: requests go through threads, which are slower. Look at kernel.io_uring_disabled, \
                 the seccomp filter and the limit on locked memory"
            );
            None
        }
        Some(Err(error)) => return Err(EngineError::from_io(START, "io_uring", &error)),
    };
    let (transfers, kick): (Rc<dyn Transfers>, Box<dyn Kick>) = match uring {
        Some((ring, kick)) => (Rc::new(ring), Box::new(kick)),
        None => {
            let pool = Pool::new(options.pool_threads.max(1))
                .map_err(|error| EngineError::from_io(START, "a pool of threads", &error))?;
            (Rc::new(pool.0), Box::new(pool.1))
        }
    };
    let entropy = Entropy::open().map_err(|error| EngineError::from_io(START, Entropy::PATH, &error))?;
    let executor = Rc::new(Executor::new(kick));
    let engine = Rc::new(LocalEngine {
        executor: Rc::clone(&executor),
        timers: Rc::default(),
        transfers,
        started: Instant::now(),
        turn_began: Cell::default(),
        request_timeout: options.request_timeout,
        window: Window::new(options.busy_poll),
        sources: Sources::default(),
        memory_directory: mapping::prepare_directory(options.memory_directory.as_deref()),
        entropy: RefCell::new(entropy),
    });
    Ok(Runtime::new(executor, Rc::clone(&engine) as Rc<dyn Driver>, engine))
}

struct LocalEngine {
    executor: Rc<Executor>,
    timers: Rc<Timers>,
    transfers: Rc<dyn Transfers>,
    started: Instant,
    /// Since `started`.
    turn_began: Cell<Duration>,
    request_timeout: Option<Duration>,
    window: Window,
    sources: Sources,
    memory_directory: Option<PathBuf>,
    entropy: RefCell<Entropy>,
}

/// How often a thread that waits looks at its sources for each time that it looks at everything.
const LOOKS_AT_SOURCES: u32 = 8;

impl LocalEngine {
    fn device(&self, component: Component, writable: bool) -> Rc<dyn Device> {
        Rc::new(LocalDevice {
            component: Rc::new(component),
            transfers: Rc::clone(&self.transfers),
            request_timeout: self.request_timeout,
            counters: Rc::default(),
            writable,
        })
    }

    fn next_deadline(&self) -> Option<Instant> {
        let sleeper = self.timers.next_deadline().and_then(|deadline| self.started.checked_add(deadline));
        let request = self.transfers.next_deadline();
        match (sleeper, request) {
            (Some(sleeper), Some(request)) => Some(sleeper.min(request)),
            (one, other) => one.or(other),
        }
    }

    /// One turn. True where a source had work.
    fn turn_at(&self, now: Instant) -> bool {
        let since_start = now - self.started;
        self.turn_began.set(since_start);
        self.transfers.turn();
        self.transfers.expire(now);
        self.timers.fire(since_start);
        self.sources.poll()
    }

    /// Looks for work for a while. Where none came, since when there has been none.
    fn look_for_work(&self, ready: &ReadyQueue) -> Option<Instant> {
        let window = self.window.begin();
        let mut looked = Instant::now();
        let mut idle_since = looked;
        if window.is_zero() {
            self.turn_began.set(looked - self.started);
            self.sources.poll();
            // To sleep submits what is there to be submitted, with the same system call, and ends at once for what has come.
            return (ready.len() == 0).then_some(idle_since);
        }
        loop {
            // Sources are what comes soonest, and the least to look at.
            let worked = self.turn_at(looked) || (1..LOOKS_AT_SOURCES).any(|_| self.sources.poll());
            if worked || ready.len() > 0 {
                self.window.caught_after(looked - idle_since);
            }
            if ready.len() > 0 {
                return None;
            }
            let now = Instant::now();
            if worked {
                // Where there was work there is often more.
                idle_since = now;
            } else if now - idle_since >= window || self.window.is_disturbed_by(now - looked) {
                return Some(idle_since);
            }
            looked = now;
            std::hint::spin_loop();
        }
    }
}

impl Driver for LocalEngine {
    fn turn(&self) {
        self.turn_at(Instant::now());
    }

    fn park(&self, ready: &ReadyQueue) {
        let Some(idle_since) = self.look_for_work(ready) else { return };
        if !self.sources.arm() && ready.prepare_park() {
            let limit =
                self.next_deadline().map(|deadline| deadline.saturating_duration_since(Instant::now()));
            self.transfers.wait(limit);
            ready.unpark();
            self.window.slept_at_the_end_of(idle_since.elapsed());
        }
        Driver::turn(self);
    }
}

impl Engine for LocalEngine {
    fn open(&self, path: &Path, write: bool) -> Result<Rc<dyn Device>, EngineError> {
        Ok(self.device(component::open(path, write)?, write))
    }

    fn create(&self, path: &Path, len_bytes: u64) -> Result<Rc<dyn Device>, EngineError> {
        Ok(self.device(component::create(path, len_bytes)?, true))
    }

    fn extend(&self, path: &Path, len_bytes: u64) -> Result<(), EngineError> {
        component::extend(path, len_bytes)
    }

    fn memory_file(&self, name: &str, len_bytes: usize, open: MemoryOpen) -> Result<MemoryFile, EngineError> {
        mapping::memory_file(self.memory_directory.as_deref(), name, len_bytes, open)
    }

    fn remove_memory_file(&self, name: &str) -> Result<(), EngineError> {
        mapping::remove(self.memory_directory.as_deref(), name)
    }

    fn monotonic(&self) -> Duration {
        self.started.elapsed()
    }

    fn turn_began(&self) -> Duration {
        self.turn_began.get()
    }

    fn wall_clock(&self) -> Duration {
        // A clock before the epoch is a clock that was never set.
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }

    fn random_u64(&self) -> u64 {
        self.entropy.borrow_mut().next_u64()
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(self.timers.sleep_until(self.started.elapsed().saturating_add(duration)))
    }

    fn yield_now(&self) -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(YieldNow::default())
    }

    fn spawn(&self, task: Task) {
        self.executor.spawn(task);
    }

    fn attend(&self, source: Weak<dyn Source>) -> bool {
        self.sources.add(source);
        true
    }

    fn watch(&self, descriptor: Box<dyn AsRawFd>) -> Option<Watch> {
        let number = self.transfers.watch(descriptor)?;
        Some(Watch::new(Watching { transfers: Rc::clone(&self.transfers), number }))
    }
}

struct LocalDevice {
    component: Rc<Component>,
    transfers: Rc<dyn Transfers>,
    request_timeout: Option<Duration>,
    counters: Rc<Cell<DeviceCounters>>,
    writable: bool,
}

impl LocalDevice {
    fn start(&self, request: Request, len_bytes: usize) {
        let deadline = self.request_timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let component = Rc::clone(&self.component);
        let operation = Operation::new(component, Rc::clone(&self.counters), request, len_bytes);
        self.transfers.start(operation, deadline);
    }

    fn check_writable(&self) -> Result<(), EngineError> {
        if self.writable {
            return Ok(());
        }
        Err(EngineError::new(ErrorKind::Denied, "write", self.name(), "opened for reading only"))
    }

    fn start_write(&self, offset_bytes: u64, data: Vec<Slice>, durably: bool) -> Completion<()> {
        let len_bytes = match self.check_writable().and_then(|()| check_write(self, offset_bytes, &data)) {
            Ok(len_bytes) => len_bytes,
            Err(error) => return Completion::ready(Err(error)),
        };
        let (done, completion) = completion();
        self.start(Request::Write { offset_bytes, data, durably, done: Some(done) }, len_bytes);
        completion
    }
}

impl Device for LocalDevice {
    fn name(&self) -> &str {
        &self.component.name
    }

    fn len_bytes(&self) -> u64 {
        self.component.len_bytes
    }

    fn read(&self, offset_bytes: u64, buffer: Buffer) -> Completion<Buffer> {
        let len_bytes = buffer.len();
        if let Err(error) = check_range("read", self, offset_bytes, len_bytes) {
            return Completion::ready(Err(error));
        }
        let (done, completion) = completion();
        self.start(Request::Read { offset_bytes, buffer, done: Some(done) }, len_bytes);
        completion
    }

    fn write(&self, offset_bytes: u64, data: Vec<Slice>) -> Completion<()> {
        self.start_write(offset_bytes, data, false)
    }

    fn write_durably(&self, offset_bytes: u64, data: Vec<Slice>) -> Completion<()> {
        self.start_write(offset_bytes, data, true)
    }

    fn flush(&self) -> Completion<()> {
        let (done, completion) = completion();
        self.start(Request::Flush { done: Some(done) }, 0);
        completion
    }

    fn counters(&self) -> DeviceCounters {
        self.counters.get()
    }
}

/// The kernel's random bytes, a few at a time.
struct Entropy {
    source: File,
    bytes: [u8; 256],
    used: usize,
}

impl Entropy {
    const PATH: &str = "/dev/urandom";

    fn open() -> std::io::Result<Self> {
        let mut source = File::open(Self::PATH)?;
        let mut bytes = [0; 256];
        source.read_exact(&mut bytes)?;
        Ok(Self { source, bytes, used: 0 })
    }

    fn next_u64(&mut self) -> u64 {
        if self.used == self.bytes.len() {
            if let Err(error) = self.source.read_exact(&mut self.bytes) {
                // It never fails once open; to go on with used numbers would be worse.
                panic!("read {}: {error}", Self::PATH);
            }
            self.used = 0;
        }
        let mut word = [0; 8];
        word.copy_from_slice(&self.bytes[self.used..self.used + 8]);
        self.used += 8;
        u64::from_le_bytes(word)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::rc::Rc;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    use super::{Entropy, LocalEngine, Ring, Transfers, Window};
    use crate::buffer::{BLOCK_BYTES, Buffer};
    use crate::executor::{Executor, Kick};
    use crate::local::threads::Pool;
    use crate::local::uring::Flavour;
    use crate::runtime::{Driver, Runtime};
    use crate::source::Sources;

    struct Counting(Box<dyn Kick>, Arc<AtomicUsize>);

    impl Kick for Counting {
        fn kick(&self) {
            self.1.fetch_add(1, Ordering::Relaxed);
            self.0.kick();
        }
    }

    #[test]
    fn a_thread_that_an_answer_woke_does_not_ring_for_itself() {
        let (pool, pool_kick) = Pool::new(1).unwrap();
        let (ring, ring_kick) = Ring::new(Flavour::Newest, 0).unwrap();
        let carriers: [(Rc<dyn Transfers>, Box<dyn Kick>); 2] =
            [(Rc::new(pool), Box::new(pool_kick)), (Rc::new(ring), Box::new(ring_kick))];
        for (transfers, kick) in carriers {
            let kicks = Arc::new(AtomicUsize::new(0));
            let executor = Rc::new(Executor::new(Box::new(Counting(kick, Arc::clone(&kicks)))));
            let engine = Rc::new(LocalEngine {
                executor: Rc::clone(&executor),
                timers: Rc::default(),
                transfers,
                started: Instant::now(),
                turn_began: Cell::default(),
                request_timeout: None,
                // No looking: every answer ends a sleep.
                window: Window::new(Duration::ZERO),
                sources: Sources::default(),
                memory_directory: None,
                entropy: RefCell::new(Entropy::open().unwrap()),
            });
            let runtime = Runtime::new(executor, Rc::clone(&engine) as Rc<dyn Driver>, engine);
            let folder = tempfile::tempdir().unwrap();
            let device = runtime.engine().create(&folder.path().join("component"), 1 << 20).unwrap();
            let done = Cell::new(0);
            runtime.block_on(async {
                for _ in 0..10 {
                    device.write(0, vec![Buffer::zeroed(BLOCK_BYTES).freeze()]).await.unwrap();
                    device.flush().await.unwrap();
                    done.set(done.get() + 1);
                }
                runtime.engine().sleep(Duration::from_millis(1)).await;
            });
            assert_eq!((done.get(), kicks.load(Ordering::Relaxed)), (10, 0));
        }
    }
}

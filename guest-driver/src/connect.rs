//! Connecting, and the rings that calls go through.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ringfort_protocol::command::{Area, Command, Opcode};
use ringfort_protocol::completion::Completion;
use ringfort_protocol::control::message::{Attach, Credential, PAGE_HEAD_BYTES, Place, Want};
use ringfort_protocol::ring::layout::{RING_ALIGN_BYTES, RingLayout};
use ringfort_protocol::ring::memory::SharedMemory;
use ringfort_protocol::ring::requester::Requester;
use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::bell::Bell;
use crate::control::Control;
use crate::error::Error;
use crate::lane::{Lane, Load};
use crate::memory::{self, forks};
use crate::patience::Patience;
use crate::ring::{Exchange, Locked, Pending, Ring};

/// The region that all rings lie in, and the credential of its user.
const REGION: u32 = 1;
const CREDENTIAL: u32 = 1;

/// Slots of a ring, in each direction.
const SLOTS: u32 = 64;

/// How a volume is connected to.
#[derive(Clone, Debug)]
pub struct Options {
    /// Rings that calls share. A ring takes many calls at the same time; several help threads that call without a pause.
    pub rings: u32,
    /// The longest read or write, in bytes; longer ones are cut.
    pub call_bytes_max: u32,
    /// How long a call looks for its answer before it sleeps. Longer than it takes to wake a server that sleeps: where both sides fall asleep
    /// before the other is awake, every call costs two wake-ups, and neither ever finds that polling pays.
    pub busy_poll: Duration,
    /// How far that grows while answers come so soon after it was over that looking for them would have spared a sleep. What is more than `busy_poll` is looked
    /// through only while nobody else wants the processor.
    pub busy_poll_max: Duration,
    /// How long a call may take altogether, and how long a [`Queue`](crate::Queue) waits for a completion; for ever where there is none. Not
    /// for tasks, whose calls are given up by dropping them.
    pub timeout: Option<Duration>,
    /// Rings beside those of calls, for [`Queue`](crate::Queue)s.
    pub queues: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            rings: 2,
            call_bytes_max: 1 << 20,
            busy_poll: Duration::from_micros(200),
            busy_poll_max: Duration::from_millis(1),
            timeout: None,
            queues: 0,
        }
    }
}

/// A connection to a server, with the rings that calls take turns on.
pub struct Connection {
    rings: Arc<[Arc<Ring>]>,
    /// Rings that nobody shares.
    spare: Mutex<Vec<(Lane, Bell)>>,
    credential: u32,
    /// The ring that was taken last.
    last: AtomicUsize,
    call_bytes_max: usize,
    patience: Patience,
    timeout: Option<Duration>,
    gone: Arc<AtomicBool>,
    /// How often this process had been forked.
    forks: u64,
    /// Its end ends the channel.
    control: UnixStream,
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.forks != forks() {
            // The parent's goes on.
            return;
        }
        // The thread that answers the server's questions hears of it and ends.
        let _ = self.control.shutdown(std::net::Shutdown::Both);
    }
}

impl Connection {
    pub fn open(path: &Path, options: &Options) -> Result<Self, Error> {
        let mut control = Control::connect(path)?;
        let welcome = control.welcome;
        let call_bytes = options.call_bytes_max.clamp(1 << 16, welcome.command_bytes_max.get().max(1 << 16));
        let data_bytes = Lane::data_bytes(SLOTS, call_bytes);
        let ring_count = options.rings.max(1).saturating_add(options.queues);
        let ring_count = ring_count.min(welcome.ring_count_max.get().max(1));
        let attached = match control.gives_memory() {
            true => ask_for_memory(&mut control, ring_count, data_bytes)?,
            false => bring_memory(&mut control, ring_count, data_bytes)?,
        };
        let gone = Arc::new(AtomicBool::new(false));
        let patience = Patience::new(options.busy_poll, options.busy_poll_max);
        let ring =
            |end: RingEnd| Ring::new(lane(&attached.memory, &end), end.bell, patience, Arc::clone(&gone));
        let mut ends = attached.rings;
        let spare = ends.split_off(ends.len() - (options.queues as usize).min(ends.len() - 1));
        let rings: Arc<[_]> = ends.into_iter().map(ring).map(Arc::new).collect();
        let spare = spare.into_iter().map(|end| (lane(&attached.memory, &end), end.bell)).collect();
        let stream = control.stream()?;
        let (gone_by, told) = (Arc::clone(&gone), Arc::clone(&rings));
        std::thread::Builder::new()
            .name("ringfort".to_owned())
            .spawn(move || {
                control.keep_alive();
                gone_by.store(true, Ordering::Release);
                told.iter().for_each(|ring| ring.end());
            })
            .map_err(Error::system("start a thread"))?;
        Ok(Self {
            rings,
            spare: Mutex::new(spare),
            credential: attached.credential,
            last: AtomicUsize::new(0),
            call_bytes_max: call_bytes as usize,
            patience,
            timeout: options.timeout,
            gone,
            forks: forks(),
            control: stream,
        })
    }

    /// The longest input, and the longest output, of one call.
    pub fn call_bytes_max(&self) -> usize {
        self.call_bytes_max
    }

    /// Carries out a command on behalf of this connection's user. The parts of the input are put one behind the other; the completion says how much of the
    /// output was written.
    pub fn call(&self, command: Command, input: &[&[u8]], output: &mut [u8]) -> Result<Completion, Error> {
        self.call_with(command, input, output.len(), |completion, memory, at| {
            // The lane has checked that it lies in the output.
            let inside = memory.read(at, &mut output[..completion.output_bytes as usize]).is_some();
            debug_assert!(inside);
        })
    }

    /// As [`call`](Self::call). `take` copies the output, which begins where it is told.
    pub fn call_with(
        &self,
        command: Command,
        input: &[&[u8]],
        output_bytes: usize,
        mut take: impl FnMut(&Completion, &SharedMemory, u64),
    ) -> Result<Completion, Error> {
        let command = self.own(command);
        let exchange = Exchange { input, output_bytes, deadline: self.deadline() };
        loop {
            let (ring, state) =
                self.idle_ring()?.map_or_else(|| (self.ring(), None), |(ring, state)| (ring, Some(state)));
            let completion = ring.call(state, command, &exchange, |completion, memory, at| {
                take(completion, memory, at);
                *completion
            })?;
            if !was_interrupted(&command, &completion) {
                return Ok(completion);
            }
        }
    }

    /// Carries out a command without input and output of which nobody wants to hear.
    pub fn post(&self, command: Command) {
        if self.check().is_ok() {
            self.ring().post(self.own(command));
        }
    }

    /// Begins a command; what it gives is for the future that is returned.
    pub async fn start(
        &self,
        command: Command,
        input: &[&[u8]],
        output_bytes: usize,
    ) -> Result<Pending, Error> {
        self.check()?;
        self.ring().start(self.own(command), input, output_bytes).await
    }

    /// Carries out commands that are submitted together, in this order on one ring. `take` sees each completion, with its output.
    pub fn call_all(
        &self,
        loads: &[Load<'_>],
        mut take: impl FnMut(usize, &Completion, Vec<u8>),
    ) -> Result<(), Error> {
        self.check()?;
        let loads: Vec<_> =
            loads.iter().map(|load| Load { command: self.own(load.command), ..*load }).collect();
        self.ring().call_all(&loads, self.deadline(), |index, completion, memory, at| {
            let mut output = vec![0; completion.output_bytes as usize];
            let inside = memory.read(at, &mut output).is_some();
            debug_assert!(inside);
            take(index, completion, output);
        })
    }

    /// The same command on behalf of this connection's user.
    pub fn own(&self, command: Command) -> Command {
        Command { credential: self.credential, ..command }
    }

    /// When a call that begins now is given up.
    pub fn deadline(&self) -> Option<Instant> {
        self.timeout.map(|timeout| Instant::now() + timeout)
    }

    /// A child process shares the memory with its parent, and must leave it alone.
    pub fn check(&self) -> Result<(), Error> {
        if self.forks == forks() { Ok(()) } else { Err(Error::Forked) }
    }

    /// A ring that nobody shares, while there is one. What its last owner has submitted may still be under way.
    pub fn take_spare(&self) -> Result<(Lane, Bell), Error> {
        self.check()?;
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        spare.ok_or(Error::NoQueueLeft)
    }

    pub fn give_spare_back(&self, lane: Lane, bell: Bell) {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).push((lane, bell));
    }

    pub fn patience(&self) -> Patience {
        self.patience
    }

    /// Whether the server is not there any more.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// The ring that was taken last, where it has nothing to do.
    fn idle_ring(&self) -> Result<Option<(&Arc<Ring>, Locked<'_>)>, Error> {
        let ring = &self.rings[self.last.load(Ordering::Relaxed)];
        Ok(ring.lock_idle()?.map(|state| (ring, state)))
    }

    /// The ring with the least to do, from the one after the last that was taken.
    fn ring(&self) -> &Arc<Ring> {
        let rings = &self.rings;
        let first = self.last.load(Ordering::Relaxed);
        let order = (0..rings.len()).map(|step| (first + step) % rings.len());
        let chosen = order.min_by_key(|ring| rings[*ring].load()).unwrap_or(0);
        if chosen != first {
            self.last.store(chosen, Ordering::Relaxed);
        }
        &rings[chosen]
    }
}

/// A lock that was waited for while the machine was stopped and went on: to be waited for again.
pub fn was_interrupted(command: &Command, completion: &Completion) -> bool {
    command.opcode == Opcode::SetLock && completion.status == libc::EINTR as u32
}

fn lane(memory: &SharedMemory, end: &RingEnd) -> Lane {
    Lane::new(Requester::new(memory.clone(), end.layout), memory.clone(), end.data)
}

/// Memory that is shared with the server, and rings in it.
struct Attached {
    memory: SharedMemory,
    credential: u32,
    rings: Vec<RingEnd>,
}

struct RingEnd {
    layout: RingLayout,
    data: Area,
    bell: Bell,
}

/// Asks the daemon of this guest.
fn ask_for_memory(control: &mut Control, ring_count: u32, data_bytes: u32) -> Result<Attached, Error> {
    let want = Want {
        ring_count: ring_count.into(),
        slot_count: SLOTS.into(),
        data_bytes: data_bytes.into(),
        ..Want::default()
    };
    let found = control.want(want)?;
    let len_bytes = found.given.len_bytes.get();
    let memory =
        memory::map(&found.memory, len_bytes).map_err(Error::system("share memory with the server"))?;
    let page_shift = found.given.page_shift.get();
    let end = |(place, bell): (Place, OwnedFd)| {
        let (start, data) =
            (place.start.get(), Area { start: place.data_start.get(), len_bytes: place.data_bytes.get() });
        let layout = RingLayout::new(start.into(), place.slot_count.get(), len_bytes);
        let fits = Lane::fits(data, len_bytes)
            && data.len_bytes >= data_bytes
            && is_clear_of_heads(data, page_shift);
        match layout.filter(|_| fits) {
            Some(layout) => Ok(RingEnd { layout, data, bell: Bell::of_connection(bell)? }),
            None => Err(Error::Protocol {
                found: format!("{place:?} in {len_bytes} bytes of pages of 2^{page_shift}"),
            }),
        }
    };
    let rings = found.rings.into_iter().map(end).collect::<Result<_, _>>()?;
    Ok(Attached { memory, credential: found.given.credential.get(), rings })
}

/// Whether no page begins in the area, or at it: the heads of pages are not ours.
fn is_clear_of_heads(area: Area, page_shift: u32) -> bool {
    let (start, end) = (u64::from(area.start), u64::from(area.start) + u64::from(area.len_bytes));
    page_shift == 0
        || (page_shift < u64::BITS
            && start >> page_shift == (end - 1) >> page_shift
            && start & ((1 << page_shift) - 1) >= u64::from(PAGE_HEAD_BYTES))
}

/// Shares memory of this process.
fn bring_memory(control: &mut Control, ring_count: u32, data_bytes: u32) -> Result<Attached, Error> {
    let Some(ring_bytes) = RingLayout::len_bytes(SLOTS) else { unreachable!("a ring of so many slots") };
    let stride = ring_bytes + u64::from(data_bytes).next_multiple_of(RING_ALIGN_BYTES);
    let system = Error::system("share memory with the server");
    let (memory, descriptor) = memory::shareable(stride * u64::from(ring_count)).map_err(system)?;
    control.register(REGION, &memory, descriptor.as_fd())?;
    let (credential, groups) = own_credential()?;
    control.credential(credential, groups)?;
    let attach = |number: u32| {
        let start = stride * u64::from(number);
        let Some(layout) = RingLayout::new(start, SLOTS, memory.len_bytes()) else {
            unreachable!("a ring lies where it was put")
        };
        // Below 4 GiB: 64 rings at most, of little more than a megabyte.
        let data = Area { start: (start + ring_bytes) as u32, len_bytes: data_bytes };
        let (doorbell, ours, theirs) = doorbells()?;
        let attach = Attach {
            region: REGION.into(),
            ring: number.into(),
            start: (start as u32).into(),
            slot_count: SLOTS.into(),
            data_start: data.start.into(),
            data_bytes: data.len_bytes.into(),
            ..Attach::default()
        };
        control.attach(attach, &[doorbell.as_fd(), theirs.as_fd()])?;
        Ok(RingEnd { layout, data, bell: Bell::of_event(doorbell, ours)? })
    };
    let rings = (0..ring_count).map(attach).collect::<Result<_, Error>>()?;
    Ok(Attached { memory, credential: CREDENTIAL, rings })
}

/// An event by which the server is rung, and both ends of a socket by which it rings.
fn doorbells() -> Result<(OwnedFd, OwnedFd, OwnedFd), Error> {
    let system = |errno: rustix::io::Errno| Error::system("make a doorbell")(errno.into());
    let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(system)?;
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).map_err(system)?;
    Ok((event, ours, theirs))
}

fn own_credential() -> Result<(Credential, Vec<u32>), Error> {
    let system = |errno: nix::Error| Error::system("ask for this process's groups")(errno.into());
    let groups: Vec<u32> =
        nix::unistd::getgroups().map_err(system)?.into_iter().map(nix::unistd::Gid::as_raw).collect();
    let credential = Credential {
        region: REGION.into(),
        credential: CREDENTIAL.into(),
        uid: nix::unistd::geteuid().as_raw().into(),
        gid: nix::unistd::getegid().as_raw().into(),
        // Linux gives a process no more than 65,536.
        group_count: (groups.len() as u32).into(),
        ..Credential::default()
    };
    Ok((credential, groups))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_that_touch_the_head_of_a_page_are_refused() {
        let clear = |start, len_bytes| is_clear_of_heads(Area { start, len_bytes }, 21);
        assert!(clear(64, (2 << 20) - 64));
        assert!(!clear(0, 4096) && !clear(63, 4096));
        assert!(!clear(64, 2 << 20), "into the next page");
        assert!(is_clear_of_heads(Area { start: 0, len_bytes: 8192 }, 0));
        assert!(!is_clear_of_heads(Area { start: 64, len_bytes: 64 }, 64));
    }
}

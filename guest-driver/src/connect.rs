//! Connecting, and the rings that calls go through.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use ringfort_protocol::command::{Area, Command};
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
use crate::memory;
use crate::ring::{Exchange, Ring};

/// The region that all rings lie in, and the credential of its user.
const REGION: u32 = 1;
const CREDENTIAL: u32 = 1;

/// Slots of a ring, in each direction.
const SLOTS: u32 = 16;

/// How a volume is connected to.
#[derive(Clone, Debug)]
pub struct Options {
    /// Calls that run at the same time; more take turns.
    pub rings: u32,
    /// The longest read or write, in bytes; longer ones are cut.
    pub call_bytes_max: u32,
    /// How long a call looks for its answer before it sleeps.
    pub busy_poll: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { rings: 4, call_bytes_max: 1 << 20, busy_poll: Duration::from_micros(50) }
    }
}

/// A connection to a server, with the rings that calls take turns on.
pub struct Connection {
    rings: Vec<Ring>,
    credential: u32,
    /// The ring that was taken last.
    last: AtomicUsize,
    call_bytes_max: usize,
    /// Its end ends the channel.
    control: UnixStream,
}

impl Drop for Connection {
    fn drop(&mut self) {
        // The thread that answers the server's questions hears of it and ends.
        let _ = self.control.shutdown(std::net::Shutdown::Both);
    }
}

impl Connection {
    pub fn open(path: &Path, options: &Options) -> Result<Self, Error> {
        let mut control = Control::connect(path)?;
        let welcome = control.welcome;
        let call_bytes = options.call_bytes_max.clamp(1 << 16, welcome.command_bytes_max.get().max(1 << 16));
        // Data as long as a call may be, and its names before it.
        let data_bytes = call_bytes + (64 << 10);
        let ring_count = options.rings.clamp(1, welcome.ring_count_max.get().max(1));
        let attached = match control.gives_memory() {
            true => ask_for_memory(&mut control, ring_count, data_bytes)?,
            false => bring_memory(&mut control, ring_count, data_bytes)?,
        };
        let gone = Arc::new(AtomicBool::new(false));
        let ring = |end: RingEnd| {
            let requester = Requester::new(attached.memory.clone(), end.layout);
            Ring::new(
                requester,
                attached.memory.clone(),
                end.data,
                options.busy_poll,
                end.bell,
                Arc::clone(&gone),
            )
        };
        let rings = attached.rings.into_iter().map(ring).collect();
        let stream = control.stream()?;
        let gone = Arc::clone(&gone);
        std::thread::Builder::new()
            .name("ringfort".to_owned())
            .spawn(move || {
                control.keep_alive();
                gone.store(true, Ordering::Release);
            })
            .map_err(Error::system("start a thread"))?;
        Ok(Self {
            rings,
            credential: attached.credential,
            last: AtomicUsize::new(0),
            call_bytes_max: call_bytes as usize,
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
        let command = Command { credential: self.credential, ..command };
        let exchange = Exchange { input, output_bytes: output.len() };
        self.ring().call(command, &exchange, |completion, memory, at| {
            // The ring has checked that it lies in the output.
            let inside = memory.read(at, &mut output[..completion.output_bytes as usize]).is_some();
            debug_assert!(inside);
            *completion
        })
    }

    /// A ring that nobody uses, or one of those that are used.
    fn ring(&self) -> &Ring {
        let rings = &self.rings;
        let first = self.last.load(Ordering::Relaxed);
        let free =
            (0..rings.len()).map(|step| (first + step) % rings.len()).find(|ring| rings[*ring].try_turn());
        let ring = free.unwrap_or((first + 1) % rings.len());
        self.last.store(ring, Ordering::Relaxed);
        &rings[ring]
    }
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
        let data_end = u64::from(data.start) + u64::from(data.len_bytes);
        let fits =
            data_end <= len_bytes && data.len_bytes >= data_bytes && is_clear_of_heads(data, page_shift);
        match layout.filter(|_| fits) {
            Some(layout) => Ok(RingEnd { layout, data, bell: Bell::Connection(bell) }),
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
        Ok(RingEnd { layout, data, bell: Bell::Descriptors { doorbell, wake: ours } })
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

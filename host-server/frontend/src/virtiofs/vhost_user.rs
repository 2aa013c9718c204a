//! Drives a [`device`](super::device) from a vhost-user connection, over vhost-user-backend.
//!
//! Nothing here looks into a request. Kicks reach the volume's thread directly where its engine can watch descriptors: the
//! worker thread of vhost-user-backend then hands over a ring's doorbell as soon as the ring starts, and hears of it no more.
//! Elsewhere the worker forwards each kick. The connection thread forwards stops, and waits until the device has given back
//! every chain, so that the answer to GET_VRING_BASE is final.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use ringfort_engine::mailbox::Sender;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackend, VringEpollHandler, VringMutex, VringState, VringT};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

use super::device::{Attachment, Done, Event};
use super::queue::{Chain, Ring, RingError, Taken};
use crate::machine::{Machine, Memory};

/// The longest ring that a virtual machine may ask for.
const QUEUE_SIZE_MAX: usize = 1024;

/// A device that takes longer to let go of its requests is worth a line in the log.
const SLOW_STOP: Duration = Duration::from_secs(10);

/// Guest memory as the latest message of the virtual machine has it.
pub type AtomicMemory = GuestMemoryAtomic<Memory>;

/// A ring of vhost-user-backend.
pub struct Vring {
    vring: VringMutex<AtomicMemory>,
    memory: AtomicMemory,
}

impl Vring {
    pub fn new(vring: VringMutex<AtomicMemory>, memory: AtomicMemory) -> Self {
        Self { vring, memory }
    }

    fn runs(state: &VringState<AtomicMemory>) -> bool {
        state.is_enabled() && state.get_queue().ready()
    }
}

impl Ring for Vring {
    fn take(&self) -> Result<Option<Taken>, RingError> {
        let memory = self.memory.memory().into_inner();
        let mut state = self.vring.get_mut();
        if !Self::runs(&state) {
            return Ok(None);
        }
        let next = match state.get_queue_mut().iter(Arc::clone(&memory)) {
            Ok(mut available) => available.next(),
            Err(error) => return unless_unreachable(error).map(|()| None),
        };
        drop(state);
        Ok(next.map(|chain| Taken { head: chain.head_index(), chain: Chain::walk(memory, chain) }))
    }

    fn give_back(&self, head: u16, written_bytes: u32) -> Result<(), RingError> {
        self.vring.get_mut().add_used(head, written_bytes).map_err(RingError::Queue)
    }

    fn ring(&self) -> Result<bool, RingError> {
        let mut state = self.vring.get_mut();
        let wanted = state.needs_notification().map_err(RingError::Queue)?;
        if wanted {
            state.signal_used_queue().map_err(RingError::Doorbell)?;
        }
        Ok(wanted)
    }

    fn mute(&self) -> Result<(), RingError> {
        self.vring.disable_notification().or_else(unless_unreachable)
    }

    fn unmute(&self) -> Result<bool, RingError> {
        let mut state = self.vring.get_mut();
        if !Self::runs(&state) {
            return Ok(false);
        }
        state.enable_notification().or_else(|error| unless_unreachable(error).map(|()| false))
    }

    fn size(&self) -> usize {
        usize::from(self.vring.get_ref().get_queue().size())
    }

    fn position(&self) -> u16 {
        self.vring.get_ref().get_queue().next_avail()
    }
}

/// A ring outside the memory table is not the guest's fault: the machine changes the table while rings run. It gives no
/// chains until a later table holds it.
fn unless_unreachable(error: virtio_queue::Error) -> Result<(), RingError> {
    match error {
        virtio_queue::Error::GuestMemory(_) => Ok(()),
        error => Err(RingError::Queue(error)),
    }
}

/// The vhost-user side of one connection.
pub struct Backend {
    /// High priority queue included.
    queue_count: usize,
    memory: AtomicMemory,
    events: Sender<Event>,
    /// Told of memory, starts and stops.
    machine: Arc<Machine>,
    kicked: Arc<[AtomicBool]>,
    /// By queue: whether its run has begun, and says nothing new of the machine. One that goes on while another is stopped does not
    /// make the machine go on.
    begun: Vec<AtomicBool>,
    attached: OnceLock<Vec<VringMutex<AtomicMemory>>>,
    /// What polls the rings' doorbells until they are handed over; none where they stay with it.
    worker: OnceLock<Weak<VringEpollHandler<Arc<Backend>>>>,
    /// The descriptor by which the worker is told to end. vhost-user-backend never closes it.
    exit_descriptor: Mutex<Option<RawFd>>,
}

impl Backend {
    pub fn new(
        request_queue_count: usize,
        memory: AtomicMemory,
        events: Sender<Event>,
        machine: Arc<Machine>,
    ) -> Self {
        let queue_count = 1 + request_queue_count;
        Self {
            queue_count,
            memory,
            events,
            machine,
            kicked: (0..queue_count).map(|_| AtomicBool::new(false)).collect(),
            begun: (0..queue_count).map(|_| AtomicBool::new(false)).collect(),
            attached: OnceLock::new(),
            worker: OnceLock::new(),
            exit_descriptor: Mutex::new(None),
        }
    }

    /// Has doorbells handed over to the device, which can watch them. To be called before the machine's first message.
    pub fn hand_over_from(&self, worker: &Arc<VringEpollHandler<Arc<Backend>>>) {
        self.worker.get_or_init(|| Arc::downgrade(worker));
    }

    /// Ends the guest's session and waits until its last request is done. The daemon must be gone: nothing is sent later.
    pub fn detach(&self) {
        self.machine.disconnect();
        if self.attached.get().is_some() {
            self.send_and_wait("detach", Event::Detach);
        }
    }

    /// Closes what the daemon leaves behind. The daemon must be gone.
    pub fn close_exit_descriptor(&self) {
        let descriptor = self.exit_descriptor.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(descriptor) = descriptor
            && let Err(error) = nix::unistd::close(descriptor)
        {
            tracing::debug!("close exit event: {error}");
        }
    }

    fn attach(&self, vrings: &[VringMutex<AtomicMemory>]) {
        self.attached.get_or_init(|| {
            let ring = |vring: &VringMutex<AtomicMemory>| -> Box<dyn Ring + Send> {
                Box::new(Vring::new(vring.clone(), self.memory.clone()))
            };
            let rings = vrings.iter().map(ring).collect();
            // Where the device is gone the server is about to end.
            let _ = self.events.send(Event::Attach(Attachment { rings, kicked: Arc::clone(&self.kicked) }));
            vrings.to_vec()
        });
    }

    /// Tells the device of a ring that has started or was rung for, and gives it the ring's doorbell where it can hear it.
    fn forward(&self, index: usize, kicked: &AtomicBool, vring: &VringMutex<AtomicMemory>) {
        // Held until the device is told: a stop, which first takes the lock, is told later. And the descriptor is not closed,
        // and its number given to another, meanwhile.
        let state = vring.get_ref();
        if !Vring::runs(&state) {
            return;
        }
        if self.begun.get(index).is_some_and(|begun| !begun.swap(true, Ordering::AcqRel)) {
            self.machine.start();
        }
        // Where the device is gone the server is about to end.
        if let Some(doorbell) = self.take_from_worker(index, &state) {
            let _ = self.events.send(Event::Start(index, Box::new(doorbell)));
        } else if !kicked.swap(true, Ordering::AcqRel) {
            let _ = self.events.send(Event::Kick(index));
        }
    }

    /// The doorbell of a ring, which the worker hears no more. None where it stays with the worker.
    fn take_from_worker(&self, index: usize, state: &VringState<AtomicMemory>) -> Option<EventConsumer> {
        let worker = self.worker.get().and_then(Weak::upgrade)?;
        let kick = state.get_kick().as_ref()?;
        let doorbell = kick
            .try_clone()
            .inspect_err(|error| {
                tracing::warn!("queue {index}: duplicate its doorbell: {error}; kicks take a detour")
            })
            .ok()?;
        // The number says nothing to the kernel here; the worker takes those of queues from its own crate alone. A doorbell
        // that the worker does not know was taken before.
        let no_queue = self.queue_count as u64 + 1;
        if let Err(error) = worker.unregister_listener(kick.as_raw_fd(), EventSet::IN, no_queue) {
            tracing::debug!("queue {index}: take its doorbell from the worker: {error}");
        }
        Some(doorbell)
    }

    /// Whichever queues run now began before this stop of the machine; the others are to say when they do. Before the machine is
    /// stopped: a queue that has not said so yet says it while its lock is held.
    fn note_runs(&self, still_runs: impl Fn(&VringState<AtomicMemory>) -> bool) {
        for (begun, vring) in self.begun.iter().zip(self.attached.get().into_iter().flatten()) {
            let state = vring.get_ref();
            begun.store(still_runs(&state), Ordering::Release);
        }
    }

    fn send_and_wait(&self, what: &str, event: impl FnOnce(Done) -> Event) {
        let (done, wait) = mpsc::channel();
        if self.events.send(event(done)).is_err() {
            return;
        }
        let mut waited = Duration::ZERO;
        while let Err(RecvTimeoutError::Timeout) = wait.recv_timeout(SLOW_STOP) {
            waited += SLOW_STOP;
            tracing::warn!("{what}: requests of the guest are still under way after {} s", waited.as_secs());
        }
    }
}

impl VhostUserBackend for Backend {
    type Bitmap = ();
    type Vring = VringMutex<AtomicMemory>;

    fn num_queues(&self) -> usize {
        self.queue_count
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE_MAX
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        // Neither LOG_SHMFD nor DEVICE_STATE: QEMU refuses to migrate a guest that uses this device.
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
    }

    fn reset_device(&self) {
        self.note_runs(|_| false);
        self.machine.stop();
        if self.attached.get().is_some() {
            self.send_and_wait("reset", Event::Reset);
        }
    }

    fn set_event_idx(&self, _enabled: bool) {
        // The queues know.
    }

    fn update_memory(&self, memory: AtomicMemory) -> io::Result<()> {
        // The machine is answered when this returns: nobody uses what it may take away then.
        self.machine.replace_memory(memory.memory().into_inner());
        // The same one that the rings hold. Requests under way keep the mappings that they came through. Rings that were
        // out of reach may be within it now.
        if self.attached.get().is_some() {
            let _ = self.events.send(Event::Remapped);
        }
        Ok(())
    }

    fn exit_event(&self, _thread_index: usize) -> Option<(EventConsumer, EventNotifier)> {
        let pair = new_event_consumer_and_notifier(EventFlag::CLOEXEC | EventFlag::NONBLOCK)
            .inspect_err(|error| tracing::error!("create exit event: {error}"))
            .ok()?;
        *self.exit_descriptor.lock().unwrap_or_else(PoisonError::into_inner) = Some(pair.0.as_raw_fd());
        Some(pair)
    }

    fn stop_vring(&self, queue_index: u32) -> io::Result<()> {
        self.note_runs(|state| state.get_queue().ready());
        self.machine.stop();
        if self.attached.get().is_some() {
            self.send_and_wait("stop queue", |done| Event::Stop(queue_index as usize, done));
        }
        Ok(())
    }

    fn handle_event(
        &self,
        device_event: u16,
        _events: EventSet,
        vrings: &[VringMutex<AtomicMemory>],
        _thread_id: usize,
    ) -> io::Result<()> {
        let index = usize::from(device_event);
        let (Some(kicked), Some(vring)) = (self.kicked.get(index), vrings.get(index)) else { return Ok(()) };
        self.attach(vrings);
        self.forward(index, kicked, vring);
        // An error would end the worker, and with it every later kick.
        Ok(())
    }
}

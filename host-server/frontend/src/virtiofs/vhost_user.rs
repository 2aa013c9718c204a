//! Drives a [`device`](super::device) from a vhost-user connection, over vhost-user-backend.
//!
//! Nothing here looks into a request. The worker thread of vhost-user-backend forwards kicks; its connection thread
//! forwards stops, and waits until the device has given back every chain, so that the answer to GET_VRING_BASE is final.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use ringfort_engine::mailbox::Sender;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackend, VringMutex, VringT};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

use super::device::{Attachment, Done, Event};
use super::queue::{Chain, Memory, Ring, RingError, Taken};

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

    fn runs(state: &impl std::ops::Deref<Target = vhost_user_backend::VringState<AtomicMemory>>) -> bool {
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
        let next = state.get_queue_mut().iter(Arc::clone(&memory)).map_err(RingError::Queue)?.next();
        drop(state);
        Ok(next.map(|chain| Taken { head: chain.head_index(), chain: Chain::walk(memory, chain) }))
    }

    fn give_back(&self, head: u16, written_bytes: u32) -> Result<bool, RingError> {
        let mut state = self.vring.get_mut();
        state.add_used(head, written_bytes).map_err(RingError::Queue)?;
        let wanted = state.needs_notification().map_err(RingError::Queue)?;
        if wanted {
            state.signal_used_queue().map_err(RingError::Doorbell)?;
        }
        Ok(wanted)
    }

    fn mute(&self) -> Result<(), RingError> {
        self.vring.disable_notification().map_err(RingError::Queue)
    }

    fn unmute(&self) -> Result<bool, RingError> {
        let mut state = self.vring.get_mut();
        if !Self::runs(&state) {
            return Ok(false);
        }
        state.enable_notification().map_err(RingError::Queue)
    }

    fn size(&self) -> usize {
        usize::from(self.vring.get_ref().get_queue().size())
    }
}

/// The vhost-user side of one connection.
pub struct Backend {
    /// High priority queue included.
    queue_count: usize,
    memory: AtomicMemory,
    events: Sender<Event>,
    kicked: Arc<[AtomicBool]>,
    attached: OnceLock<()>,
    /// The descriptor by which the worker is told to end. vhost-user-backend never closes it.
    exit_descriptor: Mutex<Option<RawFd>>,
}

impl Backend {
    pub fn new(request_queue_count: usize, memory: AtomicMemory, events: Sender<Event>) -> Self {
        let queue_count = 1 + request_queue_count;
        Self {
            queue_count,
            memory,
            events,
            kicked: (0..queue_count).map(|_| AtomicBool::new(false)).collect(),
            attached: OnceLock::new(),
            exit_descriptor: Mutex::new(None),
        }
    }

    /// Ends the guest's session and waits until its last request is done. The daemon must be gone: nothing is sent later.
    pub fn detach(&self) {
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
        });
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
        if self.attached.get().is_some() {
            self.send_and_wait("reset", Event::Reset);
        }
    }

    fn set_event_idx(&self, _enabled: bool) {
        // The queues know.
    }

    fn update_memory(&self, _memory: AtomicMemory) -> io::Result<()> {
        // The same one that the rings hold. Requests under way keep the mappings that they came through.
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
        let Some(kicked) = self.kicked.get(index) else { return Ok(()) };
        self.attach(vrings);
        if !kicked.swap(true, Ordering::AcqRel) {
            let _ = self.events.send(Event::Kick(index));
        }
        // An error would end the worker, and with it every later kick.
        Ok(())
    }
}

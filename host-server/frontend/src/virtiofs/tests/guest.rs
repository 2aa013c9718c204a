//! A guest with a device, in one simulated thread.

use std::fs::File;
use std::future::Future;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use ringfort_engine::engine::Engine;
use ringfort_engine::mailbox::{Sender, mailbox};
use ringfort_engine::sim::SimWorld;
use vhost_user_backend::{VringMutex, VringT};
use vm_memory::{GuestAddress, GuestAddressSpace};
use zerocopy::IntoBytes;

use super::driver::{Answer, Driver, Ticket, init_in};
use super::fake::Fake;
use crate::machine::Memory;
use crate::metrics::Metrics;
use crate::service::Service;
use crate::virtiofs::device::{self, Attachment, Event, Options};
use crate::virtiofs::vhost_user::{AtomicMemory, Vring};
use crate::virtiofs::{CachePolicy, abi};

pub const QUEUE_SIZE: u16 = 16;
const BUFFERS_BYTES: u64 = 6 << 20;
const HIPRIO_BASE: u64 = 0;
const REQUEST_BASE: u64 = 8 << 20;
pub const MEMORY_BYTES: usize = 16 << 20;
pub const REQUESTS: usize = 1;

pub struct Guest {
    pub engine: Rc<dyn Engine>,
    pub metrics: Arc<Metrics>,
    /// High priority, requests.
    pub queues: [Driver; 2],
    pub vrings: Vec<VringMutex<AtomicMemory>>,
    events: Sender<Event>,
    kicked: Arc<[AtomicBool]>,
    doorbell: EventFd,
    replies: Vec<(u16, u32)>,
}

/// Runs `test` with a guest whose device serves a [`Fake`], under the default options.
pub fn with_guest<F: Future<Output = ()> + 'static>(test: impl FnOnce(Guest, Rc<Fake>) -> F + 'static) {
    with_options(Options::default(), test);
}

pub fn with_cache<F: Future<Output = ()> + 'static>(
    cache: CachePolicy,
    test: impl FnOnce(Guest, Rc<Fake>) -> F + 'static,
) {
    with_options(Options { cache, ..Default::default() }, test);
}

pub fn with_options<F: Future<Output = ()> + 'static>(
    options: Options,
    test: impl FnOnce(Guest, Rc<Fake>) -> F + 'static,
) {
    let world = SimWorld::new(1);
    let engine = world.engine();
    world
        .run(async move {
            let fake = Fake::new(Rc::clone(&engine));
            let guest = Guest::new(engine, Rc::clone(&fake), options);
            test(guest, fake).await;
        })
        .done();
}

impl Guest {
    pub fn new<S: Service>(engine: Rc<dyn Engine>, service: Rc<S>, options: Options) -> Self {
        let memory = Memory::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).unwrap();
        let memory = AtomicMemory::new(memory);
        let doorbell = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
        let driver = |base| Driver::new(memory.memory().into_inner(), base, QUEUE_SIZE, BUFFERS_BYTES);
        let queues = [driver(HIPRIO_BASE), driver(REQUEST_BASE)];
        let vrings: Vec<_> = queues
            .iter()
            .map(|queue| {
                let vring = VringMutex::new(memory.clone(), QUEUE_SIZE).unwrap();
                let (table, available, used) = queue.ring_addresses();
                vring.set_queue_info(table, available, used).unwrap();
                vring.set_call(Some(File::from(second_handle(&doorbell))));
                vring.set_queue_ready(true);
                vring.set_enabled(true);
                vring
            })
            .collect();
        let (events, receiver) = mailbox();
        let kicked: Arc<[AtomicBool]> = (0..2).map(|_| AtomicBool::new(false)).collect();
        let metrics = Arc::new(Metrics::new(2));
        let run = device::run(
            "guest".to_owned(),
            Rc::clone(&engine),
            service,
            options,
            Arc::clone(&metrics),
            receiver,
        );
        engine.spawn(Box::pin(run));
        let rings = vrings
            .iter()
            .map(|vring| Box::new(Vring::new(vring.clone(), memory.clone())) as Box<_>)
            .collect();
        let attachment = Attachment { rings, kicked: Arc::clone(&kicked) };
        assert!(events.send(Event::Attach(attachment)).is_ok());
        Self { engine, metrics, queues, vrings, events, kicked, doorbell, replies: Vec::new() }
    }

    pub fn kick(&self, queue: usize) {
        if !self.kicked[queue].swap(true, Ordering::AcqRel) {
            assert!(self.events.send(Event::Kick(queue)).is_ok());
        }
    }

    /// Sends an event and waits until it is done.
    pub async fn event(&self, event: impl FnOnce(mpsc::Sender<()>) -> Event) {
        let done = self.begin(event);
        while done.try_recv() == Err(mpsc::TryRecvError::Empty) {
            self.engine.sleep(Duration::from_millis(1)).await;
        }
    }

    pub fn begin(&self, event: impl FnOnce(mpsc::Sender<()>) -> Event) -> mpsc::Receiver<()> {
        let (sender, done) = mpsc::channel();
        assert!(self.events.send(event(sender)).is_ok());
        done
    }

    pub async fn settle(&self) {
        self.engine.sleep(Duration::from_secs(1)).await;
    }

    pub fn doorbell_rang(&self) -> bool {
        self.doorbell.read().is_ok()
    }

    /// Sends one request, 1 MiB of room for its reply.
    pub fn send(&mut self, opcode: u32, node: u64, body: &[u8]) -> Ticket {
        self.send_with_room(opcode, node, body, &[16, 4096, 1 << 20])
    }

    pub fn send_with_room(&mut self, opcode: u32, node: u64, body: &[u8], room: &[u32]) -> Ticket {
        let request = self.queues[REQUESTS].request(opcode, node, body);
        let (header, body) = request.split_at(40);
        let readable: &[&[u8]] = if body.is_empty() { &[header] } else { &[header, body] };
        let ticket = self.queues[REQUESTS].submit(readable, room);
        self.kick(REQUESTS);
        ticket
    }

    /// Waits for the chain to come back: bytes written.
    pub async fn returned(&mut self, queue: usize, ticket: &Ticket) -> Option<u32> {
        for _ in 0..10_000 {
            while let Some(used) = self.queues[queue].take_used() {
                self.replies.push(used);
            }
            if let Some(found) = self.replies.iter().position(|(head, _)| *head == ticket.head) {
                return Some(self.replies.swap_remove(found).1);
            }
            self.engine.sleep(Duration::from_millis(1)).await;
        }
        None
    }

    pub async fn wait(&mut self, ticket: &Ticket) -> Answer {
        let written_bytes = self.returned(REQUESTS, ticket).await.expect("an answer");
        self.queues[REQUESTS].answer(ticket, written_bytes)
    }

    pub async fn call(&mut self, opcode: u32, node: u64, body: &[u8]) -> Answer {
        let ticket = self.send(opcode, node, body);
        self.wait(&ticket).await
    }

    pub async fn init(&mut self) -> abi::InitOut {
        self.call(abi::FUSE_INIT, 0, init_in(38, u32::MAX).as_bytes()).await.parse()
    }

    /// A request without a reply, on the high priority queue.
    pub async fn forget(&mut self, node: u64, count: u64) {
        let request = self.queues[0].request(abi::FUSE_FORGET, node, &count.to_le_bytes());
        let ticket = self.queues[0].submit(&[&request], &[]);
        self.kick(0);
        assert_eq!(self.returned(0, &ticket).await, Some(0));
    }
}

fn second_handle(doorbell: &EventFd) -> std::os::fd::OwnedFd {
    use std::os::fd::AsFd;
    doorbell.as_fd().try_clone_to_owned().unwrap()
}

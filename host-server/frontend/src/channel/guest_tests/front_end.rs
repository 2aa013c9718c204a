//! A virtual machine monitor at the vhost-user socket, while programs of its guest use the channel: what it is answered is final.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use ringfort_protocol::command::{Command, Opcode};
use ringfort_protocol::control::message::Reason;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserHeaderFlag, VhostUserProtocolFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::{GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::EventFd;

use super::fake::*;
use crate::channel::Limits;
use crate::machine::Memory;

const QUEUES: [usize; 2] = [0, 1];
const QUEUE_SIZE: u16 = 64;
/// The virtio queues lie in the first huge page, one behind the other.
const QUEUE_BYTES: u64 = 1 << 16;

/// Of VHOST_F_LOG_ALL, by which a machine is asked to note what it writes to while it is migrated.
const LOG_ALL: u64 = 1 << 26;

/// Long enough for whatever is still under way to show.
const A_MOMENT: Duration = Duration::from_millis(5);
const SOON: Duration = Duration::from_secs(20);

/// The monitor's end of the vhost-user socket.
struct Monitor<'scene> {
    scene: &'scene Scene,
    frontend: Frontend,
    memory: Arc<Memory>,
    kicks: [EventFd; 2],
    calls: [EventFd; 2],
}

impl<'scene> Monitor<'scene> {
    /// Connects, and returns when the machine runs.
    fn connect(scene: &'scene Scene) -> Self {
        let event = |_| EventFd::new(nix::fcntl::OFlag::O_NONBLOCK.bits()).unwrap();
        let mut monitor = Self {
            scene,
            frontend: Frontend::connect(&scene.virtiofs, QUEUES.len() as u64).unwrap(),
            memory: scene.memory(&RANGES),
            kicks: QUEUES.map(event),
            calls: QUEUES.map(event),
        };
        monitor.negotiate();
        monitor.share(&RANGES);
        monitor.start_all();
        scene.machine.begin_boot(FIRST_BOOT);
        monitor
    }

    fn negotiate(&mut self) {
        self.frontend.set_owner().unwrap();
        self.set_features();
        let protocol = self.frontend.get_protocol_features().unwrap();
        self.frontend.set_protocol_features(protocol).unwrap();
        self.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    }

    fn set_features(&self) {
        let features = self.frontend.get_features().unwrap();
        self.frontend.set_features(features & !(1 << VIRTIO_RING_F_EVENT_IDX)).unwrap();
    }

    fn region(&self, &(start, len_bytes): &(u64, u64)) -> VhostUserMemoryRegionInfo {
        let region = self.memory.find_region(GuestAddress(start)).unwrap();
        let whole = VhostUserMemoryRegionInfo::from_guest_region(region).unwrap();
        VhostUserMemoryRegionInfo { memory_size: len_bytes, ..whole }
    }

    /// SET_MEM_TABLE.
    fn share(&self, ranges: &[(u64, u64)]) {
        let table: Vec<_> = ranges.iter().map(|range| self.region(range)).collect();
        self.frontend.set_mem_table(&table).unwrap();
    }

    /// REM_MEM_REG, and ADD_MEM_REG.
    fn unplug_and_plug(&mut self, range: &(u64, u64)) {
        let region = self.region(range);
        self.frontend.remove_mem_region(&region).unwrap();
        self.frontend.add_mem_region(&region).unwrap();
    }

    fn start(&mut self, queue: usize) {
        let base = queue as u64 * QUEUE_BYTES;
        let host = |offset| self.memory.get_host_address(GuestAddress(base + offset)).unwrap() as u64;
        let config = VringConfigData {
            queue_max_size: QUEUE_SIZE,
            queue_size: QUEUE_SIZE,
            flags: 0,
            desc_table_addr: host(0),
            avail_ring_addr: host(4096),
            used_ring_addr: host(8192),
            log_addr: None,
        };
        let frontend = &mut self.frontend;
        frontend.set_vring_num(queue, QUEUE_SIZE).unwrap();
        frontend.set_vring_base(queue, 0).unwrap();
        frontend.set_vring_addr(queue, &config).unwrap();
        frontend.set_vring_call(queue, &self.calls[queue]).unwrap();
        frontend.set_vring_kick(queue, &self.kicks[queue]).unwrap();
        frontend.set_vring_enable(queue, true).unwrap();
    }

    /// Starts every queue, and returns when the machine runs.
    fn start_all(&mut self) {
        QUEUES.into_iter().for_each(|queue| self.start(queue));
        let deadline = Instant::now() + SOON;
        while self.scene.machine.memory().is_none() {
            assert!(Instant::now() < deadline, "the machine does not run");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// GET_VRING_BASE.
    fn stop(&self, queue: usize) {
        self.frontend.get_vring_base(queue).unwrap();
    }

    fn stop_all(&self) {
        QUEUES.into_iter().for_each(|queue| self.stop(queue));
    }
}

/// A client that always has as much under way as its ring takes.
struct Loaded {
    client: Client,
    file: u64,
    submitted: u64,
    completed: u64,
}

impl Loaded {
    fn begin(scene: &Scene, daemon: &mut Wire, region: u32, page: u64) -> Self {
        let mut client = scene.client(daemon, region, &[page], HUGE_SHIFT);
        let file = client.create(&format!("/file {region}"));
        Self { client, file, submitted: 0, completed: 0 }
    }

    /// More than once around the ring, and then as much as it takes.
    fn load(&mut self) {
        for _ in 0..4 {
            while self.client.room() > 0 {
                let input = self.client.input(&[self.submitted as u8; 100_000]);
                let write = Command { target: self.file, input, ..self.client.command(Opcode::Write) };
                let command =
                    if self.submitted.is_multiple_of(3) { write } else { self.client.command(Opcode::Nop) };
                self.client.submit(&command);
                self.submitted += 1;
            }
            while let Some(completion) = self.client.take() {
                assert_eq!(completion.status, 0);
                self.completed += 1;
            }
        }
    }

    /// Panics where the memory changes from now on.
    fn require_untouched(&self, why: &str) {
        let before = self.client.bytes();
        thread::sleep(A_MOMENT);
        assert!(self.client.bytes() == before, "{why}: touched after the answer");
    }

    /// Whatever was submitted is answered, once.
    fn finish(mut self) {
        while self.completed < self.submitted {
            assert_eq!(self.client.next().status, 0);
            self.completed += 1;
        }
        let nop = self.client.command(Opcode::Nop);
        assert_eq!(self.client.call(nop).tag, nop.tag);
    }
}

fn with_monitor(test: impl FnOnce(&Scene, Monitor<'_>)) {
    with_server(Limits::default(), |scene| test(scene, Monitor::connect(scene)));
}

#[test]
fn a_monitor_that_has_stopped_the_queues_finds_the_memory_at_rest() {
    with_monitor(|scene, mut monitor| {
        let mut daemon = scene.daemon(FIRST_BOOT);
        let mut loaded = Loaded::begin(scene, &mut daemon, 1, HUGE);
        for round in 0..20 {
            loaded.load();
            if round % 2 == 0 {
                // As QEMU does.
                QUEUES.into_iter().for_each(|queue| monitor.frontend.set_vring_enable(queue, false).unwrap());
            }
            monitor.stop_all();
            loaded.require_untouched("queues stopped");
            monitor.start_all();
            daemon.go_on(&loaded.client, 1);
        }
        loaded.finish();
    });
}

#[test]
fn a_queue_that_runs_on_does_not_make_a_stopped_machine_go_on() {
    with_monitor(|scene, mut monitor| {
        let mut daemon = scene.daemon(FIRST_BOOT);
        let mut loaded = Loaded::begin(scene, &mut daemon, 1, HUGE);
        for (first, second) in [(0, 1), (1, 0)] {
            loaded.load();
            monitor.stop(first);
            // It runs already, and says so again.
            monitor.frontend.set_vring_enable(second, true).unwrap();
            monitor.kicks[second].write(1).unwrap();
            thread::sleep(A_MOMENT * 4);
            assert!(scene.machine.stands_still(), "queue {first} is stopped");
            loaded.require_untouched("one queue stopped");
            monitor.stop(second);
            monitor.start_all();
            daemon.go_on(&loaded.client, 1);
        }
        // A machine that has started one of its queues again runs.
        loaded.load();
        monitor.stop(0);
        monitor.start(0);
        daemon.go_on(&loaded.client, 1);
        loaded.finish();
    });
}

#[test]
fn a_memory_table_that_is_answered_leaves_the_memory_at_rest_until_it_is_proved() {
    with_monitor(|scene, mut monitor| {
        let mut daemon = scene.daemon(FIRST_BOOT);
        let mut stays = Loaded::begin(scene, &mut daemon, 1, HUGE);
        let mut goes = Loaded::begin(scene, &mut daemon, 2, 9 * HUGE);
        let tables: [(&str, &[(u64, u64)]); 3] = [
            ("the same", &RANGES),
            ("shrunk, without pages of the channel", &[(0, 3 * HUGE), RANGES[1]]),
            ("grown again", &RANGES),
        ];
        for (what, table) in tables {
            stays.load();
            goes.load();
            monitor.share(table);
            stays.require_untouched(what);
            goes.require_untouched(what);
            daemon.hears_of_suspension(2);
            assert_eq!(daemon.prove(1, &stays.client.memory, HUGE), None);
            assert_eq!(daemon.prove(2, &goes.client.memory, HUGE), None);
        }
        stays.load();
        monitor.unplug_and_plug(&RANGES[2]);
        stays.require_untouched("a region taken out and put back");
        daemon.hears_of_suspension(2);
        assert_eq!(daemon.prove(1, &stays.client.memory, HUGE), None);
        assert_eq!(daemon.prove(2, &goes.client.memory, HUGE), None);
        // Half of a range, and with it the pages of one client.
        stays.load();
        goes.load();
        monitor.share(&[RANGES[0], (RANGES[1].0, HUGE)]);
        stays.require_untouched("shrunk by pages of the channel");
        goes.require_untouched("shrunk by pages of the channel");
        daemon.hears_of_suspension(2);
        assert_eq!(daemon.prove(2, &goes.client.memory, HUGE), Some(Reason::MemoryChanged));
        assert!(goes.client.is_hung_up_on());
        assert_eq!(daemon.prove(1, &stays.client.memory, HUGE), None);
        stays.finish();
    });
}

#[test]
fn a_reset_leaves_the_memory_at_rest() {
    with_monitor(|scene, mut monitor| {
        let mut daemon = scene.daemon(FIRST_BOOT);
        let mut loaded = Loaded::begin(scene, &mut daemon, 1, HUGE);
        // Offered or not, whoever says that it has the feature may ask.
        let further = VhostUserProtocolFeatures::RESET_DEVICE;
        let protocol = monitor.frontend.get_protocol_features().unwrap();
        monitor.frontend.set_protocol_features(protocol | further).unwrap();
        for _ in 0..5 {
            loaded.load();
            monitor.frontend.reset_device().unwrap();
            assert!(scene.machine.stands_still());
            loaded.require_untouched("reset");
            monitor.set_features();
            monitor.start_all();
            daemon.go_on(&loaded.client, 1);
        }
        // The next boot finds nothing of this one.
        loaded.load();
        monitor.stop_all();
        monitor.start_all();
        scene.machine.begin_boot(SECOND_BOOT);
        let mut next = scene.daemon(SECOND_BOOT);
        loaded.require_untouched("the next boot");
        let mut again = Loaded::begin(scene, &mut next, 1, HUGE);
        again.load();
        again.finish();
    });
}

/// A monitor that is about to migrate its machine.
type Migrate = fn(&mut Monitor<'_>) -> bool;

#[test]
fn a_machine_with_a_channel_is_not_migrated() {
    let ways: [(&str, Migrate); 3] = [
        ("what is written is to be noted", |monitor| {
            let features = monitor.frontend.get_features().unwrap();
            assert_eq!(features & LOG_ALL, 0, "not offered");
            monitor.frontend.set_features(features | LOG_ALL).is_err()
        }),
        ("in a log of the monitor's", |monitor| {
            let log = File::open("/dev/null").unwrap();
            let mmap_handle = log.as_raw_fd();
            let region = VhostUserDirtyLogRegion { mmap_size: 4096, mmap_offset: 0, mmap_handle };
            monitor.frontend.set_log_base(0, Some(region)).is_err()
                || monitor.frontend.get_features().is_err()
        }),
        ("the device's state is to be saved", |monitor| {
            let (_ours, theirs) = nix::unistd::pipe().unwrap();
            let (direction, phase) = (VhostTransferStateDirection::SAVE, VhostTransferStatePhase::STOPPED);
            monitor.frontend.set_device_state_fd(direction, phase, theirs).is_err()
        }),
    ];
    for (what, migrate) in ways {
        for claims in [false, true] {
            with_monitor(|scene, mut monitor| {
                let mut daemon = scene.daemon(FIRST_BOOT);
                let mut loaded = Loaded::begin(scene, &mut daemon, 1, HUGE);
                let offered = monitor.frontend.get_protocol_features().unwrap();
                let needed = VhostUserProtocolFeatures::LOG_SHMFD | VhostUserProtocolFeatures::DEVICE_STATE;
                assert!(!offered.intersects(needed), "not offered");
                if claims {
                    monitor.frontend.set_protocol_features(offered | needed).unwrap();
                }
                loaded.load();
                assert!(migrate(&mut monitor), "{what}: not refused");
            });
        }
    }
}

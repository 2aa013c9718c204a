//! A virtual machine, as far as its virtio-fs device and its channel have to know it together.
//!
//! The device hears of the machine's memory, its stops and its boots; the channel writes into that memory. What ties the two:
//! * Before the machine is told that it is stopped, or that its memory may change, every [`Tenant`] has let go: nothing reads or writes the
//!   memory for it any more.
//! * Whoever knows the [`Invitation`] of this boot speaks for the guest's root.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use ringfort_protocol::control::message::{Invitation, SECRET_BYTES};
use ringfort_protocol::version::Version;
use vm_memory::GuestMemoryMmap;

/// The memory of a guest at one moment. Mappings live as long as someone holds this.
pub type Memory = GuestMemoryMmap<()>;

/// Why tenants have to let go of a machine's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LetGo {
    /// It is stopped or reset; it may go on.
    Stopped,
    /// Its memory is laid out anew.
    MemoryChanged,
    /// Nothing speaks for it any more.
    Gone,
}

/// Someone who uses the memory of a machine.
pub trait Tenant: Send + Sync {
    /// Returns when nothing reads or writes the machine's memory for this tenant any more.
    fn let_go(&self, why: LetGo);

    /// The machine runs (again). Not to wait for anything: the machine does.
    fn go_on(&self) {}
}

/// One virtual machine.
pub struct Machine {
    name: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    memory: Option<Arc<Memory>>,
    running: bool,
    stops: u64,
    /// Where its guest reaches the server.
    port: Option<u32>,
    secret: Option<[u8; SECRET_BYTES]>,
    tenants: Vec<Weak<dyn Tenant>>,
}

impl fmt::Debug for Machine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Machine").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Machine {
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), state: Mutex::default() }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its guest may begin a channel through this port.
    pub fn open_port(&self, port: u32) {
        self.state().port = Some(port);
    }

    /// A guest has booted, or mounted anew: who knew the secret before knows none any more.
    pub fn begin_boot(&self, secret: [u8; SECRET_BYTES]) {
        self.state().secret = Some(secret);
    }

    /// What root of the guest is told; none without a channel or a boot.
    pub fn invitation(&self) -> Option<Invitation> {
        let state = self.state();
        Some(Invitation::new(Version::LATEST, state.port?, state.secret?))
    }

    /// Whether this is the secret of the present boot.
    pub fn knows(&self, secret: &[u8; SECRET_BYTES]) -> bool {
        let Some(expected) = self.state().secret else { return false };
        // Every byte is compared, so that the time tells nothing.
        expected.iter().zip(secret).fold(0, |differences, (one, other)| differences | (one ^ other)) == 0
    }

    /// The memory, where the machine runs.
    pub fn memory(&self) -> Option<Arc<Memory>> {
        let state = self.state();
        state.memory.clone().filter(|_| state.running)
    }

    /// Whether the machine is there and stands still: nobody in it can answer.
    pub fn stands_still(&self) -> bool {
        let state = self.state();
        state.memory.is_some() && !state.running
    }

    /// How often it was stopped.
    pub fn stops(&self) -> u64 {
        self.state().stops
    }

    /// From now on `tenant` is asked to let go.
    pub fn add_tenant(&self, tenant: Weak<dyn Tenant>) {
        let mut state = self.state();
        state.tenants.retain(|tenant| tenant.strong_count() > 0);
        state.tenants.push(tenant);
    }

    /// The device's queues run: the machine does.
    pub fn start(&self) {
        // Often called, and seldom news.
        if !std::mem::replace(&mut self.state().running, true) {
            self.tenants().iter().for_each(|tenant| tenant.go_on());
        }
    }

    /// Returns when every tenant has let go. The machine counts as stopped until [`start`](Self::start).
    pub fn stop(&self) {
        {
            let mut state = self.state();
            state.running = false;
            state.stops += 1;
        }
        self.evict(LetGo::Stopped);
    }

    /// The memory is this from now on. Returns when no tenant uses what it was before.
    pub fn replace_memory(&self, memory: Arc<Memory>) {
        self.state().memory = Some(memory);
        self.evict(LetGo::MemoryChanged);
    }

    /// The machine's connection has ended. Returns when every tenant has let go.
    pub fn disconnect(&self) {
        {
            let mut state = self.state();
            (state.memory, state.running, state.secret) = (None, false, None);
        }
        self.evict(LetGo::Gone);
    }

    /// To be told without the lock: they look at the machine meanwhile.
    fn tenants(&self) -> Vec<Arc<dyn Tenant>> {
        self.state().tenants.iter().filter_map(Weak::upgrade).collect()
    }

    fn evict(&self, why: LetGo) {
        self.tenants().iter().for_each(|tenant| tenant.let_go(why));
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestAddress;

    use super::*;

    #[derive(Default)]
    struct Noting(Mutex<Vec<LetGo>>);

    impl Tenant for Noting {
        fn let_go(&self, why: LetGo) {
            self.0.lock().unwrap().push(why);
        }
    }

    fn memory() -> Arc<Memory> {
        Arc::new(Memory::from_ranges(&[(GuestAddress(0), 4096)]).unwrap())
    }

    #[test]
    fn tenants_are_asked_to_let_go_of_whatever_may_change() {
        let machine = Machine::new("vm1");
        let tenant = Arc::new(Noting::default());
        let weak: Weak<dyn Tenant> = Arc::downgrade(&tenant) as _;
        machine.add_tenant(weak);
        machine.replace_memory(memory());
        assert!(machine.memory().is_none() && machine.stands_still(), "not before it runs");
        machine.start();
        assert!(machine.memory().is_some() && !machine.stands_still());
        machine.stop();
        assert!(machine.memory().is_none() && machine.stands_still());
        assert_eq!(machine.stops(), 1);
        machine.disconnect();
        assert!(!machine.stands_still());
        assert_eq!(*tenant.0.lock().unwrap(), [LetGo::MemoryChanged, LetGo::Stopped, LetGo::Gone]);
    }

    #[test]
    fn an_invitation_needs_a_port_and_a_boot_and_ends_with_the_next() {
        let machine = Machine::new("vm1");
        assert!(machine.invitation().is_none() && !machine.knows(&[0; 16]));
        machine.begin_boot([1; 16]);
        assert!(machine.invitation().is_none());
        machine.open_port(7);
        let invitation = machine.invitation().unwrap();
        assert_eq!((invitation.port.get(), invitation.secret), (7, [1; 16]));
        assert!(machine.knows(&[1; 16]) && !machine.knows(&[2; 16]));
        machine.begin_boot([2; 16]);
        assert!(!machine.knows(&[1; 16]) && machine.knows(&[2; 16]));
        machine.disconnect();
        assert!(machine.invitation().is_none() && !machine.knows(&[2; 16]));
    }
}

//! What the tasks of an open volume share: the object, the state, and the signals between them.

use std::cell::{Cell, Ref, RefCell, RefMut};
use std::rc::Rc;
use std::time::Duration;

use ringfort_engine::engine::Engine;
use ringfort_engine::sync::{Mutex, Notify};

use crate::address::VolumeId;
use crate::error::StoreError;
use crate::object::Object;
use crate::state::{SharedState, State};

pub(crate) struct Core {
    pub engine: Rc<dyn Engine>,
    pub object: Object,
    pub volume: VolumeId,
    pub commit_interval: Duration,
    /// Bound of the memory that maps take.
    pub memory_bytes: u64,
    pub total_blocks: u64,
    state: SharedState,
    /// One commit at a time: only the last record can be torn.
    pub commit_turn: Mutex<()>,
    /// One checkpoint at a time.
    pub checkpoint_turn: Mutex<()>,
    /// Somebody wants what is applied to become durable.
    pub commit_wanted: Notify,
    pub checkpoint_wanted: Notify,
    /// A commit or bank flush has ended: durable transaction, log, banks or failure have changed.
    pub progress: Notify,
    /// Background tasks end.
    pub closing: Cell<bool>,
}

impl Core {
    pub fn new(
        engine: Rc<dyn Engine>,
        object: Object,
        volume: VolumeId,
        state: State,
        commit_interval: Duration,
        memory_bytes: u64,
        total_blocks: u64,
    ) -> Self {
        Self {
            engine,
            object,
            volume,
            commit_interval,
            memory_bytes,
            total_blocks,
            state: RefCell::new(state),
            commit_turn: Mutex::new(()),
            checkpoint_turn: Mutex::new(()),
            commit_wanted: Notify::new(),
            checkpoint_wanted: Notify::new(),
            progress: Notify::new(),
            closing: Cell::new(false),
        }
    }

    pub fn state(&self) -> Ref<'_, State> {
        self.state.borrow()
    }

    pub fn state_mut(&self) -> RefMut<'_, State> {
        self.state.borrow_mut()
    }

    /// The volume can promise nothing more: every later change and every waiter gets `error`.
    pub fn fail(&self, error: StoreError) {
        let mut state = self.state_mut();
        if state.failed.is_none() {
            tracing::error!(volume = %self.volume, "the volume stops: {error}");
            state.failed = Some(error);
        }
        drop(state);
        self.progress.notify_all();
    }
}

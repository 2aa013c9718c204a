//! What the tasks of an open volume share: the object, the state, and the signals between them.

use std::cell::{Cell, Ref, RefCell, RefMut};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use ringfort_engine::engine::Engine;
use ringfort_engine::sync::{Event, Mutex, Notify};

use crate::address::VolumeId;
use crate::ahead::ReadAhead;
use crate::cache::BlockCache;
use crate::error::{ErrorKind, StoreError};
use crate::map::Maps;
use crate::object::Object;
use crate::pace::Pace;
use crate::state::{SharedState, State};
use crate::tasks::Tasks;

pub(crate) struct Core {
    pub engine: Rc<dyn Engine>,
    pub object: Object,
    pub volume: VolumeId,
    pub commit_interval: Duration,
    /// Bound of the memory that maps take.
    pub memory_bytes: u64,
    state: SharedState,
    /// One commit at a time: only the last record can be torn.
    pub commit_turn: Mutex<()>,
    /// One checkpoint at a time.
    pub checkpoint_turn: Mutex<()>,
    /// Held while tables of the maps are written and put in force: one edit at a time.
    pub edit_turn: Mutex<()>,
    /// Tables may be too many.
    pub merges_wanted: Notify,
    /// Views may have been removed.
    pub removals_wanted: Notify,
    /// A merge could not read what it needs: none is tried any more.
    pub merges_failed: Cell<bool>,
    /// Somebody wants what is applied to become durable.
    pub commit_wanted: Notify,
    pub checkpoint_wanted: Notify,
    /// The next checkpoint is to be one of the maps: space is short.
    pub maps_wanted: Cell<bool>,
    /// Everything that was sent before is to merge, which it can from this count of checkpoints on.
    pub reclaim_from: Cell<Option<u64>>,
    /// So often has everything merged, or was found not to.
    pub reclaims: Cell<u64>,
    /// A commit or bank flush has ended or a reservation was given back: durable transaction, log, banks, room or failure
    /// have changed.
    pub progress: Rc<Notify>,
    /// Held while segments are being cleaned: one mover.
    pub clean_turn: Mutex<()>,
    /// When and how hard segments are cleaned.
    pub pace: Pace,
    /// Sequential readers.
    pub ahead: ReadAhead,
    pub cache: BlockCache,
    pub tasks: Tasks,
    /// Background tasks end.
    pub closing: Event,
}

impl Core {
    pub fn new(
        engine: Rc<dyn Engine>,
        object: Object,
        volume: VolumeId,
        state: State,
        commit_interval: Duration,
        memory_bytes: u64,
    ) -> Self {
        Self {
            tasks: Tasks::new(Rc::clone(&engine)),
            engine,
            object,
            volume,
            commit_interval,
            memory_bytes,
            progress: Rc::clone(&state.reserved.released),
            maps_wanted: Cell::new(false),
            state: RefCell::new(state),
            commit_turn: Mutex::new(()),
            checkpoint_turn: Mutex::new(()),
            edit_turn: Mutex::new(()),
            merges_wanted: Notify::new(),
            removals_wanted: Notify::new(),
            merges_failed: Cell::new(false),
            reclaim_from: Cell::new(None),
            reclaims: Cell::new(0),
            commit_wanted: Notify::new(),
            checkpoint_wanted: Notify::new(),
            clean_turn: Mutex::new(()),
            pace: Pace::default(),
            ahead: ReadAhead::default(),
            cache: BlockCache::default(),
            closing: Event::new(),
        }
    }

    pub fn maps(&self) -> Rc<Maps> {
        Rc::clone(&self.state.borrow().maps)
    }

    pub fn state(&self) -> Ref<'_, State> {
        self.state.borrow()
    }

    pub fn state_mut(&self) -> RefMut<'_, State> {
        self.state.borrow_mut()
    }

    /// Does something that must not end half way, should the caller go away.
    pub async fn complete<T: 'static>(
        &self,
        operation: &'static str,
        work: impl Future<Output = Result<T, StoreError>> + 'static,
    ) -> Result<T, StoreError> {
        self.tasks.run(work).await.unwrap_or_else(|| {
            let place = format!("volume {}", self.volume);
            Err(StoreError::new(ErrorKind::Invalid, operation, place, "its server is ending"))
        })
    }

    /// Object and state at once, of a volume that no task uses.
    pub fn parts_mut(&mut self) -> (&mut Object, &mut State) {
        (&mut self.object, self.state.get_mut())
    }

    /// The volume is closed: whoever comes late is told so, instead of waiting for tasks that have ended.
    pub fn refuse_changes(&self) {
        let place = format!("volume {}", self.volume);
        let error = StoreError::new(ErrorKind::Invalid, "change", place, "it is closed");
        self.state_mut().failed.get_or_insert(error);
        self.progress.notify_all();
    }

    /// The volume can promise nothing more: every later change and every waiter gets `error`.
    pub fn fail(&self, error: StoreError) {
        let mut state = self.state_mut();
        if state.failed.is_none() {
            tracing::error!(
                volume = %self.volume,
                %error,
                "the volume takes no more changes. What was synced is safe; see to what the error names, then start the \
                 server again"
            );
            state.failed = Some(error);
        }
        drop(state);
        self.progress.notify_all();
    }
}

//! One component: a device, whether it still belongs, and what of it is not flushed.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;

use ringfort_engine::buffer::{Buffer, Slice};
use ringfort_engine::completion::Completion;
use ringfort_engine::device::{Device, DeviceCounters};
use ringfort_engine::error::EngineError;

use crate::address::{ComponentId, ComponentPosition};

/// Which part of a component a write touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Metadata,
    Data,
}

/// What happened to one component since the object was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ComponentCounters {
    /// Requests for reading that the device failed.
    pub read_errors: u64,
    /// Blocks, or metadata extents, that failed their checksum.
    pub damaged_blocks: u64,
    /// Blocks, or metadata extents, written back from other components.
    pub repaired_blocks: u64,
    /// Blocks computed from other components because this one did not give them.
    pub reconstructed_blocks: u64,
}

/// How far completed writes have got, and how far of those a completed flush has.
#[derive(Default)]
struct Progress {
    written: Cell<u64>,
    flushed: Cell<u64>,
}

impl Progress {
    fn is_dirty(&self) -> bool {
        self.written.get() > self.flushed.get()
    }
}

/// Writes that a flush covers: those completed before it was submitted.
#[derive(Clone, Copy, Debug)]
pub(super) struct FlushMark {
    metadata: u64,
    data: u64,
}

pub(super) struct Component {
    pub(super) position: ComponentPosition,
    pub(super) id: ComponentId,
    pub(super) len_bytes: u64,
    /// Empty where the component was never found.
    pub(super) path: PathBuf,
    /// None once the component has left.
    device: RefCell<Option<Rc<dyn Device>>>,
    /// What it had been asked for when it left.
    last_counters: Cell<Option<DeviceCounters>>,
    /// Why it left.
    failure: RefCell<Option<Box<str>>>,
    metadata: Progress,
    data: Progress,
    counters: Cell<ComponentCounters>,
    /// Reads that failed since one succeeded.
    failed_reads: Cell<u32>,
    /// Failed or repaired reads that the log may have heard of.
    log_events: Cell<u64>,
}

impl Component {
    pub(super) fn live(
        position: ComponentPosition,
        id: ComponentId,
        len_bytes: u64,
        path: PathBuf,
        device: Rc<dyn Device>,
    ) -> Self {
        let component = Self::lost(position, id, len_bytes, path, None);
        component.device.replace(Some(device));
        component
    }

    pub(super) fn lost(
        position: ComponentPosition,
        id: ComponentId,
        len_bytes: u64,
        path: PathBuf,
        failure: Option<Box<str>>,
    ) -> Self {
        Self {
            position,
            id,
            len_bytes,
            path,
            device: RefCell::default(),
            last_counters: Cell::default(),
            failure: RefCell::new(failure),
            metadata: Progress::default(),
            data: Progress::default(),
            counters: Cell::default(),
            failed_reads: Cell::new(0),
            log_events: Cell::new(0),
        }
    }

    pub(super) fn device(&self) -> Option<Rc<dyn Device>> {
        self.device.borrow().clone()
    }

    pub(super) fn is_live(&self) -> bool {
        self.device.borrow().is_some()
    }

    /// Submits a read, unless the component has left.
    pub(super) fn read(&self, offset_bytes: u64, len_bytes: usize) -> Option<Completion<Buffer>> {
        self.device().map(|device| device.read(offset_bytes, Buffer::for_overwrite(len_bytes)))
    }

    /// Submits a write, unless the component has left.
    pub(super) fn write(&self, offset_bytes: u64, data: Vec<Slice>) -> Option<Completion<()>> {
        self.device().map(|device| device.write(offset_bytes, data))
    }

    /// Submits a write that is durable when it completes, unless the component has left.
    pub(super) fn write_durably(&self, offset_bytes: u64, data: Vec<Slice>) -> Option<Completion<()>> {
        self.device().map(|device| device.write_durably(offset_bytes, data))
    }

    /// A write has completed and is not durable.
    pub(super) fn note_written(&self, part: Part) {
        let progress = match part {
            Part::Metadata => &self.metadata,
            Part::Data => &self.data,
        };
        progress.written.set(progress.written.get() + 1);
    }

    pub(super) fn is_dirty(&self, part: Part) -> bool {
        match part {
            Part::Metadata => self.metadata.is_dirty(),
            Part::Data => self.data.is_dirty(),
        }
    }

    /// Submits a flush, unless the component has left.
    pub(super) fn flush(&self) -> Option<(FlushMark, Completion<()>)> {
        let mark = FlushMark { metadata: self.metadata.written.get(), data: self.data.written.get() };
        self.device().map(|device| (mark, device.flush()))
    }

    pub(super) fn note_flushed(&self, mark: FlushMark) {
        self.metadata.flushed.set(self.metadata.flushed.get().max(mark.metadata));
        self.data.flushed.set(self.data.flushed.get().max(mark.data));
    }

    /// Takes the component out of use at once. The caller makes that durable before it answers anybody.
    /// False where it had left already.
    pub(super) fn expel(&self, error: &EngineError) -> bool {
        let Some(device) = self.device.take() else { return false };
        self.last_counters.set(Some(device.counters()));
        self.failure.replace(Some(error.to_string().into()));
        true
    }

    pub(super) fn note_read(&self) {
        self.failed_reads.set(0);
    }

    /// Counts a read that failed; returns how many have failed in a row.
    pub(super) fn note_failed_read(&self) -> u32 {
        self.count(|counters| counters.read_errors += 1);
        self.failed_reads.set(self.failed_reads.get().saturating_add(1));
        self.failed_reads.get()
    }

    pub(super) fn failure(&self) -> Option<Box<str>> {
        self.failure.borrow().clone()
    }

    pub(super) fn count(&self, change: impl FnOnce(&mut ComponentCounters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }

    /// Whether one more line about this component's reads belongs into the log: the first few do, then ever fewer,
    /// so that a dying disk does not fill it. The number of events so far, if so.
    pub(super) fn log_turn(&self) -> Option<u64> {
        const ALWAYS: u64 = 8;
        let events = self.log_events.get() + 1;
        self.log_events.set(events);
        (events <= ALWAYS || events.is_power_of_two()).then_some(events)
    }

    pub(super) fn counters(&self) -> ComponentCounters {
        self.counters.get()
    }

    pub(super) fn device_counters(&self) -> Option<DeviceCounters> {
        let live = self.device.borrow().as_ref().map(|device| device.counters());
        live.or(self.last_counters.get())
    }
}

impl std::fmt::Display for Component {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "component {}", self.position)?;
        if !self.path.as_os_str().is_empty() {
            write!(f, " ({})", self.path.display())?;
        }
        Ok(())
    }
}

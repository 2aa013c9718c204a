//! Composite objects: one address space over a tree of components.
//!
//! The address space is a metadata region, mirrored, then a data region, erasure coded (see [`Geometry`] for places).
//! Both bear the loss of as many components as there are parity columns.
//!
//! # Invariants
//! * A component that failed a write or a flush, or was missing when the object was opened for writing, is out of use until it
//!   is replaced. No write or flush that it missed is answered before the labels of every remaining component durably say so.
//! * A failed flush is never tried again.
//! * A component that fails many reads in a row leaves as well, where the others can do without it.
//! * Stripes are written whole; parity is never updated in place.
//! * No data block is returned that fails its checksum.
//! * Where too few components are left, nothing is written any more, labels included.
//!
//! # Callers keep
//! * No range is written while it is being read: reads repair in place. (Space is reused only after the reads of what it
//!   held.)
//! * A future that writes runs to its end: writes and flushes, [`Object::make_good`] and metadata reads, which repair. Dropped
//!   half way it would leave its requests in flight, perhaps those of labels, with nobody who keeps others from the same place.
//! * Durability: a write is visible when it returns, durable after the flush that follows.
//!
//! Modules, lowest first:
//! `galois` · `erasure` · `component` · `membership` · `survey` · `open` · `mirror` · `stripe` · `reconstruct` · `read` · `scrub` · `rebuild` · `growth` · `tree`

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use ringfort_engine::engine::Engine;
use ringfort_engine::sync::Mutex;

use crate::address::VolumeId;
use crate::error::StoreError;
use crate::geometry::Geometry;

mod component;
mod erasure;
mod galois;
mod growth;
mod membership;
mod mirror;
mod open;
mod read;
mod rebuild;
mod reconstruct;
mod scrub;
mod stripe;
mod survey;
#[cfg(test)]
mod tests;
mod tree;

pub use component::ComponentCounters;
pub use erasure::{Code, Decoder};
pub use galois::Kernel;
pub use open::{ComponentSpec, OpenOptions, OpenReport};
pub use read::{Fetched, PartialRead};
pub use reconstruct::ChecksumSource;
pub use scrub::StripeFault;
pub use stripe::StripeWrite;
pub use survey::{Finding, FindingKind};
pub use tree::{ComponentReport, Health, TreeReport};

use component::Component;
use membership::Membership;

/// An open object. Belongs to the thread of its engine; any number of its tasks may use it at once.
pub struct Object {
    engine: Rc<dyn Engine>,
    volume: VolumeId,
    geometry: Geometry,
    code: Code,
    /// By position.
    components: Vec<Component>,
    membership: RefCell<Membership>,
    /// Held while labels are written.
    label_turn: Mutex<()>,
    /// Why writes are refused for good.
    failure: RefCell<Option<StoreError>>,
    writable: bool,
    /// Spreads metadata reads over the mirrors.
    next_mirror: Cell<usize>,
    expelled_count: Cell<u64>,
}

impl Object {
    /// Lets other tasks of the thread run.
    pub async fn give_way(&self) {
        self.engine.yield_now().await;
    }

    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    pub fn volume(&self) -> VolumeId {
        self.volume
    }
}

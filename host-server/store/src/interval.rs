//! References to blocks as intervals of snapshot epochs.
//!
//! Every map entry that names a middle address is a [`Reference`] on a *branch*: the line of versions of a volume or
//! subvolume. A snapshot of the branch at epoch `e` sees it if `birth <= e < death`. A writable clone begins a branch of its
//! own off a snapshot; it inherits what that snapshot sees, and what it displaces of that it hides by an absence.

use crate::address::{LogicalBlock, MiddleAddress, ObjectId};

/// Counts the snapshots of a volume: creating one ends an epoch. One a second would last 136 years.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u32);

impl Epoch {
    /// The death of what is alive.
    pub const NEVER: Self = Self(u32::MAX);
    /// What is alive now is seen from here; no snapshot has this epoch.
    pub const HEAD: Self = Self(u32::MAX - 1);
}

/// A line of versions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BranchId(pub u32);

/// Where a map entry stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    pub branch: BranchId,
    pub object: ObjectId,
    pub block: LogicalBlock,
}

impl Place {
    pub fn new(branch: BranchId, object: ObjectId, block: u64) -> Self {
        Self { branch, object, block: LogicalBlock(block) }
    }
}

/// What a [`Reference`] says about its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Presence {
    /// The branch refers to it.
    Present = 1,
    /// The branch would inherit one reference to it and no longer does.
    Hidden = 2,
}

/// One reference to a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reference {
    pub place: Place,
    pub middle: MiddleAddress,
    /// First epoch that sees it.
    pub birth: Epoch,
    /// First epoch that does not; [`Epoch::NEVER`] while it is alive.
    pub death: Epoch,
    pub presence: Presence,
    /// What the block takes on the device: from 1 to [`Reference::STORED_BYTES_MAX`].
    pub stored_bytes: u16,
}

impl Reference {
    /// No block takes more than its length.
    pub const STORED_BYTES_MAX: u16 = 4096;
}

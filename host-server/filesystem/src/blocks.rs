//! Blocks of a file that go, or move to another place in it: in bounded steps, so that a big file neither fills the log with one
//! transaction nor stops everybody else, and finished by the next opening where a crash comes between.
//!
//! # Trims
//! A truncation that frees more than one transaction can puts the inode on the orphan list with its first step, and
//! [`Inode::trim_pending`] says so in memory. Blocks beyond the end are nobody's; they go before the file grows.
//!
//! # Shifts
//! Collapsing and inserting ranges move every block behind a place. A first transaction notes what is to be done
//! ([`format::Shift`], beside the orphans); each step moves so many runs, mappings only, and notes how far the work has come; the
//! last one takes the note away. Between the first and the last the file is in pieces, so nobody looks at them: the
//! work holds the inode's lock exclusively, [`Inode::shift`] tells whoever comes next after a failure, and opening
//! finishes it after a crash. What survives is the file before the first transaction, or the file after the last.

use std::rc::Rc;

use ringfort_store::address::LogicalBlock;
use ringfort_store::format::filesystem as format;
use ringfort_store::format::filesystem::{Shift, ShiftDirection};
use ringfort_store::volume::{Key, Volume, shift_entries};

use crate::errno::Errno;
use crate::failure::Result;
use crate::inode::{BLOCK_BYTES, Inode};
use crate::lock::LockGuard;
use crate::mount::{Mount, object, shift_key};

/// The most mapped blocks that one transaction frees, 4 MiB: in the worst case each is an entry of its own, and the room for a
/// change of so many must be had even where the log is as short as a volume may have it.
const FREED_BLOCKS_MAX: u64 = 1024;

/// A mapped part of a file that one transaction can free.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Freeable {
    pub start: u64,
    pub len_blocks: u64,
    pub mapped_blocks: u64,
}

/// The most extents that one step of a shift moves: the room for it must be had on a full volume.
const SHIFTED_EXTENTS_MAX: u64 = 256;

/// A range that one step of a shift can move.
#[derive(Clone, Copy, Debug)]
struct Shiftable {
    start: u64,
    end: u64,
    extents: u64,
}

impl<V: Volume> Mount<V> {
    /// The first mapped part of blocks `from..to` that one transaction can free. The caller holds the lock exclusively.
    pub async fn next_freeable(&self, inode: &Rc<Inode>, from: u64, to: u64) -> Result<Option<Freeable>> {
        let mut found: Option<Freeable> = None;
        let mut from = from;
        while from < to {
            let Some(extent) = self.volume.next_extent(object(inode.number), LogicalBlock(from)).await?
            else {
                break;
            };
            let start = extent.start.0;
            if start >= to {
                break;
            }
            let room = FREED_BLOCKS_MAX - found.map_or(0, |found| found.mapped_blocks);
            let len_blocks = extent.len_blocks.min(to - start).min(room);
            let end = start + len_blocks;
            let freeable = found.get_or_insert(Freeable { start, len_blocks: 0, mapped_blocks: 0 });
            freeable.len_blocks = end - freeable.start;
            freeable.mapped_blocks += len_blocks;
            if freeable.mapped_blocks == FREED_BLOCKS_MAX {
                break;
            }
            from = end;
        }
        Ok(found)
    }

    /// Frees blocks `from..to`, a transaction at a time. The caller holds the lock exclusively.
    pub async fn free_blocks(&self, inode: &Rc<Inode>, from: u64, to: u64) -> Result<()> {
        while let Some(freeable) = self.next_freeable(inode, from, to).await? {
            let mut batch = self.begin_freeing(0, freeable.mapped_blocks + 1).await?;
            batch.transaction.unmap(object(inode.number), LogicalBlock(freeable.start), freeable.len_blocks);
            batch.update(inode, |metadata| {
                metadata.allocated_blocks = metadata.allocated_blocks.saturating_sub(freeable.mapped_blocks);
            })?;
            self.commit(batch)?;
            mapping_changed(inode);
            // A big file takes many transactions; other guests have their turn between them.
            self.engine.yield_now().await;
        }
        Ok(())
    }

    /// Frees what a truncation left beyond the end. The caller holds the lock exclusively.
    pub async fn finish_trim(&self, inode: &Rc<Inode>) -> Result<()> {
        if !inode.trim_pending.get() {
            return Ok(());
        }
        let end_block = inode.metadata().end_block();
        self.free_blocks(inode, end_block, u64::MAX).await?;
        let mut batch = self.begin_freeing(0, 1).await?;
        // Without links it stays on the list until it is reclaimed.
        if inode.metadata().link_count > 0 {
            batch.transaction.delete(format::ORPHANS, Key::new(inode.number, 0));
        }
        self.commit(batch)?;
        inode.trim_pending.set(false);
        Ok(())
    }

    /// Finishes what an earlier operation on the file could not. The caller holds the lock exclusively.
    pub async fn settle(&self, inode: &Rc<Inode>) -> Result<()> {
        self.finish_trim(inode).await?;
        self.finish_shift(inode).await
    }

    /// The lock, shared, of a file that is not in pieces.
    pub async fn lock_whole(&self, inode: &Rc<Inode>) -> Result<LockGuard> {
        loop {
            let lock = self.locks.shared(inode.number).await;
            if inode.shift.get().is_none() {
                return Ok(lock);
            }
            drop(lock);
            self.make_whole(inode).await?;
        }
    }

    /// Finishes a shift for somebody who has no lock.
    pub async fn make_whole(&self, inode: &Rc<Inode>) -> Result<()> {
        let _lock = self.locks.exclusive(inode.number).await;
        self.finish_shift(inode).await
    }

    /// Moves what is noted to be moved. The caller holds the lock exclusively.
    pub async fn finish_shift(&self, inode: &Rc<Inode>) -> Result<()> {
        let Some(shift) = inode.shift.get() else { return Ok(()) };
        match shift.direction {
            ShiftDirection::Down => self.shift_down(inode, shift).await?,
            ShiftDirection::Up => self.shift_up(inode, shift).await?,
        }
        let mut batch = self.begin_freeing(0, 2).await?;
        batch.transaction.delete(format::ORPHANS, shift_key(inode.number));
        if shift.direction == ShiftDirection::Down {
            batch.update(inode, |metadata| metadata.size_bytes -= shift.len_blocks * BLOCK_BYTES)?;
        }
        self.commit(batch)?;
        inode.shift.set(None);
        Ok(())
    }

    /// Lowest first: each lands where the one before it has left.
    async fn shift_down(&self, inode: &Rc<Inode>, mut shift: Shift) -> Result<()> {
        if shift.next_block == shift.at_block + shift.len_blocks {
            // Nothing has moved into the range yet.
            self.free_blocks(inode, shift.at_block, shift.next_block).await?;
        }
        while let Some(part) = self.next_shiftable(inode, shift.next_block, u64::MAX).await? {
            shift.next_block = part.end;
            self.shift_part(inode, part, part.start - shift.len_blocks, shift).await?;
        }
        Ok(())
    }

    /// Highest first, for the same reason; extents are found from the lowest on, so all steps are laid out before the first is taken.
    async fn shift_up(&self, inode: &Rc<Inode>, mut shift: Shift) -> Result<()> {
        let mut parts = Vec::new();
        let mut from = shift.at_block;
        while let Some(part) = self.next_shiftable(inode, from, shift.next_block).await? {
            from = part.end;
            parts.push(part);
            self.engine.yield_now().await;
        }
        for part in parts.into_iter().rev() {
            shift.next_block = part.start;
            self.shift_part(inode, part, part.start + shift.len_blocks, shift).await?;
        }
        Ok(())
    }

    /// Moves one part; `progress` is what is left to be done then.
    async fn shift_part(
        &self,
        inode: &Rc<Inode>,
        part: Shiftable,
        to_block: u64,
        progress: Shift,
    ) -> Result<()> {
        let mut batch = self.begin_freeing(0, shift_entries(part.extents) + 1).await?;
        let (from, to) = (LogicalBlock(part.start), LogicalBlock(to_block));
        let len_blocks = part.end - part.start;
        self.volume.shift(&mut batch.transaction, object(inode.number), from, to, len_blocks).await?;
        batch.transaction.put(format::ORPHANS, shift_key(inode.number), progress.encode());
        self.commit(batch)?;
        inode.shift.set(Some(progress));
        mapping_changed(inode);
        self.engine.yield_now().await;
        Ok(())
    }

    /// The first mapped part of blocks `from..to` that one step can move.
    async fn next_shiftable(&self, inode: &Rc<Inode>, from: u64, to: u64) -> Result<Option<Shiftable>> {
        let mut found: Option<Shiftable> = None;
        let mut from = from;
        while from < to {
            let Some(extent) = self.volume.next_extent(object(inode.number), LogicalBlock(from)).await?
            else {
                break;
            };
            let start = extent.start.0;
            if start >= to {
                break;
            }
            let part = found.get_or_insert(Shiftable { start, end: start, extents: 0 });
            part.end = (start + extent.len_blocks).min(to);
            part.extents += 1;
            if part.extents == SHIFTED_EXTENTS_MAX {
                break;
            }
            from = part.end;
        }
        Ok(found)
    }
}

/// To be called after every transaction that maps or unmaps blocks, before anything suspends.
pub(crate) fn mapping_changed(inode: &Inode) {
    inode.mapping_version.set(inode.mapping_version.get().wrapping_add(1));
}

/// `ESTALE` where the inode was reclaimed while the caller waited for its lock.
pub(crate) fn require_present(inode: &Inode) -> Result<()> {
    if inode.is_gone() { Err(Errno::ESTALE.into()) } else { Ok(()) }
}

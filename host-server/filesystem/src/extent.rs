//! File data: reading, writing, and setting the size.
//!
//! # Invariants
//! * Bytes between the end of a file and the end of its last block are zero, and no block wholly beyond the end is mapped: a file
//!   grows by a change of its size alone. [`crate::blocks`] says how that holds where freeing is interrupted.
//! * `allocated_blocks` of the inode counts its mapped blocks.
//!
//! # Locks
//! Reads and writes of whole blocks share the inode's lock: two such writes end up in the order of their transactions, and each
//! is atomic. What reads before it writes (parts of blocks, appends), and what takes blocks away, is exclusive.

use std::rc::Rc;

use ringfort_engine::buffer::Slice;
use ringfort_store::address::LogicalBlock;
use ringfort_store::format::filesystem as format;
use ringfort_store::volume::{Key, ReadPiece, Volume};

use crate::blocks::{mapping_changed, require_present};
use crate::errno::Errno;
use crate::failure::Result;
use crate::inode::{BLOCK_BYTES, FILE_BYTES_MAX, Inode, Metadata};
use crate::lock::LockGuard;
use crate::mount::{Mount, object};
use crate::operation::{DataPiece, Payload};
use crate::payload::assemble;
use crate::permission::{Clears, contents_changed};

impl<V: Volume> Mount<V> {
    /// Bytes from `offset_bytes` on, short at the end of the file.
    pub async fn read(&self, inode: &Rc<Inode>, offset_bytes: u64, len_bytes: u32) -> Result<Vec<DataPiece>> {
        let _lock = self.lock_whole(inode).await?;
        require_present(inode)?;
        let size_bytes = inode.metadata().size_bytes;
        let end_bytes = offset_bytes.saturating_add(u64::from(len_bytes)).min(size_bytes);
        if offset_bytes >= end_bytes {
            return Ok(Vec::new());
        }
        let first_block = offset_bytes / BLOCK_BYTES;
        let len_blocks = end_bytes.div_ceil(BLOCK_BYTES) - first_block;
        let pieces = self.volume.read(object(inode.number), LogicalBlock(first_block), len_blocks).await?;
        Ok(cut(pieces, (offset_bytes % BLOCK_BYTES) as usize, (end_bytes - offset_bytes) as usize))
    }

    /// Writes at `offset_bytes`, or at the end with `append`. Returns the length written: less at the limit of a file.
    pub async fn write(
        &self,
        inode: &Rc<Inode>,
        offset_bytes: u64,
        payload: &Payload,
        append: bool,
        clears: Clears,
    ) -> Result<u32> {
        let len_bytes = payload.len_bytes() as u64;
        if len_bytes == 0 {
            return Ok(0);
        }
        let whole_blocks =
            offset_bytes.is_multiple_of(BLOCK_BYTES) && len_bytes.is_multiple_of(BLOCK_BYTES) && !append;
        let takes_capabilities = clears != Clears::Nothing && inode.may_have_capability();
        let clear_set_id = clears == Clears::SetIdAndCapability;
        let mut shared = whole_blocks && !takes_capabilities;
        let mut lock = self.lock(inode, shared).await;
        if shared && inode.is_unsettled() {
            drop(lock);
            shared = false;
            lock = self.lock(inode, shared).await;
        }
        require_present(inode)?;
        let offset_bytes = if append { inode.metadata().size_bytes } else { offset_bytes };
        // As in Linux: what begins below the limit is cut short there.
        let room_bytes = FILE_BYTES_MAX.saturating_sub(offset_bytes);
        if room_bytes == 0 {
            return Err(Errno::EFBIG.into());
        }
        if !shared {
            self.settle(inode).await?;
        }
        let capability = if takes_capabilities { self.find_capability(inode).await? } else { None };
        if len_bytes > room_bytes {
            let payload = payload.head(room_bytes as usize);
            self.put(inode, offset_bytes, &payload, clear_set_id, capability).await?;
        } else {
            self.put(inode, offset_bytes, payload, clear_set_id, capability).await?;
        }
        drop(lock);
        Ok(len_bytes.min(room_bytes) as u32)
    }

    /// Writes what is not empty and ends below the limit; `capability` is where the attribute lies that goes as well. The caller holds
    /// the lock, exclusively if only parts of blocks are written or an attribute goes, and nothing is left to settle.
    pub async fn put(
        &self,
        inode: &Rc<Inode>,
        offset_bytes: u64,
        payload: &Payload,
        clear_set_id: bool,
        capability: Option<u64>,
    ) -> Result<()> {
        let end_bytes = offset_bytes + payload.len_bytes() as u64;
        let first_block = offset_bytes / BLOCK_BYTES;
        let last_block = (end_bytes - 1) / BLOCK_BYTES;
        let len_blocks = last_block - first_block + 1;
        let first = self.old_block(inode, first_block, !offset_bytes.is_multiple_of(BLOCK_BYTES)).await?;
        let last_is_partial = !end_bytes.is_multiple_of(BLOCK_BYTES);
        let last = match &first {
            Some(first) if first_block == last_block => Some(first.clone()),
            _ => self.old_block(inode, last_block, last_is_partial).await?,
        };
        let blocks = assemble(offset_bytes, payload, first.as_deref(), last.as_deref());

        let mut batch = self.begin(len_blocks, 2).await?;
        let staged = self.volume.stage(&mut batch.transaction, blocks).await?;
        let mapped_before = self.mapped_blocks(inode, first_block, len_blocks).await?;
        // Nothing suspends from here on.
        batch.transaction.write(object(inode.number), LogicalBlock(first_block), staged);
        let now = self.now();
        batch.update(inode, |metadata| {
            metadata.size_bytes = metadata.size_bytes.max(end_bytes);
            metadata.allocated_blocks =
                (metadata.allocated_blocks + len_blocks).saturating_sub(mapped_before);
            contents_changed(metadata, now, clear_set_id);
        })?;
        if let Some(slot) = capability {
            batch.delete_xattr(inode, slot)?;
        }
        self.commit(batch)?;
        mapping_changed(inode);
        Ok(())
    }

    async fn lock(&self, inode: &Inode, shared: bool) -> LockGuard {
        if shared { self.locks.shared(inode.number).await } else { self.locks.exclusive(inode.number).await }
    }

    /// Contents of a block of which a part stays; `None` where it reads as zeros or is not `wanted`.
    async fn old_block(&self, inode: &Rc<Inode>, block: u64, wanted: bool) -> Result<Option<Slice>> {
        if !wanted || block >= inode.metadata().end_block() {
            return Ok(None);
        }
        let pieces = self.volume.read(object(inode.number), LogicalBlock(block), 1).await?;
        Ok(pieces.into_iter().find_map(|piece| match piece {
            ReadPiece::Data(data) => Some(data),
            ReadPiece::Hole { .. } => None,
        }))
    }

    /// How many of these blocks are mapped; true at the moment it returns.
    async fn mapped_blocks(&self, inode: &Rc<Inode>, start: u64, len_blocks: u64) -> Result<u64> {
        loop {
            let version = inode.mapping_version.get();
            let (mut mapped, mut from, end) = (0, start, start + len_blocks);
            while from < end {
                let Some(extent) = self.volume.next_extent(object(inode.number), LogicalBlock(from)).await?
                else {
                    break;
                };
                let extent_end = (extent.start.0 + extent.len_blocks).min(end);
                mapped += extent_end.saturating_sub(extent.start.0);
                from = extent_end.max(extent.start.0);
            }
            // Writers of whole blocks run side by side: one that got in between may have changed the answer.
            if inode.mapping_version.get() == version {
                return Ok(mapped);
            }
        }
    }

    /// Sets the size and lets `also` change more, in one transaction. `capability` is where the attribute lies that goes as
    /// well. The caller holds the lock exclusively.
    pub async fn resize(
        &self,
        inode: &Rc<Inode>,
        size_bytes: u64,
        capability: Option<u64>,
        also: impl FnOnce(&mut Metadata),
    ) -> Result<()> {
        require_present(inode)?;
        if size_bytes > FILE_BYTES_MAX {
            return Err(Errno::EFBIG.into());
        }
        self.settle(inode).await?;
        let old_bytes = inode.metadata().size_bytes;
        if size_bytes >= old_bytes {
            let mut batch = self.begin(0, 2).await?;
            batch.update(inode, |metadata| {
                metadata.size_bytes = size_bytes;
                also(metadata);
            })?;
            if let Some(slot) = capability {
                batch.delete_xattr(inode, slot)?;
            }
            return self.commit(batch);
        }

        let kept_bytes = (size_bytes % BLOCK_BYTES) as usize;
        let tail = self.old_block(inode, size_bytes / BLOCK_BYTES, kept_bytes != 0).await?;
        let tail = tail.map(|old| Slice::copy_of(&old[..kept_bytes]));
        let end_block = size_bytes.div_ceil(BLOCK_BYTES);
        let first = self.next_freeable(inode, end_block, u64::MAX).await?;
        let more = match &first {
            Some(first) => {
                let after = LogicalBlock(first.start + first.len_blocks);
                self.volume.next_extent(object(inode.number), after).await?.is_some()
            }
            None => false,
        };
        let mapped_blocks = first.map_or(0, |first| first.mapped_blocks);
        let mut batch = self.begin_freeing(u64::from(tail.is_some()), mapped_blocks + 3).await?;
        let tail = match tail {
            Some(tail) => Some(self.volume.stage(&mut batch.transaction, vec![tail]).await?),
            None => None,
        };
        if let Some(tail) = tail {
            batch.transaction.write(object(inode.number), LogicalBlock(size_bytes / BLOCK_BYTES), tail);
        }
        if let Some(first) = first {
            batch.transaction.unmap(object(inode.number), LogicalBlock(first.start), first.len_blocks);
        }
        if more {
            batch.transaction.put(format::ORPHANS, Key::new(inode.number, 0), format::encode_orphan());
        }
        batch.update(inode, |metadata| {
            metadata.size_bytes = size_bytes;
            metadata.allocated_blocks = metadata.allocated_blocks.saturating_sub(mapped_blocks);
            also(metadata);
        })?;
        if let Some(slot) = capability {
            batch.delete_xattr(inode, slot)?;
        }
        self.commit(batch)?;
        mapping_changed(inode);
        if more {
            inode.trim_pending.set(true);
            self.finish_trim(inode).await?;
        }
        Ok(())
    }
}

/// Takes `skip_bytes` off the front of whole blocks and keeps `len_bytes`.
pub(crate) fn cut(pieces: Vec<ReadPiece>, mut skip_bytes: usize, mut len_bytes: usize) -> Vec<DataPiece> {
    let mut data = Vec::new();
    for piece in pieces {
        let piece_bytes = match &piece {
            ReadPiece::Hole { len_blocks } => (*len_blocks * BLOCK_BYTES) as usize,
            ReadPiece::Data(slice) => slice.len(),
        };
        let start = skip_bytes.min(piece_bytes);
        let end = (start + len_bytes).min(piece_bytes);
        skip_bytes -= start;
        len_bytes -= end - start;
        if start == end {
            continue;
        }
        data.push(match piece {
            ReadPiece::Hole { .. } => DataPiece::Zeros { len_bytes: end - start },
            ReadPiece::Data(slice) => DataPiece::Bytes(slice.slice(start..end)),
        });
    }
    data
}

//! `fallocate(2)` and the search for holes: the check for room that stands for filling them, making them, taking ranges out and putting
//! holes in between.

use std::rc::Rc;

use ringfort_engine::buffer::Slice;
use ringfort_store::address::LogicalBlock;
use ringfort_store::format::filesystem as format;
use ringfort_store::format::filesystem::{Shift, ShiftDirection};
use ringfort_store::volume::{ReadPiece, Volume};

use crate::blocks::{mapping_changed, require_present};
use crate::errno::Errno;
use crate::failure::Result;
use crate::inode::{BLOCK_BYTES, FILE_BYTES_MAX, Inode};
use crate::mount::{MOMENT, Mount, object, shift_key};
use crate::operation::{AllocateMode, Whence};
use crate::permission::{contents_changed, without_set_id};

impl<V: Volume> Mount<V> {
    /// `fallocate(2)`. A log-structured volume writes elsewhere each time, so space for later writes cannot be set aside here:
    /// `Allocate` checks that there is room now, and grows the file.
    pub async fn allocate(
        &self,
        inode: &Rc<Inode>,
        offset_bytes: u64,
        len_bytes: u64,
        mode: AllocateMode,
        clear_set_id: bool,
    ) -> Result<()> {
        if len_bytes == 0 || offset_bytes > i64::MAX as u64 || len_bytes > i64::MAX as u64 {
            return Err(Errno::EINVAL.into());
        }
        let end_bytes = offset_bytes.checked_add(len_bytes).filter(|&end| end <= FILE_BYTES_MAX);
        let end_bytes = end_bytes.ok_or(Errno::EFBIG)?;
        let _lock = self.locks.exclusive(inode.number).await;
        require_present(inode)?;
        self.settle(inode).await?;
        let keeps_size = match mode {
            AllocateMode::Allocate { keep_size } => {
                let wanted = len_bytes.div_ceil(BLOCK_BYTES);
                if wanted > self.volume.space().available_blocks {
                    return Err(Errno::ENOSPC.into());
                }
                keep_size
            }
            AllocateMode::PunchHole => {
                self.zero(inode, offset_bytes, end_bytes).await?;
                true
            }
            AllocateMode::CollapseRange => {
                return self.collapse(inode, offset_bytes, len_bytes, clear_set_id).await;
            }
            AllocateMode::InsertRange => {
                return self.insert(inode, offset_bytes, len_bytes, clear_set_id).await;
            }
            AllocateMode::ZeroRange { keep_size } => {
                self.zero(inode, offset_bytes, end_bytes).await?;
                keep_size
            }
        };
        let size_bytes = inode.metadata().size_bytes;
        let grown_bytes = if keeps_size { size_bytes } else { size_bytes.max(end_bytes) };
        let changes_data = grown_bytes != size_bytes || !matches!(mode, AllocateMode::Allocate { .. });
        let capability = self.find_capability(inode).await?;
        let now = self.now();
        self.resize(inode, grown_bytes, capability, |metadata| {
            metadata.changed = now;
            if clear_set_id {
                metadata.permissions = without_set_id(metadata.kind, metadata.permissions);
            }
            if changes_data {
                metadata.modified = now;
            }
        })
        .await
    }

    /// Takes a range out of a file. The caller holds the lock exclusively, of a settled inode.
    async fn collapse(
        &self,
        inode: &Rc<Inode>,
        offset_bytes: u64,
        len_bytes: u64,
        clear_set_id: bool,
    ) -> Result<()> {
        require_whole_blocks(offset_bytes, len_bytes)?;
        let size_bytes = inode.metadata().size_bytes;
        // What reaches the end is a truncation's to do.
        if offset_bytes + len_bytes >= size_bytes {
            return Err(Errno::EINVAL.into());
        }
        let (at_block, len_blocks) = (offset_bytes / BLOCK_BYTES, len_bytes / BLOCK_BYTES);
        let next_block = at_block + len_blocks;
        let shift = Shift { direction: ShiftDirection::Down, at_block, len_blocks, next_block };
        // The size falls with the last step.
        self.start_shift(inode, shift, size_bytes, clear_set_id).await
    }

    /// Puts a range of holes into a file. The caller holds the lock exclusively, of a settled inode.
    async fn insert(
        &self,
        inode: &Rc<Inode>,
        offset_bytes: u64,
        len_bytes: u64,
        clear_set_id: bool,
    ) -> Result<()> {
        require_whole_blocks(offset_bytes, len_bytes)?;
        let (size_bytes, next_block) = {
            let metadata = inode.metadata();
            (metadata.size_bytes, metadata.end_block())
        };
        if len_bytes > FILE_BYTES_MAX.saturating_sub(size_bytes) {
            return Err(Errno::EFBIG.into());
        }
        if offset_bytes >= size_bytes {
            return Err(Errno::EINVAL.into());
        }
        let (at_block, len_blocks) = (offset_bytes / BLOCK_BYTES, len_bytes / BLOCK_BYTES);
        let shift = Shift { direction: ShiftDirection::Up, at_block, len_blocks, next_block };
        self.start_shift(inode, shift, size_bytes + len_bytes, clear_set_id).await
    }

    /// Notes a shift, with everything that changes of the inode but its size at the end, and carries it out. Should that fail on the way,
    /// whoever uses the file next finishes it.
    async fn start_shift(
        &self,
        inode: &Rc<Inode>,
        shift: Shift,
        size_bytes: u64,
        clear_set_id: bool,
    ) -> Result<()> {
        let capability = self.find_capability(inode).await?;
        let _moment = self.moments.shared(MOMENT).await;
        let mut batch = match shift.direction {
            ShiftDirection::Down => self.begin_freeing(0, 3).await?,
            ShiftDirection::Up => self.begin(0, 3).await?,
        };
        batch.transaction.put(format::ORPHANS, shift_key(inode.number), shift.encode());
        let now = self.now();
        batch.update(inode, |metadata| {
            metadata.size_bytes = size_bytes;
            contents_changed(metadata, now, clear_set_id);
        })?;
        if let Some(slot) = capability {
            batch.delete_xattr(inode, slot)?;
        }
        self.commit(batch)?;
        inode.shift.set(Some(shift));
        self.finish_shift(inode).await
    }

    /// Lets a range read as zeros; after a crash, a part of it may. The caller holds the lock exclusively.
    pub async fn zero(&self, inode: &Rc<Inode>, from_bytes: u64, to_bytes: u64) -> Result<()> {
        let to_bytes = to_bytes.min(inode.metadata().end_block() * BLOCK_BYTES);
        if from_bytes >= to_bytes {
            return Ok(());
        }
        let whole_from = from_bytes.div_ceil(BLOCK_BYTES);
        let whole_to = to_bytes / BLOCK_BYTES;
        if whole_from > whole_to {
            // Inside one block.
            return self.zero_part(inode, from_bytes, to_bytes).await;
        }
        if whole_from * BLOCK_BYTES > from_bytes {
            self.zero_part(inode, from_bytes, whole_from * BLOCK_BYTES).await?;
        }
        if to_bytes > whole_to * BLOCK_BYTES {
            self.zero_part(inode, whole_to * BLOCK_BYTES, to_bytes).await?;
        }
        self.free_blocks(inode, whole_from, whole_to).await
    }

    /// Zeroes a part of one block, if it is mapped.
    async fn zero_part(&self, inode: &Rc<Inode>, from_bytes: u64, to_bytes: u64) -> Result<()> {
        let block = LogicalBlock(from_bytes / BLOCK_BYTES);
        let pieces = self.volume.read(object(inode.number), block, 1).await?;
        let Some(ReadPiece::Data(old)) = pieces.first() else { return Ok(()) };
        let mut bytes = old.to_vec();
        let start = (from_bytes % BLOCK_BYTES) as usize;
        bytes[start..start + (to_bytes - from_bytes) as usize].fill(0);
        let mut batch = self.begin(1, 0).await?;
        let staged = self.volume.stage(&mut batch.transaction, vec![Slice::copy_of(&bytes)]).await?;
        batch.transaction.write(object(inode.number), block, staged);
        self.commit(batch)?;
        mapping_changed(inode);
        Ok(())
    }

    /// `lseek(2)` with `SEEK_DATA` or `SEEK_HOLE`.
    pub async fn seek(&self, inode: &Rc<Inode>, offset_bytes: u64, whence: Whence) -> Result<u64> {
        let _lock = self.lock_whole(inode).await?;
        require_present(inode)?;
        let size_bytes = inode.metadata().size_bytes;
        if offset_bytes >= size_bytes {
            return Err(Errno::ENXIO.into());
        }
        let mut block = offset_bytes / BLOCK_BYTES;
        loop {
            let extent = self.volume.next_extent(object(inode.number), LogicalBlock(block)).await?;
            match (whence, extent) {
                (Whence::Data, None) => return Err(Errno::ENXIO.into()),
                (Whence::Data, Some(extent)) => {
                    let found = (extent.start.0 * BLOCK_BYTES).max(offset_bytes);
                    return if found < size_bytes { Ok(found) } else { Err(Errno::ENXIO.into()) };
                }
                // Extents may touch: only a gap is a hole.
                (Whence::Hole, Some(extent)) if extent.start.0 == block => block += extent.len_blocks,
                (Whence::Hole, _) => return Ok((block * BLOCK_BYTES).clamp(offset_bytes, size_bytes)),
            }
        }
    }
}

/// Ranges go and come in whole blocks only.
fn require_whole_blocks(offset_bytes: u64, len_bytes: u64) -> Result<()> {
    let whole = offset_bytes.is_multiple_of(BLOCK_BYTES) && len_bytes.is_multiple_of(BLOCK_BYTES);
    if whole { Ok(()) } else { Err(Errno::EINVAL.into()) }
}

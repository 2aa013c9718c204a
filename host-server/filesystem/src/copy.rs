//! Copies between files without a way through the guest: `copy_file_range(2)`.

use std::rc::Rc;

use ringfort_engine::buffer::Slice;
use ringfort_store::address::LogicalBlock;
use ringfort_store::volume::Volume;

use crate::blocks::require_present;
use crate::errno::Errno;
use crate::extent::cut;
use crate::failure::Result;
use crate::inode::{BLOCK_BYTES, FILE_BYTES_MAX, Inode};
use crate::lock::LockGuard;
use crate::mount::{Mount, object};
use crate::operation::{DataPiece, Payload};
use crate::permission::contents_changed;

/// Data that one request copies: its locks must not be held for long.
const DATA_BYTES_MAX: u64 = 8 << 20;
/// Data and holes that one request gets over.
const SPAN_BYTES_MAX: u64 = 1 << 30;
/// Data that one transaction copies.
const PIECE_BYTES_MAX: u64 = 1 << 20;

/// A place in a file.
#[derive(Clone, Copy)]
pub(crate) struct At<'a> {
    pub inode: &'a Rc<Inode>,
    pub offset_bytes: u64,
}

impl<V: Volume> Mount<V> {
    /// Copies up to `len_bytes`, holes as holes, and says how many: fewer at the end of the source, at the limit of a file, and where
    /// that is enough for one request. After a crash a part of it may be there.
    pub async fn copy_range(
        &self,
        from: At<'_>,
        to: At<'_>,
        len_bytes: u64,
        clear_set_id: bool,
    ) -> Result<u64> {
        let _locks = self.lock_for_copy(from.inode, to.inode).await?;
        require_present(from.inode)?;
        require_present(to.inode)?;
        self.settle(to.inode).await?;
        let left_bytes = from.inode.metadata().size_bytes.saturating_sub(from.offset_bytes);
        let len_bytes = len_bytes.min(left_bytes);
        let apart_bytes = from.offset_bytes.abs_diff(to.offset_bytes);
        if Rc::ptr_eq(from.inode, to.inode) && apart_bytes < len_bytes {
            return Err(Errno::EINVAL.into());
        }
        let len_bytes = len_bytes.min(SPAN_BYTES_MAX);
        if len_bytes == 0 {
            return Ok(0);
        }
        let len_bytes = len_bytes.min(FILE_BYTES_MAX.saturating_sub(to.offset_bytes));
        if len_bytes == 0 {
            return Err(Errno::EFBIG.into());
        }
        let capability = self.find_capability(to.inode).await?;
        let copied_bytes = self.copy_pieces(from, to, len_bytes).await?;
        let size_bytes = to.inode.metadata().size_bytes.max(to.offset_bytes + copied_bytes);
        let now = self.now();
        self.resize(to.inode, size_bytes, capability, |metadata| {
            contents_changed(metadata, now, clear_set_id);
        })
        .await?;
        Ok(copied_bytes)
    }

    /// Both locks, the lower number first, with the source whole.
    async fn lock_for_copy(&self, from: &Rc<Inode>, to: &Rc<Inode>) -> Result<Vec<LockGuard>> {
        loop {
            let mut locks = Vec::new();
            if from.number < to.number {
                locks.push(self.locks.shared(from.number).await);
            }
            locks.push(self.locks.exclusive(to.number).await);
            if from.number > to.number {
                locks.push(self.locks.shared(from.number).await);
            }
            if from.number == to.number || from.shift.get().is_none() {
                return Ok(locks);
            }
            drop(locks);
            self.make_whole(from).await?;
        }
    }

    async fn copy_pieces(&self, from: At<'_>, to: At<'_>, len_bytes: u64) -> Result<u64> {
        let (mut copied_bytes, mut data_bytes) = (0, 0);
        while copied_bytes < len_bytes && data_bytes < DATA_BYTES_MAX {
            let source = from.offset_bytes + copied_bytes;
            let target = to.offset_bytes + copied_bytes;
            let left_bytes = len_bytes - copied_bytes;
            let block = LogicalBlock(source / BLOCK_BYTES);
            let extent = self.volume.next_extent(object(from.inode.number), block).await?;
            let data = extent.map(|extent| {
                (extent.start.0 * BLOCK_BYTES, (extent.start.0 + extent.len_blocks) * BLOCK_BYTES)
            });
            copied_bytes += match data {
                Some((start, end)) if start <= source => {
                    let piece_bytes = left_bytes.min(end - source).min(PIECE_BYTES_MAX);
                    let piece = self.read_piece(from.inode, source, piece_bytes).await?;
                    self.put(to.inode, target, &piece, false, None).await?;
                    data_bytes += piece_bytes;
                    piece_bytes
                }
                hole => {
                    let hole_bytes = hole.map_or(left_bytes, |(start, _)| left_bytes.min(start - source));
                    self.zero(to.inode, target, target + hole_bytes).await?;
                    hole_bytes
                }
            };
            self.engine.yield_now().await;
        }
        Ok(copied_bytes)
    }

    /// Bytes of a file as a write takes them. The caller holds the lock.
    async fn read_piece(&self, inode: &Inode, offset_bytes: u64, len_bytes: u64) -> Result<Payload> {
        let first = offset_bytes / BLOCK_BYTES;
        let len_blocks = (offset_bytes + len_bytes).div_ceil(BLOCK_BYTES) - first;
        let found = self.volume.read(object(inode.number), LogicalBlock(first), len_blocks).await?;
        let found = cut(found, (offset_bytes % BLOCK_BYTES) as usize, len_bytes as usize);
        let pieces = found.into_iter().map(|piece| match piece {
            DataPiece::Bytes(slice) => slice,
            DataPiece::Zeros { len_bytes } => Slice::copy_of(&vec![0; len_bytes]).slice(0..len_bytes),
        });
        Ok(Payload { pieces: pieces.collect() })
    }
}

//! Inodes without links, and truncations cut short: what becomes of them.
//!
//! An inode that loses its last link is put on the orphan list by the same transaction. It lives on while a session holds it, and is
//! reclaimed when the last hold goes, or when the filesystem is opened after a crash.

use std::rc::Rc;

use ringfort_store::address::ViewId;
use ringfort_store::format::filesystem as format;
use ringfort_store::format::filesystem::{Shift, ValueError};
use ringfort_store::volume::{Key, Volume};

use crate::failure::{Failure, Result};
use crate::inode::{BLOCK_BYTES, Inode};
use crate::mount::{Mount, shift_key};

/// Orphans looked at together when a filesystem is opened.
const LISTED_AT_ONCE: usize = 1024;

impl<V: Volume> Mount<V> {
    /// Reclaims the inode if it has no links and nobody holds it. A failure is logged and counted, and leaves the inode on the list for
    /// [`Mount::retry_reclaims`] and for the next opening: whoever dropped the last hold has done nothing wrong.
    pub async fn reclaim_unless_held(&self, number: u64) {
        let is_due = self.orphans.borrow().contains(&number) && !self.sessions.borrow().is_held(number);
        if !is_due {
            return;
        }
        if let Err(failure) = self.reclaim(number).await {
            self.reclaim_failures.set(self.reclaim_failures.get() + 1);
            self.log.errno(failure, "reclaim an unlinked inode", self.engine.monotonic());
        }
    }

    /// Inodes without links that nobody holds: they are being reclaimed, or it failed, or whoever was about to do it was
    /// dropped in the middle.
    pub fn unreclaimed(&self) -> Vec<u64> {
        let (orphans, sessions) = (self.orphans.borrow(), self.sessions.borrow());
        orphans.iter().copied().filter(|number| !sessions.is_held(*number)).collect()
    }

    /// Goes on with what is left of them.
    pub async fn retry_reclaims(&self) {
        for number in self.unreclaimed() {
            self.reclaim_unless_held(number).await;
        }
    }

    async fn reclaim(&self, number: u64) -> Result<()> {
        let _lock = self.locks.exclusive(number).await;
        let Some(inode) = self.load(number).await? else { return Ok(()) };
        let held = self.sessions.borrow().is_held(number);
        if inode.metadata().link_count > 0 || held {
            return Ok(());
        }
        self.remove(&inode).await
    }

    /// Takes everything of an inode off the volume. The caller holds the lock exclusively.
    async fn remove(&self, inode: &Rc<Inode>) -> Result<()> {
        self.free_blocks(inode, 0, u64::MAX).await?;
        if inode.metadata().xattr_count > 0 {
            self.clear_xattrs(inode).await?;
        }
        let mut batch = self.begin_freeing(0, 3).await?;
        batch.remove(inode);
        self.commit(batch)
    }

    /// Finishes what was left unfinished by a crash. Before anything else uses the filesystem.
    pub async fn recover(&self) -> Result<()> {
        for branch in self.branches() {
            self.recover_branch(branch).await?;
        }
        Ok(())
    }

    /// Finishes what was unfinished when a branch was left: by a crash, or at the moment of the snapshot that it began as.
    pub async fn recover_branch(&self, branch: ViewId) -> Result<()> {
        let (least, most) = branch.numbers();
        let (mut from, to) = (Key::new(least, 0), Key::new(most, u64::MAX));
        let (mut reclaimed, mut trimmed, mut shifted) = (0_u64, 0_u64, 0_u64);
        loop {
            let orphans = self.volume.scan(format::ORPHANS, from, to, LISTED_AT_ONCE).await?;
            let Some((last, _)) = orphans.last() else { break };
            from = Key::new(last.hi, last.lo.saturating_add(1));
            for (key, value) in orphans {
                let shift = decode(key, &value).map_err(|error| {
                    Failure::damaged("read the orphan entry of", format!("inode {}", key.hi), &error)
                })?;
                let _lock = self.locks.exclusive(key.hi).await;
                match self.load(key.hi).await? {
                    None => {
                        let mut batch = self.begin_freeing(0, 1).await?;
                        batch.transaction.delete(format::ORPHANS, key);
                        self.commit(batch)?;
                    }
                    Some(inode) if inode.metadata().link_count == 0 => {
                        self.remove(&inode).await?;
                        reclaimed += 1;
                    }
                    Some(inode) if shift.is_some() => {
                        let size_bytes = inode.metadata().size_bytes;
                        if shift.is_some_and(|shift| !fits(&shift, size_bytes)) {
                            let found = format!("{shift:?} in a file of {size_bytes} bytes");
                            let place = format!("inode {}", key.hi);
                            return Err(Failure::inconsistent("finish moving the blocks of", place, found));
                        }
                        inode.shift.set(shift);
                        self.finish_shift(&inode).await?;
                        shifted += 1;
                    }
                    Some(inode) => {
                        inode.trim_pending.set(true);
                        self.finish_trim(&inode).await?;
                        trimmed += 1;
                    }
                }
            }
        }
        if reclaimed + trimmed + shifted > 0 {
            tracing::info!(
                reclaimed,
                trimmed,
                shifted,
                "finished with files that were unlinked, being truncated or having ranges collapsed or inserted"
            );
        }
        Ok(())
    }
}

/// What an entry of the orphan list says: a shift to be finished, or an inode to be reclaimed or trimmed.
pub(crate) fn decode(key: Key, value: &[u8]) -> std::result::Result<Option<Shift>, ValueError> {
    if key == shift_key(key.hi) {
        Shift::decode(value).map(Some)
    } else {
        format::decode_orphan(value).map(|()| None)
    }
}

/// Whether a shift is one of a file of this size: the range and something behind it lie within.
pub(crate) fn fits(shift: &Shift, size_bytes: u64) -> bool {
    let blocks = size_bytes.div_ceil(BLOCK_BYTES);
    shift.at_block.saturating_add(shift.len_blocks) < blocks && shift.next_block <= blocks
}

//! Merges of the maps' tables, beside checkpoints: what they write counts at once and is durable with the next root.

use std::rc::Rc;

use crate::core::Core;
use crate::error::StoreError;
use crate::map::Reclaim;
use crate::pages::Pages;

/// When this part of the volume is known to be dead and counts as live, tables merge for its sake.
const UNMET_PART: u64 = 64;

impl Core {
    /// The task that merges when there are too many tables.
    pub async fn run_merges(self: Rc<Self>) {
        loop {
            self.merges_wanted.notified().await;
            if self.closing.is_set() || self.state().failed.is_some() {
                return;
            }
            if let Err(error) = self.merge_what_is_due().await {
                self.report_failed_merge(&error);
                return;
            }
        }
    }

    async fn merge_what_is_due(&self) -> Result<(), StoreError> {
        let maps = self.maps();
        while (maps.wants_merge() || self.holds_back_blocks()) && !self.closing.is_set() {
            let merged = {
                let _edit = self.edit_turn.lock().await;
                let pages = Pages::new(&self.object);
                let merged = match maps.merge_piece(&pages).await? {
                    true => true,
                    false => maps.reclaim_piece(&pages, Reclaim::Blocks).await?,
                };
                self.state_mut().counters.page_bytes += pages.take_written_bytes();
                merged
            };
            self.progress.notify_all();
            if !merged {
                // Pages of what has merged are free after the next checkpoint, which comes back here.
                self.maps_wanted.set(true);
                self.checkpoint_wanted.notify_one();
                break;
            }
            self.engine.yield_now().await;
        }
        Ok(())
    }

    /// Whether so many blocks are known to have died that tables which have them should merge for that alone.
    fn holds_back_blocks(&self) -> bool {
        let state = self.state();
        let many_blocks = state.geometry.blocks_per_segment().max(state.root.total_blocks / UNMET_PART);
        state.maps.unmet_blocks() >= many_blocks && state.maps.may_reclaim(Reclaim::Blocks)
    }

    fn report_failed_merge(&self, error: &StoreError) {
        tracing::error!(
            volume = %self.volume,
            %error,
            "maps are merged no more: space of what is overwritten or deleted does not return. Bring back missing components, then \
             start the server again; run `ringfort volume check` when the volume is not being served"
        );
        self.merges_failed.set(true);
        self.progress.notify_all();
    }

    /// Has everything meet that was sent so far, so that counts and pages are what they should be; checkpoints give the pages back in
    /// between. What cannot be merged stays.
    pub async fn reclaim(&self, what: Reclaim) -> Result<(), StoreError> {
        self.checkpoint(false).await?;
        let maps = self.maps();
        // Every checkpoint frees the pages that one merge needs, unless there are none.
        let mut fruitless = 0;
        while maps.may_reclaim(what) && !self.merges_failed.get() {
            self.state().check_alive()?;
            let merged = {
                let _edit = self.edit_turn.lock().await;
                let pages = Pages::new(&self.object);
                let merged = maps.reclaim_piece(&pages, what).await;
                self.state_mut().counters.page_bytes += pages.take_written_bytes();
                merged
            };
            match merged {
                Ok(true) => fruitless = 0,
                Ok(false) if fruitless == 2 => break,
                Ok(false) => {
                    fruitless += 1;
                    self.checkpoint(false).await?;
                }
                Err(error) => {
                    self.report_failed_merge(&error);
                    break;
                }
            }
            self.engine.yield_now().await;
        }
        Ok(())
    }
}

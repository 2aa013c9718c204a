//! Merges of the maps' tables, beside checkpoints: what they write counts at once and is durable with the next root.

use std::rc::Rc;

use crate::core::Core;
use crate::error::StoreError;
use crate::map::Reclaim;
use crate::pages::Pages;

/// When this part of the volume is known to be dead and counts as live, tables merge for its sake.
const UNMET_PART: u64 = 64;

/// Checkpoints that may free the pages which a merge lacks, before it is given up.
const CHECKPOINTS_FOR_PAGES: u32 = 3;

/// That there were no pages for a merge.
#[derive(Default)]
struct LackOfPages {
    /// After so many checkpoints in turn.
    count: u32,
    /// The count of all checkpoints when that was found last.
    found_at: Option<u64>,
}

impl LackOfPages {
    /// Notes the lack; whether checkpoints have given back what they could.
    fn is_hopeless(&mut self, checkpoints: u64) -> bool {
        if self.found_at.replace(checkpoints) != Some(checkpoints) {
            self.count += 1;
        }
        self.count >= CHECKPOINTS_FOR_PAGES
    }
}

/// Why tables merge next.
enum Due {
    TooManyTables,
    /// Of what they hide.
    Space(Reclaim),
}

impl Core {
    /// The task that merges when there are too many tables, or when what they hide is wanted.
    pub async fn run_merges(self: Rc<Self>) {
        let mut lack = LackOfPages::default();
        loop {
            self.merges_wanted.notified().await;
            if self.closing.is_set() || self.state().failed.is_some() {
                return;
            }
            if let Err(error) = self.merge_what_is_due(&mut lack).await {
                self.report_failed_merge(&error);
                return;
            }
        }
    }

    async fn merge_what_is_due(&self, lack: &mut LackOfPages) -> Result<(), StoreError> {
        let maps = self.maps();
        while !self.closing.is_set()
            && let Some(due) = self.due_merge()
        {
            let merged = {
                let _edit = self.edit_turn.lock().await;
                let pages = Pages::new(&self.object);
                let promised = self.state().promised_pages();
                let merged = match due {
                    Due::TooManyTables => maps.merge_piece(&pages, promised).await?,
                    Due::Space(what) => maps.reclaim_piece(&pages, what, promised).await?,
                };
                self.state_mut().counters.page_bytes += pages.take_written_bytes();
                merged
            };
            if merged {
                self.progress.notify_all();
                *lack = LackOfPages::default();
                self.engine.yield_now().await;
                continue;
            }
            // Pages of what has merged are free after the next checkpoint, which comes back here.
            if lack.is_hopeless(self.state().counters.checkpoints) {
                *lack = LackOfPages::default();
                self.end_reclaim();
            } else {
                self.ask_for_checkpoint_of_maps();
            }
            break;
        }
        Ok(())
    }

    fn due_merge(&self) -> Option<Due> {
        let maps = self.maps();
        if maps.wants_merge() {
            return Some(Due::TooManyTables);
        }
        if self.holds_back_blocks() {
            return Some(Due::Space(Reclaim::Blocks));
        }
        let from = self.reclaim_from.get()?;
        if maps.may_reclaim(Reclaim::Pages) {
            return Some(Due::Space(Reclaim::Pages));
        }
        if self.state().counters.checkpoints >= from {
            self.end_reclaim();
        }
        None
    }

    /// Has everything merge that was sent so far, in the background; [`Core::reclaims`] tells when that is done.
    pub fn ask_for_pages(&self) {
        if self.reclaim_from.get().is_some() {
            return;
        }
        let under_way = u64::from(self.checkpoint_turn.try_lock().is_none());
        self.reclaim_from.set(Some(self.state().counters.checkpoints + under_way + 1));
        self.ask_for_checkpoint_of_maps();
        self.merges_wanted.notify_one();
    }

    fn end_reclaim(&self) {
        if self.reclaim_from.take().is_some() {
            self.reclaims.set(self.reclaims.get() + 1);
            self.ask_for_checkpoint_of_maps();
            self.progress.notify_all();
        }
    }

    pub fn ask_for_checkpoint_of_maps(&self) {
        self.maps_wanted.set(true);
        self.checkpoint_wanted.notify_one();
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
        self.end_reclaim();
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
                let promised = self.state().promised_pages();
                let merged = maps.reclaim_piece(&pages, what, promised).await;
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

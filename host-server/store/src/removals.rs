//! Giving back what removed views alone held.
//!
//! A removed snapshot is noted as such first, and holds its blocks until a durable root says so: no merge may end what a crash would bring back. From then on merges take no
//! notice of it. What it alone kept is in cells of the map of the dead, whose merges give the blocks back. A removed branch is emptied object by object, like files that are deleted;
//! what its snapshots see stays. Both go on where they were after a restart, and both end with the view's entry.

use std::rc::Rc;

use crate::address::ViewId;
use crate::core::Core;
use crate::error::StoreError;
use crate::format::log::Entry;
use crate::map::Reclaim;
use crate::pages::Pages;
use crate::volume::{Cost, ViewEntry, ViewKind, ViewState};

impl Core {
    /// The task that gives back what removed views held.
    pub async fn run_removals(self: Rc<Self>) {
        loop {
            self.removals_wanted.notified().await;
            if self.closing.is_set() || self.state().failed.is_some() {
                return;
            }
            if let Err(error) = self.finish_removals().await {
                tracing::error!(
                    volume = %self.volume,
                    %error,
                    "what removed snapshots and clones held is not given back. It is tried again when another is removed and when the server starts"
                );
            }
        }
    }

    fn removed_views(&self) -> Vec<(ViewId, ViewEntry)> {
        let views = self.maps().views.all();
        views.into_iter().filter(|(_, entry)| entry.state == ViewState::Deleting).collect()
    }

    async fn finish_removals(&self) -> Result<(), StoreError> {
        loop {
            let removed = self.removed_views();
            if removed.is_empty() || self.closing.is_set() {
                return Ok(());
            }
            for (branch, entry) in &removed {
                if let ViewKind::Branch { .. } = entry.kind {
                    self.empty_branch(*branch, entry).await?;
                }
            }
            self.drop_unneeded_branches().await?;
            // What removed clones stand on goes when these are gone.
            let maps = self.maps();
            let is_alone = |(view, entry): &(ViewId, ViewEntry)| {
                matches!(entry.kind, ViewKind::Snapshot { .. }) && !maps.views.has_clones(*view)
            };
            let snapshots: Vec<ViewId> = removed.into_iter().filter(is_alone).map(|(view, _)| view).collect();
            if !snapshots.is_empty() {
                self.end_snapshots(&snapshots).await?;
            }
            self.drop_unneeded_branches().await?;
        }
    }

    /// Removes all that a branch holds, but for what its snapshots see.
    async fn empty_branch(&self, branch: ViewId, entry: &ViewEntry) -> Result<(), StoreError> {
        let maps = self.maps();
        for tree in maps.trees_of_views() {
            let mut next = branch.numbers().0;
            loop {
                let pages = Pages::new(&self.object);
                let Some(number) = maps.next_number(&pages, tree, branch, next).await? else { break };
                // What it takes is promised as to whoever deletes a file.
                let reservation =
                    self.begin_when_free(Cost { data_blocks: 0, entries: 1, frees_space: true }).await?;
                maps.remove_number(tree, number);
                drop(reservation);
                if number == branch.numbers().1 || self.closing.is_set() {
                    break;
                }
                next = number + 1;
            }
        }
        if self.closing.is_set() {
            return Ok(());
        }
        // Removals are not logged: the entry must not be durable before they are.
        self.checkpoint(false).await?;
        self.put_entry(branch, Some(ViewEntry { state: ViewState::Emptied, ..entry.clone() })).await
    }

    /// Gives back what these snapshots alone keep.
    async fn end_snapshots(&self, snapshots: &[ViewId]) -> Result<(), StoreError> {
        self.checkpoint(false).await?;
        let maps = self.maps();
        {
            let _edit = self.edit_turn.lock().await;
            maps.views.purge(snapshots);
        }
        self.reclaim(Reclaim::Dead).await?;
        self.rewrite_cells(snapshots).await?;
        self.reclaim(Reclaim::Blocks).await?;
        for snapshot in snapshots {
            self.put_entry(*snapshot, None).await?;
        }
        Ok(())
    }

    /// Rewrites the tables that may hold cells of what these snapshots alone keep: those end on the way.
    async fn rewrite_cells(&self, snapshots: &[ViewId]) -> Result<(), StoreError> {
        let maps = self.maps();
        for table in maps.tables_of_cells(snapshots) {
            loop {
                self.state().check_alive()?;
                let is_done = {
                    let _edit = self.edit_turn.lock().await;
                    let pages = Pages::new(&self.object);
                    let promised = self.state().promised_pages();
                    let is_done = maps.rewrite_cells(&pages, table, promised).await?;
                    self.state_mut().counters.page_bytes += pages.take_written_bytes();
                    is_done
                };
                if is_done {
                    break;
                }
                self.checkpoint(false).await?;
            }
            self.engine.yield_now().await;
        }
        Ok(())
    }

    /// Removed branches stay as long as snapshots see something of them.
    async fn drop_unneeded_branches(&self) -> Result<(), StoreError> {
        let maps = self.maps();
        for (branch, entry) in maps.views.all() {
            let is_unneeded = entry.state == ViewState::Emptied && !maps.views.has_snapshots(branch);
            if is_unneeded && branch != ViewId::VOLUME {
                self.put_entry(branch, None).await?;
            }
        }
        Ok(())
    }

    async fn put_entry(&self, view: ViewId, entry: Option<ViewEntry>) -> Result<(), StoreError> {
        let reservation =
            self.begin_when_free(Cost { data_blocks: 0, entries: 1, frees_space: true }).await?;
        self.state_mut().apply_internal(&[Entry::View { view, entry }]);
        drop(reservation);
        Ok(())
    }
}

//! Reading tables: one page at a time, through the cache.

use std::rc::Rc;

use super::cache::{CachedPage, PageCache};
use super::item::{OwnedItem, cut};
use super::table::{Table, filter_hash};
use crate::address::VolumeId;
use crate::error::{ErrorKind, StoreError};
use crate::format::envelope;
use crate::format::filter;
use crate::format::page::{PageFault, PagePointer};
use crate::format::run::{RunItem, RunPage, is_run_page};
use crate::kv::PageStore;

/// Keys of a tree, hi and lo, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub from: (u64, u64),
    pub to: (u64, u64),
}

impl Bounds {
    pub fn meets(&self, other: &Bounds) -> bool {
        self.from <= other.to && other.from <= self.to
    }

    pub fn holds(&self, key: (u64, u64)) -> bool {
        (self.from..=self.to).contains(&key)
    }

    /// What of an item lies inside.
    pub fn clip(&self, item: &RunItem<'_>) -> Option<OwnedItem> {
        let Self { from, to } = *self;
        let lo = if item.hi == from.0 { item.lo.max(from.1) } else { item.lo };
        let last = if item.hi == to.0 { item.last.min(to.1) } else { item.last };
        let is_inside = item.hi >= from.0 && item.hi <= to.0 && lo <= last;
        is_inside.then(|| cut(item, lo, last).into_owned())
    }

    /// The least that has both.
    pub fn with(&self, other: &Bounds) -> Bounds {
        Bounds { from: self.from.min(other.from), to: self.to.max(other.to) }
    }
}

/// The key that follows.
pub fn after((hi, last): (u64, u64)) -> (u64, u64) {
    match last.checked_add(1) {
        Some(lo) => (hi, lo),
        None => (hi.saturating_add(1), 0),
    }
}

/// A table, and which keys of it count still.
#[derive(Clone, Debug)]
pub struct View {
    pub table: Rc<Table>,
    pub bounds: Bounds,
}

impl View {
    pub fn whole(table: Table) -> Self {
        let bounds = Bounds { from: table.first, to: table.last };
        Self { table: Rc::new(table), bounds }
    }
}

/// Who reads pages of tables.
pub struct Reader<'a, P> {
    pub volume: VolumeId,
    pub cache: &'a PageCache,
    pub pages: &'a P,
}

impl<P: PageStore> Reader<'_, P> {
    fn damaged(&self, table: &Table, page: u32, fault: impl std::fmt::Display) -> StoreError {
        let place = format!("page {page} of table {} of tree {}", table.number, table.tree.0);
        StoreError::new(ErrorKind::Damaged, "read", place, fault.to_string())
            .advice("no mirror has this page: run `ringfort volume check`")
    }

    async fn fetch(
        &self,
        table: &Table,
        page: u32,
        pointer: Option<PagePointer>,
        verify: impl Fn(&[u8], PagePointer) -> bool,
        take: impl FnOnce(&ringfort_engine::buffer::Slice, PagePointer) -> Result<Option<RunPage>, PageFault>,
    ) -> Result<Rc<CachedPage>, StoreError> {
        if let Some(cached) = self.cache.get(table.number, page) {
            return Ok(cached);
        }
        let Some(pointer) = pointer else {
            return Err(self.damaged(table, page, "the table has no such page"));
        };
        let bytes = self.pages.read_page(pointer.address, &|bytes| verify(bytes, pointer)).await?;
        let layout = take(&bytes, pointer).map_err(|fault| self.damaged(table, page, fault))?;
        let read = Rc::new(match layout {
            Some(layout) => CachedPage::of_items(bytes, layout),
            None => CachedPage::of_filter(bytes),
        });
        self.cache.keep(table.number, page, &read);
        Ok(read)
    }

    /// Keeps a page that has just been written, for those who read it soon.
    pub fn keep_written(&self, table: &Table, page: u32, bytes: ringfort_engine::buffer::Slice) {
        let level = u8::from(page == table.leaf_count);
        let cached = if page > table.leaf_count {
            CachedPage::of_filter(bytes)
        } else {
            let checksum = envelope::checksum_of(&bytes).unwrap_or_default();
            let Some(pointer) = table.leaf(page, checksum) else { return };
            match RunPage::decode(&bytes, pointer, self.volume, table.tree, level) {
                Ok(layout) => CachedPage::of_items(bytes, layout),
                Err(fault) => unreachable!("a page that was just made: {fault}"),
            }
        };
        self.cache.keep(table.number, page, &Rc::new(cached));
    }

    async fn index(&self, table: &Table) -> Result<Rc<CachedPage>, StoreError> {
        self.items(table, table.leaf_count, table.index(), 1).await
    }

    async fn items(
        &self,
        table: &Table,
        page: u32,
        pointer: Option<PagePointer>,
        level: u8,
    ) -> Result<Rc<CachedPage>, StoreError> {
        let verify = |bytes: &[u8], pointer| is_run_page(bytes, pointer, self.volume);
        let take = |bytes: &ringfort_engine::buffer::Slice, pointer| {
            RunPage::decode(bytes, pointer, self.volume, table.tree, level).map(Some)
        };
        self.fetch(table, page, pointer, verify, take).await
    }

    /// The leaf that the index entry of this number leads to.
    async fn leaf(
        &self,
        table: &Table,
        index: &CachedPage,
        entry: usize,
    ) -> Result<Rc<CachedPage>, StoreError> {
        let child = index.item(entry);
        let checksum = child.bytes.try_into().map(u32::from_le_bytes).unwrap_or_default();
        let page = child.number as u32;
        self.items(table, page, table.leaf(page, checksum), 0).await
    }

    /// False where the table has nothing for a key.
    pub async fn may_hold(
        &self,
        table: &Table,
        hi: u64,
        lo: u64,
        by_chunks: bool,
    ) -> Result<bool, StoreError> {
        let hash = filter_hash(hi, lo, by_chunks);
        let Some(part) = table.filter_part(hash) else { return Ok(true) };
        let filter_page = self.filter_page(table, part).await?;
        Ok(filter::may_hold(&filter_page.bytes, hash))
    }

    async fn filter_page(&self, table: &Table, part: u32) -> Result<Rc<CachedPage>, StoreError> {
        let check = |bytes: &[u8], pointer| filter::check(bytes, pointer, self.volume, part);
        let page = table.leaf_count + 1 + part;
        let verify = |bytes: &[u8], pointer| check(bytes, pointer).is_ok();
        let take = |bytes: &ringfort_engine::buffer::Slice, pointer| check(bytes, pointer).map(|()| None);
        self.fetch(table, page, table.filter(part), verify, take).await
    }
}

impl<P: PageStore> Reader<'_, P> {
    /// Reads all pages of a table; an error where one is not what the table says.
    pub async fn verify(&self, table: &Table) -> Result<(), StoreError> {
        let index = self.index(table).await?;
        let (mut items, mut before) = (0, None);
        for entry in 0..index.len() {
            let leaf = self.leaf(table, &index, entry).await?;
            for at in 0..leaf.len() {
                let item = leaf.item(at);
                let key = (item.hi, item.lo);
                // Versions of the same keys follow each other.
                let ascends = before.is_none_or(|(previous, last)| previous == key || last < key);
                if !ascends || key < table.first || (item.hi, item.last) > table.last {
                    let found = format!("keys from {key:?} to {} after {before:?}", item.last);
                    return Err(self.damaged(table, entry as u32, found));
                }
                before = Some((key, (item.hi, item.last)));
                items += 1;
            }
        }
        if items != table.item_count || index.len() != table.leaf_count as usize {
            let found = format!("{items} items in {} leaves", index.len());
            return Err(self.damaged(table, table.leaf_count, found));
        }
        for part in 0..table.filter_checksums.len() as u32 {
            self.filter_page(table, part).await?;
        }
        Ok(())
    }
}

/// Goes through the items of a view in order.
pub struct Cursor {
    view: View,
    index: Option<Rc<CachedPage>>,
    /// Entry of the index whose leaf is open.
    entry: usize,
    leaf: Option<Rc<CachedPage>>,
    at: usize,
}

impl Cursor {
    /// Before the first item.
    pub fn new(view: View) -> Self {
        Self { view, index: None, entry: 0, leaf: None, at: 0 }
    }

    /// Goes to the first item that covers `(hi, lo)` or a later key.
    pub async fn seek<P: PageStore>(
        &mut self,
        reader: &Reader<'_, P>,
        hi: u64,
        lo: u64,
    ) -> Result<(), StoreError> {
        let (hi, lo) = (hi, lo).max(self.view.bounds.from);
        self.go_to(reader, hi, lo).await?;
        let Some(leaf) = &self.leaf else { return Ok(()) };
        let Some(before) = self.at.checked_sub(1) else { return Ok(()) };
        let before = leaf.item(before);
        if before.hi == hi && before.last >= lo {
            // Also the versions of it that lie in leaves before.
            let lo = before.lo;
            self.go_to(reader, hi, lo).await?;
        }
        Ok(())
    }

    /// Goes to the first item that begins at `(hi, lo)` or later; its leaf may be the one after.
    async fn go_to<P: PageStore>(
        &mut self,
        reader: &Reader<'_, P>,
        hi: u64,
        lo: u64,
    ) -> Result<(), StoreError> {
        let index = match self.index.take() {
            Some(index) => index,
            None => reader.index(&self.view.table).await?,
        };
        self.entry = index.lower_bound(hi, lo, u32::MAX).saturating_sub(1);
        let leaf = reader.leaf(&self.view.table, &index, self.entry).await?;
        self.at = leaf.lower_bound(hi, lo, u32::MAX);
        (self.leaf, self.index) = (Some(leaf), Some(index));
        Ok(())
    }

    /// The next item, cut to the bounds of the view.
    pub async fn next<P: PageStore>(
        &mut self,
        reader: &Reader<'_, P>,
    ) -> Result<Option<OwnedItem>, StoreError> {
        if self.index.is_none() {
            let (hi, lo) = self.view.bounds.from;
            self.seek(reader, hi, lo).await?;
        }
        loop {
            let (Some(leaf), Some(index)) = (&self.leaf, &self.index) else { return Ok(None) };
            if self.at < leaf.len() {
                let item = leaf.item(self.at);
                if (item.hi, item.lo) > self.view.bounds.to {
                    return Ok(None);
                }
                self.at += 1;
                if let Some(clipped) = self.view.bounds.clip(&item) {
                    return Ok(Some(clipped));
                }
                continue;
            }
            if self.entry + 1 >= index.len() {
                return Ok(None);
            }
            self.entry += 1;
            let next = reader.leaf(&self.view.table, index, self.entry).await?;
            (self.leaf, self.at) = (Some(next), 0);
        }
    }
}

/// Goes through the tables of a run, one after the other.
pub struct RunCursor {
    bounds: Bounds,
    /// Those that are left, the next one last.
    left: Vec<View>,
    current: Option<Cursor>,
}

impl RunCursor {
    pub fn new(run: &[View], bounds: Bounds) -> Self {
        Self { bounds, left: run.iter().rev().cloned().collect(), current: None }
    }

    pub async fn next<P: PageStore>(
        &mut self,
        reader: &Reader<'_, P>,
    ) -> Result<Option<OwnedItem>, StoreError> {
        loop {
            if self.current.is_none() {
                let Some(view) = self.left.pop() else { return Ok(None) };
                let mut cursor = Cursor::new(view);
                cursor.seek(reader, self.bounds.from.0, self.bounds.from.1).await?;
                self.current = Some(cursor);
            }
            let Some(cursor) = &mut self.current else { continue };
            match cursor.next(reader).await? {
                Some(item) if (item.hi, item.lo) > self.bounds.to => {
                    (self.current, self.left) = (None, Vec::new());
                }
                Some(item) => {
                    if let Some(item) = self.bounds.clip(&item.as_run_item()) {
                        return Ok(Some(item));
                    }
                }
                None => self.current = None,
            }
        }
    }
}

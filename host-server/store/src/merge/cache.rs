//! Pages of tables in memory, up to a bound.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use ringfort_engine::buffer::Slice;

use crate::format::page::PAGE_BYTES;
use crate::format::run::{RunItem, RunPage};

/// A page that was checked.
pub struct CachedPage {
    pub bytes: Slice,
    /// Where its items lie; `None` for a filter's.
    layout: Option<RunPage>,
    /// Used since the clock's hand passed.
    used: Cell<bool>,
}

impl CachedPage {
    pub fn of_items(bytes: Slice, layout: RunPage) -> Self {
        Self { bytes, layout: Some(layout), used: Cell::new(true) }
    }

    pub fn of_filter(bytes: Slice) -> Self {
        Self { bytes, layout: None, used: Cell::new(true) }
    }

    fn layout(&self) -> &RunPage {
        match &self.layout {
            Some(layout) => layout,
            None => unreachable!("a filter has no items"),
        }
    }

    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.layout().len()
    }

    #[inline]
    pub fn item(&self, index: usize) -> RunItem<'_> {
        self.layout().item(&self.bytes, index)
    }

    /// See [`RunPage::lower_bound`].
    #[inline]
    pub fn lower_bound(&self, hi: u64, lo: u64, epoch: u32) -> usize {
        self.layout().lower_bound(&self.bytes, hi, lo, epoch)
    }
}

/// Table and page.
type Name = (u64, u32);

/// The pages that were used lately, by the clock algorithm (Corbató, 1968).
pub struct PageCache {
    pages: RefCell<BTreeMap<Name, Rc<CachedPage>>>,
    /// Where the clock's hand stands.
    hand: Cell<Name>,
    pages_max: usize,
    pub hits: Cell<u64>,
    pub misses: Cell<u64>,
}

impl PageCache {
    /// One page at least.
    pub fn new(bytes_max: usize) -> Self {
        Self {
            pages: RefCell::default(),
            hand: Cell::default(),
            pages_max: (bytes_max / PAGE_BYTES).max(1),
            hits: Cell::default(),
            misses: Cell::default(),
        }
    }

    pub fn get(&self, table: u64, page: u32) -> Option<Rc<CachedPage>> {
        let pages = self.pages.borrow();
        let found = pages.get(&(table, page));
        let counter = if found.is_some() { &self.hits } else { &self.misses };
        counter.set(counter.get() + 1);
        found.map(|page| {
            page.used.set(true);
            Rc::clone(page)
        })
    }

    pub fn keep(&self, table: u64, number: u32, page: &Rc<CachedPage>) {
        let mut pages = self.pages.borrow_mut();
        pages.insert((table, number), Rc::clone(page));
        while pages.len() > self.pages_max {
            self.turn(&mut pages);
        }
    }

    /// The hand goes on to the next page that was not used since it passed, and takes it out.
    fn turn(&self, pages: &mut BTreeMap<Name, Rc<CachedPage>>) {
        loop {
            let from = self.hand.get();
            let next = pages.range(from..).next().or_else(|| pages.iter().next());
            let Some((&name, page)) = next else { return };
            self.hand.set((name.0, name.1 + 1));
            if !page.used.replace(false) {
                pages.remove(&name);
                return;
            }
        }
    }

    /// Forgets a table that nobody will read again.
    pub fn forget(&self, table: u64) {
        let mut pages = self.pages.borrow_mut();
        let names: Vec<Name> = pages.range((table, 0)..=(table, u32::MAX)).map(|(name, _)| *name).collect();
        names.iter().for_each(|name| {
            pages.remove(name);
        });
    }

    pub fn memory_bytes(&self) -> usize {
        self.pages.borrow().len() * PAGE_BYTES
    }
}

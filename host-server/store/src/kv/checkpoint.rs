//! Writing a snapshot of all trees while the trees change.

use std::rc::Rc;

use ringfort_engine::buffer::Slice;

use super::allocate::PageAllocator;
use super::node::{Body, Node};
use super::tree::Tree;
use super::window::Window;
use crate::address::{MetadataAddress, VolumeId};
use crate::error::StoreError;
use crate::format::page::{PagePointer, Roots, TreeRoot};
use crate::volume::TreeId;

/// Where pages are kept: the metadata region.
#[allow(async_fn_in_trait)] // pages belong to the volume's thread: the futures are never `Send`
pub trait PageStore {
    /// Writes one page. Not durable before the next flush.
    async fn write_page(&self, address: MetadataAddress, page: Slice) -> Result<(), StoreError>;

    /// Reads one page, from whichever mirror has a copy that `verify` accepts. Where none has, the bytes of any copy
    /// or an error of kind [`Damaged`](crate::error::ErrorKind::Damaged): the caller checks once more.
    async fn read_page(
        &self,
        address: MetadataAddress,
        verify: &dyn Fn(&[u8]) -> bool,
    ) -> Result<Slice, StoreError>;

    /// Lets others run for a while, in the middle of something long.
    async fn give_way(&self) {}
}

/// All trees at one moment. Immutable, whatever happens to the trees meanwhile; costs memory for the pages that change.
pub struct Snapshot {
    pub(super) volume: VolumeId,
    pub(super) generation: u64,
    pub(super) trees: Vec<(TreeId, Tree)>,
    pub(super) allocator: Rc<PageAllocator>,
}

impl Snapshot {
    /// The number of this checkpoint, higher than that of every earlier one.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    pub fn get(&self, tree: TreeId, key: crate::volume::Key) -> Option<&[u8]> {
        self.trees.iter().find(|(id, _)| *id == tree).and_then(|(_, tree)| tree.get(key))
    }

    /// Writes every page that is not on the devices yet to a page that is free, children before parents, many at a
    /// time. The pages of earlier checkpoints are not touched. Returns the roots for the caller to store once a
    /// flush has made the pages durable; when the roots are durable too, the caller calls [`PageAllocator::release`].
    ///
    /// After an error nothing has changed but free pages, and the next snapshot writes all of it again. One snapshot
    /// is written at a time, in the order in which they were taken.
    pub async fn write(&self, store: &impl PageStore) -> Result<Roots, StoreError> {
        let mut unwritten = Vec::new();
        for (id, tree) in &self.trees {
            if let Some(root) = &tree.root {
                collect_unwritten(*id, root, &mut unwritten);
            }
        }
        let addresses = self.allocator.allocate(unwritten.len())?;
        let result = self.write_pages(store, &unwritten, &addresses).await;
        if let Err(error) = result {
            for (_, node) in &unwritten {
                node.durable.set(None);
            }
            self.allocator.free(addresses);
            return Err(error);
        }
        Ok(self.roots())
    }

    async fn write_pages(
        &self,
        store: &impl PageStore,
        unwritten: &[(TreeId, Rc<Node>)],
        addresses: &[MetadataAddress],
    ) -> Result<(), StoreError> {
        let mut window = Window::new();
        let mut outcome = Ok(());
        for ((tree, node), address) in unwritten.iter().zip(addresses) {
            if window.is_full()
                && let Some(Err(error)) = window.next().await
            {
                outcome = Err(error);
                break;
            }
            let (page, checksum) = node.encode(self.volume, *tree);
            // Parents, which come later, take the pointer from here.
            node.durable.set(Some(PagePointer { address: *address, generation: node.generation, checksum }));
            window.push(store.write_page(*address, page));
        }
        // Also after an error: no write may be on its way to a page that is about to be free.
        while let Some(result) = window.next().await {
            outcome = outcome.and(result);
        }
        outcome
    }

    fn roots(&self) -> Roots {
        let root_of = |(id, tree): &(TreeId, Tree)| {
            let root = tree.root.as_ref()?;
            let pointer = root.durable.get()?;
            Some(TreeRoot { tree: *id, level: root.level(), pointer, entry_count: tree.entry_count })
        };
        Roots { generation: self.generation, trees: self.trees.iter().filter_map(root_of).collect() }
    }
}

/// Children before parents. A written page has only written pages below it.
fn collect_unwritten(tree: TreeId, node: &Rc<Node>, unwritten: &mut Vec<(TreeId, Rc<Node>)>) {
    if node.durable.get().is_some() {
        return;
    }
    if let Body::Inner(inner) = &node.body {
        for child in &inner.children {
            collect_unwritten(tree, child, unwritten);
        }
    }
    unwritten.push((tree, Rc::clone(node)));
}

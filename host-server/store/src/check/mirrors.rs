//! Every mirror of the metadata region for itself: a copy that only one mirror lacks does not show while another serves it.

use std::rc::Rc;

use ringfort_engine::buffer::{BLOCK_BYTES, Slice};

use super::CheckReport;
use crate::address::MetadataAddress;
use crate::error::{ErrorKind, StoreError};
use crate::format::page::PAGE_BYTES;
use crate::format::root::Root;
use crate::kv::PageStore;
use crate::limits::MEMORY_BYTES_DEFAULT;
use crate::log::replay::{Chain, Replay};
use crate::map::Maps;
use crate::object::Object;
use crate::recover::{RecoveryReport, maps_shape, page_allocator};

/// The pages as one mirror has them.
struct MirrorPages<'a> {
    object: &'a Object,
    mirror: u8,
}

impl PageStore for MirrorPages<'_> {
    async fn write_page(&self, address: MetadataAddress, _: Slice) -> Result<(), StoreError> {
        Err(StoreError::new(
            ErrorKind::Invalid,
            "write page at",
            address.to_string(),
            "a check changes nothing",
        ))
    }

    async fn read_page(
        &self,
        address: MetadataAddress,
        verify: &dyn Fn(&[u8]) -> bool,
    ) -> Result<Slice, StoreError> {
        let page = self.object.read_metadata_mirror(self.mirror, address, PAGE_BYTES).await?;
        if verify(&page) {
            return Ok(page);
        }
        let place = format!("page at {address} of metadata mirror {}", self.mirror);
        Err(StoreError::new(ErrorKind::Damaged, "read", place, "wrong contents"))
    }
}

/// Compares root slots, pages and log records of each live mirror with what the volume was replayed from.
pub(super) async fn check_mirrors(
    object: &Object,
    root: &Root,
    replayed: &RecoveryReport,
    report: &mut CheckReport,
) {
    for mirror in object.live_mirrors() {
        let name = object.mirror_name(mirror);
        check_roots(object, root, mirror, report).await;
        let mut note = |error| report.note(format!("metadata mirror {mirror}, {name}: {error}"));
        if let Err(error) = check_pages(object, root, mirror, &mut note).await {
            note(error);
        }
        let (mut moved, mut commits) = (0, 0);
        for (chain, count) in [(Chain::moved(root), &mut moved), (Chain::commits(root), &mut commits)] {
            let mut reader = Replay::on_mirror(object, object.volume(), root, chain, mirror);
            while *count < replayed.replayed_records && matches!(reader.next().await, Ok(Some(_))) {
                *count += 1;
            }
        }
        let found = moved.min(u64::from(root.moved_records)) + commits;
        // The last record may have been under way when the volume stopped: then mirrors differ without damage.
        if found + 1 < replayed.replayed_records {
            report.note(format!(
                "metadata mirror {mirror}, {name}: {found} of {} log records are valid",
                replayed.replayed_records
            ));
        }
    }
}

/// Every page that a root names.
async fn check_pages(
    object: &Object,
    root: &Root,
    mirror: u8,
    note: &mut impl FnMut(StoreError),
) -> Result<(), StoreError> {
    let pages = MirrorPages { object, mirror };
    let allocator = Rc::new(page_allocator(root));
    let shape = maps_shape(object.geometry(), MEMORY_BYTES_DEFAULT);
    let maps = Maps::load(object.volume(), &root.trees, &pages, allocator, shape).await?;
    maps.verify_tables(&pages, note).await;
    Ok(())
}

async fn check_roots(object: &Object, root: &Root, mirror: u8, report: &mut CheckReport) {
    let name = object.mirror_name(mirror);
    for sequence in [root.sequence, root.sequence - 1] {
        // The first root of a volume has no predecessor.
        if sequence == 0 {
            continue;
        }
        let slot = Root::slot(sequence);
        let found = match object.read_metadata_mirror(mirror, slot, BLOCK_BYTES).await {
            Ok(bytes) => Root::decode(&bytes, object.volume()).map(|found| found.sequence),
            Err(_) => None,
        };
        if found == Some(sequence) {
            continue;
        }
        let found = found.map_or("no valid root".to_owned(), |found| format!("root {found}"));
        let fault = format!(
            "metadata mirror {mirror}, root slot at {slot} of {name}: {found} (expected root {sequence})"
        );
        if sequence == root.sequence {
            // A stop in the middle of writing the newest root looks the same; its predecessor was durable everywhere before.
            report.degraded.push(format!("{fault}; the next opening writes it again"));
        } else {
            report.note(fault);
        }
    }
}

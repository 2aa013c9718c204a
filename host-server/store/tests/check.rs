//! The offline check tells every kind of damage, on any copy, and finds none where there is none.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use ringfort_engine::buffer::{BLOCK_BYTES, Buffer};
use ringfort_engine::sim::{CrashMode, SimWorld};
use ringfort_store::address::{LogicalBlock, MetadataAddress, ObjectId, SegmentId, StripeIndex};
use ringfort_store::check::{CheckReport, check};
use ringfort_store::create::{CreateOptions, plan};
use ringfort_store::format::root::{LOG_START, Root};
use ringfort_store::geometry::Geometry;
use ringfort_store::store::Store;
use ringfort_store::volume::{Cost, Key, TreeId, Volume};

fn components() -> Vec<PathBuf> {
    (0..6).map(|index| PathBuf::from(format!("component-{index}"))).collect()
}

fn create_options() -> CreateOptions {
    CreateOptions { log_bytes: Some(1 << 20), ..CreateOptions::new(components(), 32 << 20) }
}

fn geometry() -> Geometry {
    plan(&create_options()).unwrap().geometry
}

/// A volume with small and large writes and some entries. Unless `closed`, its last writes are in the log only.
fn volume(closed: bool) -> SimWorld {
    let world = SimWorld::new(3);
    let engine = world.engine();
    let work = async move {
        let store = Store::create(engine, &create_options()).await.unwrap();
        for (object, len) in [(1, 100), (2, 3), (3, 1)] {
            let cost = Cost { data_blocks: len, entries: 4, frees_space: false };
            let mut transaction = store.begin(cost).await.unwrap();
            let data = vec![Buffer::zeroed(len as usize * BLOCK_BYTES).freeze()];
            let staged = store.stage(&mut transaction, data).await.unwrap();
            transaction.write(ObjectId(object), LogicalBlock(0), staged);
            transaction.put(TreeId(16), Key::new(object, 0), vec![1; 100]);
            store.apply(transaction).unwrap();
            store.sync().await.unwrap();
        }
        assert_eq!(store.status().space.live_bytes, 104 * BLOCK_BYTES as u64, "also before a checkpoint");
        if closed {
            store.close().await.unwrap();
        }
    };
    world.run(work).done();
    world.restart(CrashMode::ProcessDeath, 4);
    world
}

fn report(world: &SimWorld) -> CheckReport {
    let engine = world.engine();
    world.run(async move { check(engine, &components(), &mut |_| {}).await.unwrap().0 }).done()
}

#[track_caller]
fn assert_damage(world: &SimWorld, expected: &str) {
    let report = report(world);
    assert!(report.damage.iter().any(|fault| fault.contains(expected)), "{:?}", report.damage);
}

fn metadata_offset(address: MetadataAddress) -> u64 {
    geometry().metadata_base() + address.0
}

#[test]
fn a_closed_volume_and_one_with_a_log_are_clean() {
    for closed in [true, false] {
        let report = report(&volume(closed));
        assert!(report.is_clean(), "{:?}", report.damage);
        assert_eq!((report.mapped_blocks, report.log_records > 0), (104, !closed));
    }
}

#[test]
fn either_root_slot_on_any_mirror_is_looked_at() {
    let mut damaged = 0;
    for slot in 0..2 {
        for mirror in 0..3 {
            let world = volume(true);
            world.flip_bit(format!("component-{mirror}"), metadata_offset(Root::slot(slot)) + 40, 3);
            let report = report(&world);
            let expected = format!("metadata mirror {mirror}, root slot");
            assert!(report.damage.iter().chain(&report.degraded).any(|fault| fault.contains(&expected)));
            // The newest root may have been under way; the one before it was durable on every mirror.
            damaged += u32::from(!report.is_clean());
        }
    }
    assert_eq!(damaged, 3);
}

#[test]
fn a_bad_page_on_one_mirror_is_found() {
    let world = volume(true);
    let plan = plan(&create_options()).unwrap();
    let pages_start = plan.geometry.metadata_bytes - plan.page_area_bytes;
    let mut damaged = 0;
    // Some pages are free: their contents are nobody's.
    for page in 0..8 {
        let at = metadata_offset(MetadataAddress(pages_start + page * (16 << 10)));
        world.flip_bit("component-1", at + 100, 0);
        damaged += usize::from(!report(&world).is_clean());
        world.flip_bit("component-1", at + 100, 0);
    }
    assert!(damaged > 0);
}

#[test]
fn a_log_that_one_mirror_lost_is_found() {
    let world = volume(false);
    world.poke("component-2", metadata_offset(LOG_START), &vec![0; 1 << 20]);
    assert_damage(&world, "(component-2): 0 of");
}

#[test]
fn flipped_bits_in_data_and_in_parity_are_found() {
    let geometry = geometry();
    let world = volume(true);
    for position in 0..6 {
        let position = ringfort_store::address::ComponentPosition(position);
        // Large writes fill the first segment that was opened after the bank's.
        for segment in 0..2 {
            let at = geometry.unit_offset(position, SegmentId(segment), StripeIndex(0));
            let path = format!("component-{}", position.0);
            world.flip_bit(&path, at + 5, 1);
            assert_damage(&world, &path);
            world.flip_bit(&path, at + 5, 1);
        }
    }
    assert!(report(&world).is_clean());
}

#[test]
fn a_closed_volume_tells_its_space_and_log_without_being_changed() {
    for closed in [true, false] {
        let world = volume(closed);
        let engine = world.engine();
        let inspected =
            async move { ringfort_store::status::inspect(engine, &components()).await.unwrap().0 };
        let report = world.run(inspected).done();
        assert_eq!(report.space.live_bytes, 104 * BLOCK_BYTES as u64);
        assert_eq!(report.space.total_bytes, 32 << 20);
        assert_eq!(report.log.used_bytes > 0, !closed);
        let writes = report.tree.components.iter().filter_map(|component| component.device);
        assert_eq!(writes.map(|device| device.writes).sum::<u64>(), 0);
    }
}

#[test]
fn a_root_of_a_later_release_is_refused_by_name() {
    let world = volume(true);
    let slot = metadata_offset(Root::slot(0));
    for mirror in 0..3 {
        let path = format!("component-{mirror}");
        let mut block = world.peek(&path, slot, BLOCK_BYTES);
        // The version, and the checksum over header and body with itself as zero.
        block[6] += 1;
        let body_bytes = u32::from_le_bytes(block[8..12].try_into().unwrap()) as usize;
        block[12..16].fill(0);
        let checksum = ringfort_store::format::checksum::crc32c(&block[..32 + body_bytes]);
        block[12..16].copy_from_slice(&checksum.to_le_bytes());
        world.poke(&path, slot, &block);
    }
    let engine = world.engine();
    let opened = world
        .run(async move { check(engine, &components(), &mut |_| {}).await.map(|(report, _)| report.damage) });
    let error = opened.done().unwrap_err();
    assert!(error.to_string().contains("a root of version 2"), "{error}");
}

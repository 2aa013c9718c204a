use ringfort_engine::sim::Fault;

use super::*;
use crate::error::ErrorKind;

const PLACE: MetadataAddress = MetadataAddress(3 * BLOCK_BYTES as u64);

fn is_block(number: u64) -> impl Fn(&[u8]) -> bool {
    move |bytes| bytes == block(number, 0)
}

#[test]
fn every_mirror_holds_what_was_written() {
    for dedicated_metadata in [false, true] {
        let geometry = Geometry { dedicated_metadata, ..geometry(4, 2) };
        let world = SimWorld::new(1);
        let engine = world.engine();
        let controls = world.controls();
        world
            .run(async move {
                let object = create(&engine, geometry).await;
                object.write_metadata(PLACE, vec![blocks(0..1, 0), blocks(1..3, 0)]).await.unwrap();
                object.flush_metadata().await.unwrap();
                assert_eq!(object.live_mirrors(), [0, 1, 2]);
                for mirror in 0..3 {
                    let path = disk(geometry.mirror_position(mirror));
                    let bytes = controls.peek(&path, geometry.metadata_base() + PLACE.0, 3 * BLOCK_BYTES);
                    assert_eq!(bytes, blocks(0..3, 0)[..]);
                    assert!(!controls.has_unflushed(&path));
                    let slice = object.read_metadata_mirror(mirror, PLACE, 3 * BLOCK_BYTES).await.unwrap();
                    assert_eq!(slice[..], blocks(0..3, 0)[..]);
                }
            })
            .done();
    }
}

#[test]
fn bad_copies_are_repaired_from_good_ones() {
    let geometry = geometry(4, 2);
    let world = SimWorld::new(2);
    let engine = world.engine();
    let controls = world.controls();
    world
        .run(async move {
            let object = create(&engine, geometry).await;
            object.write_metadata(PLACE, vec![blocks(0..1, 0)]).await.unwrap();
            let offset_bytes = geometry.metadata_base() + PLACE.0;
            controls.flip_bit("disk0", offset_bytes + 5, 5);
            controls.inject("disk1", Fault::ReadError(offset_bytes..offset_bytes + 1));
            // Each mirror has its turn as the first.
            for _ in 0..3 {
                let read = object.read_metadata(PLACE, BLOCK_BYTES, is_block(0)).await.unwrap();
                assert_eq!(read[..], block(0, 0));
            }
            assert!(controls.peek("disk0", offset_bytes, BLOCK_BYTES) == block(0, 0));
            assert!(object.tree().components[0].counters.repaired_blocks == 1);
            assert!(object.tree().components[1].counters.repaired_blocks >= 1);
            assert_eq!(object.tree().components[2].counters.repaired_blocks, 0);
            assert_eq!(object.tree().expelled_count, 0);

            for position in 0..3 {
                controls.flip_bit(disk(ComponentPosition(position)), offset_bytes, 0);
            }
            let error = object.read_metadata(PLACE, BLOCK_BYTES, is_block(0)).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Damaged);
            let message = error.to_string();
            assert!(message.contains("metadata at 12288"), "{message}");
            assert!(message.contains("component 2 (disk2): wrong contents"), "{message}");
        })
        .done();
}

#[test]
fn a_mirror_that_fails_a_write_is_out_and_one_is_enough() {
    let geometry = geometry(4, 2);
    let world = SimWorld::new(3);
    let engine = world.engine();
    let controls = world.controls();
    world
        .run(async move {
            let object = create(&engine, geometry).await;
            object.write_metadata(PLACE, vec![blocks(0..1, 0)]).await.unwrap();
            for (position, lost) in [(1, vec![0, 2]), (0, vec![2])] {
                controls.inject(disk(ComponentPosition(position)), Fault::NextWriteError(0..u64::MAX));
                object.write_metadata(PLACE, vec![blocks(1..2, 0)]).await.unwrap();
                assert_eq!(object.live_mirrors(), lost);
                let read = object.read_metadata(PLACE, BLOCK_BYTES, |_| true).await.unwrap();
                assert_eq!(read[..], block(1, 0));
            }
            object.write_metadata_mirror(0, PLACE, vec![blocks(5..6, 0)]).await.unwrap();
            assert!(object.read_metadata_mirror(0, PLACE, BLOCK_BYTES).await.is_err());
            controls.inject("disk2", Fault::Vanish);
            let error = object.write_metadata(PLACE, vec![blocks(2..3, 0)]).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Unavailable);
        })
        .done();
}

#[test]
fn requests_outside_the_region_are_refused() {
    let geometry = geometry(4, 2);
    let world = SimWorld::new(4);
    let engine = world.engine();
    world
        .run(async move {
            let object = create(&engine, geometry).await;
            for (address, len_blocks) in [(0, 17), (15 * 4096, 2), (100, 1), (u64::MAX - 4095, 1), (0, 0)] {
                let address = MetadataAddress(address);
                let read = object.read_metadata(address, len_blocks * BLOCK_BYTES, |_| true).await;
                assert_eq!(read.unwrap_err().kind, ErrorKind::Invalid);
                if len_blocks > 0 {
                    let write = object.write_metadata(address, vec![blocks(0..len_blocks as u64, 0)]).await;
                    assert_eq!(write.unwrap_err().kind, ErrorKind::Invalid);
                }
            }
        })
        .done();
}

#[test]
fn only_what_is_dirty_is_flushed() {
    let geometry = geometry(4, 2);
    let world = SimWorld::new(5);
    let engine = world.engine();
    world
        .run(async move {
            let object = create(&engine, geometry).await;
            let flushes = |object: &Object| -> Vec<u64> {
                object.tree().components.iter().map(|component| component.device.unwrap().flushes).collect()
            };
            let start = flushes(&object);
            let since = |object: &Object| -> Vec<u64> {
                flushes(object).iter().zip(&start).map(|(now, start)| now - start).collect()
            };
            object.flush_all().await.unwrap();
            assert_eq!(since(&object), [0, 0, 0, 0, 0, 0]);
            object.write_metadata(PLACE, vec![blocks(0..1, 0)]).await.unwrap();
            object.flush_data().await.unwrap();
            assert_eq!(since(&object), [0, 0, 0, 0, 0, 0]);
            object.flush_metadata().await.unwrap();
            object.flush_metadata().await.unwrap();
            assert_eq!(since(&object), [1, 1, 1, 0, 0, 0]);
            Summary::default().write(&object, SegmentId(0), 0..1, 8, 0).await.unwrap();
            object.write_metadata(PLACE, vec![blocks(0..1, 0)]).await.unwrap();
            object.flush_all().await.unwrap();
            assert_eq!(since(&object), [2, 2, 2, 1, 1, 1]);
            object.flush_all().await.unwrap();
            assert_eq!(since(&object), [2, 2, 2, 1, 1, 1]);
        })
        .done();
}

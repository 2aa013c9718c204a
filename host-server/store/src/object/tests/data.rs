use ringfort_engine::sim::Fault;

use super::*;
use crate::error::ErrorKind;
use crate::object::Health;

/// Writes segments 0 to 2, so that three rotations are seen.
async fn fill(object: &Object) -> Summary {
    let summary = Summary::default();
    for segment in 0..3 {
        summary.write(object, SegmentId(segment), 0..1, 3, 1).await.unwrap();
        summary.write(object, SegmentId(segment), 1..4, 5, 1).await.unwrap();
    }
    object.flush_data().await.unwrap();
    summary
}

async fn check_everything(object: &Object, summary: &Summary) {
    let per_segment = object.geometry().blocks_per_segment();
    for segment in 0..3 {
        let first = segment * per_segment;
        summary.check(object, first, per_segment, 1).await.unwrap();
        // A few odd pieces: one block, the end of a stripe and the beginning of the next, a single column.
        summary.check(object, first, 1, 1).await.unwrap();
        summary.check(object, first + per_segment - 1, 1, 1).await.unwrap();
        let middle = first + object.geometry().blocks_per_stripe();
        summary.check(object, middle - 1, 2, 1).await.unwrap();
        summary.check(object, middle + 1, per_segment / 2, 1).await.unwrap();
    }
}

#[test]
fn what_was_written_is_read_whatever_is_absent() {
    for (k, m) in [(1, 0), (1, 1), (1, 3), (2, 1), (4, 2), (3, 3), (16, 3)] {
        let geometry = geometry(k, m);
        let world = SimWorld::new(1);
        let engine = world.engine();
        let summary = world
            .run(async move {
                let object = create(&engine, geometry).await;
                let summary = fill(&object).await;
                check_everything(&object, &summary).await;
                assert_eq!(*summary.loads.borrow(), 0);
                assert_eq!(object.tree().health, Health::Healthy);
                summary
            })
            .done();
        let count = geometry.component_count();
        let all_patterns: Vec<u32> =
            (1u32..1 << count).filter(|lost| lost.count_ones() <= u32::from(m)).collect();
        // For the largest code a sample of the patterns will do.
        let step = (all_patterns.len() / 60).max(1);
        for lost in all_patterns.into_iter().step_by(step) {
            let engine = world.engine();
            let summary = &summary;
            let object_paths: Vec<PathBuf> = paths(&geometry)
                .into_iter()
                .enumerate()
                .map(|(index, path)| if lost >> index & 1 == 1 { PathBuf::from("gone") } else { path })
                .collect();
            world
                .run(async move {
                    let options = OpenOptions { allow_partial_membership: true, ..READ };
                    let opened = Object::open(engine, &object_paths, options).await;
                    let mirrors_left = (0..geometry.mirror_count).any(|mirror| lost >> mirror & 1 == 0);
                    assert!(mirrors_left, "as many mirrors as losses");
                    let (object, report) = opened.unwrap();
                    assert_eq!(report.missing_count, lost.count_ones() as usize);
                    assert_eq!(object.tree().health, Health::Degraded);
                    check_everything(&object, summary).await;
                })
                .done();
        }
    }
}

#[test]
fn a_degraded_read_asks_each_component_once() {
    let geometry = geometry(4, 2);
    let world = SimWorld::new(2);
    let engine = world.engine();
    world
        .run(async move {
            let object = create(&engine, geometry).await;
            let summary = fill(&object).await;
            drop(object);
            let mut paths = paths(&geometry);
            paths[1] = "gone".into();
            let (object, _) = Object::open(engine, &paths, READ).await.unwrap();
            let reads = |object: &Object| -> Vec<u64> {
                let components = object.tree().components;
                components
                    .iter()
                    .filter_map(|component| component.device.map(|device| device.reads))
                    .collect()
            };
            let before = reads(&object);
            summary.check(&object, 0, geometry.blocks_per_segment(), 1).await.unwrap();
            let asked: Vec<u64> =
                reads(&object).iter().zip(before).map(|(after, before)| after - before).collect();
            assert_eq!(asked.iter().sum::<u64>(), 4);
            assert_eq!(asked.iter().max(), Some(&1));
        })
        .done();
}

#[test]
fn flipped_bits_are_repaired_in_place() {
    let geometry = geometry(4, 2);
    let world = SimWorld::new(3);
    let engine = world.engine();
    let controls = world.controls();
    world
        .run(async move {
            let object = create(&engine, geometry).await;
            let summary = fill(&object).await;
            // Two columns of one row, as many as the code bears, and a third block elsewhere.
            for number in [0, 2, 21] {
                let (path, offset_bytes) = find_on_disk(&geometry, geometry.locate(PhysicalBlock(number)));
                controls.flip_bit(&path, offset_bytes + 77, 3);
            }
            summary.check(&object, 0, geometry.blocks_per_segment(), 1).await.unwrap();
            assert_eq!(object.tree().counters.damaged_blocks, 3);
            assert_eq!(object.tree().counters.repaired_blocks, 3);
            for number in [0, 2, 21] {
                let (path, offset_bytes) = find_on_disk(&geometry, geometry.locate(PhysicalBlock(number)));
                assert!(controls.peek(&path, offset_bytes, BLOCK_BYTES) == block(number, 1));
            }
            summary.check(&object, 0, geometry.blocks_per_segment(), 1).await.unwrap();
            assert_eq!(object.tree().counters.repaired_blocks, 3);
            assert_eq!(object.tree().expelled_count, 0);
        })
        .done();
}

#[test]
fn damaged_sources_are_not_used_for_reconstruction() {
    let geometry = geometry(4, 2);
    let world = SimWorld::new(4);
    let engine = world.engine();
    let controls = world.controls();
    world
        .run(async move {
            let object = create(&engine, geometry).await;
            let summary = fill(&object).await;
            let wanted = geometry.locate(PhysicalBlock(0));
            let source = ColumnBlock { column: ColumnIndex(1), ..wanted };
            for place in [wanted, source] {
                let (path, offset_bytes) = find_on_disk(&geometry, place);
                controls.flip_bit(&path, offset_bytes, 0);
            }
            summary.check(&object, 0, 1, 1).await.unwrap();

            // Three columns of the row: one too many. Never wrong bytes, and the error says where.
            let third = ColumnBlock { column: ColumnIndex(4), ..wanted };
            for place in [wanted, third, ColumnBlock { column: ColumnIndex(2), ..wanted }] {
                let (path, offset_bytes) = find_on_disk(&geometry, place);
                controls.flip_bit(&path, offset_bytes, 0);
            }
            let error = summary.check(&object, 0, 1, 1).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Damaged);
            let message = error.to_string();
            assert!(
                message.contains("physical block 0") && message.contains("component 0 (disk0)"),
                "{message}"
            );
            assert!(message.contains("component 4 (disk4) gives wrong bytes"), "{message}");
            // What else is in the row is still there.
            summary.check(&object, 6, 1, 1).await.unwrap();
        })
        .done();
}

#[test]
fn a_bad_sector_on_every_component_is_survived_if_the_rows_differ() {
    let geometry = geometry(4, 2);
    let world = SimWorld::new(5);
    let engine = world.engine();
    let controls = world.controls();
    world
        .run(async move {
            let object = create(&engine, geometry).await;
            let summary = fill(&object).await;
            for column in 0..6u8 {
                // Row `column` of that column.
                let place = ColumnBlock {
                    segment: SegmentId(0),
                    stripe: StripeIndex(u32::from(column) / 2),
                    column: ColumnIndex(column),
                    block_in_unit: u32::from(column) % 2,
                };
                let (path, offset_bytes) = find_on_disk(&geometry, place);
                controls.inject(&path, Fault::ReadError(offset_bytes..offset_bytes + 512));
            }
            summary.check(&object, 0, geometry.blocks_per_segment(), 1).await.unwrap();
            assert_eq!(object.tree().expelled_count, 0);
        })
        .done();
}

#[test]
fn writes_go_on_without_a_component_and_leave_it_behind() {
    let geometry = geometry(4, 2);
    let world = SimWorld::new(6);
    let engine = world.engine();
    let controls = world.controls();
    world
        .run(async move {
            let object = create(&engine, geometry).await;
            let summary = fill(&object).await;
            controls.inject("disk3", Fault::Vanish);
            summary.write(&object, SegmentId(0), 0..4, 8, 2).await.unwrap();
            object.flush_data().await.unwrap();
            assert_eq!(object.tree().expelled_count, 1);
            summary.check(&object, 0, geometry.blocks_per_segment(), 2).await.unwrap();
            drop(object);
            // It comes back with old bytes, and is not asked.
            controls.heal("disk3");
            let (object, report) = open(&engine, &geometry, WRITE).await.unwrap();
            assert_eq!(report.missing_count, 1);
            summary.check(&object, 0, geometry.blocks_per_segment(), 2).await.unwrap();
            assert_eq!(object.tree().counters.damaged_blocks, 0);
        })
        .done();
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let geometry = geometry(4, 2);
    let world = SimWorld::new(7);
    let engine = world.engine();
    world
        .run(async move {
            let object = create(&engine, geometry).await;
            let stripe = || blocks(0..geometry.blocks_per_stripe(), 0);
            for (segment, stripe_index, data) in [
                (0, 0, vec![]),
                (0, 0, vec![Slice::copy_of(&[0; 4096])]),
                (0, 4, vec![stripe()]),
                (0, 3, vec![stripe(), stripe()]),
                (7, 0, vec![stripe()]),
                (0, u32::MAX, vec![stripe()]),
            ] {
                let error = object.write_stripes(SegmentId(segment), StripeIndex(stripe_index), data).await;
                assert_eq!(error.unwrap_err().kind, ErrorKind::Invalid);
            }
            let per_segment = geometry.blocks_per_segment();
            for (first, count) in [(0, 0), (per_segment - 1, 2), (per_segment * 7, 1), (u64::MAX, 2)] {
                let expected = vec![BlockChecksum::default(); count];
                let error = read_blocks(&object, first, &expected, &Summary::default()).await.unwrap_err();
                assert_eq!(error.kind, ErrorKind::Invalid);
            }
        })
        .done();
}

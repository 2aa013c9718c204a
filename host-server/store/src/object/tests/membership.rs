use ringfort_engine::sim::{CrashMode, Fault};
use ringfort_engine::sync::join_all;

use super::*;
use crate::error::ErrorKind;
use crate::format::component::{LABEL_SLOTS, Label, MemberState};
use crate::object::Health;

/// The newest label on a device, durable or not.
fn newest_label(world: &ringfort_engine::sim::Controls, position: u8) -> Label {
    let labels = LABEL_SLOTS
        .iter()
        .filter_map(|slot| Label::decode(&world.peek(disk(ComponentPosition(position)), *slot, 4096)).ok());
    labels.max_by_key(|label| label.sequence).unwrap()
}

#[test]
fn a_failed_write_expels_before_it_is_answered() {
    let geometry = geometry(4, 2);
    let world = SimWorld::new(1);
    let engine = world.engine();
    let controls = world.controls();
    world
        .run(async move {
            let object = create(&engine, geometry).await;
            controls.inject("disk5", Fault::NextWriteError(0..u64::MAX));
            let summary = Summary::default();
            summary.write(&object, SegmentId(0), 0..2, 8, 0).await.unwrap();
            for position in 0..5 {
                let label = newest_label(&controls, position);
                assert!(matches!(label.members[5].state, MemberState::Failed { .. }));
                assert_eq!(label.sequence, object.tree().sequence);
            }
            assert_eq!(newest_label(&controls, 5).members[5].state, MemberState::Live);
            assert_eq!(object.tree().expelled_count, 1);
            assert!(object.tree().components[5].failure.as_ref().unwrap().contains("input/output error"));
            summary.check(&object, 0, 16, 0).await.unwrap();
        })
        .done();
}

#[test]
fn a_failed_or_hanging_flush_expels_and_is_not_retried() {
    for fault in [Fault::NextFlushError, Fault::Hang] {
        let geometry = geometry(4, 2);
        let world = SimWorld::new(2);
        let engine = world.engine();
        let controls = world.controls();
        world
            .run(async move {
                let object = create(&engine, geometry).await;
                let summary = Summary::default();
                summary.write(&object, SegmentId(0), 0..2, 8, 0).await.unwrap();
                controls.inject("disk4", fault);
                object.flush_data().await.unwrap();
                assert_eq!(object.tree().expelled_count, 1);
                assert_eq!(object.tree().health, Health::Degraded);
                assert!(matches!(newest_label(&controls, 0).members[4].state, MemberState::Failed { .. }));
                let asked = object.tree().components[4].device;
                assert!(asked.is_some_and(|device| device.writes > 0), "what it did is still told");
                summary.check(&object, 0, 16, 0).await.unwrap();
                summary.write(&object, SegmentId(0), 2..3, 8, 8).await.unwrap();
                object.flush_data().await.unwrap();
                assert_eq!(object.tree().components[4].device, asked, "nothing more is asked of it");
            })
            .done();
    }
}

#[test]
fn with_too_few_components_writes_stop_and_reads_go_on() {
    let geometry = geometry(4, 2);
    let world = SimWorld::new(3);
    let engine = world.engine();
    let controls = world.controls();
    world
        .run(async move {
            let object = create(&engine, geometry).await;
            let summary = Summary::default();
            summary.write(&object, SegmentId(0), 0..2, 8, 0).await.unwrap();
            object.flush_all().await.unwrap();
            let label = newest_label(&controls, 0);
            for position in [3, 4, 5] {
                controls.inject(disk(ComponentPosition(position)), Fault::WriteError(0..u64::MAX));
            }
            let error = summary.write(&object, SegmentId(1), 0..1, 8, 0).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Unavailable);
            assert!(error.advice.contains("component 4 (disk4)"), "{error}");
            assert!(matches!(object.tree().health, Health::Failed(_)));
            // No label was written that would shut the others out for good.
            assert_eq!(newest_label(&controls, 0), label);
            for result in [
                object.flush_all().await,
                object.write_metadata(MetadataAddress(0), vec![blocks(0..1, 0)]).await,
            ] {
                assert_eq!(result.unwrap_err().kind, ErrorKind::Unavailable);
            }
            // What three columns can give.
            summary.check(&object, 0, 2, 0).await.unwrap();
            drop(object);
            for position in [3, 4, 5] {
                controls.heal(disk(ComponentPosition(position)));
            }
            let (object, report) = open(&engine, &geometry, WRITE).await.unwrap();
            assert_eq!(report.findings, []);
            summary.check(&object, 0, 16, 0).await.unwrap();
        })
        .done();
}

#[test]
fn components_that_fail_together_leave_together() {
    let geometry = geometry(4, 2);
    let world = SimWorld::new(4);
    let engine = world.engine();
    let controls = world.controls();
    world
        .run(async move {
            let object = create(&engine, geometry).await;
            controls.inject("disk1", Fault::Vanish);
            controls.inject("disk4", Fault::Slow(std::time::Duration::from_millis(3)));
            controls.inject("disk4", Fault::WriteError(0..u64::MAX));
            let summary = Summary::default();
            // Several writers see the failures at different times; none is answered too early.
            let writers = (0..4).map(|segment| {
                let (summary, object, controls) = (&summary, &object, &controls);
                async move {
                    summary.write(object, SegmentId(segment), 0..4, 8, 0).await.unwrap();
                    for lost in [1, 4] {
                        let state = newest_label(controls, 0).members[lost].state;
                        assert!(matches!(state, MemberState::Failed { .. }));
                    }
                }
            });
            join_all(writers).await;
            assert_eq!(object.tree().expelled_count, 2);
            for segment in 0..4 {
                let per_segment = geometry.blocks_per_segment();
                summary.check(&object, segment * per_segment, per_segment, 0).await.unwrap();
            }
        })
        .done();
}

/// What of the workload had been answered.
#[derive(Default)]
struct Answered {
    /// How often the data and the metadata had been written and flushed.
    data: u64,
    metadata: u64,
}

/// Two writings of one stripe and one metadata block, with failures in between.
async fn workload(
    engine: Rc<dyn Engine>,
    controls: ringfort_engine::sim::Controls,
    summaries: &[Summary; 2],
    answered: &RefCell<Answered>,
) {
    let geometry = geometry(4, 2);
    let (object, _) = open(&engine, &geometry, WRITE).await.unwrap();
    for writing in 0..2u64 {
        if writing == 1 {
            controls.inject("disk0", Fault::NextWriteError(0..u64::MAX));
            controls.inject("disk5", Fault::NextFlushError);
        }
        // Each writing has a segment of its own, since nothing is overwritten that something refers to.
        let summary = &summaries[writing as usize];
        summary.write(&object, SegmentId(writing as u32), 0..2, 3, writing).await.unwrap();
        object.flush_data().await.unwrap();
        answered.borrow_mut().data = writing + 1;
        object.write_metadata(MetadataAddress(0), vec![blocks(0..1, writing)]).await.unwrap();
        object.flush_metadata().await.unwrap();
        answered.borrow_mut().metadata = writing + 1;
    }
}

#[test]
fn after_a_crash_anywhere_nothing_answered_is_missing() {
    let geometry = geometry(4, 2);
    let mut point = 1;
    loop {
        let world = world_with_object(point, geometry);
        let engine = world.engine();
        let (summaries, answered) = (<[Summary; 2]>::default(), RefCell::new(Answered::default()));
        world.crash_at_point(world.count_points() + point);
        let crashed = world.run(workload(engine, world.controls(), &summaries, &answered)).is_crashed();
        for path in world.paths() {
            world.heal(path);
        }
        let engine = world.restart(CrashMode::PowerLoss, point);
        let answered = answered.into_inner();
        world
            .run(async {
                let (object, _) = open(&engine, &geometry, WRITE).await.unwrap();
                for writing in 0..answered.data {
                    let first = writing * geometry.blocks_per_segment();
                    summaries[writing as usize].check(&object, first, 16, writing).await.unwrap();
                }
                if let Some(newest) = answered.metadata.checked_sub(1) {
                    // Every mirror in use, since a reader may begin with any.
                    for mirror in object.live_mirrors() {
                        let read = object
                            .read_metadata_mirror(mirror, MetadataAddress(0), BLOCK_BYTES)
                            .await
                            .unwrap();
                        let is_newer = answered.metadata < 2 && answered.data > answered.metadata;
                        assert!(is_newer || read[..] == block(0, newest), "point {point}, mirror {mirror}");
                    }
                }
            })
            .done();
        if !crashed {
            assert!(point > 20, "the workload has {point} points");
            break;
        }
        point += 1;
    }
}

use ringfort_engine::sim::{CrashMode, Fault};

use super::*;
use crate::error::ErrorKind;
use crate::object::Health;

fn spare() -> ComponentSpec {
    ComponentSpec { path: "spare".into() }
}

/// Writes part of what the object can hold, some of it only after component `lost` is gone.
async fn fill(object: &Object, lost: &str, controls: &ringfort_engine::sim::Controls) -> Summary {
    let summary = Summary::default();
    summary.write(object, SegmentId(0), 0..4, 7, 0).await.unwrap();
    summary.write(object, SegmentId(1), 1..2, 7, 0).await.unwrap();
    object.write_metadata(MetadataAddress(8192), vec![blocks(0..2, 0)]).await.unwrap();
    controls.inject(lost, Fault::Vanish);
    summary.write(object, SegmentId(5), 0..3, 7, 0).await.unwrap();
    object.write_metadata(MetadataAddress(0), vec![blocks(5..6, 0)]).await.unwrap();
    object.flush_all().await.unwrap();
    summary
}

async fn check(object: &Object, summary: &Summary) {
    let (segment, stripe) = (object.geometry().blocks_per_segment(), object.geometry().blocks_per_stripe());
    summary.check(object, 0, segment, 0).await.unwrap();
    summary.check(object, segment + stripe, stripe, 0).await.unwrap();
    summary.check(object, 5 * segment, 3 * stripe, 0).await.unwrap();
    for mirror in object.live_mirrors() {
        let read = object.read_metadata_mirror(mirror, MetadataAddress(0), 4 * BLOCK_BYTES).await.unwrap();
        assert!(read[..BLOCK_BYTES] == block(5, 0) && read[2 * BLOCK_BYTES..] == blocks(0..2, 0)[..]);
    }
}

#[test]
fn a_replaced_component_serves_in_place_of_the_lost_one() {
    for lost in [0, 4] {
        let geometry = geometry(4, 2);
        let world = SimWorld::new(u64::from(lost));
        let engine = world.engine();
        let controls = world.controls();
        world
            .run(async move {
                let mut object = create(&engine, geometry).await;
                let lost = ComponentPosition(lost);
                let summary = fill(&object, disk(lost).to_str().unwrap(), &controls).await;
                let error = object
                    .replace(ComponentPosition(1), &spare(), &summary, &mut |_, _| {})
                    .await
                    .unwrap_err();
                assert_eq!(error.kind, ErrorKind::Invalid);
                object.replace(lost, &spare(), &summary, &mut |_, _| {}).await.unwrap();
                assert_eq!(object.tree().health, Health::Healthy);
                check(&object, &summary).await;
                drop(object);

                // Two others go: now it is needed.
                let mut paths = paths(&geometry);
                paths[usize::from(lost.0)] = "spare".into();
                paths[2] = "gone".into();
                paths[3] = "gone".into();
                let (object, report) = Object::open(engine, &paths, READ).await.unwrap();
                assert_eq!(report.missing_count, 2);
                check(&object, &summary).await;
                assert_eq!(object.tree().counters.damaged_blocks, 0);
            })
            .done();
    }
}

#[test]
fn a_crash_while_replacing_leaves_the_object_as_it_was_or_whole() {
    let geometry = geometry(2, 1);
    let mut point = 1;
    loop {
        let world = SimWorld::new(point);
        let engine = world.engine();
        let controls = world.controls();
        let (mut object, summary) = world
            .run(async move {
                let object = create(&engine, geometry).await;
                let summary = fill(&object, "disk1", &controls).await;
                (object, summary)
            })
            .done();
        world.crash_at_point(world.count_points() + point);
        let replaced = world
            .run(async { object.replace(ComponentPosition(1), &spare(), &summary, &mut |_, _| {}).await });
        drop(object);
        let is_done = !replaced.is_crashed();
        let engine = world.restart(CrashMode::PowerLoss, point);
        let mut paths = paths(&geometry);
        paths[1] = "spare".into();
        world
            .run(async {
                let (object, report) = Object::open(engine, &paths, WRITE).await.unwrap();
                check(&object, &summary).await;
                assert_eq!(object.tree().counters.damaged_blocks, 0, "point {point}");
                assert!(!is_done || report.missing_count == 0);
            })
            .done();
        if is_done {
            break;
        }
        point += 1;
    }
}

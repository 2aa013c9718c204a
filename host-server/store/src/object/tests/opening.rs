use ringfort_engine::sim::{CrashMode, Fault};

use super::*;
use crate::error::ErrorKind;
use crate::format::component::{LABEL_SLOTS, Label, MemberState};
use crate::object::{Finding, FindingKind, Health};

fn kinds(report: &OpenReport) -> Vec<FindingKind> {
    report.findings.iter().map(|finding| finding.kind).collect()
}

fn only(report: &OpenReport, kind: FindingKind) -> Finding {
    assert_eq!(kinds(report), [kind], "{:?}", report.findings);
    report.findings[0].clone()
}

/// Opens for writing, after a change of the world that takes component 2 away.
fn open_without_2(change: impl FnOnce(&SimWorld)) -> OpenReport {
    let geometry = geometry(4, 2);
    let world = world_with_object(1, geometry);
    change(&world);
    let engine = world.engine();
    world
        .run(async move {
            let (object, report) = open(&engine, &geometry, WRITE).await.unwrap();
            assert_eq!(report.missing_count, 1);
            assert_eq!(report.volume, VOLUME);
            assert_eq!(object.tree().health, Health::Degraded);
            assert!(matches!(object.tree().components[2].state, MemberState::Failed { .. }));
            report
        })
        .done()
}

#[test]
fn a_whole_object_opens_without_a_word() {
    let geometry = geometry(4, 2);
    let world = world_with_object(1, geometry);
    let engine = world.engine();
    world
        .run(async move {
            for options in [WRITE, READ, WRITE] {
                let (object, report) = open(&engine, &geometry, options).await.unwrap();
                assert_eq!(report.findings, []);
                assert_eq!(object.geometry(), &geometry);
                assert_eq!(object.volume(), VOLUME);
                assert_eq!(object.tree().health, Health::Healthy);
            }
        })
        .done();
}

#[test]
fn a_missing_component_is_named_and_marked() {
    let report = open_without_2(|world| world.remove("disk2"));
    let finding = only(&report, FindingKind::Missing);
    assert_eq!(finding.path, Some("disk2".into()));
    assert_eq!(finding.position, Some(ComponentPosition(2)));
    assert!(finding.to_string().starts_with("component 2 (disk2): "), "{finding}");
}

#[test]
fn an_unreadable_component_is_named() {
    let report = open_without_2(|world| world.inject("disk2", Fault::ReadError(0..u64::MAX)));
    let finding = only(&report, FindingKind::Unreadable);
    assert!(finding.to_string().contains("component 2 (disk2): input/output error"), "{finding}");
}

#[test]
fn a_short_component_is_named_with_both_lengths() {
    let report = open_without_2(|world| world.set_len("disk2", 1 << 20));
    let finding = only(&report, FindingKind::Short);
    assert_eq!(finding.found, "only 1048576 bytes");
    assert!(finding.expected.ends_with(" bytes"), "{finding}");
    let report = open_without_2(|world| world.set_len("disk2", 4096));
    assert_eq!(only(&report, FindingKind::Short).found, "4096 bytes, too short for a label");
}

#[test]
fn a_blank_component_is_named() {
    let report = open_without_2(|world| {
        LABEL_SLOTS.map(|slot| world.poke("disk2", slot, &[0; 4096])).into_iter().collect()
    });
    assert_eq!(only(&report, FindingKind::Unlabelled).position, Some(ComponentPosition(2)));
}

#[test]
fn a_damaged_label_leaves_the_other() {
    let geometry = geometry(4, 2);
    for slot in LABEL_SLOTS {
        let world = world_with_object(1, geometry);
        for path in world.paths() {
            world.poke(path, slot + 200, b"damage");
        }
        let engine = world.engine();
        world
            .run(async move {
                let (_, report) = open(&engine, &geometry, WRITE).await.unwrap();
                assert_eq!(report.findings, []);
            })
            .done();
    }
}

#[test]
fn a_foreign_component_is_named_with_both_volumes() {
    let report = open_without_2(|world| {
        let engine = world.engine();
        world
            .run(async move {
                let specs: Vec<ComponentSpec> =
                    (0..6).map(|index| ComponentSpec { path: format!("other{index}").into() }).collect();
                Object::create(engine, &specs, geometry(4, 2), VolumeId(9)).await.map(drop).unwrap();
            })
            .done();
        world.rename("other2", "disk2");
    });
    let finding = only(&report, FindingKind::Foreign);
    assert!(
        finding.expected.contains(&VOLUME.to_string()) && finding.found.contains(&VolumeId(9).to_string())
    );
}

#[test]
fn swapped_components_are_used_where_they_belong() {
    let geometry = geometry(4, 2);
    let world = SimWorld::new(1);
    let engine = world.engine();
    let controls = world.controls();
    world
        .run(async move {
            let object = create(&engine, geometry).await;
            let summary = Summary::default();
            summary.write(&object, SegmentId(1), 0..4, 8, 0).await.unwrap();
            drop(object);
            controls.rename("disk4", "spare");
            controls.rename("disk1", "disk4");
            controls.rename("spare", "disk1");
            let (object, report) = open(&engine, &geometry, WRITE).await.unwrap();
            assert_eq!(kinds(&report), [FindingKind::Swapped, FindingKind::Swapped]);
            assert_eq!(report.missing_count, 0);
            summary.check(&object, geometry.blocks_per_segment(), 20, 0).await.unwrap();
            assert_eq!(object.tree().counters.damaged_blocks, 0);
        })
        .done();
}

#[test]
fn a_component_given_twice_is_refused() {
    let geometry = geometry(4, 2);
    let world = world_with_object(1, geometry);
    world.copy("disk1", "disk3");
    let engine = world.engine();
    world
        .run(async move {
            let error = open(&engine, &geometry, READ).await.map(drop).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Invalid);
            assert!(error.to_string().contains("twice: disk1 and disk3"), "{error}");
        })
        .done();
}

#[test]
fn an_old_copy_of_a_component_is_not_used() {
    let geometry = geometry(4, 2);
    let world = world_with_object(1, geometry);
    world.copy("disk2", "old");
    let engine = world.engine();
    let controls = world.controls();
    world
        .run(async move {
            let (object, _) = open(&engine, &geometry, WRITE).await.unwrap();
            let summary = Summary::default();
            summary.write(&object, SegmentId(0), 0..4, 8, 0).await.unwrap();
            object.flush_data().await.unwrap();
            drop(object);
            controls.rename("old", "disk2");
            let (object, report) = open(&engine, &geometry, WRITE).await.unwrap();
            assert_eq!(kinds(&report), [FindingKind::Stale]);
            summary.check(&object, 0, geometry.blocks_per_segment(), 0).await.unwrap();
            assert_eq!(object.tree().counters.damaged_blocks, 0);
        })
        .done();
}

#[test]
fn a_component_that_was_missing_once_stays_out() {
    let geometry = geometry(4, 2);
    let world = world_with_object(1, geometry);
    let engine = world.engine();
    let controls = world.controls();
    world
        .run(async move {
            controls.rename("disk2", "away");
            drop(open(&engine, &geometry, WRITE).await.unwrap());
            controls.rename("away", "disk2");
            let (object, report) = open(&engine, &geometry, WRITE).await.unwrap();
            assert_eq!(kinds(&report), [FindingKind::Failed]);
            assert!(report.findings[0].to_string().contains("disk2"), "{}", report.findings[0]);
            assert!(!object.components[2].is_live());
        })
        .done();
}

#[test]
fn opening_for_reading_changes_nothing() {
    let geometry = geometry(4, 2);
    let world = world_with_object(1, geometry);
    let engine = world.engine();
    let controls = world.controls();
    world
        .run(async move {
            controls.rename("disk2", "away");
            let labels = || LABEL_SLOTS.map(|slot| controls.peek("disk0", slot, 4096));
            let before = labels();
            let (object, _) = open(&engine, &geometry, READ).await.unwrap();
            let write = object.write_metadata(MetadataAddress(0), vec![blocks(0..1, 0)]).await;
            assert_eq!(write.unwrap_err().kind, ErrorKind::Invalid);
            drop(object);
            assert_eq!(labels(), before);
            controls.rename("away", "disk2");
            let (_, report) = open(&engine, &geometry, WRITE).await.unwrap();
            assert_eq!(report.findings, []);
        })
        .done();
}

#[test]
fn too_few_components_are_refused_with_what_would_help() {
    let geometry = geometry(4, 2);
    let world = world_with_object(1, geometry);
    let engine = world.engine();
    for path in ["disk1", "disk3", "disk5"] {
        world.remove(path);
    }
    world
        .run(async move {
            let error = open(&engine, &geometry, WRITE).await.map(drop).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Unavailable);
            let message = error.to_string();
            assert!(message.contains("3 are left (expected at least 4 of 6"), "{message}");
            assert!(message.contains("bring back component 1 (disk1)"), "{message}");
            let error = Object::open(engine, &["nothing".into()], WRITE).await.map(drop).unwrap_err();
            assert_eq!(error.kind, ErrorKind::NotFound);
        })
        .done();
}

#[test]
fn without_a_metadata_mirror_there_is_no_object() {
    let geometry = Geometry { dedicated_metadata: true, mirror_count: 2, ..geometry(4, 2) };
    let world = world_with_object(1, geometry);
    let engine = world.engine();
    let controls = world.controls();
    world
        .run(async move {
            controls.remove("disk7");
            let (object, report) = open(&engine, &geometry, READ).await.unwrap();
            assert_eq!((object.live_mirrors(), report.missing_count), (vec![0], 1));
            drop(object);
            controls.remove("disk6");
            let error = open(&engine, &geometry, WRITE).await.map(drop).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Unavailable);
            assert!(error.to_string().contains("one of 2 metadata mirrors"), "{error}");
        })
        .done();
}

#[test]
fn where_two_sets_could_serve_every_live_member_must_be_there() {
    let geometry = geometry(1, 1);
    let world = world_with_object(1, geometry);
    let engine = world.engine();
    let controls = world.controls();
    world
        .run(async move {
            controls.rename("disk1", "away");
            let error = open(&engine, &geometry, WRITE).await.map(drop).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Unavailable);
            assert!(error.advice.contains("allow partial membership"), "{error}");
            let options = OpenOptions { allow_partial_membership: true, ..WRITE };
            drop(open(&engine, &geometry, options).await.unwrap());
            // From now on component 0 knows that it serves alone.
            drop(open(&engine, &geometry, WRITE).await.unwrap());
            controls.rename("disk0", "other");
            controls.rename("away", "disk1");
            // The other one does not know, and must not serve what it has.
            assert!(open(&engine, &geometry, WRITE).await.is_err());
            drop(open(&engine, &geometry, options).await.unwrap());
            // Forced to, it has made a history of its own. Together they are told apart.
            controls.rename("other", "disk0");
            let result = open(&engine, &geometry, WRITE).await;
            match result {
                Ok((object, report)) => assert!(report.missing_count == 1 && object.components.len() == 2),
                Err(error) => assert_eq!(error.kind, ErrorKind::Damaged),
            }
        })
        .done();
}

#[test]
fn a_label_of_a_later_release_is_refused() {
    let geometry = geometry(4, 2);
    let world = world_with_object(1, geometry);
    let engine = world.engine();
    // The version field and a checksum to match: what a later release might write.
    let mut block = world.peek("disk5", 0, 4096);
    let label = Label::decode(&block).unwrap();
    let body_bytes = u32::from_le_bytes([block[8], block[9], block[10], block[11]]) as usize;
    crate::format::envelope::seal(
        &mut block,
        crate::format::envelope::Kind::ComponentLabel,
        3,
        label.volume,
        body_bytes,
    );
    world.poke("disk5", 0, &block);
    world
        .run(async move {
            let error = open(&engine, &geometry, WRITE).await.map(drop).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Incompatible);
            assert!(
                error.to_string().contains("disk5") && error.to_string().contains("version 3"),
                "{error}"
            );
        })
        .done();
}

#[test]
fn an_object_in_use_is_busy() {
    let geometry = geometry(4, 2);
    let world = SimWorld::new(1);
    let engine = world.engine();
    world
        .run(async move {
            let object = create(&engine, geometry).await;
            let error = open(&engine, &geometry, WRITE).await.map(drop).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Busy);
            drop(object);
            open(&engine, &geometry, WRITE).await.map(drop).unwrap();
        })
        .done();
}

#[test]
fn creation_overwrites_nothing() {
    let geometry = geometry(4, 2);
    let world = world_with_object(1, geometry);
    let engine = world.engine();
    let specs: Vec<ComponentSpec> = paths(&geometry).into_iter().map(|path| ComponentSpec { path }).collect();
    world.add_block_device("device0", 4 << 20);
    world
        .run(async move {
            let create = |specs: Vec<ComponentSpec>| {
                let engine = Rc::clone(&engine);
                async move { Object::create(engine, &specs, geometry, VolumeId(1)).await.map(drop) }
            };
            assert_eq!(create(specs.clone()).await.unwrap_err().kind, ErrorKind::Exists);
            assert_eq!(create(specs[..5].to_vec()).await.unwrap_err().kind, ErrorKind::Invalid);
            let named = |prefix: &str| -> Vec<ComponentSpec> {
                let path =
                    |index| if index == 0 { "device0".into() } else { format!("{prefix}{index}").into() };
                (0..6).map(|index| ComponentSpec { path: path(index) }).collect()
            };
            create(named("a")).await.unwrap();
            let error = create(named("b")).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Exists);
            assert!(error.to_string().contains("device0: component 0 of volume"), "{error}");
        })
        .done();
}

/// Two openings in a row are cut short while they write labels: nobody who missed nothing is taken for an old copy.
#[test]
fn openings_that_are_cut_short_one_after_the_other_leave_every_member_in_use() {
    let geometry = geometry(4, 2);
    for first in 1..60 {
        for second in (1..60).step_by(3) {
            let world = world_with_object(first, geometry);
            for (turn, point) in [first, second].into_iter().enumerate() {
                let engine = world.restart(CrashMode::PowerLoss, point * 100 + turn as u64);
                world.crash_at_point(point);
                let _ = world.run(async move { drop(open(&engine, &geometry, WRITE).await) });
            }
            let engine = world.restart(CrashMode::PowerLoss, first * 1000 + second);
            let (_, report) = world.run(async { open(&engine, &geometry, WRITE).await.unwrap() }).done();
            assert_eq!(report.missing_count, 0, "points {first} and {second}: {:?}", report.findings);
        }
    }
}

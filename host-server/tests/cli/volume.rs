//! Volumes made, looked at and checked.

use std::fs;

use serde_json::Value;

use crate::scene::{SIZE, Volume, contains_all, refused, ringfort, succeeds, text};

#[test]
fn a_new_volume_is_healthy_and_its_status_lists_every_component() {
    let volume = Volume::create(&[]);
    let status = volume.status();
    assert_eq!(status["health"], "healthy");
    assert_eq!(status["served"], Value::Null);
    assert_eq!(status["tree"]["data_columns"], 4);
    assert_eq!(status["tree"]["parity_columns"], 2);
    assert_eq!(status["tree"]["metadata_mirrors"], 3);
    assert_eq!(volume.states(), ["live"; 6]);
    let text = succeeds(&["volume", "status", volume.path()]);
    contains_all(&text, &["healthy", "component-0", "data+metadata", "data 4+2"]);
}

#[test]
fn components_may_be_given_and_metadata_may_have_its_own() {
    let elsewhere = tempfile::tempdir().unwrap();
    let path = |name: &str| elsewhere.path().join(name).to_string_lossy().into_owned();
    let [a, b, c, m, n] = ["a", "b", "c", "m", "n"].map(path);
    let mut arguments = vec!["--data", "2+1"];
    for component in [&a, &b, &c] {
        arguments.extend(["--component", component]);
    }
    for component in [&m, &n] {
        arguments.extend(["--metadata-component", component]);
    }
    let volume = Volume::create(&arguments);
    let status = volume.status();
    let holds: Vec<_> = status["tree"]["components"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["holds"].as_str().unwrap())
        .collect();
    assert_eq!(holds, ["data", "data", "data", "metadata", "metadata"]);
    assert!(!volume.component(0).exists());
}

#[test]
fn an_existing_volume_or_file_is_never_overwritten() {
    let volume = Volume::create(&[]);
    let message = refused(&["volume", "create", volume.path(), "--size", SIZE]);
    contains_all(&message, &["holds a volume already"]);

    let other = tempfile::tempdir().unwrap();
    let kept = other.path().join("component-3");
    fs::write(&kept, "precious").unwrap();
    let message = refused(&["volume", "create", other.path().to_str().unwrap(), "--size", SIZE]);
    contains_all(&message, &["component-3", "exists"]);
    assert_eq!(fs::read(&kept).unwrap(), b"precious");
    assert!(!other.path().join("component-0").exists());
}

#[test]
fn a_failed_creation_leaves_nothing_behind() {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("volume");
    let directory = directory.to_str().unwrap();
    let cases: [(&[&str], &[&str]); 5] = [
        (&["--size", "2PiB", "--memory", "1PiB"], &["make room", "--component"]),
        (&["--size", "64GiB", "--memory", "1MiB"], &["--memory", "maps"]),
        (&["--size", SIZE, "--component", "a"], &["1 component", "6 for 4+2"]),
        (&["--size", "1MiB"], &["at least 64 MiB"]),
        (&["--size", SIZE, "--log", "4KiB"], &["a log of 4096 bytes", "at least 1048576"]),
    ];
    for (arguments, parts) in cases {
        let message = refused(&[&["volume", "create", directory], arguments].concat());
        contains_all(&message, parts);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0, "{arguments:?}");
    }
}

#[test]
fn foreign_doubled_and_damaged_components_are_named() {
    let volume = Volume::create(&[]);
    let other = Volume::create(&[]);
    let kept = volume.root.path().join("kept");

    fs::rename(volume.component(2), &kept).unwrap();
    fs::copy(other.component(2), volume.component(2)).unwrap();
    let found = volume.status()["tree"]["findings"].to_string();
    contains_all(&found, &["component-2"]);
    assert_eq!(volume.status()["health"], "degraded");

    fs::copy(volume.component(3), volume.component(2)).unwrap();
    let message = refused(&["volume", "status", volume.path()]);
    contains_all(&message, &["twice", "component-2", "component-3"]);

    fs::write(volume.component(2), vec![0xa5; 1 << 20]).unwrap();
    let found = volume.status()["tree"]["findings"].to_string();
    contains_all(&found, &["component-2"]);

    fs::rename(&kept, volume.component(2)).unwrap();
    assert_eq!(volume.status()["health"], "healthy");
}

#[test]
fn a_check_tells_clean_from_degraded_from_damaged() {
    let volume = Volume::create(&[]);
    volume.serve().stop();
    let report: Value =
        serde_json::from_str(&succeeds(&["volume", "check", volume.path(), "--json"])).unwrap();
    assert_eq!(report["clean"], true);
    assert_eq!(report["filesystem"]["inodes"], 1);

    fs::remove_file(volume.component(5)).unwrap();
    let text = succeeds(&["volume", "check", volume.path()]);
    contains_all(&text, &["degraded: component 5", "clean"]);

    fs::remove_file(volume.component(3)).unwrap();
    fs::remove_file(volume.component(4)).unwrap();
    contains_all(&refused(&["volume", "check", volume.path()]), &["component-3", "4 of 6"]);
}

#[test]
fn damage_that_no_copy_survives_is_found_and_told() {
    let volume = Volume::create(&[]);
    // The roots on every mirror: behind the label region.
    for index in 0..3 {
        let file = fs::OpenOptions::new().write(true).open(volume.component(index)).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &vec![0xa5; 1 << 20], 1 << 20).unwrap();
    }
    let output = ringfort(&["volume", "check", volume.path()]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    contains_all(&text(&output.stdout), &["damage:", "DAMAGED"]);
}

//! Volumes grown, and lost components replaced.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::guest::Guest;
use crate::scene::{Volume, contains_all, refused, succeeds};

const PIECE_BYTES: usize = 256 << 10;

fn pattern(seed: u8) -> Vec<u8> {
    (0..PIECE_BYTES).map(|at| (at ^ (at >> 8)) as u8 ^ seed).collect()
}

/// Serves the volume while a guest writes `count` pieces into a new file.
fn write(volume: &Volume, file: &str, count: u8) {
    let server = volume.serve();
    let mut guest = Guest::connect(&volume.socket("guest"));
    let handle = guest.create(file);
    for piece in 0..count {
        guest.write(handle, u64::from(piece) * PIECE_BYTES as u64, &pattern(piece));
    }
    guest.sync(handle);
    drop(guest);
    server.stop();
}

/// Serves the volume while a guest reads them back.
fn verify(volume: &Volume, file: &str, count: u8) {
    let server = volume.serve();
    let mut guest = Guest::connect(&volume.socket("guest"));
    let handle = guest.open(file);
    for piece in 0..count {
        let read = guest.read(handle, u64::from(piece) * PIECE_BYTES as u64, PIECE_BYTES);
        assert!(read == pattern(piece), "piece {piece} of {file}");
    }
    drop(guest);
    server.stop();
}

fn check(volume: &Volume) {
    let report: Value =
        serde_json::from_str(&succeeds(&["volume", "check", volume.path(), "--json"])).unwrap();
    assert_eq!(report["clean"], true, "{report}");
}

fn size_bytes(volume: &Volume) -> u64 {
    volume.status()["space"]["total_bytes"].as_u64().unwrap()
}

#[test]
fn a_volume_of_files_grows_when_somebody_agrees_and_keeps_what_it_holds() {
    let volume = Volume::create(&["--data", "2+1"]);
    write(&volume, "file", 16);
    let message = refused(&["volume", "grow", volume.path(), "--by", "64MiB"]);
    contains_all(&message, &["from 64 MiB to 128 MiB", "--yes"]);
    assert_eq!(size_bytes(&volume), 64 << 20);

    let before = fs::metadata(volume.component(1)).unwrap().len();
    let grown = succeeds(&["volume", "grow", volume.path(), "--by", "64MiB", "--yes", "--json"]);
    let grown: Value = serde_json::from_str(&grown).unwrap();
    assert_eq!((&grown["before_bytes"], &grown["after_bytes"]), (&(64 << 20).into(), &(128 << 20).into()));
    assert_eq!(size_bytes(&volume), 128 << 20);
    assert!(fs::metadata(volume.component(1)).unwrap().len() > before);
    check(&volume);
    verify(&volume, "file", 16);

    // The same once more asks for nothing.
    let text = succeeds(&["volume", "grow", volume.path(), "--size", "128MiB"]);
    contains_all(&text, &["before: 128 MiB", "now:    128 MiB"]);
    contains_all(&succeeds(&["volume", "grow", volume.path()]), &["has 128 MiB already"]);
}

#[test]
fn what_cannot_grow_is_refused_with_the_reason() {
    let volume = Volume::create(&["--data", "2+1"]);
    let grow = |more: &[&str]| refused(&[&["volume", "grow", volume.path(), "--yes"], more].concat());
    contains_all(&grow(&["--size", "32MiB"]), &["33554432", "cannot be made smaller"]);
    contains_all(&grow(&["--size", "1GiB", "--by", "1GiB"]), &["--by", "--size"]);
    let server = volume.serve();
    contains_all(&grow(&["--by", "64MiB"]), &["in use", "ringfort serve"]);
    server.stop();
    fs::remove_file(volume.component(1)).unwrap();
    contains_all(&grow(&["--by", "64MiB"]), &["component 1 is not in use", "replace"]);
    assert_eq!(size_bytes(&volume), 64 << 20);
}

#[test]
fn lost_components_are_replaced_and_carry_the_volume_when_others_are_lost() {
    let volume = Volume::create(&[]);
    write(&volume, "old", 16);
    fs::remove_file(volume.component(0)).unwrap();
    fs::remove_file(volume.component(3)).unwrap();
    write(&volume, "new", 16);

    let text = succeeds(&["volume", "replace", volume.path(), "--position", "3"]);
    contains_all(&text, &["component 3", "component-3"]);
    let elsewhere = volume.root.path().join("elsewhere");
    let lines = succeeds(&[
        "volume",
        "replace",
        volume.path(),
        "--position",
        "0",
        "--component",
        elsewhere.to_str().unwrap(),
        "--json",
    ]);
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.len() > 1);
    assert_eq!(lines[0]["event"], "progress");
    let last = lines.last().unwrap();
    assert_eq!((&last["event"], &last["position"]), (&"done".into(), &0.into()));
    assert_eq!(volume.status()["health"], "healthy");
    check(&volume);

    fs::remove_file(volume.component(1)).unwrap();
    fs::remove_file(volume.component(5)).unwrap();
    verify(&volume, "old", 16);
    verify(&volume, "new", 16);
}

#[test]
fn what_needs_no_replacement_or_may_be_the_lost_one_is_left_alone() {
    let volume = Volume::create(&[]);
    let replace = |position: &str| refused(&["volume", "replace", volume.path(), "--position", position]);
    contains_all(&replace("2"), &["component 2", "in use"]);
    contains_all(&replace("6"), &["no component 6", "0 to 5"]);

    // One that missed writes comes back: its file is not overwritten.
    let away = volume.root.path().join("away");
    fs::rename(volume.component(1), &away).unwrap();
    write(&volume, "file", 4);
    fs::rename(&away, volume.component(1)).unwrap();
    let before = fs::metadata(volume.component(1)).unwrap().modified().unwrap();
    contains_all(&replace("1"), &["component-1"]);
    assert_eq!(fs::metadata(volume.component(1)).unwrap().modified().unwrap(), before);
    fs::rename(volume.component(1), &away).unwrap();
    succeeds(&["volume", "replace", volume.path(), "--position", "1"]);
    assert_eq!(volume.states(), ["live"; 6]);

    let server = volume.serve();
    contains_all(&replace("1"), &["in use", "ringfort serve"]);
    server.stop();
}

#[test]
fn a_replacement_that_is_killed_leaves_the_volume_as_it_was_and_can_be_begun_again() {
    let volume = Volume::create(&[]);
    write(&volume, "file", 16);
    fs::remove_file(volume.component(4)).unwrap();
    let elsewhere = volume.root.path().join("elsewhere");
    let replace = |path: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringfort"));
        command.args(["volume", "replace", volume.path(), "--position", "4", "--json", "--component"]);
        command.arg(path);
        command
    };
    let mut child = replace(&elsewhere).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    verify(&volume, "file", 16);

    assert!(
        replace(&elsewhere).stdout(Stdio::null()).status().unwrap().success() || volume.states()[4] == "live"
    );
    assert_eq!(volume.status()["health"], "healthy");
    check(&volume);
    verify(&volume, "file", 16);
}

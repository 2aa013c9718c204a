//! `volume list`

use std::fs;

use serde_json::Value;

use crate::scene::{Volume, contains_all, ringfort, succeeds, text};

#[test]
fn volumes_are_found_below_a_directory_with_how_they_are() {
    let idle = Volume::create(&[]);
    let served = Volume::create(&["--data", "2+1"]);
    let server = served.serve();
    fs::remove_file(idle.component(0)).unwrap();
    // A link that leads back up is not followed.
    std::os::unix::fs::symlink(idle.root.path(), idle.root.path().join("loop")).unwrap();

    let roots = [&idle, &served].map(|volume| volume.root.path().to_str().unwrap());
    let list: Value =
        serde_json::from_str(&succeeds(&["volume", "list", roots[0], roots[1], "--json"])).unwrap();
    let volumes = list["volumes"].as_array().unwrap();
    assert_eq!(volumes.len(), 2);
    let of = |volume: &Volume| {
        let directory = volume.directory().canonicalize().unwrap();
        let found = volumes.iter().find(|entry| entry["directory"] == directory.to_str().unwrap());
        found.unwrap().clone()
    };
    let entry = of(&idle);
    assert_eq!(entry["health"], "degraded");
    assert_eq!(entry["served_by_pid"], Value::Null);
    assert_eq!((entry["components_live"].as_u64(), entry["components"].as_u64()), (Some(5), Some(6)));
    let entry = of(&served);
    assert_eq!(entry["health"], "healthy");
    assert_eq!(entry["served_by_pid"], server.child.id());
    assert_eq!(entry["size_bytes"], 64 << 20);
    assert!(entry["used_bytes"].as_u64().is_some());

    let table = succeeds(&["volume", "list", roots[0], roots[1]]);
    contains_all(&table, &["DIRECTORY", "degraded", "5/6", "3/3", "64 MiB"]);
    server.stop();
}

#[test]
fn one_that_cannot_be_read_does_not_hide_the_others() {
    let volume = Volume::create(&[]);
    let broken = volume.root.path().join("broken");
    fs::create_dir(&broken).unwrap();
    fs::write(broken.join("volume.toml"), "version = 99\n").unwrap();
    let output = ringfort(&["volume", "list", volume.root.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    contains_all(&text(&output.stdout), &["healthy", "unreadable", "version 99"]);
}

#[test]
fn where_there_is_none_the_list_is_empty() {
    let nothing = tempfile::tempdir().unwrap();
    contains_all(&succeeds(&["volume", "list", nothing.path().to_str().unwrap()]), &["no volumes"]);
    assert_eq!(ringfort(&["volume", "list", "/nonexistent"]).status.code(), Some(2));
}

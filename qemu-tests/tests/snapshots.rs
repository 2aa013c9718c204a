//! Snapshots and clones in real guests: what was written before is found as it was, and a clone is another guest's filesystem.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails

use std::time::Duration;

use ringfort_qemu_tests::agent::AGENT;
use ringfort_qemu_tests::scene::{MOUNTED, Scene};
use ringfort_qemu_tests::server::ringfort;

const TIMEOUT: Duration = Duration::from_secs(200);

/// Below it the guest finds snapshots.
const SNAPSHOTS: &str = "/mnt/volume/.ringfort/snapshots";

#[test]
fn a_snapshot_under_a_running_writer_holds_what_was_written_and_a_clone_boots_as_its_own_share() {
    let scene = Scene::new("snapshots", "1GiB").unwrap();
    let volume = scene.volume.folder().to_str().unwrap().to_owned();
    let host = |arguments: &[&str]| {
        let (command, rest) = arguments.split_at(2);
        let said = ringfort(&[command, &[&volume], rest].concat()).unwrap();
        assert_eq!(said.status, Some(0), "{arguments:?}: {said:?}");
        said.stdout
    };
    let mut server = scene.serve(1).unwrap();
    let guest = scene.guest(0).unwrap();
    guest.run(&[AGENT, "tree-make", &format!("{MOUNTED}/tree"), "7", "60"], TIMEOUT).unwrap();
    guest.must(&format!("touch /tmp/go && echo 0 > {MOUNTED}/log")).unwrap();
    let script = format!("i=0; while test -e /tmp/go; do i=$((i+1)); echo line $i >> {MOUNTED}/log; done");
    let writer = guest.start(&["/bin/sh", "-c", &script]).unwrap();
    let mut known_bytes = Vec::new();
    for round in 0..4 {
        guest.must("sleep 0.3").unwrap();
        known_bytes
            .push(guest.must(&format!("stat -c %s {MOUNTED}/log")).unwrap().trim().parse::<u64>().unwrap());
        host(&["snapshot", "create", &format!("round-{round}")]);
    }
    guest.must("rm /tmp/go").unwrap();
    writer.finish(TIMEOUT).unwrap().success().unwrap();
    guest.must(&format!("rm -rf {MOUNTED}/tree && cp {MOUNTED}/log /tmp/log")).unwrap();
    assert_eq!(guest.must(&format!("ls {SNAPSHOTS}")).unwrap(), "round-0\nround-1\nround-2\nround-3\n");
    for (round, known) in known_bytes.iter().enumerate() {
        let inside = format!("{SNAPSHOTS}/round-{round}");
        guest.run(&[AGENT, "tree-verify", &format!("{inside}/tree"), "7", "60"], TIMEOUT).unwrap();
        let held = guest.must(&format!("stat -c %s {inside}/log")).unwrap().trim().parse::<u64>().unwrap();
        assert!(held >= *known, "round {round}: {held} of {known} bytes that were written before");
        guest.must(&format!("head -c {held} /tmp/log | cmp - {inside}/log")).unwrap();
        let refused =
            guest.shell(&format!("echo x > {inside}/log; mkdir {inside}/new; rm -rf {inside}/tree")).unwrap();
        assert!(refused.stderr.matches("Read-only file system").count() >= 3, "{refused:?}");
    }

    host(&["snapshot", "delete", "round-1", "--yes"]);
    host(&["clone", "create", "round-0", "copy"]);
    server.require_alive().unwrap();
    guest.shut_down().unwrap();
    server.stop().unwrap();

    let socket = format!("{},clone=copy", scene.socket(1).display());
    let server = scene.serve_with(1, &["--virtiofs", &socket]).unwrap();
    let (guest, of_copy) = (scene.guest(0).unwrap(), scene.guest(1).unwrap());
    of_copy.run(&[AGENT, "tree-verify", &format!("{MOUNTED}/tree"), "7", "60"], TIMEOUT).unwrap();
    of_copy.must(&format!("cd {MOUNTED} && echo the copy > own && mv tree wood && sync")).unwrap();
    guest.must(&format!("cd {MOUNTED} && ! test -e own && ! test -e wood && ! test -e tree ")).unwrap();
    guest.run(&[AGENT, "tree-verify", &format!("{SNAPSHOTS}/round-3/tree"), "7", "60"], TIMEOUT).unwrap();
    assert_eq!(guest.must(&format!("ls {SNAPSHOTS}")).unwrap(), "round-0\nround-2\nround-3\n");
    of_copy.run(&[AGENT, "tree-verify", &format!("{MOUNTED}/wood"), "7", "60"], TIMEOUT).unwrap();
    of_copy.shut_down().unwrap();
    scene.end(server, guest).unwrap();
}

//! What happens to a machine while programs of its guest use the channel: it is stopped, it is to be migrated, its server goes and returns.

use std::thread;
use std::time::Duration;

use ringfort_qemu_tests::machine::Board;
use ringfort_qemu_tests::scene::MOUNTED;
use serde_json::json;

use crate::stage::{Daemon, LONG, SOON, Stage, failed_clearly, serve};

/// Why QEMU does not migrate a machine with our device.
const OURS: &str = "vhost-user backend lacks VHOST_USER_PROTOCOL_F_LOG_SHMFD";

/// Programs that begin and end all the time.
const COME_AND_GO: &str = "while [ ! -e /tmp/enough ]; do rf ls > /dev/null || echo failed; done";

#[test]
fn programs_come_and_go_while_the_machine_is_stopped_again_and_again() {
    let stage = Stage::new("channel-stops");
    let daemon = Daemon::start(&stage.guest);
    let mut monitor = stage.guest.monitor().unwrap();
    let programs = [0; 2].map(|_| stage.guest.start(&["/bin/sh", "-c", COME_AND_GO]).unwrap());
    for round in 0..40u64 {
        monitor.run("stop", json!({})).unwrap();
        thread::sleep(Duration::from_millis(20 + round % 5 * 10));
        monitor.run("cont", json!({})).unwrap();
        // The stop is to meet whatever is said at whatever point.
        thread::sleep(Duration::from_millis(150 + round * 37 % 101));
    }
    daemon.must("touch /tmp/enough");
    for program in programs {
        let outcome = program.finish(SOON).unwrap();
        assert!(outcome.stdout.is_empty(), "{outcome:?}\n{}", daemon.log());
    }
    let log = daemon.log();
    assert!(!log.contains("hung up"), "{log}");
    daemon.must("rf ls");
    daemon.require_all_taken_back();
    drop(daemon);
    stage.end();
}

#[test]
fn a_machine_with_a_channel_is_not_migrated() {
    // Without a vsock device, which would not have it either.
    let stage = Stage::without_vsock("channel-migrated");
    let mut monitor = stage.guest.monitor().unwrap();
    let status = monitor.run("query-migrate", json!({})).unwrap();
    let reasons = status["blocked-reasons"].to_string();
    assert!(reasons.contains(OURS), "{status}");
    let refused = monitor.run("migrate", json!({ "uri": "exec:cat > /dev/null" })).unwrap_err().to_string();
    assert!(refused.contains(OURS), "{refused}");
    stage.end();
}

#[test]
fn a_server_that_returns_is_found_by_the_daemon_when_its_device_is_plugged_in_anew() {
    let stage = Stage::with("channel-returns", |machine| machine.board(Board::Q35).free_slots(1));
    let Stage { scene, server, guest } = stage;
    let daemon = Daemon::start(&guest);
    daemon.must("echo kept > /tmp/text && rf put /tmp/text /kept");
    let client = daemon.work(LONG);
    let on_the_mount = format!("while echo text > {MOUNTED}/busy; do :; done; echo ended");
    let on_the_mount = guest.start(&["/bin/sh", "-c", &on_the_mount]).unwrap();
    thread::sleep(Duration::from_secs(1));
    server.kill().unwrap();
    failed_clearly(client);
    let server = serve(&scene);
    guest.plug(0, "again", &scene.socket(0)).unwrap();
    daemon.must("for wait in $(seq 600); do rf ls > /dev/null 2>&1 && exit 0; sleep 0.1; done; rf ls");
    assert_eq!(daemon.must("rf cat /kept && cat /mnt/again/kept"), "kept\nkept\n");
    daemon.must("echo new > /mnt/again/new && [ $(rf cat /new) = new ] && rf put /tmp/text /mnt && cat /mnt/again/mnt");
    daemon.require_all_taken_back();
    // Whoever had asked the server that is gone waits for it; with the mount gone as well nobody new does.
    daemon.must(&format!("umount -l {MOUNTED} && rf ls && echo more > /mnt/again/more && rf cat /more"));
    daemon.kill();
    let daemon = Daemon::start(&guest);
    assert_eq!(daemon.must("rf cat /kept"), "kept\n");
    drop((daemon, on_the_mount));
    guest.pull_the_plug();
    server.stop().unwrap();
    scene.volume.require_clean().unwrap();
}

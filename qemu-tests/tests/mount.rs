//! What a mounted volume promises to programs, under each caching policy.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use ringfort_qemu_tests::agent::AGENT;
use ringfort_qemu_tests::machine::{Board, Guest, Machine};
use ringfort_qemu_tests::scene::{MOUNTED, Scene, TAG};

/// A second device on the same volume.
const SECOND: &str = "second";

/// Longer than a guest believes attributes under `--cache auto`.
const ATTRIBUTES_EXPIRED: Duration = Duration::from_millis(1500);

/// Before Linux 6.2 FUSE has no files without a name.
const NOT_ASKED: &[&str] = &["nameless"];

/// Files behave as they should, and the server finds no fault with how the guest's kernel asks.
fn require_posix(scene: &Scene, guest: &Guest) -> Result<()> {
    let folder = format!("{MOUNTED}/posix");
    guest.run(&[&[AGENT, "posix-check", &folder], NOT_ASKED].concat(), Duration::from_secs(300))?;
    for counter in ["malformed_requests", "broken_devices"] {
        ensure!(scene.volume.guest_counter(counter)? == 0, "the server counts {counter}");
    }
    Ok(())
}

#[test]
fn without_a_cache_each_guest_sees_at_once_what_another_wrote() {
    let scene = Scene::new("never", "1GiB").unwrap();
    let server = scene.serve_with(2, &["--cache", "never"]).unwrap();
    let (one, two) = (scene.guest(0).unwrap(), scene.guest(1).unwrap());
    let mut expected = String::new();
    for (round, (writer, reader)) in [(&one, &two), (&two, &one), (&one, &two)].into_iter().enumerate() {
        let line = format!("round {round} {}", "x".repeat(round * 3000));
        writer.must(&format!("cd {MOUNTED} && echo '{line}' >> log && echo {round} > last")).unwrap();
        expected.push_str(&format!("{line}\n"));
        assert_eq!(reader.must(&format!("cat {MOUNTED}/log")).unwrap(), expected);
        assert_eq!(reader.must(&format!("cat {MOUNTED}/last")).unwrap(), format!("{round}\n"));
        assert_eq!(
            reader.must(&format!("stat -c %s {MOUNTED}/log")).unwrap(),
            format!("{}\n", expected.len())
        );
    }
    one.must(&format!("cd {MOUNTED} && mv log moved && rm last && mkdir made")).unwrap();
    assert_eq!(two.must(&format!("ls {MOUNTED}")).unwrap(), "made\nmoved\n");
    // Programs run from it: private maps need no cache of ours.
    two.must(&format!("cd {MOUNTED} && cp /bin/busybox made/ && made/busybox true")).unwrap();
    require_posix(&scene, &one).unwrap();
    two.shut_down().unwrap();
    scene.end(server, one).unwrap();
}

#[test]
fn with_all_cached_a_second_read_costs_the_server_nothing_and_sigterm_loses_nothing() {
    const LENGTH_BYTES: u64 = 3_000_000;
    let scene = Scene::new("always", "1GiB").unwrap();
    let server = scene.serve_with(1, &["--cache", "always"]).unwrap();
    let guest = scene.guest(0).unwrap();
    guest.must(&format!("head -c {LENGTH_BYTES} /dev/urandom > {MOUNTED}/file")).unwrap();
    let read = || {
        let before = scene.volume.guest_counter("read_bytes").unwrap();
        let sum = guest.must(&format!("sha256sum < {MOUNTED}/file")).unwrap();
        (sum, scene.volume.guest_counter("read_bytes").unwrap() - before)
    };
    guest.must("sync; echo 3 > /proc/sys/vm/drop_caches").unwrap();
    let (sum, first_bytes) = read();
    let (again, second_bytes) = read();
    assert!(first_bytes >= LENGTH_BYTES, "{first_bytes} bytes were sent for the first read");
    assert_eq!(second_bytes, 0);
    assert_eq!(again, sum);
    scene.require_shared_maps(&guest).unwrap();
    require_posix(&scene, &guest).unwrap();

    // The guest stays, has a file open, and has synced nothing of this.
    let said = guest
        .must(&format!("cd {MOUNTED} && exec 3> unsynced && head -c 500000 /dev/urandom | tee unsynced | sha256sum; sleep 600 <&3 >&- 2>&- &"))
        .unwrap();
    server.stop().unwrap();
    scene.volume.require_clean().unwrap();
    guest.pull_the_plug();
    let server = scene.serve(1).unwrap();
    let guest = scene.guest(0).unwrap();
    assert_eq!(guest.must(&format!("sha256sum < {MOUNTED}/unsynced")).unwrap(), said);
    assert_eq!(guest.must(&format!("sha256sum < {MOUNTED}/file")).unwrap(), sum);
    scene.end(server, guest).unwrap();
}

#[test]
fn two_devices_in_one_guest_come_and_go_and_an_unlinked_file_is_gone_after_sigkill() {
    let scene = Scene::new("auto", "1GiB").unwrap();
    let server = scene.serve_with(2, &["--cache", "auto"]).unwrap();
    let machine = Machine::new(Board::MicroVm).share(SECOND, &scene.socket(1));
    let guest = scene.boot(&machine, 0).unwrap();
    guest.mount(SECOND).unwrap();
    scene.require_shared_maps(&guest).unwrap();
    require_posix(&scene, &guest).unwrap();
    guest.must(&format!("echo first > {MOUNTED}/letter")).unwrap();
    assert_eq!(guest.must(&format!("cat /mnt/{SECOND}/letter")).unwrap(), "first\n");
    guest.must(&format!("echo the second > {MOUNTED}/letter")).unwrap();
    thread::sleep(ATTRIBUTES_EXPIRED);
    assert_eq!(guest.must(&format!("cat /mnt/{SECOND}/letter")).unwrap(), "the second\n");

    for round in 0..3 {
        guest.unmount(TAG).unwrap();
        assert_eq!(guest.must(&format!("cat /mnt/{SECOND}/letter")).unwrap(), "the second\n");
        guest.mount(TAG).unwrap();
        guest.unmount(SECOND).unwrap();
        guest.must(&format!("echo {round} > {MOUNTED}/round")).unwrap();
        guest.unmount(TAG).unwrap();
        let bound = guest
            .must(
                "cd /sys/bus/virtio/drivers/virtiofs && all=$(ls -d virtio*) && echo $all | wc -w &&
                 for each in $all; do echo $each > unbind || exit 1; done && ! ls -d virtio* 2> /dev/null &&
                 for each in $all; do echo $each > bind || exit 1; done && ls -d virtio* | wc -l",
            )
            .unwrap();
        assert_eq!(bound, "2\n2\n");
        guest.mount(SECOND).unwrap();
        guest.mount(TAG).unwrap();
        assert_eq!(guest.must(&format!("cat /mnt/{SECOND}/round")).unwrap(), format!("{round}\n"));
    }

    const HELD_BYTES: u64 = 24 << 20;
    let script = format!(
        "cd {MOUNTED} && head -c {HELD_BYTES} /dev/urandom > held && sync && sha256sum < held && exec 3< held && rm held &&
         echo 3 > /proc/sys/vm/drop_caches && sync && sha256sum <&3 && ls && echo held && sleep 600"
    );
    let mut holder = guest.start(&["/bin/sh", "-c", &script]).unwrap();
    holder.wait_until(|said| said.contains("\nheld\n"), Duration::from_secs(100)).unwrap();
    let said = holder.stdout();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[0], lines[1], "an unlinked file reads otherwise");
    assert_eq!(lines[2..], ["letter", "round", "held"]);
    server.kill().unwrap();
    guest.pull_the_plug();

    let report = scene.volume.clean_report().unwrap();
    assert_eq!(report["filesystem"]["unfinished"], 1);
    assert!(report["filesystem"]["data_blocks"].as_u64().unwrap() >= HELD_BYTES / 4096);
    scene.serve(1).unwrap().stop().unwrap();
    let report = scene.volume.clean_report().unwrap();
    assert_eq!(report["filesystem"]["unfinished"], 0);
    // One for each of the two files that have names.
    assert_eq!(report["filesystem"]["data_blocks"], 2);
    assert_eq!(report["store"]["stored_blocks"], 2);
}

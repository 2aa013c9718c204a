//! The virtio-fs device through a guest's life: several request queues, writeback, reboots, machines that come and go.

use std::time::Duration;

use anyhow::Result;
use ringfort_qemu_tests::machine::{Board, Guest, Machine};
use ringfort_qemu_tests::provision::Kernel;
use ringfort_qemu_tests::scene::{MOUNTED, Scene, TAG};

const SLOW: Duration = Duration::from_secs(200);

#[test]
fn a_recent_kernel_spreads_requests_over_several_queues_and_writes_back() {
    let scene = Scene::new("queues", "1GiB").unwrap();
    let server = scene.serve_with(1, &["--queues", "4", "--cache", "auto", "--writeback"]).unwrap();
    let machine = Machine::new(Board::MicroVm).kernel(Kernel::Recent).processors(2).request_queues(2);
    let guest = scene.boot(&machine, 0).unwrap();
    guest
        .run(
            &[
                "/bin/sh",
                "-c",
                &format!(
                    "cd {MOUNTED} && for each in 1 2 3 4; do (head -c 3000000 /dev/urandom > file$each && sha256sum file$each > sum$each) & done;
                     wait; sync; echo 3 > /proc/sys/vm/drop_caches; cat sum? | sha256sum -c"
                ),
            ],
            SLOW,
        )
        .unwrap();
    // Written through a handle that cannot read, from the middle of a page on, and appended.
    guest
        .must(&format!(
            "cd {MOUNTED} && printf 0123456789 > part && printf abc | dd of=part bs=1 seek=3 conv=notrunc 2> /dev/null &&
             echo more >> part && sync && echo 3 > /proc/sys/vm/drop_caches && [ \"$(cat part)\" = 012abc6789more ] &&
             [ $(stat -c %s part) = 15 ] && touch -d 2001-02-03 part && sync && echo 3 > /proc/sys/vm/drop_caches &&
             [ \"$(stat -c %y part | cut -c1-10)\" = 2001-02-03 ]"
        ))
        .unwrap();
    scene.require_shared_maps(&guest).unwrap();
    scene.end(server, guest).unwrap();
}

/// Leaves a program behind that has a file open.
fn hold(guest: &Guest) -> Result<String> {
    guest.must(&format!(
        "cd {MOUNTED} && echo held > held && (exec 3< held; sleep 600 <&3 >&- 2>&-) & sleep 1"
    ))
}

#[test]
fn reboots_and_machines_that_are_killed_leave_no_session_behind() {
    let scene = Scene::new("lives", "1GiB").unwrap();
    let server = scene.serve_with(1, &["--cache", "auto"]).unwrap();
    let machine = Machine::new(Board::MicroVm).restarts();
    let mut guest = scene.boot(&machine, 0).unwrap();
    for round in 0..2 {
        guest.must(&format!("echo {round} > {MOUNTED}/round && sync")).unwrap();
        hold(&guest).unwrap();
        guest.restart().unwrap();
        // Before anything is mounted: the driver of the boot before is gone, and its session with it.
        guest.mount(TAG).unwrap();
        assert_eq!(guest.must(&format!("cat {MOUNTED}/round")).unwrap(), format!("{round}\n"));
    }
    for round in 2..4 {
        guest.must(&format!("echo {round} > {MOUNTED}/round && sync")).unwrap();
        hold(&guest).unwrap();
        guest.pull_the_plug();
        guest = scene.boot(&machine, 0).unwrap();
        assert_eq!(guest.must(&format!("cat {MOUNTED}/round")).unwrap(), format!("{round}\n"));
    }
    assert_eq!(scene.volume.guest_counter("malformed_requests").unwrap(), 0);
    scene.end(server, guest).unwrap();
}

#[test]
fn two_guests_that_cache_see_at_open_what_the_other_closed() {
    let scene = Scene::new("to-and-fro", "1GiB").unwrap();
    let server = scene.serve_with(2, &["--cache", "auto"]).unwrap();
    let guests = [scene.guest(0).unwrap(), scene.guest(1).unwrap()];
    let mut expected = String::new();
    for round in 0..8 {
        let (writer, reader) = (&guests[round % 2], &guests[(round + 1) % 2]);
        // The reader has name, attributes and contents of the letter in its cache, younger than it may believe attributes.
        if round > 0 {
            assert_eq!(reader.must(&format!("cat {MOUNTED}/letter")).unwrap(), expected);
        }
        let line = format!("round {round} {}\n", "x".repeat(1 + round * 700));
        if round % 3 == 2 {
            // Another file under the same name.
            expected = line.clone();
            writer
                .must(&format!("cd {MOUNTED} && echo '{}' > new && mv new letter", line.trim_end()))
                .unwrap();
        } else {
            expected.push_str(&line);
            writer.must(&format!("echo '{}' >> {MOUNTED}/letter", line.trim_end())).unwrap();
        }
        assert_eq!(reader.must(&format!("cat {MOUNTED}/letter")).unwrap(), expected, "round {round}");
        assert_eq!(
            reader.must(&format!("stat -c %s {MOUNTED}/letter")).unwrap(),
            format!("{}\n", expected.len())
        );
    }
    let [one, two] = guests;
    two.shut_down().unwrap();
    scene.end(server, one).unwrap();
}

//! What POSIX promises, asked by suites of tests in a guest.

use std::time::Duration;

use ringfort_qemu_tests::agent::AGENT;
use ringfort_qemu_tests::machine::{Board, Machine};
use ringfort_qemu_tests::place::Lock;
use ringfort_qemu_tests::programs::Program;
use ringfort_qemu_tests::scene::{MOUNTED, Scene};

/// Some hundred short tests, each slow to start under emulation.
const SUITE_TIMEOUT: Duration = Duration::from_secs(400);

/// Everything that Linux has. Time stamps have nanoseconds, so that a short nap tells two apart.
const PJDFSTEST: &str = "
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.02
allow_remount = false
";

#[test]
fn pjdfstest_finds_nothing_amiss() {
    let scene = Scene::new("pjdfstest", "1GiB").unwrap();
    let server = scene.serve(1).unwrap();
    let machine = Machine::new(Board::MicroVm).programs(&[Program::Pjdfstest]);
    let guest = scene.boot(&machine, 0).unwrap();
    let script = format!(
        "cat > /tmp/pjdfstest.toml <<'END'\n{PJDFSTEST}END\ncd /tmp && mkdir elsewhere &&
         pjdfstest --configuration-file pjdfstest.toml --path {MOUNTED} --secondary-fs /tmp/elsewhere > log 2>&1
         status=$?; grep -A2 -e FAILED -e skipped log; tail -n 3 log; exit $status"
    );
    let said = guest.run(&["/bin/sh", "-c", &script], SUITE_TIMEOUT).unwrap();
    assert!(said.contains(" 0 failed"), "{said}");
    scene.end(server, guest).unwrap();
}

/// The shell takes a bare `mke2fs` for busybox's. The suite that every cache policy is held to (see `mount.rs`) asks nothing that ext4 does not give.
#[test]
fn the_suite_of_our_own_holds_on_ext4() {
    let _turn = Lock::acquire("guest").unwrap();
    let guest = Machine::new(Board::MicroVm).ext4_disk_mib(512).boot("reference").unwrap();
    guest
        .must("/bin/mke2fs -q -t ext4 /dev/vda && mkdir /mnt/disk && mount -t ext4 /dev/vda /mnt/disk")
        .unwrap();
    guest.run(&[AGENT, "posix-check", "/mnt/disk/posix"], SUITE_TIMEOUT).unwrap();
    guest.must("umount /mnt/disk").unwrap();
    guest.shut_down().unwrap();
}

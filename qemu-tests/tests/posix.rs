//! What POSIX promises, asked by suites of tests in a guest.

use std::time::Duration;

use ringfort_qemu_tests::agent::AGENT;
use ringfort_qemu_tests::machine::{Board, Machine};
use ringfort_qemu_tests::place::Lock;
use ringfort_qemu_tests::programs::Program;
use ringfort_qemu_tests::provision::Kernel;
use ringfort_qemu_tests::scene::{MOUNTED, Scene, TAG};

/// Some hundred short tests, each slow to start under emulation.
const SUITE_TIMEOUT: Duration = Duration::from_secs(400);

/// Everything that Linux has. The cases that make the mount read-only run by themselves: all cases are one process, and a file that one of
/// the others leaves open keeps a mount writable (EBUSY). Time stamps have nanoseconds, so that a short nap tells two apart.
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
        "cat > /tmp/whole.toml <<'END'\n{PJDFSTEST}END\ncd /tmp && mkdir elsewhere && sed s/remount.*/remount=true/ whole.toml > read-only.toml
         suite() {{
             config=$1; shift
             pjdfstest --configuration-file $config --path {MOUNTED} --secondary-fs /tmp/elsewhere \"$@\" > log 2>&1
             status=$?; grep -A2 -e FAILED -e skipped log; tail -n 3 log; return $status
         }}
         suite read-only.toml erofs && echo and && suite whole.toml"
    );
    let said = guest.run(&["/bin/sh", "-c", &script], SUITE_TIMEOUT).unwrap();
    let (read_only, whole) = said.split_once("\nand\n").unwrap();
    assert!(read_only.contains(" 0 failed, 0 skipped") && whole.contains(" 0 failed"), "{said}");
    scene.end(server, guest).unwrap();
}

/// Two processors and two request queues: what one asks overtakes what the other asks.
#[test]
fn the_suite_of_our_own_holds_on_a_recent_kernel_with_two_queues() {
    let scene = Scene::new("recent", "1GiB").unwrap();
    let server = scene.serve_with(1, &["--cache", "auto"]).unwrap();
    let machine = Machine::new(Board::MicroVm).kernel(Kernel::Recent).processors(2).request_queues(2);
    let guest = scene.boot(&machine, 0).unwrap();
    guest.run(&[AGENT, "posix-check", &format!("{MOUNTED}/posix")], SUITE_TIMEOUT).unwrap();
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

#[test]
fn access_control_lists_are_what_setfacl_sets_and_getfacl_shows() {
    let scene = Scene::new("lists", "1GiB").unwrap();
    let server = scene.serve(1).unwrap();
    let guest = scene.boot(&Machine::new(Board::MicroVm).programs(&[Program::Acl]), 0).unwrap();
    let read = |file: &str| {
        let script = format!("cd {MOUNTED}/lists && start-stop-daemon -S -c nobody -x /bin/cat -- {file}");
        guest.shell(&script).unwrap().status == 0
    };
    let shown = |file: &str| guest.must(&format!("cd {MOUNTED}/lists && getfacl -cE {file}")).unwrap();

    guest
        .must(&format!("mkdir {MOUNTED}/lists && cd {MOUNTED}/lists && echo x > file && chmod 600 file"))
        .unwrap();
    assert!(!read("file"));
    guest.must(&format!("cd {MOUNTED}/lists && setfacl -m u:nobody:r file")).unwrap();
    assert!(read("file"));
    assert_eq!(shown("file"), "user::rw-\nuser:nobody:r--\ngroup::---\nmask::r--\nother::---\n\n");
    guest.must(&format!("chmod g= {MOUNTED}/lists/file")).unwrap();
    assert!(!read("file"), "an empty mask lets somebody in");

    // What a default list hands down is limited by the maker's mode, and not by its umask.
    guest
        .must(&format!(
            "cd {MOUNTED}/lists && setfacl -d -m u:nobody:rx,g::r,o::- . && umask 077 && echo y > made"
        ))
        .unwrap();
    let handed_down = "user::rw-\nuser:nobody:r-x\ngroup::r--\nmask::r--\nother::---\n\n";
    assert_eq!(shown("made"), handed_down);
    assert!(read("made"));
    guest.unmount(TAG).unwrap();
    guest.mount(TAG).unwrap();
    assert_eq!(shown("made"), handed_down);
    assert!(read("made") && !read("file"));
    scene.end(server, guest).unwrap();
}

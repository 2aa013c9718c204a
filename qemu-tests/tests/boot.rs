//! The harness itself: a guest boots and runs commands, and a failure is seen as one.

use std::time::Duration;

use anyhow::Result;
use ringfort_qemu_tests::machine::{Board, Guest, Machine};
use ringfort_qemu_tests::place::Lock;
use ringfort_qemu_tests::provision::Kernel;

fn boot(board: Board) -> Result<(Lock, Guest)> {
    let turn = Lock::acquire("guest")?;
    Ok((turn, Machine::new(board).boot("boot")?))
}

#[test]
fn a_microvm_boots_runs_commands_and_reports_their_failures() {
    let (_turn, guest) = boot(Board::MicroVm).unwrap();
    assert_eq!(guest.must("echo $((6 * 7))").unwrap(), "42\n");

    let failed = guest.shell("echo before; echo why >&2; exit 3").unwrap();
    assert_eq!((failed.status, failed.stdout.as_str(), failed.stderr.as_str()), (3, "before\n", "why\n"));
    let error = guest.must("echo ringfort-guest: ready; false").unwrap_err().to_string();
    assert!(error.contains("status 1"), "{error}");
    assert_eq!(guest.shell("kill -9 $$").unwrap().status, 137);
    assert!(guest.run(&["/bin/no-such-program"], Duration::from_secs(30)).is_err());

    let late =
        guest.start(&["/bin/sleep", "600"]).unwrap().finish(Duration::from_secs(1)).unwrap_err().to_string();
    assert!(late.contains("did not end in time"), "{late}");
    assert!(guest.mount("absent").is_err());

    let long = guest.run(&["/bin/seq", "1", "200000"], Duration::from_secs(60)).unwrap();
    assert_eq!(long.lines().count(), 200_000);
    guest.shut_down().unwrap();
}

#[test]
fn a_q35_machine_boots() {
    let (_turn, guest) = boot(Board::Q35).unwrap();
    let devices = guest.must("ls /sys/bus/pci/devices").unwrap();
    assert!(devices.lines().count() > 1, "{devices}");
    guest.shut_down().unwrap();
}

#[test]
fn a_recent_kernel_boots_with_two_processors_and_restarts_under_the_same_qemu() {
    let _turn = Lock::acquire("guest").unwrap();
    let machine = Machine::new(Board::MicroVm).kernel(Kernel::Recent).processors(2).restarts();
    let mut guest = machine.boot("boot").unwrap();
    assert_eq!(guest.must("nproc").unwrap(), "2\n");
    let release = guest.must("uname -r").unwrap();
    let numbers: Vec<u32> = release.split(['.', '-', '+']).map_while(|part| part.parse().ok()).collect();
    assert!(numbers[..2] >= [6, 11][..], "{release}");
    for _ in 0..2 {
        guest.must("echo before > /tmp/file; dmesg > /tmp/log &").unwrap();
        guest.restart().unwrap();
        assert!(guest.must("ls /tmp").unwrap().is_empty());
    }
    guest.shut_down().unwrap();
}

#[test]
fn a_dead_guest_is_an_error_and_not_a_silence() {
    let (_turn, guest) = boot(Board::MicroVm).unwrap();
    let error = guest.must("echo c > /proc/sysrq-trigger; sleep 60").unwrap_err().to_string();
    assert!(error.contains("cut off") && error.contains("sysrq"), "{error}");
    assert!(guest.shut_down().is_err());
}

//! The ring between a guest's processor and the host's: no wake-up is lost, and no message torn.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails

use std::process::Command;
use std::time::Duration;

use ringfort_qemu_tests::machine::{Board, Machine};
use ringfort_qemu_tests::place::Lock;
use ringfort_qemu_tests::programs::Program;
use ringfort_qemu_tests::provision::{output_of, workspace_program};

/// How often both ends park.
const PARKS: &str = "10000000";

/// At some millions a minute, on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(1200);

#[test]
fn ten_million_parks_lose_no_wake_up_between_guest_and_host() {
    let _turn = Lock::acquire("guest").unwrap();
    let program = workspace_program("ringfort-ring-trial", "ringfort-ring-trial").unwrap();
    let guest = Machine::new(Board::MicroVm).programs(&[Program::RingTrial]).boot("ring").unwrap();
    let parks = std::env::var("RINGFORT_PARKS").unwrap_or_else(|_| PARKS.to_owned());
    let mut asking =
        guest.start(&["/bin/ringfort-ring-trial", "ask", "--pause-loops", "16", "--parks", &parks]).unwrap();
    asking.wait_until(|said| said.contains('\n'), PATIENCE).unwrap();
    let said = asking.stdout();
    let pages = said.lines().next().unwrap().strip_prefix("pages ").unwrap().replace(' ', ",");
    // The host is the faster side under emulation: without pauses of its own the guest hardly ever has to wait.
    let loops = std::env::var("RINGFORT_PAUSE_LOOPS").unwrap_or_else(|_| "150".to_owned());
    let mut answer = Command::new(program);
    let answer = answer
        .args(["answer", "--pause-loops", &loops, "--pages", &pages, "--memory"])
        .arg(guest.memory().unwrap());
    let answered = output_of(answer).unwrap();
    let asked = asking.finish(PATIENCE).unwrap().success().unwrap();
    let count = |said: &str, what: &str| -> u64 {
        let mut words = said.split_whitespace().skip_while(|word| *word != what);
        words.nth(1).unwrap().parse().unwrap()
    };
    println!("guest: {asked}host: {answered}");
    assert_eq!(count(&asked, "commands"), count(&answered, "commands"));
    let (own, other) = (count(&asked, "parks"), count(&answered, "parks"));
    let parks: u64 = parks.parse().unwrap();
    assert!(own >= parks / 10 && own + other >= parks, "{own} parks of the guest, {other} of the host");
    guest.shut_down().unwrap();
}

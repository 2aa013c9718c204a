//! Two guests at once on one volume: what one locks, the other waits for.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails

use std::time::Duration;

use ringfort_qemu_tests::agent::{AGENT, Task};
use ringfort_qemu_tests::machine::Guest;
use ringfort_qemu_tests::scene::{MOUNTED, Scene};

const TIMEOUT: Duration = Duration::from_secs(100);

/// Long enough for a lock that is not waited for to be had, under emulation.
const MOMENT: Duration = Duration::from_secs(2);

fn lock<'guest>(guest: &'guest Guest, family: &str, kind: &str, patience: &str) -> Task<'guest> {
    guest.start(&[AGENT, "lock-hold", &format!("{MOUNTED}/locked"), family, kind, patience]).unwrap()
}

fn require(task: &mut Task<'_>, word: &str) {
    task.wait_until(|said| said.contains(word), TIMEOUT).unwrap();
}

#[test]
fn locks_of_one_guest_hold_off_the_other_until_they_end() {
    let scene = Scene::new("locks", "1GiB").unwrap();
    let mut server = scene.serve(2).unwrap();
    let (one, two) = (scene.guest(0).unwrap(), scene.guest(1).unwrap());
    for family in ["flock", "fcntl"] {
        let mut first = lock(&one, family, "exclusive", "try");
        require(&mut first, "locked");
        require(&mut lock(&two, family, "exclusive", "try"), "refused");
        require(&mut lock(&two, family, "shared", "try"), "refused");

        // One that waits has nothing to say before the holder is gone, and then it has the lock.
        let mut waiter = lock(&two, family, "exclusive", "wait");
        assert_eq!(waiter.drain(MOMENT), "");
        first.kill().unwrap();
        require(&mut waiter, "locked");
        require(&mut lock(&one, family, "exclusive", "try"), "refused");
        waiter.kill().unwrap();

        let (mut reader, mut other) =
            (lock(&one, family, "shared", "wait"), lock(&two, family, "shared", "wait"));
        require(&mut reader, "locked");
        require(&mut other, "locked");
        reader.kill().unwrap();
        other.kill().unwrap();
    }

    // A guest whose power fails gives up what it held.
    let mut held = lock(&one, "fcntl", "exclusive", "wait");
    require(&mut held, "locked");
    let mut waiter = lock(&two, "fcntl", "exclusive", "wait");
    assert_eq!(waiter.drain(MOMENT), "");
    drop(held);
    one.pull_the_plug();
    require(&mut waiter, "locked");
    waiter.kill().unwrap();
    server.require_alive().unwrap();
    scene.end(server, two).unwrap();
}

//! A guest that changes what it writes while it is being written harms nobody but itself.

use std::time::Duration;

use ringfort_qemu_tests::agent::AGENT;
use ringfort_qemu_tests::scene::{MOUNTED, Scene};

const TIMEOUT: Duration = Duration::from_secs(200);

/// Twelve mebibytes in blocks, a dozen large writes.
const ROUNDS: &str = "96";
const SEED: &str = "51";

#[test]
fn a_buffer_that_changes_while_it_is_written_spoils_no_neighbours_block() {
    let scene = Scene::new("flip", "1GiB").unwrap();
    let folder = format!("{MOUNTED}/flip");
    let (mut server, guest) = scene.serve_and_boot().unwrap();
    guest.run(&[AGENT, "flip-write", &folder, SEED, ROUNDS], TIMEOUT).unwrap();
    guest.must("echo 3 > /proc/sys/vm/drop_caches").unwrap();
    guest.run(&[AGENT, "flip-verify", &folder, SEED, ROUNDS], TIMEOUT).unwrap();
    server.require_alive().unwrap();
    assert_eq!(scene.volume.component_counter("damaged_blocks").unwrap(), 0);
    scene.end(server, guest).unwrap();

    // Parity or a checksum taken over other bytes than the ones stored would show now.
    for gone in [0, 3] {
        scene.volume.take_away(gone).unwrap();
    }
    let (server, guest) = scene.serve_and_boot().unwrap();
    guest.run(&[AGENT, "flip-verify", &folder, SEED, ROUNDS], TIMEOUT).unwrap();
    assert!(scene.volume.component_counter("reconstructed_blocks").unwrap() > 0);
    scene.end(server, guest).unwrap();
}

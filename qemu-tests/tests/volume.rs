//! A volume through a real guest: what was written is read back byte by byte after every kind of interruption.

use std::fs;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use ringfort_qemu_tests::machine::{Board, Machine};
use ringfort_qemu_tests::scene::{Ledger, MOUNTED, Scene, TAG, Tree};

#[test]
fn a_tree_reads_back_after_a_remount_and_after_a_clean_stop() {
    let scene = Scene::new("remount", "1GiB").unwrap();
    let (mut server, guest) = scene.serve_and_boot().unwrap();
    let tree = Tree::new("tree", 1, 500);
    tree.make(&guest).unwrap();
    tree.verify(&guest).unwrap();
    guest.unmount(TAG).unwrap();
    guest.mount(TAG).unwrap();
    tree.verify(&guest).unwrap();
    server.require_alive().unwrap();
    scene.end(server, guest).unwrap();

    let (server, guest) = scene.serve_and_boot().unwrap();
    tree.verify(&guest).unwrap();
    guest.run(&["/bin/rm", "-rf", &tree.path], Duration::from_secs(200)).unwrap();
    assert_eq!(guest.must(&format!("ls -A {MOUNTED}")).unwrap(), "");
    scene.end(server, guest).unwrap();
}

#[test]
fn every_byte_reads_with_two_components_gone_and_a_stale_one_is_not_believed() {
    let scene = Scene::new("degraded", "1GiB").unwrap();
    let (before, during) = (Tree::new("before", 2, 250), Tree::new("during", 3, 100));
    let (server, guest) = scene.serve_and_boot().unwrap();
    before.make(&guest).unwrap();
    scene.end(server, guest).unwrap();

    scene.volume.take_away(2).unwrap();
    let (server, guest) = scene.serve_and_boot().unwrap();
    before.verify(&guest).unwrap();
    assert!(scene.volume.component_counter("reconstructed_blocks").unwrap() > 0);
    during.make(&guest).unwrap();
    guest.shut_down().unwrap();
    server.stop().unwrap();

    scene.volume.take_away(0).unwrap();
    let (server, guest) = scene.serve_and_boot().unwrap();
    before.verify(&guest).unwrap();
    during.verify(&guest).unwrap();
    guest.shut_down().unwrap();
    server.stop().unwrap();

    // Component 2 has missed writes. If it were read as current, `during` would come back wrong.
    scene.volume.bring_back(2).unwrap();
    let (server, guest) = scene.serve_and_boot().unwrap();
    before.verify(&guest).unwrap();
    during.verify(&guest).unwrap();
    let states = scene.volume.component_states().unwrap();
    assert!(states[0] != "live" && states[2] != "live", "{states:?}");
    guest.shut_down().unwrap();
    server.stop().unwrap();

    for gone in [4, 5] {
        scene.volume.take_away(gone).unwrap();
    }
    let refusal = scene.volume.require_refusal(&scene.socket(0)).unwrap();
    assert!(refusal.contains("component-4") || refusal.contains("component 4"), "{refusal}");
}

#[test]
fn every_byte_reads_when_two_components_are_spoilt_while_the_volume_is_down() {
    let scene = Scene::new("spoilt", "1GiB").unwrap();
    let tree = Tree::new("tree", 4, 250);
    let (server, guest) = scene.serve_and_boot().unwrap();
    tree.make(&guest).unwrap();
    scene.end(server, guest).unwrap();

    // One component loses its label and all else; another keeps its label, and one block in every sixteen after it rots.
    let emptied = fs::File::options().write(true).open(scene.volume.component(1)).unwrap();
    let length_bytes = emptied.metadata().unwrap().len();
    emptied.set_len(0).unwrap();
    emptied.set_len(length_bytes).unwrap();
    let rotten = fs::File::options().write(true).open(scene.volume.component(3)).unwrap();
    for block in (1024..length_bytes / 4096).step_by(16) {
        rotten.write_all_at(&[0xa5; 512], block * 4096 + 1024).unwrap();
    }

    let (mut server, guest) = scene.serve_and_boot().unwrap();
    tree.verify(&guest).unwrap();
    server.require_alive().unwrap();
    assert_ne!(scene.volume.component_states().unwrap()[1], "live");
    for counter in ["damaged_blocks", "repaired_blocks"] {
        assert!(scene.volume.component_counter(counter).unwrap() > 0, "{counter}");
    }
    guest.shut_down().unwrap();
    server.stop().unwrap();
}

#[test]
fn what_was_synced_survives_sigkill_of_the_server() {
    let scene = Scene::new("killed", "1GiB").unwrap();
    let mut promises = Vec::new();
    for round in 0..2 {
        let (server, guest) = scene.serve_and_boot().unwrap();
        for (ledger, steps) in &promises {
            Ledger::verify(ledger, &guest, *steps).unwrap();
        }
        let ledger = Ledger::new(&format!("ledger-{round}"), round);
        let steps = ledger.write_until_crash(&guest, 40 + round * 17, || server.kill()).unwrap();
        guest.pull_the_plug();
        promises.push((ledger, steps));
    }
    scene.volume.require_clean().unwrap();
    let (server, guest) = scene.serve_and_boot().unwrap();
    for (ledger, steps) in &promises {
        ledger.verify(&guest, *steps).unwrap();
    }
    scene.end(server, guest).unwrap();
}

#[test]
fn a_component_lost_under_a_running_server_costs_nothing() {
    let scene = Scene::new("live-loss", "1GiB").unwrap();
    let (mut server, guest) = scene.serve_and_boot().unwrap();
    let (before, after) = (Tree::new("before", 5, 150), Tree::new("after", 6, 100));
    before.make(&guest).unwrap();
    scene.volume.empty(4).unwrap();
    before.verify(&guest).unwrap();
    after.make(&guest).unwrap();
    after.verify(&guest).unwrap();
    server.require_alive().unwrap();
    let counted = |name| scene.volume.component_counter(name).unwrap();
    assert!(counted("errors") + counted("damaged_blocks") > 0);
    assert!(counted("reconstructed_blocks") > 0);
    guest.shut_down().unwrap();
    server.stop().unwrap();

    let (server, guest) = scene.serve_and_boot().unwrap();
    assert_ne!(scene.volume.component_states().unwrap()[4], "live");
    before.verify(&guest).unwrap();
    after.verify(&guest).unwrap();
    guest.shut_down().unwrap();
    server.stop().unwrap();
}

#[test]
fn a_second_server_is_refused_and_the_first_is_not_disturbed() {
    let scene = Scene::new("second", "1GiB").unwrap();
    let (mut server, guest) = scene.serve_and_boot().unwrap();
    guest.must(&format!("echo first > {MOUNTED}/file && sync")).unwrap();
    let refusal = scene.volume.require_refusal(&scene.folder.socket("another")).unwrap();
    assert!(refusal.contains(&server.process_id().to_string()), "the holder is not named: {refusal}");
    server.require_alive().unwrap();
    assert_eq!(guest.must(&format!("cat {MOUNTED}/file")).unwrap(), "first\n");
    scene.end(server, guest).unwrap();
}

#[test]
fn two_guests_share_one_volume() {
    let scene = Scene::new("shared", "1GiB").unwrap();
    let server = scene.serve(2).unwrap();
    let (one, two) = (scene.guest(0).unwrap(), scene.guest(1).unwrap());
    let tree = Tree::new("tree", 7, 60);
    tree.make(&one).unwrap();
    tree.verify(&two).unwrap();
    two.must(&format!(
        "echo from two > {MOUNTED}/letter.new && mv {MOUNTED}/letter.new {MOUNTED}/letter && sync"
    ))
    .unwrap();
    assert_eq!(one.must(&format!("cat {MOUNTED}/letter")).unwrap(), "from two\n");
    // What one guest does while the other stays is no concern of the other.
    two.pull_the_plug();
    tree.verify(&one).unwrap();
    scene.end(server, one).unwrap();
}

#[test]
fn a_pci_device_on_q35_serves_the_same_volume() {
    let scene = Scene::new("q35", "1GiB").unwrap();
    let server = scene.serve(1).unwrap();
    let guest = scene.boot(&Machine::new(Board::Q35), 0).unwrap();
    let tree = Tree::new("tree", 8, 80);
    tree.make(&guest).unwrap();
    tree.verify(&guest).unwrap();
    scene.end(server, guest).unwrap();
}

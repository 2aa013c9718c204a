//! Programs that check their own data, on a volume through a real guest, while components are lost and servers killed.

mod archive;
mod database;
mod exerciser;
mod fio;
mod repository;

use std::time::Duration;

use anyhow::Result;
use ringfort_qemu_tests::machine::{Board, Guest, Machine};
use ringfort_qemu_tests::programs::Program;
use ringfort_qemu_tests::scene::{Scene, TAG};

use archive::Archive;
use database::Database;
use exerciser::Exerciser;
use fio::Job;
use repository::Repository;

/// For one workload's part, beside others, under emulation.
const TIMEOUT: Duration = Duration::from_secs(300);

const JOBS: [Job; 3] = [
    Job { name: "small", options: "--rw=randwrite --bs=4k --size=8m --fsync=32" },
    Job { name: "streaming", options: "--rw=write --bs=1m --size=48m --direct=1" },
    Job { name: "odd", options: "--rw=randwrite --bs=60k --size=12m --fdatasync=16" },
];

const DATABASES: [Database; 2] =
    [Database { name: "rollback", journal: "DELETE" }, Database { name: "write-ahead", journal: "WAL" }];

fn machine() -> Machine {
    let programs = [Program::Fio, Program::Fsx, Program::Git, Program::Sqlite3, Program::Tar];
    Machine::new(Board::MicroVm).memory_mib(1024).programs(&programs)
}

/// Runs a shell script that must succeed.
fn must(guest: &Guest, script: &str) -> Result<String> {
    guest.run(&["/bin/sh", "-c", script], TIMEOUT)
}

#[test]
fn nothing_is_missing_after_a_component_is_lost_half_way_and_the_server_is_killed_between_two_boots() {
    const LOST: usize = 3;
    // Write-ahead logs and the exerciser's maps need a cache.
    let options = ["--cache", "auto"];
    let scene = Scene::new("workloads", "1GiB").unwrap();
    let (repository, later) = (Repository::new("repository", 11), Repository::new("later", 12));
    let (archive, degraded) = (Archive::new("archive", 21), Archive::new("degraded", 22));

    let server = scene.serve_with(1, &options).unwrap();
    let guest = scene.boot(&machine(), 0).unwrap();
    repository.make(&guest).unwrap();
    archive.pack(&guest).unwrap();
    JOBS[0].write(&guest).unwrap();

    let mut writers = DATABASES.map(|database| database.start_writing(&guest).unwrap());
    let exercise = Exerciser::with_maps(31).start(&guest, 1000).unwrap();
    for writer in &mut writers {
        writer.wait_for_commits(10).unwrap();
    }
    scene.volume.empty(LOST).unwrap();
    exercise.finish(TIMEOUT).unwrap().success().unwrap();

    JOBS[1].write(&guest).unwrap();
    JOBS[2].write(&guest).unwrap();
    repository.clone_and_compare(&guest).unwrap();
    later.make(&guest).unwrap();
    degraded.pack(&guest).unwrap();
    for writer in &mut writers {
        let commits = writer.commits();
        writer.wait_for_commits(commits + 10).unwrap();
    }
    server.kill().unwrap();
    let commits = writers.map(|writer| writer.cut_off());
    guest.pull_the_plug();

    let mut server = scene.serve_with(1, &options).unwrap();
    let guest = scene.boot(&machine(), 0).unwrap();
    for (database, commits) in DATABASES.iter().zip(commits) {
        database.verify(&guest, commits).unwrap();
    }
    for job in &JOBS {
        job.verify(&guest).unwrap();
    }
    repository.require_whole_with_clone(&guest).unwrap();
    later.clone_and_compare(&guest).unwrap();
    archive.unpack_and_compare(&guest).unwrap();
    degraded.unpack_and_compare(&guest).unwrap();
    Exerciser::with_maps(32).start(&guest, 600).unwrap().finish(TIMEOUT).unwrap().success().unwrap();
    server.require_alive().unwrap();
    assert!(scene.volume.component_counter("reconstructed_blocks").unwrap() > 0);
    assert_ne!(scene.volume.component_states().unwrap()[LOST], "live");
    scene.end(server, guest).unwrap();
}

#[test]
fn under_each_cache_the_exerciser_reads_what_it_wrote_while_a_component_turns_to_garbage() {
    let scene = Scene::new("exerciser", "1GiB").unwrap();
    for (spoilt, (cache, exerciser)) in
        [("never", Exerciser::without_maps(41)), ("always", Exerciser::with_maps(42))].into_iter().enumerate()
    {
        let mut server = scene.serve_with(1, &["--cache", cache]).unwrap();
        let guest = scene.boot(&machine(), 0).unwrap();
        JOBS[0].write(&guest).unwrap();
        let exercise = exerciser.start(&guest, 1000).unwrap();
        scene.volume.spoil(spoilt).unwrap();
        exercise.finish(TIMEOUT).unwrap().success().unwrap();
        guest.unmount(TAG).unwrap();
        guest.mount(TAG).unwrap();
        JOBS[0].verify(&guest).unwrap();
        JOBS[0].write(&guest).unwrap();
        JOBS[0].verify(&guest).unwrap();
        server.require_alive().unwrap();
        scene.end(server, guest).unwrap();
    }
}

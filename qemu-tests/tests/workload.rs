//! Programs that check their own data, on a volume through a real guest.

use std::time::Duration;

use ringfort_qemu_tests::machine::{Board, Machine};
use ringfort_qemu_tests::programs::Program;
use ringfort_qemu_tests::scene::{MOUNTED, Scene};

/// Both programs are slow to start under emulation.
const TIMEOUT: Duration = Duration::from_secs(300);

fn machine() -> Machine {
    Machine::new(Board::MicroVm).memory_mib(768).programs(&[Program::Fio, Program::Sqlite3])
}

#[test]
fn fio_finds_every_block_that_it_wrote() {
    let scene = Scene::new("fio", "1GiB").unwrap();
    let server = scene.serve(1).unwrap();
    let guest = scene.boot(&machine(), 0).unwrap();
    for job in [
        "--rw=randwrite --bs=4k --size=12m --fsync=32",
        "--rw=write --bs=1m --size=48m --direct=1",
        "--rw=randwrite --bssplit=512/20:4k/40:60k/40 --size=24m --fdatasync=16",
    ] {
        let script = format!(
            "cd {MOUNTED} && fio --name=job --filename=fio --ioengine=psync --verify=crc32c --verify_fatal=1 \
             --do_verify=1 --randseed=42 --thread --minimal {job} && rm fio"
        );
        guest.run(&["/bin/sh", "-c", &script], TIMEOUT).unwrap();
    }
    scene.end(server, guest).unwrap();
}

#[test]
fn a_sqlite_database_keeps_its_integrity_across_a_restart() {
    let scene = Scene::new("sqlite", "1GiB").unwrap();
    let server = scene.serve(1).unwrap();
    let guest = scene.boot(&machine(), 0).unwrap();
    // Every row's digest is computed by the database, so that a wrong byte in any of them changes the sum.
    let script = format!(
        "cd {MOUNTED} && {{
            echo 'PRAGMA journal_mode=DELETE; PRAGMA synchronous=FULL;'
            echo 'CREATE TABLE t(id INTEGER PRIMARY KEY, body TEXT); CREATE INDEX i ON t(body);'
            n=0
            while [ $n -lt 150 ]; do
                echo \"BEGIN; INSERT INTO t(body) SELECT hex($n * 1000 + value) || hex(zeroblob(40 + $n))
                      FROM generate_series(1, 20); DELETE FROM t WHERE id % 7 = $((n % 7)) AND id < $((n * 10)); COMMIT;\"
                n=$((n + 1))
            done
        }} > /tmp/script && sqlite3 -bail database < /tmp/script"
    );
    guest.run(&["/bin/sh", "-c", &script], TIMEOUT).unwrap();
    let question = format!(
        "sqlite3 -bail {MOUNTED}/database 'PRAGMA integrity_check; SELECT count(*), sum(length(body)), sum(id) FROM t;'"
    );
    let answer = guest.run(&["/bin/sh", "-c", &question], TIMEOUT).unwrap();
    assert!(answer.contains("ok\n"), "{answer}");
    scene.end(server, guest).unwrap();

    let server = scene.serve(1).unwrap();
    let guest = scene.boot(&machine(), 0).unwrap();
    assert_eq!(guest.run(&["/bin/sh", "-c", &question], TIMEOUT).unwrap(), answer);
    scene.end(server, guest).unwrap();
}

//! `cargo demo`: a guest mounts an erasure-coded volume, a component is lost under it, the server is killed, and nothing
//! that was synced is missing. Every number printed was measured in this run; the first thing that is not as said ends it
//! with an error.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use ringfort_qemu_tests::agent::AGENT;
use ringfort_qemu_tests::machine::{Accelerator, Board, Guest, Machine};
use ringfort_qemu_tests::programs::Program;
use ringfort_qemu_tests::scene::{Ledger, MOUNTED, Scene, Tree};
use ringfort_qemu_tests::{provision, server};

const SIZE: &str = "1GiB";
const LOST: usize = 2;
const LEDGER_STEPS: u64 = 60;

fn main() -> ExitCode {
    let started = Instant::now();
    match story() {
        Ok(()) => {
            println!("\nAll as promised, in {:.0} s.", started.elapsed().as_secs_f64());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("\nNot as promised: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn story() -> Result<()> {
    say("Building the server and fetching QEMU, a kernel and busybox, as far as they are not there yet.");
    server::program()?;
    let parts = provision::parts()?;
    say(&format!("QEMU {} will run guests under {}.", parts.qemu.version, Accelerator::choose()?.name()));

    let scene = Scene::new("demo", SIZE)?;
    let components = scene.volume.component_states()?.len();
    say(&format!(
        "Created a volume of {SIZE}: {components} component files in {}.",
        scene.volume.folder().display()
    ));

    let serving = scene.serve_with(1, &["--channel", &scene.channel(0)])?;
    let machine =
        Machine::new(Board::MicroVm).vsock(&scene.vsock(0)).programs(&[Program::Guestd, Program::Rf]);
    let guest = scene.boot(&machine, 0)?;
    say(&format!(
        "A guest booted in {:.1} s and mounted it with stock virtio-fs.",
        guest.booted_in.as_secs_f64()
    ));
    let tree = Tree::new("tree", 1, 300);
    let (said, took_s) = timed(|| tree.make(&guest))?;
    say(&format!("In the guest: {said}, every one fsynced, in {took_s:.1} s."));
    let before = checksum(&guest, &tree)?;
    say(&format!("Their SHA-256, taken in the guest: {before}."));

    channel_beside_mount(&guest)?;

    scene.volume.empty(LOST)?;
    say(&format!("Emptied component {LOST} while it was being served."));
    let (said, took_s) = timed(|| tree.verify(&guest))?;
    say(&format!("In the guest, nothing cached: {said}, byte by byte, in {took_s:.1} s."));
    let later = Tree::new("later", 2, 60);
    say(&format!("Wrote on without that component: {}.", later.make(&guest)?));
    let counted = |name| scene.volume.component_counter(name);
    let (errors, damaged, rebuilt) =
        (counted("errors")?, counted("damaged_blocks")?, counted("reconstructed_blocks")?);
    ensure!(rebuilt > 0, "every byte was right, but the server says that it reconstructed none");
    say(&format!(
        "The server met {errors} failed reads and {damaged} damaged blocks, and reconstructed {rebuilt} blocks."
    ));

    let ledger = Ledger::new("ledger", 3);
    let process_id = serving.process_id();
    let steps = ledger.write_until_crash(&guest, LEDGER_STEPS, || serving.kill())?;
    guest.pull_the_plug();
    say(&format!(
        "Killed the server (process {process_id}, SIGKILL) under a writer that had {steps} steps acknowledged as synced."
    ));

    let (serving, guest) = scene.serve_and_boot()?;
    let states = scene.volume.component_states()?;
    ensure!(states[LOST] != "live", "component {LOST} lost its label, but its state is live");
    say(&format!("Started the server again, and a new guest. Component {LOST} is {:?}.", states[LOST]));
    say(&format!("In the guest: {}.", ledger.verify(&guest, steps)?));
    let (first, second) = (tree.verify(&guest)?, later.verify(&guest)?);
    say(&format!("In the guest: {first}; {second}."));
    let after = checksum(&guest, &tree)?;
    ensure!(after == before, "the checksum is {after}, and was {before}");
    say("The SHA-256 is the one taken at first.");
    println!("\n{}", scene.volume.status_text()?);

    guest.shut_down()?;
    serving.stop()?;
    say("The guest powered off, and the server stopped cleanly on SIGTERM.");
    let report = scene.volume.require_clean()?;
    say("`ringfort volume check` found no damage:");
    println!("{report}");
    Ok(())
}

/// The same read through virtio-fs and through shared memory.
fn channel_beside_mount(guest: &Guest) -> Result<()> {
    let _daemon = guest.start(&["/bin/sh", "-c", "exec ringfort-guestd > /tmp/guestd.log 2>&1"])?;
    guest.must("for wait in $(seq 100); do rf ls > /dev/null 2>&1 && exit 0; sleep 0.1; done; rf ls; cat /tmp/guestd.log")?;
    let text = "the same bytes, whichever way they are read";
    guest.must(&format!("yes '{text}' | head -c 4096 | rf put - /both"))?;
    let sums = guest.must(&format!("rf cat /both | sha256sum; sha256sum < {MOUNTED}/both"))?;
    let sums: Vec<&str> = sums.lines().collect();
    ensure!(sums.len() == 2 && sums[0] == sums[1], "through the channel and through virtio-fs: {sums:?}");
    let through_mount = guest.must(&format!("{AGENT} bench-read {MOUNTED}/both 400"))?;
    let through_mount_us: f64 = through_mount.trim().parse::<f64>()? / 1e3;
    let said = guest.must("rf bench --json --calls 2000 --file /both")?;
    let said: serde_json::Value = serde_json::from_str(&said)?;
    let through_channel_us =
        said["read_4k_ns_p50"].as_f64().context("rf bench said no read_4k_ns_p50")? / 1e3;
    say(&format!(
        "A program of the guest read the same 4 KiB through virtio-fs in {through_mount_us:.0} µs, and through memory that it shares with the \
         server in {through_channel_us:.1} µs (medians): {:.0} times as fast, and byte for byte the same.",
        through_mount_us / through_channel_us
    ));
    guest.must("rf rm /both && killall ringfort-guestd")?;
    Ok(())
}

fn say(sentence: &str) {
    println!("* {sentence}");
}

fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    let started = Instant::now();
    Ok((work()?, started.elapsed().as_secs_f64()))
}

/// One checksum over the contents of every file of the tree, in the order of the names.
fn checksum(guest: &Guest, tree: &Tree) -> Result<String> {
    guest.must("echo 3 > /proc/sys/vm/drop_caches")?;
    let said = guest.must(&format!(
        "cd {} && find . -type f -print0 | sort -z | xargs -0 cat > /tmp/all && sha256sum < /tmp/all && rm /tmp/all && test -d {MOUNTED}",
        tree.path
    ))?;
    let sum: String = said.split_whitespace().next().unwrap_or_default().to_owned();
    ensure!(sum.len() == 64, "sha256sum said {said:?}");
    Ok(sum)
}

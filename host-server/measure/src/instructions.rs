//! Instructions that a server executes for its commands: counted by callgrind, and so the same on every machine with the same compiler.
//!
//! Valgrind runs one thread at a time, and none while another waits for io_uring. So the counted server, in a process of its own that is its client as well, wakes
//! by itself again and again.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ringfort_engine::local::{self, LocalOptions};
use ringfort_engine::mailbox::mailbox;
use ringfort_filesystem::{Filesystem, FilesystemOptions};
use ringfort_frontend::channel::{ChannelServer, Limits, Place};
use ringfort_guest::{Open, Options, connect_with};
use ringfort_qemu_tests::provision;
use ringfort_qemu_tests::server::Volume;
use ringfort_store::store::{OpenOptions, Store};

use crate::volume::{self, COMPONENTS};

/// The server's function in which commands of rings are taken, carried out and completed. What the server does besides, polling
/// above all, is not counted.
const COUNTED: &str = "*RingServer*serve_batch*";

/// Reads of two runs: what one takes is the difference.
const READS: [u64; 2] = [100, 600];

/// How long the server sleeps at most.
const WAKES_EVERY: Duration = Duration::from_micros(500);

const BLOCK_BYTES: usize = 4096;
const VOLUME_BYTES: u64 = 256 << 20;
const LOG_BYTES: u64 = 16 << 20;
/// What the server keeps of blocks, as `serve` does without a setting.
const DATA_CACHE_BYTES: u64 = 32 << 20;

/// What the server executes for a read of a block that it has in memory, its batch of one included. `folder` is used for a volume.
pub fn per_cached_read(folder: &Path) -> Result<f64> {
    let volume = folder.join("counted");
    volume::create(&volume, VOLUME_BYTES, LOG_BYTES)?;
    let counts = folder.join("callgrind.out");
    let mut executed = [0; 2];
    for (count, reads) in executed.iter_mut().zip(READS) {
        *count = count_run(&volume, &counts, reads)?;
    }
    let [few, many] = executed;
    ensure!(
        few > 0 && many > few,
        "callgrind counted {few} instructions of {} reads, {many} of {}",
        READS[0],
        READS[1]
    );
    Ok((many - few) as f64 / (READS[1] - READS[0]) as f64)
}

/// Runs [`run_counted`] in a process of its own; the instructions that the server executed for commands.
fn count_run(volume: &Path, counts: &Path, reads: u64) -> Result<u64> {
    let [program, arguments @ ..] = &valgrind()?[..] else { unreachable!("a command has a program") };
    let own = std::env::current_exe().context("finding this program")?;
    let said = Command::new(program)
        .args(arguments)
        .args(["--tool=callgrind", "--quiet", "--fair-sched=yes"])
        .arg(format!("--toggle-collect={COUNTED}"))
        .arg(assignment("--callgrind-out-file", counts))
        .arg(own)
        .arg("counted-reads")
        .arg(volume)
        .arg(reads.to_string())
        .output()
        .with_context(|| format!("running {}", program.display()))?;
    ensure!(
        said.status.success(),
        "the counted server: {}: {}",
        said.status,
        String::from_utf8_lossy(&said.stderr)
    );
    let said = fs::read_to_string(counts).with_context(|| format!("reading {}", counts.display()))?;
    let total = said.lines().find_map(|line| line.strip_prefix("totals: "));
    let total = total.with_context(|| format!("no totals in {}", counts.display()))?;
    total.trim().parse().with_context(|| format!("totals of {total:?} in {}", counts.display()))
}

/// Serves the volume in this folder to a client that reads so often, and sleeps instead of polling.
pub fn run_counted(folder: &Path, reads: u64) -> Result<()> {
    let socket = folder.join("channel");
    let (end, mut ended) = mailbox::<()>();
    let (started, server) = mpsc::channel();
    let (files, at) = (Volume::at(folder), socket.clone());
    let volume = thread::spawn(move || -> Result<()> {
        let options = LocalOptions { busy_poll: Duration::ZERO, ..LocalOptions::default() };
        let runtime = local::start(options)?;
        let engine = runtime.engine();
        runtime.block_on(async {
            let options = OpenOptions { data_cache_bytes: DATA_CACHE_BYTES, ..OpenOptions::default() };
            let components: Vec<_> = (0..COMPONENTS).map(|index| files.component(index)).collect();
            let (store, _) = Store::open(Rc::clone(&engine), &components, &options).await?;
            let filesystem =
                Filesystem::open(Rc::new(store.clone()), Rc::clone(&engine), FilesystemOptions::default())
                    .await?;
            let service = Rc::new(filesystem.clone());
            let place = Place::Host { path: at };
            let served = ChannelServer::start(&engine, service, place, Limits::default(), [7; 16])?;
            let _ = started.send(served);
            let waker = Rc::clone(&engine);
            engine.spawn(Box::pin(async move {
                loop {
                    waker.sleep(WAKES_EVERY).await;
                }
            }));
            ended.recv().await;
            filesystem.shut_down().await?;
            Ok(store.close().await?)
        })
    });
    let read = server.recv().map_err(|_| anyhow::anyhow!("the server did not start")).and_then(|server| {
        let read = read_blocks(&socket, reads);
        server.stop();
        read
    });
    let _ = end.send(());
    volume.join().map_err(|_| anyhow::anyhow!("the volume's thread panicked"))??;
    read
}

fn read_blocks(socket: &Path, reads: u64) -> Result<()> {
    let volume =
        connect_with(socket, &Options { busy_poll: Duration::ZERO, rings: 1, ..Options::default() })?;
    let file = volume.open("/counted", Open::to_write().create(0o600))?;
    let mut block = [7; BLOCK_BYTES];
    file.write_at(&block, 0)?;
    for _ in 0..reads {
        let read = file.read_at(&mut block, 0)?;
        ensure!(read == BLOCK_BYTES, "{read} bytes were read");
    }
    Ok(file.close()?)
}

fn assignment(name: &str, value: &Path) -> OsString {
    let mut assigned = OsString::from(name);
    assigned.push("=");
    assigned.push(value);
    assigned
}

/// A command that runs valgrind in its own process.
fn valgrind() -> Result<Vec<OsString>> {
    let own = Command::new("valgrind").arg("--version").output();
    if own.is_ok_and(|said| said.status.success()) {
        return Ok(vec!["valgrind".into()]);
    }
    let root = provision::unpacked("valgrind", &["valgrind"])?;
    let library = assignment("VALGRIND_LIB", &root.join("usr/libexec/valgrind"));
    Ok(vec!["env".into(), library, root.join("usr/bin/valgrind").into()])
}

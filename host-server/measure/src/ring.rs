//! Topic `ring`: what a call costs a process of this host, through memory that it shares with a serving `ringfort`.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringfort_guest::{File, Open, Options, Queue, Volume, connect_with};
use ringfort_qemu_tests::place::RunFolder;
use ringfort_qemu_tests::server::{Server, Volume as VolumeFiles};

use crate::figures::{Figures, Goal, RINGFORT};
use crate::instructions;
use crate::pace::{self, Samples};

const VOLUME_SIZE: &str = "1GiB";
const CALLS: usize = 20_000;
const SLOW_CALLS: usize = 2_000;
const DEPTH: usize = 32;
const LISTENS_WITHIN: Duration = Duration::from_secs(30);
/// How long each rate is taken.
const RATE_DURATION: Duration = Duration::from_secs(1);
const BLOCK_BYTES: usize = 4096;
/// What a flood writes and reads at a time.
const FLOOD_WRITE_BYTES: u32 = 512 << 10;
const FLOOD_READ_BYTES: u32 = 256 << 10;
/// Of a flood's commands under way, those that write, one more that reads; the others are empty.
const FLOOD_WRITES: u64 = 8;
/// Blocks that are read in turn. They stay where writes gather, so that no read of them reaches a device.
const BLOCKS: u64 = 64;

pub fn measure(rounds: u32) -> Result<Figures> {
    let mut figures = Figures::default();
    describe(&mut figures, rounds)?;
    let folder = RunFolder::new("measure-ring")?;
    let volume = VolumeFiles::create(&folder.path().join("volume"), VOLUME_SIZE)?;
    let socket = folder.socket("channel");
    let address = format!("unix:{}", socket.display());
    let log = folder.path().join("server.log");
    let server = Server::start(&volume, &[], &["--channel", &address], &log)?;
    wait_for(&socket, || server.log())?;
    pace::pin_asker()?;
    pace::pin_server(server.process_id())?;
    for _ in 0..rounds {
        let client = Client::connect(&socket)?;
        let cache_line_ns = pace::cache_line_ns()?;
        figures.note(RINGFORT, "cacheline_rtt_ns_p50", "ns", cache_line_ns);
        client.note_latencies(&mut figures)?;
        client.note_rates(&mut figures)?;
        note_parked(&socket, &mut figures)?;
        note_fairness(&socket, &mut figures)?;
    }
    set_goals(&mut figures);
    server.stop()?;
    volume.require_clean()?;
    match instructions::per_cached_read(folder.path()) {
        Ok(count) => figures.note(RINGFORT, "instructions_per_read_4k_cached", "", count),
        Err(error) => figures.leave_out("instructions", format!("{error:#}")),
    }
    Ok(figures)
}

fn wait_for(socket: &Path, log: impl Fn() -> String) -> Result<()> {
    let deadline = Instant::now() + LISTENS_WITHIN;
    while !socket.exists() {
        ensure!(
            Instant::now() < deadline,
            "no channel at {} within {LISTENS_WITHIN:?}: {}",
            socket.display(),
            log()
        );
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn describe(figures: &mut Figures, rounds: u32) -> Result<()> {
    let processors = std::thread::available_parallelism().context("counting processors")?;
    figures.condition("host", format!("{processors} processors; the client, and whoever asks, on the first, the server, and whoever answers, on the second"));
    figures
        .condition("ringfort", "serve --channel unix:PATH, data 4+2; the client is the library, one thread");
    figures.condition("polled", "one call after the other; neither side sleeps");
    figures.condition(
        "parked",
        format!(
            "{} µs before each call: both sides sleep, as do those of socket and eventfd",
            pace::PAUSE.as_micros()
        ),
    );
    figures.condition("depth32", format!("a queue of one owner, {DEPTH} commands under way"));
    figures.condition(
        "cached",
        format!(
            "4 KiB in turn out of {BLOCKS} blocks that were written before and lie in the server's memory"
        ),
    );
    figures.condition(
        "fair",
        "an empty command after a pause, alone and while another client keeps a ring full of large writes, a large read and empty commands",
    );
    figures.condition("rounds", rounds.to_string());
    Ok(())
}

/// A process's connection, with a file to read.
struct Client {
    volume: Volume,
    file: File,
}

impl Client {
    fn connect(socket: &std::path::Path) -> Result<Self> {
        let options = Options { queues: 1, ..Options::default() };
        let volume = connect_with(socket, &options)?;
        let file = volume.open("/measured", Open::to_write().create(0o644))?;
        for block in 0..BLOCKS {
            file.write_at(&[block as u8; BLOCK_BYTES], block * BLOCK_BYTES as u64)?;
        }
        Ok(Self { volume, file })
    }

    fn note_latencies(&self, figures: &mut Figures) -> Result<()> {
        let nop = || {
            Samples::take(CALLS, || {
                ensure!(self.volume.nop(5)? == 5, "another value came back");
                Ok(())
            })
        };
        figures.note(RINGFORT, "rtt_polled_ns_p50", "ns", nop()?.median_ns());
        figures.note(RINGFORT, "rtt_polled_ns_p99", "ns", nop()?.quantile(0.99));
        let mut block = [0; BLOCK_BYTES];
        let mut number = 0;
        let read = Samples::take(CALLS, || {
            number = (number + 1) % BLOCKS;
            let read = self.file.read_at(&mut block, number * BLOCK_BYTES as u64)?;
            ensure!(read == BLOCK_BYTES && block[17] == number as u8, "block {number} reads {}", block[17]);
            Ok(())
        })?;
        figures.note(RINGFORT, "read_4k_cached_ns_p50", "ns", read.median_ns());
        let stat = Samples::take(CALLS, || {
            let found = self.volume.stat("/measured")?;
            ensure!(found.size_bytes == BLOCKS * BLOCK_BYTES as u64, "{found:?}");
            Ok(())
        })?;
        figures.note(RINGFORT, "stat_ns_p50", "ns", stat.median_ns());
        Ok(())
    }

    fn note_rates(&self, figures: &mut Figures) -> Result<()> {
        let mut queue = self.volume.queue()?;
        let rate = rate(&mut queue, |queue, number| Ok(queue.nop(number, number)?))?;
        figures.note(RINGFORT, "ops_per_s_depth32", "/s", rate);
        let read = |queue: &mut Queue, number: u64| {
            let offset_bytes = number % BLOCKS * BLOCK_BYTES as u64;
            Ok(queue.read(&self.file, BLOCK_BYTES, offset_bytes, number)?)
        };
        figures.note(RINGFORT, "read_4k_cached_per_s_depth32", "/s", self::rate(&mut queue, read)?);
        Ok(())
    }
}

/// Commands a second, with as many under way as [`DEPTH`].
fn rate(queue: &mut Queue, submit: impl Fn(&mut Queue, u64) -> Result<bool>) -> Result<f64> {
    let mut block = [0; BLOCK_BYTES];
    // Completions come in any order: the tags of all of them add up.
    let (mut submitted, mut completed, mut tags) = (0u64, 0u64, 0u64);
    let mut use_one = |queue: &mut Queue| -> Result<()> {
        let done = queue.next(&mut block)?;
        done.result?;
        (completed, tags) = (completed + 1, tags.wrapping_add(done.tag));
        Ok(())
    };
    let began = Instant::now();
    let (elapsed, counted) = loop {
        while queue.under_way() < DEPTH && submit(queue, submitted)? {
            submitted += 1;
        }
        use_one(queue)?;
        let elapsed = began.elapsed();
        if submitted.is_multiple_of(1024) && elapsed >= RATE_DURATION {
            break (elapsed, submitted - queue.under_way() as u64);
        }
    };
    while queue.under_way() > 0 {
        use_one(queue)?;
    }
    ensure!(completed == submitted, "{completed} of {submitted} commands were completed");
    ensure!(tags == submitted * (submitted - 1) / 2, "a command was completed twice, and another never");
    Ok(counted as f64 / elapsed.as_secs_f64())
}

/// Both sides asleep before each call, beside the kernel's own ways to wake another.
fn note_parked(socket: &std::path::Path, figures: &mut Figures) -> Result<()> {
    let volume =
        connect_with(socket, &Options { busy_poll: Duration::ZERO, rings: 1, ..Options::default() })?;
    let parked = Samples::take_slowly(SLOW_CALLS, || {
        ensure!(volume.nop(6)? == 6, "another value came back");
        Ok(())
    })?;
    figures.note(RINGFORT, "rtt_parked_us_p50", "µs", parked.median_ns() / 1e3);
    figures.note(RINGFORT, "unix_socket_rtt_us_p50", "µs", pace::unix_socket_ns(SLOW_CALLS)? / 1e3);
    figures.note(RINGFORT, "eventfd_rtt_us_p50", "µs", pace::eventfd_ns(SLOW_CALLS)? / 1e3);
    Ok(())
}

/// A client's empty commands, with nobody else there and with one that floods the server.
fn note_fairness(socket: &Path, figures: &mut Figures) -> Result<()> {
    let volume = connect_with(socket, &Options { rings: 1, ..Options::default() })?;
    let p99_us = || -> Result<f64> {
        // In the pauses the flood has this processor.
        let samples = Samples::take_slowly(SLOW_CALLS, || {
            ensure!(volume.nop(7)? == 7, "another value came back");
            Ok(())
        })?;
        Ok(samples.quantile(0.99) / 1e3)
    };
    figures.note(RINGFORT, "fair_alone_us_p99", "µs", p99_us()?);
    let (stop, carried_out) = (AtomicBool::new(false), AtomicU64::new(0));
    let (flooded, commands, ended) = thread::scope(|scope| {
        let flooder = scope.spawn(|| flood(socket, &stop, &carried_out));
        while carried_out.load(Ordering::Relaxed) < DEPTH as u64 && !flooder.is_finished() {
            thread::sleep(Duration::from_millis(1));
        }
        let before = carried_out.load(Ordering::Relaxed);
        let flooded = p99_us();
        let commands = carried_out.load(Ordering::Relaxed) - before;
        stop.store(true, Ordering::Relaxed);
        (flooded, commands, flooder.join())
    });
    ended.map_err(|_| anyhow::anyhow!("the flooding thread panicked"))??;
    ensure!(commands > SLOW_CALLS as u64, "a flood of {commands} commands is none");
    figures.note(RINGFORT, "fair_flooded_us_p99", "µs", flooded?);
    Ok(())
}

/// Keeps a ring full of large writes, a large read and empty commands, and counts those that were carried out.
fn flood(socket: &Path, stop: &AtomicBool, carried_out: &AtomicU64) -> Result<()> {
    // It sleeps while it has nothing to do: its processor is that of the other client.
    let options = Options { rings: 1, queues: 1, busy_poll: Duration::ZERO, ..Options::default() };
    let volume = connect_with(socket, &options)?;
    let file = volume.open("/flooded", Open::to_write().create(0o644))?;
    let mut queue = volume.queue()?;
    let no_room = "a ring with no room for a flood";
    let written = queue.buffer(FLOOD_WRITE_BYTES).context(no_room)?;
    let read = queue.buffer(FLOOD_READ_BYTES).context(no_room)?;
    // A command is followed by another of its kind, under its tag.
    let submit = |queue: &mut Queue, tag: u64| match tag {
        0 => queue.read_shared(&file, &read, 0, tag),
        1..=FLOOD_WRITES => queue.write_shared(&file, &written, FLOOD_WRITE_BYTES, 0, tag),
        _ => queue.nop(tag, tag),
    };
    for tag in 0..DEPTH as u64 {
        ensure!(submit(&mut queue, tag)?, "a ring of fewer than {DEPTH} commands");
    }
    loop {
        let done = queue.next(&mut [])?;
        done.result?;
        carried_out.fetch_add(1, Ordering::Relaxed);
        if !stop.load(Ordering::Relaxed) {
            submit(&mut queue, done.tag)?;
        } else if queue.under_way() == 0 {
            return Ok(());
        }
    }
}

fn set_goals(figures: &mut Figures) {
    for (name, goal) in [
        ("rtt_polled_ns_p50", Goal::TimesOwnAtMost(4.0, "cacheline_rtt_ns_p50")),
        ("ops_per_s_depth32", Goal::AtLeast(2e6)),
        ("read_4k_cached_per_s_depth32", Goal::AtLeast(1e6)),
        ("rtt_parked_us_p50", Goal::TimesOwnAtMost(1.3, "eventfd_rtt_us_p50")),
    ] {
        figures.goal(RINGFORT, name, goal);
    }
}

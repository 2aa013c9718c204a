//! Topic `clean`: random overwrites of a volume that is half, four fifths or nine tenths full of live data, through a server's channel.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringfort_guest::File;
use ringfort_qemu_tests::place::RunFolder;
use ringfort_qemu_tests::server::Volume;
use serde_json::{Value, json};

use crate::figures::{Figures, Goal, RINGFORT};
use crate::load::{BLOCK_BYTES, DEPTH, Random, TRANSFER_BYTES, stamp};
use crate::pace::Samples;
use crate::volume::{self, Served, Servers};

/// More than 500 segments of a length that banks fill.
const SIZE_BYTES: u64 = 2 << 30;
const LOG_BYTES: u64 = 32 << 20;
const FILE: &str = "overwritten";
/// Live bytes in a hundred of data capacity; theory's least for even load, in blocks moved for each that is written.
const FILLS: [(u64, f64); 3] = [(50, 0.26), (80, 1.7), (90, 4.2)];
/// What may be lost to segments that are open, free or kept.
const ABOVE_LIMIT: f64 = 1.2;
/// Skewed load is to cost so many times what even load costs.
const SKEWED_BELOW: f64 = 0.9;
/// Writes before counting begins, and while it lasts, in tenths of the capacity's blocks: by then every segment has been cleaned.
const SETTLE_TENTHS: u64 = 15;
const COUNT_TENTHS: u64 = 5;
/// Fill at which latencies are taken.
const LATENCY_FILL: u64 = 80;
/// Synced writes for latencies, and their distance.
const PACED_WRITES: usize = 8000;
const PACE: Duration = Duration::from_micros(2500);

#[derive(Clone, Copy, PartialEq)]
enum Load {
    Even,
    /// Four fifths of the writes go to a fifth of the blocks.
    Skewed,
}

impl Load {
    fn name(self) -> &'static str {
        match self {
            Load::Even => "uniform",
            Load::Skewed => "skewed",
        }
    }

    fn block(self, random: &mut Random, blocks: u64) -> u64 {
        let hot = blocks / 5;
        match self {
            Load::Even => random.next() % blocks,
            Load::Skewed if random.next().is_multiple_of(5) => hot + random.next() % (blocks - hot),
            Load::Skewed => random.next() % hot,
        }
    }
}

pub fn measure(rounds: u32) -> Result<Figures> {
    let mut figures = Figures::default();
    describe(&mut figures, rounds);
    let folder = RunFolder::new("measure-clean")?;
    let servers = Servers::new(&folder);
    for round in 0..u64::from(rounds) {
        for (fill, _) in FILLS {
            for load in [Load::Even, Load::Skewed] {
                let volume = volume::create(&folder.path().join("volume"), SIZE_BYTES, LOG_BYTES)?;
                servers
                    .with(&volume, |served| overwrite(served, &volume, fill, load, round, &mut figures))?;
                volume.require_clean()?;
                std::fs::remove_dir_all(volume.folder()).context("remove a measured volume")?;
            }
        }
    }
    set_goals(&mut figures);
    Ok(figures)
}

fn describe(figures: &mut Figures, rounds: u32) {
    figures.condition(
        "ringfort",
        "data 4+2 in six files, 2 GiB, log 32 MiB, made anew for each fill and load; one client of a serving process, through its channel",
    );
    figures.condition(
        "fill",
        "live bytes in a hundred of data capacity, which is that of all segments, spare ones included",
    );
    figures.condition(
        "uniform, skewed",
        "4 KiB at random, 16 under way; skewed: four fifths of them in a fifth of the blocks",
    );
    figures.condition(
        "counted",
        format!(
            "as many blocks as {COUNT_TENTHS} tenths of the capacity, after {SETTLE_TENTHS} tenths; then a checkpoint, whose bytes count as well"
        ),
    );
    figures.condition(
        "p99",
        format!(
            "{PACED_WRITES} writes of 4 KiB, each with its fsync, one every {} µs, at {LATENCY_FILL} %: before anything had to be cleaned, \
             and at the end of the uniform load, which cleaning keeps up with; from when a write is due",
            PACE.as_micros()
        ),
    );
    figures.condition("rounds", rounds.to_string());
}

fn set_goals(figures: &mut Figures) {
    for (fill, limit) in FILLS {
        let even = format!("relocated_per_user_block_uniform_{fill}");
        figures.goal(RINGFORT, even, Goal::AtMost(limit * ABOVE_LIMIT));
    }
    let skewed = [
        ("relocated_per_user_block_skewed_50", "relocated_per_user_block_uniform_50"),
        ("relocated_per_user_block_skewed_80", "relocated_per_user_block_uniform_80"),
        ("relocated_per_user_block_skewed_90", "relocated_per_user_block_uniform_90"),
    ];
    for (skewed, even) in skewed {
        figures.goal(RINGFORT, skewed, Goal::TimesOwnAtMost(SKEWED_BELOW, even));
    }
    figures.goal(
        RINGFORT,
        "write_4k_fsync_us_p99_cleaning",
        Goal::TimesOwnAtMost(3.0, "write_4k_fsync_us_p99"),
    );
}

fn overwrite(
    served: &Served<'_>,
    volume: &Volume,
    fill: u64,
    load: Load,
    round: u64,
    figures: &mut Figures,
) -> Result<()> {
    let capacity_bytes = number(&volume.status()?, "space", "capacity_bytes")?;
    let capacity_blocks = capacity_bytes / BLOCK_BYTES as u64;
    let blocks = capacity_blocks * fill / 100;
    let file = served.create_file(FILE)?;
    write_in_sequence(served, &file, blocks)?;
    let mut random = Random::new(round * 10 + fill);
    let with_latencies = fill == LATENCY_FILL && load == Load::Even;
    if with_latencies {
        let (p99_us, cleaned) = paced(volume, &file, blocks, &mut random)?;
        ensure!(cleaned == 0, "{cleaned} segments were cleaned when none had to be");
        figures.note(RINGFORT, "write_4k_fsync_us_p99", "µs", p99_us);
    }
    write_at_random(served, &file, blocks, capacity_blocks * SETTLE_TENTHS / 10, load, &mut random)?;
    served.checkpoint()?;
    let (before, before_status) = (served.counts()?, volume.status()?);
    let count = capacity_blocks * COUNT_TENTHS / 10;
    let began = Instant::now();
    write_at_random(served, &file, blocks, count, load, &mut random)?;
    let elapsed = began.elapsed();
    served.checkpoint()?;
    let user_bytes = count * BLOCK_BYTES as u64;
    let commands = json!({ "write": count, "sync": 1 });
    let moved = served.counts()?.claim(&before, user_bytes, 0, &commands)?;
    let status = volume.status()?;
    let grown = |name| -> Result<u64> {
        Ok(number(&status, "cleaning", name)? - number(&before_status, "cleaning", name)?)
    };
    let live_bytes = number(&status, "space", "live_bytes")?;
    ensure!(live_bytes.abs_diff(blocks * BLOCK_BYTES as u64) < 1 << 20, "{live_bytes} bytes live");
    let mut note = |name: &str, unit, value| {
        figures.note(RINGFORT, format!("{name}_{}_{fill}", load.name()), unit, value);
    };
    let per_user_byte = |bytes: u64| bytes as f64 / user_bytes as f64;
    note("relocated_per_user_block", "", per_user_byte(grown("relocated_bytes")?));
    note("device_bytes_per_user_byte", "everything", per_user_byte(moved.device_write_bytes));
    note("device_bytes_per_user_byte_data", "log and stripes", per_user_byte(moved.log_and_stripe_bytes));
    note("cleaner_padding_per_user_byte", "", per_user_byte(grown("padding_bytes")?));
    note("rand_write_4k_per_s", "1/s", count as f64 / elapsed.as_secs_f64());
    if with_latencies {
        let (p99_us, cleaned) = paced(volume, &file, blocks, &mut random)?;
        ensure!(cleaned > 0, "nothing was cleaned while latencies were taken");
        figures.note(RINGFORT, "write_4k_fsync_us_p99_cleaning", "µs", p99_us);
    }
    Ok(())
}

/// The 99th percentile of synced writes at a steady pace, from when each was due, and how many segments were cleaned meanwhile.
fn paced(volume: &Volume, file: &File, blocks: u64, random: &mut Random) -> Result<(f64, u64)> {
    let cleaned = || number(&volume.status()?, "cleaning", "cleaned_segments");
    let before = cleaned()?;
    let mut block = [0; BLOCK_BYTES];
    let began = Instant::now();
    let mut samples = Vec::with_capacity(PACED_WRITES);
    for index in 0..PACED_WRITES {
        let due = began + PACE * index as u32;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        stamp(&mut block, index as u64);
        file.write_at(&block, random.next() % blocks * BLOCK_BYTES as u64)?;
        file.sync_data()?;
        samples.push(due.elapsed());
    }
    Ok((Samples::of(samples).quantile(0.99) / 1e3, cleaned()? - before))
}

fn write_in_sequence(served: &Served<'_>, file: &File, blocks: u64) -> Result<()> {
    let mut queue = served.client.queue()?;
    let buffer = queue.buffer(TRANSFER_BYTES as u32).context("a ring with no room for a transfer")?;
    let mut bytes = vec![0; TRANSFER_BYTES];
    let len_bytes = blocks * BLOCK_BYTES as u64;
    for offset_bytes in (0..len_bytes).step_by(TRANSFER_BYTES) {
        stamp(&mut bytes, offset_bytes);
        queue.fill(&buffer, &bytes)?;
        let part_bytes = (len_bytes - offset_bytes).min(TRANSFER_BYTES as u64) as u32;
        ensure!(queue.write_shared(file, &buffer, part_bytes, offset_bytes, 0)?, "a ring with no room");
        let done = queue.next(&mut [])?.result?;
        ensure!(done == u64::from(part_bytes), "{done} of {part_bytes} bytes at {offset_bytes}");
    }
    Ok(file.sync()?)
}

/// `count` writes of a block, [`DEPTH`] under way, and a sync.
fn write_at_random(
    served: &Served<'_>,
    file: &File,
    blocks: u64,
    count: u64,
    load: Load,
    random: &mut Random,
) -> Result<()> {
    let mut queue = served.client.queue()?;
    let mut block = [0; BLOCK_BYTES];
    let mut begun = 0;
    while begun < count || queue.under_way() > 0 {
        while begun < count && (queue.under_way() as u64) < DEPTH {
            stamp(&mut block, begun);
            let offset_bytes = load.block(random, blocks) * BLOCK_BYTES as u64;
            ensure!(queue.write(file, &block, offset_bytes, begun)?, "a ring with no room");
            begun += 1;
        }
        let done = queue.next(&mut [])?;
        let bytes = done.result.with_context(|| format!("write {} of {count}", done.tag))?;
        ensure!(bytes == BLOCK_BYTES as u64, "{bytes} bytes of write {}", done.tag);
    }
    Ok(file.sync()?)
}

fn number(status: &Value, part: &str, name: &str) -> Result<u64> {
    status[part][name].as_u64().with_context(|| format!("volume status has no {part}.{name}"))
}

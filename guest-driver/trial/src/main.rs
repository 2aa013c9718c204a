//! Shows that the channel does what it says: every command of its vocabulary, by several users on connections of their own, in random histories whose results and
//! errors are compared with a reference one by one. It runs on the host and in guests, on a volume that is empty.
//!
//! Modules, lowest first: `people` · `seen` · `stage` · `names` · `contents` · `ways` · `marks` · `permissions` · `chains` · `directories` · `guards` · `waiting` · `limits` · `forks`

#![deny(unsafe_code)]

mod chains;
mod contents;
mod directories;
#[allow(unsafe_code)]
mod forks;
mod guards;
mod limits;
mod marks;
mod names;
mod people;
mod permissions;
mod seen;
mod stage;
mod waiting;
mod ways;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use ringfort_guest::Address;

use crate::stage::Stage;

const EXAMPLES: &str = "\
Examples:
  guest# ringfort-channel-trial --seed 7 --steps 3000
  host#  ringfort-channel-trial --connect unix:/run/ringfort/data.ctl

Exit status: 0 where all was as it should be, 1 where it was not or the trial could not go on.";

/// Steps after which everything is compared.
const COMPARE_EVERY: u64 = 100;

/// Carries out everything that the channel can do, at random, on an empty volume, and compares it with a reference.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
struct Arguments {
    /// The server: unix:PATH.
    #[arg(long, env = "RINGFORT_CONNECT")]
    connect: Option<String>,
    /// The history.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[arg(long, default_value_t = 2000)]
    steps: u64,
}

impl Arguments {
    fn socket(&self) -> Result<PathBuf> {
        let address = match &self.connect {
            Some(address) => address.parse()?,
            None => Address::from_environment()?,
        };
        Ok(address.path().to_owned())
    }
}

/// One random step.
fn step(stage: &mut Stage) -> Result<()> {
    match stage.random.below(20) {
        0..=6 => names::step(stage),
        7..=11 => contents::step(stage),
        12 => ways::step(stage),
        13 | 14 => marks::step(stage),
        15 | 16 => guards::step(stage),
        17 => chains::step(stage),
        _ => names::open_or_close(stage),
    }
}

fn try_all(arguments: &Arguments) -> Result<String> {
    let socket = arguments.socket()?;
    let mut stage = Stage::new(&socket, arguments.seed)?;
    for number in 0..arguments.steps {
        let context = |stage: &Stage| format!("step {number}, as {}", stage.person());
        stage.choose_person();
        step(&mut stage).with_context(|| context(&stage))?;
        if number % COMPARE_EVERY == COMPARE_EVERY - 1 {
            names::compare_all(&mut stage).with_context(|| format!("after step {number}"))?;
            marks::open_root(&mut stage).with_context(|| format!("after step {number}"))?;
        }
    }
    stage.close_all()?;
    names::compare_all(&mut stage).context("at the end")?;
    marks::open_root(&mut stage)?;
    permissions::each_may_what_the_modes_say(&mut stage).context("permissions")?;
    directories::large_ones_are_listed_whole(&mut stage).context("large directories")?;
    waiting::locks_are_waited_for(&mut stage).context("locks that are waited for")?;
    limits::what_is_too_much_is_refused(&mut stage).context("limits")?;
    forks::children_leave_their_parents_rings_alone(&mut stage).context("children that are forked")?;
    names::compare_all(&mut stage).context("at last")?;
    stage.seen.require_everything()?;
    Ok(format!("{} steps, {}", arguments.steps, stage.seen))
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let said = try_all(&arguments).with_context(|| format!("seed {}", arguments.seed))?;
    println!("all well: {said}");
    Ok(())
}

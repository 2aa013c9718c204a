//! Boots a guest and says how long that took.
#![forbid(unsafe_code)]

use anyhow::Result;
use ringfort_qemu_tests::machine::{Board, Machine};

fn main() -> Result<()> {
    let guest = Machine::new(Board::MicroVm).boot("demo")?;
    println!("a guest booted in {:.1} s under {}", guest.booted_in.as_secs_f64(), guest.accelerator.name());
    guest.shut_down()
}

//! The program in the guest: as `/init`'s successor it runs what the host asks for; as a command it writes and verifies
//! files byte by byte, so that what a test compares never left the guest.
// Memory maps need it: `map.rs` and `flip.rs` alone may.
#![deny(unsafe_code)]

mod bench;
mod flip;
mod knock;
mod ledger;
mod lock;
mod map;
mod order;
mod overwrite;
mod posix;
mod serve;
mod tree;
mod xattr;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use ringfort_qemu_tests::content;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ringfort-guest-agent {}: {error:#}", arguments.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[&str]) -> Result<()> {
    match arguments {
        ["serve"] => serve::serve(),
        ["bench-prepare", mount, data_mib] => bench::prepare(Path::new(mount), number(data_mib)?),
        ["bench", seed, mounts @ ..] => bench::run(mounts, number(seed)?),
        ["tree-make", root, seed, files] => tree::make(Path::new(root), number(seed)?, number(files)?),
        ["tree-verify", root, seed, files] => tree::verify(Path::new(root), number(seed)?, number(files)?),
        ["ledger-write", folder, seed, steps] => {
            ledger::write(Path::new(folder), number(seed)?, number(steps)?)
        }
        ["ledger-verify", folder, seed, steps] => {
            ledger::verify(Path::new(folder), number(seed)?, number(steps)?)
        }
        ["overwrite-write", folder, seed, steps] => {
            overwrite::write(Path::new(folder), number(seed)?, number(steps)?)
        }
        ["overwrite-verify", folder, seed, steps] => {
            overwrite::verify(Path::new(folder), number(seed)?, number(steps)?)
        }
        ["order-write", folder, seed, steps] => {
            order::write(Path::new(folder), number(seed)?, number(steps)?)
        }
        ["order-verify", folder, seed, steps] => {
            order::verify(Path::new(folder), number(seed)?, number(steps)?)
        }
        ["flip-write", folder, seed, rounds] => {
            flip::write(Path::new(folder), number(seed)?, number(rounds)?)
        }
        ["flip-verify", folder, seed, rounds] => {
            flip::verify(Path::new(folder), number(seed)?, number(rounds)?)
        }
        ["lock-hold", file, family, kind, patience] => lock::hold(Path::new(file), family, kind, patience),
        ["posix-check", folder, without @ ..] => posix::check(Path::new(folder), without),
        ["bench-read", file, count] => bench::read_one(Path::new(file), number(count)?),
        ["bench-vsock", port, count] => knock::time_echoes(u32::try_from(number(port)?)?, number(count)?),
        ["knock", port, hex] => knock::knock(u32::try_from(number(port)?)?, hex),
        ["xattr-show", file, name] => xattr::show(Path::new(file), name),
        ["map-read", file] => map::read(Path::new(file)),
        ["map-mix", file] => map::mix(Path::new(file)),
        ["map-read-beyond", file] => map::read_beyond(Path::new(file)),
        ["map-fill", file, byte] => map::fill(Path::new(file), u8::try_from(number(byte)?)?),
        _ => bail!(
            "usage: serve | bench-prepare MOUNT DATA_MIB | bench-read FILE COUNT | bench-vsock PORT COUNT | bench SEED MOUNT... | tree-make ROOT SEED FILES | tree-verify ROOT SEED FILES | ledger-write FOLDER SEED STEPS | \
             ledger-verify FOLDER SEED ACKNOWLEDGED | (overwrite|order)-(write|verify), likewise | \
             flip-(write|verify) FOLDER SEED ROUNDS | lock-hold FILE flock|fcntl shared|exclusive wait|try | \
             posix-check FOLDER [WITHOUT…] | map-read FILE | map-fill FILE BYTE | \
             map-mix FILE | map-read-beyond FILE | knock PORT HEX | xattr-show FILE NAME"
        ),
    }
}

fn number(text: &str) -> Result<u64> {
    text.parse().with_context(|| format!("{text:?} is no number"))
}

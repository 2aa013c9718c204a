//! A tree packed with GNU tar and unpacked again: contents, modes, time stamps to the nanosecond, hard and symbolic links,
//! names of any bytes.

use anyhow::Result;
use ringfort_qemu_tests::agent::AGENT;
use ringfort_qemu_tests::machine::Guest;
use ringfort_qemu_tests::scene::MOUNTED;

use crate::must;

const FILES: u64 = 100;

/// The guest's shell takes a bare `tar` for busybox's.
const TAR: &str = "/bin/tar";

/// A tree in the volume and its archive beside it.
pub struct Archive {
    name: &'static str,
    seed: u64,
}

impl Archive {
    pub fn new(name: &'static str, seed: u64) -> Archive {
        Archive { name, seed }
    }

    /// Makes the tree and packs it.
    pub fn pack(&self, guest: &Guest) -> Result<()> {
        let (name, seed) = (self.name, self.seed);
        must(
            guest,
            &format!(
                "set -e; cd {MOUNTED}; {AGENT} tree-make ./{name} {seed} {FILES}
                {TAR} --create --format=posix --sparse --file {name}.tar --directory {name} .
                sha256sum {name}.tar > {name}.sum; sync"
            ),
        )
        .map(drop)
    }

    /// The archive is the one that was made, and gives back every entry of the tree.
    pub fn unpack_and_compare(&self, guest: &Guest) -> Result<()> {
        let (name, seed) = (self.name, self.seed);
        must(
            guest,
            &format!(
                "set -e; cd {MOUNTED}; sha256sum -c {name}.sum; mkdir {name}.out
                {TAR} --extract --same-permissions --file {name}.tar --directory {name}.out
                {TAR} --compare --file {name}.tar --directory {name}
                echo 3 > /proc/sys/vm/drop_caches
                {AGENT} tree-verify {name} {seed} {FILES}; {AGENT} tree-verify {name}.out {seed} {FILES}"
            ),
        )
        .map(drop)
    }
}

//! `fsx`: random operations on one file, every read compared with a copy in memory.

use anyhow::Result;
use ringfort_qemu_tests::agent::Task;
use ringfort_qemu_tests::machine::Guest;
use ringfort_qemu_tests::scene::MOUNTED;

/// A run of the exerciser. The same seed gives the same operations.
pub struct Exerciser {
    seed: u64,
    maps_weight: u32,
}

impl Exerciser {
    /// Reads and writes through shared memory maps too.
    pub fn with_maps(seed: u64) -> Exerciser {
        Exerciser { seed, maps_weight: 10 }
    }

    /// For mounts without a cache, where maps cannot be shared.
    pub fn without_maps(seed: u64) -> Exerciser {
        Exerciser { seed, maps_weight: 0 }
    }

    /// Starts `operations` operations.
    pub fn start<'guest>(&self, guest: &'guest Guest, operations: u64) -> Result<Task<'guest>> {
        let Exerciser { seed, maps_weight } = self;
        guest.start(&[
            "/bin/sh",
            "-c",
            &format!(
                "cat > /tmp/fsx-{seed}.toml <<END
flen = 600000
[opsize]
max = 70000
[weights]
read = 10
write = 10
mapread = {maps_weight}
mapwrite = {maps_weight}
invalidate = {maps_weight}
truncate = 5
close_open = 3
fsync = 2
fdatasync = 2
posix_fallocate = 3
punch_hole = 5
sendfile = 5
posix_fadvise = 3
copy_file_range = 5
END
                exec fsx -f /tmp/fsx-{seed}.toml -N {operations} -S {seed} -P /tmp {MOUNTED}/fsx-{seed}"
            ),
        ])
    }
}

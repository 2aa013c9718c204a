//! Files through shared memory maps, as programs that map them see them.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::fs::File;
use std::io::Write;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::ptr::NonNull;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::mman::{MapFlags, MsFlags, ProtFlags, mmap, msync, munmap};

/// A file's whole content, mapped shared.
struct Map {
    address: NonNull<c_void>,
    length: NonZeroUsize,
}

impl Map {
    fn new(file: &File, protection: ProtFlags) -> Result<Map> {
        let length_bytes = usize::try_from(file.metadata()?.len())?;
        let length = NonZeroUsize::new(length_bytes).context("an empty file cannot be mapped")?;
        // SAFETY: the kernel chooses the address, so that no memory in use is replaced.
        let address = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, file, 0) }?;
        Ok(Map { address, length })
    }

    /// The address of byte `at`, which is within the map.
    fn byte(&self, at: usize) -> *mut u8 {
        assert!(at < self.length.get());
        self.address.as_ptr().cast::<u8>().wrapping_add(at)
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the range is the one that was mapped, and nothing borrows from it: bytes are copied one by one.
        let _ = unsafe { munmap(self.address, self.length.get()) };
    }
}

/// Copies the file's mapped bytes to standard output.
pub fn read(path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let map = Map::new(&file, ProtFlags::PROT_READ).with_context(|| format!("mapping {}", path.display()))?;
    let bytes: Vec<u8> = (0..map.length.get())
        // SAFETY: `byte` gives addresses within the map, which is readable. Others may change the file meanwhile, hence
        // volatile.
        .map(|at| unsafe { map.byte(at).read_volatile() })
        .collect();
    std::io::stdout().write_all(&bytes).context("writing the bytes")
}

/// Writes in turn through the file and through a map of it, and requires that each shows at once what the other wrote.
pub fn mix(path: &Path) -> Result<()> {
    const STEP_BYTES: usize = 3001;
    let file = open_to_write(path)?;
    let map = Map::new(&file, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)
        .with_context(|| format!("mapping {}", path.display()))?;
    let steps = map.length.get() / STEP_BYTES;
    for step in 0..steps {
        let (start, byte) = (step * STEP_BYTES, (step % 251) as u8 + 1);
        if step % 2 == 0 {
            file.write_all_at(&[byte; STEP_BYTES], start as u64).context("writing the file")?;
        } else {
            // SAFETY: `byte` gives addresses within the map, which is writable.
            (start..start + STEP_BYTES).for_each(|at| unsafe { map.byte(at).write_volatile(byte) });
        }
        // SAFETY: as above; readable.
        let mapped = (start..start + STEP_BYTES).all(|at| unsafe { map.byte(at).read_volatile() } == byte);
        let mut bytes = [0; STEP_BYTES];
        file.read_exact_at(&mut bytes, start as u64).context("reading the file")?;
        ensure!(mapped && bytes == [byte; STEP_BYTES], "step {step}: file and map differ");
    }
    file.sync_all().context("syncing the file")
}

/// Cuts the file to one page while it is mapped, and reads what the map shows behind it: the kernel ends this program with SIGBUS.
pub fn read_beyond(path: &Path) -> Result<()> {
    let file = open_to_write(path)?;
    let map = Map::new(&file, ProtFlags::PROT_READ).with_context(|| format!("mapping {}", path.display()))?;
    // SAFETY: `byte` gives addresses within the map, which is readable.
    let before = unsafe { map.byte(map.length.get() - 1).read_volatile() };
    file.set_len(4096).context("cutting the file")?;
    // SAFETY: within the map; that nothing lies behind it any more is what this is about.
    let behind = unsafe { map.byte(map.length.get() - 1).read_volatile() };
    bail!("{behind} was read behind the end, where {before} had been")
}

fn open_to_write(path: &Path) -> Result<File> {
    File::options().read(true).write(true).open(path).with_context(|| format!("opening {}", path.display()))
}

/// Fills the file with `byte` through a map, synced.
pub fn fill(path: &Path, byte: u8) -> Result<()> {
    let file = open_to_write(path)?;
    let map = Map::new(&file, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)
        .with_context(|| format!("mapping {}", path.display()))?;
    for at in 0..map.length.get() {
        // SAFETY: `byte` gives addresses within the map, which is writable.
        unsafe { map.byte(at).write_volatile(byte) };
    }
    // SAFETY: the range is the one that was mapped.
    unsafe { msync(map.address, map.length.get(), MsFlags::MS_SYNC) }.context("syncing the map")
}

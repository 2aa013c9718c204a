//! Memory that a client shares, made reachable: the descriptors of processes on this host.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::ptr::NonNull;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::statfs::{HUGETLBFS_MAGIC, fstatfs};
use ringfort_protocol::ring::memory::SharedMemory;
use vm_memory::FileOffset;
use vm_memory::mmap::MmapRegion;

/// A descriptor that cannot be a region.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    #[error("{tried} the descriptor of a region: {source}")]
    System { tried: &'static str, source: io::Error },
    /// Reading beyond the end of a file that was cut short kills the reader.
    #[error(
        "the descriptor of a region is not a memfd that is sealed against shrinking; seal it with F_SEAL_SHRINK first"
    )]
    NotSealed,
    #[error(
        "the descriptor of a region lies in huge pages, which can be taken out of it while the server reads them; use small \
         pages on the host"
    )]
    HugePages,
    #[error("the descriptor of a region has {found} bytes, expected {expected}, a multiple of {UNIT_BYTES}")]
    Length { found: u64, expected: u64 },
    #[error("map a region of {len_bytes} bytes: {source}")]
    Map { len_bytes: u64, source: vm_memory::mmap::MmapRegionError },
}

/// What the length of a region is a multiple of.
const UNIT_BYTES: u64 = 4096;

/// Maps all of a memfd. Its owner cannot make it shorter, so that what is mapped stays readable.
pub fn map(descriptor: OwnedFd, len_bytes: u64) -> Result<SharedMemory, RegionError> {
    let system = |tried| move |errno: nix::Error| RegionError::System { tried, source: errno.into() };
    let seals = fcntl(&descriptor, FcntlArg::F_GET_SEALS).map_err(|_| RegionError::NotSealed)?;
    if !SealFlag::from_bits_retain(seals).contains(SealFlag::F_SEAL_SHRINK) {
        return Err(RegionError::NotSealed);
    }
    if fstatfs(&descriptor).map_err(system("look at"))?.filesystem_type() == HUGETLBFS_MAGIC {
        return Err(RegionError::HugePages);
    }
    let file = File::from(descriptor);
    let found = file.metadata().map_err(|source| RegionError::System { tried: "look at", source })?.size();
    if found != len_bytes || len_bytes == 0 || !len_bytes.is_multiple_of(UNIT_BYTES) {
        return Err(RegionError::Length { found, expected: len_bytes });
    }
    let mapped =
        usize::try_from(len_bytes).ok().map(|len| MmapRegion::<()>::from_file(FileOffset::new(file, 0), len));
    let mapping = match mapped {
        Some(Ok(mapping)) => Arc::new(mapping),
        Some(Err(source)) => return Err(RegionError::Map { len_bytes, source }),
        None => return Err(RegionError::Length { found, expected: len_bytes }),
    };
    let Some(start) = NonNull::new(mapping.as_ptr()) else { unreachable!("a mapping is somewhere") };
    // SAFETY: the mapping has `len_bytes` from `start`, is readable and writable, is kept by the memory, and is reached
    // through pointers alone. The seal keeps the file that long.
    Ok(unsafe { SharedMemory::from_mapping(start, len_bytes, mapping) })
}

#[cfg(test)]
mod tests {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::unistd::ftruncate;

    use super::*;

    fn memfd(len_bytes: i64, seals: SealFlag) -> OwnedFd {
        let descriptor = memfd_create("region", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap();
        ftruncate(&descriptor, len_bytes).unwrap();
        fcntl(&descriptor, FcntlArg::F_ADD_SEALS(seals)).unwrap();
        descriptor
    }

    #[test]
    fn a_sealed_memfd_is_mapped_and_shared() {
        let descriptor = memfd(8192, SealFlag::F_SEAL_SHRINK);
        let (one, other) = (descriptor.try_clone().unwrap(), descriptor);
        let (one, other) = (map(one, 8192).unwrap(), map(other, 8192).unwrap());
        assert_eq!(one.len_bytes(), 8192);
        one.write(4090, b"0123456789").unwrap();
        let mut bytes = [0; 10];
        other.read(4090, &mut bytes).unwrap();
        assert_eq!(&bytes, b"0123456789");
        assert_eq!(one.write(8190, b"abc"), None);
    }

    #[test]
    fn what_could_shrink_or_is_no_memory_is_refused() {
        let seal = SealFlag::F_SEAL_SHRINK;
        assert!(matches!(map(memfd(4096, SealFlag::F_SEAL_GROW), 4096), Err(RegionError::NotSealed)));
        assert!(matches!(map(memfd(4096, seal), 8192), Err(RegionError::Length { found: 4096, .. })));
        assert!(matches!(map(memfd(4095, seal), 4095), Err(RegionError::Length { .. })));
        assert!(matches!(map(memfd(0, seal), 0), Err(RegionError::Length { .. })));
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        assert!(matches!(map(file.into(), 4096), Err(RegionError::NotSealed)));
    }
}

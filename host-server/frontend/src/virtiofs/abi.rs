//! The FUSE wire protocol, version 7.38: little-endian structures and constants, nothing else.
//!
//! Names and values are those of the kernel's `linux/fuse.h`, less the `FUSE_` prefix of structures; the tests compare
//! every one of them (sizes and field offsets too) with the header where it is installed.

use zerocopy::little_endian::{I32, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Defines structures of the wire and, for the tests, a table of their layout.
macro_rules! wire {
    ($($(#[$meta:meta])* $c_name:ident => $name:ident($size:literal) { $($field:ident: $type:ty),* $(,)? })*) => {
        $(
            $(#[$meta])*
            #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
            #[repr(C)]
            pub struct $name { $(pub $field: $type),* }
            const _: () = assert!(size_of::<$name>() == $size);
        )*
        /// C name, size in bytes, and (field, offset in bytes) of every structure.
        #[cfg(test)]
        pub(super) const LAYOUTS: &[(&str, usize, &[(&str, usize)])] = &[
            $((stringify!($c_name), $size, &[$((stringify!($field), std::mem::offset_of!($name, $field))),*])),*
        ];
    };
}

/// Defines constants and, for the tests, a table of their values.
macro_rules! constants {
    ($($(#[$meta:meta])* $name:ident: $type:ty = $value:expr;)*) => {
        $($(#[$meta])* pub const $name: $type = $value;)*
        #[cfg(test)]
        pub(super) const CONSTANTS: &[(&str, u64)] = &[$((stringify!($name), $value as u64)),*];
    };
}

wire! {
    fuse_in_header => InHeader(40) {
        len: U32, opcode: U32, unique: U64, nodeid: U64, uid: U32, gid: U32, pid: U32, total_extlen: U16, padding: U16,
    }
    fuse_out_header => OutHeader(16) { len: U32, error: I32, unique: U64 }
    fuse_attr => Attr(88) {
        ino: U64, size: U64, blocks: U64, atime: U64, mtime: U64, ctime: U64, atimensec: U32, mtimensec: U32,
        ctimensec: U32, mode: U32, nlink: U32, uid: U32, gid: U32, rdev: U32, blksize: U32, flags: U32,
    }
    fuse_kstatfs => KernelStatfs(80) {
        blocks: U64, bfree: U64, bavail: U64, files: U64, ffree: U64, bsize: U32, namelen: U32, frsize: U32,
        padding: U32, spare: [U32; 6],
    }
    fuse_entry_out => EntryOut(128) {
        nodeid: U64, generation: U64, entry_valid: U64, attr_valid: U64, entry_valid_nsec: U32, attr_valid_nsec: U32,
        attr: Attr,
    }
    fuse_forget_in => ForgetIn(8) { nlookup: U64 }
    fuse_forget_one => ForgetOne(16) { nodeid: U64, nlookup: U64 }
    fuse_batch_forget_in => BatchForgetIn(8) { count: U32, dummy: U32 }
    fuse_getattr_in => GetattrIn(16) { getattr_flags: U32, dummy: U32, fh: U64 }
    fuse_attr_out => AttrOut(104) { attr_valid: U64, attr_valid_nsec: U32, dummy: U32, attr: Attr }
    fuse_mknod_in => MknodIn(16) { mode: U32, rdev: U32, umask: U32, padding: U32 }
    fuse_mkdir_in => MkdirIn(8) { mode: U32, umask: U32 }
    fuse_rename_in => RenameIn(8) { newdir: U64 }
    fuse_rename2_in => Rename2In(16) { newdir: U64, flags: U32, padding: U32 }
    fuse_link_in => LinkIn(8) { oldnodeid: U64 }
    fuse_setattr_in => SetattrIn(88) {
        valid: U32, padding: U32, fh: U64, size: U64, lock_owner: U64, atime: U64, mtime: U64, ctime: U64,
        atimensec: U32, mtimensec: U32, ctimensec: U32, mode: U32, unused4: U32, uid: U32, gid: U32, unused5: U32,
    }
    fuse_open_in => OpenIn(8) { flags: U32, open_flags: U32 }
    fuse_create_in => CreateIn(16) { flags: U32, mode: U32, umask: U32, open_flags: U32 }
    fuse_open_out => OpenOut(16) { fh: U64, open_flags: U32, padding: U32 }
    fuse_release_in => ReleaseIn(24) { fh: U64, flags: U32, release_flags: U32, lock_owner: U64 }
    fuse_flush_in => FlushIn(24) { fh: U64, unused: U32, padding: U32, lock_owner: U64 }
    fuse_read_in => ReadIn(40) {
        fh: U64, offset: U64, size: U32, read_flags: U32, lock_owner: U64, flags: U32, padding: U32,
    }
    fuse_write_in => WriteIn(40) {
        fh: U64, offset: U64, size: U32, write_flags: U32, lock_owner: U64, flags: U32, padding: U32,
    }
    fuse_write_out => WriteOut(8) { size: U32, padding: U32 }
    fuse_fsync_in => FsyncIn(16) { fh: U64, fsync_flags: U32, padding: U32 }
    /// Only the first two fields (`FUSE_COMPAT_SETXATTR_IN_SIZE`) travel where `FUSE_SETXATTR_EXT` was not negotiated.
    fuse_setxattr_in => SetxattrIn(16) { size: U32, flags: U32, setxattr_flags: U32, padding: U32 }
    fuse_getxattr_in => GetxattrIn(8) { size: U32, padding: U32 }
    fuse_getxattr_out => GetxattrOut(8) { size: U32, padding: U32 }
    fuse_access_in => AccessIn(8) { mask: U32, padding: U32 }
    fuse_init_in => InitIn(64) {
        major: U32, minor: U32, max_readahead: U32, flags: U32, flags2: U32, unused: [U32; 11],
    }
    fuse_init_out => InitOut(64) {
        major: U32, minor: U32, max_readahead: U32, flags: U32, max_background: U16, congestion_threshold: U16,
        max_write: U32, time_gran: U32, max_pages: U16, map_alignment: U16, flags2: U32, unused: [U32; 7],
    }
    fuse_fallocate_in => FallocateIn(32) { fh: U64, offset: U64, length: U64, mode: U32, padding: U32 }
    fuse_copy_file_range_in => CopyFileRangeIn(56) {
        fh_in: U64, off_in: U64, nodeid_out: U64, fh_out: U64, off_out: U64, len: U64, flags: U64,
    }
    fuse_dirent => Dirent(24) { ino: U64, off: U64, namelen: U32, r#type: U32 }
    fuse_lseek_in => LseekIn(24) { fh: U64, offset: U64, whence: U32, padding: U32 }
    fuse_file_lock => FileLock(24) { start: U64, end: U64, r#type: U32, pid: U32 }
    fuse_lk_in => LkIn(48) { fh: U64, owner: U64, lk: FileLock, lk_flags: U32, padding: U32 }
    fuse_lk_out => LkOut(24) { lk: FileLock }
    fuse_lseek_out => LseekOut(8) { offset: U64 }
}

constants! {
    FUSE_KERNEL_VERSION: u32 = 7;
    FUSE_KERNEL_MINOR_VERSION: u32 = 38;
    FUSE_COMPAT_SETXATTR_IN_SIZE: usize = 8;

    FATTR_MODE: u32 = 1 << 0;
    FATTR_UID: u32 = 1 << 1;
    FATTR_GID: u32 = 1 << 2;
    FATTR_SIZE: u32 = 1 << 3;
    FATTR_ATIME: u32 = 1 << 4;
    FATTR_MTIME: u32 = 1 << 5;
    FATTR_FH: u32 = 1 << 6;
    FATTR_ATIME_NOW: u32 = 1 << 7;
    FATTR_MTIME_NOW: u32 = 1 << 8;
    FATTR_CTIME: u32 = 1 << 10;
    FATTR_KILL_SUIDGID: u32 = 1 << 11;

    FOPEN_DIRECT_IO: u32 = 1 << 0;
    FOPEN_KEEP_CACHE: u32 = 1 << 1;
    FOPEN_CACHE_DIR: u32 = 1 << 3;
    FOPEN_PARALLEL_DIRECT_WRITES: u32 = 1 << 6;

    FUSE_ASYNC_READ: u32 = 1 << 0;
    FUSE_POSIX_LOCKS: u32 = 1 << 1;
    FUSE_ATOMIC_O_TRUNC: u32 = 1 << 3;
    FUSE_BIG_WRITES: u32 = 1 << 5;
    FUSE_DONT_MASK: u32 = 1 << 6;
    FUSE_FLOCK_LOCKS: u32 = 1 << 10;
    FUSE_AUTO_INVAL_DATA: u32 = 1 << 12;
    FUSE_DO_READDIRPLUS: u32 = 1 << 13;
    FUSE_READDIRPLUS_AUTO: u32 = 1 << 14;
    FUSE_ASYNC_DIO: u32 = 1 << 15;
    FUSE_WRITEBACK_CACHE: u32 = 1 << 16;
    FUSE_PARALLEL_DIROPS: u32 = 1 << 18;
    FUSE_POSIX_ACL: u32 = 1 << 20;
    FUSE_MAX_PAGES: u32 = 1 << 22;
    FUSE_CACHE_SYMLINKS: u32 = 1 << 23;
    FUSE_HANDLE_KILLPRIV_V2: u32 = 1 << 28;
    FUSE_SETXATTR_EXT: u32 = 1 << 29;

    FUSE_GETATTR_FH: u32 = 1 << 0;
    FUSE_WRITE_CACHE: u32 = 1 << 0;
    FUSE_WRITE_KILL_SUIDGID: u32 = 1 << 2;
    FUSE_FSYNC_FDATASYNC: u32 = 1 << 0;
    FUSE_OPEN_KILL_SUIDGID: u32 = 1 << 0;
    FUSE_SETXATTR_ACL_KILL_SGID: u32 = 1 << 0;
    FUSE_LK_FLOCK: u32 = 1 << 0;

    FUSE_LOOKUP: u32 = 1;
    FUSE_FORGET: u32 = 2;
    FUSE_GETATTR: u32 = 3;
    FUSE_SETATTR: u32 = 4;
    FUSE_READLINK: u32 = 5;
    FUSE_SYMLINK: u32 = 6;
    FUSE_MKNOD: u32 = 8;
    FUSE_MKDIR: u32 = 9;
    FUSE_UNLINK: u32 = 10;
    FUSE_RMDIR: u32 = 11;
    FUSE_RENAME: u32 = 12;
    FUSE_LINK: u32 = 13;
    FUSE_OPEN: u32 = 14;
    FUSE_READ: u32 = 15;
    FUSE_WRITE: u32 = 16;
    FUSE_STATFS: u32 = 17;
    FUSE_RELEASE: u32 = 18;
    FUSE_FSYNC: u32 = 20;
    FUSE_SETXATTR: u32 = 21;
    FUSE_GETXATTR: u32 = 22;
    FUSE_LISTXATTR: u32 = 23;
    FUSE_REMOVEXATTR: u32 = 24;
    FUSE_FLUSH: u32 = 25;
    FUSE_INIT: u32 = 26;
    FUSE_OPENDIR: u32 = 27;
    FUSE_READDIR: u32 = 28;
    FUSE_RELEASEDIR: u32 = 29;
    FUSE_FSYNCDIR: u32 = 30;
    FUSE_GETLK: u32 = 31;
    FUSE_SETLK: u32 = 32;
    FUSE_SETLKW: u32 = 33;
    FUSE_ACCESS: u32 = 34;
    FUSE_CREATE: u32 = 35;
    FUSE_INTERRUPT: u32 = 36;
    FUSE_DESTROY: u32 = 38;
    FUSE_BATCH_FORGET: u32 = 42;
    FUSE_FALLOCATE: u32 = 43;
    FUSE_READDIRPLUS: u32 = 44;
    FUSE_RENAME2: u32 = 45;
    FUSE_LSEEK: u32 = 46;
    FUSE_COPY_FILE_RANGE: u32 = 47;
    FUSE_SYNCFS: u32 = 50;
    FUSE_TMPFILE: u32 = 51;
}

/// What an older kernel sends as `fuse_init_in`: without `flags2` and what follows.
pub const INIT_IN_BYTES_MIN: usize = 16;

/// Values of Linux system calls that travel inside FUSE requests (`asm-generic`: the same on x86-64, arm64 and riscv64).
pub mod linux {
    pub const O_ACCMODE: u32 = 0o3;
    pub const O_RDONLY: u32 = 0o0;
    pub const O_WRONLY: u32 = 0o1;
    pub const O_RDWR: u32 = 0o2;
    pub const O_EXCL: u32 = 0o200;
    pub const O_TRUNC: u32 = 0o1000;
    pub const O_APPEND: u32 = 0o2000;
    pub const O_DSYNC: u32 = 0o10000;
    /// The bit by which `O_SYNC` exceeds `O_DSYNC`.
    pub const O_SYNC_ALONE: u32 = 0o4000000;

    pub const S_IFMT: u32 = 0o170000;
    pub const S_IFSOCK: u32 = 0o140000;
    pub const S_IFLNK: u32 = 0o120000;
    pub const S_IFREG: u32 = 0o100000;
    pub const S_IFBLK: u32 = 0o060000;
    pub const S_IFDIR: u32 = 0o040000;
    pub const S_IFCHR: u32 = 0o020000;
    pub const S_IFIFO: u32 = 0o010000;

    pub const RENAME_NOREPLACE: u32 = 1;
    pub const RENAME_EXCHANGE: u32 = 2;
    pub const RENAME_WHITEOUT: u32 = 4;

    pub const XATTR_CREATE: u32 = 1;
    pub const XATTR_REPLACE: u32 = 2;

    pub const FALLOC_FL_KEEP_SIZE: u32 = 0x01;
    pub const FALLOC_FL_PUNCH_HOLE: u32 = 0x02;
    pub const FALLOC_FL_ZERO_RANGE: u32 = 0x10;

    pub const F_RDLCK: u32 = 0;
    pub const F_WRLCK: u32 = 1;
    pub const F_UNLCK: u32 = 2;

    pub const SEEK_DATA: u32 = 3;
    pub const SEEK_HOLE: u32 = 4;
}

#[cfg(test)]
#[path = "abi_tests.rs"]
mod tests;

//! Parts of a request's body: fixed structures, names, flags. Each is validated where it is taken.

use ringfort_filesystem::errno::Errno;
use ringfort_filesystem::operation::{
    AllocateMode, FileKind, HandleId, LockFamily, LockMode, LockOwner, LockRange, Name, NewNode, NodeId,
    OpenFlags, Operation, RenameMode, SetAttributes, SetTime, SetXattrMode, Timestamp,
};
use zerocopy::FromBytes;

use super::abi::{self, linux};
use super::request::{Dialect, OFFSET_MAX, Shape, SyncWrites, TRANSFER_BYTES_MAX};

/// Longest target of a symbolic link, as `PATH_MAX` less its NUL.
const TARGET_BYTES_MAX: usize = 4095;

/// Longest value of an extended attribute (`XATTR_SIZE_MAX`).
const XATTR_BYTES_MAX: usize = 64 * 1024;

/// What is left of a request's body.
pub struct Body<'a>(pub &'a [u8]);

impl<'a> Body<'a> {
    pub fn take<T: FromBytes>(&mut self) -> Result<T, Errno> {
        let (value, rest) = self.0.split_at_checked(size_of::<T>()).ok_or(Errno::EINVAL)?;
        self.0 = rest;
        T::read_from_bytes(value).map_err(|_| Errno::EINVAL)
    }

    /// Bytes up to a NUL, which is taken too.
    pub fn string(&mut self) -> Result<&'a [u8], Errno> {
        let end = self.0.iter().position(|&byte| byte == 0).ok_or(Errno::EINVAL)?;
        let (string, rest) = self.0.split_at_checked(end).ok_or(Errno::EINVAL)?;
        self.0 = rest.get(1..).ok_or(Errno::EINVAL)?;
        Ok(string)
    }

    pub fn name(&mut self) -> Result<Name, Errno> {
        Name::new(self.string()?)
    }

    pub fn target(&mut self) -> Result<Vec<u8>, Errno> {
        match self.string()? {
            [] => Err(Errno::ENOENT),
            target if target.len() > TARGET_BYTES_MAX => Err(Errno::ENAMETOOLONG),
            target => Ok(target.to_vec()),
        }
    }

    pub fn xattr_name(&mut self) -> Result<Vec<u8>, Errno> {
        match self.string()? {
            [] => Err(Errno::EINVAL),
            name if name.len() > Name::LEN_BYTES_MAX => Err(Errno::ERANGE),
            name => Ok(name.to_vec()),
        }
    }

    /// Nothing may be left: a longer body than the opcode has is another dialect.
    pub fn end(&self) -> Result<(), Errno> {
        if self.0.is_empty() { Ok(()) } else { Err(Errno::EINVAL) }
    }

    pub fn new_node(&mut self, parent: NodeId, mode: u32, umask: u32) -> Result<NewNode, Errno> {
        Ok(NewNode { parent, name: self.name()?, permissions: permissions(mode), umask: permissions(umask) })
    }

    pub fn rename(&mut self, parent: NodeId, new_parent: u64, flags: u32) -> Result<Operation, Errno> {
        let mode = match flags {
            0 => RenameMode::Replace,
            linux::RENAME_NOREPLACE => RenameMode::NoReplace,
            linux::RENAME_EXCHANGE => RenameMode::Exchange,
            linux::RENAME_WHITEOUT => RenameMode::Whiteout,
            _ => return Err(Errno::EINVAL),
        };
        let (name, new_name) = (self.name()?, self.name()?);
        Ok(Operation::Rename { parent, name, new_parent: NodeId(new_parent), new_name, mode })
    }

    pub fn forgets(&mut self) -> Result<Vec<(NodeId, u64)>, Errno> {
        let count = self.take::<abi::BatchForgetIn>()?.count.get() as usize;
        // The bytes are here, so the list is as bounded as they are.
        if count.checked_mul(size_of::<abi::ForgetOne>()) != Some(self.0.len()) {
            return Err(Errno::EINVAL);
        }
        let mut forgets = Vec::with_capacity(count);
        for _ in 0..count {
            let one = self.take::<abi::ForgetOne>()?;
            forgets.push((NodeId(one.nodeid.get()), one.nlookup.get()));
        }
        Ok(forgets)
    }

    pub fn set_xattr(&mut self, node: NodeId, dialect: Dialect) -> Result<Operation, Errno> {
        let fixed_bytes = match dialect.setxattr_ext {
            true => size_of::<abi::SetxattrIn>(),
            false => abi::FUSE_COMPAT_SETXATTR_IN_SIZE,
        };
        let (fixed, rest) = self.0.split_at_checked(fixed_bytes).ok_or(Errno::EINVAL)?;
        let mut set = [0; size_of::<abi::SetxattrIn>()];
        set[..fixed.len()].copy_from_slice(fixed);
        let set = abi::SetxattrIn::read_from_bytes(&set).map_err(|_| Errno::EINVAL)?;
        self.0 = rest;
        let name = self.xattr_name()?;
        let value = std::mem::take(&mut self.0);
        if value.len() != set.size.get() as usize {
            return Err(Errno::EINVAL);
        }
        if value.len() > XATTR_BYTES_MAX {
            return Err(Errno::E2BIG);
        }
        let mode = match set.flags.get() {
            0 => SetXattrMode::Any,
            linux::XATTR_CREATE => SetXattrMode::Create,
            linux::XATTR_REPLACE => SetXattrMode::Replace,
            _ => return Err(Errno::EINVAL),
        };
        let clear_set_gid = set.setxattr_flags.get() & abi::FUSE_SETXATTR_ACL_KILL_SGID != 0;
        Ok(Operation::SetXattr { node, name, value: value.to_vec(), mode, clear_set_gid })
    }
}

pub fn set_attributes(node: NodeId, set: &abi::SetattrIn) -> Result<Operation, Errno> {
    let valid = set.valid.get();
    let has = |bit: u32| valid & bit != 0;
    let time = |seconds: u64, nanoseconds: u32| -> Result<Timestamp, Errno> {
        if nanoseconds >= 1_000_000_000 {
            return Err(Errno::EINVAL);
        }
        // Signed on both sides, unsigned on the wire.
        Ok(Timestamp { seconds: seconds.cast_signed(), nanoseconds })
    };
    let settable =
        |set_bit: u32, now_bit: u32, seconds: u64, nanoseconds: u32| -> Result<Option<SetTime>, Errno> {
            Ok(match (has(set_bit), has(now_bit)) {
                (false, _) => None,
                (true, true) => Some(SetTime::Now),
                (true, false) => Some(SetTime::At(time(seconds, nanoseconds)?)),
            })
        };
    if has(abi::FATTR_SIZE) && set.size.get() > OFFSET_MAX {
        return Err(Errno::EFBIG);
    }
    let change = SetAttributes {
        permissions: has(abi::FATTR_MODE).then(|| permissions(set.mode.get())),
        uid: has(abi::FATTR_UID).then(|| set.uid.get()),
        gid: has(abi::FATTR_GID).then(|| set.gid.get()),
        size_bytes: has(abi::FATTR_SIZE).then(|| set.size.get()),
        accessed: settable(abi::FATTR_ATIME, abi::FATTR_ATIME_NOW, set.atime.get(), set.atimensec.get())?,
        modified: settable(abi::FATTR_MTIME, abi::FATTR_MTIME_NOW, set.mtime.get(), set.mtimensec.get())?,
        changed: match has(abi::FATTR_CTIME) {
            true => Some(time(set.ctime.get(), set.ctimensec.get())?),
            false => None,
        },
        clear_set_id: has(abi::FATTR_KILL_SUIDGID),
    };
    let handle = has(abi::FATTR_FH).then(|| HandleId(set.fh.get()));
    Ok(Operation::SetAttributes { node, handle, change })
}

pub fn read_directory(read: &abi::ReadIn, plus: bool) -> Result<(Operation, Shape), Errno> {
    /// A guess at a common name, so that one call fills the reply and little is asked for in vain.
    const NAME_BYTES_GUESS: usize = 16;
    let room_bytes = read.size.get();
    if room_bytes > TRANSFER_BYTES_MAX {
        return Err(Errno::EINVAL);
    }
    let entry =
        if plus { size_of::<abi::EntryOut>() } else { 0 } + size_of::<abi::Dirent>() + NAME_BYTES_GUESS;
    let limit = (room_bytes as usize / entry).max(1);
    let operation = Operation::ReadDirectory {
        handle: HandleId(read.fh.get()),
        cookie: read.offset.get(),
        limit,
        attributes: plus,
    };
    Ok((operation, Shape::Entries { room_bytes, plus }))
}

pub fn allocate(allocate: &abi::FallocateIn) -> Result<Operation, Errno> {
    let (offset_bytes, len_bytes) = (allocate.offset.get(), allocate.length.get());
    if len_bytes == 0 || offset_bytes > OFFSET_MAX {
        return Err(Errno::EINVAL);
    }
    if len_bytes > OFFSET_MAX - offset_bytes {
        return Err(Errno::EFBIG);
    }
    const PUNCH: u32 = linux::FALLOC_FL_PUNCH_HOLE | linux::FALLOC_FL_KEEP_SIZE;
    const ZERO_KEEP: u32 = linux::FALLOC_FL_ZERO_RANGE | linux::FALLOC_FL_KEEP_SIZE;
    let mode = match allocate.mode.get() {
        0 => AllocateMode::Allocate { keep_size: false },
        linux::FALLOC_FL_KEEP_SIZE => AllocateMode::Allocate { keep_size: true },
        PUNCH => AllocateMode::PunchHole,
        linux::FALLOC_FL_ZERO_RANGE => AllocateMode::ZeroRange { keep_size: false },
        ZERO_KEEP => AllocateMode::ZeroRange { keep_size: true },
        _ => return Err(Errno::EOPNOTSUPP),
    };
    Ok(Operation::Allocate { handle: HandleId(allocate.fh.get()), offset_bytes, len_bytes, mode })
}

pub fn copy_range(copy: &abi::CopyFileRangeIn) -> Result<Operation, Errno> {
    let (from_bytes, to_bytes) = (copy.off_in.get(), copy.off_out.get());
    if copy.flags.get() != 0 || from_bytes.max(to_bytes) > OFFSET_MAX {
        return Err(Errno::EINVAL);
    }
    Ok(Operation::CopyRange {
        from: HandleId(copy.fh_in.get()),
        from_bytes,
        to: HandleId(copy.fh_out.get()),
        to_bytes,
        len_bytes: copy.len.get(),
    })
}

/// `None` is to unlock.
fn lock_mode(kind: u32) -> Result<Option<LockMode>, Errno> {
    Ok(match kind {
        linux::F_RDLCK => Some(LockMode::Shared),
        linux::F_WRLCK => Some(LockMode::Exclusive),
        linux::F_UNLCK => None,
        _ => return Err(Errno::EINVAL),
    })
}

pub fn get_lock(get: &abi::LkIn) -> Result<Operation, Errno> {
    Ok(Operation::GetLock {
        handle: HandleId(get.fh.get()),
        owner: LockOwner(get.owner.get()),
        range: LockRange::new(get.lk.start.get(), get.lk.end.get())?,
        mode: lock_mode(get.lk.r#type.get())?.ok_or(Errno::EINVAL)?,
    })
}

pub fn set_lock(set: &abi::LkIn, wait: bool) -> Result<Operation, Errno> {
    let flock = set.lk_flags.get() & abi::FUSE_LK_FLOCK != 0;
    Ok(Operation::SetLock {
        handle: HandleId(set.fh.get()),
        owner: LockOwner(set.owner.get()),
        family: if flock { LockFamily::WholeFile } else { LockFamily::Range },
        range: if flock { LockRange::WHOLE } else { LockRange::new(set.lk.start.get(), set.lk.end.get())? },
        mode: lock_mode(set.lk.r#type.get())?,
        pid: set.lk.pid.get(),
        wait,
    })
}

pub fn open_flags(flags: u32) -> Result<OpenFlags, Errno> {
    let (read, write) = match flags & linux::O_ACCMODE {
        linux::O_RDONLY => (true, false),
        linux::O_WRONLY => (false, true),
        linux::O_RDWR => (true, true),
        // As Linux has it: open, for neither.
        _ => (false, false),
    };
    let sync = sync_writes(flags);
    Ok(OpenFlags {
        read,
        write,
        // Each write says itself whether it appends: the flag of a handle would misplace pages written back from a
        // mapping, and the guest may change it without telling.
        append: false,
        truncate: flags & linux::O_TRUNC != 0,
        exclusive: flags & linux::O_EXCL != 0,
        data_sync: sync.is_some(),
        sync: sync == Some(SyncWrites::All),
    })
}

pub fn sync_writes(flags: u32) -> Option<SyncWrites> {
    if flags & linux::O_SYNC_ALONE != 0 {
        Some(SyncWrites::All)
    } else if flags & linux::O_DSYNC != 0 {
        Some(SyncWrites::Data)
    } else {
        None
    }
}

pub fn kills_set_id(open_flags: u32, flags: OpenFlags) -> bool {
    open_flags & abi::FUSE_OPEN_KILL_SUIDGID != 0 && flags.truncate
}

fn permissions(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}

pub fn file_kind(mode: u32) -> Result<FileKind, Errno> {
    Ok(match mode & linux::S_IFMT {
        0 | linux::S_IFREG => FileKind::Regular,
        linux::S_IFCHR => FileKind::CharacterDevice,
        linux::S_IFBLK => FileKind::BlockDevice,
        linux::S_IFIFO => FileKind::Fifo,
        linux::S_IFSOCK => FileKind::Socket,
        _ => return Err(Errno::EINVAL),
    })
}

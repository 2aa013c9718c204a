//! What is done to a volume, and to paths in it.

use std::ffi::c_int;

use ringfort_guest::{Access, Address, NodeKind, RenameMode, SetXattrMode, Volume, connect_with};

use crate::boundary::{At, Buffer, Bytes, Failure, Out, Result, Text, code, connected, count, given, place};
use crate::record::{
    Change, ConnectOptions, FileAttributes, Fill, RINGFORT_EXCHANGE, RINGFORT_MAY_EXECUTE, RINGFORT_MAY_READ,
    RINGFORT_MAY_WRITE, RINGFORT_MUST_EXIST, RINGFORT_NO_FOLLOW, RINGFORT_NO_REPLACE, known,
};

/// Whether a symbolic link at the end is followed, where a call knows no other flag.
fn follows(flags: u32) -> Result<bool> {
    known(flags, RINGFORT_NO_FOLLOW)?;
    Ok(flags & RINGFORT_NO_FOLLOW == 0)
}

#[unsafe(no_mangle)]
pub extern "C" fn ringfort_connect(address: Text<'_>, volume: Out<'_, Box<Volume>>) -> c_int {
    ringfort_connect_with(address, None, volume)
}

#[unsafe(no_mangle)]
pub extern "C" fn ringfort_connect_with(
    address: Text<'_>,
    options: Option<&ConnectOptions>,
    volume: Out<'_, Box<Volume>>,
) -> c_int {
    code(|| {
        let volume = given(volume, "where the volume goes")?;
        let options = options.copied().unwrap_or_default().decode();
        let address = match address.optional() {
            Some(address) => address.to_string_lossy().parse(),
            None => Address::from_environment(),
        };
        let address: Address = address.map_err(|error| Failure::new(libc::EINVAL, error.to_string()))?;
        volume.write(Box::new(connect_with(address.path(), &options)?));
        Ok(0)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn ringfort_disconnect(volume: Option<Box<Volume>>) {
    code(|| {
        drop(volume);
        Ok(0)
    });
}

#[unsafe(no_mangle)]
pub extern "C" fn ringfort_nop(volume: Option<&Volume>) -> c_int {
    code(|| Ok(connected(volume)?.nop(0)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn ringfort_sync_all(volume: Option<&Volume>) -> c_int {
    done(|| Ok(connected(volume)?.sync()?))
}

#[unsafe(no_mangle)]
pub extern "C" fn ringfort_statistics(volume: Option<&Volume>, statistics: Out<'_, Fill>) -> c_int {
    code(|| {
        given(statistics, "where statistics go")?.write(connected(volume)?.statistics()?.into());
        Ok(0)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn ringfort_stat(
    volume: Option<&Volume>,
    at: At<'_>,
    path: Text<'_>,
    flags: u32,
    attributes: Out<'_, FileAttributes>,
) -> c_int {
    code(|| {
        let attributes = given(attributes, "where attributes go")?;
        attributes.write(connected(volume)?.stat(place(at, path, follows(flags)?)?)?.into());
        Ok(0)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn ringfort_set_attributes(
    volume: Option<&Volume>,
    at: At<'_>,
    path: Text<'_>,
    flags: u32,
    change: Option<&Change>,
    after: Out<'_, FileAttributes>,
) -> c_int {
    code(|| {
        let place = place(at, path, follows(flags)?)?;
        let change = given(change, "the change")?.decode()?;
        let found = connected(volume)?.set_attributes(place, &change)?;
        if let Some(after) = after {
            after.write(found.into());
        }
        Ok(0)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn ringfort_access(
    volume: Option<&Volume>,
    at: At<'_>,
    path: Text<'_>,
    flags: u32,
    may: u32,
) -> c_int {
    done(|| {
        let all = [
            (RINGFORT_MAY_READ, Access::READ),
            (RINGFORT_MAY_WRITE, Access::WRITE),
            (RINGFORT_MAY_EXECUTE, Access::EXECUTE),
        ];
        known(may, RINGFORT_MAY_READ | RINGFORT_MAY_WRITE | RINGFORT_MAY_EXECUTE)?;
        let asked = all.iter().filter(|(bit, _)| may & bit != 0);
        let access = asked.fold(Access::EXISTS, |access, (_, more)| access.and(*more));
        Ok(connected(volume)?.access(place(at, path, follows(flags)?)?, access)?)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn ringfort_make_directory(
    volume: Option<&Volume>,
    at: At<'_>,
    path: Text<'_>,
    permissions: u32,
) -> c_int {
    done(|| Ok(connected(volume)?.create_directory(place(at, path, true)?, permissions)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn ringfort_make_node(
    volume: Option<&Volume>,
    at: At<'_>,
    path: Text<'_>,
    mode: u32,
    major: u32,
    minor: u32,
) -> c_int {
    done(|| {
        let kind = match mode & libc::S_IFMT {
            libc::S_IFIFO => NodeKind::Fifo,
            libc::S_IFSOCK => NodeKind::Socket,
            0 | libc::S_IFREG => NodeKind::Regular,
            libc::S_IFCHR => NodeKind::CharacterDevice { major, minor },
            libc::S_IFBLK => NodeKind::BlockDevice { major, minor },
            other => return Err(Failure::new(libc::EINVAL, format!("a node of type {other:o}"))),
        };
        Ok(connected(volume)?.make_node(place(at, path, true)?, kind, mode & 0o7777)?)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn ringfort_symlink(
    volume: Option<&Volume>,
    target: Text<'_>,
    at: At<'_>,
    path: Text<'_>,
) -> c_int {
    done(|| Ok(connected(volume)?.symlink(target.bytes("the target")?, place(at, path, true)?)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn ringfort_read_link(
    volume: Option<&Volume>,
    at: At<'_>,
    path: Text<'_>,
    buffer: Buffer<'_>,
    len_bytes: usize,
) -> i64 {
    count(|| {
        let buffer = buffer.of(len_bytes)?;
        let target = connected(volume)?.read_link(place(at, path, true)?)?;
        let fits = target.len().min(buffer.len());
        buffer[..fits].copy_from_slice(&target[..fits]);
        Ok(target.len() as u64)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn ringfort_link(
    volume: Option<&Volume>,
    at: At<'_>,
    existing: Text<'_>,
    new_at: At<'_>,
    new_path: Text<'_>,
    flags: u32,
) -> c_int {
    done(|| {
        let existing = place(at, existing, follows(flags)?)?;
        Ok(connected(volume)?.link(existing, place(new_at, new_path, true)?)?)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn ringfort_remove_file(volume: Option<&Volume>, at: At<'_>, path: Text<'_>) -> c_int {
    done(|| Ok(connected(volume)?.remove_file(place(at, path, true)?)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn ringfort_remove_directory(volume: Option<&Volume>, at: At<'_>, path: Text<'_>) -> c_int {
    done(|| Ok(connected(volume)?.remove_directory(place(at, path, true)?)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn ringfort_rename(
    volume: Option<&Volume>,
    at: At<'_>,
    path: Text<'_>,
    new_at: At<'_>,
    new_path: Text<'_>,
    flags: u32,
) -> c_int {
    done(|| {
        let mode = match flags {
            0 => RenameMode::Replace,
            RINGFORT_NO_REPLACE => RenameMode::NoReplace,
            RINGFORT_EXCHANGE => RenameMode::Exchange,
            other => return Err(Failure::new(libc::EINVAL, format!("a rename with flags {other:#x}"))),
        };
        let (from, to) = (place(at, path, true)?, place(new_at, new_path, true)?);
        Ok(connected(volume)?.rename_with(from, to, mode)?)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn ringfort_get_xattr(
    volume: Option<&Volume>,
    at: At<'_>,
    path: Text<'_>,
    flags: u32,
    name: Text<'_>,
    buffer: Buffer<'_>,
    len_bytes: usize,
) -> i64 {
    count(|| {
        let (place, name) = (place(at, path, follows(flags)?)?, name.bytes("the name")?);
        give(&connected(volume)?.xattr(place, name)?, buffer.of(len_bytes)?)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn ringfort_set_xattr(
    volume: Option<&Volume>,
    at: At<'_>,
    path: Text<'_>,
    flags: u32,
    name: Text<'_>,
    value: Bytes<'_>,
    len_bytes: usize,
) -> c_int {
    done(|| {
        known(flags, RINGFORT_NO_FOLLOW | RINGFORT_NO_REPLACE | RINGFORT_MUST_EXIST)?;
        let mode = match flags & !RINGFORT_NO_FOLLOW {
            0 => SetXattrMode::Any,
            RINGFORT_NO_REPLACE => SetXattrMode::Create,
            RINGFORT_MUST_EXIST => SetXattrMode::Replace,
            _ => return Err(Failure::new(libc::EINVAL, "an attribute that both must and must not be there")),
        };
        let (place, name) = (place(at, path, flags & RINGFORT_NO_FOLLOW == 0)?, name.bytes("the name")?);
        Ok(connected(volume)?.set_xattr(place, name, value.of(len_bytes)?, mode)?)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn ringfort_list_xattrs(
    volume: Option<&Volume>,
    at: At<'_>,
    path: Text<'_>,
    flags: u32,
    buffer: Buffer<'_>,
    len_bytes: usize,
) -> i64 {
    count(|| {
        let names = connected(volume)?.list_xattrs(place(at, path, follows(flags)?)?)?;
        let bytes: Vec<u8> = names.into_iter().flat_map(|name| name.into_iter().chain([0])).collect();
        give(&bytes, buffer.of(len_bytes)?)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn ringfort_remove_xattr(
    volume: Option<&Volume>,
    at: At<'_>,
    path: Text<'_>,
    flags: u32,
    name: Text<'_>,
) -> c_int {
    done(|| {
        let (place, name) = (place(at, path, follows(flags)?)?, name.bytes("the name")?);
        Ok(connected(volume)?.remove_xattr(place, name)?)
    })
}

/// A call that returns nothing.
fn done(call: impl FnOnce() -> Result<()>) -> c_int {
    code(|| call().map(|()| 0))
}

/// All bytes, or with no buffer only how many they are.
fn give(bytes: &[u8], buffer: &mut [u8]) -> Result<u64> {
    if !buffer.is_empty() {
        let text = || format!("{} bytes, for which {} are no room", bytes.len(), buffer.len());
        let failure = || Failure::new(libc::ERANGE, text());
        if bytes.len() > buffer.len() {
            return Err(failure());
        }
        buffer[..bytes.len()].copy_from_slice(bytes);
    }
    Ok(bytes.len() as u64)
}

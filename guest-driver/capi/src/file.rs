//! What is done to open files.

use std::ffi::c_int;
use std::io::{IoSlice, IoSliceMut};

use ringfort_guest::{Allocate, File, Open, Volume};

use crate::boundary::{
    At, Buffer, Bytes, Failure, Out, ReadList, Result, Text, code, connected, count, given, place,
};
use crate::record::{
    Lock, RINGFORT_APPEND, RINGFORT_COLLAPSE, RINGFORT_CREATE, RINGFORT_DATA_SYNC, RINGFORT_DIRECTORY,
    RINGFORT_EXCLUSIVE, RINGFORT_INSERT, RINGFORT_OPEN_NO_FOLLOW, RINGFORT_PUNCH_HOLE, RINGFORT_READ,
    RINGFORT_RESERVE, RINGFORT_RESERVE_KEEP_SIZE, RINGFORT_SYNC, RINGFORT_TEMPORARY, RINGFORT_TRUNCATE,
    RINGFORT_WRITE, RINGFORT_ZERO, RINGFORT_ZERO_KEEP_SIZE, Vector, known,
};

/// How a file is to be opened.
pub fn opening(bits: u32, permissions: u32) -> Result<Open> {
    known(bits, (RINGFORT_OPEN_NO_FOLLOW << 1) - 1)?;
    let has = |bit| bits & bit != 0;
    let wrong = |text| Err(Failure::new(libc::EINVAL, text));
    let mut open = match (has(RINGFORT_READ), has(RINGFORT_WRITE)) {
        _ if has(RINGFORT_DIRECTORY)
            && bits & !(RINGFORT_READ | RINGFORT_DIRECTORY | RINGFORT_OPEN_NO_FOLLOW) != 0 =>
        {
            return wrong("a directory is opened to read, and nothing else");
        }
        _ if has(RINGFORT_DIRECTORY) => Open::directory(),
        (true, true) if has(RINGFORT_TEMPORARY) => Open::temporary(permissions),
        _ if has(RINGFORT_TEMPORARY) => return wrong("a file without a name is opened to read and write"),
        (true, true) => Open::to_write(),
        (false, true) => Open::to_write_only(),
        (true, false) => Open::to_read(),
        (false, false) => return wrong("a file that is opened neither to read nor to write"),
    };
    if has(RINGFORT_CREATE) {
        open = open.create(permissions);
    }
    for (bit, more) in [
        (RINGFORT_APPEND, Open::append as fn(Open) -> Open),
        (RINGFORT_EXCLUSIVE, Open::exclusive),
        (RINGFORT_TRUNCATE, Open::truncate),
        (RINGFORT_DATA_SYNC, Open::data_sync),
        (RINGFORT_SYNC, Open::sync),
    ] {
        if has(bit) {
            open = more(open);
        }
    }
    Ok(open)
}

fn opened(file: Option<&File>) -> Result<&File> {
    given(file, "the file")
}

#[unsafe(no_mangle)]
pub extern "C" fn ringfort_open(
    volume: Option<&Volume>,
    at: At<'_>,
    path: Text<'_>,
    bits: u32,
    permissions: u32,
    file: Out<'_, Box<File>>,
) -> c_int {
    code(|| {
        let file = given(file, "where the file goes")?;
        let place = place(at, path, bits & RINGFORT_OPEN_NO_FOLLOW == 0)?;
        file.write(Box::new(connected(volume)?.open(place, opening(bits, permissions)?)?));
        Ok(0)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn ringfort_close(file: Option<Box<File>>) -> c_int {
    code(|| {
        given(file, "the file")?.close()?;
        Ok(0)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn ringfort_read(
    file: Option<&File>,
    buffer: Buffer<'_>,
    len_bytes: usize,
    offset_bytes: u64,
) -> i64 {
    count(|| Ok(opened(file)?.read_at(buffer.of(len_bytes)?, offset_bytes)? as u64))
}

#[unsafe(no_mangle)]
pub extern "C" fn ringfort_write(
    file: Option<&File>,
    bytes: Bytes<'_>,
    len_bytes: usize,
    offset_bytes: u64,
) -> i64 {
    count(|| {
        opened(file)?.write_at(bytes.of(len_bytes)?, offset_bytes)?;
        Ok(len_bytes as u64)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn ringfort_read_vectored(
    file: Option<&File>,
    buffers: ReadList<'_, Vector<'_>>,
    buffer_count: usize,
    offset_bytes: u64,
) -> i64 {
    count(|| {
        let slices = buffers.of(buffer_count)?.iter();
        let slices: Result<Vec<_>> = slices
            .map(|one| Ok(IoSliceMut::new(one.bytes.to_fill(one.len_bytes)?.of(one.len_bytes)?)))
            .collect();
        Ok(opened(file)?.read_vectored_at(&mut slices?, offset_bytes)? as u64)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn ringfort_write_vectored(
    file: Option<&File>,
    buffers: ReadList<'_, Vector<'_>>,
    buffer_count: usize,
    offset_bytes: u64,
) -> i64 {
    count(|| {
        let slices = buffers.of(buffer_count)?.iter();
        let slices: Result<Vec<_>> =
            slices.map(|one| Ok(IoSlice::new(one.bytes.to_read(one.len_bytes)?))).collect();
        let slices = slices?;
        opened(file)?.write_vectored_at(&slices, offset_bytes)?;
        Ok(slices.iter().map(|slice| slice.len() as u64).sum())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn ringfort_append(file: Option<&File>, bytes: Bytes<'_>, len_bytes: usize) -> i64 {
    count(|| {
        opened(file)?.append(bytes.of(len_bytes)?)?;
        Ok(len_bytes as u64)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn ringfort_sync(file: Option<&File>) -> c_int {
    code(|| {
        opened(file)?.sync()?;
        Ok(0)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn ringfort_sync_data(file: Option<&File>) -> c_int {
    code(|| {
        opened(file)?.sync_data()?;
        Ok(0)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn ringfort_allocate(
    file: Option<&File>,
    how: u32,
    offset_bytes: u64,
    len_bytes: u64,
) -> c_int {
    code(|| {
        let how = match how {
            RINGFORT_RESERVE => Allocate::Reserve,
            RINGFORT_RESERVE_KEEP_SIZE => Allocate::ReserveKeepSize,
            RINGFORT_PUNCH_HOLE => Allocate::PunchHole,
            RINGFORT_ZERO => Allocate::Zero,
            RINGFORT_ZERO_KEEP_SIZE => Allocate::ZeroKeepSize,
            RINGFORT_COLLAPSE => Allocate::Collapse,
            RINGFORT_INSERT => Allocate::Insert,
            other => return Err(Failure::new(libc::EINVAL, format!("to allocate in the way {other}"))),
        };
        opened(file)?.allocate(how, offset_bytes..end(offset_bytes, len_bytes)?)?;
        Ok(0)
    })
}

fn end(offset_bytes: u64, len_bytes: u64) -> Result<u64> {
    let failure = || Failure::new(libc::EFBIG, format!("{len_bytes} bytes from {offset_bytes} on"));
    offset_bytes.checked_add(len_bytes).ok_or_else(failure)
}

fn found(offset_bytes: Option<u64>) -> Result<u64> {
    offset_bytes.ok_or_else(|| Failure::new(libc::ENXIO, "there is none from there on"))
}

#[unsafe(no_mangle)]
pub extern "C" fn ringfort_seek_data(file: Option<&File>, offset_bytes: u64) -> i64 {
    count(|| found(opened(file)?.seek_data(offset_bytes)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn ringfort_seek_hole(file: Option<&File>, offset_bytes: u64) -> i64 {
    count(|| found(opened(file)?.seek_hole(offset_bytes)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn ringfort_copy_range(
    from: Option<&File>,
    from_bytes: u64,
    to: Option<&File>,
    to_bytes: u64,
    len_bytes: u64,
) -> i64 {
    count(|| {
        let range = from_bytes..end(from_bytes, len_bytes)?;
        Ok(opened(from)?.copy_range(range, opened(to)?, to_bytes)?)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn ringfort_lock(file: Option<&File>, lock: Option<&Lock>) -> c_int {
    code(|| {
        let (file, lock) = (opened(file)?, given(lock, "the lock")?);
        match lock.waits() {
            true => file.lock(&lock.decode()?)?,
            false if file.try_lock(&lock.decode()?)? => {}
            false => return Err(Failure::new(libc::EAGAIN, "another's lock is in the way")),
        }
        Ok(0)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn ringfort_lock_in_the_way(file: Option<&File>, lock: Option<&mut Lock>) -> c_int {
    code(|| {
        let lock = given(lock, "the lock")?;
        let Some(held) = opened(file)?.lock_in_the_way(&lock.decode()?)? else { return Ok(0) };
        *lock = held.into();
        Ok(1)
    })
}

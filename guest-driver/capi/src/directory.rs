//! Lists of directories.

use std::ffi::c_int;

use ringfort_guest::{ReadDirectory, Volume};

use crate::boundary::{At, Out, Text, code, connected, given, place};
use crate::record::{Entry, RINGFORT_ATTRIBUTES, RINGFORT_NO_FOLLOW, known};

#[unsafe(no_mangle)]
pub extern "C" fn ringfort_open_directory(
    volume: Option<&Volume>,
    at: At<'_>,
    path: Text<'_>,
    flags: u32,
    directory: Out<'_, Box<ReadDirectory>>,
) -> c_int {
    code(|| {
        let directory = given(directory, "where the directory goes")?;
        known(flags, RINGFORT_NO_FOLLOW | RINGFORT_ATTRIBUTES)?;
        let place = place(at, path, flags & RINGFORT_NO_FOLLOW == 0)?;
        let list = connected(volume)?.read_directory(place, flags & RINGFORT_ATTRIBUTES != 0)?;
        directory.write(Box::new(list));
        Ok(0)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn ringfort_next_entry(directory: Option<&mut ReadDirectory>, entry: Out<'_, Entry>) -> c_int {
    code(|| {
        let entry = given(entry, "where the entry goes")?;
        let Some(next) = given(directory, "the directory")?.next() else { return Ok(0) };
        entry.write(Entry::new(&next?)?);
        Ok(1)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn ringfort_close_directory(directory: Option<Box<ReadDirectory>>) {
    code(|| {
        drop(directory);
        Ok(0)
    });
}

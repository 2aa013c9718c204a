//! Extended attributes.

use ringfort_protocol::command::{Flags, Opcode};

use crate::error::Error;
use crate::place::Place;
use crate::request::{Request, broken};

/// The longest value, and the longest list of names, that Linux knows.
const XATTR_BYTES_MAX: usize = 64 << 10;

/// Whether an extended attribute may, or must, be there before it is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SetXattrMode {
    #[default]
    Any,
    /// `EEXIST` where it is there.
    Create,
    /// `ENODATA` where it is not.
    Replace,
}

pub fn get<'a>(place: Place<'a>, name: &'a [u8]) -> Request<'a, Vec<u8>> {
    Request::following("get extended attribute", Opcode::GetXattr, place)
        .value(name.len() as u64)
        .input([name, place.path])
        .gives(XATTR_BYTES_MAX, |_, bytes| Ok(bytes.to_vec()))
}

pub fn set<'a>(place: Place<'a>, name: &'a [u8], value: &'a [u8], mode: SetXattrMode) -> Request<'a, ()> {
    let flags = match mode {
        SetXattrMode::Any => Flags::default(),
        SetXattrMode::Create => Flags::NO_REPLACE,
        SetXattrMode::Replace => Flags::MUST_EXIST,
    };
    Request::following("set extended attribute", Opcode::SetXattr, place)
        .value(name.len() as u64 | (value.len() as u64) << 32)
        .input([name, value, place.path])
        .flags(flags)
}

pub fn list(place: Place<'_>) -> Request<'_, Vec<Vec<u8>>> {
    Request::following("list extended attributes", Opcode::ListXattr, place)
        .gives(XATTR_BYTES_MAX, |_, bytes| names(bytes))
}

pub fn remove<'a>(place: Place<'a>, name: &'a [u8]) -> Request<'a, ()> {
    Request::following("remove extended attribute", Opcode::RemoveXattr, place)
        .value(name.len() as u64)
        .input([name, place.path])
}

fn names(bytes: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
    let Some((0, _)) = bytes.split_last() else {
        return if bytes.is_empty() { Ok(Vec::new()) } else { Err(broken("names of extended attributes")) };
    };
    Ok(bytes[..bytes.len() - 1].split(|byte| *byte == 0).map(<[u8]>::to_vec).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_end_with_a_zero_each() {
        assert_eq!(names(b"").unwrap(), [b""; 0]);
        assert_eq!(names(b"user.a\0user.bc\0").unwrap(), [&b"user.a"[..], b"user.bc"]);
        assert!(names(b"user.a").is_err());
    }
}

//! Where a file has data, and copies within the volume.

use std::ops::Range;

use ringfort_protocol::argument::CopyToRecord;
use ringfort_protocol::command::{Flags, Opcode};

use crate::place::Place;
use crate::request::Request;

/// What becomes of a range of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocate {
    /// Room for it is set aside. Where it ends behind the file, the file becomes longer.
    Reserve,
    /// Room for it is set aside; the size stays.
    ReserveKeepSize,
    /// It reads as zeros, and its room is given back; the size stays.
    PunchHole,
    /// It reads as zeros. Where it ends behind the file, the file becomes longer.
    Zero,
    /// It reads as zeros; the size stays.
    ZeroKeepSize,
    /// It is taken out: what follows moves down. In whole blocks.
    Collapse,
    /// What lies there and behind moves up, and zeros are between. In whole blocks.
    Insert,
}

pub fn allocate(file: Place<'_>, how: Allocate, range: Range<u64>) -> Request<'_, ()> {
    let flags = match how {
        Allocate::Reserve => Flags::default(),
        Allocate::ReserveKeepSize => Flags::KEEP_SIZE,
        Allocate::PunchHole => Flags::PUNCH_HOLE,
        Allocate::Zero => Flags::ZERO_RANGE,
        Allocate::ZeroKeepSize => Flags::ZERO_RANGE.union(Flags::KEEP_SIZE),
        Allocate::Collapse => Flags::COLLAPSE_RANGE,
        Allocate::Insert => Flags::INSERT_RANGE,
    };
    Request::of_handle("allocate", Opcode::Allocate, file)
        .operand(range.start)
        .value(range.end.saturating_sub(range.start))
        .flags(flags)
}

/// The next data, or the next hole, from an offset on: `ENXIO` where there is none.
pub fn seek(file: Place<'_>, offset_bytes: u64, hole: bool) -> Request<'_, u64> {
    let flags = if hole { Flags::HOLE } else { Flags::default() };
    Request::of_handle("seek", Opcode::Seek, file).operand(offset_bytes).flags(flags).gives_value()
}

/// Copies within the volume. Gives how many bytes were copied.
pub fn copy_range<'a>(
    from: Place<'a>,
    bytes: Range<u64>,
    to: Place<'_>,
    to_offset_bytes: u64,
) -> Request<'a, u64> {
    let record = CopyToRecord { handle: to.handle.into(), offset_bytes: to_offset_bytes.into() };
    Request::of_handle("copy", Opcode::CopyRange, from)
        .operand(bytes.start)
        .value(bytes.end.saturating_sub(bytes.start))
        .record(&record)
        .gives_value()
}

//! What is too long, too much, or no name, and how that is refused.

use anyhow::{Context, Result, ensure};
use ringfort_guest::{Allocate, Error, File, Open, Queue, SetXattrMode};
use ringfort_protocol::command::Opcode;
use ringfort_reference::{Answer, Errno};

use crate::stage::Stage;

const PATH: &str = "/limits";

/// The longest value of an extended attribute that Linux has.
const XATTR_BYTES_MAX: usize = 64 << 10;
/// What a volume keeps of one, its name included.
const KEPT_BYTES_MAX: usize = 6136;
/// Attributes of one inode.
const XATTR_COUNT_MAX: usize = 256;

fn refused<T>(errno: Errno) -> Answer<T> {
    Err(errno)
}

pub fn what_is_too_much_is_refused(stage: &mut Stage) -> Result<()> {
    stage.choose_first();
    let volume = stage.volume();
    let file = volume.create(PATH, 0o600)?;
    xattrs(stage)?;
    stage.same(Opcode::SyncAll, "of everything", volume.sync(), Ok(()))?;

    let end = i64::MAX as u64;
    stage.same(Opcode::Write, "at the end of all", file.write_at(b"one", end), refused(Errno::EFBIG))?;
    let found = file.allocate(Allocate::Reserve, end - 10..end);
    stage.same(Opcode::Allocate, "at the end of all", found, refused(Errno::EFBIG))?;
    stage.same(Opcode::Allocate, "nothing", file.allocate(Allocate::Zero, 5..5), refused(Errno::EINVAL))?;

    for dots in [".", "..", "/", "/./"] {
        stage.same(Opcode::Rename, dots, volume.rename(dots, "/other"), refused(Errno::EBUSY))?;
        stage.same(Opcode::Rename, dots, volume.rename(PATH, dots), refused(Errno::EBUSY))?;
        let made = volume.create_directory(dots, 0o755);
        stage.same(Opcode::MakeDirectory, dots, made, refused(Errno::EEXIST))?;
    }
    stage.same(Opcode::Stat, "nothing", volume.stat("/none").map(drop), refused(Errno::ENOENT))?;

    // Forty links are followed, and no more.
    volume.symlink(PATH, "/link-0")?;
    for number in 1..=40 {
        volume.symlink(&format!("link-{}", number - 1), &format!("/link-{number}"))?;
    }
    let opened = |path: &str| volume.open(path, Open::to_read()).and_then(|file| file.close());
    stage.same(Opcode::Open, "through forty links", opened("/link-39"), Ok(()))?;
    stage.same(Opcode::Open, "through one more", opened("/link-40"), refused(Errno::ELOOP))?;
    for number in 0..=40 {
        volume.remove_file(&format!("/link-{number}"))?;
    }
    shared_buffers(stage, &file)?;
    file.close()?;
    Ok(volume.remove_file(PATH)?)
}

/// What a command uses, nobody else changes meanwhile; what cannot be meant is not submitted.
fn shared_buffers(stage: &mut Stage, file: &File) -> Result<()> {
    const BUFFERS_MAX: usize = 256;
    let mut queue = stage.volume().queue()?;
    let buffer = |queue: &mut Queue| queue.buffer(4096).context("no room for a buffer");
    let (one, other) = (buffer(&mut queue)?, buffer(&mut queue)?);
    let is_refused = |result: Result<bool, Error>| matches!(result, Err(Error::Buffer { .. }));
    ensure!(is_refused(queue.read_scattered(file, &[&one, &other, &one], 0, 1)), "one buffer, filled twice");
    let many = vec![(&one, 1); BUFFERS_MAX + 1];
    let found = queue.write_gathered(file, &many, 0, 2);
    ensure!(matches!(found, Err(Error::TooLong { .. })), "{} buffers: {found:?}", many.len());
    let found = queue.write_gathered(file, &[(&one, 4097)], 0, 3);
    ensure!(matches!(found, Err(Error::TooLong { .. })), "more than a buffer holds: {found:?}");
    ensure!(queue.under_way() == 0, "what was refused was submitted");

    ensure!(queue.write_gathered(file, &many[1..], 0, 4)?, "no room for as many buffers as may be");
    ensure!(queue.fill(&one, b"changed").is_err(), "a buffer was changed while it was written");
    ensure!(is_refused(queue.read_scattered(file, &[&other, &one], 0, 5)), "and read into");
    ensure!(queue.next(&mut [])?.result? == BUFFERS_MAX as u64, "not all was written");
    ensure!(queue.read_scattered(file, &[&other, &one], 0, 6)?, "no room");
    ensure!(queue.copy_out(&other, &mut [0; 4]).is_err(), "a buffer was looked at while it was filled");
    ensure!(is_refused(queue.write_gathered(file, &[(&one, 1)], 0, 7)), "and written");
    // What is released while it is in use is given back when it is not.
    queue.release(one);
    ensure!(queue.next(&mut [])?.result? == BUFFERS_MAX as u64, "not all was read");
    queue.release(other);
    Ok(())
}

fn xattrs(stage: &mut Stage) -> Result<()> {
    let volume = stage.volume();
    let any = SetXattrMode::Any;
    let value = vec![7; XATTR_BYTES_MAX + 1];
    let found = volume.set_xattr(PATH, "user.long", &value, any);
    stage.same(Opcode::SetXattr, "too long a value", found, refused(Errno::E2BIG))?;
    // As long as it may be, and back; then longer than a volume keeps, by one byte and by all that Linux allows.
    let name = "user.long";
    let value = vec![7; KEPT_BYTES_MAX - name.len()];
    stage.same(Opcode::SetXattr, "a long value", volume.set_xattr(PATH, name, &value, any), Ok(()))?;
    stage.same_bytes(Opcode::GetXattr, "a long value", volume.xattr(PATH, name), Ok(value))?;
    for len_bytes in [KEPT_BYTES_MAX - name.len() + 1, 20_000, XATTR_BYTES_MAX] {
        let found = volume.set_xattr(PATH, name, vec![7; len_bytes], any);
        stage.same(Opcode::SetXattr, "longer than is kept", found, refused(Errno::ENOSPC))?;
    }
    for number in 1..=XATTR_COUNT_MAX {
        let expected = if number < XATTR_COUNT_MAX { Ok(()) } else { refused(Errno::ENOSPC) };
        let found = volume.set_xattr(PATH, format!("user.{number:0>248}"), "", any);
        stage.same(Opcode::SetXattr, &format!("attribute {number}"), found, expected)?;
    }
    let count = volume.list_xattrs(PATH).map(|names| names.len());
    stage.same(Opcode::ListXattr, "of very many", count, Ok(XATTR_COUNT_MAX))?;
    let found = volume.xattr(PATH, "nothing.one");
    stage.same(Opcode::GetXattr, "of no family", found, refused(Errno::EOPNOTSUPP))?;
    let name = format!("user.{}", "n".repeat(251));
    let found = volume.set_xattr(PATH, &name, "value", any);
    stage.same(Opcode::SetXattr, "too long a name", found, refused(Errno::ERANGE))?;
    Ok(())
}

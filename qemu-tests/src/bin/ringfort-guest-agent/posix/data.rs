//! What files hold: holes, allocation, truncation, appending, copying, lengths.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::fs::{FallocateFlags, SeekFrom as Seeking, copy_file_range, fallocate, seek, syncfs};
use rustix::io::Errno;

use super::Check;
use super::expect::{expect, expect_error, open_both, open_new, read_all, set_mode};
use super::person::STRANGER;

pub const CHECKS: &[(&str, Check)] = &[
    ("append", append),
    ("sparse", sparse),
    ("seeking-data-and-holes", seeking),
    ("punched", punched),
    ("allocated", allocated),
    ("truncated", truncated),
    ("lengths", lengths),
    ("copied-ranges", copied_ranges),
    ("synced", synced),
];

const MIB: u64 = 1 << 20;

fn sparse(folder: &Path) -> Result<()> {
    let mut file = open_new(&folder.join("file"))?;
    file.write_all_at(b"head", 0)?;
    file.write_all_at(b"tail", 256 * MIB - 4)?;
    file.sync_all()?;
    let found = file.metadata()?;
    ensure!(found.len() == 256 * MIB, "{} bytes long", found.len());
    ensure!(found.blocks() * 512 <= MIB, "8 bytes take {}", found.blocks() * 512);
    let mut piece = vec![1; 64 * 1024];
    file.read_exact_at(&mut piece, 100 * MIB)?;
    ensure!(piece.iter().all(|byte| *byte == 0), "a hole holds something");
    file.read_exact_at(&mut piece, 0)?;
    ensure!(
        &piece[..4] == b"head" && piece[4..].iter().all(|byte| *byte == 0),
        "beside data a hole holds something"
    );
    let data_at = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(MIB)).context("looking for data")?;
    ensure!(data_at > MIB && data_at <= 256 * MIB - 4, "data found at {data_at}");
    let hole_at = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0)).context("looking for a hole")?;
    ensure!((4..=MIB).contains(&hole_at), "a hole found at {hole_at}");

    // What is cut off does not come back.
    file.set_len(0)?;
    file.write_all_at(&vec![7; 10_000], 0)?;
    file.set_len(5000)?;
    file.set_len(20_000)?;
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut bytes)?;
    ensure!(bytes.len() == 20_000 && bytes[..5000].iter().all(|byte| *byte == 7), "{} bytes", bytes.len());
    ensure!(bytes[5000..].iter().all(|byte| *byte == 0), "what was cut off came back");
    Ok(())
}

fn punched(folder: &Path) -> Result<()> {
    let file = open_new(&folder.join("file"))?;
    file.write_all_at(&vec![9; MIB as usize], 0)?;
    file.sync_all()?;
    let before = file.metadata()?.blocks();
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, punch, 100_000, 800_000).context("punching a hole")?;
    let mut bytes = vec![1; MIB as usize];
    file.read_exact_at(&mut bytes, 0)?;
    ensure!(bytes[..100_000].iter().chain(&bytes[900_000..]).all(|byte| *byte == 9), "too much was punched");
    ensure!(bytes[100_000..900_000].iter().all(|byte| *byte == 0), "too little was punched");
    file.sync_all()?;
    let after = file.metadata()?.blocks();
    ensure!(after < before, "a hole in {before} blocks left {after}");
    Ok(())
}

fn append(folder: &Path) -> Result<()> {
    let path = folder.join("file");
    let open = || File::options().create(true).append(true).open(&path);
    let (mut one, mut two) = (open()?, open()?);
    let mut expected = Vec::new();
    for number in 0..40 {
        let line = format!("line {number}\n").repeat(number + 1);
        let file = if number % 2 == 0 { &mut one } else { &mut two };
        file.write_all(line.as_bytes())?;
        expected.extend_from_slice(line.as_bytes());
    }
    // The place that a write names has no say.
    one.seek(SeekFrom::Start(0))?;
    one.write_all(b"end")?;
    expected.extend_from_slice(b"end");
    ensure!(fs::read(&path)? == expected, "appended pieces are not one after another");
    Ok(())
}

fn seeking(folder: &Path) -> Result<()> {
    let file = open_new(&folder.join("file"))?;
    file.set_len(8 * MIB)?;
    for at in [MIB, 5 * MIB] {
        file.write_all_at(&vec![1; MIB as usize], at)?;
    }
    file.sync_all()?;
    for (from, data, hole) in
        [(0, MIB, 0), (MIB, MIB, 2 * MIB), (3 * MIB, 5 * MIB, 3 * MIB), (5 * MIB + 7, 5 * MIB + 7, 6 * MIB)]
    {
        let found = (seek(&file, Seeking::Data(from))?, seek(&file, Seeking::Hole(from))?);
        ensure!(
            found == (data, hole),
            "from {from} data and hole are at {found:?}, not at {:?}",
            (data, hole)
        );
    }
    expect(seek(&file, Seeking::Data(7 * MIB)), Errno::NXIO, "data after the last of it")?;
    ensure!(seek(&file, Seeking::Hole(7 * MIB))? == 7 * MIB);
    for beyond in [8 * MIB, 9 * MIB] {
        expect(seek(&file, Seeking::Data(beyond)), Errno::NXIO, "data at or after the end")?;
        expect(seek(&file, Seeking::Hole(beyond)), Errno::NXIO, "a hole at or after the end")?;
    }
    // The end of a file is a hole's beginning, and what is written is seen at once, synced or not.
    let full = open_new(&folder.join("full"))?;
    full.write_all_at(&[1; 10_000], 0)?;
    ensure!(seek(&full, Seeking::Hole(0))? == 10_000 && seek(&full, Seeking::Data(9999))? == 9999);
    Ok(())
}

fn allocated(folder: &Path) -> Result<()> {
    let path = folder.join("file");
    let file = open_new(&path)?;
    fallocate(&file, FallocateFlags::empty(), 1000, 2 * MIB).context("allocating")?;
    ensure!(file.metadata()?.len() == 1000 + 2 * MIB, "{} bytes long", file.metadata()?.len());
    fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 8 * MIB).context("allocating and keeping the size")?;
    ensure!(file.metadata()?.len() == 1000 + 2 * MIB, "{} bytes long", file.metadata()?.len());
    ensure!(read_all(&file)?.iter().all(|byte| *byte == 0), "allocated bytes are not zero");
    file.write_all_at(&[5; 20_000], 5000)?;
    fallocate(&file, FallocateFlags::ZERO_RANGE, 6000, 10_000).context("zeroing")?;
    let bytes = read_all(&file)?;
    let (zeroed, beside) = (&bytes[6000..16_000], [&bytes[5000..6000], &bytes[16_000..25_000]].concat());
    ensure!(
        zeroed.iter().all(|byte| *byte == 0) && beside.iter().all(|byte| *byte == 5),
        "zeroed another range"
    );
    // Zeroing beyond the end makes a file longer, unless its size is to be kept.
    let end = file.metadata()?.len();
    fallocate(&file, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, end, 4096)?;
    ensure!(file.metadata()?.len() == end);
    fallocate(&file, FallocateFlags::ZERO_RANGE, end - 10, 4106)?;
    ensure!(file.metadata()?.len() == end + 4096);
    let refused = fallocate(&file, FallocateFlags::PUNCH_HOLE, 0, 4096);
    expect(refused, Errno::OPNOTSUPP, "punching without keeping the size")?;
    expect(fallocate(&file, FallocateFlags::empty(), 0, 0), Errno::INVAL, "allocating nothing")?;
    let reading = File::open(&path)?;
    expect(
        fallocate(&reading, FallocateFlags::empty(), 0, 10),
        Errno::BADF,
        "allocating without the right to write",
    )
}

fn truncated(folder: &Path) -> Result<()> {
    set_mode(folder, 0o755)?;
    let path = folder.join("file");
    let file = open_new(&path)?;
    let whole: Vec<u8> = (0..100_000u32).map(|at| (at % 251) as u8 + 1).collect();
    for keep in [0, 1, 4095, 4096, 4097, 65_536, 99_999] {
        file.set_len(0)?;
        file.write_all_at(&whole, 0)?;
        file.set_len(keep)?;
        file.set_len(whole.len() as u64)?;
        let bytes = read_all(&file)?;
        let keep = keep as usize;
        ensure!(
            bytes.len() == whole.len() && bytes[..keep] == whole[..keep],
            "cut at {keep}: what was kept changed"
        );
        ensure!(bytes[keep..].iter().all(|byte| *byte == 0), "cut at {keep}: what was cut off came back");
    }
    expect_error(rustix_truncate(folder), Errno::ISDIR, "truncating a folder")?;
    expect_error(File::open(&path)?.set_len(1), Errno::INVAL, "truncating what is open to be read")?;
    STRANGER.does(|| expect_error(rustix_truncate(&path), Errno::ACCESS, "truncating another's file"))?;
    expect_error(rustix_truncate(&folder.join("absent")), Errno::NOENT, "truncating nothing")
}

/// By path, which the standard library has no call for.
fn rustix_truncate(path: &Path) -> std::io::Result<()> {
    nix::unistd::truncate(path, 5).map_err(std::io::Error::from)
}

fn lengths(folder: &Path) -> Result<()> {
    // The greatest length is the same for every ext4 with blocks of 4 KiB.
    const GREATEST: u64 = (1 << 44) - 4096;
    let file = open_new(&folder.join("file"))?;
    file.set_len(GREATEST).context("a file of nearly 16 TiB")?;
    ensure!(file.metadata()?.len() == GREATEST);
    file.write_all_at(b"end", GREATEST - 3).context("writing before its end")?;
    file.sync_all()?;
    let mut end = [1; 7];
    file.read_exact_at(&mut end, GREATEST - 7)?;
    ensure!(end == *b"\0\0\0\0end", "{end:?}");
    ensure!(file.metadata()?.blocks() * 512 < MIB, "{} blocks", file.metadata()?.blocks());
    expect_error(file.set_len(1 << 62), Errno::FBIG, "a file of 4 EiB")?;
    expect_error(file.write_all_at(b"x", 1 << 62), Errno::FBIG, "writing at 4 EiB")?;
    ensure!(file.metadata()?.len() == GREATEST);
    Ok(())
}

fn copied_ranges(folder: &Path) -> Result<()> {
    let whole: Vec<u8> = (0..300_000u32).map(|at| (at / 7 % 256) as u8).collect();
    let path = folder.join("from");
    fs::write(&path, &whole)?;
    let (from, to) = (open_both(&path)?, open_new(&folder.join("to"))?);
    let copy =
        |from: &File, from_at: u64, to: &File, to_at: u64, length: usize| -> rustix::io::Result<usize> {
            let (mut from_at, mut to_at, mut copied) = (from_at, to_at, 0);
            while copied < length {
                match copy_file_range(from, Some(&mut from_at), to, Some(&mut to_at), length - copied)? {
                    0 => break,
                    count => copied += count,
                }
            }
            Ok(copied)
        };
    ensure!(copy(&from, 1000, &to, 50, 200_000)? == 200_000);
    ensure!(copy(&from, 290_000, &to, 200_050, 50_000)? == 10_000, "copied beyond the end");
    ensure!(copy(&from, 400_000, &to, 0, 10)? == 0, "copied from beyond the end");
    let bytes = read_all(&to)?;
    ensure!(bytes.len() == 210_050 && bytes[..50].iter().all(|byte| *byte == 0), "{} bytes", bytes.len());
    ensure!(
        bytes[50..200_050] == whole[1000..201_000] && bytes[200_050..] == whole[290_000..],
        "copied other bytes"
    );
    ensure!(copy(&from, 0, &from, 150_000, 100_000)? == 100_000, "within one file");
    let bytes = read_all(&from)?;
    ensure!(bytes[150_000..250_000] == whole[..100_000] && bytes[250_000..] == whole[250_000..]);
    expect(copy(&from, 0, &from, 10, 100), Errno::INVAL, "copying onto itself")?;
    expect(copy(&from, 0, &File::open(&path)?, 0, 100), Errno::BADF, "copying into what is open to be read")
}

fn synced(folder: &Path) -> Result<()> {
    let mut file = open_new(&folder.join("file"))?;
    file.write_all(&[1; 5000])?;
    syncfs(&file).context("syncing the file system")?;
    file.sync_data()?;
    file.sync_all()?;
    File::open(folder)?.sync_all().context("syncing a folder")?;
    let path = folder.join("direct");
    let synchronous = [nix::libc::O_SYNC, nix::libc::O_DSYNC];
    for flag in synchronous {
        use std::os::unix::fs::OpenOptionsExt;
        let mut file = File::options().create(true).append(true).custom_flags(flag).open(&path)?;
        file.write_all(b"synced").context("writing synchronously")?;
    }
    ensure!(fs::read(&path)? == b"syncedsynced");
    Ok(())
}

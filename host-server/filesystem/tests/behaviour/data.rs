//! File contents.

use ringfort_filesystem::operation::*;
use ringfort_reference::Errno;
use ringfort_store::address::ObjectId;
use ringfort_store::model::ModelSettings;

use crate::world::{Guest, make, pattern, run};

async fn guest() -> Guest {
    Guest::new(&make(ModelSettings { suspend_seed: Some(9), ..Default::default() }).await)
}

#[test]
fn writes_of_every_alignment_read_back() {
    run(async {
        let guest = guest().await;
        let handle = guest.create("/f").await.unwrap();
        let mut expected = Vec::new();
        let writes =
            [(0, 10), (5, 4096), (4096, 4096), (4000, 200), (20_000, 1), (8192, 12_288), (30_000, 9000)];
        for (number, (offset, len)) in writes.into_iter().enumerate() {
            let bytes = pattern(number as u8 * 16, len);
            guest.write_at(handle, offset as u64, &bytes).await.unwrap();
            expected.resize(expected.len().max(offset + len), 0);
            expected[offset..offset + len].copy_from_slice(&bytes);
            assert!(guest.get("/f").await.unwrap() == expected, "after write {number}");
        }
        let stat = guest.stat("/f").await.unwrap();
        assert_eq!(stat.size_bytes, 39_000);
        let mapped = guest.fs.volume().mapped_blocks(ObjectId(stat.node.0));
        assert_eq!(stat.sectors, mapped * 8);
        assert_eq!(guest.read_at(handle, 4000, 8).await.unwrap(), expected[4000..4008]);
        assert!(guest.read_at(handle, 39_000, 8).await.unwrap().is_empty());
        assert!(guest.read_at(handle, u64::MAX, 8).await.unwrap().is_empty());
    });
}

#[test]
fn what_was_cut_off_reads_as_zeros_when_the_file_grows_again() {
    run(async {
        let guest = guest().await;
        let bytes = pattern(1, 20_000);
        for cut in [0, 1, 4095, 4096, 4097, 10_000, 19_999] {
            guest.put("/f", &bytes).await.unwrap();
            guest.truncate("/f", cut).await.unwrap();
            guest.truncate("/f", 20_000).await.unwrap();
            let read = guest.get("/f").await.unwrap();
            let cut = cut as usize;
            assert!(read[..cut] == bytes[..cut] && read[cut..].iter().all(|&byte| byte == 0), "cut to {cut}");
            let stat = guest.stat("/f").await.unwrap();
            assert_eq!(stat.sectors, cut.div_ceil(4096) as u64 * 8);
        }
    });
}

#[test]
fn big_files_are_cut_in_several_transactions() {
    run(async {
        let guest = guest().await;
        let handle = guest.create("/f").await.unwrap();
        let chunk = pattern(7, 1 << 20);
        for number in 0..40 {
            guest.write_at(handle, number << 20, &chunk).await.unwrap();
        }
        let node = guest.resolve("/f").await.unwrap();
        let before = guest.fs.volume().unsynced_transactions();
        guest.truncate("/f", 5).await.unwrap();
        assert!(guest.fs.volume().unsynced_transactions() > before + 2);
        assert_eq!(guest.fs.volume().mapped_blocks(ObjectId(node.0)), 1);
        assert_eq!(guest.stat("/f").await.unwrap().sectors, 8);
        assert_eq!(guest.get("/f").await.unwrap(), chunk[..5]);
    });
}

#[test]
fn appends_go_to_the_end_whatever_the_offset_says() {
    run(async {
        let guest = guest().await;
        guest.put("/f", b"begin ").await.unwrap();
        let handle = guest.open("/f", "wa").await.unwrap();
        guest.write_at(handle, 0, b"middle ").await.unwrap();
        guest.write_at(handle, 1_000_000, b"end").await.unwrap();
        assert_eq!(guest.get("/f").await.unwrap(), b"begin middle end");
    });
}

#[test]
fn files_end_at_16_tib() {
    run(async {
        let guest = guest().await;
        let handle = guest.create("/f").await.unwrap();
        let max = 1_u64 << 44;
        guest.write_at(handle, max - 4096, &pattern(1, 4096)).await.unwrap();
        assert_eq!(guest.stat("/f").await.unwrap().size_bytes, max);
        assert_eq!(guest.write_at(handle, max, b"xx").await, Err(Errno::EFBIG));
        assert_eq!(guest.write_at(handle, u64::MAX, b"xx").await, Err(Errno::EFBIG));
        assert_eq!(guest.truncate("/f", max + 1).await, Err(Errno::EFBIG));
        assert_eq!(guest.read_at(handle, 0, 10).await.unwrap(), [0; 10]);
        assert_eq!(guest.stat("/f").await.unwrap().sectors, 8);
    });
}

#[test]
fn holes_are_punched_found_and_filled() {
    run(async {
        let guest = guest().await;
        let handle = guest.create("/f").await.unwrap();
        let mut expected = pattern(3, 50_000);
        guest.write_at(handle, 0, &expected).await.unwrap();
        let punch = |offset_bytes, len_bytes| Operation::Allocate {
            handle,
            offset_bytes,
            len_bytes,
            mode: AllocateMode::PunchHole,
        };
        for (offset, len) in [(100, 50), (4000, 200), (10_000, 20_000), (49_000, 5000)] {
            guest.done(punch(offset as u64, len as u64)).await.unwrap();
            let end = (offset + len).min(50_000);
            expected[offset..end].fill(0);
            assert!(guest.get("/f").await.unwrap() == expected, "{len} at {offset}");
        }
        assert_eq!(guest.stat("/f").await.unwrap().size_bytes, 50_000);
        let seek = async |offset_bytes, whence| match guest
            .execute(Operation::Seek { handle, offset_bytes, whence })
            .await
        {
            Ok(Reply::Offset(offset)) => Ok(offset),
            Ok(other) => panic!("{other:?}"),
            Err(errno) => Err(errno),
        };
        assert_eq!(seek(5, Whence::Hole).await, Ok(12_288));
        assert_eq!(seek(13_000, Whence::Data).await, Ok(28_672));
        assert_eq!(seek(30_000, Whence::Data).await, Ok(30_000));
        assert_eq!(seek(30_000, Whence::Hole).await, Ok(49_152));
        assert_eq!(seek(50_000, Whence::Data).await, Err(Errno::ENXIO));
        let allocate = |mode| Operation::Allocate { handle, offset_bytes: 60_000, len_bytes: 10, mode };
        guest.done(allocate(AllocateMode::Allocate { keep_size: true })).await.unwrap();
        assert_eq!(guest.stat("/f").await.unwrap().size_bytes, 50_000);
        guest.done(allocate(AllocateMode::ZeroRange { keep_size: false })).await.unwrap();
        assert_eq!(guest.stat("/f").await.unwrap().size_bytes, 60_010);
        assert_eq!(guest.done(punch(0, 0)).await, Err(Errno::EINVAL));
        assert_eq!(guest.done(punch(1 << 60, 1)).await, Err(Errno::EFBIG));
    });
}

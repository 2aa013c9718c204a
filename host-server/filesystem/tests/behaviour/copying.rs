//! Copies between files, files without a name, and writes at the limit of a file.

use ringfort_filesystem::check;
use ringfort_filesystem::operation::*;
use ringfort_reference::{Errno, Random};
use ringfort_store::address::ObjectId;
use ringfort_store::model::ModelSettings;

use crate::world::{Guest, flags, make, name, open, pattern, run};

async fn guest() -> Guest {
    Guest::new(&make(ModelSettings { suspend_seed: Some(9), ..Default::default() }).await)
}

impl Guest {
    async fn copy(
        &self,
        (from, from_bytes): (HandleId, u64),
        (to, to_bytes): (HandleId, u64),
        len_bytes: u64,
    ) -> Result<u64, Errno> {
        match self.execute(Operation::CopyRange { from, from_bytes, to, to_bytes, len_bytes }).await? {
            Reply::Written { len_bytes } => Ok(u64::from(len_bytes)),
            other => panic!("{other:?}"),
        }
    }

    async fn temporary(&self, linkable: bool) -> (Attributes, HandleId) {
        let new = NewNode { parent: NodeId::ROOT, name: name("x"), permissions: 0o666, umask: 0o022 };
        let make = Operation::CreateTemporary { new, flags: flags("rw"), linkable };
        match self.execute(make).await.unwrap() {
            Reply::Created { attributes, handle } => (attributes, handle),
            other => panic!("{other:?}"),
        }
    }

    async fn link_node(&self, node: NodeId, to: &str) -> Result<u32, Errno> {
        match self.execute(Operation::Link { node, parent: NodeId::ROOT, name: name(to) }).await? {
            Reply::Node(attributes) => Ok(attributes.link_count),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn copies_do_what_copying_bytes_does() {
    for seed in 1..=8 {
        run(async {
            let guest = guest().await;
            let mut random = Random::new(seed);
            let mut files = Vec::new();
            for path in ["/a", "/b"] {
                let handle = guest.create(path).await.unwrap();
                let mut bytes = Vec::new();
                for part in 0..3 {
                    // With holes between them.
                    let at = random.below(40_000) + part * 60_000;
                    let data = pattern(random.below(256) as u8, random.below(30_000) as usize + 1);
                    guest.write_at(handle, at, &data).await.unwrap();
                    bytes.resize(bytes.len().max(at as usize + data.len()), 0);
                    bytes[at as usize..at as usize + data.len()].copy_from_slice(&data);
                }
                files.push((handle, bytes));
            }
            for _ in 0..60 {
                let (from, to) = (random.below(2) as usize, random.below(2) as usize);
                let aligned = if random.below(2) == 0 { 4096 } else { 1 };
                let from_bytes = random.below(200_000) / aligned * aligned;
                let to_bytes = random.below(200_000) / aligned * aligned;
                let len_bytes = random.below(90_000);
                let source = &files[from].1;
                let start = (from_bytes as usize).min(source.len());
                let end = (start + len_bytes as usize).min(source.len());
                let data = source[start..end].to_vec();
                let copied =
                    guest.copy((files[from].0, from_bytes), (files[to].0, to_bytes), len_bytes).await;
                if from == to && from_bytes.abs_diff(to_bytes) < data.len() as u64 {
                    assert_eq!(copied, Err(Errno::EINVAL));
                    continue;
                }
                assert_eq!(copied, Ok(data.len() as u64), "seed {seed}");
                let target = &mut files[to].1;
                let end = to_bytes as usize + data.len();
                if !data.is_empty() {
                    target.resize(target.len().max(end), 0);
                    target[to_bytes as usize..end].copy_from_slice(&data);
                }
                for (handle, bytes) in &files {
                    assert!(guest.read_at(*handle, 0, 1 << 20).await.unwrap() == *bytes, "seed {seed}");
                }
            }
            let report = check(&**guest.fs.volume()).await.unwrap();
            assert!(report.is_clean(), "seed {seed}: {:#?}", report.faults);
        });
    }
}

#[test]
fn holes_are_copied_as_holes_and_one_request_copies_so_much() {
    run(async {
        let guest = guest().await;
        let (from, to) = (guest.create("/from").await.unwrap(), guest.create("/to").await.unwrap());
        guest.write_at(from, 500 << 20, &pattern(1, 8192)).await.unwrap();
        guest.write_at(to, 0, &pattern(2, 8192)).await.unwrap();
        let copied = guest.copy((from, 0), (to, 0), 600 << 20).await.unwrap();
        assert_eq!(copied, (500 << 20) + 8192);
        let node = guest.resolve("/to").await.unwrap();
        assert_eq!(guest.fs.volume().mapped_blocks(ObjectId(node.0)), 2);
        assert_eq!(guest.copy((from, copied), (to, copied), 1).await, Ok(0));
        for at in 0..10 {
            guest.write_at(from, at << 20, &pattern(3, 1 << 20)).await.unwrap();
        }
        let copied = guest.copy((from, 0), (to, 0), 10 << 20).await.unwrap();
        assert!((1 << 20..10 << 20).contains(&copied), "{copied} bytes at once");
        let read_only = guest.open("/to", "r").await.unwrap();
        assert_eq!(guest.copy((from, 0), (read_only, 0), 1).await, Err(Errno::EBADF));
        assert_eq!(guest.copy((from, 0), (to, 1 << 44), 1).await, Err(Errno::EFBIG));
        assert_eq!(guest.copy((from, 0), (to, (1 << 44) - 5), 10).await, Ok(5));
    });
}

#[test]
fn a_write_that_begins_below_the_limit_of_a_file_is_cut_short_there() {
    run(async {
        const LIMIT: u64 = 1 << 44;
        let guest = guest().await;
        let handle = guest.create("/f").await.unwrap();
        assert_eq!(guest.write_at(handle, LIMIT - 3, b"abcdef").await, Ok(3));
        assert_eq!(guest.write_at(handle, LIMIT - 4096, &pattern(1, 8192)).await, Ok(4096));
        assert_eq!(guest.write_at(handle, LIMIT, b"x").await, Err(Errno::EFBIG));
        assert_eq!(guest.read_at(handle, LIMIT - 4096, 10_000).await.unwrap(), pattern(1, 4096));
        assert_eq!(guest.stat("/f").await.unwrap().size_bytes, LIMIT);
        assert_eq!(guest.truncate("/f", LIMIT + 1).await, Err(Errno::EFBIG));
        guest.truncate("/f", LIMIT).await.unwrap();
    });
}

#[test]
fn a_temporary_file_goes_with_its_holder_or_gets_a_name() {
    run(async {
        let guest = guest().await;
        let before = guest.stat("/").await.unwrap();
        let (file, handle) = guest.temporary(true).await;
        assert_eq!((file.link_count, file.permissions, file.kind), (0, 0o644, FileKind::Regular));
        assert_eq!(guest.stat("/").await.unwrap(), before, "the directory knows nothing of it");
        guest.write_at(handle, 0, b"contents").await.unwrap();
        assert_eq!(guest.link_node(file.node, "named").await, Ok(1));
        assert_eq!(guest.get("/named").await.unwrap(), b"contents");
        guest.unlink("/named").await.unwrap();
        // Once it had a name, it is like any other that lost its last.
        assert_eq!(guest.link_node(file.node, "again").await, Err(Errno::ENOENT));

        let (exclusive, _) = guest.temporary(false).await;
        assert_eq!(guest.link_node(exclusive.node, "never").await, Err(Errno::ENOENT));
        assert_eq!(guest.fs.counts().unlinked_inodes, 2);
        guest.fs.close_session(guest.session).await;
        assert_eq!(guest.fs.counts().unlinked_inodes, 0);
        let report = check(&**guest.fs.volume()).await.unwrap();
        assert!(report.is_clean() && report.inodes == 1, "{report:#?}");
    });
}

#[test]
fn every_cut_of_a_temporary_files_life_is_sound() {
    run(async {
        let guest = guest().await;
        let (file, handle) = guest.temporary(true).await;
        guest.write_at(handle, 0, &pattern(1, 9000)).await.unwrap();
        guest.link_node(file.node, "named").await.unwrap();
        guest.temporary(true).await;
        let volume = guest.fs.volume();
        for kept in 0..=volume.unsynced_transactions() {
            let volume = std::rc::Rc::new(volume.after_power_loss(kept));
            let report = check(&*volume).await.unwrap();
            assert!(report.is_clean(), "{kept} kept: {:#?}", report.faults);
            let after = Guest::new(&open(std::rc::Rc::clone(&volume)).await);
            let report = check(&*volume).await.unwrap();
            assert!(report.is_clean() && report.unfinished == 0, "{kept} kept: {report:#?}");
            let named = after.get("/named").await;
            assert_eq!(report.inodes, if named.is_ok() { 2 } else { 1 });
            assert!(named.is_err() || named.unwrap() == pattern(1, 9000));
        }
    });
}

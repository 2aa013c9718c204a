//! Hard links, and files that lose their last name while somebody holds them.

use ringfort_filesystem::operation::*;
use ringfort_reference::Errno;
use ringfort_store::address::ObjectId;
use ringfort_store::format::filesystem as format;
use ringfort_store::model::ModelSettings;

use crate::world::{Guest, make, name, pattern, run};

async fn guest() -> Guest {
    Guest::new(&make(ModelSettings { suspend_seed: Some(5), ..Default::default() }).await)
}

#[test]
fn all_names_of_a_file_are_the_same_file() {
    run(async {
        let guest = guest().await;
        guest.put("/a", b"one").await.unwrap();
        guest.link("/a", "/b").await.unwrap();
        assert_eq!(guest.stat("/a").await, guest.stat("/b").await);
        assert_eq!(guest.stat("/a").await.unwrap().link_count, 2);
        guest.put("/b", b"two").await.unwrap();
        assert_eq!(guest.get("/a").await.unwrap(), b"two");
        guest.unlink("/a").await.unwrap();
        assert_eq!(guest.stat("/b").await.unwrap().link_count, 1);
        guest.mkdir("/d").await.unwrap();
        assert_eq!(guest.link("/d", "/e").await, Err(Errno::EPERM));
    });
}

#[test]
fn an_open_file_outlives_its_name() {
    run(async {
        let guest = guest().await;
        let bytes = pattern(1, 10_000);
        let handle = guest.create("/f").await.unwrap();
        guest.write_at(handle, 0, &bytes).await.unwrap();
        let node = guest.resolve("/f").await.unwrap();
        guest.unlink("/f").await.unwrap();
        assert_eq!(guest.stat("/f").await, Err(Errno::ENOENT));
        assert_eq!(guest.read_at(handle, 0, 20_000).await.unwrap(), bytes);
        guest.write_at(handle, 10_000, b"more").await.unwrap();
        assert_eq!(guest.stat_node(node).await.unwrap().size_bytes, 10_004);
        let again = Operation::Link { node, parent: NodeId::ROOT, name: name("g") };
        assert_eq!(guest.execute(again).await.unwrap_err(), Errno::ENOENT);
        guest.close(handle).await.unwrap();
        assert_eq!(guest.stat_node(node).await, Err(Errno::ESTALE));
        assert_eq!(guest.fs.volume().mapped_blocks(ObjectId(node.0)), 0);
        assert!(guest.fs.volume().entries(format::ORPHANS).is_empty());
    });
}

#[test]
fn a_replaced_file_is_reclaimed_when_its_last_lookup_is_forgotten() {
    run(async {
        let guest = guest().await;
        guest.put("/a", &pattern(1, 5000)).await.unwrap();
        guest.put("/b", &pattern(2, 5000)).await.unwrap();
        let node = guest.lookup_held(NodeId::ROOT, &name("b")).await.unwrap().node;
        guest.rename("/a", "/b").await.unwrap();
        assert_eq!(guest.stat_node(node).await.unwrap().link_count, 0);
        guest.forget(node).await;
        assert_eq!(guest.stat_node(node).await, Err(Errno::ESTALE));
        assert_eq!(guest.fs.volume().mapped_blocks(ObjectId(node.0)), 0);
    });
}

#[test]
fn the_end_of_a_session_reclaims_what_only_it_held() {
    run(async {
        let guest = guest().await;
        let other = Guest::new(&guest.fs);
        for path in ["/a", "/b"] {
            let handle = guest.create(path).await.unwrap();
            guest.write_at(handle, 0, &pattern(1, 9000)).await.unwrap();
        }
        let kept = other.open("/a", "r").await.unwrap();
        guest.unlink("/a").await.unwrap();
        guest.unlink("/b").await.unwrap();
        guest.fs.close_session(guest.session).await;
        assert_eq!(guest.stat_node(NodeId::ROOT).await, Err(Errno::ESTALE));
        assert_eq!(other.fs.counts().unlinked_inodes, 1);
        assert_eq!(other.read_at(kept, 0, 9000).await.unwrap(), pattern(1, 9000));
        other.close(kept).await.unwrap();
        assert_eq!(other.fs.counts().unlinked_inodes, 0);
        assert_eq!(other.fs.volume().entries(format::INODES).len(), 1);
    });
}

#[test]
fn forged_handles_and_nodes_are_refused() {
    run(async {
        let guest = guest().await;
        let other = Guest::new(&guest.fs);
        let handle = guest.create("/f").await.unwrap();
        assert_eq!(other.read_at(handle, 0, 1).await, Err(Errno::EBADF));
        assert_eq!(guest.read_at(HandleId(99), 0, 1).await, Err(Errno::EBADF));
        assert_eq!(guest.stat_node(NodeId(12345)).await, Err(Errno::ESTALE));
        assert_eq!(guest.stat_node(NodeId(0)).await, Err(Errno::ESTALE));
        assert_eq!(guest.done(Operation::ReleaseDirectory { handle }).await, Err(Errno::EBADF));
        let read_only = guest.open("/f", "r").await.unwrap();
        assert_eq!(guest.write_at(read_only, 0, b"x").await, Err(Errno::EBADF));
        let write_only = guest.open("/f", "w").await.unwrap();
        assert_eq!(guest.read_at(write_only, 0, 1).await, Err(Errno::EBADF));
        assert_eq!(guest.open("/", "r").await, Err(Errno::EISDIR));
    });
}

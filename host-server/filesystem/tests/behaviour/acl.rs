//! POSIX access control lists.

use std::rc::Rc;

use ringfort_filesystem::operation::{FileKind, NewNode, NodeId, Operation, SetXattrMode};
use ringfort_reference::{Errno, GROUP, List, MASK, NAMED_GROUP, NOBODY, OTHERS, OWNER, USER};
use ringfort_store::model::ModelSettings;

use crate::world::{Guest, make, name, open, run};

async fn guest() -> Guest {
    Guest::new(&make(ModelSettings { suspend_seed: Some(9), ..Default::default() }).await)
}

const ACCESS: &[u8] = b"system.posix_acl_access";
const DEFAULT: &[u8] = b"system.posix_acl_default";

/// The value that Linux gives a list.
fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    List(entries.to_vec()).value()
}

/// Owner, a user who is named, group, mask and others.
fn with_user(owner: u16, uid: u32, user: u16, group: u16, mask: u16, others: u16) -> Vec<u8> {
    list(&[
        (OWNER, owner, NOBODY),
        (USER, user, uid),
        (GROUP, group, NOBODY),
        (MASK, mask, NOBODY),
        (OTHERS, others, NOBODY),
    ])
}

fn minimal(owner: u16, group: u16, others: u16) -> Vec<u8> {
    list(&[(OWNER, owner, NOBODY), (GROUP, group, NOBODY), (OTHERS, others, NOBODY)])
}

impl Guest {
    async fn set_acl(&self, path: &str, xattr: &[u8], value: Vec<u8>) -> Result<(), Errno> {
        self.set_acl_outside_group(path, xattr, value, false).await
    }

    async fn set_acl_outside_group(
        &self,
        path: &str,
        xattr: &[u8],
        value: Vec<u8>,
        clear_set_gid: bool,
    ) -> Result<(), Errno> {
        let node = self.resolve(path).await?;
        let mode = SetXattrMode::Any;
        self.done(Operation::SetXattr { node, name: xattr.to_vec(), value, mode, clear_set_gid }).await
    }

    async fn permissions(&self, path: &str) -> u16 {
        self.stat(path).await.unwrap().permissions
    }

    async fn check(&self) {
        let report = ringfort_filesystem::check(&**self.fs.volume()).await.unwrap();
        assert!(report.is_clean(), "{report:?}");
    }
}

fn new_node(directory: NodeId, file: &str, permissions: u16, umask: u16) -> NewNode {
    NewNode { parent: directory, name: name(file), permissions, umask }
}

#[test]
fn an_access_list_and_the_mode_follow_each_other() {
    run(async {
        let guest = guest().await;
        guest.put("/f", b"").await.unwrap();
        guest.chmod("/f", 0o2644).await.unwrap();
        assert_eq!(guest.xattr("/f", ACCESS).await, Err(Errno::ENODATA));
        guest.set_acl("/f", ACCESS, with_user(7, 10, 6, 4, 6, 1)).await.unwrap();
        assert_eq!(guest.permissions("/f").await, 0o2761);
        let stat = guest.chmod("/f", 0o640).await.unwrap();
        assert_eq!(stat.permissions, 0o640);
        assert_eq!(guest.xattr("/f", ACCESS).await, Ok(with_user(6, 10, 6, 4, 4, 0)));
        // A list that the mode says as well is not kept.
        guest.set_acl("/f", ACCESS, minimal(7, 5, 5)).await.unwrap();
        assert_eq!(guest.permissions("/f").await, 0o755);
        assert_eq!(guest.xattr("/f", ACCESS).await, Err(Errno::ENODATA));
        guest.set_acl("/f", ACCESS, with_user(7, 10, 6, 4, 6, 1)).await.unwrap();
        guest.remove_xattr("/f", ACCESS).await.unwrap();
        assert_eq!(guest.permissions("/f").await, 0o761, "the mask stays the group's bits");
        guest.remove_xattr("/f", ACCESS).await.unwrap();
        guest.check().await;
    });
}

#[test]
fn a_list_set_from_outside_the_owning_group_takes_set_gid_away() {
    run(async {
        let guest = guest().await;
        guest.put("/f", b"").await.unwrap();
        guest.chmod("/f", 0o2755).await.unwrap();
        guest.set_acl_outside_group("/f", ACCESS, minimal(7, 5, 5), true).await.unwrap();
        assert_eq!(guest.permissions("/f").await, 0o755);
    });
}

#[test]
fn lists_belong_to_owners_and_default_lists_to_directories() {
    run(async {
        let guest = guest().await;
        guest.put("/f", b"").await.unwrap();
        guest.mkdir("/d").await.unwrap();
        guest.symlink("/l", b"f").await.unwrap();
        let list = with_user(7, 10, 6, 4, 6, 1);
        assert_eq!(guest.set_acl("/l", ACCESS, list.clone()).await, Err(Errno::EOPNOTSUPP));
        assert_eq!(guest.set_acl("/f", DEFAULT, list.clone()).await, Err(Errno::EACCES));
        assert_eq!(guest.remove_xattr("/f", DEFAULT).await, Ok(()));
        assert_eq!(guest.user(5, 5).set_acl("/d", ACCESS, list.clone()).await, Err(Errno::EPERM));
        assert_eq!(guest.set_acl("/d", ACCESS, b"jun".to_vec()).await, Err(Errno::EINVAL));
        guest.set_acl("/d", DEFAULT, list.clone()).await.unwrap();
        assert_eq!(guest.permissions("/d").await, 0o755, "a default list is not the directory's own");
        let anew = Guest::new(&open(Rc::clone(guest.fs.volume())).await);
        assert_eq!(anew.xattr("/d", DEFAULT).await, Ok(list));
        let guest = anew;
        guest.remove_xattr("/d", DEFAULT).await.unwrap();
        assert_eq!(guest.xattr("/d", DEFAULT).await, Err(Errno::ENODATA));
        guest.check().await;
    });
}

#[test]
fn what_is_made_in_a_directory_gets_its_default_list_in_place_of_the_umask() {
    run(async {
        let guest = guest().await;
        let directory = guest.mkdir("/d").await.unwrap().node;
        let new = new_node(directory, "before", 0o666, 0o027);
        guest.execute(Operation::MakeNode { new, kind: FileKind::Regular, device: 0 }).await.unwrap();
        assert_eq!(guest.permissions("/d/before").await, 0o640);

        guest.set_acl("/d", DEFAULT, with_user(7, 10, 6, 4, 6, 4)).await.unwrap();
        let new = new_node(directory, "file", 0o666, 0o077);
        guest.execute(Operation::MakeNode { new, kind: FileKind::Regular, device: 0 }).await.unwrap();
        assert_eq!(guest.permissions("/d/file").await, 0o664);
        assert_eq!(guest.xattr("/d/file", ACCESS).await, Ok(with_user(6, 10, 6, 4, 6, 4)));
        assert_eq!(guest.xattr("/d/file", DEFAULT).await, Err(Errno::ENODATA));

        let new = new_node(directory, "directory", 0o750, 0o077);
        guest.execute(Operation::MakeDirectory { new }).await.unwrap();
        assert_eq!(guest.permissions("/d/directory").await, 0o740);
        assert_eq!(guest.xattr("/d/directory", ACCESS).await, Ok(with_user(7, 10, 6, 4, 4, 0)));
        assert_eq!(guest.xattr("/d/directory", DEFAULT).await, Ok(with_user(7, 10, 6, 4, 6, 4)));

        guest.symlink("/d/link", b"file").await.unwrap();
        assert_eq!(guest.permissions("/d/link").await, 0o777);
        guest.check().await;

        // A default list that a mode says as well leaves nothing but the mode.
        guest.set_acl("/d", DEFAULT, minimal(7, 5, 0)).await.unwrap();
        let new = new_node(directory, "plain", 0o666, 0o077);
        guest.execute(Operation::MakeNode { new, kind: FileKind::Regular, device: 0 }).await.unwrap();
        assert_eq!(guest.permissions("/d/plain").await, 0o640);
        assert_eq!(guest.xattr("/d/plain", ACCESS).await, Err(Errno::ENODATA));
        guest.check().await;
    });
}

#[test]
fn the_filesystem_grants_what_a_list_grants() {
    run(async {
        let guest = guest().await;
        guest.put("/f", b"contents").await.unwrap();
        guest.chmod("/f", 0o600).await.unwrap();
        assert_eq!(guest.user(10, 10).open("/f", "r").await, Err(Errno::EACCES));
        guest
            .set_acl(
                "/f",
                ACCESS,
                list(&[
                    (OWNER, 6, NOBODY),
                    (USER, 6, 10),
                    (GROUP, 0, NOBODY),
                    (NAMED_GROUP, 4, 20),
                    (MASK, 4, NOBODY),
                    (OTHERS, 0, NOBODY),
                ]),
            )
            .await
            .unwrap();
        assert!(guest.user(10, 10).open("/f", "r").await.is_ok());
        assert_eq!(guest.user(10, 10).open("/f", "rw").await, Err(Errno::EACCES), "the mask holds");
        assert!(guest.user(11, 20).open("/f", "r").await.is_ok());
        assert_eq!(guest.user(11, 11).open("/f", "r").await, Err(Errno::EACCES));
    });
}

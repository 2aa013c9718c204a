use proptest::prelude::*;
use zerocopy::IntoBytes;

use ringfort_filesystem::operation::{
    AllocateMode, FileKind, RenameMode, SetAttributes, SetTime, SetXattrMode, Timestamp,
};

use super::*;

const OPCODES: &[u32] = &[
    1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15, 17, 18, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 34,
    31, 32, 33, 35, 36, 38, 42, 43, 44, 45, 46, 47, 50, 51,
];

fn header(opcode: u32, body_bytes: usize) -> Header {
    Header { opcode, unique: 1, uid: 0, gid: 0, node: 1, body_bytes }
}

fn decoded(opcode: u32, body: &[u8]) -> Result<Request, Errno> {
    decode(&header(opcode, body.len()), Dialect::default(), body)
}

fn operation(opcode: u32, body: &[u8]) -> Operation {
    match decoded(opcode, body) {
        Ok(Request::Operation { operation, .. }) => operation,
        other => panic!("{other:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn random_bytes_never_panic(
        opcode in prop_oneof![prop::sample::select(OPCODES), any::<u32>()],
        body in prop::collection::vec(any::<u8>(), 0..600),
    ) {
        let _ = decoded(opcode, &body);
    }

    #[test]
    fn decoded_names_are_names(opcode in prop::sample::select(OPCODES), body in prop::collection::vec(0..3_u8, 0..64)) {
        if let Ok(Request::Operation { operation: Operation::Lookup { name, .. }, .. }) = decoded(opcode, &body) {
            prop_assert!(!name.as_bytes().is_empty() && !name.as_bytes().contains(&0));
        }
    }
}

#[test]
fn setattr_takes_only_what_is_marked_valid() {
    let mut set = abi::SetattrIn {
        valid: (abi::FATTR_SIZE | abi::FATTR_ATIME | abi::FATTR_ATIME_NOW | abi::FATTR_MTIME | abi::FATTR_FH)
            .into(),
        fh: 5.into(),
        size: 77.into(),
        mode: 0o777.into(),
        uid: 9.into(),
        mtime: (-3_i64).cast_unsigned().into(),
        mtimensec: 999_999_999.into(),
        ..Default::default()
    };
    let Operation::SetAttributes { handle, change, .. } = operation(abi::FUSE_SETATTR, set.as_bytes()) else {
        panic!()
    };
    assert_eq!(handle, Some(HandleId(5)));
    let expected = SetAttributes {
        size_bytes: Some(77),
        accessed: Some(SetTime::Now),
        modified: Some(SetTime::At(Timestamp { seconds: -3, nanoseconds: 999_999_999 })),
        ..Default::default()
    };
    assert_eq!(change, expected);
    set.mtimensec = 1_000_000_000.into();
    assert_eq!(decoded(abi::FUSE_SETATTR, set.as_bytes()).unwrap_err(), Errno::EINVAL);
}

#[test]
fn creation_takes_off_the_kind_and_leaves_the_umask_to_the_filesystem() {
    let make = abi::MkdirIn { mode: 0o47777.into(), umask: 0o22.into() };
    let body = [make.as_bytes(), b"dir\0"].concat();
    let Operation::MakeDirectory { new } = operation(abi::FUSE_MKDIR, &body) else { panic!() };
    assert_eq!((new.permissions, new.umask, new.name.as_bytes()), (0o7777, 0o22, &b"dir"[..]));
    let make = abi::MknodIn { mode: (linux::S_IFIFO | 0o600).into(), rdev: 3.into(), ..Default::default() };
    let body = [make.as_bytes(), b"pipe\0"].concat();
    let Operation::MakeNode { kind, device, .. } = operation(abi::FUSE_MKNOD, &body) else { panic!() };
    assert_eq!((kind, device), (FileKind::Fifo, 3));
}

#[test]
fn symlink_and_rename_take_two_strings() {
    let Operation::MakeSymlink { name, target, .. } = operation(abi::FUSE_SYMLINK, b"link\0../a/b\0") else {
        panic!()
    };
    assert_eq!((name.as_bytes(), target.as_slice()), (&b"link"[..], &b"../a/b"[..]));
    assert_eq!(decoded(abi::FUSE_SYMLINK, b"link\0\0").unwrap_err(), Errno::ENOENT);
    let body = [&9_u64.to_le_bytes()[..], b"from\0to\0"].concat();
    let Operation::Rename { new_parent, new_name, mode, .. } = operation(abi::FUSE_RENAME, &body) else {
        panic!()
    };
    assert_eq!((new_parent, new_name.as_bytes(), mode), (NodeId(9), &b"to"[..], RenameMode::Replace));
}

#[test]
fn lookup_of_two_dots_asks_for_the_parent() {
    assert!(matches!(operation(abi::FUSE_LOOKUP, b"..\0"), Operation::LookupParent { node: NodeId(1) }));
}

#[test]
fn attributes_are_named_and_sized_exactly() {
    let body = [&3_u32.to_le_bytes()[..], &linux::XATTR_CREATE.to_le_bytes(), b"user.a\0xyz"].concat();
    let Operation::SetXattr { name, value, mode, .. } = operation(abi::FUSE_SETXATTR, &body) else {
        panic!()
    };
    assert_eq!(
        (name.as_slice(), value.as_slice(), mode),
        (&b"user.a"[..], &b"xyz"[..], SetXattrMode::Create)
    );
    assert_eq!(decoded(abi::FUSE_SETXATTR, &body[..body.len() - 1]).unwrap_err(), Errno::EINVAL);
}

#[test]
fn flags_of_setting_an_attribute_travel_where_that_was_negotiated() {
    let set = abi::SetxattrIn {
        size: 1.into(),
        setxattr_flags: abi::FUSE_SETXATTR_ACL_KILL_SGID.into(),
        ..Default::default()
    };
    let body = [set.as_bytes(), b"user.a\0x"].concat();
    let header = header(abi::FUSE_SETXATTR, body.len());
    let request = decode(&header, Dialect { setxattr_ext: true }, &body);
    let Ok(Request::Operation { operation: Operation::SetXattr { name, clear_set_gid, .. }, .. }) = request
    else {
        panic!("{request:?}")
    };
    assert_eq!((name.as_slice(), clear_set_gid), (&b"user.a"[..], true));
    // Where it was not, the flags would be the beginning of the name.
    assert!(decode(&header, Dialect { setxattr_ext: false }, &body).is_err());
}

#[test]
fn fallocate_knows_four_modes() {
    let allocate = |mode: u32, length: u64| abi::FallocateIn {
        offset: 4096.into(),
        length: length.into(),
        mode: mode.into(),
        ..Default::default()
    };
    let mode = |mode: u32| match operation(abi::FUSE_FALLOCATE, allocate(mode, 1).as_bytes()) {
        Operation::Allocate { mode, .. } => mode,
        other => panic!("{other:?}"),
    };
    assert_eq!(mode(0), AllocateMode::Allocate { keep_size: false });
    assert_eq!(mode(3), AllocateMode::PunchHole);
    assert_eq!(mode(0x11), AllocateMode::ZeroRange { keep_size: true });
    let error = |mode, length| decoded(abi::FUSE_FALLOCATE, allocate(mode, length).as_bytes()).unwrap_err();
    assert_eq!(error(2, 1), Errno::EOPNOTSUPP);
    // Collapse and insert: a guest's page cache would not know of them.
    assert_eq!(error(8, 1), Errno::EOPNOTSUPP);
    assert_eq!(error(0x20, 1), Errno::EOPNOTSUPP);
    assert_eq!(error(0, 0), Errno::EINVAL);
    assert_eq!(error(0, i64::MAX as u64), Errno::EFBIG);
}

//! The wire document says what the code does: the tables of `docs/wire.md` against the types.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails

use std::collections::BTreeMap;

use ringfort_protocol::LAYOUTS;
use ringfort_protocol::argument::{AREA_COUNT_MAX, PATH_BYTES_MAX};
use ringfort_protocol::command::{Flags, Opcode, OpenBits};
use ringfort_protocol::control::envelope::BODY_BYTES_MAX;
use ringfort_protocol::control::message::{
    GIVEN_RINGS_MAX, GROUP_COUNT_MAX, INVITATION_XATTR, Kind, PAGE_HEAD_BYTES, PORT_DEFAULT, Reason, Role,
    TEXT_BYTES_MAX,
};
use ringfort_protocol::ring::layout::{RING_ALIGN_BYTES, SLOT_COUNT_MAX, SLOT_COUNT_MIN};
use ringfort_protocol::ring::slot::SLOT_BYTES;
use ringfort_protocol::version::Version;

const DOCUMENT: &str = include_str!("../docs/wire.md");

/// The rows of the table whose head begins with `head`.
fn rows(head: &str) -> Vec<Vec<&'static str>> {
    let mut lines = DOCUMENT.lines().skip_while(|line| !line.starts_with(head));
    assert!(lines.next().is_some(), "no table {head}");
    lines
        .skip(1)
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect()
}

/// First column as a number, second as it stands.
fn numbered(head: &str) -> Vec<(u64, String)> {
    rows(head).iter().map(|row| (row[0].parse().unwrap(), row[1].to_owned())).collect()
}

#[test]
fn layouts_are_those_of_the_code() {
    let lines: Vec<_> = DOCUMENT.lines().collect();
    let mut documented = BTreeMap::new();
    for (index, line) in lines.iter().enumerate() {
        let Some((name, rest)) = line.strip_prefix("Layout `").and_then(|rest| rest.split_once("`, ")) else {
            continue;
        };
        let len_bytes: usize = rest.split_once(" bytes").unwrap().0.parse().unwrap();
        let fields: Vec<(usize, usize, String)> = lines[index + 4..]
            .iter()
            .take_while(|line| line.starts_with('|'))
            .map(|line| {
                let row: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
                assert_eq!(row.len(), 4, "{name}: {row:?}");
                (row[0].parse().unwrap(), row[1].parse().unwrap(), row[2].to_owned())
            })
            .collect();
        assert!(documented.insert(name.to_owned(), (len_bytes, fields)).is_none(), "two tables of {name}");
    }
    let expected: BTreeMap<_, _> = LAYOUTS
        .iter()
        .map(|layout| {
            let fields = layout.fields.iter();
            let fields = fields.map(|field| (field.offset_bytes, field.len_bytes, field.name.to_owned()));
            (layout.name.to_owned(), (layout.len_bytes, fields.collect::<Vec<_>>()))
        })
        .collect();
    assert_eq!(documented, expected, "document left, code right");
}

#[test]
fn constants_are_those_of_the_code() {
    let found: BTreeMap<_, u64> =
        rows("| constant").iter().map(|row| (row[0], row[1].parse().unwrap())).collect();
    let expected = [
        ("slot", SLOT_BYTES),
        ("ring alignment", RING_ALIGN_BYTES),
        ("slots minimum", SLOT_COUNT_MIN.into()),
        ("slots maximum", SLOT_COUNT_MAX.into()),
        ("body maximum", BODY_BYTES_MAX.into()),
        ("text maximum", TEXT_BYTES_MAX as u64),
        ("groups maximum", GROUP_COUNT_MAX as u64),
        ("areas maximum", AREA_COUNT_MAX as u64),
        ("path maximum", PATH_BYTES_MAX as u64),
        ("page head", PAGE_HEAD_BYTES.into()),
        ("rings given maximum", GIVEN_RINGS_MAX as u64),
        ("port", PORT_DEFAULT.into()),
    ];
    assert_eq!(found, expected.into());
    assert!(DOCUMENT.contains(&format!("`{INVITATION_XATTR}`")));
}

#[test]
fn numbers_are_those_of_the_code() {
    fn named<T: Copy + std::fmt::Debug>(all: &[T], number: impl Fn(T) -> u16) -> Vec<(u64, String)> {
        all.iter().map(|value| (number(*value).into(), format!("{value:?}"))).collect()
    }
    assert_eq!(numbered("| kind"), named(Kind::ALL, Kind::number));
    assert_eq!(numbered("| role"), named(Role::ALL, Role::number));
    assert_eq!(numbered("| reason"), named(Reason::ALL, Reason::number));
    assert_eq!(numbered("| opcode"), named(Opcode::ALL, Opcode::number));
    let versions = [(Version::ENVELOPE, "envelope"), (Version::CHANNEL, "channel")];
    assert_eq!(versions.last().unwrap().0, Version::LATEST);
    let versions = versions.map(|(version, name)| (version.0.into(), name.to_owned()));
    assert_eq!(numbered("| version"), versions);
}

#[test]
fn bits_are_those_of_the_code() {
    let flags = [
        ("LINK", Flags::LINK),
        ("LINK_ALWAYS", Flags::LINK_ALWAYS),
        ("OPENED", Flags::OPENED),
        ("NO_FOLLOW", Flags::NO_FOLLOW),
    ];
    for (row, (name, flag)) in rows("| flag").iter().zip(flags) {
        assert_eq!((row[0], 1 << row[1].parse::<u16>().unwrap()), (name, flag.0));
    }
    let opening = [
        ("READ", OpenBits::READ),
        ("WRITE", OpenBits::WRITE),
        ("APPEND", OpenBits::APPEND),
        ("CREATE", OpenBits::CREATE),
        ("EXCLUSIVE", OpenBits::EXCLUSIVE),
        ("TRUNCATE", OpenBits::TRUNCATE),
        ("DIRECTORY", OpenBits::DIRECTORY),
        ("DATA_SYNC", OpenBits::DATA_SYNC),
        ("SYNC", OpenBits::SYNC),
        ("TEMPORARY", OpenBits::TEMPORARY),
    ];
    let documented = numbered("| bit of opening");
    assert_eq!(documented.len(), opening.len());
    for ((bit, found), (name, bits)) in documented.into_iter().zip(opening) {
        assert_eq!((found.as_str(), 1 << bit), (name, bits.0));
    }
    assert_eq!(OpenBits::ALL.0, (1 << opening.len()) - 1);
}

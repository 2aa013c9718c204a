//! The format document says what the code does: every table of `docs/format.md` against the types.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use ringfort_engine::buffer::BLOCK_BYTES;
use ringfort_store::format::component::LABEL_SLOTS;
use ringfort_store::format::layouts;
use ringfort_store::format::log::WRITE_BLOCKS_MAX;
use ringfort_store::format::map::RUN_BLOCKS_MAX;
use ringfort_store::format::memory::MemoryShape;
use ringfort_store::format::page::{PAGE_BYTES, TREE_COUNT_MAX};
use ringfort_store::format::root::{LOG_START, ROOT_SLOT_BYTES};
use ringfort_store::geometry::LABEL_REGION_BYTES;
use ringfort_store::volume::VALUE_BYTES_MAX;

const DOCUMENT: &str = include_str!("../docs/format.md");

/// The rows of the table that begins in one of the next lines, without its head.
fn rows<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<Vec<&'a str>> {
    lines
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect()
}

/// Length and fields (offset, length, name) of each "Layout" of the document.
type Documented = BTreeMap<String, (usize, Vec<(usize, usize, String)>)>;

fn documented() -> Documented {
    let mut layouts = Documented::new();
    let lines: Vec<_> = DOCUMENT.lines().collect();
    for (index, line) in lines.iter().enumerate() {
        let Some((name, rest)) = line.strip_prefix("Layout `").and_then(|rest| rest.split_once("`, ")) else {
            continue;
        };
        let len_bytes = rest.split_once(" bytes").unwrap().0.parse().unwrap();
        let fields = rows(lines[index..].iter().copied())
            .iter()
            .map(|row| {
                assert_eq!(row.len(), 5, "{name}: {row:?}");
                (row[0].parse().unwrap(), row[1].parse().unwrap(), row[2].to_owned())
            })
            .collect();
        let doubled = layouts.insert(name.to_owned(), (len_bytes, fields));
        assert!(doubled.is_none(), "two tables of {name}");
    }
    layouts
}

#[test]
fn tables_have_no_gaps() {
    for (name, (len_bytes, fields)) in documented() {
        let mut end = 0;
        for (offset, len, field) in fields {
            assert_eq!(offset, end, "{name}, {field}");
            end += len;
        }
        assert_eq!(end, len_bytes, "{name}");
    }
}

#[test]
fn tables_are_those_of_the_code() {
    let documented = documented();
    let mut seen = BTreeSet::new();
    for layout in layouts() {
        let fields = layout.fields.iter();
        let fields = fields.map(|field| (field.offset_bytes, field.len_bytes, field.name.to_owned()));
        let found = Some(&(layout.len_bytes, fields.collect()));
        assert_eq!(documented.get(layout.name), found, "{}: document left, code right", layout.name);
        assert!(seen.insert(layout.name.to_owned()), "two layouts named {}", layout.name);
    }
    assert_eq!(documented.into_keys().collect::<BTreeSet<_>>(), seen);
}

#[test]
fn constants_are_those_of_the_code() {
    let lines = DOCUMENT.lines().skip_while(|line| !line.starts_with("| constant"));
    let found: BTreeMap<_, u64> = rows(lines).iter().map(|row| (row[0], row[1].parse().unwrap())).collect();
    let expected = [
        ("block", BLOCK_BYTES as u64),
        ("label region", LABEL_REGION_BYTES),
        ("label slot 0", LABEL_SLOTS[0]),
        ("label slot 1", LABEL_SLOTS[1]),
        ("root slot", ROOT_SLOT_BYTES as u64),
        ("log start", LOG_START.0),
        ("page", PAGE_BYTES as u64),
        ("value maximum", VALUE_BYTES_MAX as u64),
        ("run maximum", RUN_BLOCKS_MAX),
        ("trees", TREE_COUNT_MAX as u64),
        ("memory front", MemoryShape::FRONT_BLOCKS as u64),
    ];
    assert_eq!(found, expected.into());
    assert_eq!(WRITE_BLOCKS_MAX as u64, RUN_BLOCKS_MAX, "one number in the document");
}

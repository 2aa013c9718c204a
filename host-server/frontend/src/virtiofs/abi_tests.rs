//! Compares [`super`] with the installed kernel header.

use std::collections::HashMap;

use super::{CONSTANTS, LAYOUTS};

const HEADER: &str = "/usr/include/linux/fuse.h";

fn header_without_comments() -> Option<String> {
    let text = std::fs::read_to_string(HEADER).ok()?;
    let mut plain = String::new();
    let mut rest = text.as_str();
    while let Some((before, after)) = rest.split_once("/*") {
        plain.push_str(before);
        rest = after.split_once("*/").map_or("", |(_, after)| after);
    }
    plain.push_str(rest);
    Some(plain)
}

/// Values of `#define NAME value` and of enumerators `NAME = value`.
fn header_constants(text: &str) -> HashMap<String, u64> {
    let mut values = HashMap::new();
    for line in text.lines() {
        let words = line.trim().trim_end_matches(',');
        let (name, value) = if let Some(define) = words.strip_prefix("#define") {
            let Some((name, value)) = define.trim().split_once(char::is_whitespace) else { continue };
            (name, value)
        } else {
            let Some((name, value)) = words.split_once('=') else { continue };
            (name, value)
        };
        if let Some(value) = evaluate(value.trim()) {
            values.insert(name.trim().to_owned(), value);
        }
    }
    values
}

fn evaluate(expression: &str) -> Option<u64> {
    let expression = expression.trim_matches(['(', ')']);
    match expression.split_once("<<") {
        Some((one, shift)) => {
            assert!(["1", "1ULL", "1ull"].contains(&one.trim()), "{expression}");
            Some(1 << shift.trim().parse::<u32>().ok()?)
        }
        None => expression.parse().ok(),
    }
}

/// (field, offset) of each field, and the size. All members are naturally aligned and structures are padded by hand.
fn header_layout(text: &str, name: &str) -> (Vec<(String, usize)>, usize) {
    let start = text.find(&format!("struct {name} {{")).unwrap_or_else(|| panic!("no struct {name}"));
    let body = text[start..].split_once('{').unwrap().1.split_once('}').unwrap().0;
    let mut fields = Vec::new();
    let mut offset = 0;
    for member in body.split(';').map(str::trim).filter(|member| !member.is_empty()) {
        let (kind, declarator) = member.rsplit_once(char::is_whitespace).unwrap();
        let element = match kind.trim() {
            "uint64_t" | "int64_t" => 8,
            "uint32_t" | "int32_t" => 4,
            "uint16_t" => 2,
            "char" => 1,
            nested => header_layout(text, nested.strip_prefix("struct ").unwrap()).1,
        };
        let (field, count) = match declarator.split_once('[') {
            Some((field, count)) => (field, count.trim_end_matches(']').parse().unwrap_or(0)),
            None => (declarator, 1),
        };
        if count > 0 {
            fields.push((field.to_owned(), offset));
        }
        offset += element * count;
    }
    (fields, offset)
}

#[test]
fn constants_equal_the_kernel_header() {
    let Some(text) = header_without_comments() else {
        eprintln!("skipped: {HEADER} is not installed");
        return;
    };
    let header = header_constants(&text);
    for (name, value) in CONSTANTS {
        if *name == "FUSE_KERNEL_MINOR_VERSION" {
            assert!(header[*name] >= 31, "{HEADER} is too old to compare with");
            continue;
        }
        // A header that is older or newer than 7.38 may lack a name, but never gives it another value.
        if let Some(found) = header.get(*name) {
            assert_eq!(found, value, "{name}");
        }
    }
    let known = CONSTANTS.iter().filter(|(name, _)| header.contains_key(*name)).count();
    assert!(known + 4 >= CONSTANTS.len(), "only {known} of {} constants are in {HEADER}", CONSTANTS.len());
}

#[test]
fn structures_equal_the_kernel_header() {
    let Some(text) = header_without_comments() else {
        eprintln!("skipped: {HEADER} is not installed");
        return;
    };
    for (name, size, fields) in LAYOUTS {
        let (header_fields, header_size) = header_layout(&text, name);
        assert_eq!(*size, header_size, "size of {name}");
        let fields: Vec<_> = fields
            .iter()
            .map(|(field, offset)| (field.trim_start_matches("r#").to_owned(), *offset))
            .collect();
        assert_eq!(fields, header_fields, "fields of {name}");
    }
}

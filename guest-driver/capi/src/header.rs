//! The header says what the code does: functions with their arguments, structures, numbers.

use std::collections::BTreeMap;

use crate::record::{
    BatchCommand, CONSTANTS, Change, ConnectOptions, Entry, FileAttributes, Fill, Lock, Time, Vector,
};

const HEADER: &str = include_str!("../include/ringfort.h");
const SOURCES: [&str; 5] = [
    include_str!("batch.rs"),
    include_str!("boundary.rs"),
    include_str!("directory.rs"),
    include_str!("file.rs"),
    include_str!("volume.rs"),
];

/// Type and name.
type Item = (String, String);

/// The header without comments.
fn header() -> String {
    let mut text = String::new();
    let mut rest = HEADER;
    while let Some((before, comment)) = rest.split_once("/*") {
        text.push_str(before);
        rest = comment.split_once("*/").unwrap().1;
    }
    text + rest
}

/// `const struct a *b`, taken apart.
fn c_item(text: &str) -> Item {
    let text = text.trim();
    let at = text.rfind(|letter: char| !letter.is_alphanumeric() && letter != '_').map_or(0, |at| at + 1);
    (text[..at].split_whitespace().collect::<Vec<_>>().join(" "), text[at..].to_owned())
}

/// Functions by name: result and arguments.
fn declared() -> BTreeMap<String, (String, Vec<Item>)> {
    let text = header();
    let lines: String = text.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n");
    lines
        .split(';')
        .filter_map(|statement| {
            let (head, arguments) = statement.trim().strip_suffix(')')?.split_once('(')?;
            let (result, name) = c_item(head.rsplit('\n').next()?);
            let arguments =
                if arguments == "void" { Vec::new() } else { arguments.split(',').map(c_item).collect() };
            Some((name, (result, arguments)))
        })
        .collect()
}

/// The same from the code, in the words of C.
fn exported() -> BTreeMap<String, (String, Vec<Item>)> {
    let mut all = BTreeMap::new();
    for source in SOURCES {
        for function in source.split("pub extern \"C\" fn ").skip(1) {
            let (head, _) = function.split_once('{').unwrap();
            let (name, rest) = head.split_once('(').unwrap();
            let (arguments, result) = rest.rsplit_once(')').unwrap();
            let arguments = arguments.split("\n").flat_map(top_level).filter(|part| !part.trim().is_empty());
            let arguments = arguments
                .map(|argument| {
                    let (name, kind) = argument.split_once(':').unwrap();
                    (c_type(kind.trim()), name.trim().to_owned())
                })
                .collect();
            let result = result.trim().strip_prefix("-> ").map_or("void".to_owned(), c_type);
            all.insert(name.to_owned(), (result, arguments));
        }
    }
    all
}

/// Parts between commas that are not in brackets.
fn top_level(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut depth = 0;
    for letter in text.chars() {
        match letter {
            '<' => depth += 1,
            '>' => depth -= 1,
            _ => {}
        }
        if letter == ',' && depth == 0 {
            parts.push(String::new());
        } else {
            parts.last_mut().unwrap().push(letter);
        }
    }
    parts
}

fn c_type(rust: &str) -> String {
    let structure = |name: &str| {
        format!(
            "struct {}",
            match name {
                "Volume" => "ringfort_volume",
                "File" => "ringfort_file",
                "ReadDirectory" => "ringfort_directory",
                "Time" => Time::STRUCTURE.0,
                "FileAttributes" => FileAttributes::STRUCTURE.0,
                "Change" => Change::STRUCTURE.0,
                "Entry" => Entry::STRUCTURE.0,
                "Fill" => Fill::STRUCTURE.0,
                "Lock" => Lock::STRUCTURE.0,
                "ConnectOptions" => ConnectOptions::STRUCTURE.0,
                "Vector<'_>" => Vector::STRUCTURE.0,
                "BatchCommand<'_>" => BatchCommand::STRUCTURE.0,
                other => panic!("{other} is nothing that C knows"),
            }
        )
    };
    let within = |start: &str, end: &str| rust.strip_prefix(start).and_then(|rest| rest.strip_suffix(end));
    match rust {
        "c_int" => "int".to_owned(),
        "i64" => "int64_t".to_owned(),
        "u32" => "uint32_t".to_owned(),
        "u64" => "uint64_t".to_owned(),
        "usize" => "size_t".to_owned(),
        "*const c_char" | "Text<'_>" => "const char *".to_owned(),
        "Bytes<'_>" => "const void *".to_owned(),
        "Buffer<'_>" => "void *".to_owned(),
        "At<'_>" => "const struct ringfort_file *".to_owned(),
        _ => {
            if let Some(name) = within("Out<'_, Box<", ">>") {
                format!("{} **", structure(name))
            } else if let Some(name) = within("Option<Box<", ">>").or(within("Option<&mut ", ">")) {
                format!("{} *", structure(name))
            } else if let Some(name) = within("Out<'_, ", ">").or(within("List<'_, ", ">")) {
                format!("{} *", structure(name))
            } else if let Some(name) = within("Option<&", ">").or(within("ReadList<'_, ", ">")) {
                format!("const {} *", structure(name))
            } else {
                structure(rust)
            }
        }
    }
}

#[test]
fn functions_are_declared_as_they_are() {
    let mut declared = declared();
    // Text is filled as bytes are.
    for (_, arguments) in declared.values_mut() {
        for (kind, name) in arguments {
            if kind == "char *" && name == "buffer" {
                *kind = "void *".to_owned();
            }
        }
    }
    let exported = exported();
    assert!(exported.len() > 30, "the reader of sources finds {}", exported.len());
    for (name, function) in &exported {
        assert_eq!(declared.get(name), Some(function), "{name}");
    }
    assert_eq!(declared.keys().collect::<Vec<_>>(), exported.keys().collect::<Vec<_>>());
}

#[test]
fn numbers_are_defined_as_they_are() {
    let header = header();
    let defined: BTreeMap<&str, u32> = header
        .lines()
        .filter_map(|line| {
            let (name, value) = line.strip_prefix("#define ")?.split_once(' ')?;
            Some((name, value.trim().strip_suffix('u')?.parse().unwrap()))
        })
        .collect();
    assert_eq!(defined, CONSTANTS.iter().copied().collect());
    let version = format!("#define RINGFORT_VERSION \"{}\"", env!("CARGO_PKG_VERSION"));
    assert!(header.contains(&version), "the header has another version than the package");
    let package = include_str!("../ringfort.pc");
    assert!(package.contains(&format!("\nVersion: {}\n", env!("CARGO_PKG_VERSION"))));
}

/// Size and alignment of a field in C, and what it is called in the code.
fn field(kind: &str, name: &str, sizes: &BTreeMap<String, usize>) -> (usize, usize, String) {
    match kind {
        "uint32_t" => (4, 4, "u32".to_owned()),
        "uint64_t" => (8, 8, "u64".to_owned()),
        "int64_t" => (8, 8, "i64".to_owned()),
        "size_t" => (8, 8, "usize".to_owned()),
        "const char *" => (8, 8, "Text".to_owned()),
        "void *" => (8, 8, "Memory".to_owned()),
        "const struct ringfort_file *" => (8, 8, "At".to_owned()),
        "char" => (256, 1, "[c_char; NAME_BYTES]".to_owned()),
        "struct ringfort_time" => (sizes["ringfort_time"], 8, "Time".to_owned()),
        "struct ringfort_attributes" => (sizes["ringfort_attributes"], 8, "FileAttributes".to_owned()),
        other => panic!("a field {name} of type {other}"),
    }
}

#[test]
fn structures_lie_in_memory_as_they_are_declared() {
    let header = header();
    let mut sizes = BTreeMap::new();
    for (name, fields, size) in [
        Time::STRUCTURE,
        FileAttributes::STRUCTURE,
        Change::STRUCTURE,
        Entry::STRUCTURE,
        Fill::STRUCTURE,
        Lock::STRUCTURE,
        BatchCommand::STRUCTURE,
        Vector::STRUCTURE,
        ConnectOptions::STRUCTURE,
    ] {
        let (_, rest) = header.split_once(&format!("struct {name} {{")).unwrap();
        let (body, _) = rest.split_once('}').unwrap();
        let mut end: usize = 0;
        let mut found = Vec::new();
        for item in body.split(';').map(str::trim).filter(|item| !item.is_empty()) {
            let (kind, name) = c_item(item.strip_suffix("[256]").unwrap_or(item));
            let (len_bytes, align_bytes, rust) = field(&kind, &name, &sizes);
            let start = end.next_multiple_of(align_bytes);
            assert_eq!(start, end, "{name} has padding before it");
            end = start + len_bytes;
            found.push((name, rust, start));
        }
        let expected: Vec<_> =
            fields.iter().map(|(name, rust, at)| ((*name).to_owned(), (*rust).to_owned(), *at)).collect();
        assert_eq!((found, end), (expected, size), "{name}");
        sizes.insert(name.to_owned(), size);
    }
    let declared = header.lines().filter(|line| line.starts_with("struct ") && line.ends_with('{')).count();
    assert_eq!(declared, sizes.len(), "a structure that is not compared");
}

//! House rules that a machine can check. Each test names the rule; each exception carries its reason.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Crates lowest first. A crate may depend on those above it in this list, where `may_use` does not say less.
const CRATES: &[Crate] = &[
    Crate { package: "ringfort-protocol", folder: "protocol", may_use: Some(&[]) },
    Crate { package: "ringfort-ring-trial", folder: "protocol/trial", may_use: Some(&["ringfort-protocol"]) },
    Crate { package: "ringfort-engine", folder: "host-server/engine", may_use: Some(&[]) },
    Crate { package: "ringfort-store", folder: "host-server/store", may_use: None },
    // What the real one is compared with shares nothing with it.
    Crate { package: "ringfort-reference", folder: "host-server/filesystem/reference", may_use: Some(&[]) },
    Crate { package: "ringfort-filesystem", folder: "host-server/filesystem", may_use: None },
    Crate { package: "ringfort-frontend", folder: "host-server/frontend", may_use: None },
    Crate { package: "ringfort", folder: "host-server", may_use: None },
    // The guest knows the host by the bytes they share, and by nothing else.
    Crate { package: "ringfort-guest", folder: "guest-driver", may_use: Some(&["ringfort-protocol"]) },
    Crate { package: "ringfort-capi", folder: "guest-driver/capi", may_use: Some(&["ringfort-guest"]) },
    Crate { package: "ringfort-rf", folder: "guest-driver/cli", may_use: Some(&["ringfort-guest"]) },
    Crate {
        package: "ringfort-guestd",
        folder: "guest-driver/daemon",
        may_use: Some(&["ringfort-guest", "ringfort-protocol"]),
    },
    Crate {
        package: "ringfort-channel-trial",
        folder: "guest-driver/trial",
        may_use: Some(&["ringfort-guest", "ringfort-protocol", "ringfort-reference"]),
    },
    // Black box: it runs binaries.
    Crate { package: "ringfort-qemu-tests", folder: "qemu-tests", may_use: Some(&[]) },
    Crate { package: "ringfort-measure", folder: "host-server/measure", may_use: None },
];

struct Crate {
    package: &'static str,
    folder: &'static str,
    may_use: Option<&'static [&'static str]>,
}

/// Files that may hold unsafe code, and what for.
const UNSAFE_FILES: &[(&str, &str)] = &[
    ("host-server/engine/src/buffer/mod.rs", "block-aligned memory"),
    ("host-server/engine/src/buffer/arena.rs", "memory that an I/O ring knows"),
    ("host-server/engine/src/buffer/heap.rs", "long buffers that are used again"),
    ("host-server/engine/src/buffer/pages.rs", "memory in huge pages"),
    ("host-server/engine/src/memory.rs", "memory that outlives the process"),
    ("host-server/engine/src/local/uring.rs", "memory lent to the kernel"),
    ("host-server/engine/src/local/threads.rs", "memory lent to the pool's threads"),
    ("host-server/engine/src/local/mapping.rs", "mapped memory files"),
    ("host-server/frontend/src/channel/extents.rs", "memory of guests"),
    ("host-server/frontend/src/channel/peer.rs", "asks the kernel for the groups of a peer"),
    ("host-server/frontend/src/channel/region.rs", "memory of clients on this host"),
    ("guest-driver/daemon/src/pages.rs", "memory that the server maps as well, pinned"),
    ("guest-driver/daemon/src/peer.rs", "asks the kernel for the groups of a peer"),
    ("guest-driver/capi/src/batch.rs", "names that C finds"),
    ("guest-driver/capi/src/boundary.rs", "strings, buffers and names of C"),
    ("guest-driver/capi/src/directory.rs", "names that C finds"),
    ("guest-driver/capi/src/file.rs", "names that C finds"),
    ("guest-driver/capi/src/volume.rs", "names that C finds"),
    ("guest-driver/trial/src/forks.rs", "a child that is forked"),
    ("guest-driver/src/memory.rs", "memory that the server maps as well"),
    ("host-server/measure/src/isal.rs", "calls a rival's C functions"),
    ("host-server/store/src/format/crc32c.rs", "processor instructions for checksums"),
    ("host-server/store/src/object/galois.rs", "processor instructions for field arithmetic"),
    ("protocol/src/ring/memory.rs", "memory that another process or machine writes"),
    ("protocol/trial/src/pages.rs", "pages that a guest and its host share"),
    ("qemu-tests/src/tsc.rs", "reads the time-stamp counter"),
    ("qemu-tests/src/bin/ringfort-guest-agent/flip.rs", "a write's buffer that another thread changes"),
    ("qemu-tests/src/bin/ringfort-guest-agent/map.rs", "files through memory maps"),
];

/// Folders and files in which layouts of bytes may be defined.
const LAYOUT_ROOMS: &[(&str, &str)] = &[
    ("protocol/src/", "what guest and host share"),
    ("host-server/store/src/format/", "what is persisted"),
    ("host-server/frontend/src/virtiofs/abi.rs", "the FUSE ABI, which Linux defines"),
];

/// Folders of golden bytes: frozen layouts that tests compare with.
const GOLDEN_FOLDERS: &[&str] = &["protocol/tests/golden", "host-server/store/tests/fixtures"];

const LINES_MAX: usize = 800;

const FORBIDDEN_MODULE_NAMES: &[&str] = &["util", "utils", "common", "helper", "helpers", "misc"];

/// Ways to the outside world that only the engine may take, so that a simulation is a function of its seed.
const OUTSIDE_WORLD: &[&str] = &[
    "std::fs",
    "std::thread",
    "std::net",
    "std::env",
    "Instant::now",
    "SystemTime",
    "RandomState",
    "tokio::",
];
const DETERMINISTIC: &[&str] = &["host-server/store/src/", "host-server/filesystem/src/"];

/// The only place where failures become Linux error numbers.
const ERRNO_FILE: &str = "host-server/filesystem/src/errno.rs";

#[test]
fn crates_depend_only_on_lower_crates() {
    let mut faults = Vec::new();
    for (index, member) in CRATES.iter().enumerate() {
        let manifest = root().join(member.folder).join("Cargo.toml");
        let text = fs::read_to_string(&manifest).unwrap();
        let manifest: toml::Table = toml::from_str(&text).unwrap();
        assert_eq!(manifest["package"]["name"].as_str(), Some(member.package));
        let lower: Vec<_> = CRATES[..index].iter().map(|lower| lower.package).collect();
        let allowed = member.may_use.unwrap_or(&lower);
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(dependencies) = manifest.get(section).and_then(|section| section.as_table()) else {
                continue;
            };
            for name in dependencies.keys().filter(|name| name.starts_with("ringfort")) {
                if !allowed.contains(&name.as_str()) {
                    faults.push(format!("{} may not depend on {name}", member.package));
                }
            }
        }
    }
    report(faults);
}

#[test]
fn every_crate_of_the_workspace_has_its_place_in_the_order() {
    let text = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let manifest: toml::Table = toml::from_str(&text).unwrap();
    let members = manifest["workspace"]["members"].as_array().unwrap();
    let members: BTreeSet<_> = members.iter().filter_map(|member| member.as_str()).collect();
    assert_eq!(members, CRATES.iter().map(|member| member.folder).collect());
}

#[test]
fn modules_import_only_from_modules_listed_before_them() {
    let mut faults = Vec::new();
    for member in CRATES {
        for root_file in ["lib.rs", "main.rs"] {
            let folder = root().join(member.folder).join("src");
            if let Ok(text) = fs::read_to_string(folder.join(root_file)) {
                check_module_order(member, &folder, &text, &mut faults);
            }
        }
    }
    report(faults);
}

fn check_module_order(member: &Crate, folder: &Path, crate_root: &str, faults: &mut Vec<String>) {
    let declared: BTreeSet<_> = declared_modules(crate_root).into_iter().collect();
    if declared.is_empty() {
        return;
    }
    let order = listed_modules(crate_root);
    if order.iter().cloned().collect::<BTreeSet<_>>() != declared {
        let declared = declared.into_iter().collect::<Vec<_>>().join("`, `");
        faults.push(format!(
            "{}: the crate documentation must list `{declared}` after \"Modules, lowest first:\"; it lists `{}`",
            member.folder,
            order.join("`, `"),
        ));
        return;
    }
    let rank = |module: &str| order.iter().position(|listed| listed == module);
    for file in rust_files(folder) {
        let inside = file.strip_prefix(folder).unwrap();
        let first = inside.components().next().unwrap().as_os_str().to_string_lossy();
        let module = first.trim_end_matches(".rs");
        let Some(own_rank) = rank(module) else { continue };
        if is_test_file(inside) {
            continue;
        }
        for import in crate_paths(&without_tests(&code_of(&fs::read_to_string(&file).unwrap()))) {
            if rank(&import).is_some_and(|rank| rank > own_rank) {
                let import = format!("{} imports crate::{import}, which stands above it", shown(&file));
                faults.push(import);
            }
        }
    }
}

#[test]
fn unsafe_code_is_confined_to_the_files_that_name_a_reason() {
    let mut faults = Vec::new();
    for file in sources() {
        let listed = UNSAFE_FILES.iter().any(|(path, _)| *path == shown(&file));
        let uses = words(&code_of(&fs::read_to_string(&file).unwrap())).any(|word| word == "unsafe");
        match (uses, listed) {
            (true, false) => faults.push(format!("{} uses unsafe and is not listed", shown(&file))),
            (false, true) => faults.push(format!("{} is listed and needs no unsafe", shown(&file))),
            _ => {}
        }
    }
    for (path, _) in UNSAFE_FILES {
        if !root().join(path).is_file() {
            faults.push(format!("{path} is listed and does not exist"));
        }
    }
    for member in CRATES {
        for root_file in ["lib.rs", "main.rs"] {
            let path = root().join(member.folder).join("src").join(root_file);
            let Ok(text) = fs::read_to_string(&path) else { continue };
            if !text.contains("#![forbid(unsafe_code)]") && !text.contains("#![deny(unsafe_code)]") {
                faults.push(format!("{} neither forbids nor denies unsafe_code", shown(&path)));
            }
        }
    }
    report(faults);
}

#[test]
fn no_module_is_a_drawer_for_odds_and_ends() {
    let names = |path: &PathBuf| -> Vec<String> {
        let inside = shown(path);
        inside.split('/').map(|part| part.trim_end_matches(".rs").to_owned()).collect()
    };
    let drawer =
        |path: &PathBuf| names(path).iter().any(|name| FORBIDDEN_MODULE_NAMES.contains(&name.as_str()));
    report(sources().iter().filter(|path| drawer(path)).map(|path| shown(path)).collect());
}

#[test]
fn no_file_is_longer_than_a_reader_can_hold() {
    let mut faults = Vec::new();
    for file in sources() {
        let lines = fs::read_to_string(&file).unwrap().lines().count();
        if lines > LINES_MAX {
            faults.push(format!("{} has {lines} lines; more than {LINES_MAX} are two files", shown(&file)));
        }
    }
    report(faults);
}

#[test]
fn layouts_of_bytes_are_defined_only_in_their_rooms() {
    let mut faults = Vec::new();
    for file in sources() {
        let path = shown(&file);
        if LAYOUT_ROOMS.iter().any(|(room, _)| path.starts_with(room)) {
            continue;
        }
        let code = code_of(&fs::read_to_string(&file).unwrap());
        let mut derives = code.split("derive(").skip(1).filter_map(|rest| rest.split_once(')'));
        if derives.any(|(list, _)| words(list).any(|word| word == "FromBytes" || word == "IntoBytes")) {
            faults.push(format!("{path} derives a layout of bytes"));
        }
    }
    report(faults);
}

#[test]
fn golden_bytes_exist_and_are_compared_with() {
    let mut faults = Vec::new();
    for folder in GOLDEN_FOLDERS {
        let package = folder.split("/tests/").next().unwrap();
        let tests: Vec<_> = rust_files(&root().join(package).join("src"))
            .into_iter()
            .chain(rust_files(&root().join(package).join("tests")))
            .map(|file| fs::read_to_string(file).unwrap())
            .collect();
        let files: Vec<_> =
            fs::read_dir(root().join(folder)).into_iter().flatten().map(|entry| entry.unwrap()).collect();
        if files.is_empty() {
            faults.push(format!("{folder} holds no golden files"));
        }
        for file in files {
            let name = file.file_name().to_string_lossy().into_owned();
            if !tests.iter().any(|text| text.contains(&name)) {
                faults.push(format!("{folder}/{name} is compared with by no test of {package}"));
            }
        }
    }
    report(faults);
}

#[test]
fn store_and_filesystem_reach_the_outside_world_through_the_engine_only() {
    let mut faults = Vec::new();
    for file in sources() {
        let path = shown(&file);
        if !DETERMINISTIC.iter().any(|room| path.starts_with(room)) || is_test_file(&file) {
            continue;
        }
        let code = without_tests(&code_of(&fs::read_to_string(&file).unwrap()));
        for way in OUTSIDE_WORLD.iter().filter(|way| code.contains(**way)) {
            faults.push(format!("{path} uses {way}"));
        }
    }
    report(faults);
}

#[test]
fn failures_become_linux_error_numbers_in_one_file() {
    let mut faults = Vec::new();
    for room in ["host-server/store/src", "host-server/filesystem/src", "host-server/frontend/src"] {
        for file in rust_files(&root().join(room)) {
            if shown(&file) == ERRNO_FILE || is_test_file(&file) {
                continue;
            }
            let code = without_tests(&code_of(&fs::read_to_string(&file).unwrap()));
            if code.split("libc::E").skip(1).any(|rest| rest.starts_with(|c: char| c.is_ascii_uppercase())) {
                faults.push(format!("{} names Linux error numbers", shown(&file)));
            }
        }
    }
    report(faults);
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// A path as the lists in this file write it.
fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).to_string_lossy().into_owned()
}

fn report(faults: Vec<String>) {
    assert!(faults.is_empty(), "\n  {}\n", faults.join("\n  "));
}

/// Every Rust file of the workspace.
fn sources() -> Vec<PathBuf> {
    let mut files: Vec<_> = CRATES
        .iter()
        .flat_map(|member| {
            ["src", "tests", "benches", "fuzz", "guest"].map(|part| root().join(member.folder).join(part))
        })
        .flat_map(|folder| rust_files(&folder))
        .collect();
    files.sort();
    assert!(files.len() > 30, "the workspace moved: only {} files found", files.len());
    files
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

fn is_test_file(path: &Path) -> bool {
    path.components().any(|part| matches!(part.as_os_str().to_str(), Some("tests" | "tests.rs")))
}

/// Everything before the first test module, which by custom ends a file.
fn without_tests(code: &str) -> String {
    code.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned()
}

fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c: char| !c.is_alphanumeric() && c != '_')
}

/// `mod name;` items of a crate root, test modules left out.
fn declared_modules(text: &str) -> Vec<String> {
    let code = code_of(text);
    let mut modules = Vec::new();
    let mut test_only = false;
    for line in code.lines().map(str::trim) {
        if line.starts_with("#[") {
            test_only |= line.starts_with("#[cfg(test)]");
            continue;
        }
        let item = line.strip_prefix("pub(crate) ").or(line.strip_prefix("pub ")).unwrap_or(line);
        if let Some(name) = item.strip_prefix("mod ").and_then(|rest| rest.strip_suffix(';'))
            && !test_only
        {
            modules.push(name.to_owned());
        }
        test_only = false;
    }
    modules
}

/// The names in backticks after "Modules, lowest first:" in the crate documentation, to the end of the paragraph. Of a
/// list, each item's first: the rest explains.
fn listed_modules(text: &str) -> Vec<String> {
    let documentation = text.lines().filter_map(|line| line.strip_prefix("//!"));
    documentation
        .skip_while(|line| !line.contains("Modules, lowest first:"))
        .take_while(|line| !line.trim().is_empty())
        .flat_map(|line| {
            let names = line.split('`').skip(1).step_by(2).map(str::to_owned);
            let count = if line.trim_start().starts_with("* ") { 1 } else { usize::MAX };
            names.take(count).collect::<Vec<_>>()
        })
        .collect()
}

/// The modules that `crate::` paths begin with, groups (`crate::{a::b, c}`) included.
fn crate_paths(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (start, _) in code.match_indices("crate::") {
        if code[..start].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &code[start + "crate::".len()..];
        let Some(group) = rest.strip_prefix('{') else {
            found.extend(words(rest).next().map(str::to_owned));
            continue;
        };
        let mut depth = 1;
        let mut at_start = true;
        for (offset, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 1 => at_start = true,
                c if c.is_alphabetic() && at_start => {
                    found.extend(words(&group[offset..]).next().map(str::to_owned));
                    at_start = false;
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    found
}

/// The text without comments and without what strings hold.
fn code_of(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if rest.starts_with("r\"")
            || rest.starts_with("r#") && rest[1..].trim_start_matches('#').starts_with('"')
        {
            let hashes = rest[1..].len() - rest[1..].trim_start_matches('#').len();
            let end = format!("\"{}", "#".repeat(hashes));
            let body = 2 + hashes;
            rest[body..].find(&end).map_or(rest.len(), |at| body + at + end.len())
        } else if first == '"' {
            string_end(rest, '"')
        } else if rest.starts_with("'\\") || first == '\'' && rest.chars().nth(2) == Some('\'') {
            string_end(rest, '\'')
        } else {
            0
        };
        if skipped == 0 {
            code.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            rest = &rest[skipped..];
        }
    }
    code
}

/// Length of a literal that begins and ends with `quote`.
fn string_end(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (offset, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return offset + c.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

#[test]
fn the_reader_of_sources_sees_code_only() {
    let text = "let a = \"unsafe \\\" unsafe\"; // unsafe\nlet b = r#\"unsafe \" \"#; /* unsafe */ let c = '\"'; fn d<'a>() {}";
    assert!(!words(&code_of(text)).any(|word| word == "unsafe"));
    assert!(code_of(text).contains("fn d<'a>() {}"));
    let paths = crate_paths("use crate::{a::{b, c}, d};\nuse crate::e::f; $crate::g::h");
    assert_eq!(paths.into_iter().collect::<Vec<_>>(), ["a", "d", "e"]);
    assert_eq!(declared_modules("pub mod a;\n#[cfg(test)]\nmod t;\nmod b;\n"), ["a", "b"]);
}

//! What the command line takes, and what it tells.

use crate::scene::{contains_all, refused, succeeds};

#[test]
fn wrong_flags_are_refused_with_the_right_form() {
    contains_all(&refused(&["volume", "create", "x"]), &["--size"]);
    contains_all(&refused(&["volume", "create", "x", "--size", "8GiG"]), &["GiG", "GiB"]);
    contains_all(&refused(&["volume", "create", "x", "--size", "8GiB", "--data", "4"]), &["K+M"]);
    contains_all(&refused(&["volume", "create", "x", "--size", "8GiB", "--data", "20+2"]), &["1 to 16"]);
    contains_all(&refused(&["serve", "x"]), &["--virtiofs"]);
    contains_all(
        &refused(&["serve", "x", "--virtiofs", "s", "--cache", "some"]),
        &["never", "auto", "always"],
    );
    contains_all(&refused(&["serve", "x", "--virtiofs", "s", "--commit-interval-ms", "0"]), &["60000"]);
    contains_all(&refused(&["volume", "melt", "x"]), &["melt"]);
    contains_all(&refused(&["volume", "status", "/nonexistent"]), &["no volume", "volume create"]);
}

#[test]
fn every_command_shows_examples_and_exit_codes() {
    let commands: [&[&str]; 11] = [
        &[],
        &["serve"],
        &["completions"],
        &["manual"],
        &["volume", "create"],
        &["volume", "status"],
        &["volume", "check"],
        &["volume", "export"],
        &["volume", "list"],
        &["volume", "grow"],
        &["volume", "replace"],
    ];
    for command in commands {
        let help = succeeds(&[command, &["--help"]].concat());
        contains_all(&help, &["Examples:", "Exit codes:"]);
    }
}

#[test]
fn shells_and_readers_of_manuals_get_theirs() {
    for shell in ["bash", "zsh", "fish"] {
        contains_all(&succeeds(&["completions", shell]), &["ringfort", "print-config"]);
    }
    contains_all(&refused(&["completions", "csh"]), &["bash"]);
    let directory = tempfile::tempdir().unwrap();
    let pages = directory.path().join("man1");
    succeeds(&["manual", pages.to_str().unwrap()]);
    let page = std::fs::read_to_string(pages.join("ringfort-volume-create.1")).unwrap();
    contains_all(&page, &["Examples:", "metadata"]);
}

//! `rf` with a server, as people use both.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::scene::{
    PATIENCE, Server, Volume, contains_all, refused, serve_command, succeeds, text, workspace_program,
};

/// A volume that is served to programs of this host.
struct Scene {
    volume: Volume,
    _server: Server,
}

impl Scene {
    fn new() -> Self {
        let volume = Volume::create(&[]);
        let channel = format!("unix:{}", volume.socket("channel").display());
        let server = Server::start(serve_command(&[volume.path(), "--channel", &channel]));
        Self { volume, _server: server }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(workspace_program("ringfort-rf", "rf"));
        let channel = format!("unix:{}", self.volume.socket("channel").display());
        command.args(arguments).env("RINGFORT_CONNECT", channel);
        command
    }

    fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn rf(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output.stdout));
        text(&output.stderr)
    }

    fn folder(&self) -> &Path {
        self.volume.root.path()
    }
}

/// Names, permissions and contents of all that is in a directory, in order.
fn tree(directory: &Path) -> Vec<(String, u32, Vec<u8>)> {
    let mut all = Vec::new();
    let mut names: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    for path in names {
        let found = fs::symlink_metadata(&path).unwrap();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let permissions = found.permissions().mode() & 0o7777;
        if found.is_symlink() {
            all.push((name, 0, fs::read_link(&path).unwrap().to_string_lossy().into_owned().into_bytes()));
        } else if found.is_dir() {
            all.push((name, permissions, Vec::new()));
            all.extend(tree(&path));
        } else {
            all.push((name, permissions, fs::read(&path).unwrap()));
        }
    }
    all
}

#[test]
fn a_tree_goes_into_a_volume_is_copied_and_comes_back() {
    let scene = Scene::new();
    let source = scene.folder().join("source");
    fs::create_dir_all(source.join("deep/er/empty")).unwrap();
    fs::write(source.join("deep/large"), vec![0x5a; 3_000_001]).unwrap();
    fs::write(source.join("deep/er/program"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(source.join("deep/er/program"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(source.join("none"), "").unwrap();
    symlink("../none", source.join("deep/link")).unwrap();
    symlink("nowhere", source.join("broken")).unwrap();
    let expected = tree(&source);

    let source_path = source.to_str().unwrap();
    contains_all(&scene.refused(&["put", source_path, "/"]), &["is a directory", "-r"]);
    scene.rf(&["put", "-r", source_path, "/"]);
    assert_eq!(scene.rf(&["ls", "/source"]), "broken\ndeep\nnone\n");
    scene.rf(&["cp", "-r", "/source", "/copy"]);
    for name in ["source", "copy"] {
        let back = scene.folder().join(format!("back-{name}"));
        scene.rf(&["get", "-r", &format!("/{name}"), back.to_str().unwrap()]);
        assert!(tree(&back) == expected, "{name}");
    }
    // Once more, over what is there.
    scene.rf(&["put", "-r", source_path, "/"]);
    contains_all(&scene.refused(&["cp", "-r", "/source", "/source/deep/self"]), &["into itself"]);
    scene.rf(&["rm", "-r", "/source", "/copy"]);
    assert_eq!(scene.rf(&["ls"]), "");
    contains_all(&scene.refused(&["rm", "-r", "/"]), &["not removed"]);
}

#[test]
fn times_and_permissions_are_kept_where_asked() {
    let scene = Scene::new();
    let file = scene.folder().join("file");
    fs::write(&file, "text").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o4751)).unwrap();
    let time = std::time::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    fs::File::options().write(true).open(&file).unwrap().set_modified(time).unwrap();
    scene.rf(&["put", "-p", file.to_str().unwrap(), "/kept"]);
    scene.rf(&["put", file.to_str().unwrap(), "/plain"]);
    let stat = |path: &str| -> Value { serde_json::from_str(&scene.rf(&["stat", "--json", path])).unwrap() };
    let kept = stat("/kept");
    assert_eq!(
        (kept["permissions"].as_str(), kept["modified_s"].as_i64()),
        (Some("4751"), Some(1_000_000_000))
    );
    assert_eq!(kept["modified_ns"], 123_456_789);
    assert_eq!(stat("/plain")["permissions"].as_str().unwrap().chars().next(), Some('0'), "no set-id bits");
    contains_all(&scene.rf(&["ls", "-l", "/kept"]), &["2001-09-09 01:46:40 /kept"]);
    let back = scene.folder().join("back");
    scene.rf(&["get", "-p", "/kept", back.to_str().unwrap()]);
    let found = fs::metadata(&back).unwrap();
    assert_eq!((found.permissions().mode() & 0o7777, found.modified().unwrap()), (0o4751, time));
}

#[test]
fn a_put_that_is_killed_leaves_what_was_there() {
    let scene = Scene::new();
    scene.rf(&["mkdir", "/d"]);
    let put = |name: &str| scene.command(&["put", "-", name]).stdin(Stdio::piped()).spawn().unwrap();
    let mut first = put("/d/old");
    first.stdin.take().unwrap().write_all(b"old").unwrap();
    assert!(first.wait().unwrap().success());
    for name in ["/d/old", "/d/new"] {
        let free = || -> i64 {
            let free: Value = serde_json::from_str(&scene.rf(&["df", "--json"])).unwrap();
            free["free_bytes"].as_i64().unwrap()
        };
        let before = free();
        let mut killed = put(name);
        let mut input = killed.stdin.take().unwrap();
        input.write_all(&vec![7; 4 << 20]).unwrap();
        // Some of it is in the volume, and more would come.
        let began = Instant::now();
        while before - free() < 1 << 20 {
            assert!(began.elapsed() < PATIENCE, "nothing arrives");
            thread::sleep(Duration::from_millis(10));
        }
        killed.kill().unwrap();
        killed.wait().unwrap();
        drop(input);
        assert_eq!(scene.rf(&["ls", "/d"]), "old\n");
        assert_eq!(scene.rf(&["cat", "/d/old"]), "old");
    }
}

#[test]
fn files_are_named_shown_and_changed() {
    let scene = Scene::new();
    scene.rf(&["mkdir", "-p", "/a/b/c", "/a/b"]);
    contains_all(&scene.refused(&["mkdir", "/a"]), &["make directory /a", "File exists"]);
    scene.rf(&["touch", "/a/one", "/a/two"]);
    scene.rf(&["chmod", "640", "/a/one"]);
    scene.rf(&["chmod", "-R", "go-rwx,u+x", "/a"]);
    assert!(scene.rf(&["ls", "-l", "/a/one"]).starts_with("-0700 "));
    scene.rf(&["ln", "/a/one", "/a/b"]);
    scene.rf(&["ln", "-s", "../one", "/a/b/link"]);
    let found: Value = serde_json::from_str(&scene.rf(&["ls", "--json", "/a/b"])).unwrap();
    let kinds: Vec<_> =
        found.as_array().unwrap().iter().map(|entry| entry["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["Directory", "Symlink", "Regular"]);
    assert_eq!(found[2]["link_count"], 2);
    scene.rf(&["mv", "/a/one", "/a/two", "/a/b/c"]);
    contains_all(&scene.refused(&["mv", "-n", "/a/b/c/one", "/a/b/one"]), &["File exists"]);
    scene.rf(&["mv", "/a/b/c", "/top"]);
    assert_eq!(scene.rf(&["ls", "/top", "/a"]), "/top:\none\ntwo\n/a:\nb\n");
    let numbers = fs::metadata(scene.folder()).map(|found| {
        use std::os::unix::fs::MetadataExt;
        format!("{}:{}", found.uid(), found.gid())
    });
    scene.rf(&["chown", "-R", &numbers.unwrap(), "/a"]);
    contains_all(&scene.refused(&["rm", "/a"]), &["remove /a", "Is a directory"]);
    contains_all(&scene.refused(&["rm", "-d", "/a"]), &["not empty"]);
    scene.rf(&["rm", "-rf", "/a", "/none"]);
    contains_all(&scene.rf(&["df"]), &["MiB", "inodes free"]);
    scene.rf(&["sync"]);
}

#[test]
fn streams_go_both_ways() {
    let scene = Scene::new();
    let mut put = scene.command(&["put", "-", "/stream"]).stdin(Stdio::piped()).spawn().unwrap();
    let data: Vec<u8> = (0..2_500_000u32).map(|index| (index % 253) as u8).collect();
    put.stdin.take().unwrap().write_all(&data).unwrap();
    assert!(put.wait().unwrap().success());
    assert!(scene.output(&["get", "/stream", "-"]).stdout == data);
    assert!(scene.output(&["cat", "/stream", "/stream"]).stdout == [&data[..], &data[..]].concat());
    contains_all(&scene.refused(&["put", "-", "/"]), &["say what the file is to be called"]);
    contains_all(&scene.refused(&["get", "/none", "-"]), &["open /none", "No such file"]);
    let listed = scene.rf(&["bench", "--calls", "100", "--json"]);
    let figures: Value = serde_json::from_str(&listed).unwrap();
    assert!(figures["nop_ns_p50"].as_u64().unwrap() > 0);
    assert_eq!(scene.rf(&["ls"]), "stream\n", "a measurement leaves nothing");
}

#[test]
fn who_finds_no_server_is_told_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let address = format!("unix:{}", folder.path().join("none").display());
    let output = Command::new(workspace_program("ringfort-rf", "rf"))
        .args(["--connect", &address, "ls"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    contains_all(&text(&output.stderr), &["none", "`ringfort serve`", "ringfort-guestd"]);
}

#[test]
fn a_checkpoint_brings_what_the_log_holds_to_its_place_and_needs_a_server() {
    let scene = Scene::new();
    let file = scene.folder().join("file");
    fs::write(&file, [7; 40_000]).unwrap();
    scene.rf(&["put", file.to_str().unwrap(), "/"]);
    scene.rf(&["sync"]);
    let before = scene.volume.status();
    assert!(before["log"]["bank_bytes"].as_u64().unwrap() >= 40_000, "{before}");
    succeeds(&["volume", "checkpoint", scene.volume.path()]);
    let after = scene.volume.status();
    assert_eq!(after["log"]["bank_bytes"], 0);
    assert!(after["log"]["used_bytes"].as_u64() < before["log"]["used_bytes"].as_u64(), "{before} {after}");
    assert!(after["counters"]["stripe_bytes"].as_u64().unwrap() >= 40_000, "{after}");
    let Scene { volume, _server } = scene;
    drop(_server);
    contains_all(&refused(&["volume", "checkpoint", volume.path()]), &["nobody serves"]);
}

//! Snapshots and clones, as whoever runs a volume makes and removes them.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::scene::{
    PATIENCE, Server, Volume, contains_all, refused, serve_command, succeeds, text, workspace_program,
};

struct Scene {
    volume: Volume,
    server: Option<Server>,
}

impl Scene {
    fn new() -> Self {
        let mut scene = Self { volume: Volume::create(&[]), server: None };
        scene.serve();
        scene
    }

    fn serve(&mut self) {
        let channel = format!("unix:{}", self.volume.socket("channel").display());
        self.server = Some(Server::start(serve_command(&[self.volume.path(), "--channel", &channel])));
    }

    fn restart(&mut self) {
        drop(self.server.take());
        self.serve();
    }

    fn rf(&self, arguments: &[&str]) -> (bool, String) {
        let mut command = Command::new(workspace_program("ringfort-rf", "rf"));
        let channel = format!("unix:{}", self.volume.socket("channel").display());
        let output = command.args(arguments).env("RINGFORT_CONNECT", channel).output().unwrap();
        (output.status.success(), text(&output.stdout) + &text(&output.stderr))
    }

    /// Puts a file with this content in the root directory.
    fn put(&self, name: &str, content: &str) {
        let file = self.volume.root.path().join(name);
        fs::write(&file, content).unwrap();
        let (done, said) = self.rf(&["put", file.to_str().unwrap(), "/"]);
        assert!(done, "{said}");
    }

    fn snapshot(&self, arguments: &[&str]) -> String {
        succeeds(&[&["snapshot", arguments[0], self.volume.path()], &arguments[1..]].concat())
    }

    fn clone(&self, arguments: &[&str]) -> String {
        succeeds(&[&["clone", arguments[0], self.volume.path()], &arguments[1..]].concat())
    }

    fn list(&self) -> Value {
        serde_json::from_str(&self.snapshot(&["list", "--json"])).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let list = self.list();
        let entries = list["snapshots"].as_array().unwrap().iter();
        entries.map(|entry| entry["name"].as_str().unwrap().to_owned()).collect()
    }
}

#[test]
fn snapshots_are_taken_seen_and_deleted_through_restarts() {
    let mut scene = Scene::new();
    scene.put("file", "before");
    scene.snapshot(&["create", "first"]);
    scene.put("file", "after it");
    scene.snapshot(&["create", "second"]);
    assert_eq!(scene.names(), ["first", "second"]);
    assert_eq!(scene.rf(&["cat", "/.ringfort/snapshots/first/file"]), (true, "before".to_owned()));
    assert_eq!(scene.rf(&["cat", "/file"]), (true, "after it".to_owned()));
    let (written, said) = scene.rf(&["rm", "/.ringfort/snapshots/first/file"]);
    assert!(!written && said.contains("Read-only"), "{said}");

    scene.restart();
    assert_eq!(scene.names(), ["first", "second"]);
    assert_eq!(scene.rf(&["cat", "/.ringfort/snapshots/first/file"]), (true, "before".to_owned()));
    contains_all(&scene.snapshot(&["list"]), &["first", "second", "20"]);

    contains_all(&refused(&["snapshot", "delete", scene.volume.path(), "first"]), &["--yes"]);
    scene.snapshot(&["delete", "first", "--yes"]);
    assert_eq!(scene.names(), ["second"]);
    assert!(!scene.rf(&["cat", "/.ringfort/snapshots/first/file"]).0);
    let since = Instant::now();
    while scene.list()["being_removed"] != 0 {
        assert!(since.elapsed() < PATIENCE, "the snapshot is never gone");
        thread::sleep(Duration::from_millis(50));
    }
    scene.restart();
    assert_eq!(scene.names(), ["second"]);
    drop(scene.server.take());
    succeeds(&["volume", "check", scene.volume.path()]);
}

#[test]
fn what_cannot_be_is_refused_in_words() {
    let scene = Scene::new();
    let path = scene.volume.path();
    scene.snapshot(&["create", "one"]);
    let long = "x".repeat(256);
    for (name, part) in
        [("one", "already"), ("", "empty"), ("a/b", "`/`"), (&long, "256 bytes"), ("..", "name")]
    {
        contains_all(&refused(&["snapshot", "create", path, name]), &["take snapshot", part]);
    }
    contains_all(&refused(&["snapshot", "delete", path, "two", "--yes"]), &["\"two\"", "no such snapshot"]);
    contains_all(&refused(&["clone", "create", path, "two", "copy"]), &["no snapshot \"two\""]);
    scene.clone(&["create", "one", "copy"]);
    contains_all(&refused(&["clone", "create", path, "one", "copy"]), &["already"]);
    contains_all(&refused(&["snapshot", "delete", path, "one", "--yes"]), &["clones stand on it: copy"]);
    contains_all(&scene.clone(&["list"]), &["copy", "of snapshot one"]);
    scene.clone(&["delete", "copy", "--yes"]);
    scene.snapshot(&["delete", "one", "--yes"]);
    assert!(scene.names().is_empty());

    let idle = Volume::create(&[]);
    contains_all(&refused(&["snapshot", "create", idle.path(), "x"]), &["nobody serves", "ringfort serve"]);
}

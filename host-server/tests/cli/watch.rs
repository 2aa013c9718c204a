//! `volume status --watch`

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::scene::{Volume, contains_all, refused};

struct Watch {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Watch {
    fn start(volume: &Volume, more: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_ringfort"))
            .args(["volume", "status", volume.path(), "--watch", "0.1"])
            .args(more)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert_ne!(self.lines.read_line(&mut line).unwrap(), 0, "the watch ended");
        line
    }

    /// The next line of which `wanted` is true.
    fn json_where(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        loop {
            let line: Value = serde_json::from_str(&self.line()).unwrap();
            if wanted(&line) {
                return line;
            }
        }
    }

    fn interrupt(mut self) {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGINT).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
    }
}

#[test]
fn rates_follow_a_served_volume_and_begin_anew_with_another_server() {
    let volume = Volume::create(&[]);
    let server = volume.serve();
    let mut watch = Watch::start(&volume, &["--json"]);
    let first = watch.json_where(|_| true);
    assert_eq!(first["rates"], Value::Null);
    assert_eq!(first["status"]["served"]["pid"], server.child.id());
    let second = watch.json_where(|line| !line["rates"].is_null());
    assert!(second["rates"]["interval_s"].as_f64().unwrap() > 0.0);
    assert_eq!(second["rates"]["requests_per_s"], 0.0);
    assert_eq!(second["rates"]["components"].as_array().unwrap().len(), 6);

    server.stop();
    watch.json_where(|line| line["status"]["served"].is_null());
    let server = volume.serve();
    let anew = watch.json_where(|line| line["status"]["served"]["pid"] == server.child.id());
    assert_eq!(anew["rates"], Value::Null);
    watch.interrupt();
    server.stop();
}

#[test]
fn without_a_terminal_each_look_is_a_line() {
    let volume = Volume::create(&[]);
    let mut watch = Watch::start(&volume, &[]);
    contains_all(&watch.line(), &["healthy", "not served", "components 6/6"]);
    watch.interrupt();
}

#[test]
fn a_reader_that_leaves_ends_the_watch() {
    let volume = Volume::create(&[]);
    let server = volume.serve();
    let mut watch = Watch::start(&volume, &[]);
    watch.line();
    let Watch { mut child, lines } = watch;
    drop(lines);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    server.stop();
}

#[test]
fn an_interval_that_makes_no_sense_is_refused() {
    for interval in ["0", "-1", "soon", "NaN", "1e9"] {
        let message = refused(&["volume", "status", "x", &format!("--watch={interval}")]);
        contains_all(&message, &["seconds"]);
    }
}

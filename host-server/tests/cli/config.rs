//! `serve --config` and `--print-config`.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use crate::scene::{Server, Volume, contains_all, refused, serve_command, succeeds};

fn write(volume: &Volume, text: &str) -> PathBuf {
    let path = volume.root.path().join("serve.toml");
    fs::write(&path, text).unwrap();
    path
}

#[test]
fn a_server_runs_by_its_file_and_flags_override_it() {
    let volume = Volume::create(&[]);
    // Relative paths follow the file.
    let path = write(
        &volume,
        "volume = \"volume\"\ncache = \"never\"\nlog_level = \"info\"\n\n[[virtiofs]]\nsocket = \"a.sock\"\n\n\
         [[virtiofs]]\nsocket = \"b.sock\"\ncache = \"always\"\nqueues = 4\n",
    );
    let path = path.to_str().unwrap();
    let caches = |status: &Value| -> Vec<String> {
        let guests = status["served"]["guests"].as_array().unwrap();
        guests.iter().map(|guest| guest["cache"].as_str().unwrap().to_owned()).collect()
    };

    let server = Server::start(serve_command(&["--config", path]));
    let status = volume.status();
    assert_eq!(caches(&status), ["never", "always"]);
    assert_eq!(status["served"]["guests"][1]["queues"], 4);
    assert_eq!(status["served"]["guests"][0]["socket"], volume.socket("a").to_str().unwrap());
    server.stop();

    let server = Server::start(serve_command(&["--config", path, "--cache", "auto"]));
    assert_eq!(caches(&volume.status()), ["auto", "auto"]);
    server.stop();
}

#[test]
fn what_is_printed_is_a_file_that_says_the_same() {
    let volume = Volume::create(&[]);
    let path = write(&volume, "volume = \"volume\"\nqueues = 2\n\n[[virtiofs]]\nsocket = \"a.sock\"\n");
    let printed = succeeds(&[
        "serve",
        "--config",
        path.to_str().unwrap(),
        "--cache",
        "never",
        "--metrics",
        "unix:/run/x \"y\".sock",
        "--print-config",
    ]);
    contains_all(
        &printed,
        &[
            "serve.toml, line 1",
            "cache = \"never\"",
            "# --cache",
            "# default",
            "volume.toml",
            "queues = 2",
            "serve.toml, line 2",
        ],
    );
    // From elsewhere, by itself, it means the same.
    let elsewhere = tempfile::tempdir().unwrap();
    let again = elsewhere.path().join("printed.toml");
    fs::write(&again, &printed).unwrap();
    let reprinted = succeeds(&["serve", "--config", again.to_str().unwrap(), "--print-config"]);
    let values = |text: &str| toml::from_str::<toml::Table>(text).unwrap();
    assert_eq!(values(&printed), values(&reprinted));
    assert!(values(&printed)["memory"].as_str().is_some());
}

#[test]
fn a_file_that_makes_no_sense_is_refused_with_line_and_advice() {
    let volume = Volume::create(&[]);
    let socket = "[[virtiofs]]\nsocket = \"a.sock\"\n";
    for (text, parts) in [
        (format!("volume = \"volume\"\ncash = \"auto\"\n{socket}"), &["line 2", "\"cash\"", "cache"][..]),
        (format!("volume = \"volume\"\noverride_membership = true\n{socket}"), &["--override-membership"]),
        (format!("volume = \"volume\"\nmetrics = \"0.0.0.0:9100\"\n{socket}"), &["line 2", "loopback"]),
        (socket.to_owned(), &["no volume is named"]),
        ("volume = \"volume\"\n".to_owned(), &["no socket", "--virtiofs", "[[virtiofs]]"]),
        (format!("volume = \"volume\"\ncache = \"never\"\nwriteback = true\n{socket}"), &["writeback"]),
    ] {
        let path = write(&volume, &text);
        let message = refused(&["serve", "--config", path.to_str().unwrap()]);
        contains_all(&message, parts);
    }
    contains_all(&refused(&["serve", "--config", "/nonexistent.toml"]), &["/nonexistent.toml"]);
}

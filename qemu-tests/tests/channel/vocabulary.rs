//! All that the channel's library can do, from a guest through vsock, by root and two users.

use std::time::Duration;

use ringfort_qemu_tests::programs::Program;
use serde_json::Value;

use crate::stage::{Daemon, LONG, SOON, Stage};

#[test]
fn root_of_a_guest_is_told_what_the_daemon_does() {
    let stage = Stage::new("channel-status");
    let nobody = stage.guest.shell("ringfort-guestd status").unwrap();
    assert!(nobody.status == 2 && nobody.stderr.contains("guestd.status"), "{nobody:?}");
    let daemon = Daemon::start(&stage.guest);
    let ask = || -> Value { serde_json::from_str(&daemon.must("ringfort-guestd status --json")).unwrap() };
    let idle = ask();
    assert_eq!((&idle["connected"], &idle["clients"]), (&Value::Bool(true), &Value::Array(vec![])));
    let client = daemon.work(LONG);
    let busy = ask();
    let clients = busy["clients"].as_array().unwrap();
    let bytes: u64 = clients.iter().map(|client| client["bytes"].as_u64().unwrap()).sum();
    assert!(!clients.is_empty() && bytes > 0 && busy["bytes"] == bytes, "{busy}");
    for client in clients {
        assert!(client["uid"] == 0 && client["rings"].as_u64() >= Some(1), "{busy}");
        assert_eq!(daemon.must(&format!("cat /proc/{}/comm", client["pid"])).trim(), "rf");
    }
    println!("{}", daemon.must("ringfort-guestd status"));
    daemon.must_not("su tests -c 'ringfort-guestd status'");
    client.kill().unwrap();
    client.finish(SOON).unwrap();
    daemon.require_all_taken_back();
    assert_eq!(ask(), idle);
    drop(daemon);
    stage.end();
}

/// Some thousand calls under emulation, on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(600);

#[test]
fn every_command_of_a_guest_does_what_the_reference_does() {
    let stage = Stage::with("channel-trial", |machine| machine.programs(&[Program::ChannelTrial]));
    let daemon = Daemon::start(&stage.guest);
    let seed = std::env::var("RINGFORT_TRIAL_SEED").unwrap_or_else(|_| "5".to_owned());
    let steps = std::env::var("RINGFORT_TRIAL_STEPS").unwrap_or_else(|_| "4000".to_owned());
    let trial = ["/bin/ringfort-channel-trial", "--seed", &seed, "--steps", &steps];
    let said = stage.guest.run(&trial, PATIENCE);
    println!("{}", said.unwrap_or_else(|error| panic!("{error:#}\ndaemon:\n{}", daemon.log())));
    daemon.require_all_taken_back();
    drop(daemon);
    stage.end();
}

//! All that the channel's library can do, at random, by several users, with a server on this host: results and errors are those of a reference.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use ringfort_qemu_tests::local::LocalServer;
use ringfort_qemu_tests::provision::{output_of, workspace_program};

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|value| value.parse().ok())
}

/// Seeds and steps each: as `RINGFORT_TRIAL_SEEDS` and `RINGFORT_TRIAL_STEPS` say, or as keeps the suite short.
#[test]
fn every_command_does_what_the_reference_does() {
    let program = workspace_program("ringfort-channel-trial", "ringfort-channel-trial").unwrap();
    let steps = setting("RINGFORT_TRIAL_STEPS").unwrap_or(4000).to_string();
    for seed in 1..=setting("RINGFORT_TRIAL_SEEDS").unwrap_or(4) {
        let server = LocalServer::start("512MiB").unwrap();
        // Where this is root, the trial connects as others, too.
        fs::set_permissions(server.folder(), Permissions::from_mode(0o711)).unwrap();
        fs::set_permissions(server.socket(), Permissions::from_mode(0o666)).unwrap();
        let mut trial = Command::new(&program);
        trial.args(["--connect", &server.address(), "--seed", &seed.to_string(), "--steps", &steps]);
        print!("seed {seed}: {}", output_of(&mut trial).unwrap());
        server.end().unwrap();
    }
}

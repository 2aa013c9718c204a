//! All that the channel's library can do, from a guest through vsock, by root and two users.

use std::time::Duration;

use ringfort_qemu_tests::programs::Program;

use crate::stage::{Daemon, Stage};

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

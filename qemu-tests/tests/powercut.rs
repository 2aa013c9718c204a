//! Power cuts on real component files under a guest's writers: what was promised is there, in every state that a cut may leave.
//!
//! `RINGFORT_POWER_CUTS=N` makes N states of each recording; `RINGFORT_POWER_CUTS_SEED=S` chooses others. A machine without
//! FUSE cannot run these: they say so and pass, and fail where `RINGFORT_POWER_CUTS_REQUIRED=1`.

use std::io::Write;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use ringfort_qemu_tests::powercut::medium::Flushes;
use ringfort_qemu_tests::powercut::recorder::unavailable;
use ringfort_qemu_tests::powercut::trial::{Plan, Recording, Tally};
use ringfort_qemu_tests::scene::Scene;

/// Small, so that the log goes round and segments are used again while the writers run.
const SIZE: &str = "192MiB";

fn setting(name: &str, otherwise: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}; give a number")),
        Err(_) => otherwise,
    }
}

fn plan(states_otherwise: u64) -> Plan {
    let states = setting("RINGFORT_POWER_CUTS", states_otherwise) as usize;
    Plan { states, seed: setting("RINGFORT_POWER_CUTS_SEED", 1), flushes: Flushes::Honoured, strict: false }
}

/// Past the test harness, which keeps what passing tests print to itself.
fn tell(text: &str) {
    static STARTED: LazyLock<Instant> = LazyLock::new(Instant::now);
    let _ = writeln!(std::io::stderr(), "power cuts ({} s): {text}", STARTED.elapsed().as_secs());
}

/// Whether the machine can run these tests.
fn ready() -> bool {
    let reason = match unavailable() {
        Ok(None) => return true,
        Ok(Some(reason)) => reason,
        Err(error) => panic!("{error:#}"),
    };
    assert!(setting("RINGFORT_POWER_CUTS_REQUIRED", 0) == 0, "power cuts could not be tested: {reason}");
    tell(&format!("NOT TESTED: {reason}"));
    false
}

fn require_sound(what: &str, tally: &Tally) {
    tell(&format!("{what}: {tally}"));
    assert!(tally.losses.is_empty() && tally.faults.is_empty(), "{what}: {tally}");
    assert!(tally.volatile_writes > 0, "{what}: no write was ever at risk: {tally}");
}

#[test]
fn what_was_synced_survives_every_power_cut() {
    if !ready() {
        return;
    }
    let scene = Scene::new("powercut", SIZE).unwrap();
    let plan = plan(24);
    let recording = Recording::of_writers(&scene, plan.seed, Duration::from_secs(8), None).unwrap();
    tell(&format!("recorded {recording}"));
    require_sound("cuts", &recording.try_states(plan).unwrap());
    let recoveries = plan.states.div_ceil(12);
    let again = Plan { states: 4, ..plan };
    require_sound("cuts during recovery", &recording.try_recoveries(recoveries, again).unwrap());

    // The same as if the last two flushes of every component had not been done: the last may belong to a commit under way,
    // which has promised nothing yet. Were nothing found, nothing above would have shown anything.
    let careless = Plan { states: 8, flushes: Flushes::Ignored { last: 2 }, strict: true, ..plan };
    let tally = recording.try_states(careless).unwrap();
    tell(&format!(
        "with flushes ignored: {} of {} states lose what was promised",
        tally.losses.len(),
        tally.states
    ));
    assert!(!tally.losses.is_empty(), "a flush that is missing would not be found: {tally}");
}

#[test]
fn a_power_cut_after_a_component_failed_loses_nothing() {
    if !ready() {
        return;
    }
    let scene = Scene::new("powercut-degraded", SIZE).unwrap();
    let plan = plan(12);
    let failing = (plan.seed % 6) as usize;
    let recording = Recording::of_writers(&scene, plan.seed, Duration::from_secs(5), Some(failing)).unwrap();
    tell(&format!("recorded {recording}, component {failing} failing"));
    require_sound("cuts with a component failing", &recording.try_states(plan).unwrap());
}

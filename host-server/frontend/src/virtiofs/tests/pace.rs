//! What the host's side of a request costs: a machine that waits for its replies without sleeping, a real store below.
//! `cargo test --release -p ringfort-frontend pace -- --ignored --nocapture` prints it.

use std::time::{Duration, Instant};

use super::machine::{Host, Machine, Setup};
use super::volume;
use crate::virtiofs::abi;

/// The middle of the times that `work` takes, done `rounds` times with a pause in between.
fn middle(rounds: usize, pause: Duration, mut work: impl FnMut(usize)) -> Duration {
    let mut times: Vec<Duration> = (0..rounds)
        .map(|round| {
            let resume = Instant::now() + pause;
            while Instant::now() < resume {
                std::hint::spin_loop();
            }
            let began = Instant::now();
            work(round);
            began.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[rounds / 2]
}

#[test]
#[ignore = "measures, and takes half a minute"]
fn pace_of_requests() {
    const MIB: usize = 1 << 20;
    let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let path = folder.path().to_owned();
    volume::create(&path, 2 << 30);
    for busy_poll_us in [0, 200, 1000] {
        let path = path.clone();
        let setup = Setup { busy_poll: Duration::from_micros(busy_poll_us), ..Setup::default() };
        let host = Host::serve(setup, async move |engine| volume::open(engine, &path).await, volume::close);
        let mut machine = Machine::connect_polling(&host.path());
        machine.init();
        let file = machine.create(&format!("file {busy_poll_us}"));
        let long: Vec<u8> = (0..MIB).map(|at| (at * 7 / 3) as u8).collect();
        for index in 0..256 {
            machine.write(file, (index * MIB) as u64, &long);
        }
        for pause_us in [0, 100, 400] {
            let pause = Duration::from_micros(pause_us);
            let before = (host.metrics().kicks.get(), machine.kicks_sent());
            let stat = middle(2000, pause, |_| drop(machine.call(abi::FUSE_GETATTR, 1, &[0; 16]).ok()));
            let after = (host.metrics().kicks.get(), machine.kicks_sent());
            let read = middle(2000, pause, |round| drop(machine.read(file, (round * 4096) as u64, 4096)));
            let write =
                middle(2000, pause, |round| machine.write(file, (round * 4096) as u64, &long[..4096]));
            let sync = middle(300, pause, |round| {
                machine.write(file, (round * 4096) as u64, &long[..4096]);
                machine.sync(file);
            });
            let stream = middle(200, pause, |round| machine.write(file, (round * MIB) as u64, &long));
            let stream_back =
                middle(200, pause, |round| drop(machine.read(file, (round * MIB) as u64, MIB as u32)));
            println!(
                "window {busy_poll_us:4} µs, pause {pause_us:3} µs: stat {stat:?} read {read:?} write {write:?} write+fsync {sync:?} \
                 1 MiB write {stream:?} read {stream_back:?}; of 2000 stats {} found it asleep, {} kicks sent",
                after.0 - before.0,
                after.1 - before.1
            );
        }
        drop(machine);
        host.stop();
    }
}

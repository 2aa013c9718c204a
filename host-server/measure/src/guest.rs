//! Topic `guest`: what operations cost a program in a guest, on Ringfort's virtio-fs and on virtiofsd's, both in one machine.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ringfort_qemu_tests::agent::AGENT;
use ringfort_qemu_tests::machine::{Accelerator, Board, Guest, Machine};
use ringfort_qemu_tests::programs::Program;
use ringfort_qemu_tests::provision::parts;
use ringfort_qemu_tests::scene::{MOUNTED, Scene};
use serde_json::Value;

use crate::claims::{Commands, require_equal};
use crate::figures::{Figures, Goal, Subject};
use crate::mirrors;
use crate::virtiofsd::{self, Virtiofsd};

const RINGFORT: Subject = "virtiofs";
const CHANNEL: Subject = "channel";
const HOST: Subject = "host";
const VSOCK: Subject = "vsock";
const VIRTIOFSD: Subject = "virtiofsd";
const VIRTIOFSD_CACHED: Subject = "virtiofsd_page_cache";

const VOLUME_SIZE: &str = "5GiB";
/// Of the large file on each mount.
const DATA_MIB: u64 = 512;
/// For a round on all mounts: seconds, unless the host is very busy.
const ROUND_TIMEOUT: Duration = Duration::from_secs(400);

/// A way to serve the same folder tree, as a rival.
struct Rival {
    subject: Subject,
    tag: &'static str,
    options: &'static [&'static str],
}

const RIVALS: [Rival; 2] = [
    // The guest's O_DIRECT reaches the files, as Ringfort's reads reach its components.
    Rival { subject: VIRTIOFSD, tag: "rival", options: &["--allow-direct-io"] },
    // As it comes: O_DIRECT is taken off, and the host's page cache answers.
    Rival { subject: VIRTIOFSD_CACHED, tag: "rival-cached", options: &[] },
];

/// What the guest's program times, under its own names, and the figures' names.
const LATENCIES: [(&str, &str); 7] = [
    ("stat", "stat_us_p50"),
    ("open_close", "open_close_us_p50"),
    ("create_unlink", "create_unlink_us_p50"),
    ("read_4k", "read_4k_us_p50"),
    ("write_4k", "write_4k_us_p50"),
    ("write_4k_fdatasync", "write_4k_fdatasync_us_p50"),
    ("write_4k_fsync", "write_4k_fsync_us_p50"),
];
const STREAMS: [(&str, &str); 2] = [("seq_read", "seq_read_mib_s"), ("seq_write", "seq_write_mib_s")];

/// What `rf bench` times, under its own names, and the figures' names.
const CHANNEL_LATENCIES: [(&str, &str); 9] = [
    ("stat", "stat_us_p50"),
    ("open_close", "open_close_us_p50"),
    ("create_unlink", "create_unlink_us_p50"),
    ("read_4k", "read_4k_us_p50"),
    ("write_4k", "write_4k_us_p50"),
    ("write_4k_fdatasync", "write_4k_fdatasync_us_p50"),
    ("write_4k_fsync", "write_4k_fsync_us_p50"),
    ("nop", "rtt_polled_us_p50"),
    ("nop_parked", "rtt_parked_us_p50"),
];
/// Calls of each kind of a round through the channel.
const CHANNEL_CALLS: u32 = 4000;
/// A twentieth of the rival's latency.
const CHANNEL_RATIO_MAX: f64 = 0.05;
const POLLED_US_MAX: f64 = 3.0;
/// Of what the kernel's own way to wake another, or to write thrice, takes.
const KERNEL_RATIO_MAX: f64 = 1.3;
/// A port of the guest's vsock at which this process echoes bytes.
const ECHO_PORT: u32 = 7007;
const ECHOES: &str = "500";

/// A sync goes to three mirrors, the rival's to one file.
const SYNC_RATIO_MAX: f64 = 1.5;

pub fn measure(rounds: u32) -> Result<Figures> {
    let mut figures = Figures::default();
    let accelerator = Accelerator::choose()?;
    figures.fact("accelerator", if accelerator == Accelerator::Kvm { "kvm" } else { "tcg" });
    describe(&mut figures, rounds)?;

    // The rivals' large files are written in full before anything is timed: so are the components.
    let scene = Scene::create_with("measure-guest", VOLUME_SIZE, &["--preallocation", "full"])?;
    let server = scene.serve_with(1, &["--cache", "never", "--channel", &scene.channel(0)])?;
    let echo = Echo::listen(&scene.vsock(0))?;
    let programs = [Program::Guestd, Program::Rf];
    let mut machine = Machine::new(Board::MicroVm).vsock(&scene.vsock(0)).programs(&programs);
    let mut rivals = Vec::new();
    match virtiofsd::program() {
        Ok(program) => {
            for rival in &RIVALS {
                machine = machine.share(rival.tag, &scene.folder.socket(rival.tag));
                rivals.push((rival, start(&scene, &program, rival)?));
            }
        }
        Err(error) => {
            let reason =
                format!("virtiofsd cannot be had: {error:#}; with a network it is built into target/");
            figures.leave_out(VIRTIOFSD, reason);
        }
    }
    let guest = scene.boot(&machine, 0)?;
    figures.condition("guest kernel", guest.must("uname -r")?.trim());
    let mut mounts = vec![(RINGFORT, MOUNTED.to_owned())];
    for (rival, _) in &rivals {
        guest.mount(rival.tag)?;
        mounts.push((rival.subject, format!("/mnt/{}", rival.tag)));
    }
    for (_, mount) in &mounts {
        guest.run(&[AGENT, "bench-prepare", mount, &DATA_MIB.to_string()], ROUND_TIMEOUT)?;
    }
    let daemon = guest.start(&["/bin/sh", "-c", "exec ringfort-guestd >> /tmp/guestd.log 2>&1"])?;
    guest.must("for wait in $(seq 100); do rf ls > /dev/null 2>&1 && exit 0; sleep 0.1; done; rf ls; cat /tmp/guestd.log")?;
    for round in 0..rounds {
        note_channel(&mut figures, &scene, &guest)?;
        figures.note(
            HOST,
            "write_4k_fsync_us_p50",
            "µs",
            mirrors::write_and_sync_ns(scene.folder.path())? / 1e3,
        );
        let before = Counts::of(&scene)?;
        let said = run_round(&guest, &mounts, round)?;
        Counts::of(&scene)?.require(&before, &said)?;
        note(&mut figures, &mounts, &said)?;
    }
    set_goals(&mut figures);
    daemon.kill()?;
    drop(echo);
    guest.shut_down()?;
    server.stop()?;
    scene.volume.require_clean()?;
    Ok(figures)
}

fn describe(figures: &mut Figures, rounds: u32) -> Result<()> {
    let processors = std::thread::available_parallelism().context("counting processors")?;
    figures.condition("host", format!("{processors} processors, Linux {}", host_kernel()?));
    figures.condition("qemu", format!("{}, microvm, 1 processor, queues of 1024", parts()?.qemu.version));
    figures.condition(
        "ringfort",
        "data 4+2 and metadata on three, six files beside each other, written before; --cache never",
    );
    figures.condition(
        "virtiofsd",
        format!(
            "{}, --sandbox none --cache never --allow-direct-io, on the file system that holds those six files",
            virtiofsd::version()
        ),
    );
    figures.condition(
        "virtiofsd_page_cache",
        "the same without --allow-direct-io: cached by the host, and no goal",
    );
    figures.condition(
        "program",
        format!(
            "the same on each mount in turn, slice by slice; 4 KiB at random in {DATA_MIB} MiB and 1 MiB in sequence, O_DIRECT"
        ),
    );
    figures.condition(
        "channel",
        "rf bench in the same guest, through ringfort-guestd over vhost-device-vsock; reads and writes of one block that the server has in memory",
    );
    figures.condition(
        "host",
        "a block written to each of three files beside the components and synced, by the same engine",
    );
    figures.condition("vsock", "a byte to a process of the host and back, both asleep before");
    figures.condition("rounds", rounds.to_string());
    Ok(())
}

fn host_kernel() -> Result<String> {
    let release =
        std::fs::read_to_string("/proc/sys/kernel/osrelease").context("reading the kernel's release")?;
    Ok(release.trim().to_owned())
}

/// Starts a rival on an empty folder beside the volume's.
fn start(scene: &Scene, program: &Path, rival: &Rival) -> Result<Virtiofsd> {
    let folder = scene.folder.path().join(rival.tag);
    std::fs::create_dir(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let log = scene.folder.path().join(format!("{}.log", rival.tag));
    Virtiofsd::start(program, &folder, &scene.folder.socket(rival.tag), rival.options, &log)
}

fn run_round(guest: &Guest, mounts: &[(Subject, String)], round: u32) -> Result<Said> {
    let seed = round.to_string();
    let mut arguments = vec![AGENT, "bench", &seed];
    arguments.extend(mounts.iter().map(|(_, mount)| mount.as_str()));
    Ok(Said(guest.run(&arguments, ROUND_TIMEOUT)?))
}

fn note(figures: &mut Figures, mounts: &[(Subject, String)], said: &Said) -> Result<()> {
    for (subject, mount) in mounts {
        for (timed, name) in LATENCIES {
            let nanoseconds = said.value(mount, &format!("{timed}_p50_ns"))?;
            figures.note(subject, name, "µs", nanoseconds as f64 / 1e3);
        }
        for (stream, name) in STREAMS {
            let bytes = said.value(mount, &format!("{stream}_bytes"))? as f64;
            let nanoseconds = said.value(mount, &format!("{stream}_ns"))? as f64;
            figures.note(subject, name, "MiB/s", bytes / f64::from(1 << 20) / (nanoseconds / 1e9));
        }
    }
    Ok(())
}

/// The same operations of a program of the guest through the channel, and the vsock's way to wake the host and back.
fn note_channel(figures: &mut Figures, scene: &Scene, guest: &Guest) -> Result<()> {
    let before = Commands::of(&scene.volume.status()?)?;
    let (calls, mib) = (CHANNEL_CALLS.to_string(), DATA_MIB.to_string());
    let said =
        guest.run(&["/bin/rf", "bench", "--json", "--calls", &calls, "--stream-mib", &mib], ROUND_TIMEOUT)?;
    let said: Value = serde_json::from_str(&said).context("reading what rf bench has said")?;
    Commands::of(&scene.volume.status()?)?.require(&before, &said["claimed"])?;
    let value = |name: &str| said[name].as_f64().with_context(|| format!("rf bench said no {name}"));
    for (timed, name) in CHANNEL_LATENCIES {
        figures.note(CHANNEL, name, "µs", value(&format!("{timed}_ns_p50"))? / 1e3);
    }
    for (_, name) in STREAMS {
        figures.note(CHANNEL, name, "MiB/s", value(name)?);
    }
    let echoed = guest.run(&[AGENT, "bench-vsock", &ECHO_PORT.to_string(), ECHOES], ROUND_TIMEOUT)?;
    let nanoseconds: f64 =
        echoed.trim().parse().with_context(|| format!("the guest's program said {echoed:?}"))?;
    figures.note(VSOCK, "rtt_parked_us_p50", "µs", nanoseconds / 1e3);
    Ok(())
}

/// Sends back what a guest sends to [`ECHO_PORT`], byte by byte.
struct Echo {
    path: PathBuf,
}

impl Echo {
    fn listen(vsock: &Path) -> Result<Echo> {
        let mut path = vsock.as_os_str().to_owned();
        path.push(format!("_{ECHO_PORT}"));
        let path = PathBuf::from(path);
        let listener =
            UnixListener::bind(&path).with_context(|| format!("listening on {}", path.display()))?;
        // It ends with this process.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut stream = stream;
                let mut byte = [0];
                while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
            }
        });
        Ok(Echo { path })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        // The folder goes as well.
        let _ = fs::remove_file(&self.path);
    }
}

fn set_goals(figures: &mut Figures) {
    for name in ["stat_us_p50", "open_close_us_p50", "read_4k_us_p50", "write_4k_us_p50"] {
        figures.goal(CHANNEL, name, Goal::TimesAtMost(CHANNEL_RATIO_MAX, VIRTIOFSD));
    }
    for (_, name) in STREAMS {
        figures.goal(CHANNEL, name, Goal::TimesAtLeast(1.0, VIRTIOFSD));
    }
    figures.goal(CHANNEL, "write_4k_fsync_us_p50", Goal::TimesAtMost(KERNEL_RATIO_MAX, HOST));
    figures.goal(CHANNEL, "rtt_polled_us_p50", Goal::AtMost(POLLED_US_MAX));
    figures.goal(CHANNEL, "rtt_parked_us_p50", Goal::TimesAtMost(KERNEL_RATIO_MAX, VSOCK));
    for (_, name) in LATENCIES {
        let most = if name.contains("sync") { SYNC_RATIO_MAX } else { 1.0 };
        figures.goal(RINGFORT, name, Goal::TimesAtMost(most, VIRTIOFSD));
    }
    for (_, name) in STREAMS {
        figures.goal(RINGFORT, name, Goal::TimesAtLeast(1.0, VIRTIOFSD));
    }
}

/// What the guest's program has written to its standard output.
struct Said(String);

impl Said {
    fn value(&self, mount: &str, name: &str) -> Result<u64> {
        self.rest(mount, name).with_context(|| format!("the guest's program said no {name} of {mount}"))
    }

    /// How often the program did something on Ringfort's mount.
    fn claimed(&self, name: &str) -> u64 {
        self.rest(MOUNTED, &format!("claimed {name}")).unwrap_or(0)
    }

    fn rest(&self, mount: &str, name: &str) -> Option<u64> {
        let prefix = format!("{mount} {name} ");
        self.0.lines().find_map(|line| line.strip_prefix(&prefix))?.parse().ok()
    }
}

/// The serving process's own counters.
struct Counts(Value);

impl Counts {
    fn of(scene: &Scene) -> Result<Counts> {
        let mut status = scene.volume.status()?;
        Ok(Counts(status["served"]["guests"][0].take()))
    }

    /// Fails where the server has counted something else than the guest's program claims.
    fn require(&self, before: &Counts, said: &Said) -> Result<()> {
        for name in ["read_bytes", "written_bytes"] {
            let counted = self.grown(before, |counts| counts[name].as_u64());
            require_equal(name, counted, said.claimed(name))?;
        }
        let errors = self.grown(before, |counts| counts["malformed_requests"].as_u64());
        require_equal("malformed requests", errors, 0)?;
        ensure!(self.0["requests"].is_object(), "volume status counts no requests by kind");
        for name in ["open", "create", "unlink", "fsync", "read", "write"] {
            let counted = self.grown(before, |counts| counts["requests"][name].as_u64());
            require_equal(name, counted, said.claimed(name))?;
        }
        Ok(())
    }

    fn grown(&self, before: &Counts, of: impl Fn(&Value) -> Option<u64>) -> u64 {
        of(&self.0).unwrap_or(0).wrapping_sub(of(&before.0).unwrap_or(0))
    }
}

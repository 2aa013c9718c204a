//! Recordings, states made from them, and the verdicts.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::agent::Task;
use crate::content::Stream;
use crate::powercut::medium::{Fate, Flushes, Medium, copy_sparse};
use crate::powercut::recorder::Recorder;
use crate::powercut::witness::{Verdict, Witness, exporting, judge, memory_file};
use crate::scene::Scene;
use crate::server::{Server, Volume};

/// Components of a volume with the defaults, 4+2.
const COMPONENTS: usize = 6;
/// How many of them may be gone: two columns of parity, three mirrors.
const TOLERATED: usize = 2;
/// Far more steps than a recording lasts.
const STEPS: u64 = 1_000_000;
/// Between looks at the running writers.
const PACE: Duration = Duration::from_millis(3);
/// Between halts of the server.
const HALT_EVERY: Duration = Duration::from_millis(200);

/// A moment at which the power may fail.
#[derive(Clone, Debug)]
struct Moment {
    /// The length of each log.
    log_bytes: Vec<u64>,
    /// What each witness had been promised before.
    promises: Vec<u64>,
    /// The server stood still, so that no promise is younger than the writes in the logs.
    halted: bool,
    /// The component whose device had failed by then.
    failed: Option<usize>,
}

/// Everything that reached the components of a volume over some time, and what was promised meanwhile.
#[derive(Debug)]
pub struct Recording {
    volume: Volume,
    witnesses: Vec<Witness>,
    /// The positions of the components that were there.
    positions: Vec<usize>,
    /// The components as they were at its beginning.
    base: Vec<PathBuf>,
    logs: Vec<PathBuf>,
    moments: Vec<Moment>,
    folder: PathBuf,
    /// Where a serving process keeps what does not survive a cut.
    memory_file: PathBuf,
}

/// What states are to be made of a recording.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub states: usize,
    pub seed: u64,
    pub flushes: Flushes,
    /// Only moments at which the server stood still, and all that is not durable lost.
    pub strict: bool,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Tally {
    pub states: usize,
    /// Writes that were in some component's volatile cache, over all states.
    pub volatile_writes: usize,
    /// Promises that were to be kept, over all states.
    pub promises: u64,
    /// States in which components were gone besides.
    pub degraded: usize,
    /// States in which a promise was broken.
    pub losses: Vec<String>,
    /// States in which anything else was wrong.
    pub faults: Vec<String>,
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} states ({} with components gone), {} promises to keep, {} writes in volatile caches: {} losses, {} other faults",
            self.states,
            self.degraded,
            self.promises,
            self.volatile_writes,
            self.losses.len(),
            self.faults.len()
        )?;
        for text in self.losses.iter().chain(&self.faults) {
            write!(f, "\n{text}")?;
        }
        Ok(())
    }
}

impl std::fmt::Display for Recording {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let promises: u64 = self.moments.last().map_or(0, |moment| moment.promises.iter().sum());
        let halts = self.moments.iter().filter(|moment| moment.halted).count();
        write!(f, "{} moments ({halts} with the server halted), {promises} promises", self.moments.len())
    }
}

impl Recording {
    /// Serves the scene's volume to a guest in which writers run for `duration`, then ends all of them at once. The device
    /// of component `failing` fails half way.
    pub fn of_writers(
        scene: &Scene,
        seed: u64,
        duration: Duration,
        failing: Option<usize>,
    ) -> Result<Recording> {
        // Asked now: a server that has just begun to listen does not answer questions yet.
        let memory_file = memory_file(&scene.volume)?;
        let (mut recording, mut recorder) =
            Recording::begin(&scene.volume, &scene.folder.path().join("recorded"), Witness::company(seed))?;
        recording.memory_file = memory_file;
        let server = scene.serve(1)?;
        let guest = scene.guest(0)?;
        let mut tasks = Vec::new();
        for witness in &recording.witnesses {
            tasks.push(witness.start(&guest, STEPS)?);
        }
        recording.watch(&mut recorder, &server, &mut tasks, duration, failing)?;
        drop(tasks);
        guest.pull_the_plug();
        server.kill()?;
        recorder.stop()?;
        recording.forget_memory()?;
        recording.require_whole(failing)?;
        Ok(recording)
    }

    /// The logger itself is not above suspicion: what it says must be what reached the components. That of a device which
    /// failed may have been killed between its two writes.
    fn require_whole(&self, failed: Option<usize>) -> Result<()> {
        let media = Media::new(self, Flushes::Honoured)?;
        for (position, medium) in self.positions.iter().zip(media.media) {
            if Some(*position) != failed {
                medium
                    .require_whole(&self.volume.component(*position))
                    .context("comparing a log with its component")?;
            }
        }
        Ok(())
    }

    /// Records the recovery of `volume`, whose writers had been promised `promises`. Its components change.
    fn of_recovery(&self, volume: &Volume, promises: &[u64], folder: &Path) -> Result<Recording> {
        let (mut recording, recorder) = Recording::begin(volume, folder, self.witnesses.clone())?;
        recording.memory_file.clone_from(&self.memory_file);
        let mut recovering: Child =
            exporting(volume)?.stdout(Stdio::null()).spawn().context("starting a recovery")?;
        let mut seen: Option<Vec<u64>> = None;
        while recovering.try_wait().context("waiting for a recovery")?.is_none() {
            let log_bytes = recorder.moment()?;
            if log_bytes.is_some() && log_bytes != seen {
                seen.clone_from(&log_bytes);
                recording.note(log_bytes, promises.to_vec(), false, None);
            }
        }
        recorder.stop()?;
        recording.forget_memory()?;
        recording.require_whole(None)?;
        Ok(recording)
    }

    fn begin(volume: &Volume, folder: &Path, witnesses: Vec<Witness>) -> Result<(Recording, Recorder)> {
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        let positions: Vec<usize> = (0..COMPONENTS).filter(|at| volume.component(*at).exists()).collect();
        let components: Vec<PathBuf> = positions.iter().map(|at| volume.component(*at)).collect();
        let mut base = Vec::new();
        for component in &components {
            let copy = folder.join("base").with_extension(base.len().to_string());
            copy_sparse(&File::open(component)?, &copy)?;
            base.push(copy);
        }
        let recorder = Recorder::start(&components, &folder.join("logs"))?;
        let recording = Recording {
            volume: volume.clone(),
            witnesses,
            positions,
            base,
            logs: recorder.logs(),
            moments: Vec::new(),
            folder: folder.to_owned(),
            memory_file: PathBuf::new(),
        };
        Ok((recording, recorder))
    }

    /// Notes moments while the writers write.
    fn watch(
        &mut self,
        recorder: &mut Recorder,
        server: &Server,
        tasks: &mut [Task<'_>],
        duration: Duration,
        failing: Option<usize>,
    ) -> Result<()> {
        let started = Instant::now();
        let mut last_halt = started;
        let mut failed = None;
        while started.elapsed() < duration {
            thread::sleep(PACE);
            if let Some(index) = failing.filter(|_| failed.is_none() && started.elapsed() > duration / 2) {
                recorder.fail(index)?;
                failed = failing;
            }
            if last_halt.elapsed() > HALT_EVERY {
                let process = Pid::from_raw(i32::try_from(server.process_id())?);
                kill(process, Signal::SIGSTOP).context("halting the server")?;
                let halted = halted_moment(recorder, tasks);
                kill(process, Signal::SIGCONT).context("letting the server go on")?;
                let (log_bytes, promises) = halted?;
                self.note(Some(log_bytes), promises, true, failed);
                last_halt = Instant::now();
            } else {
                // What was promised before the look at the logs is in them.
                let promises = promises(tasks)?;
                let log_bytes = recorder.moment()?;
                self.note(log_bytes, promises, false, failed);
            }
        }
        Ok(())
    }

    fn note(&mut self, log_bytes: Option<Vec<u64>>, promises: Vec<u64>, halted: bool, failed: Option<usize>) {
        self.moments.extend(log_bytes.map(|log_bytes| Moment { log_bytes, promises, halted, failed }));
    }

    /// Power loss takes the memory of processes.
    fn forget_memory(&self) -> Result<()> {
        match fs::remove_file(&self.memory_file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", self.memory_file.display()))
            }
            _ => Ok(()),
        }
    }

    /// Makes states and judges each.
    pub fn try_states(&self, plan: Plan) -> Result<Tally> {
        let mut random = Stream::new(plan.seed);
        let mut media = Media::new(self, plan.flushes)?;
        let mut tally = Tally::default();
        for moment in self.choose(plan, &media, &mut random)? {
            let state = media.state(moment, plan.strict, &mut random)?;
            tally.states += 1;
            tally.volatile_writes += state.volatile_writes;
            tally.promises += moment.promises.iter().sum::<u64>();
            tally.degraded += usize::from(state.gone > 0);
            self.forget_memory()?;
            let scratch = self.folder.join("read");
            let text = |what: String| format!("seed {}, {}: {what}", plan.seed, state.description);
            match judge(&state.volume, &self.witnesses, &moment.promises, &scratch)? {
                Verdict::Kept => {}
                Verdict::Lost(what) => tally.losses.push(text(what)),
                Verdict::Faulty(what) => tally.faults.push(text(what)),
            }
        }
        self.forget_memory()?;
        Ok(tally)
    }

    /// Makes `recoveries` states, cuts the power again while each is recovered, and judges what that leaves.
    pub fn try_recoveries(&self, recoveries: usize, plan: Plan) -> Result<Tally> {
        let mut random = Stream::new(plan.seed);
        let mut media = Media::new(self, plan.flushes)?;
        let mut tally = Tally::default();
        for moment in self.choose(Plan { states: recoveries, ..plan }, &media, &mut random)? {
            let state = media.state(moment, plan.strict, &mut random)?;
            self.forget_memory()?;
            let recovery =
                self.of_recovery(&state.volume, &moment.promises, &self.folder.join("recovery"))?;
            let again = recovery.try_states(Plan { seed: random.number(), ..plan })?;
            fs::remove_dir_all(&recovery.folder).context("removing a recording")?;
            tally.add(again, &state.description);
        }
        Ok(tally)
    }

    /// As many moments as the plan asks for, from the earliest on, by preference such where much is at risk: a third are halts of
    /// the server, where a promise is youngest (all where the plan is strict), half have writes that are not durable.
    fn choose(&self, plan: Plan, media: &Media<'_>, random: &mut Stream) -> Result<Vec<&Moment>> {
        ensure!(!self.moments.is_empty(), "the recording has no moment at which all logs agree");
        let all: Vec<usize> = (0..self.moments.len()).collect();
        let that = |holds: &dyn Fn(&Moment) -> bool| {
            let some: Vec<usize> = all.iter().copied().filter(|at| holds(&self.moments[*at])).collect();
            if some.is_empty() { all.clone() } else { some }
        };
        let halted = that(&|moment| moment.halted);
        let risky = that(&|moment| media.volatile_writes(moment) > 0);
        let mut chosen = Vec::new();
        for number in 0..plan.states {
            let of = match number % 6 {
                _ if plan.strict => &halted,
                0 | 1 => &halted,
                2..5 => &risky,
                _ => &all,
            };
            chosen.push(of[random.below(of.len() as u64) as usize]);
        }
        chosen.sort_unstable();
        Ok(chosen.into_iter().map(|at| &self.moments[at]).collect())
    }
}

impl Tally {
    fn add(&mut self, other: Tally, of: &str) {
        self.states += other.states;
        self.volatile_writes += other.volatile_writes;
        self.promises += other.promises;
        self.degraded += other.degraded;
        let told =
            |texts: Vec<String>| texts.into_iter().map(move |text| format!("{of}; in its recovery, {text}"));
        self.losses.extend(told(other.losses));
        self.faults.extend(told(other.faults));
    }
}

/// The server stands still: what it has asked of the devices comes to its end, and what it has answered reaches the writers, who
/// say so and then wait for it. To stop listening too early would only ask for less.
fn halted_moment(recorder: &Recorder, tasks: &mut [Task<'_>]) -> Result<(Vec<u64>, Vec<u64>)> {
    const QUIET: Duration = Duration::from_millis(4);
    const SILENCE: Duration = Duration::from_millis(80);
    const LISTEN_MAX: Duration = Duration::from_secs(2);
    let log_bytes = recorder.at_rest(QUIET, Duration::from_secs(10))?;
    let started = Instant::now();
    let mut said = promises(tasks)?;
    let mut last_word = started;
    while last_word.elapsed() < SILENCE && started.elapsed() < LISTEN_MAX {
        thread::sleep(PACE);
        let now = promises(tasks)?;
        if now != said {
            said = now;
            last_word = Instant::now();
        }
    }
    Ok((log_bytes, said))
}

fn promises(tasks: &mut [Task<'_>]) -> Result<Vec<u64>> {
    tasks
        .iter_mut()
        .map(|task| {
            task.poll()?;
            Ok(Witness::promises(task.output()))
        })
        .collect()
}

/// The media of all components.
struct Media<'recording> {
    recording: &'recording Recording,
    media: Vec<Medium>,
}

struct State {
    volume: Volume,
    volatile_writes: usize,
    gone: usize,
    description: String,
}

impl<'recording> Media<'recording> {
    fn new(recording: &'recording Recording, flushes: Flushes) -> Result<Media<'recording>> {
        let mut media = Vec::new();
        for (base, log) in recording.base.iter().zip(&recording.logs) {
            let image = recording.folder.join(format!("medium-{}", media.len()));
            copy_sparse(&File::open(base)?, &image)?;
            media.push(Medium::new(&image, log, flushes)?);
        }
        Ok(Media { recording, media })
    }

    fn volatile_writes(&self, moment: &Moment) -> usize {
        self.media
            .iter()
            .zip(&moment.log_bytes)
            .map(|(medium, log_bytes)| medium.volatile_writes(*log_bytes))
            .sum()
    }

    /// A volume as a cut at `moment` may leave it; the one made before is gone.
    fn state(&mut self, moment: &Moment, strict: bool, random: &mut Stream) -> Result<State> {
        let folder = self.recording.folder.join("state");
        if folder.exists() {
            fs::remove_dir_all(&folder).context("removing the state before")?;
        }
        fs::create_dir(&folder).with_context(|| format!("creating {}", folder.display()))?;
        let settings = "volume.toml";
        fs::copy(self.recording.volume.folder().join(settings), folder.join(settings))
            .context("copying volume.toml")?;
        let volume = Volume::at(&folder);

        let gone = if strict { Vec::new() } else { self.choose_gone(moment.failed, random) };
        // One policy for all in some states, so that caches that all hold everything back are met often enough.
        let common = (random.below(3) == 0).then(|| Fate::choose(random));
        let mut fates = Vec::new();
        let mut volatile_writes = 0;
        let positions = &self.recording.positions;
        for ((position, medium), log_bytes) in positions.iter().zip(&mut self.media).zip(&moment.log_bytes) {
            medium.advance(*log_bytes)?;
            if gone.contains(position) {
                fates.push("gone".to_owned());
                continue;
            }
            let fate = if strict { Fate::Lost } else { common.unwrap_or_else(|| Fate::choose(random)) };
            let volatile = medium.volatile_writes(*log_bytes);
            volatile_writes += volatile;
            medium.leave(&volume.component(*position), fate, random)?;
            fates.push(format!("{fate:?} ({volatile} volatile)"));
        }
        let cut = if moment.halted { "the server halted" } else { "in passing" };
        let description =
            format!("logs cut at {:?} ({cut}), components {}", moment.log_bytes, fates.join(", "));
        Ok(State { volume, volatile_writes, gone: gone.len(), description })
    }

    /// Components that are lost together with the power, as many as the volume bears. One whose device had failed before, or
    /// that was not there to begin with, counts as one of them; the device that failed may come back, or not.
    fn choose_gone(&self, failed: Option<usize>, random: &mut Stream) -> Vec<usize> {
        let mut others: Vec<usize> =
            self.recording.positions.iter().copied().filter(|at| Some(*at) != failed).collect();
        let bearable = TOLERATED.saturating_sub(COMPONENTS - others.len());
        let wanted = match random.below(6) {
            0 | 1 => 1,
            2 => 2,
            _ => 0,
        };
        let mut gone: Vec<usize> = failed.filter(|_| random.below(2) == 0).into_iter().collect();
        for _ in 0..bearable.min(wanted) {
            gone.push(others.swap_remove(random.below(others.len() as u64) as usize));
        }
        gone
    }
}

//! The `ringfort` program from outside: volumes made, served, damaged and checked by its command line alone.
//! `RINGFORT_PROGRAM` names a program to use in the place of the workspace's own build.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::content::content;
use crate::provision::workspace_program;

/// To open a volume, recovery included.
const START_TIMEOUT: Duration = Duration::from_secs(90);
/// To stop on SIGTERM with everything synced.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
/// For commands that read or write little.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(120);

/// What a command on the volume left.
#[derive(Clone, Debug)]
pub struct Said {
    /// The exit status; `None` where a signal ended it.
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// The program, built when first asked for.
pub fn program() -> Result<&'static Path> {
    static PROGRAM: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
    let found = PROGRAM.get_or_init(|| match std::env::var_os("RINGFORT_PROGRAM") {
        Some(program) => Ok(PathBuf::from(program)),
        None => workspace_program("ringfort", "ringfort").map_err(|error| format!("{error:#}")),
    });
    match found {
        Ok(path) => Ok(path),
        Err(error) => bail!("building ringfort: {error}"),
    }
}

/// Runs `ringfort` with `arguments` to its end.
pub fn ringfort(arguments: &[&str]) -> Result<Said> {
    run(Command::new(program()?).args(arguments), COMMAND_TIMEOUT)
        .with_context(|| format!("ringfort {}", arguments.join(" ")))
}

/// Runs a program of the workspace to its end, which is not to be a panic.
pub(crate) fn run(command: &mut Command, timeout: Duration) -> Result<Said> {
    let output = run_to_end(command, timeout)?;
    let said = Said {
        status: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    };
    require_no_panic(&said.stderr)?;
    Ok(said)
}

/// A volume whose components are files in one folder.
#[derive(Clone, Debug)]
pub struct Volume {
    folder: PathBuf,
}

impl Volume {
    /// Creates a volume with the defaults: six components, data 4+2.
    pub fn create(folder: &Path, size: &str) -> Result<Volume> {
        Volume::create_with(folder, size, &[])
    }

    /// Creates a volume with further options of `volume create`.
    pub fn create_with(folder: &Path, size: &str, options: &[&str]) -> Result<Volume> {
        let volume = Volume { folder: folder.to_owned() };
        let name = volume.name();
        let arguments = ["volume", "create", &name, "--size", size];
        let said = ringfort(&[&arguments, options].concat())?;
        if said.status != Some(0) {
            bail!("volume create ended with {:?}:\n{}{}", said.status, said.stdout, said.stderr);
        }
        Ok(volume)
    }

    /// A volume that is in `folder` already.
    pub fn at(folder: &Path) -> Volume {
        Volume { folder: folder.to_owned() }
    }

    /// The volume's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The file of component `index`.
    pub fn component(&self, index: usize) -> PathBuf {
        self.folder.join(format!("component-{index}"))
    }

    /// Moves component `index` out of the volume's folder.
    pub fn take_away(&self, index: usize) -> Result<()> {
        let away = self.away(index);
        if let Some(parent) = away.parent() {
            fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
        }
        fs::rename(self.component(index), &away).with_context(|| format!("taking component {index} away"))
    }

    /// Empties the file of component `index`. A serving process has the file open, so that removing its name would take
    /// nothing away from it.
    pub fn empty(&self, index: usize) -> Result<()> {
        let path = self.component(index);
        let file =
            File::options().write(true).open(&path).with_context(|| format!("opening {}", path.display()))?;
        file.set_len(0).with_context(|| format!("emptying {}", path.display()))
    }

    /// Overwrites the whole file of component `index` with bytes that were never in it, label included.
    pub fn spoil(&self, index: usize) -> Result<()> {
        const PIECE_BYTES: u64 = 1 << 20;
        let path = self.component(index);
        let file =
            File::options().write(true).open(&path).with_context(|| format!("opening {}", path.display()))?;
        let length_bytes = file.metadata().with_context(|| format!("looking at {}", path.display()))?.len();
        let garbage = content(u64::MAX, PIECE_BYTES as usize);
        for at in (0..length_bytes).step_by(garbage.len()) {
            let piece = &garbage[..PIECE_BYTES.min(length_bytes - at) as usize];
            file.write_all_at(piece, at).with_context(|| format!("spoiling {}", path.display()))?;
        }
        Ok(())
    }

    /// Puts a component back as it was when it was taken away.
    pub fn bring_back(&self, index: usize) -> Result<()> {
        fs::rename(self.away(index), self.component(index))
            .with_context(|| format!("bringing component {index} back"))
    }

    /// `volume status --json`.
    pub fn status(&self) -> Result<serde_json::Value> {
        let said = ringfort(&["volume", "status", &self.name(), "--json"])?;
        if said.status != Some(0) {
            bail!("volume status ended with {:?}:\n{}{}", said.status, said.stdout, said.stderr);
        }
        serde_json::from_str(&said.stdout)
            .with_context(|| format!("volume status said no JSON:\n{}", said.stdout))
    }

    /// Each component's state in `volume status`, by position: `live`, `missing` and so on.
    pub fn component_states(&self) -> Result<Vec<String>> {
        let status = self.status()?;
        let components =
            status["tree"]["components"].as_array().context("volume status lists no components")?;
        Ok(components.iter().map(|component| component["state"].as_str().unwrap_or("?").to_owned()).collect())
    }

    /// A counter of `volume status`, summed over the components.
    pub fn component_counter(&self, name: &str) -> Result<u64> {
        let status = self.status()?;
        let components =
            status["tree"]["components"].as_array().context("volume status lists no components")?;
        let counts = components.iter().map(|component| component[name].as_u64());
        counts
            .sum::<Option<u64>>()
            .with_context(|| format!("volume status has no counter {name} for each component"))
    }

    /// A counter of the serving process's front end, summed over its guests.
    pub fn guest_counter(&self, name: &str) -> Result<u64> {
        let status = self.status()?;
        let guests = status["served"]["guests"].as_array().context("volume status lists no guests")?;
        let counts = guests.iter().map(|guest| guest[name].as_u64());
        counts
            .sum::<Option<u64>>()
            .with_context(|| format!("volume status has no counter {name} for each guest"))
    }

    /// `volume status` for people.
    pub fn status_text(&self) -> Result<String> {
        let said = ringfort(&["volume", "status", &self.name()])?;
        if said.status != Some(0) {
            bail!("volume status ended with {:?}:\n{}{}", said.status, said.stdout, said.stderr);
        }
        Ok(said.stdout)
    }

    /// `volume check`, whatever it finds.
    pub fn check(&self) -> Result<Said> {
        ringfort(&["volume", "check", &self.name()])
    }

    /// `volume check`, which must find nothing; returns its report.
    pub fn require_clean(&self) -> Result<String> {
        let said = self.check()?;
        if said.status != Some(0) {
            bail!("volume check ended with {:?}:\n{}{}", said.status, said.stdout, said.stderr);
        }
        Ok(said.stdout)
    }

    /// `volume check --json`, which must find nothing.
    pub fn clean_report(&self) -> Result<serde_json::Value> {
        let said = ringfort(&["volume", "check", &self.name(), "--json"])?;
        if said.status != Some(0) {
            bail!("volume check ended with {:?}:\n{}{}", said.status, said.stdout, said.stderr);
        }
        serde_json::from_str(&said.stdout)
            .with_context(|| format!("volume check said no JSON:\n{}", said.stdout))
    }

    /// Tries to serve, which must be refused soon; returns what was said on standard error.
    pub fn require_refusal(&self, socket: &Path) -> Result<String> {
        let socket = socket.to_string_lossy();
        let said = ringfort(&["serve", &self.name(), "--virtiofs", &socket])?;
        match said.status {
            Some(0) => bail!("serve was not refused:\n{}{}", said.stdout, said.stderr),
            None => bail!("serve was killed by a signal:\n{}{}", said.stdout, said.stderr),
            Some(_) => Ok(said.stderr),
        }
    }

    fn away(&self, index: usize) -> PathBuf {
        self.folder.with_extension("away").join(format!("component-{index}"))
    }

    fn name(&self) -> String {
        self.folder.to_string_lossy().into_owned()
    }
}

/// A running `ringfort serve`. Dropping it kills it.
#[derive(Debug)]
pub struct Server {
    child: Child,
    log: PathBuf,
    ended: bool,
}

impl Server {
    /// Starts serving `volume` at `sockets` with further `options`, and returns when all of them listen. The log grows at
    /// `log`.
    pub fn start(volume: &Volume, sockets: &[&Path], options: &[&str], log: &Path) -> Result<Server> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("creating {}", log.display()))?;
        // The server dies with the thread that starts it, so that none outlives a killed test.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program()?).arg("serve").arg(volume.folder());
        for socket in sockets {
            command.arg("--virtiofs").arg(socket);
        }
        command.args(options);
        let errors = file.try_clone().context("cloning the log file")?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(errors)
            .spawn()
            .with_context(|| format!("starting {command:?}"))?;
        let mut server = Server { child, log: log.to_owned(), ended: false };
        let deadline = Instant::now() + START_TIMEOUT;
        while !all_listen(sockets)? {
            if let Some(status) = server.child.try_wait().context("waiting for the server")? {
                server.ended = true;
                bail!("serve ended with {status} before it listened; its log:\n{}", server.log_tail());
            }
            if Instant::now() > deadline {
                bail!("serve did not listen within {START_TIMEOUT:?}; its log:\n{}", server.log_tail());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// The process.
    pub fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// Everything that it and its predecessors on this log have said.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The last lines of the log: a server that meets failing reads says a lot.
    fn log_tail(&self) -> String {
        const LINES: usize = 80;
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }

    /// An error if the process has ended or panicked.
    pub fn require_alive(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait().context("looking at the server")? {
            self.ended = true;
            bail!("the server ended with {status}; its log:\n{}", self.log_tail());
        }
        require_no_panic(&self.log())
    }

    /// Kills it with SIGKILL, as a crash would.
    pub fn kill(mut self) -> Result<()> {
        self.require_alive()?;
        self.child.kill().context("killing the server")?;
        self.child.wait().context("waiting for the killed server")?;
        self.ended = true;
        Ok(())
    }

    /// Stops it with SIGTERM: it must end by itself with status 0 and without having panicked.
    pub fn stop(mut self) -> Result<()> {
        self.require_alive()?;
        let id = i32::try_from(self.child.id()).context("a process id beyond i32")?;
        kill(Pid::from_raw(id), Signal::SIGTERM).context("sending SIGTERM to the server")?;
        let status = wait(&mut self.child, STOP_TIMEOUT)?;
        match status {
            Some(status) => {
                self.ended = true;
                if !status.success() {
                    bail!("on SIGTERM the server ended with {status}; its log:\n{}", self.log_tail());
                }
                require_no_panic(&self.log())
            }
            None => bail!("the server did not stop within {STOP_TIMEOUT:?}; its log:\n{}", self.log_tail()),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if thread::panicking() {
            eprintln!("server log:\n{}", self.log_tail());
        }
    }
}

/// Whether each path is a socket that listens now; the file of a killed server's socket is still there, but does not.
fn all_listen(sockets: &[&Path]) -> Result<bool> {
    const LISTENING: &str = "00010000";
    let table = fs::read_to_string("/proc/net/unix").context("reading /proc/net/unix")?;
    let listening: Vec<&str> = table
        .lines()
        .filter(|line| line.split_whitespace().nth(3) == Some(LISTENING))
        .filter_map(|line| line.split_whitespace().nth(7))
        .collect();
    Ok(sockets.iter().all(|socket| listening.iter().any(|path| Path::new(path) == *socket)))
}

fn require_no_panic(log: &str) -> Result<()> {
    let lines: Vec<&str> = log.lines().collect();
    match lines.iter().position(|line| line.contains("panicked at") || line.contains("RUST_BACKTRACE")) {
        Some(at) => bail!("the log tells of a panic:\n{}", lines[at..lines.len().min(at + 40)].join("\n")),
        None => Ok(()),
    }
}

fn run_to_end(command: &mut Command, timeout: Duration) -> Result<Output> {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {command:?}"))?;
    let id = i32::try_from(child.id()).context("a process id beyond i32")?;
    let (done, finished) = std::sync::mpsc::channel::<()>();
    // Both pipes must be drained while it runs, which wait_with_output does; the time limit is kept beside it.
    let guard = thread::spawn(move || {
        let late = finished.recv_timeout(timeout) == Err(std::sync::mpsc::RecvTimeoutError::Timeout);
        if late {
            let _ = kill(Pid::from_raw(id), Signal::SIGKILL);
        }
        late
    });
    let output = child.wait_with_output();
    drop(done);
    let late = guard.join().unwrap_or(false);
    let output = output.with_context(|| format!("waiting for {command:?}"))?;
    if late {
        bail!(
            "{command:?} did not end within {timeout:?}; it said:\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output)
}

fn wait(child: &mut Child, timeout: Duration) -> Result<Option<ExitStatus>> {
    let deadline = Instant::now() + timeout;
    loop {
        let status = child.try_wait().context("waiting for a process")?;
        if status.is_some() || Instant::now() > deadline {
            return Ok(status);
        }
        thread::sleep(Duration::from_millis(10));
    }
}

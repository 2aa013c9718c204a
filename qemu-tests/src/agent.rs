//! Commands that run in the guest, driven over the agent's port. A command has succeeded only when the guest itself has
//! sent its exit status together with the boot's nonce.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::console::Console;
use crate::frame::{Frame, Kind};

/// Where the agent's program lies in the guest.
pub const AGENT: &str = "/bin/ringfort-guest-agent";

type Routes = Arc<Mutex<HashMap<u32, Sender<Frame>>>>;

/// The connection to one guest's agent.
#[derive(Debug)]
pub struct Agent {
    stream: UnixStream,
    routes: Routes,
    next_task: AtomicU32,
    nonce: String,
    console: Console,
}

/// What a finished command left.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The command as it was given.
    pub command: String,
    /// Its exit status; 128 plus the signal's number where one ended it.
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Outcome {
    /// The standard output of a command that succeeded; an error that shows both outputs for one that failed.
    pub fn success(self) -> Result<String> {
        if self.status == 0 {
            return Ok(self.stdout);
        }
        bail!(
            "in the guest, {:?} ended with status {} after {:?}\nstdout:\n{}\nstderr:\n{}",
            self.command,
            self.status,
            self.took,
            self.stdout,
            self.stderr
        )
    }
}

impl Agent {
    /// Connects to the port at `socket`, where QEMU listens.
    pub fn connect(socket: &Path, nonce: &str, console: Console) -> Result<Agent> {
        let deadline = Instant::now() + Duration::from_secs(20);
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error)
                    if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused)
                        && Instant::now() < deadline
                        && !console.ended() =>
                {
                    thread::sleep(Duration::from_millis(20));
                }
                Err(error) => {
                    return Err(error).with_context(|| {
                        format!("connecting to QEMU at {}; it said:\n{}", socket.display(), console.tail())
                    });
                }
            }
        };
        let routes = Routes::default();
        let reading = stream.try_clone().context("cloning the agent's socket")?;
        let routed = Arc::clone(&routes);
        thread::spawn(move || route(reading, &routed));
        Ok(Agent { stream, routes, next_task: AtomicU32::new(1), nonce: nonce.to_owned(), console })
    }

    /// Waits until the guest's agent has said this machine's nonce after the first `from_bytes` bytes of the console.
    pub fn wait_ready(&self, from_bytes: usize, timeout: Duration) -> Result<()> {
        self.console.expect_from(from_bytes, &format!("ringfort-guest: ready {}", self.nonce), timeout)
    }

    /// Starts a command; its output is collected while it runs.
    pub fn start(&self, arguments: &[&str]) -> Result<Task<'_>> {
        let number = self.next_task.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = channel();
        self.routes.lock().unwrap_or_else(PoisonError::into_inner).insert(number, sender);
        let mut payload = Vec::new();
        for argument in arguments {
            payload.extend_from_slice(argument.as_bytes());
            payload.push(0);
        }
        self.send(&Frame::new(Kind::Start, number, payload))?;
        Ok(Task {
            agent: self,
            number,
            receiver,
            started: Instant::now(),
            command: arguments.join(" "),
            stdout: Vec::new(),
            stderr: Vec::new(),
            status: None,
        })
    }

    /// Runs a command to its end.
    pub fn run(&self, arguments: &[&str], timeout: Duration) -> Result<Outcome> {
        self.start(arguments)?.finish(timeout)
    }

    /// Ends the connection: QEMU takes one at a time.
    pub fn hang_up(&self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    fn send(&self, frame: &Frame) -> Result<()> {
        frame
            .write_to(&mut &self.stream)
            .with_context(|| format!("sending a command to the guest; its console:\n{}", self.console.tail()))
    }
}

fn route(mut reading: UnixStream, routes: &Routes) {
    while let Ok(frame) = Frame::read_from(&mut reading) {
        let last = frame.kind == Kind::Exited;
        let mut routes = routes.lock().unwrap_or_else(PoisonError::into_inner);
        let number = frame.task;
        if let Some(sender) = routes.get(&number) {
            let _ = sender.send(frame);
        }
        if last {
            routes.remove(&number);
        }
    }
    // Dropping the senders tells every waiting task that nothing more will come.
    routes.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

/// A command under way in the guest.
#[derive(Debug)]
pub struct Task<'agent> {
    agent: &'agent Agent,
    number: u32,
    receiver: Receiver<Frame>,
    started: Instant,
    command: String,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    status: Option<i32>,
}

impl Task<'_> {
    /// What it has written to standard output so far.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// The same, as bytes.
    pub fn output(&self) -> &[u8] {
        &self.stdout
    }

    /// Whether its end was among what was taken.
    pub fn has_ended(&self) -> bool {
        self.status.is_some()
    }

    /// Waits until `enough` holds of the output so far; an error if the command ends or the time runs out before.
    pub fn wait_until(&mut self, enough: impl Fn(&str) -> bool, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        while !enough(&self.stdout()) {
            if self.status.is_some() {
                bail!("in the guest, {:?} ended early:\n{}", self.command, self.said());
            }
            self.receive(deadline)?;
        }
        Ok(())
    }

    /// Waits for the end.
    pub fn finish(mut self, timeout: Duration) -> Result<Outcome> {
        let deadline = Instant::now() + timeout;
        while self.status.is_none() {
            if let Err(error) = self.receive(deadline) {
                let _ = self.kill();
                return Err(error);
            }
        }
        Ok(Outcome {
            command: self.command.clone(),
            status: self.status.unwrap_or(-1),
            stdout: self.stdout(),
            stderr: String::from_utf8_lossy(&self.stderr).into_owned(),
            took: self.started.elapsed(),
        })
    }

    /// Takes what has come by now, without waiting.
    pub fn poll(&mut self) -> Result<()> {
        while let Ok(frame) = self.receiver.try_recv() {
            self.take(&frame)?;
        }
        Ok(())
    }

    /// Kills it with everything it started.
    pub fn kill(&self) -> Result<()> {
        self.agent.send(&Frame::new(Kind::Kill, self.number, vec![]))
    }

    /// Takes all that the guest said before something it needs was cut off: what has come and what is on its way. Returns
    /// when it falls silent, and for one that never does after `at_most`.
    pub fn drain(&mut self, at_most: Duration) -> String {
        const SILENCE: Duration = Duration::from_millis(300);
        let deadline = Instant::now() + at_most;
        while Instant::now() < deadline
            && self.status.is_none()
            && self.receive(Instant::now() + SILENCE).is_ok()
        {}
        self.stdout()
    }

    fn receive(&mut self, deadline: Instant) -> Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.receiver.recv_timeout(left) {
            Ok(frame) => self.take(&frame),
            Err(RecvTimeoutError::Timeout) => bail!(
                "in the guest, {:?} did not end in time (ran {:?})\n{}\nconsole:\n{}",
                self.command,
                self.started.elapsed(),
                self.said(),
                self.agent.console.tail()
            ),
            Err(RecvTimeoutError::Disconnected) => bail!(
                "the guest was cut off while {:?} ran\n{}\nconsole:\n{}",
                self.command,
                self.said(),
                self.agent.console.tail()
            ),
        }
    }

    fn take(&mut self, frame: &Frame) -> Result<()> {
        match frame.kind {
            Kind::Stdout => self.stdout.extend_from_slice(&frame.payload),
            Kind::Stderr => self.stderr.extend_from_slice(&frame.payload),
            Kind::Exited => {
                let (status, nonce) = frame.payload.split_at_checked(4).context("a short exit frame")?;
                if nonce != self.agent.nonce.as_bytes() {
                    bail!("an exit frame with a foreign nonce for {:?}", self.command);
                }
                self.status = Some(i32::from_le_bytes(status.try_into().context("a short exit frame")?));
            }
            other => bail!("the guest sent {other:?} for {:?}", self.command),
        }
        Ok(())
    }

    fn said(&self) -> String {
        format!("stdout:\n{}\nstderr:\n{}", self.stdout(), String::from_utf8_lossy(&self.stderr))
    }
}

//! QEMU's monitor: commands to the machine that the guest has no say in.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// A command may wait for the machine's devices to come to rest.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// A connection to the monitor of one machine.
#[derive(Debug)]
pub struct Monitor {
    reading: BufReader<UnixStream>,
}

impl Monitor {
    /// Connects to the monitor that listens at `socket`. QEMU takes one connection at a time.
    pub fn connect(socket: &Path) -> Result<Monitor> {
        let stream =
            UnixStream::connect(socket).with_context(|| format!("connecting to {}", socket.display()))?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT)).context("setting a timeout")?;
        let mut monitor = Monitor { reading: BufReader::new(stream) };
        monitor.receive().context("waiting for the monitor's greeting")?;
        monitor.run("qmp_capabilities", json!({}))?;
        Ok(monitor)
    }

    /// Runs a command and returns its answer; an error with the monitor's words for one that was refused.
    pub fn run(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        self.reading.get_mut().write_all(line.as_bytes()).with_context(|| format!("sending {command}"))?;
        loop {
            let answer = self.receive().with_context(|| format!("waiting for the answer to {command}"))?;
            if let Some(value) = answer.get("return") {
                return Ok(value.clone());
            }
            if let Some(error) = answer.get("error") {
                bail!("{command} was refused: {}", error["desc"].as_str().unwrap_or_default());
            }
            // What is neither tells of an event.
        }
    }

    fn receive(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.reading.read_line(&mut line).context("reading")? == 0 {
            bail!("the monitor hung up");
        }
        serde_json::from_str(&line).with_context(|| format!("no JSON: {line}"))
    }
}

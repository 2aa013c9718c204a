//! The `rf` program: a client of the channel, on the host.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::provision::workspace_program;
use crate::server::{Said, run};

const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// A client that connects for each call.
#[derive(Debug)]
pub struct Client {
    program: PathBuf,
    address: String,
}

impl Client {
    /// For the channel at this socket.
    pub fn new(socket: &Path) -> Result<Client> {
        let program = workspace_program("ringfort-rf", "rf")?;
        Ok(Client { program, address: format!("unix:{}", socket.display()) })
    }

    /// Runs one command to its end.
    pub fn run(&self, arguments: &[&str]) -> Result<Said> {
        let mut command = Command::new(&self.program);
        run(command.args(["--connect", &self.address]).args(arguments), CALL_TIMEOUT)
            .with_context(|| format!("rf {}", arguments.join(" ")))
    }

    /// Runs one command that must succeed; returns what it wrote.
    pub fn must(&self, arguments: &[&str]) -> Result<String> {
        let said = self.run(arguments)?;
        ensure!(said.status == Some(0), "rf {}: {said:?}", arguments.join(" "));
        Ok(said.stdout)
    }
}

//! A server that listens for programs of this host, without a guest.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tempfile::TempDir;

use crate::server::{Server, Volume};

const PATIENCE: Duration = Duration::from_secs(60);

/// A volume in a folder of its own, and its server.
#[derive(Debug)]
pub struct LocalServer {
    folder: TempDir,
    volume: Volume,
    server: Server,
}

impl LocalServer {
    /// Returns when clients can connect.
    pub fn start(size: &str) -> Result<LocalServer> {
        let folder = tempfile::tempdir()?;
        let volume = Volume::create(&folder.path().join("volume"), size)?;
        let address = format!("unix:{}", folder.path().join("channel").display());
        let server = Server::start(&volume, &[], &["--channel", &address], &folder.path().join("log"))?;
        let mut local = LocalServer { folder, volume, server };
        let (socket, began) = (local.socket(), Instant::now());
        // There before it is listened at.
        while UnixStream::connect(&socket).is_err() {
            local.server.require_alive()?;
            ensure!(began.elapsed() < PATIENCE, "no channel at {}", socket.display());
            thread::sleep(Duration::from_millis(20));
        }
        Ok(local)
    }

    /// What everything of this server lies in.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The socket of the channel.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("channel")
    }

    /// As clients are told it.
    pub fn address(&self) -> String {
        format!("unix:{}", self.socket().display())
    }

    /// Stops the server, and checks the volume.
    pub fn end(self) -> Result<()> {
        self.server.stop()?;
        self.volume.require_clean().map(drop)
    }
}

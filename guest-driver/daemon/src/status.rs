//! What a daemon is doing, for people and for scripts: asked over a socket of root's own, beside that of clients.

use std::fmt;
use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::holdings::{Holder, Holdings};

/// How long whoever asks, and whoever answers, waits for the other.
const WITHIN: Duration = Duration::from_secs(5);

/// A daemon's state at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Whether the server is reached. Clients can begin only then.
    pub connected: bool,
    /// Another number after each start of the server, in hexadecimal; none where it is not reached.
    pub server: Option<String>,
    /// The volume's, in hexadecimal.
    pub volume: Option<String>,
    /// Of clients that have memory.
    pub regions: usize,
    /// Memory that clients have.
    pub bytes: u64,
    pub bytes_max: u64,
    /// Memory of clients that are gone, which is kept until the server confirms that it uses it no more.
    pub unconfirmed_bytes: u64,
    /// Those that have memory, in the order in which they came.
    pub clients: Vec<ClientStatus>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientStatus {
    /// The number of its region, by which the log names it.
    pub region: u32,
    pub uid: u32,
    pub pid: i32,
    pub rings: u32,
    pub bytes: u64,
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Status {
    pub fn of(holdings: &Holdings) -> Status {
        let welcome = holdings.link().map(|link| link.welcome);
        let client = |holder: Holder| ClientStatus {
            region: holder.region,
            uid: holder.uid,
            pid: holder.pid,
            rings: holder.ring_count,
            bytes: holder.len_bytes,
        };
        let clients: Vec<_> = holdings.holders().into_iter().map(client).collect();
        Status {
            connected: welcome.is_some(),
            server: welcome.map(|welcome| hexadecimal(&welcome.server)),
            volume: welcome.map(|welcome| hexadecimal(&welcome.volume)),
            regions: clients.len(),
            bytes: clients.iter().map(|client| client.bytes).sum(),
            bytes_max: holdings.bounds().memory_bytes_max,
            unconfirmed_bytes: holdings.retired_bytes(),
            clients,
        }
    }

    /// Asks the daemon that serves clients at this socket.
    pub fn ask(clients: &Path) -> Result<Status> {
        let path = socket(clients);
        let ask = || {
            let mut stream = UnixStream::connect(&path)?;
            stream.set_read_timeout(Some(WITHIN))?;
            let mut said = String::new();
            stream.read_to_string(&mut said)?;
            std::io::Result::Ok(said)
        };
        let said = ask().with_context(|| {
            format!(
                "ask the daemon at {}: does `ringfort-guestd` run there, and is this root",
                path.display()
            )
        })?;
        serde_json::from_str(&said).with_context(|| format!("{} answers something else", path.display()))
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.server {
            Some(server) => write!(f, "connected to server {server}")?,
            None => write!(f, "not connected: the server is not there")?,
        }
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        write!(f, "\n{} clients with {} of {} MiB", self.regions, mib(self.bytes), mib(self.bytes_max))?;
        if self.unconfirmed_bytes > 0 {
            write!(f, "\n{} MiB wait for the server to let go of them", mib(self.unconfirmed_bytes))?;
        }
        for ClientStatus { uid, pid, rings, bytes, .. } in &self.clients {
            write!(f, "\nprocess {pid} of user {uid}: {rings} rings, {} MiB", mib(*bytes))?;
        }
        Ok(())
    }
}

/// Where the daemon that serves clients at a socket is asked.
pub fn socket(clients: &Path) -> PathBuf {
    clients.with_extension("status")
}

/// Listens for questions about the daemon that serves clients at `clients`.
pub fn listen(clients: &Path) -> Result<UnixListener> {
    let path = socket(clients);
    // Whoever served it is gone: the lock of the clients' socket says so.
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(&path).with_context(|| format!("listen on {}", path.display()))?;
    let own = fs::set_permissions(&path, Permissions::from_mode(0o600));
    own.with_context(|| format!("close {} to others", path.display()))?;
    Ok(listener)
}

/// Answers, for ever.
pub fn serve(listener: &UnixListener, holdings: &Holdings) {
    for stream in listener.incoming() {
        let answered = stream.and_then(|mut stream| {
            stream.set_write_timeout(Some(WITHIN))?;
            stream.write_all(&serde_json::to_vec(&Status::of(holdings))?)
        });
        if let Err(error) = answered {
            tracing::debug!(%error, "a question was not answered");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

//! A volume to measure: component files, served by a `ringfort` process of its own, and driven through the channel that it has on this host.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringfort_guest::{File, Open, Options, connect_with};
use ringfort_qemu_tests::place::RunFolder;
use ringfort_qemu_tests::server::{Server, Volume, ringfort};
use serde_json::Value;

use crate::claims::{Commands, require_equal};

/// Data 4+2 on six files; the first three carry the metadata mirrors.
pub const COMPONENTS: usize = 6;

/// To open a volume, recovery included.
const SERVES_WITHIN: Duration = Duration::from_secs(90);
/// Between two looks whether a server listens: a thousandth of what recovery may take.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// Makes a volume in a folder of the caller's, written in full, as rivals' files are.
pub fn create(folder: &Path, size_bytes: u64, log_bytes: u64) -> Result<Volume> {
    let [size, log] = [size_bytes, log_bytes].map(|bytes| bytes.to_string());
    Volume::create_with(folder, &size, &["--log", &log, "--preallocation", "full"])
}

/// Starts servers, one after the other, all at one address.
pub struct Servers {
    socket: PathBuf,
    log: PathBuf,
    /// The most memory that any of them has had.
    peak_rss_kib: Cell<u64>,
}

/// A server that takes commands, and its only client.
pub struct Served<'a> {
    servers: &'a Servers,
    volume: &'a Volume,
    server: Server,
    pub client: ringfort_guest::Volume,
    /// When its process was started.
    pub started: Instant,
}

impl Servers {
    pub fn new(folder: &RunFolder) -> Self {
        Self {
            socket: folder.socket("channel"),
            log: folder.path().join("server.log"),
            peak_rss_kib: Cell::new(0),
        }
    }

    /// Starts one, which is the caller's to end.
    pub fn start<'a>(&'a self, volume: &'a Volume) -> Result<Served<'a>> {
        let address = format!("unix:{}", self.socket.display());
        let started = Instant::now();
        // No blocks that were read lately: figures are of the store, and the rivals have no cache either.
        let options = ["--channel", &address, "--data-cache", "0"];
        let mut server = Server::start(volume, &[], &options, &self.log)?;
        let options = Options { rings: 1, queues: 1, ..Options::default() };
        let client = loop {
            match connect_with(&self.socket, &options) {
                Ok(client) => break client,
                Err(error) if started.elapsed() > SERVES_WITHIN => {
                    return Err(error).context("reaching a server that was started");
                }
                Err(_) => server.require_alive()?,
            }
            thread::sleep(LOOK_INTERVAL);
        };
        Ok(Served { servers: self, volume, server, client, started })
    }

    /// Serves the volume for `work`, and stops.
    pub fn with<T>(&self, volume: &Volume, work: impl FnOnce(&Served<'_>) -> Result<T>) -> Result<T> {
        let served = self.start(volume)?;
        let done = work(&served)?;
        served.stop()?;
        Ok(done)
    }

    pub fn peak_rss_mib(&self) -> f64 {
        self.peak_rss_kib.get() as f64 / 1024.0
    }
}

impl Served<'_> {
    /// Opens a file in the root directory, empty and new.
    pub fn create_file(&self, name: &str) -> Result<File> {
        // There is none the first time.
        let _ = self.client.remove_file(name);
        self.client
            .open(name, Open::to_write().create(0o600).exclusive())
            .with_context(|| format!("make {name}"))
    }

    pub fn open_file(&self, name: &str) -> Result<File> {
        self.client.open(name, Open::to_write()).with_context(|| format!("open {name}"))
    }

    /// Every byte that is on its way to a stripe arrives there.
    pub fn checkpoint(&self) -> Result<()> {
        let said = ringfort(&["volume", "checkpoint", &self.volume.folder().to_string_lossy()])?;
        ensure!(said.status == Some(0), "volume checkpoint ended with {:?}: {}", said.status, said.stderr);
        Ok(())
    }

    pub fn counts(&self) -> Result<Counts> {
        Counts::of(&self.volume.status()?)
    }

    /// Log that was replayed when the volume was opened, in bytes.
    pub fn replayed_log_bytes(&self) -> Result<u64> {
        number(&self.volume.status()?["recovery"], "replayed_log_bytes")
    }

    /// Ends it as an operator does.
    pub fn stop(self) -> Result<()> {
        self.note_memory()?;
        drop(self.client);
        self.server.stop()
    }

    /// Ends it as a crash does.
    pub fn kill(self) -> Result<()> {
        self.note_memory()?;
        self.server.kill()
    }

    fn note_memory(&self) -> Result<()> {
        let path = format!("/proc/{}/status", self.server.process_id());
        let status = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let line = line.with_context(|| format!("no VmHWM in {path}"))?;
        let kib = line.trim().trim_end_matches(" kB").parse().with_context(|| format!("read {line:?}"))?;
        self.servers.peak_rss_kib.set(self.servers.peak_rss_kib.get().max(kib));
        Ok(())
    }
}

/// What a server has counted up to one moment.
pub struct Counts {
    commands: Commands,
    moved: Moved,
}

/// Bytes and requests.
#[derive(Clone, Copy)]
pub struct Moved {
    pub log_and_stripe_bytes: u64,
    pub metadata_log_bytes: u64,
    /// Written by clients, as the store counts them.
    pub user_bytes: u64,
    /// Of all components together.
    pub device_reads: u64,
    pub device_write_bytes: u64,
    pub device_flushes: u64,
    /// As the channel counts them.
    channel_read_bytes: u64,
    channel_written_bytes: u64,
}

impl Counts {
    fn of(status: &Value) -> Result<Self> {
        let counters = &status["counters"];
        let channel = &status["served"]["channels"][0];
        let components =
            status["tree"]["components"].as_array().context("volume status lists no components")?;
        let device = |name| components.iter().map(|component| number(component, name)).sum::<Result<u64>>();
        let moved = Moved {
            log_and_stripe_bytes: number(counters, "log_bytes")? + number(counters, "stripe_bytes")?,
            metadata_log_bytes: number(counters, "metadata_log_bytes")?,
            user_bytes: number(counters, "user_bytes")?,
            device_reads: device("reads")?,
            device_write_bytes: device("write_bytes")?,
            device_flushes: device("flushes")?,
            channel_read_bytes: number(channel, "read_bytes")?,
            channel_written_bytes: number(channel, "written_bytes")?,
        };
        Ok(Self { commands: Commands::of(status)?, moved })
    }

    /// What has been counted since, once it is what was asked for: so many bytes written and read, by these commands and no others.
    pub fn claim(&self, before: &Self, written: u64, read: u64, commands: &Value) -> Result<Moved> {
        let since = self.since(before);
        require_equal("user bytes in the store", since.user_bytes, written)?;
        require_equal("bytes written through the channel", since.channel_written_bytes, written)?;
        require_equal("bytes read through the channel", since.channel_read_bytes, read)?;
        self.commands.require(&before.commands, commands)?;
        Ok(since)
    }

    pub fn since(&self, before: &Self) -> Moved {
        let grown = |of: fn(&Moved) -> u64| of(&self.moved) - of(&before.moved);
        Moved {
            log_and_stripe_bytes: grown(|moved| moved.log_and_stripe_bytes),
            metadata_log_bytes: grown(|moved| moved.metadata_log_bytes),
            user_bytes: grown(|moved| moved.user_bytes),
            device_reads: grown(|moved| moved.device_reads),
            device_write_bytes: grown(|moved| moved.device_write_bytes),
            device_flushes: grown(|moved| moved.device_flushes),
            channel_read_bytes: grown(|moved| moved.channel_read_bytes),
            channel_written_bytes: grown(|moved| moved.channel_written_bytes),
        }
    }
}

fn number(of: &Value, name: &str) -> Result<u64> {
    of[name].as_u64().with_context(|| format!("volume status has no {name}"))
}

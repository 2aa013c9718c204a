//! `ringfort serve`

use std::io::IsTerminal;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use ringfort_frontend::virtiofs::CachePolicy;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::admin::protocol::{Answer, RequestKind};
use crate::admin::{AdminServer, Source};
use crate::assemble::{ServedVolume, Settings, VolumeRemote};
use crate::cli::{self, Cache};
use crate::lock::{DirectoryLock, Purpose};
use crate::volume_file::VolumeFile;

/// How often to look whether the volume's thread still lives.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

pub fn run(arguments: &cli::Serve) -> Result<ExitCode> {
    let directory = &arguments.directory;
    let file = VolumeFile::load(directory)?;
    for (index, socket) in arguments.sockets.iter().enumerate() {
        if arguments.sockets[..index].contains(socket) {
            bail!("--virtiofs {} is given twice; each guest needs a socket of its own", socket.display());
        }
    }
    let _lock = DirectoryLock::take(directory, Purpose::Serve)?;
    let settings = Settings {
        components: file.all_components(directory),
        sockets: arguments.sockets.clone(),
        cache: match arguments.cache {
            Cache::Never => CachePolicy::Never,
            Cache::Auto => CachePolicy::Auto,
            Cache::Always => CachePolicy::Always,
        },
        commit_interval: Duration::from_millis(arguments.commit_interval_ms),
        memory_bytes: arguments.memory.unwrap_or(file.memory).0,
        override_membership: arguments.override_membership,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the control plane's runtime")?;
    let served = runtime.block_on(control(arguments, settings));
    // What still runs there is a start or a stop that was given up.
    runtime.shutdown_background();
    served
}

async fn control(arguments: &cli::Serve, settings: Settings) -> Result<ExitCode> {
    let mut signals = Signals::new()?;
    let mut start = tokio::task::spawn_blocking(move || ServedVolume::start(settings));
    let volume = tokio::select! {
        volume = &mut start => volume.context("start the volume")??,
        () = signals.stop() => {
            // Opening cannot be broken off midway in good order, but it can be followed by closing.
            tracing::info!("stopping as soon as the volume is open");
            let volume = tokio::select! {
                volume = start => volume.context("start the volume")??,
                () = signals.stop() => return at_once(),
            };
            return stop(volume, &mut signals).await;
        }
    };
    let admin = match AdminServer::bind(&arguments.directory) {
        Ok(admin) => admin,
        Err(error) => {
            stop(volume, &mut signals).await?;
            return Err(error);
        }
    };
    let admin = tokio::spawn(admin.run(Arc::new(VolumeSource(volume.remote()))));
    for socket in &arguments.sockets {
        tracing::info!("listening on {}", socket.display());
    }
    notify(&[sd_notify::NotifyState::Ready]);
    tracing::info!("ready");
    if std::io::stdout().is_terminal() {
        println!("ready; stop with Ctrl-C");
    }

    let mut watch = tokio::time::interval(WATCH_INTERVAL);
    let ended = loop {
        tokio::select! {
            () = signals.stop() => break false,
            _ = watch.tick() => {
                if volume.has_ended() {
                    break true;
                }
            }
        }
    };
    notify(&[sd_notify::NotifyState::Stopping]);
    admin.abort();
    let _ = admin.await;
    let code = stop(volume, &mut signals).await?;
    if ended {
        return Err(anyhow!("the volume's thread ended without being asked"));
    }
    Ok(code)
}

async fn stop(volume: ServedVolume, signals: &mut Signals) -> Result<ExitCode> {
    tracing::info!(
        "stopping: requests are finished, then everything is synced; a second signal exits at once"
    );
    let stopping = tokio::task::spawn_blocking(move || volume.stop());
    tokio::select! {
        stopped = stopping => {
            stopped.context("stop the volume")??;
            tracing::info!("stopped");
            Ok(ExitCode::SUCCESS)
        }
        () = signals.stop() => at_once(),
    }
}

fn at_once() -> Result<ExitCode> {
    tracing::warn!("second signal: exiting at once; what was synced is safe");
    std::process::exit(2)
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let listen = |kind| signal(kind).context("listen for signals");
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    /// Resolves at the next SIGTERM or SIGINT.
    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Tells the service manager, if there is one.
fn notify(state: &[sd_notify::NotifyState]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!("tell the service manager: {error}");
    }
}

/// Answers operators from the running volume.
struct VolumeSource(VolumeRemote);

impl Source for VolumeSource {
    fn answer(&self, request: RequestKind) -> Pin<Box<dyn Future<Output = Answer> + Send + '_>> {
        Box::pin(async move {
            match request {
                RequestKind::Status => match self.0.status().await {
                    Some(status) => Answer::Status(Box::new(status)),
                    None => Answer::Error("the volume is being closed; ask again in a moment".into()),
                },
            }
        })
    }
}

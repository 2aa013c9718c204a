//! `ringfort serve`

use std::io::{IsTerminal, Write};
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;

use crate::admin::protocol::{Answer, RequestKind, ViewRequest};
use crate::admin::{AdminServer, Source};
use crate::assemble::{ServedVolume, Settings, SocketSettings, VolumeRemote};
use crate::cli::{self, LogFlags};
use crate::config::{self, Config, Layer, Origin, Setting, Socket};
use crate::lock::{DirectoryLock, Purpose};
use crate::logging;
use crate::metrics::{self, MetricsServer};
use crate::report::{HealthStatus, Status};
use crate::service_manager::ServiceManager;
use crate::size::ByteSize;
use crate::volume_file::VolumeFile;

/// How often to look whether the volume's thread still lives.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// How often the service manager's line about the volume is brought up to date.
const STATUS_INTERVAL: Duration = Duration::from_secs(15);

pub fn run(arguments: &cli::Serve, log: &LogFlags) -> Result<ExitCode> {
    let (config, file) = configure(arguments, log)?;
    if arguments.print_config {
        std::io::stdout().write_all(config.to_toml()?.as_bytes()).context("write to standard output")?;
        return Ok(ExitCode::SUCCESS);
    }
    logging::start(&config.log_level.value, config.log_format.value);
    let directory = &config.volume.value;
    let _lock = DirectoryLock::take(directory, Purpose::Serve)?;
    let settings = Settings {
        components: file.all_components(directory),
        sockets: config.sockets.iter().map(socket_settings).collect(),
        channels: config.channels.iter().map(|channel| channel.value.clone()).collect(),
        commit_interval: Duration::from_millis(config.commit_interval_ms.value),
        busy_poll: Duration::from_micros(config.busy_poll_us.value),
        memory_bytes: config.memory.value.0,
        data_cache_bytes: config.data_cache.value.0,
        override_membership: arguments.override_membership,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the control plane's runtime")?;
    let served = runtime.block_on(control(&config, settings));
    // What still runs there is a start or a stop that was given up.
    runtime.shutdown_background();
    served
}

/// What flags, environment, files and defaults come to.
fn configure(arguments: &cli::Serve, log: &LogFlags) -> Result<(Config, VolumeFile)> {
    let mut said = arguments.layer(log).over(logging::environment());
    if let Some(path) = &arguments.config {
        said = said.over(config::load(path)?);
    }
    let Some(volume) = &said.volume else {
        bail!("no volume is named: give its directory, or `volume` in the file of --config");
    };
    let file = VolumeFile::load(&volume.value)?;
    let of_volume = Layer { memory: Some(Setting::new(file.memory, Origin::VolumeFile)), ..Layer::default() };
    Ok((Config::of(said.over(of_volume))?, file))
}

fn socket_settings(socket: &Socket) -> SocketSettings {
    SocketSettings {
        path: socket.path.value.clone(),
        cache: socket.cache.value,
        writeback: socket.writeback.value,
        queues: socket.queues.value,
        clone: socket.clone.as_ref().map(|clone| clone.value.clone()),
    }
}

async fn control(config: &Config, settings: Settings) -> Result<ExitCode> {
    let manager = ServiceManager::of_environment();
    let mut signals = Signals::new()?;
    manager.status("opening the volume");
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
            return stop(volume, &mut signals, manager).await;
        }
    };
    let (admin, metrics) = match open_to_operators(config, &volume.remote()) {
        Ok(listening) => listening,
        Err(error) => {
            stop(volume, &mut signals, manager).await?;
            return Err(error);
        }
    };
    for channel in &config.channels {
        tracing::info!("a channel begins at {}", channel.value);
    }
    announce(&volume.remote(), manager).await;

    let ended = watch(&volume, &mut signals, manager).await;
    // Dropping what answers operators removes its sockets.
    for task in [Some(admin), metrics].into_iter().flatten() {
        task.abort();
        let _ = task.await;
    }
    let code = stop(volume, &mut signals, manager).await?;
    if ended {
        return Err(anyhow!("the volume's thread ended without being asked"));
    }
    Ok(code)
}

/// Starts to answer operators, and scrapers where they are wanted.
fn open_to_operators(
    config: &Config,
    remote: &VolumeRemote,
) -> Result<(JoinHandle<()>, Option<JoinHandle<()>>)> {
    let admin = AdminServer::bind(&config.volume.value)?;
    let metrics = config.metrics.as_ref().map(|address| MetricsServer::bind(&address.value)).transpose()?;
    let source = Arc::new(VolumeSource(remote.clone()));
    let metrics = metrics.map(|metrics| {
        tracing::info!("metrics are served on {}, at /metrics", metrics.address());
        tokio::spawn(metrics.run(source.clone()))
    });
    Ok((tokio::spawn(admin.run(source)), metrics))
}

/// Says what is served, to the log, the service manager and whoever sits at the terminal.
async fn announce(remote: &VolumeRemote, manager: ServiceManager) {
    if let Some(status) = remote.status().await {
        let health = status.health.name();
        let [size_bytes, used_bytes] =
            status.space.map_or([0; 2], |space| [space.total_bytes, space.live_bytes]);
        let [size, used] = [size_bytes, used_bytes].map(ByteSize);
        let (live, all) = (status.live_components(), status.tree.components.len());
        tracing::info!(
            volume = status.volume,
            size_bytes,
            used_bytes,
            health,
            "serving {size}, {used} used, {health}, {live} of {all} components in use"
        );
        for guest in status.served.iter().flat_map(|served| &served.guests) {
            tracing::info!(
                cache = guest.cache,
                writeback = guest.writeback,
                queues = guest.queues,
                "listening on {}",
                guest.socket.display()
            );
        }
        if status.health != HealthStatus::Healthy {
            tracing::warn!(
                volume = status.volume,
                "the volume is {health}: `ringfort volume status` names the components, `ringfort volume replace` puts \
                 new ones in their places"
            );
        }
        manager.ready(&summary(&status));
    } else {
        manager.ready("serving");
    }
    tracing::info!("ready");
    if std::io::stdout().is_terminal() {
        println!("ready; stop with Ctrl-C");
    }
}

/// One line for a service manager's status.
fn summary(status: &Status) -> String {
    let guests = status.served.as_ref().map_or(0, |served| served.guests.len());
    let used = status.space.map_or(ByteSize(0), |space| ByteSize(space.live_bytes));
    let health = status.health.name();
    format!("serving volume {} on {guests} sockets, {health}, {used} used", status.volume)
}

/// Until a signal to stop, or until the volume's thread has ended, which is what it returns. Meanwhile the service manager
/// gets signs of life, each of which the volume's thread has given itself.
async fn watch(volume: &ServedVolume, signals: &mut Signals, manager: ServiceManager) -> bool {
    let signs = async {
        let Some(interval) = manager.sign_interval() else { return std::future::pending().await };
        let remote = volume.remote();
        let mut due = tokio::time::interval(interval);
        due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            due.tick().await;
            if remote.is_alive().await {
                manager.sign_of_life();
            }
        }
    };
    let reports = async {
        let remote = volume.remote();
        let mut last = String::new();
        let mut due = tokio::time::interval(STATUS_INTERVAL);
        due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            due.tick().await;
            let now = remote.status().await.map_or_else(|| last.clone(), |status| summary(&status));
            if now != last {
                manager.status(&now);
                last = now;
            }
        }
    };
    let ended = async {
        let mut due = tokio::time::interval(WATCH_INTERVAL);
        while !volume.has_ended() {
            due.tick().await;
        }
    };
    tokio::select! {
        () = signals.stop() => false,
        () = ended => true,
        () = signs => false,
        () = reports => false,
    }
}

async fn stop(volume: ServedVolume, signals: &mut Signals, manager: ServiceManager) -> Result<ExitCode> {
    tracing::info!(
        "stopping: requests are finished, then everything is synced; a second signal exits at once"
    );
    manager.stopping("finishing requests, then syncing");
    // How long this may take is the service manager's to bound by its own clock for stopping.
    let signs = async {
        let Some(interval) = manager.sign_interval() else { return std::future::pending::<()>().await };
        let mut due = tokio::time::interval(interval);
        loop {
            due.tick().await;
            manager.sign_of_life();
        }
    };
    let stopping = tokio::task::spawn_blocking(move || volume.stop());
    tokio::select! {
        () = signs => unreachable!("signs of life do not end"),
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

/// SIGTERM and SIGINT stop. SIGHUP, which a closing terminal sends and some tools use for "read your settings again", does
/// nothing: settings are read at the start, and the default would be to die without closing the volume.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    _hangup: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let listen = |kind| signal(kind).context("listen for signals");
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            _hangup: listen(SignalKind::hangup())?,
        })
    }

    /// Resolves at the next SIGTERM or SIGINT.
    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Answers operators from the running volume.
struct VolumeSource(VolumeRemote);

impl Source for VolumeSource {
    fn answer(&self, request: RequestKind) -> Pin<Box<dyn Future<Output = Answer> + Send + '_>> {
        Box::pin(async move {
            let answer = match request {
                RequestKind::Status => self.0.status().await.map(|status| Answer::Status(Box::new(status))),
                RequestKind::Checkpoint => self.0.checkpoint().await.map(|done| match done {
                    Ok(()) => Answer::Checkpointed,
                    Err(error) => Answer::Error(error.to_string()),
                }),
                RequestKind::Views(request) => {
                    let lists = request == ViewRequest::List;
                    self.0.views(request).await.map(|done| match done {
                        Ok(list) if lists => Answer::Views(list),
                        Ok(_) => Answer::Done,
                        Err(error) => Answer::Error(error.to_string()),
                    })
                }
            };
            answer
                .unwrap_or_else(|| Answer::Error("the volume is being closed; ask again in a moment".into()))
        })
    }
}

impl metrics::Source for VolumeSource {
    fn report(&self) -> Pin<Box<dyn Future<Output = Option<Status>> + Send + '_>> {
        Box::pin(self.0.status())
    }
}

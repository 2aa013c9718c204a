//! What one source says, and what is in force when all have spoken.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ringfort_engine::local::LocalOptions;
use ringfort_frontend::virtiofs::REQUEST_QUEUES_DEFAULT;
use ringfort_store::limits::{COMMIT_INTERVAL_DEFAULT, DATA_CACHE_BYTES_DEFAULT};

use super::setting::Setting;
use super::value::{Cache, ChannelAddress, LogFilter, LogFormat, MetricsAddress};
use crate::size::ByteSize;

/// What a single source says. Fields that it says nothing of are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layer {
    pub volume: Option<Setting<PathBuf>>,
    pub sockets: Vec<SocketLayer>,
    pub channels: Vec<Setting<ChannelAddress>>,
    pub cache: Option<Setting<Cache>>,
    pub writeback: Option<Setting<bool>>,
    pub queues: Option<Setting<u64>>,
    pub commit_interval_ms: Option<Setting<u64>>,
    pub busy_poll_us: Option<Setting<u64>>,
    pub memory: Option<Setting<ByteSize>>,
    pub data_cache: Option<Setting<ByteSize>>,
    pub metrics: Option<Setting<MetricsAddress>>,
    pub log_level: Option<Setting<LogFilter>>,
    pub log_format: Option<Setting<LogFormat>>,
}

/// One virtio-fs socket, with what is said of it alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketLayer {
    pub path: Setting<PathBuf>,
    pub cache: Option<Setting<Cache>>,
    pub writeback: Option<Setting<bool>>,
    pub queues: Option<Setting<u64>>,
    /// The clone that is the guest's filesystem; the volume itself where none is named.
    pub clone: Option<Setting<String>>,
}

impl Layer {
    /// This layer over a weaker one. A list of sockets, or of channels, replaces the weaker list as a whole.
    pub fn over(self, weaker: Layer) -> Layer {
        Layer {
            volume: self.volume.or(weaker.volume),
            sockets: if self.sockets.is_empty() { weaker.sockets } else { self.sockets },
            channels: if self.channels.is_empty() { weaker.channels } else { self.channels },
            cache: self.cache.or(weaker.cache),
            writeback: self.writeback.or(weaker.writeback),
            queues: self.queues.or(weaker.queues),
            commit_interval_ms: self.commit_interval_ms.or(weaker.commit_interval_ms),
            busy_poll_us: self.busy_poll_us.or(weaker.busy_poll_us),
            memory: self.memory.or(weaker.memory),
            data_cache: self.data_cache.or(weaker.data_cache),
            metrics: self.metrics.or(weaker.metrics),
            log_level: self.log_level.or(weaker.log_level),
            log_format: self.log_format.or(weaker.log_format),
        }
    }
}

/// Everything that is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub volume: Setting<PathBuf>,
    pub sockets: Vec<Socket>,
    pub channels: Vec<Setting<ChannelAddress>>,
    pub commit_interval_ms: Setting<u64>,
    pub busy_poll_us: Setting<u64>,
    pub memory: Setting<ByteSize>,
    pub data_cache: Setting<ByteSize>,
    pub metrics: Option<Setting<MetricsAddress>>,
    pub log_level: Setting<LogFilter>,
    pub log_format: Setting<LogFormat>,
}

/// One virtio-fs socket and what holds for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    pub path: Setting<PathBuf>,
    pub cache: Setting<Cache>,
    pub writeback: Setting<bool>,
    pub queues: Setting<u64>,
    /// The clone that is the guest's filesystem.
    pub clone: Option<Setting<String>>,
}

impl Config {
    /// Fills what no layer says with defaults; refuses what cannot be served. Paths become absolute.
    pub fn of(said: Layer) -> Result<Self> {
        let Some(volume) = said.volume else {
            bail!("no volume is named: give its directory, or `volume` in the file of --config");
        };
        let Some(memory) = said.memory else {
            bail!("no bound of memory is set: give --memory");
        };
        if said.sockets.is_empty() && said.channels.is_empty() {
            bail!(
                "no socket is named: give --virtiofs SOCKET or --channel unix:PATH, or [[virtiofs]] or `channel` in the file of \
                 --config"
            );
        }
        let sockets = said
            .sockets
            .into_iter()
            .map(|socket| {
                Ok(Socket {
                    path: absolute(socket.path)?,
                    cache: narrowest(socket.cache, &said.cache, Cache::Auto),
                    writeback: narrowest(socket.writeback, &said.writeback, false),
                    queues: narrowest(socket.queues, &said.queues, REQUEST_QUEUES_DEFAULT as u64),
                    clone: socket.clone,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        for (index, Socket { path, cache, writeback, .. }) in sockets.iter().enumerate() {
            if writeback.value && cache.value == Cache::Never {
                bail!(
                    "socket {}: writeback ({}) gathers writes in the guest's cache, and cache is never ({}); \
                     choose another cache, or no writeback",
                    path.value.display(),
                    writeback.origin,
                    cache.origin
                );
            }
            if let Some(earlier) = sockets[..index].iter().find(|earlier| earlier.path.value == path.value) {
                bail!(
                    "socket {} is given twice ({} and {}); each guest needs one of its own",
                    path.value.display(),
                    earlier.path.origin,
                    path.origin
                );
            }
        }
        let metrics = match said.metrics {
            Some(Setting { value: MetricsAddress::Unix(path), origin }) => {
                let path = absolute_path(&path)?;
                if sockets.iter().any(|socket| socket.path.value == path) {
                    bail!("metrics and a guest cannot share the socket {}", path.display());
                }
                Some(Setting::new(MetricsAddress::Unix(path), origin))
            }
            other => other,
        };
        let channels = said
            .channels
            .into_iter()
            .map(|channel| checked_channel(channel, &sockets, metrics.as_ref()))
            .collect::<Result<Vec<_>>>()?;
        for (index, channel) in channels.iter().enumerate() {
            if let Some(earlier) =
                channels[..index].iter().find(|earlier| conflict(&earlier.value, &channel.value))
            {
                bail!(
                    "channel {} ({}) is for the same socket or machine as {} ({}); name each once",
                    channel.value,
                    channel.origin,
                    earlier.value,
                    earlier.origin
                );
            }
        }
        Ok(Self {
            volume: absolute(volume)?,
            sockets,
            channels,
            commit_interval_ms: said
                .commit_interval_ms
                .unwrap_or(Setting::default(COMMIT_INTERVAL_DEFAULT.as_millis() as u64)),
            busy_poll_us: said
                .busy_poll_us
                .unwrap_or(Setting::default(LocalOptions::default().busy_poll.as_micros() as u64)),
            memory,
            data_cache: said.data_cache.unwrap_or(Setting::default(ByteSize(DATA_CACHE_BYTES_DEFAULT))),
            metrics,
            log_level: said.log_level.unwrap_or(Setting::default(LogFilter::info())),
            log_format: said.log_format.unwrap_or(Setting::default(LogFormat::Text)),
        })
    }
}

/// The name of the machine that connects to a virtio-fs socket: `vm1` for `/run/ringfort/vm1.sock`.
pub fn machine_name(socket: &Path) -> String {
    socket.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// A channel whose path is absolute, nobody else's, and whose machine is known.
fn checked_channel(
    channel: Setting<ChannelAddress>,
    sockets: &[Socket],
    metrics: Option<&Setting<MetricsAddress>>,
) -> Result<Setting<ChannelAddress>> {
    let Setting { value, origin } = channel;
    let directory =
        std::env::current_dir().context("find the working directory, which a relative path begins at")?;
    let value = value.below(&directory);
    if let Some(path) = value.path() {
        let of_metrics = metrics
            .is_some_and(|metrics| matches!(&metrics.value, MetricsAddress::Unix(other) if other == path));
        if of_metrics || sockets.iter().any(|socket| socket.path.value == path) {
            bail!("the channel cannot share the socket {} with a guest or with metrics", path.display());
        }
    }
    if let ChannelAddress::Guest { machine, .. } = &value {
        let names: Vec<String> = sockets.iter().map(|socket| machine_name(&socket.path.value)).collect();
        match names.iter().filter(|name| *name == machine).count() {
            1 => {}
            0 => bail!(
                "channel {value} ({origin}): no virtio-fs socket is named {machine}.sock; the machines are: {}",
                if names.is_empty() { "none".to_owned() } else { names.join(", ") }
            ),
            _ => bail!(
                "channel {value} ({origin}): several virtio-fs sockets are named {machine}; give them different file names"
            ),
        }
    }
    Ok(Setting::new(value, origin))
}

/// Whether both are about one socket, machine or CID.
fn conflict(one: &ChannelAddress, other: &ChannelAddress) -> bool {
    use ringfort_frontend::channel::Carrier::Vsock;
    match (one, other) {
        (
            ChannelAddress::Guest { machine, carrier, .. },
            ChannelAddress::Guest { machine: other_machine, carrier: other_carrier, .. },
        ) => {
            let same_cid = matches!((carrier, other_carrier), (Vsock { cid }, Vsock { cid: other_cid }) if cid == other_cid);
            machine == other_machine || same_cid || (one.path().is_some() && one.path() == other.path())
        }
        _ => one.path() == other.path(),
    }
}

/// What holds for one socket: a flag for all sockets goes before what the file says of one, or it would override
/// nothing; among the words of one source, those about this socket go before those about all.
fn narrowest<T: Clone>(own: Option<Setting<T>>, all: &Option<Setting<T>>, default: T) -> Setting<T> {
    let overriding = all.as_ref().filter(|all| all.origin.is_flag());
    let own_is_flag = own.as_ref().is_some_and(|own| own.origin.is_flag());
    match (own, overriding) {
        (Some(own), None) => own,
        (Some(own), Some(_)) if own_is_flag => own,
        (_, Some(overriding)) => overriding.clone(),
        (None, None) => all.clone().unwrap_or(Setting::default(default)),
    }
}

fn absolute(path: Setting<PathBuf>) -> Result<Setting<PathBuf>> {
    Ok(Setting::new(absolute_path(&path.value)?, path.origin))
}

fn absolute_path(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("find {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::super::setting::Origin;
    use super::*;

    fn in_file<T>(value: T) -> Option<Setting<T>> {
        Some(Setting::new(value, Origin::ConfigFile { path: Default::default(), line: 1 }))
    }

    fn channels(texts: &[&str]) -> Vec<Setting<ChannelAddress>> {
        texts.iter().map(|text| in_file(text.parse().unwrap()).unwrap()).collect()
    }

    fn socket(path: &str, cache: Option<Setting<Cache>>) -> SocketLayer {
        SocketLayer { path: in_file(path.into()).unwrap(), cache, writeback: None, queues: None, clone: None }
    }

    fn file() -> Layer {
        Layer {
            volume: in_file("/a".into()),
            sockets: vec![socket("/s", in_file(Cache::Always)), socket("/t", None)],
            cache: in_file(Cache::Never),
            memory: in_file(ByteSize(1 << 30)),
            ..Layer::default()
        }
    }

    fn caches(config: &Config) -> Vec<Cache> {
        config.sockets.iter().map(|socket| socket.cache.value).collect()
    }

    #[test]
    fn a_socket_s_own_word_goes_before_the_word_for_all() {
        let config = Config::of(file()).unwrap();
        assert_eq!(caches(&config), [Cache::Always, Cache::Never]);
        assert_eq!(config.sockets[1].queues, Setting::default(REQUEST_QUEUES_DEFAULT as u64));
    }

    #[test]
    fn a_flag_overrides_the_file_for_every_socket() {
        let flags = Layer { cache: Setting::flag(Some(Cache::Auto), "--cache"), ..Layer::default() };
        let config = Config::of(flags.over(file())).unwrap();
        assert_eq!(caches(&config), [Cache::Auto, Cache::Auto]);
        assert_eq!(config.sockets[0].cache.origin.to_string(), "--cache");
    }

    #[test]
    fn a_socket_given_by_a_flag_keeps_its_own_word_and_replaces_the_file_s_list() {
        let own = SocketLayer {
            path: Setting::new("/u".into(), Origin::Flag("--virtiofs")),
            cache: Setting::flag(Some(Cache::Never), "--virtiofs"),
            writeback: None,
            queues: None,
            clone: None,
        };
        let flags = Layer {
            sockets: vec![own],
            cache: Setting::flag(Some(Cache::Auto), "--cache"),
            ..Layer::default()
        };
        let config = Config::of(flags.over(file())).unwrap();
        assert_eq!(caches(&config), [Cache::Never]);
        assert_eq!(config.sockets[0].path.value, Path::new("/u"));
    }

    #[test]
    fn writeback_needs_a_cache() {
        let flags = Layer { writeback: Setting::flag(Some(true), "--writeback"), ..Layer::default() };
        let error = Config::of(flags.over(file())).unwrap_err().to_string();
        for part in ["/t", "--writeback", "never"] {
            assert!(error.contains(part), "{part} is not in: {error}");
        }
    }

    #[test]
    fn a_socket_has_one_user() {
        let twice = Layer { sockets: vec![socket("/s", None), socket("/s", None)], ..file() };
        assert!(Config::of(twice).unwrap_err().to_string().contains("twice"));
        let shared = Layer { metrics: in_file(MetricsAddress::Unix("/t".into())), ..file() };
        assert!(Config::of(shared).unwrap_err().to_string().contains("share"));
        let shared = Layer { channels: channels(&["unix:/s"]), ..file() };
        assert!(Config::of(shared).unwrap_err().to_string().contains("share"));
    }

    #[test]
    fn a_guest_s_channel_belongs_to_the_virtio_fs_socket_of_its_name() {
        let with = |texts: &[&str]| {
            let sockets = vec![socket("/run/vm1.sock", None), socket("/run/vm2.sock", None)];
            Config::of(Layer { sockets, channels: channels(texts), ..file() })
        };
        assert_eq!(with(&["vm1:cid=3", "vm2:vsock-unix=/v", "unix:/c"]).unwrap().channels.len(), 3);
        for (texts, reason) in [
            (&["vm3:cid=3"][..], "vm1, vm2"),
            (&["vm1:cid=3", "vm2:cid=3"], "same"),
            (&["vm1:cid=3", "vm1:vsock-unix=/v"], "same"),
            (&["unix:/c", "unix:/c"], "same"),
            (&["vm1:vsock-unix=/run/vm2.sock"], "share"),
        ] {
            let error = with(texts).unwrap_err().to_string();
            assert!(error.contains(reason), "{texts:?}: {error}");
        }
    }

    #[test]
    fn a_channel_alone_is_enough_to_be_reached() {
        let channel = Layer { sockets: Vec::new(), channels: channels(&["unix:c"]), ..file() };
        let channel = Config::of(channel).unwrap().channels.remove(0).value;
        let path = channel.path().unwrap();
        assert!(path.is_absolute() && path.ends_with("c"), "{channel}");
        let nobody = Layer { sockets: Vec::new(), ..file() };
        assert!(Config::of(nobody).unwrap_err().to_string().contains("--channel"));
    }
}

//! `ringfort serve`

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;

use super::LogFlags;
use crate::config::{
    BUSY_POLL_US, COMMIT_INTERVAL_MS, Cache, ChannelAddress, Layer, MetricsAddress, Origin, QUEUES, Setting,
    SocketLayer, Switch,
};
use crate::size::ByteSize;

#[derive(Debug, Args)]
pub struct Serve {
    /// Directory of the volume.
    #[arg(required_unless_present = "config")]
    pub directory: Option<PathBuf>,
    /// File with settings (TOML, see below); flags override it.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Show the settings in force, with where each came from, as a file for --config; serve nothing.
    #[arg(long)]
    pub print_config: bool,
    /// Unix socket for one guest's vhost-user-fs device; repeat for more guests. What differs for this one may follow:
    /// PATH,cache=auto,writeback=off,queues=2,clone=NAME, the last to have a clone as its filesystem instead of the volume. (A path with a comma
    /// in it goes into a file.)
    #[arg(long = "virtiofs", value_name = "SOCKET[,OPTION=VALUE]", required_unless_present_any = ["config", "channels"])]
    pub sockets: Vec<SocketFlag>,
    /// Where a channel is begun: shared memory, without a kernel between. unix:PATH for programs of this host;
    /// NAME:vsock-unix=PATH or NAME:cid=N for a guest, whose virtio-fs socket is NAME.sock. Repeat for more.
    #[arg(long = "channel", value_name = "ADDRESS")]
    pub channels: Vec<ChannelAddress>,
    /// What guests may cache: nothing, for a second, or for ever (only where one guest alone changes files). [default: auto]
    #[arg(long, value_enum, value_name = "POLICY")]
    pub cache: Option<Cache>,
    /// Let guests gather small writes and send them later. Only for a share with a single writer: other guests see its
    /// writes when it has sent them. [default: off]
    #[arg(long, value_enum, value_name = "SWITCH", num_args = 0..=1, require_equals = true, default_missing_value = "on")]
    pub writeback: Option<Switch>,
    /// Request queues that each device offers, 1 to 16; QEMU's num-request-queues says how many of them a guest gets, and
    /// guests use several from Linux 6.11 on. [default: 16]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(QUEUES))]
    pub queues: Option<u64>,
    /// What no program has synced is synced within this time. [default: 1000]
    #[arg(long, value_name = "MILLISECONDS", value_parser = clap::value_parser!(u64).range(COMMIT_INTERVAL_MS))]
    pub commit_interval_ms: Option<u64>,
    /// The longest time to look for guests' requests before sleeping; below that it follows what pays. 0: sleep at once, which
    /// saves processor time and costs a wake-up a request. [default: 50]
    #[arg(long, value_name = "MICROSECONDS", value_parser = clap::value_parser!(u64).range(BUSY_POLL_US))]
    pub busy_poll_us: Option<u64>,
    /// Bound of the memory for the volume's maps; the volume's own setting where not given.
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<ByteSize>,
    /// Memory for blocks that were read lately, for those who read them again. 0: none. [default: 32MiB]
    #[arg(long, value_name = "SIZE")]
    pub data_cache: Option<ByteSize>,
    /// Serve Prometheus metrics there, at /metrics: unix:PATH, 127.0.0.1:PORT or `[::1]:PORT`.
    #[arg(long, value_name = "ADDRESS")]
    pub metrics: Option<MetricsAddress>,
    /// Serve although members of the newest label are missing that could be serving elsewhere. Only when you know that
    /// they are not: two halves of a volume that were written apart cannot be joined again. No file can set this.
    #[arg(long)]
    pub override_membership: bool,
}

impl Serve {
    /// What the flags say.
    pub fn layer(&self, log: &LogFlags) -> Layer {
        Layer {
            volume: Setting::flag(self.directory.clone(), "argument"),
            sockets: self.sockets.iter().map(SocketFlag::layer).collect(),
            channels: self
                .channels
                .iter()
                .map(|channel| Setting::new(channel.clone(), Origin::Flag("--channel")))
                .collect(),
            cache: Setting::flag(self.cache, "--cache"),
            writeback: Setting::flag(self.writeback.map(Switch::is_on), "--writeback"),
            queues: Setting::flag(self.queues, "--queues"),
            commit_interval_ms: Setting::flag(self.commit_interval_ms, "--commit-interval-ms"),
            busy_poll_us: Setting::flag(self.busy_poll_us, "--busy-poll-us"),
            memory: Setting::flag(self.memory, "--memory"),
            data_cache: Setting::flag(self.data_cache, "--data-cache"),
            metrics: Setting::flag(self.metrics.clone(), "--metrics"),
            log_level: Setting::flag(log.log_level.clone(), "--log-level"),
            log_format: Setting::flag(log.log_format, "--log-format"),
        }
    }
}

/// `PATH[,cache=POLICY][,writeback[=SWITCH]][,queues=COUNT][,clone=NAME]`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SocketFlag {
    path: PathBuf,
    cache: Option<Cache>,
    writeback: Option<Switch>,
    queues: Option<u64>,
    clone: Option<String>,
}

impl SocketFlag {
    fn layer(&self) -> SocketLayer {
        const FLAG: &str = "--virtiofs";
        SocketLayer {
            path: Setting::new(self.path.clone(), Origin::Flag(FLAG)),
            cache: Setting::flag(self.cache, FLAG),
            writeback: Setting::flag(self.writeback.map(Switch::is_on), FLAG),
            queues: Setting::flag(self.queues, FLAG),
            clone: Setting::flag(self.clone.clone(), FLAG),
        }
    }
}

impl FromStr for SocketFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let path = parts.next().unwrap_or_default();
        if path.is_empty() {
            return Err("the path is empty".to_owned());
        }
        let mut socket = SocketFlag { path: path.into(), ..Self::default() };
        for part in parts {
            let (option, value) = part.split_once('=').unwrap_or((part, "on"));
            match option {
                "cache" => socket.cache = Some(value.parse()?),
                "writeback" => socket.writeback = Some(value.parse()?),
                "queues" => match value.parse() {
                    Ok(count) if QUEUES.contains(&count) => socket.queues = Some(count),
                    _ => {
                        return Err(format!(
                            "queues={value}: {} to {} are possible",
                            QUEUES.start(),
                            QUEUES.end()
                        ));
                    }
                },
                "clone" if !value.is_empty() && part != "clone" => socket.clone = Some(value.to_owned()),
                _ => {
                    return Err(format!(
                        "{part:?} is none of cache=POLICY, writeback=on|off, queues=COUNT, clone=NAME"
                    ));
                }
            }
        }
        Ok(socket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_may_have_options_of_its_own() {
        assert_eq!("/s".parse(), Ok(SocketFlag { path: "/s".into(), ..Default::default() }));
        let full = SocketFlag {
            path: "/s".into(),
            cache: Some(Cache::Never),
            writeback: Some(Switch::On),
            queues: Some(16),
            clone: Some("vm 7".to_owned()),
        };
        assert_eq!("/s,cache=never,writeback,queues=16,clone=vm 7".parse(), Ok(full));
    }

    #[test]
    fn socket_options_that_make_no_sense_are_refused() {
        for text in [
            "",
            ",queues=1",
            "/s,",
            "/s,queues=0",
            "/s,queues=17",
            "/s,cache",
            "/s,writeback=1",
            "/s,cash=never",
            "/s,clone",
            "/s,clone=",
        ] {
            assert!(text.parse::<SocketFlag>().is_err(), "{text}");
        }
    }
}

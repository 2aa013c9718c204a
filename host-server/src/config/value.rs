//! What settings may be: one type each, read from the same text on the command line and in the file.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::ValueEnum;
use ringfort_frontend::channel::Carrier;
use ringfort_frontend::virtiofs::REQUEST_QUEUES_MAX;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// How long unsynced data may wait, in milliseconds.
pub const COMMIT_INTERVAL_MS: RangeInclusive<u64> = 1..=60_000;

/// Request queues of one virtio-fs device.
pub const QUEUES: RangeInclusive<u64> = 1..=REQUEST_QUEUES_MAX as u64;

/// How long to look for work before sleeping, in microseconds. Beyond a hundredth of a second it gains nothing.
pub const BUSY_POLL_US: RangeInclusive<u64> = 0..=10_000;

/// What a guest's kernel may cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Cache {
    /// Nothing: every look goes to the server.
    Never,
    /// Names and attributes for a second; contents from open to open.
    Auto,
    /// Everything, until the guest itself changes it. Only where one guest alone changes files.
    Always,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// A JSON object a line.
    Json,
}

/// The text of a value that has a fixed set of them, as flags and files write it.
macro_rules! text_of_value_enum {
    ($type:ty) => {
        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.to_possible_value().as_ref().map_or("", |value| value.get_name()))
            }
        }

        impl FromStr for $type {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                <Self as ValueEnum>::from_str(text, false).map_err(|_| {
                    let names: Vec<_> = Self::value_variants().iter().map(ToString::to_string).collect();
                    format!("{text:?} is not one of {}", names.join(", "))
                })
            }
        }
    };
}

text_of_value_enum!(Cache);
text_of_value_enum!(LogFormat);

/// `on` or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    On,
    Off,
}

text_of_value_enum!(Switch);

impl Switch {
    pub fn is_on(self) -> bool {
        self == Switch::On
    }
}

/// How much the log says: a level, or a filter of tracing-subscriber.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFilter(String);

impl LogFilter {
    pub fn info() -> Self {
        Self("info".to_owned())
    }

    pub fn error() -> Self {
        Self("error".to_owned())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for LogFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // The filter's parser takes any word as the name of a module: a misspelt level would silence the log.
        let level = |word: &str| !word.is_empty() && word.parse::<LevelFilter>().is_ok();
        let misspelt = text
            .split(',')
            .map(|directive| directive.rsplit('=').next().unwrap_or_default())
            .find(|word| !level(word.trim()));
        if let Some(word) = misspelt {
            return Err(format!(
                "{word:?} is no level: write error, warn, info, debug, trace or off, or a filter such as info,ringfort_store=debug"
            ));
        }
        match EnvFilter::builder().parse(text) {
            Ok(_) => Ok(Self(text.to_owned())),
            Err(error) => Err(format!("{text:?} is no filter: {error}")),
        }
    }
}

impl std::fmt::Display for LogFilter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where metrics are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetricsAddress {
    /// A Unix socket.
    Unix(PathBuf),
    /// A port that only this machine reaches.
    Loopback(SocketAddr),
}

impl FromStr for MetricsAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORMS: &str = "unix:PATH, 127.0.0.1:PORT or [::1]:PORT";
        if let Some(path) = text.strip_prefix("unix:") {
            return match path {
                "" => Err(format!("{text:?} names no path: write {FORMS}")),
                path => Ok(Self::Unix(path.into())),
            };
        }
        let Ok(address) = text.parse::<SocketAddr>() else {
            let name = match text.split_once(':') {
                Some(("localhost", port)) => format!(" (localhost is a name: write 127.0.0.1:{port})"),
                _ => String::new(),
            };
            return Err(format!("{text:?} is none of {FORMS}{name}"));
        };
        match address.ip() {
            ip if ip.is_loopback() => Ok(Self::Loopback(address)),
            ip => Err(format!(
                "{ip} is no loopback address{}: metrics are served to this machine alone, without password or \
                 encryption; write {FORMS}, and put an exporter or a proxy of your choice in front of it",
                match ip {
                    IpAddr::V4(ip) if ip.is_unspecified() => " but every address of this machine",
                    IpAddr::V6(ip) if ip.is_unspecified() => " but every address of this machine",
                    _ => "",
                }
            )),
        }
    }
}

impl std::fmt::Display for MetricsAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            MetricsAddress::Unix(path) => write!(f, "unix:{}", path.display()),
            MetricsAddress::Loopback(address) => address.fmt(f),
        }
    }
}

/// Where a channel is begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChannelAddress {
    /// By programs of this host: `unix:PATH`.
    Host(PathBuf),
    /// By the guest of the machine whose virtio-fs socket has this name: `NAME:cid=N` or `NAME:vsock-unix=PATH`, `,port=N` behind it.
    Guest { machine: String, carrier: Carrier, port: Option<u32> },
}

/// CIDs below are the hypervisor's, the loopback's and the host's own.
const GUEST_CID_MIN: u32 = 3;

impl ChannelAddress {
    /// The socket that it makes, or that it is named after.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Host(path) | Self::Guest { carrier: Carrier::VsockUnix { path }, .. } => Some(path),
            Self::Guest { carrier: Carrier::Vsock { .. }, .. } => None,
        }
    }

    /// The same with a path that follows `base` where it is relative.
    pub fn below(mut self, base: &Path) -> Self {
        match &mut self {
            Self::Host(path) | Self::Guest { carrier: Carrier::VsockUnix { path }, .. } => {
                *path = base.join(&*path);
            }
            Self::Guest { carrier: Carrier::Vsock { .. }, .. } => {}
        }
        self
    }
}

impl FromStr for ChannelAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORMS: &str = "write unix:PATH for programs of this host, or NAME:vsock-unix=PATH or NAME:cid=N for a guest (NAME.sock is its \
                             virtio-fs socket)";
        let wrong = |what: &str| format!("{text:?} {what}; {FORMS}");
        let (name, rest) = text.split_once(':').ok_or_else(|| wrong("has no colon"))?;
        if name == "unix" {
            return if rest.is_empty() { Err(wrong("names no path")) } else { Ok(Self::Host(rest.into())) };
        }
        let (carrier, options) =
            rest.split_once(',').map_or((rest, None), |(carrier, rest)| (carrier, Some(rest)));
        let carrier = match carrier.split_once('=') {
            Some(("vsock-unix", path)) if !path.is_empty() => Carrier::VsockUnix { path: path.into() },
            Some(("cid", cid)) => match cid.parse() {
                Ok(cid) if cid >= GUEST_CID_MIN && cid != u32::MAX => Carrier::Vsock { cid },
                _ => return Err(wrong("names no CID of a guest, which is a number from 3 on")),
            },
            _ => return Err(wrong("says neither vsock-unix=PATH nor cid=N")),
        };
        let port = match options.map(|options| options.split_once('=')) {
            None => None,
            Some(Some(("port", port))) => match port.parse() {
                Ok(port) if port != u32::MAX => Some(port),
                _ => return Err(wrong("names no port, which is a number")),
            },
            Some(_) => return Err(wrong("has an option that is not port=N")),
        };
        if name.is_empty() {
            return Err(wrong("names no machine"));
        }
        Ok(Self::Guest { machine: name.to_owned(), carrier, port })
    }
}

impl std::fmt::Display for ChannelAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (machine, carrier, port) = match self {
            Self::Host(path) => return write!(f, "unix:{}", path.display()),
            Self::Guest { machine, carrier, port } => (machine, carrier, port),
        };
        match carrier {
            Carrier::Vsock { cid } => write!(f, "{machine}:cid={cid}"),
            Carrier::VsockUnix { path } => write!(f, "{machine}:vsock-unix={}", path.display()),
        }?;
        port.map_or(Ok(()), |port| write!(f, ",port={port}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_is_a_host_s_socket_or_a_guest_s_vsock() {
        let of_guest = |carrier, port| ChannelAddress::Guest { machine: "vm1".into(), carrier, port };
        let unix = Carrier::VsockUnix { path: "/run/vm1.vsock".into() };
        for (text, expected) in [
            ("unix:/run/a.ctl", ChannelAddress::Host("/run/a.ctl".into())),
            ("vm1:vsock-unix=/run/vm1.vsock", of_guest(unix.clone(), None)),
            ("vm1:vsock-unix=/run/vm1.vsock,port=7", of_guest(unix, Some(7))),
            ("vm1:cid=3", of_guest(Carrier::Vsock { cid: 3 }, None)),
            ("vm1:cid=4,port=21062", of_guest(Carrier::Vsock { cid: 4 }, Some(21062))),
        ] {
            let address: ChannelAddress = text.parse().unwrap();
            assert_eq!(address, expected);
            assert_eq!(address.to_string(), text);
        }
        let wrong =
            ["", "unix:", "/run/a.ctl", "vm1:", "vm1:cid=2", "vm1:cid=x", "vm1:vsock-unix=", ":cid=3"];
        for text in wrong.into_iter().chain(["vm1:cid=3,port=", "vm1:cid=3,cache=auto"]) {
            let error = text.parse::<ChannelAddress>().unwrap_err();
            assert!(error.contains("unix:PATH") && error.contains("cid=N"), "{text}: {error}");
        }
    }

    #[test]
    fn metrics_are_for_this_machine_alone() {
        assert_eq!("unix:/run/a.sock".parse(), Ok(MetricsAddress::Unix("/run/a.sock".into())));
        for text in ["127.0.0.1:9100", "127.8.9.10:1", "[::1]:9100"] {
            assert!(matches!(text.parse(), Ok(MetricsAddress::Loopback(_))), "{text}");
        }
        for (text, reason) in [
            ("0.0.0.0:9100", "every address"),
            ("[::]:9100", "every address"),
            ("192.168.1.7:9100", "192.168.1.7 is no loopback"),
            ("localhost:9100", "127.0.0.1:9100"),
            ("127.0.0.1", "127.0.0.1:PORT"),
            ("unix:", "names no path"),
            ("/run/a.sock", "unix:PATH"),
            ("", "unix:PATH"),
        ] {
            let error = text.parse::<MetricsAddress>().unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn a_misspelt_log_level_is_refused() {
        for text in ["info", "off", "warn,ringfort_store=debug", "ringfort_frontend::virtiofs=trace"] {
            assert!(text.parse::<LogFilter>().is_ok(), "{text}");
        }
        for text in ["infos", "", "info,ringfort_store", "info,ringfort_store=loud"] {
            assert!(text.parse::<LogFilter>().is_err(), "{text}");
        }
    }

    #[test]
    fn values_of_a_fixed_set_name_it_when_they_are_refused() {
        assert_eq!("auto".parse(), Ok(Cache::Auto));
        assert_eq!(Cache::Always.to_string(), "always");
        let error = "some".parse::<Cache>().unwrap_err();
        assert!(error.contains("never, auto, always"), "{error}");
    }
}

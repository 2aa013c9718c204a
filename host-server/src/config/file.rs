//! The file of `--config`.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};

use super::layer::{Layer, SocketLayer};
use super::reader::{Section, Source, parse, tables};
use super::value::{BUSY_POLL_US, COMMIT_INTERVAL_MS, MetricsAddress, QUEUES};

/// Far above what hundreds of sockets need.
const LEN_BYTES_MAX: u64 = 1 << 20;

/// What a person must say for each start anew, and a file may not.
const FLAG_ONLY: &[(&str, &str)] = &[(
    "override_membership",
    "serving half a volume is decided anew each time; give --override-membership on the command line",
)];

/// Reads the settings in `path`. Relative paths there follow the directory that the file is in.
pub fn load(path: &Path) -> Result<Layer> {
    let what = || format!("read the configuration {}", path.display());
    let mut text = String::new();
    let file = File::open(path).with_context(what)?;
    file.take(LEN_BYTES_MAX + 1).read_to_string(&mut text).with_context(what)?;
    if text.len() as u64 > LEN_BYTES_MAX {
        bail!("{}: it is longer than {LEN_BYTES_MAX} bytes, which is no configuration", what());
    }
    let absolute = fs::canonicalize(path).with_context(what)?;
    let base = absolute.parent().unwrap_or(Path::new("/")).to_owned();
    read(&Source { path: Arc::new(path.to_owned()), text: &text }, &base)
}

fn read(source: &Source<'_>, base: &Path) -> Result<Layer> {
    let mut section = Section::new(source, parse(source)?);
    let mut layer = Layer {
        volume: section.path("volume", base)?,
        cache: section.text("cache")?,
        writeback: section.flag("writeback")?,
        queues: section.integer("queues", QUEUES)?,
        commit_interval_ms: section.integer("commit_interval_ms", COMMIT_INTERVAL_MS)?,
        busy_poll_us: section.integer("busy_poll_us", BUSY_POLL_US)?,
        memory: section.text("memory")?,
        data_cache: section.text("data_cache")?,
        metrics: section.text("metrics")?,
        log_level: section.text("log_level")?,
        log_format: section.text("log_format")?,
        channels: section.texts("channel")?,
        sockets: Vec::new(),
    };
    for channel in &mut layer.channels {
        channel.value = channel.value.clone().below(base);
    }
    if let Some(metrics) = &mut layer.metrics
        && let MetricsAddress::Unix(path) = &mut metrics.value
    {
        *path = base.join(PathBuf::from(&*path));
    }
    if let Some(list) = section.take("virtiofs") {
        for (start, table) in tables(source, "virtiofs", list)? {
            let mut section = Section::new(source, table);
            let path = section.path("socket", base)?;
            let socket = SocketLayer {
                path: path.ok_or_else(|| source.fault(start, "this [[virtiofs]] has no `socket`"))?,
                cache: section.text("cache")?,
                writeback: section.flag("writeback")?,
                queues: section.integer("queues", QUEUES)?,
                clone: section.text("clone")?,
            };
            section.finish(&[])?;
            layer.sockets.push(socket);
        }
    }
    section.finish(FLAG_ONLY)?;
    Ok(layer)
}

#[cfg(test)]
mod tests {
    use super::super::value::{Cache, LogFormat};
    use super::*;
    use crate::size::ByteSize;

    const EVERYTHING: &str = r#"
volume = "data"
cache = "never"
writeback = true
queues = 2
commit_interval_ms = 250
busy_poll_us = 0
memory = "2GiB"
data_cache = "64MiB"
metrics = "unix:metrics.sock"
log_level = "debug"
log_format = "json"
channel = ["unix:data.ctl", "vm1:vsock-unix=vm1.vsock"]

[[virtiofs]]
socket = "/run/vm1.sock"

[[virtiofs]]
socket = "vm2.sock"
cache = "always"
writeback = false
queues = 4
"#;

    fn read_text(text: &str) -> Result<Layer> {
        read(&Source { path: Arc::new("serve.toml".into()), text }, Path::new("/etc/ringfort"))
    }

    #[test]
    fn every_setting_is_read_with_its_line() {
        let layer = read_text(EVERYTHING).unwrap();
        assert_eq!(layer.volume.as_ref().unwrap().value, Path::new("/etc/ringfort/data"));
        assert_eq!(layer.volume.unwrap().origin.to_string(), "serve.toml, line 2");
        assert_eq!(layer.cache.unwrap().value, Cache::Never);
        assert!(layer.writeback.unwrap().value);
        assert_eq!(layer.queues.unwrap().value, 2);
        assert_eq!(layer.commit_interval_ms.unwrap().value, 250);
        assert_eq!(layer.busy_poll_us.unwrap().value, 0);
        assert_eq!(layer.memory.unwrap().value, ByteSize(2 << 30));
        assert_eq!(layer.data_cache.unwrap().value, ByteSize(64 << 20));
        let metrics = layer.metrics.unwrap().value;
        assert_eq!(metrics, MetricsAddress::Unix("/etc/ringfort/metrics.sock".into()));
        assert_eq!(layer.log_level.unwrap().value.as_str(), "debug");
        assert_eq!(layer.log_format.unwrap().value, LogFormat::Json);
        let channels: Vec<String> = layer.channels.iter().map(|channel| channel.value.to_string()).collect();
        assert_eq!(channels, ["unix:/etc/ringfort/data.ctl", "vm1:vsock-unix=/etc/ringfort/vm1.vsock"]);
        let alone = read_text("channel = \"unix:/c\"").unwrap().channels;
        assert_eq!((alone.len(), alone[0].origin.to_string()), (1, "serve.toml, line 1".into()));
        let error = read_text("\nchannel = [\"unix:/c\", 3]").unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("strings"), "{error}");
        let [first, second] = layer.sockets.as_slice() else { panic!("two sockets") };
        assert_eq!(first.path.value, Path::new("/run/vm1.sock"));
        assert_eq!((&first.cache, &first.queues), (&None, &None));
        assert_eq!(second.path.value, Path::new("/etc/ringfort/vm2.sock"));
        let cache = second.cache.as_ref().unwrap();
        assert_eq!((cache.value, cache.origin.to_string()), (Cache::Always, "serve.toml, line 20".into()));
        assert_eq!(second.queues.as_ref().unwrap().value, 4);
    }

    #[test]
    fn every_fault_is_told_with_its_line_and_what_to_write() {
        for (text, parts) in [
            ("volume = \"a\"\ncash = \"auto\"\n", &["line 2", "\"cash\"", "mean \"cache\""][..]),
            ("\n\ncommit-interval-ms = 5", &["line 3", "\"commit_interval_ms\""]),
            ("zebra = 1", &["line 1", "\"zebra\"", "nearest", "log_format"]),
            ("[[virtiofs]]\nsocket = \"a\"\nquues = 1", &["line 3", "mean \"queues\""]),
            ("[[virtiofs]]\ncache = \"auto\"", &["line 1", "no `socket`"]),
            ("[virtiofs]\nsocket = \"a\"", &["line 1", "[[virtiofs]]"]),
            ("virtiofs = [\"a\"]", &["line 1", "[[virtiofs]]"]),
            ("cache = \"some\"", &["line 1", "never, auto, always"]),
            ("cache = 1", &["line 1", "integer", "string"]),
            ("queues = 0", &["line 1", "1 to 16"]),
            ("queues = -1", &["line 1", "1 to 16"]),
            ("queues = \"4\"", &["line 1", "whole number"]),
            ("writeback = \"on\"", &["line 1", "true or false"]),
            ("\ncommit_interval_ms = 60001", &["line 2", "60000"]),
            ("memory = \"1GiG\"", &["line 1", "GiG"]),
            ("metrics = \"0.0.0.0:1\"", &["line 1", "loopback"]),
            ("log_level = \"loud\"", &["line 1", "loud"]),
            ("log_format = \"xml\"", &["line 1", "text, json"]),
            ("volume = \"\"", &["line 1", "empty"]),
            ("override_membership = true", &["line 1", "--override-membership"]),
            ("volume = \"a\"\nvolume = \"b\"", &["line 2"]),
            ("volume = \n", &["line 1"]),
        ] {
            let error = read_text(text).unwrap_err().to_string();
            for part in parts.iter().chain(&["serve.toml"]) {
                assert!(error.contains(part), "{part:?} is not in: {error}");
            }
        }
    }

    #[test]
    fn a_file_that_is_none_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("serve.toml");
        assert!(load(&path).unwrap_err().to_string().contains("serve.toml"));
        fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(load(&path).is_err());
        fs::write(&path, "#".repeat(LEN_BYTES_MAX as usize + 1)).unwrap();
        assert!(load(&path).unwrap_err().to_string().contains("longer than"));
    }
}

//! What is in force, as a file that `--config` reads back.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Result, bail};

use super::layer::{Config, Socket};
use super::setting::{Origin, Setting};
use super::value::MetricsAddress;

/// Where comments begin, where values leave room.
const COMMENT_COLUMN: usize = 48;

impl Config {
    /// Every setting in force, each with where it came from in a comment.
    pub fn to_toml(&self) -> Result<String> {
        let mut text =
            String::from("# The settings in force. This text is a file for `ringfort serve --config`.\n\n");
        line(&mut text, "volume", &quoted_path(&self.volume.value)?, &self.volume.origin);
        setting(&mut text, "commit_interval_ms", &self.commit_interval_ms, |value| value.to_string());
        setting(&mut text, "busy_poll_us", &self.busy_poll_us, |value| value.to_string());
        setting(&mut text, "memory", &self.memory, |value| quoted(&String::from(*value)));
        setting(&mut text, "data_cache", &self.data_cache, |value| quoted(&String::from(*value)));
        match &self.metrics {
            Some(Setting { value: MetricsAddress::Unix(path), origin }) => {
                quoted_path(path)?;
                line(&mut text, "metrics", &quoted(&format!("unix:{}", path.display())), origin);
            }
            Some(Setting { value: MetricsAddress::Loopback(address), origin }) => {
                line(&mut text, "metrics", &quoted(&address.to_string()), origin);
            }
            None => text.push_str("# metrics: none are served\n"),
        }
        if self.channels.is_empty() {
            text.push_str("# channel: none is open\n");
        } else {
            text.push_str("channel = [\n");
            for Setting { value: address, origin } in &self.channels {
                address.path().map(quoted_path).transpose()?;
                text.push_str(&format!(
                    "    {}, # {origin}\n",
                    quoted(&address.to_string()).replace('\n', " ")
                ));
            }
            text.push_str("]\n");
        }
        setting(&mut text, "log_level", &self.log_level, |value| quoted(value.as_str()));
        setting(&mut text, "log_format", &self.log_format, |value| quoted(&value.to_string()));
        for Socket { path, cache, writeback, queues, clone } in &self.sockets {
            text.push_str("\n[[virtiofs]]\n");
            line(&mut text, "socket", &quoted_path(&path.value)?, &path.origin);
            setting(&mut text, "cache", cache, |value| quoted(&value.to_string()));
            setting(&mut text, "writeback", writeback, |value| value.to_string());
            setting(&mut text, "queues", queues, |value| value.to_string());
            if let Some(clone) = clone {
                setting(&mut text, "clone", clone, |value| quoted(value));
            }
        }
        Ok(text)
    }
}

fn setting<T>(text: &mut String, key: &str, setting: &Setting<T>, write: impl FnOnce(&T) -> String) {
    line(text, key, &write(&setting.value), &setting.origin);
}

fn line(text: &mut String, key: &str, value: &str, origin: &Origin) {
    let said = format!("{key} = {value}");
    // A line break in a path would end the comment.
    let origin = origin.to_string().replace(char::is_control, " ");
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{said:<COMMENT_COLUMN$} # {origin}");
}

fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

fn quoted_path(path: &Path) -> Result<String> {
    match path.to_str() {
        Some(text) => Ok(quoted(text)),
        None => bail!("{} is not UTF-8, so no file can name it; give it by its flag", path.display()),
    }
}

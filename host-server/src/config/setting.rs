//! A value that knows where it came from.

use std::path::PathBuf;
use std::sync::Arc;

/// Where a setting was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// By a flag.
    Flag(&'static str),
    /// By a variable of the environment.
    Environment(&'static str),
    /// By the configuration file, in this line.
    ConfigFile { path: Arc<PathBuf>, line: usize },
    /// By the volume's own file.
    VolumeFile,
    /// By nobody.
    Default,
}

impl Origin {
    /// Whether a person said it for this very start.
    pub fn is_flag(&self) -> bool {
        matches!(self, Origin::Flag(_))
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Origin::Flag(flag) => f.write_str(flag),
            Origin::Environment(variable) => write!(f, "environment, {variable}"),
            Origin::ConfigFile { path, line } => write!(f, "{}, line {line}", path.display()),
            Origin::VolumeFile => f.write_str("the volume's volume.toml"),
            Origin::Default => f.write_str("default"),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting<T> {
    pub value: T,
    pub origin: Origin,
}

impl<T> Setting<T> {
    pub fn new(value: T, origin: Origin) -> Self {
        Self { value, origin }
    }

    /// What a flag says, where it was given.
    pub fn flag(value: Option<T>, flag: &'static str) -> Option<Self> {
        value.map(|value| Self::new(value, Origin::Flag(flag)))
    }

    pub fn default(value: T) -> Self {
        Self::new(value, Origin::Default)
    }
}

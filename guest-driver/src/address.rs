//! Where a channel is.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The variable that names a channel where a program does not.
pub const ADDRESS_VARIABLE: &str = "RINGFORT_CONNECT";

/// Of the daemon in a guest.
pub const ADDRESS_DEFAULT: &str = "unix:/run/ringfort/guestd.sock";

/// The socket of a server on this machine, or of the daemon in a guest. Written `unix:PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address(PathBuf);

/// A text that is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no address of a channel: say unix:PATH")]
pub struct AddressError(String);

impl Address {
    /// What the environment names, or else the daemon of this guest.
    pub fn from_environment() -> Result<Self, AddressError> {
        match env::var_os(ADDRESS_VARIABLE) {
            Some(named) => named.to_string_lossy().parse(),
            None => ADDRESS_DEFAULT.parse(),
        }
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        match text.strip_prefix("unix:") {
            Some(path) if !path.is_empty() => Ok(Self(path.into())),
            _ => Err(AddressError(text.to_owned())),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "unix:{}", self.0.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        let address: Address = "unix:/a b".parse().unwrap();
        assert_eq!((address.path(), address.to_string()), (Path::new("/a b"), "unix:/a b".to_owned()));
        for wrong in ["", "unix:", "/a", "vsock:3"] {
            assert!(wrong.parse::<Address>().unwrap_err().to_string().contains("unix:PATH"));
        }
        assert!(ADDRESS_DEFAULT.parse::<Address>().is_ok());
    }
}

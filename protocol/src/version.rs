//! Ledger of protocol versions.
//!
//! A version names the layouts and meanings of everything in this crate. Both sides name the range that they speak, and
//! use the highest version that both ranges hold ([`Range::negotiate`]).

/// A version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u16);

impl Version {
    /// 0: the envelope of control messages; no message is defined, and no release speaks it.
    pub const ENVELOPE: Version = Version(0);

    /// 1: the channel. Rings, commands and completions, and the messages that begin and end them.
    pub const CHANNEL: Version = Version(1);

    /// The newest that this crate knows.
    pub const LATEST: Version = Version::CHANNEL;
}

/// What one side speaks, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    oldest: Version,
    newest: Version,
}

impl Range {
    /// None where the ends are the wrong way round, as an untrusted peer may send them.
    pub fn new(oldest: Version, newest: Version) -> Option<Self> {
        (oldest <= newest).then_some(Self { oldest, newest })
    }

    /// The newest version that both sides speak; none where there is no such version.
    pub fn negotiate(self, peer: Range) -> Option<Version> {
        let newest = self.newest.min(peer.newest);
        (newest >= self.oldest.max(peer.oldest)).then_some(newest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(oldest: u16, newest: u16) -> Range {
        Range::new(Version(oldest), Version(newest)).unwrap()
    }

    #[test]
    fn the_newest_common_version_is_chosen() {
        assert_eq!(range(1, 4).negotiate(range(3, 9)), Some(Version(4)));
        assert_eq!(range(3, 9).negotiate(range(1, 4)), Some(Version(4)));
        assert_eq!(range(2, 2).negotiate(range(0, 7)), Some(Version(2)));
        assert_eq!(range(1, 2).negotiate(range(3, 4)), None);
        assert_eq!(Range::new(Version(2), Version(1)), None);
    }
}

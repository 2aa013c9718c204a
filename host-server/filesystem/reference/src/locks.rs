//! Advisory locks of holders that never wait. The two families know nothing of each other: they are two of these.

/// A lock that somebody wants or has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    pub node: usize,
    pub holder: u64,
    /// The first and the last byte.
    pub range: (u64, u64),
    pub exclusive: bool,
}

impl Claim {
    fn meets(&self, other: &Claim) -> bool {
        self.node == other.node && self.range.0 <= other.range.1 && other.range.0 <= self.range.1
    }

    fn is_of(&self, other: &Claim) -> bool {
        self.node == other.node && self.holder == other.holder
    }

    /// Bytes of it that are outside of another's.
    fn outside(&self, other: &Claim) -> impl Iterator<Item = Claim> {
        let (start, end) = self.range;
        let before = (start < other.range.0).then(|| (start, end.min(other.range.0 - 1)));
        let behind = (end > other.range.1).then(|| (start.max(other.range.1 + 1), end));
        let claim = *self;
        [before, behind].into_iter().flatten().map(move |range| Claim { range, ..claim })
    }
}

/// What is held, without a lock of one holder on the same byte twice.
#[derive(Debug, Default)]
pub struct Locks(Vec<Claim>);

impl Locks {
    /// What of others keeps a claim out.
    pub fn in_the_way(&self, claim: &Claim) -> Vec<Claim> {
        let conflicts = |held: &&Claim| {
            held.holder != claim.holder && held.meets(claim) && (held.exclusive || claim.exclusive)
        };
        self.0.iter().filter(conflicts).copied().collect()
    }

    /// Whether it was possible.
    pub fn take(&mut self, claim: Claim) -> bool {
        let possible = self.in_the_way(&claim).is_empty();
        if possible {
            self.give_up(&claim);
            self.0.push(claim);
        }
        possible
    }

    /// Gives up what the holder has of the range.
    pub fn give_up(&mut self, claim: &Claim) {
        let (touched, mut kept): (Vec<_>, Vec<_>) =
            self.0.drain(..).partition(|held| held.is_of(claim) && held.meets(claim));
        kept.extend(touched.iter().flat_map(|held| held.outside(claim)));
        self.0 = kept;
    }

    /// Gives up all that a holder has.
    pub fn forget(&mut self, holder: u64) {
        self.0.retain(|held| held.holder != holder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_that_is_given_up_splits_what_was_held() {
        let claim = |holder, range, exclusive| Claim { node: 1, holder, range, exclusive };
        let mut locks = Locks::default();
        assert!(locks.take(claim(1, (0, u64::MAX), true)));
        locks.give_up(&claim(1, (10, 19), false));
        assert!(locks.take(claim(2, (10, 19), true)));
        assert!(!locks.take(claim(2, (9, 19), false)));
        assert!(locks.take(claim(1, (20, 30), false)), "one's own is no obstacle");
        assert!(locks.take(claim(2, (20, 30), false)));
        locks.forget(1);
        assert!(locks.take(claim(2, (0, u64::MAX), true)));
    }
}

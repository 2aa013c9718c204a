//! Who refers to stored blocks: objects, compared with the counts of the middle map.

/// Ranges of middle addresses, with how often each is mapped.
pub struct References {
    /// First, one beyond the last, mappings; in order, disjoint.
    ranges: Vec<(u64, u64, u64)>,
    next: usize,
}

impl References {
    /// From mapped runs in any order, each with its first address and length.
    pub fn of(runs: &[(u64, u64)]) -> Self {
        let mut changes: Vec<(u64, i64)> = Vec::with_capacity(2 * runs.len());
        for (start, len) in runs {
            changes.push((*start, 1));
            changes.push((start.saturating_add(*len), -1));
        }
        changes.sort_unstable();
        let (mut ranges, mut from, mut count) = (Vec::new(), 0, 0_i64);
        for (at, change) in changes {
            if count > 0 && from < at {
                ranges.push((from, at, count as u64));
            }
            from = at;
            count += change;
        }
        Self { ranges, next: 0 }
    }

    /// Compares blocks that are stored, in ascending order, with what maps them.
    pub fn meet(&mut self, start: u64, len: u64, references: u64, fault: &mut impl FnMut(String)) {
        self.pass(start, fault);
        let (mut at, end) = (start, start.saturating_add(len));
        while at < end {
            let Some((from, to, count)) = self.ranges.get_mut(self.next).filter(|range| range.0 < end) else {
                break;
            };
            if at < *from {
                fault(format!(
                    "{} blocks from middle address {at} are stored and mapped by nothing",
                    *from - at
                ));
            }
            let until = end.min(*to);
            if *count != references {
                let blocks = until - *from;
                fault(format!(
                    "{blocks} blocks from middle address {from} are mapped {count} times, and counted {references} times"
                ));
            }
            at = until;
            *from = until;
            if from == to {
                self.next += 1;
            }
        }
        if at < end {
            fault(format!("{} blocks from middle address {at} are stored and mapped by nothing", end - at));
        }
    }

    /// What is mapped below `start` is stored nowhere.
    fn pass(&mut self, start: u64, fault: &mut impl FnMut(String)) {
        while let Some((from, to, _)) = self.ranges.get_mut(self.next).filter(|range| range.0 < start) {
            let until = start.min(*to);
            fault(format!("{} blocks from middle address {from} are mapped and lie nowhere", until - *from));
            *from = until;
            if from == to {
                self.next += 1;
            }
        }
    }

    pub fn finish(mut self, fault: &mut impl FnMut(String)) {
        self.pass(u64::MAX, fault);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(runs: &[(u64, u64)], stored: &[(u64, u64, u64)]) -> Vec<String> {
        let mut faults = Vec::new();
        let mut note = |fault| faults.push(fault);
        let mut references = References::of(runs);
        stored.iter().for_each(|(start, len, count)| references.meet(*start, *len, *count, &mut note));
        references.finish(&mut note);
        faults
    }

    #[test]
    fn blocks_that_are_mapped_as_often_as_they_are_counted_are_no_fault() {
        let none: Vec<String> = Vec::new();
        assert_eq!(faults(&[], &[]), none);
        assert_eq!(faults(&[(5, 10)], &[(5, 10, 1)]), none);
        assert_eq!(faults(&[(5, 5), (10, 5)], &[(5, 10, 1)]), none);
        assert_eq!(faults(&[(5, 10)], &[(5, 2, 1), (7, 8, 1)]), none);
        assert_eq!(faults(&[(5, 10), (8, 2)], &[(5, 3, 1), (8, 2, 2), (10, 5, 1)]), none);
    }

    #[test]
    fn every_difference_is_one() {
        assert_eq!(faults(&[(5, 10)], &[]).len(), 1);
        assert_eq!(faults(&[], &[(5, 10, 1)]).len(), 1);
        assert_eq!(faults(&[(5, 10)], &[(5, 9, 1)]).len(), 1, "the last is nowhere");
        assert_eq!(faults(&[(5, 10)], &[(6, 9, 1)]).len(), 1, "the first is nowhere");
        assert_eq!(faults(&[(6, 8)], &[(5, 10, 1)]).len(), 2, "nobody has the ends");
        assert_eq!(faults(&[(5, 10), (8, 2)], &[(5, 10, 1)]).len(), 1, "shared and not counted");
        assert_eq!(faults(&[(5, 10)], &[(5, 10, 2)]).len(), 1, "counted and not shared");
    }
}

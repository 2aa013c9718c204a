//! When segments are cleaned, and how hard.
//!
//! The cleaner and those who wait for space meet here. Foreground comes first while space allows: cleaning begins when few segments are
//! free, rests between steps the longer the more of them are left, and rests no more when writers have to wait.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

use ringfort_engine::sync::Notify;

use crate::address::SegmentId;
use crate::limits::{
    BUSY_SEGMENTS_WAIT, CLEANING_BATCH_MAX, CLEANING_BATCH_PART, CLEANING_REST_MAX, CLEANING_REST_TIMES,
    IDLE_INTERVALS,
};

/// What the cleaner is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activity {
    /// Enough segments are free.
    #[default]
    Resting,
    /// Nobody writes: what is cheap to clean is cleaned.
    Tidying,
    /// Few segments are free.
    Ahead,
    /// Writers wait, or soon would.
    Urgent,
    /// Few segments are free, and no segment gives back more than cleaning it takes.
    Exhausted,
}

/// Counts of free segments at which cleaning changes its pace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Levels {
    /// At this many it no longer rests.
    pub urgent: u32,
    /// Below this many it begins.
    pub start: u32,
    /// Segments that are cleaned for one checkpoint: each costs one, and space returns only then.
    pub batch: u32,
}

impl Levels {
    /// `spare`: segments beyond those that live data would fill. `kept`: free segments that writes leave to others. What is kept free
    /// is lost to dead blocks, of which cleaning would find more for longer: so both follow from what is spare.
    pub fn of(spare: u32, kept: u32) -> Self {
        let batch = (spare / CLEANING_BATCH_PART).clamp(1, CLEANING_BATCH_MAX);
        Self { urgent: kept, start: kept + 1 + batch, batch }
    }

    /// How long to rest after a step that took so long.
    pub fn rest(&self, free: u32, took: Duration) -> Duration {
        let above = free.saturating_sub(self.urgent);
        let most = self.start - self.urgent;
        (took * CLEANING_REST_TIMES * above.min(most) / most).min(CLEANING_REST_MAX)
    }
}

/// Shared by the cleaner and those who need space.
#[derive(Default)]
pub(crate) struct Pace {
    /// Look whether there is something to do.
    pub wanted: Notify,
    asked: Cell<bool>,
    /// Rounds that somebody asked for and that gave nothing.
    fruitless_rounds: Cell<u64>,
    stopped: Cell<bool>,
    /// There was nothing worth cleaning the last time, and little has happened since.
    exhausted: Cell<bool>,
    levels: Cell<Levels>,
    activity: Cell<Activity>,
    /// Transactions at the last interval, and for how many intervals that has not changed.
    quiet_since: Cell<(u64, u32)>,
    /// Since when whatever could be cleaned is in use.
    busy_since: Cell<Option<Duration>>,
    /// Segments that could not be read, with what lived in them: tried again when that has changed.
    unreadable: RefCell<BTreeMap<SegmentId, u64>>,
}

impl Pace {
    /// Somebody cannot go on without more space.
    pub fn ask(&self) {
        self.asked.set(true);
        self.wanted.notify_one();
    }

    pub fn is_asked(&self) -> bool {
        self.asked.get()
    }

    pub fn fruitless_rounds(&self) -> u64 {
        self.fruitless_rounds.get()
    }

    /// What to do with so many free segments. Those who asked until now count as heard.
    pub fn choose(&self, free: u32) -> Activity {
        let levels = self.levels.get();
        let activity = match free {
            _ if self.asked.take() => Activity::Urgent,
            _ if self.exhausted.get() => Activity::Exhausted,
            _ if free <= levels.urgent => Activity::Urgent,
            _ if free < levels.start => Activity::Ahead,
            _ if self.quiet_since.get().1 >= IDLE_INTERVALS => Activity::Tidying,
            _ => Activity::Resting,
        };
        self.activity.set(activity);
        activity
    }

    pub fn activity(&self) -> Activity {
        self.activity.get()
    }

    pub fn levels(&self) -> Levels {
        self.levels.get()
    }

    pub fn set_levels(&self, levels: Levels) {
        self.levels.set(levels);
    }

    /// A look has found something to clean, or nothing.
    pub fn note_round(&self, was_asked: bool, gave_something: bool) {
        let was_tidying = self.activity.get() == Activity::Tidying;
        self.exhausted.set(!gave_something && !was_tidying);
        if was_asked && !gave_something {
            self.fruitless_rounds.set(self.fruitless_rounds.get() + 1);
        }
        if !gave_something {
            self.activity.set(if was_tidying { Activity::Resting } else { Activity::Exhausted });
        }
    }

    /// A commit interval has passed, with so many transactions applied by now.
    pub fn note_interval(&self, transactions: u64) {
        let (before, quiet) = self.quiet_since.get();
        let is_quiet = before == transactions;
        self.quiet_since.set((transactions, if is_quiet { quiet.saturating_add(1) } else { 0 }));
        if !is_quiet {
            self.exhausted.set(false);
        }
        self.wanted.notify_one();
    }

    /// Space has been taken: so many segments are free.
    pub fn note_free(&self, free: u32) {
        if free < self.levels.get().start && !self.exhausted.get() {
            self.wanted.notify_one();
        }
    }

    /// Everything worth cleaning is in use at this time. Whether that may end soon.
    pub fn may_wait_for_busy(&self, now: Duration) -> bool {
        let since = self.busy_since.get().unwrap_or(now);
        self.busy_since.set(Some(since));
        now.saturating_sub(since) < BUSY_SEGMENTS_WAIT
    }

    pub fn end_wait_for_busy(&self) {
        self.busy_since.set(None);
    }

    pub fn note_unreadable(&self, segment: SegmentId, live_blocks: u64) {
        self.unreadable.borrow_mut().insert(segment, live_blocks);
    }

    pub fn is_unreadable(&self, segment: SegmentId, live_blocks: u64) -> bool {
        self.unreadable.borrow().get(&segment) == Some(&live_blocks)
    }

    pub fn is_stopped(&self) -> bool {
        self.stopped.get()
    }

    /// Nothing is begun any more.
    pub fn stop(&self) {
        self.stopped.set(true);
        self.wanted.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pace_rises_as_free_segments_fall() {
        let levels = Levels::of(100, 3);
        assert_eq!(levels, Levels { urgent: 3, start: 8, batch: 4 });
        let took = Duration::from_millis(1);
        let rests: Vec<Duration> = (0..12).map(|free| levels.rest(free, took)).collect();
        assert!(rests.is_sorted());
        assert_eq!((rests[3], rests[8]), (Duration::ZERO, took * CLEANING_REST_TIMES));
        assert_eq!(levels.rest(8, Duration::from_secs(60)), CLEANING_REST_MAX);
        assert_eq!(Levels::of(0, 2).batch, 1);
    }

    #[test]
    fn who_asks_is_heard_once_and_told_when_nothing_can_be_given() {
        let pace = Pace::default();
        pace.set_levels(Levels::of(100, 3));
        assert_eq!(pace.choose(50), Activity::Resting);
        pace.ask();
        assert_eq!(pace.choose(50), Activity::Urgent);
        pace.note_round(true, false);
        assert_eq!((pace.fruitless_rounds(), pace.activity()), (1, Activity::Exhausted));
        assert_eq!(pace.choose(1), Activity::Exhausted, "nothing has changed");
        pace.note_interval(1);
        assert_eq!([1, 7].map(|free| pace.choose(free)), [Activity::Urgent, Activity::Ahead]);
    }

    #[test]
    fn segments_in_use_are_waited_for_and_not_for_ever() {
        let pace = Pace::default();
        let start = Duration::from_secs(5);
        assert!(pace.may_wait_for_busy(start) && pace.may_wait_for_busy(start + BUSY_SEGMENTS_WAIT / 2));
        assert!(!pace.may_wait_for_busy(start + BUSY_SEGMENTS_WAIT));
        pace.end_wait_for_busy();
        assert!(pace.may_wait_for_busy(start + BUSY_SEGMENTS_WAIT));
    }

    #[test]
    fn a_quiet_volume_is_tidied() {
        let pace = Pace::default();
        (0..IDLE_INTERVALS).for_each(|_| pace.note_interval(5));
        assert_eq!(pace.choose(50), Activity::Resting, "the first interval saw a change");
        pace.note_interval(5);
        assert_eq!(pace.choose(50), Activity::Tidying);
        pace.note_interval(6);
        assert_eq!(pace.choose(50), Activity::Resting);
    }
}

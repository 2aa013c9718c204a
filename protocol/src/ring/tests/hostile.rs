use proptest::prelude::*;

use super::super::words::Words;
use super::{message, number_of, ring};

proptest! {
    /// Whatever the other side writes, wherever: this side takes and completes what it can, and keeps to its bounds.
    #[test]
    fn a_responder_is_bounded_by_its_slots_whatever_it_is_shown(
        writes in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>(), any::<bool>()), 1..400),
    ) {
        const SLOTS: u32 = 4;
        let (_, mut responder, words) = ring(SLOTS);
        for (index, value, likely) in writes {
            let index = index.index(words.count() as usize) as u64;
            // Sequence numbers as they may come next are small.
            words.store(index, if likely { (value % 16) << 32 } else { value });
            while responder.take().is_some() {
                prop_assert!(responder.in_flight() <= SLOTS);
            }
            let _ = responder.wants_doorbell();
            if responder.in_flight() > 2 {
                responder.complete(&message(value));
            }
        }
    }

    #[test]
    fn a_requester_takes_no_more_than_it_asked_for(
        writes in prop::collection::vec((any::<prop::sample::Index>(), 0u64..16), 1..400),
    ) {
        let (mut requester, _, words) = ring(4);
        let (mut submitted, mut taken) = (0u64, 0u64);
        for (index, value) in writes {
            words.store(index.index(words.count() as usize) as u64, value << 32);
            submitted += u64::from(requester.submit(&message(submitted)).is_ok());
            while requester.take().is_some() {
                taken += 1;
            }
            prop_assert_eq!(u64::from(requester.outstanding()), submitted - taken);
        }
    }
}

#[test]
fn a_command_changed_after_it_was_taken_stays_as_it_was_taken() {
    let (mut requester, mut responder, words) = ring(2);
    requester.submit(&message(7)).unwrap();
    let taken = responder.take().unwrap();
    (0..words.count()).for_each(|index| words.store(index, u64::MAX));
    assert_eq!(number_of(taken), 7);
}

#[test]
fn who_breaks_the_window_loses_commands_of_its_own_and_nothing_else() {
    let (mut requester, mut responder, _) = ring(2);
    // A requester that begins again where it is not, as one does that forgets what it submitted.
    requester.submit(&message(0)).unwrap();
    requester.submit(&message(1)).unwrap();
    let mut forgetful = requester.at(0);
    assert!(forgetful.submit(&message(9)).is_err());
    assert_eq!(responder.take().map(number_of), Some(0));
    assert_eq!(responder.take().map(number_of), Some(1));
    assert_eq!(responder.take(), None);
    assert_eq!(responder.in_flight(), 2);
    // Completions that nobody takes are overwritten by later ones, and the ring goes on.
    responder.complete(&message(0));
    responder.complete(&message(1));
    assert_eq!(forgetful.take().map(number_of), Some(0));
    assert_eq!(forgetful.take().map(number_of), Some(1));
}

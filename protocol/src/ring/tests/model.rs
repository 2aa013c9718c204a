use std::collections::{BTreeSet, VecDeque};

use proptest::prelude::*;

use super::super::requester::WindowFull;
use super::{message, number_of, used_ring};

#[derive(Clone, Debug)]
enum Step {
    Submit,
    TakeCommand,
    /// One of those in flight.
    Complete(prop::sample::Index),
    TakeCompletion,
    RequesterSleeps,
    ResponderSleeps,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Submit),
        4 => Just(Step::TakeCommand),
        4 => any::<prop::sample::Index>().prop_map(Step::Complete),
        4 => Just(Step::TakeCompletion),
        1 => Just(Step::RequesterSleeps),
        1 => Just(Step::ResponderSleeps),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// From anywhere in the range of positions, the wrap of the sequence numbers included.
    #[test]
    fn a_ring_is_two_queues_and_a_window(
        steps in prop::collection::vec(step(), 1..600),
        shift in 1u32..5,
        from_wrap in 0u32..64,
        near_wrap in any::<bool>(),
    ) {
        let slot_count = 1 << shift;
        let start = if near_wrap { 0u32.wrapping_sub(from_wrap) } else { from_wrap };
        let (mut requester, mut responder) = used_ring(slot_count, start);
        let (mut submitted, mut in_flight, mut completed) = (VecDeque::new(), Vec::new(), VecDeque::new());
        let (mut requester_sleeps, mut responder_sleeps) = (false, false);
        for (number, step) in steps.into_iter().enumerate() {
            let number = number as u64;
            match step {
                Step::Submit => {
                    let outstanding = submitted.len() + in_flight.len() + completed.len();
                    prop_assert_eq!(requester.outstanding() as usize, outstanding);
                    if outstanding == slot_count as usize {
                        prop_assert_eq!(requester.submit(&message(number)), Err(WindowFull));
                    } else {
                        prop_assert_eq!(requester.submit(&message(number)), Ok(()));
                        submitted.push_back(number);
                        prop_assert_eq!(requester.wants_doorbell(), responder_sleeps);
                        if std::mem::take(&mut responder_sleeps) {
                            responder.finish_sleep();
                        }
                    }
                }
                Step::TakeCommand => {
                    let expected = submitted.pop_front();
                    prop_assert_eq!(responder.take().map(number_of), expected);
                    in_flight.extend(expected);
                }
                Step::Complete(which) if !in_flight.is_empty() => {
                    let number = in_flight.swap_remove(which.index(in_flight.len()));
                    responder.complete(&message(number));
                    completed.push_back(number);
                    prop_assert_eq!(requester.wants_doorbell(), responder_sleeps);
                    prop_assert_eq!(responder.wants_doorbell(), requester_sleeps);
                    if std::mem::take(&mut requester_sleeps) {
                        requester.finish_sleep();
                    }
                }
                Step::Complete(_) => {}
                Step::TakeCompletion => {
                    prop_assert_eq!(requester.take().map(number_of), completed.pop_front());
                }
                Step::RequesterSleeps if !requester_sleeps => {
                    requester_sleeps = requester.prepare_sleep();
                    prop_assert_eq!(requester_sleeps, completed.is_empty());
                }
                Step::ResponderSleeps if !responder_sleeps => {
                    responder_sleeps = responder.prepare_sleep();
                    let idle = submitted.is_empty() || in_flight.len() == slot_count as usize;
                    prop_assert_eq!(responder_sleeps, idle);
                }
                Step::RequesterSleeps | Step::ResponderSleeps => {}
            }
        }
        // Nothing is lost.
        while let Some(command) = responder.take() {
            in_flight.push(number_of(command));
        }
        for number in &in_flight {
            responder.complete(&message(*number));
        }
        let rest: BTreeSet<u64> = std::iter::from_fn(|| requester.take().map(number_of)).collect();
        prop_assert_eq!(rest, completed.into_iter().chain(in_flight).collect());
        prop_assert_eq!((requester.outstanding(), responder.in_flight()), (0, 0));
    }
}

//! All interleavings, and all that a weakly ordered memory may show, for a few messages (loom).

use std::sync::Arc as StdArc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;

use loom::sync::atomic::{AtomicU64, Ordering, fence};
use loom::sync::{Arc, Notify};
use loom::thread;

use super::super::layout::RingLayout;
use super::super::requester::Requester;
use super::super::responder::Responder;
use super::super::words::Words;
use super::{message, number_of};

const SLOTS: u32 = 2;

/// What of the memory's promises is kept.
#[derive(Clone, Copy, PartialEq)]
enum OrderingKept {
    All,
    NoFences,
    NoRelease,
}

/// The words that a ring of [`SLOTS`] uses; the gaps between its lines hold nothing.
struct Checked {
    used: Vec<Option<AtomicU64>>,
    ordering: OrderingKept,
}

impl Checked {
    fn new(layout: RingLayout, ordering: OrderingKept) -> Self {
        let slots = layout.commands()..layout.completions() + 8 * u64::from(SLOTS);
        let used = (0..slots.end).map(|index| {
            let flag = index == layout.flags(0) || index == layout.flags(16);
            (flag || slots.contains(&index)).then(|| AtomicU64::new(0))
        });
        Self { used: used.collect(), ordering }
    }

    fn word(&self, index: u64) -> &AtomicU64 {
        self.used[index as usize].as_ref().unwrap()
    }
}

impl Words for Checked {
    fn count(&self) -> u64 {
        self.used.len() as u64
    }
    fn load(&self, index: u64) -> u64 {
        self.word(index).load(Ordering::Relaxed)
    }
    fn load_acquire(&self, index: u64) -> u64 {
        self.word(index).load(Ordering::Acquire)
    }
    fn store(&self, index: u64, value: u64) {
        self.word(index).store(value, Ordering::Relaxed);
    }
    fn store_release(&self, index: u64, value: u64) {
        let release = self.ordering != OrderingKept::NoRelease;
        self.word(index).store(value, if release { Ordering::Release } else { Ordering::Relaxed });
    }
    fn fence(&self) {
        if self.ordering != OrderingKept::NoFences {
            fence(Ordering::SeqCst);
        }
    }
}

/// What is not std's `Arc`, for which [`Words`] is passed on.
struct Shared(Arc<Checked>);

impl Words for Shared {
    fn count(&self) -> u64 {
        self.0.count()
    }
    fn load(&self, index: u64) -> u64 {
        self.0.load(index)
    }
    fn load_acquire(&self, index: u64) -> u64 {
        self.0.load_acquire(index)
    }
    fn store(&self, index: u64, value: u64) {
        self.0.store(index, value);
    }
    fn store_release(&self, index: u64, value: u64) {
        self.0.store_release(index, value);
    }
    fn fence(&self) {
        self.0.fence();
    }
}

fn ring(ordering: OrderingKept) -> (Requester<Shared>, Responder<Shared>) {
    let layout = RingLayout::new(0, SLOTS, 4096).unwrap();
    let words = Arc::new(Checked::new(layout, ordering));
    (Requester::new(Shared(Arc::clone(&words)), layout), Responder::new(Shared(words), layout))
}

fn explore(bound: usize, test: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(bound);
    model.check(test);
}

/// Three commands through two slots: every slot is filled twice in one direction or the other.
#[test]
fn messages_arrive_whole_and_in_order_in_all_interleavings() {
    explore(3, || {
        let (mut requester, mut responder) = ring(OrderingKept::All);
        let server = thread::spawn(move || {
            let mut expected = 0;
            while expected < 3 {
                match responder.take() {
                    Some(command) => {
                        assert_eq!(number_of(command), expected);
                        responder.complete(&message(100 + expected));
                        expected += 1;
                    }
                    None => thread::yield_now(),
                }
            }
        });
        let (mut submitted, mut expected) = (0, 0);
        while expected < 3 {
            while submitted < 3 && requester.submit(&message(submitted)).is_ok() {
                submitted += 1;
            }
            match requester.take() {
                Some(completion) => {
                    assert_eq!(number_of(completion), 100 + expected);
                    expected += 1;
                }
                None => thread::yield_now(),
            }
        }
        server.join().unwrap();
    });
}

/// Both sides sleep whenever they may. Loom reports a deadlock where a wake-up is lost.
#[test]
fn no_wake_up_is_lost_in_any_interleaving() {
    explore(4, || {
        let (mut requester, mut responder) = ring(OrderingKept::All);
        let (to_server, to_client) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (server_bell, client_bell) = (Arc::clone(&to_server), Arc::clone(&to_client));
        let server = thread::spawn(move || {
            for expected in 0..2 {
                let command = loop {
                    if let Some(command) = responder.take() {
                        break command;
                    }
                    if responder.prepare_sleep() {
                        server_bell.wait();
                        responder.finish_sleep();
                    }
                };
                assert_eq!(number_of(command), expected);
                responder.complete(&command);
                if responder.wants_doorbell() {
                    client_bell.notify();
                }
            }
        });
        for number in 0..2 {
            requester.submit(&message(number)).unwrap();
            if requester.wants_doorbell() {
                to_server.notify();
            }
            let completion = loop {
                if let Some(completion) = requester.take() {
                    break completion;
                }
                if requester.prepare_sleep() {
                    to_client.wait();
                    requester.finish_sleep();
                }
            };
            assert_eq!(number_of(completion), number);
        }
        server.join().unwrap();
    });
}

/// Whether any interleaving has the responder sleep for a command that was there, with nobody to wake it.
fn loses_a_wake_up(ordering: OrderingKept) -> bool {
    let lost = StdArc::new(AtomicBool::new(false));
    let seen = StdArc::clone(&lost);
    explore(4, move || {
        let (mut requester, responder) = ring(ordering);
        let server = thread::spawn(move || responder.prepare_sleep());
        requester.submit(&message(0)).unwrap();
        let rung = requester.wants_doorbell();
        let slept = server.join().unwrap();
        seen.fetch_or(slept && !rung, SeqCst);
    });
    lost.load(SeqCst)
}

/// Whether any interleaving has the responder take words of a command that are not the command's.
fn tears_a_message(ordering: OrderingKept) -> bool {
    let torn = StdArc::new(AtomicBool::new(false));
    let seen = StdArc::clone(&torn);
    explore(4, move || {
        let (mut requester, mut responder) = ring(ordering);
        let server = thread::spawn(move || responder.take());
        requester.submit(&message(5)).unwrap();
        let taken = server.join().unwrap();
        seen.fetch_or(taken.is_some_and(|slot| slot.to_bytes() != message(5).to_bytes()), SeqCst);
    });
    torn.load(SeqCst)
}

#[test]
fn the_exploration_finds_what_weaker_ordering_breaks() {
    assert!(!loses_a_wake_up(OrderingKept::All));
    assert!(loses_a_wake_up(OrderingKept::NoFences));
    assert!(!tears_a_message(OrderingKept::All));
    assert!(tears_a_message(OrderingKept::NoRelease));
}

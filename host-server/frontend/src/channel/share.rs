//! What a ring may have done for it before other rings have their turn.

use std::cell::Cell;
use std::future::poll_fn;
use std::task::Poll;

use crate::pending::Pending;

/// Commands of one ring that are begun in a turn of the volume's thread.
pub const TURN_COMMANDS: u32 = 32;

/// Bytes that are copied for one ring in a turn. The command that reaches this is finished: a turn copies as much as one command more.
pub const TURN_BYTES: u64 = 256 << 10;

/// A ring's share of the turn at hand.
#[derive(Default)]
pub struct Share {
    commands: Cell<u32>,
    bytes: Cell<u64>,
    /// Commands under way that wait for a later turn.
    waiting: Pending,
}

impl Share {
    pub fn begin_turn(&self) {
        self.commands.set(0);
        self.bytes.set(0);
    }

    fn is_left(&self) -> bool {
        self.commands.get() < TURN_COMMANDS && self.bytes.get() < TURN_BYTES
    }

    /// Whether more commands may be taken in this turn. What is under way goes first, or a flood of commands would hold it up for ever.
    pub fn allows_more(&self) -> bool {
        self.is_left() && self.waiting.count() == 0
    }

    /// Resolves in a turn of which something is left.
    pub async fn available(&self) {
        if self.is_left() {
            return;
        }
        let _waiting = self.waiting.enter();
        poll_fn(|context| match self.is_left() {
            true => Poll::Ready(()),
            false => {
                context.waker().wake_by_ref();
                Poll::Pending
            }
        })
        .await;
    }

    /// Counts a command, in a turn that has room for it.
    pub async fn take_command(&self) {
        self.available().await;
        self.commands.set(self.commands.get() + 1);
    }

    pub fn count_bytes(&self, len_bytes: u64) {
        self.bytes.set(self.bytes.get().saturating_add(len_bytes));
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    fn poll(future: impl Future<Output = ()>) -> bool {
        pin!(future).as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn a_turn_has_room_for_so_many_commands() {
        let share = Share::default();
        assert!((0..TURN_COMMANDS).all(|_| share.allows_more() && poll(share.take_command())));
        assert!(!share.allows_more() && !poll(share.take_command()));
        share.begin_turn();
        assert!(share.allows_more() && poll(share.take_command()));
    }

    #[test]
    fn a_turn_has_room_for_so_many_bytes() {
        let share = Share::default();
        share.count_bytes(TURN_BYTES - 1);
        assert!(share.allows_more() && poll(share.available()));
        share.count_bytes(u64::MAX);
        assert!(!share.allows_more() && !poll(share.available()));
        share.begin_turn();
        assert!(share.allows_more() && poll(share.available()));
    }

    #[test]
    fn what_waits_for_a_turn_goes_before_what_has_not_begun() {
        let share = Share::default();
        share.count_bytes(TURN_BYTES);
        let mut context = Context::from_waker(Waker::noop());
        let mut waits = Box::pin(share.available());
        assert!(waits.as_mut().poll(&mut context).is_pending());
        share.begin_turn();
        assert!(!share.allows_more());
        assert!(waits.as_mut().poll(&mut context).is_ready());
        assert!(share.allows_more());
    }
}

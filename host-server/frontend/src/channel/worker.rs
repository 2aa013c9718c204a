//! Where commands are carried out: one at a time in each, and kept for the next.
//!
//! What a command may have to remember while it waits is several KiB. To allocate that for each would cost as much as a small command does.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// Carries out what it is given, `G`, to its end, `D`; then the next.
pub struct Worker<G, D> {
    desk: Rc<Desk<G, D>>,
    work: Pin<Box<dyn Future<Output = ()>>>,
}

struct Desk<G, D> {
    given: Cell<Option<G>>,
    done: Cell<Option<D>>,
}

impl<G: 'static, D: 'static> Worker<G, D> {
    pub fn new<F: Future<Output = D>>(carry_out: impl Fn(G) -> F + 'static) -> Self {
        let desk = Rc::new(Desk { given: Cell::new(None), done: Cell::new(None) });
        let own = Rc::clone(&desk);
        let work = Box::pin(async move {
            loop {
                let next = || own.given.take().map_or(Poll::Pending, Poll::Ready);
                let given = poll_fn(|_| next()).await;
                let done = carry_out(given).await;
                own.done.set(Some(done));
            }
        });
        Self { desk, work }
    }

    /// Begins, and goes as far as it can at once. What came of it, where that is the end; otherwise it is to [`go_on`](Self::go_on).
    pub fn begin(&mut self, given: G) -> Poll<D> {
        self.desk.given.set(Some(given));
        self.go_on(&mut Context::from_waker(Waker::noop()))
    }

    pub fn go_on(&mut self, context: &mut Context<'_>) -> Poll<D> {
        // It never ends by itself.
        let _ = self.work.as_mut().poll(context);
        self.desk.done.take().map_or(Poll::Pending, Poll::Ready)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_worker_does_one_thing_after_the_other_whether_it_waits_or_not() {
        let gate = Rc::new(Cell::new(false));
        let opened = Rc::clone(&gate);
        let mut worker = Worker::new(move |number: u32| {
            let gate = Rc::clone(&opened);
            async move {
                let open = || if number < 3 || gate.get() { Poll::Ready(()) } else { Poll::Pending };
                poll_fn(|_| open()).await;
                number * 2
            }
        });
        assert_eq!((worker.begin(1), worker.begin(2)), (Poll::Ready(2), Poll::Ready(4)));
        assert_eq!(worker.begin(3), Poll::Pending);
        let mut context = Context::from_waker(Waker::noop());
        assert_eq!(worker.go_on(&mut context), Poll::Pending);
        gate.set(true);
        assert_eq!(worker.go_on(&mut context), Poll::Ready(6));
        assert_eq!(worker.begin(1), Poll::Ready(2));
    }
}

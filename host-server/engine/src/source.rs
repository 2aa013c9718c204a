//! Work that shows in memory which another party writes, with no wake-up to announce it: the rings of guests.

use std::any::Any;
use std::cell::RefCell;
use std::rc::Weak;

/// Something that the owning thread looks at between its tasks, and while it waits before it sleeps.
pub trait Source {
    /// Takes on what has arrived, a bounded amount. True where there was any.
    fn poll(&self) -> bool;

    /// Asks whoever brings work to ring from now on, since the thread is about to sleep; what they ring is watched (see
    /// [`Engine::watch`](crate::engine::Engine::watch)). True where work has arrived meanwhile: then the thread does not
    /// sleep. The next `poll` ends what this began.
    fn arm(&self) -> bool;
}

/// What a thread attends to.
#[derive(Default)]
pub(crate) struct Sources(RefCell<Vec<Weak<dyn Source>>>);

impl Sources {
    pub(crate) fn add(&self, source: Weak<dyn Source>) {
        self.0.borrow_mut().push(source);
    }

    /// Polls every source once. True where any had work.
    pub(crate) fn poll(&self) -> bool {
        self.any(|source| source.poll())
    }

    /// Arms every source. True where any has work.
    pub(crate) fn arm(&self) -> bool {
        self.any(|source| source.arm())
    }

    fn any(&self, ask: impl Fn(&dyn Source) -> bool) -> bool {
        let (mut any, mut index) = (false, 0);
        // No borrow while a source is asked: it may add others.
        while let Some(source) = self.get(index) {
            match source.upgrade() {
                Some(source) => {
                    any |= ask(&*source);
                    index += 1;
                }
                None => {
                    self.0.borrow_mut().remove(index);
                }
            }
        }
        any
    }

    fn get(&self, index: usize) -> Option<Weak<dyn Source>> {
        self.0.borrow().get(index).cloned()
    }
}

/// A descriptor that ends the thread's sleep, until this is dropped.
pub struct Watch {
    _guard: Box<dyn Any>,
}

impl Watch {
    pub(crate) fn new(guard: impl Any) -> Self {
        Self { _guard: Box::new(guard) }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::{Source, Sources};

    #[derive(Default)]
    struct Counting {
        polled: Cell<u32>,
        work: Cell<bool>,
    }

    impl Source for Counting {
        fn poll(&self) -> bool {
            self.polled.set(self.polled.get() + 1);
            self.work.take()
        }

        fn arm(&self) -> bool {
            self.work.get()
        }
    }

    #[test]
    fn every_live_source_is_asked_and_dead_ones_are_let_go() {
        let sources = Sources::default();
        let all: Vec<Rc<Counting>> = (0..3).map(|_| Rc::default()).collect();
        for source in &all {
            let weak = Rc::downgrade(source);
            sources.add(weak);
        }
        assert!(!sources.poll());
        all[2].work.set(true);
        assert!(sources.arm());
        assert!(sources.poll());
        assert!(!sources.arm());
        assert!(all.iter().all(|source| source.polled.get() == 2));
        drop(all);
        assert!(!sources.poll());
        assert!(sources.get(0).is_none());
    }
}

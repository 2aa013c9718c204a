//! The tasks of an open volume: work that goes on when whoever asked for it has gone away.
//!
//! A future that is dropped half way leaves its requests to the devices and lets go of what made them harmless: the pin on a
//! segment, the turn to write labels, a record or a root. So whatever writes runs as a task, and is over when the volume has closed.

use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;

use ringfort_engine::engine::Engine;
use ringfort_engine::sync::{Notify, oneshot};

#[derive(Default)]
struct Running {
    count: Cell<usize>,
    ended: Notify,
}

/// Counts as a running task while it lives.
struct Mark(Rc<Running>);

impl Drop for Mark {
    fn drop(&mut self) {
        self.0.count.set(self.0.count.get() - 1);
        self.0.ended.notify_all();
    }
}

pub(crate) struct Tasks {
    engine: Rc<dyn Engine>,
    running: Rc<Running>,
}

impl Tasks {
    pub fn new(engine: Rc<dyn Engine>) -> Self {
        Self { engine, running: Rc::default() }
    }

    pub fn spawn(&self, work: impl Future<Output = ()> + 'static) {
        self.running.count.set(self.running.count.get() + 1);
        let mark = Mark(Rc::clone(&self.running));
        self.engine.spawn(Box::pin(async move {
            work.await;
            // What the work held is gone before it counts as ended.
            drop(mark);
        }));
    }

    /// Runs `work` to its end, whether or not the caller stays to hear of it. `None` where the engine's loop ended first.
    pub async fn run<T: 'static>(&self, work: impl Future<Output = T> + 'static) -> Option<T> {
        let (sender, receiver) = oneshot::channel();
        self.spawn(async move { sender.send(work.await) });
        receiver.await
    }

    /// Returns when no task is running any more.
    pub async fn ended(&self) {
        while self.running.count.get() > 0 {
            self.running.ended.notified().await;
        }
    }
}

//! Runs the tasks of a volume's owning thread over a real engine, and takes in work from other threads.

use std::future::Future;
use std::pin::pin;
use std::rc::Rc;

use crate::engine::Engine;
use crate::executor::{Executor, ReadyQueue, Step, Task};
use crate::mailbox::{Receiver, Sender, mailbox};
use crate::sync::oneshot;

/// The outside world of a [`Runtime`]: where completions and deadlines come from.
pub(crate) trait Driver {
    /// Submits what is queued and delivers what has completed, without waiting.
    fn turn(&self);

    /// Submits, waits until a completion, a deadline or a kick, unless a task is ready, and delivers.
    fn park(&self, ready: &ReadyQueue);
}

type Work = Box<dyn FnOnce(&Rc<dyn Engine>) + Send>;

/// Hands work to the owning thread from any other.
#[derive(Clone)]
pub struct Remote(Sender<Work>);

impl Remote {
    /// Runs `work` on the owning thread, after what was posted before; there it may spawn tasks. False where the
    /// runtime is gone: then `work` is dropped.
    pub fn post(&self, work: impl FnOnce(&Rc<dyn Engine>) + Send + 'static) -> bool {
        self.0.send(Box::new(work)).is_ok()
    }
}

/// The loop of one thread. Dropping it drops its tasks; requests in flight are waited for when the last handle on
/// the engine goes.
pub struct Runtime {
    executor: Rc<Executor>,
    driver: Rc<dyn Driver>,
    engine: Rc<dyn Engine>,
    remote: Remote,
}

impl Runtime {
    pub(crate) fn new(executor: Rc<Executor>, driver: Rc<dyn Driver>, engine: Rc<dyn Engine>) -> Self {
        let (sender, receiver) = mailbox();
        executor.spawn(Box::pin(run_posted(receiver, Rc::clone(&engine))));
        Self { executor, driver, engine, remote: Remote(sender) }
    }

    pub fn engine(&self) -> Rc<dyn Engine> {
        Rc::clone(&self.engine)
    }

    pub fn remote(&self) -> Remote {
        self.remote.clone()
    }

    pub fn spawn(&self, task: Task) {
        self.executor.spawn(task);
    }

    /// Runs `future` and every spawned task until `future` is done. Tasks that are not done go on in the next call.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        let future = pin!(future);
        let mut main = self.executor.enter(future);
        loop {
            // One round is what is ready now; what it wakes waits for the next, so that I/O is served in between.
            for _ in 0..self.executor.ready().len() {
                if let Step::Done(output) = self.executor.step(&mut main) {
                    // What it submitted last is on its way, whenever the next call comes.
                    self.driver.turn();
                    return output;
                }
            }
            if self.executor.ready().len() == 0 {
                self.driver.park(self.executor.ready());
            } else {
                self.driver.turn();
            }
        }
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        // Tasks hold the engine, and the engine holds the executor.
        self.executor.close();
    }
}

async fn run_posted(mut receiver: Receiver<Work>, engine: Rc<dyn Engine>) {
    while let Some(work) = receiver.recv().await {
        work(&engine);
    }
}

/// Runs `future` as a task of its own. Dropping the handle does not stop it.
pub fn spawn_joinable<T: 'static>(
    engine: &dyn Engine,
    future: impl Future<Output = T> + 'static,
) -> oneshot::Receiver<T> {
    let (sender, receiver) = oneshot::channel();
    engine.spawn(Box::pin(async move { sender.send(future.await) }));
    receiver
}

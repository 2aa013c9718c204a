//! How work begins.

use std::task::{Context, Waker};

use ringfort_engine::engine::{Engine, Task};

/// Carries a task as far as it goes at once. One that has to wait goes on among the engine's tasks, where its first poll
/// gives it a waker.
pub fn begin(engine: &dyn Engine, mut task: Task) {
    let mut context = Context::from_waker(Waker::noop());
    if task.as_mut().poll(&mut context).is_pending() {
        engine.spawn(task);
    }
}

//! The tasks of one thread, and which of them are ready.
//!
//! Ready tasks run first in, first out, so that the order is a function of the wake-ups alone. Wakers may be used from any
//! thread; one that finds the owner parked kicks it, any other costs an uncontended lock and no system call.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

/// A task of the volume's owning thread.
pub type Task = Pin<Box<dyn Future<Output = ()>>>;

/// Gets a parked owner out of its wait.
pub(crate) trait Kick: Send + Sync {
    fn kick(&self);
}

struct ReadyState {
    queue: VecDeque<Arc<TaskWaker>>,
    parked: bool,
    /// Nobody will pop again; a queued waker would keep itself alive.
    closed: bool,
}

/// Who runs next. Shared by the owner and every waker.
pub(crate) struct ReadyQueue {
    state: Mutex<ReadyState>,
    kick: Box<dyn Kick>,
}

impl ReadyQueue {
    fn lock(&self) -> MutexGuard<'_, ReadyState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, task: Arc<TaskWaker>) {
        let was_parked = {
            let mut state = self.lock();
            if state.closed {
                return;
            }
            state.queue.push_back(task);
            std::mem::take(&mut state.parked)
        };
        if was_parked {
            self.kick.kick();
        }
    }

    fn pop(&self) -> Option<Arc<TaskWaker>> {
        self.lock().queue.pop_front()
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().queue.len()
    }

    /// Announces that the owner is about to wait. False where a task is ready: then it must not wait. The check and the
    /// announcement are one critical section, so a wake-up is either seen here or kicks.
    pub(crate) fn prepare_park(&self) -> bool {
        let mut state = self.lock();
        state.parked = state.queue.is_empty();
        state.parked
    }

    pub(crate) fn unpark(&self) {
        self.lock().parked = false;
    }
}

/// Identity of a task for its wakers.
pub(crate) struct TaskWaker {
    slot: usize,
    /// In the ready queue already: further wake-ups are absorbed until the task is polled.
    queued: AtomicBool,
    ready: Arc<ReadyQueue>,
}

impl TaskWaker {
    fn enqueue(self: Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            let ready = Arc::clone(&self.ready);
            ready.push(self);
        }
    }
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.enqueue();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        Arc::clone(self).enqueue();
    }
}

struct Slot {
    waker: Arc<TaskWaker>,
    /// Taken out while it is polled.
    task: Option<Task>,
}

#[derive(Default)]
struct Slots {
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
}

/// The slot number of the future given to `block_on`, which lives on its caller's stack.
const MAIN_SLOT: usize = usize::MAX;

/// Holds the tasks. The loops that drive it (`runtime`, `sim`) decide what happens when none is ready.
pub(crate) struct Executor {
    ready: Arc<ReadyQueue>,
    tasks: RefCell<Slots>,
    main: RefCell<Option<Arc<TaskWaker>>>,
    closed: Cell<bool>,
}

/// The future that a loop was called to finish.
pub(crate) struct Main<'a, F: Future> {
    executor: &'a Executor,
    future: Pin<&'a mut F>,
}

impl<F: Future> Drop for Main<'_, F> {
    fn drop(&mut self) {
        self.executor.main.borrow_mut().take();
    }
}

pub(crate) enum Step<T> {
    /// No task was ready.
    Idle,
    /// One task was polled.
    Ran,
    /// The main future finished.
    Done(T),
}

impl Executor {
    pub(crate) fn new(kick: Box<dyn Kick>) -> Self {
        let state = ReadyState { queue: VecDeque::new(), parked: false, closed: false };
        Self {
            ready: Arc::new(ReadyQueue { state: Mutex::new(state), kick }),
            tasks: RefCell::default(),
            main: RefCell::default(),
            closed: Cell::new(false),
        }
    }

    pub(crate) fn ready(&self) -> &ReadyQueue {
        &self.ready
    }

    fn waker(&self, slot: usize) -> Arc<TaskWaker> {
        Arc::new(TaskWaker { slot, queued: AtomicBool::new(false), ready: Arc::clone(&self.ready) })
    }

    /// Adds a task behind those that are ready. After [`close`](Self::close) it is dropped unpolled.
    pub(crate) fn spawn(&self, task: Task) {
        if self.closed.get() {
            return;
        }
        let mut tasks = self.tasks.borrow_mut();
        let slot = tasks.free.pop().unwrap_or_else(|| {
            tasks.slots.push(None);
            tasks.slots.len() - 1
        });
        let waker = self.waker(slot);
        tasks.slots[slot] = Some(Slot { waker: Arc::clone(&waker), task: Some(task) });
        drop(tasks);
        waker.enqueue();
    }

    /// Makes `future` the main one, ready to be polled.
    pub(crate) fn enter<'a, F: Future>(&'a self, future: Pin<&'a mut F>) -> Main<'a, F> {
        let waker = self.waker(MAIN_SLOT);
        let previous = self.main.borrow_mut().replace(Arc::clone(&waker));
        assert!(previous.is_none(), "block_on inside block_on");
        waker.enqueue();
        Main { executor: self, future }
    }

    /// Whether a main future is being driven.
    pub(crate) fn is_running(&self) -> bool {
        self.main.borrow().is_some()
    }

    /// Polls the task at the head of the ready queue.
    pub(crate) fn step<F: Future>(&self, main: &mut Main<'_, F>) -> Step<F::Output> {
        let Some(waker) = self.ready.pop() else { return Step::Idle };
        // Cleared before the poll: a wake-up during the poll queues the task again.
        waker.queued.store(false, Ordering::Release);
        if waker.slot != MAIN_SLOT {
            self.poll_task(waker);
            return Step::Ran;
        }
        // A waker of an earlier main future may still be queued.
        let is_current = self.main.borrow().as_ref().is_some_and(|main| Arc::ptr_eq(main, &waker));
        if !is_current {
            return Step::Ran;
        }
        let waker = Waker::from(waker);
        match main.future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => Step::Done(output),
            Poll::Pending => Step::Ran,
        }
    }

    fn poll_task(&self, waker: Arc<TaskWaker>) {
        let slot_index = waker.slot;
        let task = {
            let mut tasks = self.tasks.borrow_mut();
            // The task may be finished and its slot in other hands.
            match tasks.slots.get_mut(slot_index) {
                Some(Some(slot)) if Arc::ptr_eq(&slot.waker, &waker) => slot.task.take(),
                _ => None,
            }
        };
        let Some(mut task) = task else { return };
        let std_waker = Waker::from(waker);
        let polled = task.as_mut().poll(&mut Context::from_waker(&std_waker));
        let mut tasks = self.tasks.borrow_mut();
        match polled {
            Poll::Pending => {
                if let Some(Some(slot)) = tasks.slots.get_mut(slot_index) {
                    slot.task = Some(task);
                }
            }
            Poll::Ready(()) => {
                if let Some(slot) = tasks.slots.get_mut(slot_index) {
                    *slot = None;
                    tasks.free.push(slot_index);
                }
                // Destructors may spawn.
                drop(tasks);
                drop(task);
            }
        }
    }

    /// Drops every task, and from now on every task spawned. Destructors run here.
    pub(crate) fn close(&self) {
        self.closed.set(true);
        let slots = std::mem::take(&mut *self.tasks.borrow_mut());
        drop(slots);
        let stale = {
            let mut ready = self.ready.lock();
            ready.closed = true;
            std::mem::take(&mut ready.queue)
        };
        drop(stale);
    }
}

/// Pending once, with the wake-up already given: the task goes to the end of the ready queue.
#[derive(Default)]
pub(crate) struct YieldNow(bool);

impl Future for YieldNow {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.0, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

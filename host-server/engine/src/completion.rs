//! The one-shot result of a submitted request, for the thread that owns the engine.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::error::EngineError;

struct State<T> {
    result: Option<Result<T, EngineError>>,
    waker: Option<Waker>,
}

/// Resolves when the engine answers the request. Dropping it does not cancel the request.
pub struct Completion<T>(Rc<RefCell<State<T>>>);

/// The engine's end of a [`Completion`].
pub struct Completer<T>(Rc<RefCell<State<T>>>);

/// A connected pair.
pub fn completion<T>() -> (Completer<T>, Completion<T>) {
    let state = Rc::new(RefCell::new(State { result: None, waker: None }));
    (Completer(Rc::clone(&state)), Completion(state))
}

impl<T> Completion<T> {
    /// An already answered request.
    pub fn ready(result: Result<T, EngineError>) -> Self {
        Self(Rc::new(RefCell::new(State { result: Some(result), waker: None })))
    }
}

impl<T> Completer<T> {
    pub fn complete(self, result: Result<T, EngineError>) {
        let waker = {
            let mut state = self.0.borrow_mut();
            state.result = Some(result);
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Future for Completion<T> {
    type Output = Result<T, EngineError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.0.borrow_mut();
        match state.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

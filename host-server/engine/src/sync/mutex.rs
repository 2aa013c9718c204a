use std::cell::{RefCell, RefMut};
use std::ops::{Deref, DerefMut};

use super::semaphore::{Permit, Semaphore};

/// Mutual exclusion that may be held across `.await`, granted in the order asked for.
pub struct Mutex<T> {
    turn: Semaphore,
    value: RefCell<T>,
}

/// Access until dropped.
pub struct MutexGuard<'a, T> {
    // Dropped before the turn passes on.
    value: RefMut<'a, T>,
    _turn: Permit<'a>,
}

impl<T> Mutex<T> {
    pub fn new(value: T) -> Self {
        Self { turn: Semaphore::new(1), value: RefCell::new(value) }
    }

    pub async fn lock(&self) -> MutexGuard<'_, T> {
        let turn = self.turn.acquire(1).await;
        MutexGuard { value: self.value.borrow_mut(), _turn: turn }
    }

    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let turn = self.turn.try_acquire(1)?;
        Some(MutexGuard { value: self.value.borrow_mut(), _turn: turn })
    }

    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

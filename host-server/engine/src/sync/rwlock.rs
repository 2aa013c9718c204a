use std::cell::{Ref, RefCell, RefMut};
use std::ops::{Deref, DerefMut};

use super::semaphore::{Permit, Semaphore};

/// More readers at once than any thread has tasks.
const READERS_MAX: usize = u32::MAX as usize;

/// Many readers or one writer, across `.await`, granted in the order asked for: a waiting writer holds back later
/// readers, so neither side starves. A task that reads twice at once may therefore wait for itself.
pub struct RwLock<T> {
    turns: Semaphore,
    value: RefCell<T>,
}

/// Shared access until dropped.
pub struct ReadGuard<'a, T> {
    value: Ref<'a, T>,
    _turn: Permit<'a>,
}

/// Exclusive access until dropped.
pub struct WriteGuard<'a, T> {
    value: RefMut<'a, T>,
    _turn: Permit<'a>,
}

impl<T> RwLock<T> {
    pub fn new(value: T) -> Self {
        Self { turns: Semaphore::new(READERS_MAX), value: RefCell::new(value) }
    }

    pub async fn read(&self) -> ReadGuard<'_, T> {
        let turn = self.turns.acquire(1).await;
        ReadGuard { value: self.value.borrow(), _turn: turn }
    }

    pub async fn write(&self) -> WriteGuard<'_, T> {
        let turn = self.turns.acquire(READERS_MAX).await;
        WriteGuard { value: self.value.borrow_mut(), _turn: turn }
    }

    pub fn try_read(&self) -> Option<ReadGuard<'_, T>> {
        let turn = self.turns.try_acquire(1)?;
        Some(ReadGuard { value: self.value.borrow(), _turn: turn })
    }

    pub fn try_write(&self) -> Option<WriteGuard<'_, T>> {
        let turn = self.turns.try_acquire(READERS_MAX)?;
        Some(WriteGuard { value: self.value.borrow_mut(), _turn: turn })
    }
}

impl<T> Deref for ReadGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> Deref for WriteGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for WriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

//! Waiting for one another, among the tasks of one thread.
//!
//! Everything here is fair (first come, first served), deterministic and `!Send`. A future that is dropped while it waits
//! leaves the queue; what it was granted and had not taken goes to the next.

mod join;
mod mutex;
mod notify;
pub mod oneshot;
mod rwlock;
mod semaphore;
#[cfg(test)]
mod tests;

pub use join::{Either, join_all, race};
pub use mutex::{Mutex, MutexGuard};
pub use notify::{Event, Notify};
pub use rwlock::{ReadGuard, RwLock, WriteGuard};
pub use semaphore::{OwnedPermit, Permit, Semaphore};

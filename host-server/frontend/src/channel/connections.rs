//! The connections of a channel that are open, and which of them goes where there is no room for another.
//!
//! Whoever may connect can do so and say nothing, as often as it likes. So room is made at the cost of those who have said nothing yet, the
//! oldest first; and of those who were welcome one user's leave room for another's.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use ringfort_protocol::control::message::Reason;

use super::connection::Connection;
use super::control::{Refusal, Rings};

/// Connections that are served at a time; more wait.
pub const CONNECTION_COUNT_MAX: usize = 64;

/// Of them, those of one user that were welcome.
pub const USER_CONNECTION_COUNT_MAX: usize = 48;

/// Whoever connects may say nothing for so long, however many others wait.
const SILENT_AT_LEAST: Duration = Duration::from_millis(100);

pub struct Connections<R: Rings>(Mutex<HashMap<u64, Open<R>>>);

struct Open<R: Rings> {
    connection: Weak<Connection<R>>,
    uid: u32,
    since: Instant,
    welcome: bool,
    /// It was hung up on, and ends: another has its place.
    goes: bool,
}

impl<R: Rings> Default for Connections<R> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<R: Rings> Open<R> {
    fn is_silent(&self) -> bool {
        self.connection.upgrade().is_some_and(|connection| !connection.was_heard())
    }

    fn hang_up(&self) {
        if let Some(connection) = self.connection.upgrade() {
            connection.hang_up();
        }
    }
}

impl<R: Rings> Connections<R> {
    fn all(&self) -> MutexGuard<'_, HashMap<u64, Open<R>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection of this user.
    pub fn enter(&self, number: u64, uid: u32, connection: &Arc<Connection<R>>) {
        let connection = Arc::downgrade(connection);
        let open = Open { connection, uid, since: Instant::now(), welcome: false, goes: false };
        self.all().insert(number, open);
    }

    /// Whether it was there.
    pub fn leave(&self, number: u64) -> bool {
        self.all().remove(&number).is_some()
    }

    /// Counts it with those of its user that are welcome, where one more is.
    pub fn welcome(&self, number: u64) -> Result<(), Refusal> {
        let mut all = self.all();
        let Some(uid) = all.get(&number).map(|open| open.uid) else { return Ok(()) };
        let others = all.values().filter(|open| open.welcome && open.uid == uid).count();
        if others >= USER_CONNECTION_COUNT_MAX {
            let text = format!("user {uid} has {others} connections: end some of them first");
            return Err(Refusal::new(Reason::Limit, text));
        }
        if let Some(open) = all.get_mut(&number) {
            open.welcome = true;
        }
        Ok(())
    }

    pub fn hang_up(&self, number: u64) {
        if let Some(open) = self.all().get(&number) {
            open.hang_up();
        }
    }

    pub fn hang_up_all(&self) {
        self.all().values().for_each(Open::hang_up);
    }

    /// Whether there is room for one more, having made it where that is possible.
    pub fn make_room(&self) -> bool {
        let mut all = self.all();
        if all.values().filter(|open| !open.goes).count() < CONNECTION_COUNT_MAX {
            return true;
        }
        let silent = all.values_mut().filter(|open| !open.goes && open.is_silent());
        let oldest = silent.min_by_key(|open| open.since);
        let Some(oldest) = oldest.filter(|open| open.since.elapsed() >= SILENT_AT_LEAST) else {
            return false;
        };
        oldest.goes = true;
        oldest.hang_up();
        true
    }
}

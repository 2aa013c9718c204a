//! Memory that clients have, and the conversation with the server in which it was registered.
//!
//! Pages are given back to the guest only when the server has said that it uses them no more: it has answered Detach, it knows no such
//! region (any more), or it has welcomed a later connection, before which it has let go of all of an earlier one.

use std::collections::HashMap;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::link::Link;
use crate::pages::{Left, Pages, Store};
use crate::peer::Peer;

/// How long clients may take to let go when the daemon stops, and how often that is looked at.
const CLIENTS_END_WITHIN: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Memory that a client has.
pub struct Grant {
    /// Of the region.
    pub number: u32,
    uid: u32,
    pub pages: Arc<Pages>,
    link: Arc<Link>,
}

/// Who has memory, and how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    pub region: u32,
    pub uid: u32,
    pub pid: i32,
    pub ring_count: u32,
    pub len_bytes: u64,
}

/// A region that is in use.
struct Held {
    uid: u32,
    pid: i32,
    ring_count: u32,
    pages: Arc<Pages>,
    client: UnixStream,
}

#[derive(Default)]
struct State {
    link: Option<Arc<Link>>,
    held: HashMap<u32, Held>,
    /// Pages, of users, of regions whose end the server has not confirmed.
    retired: Vec<(u32, Arc<Pages>)>,
    /// Pages, of users, that their clients have hung up on and still hold.
    left: Vec<(u32, Left)>,
}

/// What clients have.
pub struct Holdings {
    store: Store,
    bounds: Bounds,
    numbers: AtomicU32,
    state: Mutex<State>,
}

/// The most memory that clients have.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub memory_bytes_max: u64,
    /// Of one user, root aside.
    pub user_memory_bytes_max: u64,
}

impl Holdings {
    pub fn new(store: Store, bounds: Bounds) -> Self {
        Self { store, bounds, numbers: AtomicU32::new(1), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The conversation with the server, while there is one.
    pub fn link(&self) -> Option<Arc<Link>> {
        self.state().link.clone()
    }

    pub fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Those that have memory, the first first.
    pub fn holders(&self) -> Vec<Holder> {
        let state = self.state();
        let holder = |(region, held): (&u32, &Held)| Holder {
            region: *region,
            uid: held.uid,
            pid: held.pid,
            ring_count: held.ring_count,
            len_bytes: held.pages.len_bytes(),
        };
        let mut holders: Vec<_> = state.held.iter().map(holder).collect();
        holders.sort_by_key(|holder| holder.region);
        holders
    }

    /// Memory whose end the server has not confirmed.
    pub fn retired_bytes(&self) -> u64 {
        self.state().retired.iter().map(|(_, pages)| pages.len_bytes()).sum()
    }

    /// Pages for so many rings of a client of this user.
    pub fn grant(
        &self,
        peer: &Peer,
        (len_bytes, ring_count): (u64, u32),
        link: &Arc<Link>,
        client: &UnixStream,
    ) -> Result<Grant> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        self.check_room(peer.uid, len_bytes)?;
        let pages = Arc::new(self.store.create(number, len_bytes)?);
        let client = client.try_clone().context("keep the connection of a client")?;
        let mut state = self.state();
        // Two clients may have asked at once.
        room(&state, self.bounds, peer.uid, len_bytes)?;
        let is_current = state.link.as_ref().is_some_and(|current| Arc::ptr_eq(current, link));
        ensure!(is_current, "the server is not there; try again when it runs");
        let (uid, pid) = (peer.uid, peer.pid);
        state.held.insert(number, Held { uid, pid, ring_count, pages: Arc::clone(&pages), client });
        Ok(Grant { number, uid: peer.uid, pages, link: Arc::clone(link) })
    }

    fn check_room(&self, uid: u32, len_bytes: u64) -> Result<()> {
        let mut state = self.state();
        state.look_over();
        room(&state, self.bounds, uid, len_bytes)
    }

    /// A client is gone: ends its region, then gives its pages back to the guest.
    pub fn take_back(&self, grant: Grant) {
        let ended = grant.link.detach(grant.number);
        let mut state = self.state();
        state.held.remove(&grant.number);
        match ended {
            Err(error) if !error.says_unknown() => {
                tracing::debug!(region = grant.number, uid = grant.uid, %error, "the end of a region is not confirmed: its pages are kept");
                // One that hung up while a later connection began: that one's welcome is the confirmation.
                if state.link.as_ref().is_none_or(|link| Arc::ptr_eq(link, &grant.link)) {
                    state.retired.push((grant.uid, grant.pages));
                }
            }
            _ => state.left.extend(grant.pages.left_behind().map(|left| (grant.uid, left))),
        }
    }

    /// Looks for clients that let go of what they had, and for those that took more than they were given.
    pub fn look_over(&self) {
        self.state().look_over();
    }

    /// The server has let go of everything that earlier connections began.
    pub fn begin(&self, link: &Arc<Link>) {
        let mut state = self.state();
        let confirmed = std::mem::take(&mut state.retired);
        let left = confirmed.iter().filter_map(|(uid, pages)| Some((*uid, pages.left_behind()?)));
        state.left.extend(left);
        let kept: Vec<_> = state.held.values().map(|held| held.pages.path().to_owned()).collect();
        let kept: Vec<&Path> = kept.iter().map(PathBuf::as_path).collect();
        if let Err(error) = self.store.delete_leftovers(&kept) {
            tracing::warn!("{error:#}: pages of an earlier daemon stay reserved");
        }
        state.link = Some(Arc::clone(link));
    }

    /// The connection has ended: clients have to begin anew.
    pub fn unlink(&self) {
        let mut state = self.state();
        state.link = None;
        state.held.values().for_each(Held::hang_up);
    }

    /// The pages of a region, while a client has it.
    pub fn pages(&self, region: u32) -> Option<Arc<Pages>> {
        self.state().held.get(&region).map(|held| Arc::clone(&held.pages))
    }

    /// Ends the connection of a region's client, whose thread takes back what it had.
    pub fn hang_up_on(&self, region: u32) {
        if let Some(held) = self.state().held.get(&region) {
            held.hang_up();
        }
    }

    /// Ends every region, so that its pages can be given back.
    pub fn end(&self) {
        let numbers: Vec<u32> = self.state().held.keys().copied().collect();
        numbers.into_iter().for_each(|number| self.hang_up_on(number));
        let steps = CLIENTS_END_WITHIN.as_millis() / LOOK_AGAIN.as_millis();
        for _ in 0..steps {
            if self.state().held.is_empty() {
                break;
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        if let Some(link) = self.link() {
            link.hang_up();
        }
        if let Err(error) = self.store.give_back() {
            tracing::warn!("{error:#}: huge pages stay reserved");
        }
    }
}

impl State {
    fn look_over(&mut self) {
        self.left.retain(|(_, left)| left.is_held());
        for (uid, left) in &self.left {
            if left.cut_off_more() {
                tracing::warn!(uid, "a program that had hung up made its memory longer: it was cut off");
            }
        }
        for (region, held) in &self.held {
            if held.pages.cut_off_more() {
                tracing::warn!(
                    region,
                    uid = held.uid,
                    "a client made its memory longer: it was cut off and hung up on"
                );
                held.hang_up();
            }
        }
    }
}

impl Held {
    fn hang_up(&self) {
        // One that has ended already.
        let _ = self.client.shutdown(Shutdown::Both);
    }
}

fn room(state: &State, bounds: Bounds, uid: u32, len_bytes: u64) -> Result<()> {
    let Bounds { memory_bytes_max: most, user_memory_bytes_max: most_of_user } = bounds;
    let held = state.held.values().map(|held| (held.uid, held.pages.len_bytes()));
    let retired = state.retired.iter().map(|(uid, pages)| (*uid, pages.len_bytes()));
    let left = state.left.iter().map(|(uid, left)| (*uid, left.len_bytes()));
    let all: Vec<(u32, u64)> = held.chain(retired).chain(left).collect();
    let bytes = |of_user: Option<u32>| -> u64 {
        let counted = all.iter().filter(|(uid, _)| of_user.is_none_or(|of_user| of_user == *uid));
        counted.map(|(_, len_bytes)| len_bytes).sum()
    };
    let total = bytes(None);
    ensure!(
        total + len_bytes <= most,
        "{len_bytes} bytes more than the {total} that clients have: at most {most} are shared (--memory-max-mib)"
    );
    let own = bytes(Some(uid));
    ensure!(
        uid == 0 || own + len_bytes <= most_of_user,
        "{len_bytes} bytes more than the {own} that user {uid} has: at most {most_of_user} are, what programs hold that have hung up included (--user-memory-max-mib)"
    );
    Ok(())
}

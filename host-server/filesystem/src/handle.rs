//! What sessions hold: lookup counts and open handles.
//!
//! Both keep an inode without links alive. Memory is bounded by what guests hold: a session's handles by a limit, its lookups by the
//! inodes of the volume.

use std::collections::BTreeMap;
use std::rc::Rc;

use ringfort_store::address::ViewId;

use crate::errno::Errno;
use crate::inode::Inode;
use crate::operation::{HandleId, LockFamily, LockMode, OpenFlags, SessionId};

/// An open file or directory.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    pub inode: Rc<Inode>,
    pub flags: OpenFlags,
    pub directory: bool,
}

impl Handle {
    /// `EBADF` where fcntl asks for more than the file was opened for.
    pub fn require_lockable(&self, family: LockFamily, mode: LockMode) -> Result<(), Errno> {
        let allowed = match (family, mode) {
            (LockFamily::WholeFile, _) => true,
            (LockFamily::Range, LockMode::Shared) => self.flags.read,
            (LockFamily::Range, LockMode::Exclusive) => self.flags.write,
        };
        if allowed { Ok(()) } else { Err(Errno::EBADF) }
    }
}

#[derive(Debug)]
struct Session {
    /// The inode that is the session's root directory.
    root: u64,
    /// Inode number → lookups that were not taken back.
    lookups: BTreeMap<u64, u64>,
    handles: BTreeMap<HandleId, Handle>,
    handles_opened: u64,
}

/// All sessions of a filesystem.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    open: BTreeMap<SessionId, Session>,
    opened: u64,
    /// Inode number → sessions with lookups of it, and handles, that hold it.
    holds: BTreeMap<u64, u64>,
}

impl Sessions {
    pub fn open(&mut self, root: u64) -> SessionId {
        self.opened += 1;
        let session = SessionId(self.opened);
        let opened = Session { root, lookups: BTreeMap::new(), handles: BTreeMap::new(), handles_opened: 0 };
        self.open.insert(session, opened);
        session
    }

    /// The inode that is a session's root directory.
    pub fn root(&self, session: SessionId) -> Result<u64, Errno> {
        self.open.get(&session).map(|session| session.root).ok_or(Errno::ESTALE)
    }

    /// Sessions that have a view as their root.
    pub fn rooted_in(&self, view: ViewId) -> usize {
        self.open.values().filter(|session| ViewId::of(session.root) == view).count()
    }

    /// Numbers of the inodes that nobody holds any more.
    pub fn close(&mut self, session: SessionId) -> Vec<u64> {
        let Some(closed) = self.open.remove(&session) else { return Vec::new() };
        let handles = closed.handles.values().map(|handle| handle.inode.number);
        let held: Vec<u64> = closed.lookups.into_keys().chain(handles).collect();
        held.into_iter().filter(|&number| self.drop_hold(number)).collect()
    }

    pub fn all(&self) -> Vec<SessionId> {
        self.open.keys().copied().collect()
    }

    pub fn is_held(&self, number: u64) -> bool {
        self.holds.contains_key(&number)
    }

    fn hold(&mut self, number: u64) {
        *self.holds.entry(number).or_default() += 1;
    }

    /// Whether that was the last.
    fn drop_hold(&mut self, number: u64) -> bool {
        let Some(holds) = self.holds.get_mut(&number) else { return false };
        *holds -= 1;
        if *holds > 0 {
            return false;
        }
        self.holds.remove(&number);
        true
    }

    fn session(&mut self, session: SessionId) -> Result<&mut Session, Errno> {
        self.open.get_mut(&session).ok_or(Errno::ESTALE)
    }

    /// `ESTALE` where the session has ended.
    pub fn count_lookup(&mut self, session: SessionId, number: u64) -> Result<(), Errno> {
        let lookups = self.session(session)?.lookups.entry(number).or_default();
        *lookups += 1;
        if *lookups == 1 {
            self.hold(number);
        }
        Ok(())
    }

    /// Whether nobody holds the inode any more, and somebody did. A count above what is known, or of an inode never looked up,
    /// takes back what there is.
    pub fn forget(&mut self, session: SessionId, number: u64, count: u64) -> bool {
        let Ok(session) = self.session(session) else { return false };
        let Some(lookups) = session.lookups.get_mut(&number) else { return false };
        if *lookups > count {
            *lookups -= count;
            return false;
        }
        session.lookups.remove(&number);
        self.drop_hold(number)
    }

    pub fn open_handle(
        &mut self,
        session: SessionId,
        handle: Handle,
        handles_max: usize,
    ) -> Result<HandleId, Errno> {
        let number = handle.inode.number;
        let session = self.session(session)?;
        if session.handles.len() >= handles_max {
            return Err(Errno::ENFILE);
        }
        session.handles_opened += 1;
        let id = HandleId(session.handles_opened);
        session.handles.insert(id, handle);
        self.hold(number);
        Ok(id)
    }

    pub fn handle(&self, session: SessionId, handle: HandleId) -> Result<Handle, Errno> {
        let session = self.open.get(&session).ok_or(Errno::ESTALE)?;
        session.handles.get(&handle).cloned().ok_or(Errno::EBADF)
    }

    /// The inode, and whether nobody holds it any more.
    pub fn close_handle(
        &mut self,
        session: SessionId,
        handle: HandleId,
        directory: bool,
    ) -> Result<(Rc<Inode>, bool), Errno> {
        let handles = &mut self.session(session)?.handles;
        if handles.get(&handle).is_none_or(|found| found.directory != directory) {
            return Err(Errno::EBADF);
        }
        let closed = handles.remove(&handle).ok_or(Errno::EBADF)?;
        let last = self.drop_hold(closed.inode.number);
        Ok((closed.inode, last))
    }

    /// Open files and directories of a view.
    pub fn open_in(&self, view: ViewId) -> usize {
        let handles = self.open.values().flat_map(|session| session.handles.values());
        handles.filter(|handle| ViewId::of(handle.inode.number) == view).count()
    }

    /// Inodes held, for status and tests.
    pub fn held_inodes(&self) -> usize {
        self.holds.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inode::Metadata;
    use crate::operation::FileKind;

    fn handle(number: u64) -> Handle {
        let inode = Rc::new(Inode::new(number, Metadata::empty(FileKind::Regular)));
        Handle { inode, flags: OpenFlags::default(), directory: false }
    }

    #[test]
    fn an_inode_is_held_until_the_last_lookup_and_handle_are_gone() {
        let mut sessions = Sessions::default();
        let (first, second) = (sessions.open(1), sessions.open(1));
        sessions.count_lookup(first, 7).unwrap();
        sessions.count_lookup(first, 7).unwrap();
        sessions.count_lookup(second, 7).unwrap();
        let open = sessions.open_handle(second, handle(7), 10).unwrap();
        assert!(!sessions.forget(first, 7, 2));
        assert!(!sessions.forget(second, 7, 100));
        assert!(sessions.is_held(7));
        assert!(sessions.close_handle(second, open, false).unwrap().1);
        assert_eq!(sessions.held_inodes(), 0);
    }

    #[test]
    fn forgetting_what_was_never_looked_up_is_ignored() {
        let mut sessions = Sessions::default();
        let session = sessions.open(1);
        assert!(!sessions.forget(session, 7, 1));
        assert!(!sessions.forget(SessionId(99), 7, 1));
        assert_eq!(sessions.count_lookup(SessionId(99), 7), Err(Errno::ESTALE));
    }

    #[test]
    fn a_session_that_ends_drops_everything_it_held() {
        let mut sessions = Sessions::default();
        let session = sessions.open(1);
        sessions.count_lookup(session, 7).unwrap();
        sessions.open_handle(session, handle(7), 10).unwrap();
        sessions.open_handle(session, handle(8), 10).unwrap();
        assert_eq!(sessions.close(session), [7, 8]);
        assert_eq!(sessions.held_inodes(), 0);
    }

    #[test]
    fn handles_are_limited_and_belong_to_their_session() {
        let mut sessions = Sessions::default();
        let (first, second) = (sessions.open(1), sessions.open(1));
        let id = sessions.open_handle(first, handle(7), 1).unwrap();
        assert_eq!(sessions.open_handle(first, handle(7), 1), Err(Errno::ENFILE));
        assert!(matches!(sessions.handle(second, id), Err(Errno::EBADF)));
        assert!(matches!(sessions.close_handle(first, id, true), Err(Errno::EBADF)));
    }
}

//! What a front end needs of the filesystem behind it.

use std::future::Future;

use ringfort_filesystem::Filesystem;
use ringfort_filesystem::errno::Errno;
use ringfort_filesystem::operation::{Credentials, Operation, Reply, SessionId};
use ringfort_store::volume::Volume;

/// Executes operations on the thread that owns the volume. The implementation validates every identifier in an
/// operation itself: node ids and handles come from a guest.
pub trait Service: 'static {
    /// Runs one operation. Operations of one session may run concurrently.
    fn execute(
        &self,
        session: SessionId,
        credentials: &Credentials,
        operation: Operation,
    ) -> impl Future<Output = Result<Reply, Errno>>;

    /// Begins a session: no handles, no counted lookups.
    fn open_session(&self) -> impl Future<Output = SessionId>;

    /// Ends a session, with its handles and lookup counts. Called when none of its operations runs.
    fn close_session(&self, session: SessionId) -> impl Future<Output = ()>;
}

impl<V: Volume + 'static> Service for Filesystem<V> {
    async fn execute(
        &self,
        session: SessionId,
        credentials: &Credentials,
        operation: Operation,
    ) -> Result<Reply, Errno> {
        Filesystem::execute(self, session, credentials, operation).await
    }

    async fn open_session(&self) -> SessionId {
        Filesystem::open_session(self)
    }

    async fn close_session(&self, session: SessionId) {
        Filesystem::close_session(self, session).await;
    }
}

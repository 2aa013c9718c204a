//! Snapshots and clones, as whoever runs the volume makes, names and removes them.

use ringfort_store::address::ViewId;
use ringfort_store::error::{ErrorKind, StoreError};
use ringfort_store::format::filesystem as format;
use ringfort_store::volume::{Cost, ViewChange, ViewEntry, ViewKind, ViewState, Volume};

use crate::failure::Failure;
use crate::filesystem::Filesystem;
use crate::mount::{MOMENT, Mount};
use crate::operation::{Name, Timestamp};

/// A snapshot that somebody can see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    pub view: ViewId,
    /// What it is of.
    pub branch: ViewId,
    pub name: Vec<u8>,
    pub created: Timestamp,
    /// The schedule that made it; 0 where somebody asked for it.
    pub schedule: u8,
}

/// A clone that somebody can see: a filesystem of its own, which began as a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clone {
    pub view: ViewId,
    pub origin: ViewId,
    pub name: Vec<u8>,
    pub created: Timestamp,
}

fn info_of(entry: &ViewEntry) -> format::ViewInfo {
    let nameless = format::ViewInfo { created: format::Time::default(), schedule: 0, name: Vec::new() };
    format::ViewInfo::decode(&entry.info).unwrap_or(nameless)
}

fn created_at(info: &format::ViewInfo) -> Timestamp {
    Timestamp { seconds: info.created.seconds, nanoseconds: info.created.nanoseconds }
}

impl<V: Volume> Mount<V> {
    /// Whether a view is a branch that somebody can see.
    pub fn is_branch(&self, view: ViewId) -> bool {
        match self.volume.view(view) {
            Some(entry) => entry.state == ViewState::Live && matches!(entry.kind, ViewKind::Branch { .. }),
            None => view == ViewId::VOLUME,
        }
    }

    /// All of them.
    pub fn branches(&self) -> Vec<ViewId> {
        let views = self.volume.views().into_iter().map(|(view, _)| view);
        let all = [ViewId::VOLUME].into_iter().chain(views.filter(|view| *view != ViewId::VOLUME));
        all.filter(|view| self.is_branch(*view)).collect()
    }

    /// The snapshots of a branch, in the order in which they were made.
    pub fn snapshots_of(&self, branch: ViewId) -> Vec<Snapshot> {
        let views = self.volume.views().into_iter();
        let is_of =
            |entry: &ViewEntry| entry.state == ViewState::Live && entry.kind == ViewKind::Snapshot { branch };
        let mut found: Vec<(u32, Snapshot)> = views
            .filter(|(_, entry)| is_of(entry))
            .map(|(view, entry)| {
                let info = info_of(&entry);
                let created = created_at(&info);
                (entry.epoch, Snapshot { view, branch, name: info.name, created, schedule: info.schedule })
            })
            .collect();
        found.sort_by_key(|(epoch, _)| *epoch);
        found.into_iter().map(|(_, snapshot)| snapshot).collect()
    }

    pub fn snapshot_named(&self, branch: ViewId, name: &[u8]) -> Option<ViewId> {
        self.snapshots_of(branch)
            .into_iter()
            .find(|snapshot| snapshot.name == name)
            .map(|snapshot| snapshot.view)
    }

    fn clones(&self) -> Vec<Clone> {
        let views = self.volume.views().into_iter();
        let clone = |(view, entry): (ViewId, ViewEntry)| match (entry.state, entry.kind) {
            (ViewState::Live, ViewKind::Branch { origin: Some(origin) }) => {
                let info = info_of(&entry);
                Some(Clone { view, origin, created: created_at(&info), name: info.name })
            }
            _ => None,
        };
        views.filter_map(clone).collect()
    }

    async fn change_view(&self, view: ViewId, change: ViewChange) -> Result<(), StoreError> {
        let cost = Cost { data_blocks: 0, entries: 1, frees_space: change == ViewChange::Remove };
        let mut transaction = self.volume.begin(cost).await?;
        transaction.change_view(view, change);
        self.volume.apply(transaction)?;
        self.volume.sync().await
    }

    fn info(&self, name: &[u8], schedule: u8) -> Vec<u8> {
        let now = self.now();
        let created = format::Time { seconds: now.seconds, nanoseconds: now.nanoseconds };
        format::ViewInfo { created, schedule, name: name.to_vec() }.encode()
    }
}

fn refused(kind: ErrorKind, operation: &str, name: &[u8], found: impl Into<Box<str>>) -> StoreError {
    StoreError::new(kind, operation, format!("{:?}", String::from_utf8_lossy(name)), found)
}

/// `Invalid` for what can be no name of a directory.
fn require_name(operation: &str, name: &[u8]) -> Result<(), StoreError> {
    let found = match Name::new(name) {
        Ok(_) => return Ok(()),
        Err(_) if name.is_empty() => "an empty name".to_owned(),
        Err(_) if name.len() > Name::LEN_BYTES_MAX => format!("a name of {} bytes", name.len()),
        Err(_) => "a name with `/` or a NUL in it, or one that means a directory".to_owned(),
    };
    Err(refused(ErrorKind::Invalid, operation, name, found)
        .expected(format!("1 to {} bytes", Name::LEN_BYTES_MAX))
        .advice("choose another name"))
}

impl<V: Volume> Filesystem<V> {
    /// The branch that sessions have as their root unless they ask for another.
    pub fn root_branch(&self) -> ViewId {
        ViewId::VOLUME
    }

    pub fn snapshots(&self, branch: ViewId) -> Vec<Snapshot> {
        self.mount().snapshots_of(branch)
    }

    pub fn clones(&self) -> Vec<Clone> {
        self.mount().clones()
    }

    /// Snapshots and clones that nobody sees any more, and whose space is being given back.
    pub fn views_being_removed(&self) -> u64 {
        let views = self.mount().volume.views();
        views.iter().filter(|(_, entry)| entry.state == ViewState::Deleting).count() as u64
    }

    /// Keeps what a branch holds now: everything that was completed before, and nothing that begins after. Durable when it returns. What guests hold in caches of
    /// theirs is not in it. `Invalid` for what is no name, `Exists` for one that a snapshot of the branch has.
    pub async fn take_snapshot(
        &self,
        branch: ViewId,
        name: &[u8],
        schedule: u8,
    ) -> Result<ViewId, StoreError> {
        const DOING: &str = "take snapshot";
        require_name(DOING, name)?;
        let mount = self.mount();
        let _moment = mount.moments.exclusive(MOMENT).await;
        if mount.snapshot_named(branch, name).is_some() {
            return Err(refused(ErrorKind::Exists, DOING, name, "a snapshot of that name is there already"));
        }
        let view = mount.volume.new_view()?;
        let info = mount.info(name, schedule);
        mount.change_view(view, ViewChange::Snapshot { branch, info }).await?;
        Ok(view)
    }

    /// Nobody sees the snapshot any more; what it alone held is given back in the background. `NotFound`, or `Busy` while files of it are open or clones stand on it.
    pub async fn remove_snapshot(&self, branch: ViewId, name: &[u8]) -> Result<(), StoreError> {
        const DOING: &str = "remove snapshot";
        let mount = self.mount();
        let Some(view) = mount.snapshot_named(branch, name) else {
            return Err(refused(ErrorKind::NotFound, DOING, name, "there is no such snapshot"));
        };
        let clones: Vec<String> = mount
            .clones()
            .into_iter()
            .filter(|clone| clone.origin == view)
            .map(|clone| String::from_utf8_lossy(&clone.name).into_owned())
            .collect();
        if !clones.is_empty() {
            let found = format!("clones stand on it: {}", clones.join(", "));
            return Err(refused(ErrorKind::Busy, DOING, name, found).advice("remove them first"));
        }
        self.remove_view(DOING, name, view).await
    }

    /// Makes a filesystem of its own that begins with what a snapshot of `branch` holds. Durable when it returns.
    pub async fn make_clone(
        &self,
        branch: ViewId,
        snapshot: &[u8],
        name: &[u8],
    ) -> Result<ViewId, StoreError> {
        const DOING: &str = "make clone";
        require_name(DOING, name)?;
        let mount = self.mount();
        let Some(origin) = mount.snapshot_named(branch, snapshot) else {
            let found = format!("there is no snapshot {:?}", String::from_utf8_lossy(snapshot));
            return Err(refused(ErrorKind::NotFound, DOING, name, found));
        };
        if mount.clones().iter().any(|clone| clone.name == name) {
            return Err(refused(ErrorKind::Exists, DOING, name, "a clone of that name is there already"));
        }
        let view = mount.volume.new_view()?;
        let info = mount.info(name, 0);
        mount.change_view(view, ViewChange::Branch { origin: Some(origin), info }).await?;
        // Files that were unlinked and still open when the snapshot was taken are nobody's in the clone.
        mount.recover_branch(view).await.map_err(|failure| match failure {
            Failure::Store(error) => *error,
            Failure::Refused(errno) => refused(ErrorKind::Damaged, DOING, name, errno.to_string()),
        })?;
        Ok(view)
    }

    /// As [`Filesystem::remove_snapshot`]. Snapshots of the clone stay until they are removed.
    pub async fn remove_clone(&self, name: &[u8]) -> Result<(), StoreError> {
        const DOING: &str = "remove clone";
        let Some(clone) = self.mount().clones().into_iter().find(|clone| clone.name == name) else {
            return Err(refused(ErrorKind::NotFound, DOING, name, "there is no such clone"));
        };
        self.remove_view(DOING, name, clone.view).await
    }

    async fn remove_view(&self, doing: &str, name: &[u8], view: ViewId) -> Result<(), StoreError> {
        let mount = self.mount();
        let rooted = mount.sessions.borrow().rooted_in(view);
        if rooted > 0 {
            let found = format!("{rooted} guests or programs have it as their filesystem");
            return Err(refused(ErrorKind::Busy, doing, name, found).advice("unmount it first"));
        }
        let open = mount.sessions.borrow().open_in(view);
        if open > 0 {
            let found = format!("{open} files or directories of it are open");
            return Err(
                refused(ErrorKind::Busy, doing, name, found).advice("close them, or unmount it, first")
            );
        }
        mount.change_view(view, ViewChange::Remove).await?;
        mount.inodes.remove_view(view);
        Ok(())
    }
}

//! All files of a volume as a tar archive.
//!
//! The archive has what GNU tar has words for: names of any bytes, hard links, device nodes, extended attributes (as PAX
//! records, with ACLs among them). Holes are written as zeros, times to the second; sockets are left out, as tar leaves them out.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result};
use ringfort_filesystem::Filesystem;
use ringfort_filesystem::errno::Errno;
use ringfort_filesystem::operation::{
    Attributes, Credentials, DataPiece, DirectoryEntry, FileKind, HandleId, NodeId, OpenFlags, Operation,
    Reply, SessionId,
};
use ringfort_store::volume::Volume;
use tar::{Builder, EntryType, Header};

/// What is read of a file at once.
const PIECE_BYTES: u32 = 1 << 20;
/// Entries of a directory that are listed at once.
const LISTED_AT_ONCE: usize = 256;
/// What tar counts in.
const RECORD_BYTES: u64 = 512;

/// An archive that grows.
pub struct Archive<W: Write> {
    builder: Builder<W>,
    /// The first path of each file that has several.
    linked: HashMap<NodeId, Vec<u8>>,
    /// What could not be read, in words.
    unread: Vec<String>,
}

/// A volume's files, read as root.
struct Source<'a, V: Volume> {
    filesystem: &'a Filesystem<V>,
    session: SessionId,
}

struct Entry {
    path: Vec<u8>,
    attributes: Attributes,
}

impl<W: Write> Archive<W> {
    pub fn new(output: W) -> Self {
        Self { builder: Builder::new(output), linked: HashMap::new(), unread: Vec::new() }
    }

    /// Adds every file, each directory before what it holds. Files that cannot be read are noted, and the rest is added.
    pub async fn add_everything<V: Volume>(&mut self, filesystem: &Filesystem<V>) -> Result<()> {
        let source = Source { filesystem, session: filesystem.open_session() };
        let added = self.add_tree(&source).await;
        filesystem.close_session(source.session).await;
        added
    }

    /// Ends the archive; what could not be read.
    pub fn finish(&mut self) -> Result<Vec<String>> {
        self.builder.finish().and_then(|()| self.builder.get_mut().flush()).context("write the archive")?;
        Ok(std::mem::take(&mut self.unread))
    }

    async fn add_tree<V: Volume>(&mut self, source: &Source<'_, V>) -> Result<()> {
        let mut pending = vec![(Vec::new(), NodeId::ROOT)];
        while let Some((path, directory)) = pending.pop() {
            let handle = match source.execute(Operation::OpenDirectory { node: directory }).await {
                Ok(Reply::Opened(handle)) => handle,
                other => {
                    self.note(&path, "open", other.err());
                    continue;
                }
            };
            let mut cookie = 0;
            loop {
                let listed = source.list(handle, cookie).await;
                let Ok(entries) = listed else {
                    self.note(&path, "list", listed.err());
                    break;
                };
                let Some(last) = entries.last() else { break };
                cookie = last.cookie;
                for entry in entries {
                    let Some(attributes) = entry.attributes else { continue };
                    let path =
                        if path.is_empty() { entry.name } else { [&path, &b"/"[..], &entry.name].concat() };
                    let is_directory = attributes.kind == FileKind::Directory;
                    let entry = Entry { path, attributes };
                    self.add(source, &entry).await?;
                    if is_directory {
                        pending.push((entry.path, attributes.node));
                    }
                    let _ = source.execute(Operation::Forget { node: attributes.node, count: 1 }).await;
                }
            }
            let _ = source.execute(Operation::ReleaseDirectory { handle }).await;
        }
        Ok(())
    }

    async fn add<V: Volume>(&mut self, source: &Source<'_, V>, entry: &Entry) -> Result<()> {
        let attributes = &entry.attributes;
        if attributes.kind == FileKind::Socket {
            return Ok(());
        }
        if attributes.link_count > 1 && attributes.kind != FileKind::Directory {
            if let Some(first) = self.linked.get(&attributes.node) {
                let mut header = header(attributes, EntryType::Link);
                return self
                    .builder
                    .append_link(&mut header, path(&entry.path), path(first))
                    .with_context(|| writing(entry));
            }
            self.linked.insert(attributes.node, entry.path.clone());
        }
        match attributes.kind {
            FileKind::Regular => self.add_file(source, entry).await,
            FileKind::Directory => self.add_empty(source, entry, EntryType::Directory).await,
            FileKind::Fifo => self.add_empty(source, entry, EntryType::Fifo).await,
            FileKind::CharacterDevice => self.add_empty(source, entry, EntryType::Char).await,
            FileKind::BlockDevice => self.add_empty(source, entry, EntryType::Block).await,
            FileKind::Symlink => match source.execute(Operation::ReadLink { node: attributes.node }).await {
                Ok(Reply::Target(target)) => {
                    let mut header = header(attributes, EntryType::Symlink);
                    self.builder
                        .append_link(&mut header, path(&entry.path), path(&target))
                        .with_context(|| writing(entry))
                }
                other => {
                    self.note(&entry.path, "read", other.err());
                    Ok(())
                }
            },
            FileKind::Socket => Ok(()),
        }
    }

    async fn add_empty<V: Volume>(
        &mut self,
        source: &Source<'_, V>,
        entry: &Entry,
        kind: EntryType,
    ) -> Result<()> {
        self.add_xattrs(source, entry).await?;
        let mut header = header(&entry.attributes, kind);
        if matches!(kind, EntryType::Char | EntryType::Block) {
            let device = u64::from(entry.attributes.device);
            header.set_device_major(((device >> 8) & 0xfff) as u32).with_context(|| writing(entry))?;
            header
                .set_device_minor((device & 0xff | (device >> 12) & 0xfff00) as u32)
                .with_context(|| writing(entry))?;
        }
        self.builder
            .append_data(&mut header, path(&entry.path), std::io::empty())
            .with_context(|| writing(entry))
    }

    async fn add_file<V: Volume>(&mut self, source: &Source<'_, V>, entry: &Entry) -> Result<()> {
        self.add_xattrs(source, entry).await?;
        let len_bytes = entry.attributes.size_bytes;
        let mut header = header(&entry.attributes, EntryType::Regular);
        header.set_size(len_bytes);
        // The header promises `len_bytes`; they follow from here, since reading them has to wait and the builder cannot.
        self.builder
            .append_data(&mut header, path(&entry.path), std::io::empty())
            .with_context(|| writing(entry))?;
        let flags = OpenFlags { read: true, ..OpenFlags::default() };
        let opened = source.execute(Operation::Open { node: entry.attributes.node, flags }).await;
        let handle = match opened {
            Ok(Reply::Opened(handle)) => Some(handle),
            other => {
                self.note(&entry.path, "open", other.err());
                None
            }
        };
        let mut offset_bytes = 0;
        while offset_bytes < len_bytes {
            let wanted = (len_bytes - offset_bytes).min(u64::from(PIECE_BYTES));
            let written = match handle {
                Some(handle) => self.add_piece(source, entry, handle, offset_bytes, wanted as u32).await?,
                None => 0,
            };
            self.add_zeros(wanted - written).with_context(|| writing(entry))?;
            offset_bytes += wanted;
        }
        self.add_zeros(len_bytes.next_multiple_of(RECORD_BYTES) - len_bytes)
            .with_context(|| writing(entry))?;
        if let Some(handle) = handle {
            let _ = source.execute(Operation::Release { handle }).await;
        }
        Ok(())
    }

    /// Writes what can be read of a piece, at most all of it; returns how much that is.
    async fn add_piece<V: Volume>(
        &mut self,
        source: &Source<'_, V>,
        entry: &Entry,
        handle: HandleId,
        offset_bytes: u64,
        len_bytes: u32,
    ) -> Result<u64> {
        let pieces = match source.execute(Operation::Read { handle, offset_bytes, len_bytes }).await {
            Ok(Reply::Data(pieces)) => pieces,
            other => {
                self.note(&entry.path, &format!("read {len_bytes} bytes at {offset_bytes} of"), other.err());
                return Ok(0);
            }
        };
        let mut written = 0;
        for piece in pieces {
            match piece {
                DataPiece::Bytes(bytes) => {
                    self.builder.get_mut().write_all(&bytes).with_context(|| writing(entry))?;
                    written += bytes.len() as u64;
                }
                DataPiece::Zeros { len_bytes } => {
                    self.add_zeros(len_bytes as u64).with_context(|| writing(entry))?;
                    written += len_bytes as u64;
                }
            }
        }
        Ok(written)
    }

    fn add_zeros(&mut self, mut len_bytes: u64) -> std::io::Result<()> {
        const ZEROS: [u8; 4096] = [0; 4096];
        while len_bytes > 0 {
            let now = len_bytes.min(ZEROS.len() as u64);
            self.builder.get_mut().write_all(&ZEROS[..now as usize])?;
            len_bytes -= now;
        }
        Ok(())
    }

    async fn add_xattrs<V: Volume>(&mut self, source: &Source<'_, V>, entry: &Entry) -> Result<()> {
        let node = entry.attributes.node;
        let names = match source.execute(Operation::ListXattr { node }).await {
            Ok(Reply::Value(names)) => names,
            other => {
                self.note(&entry.path, "list the extended attributes of", other.err());
                return Ok(());
            }
        };
        let mut records = Vec::new();
        for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let value = source.execute(Operation::GetXattr { node, name: name.to_vec() }).await;
            match (std::str::from_utf8(name), value) {
                (Ok(name), Ok(Reply::Value(value))) => records.push((format!("SCHILY.xattr.{name}"), value)),
                (_, value) => {
                    let what = format!("read the extended attribute {} of", name.escape_ascii());
                    self.note(&entry.path, &what, value.err());
                }
            }
        }
        if records.is_empty() {
            return Ok(());
        }
        let records = records.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
        self.builder.append_pax_extensions(records).with_context(|| writing(entry))
    }

    fn note(&mut self, path: &[u8], what: &str, errno: Option<Errno>) {
        let why = errno.map_or("it is of another kind now".to_owned(), |errno| errno.to_string());
        self.unread.push(format!("could not {what} /{}: {why}", path.escape_ascii()));
    }
}

impl<V: Volume> Source<'_, V> {
    async fn execute(&self, operation: Operation) -> Result<Reply, Errno> {
        self.filesystem.execute(self.session, &Credentials::root(), operation).await
    }

    /// The next entries of a directory, `.` and `..` without attributes.
    async fn list(&self, handle: HandleId, cookie: u64) -> Result<Vec<DirectoryEntry>, Errno> {
        let operation = Operation::ReadDirectory { handle, cookie, limit: LISTED_AT_ONCE, attributes: true };
        match self.execute(operation).await? {
            Reply::Entries(entries) => Ok(entries),
            _ => Err(Errno::EPROTO),
        }
    }
}

fn header(attributes: &Attributes, kind: EntryType) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(0);
    header.set_mode(u32::from(attributes.permissions));
    header.set_uid(u64::from(attributes.uid));
    header.set_gid(u64::from(attributes.gid));
    // Tar counts from 1970.
    header.set_mtime(u64::try_from(attributes.modified.seconds).unwrap_or(0));
    header
}

fn path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

fn writing(entry: &Entry) -> String {
    format!("write /{} to the archive", entry.path.escape_ascii())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::rc::Rc;

    use ringfort_engine::buffer::Buffer;
    use ringfort_engine::local::{self, LocalOptions};
    use ringfort_filesystem::FilesystemOptions;
    use ringfort_filesystem::operation::{Name, NewNode, Payload, SetXattrMode};
    use ringfort_store::model::{ModelSettings, ModelVolume};

    use super::*;

    struct Author<'a>(Source<'a, ModelVolume>);

    impl Author<'_> {
        async fn node(&self, operation: Operation) -> NodeId {
            match self.0.execute(operation).await.unwrap() {
                Reply::Node(attributes) => attributes.node,
                Reply::Created { attributes, .. } => attributes.node,
                other => panic!("{other:?}"),
            }
        }

        fn new_node(parent: NodeId, name: &[u8]) -> NewNode {
            NewNode { parent, name: Name::new(name).unwrap(), permissions: 0o640, umask: 0 }
        }

        async fn folder(&self, parent: NodeId, name: &[u8]) -> NodeId {
            self.node(Operation::MakeDirectory { new: Self::new_node(parent, name) }).await
        }

        async fn special(&self, name: &[u8], kind: FileKind, device: u32) {
            let new = Self::new_node(NodeId::ROOT, name);
            self.node(Operation::MakeNode { new, kind, device }).await;
        }

        async fn file(&self, parent: NodeId, name: &[u8], offset_bytes: u64, bytes: &[u8]) -> NodeId {
            let node = self
                .node(Operation::MakeNode {
                    new: Self::new_node(parent, name),
                    kind: FileKind::Regular,
                    device: 0,
                })
                .await;
            let flags = OpenFlags { write: true, ..OpenFlags::default() };
            let Reply::Opened(handle) = self.0.execute(Operation::Open { node, flags }).await.unwrap() else {
                panic!("it did not open")
            };
            let mut buffer = Buffer::zeroed(bytes.len().next_multiple_of(4096));
            buffer[..bytes.len()].copy_from_slice(bytes);
            let data = Payload { pieces: vec![buffer.freeze().slice(0..bytes.len())] };
            let write = Operation::Write {
                handle,
                offset_bytes,
                data,
                append: false,
                clear_set_id: false,
                write_back: false,
            };
            self.0.execute(write).await.unwrap();
            self.0.execute(Operation::Release { handle }).await.unwrap();
            node
        }
    }

    const LONG: [u8; 255] = [b'n'; 255];

    fn archive() -> Vec<u8> {
        let runtime = local::start(LocalOptions::default()).unwrap();
        let engine = runtime.engine();
        runtime.block_on(async move {
            let volume = Rc::new(ModelVolume::new(ModelSettings::default()));
            Filesystem::format(&*volume, &*engine).await.unwrap();
            let filesystem = Filesystem::open(volume, engine, FilesystemOptions::default()).await.unwrap();
            let author = Author(Source { filesystem: &filesystem, session: filesystem.open_session() });
            let folder = author.folder(NodeId::ROOT, b"folder").await;
            let deep = author.folder(folder, &LONG).await;
            let file = author.file(deep, b"sp\xffarse", 3 << 20, b"end").await;
            let link = Name::new(b"link").unwrap();
            author.node(Operation::Link { node: file, parent: NodeId::ROOT, name: link }).await;
            let name = Name::new(b"pointer").unwrap();
            let target = b"folder/somewhere".to_vec();
            author.node(Operation::MakeSymlink { parent: NodeId::ROOT, name, target }).await;
            // Major 259, minor 0x12345, as Linux packs them.
            author.special(b"disk", FileKind::BlockDevice, 0x1231_0345).await;
            author.special(b"pipe", FileKind::Fifo, 0).await;
            author.special(b"socket", FileKind::Socket, 0).await;
            let (name, value) = (b"user.colour".to_vec(), b"blue\0green".to_vec());
            let set = Operation::SetXattr {
                node: folder,
                name,
                value,
                mode: SetXattrMode::Any,
                clear_set_gid: false,
            };
            author.0.execute(set).await.unwrap();
            for number in 0..LISTED_AT_ONCE * 2 {
                author
                    .file(folder, format!("many-{number}").as_bytes(), 0, number.to_string().as_bytes())
                    .await;
            }
            let mut bytes = Vec::new();
            let mut archive = Archive::new(&mut bytes);
            archive.add_everything(&filesystem).await.unwrap();
            assert_eq!(archive.finish().unwrap(), Vec::<String>::new());
            drop(archive);
            bytes
        })
    }

    #[test]
    fn every_kind_of_file_is_in_the_archive_as_it_is_in_the_volume() {
        let bytes = archive();
        let mut read = tar::Archive::new(&bytes[..]);
        let mut found = HashMap::new();
        for entry in read.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut xattrs = Vec::new();
            for record in entry.pax_extensions().unwrap().into_iter().flatten() {
                let record = record.unwrap();
                xattrs.push((record.key().unwrap().to_owned(), record.value_bytes().to_vec()));
            }
            let link = entry.link_name_bytes().map(|name| name.into_owned());
            let mut contents = Vec::new();
            entry.read_to_end(&mut contents).unwrap();
            let path = entry.path_bytes().into_owned();
            found.insert(path, (entry.header().clone(), link, xattrs, contents));
        }
        let deep = [&b"folder/"[..], &LONG, b"/sp\xffarse"].concat();
        let kind = |path: &[u8]| found[path].0.entry_type();
        assert_eq!(kind(b"folder"), EntryType::Directory);
        assert_eq!(
            found[&b"folder"[..]].2,
            [("SCHILY.xattr.user.colour".to_owned(), b"blue\0green".to_vec())]
        );
        // Which of the two names is the file and which the link is the walk's to choose.
        let names = [deep.as_slice(), b"link"];
        let file = names.iter().find(|name| kind(name) == EntryType::Regular).unwrap();
        let link = names.iter().find(|name| kind(name) == EntryType::Link).unwrap();
        assert_eq!(found[*link].1.as_deref(), Some(*file));
        let contents = &found[*file].3;
        assert_eq!(contents.len(), (3 << 20) + 3);
        assert!(contents.ends_with(b"end") && contents[..3 << 20].iter().all(|byte| *byte == 0));
        assert_eq!(found[*file].0.mode().unwrap(), 0o640);
        assert_eq!(found[&b"pointer"[..]].1.as_deref(), Some(&b"folder/somewhere"[..]));
        let device = &found[&b"disk"[..]].0;
        assert_eq!(
            (device.device_major().unwrap(), device.device_minor().unwrap()),
            (Some(259), Some(0x12345))
        );
        assert_eq!(kind(b"pipe"), EntryType::Fifo);
        assert!(!found.contains_key(&b"socket"[..]));
        for number in 0..LISTED_AT_ONCE * 2 {
            assert_eq!(found[format!("folder/many-{number}").as_bytes()].3, number.to_string().as_bytes());
        }
        assert_eq!(found.len(), 7 + LISTED_AT_ONCE * 2);
    }
}

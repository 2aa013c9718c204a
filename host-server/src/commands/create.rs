//! `ringfort volume create`

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use nix::sys::statvfs::statvfs;
use nix::unistd::{getegid, geteuid};
use ringfort_filesystem::Filesystem;
use ringfort_store::address::ComponentPosition;
use ringfort_store::create::{CreateOptions, Plan, Preallocation, plan};
use ringfort_store::error::StoreError;
use ringfort_store::store::Store;

use crate::assemble::with_engine;
use crate::cli;
use crate::lock::{DirectoryLock, Purpose};
use crate::size::ByteSize;
use crate::volume_file::VolumeFile;

/// Less than this is no use to anybody: segments and log have sizes below which they do not work.
const SIZE_MIN: ByteSize = ByteSize(64 << 20);

pub fn run(arguments: &cli::Create) -> Result<ExitCode> {
    let directory = std::path::absolute(&arguments.directory)
        .with_context(|| format!("find {}", arguments.directory.display()))?;
    if arguments.size < SIZE_MIN {
        bail!("--size {}: a volume has at least {SIZE_MIN}", arguments.size);
    }
    let (options, file) = describe(arguments, &directory)?;
    let plan = plan(&options).map_err(|error| advise(error, arguments))?;

    let made_directory = make_directory(&directory)?;
    let mut cleanup =
        Cleanup { made_directory, directory: directory.clone(), components: Vec::new(), done: false };
    let lock = DirectoryLock::take(&directory, Purpose::Create)?;
    if VolumeFile::path(&directory).exists() {
        bail!("{} holds a volume already; name another directory", directory.display());
    }
    let paths: Vec<_> = options.components.iter().chain(&options.metadata_components).cloned().collect();
    check_paths(&paths)?;
    check_room(&paths, &plan)?;
    cleanup.components = paths.into_iter().filter(|path| !path.exists()).collect();

    with_engine(async |engine| {
        let store = Store::create(Rc::clone(&engine), &options).await?;
        // Whoever makes a volume may use it, also without being root.
        let owner = [geteuid().as_raw(), getegid().as_raw()];
        Filesystem::format_for(&store, &*engine, owner).await?;
        store.close().await?;
        Ok(())
    })?;
    file.store(&directory)?;
    cleanup.done = true;
    drop(lock);

    println!(
        "created {}: {} usable, data {}, metadata mirrored {} ways ({} a mirror)",
        arguments.directory.display(),
        arguments.size,
        arguments.data,
        plan.geometry.mirror_count,
        ByteSize(plan.geometry.metadata_bytes)
    );
    println!("serve it: ringfort serve {} --virtiofs SOCKET", arguments.directory.display());
    Ok(ExitCode::SUCCESS)
}

/// What the store is to make, and what the volume's file will say of it.
fn describe(arguments: &cli::Create, directory: &Path) -> Result<(CreateOptions, VolumeFile)> {
    let columns = arguments.data.data + arguments.data.parity;
    let listed = if arguments.components.is_empty() {
        (0..columns).map(|index| PathBuf::from(format!("component-{index}"))).collect()
    } else {
        relative_where_inside(&arguments.components, directory)?
    };
    let listed_metadata = relative_where_inside(&arguments.metadata_components, directory)?;
    let resolve = |paths: &[PathBuf]| paths.iter().map(|path| directory.join(path)).collect();
    let options = CreateOptions {
        metadata_components: resolve(&listed_metadata),
        data_columns: arguments.data.data,
        parity_columns: arguments.data.parity,
        memory_bytes: arguments.memory.0,
        log_bytes: arguments.log.map(|log| log.0),
        preallocation: match arguments.preallocation {
            cli::Preallocation::Reserved => Preallocation::Reserved,
            cli::Preallocation::Full => Preallocation::Full,
        },
        ..CreateOptions::new(resolve(&listed), arguments.size.0)
    };
    Ok((options, VolumeFile::new(arguments.memory, listed, listed_metadata)))
}

/// Paths as `volume.toml` writes them: a volume whose components are in its directory can be moved as a whole.
fn relative_where_inside(paths: &[PathBuf], directory: &Path) -> Result<Vec<PathBuf>> {
    paths
        .iter()
        .map(|path| {
            let full = std::path::absolute(path).with_context(|| format!("find {}", path.display()))?;
            Ok(full.strip_prefix(directory).map(Path::to_owned).unwrap_or(full))
        })
        .collect()
}

/// Adds what this command can do about it.
fn advise(error: StoreError, arguments: &cli::Create) -> anyhow::Error {
    let flags = format!(
        "--size {} --data {} --memory {} cannot be had",
        arguments.size, arguments.data, arguments.memory
    );
    anyhow::Error::from(error).context(flags)
}

/// Whether the directory was made.
fn make_directory(directory: &Path) -> Result<bool> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists && directory.is_dir() => Ok(false),
        Err(error) => {
            Err(error).with_context(|| format!("make the volume's directory {}", directory.display()))
        }
    }
}

/// Refuses what would be overwritten, and one path given twice.
fn check_paths(paths: &[PathBuf]) -> Result<()> {
    use std::os::unix::fs::FileTypeExt;
    for (index, path) in paths.iter().enumerate() {
        if paths[..index].contains(path) {
            bail!("{} is given twice; every component needs a file or a device of its own", path.display());
        }
        match fs::metadata(path) {
            Ok(found) if found.file_type().is_block_device() => {}
            Ok(_) => bail!(
                "{} exists and is not overwritten; remove it if nothing needs it, or name another path",
                path.display()
            ),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("look at {}", path.display())),
        }
    }
    Ok(())
}

/// Refuses before anything is written where the file systems that are to hold the files lack room.
fn check_room(paths: &[PathBuf], plan: &Plan) -> Result<()> {
    let mut needed_bytes: BTreeMap<u64, (&Path, u64)> = BTreeMap::new();
    for (position, path) in (0u8..).zip(paths) {
        let Some(parent) = path.parent().filter(|_| !path.exists()) else { continue };
        let found = fs::metadata(parent).with_context(|| format!("look at {}", parent.display()))?;
        let needed = &mut needed_bytes.entry(found.dev()).or_insert((parent, 0)).1;
        *needed += plan.geometry.component_bytes(ComponentPosition(position));
    }
    for (parent, needed_bytes) in needed_bytes.values() {
        let room = statvfs(*parent).with_context(|| format!("ask {} for its room", parent.display()))?;
        let room_bytes = room.blocks_available() as u64 * room.fragment_size() as u64;
        if room_bytes < *needed_bytes {
            bail!(
                "the file system of {} has {} left and the components there need {}; \
                 make room, make the volume smaller, or put components elsewhere with --component",
                parent.display(),
                ByteSize(room_bytes),
                ByteSize(*needed_bytes)
            );
        }
    }
    Ok(())
}

/// Removes what was made where the rest fails.
struct Cleanup {
    directory: PathBuf,
    made_directory: bool,
    /// Files that did not exist before.
    components: Vec<PathBuf>,
    done: bool,
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        for path in &self.components {
            match fs::remove_file(path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), %error, "a file that was made cannot be removed; remove it by hand");
                }
                _ => {}
            }
        }
        if self.made_directory {
            let _ = fs::remove_file(DirectoryLock::path(&self.directory));
            let _ = fs::remove_dir(&self.directory);
        }
    }
}

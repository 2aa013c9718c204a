//! Where things lie: downloads and run folders under the build's target folder, sockets in the system's temporary one
//! (a socket's path must stay under 108 bytes), and the locks between test processes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

/// The build that this program came from.
#[derive(Clone, Debug)]
pub struct Build {
    /// Cargo's target folder.
    pub target: PathBuf,
    /// The folder of the profile in it: `debug`, `release` or a profile's own name.
    pub profile: String,
}

impl Build {
    /// Finds the target folder by the tag that cargo leaves in it, above the running program.
    pub fn current() -> Result<Build> {
        let program = std::env::current_exe().context("finding the running program")?;
        let mut below = program.as_path();
        while let Some(above) = below.parent() {
            if above.join("CACHEDIR.TAG").is_file() {
                let profile = below.file_name().unwrap_or_default().to_string_lossy().into_owned();
                return Ok(Build { target: above.to_owned(), profile });
            }
            below = above;
        }
        anyhow::bail!(
            "no cargo target folder (one with CACHEDIR.TAG) above {}: run this through cargo",
            program.display()
        )
    }
}

/// The folder of everything that the harness fetches or builds.
pub fn cache() -> Result<PathBuf> {
    let folder = Build::current()?.target.join("ringfort-qemu");
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    Ok(folder)
}

/// A lock between processes, held until dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Waits for the lock `name`.
    pub fn acquire(name: &str) -> Result<Lock> {
        let path = cache()?.join(format!("{name}.lock"));
        let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        file.lock().with_context(|| format!("locking {}", path.display()))?;
        Ok(Lock { _file: file })
    }
}

/// A scratch folder for one test: removed when the test passes, kept and named when it panics or [`RunFolder::keep`] is called.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    sockets: tempfile::TempDir,
    kept: bool,
}

impl RunFolder {
    /// A fresh folder whose name begins with `name`.
    pub fn new(name: &str) -> Result<RunFolder> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let runs = cache()?.join("runs");
        remove_left_behind(&runs, name);
        let path = runs.join(format!("{name}-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        let sockets = tempfile::Builder::new()
            .prefix("ringfort-")
            .tempdir()
            .context("creating a folder for sockets")?;
        Ok(RunFolder { path, sockets, kept: false })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path for the socket `name`, short enough to bind.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.sockets.path().join(name)
    }

    /// Leaves the folder in place when dropped.
    pub fn keep(&mut self) {
        self.kept = true;
    }
}

/// Removes what ended processes kept under the same name: volumes are large, and only the newest failure is looked at.
fn remove_left_behind(runs: &Path, name: &str) {
    for entry in fs::read_dir(runs).into_iter().flatten().flatten() {
        let found = entry.file_name().to_string_lossy().into_owned();
        let mut parts = found.rsplitn(3, '-');
        let (_number, process_id, of) = (parts.next(), parts.next().unwrap_or_default(), parts.next());
        if of == Some(name) && !Path::new("/proc").join(process_id).exists() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        if self.kept || std::thread::panicking() {
            eprintln!("kept for inspection: {}", self.path.display());
        } else {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

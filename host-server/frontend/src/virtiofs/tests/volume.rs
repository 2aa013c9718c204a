//! Volumes on real files.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use ringfort_engine::engine::Engine;
use ringfort_engine::local::{LocalOptions, start};
use ringfort_filesystem::{Filesystem, FilesystemOptions};
use ringfort_store::check::check;
use ringfort_store::create::CreateOptions;
use ringfort_store::store::{OpenOptions, Store};

fn components(folder: &Path) -> Vec<PathBuf> {
    (0..6).map(|index| folder.join(format!("component-{index}"))).collect()
}

/// A volume of six files in `folder`.
pub fn create(folder: &Path, size_bytes: u64) {
    let options =
        CreateOptions { log_bytes: Some(8 << 20), ..CreateOptions::new(components(folder), size_bytes) };
    let runtime = start(LocalOptions::default()).unwrap();
    let engine = runtime.engine();
    runtime.block_on(async {
        let store = Store::create(Rc::clone(&engine), &options).await.unwrap();
        Filesystem::format(&store, &*engine).await.unwrap();
        store.close().await.unwrap();
    });
}

pub async fn open(engine: Rc<dyn Engine>, folder: &Path) -> Filesystem<Store> {
    let options = OpenOptions::default();
    let (store, _) = Store::open(Rc::clone(&engine), &components(folder), &options).await.unwrap();
    Filesystem::open(Rc::new(store), engine, FilesystemOptions::default()).await.unwrap()
}

pub async fn close(filesystem: Filesystem<Store>) {
    filesystem.shut_down().await.unwrap();
    filesystem.volume().close().await.unwrap();
}

/// Reads everything of a volume that is closed.
pub fn assert_sound(folder: &Path) {
    let runtime = start(LocalOptions::default()).unwrap();
    let engine = runtime.engine();
    runtime.block_on(async {
        let (report, _) = check(engine, &components(folder), &mut |_| {}).await.unwrap();
        assert!(report.is_clean(), "{report:#?}");
        assert!(report.stored_blocks > 0, "there was something to check");
    });
}

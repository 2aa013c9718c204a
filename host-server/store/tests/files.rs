//! Growth and replacement on real files, given up in the middle and begun again by another runtime.

#![allow(clippy::unwrap_used)]

mod scene;

use std::path::{Path, PathBuf};

use ringfort_engine::local::{LocalOptions, start};
use ringfort_engine::runtime::Runtime;
use ringfort_store::address::ComponentPosition;
use ringfort_store::check::check;
use ringfort_store::create::CreateOptions;
use ringfort_store::error::{ErrorKind, StoreError};
use ringfort_store::grow::grow;
use ringfort_store::replace::replace;
use ringfort_store::store::{OpenOptions, Store};
use ringfort_store::volume::Volume;
use scene::{Model, create_options, drop_after, grow_contents, read_all, write};

const BLOCKS: u64 = 1024;
const OLD_BYTES: u64 = 8 << 20;
const NEW_BYTES: u64 = 12 << 20;

/// A volume in a folder of its own.
struct Volumes {
    folder: tempfile::TempDir,
    paths: Vec<PathBuf>,
    model: Model,
}

impl Volumes {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> =
            (0..6).map(|index| folder.path().join(format!("component-{index}"))).collect();
        let mut volume = Self { folder, paths, model: Model::default() };
        let runtime = volume.runtime();
        let options = CreateOptions { components: volume.paths.clone(), ..create_options() };
        volume.model = runtime.block_on(async {
            let store = Store::create(runtime.engine(), &options).await.unwrap();
            let mut model = Model::default();
            for at in 0..10 {
                grow_contents(&store, at, &mut model).await;
            }
            store.close().await.unwrap();
            model
        });
        volume
    }

    /// A life of its own: nothing but the files goes from one to the next.
    fn runtime(&self) -> Runtime {
        let memory_directory = Some(self.folder.path().join("memory"));
        start(LocalOptions { memory_directory, registered_bytes: 0, ..LocalOptions::default() }).unwrap()
    }

    /// Opens, compares, and goes on; the size.
    fn expect(&self, what: &str) -> u64 {
        let runtime = self.runtime();
        runtime.block_on(async {
            let opened = Store::open(runtime.engine(), &self.paths, &OpenOptions::default()).await;
            let (store, _) = opened.unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!(read_all(&store, 3, BLOCKS).await == self.model, "{what}");
            write(&store, 4, 0, &(1..=100).collect::<Vec<u64>>()).await.unwrap();
            let total_bytes = store.space().total_blocks * 4096;
            store.close().await.unwrap();
            total_bytes
        })
    }

    fn expect_clean(&self, what: &str) {
        let runtime = self.runtime();
        let report = runtime.block_on(check(runtime.engine(), &self.paths, &mut |_| {})).unwrap().0;
        assert!(report.is_clean() && report.degraded.is_empty(), "{what}: {report:?}");
    }

    fn grow(&self, waits: u32) -> Option<()> {
        let runtime = self.runtime();
        let options = OpenOptions::default();
        let growing = grow(runtime.engine(), &self.paths, Some(NEW_BYTES), &options);
        runtime
            .block_on(drop_after(waits, growing))
            .map(|grown| assert_eq!(grown.unwrap().after_bytes, NEW_BYTES))
    }

    fn replace(&self, position: u8, path: &Path, waits: u32) -> Option<Result<(), StoreError>> {
        let runtime = self.runtime();
        let (options, mut progress) = (OpenOptions::default(), |_| {});
        let position = ComponentPosition(position);
        let replacing = replace(runtime.engine(), &self.paths, position, path, &options, &mut progress);
        runtime.block_on(drop_after(waits, replacing)).map(|replaced| replaced.map(|_| ()))
    }
}

/// Few at first, where the steps differ most.
fn some_waits() -> impl Iterator<Item = u32> {
    std::iter::successors(Some(0_u32), |waits| Some(waits + 1 + waits / 3))
}

#[test]
fn growth_may_be_given_up_at_any_step_and_begun_again() {
    let mut given_up = 0;
    for waits in some_waits() {
        let what = format!("given up after {waits} waits");
        let volume = Volumes::new();
        let done = volume.grow(waits).is_some();
        let total_bytes = volume.expect(&what);
        assert!(total_bytes == NEW_BYTES || total_bytes == OLD_BYTES && !done, "{what}: {total_bytes}");
        volume.grow(u32::MAX).unwrap();
        assert_eq!(volume.expect(&what), NEW_BYTES);
        volume.expect_clean(&what);
        if done {
            break;
        }
        given_up += 1;
    }
    assert!(given_up > 5, "{given_up}");
}

#[test]
fn a_replacement_may_be_given_up_at_any_step_and_begun_again() {
    let mut given_up = 0;
    for (waits, lost) in some_waits().zip([0, 4, 2, 5].into_iter().cycle()) {
        let what = format!("component {lost}, given up after {waits} waits");
        let mut volume = Volumes::new();
        let spare = volume.folder.path().join("spare");
        std::fs::remove_file(&volume.paths[usize::from(lost)]).unwrap();
        let done = volume.replace(lost, &spare, waits).is_some();
        let of_lost = std::mem::replace(&mut volume.paths[usize::from(lost)], spare.clone());
        volume.expect(&what);
        volume.paths[usize::from(lost)] = of_lost;
        match volume.replace(lost, &spare, u32::MAX).unwrap() {
            Ok(()) => assert!(!done, "{what}"),
            // It had been completed.
            Err(error) if error.kind == ErrorKind::Invalid => {
                assert!(error.to_string().contains("in use"), "{what}: {error}");
            }
            // Cut short before its label was there.
            Err(error) => {
                assert_eq!(error.kind, ErrorKind::Exists, "{what}: {error}");
                std::fs::remove_file(&spare).unwrap();
                volume.replace(lost, &spare, u32::MAX).unwrap().unwrap();
            }
        }
        volume.paths[usize::from(lost)] = spare;
        volume.expect(&what);
        volume.expect_clean(&what);
        for gone in [1, 3] {
            std::fs::remove_file(&volume.paths[gone]).unwrap();
        }
        volume.expect(&what);
        if done {
            break;
        }
        given_up += 1;
    }
    assert!(given_up > 5, "{given_up}");
}

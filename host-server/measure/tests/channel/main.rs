//! A client of the guest library and a server on another thread, over a real socket and shared memory.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails

mod submission;
mod vocabulary;

use std::path::Path;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread;

use ringfort_engine::local::{LocalOptions, start};
use ringfort_engine::mailbox::mailbox;
use ringfort_filesystem::{Filesystem, FilesystemOptions};
use ringfort_frontend::channel::{self, ChannelServer, Limits};
use ringfort_guest::{FileKind, Open, Place, connect};
use ringfort_store::model::{ModelSettings, ModelVolume};

fn with_server(test: impl FnOnce(&Path)) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.ctl");
    let (end, mut ended) = mailbox::<()>();
    let (started, server) = mpsc::channel();
    let at = path.clone();
    let volume = thread::spawn(move || {
        let runtime = start(LocalOptions::default()).unwrap();
        let engine = runtime.engine();
        runtime.block_on(async {
            let volume = Rc::new(ModelVolume::new(ModelSettings::default()));
            Filesystem::format(&*volume, &*engine).await.unwrap();
            let options = FilesystemOptions::default();
            let filesystem = Filesystem::open(volume, Rc::clone(&engine), options).await.unwrap();
            let service = Rc::new(filesystem.clone());
            let place = channel::Place::Host { path: at };
            let server = ChannelServer::start(&engine, service, place, Limits::default(), [7; 16]).unwrap();
            started.send(server).unwrap();
            ended.recv().await;
            assert_eq!(filesystem.counts().held_inodes, 0, "every session ended");
        });
    });
    let server = server.recv().unwrap();
    test(&path);
    server.stop();
    assert!(!path.exists());
    end.send(()).unwrap();
    volume.join().unwrap();
}

#[test]
fn a_client_reads_what_it_wrote_and_others_see_it() {
    with_server(|path| {
        let volume = connect(path).unwrap();
        volume.create_directory("/d", 0o755).unwrap();
        let file = volume.create("/d/file", 0o644).unwrap();
        let data: Vec<u8> = (0..3_000_000u32).map(|index| (index % 251) as u8).collect();
        file.write_at(&data, 5).unwrap();
        file.sync().unwrap();
        let mut back = vec![0; data.len() + 100];
        assert_eq!(file.read_at(&mut back, 5).unwrap(), data.len());
        assert!(back[..data.len()] == data);
        volume.symlink("file", "/d/link").unwrap();
        assert_eq!(volume.read_link("/d/link").unwrap(), b"file");

        let other = connect(path).unwrap();
        assert_eq!(other.stat("/d/link").unwrap().size_bytes, 3_000_005);
        assert_eq!(other.stat(Place::from("/d/link").no_follow()).unwrap().kind, FileKind::Symlink);
        let mut names: Vec<_> = other.list("/d").unwrap().into_iter().map(|entry| entry.name).collect();
        names.sort();
        assert_eq!(names, [b"file".to_vec(), b"link".to_vec()]);
        let error = other.open("/none", Open::to_read()).map(drop).unwrap_err();
        assert_eq!((error.errno(), error.to_string().contains("/none")), (2, true), "{error}");
    });
}

#[test]
fn threads_share_a_connection() {
    with_server(|path| {
        let volume = connect(path).unwrap();
        thread::scope(|scope| {
            for number in 0..8u8 {
                let volume = volume.clone();
                scope.spawn(move || {
                    let file = volume.create(&format!("/file{number}"), 0o644).unwrap();
                    for round in 0..50u64 {
                        let block = [number ^ round as u8; 4096];
                        file.write_at(&block, round * 4096).unwrap();
                        let mut back = [0; 4096];
                        assert_eq!(file.read_at(&mut back, round * 4096).unwrap(), 4096);
                        assert!(back == block);
                    }
                });
            }
        });
    });
}

#[test]
fn calls_fail_when_the_server_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let error = connect(&folder.path().join("none")).map(drop).unwrap_err();
    assert!(error.to_string().contains("ringfort serve"), "{error}");
    let mut kept = None;
    with_server(|path| {
        let volume = connect(path).unwrap();
        volume.nop(1).unwrap();
        kept = Some(volume);
    });
    let error = kept.unwrap().nop(2).unwrap_err();
    assert!(error.to_string().contains("gone"), "{error}");
}

#[test]
#[ignore = "a measurement"]
fn pace() {
    with_server(|path| {
        let volume = connect(path).unwrap();
        let file = volume.create("/f", 0o644).unwrap();
        let mut block = [1; 4096];
        file.write_at(&block, 0).unwrap();
        let time = |what: &str, mut act: Box<dyn FnMut() + '_>| {
            let mut all: Vec<u128> = (0..20_000)
                .map(|_| {
                    let began = std::time::Instant::now();
                    act();
                    began.elapsed().as_nanos()
                })
                .collect();
            all.sort_unstable();
            println!("{what}: p50 {} ns, p99 {} ns", all[10_000], all[19_800]);
        };
        time(
            "nop",
            Box::new(|| {
                volume.nop(3).unwrap();
            }),
        );
        time(
            "stat",
            Box::new(|| {
                volume.stat("/f").unwrap();
            }),
        );
        time(
            "read 4k",
            Box::new(|| {
                file.read_at(&mut block, 0).unwrap();
            }),
        );
    });
}

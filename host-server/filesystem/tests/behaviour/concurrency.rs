//! Tasks that get in each other's way.

use std::pin::Pin;

use ringfort_filesystem::check;
use ringfort_filesystem::operation::*;
use ringfort_reference::{Errno, Random};
use ringfort_store::model::ModelSettings;

use crate::world::{Fs, Guest, make, pattern, run, run_all};

type Task<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

fn start(seed: u64) -> Fs {
    run(make(ModelSettings { suspend_seed: Some(seed), ..Default::default() }))
}

/// Anything at all; only errors that such a race may give are accepted.
async fn anything(random: &mut Random, guest: &Guest) {
    let (path, other) = (random.path(""), random.path(""));
    let result = match random.below(9) {
        0 | 1 => guest.mkdir(&path).await.map(|_| ()),
        2 => guest.put(&path, &pattern(3, random.below(20_000) as usize)).await,
        3 => guest.unlink(&path).await,
        4 => guest.rmdir(&path).await,
        5 => guest.rename(&path, &other).await,
        6 => guest.rename_mode(&path, &other, RenameMode::Exchange).await,
        7 => guest.link(&path, &other).await.map(|_| ()),
        _ => guest.list(&path).await.map(|_| ()),
    };
    let accepted = [
        Errno::ENOENT,
        Errno::EEXIST,
        Errno::ENOTDIR,
        Errno::EISDIR,
        Errno::ENOTEMPTY,
        Errno::EINVAL,
        Errno::EPERM,
        // The node went between its lookup and its use.
        Errno::ESTALE,
    ];
    if let Err(errno) = result {
        assert!(accepted.contains(&errno), "{errno} for {path} and {other}");
    }
}

#[test]
fn whatever_happens_at_once_leaves_a_sound_structure() {
    for seed in 1..=30 {
        let fs = start(seed);
        let tasks = (0..6)
            .map(|index| {
                let guest = Guest::new(&fs);
                let task: Task = Box::pin(async move {
                    let mut random = Random::new(seed * 1000 + index);
                    for _ in 0..150 {
                        anything(&mut random, &guest).await;
                    }
                    guest.fs.close_session(guest.session).await;
                });
                task
            })
            .collect();
        run_all(seed, tasks);
        let report = run(check(&**fs.volume())).unwrap();
        assert!(report.is_clean(), "seed {seed}: {:#?}", report.faults);
        assert_eq!((report.unfinished, fs.counts().held_inodes), (0, 0), "seed {seed}");
    }
}

#[test]
fn one_of_many_exclusive_creators_wins() {
    for seed in 1..=20 {
        let fs = start(seed);
        let winners = std::cell::Cell::new(0);
        let tasks = (0..8)
            .map(|_| {
                let (guest, winners) = (Guest::new(&fs), &winners);
                let task: Task = Box::pin(async move {
                    match guest.create_mode("/f", "rwx", 0o600).await {
                        Ok(_) => winners.set(winners.get() + 1),
                        Err(errno) => assert_eq!(errno, Errno::EEXIST),
                    }
                });
                task
            })
            .collect();
        run_all(seed, tasks);
        assert_eq!(winners.get(), 1);
    }
}

#[test]
fn appends_at_once_lose_nothing() {
    for seed in 1..=10 {
        let fs = start(seed);
        run(Guest::new(&fs).put("/log", b"")).unwrap();
        let tasks = (0..5_u8)
            .map(|index| {
                let guest = Guest::new(&fs);
                let task: Task = Box::pin(async move {
                    let handle = guest.open("/log", "wa").await.unwrap();
                    for _ in 0..40 {
                        guest.write_at(handle, 0, &[b'a' + index; 100]).await.unwrap();
                    }
                });
                task
            })
            .collect();
        run_all(seed, tasks);
        let log = run(Guest::new(&fs).get("/log")).unwrap();
        assert_eq!(log.len(), 5 * 40 * 100);
        for record in log.chunks(100) {
            assert!(record.iter().all(|&byte| byte == record[0]));
        }
    }
}

#[test]
fn writes_of_whole_blocks_at_once_are_each_atomic_and_counted() {
    for seed in 1..=20 {
        let fs = start(seed);
        run(Guest::new(&fs).put("/f", b"start")).unwrap();
        let tasks = (0..6_u8)
            .map(|index| {
                let guest = Guest::new(&fs);
                let task: Task = Box::pin(async move {
                    let mut random = Random::new(seed * 50 + u64::from(index));
                    let handle = guest.open("/f", "rw").await.unwrap();
                    for _ in 0..30 {
                        match random.below(6) {
                            0 => drop(guest.truncate("/f", random.below(100_000)).await.unwrap()),
                            1 => drop(guest.read_at(handle, 0, 100_000).await.unwrap()),
                            2 => {
                                let bytes = pattern(index, 5000);
                                guest.write_at(handle, random.below(50_000), &bytes).await.unwrap();
                            }
                            _ => {
                                let bytes = vec![index + 1; 4096 * (1 + random.below(8) as usize)];
                                guest.write_at(handle, random.below(16) * 4096, &bytes).await.unwrap();
                            }
                        }
                    }
                    guest.close(handle).await.unwrap();
                });
                task
            })
            .collect();
        run_all(seed, tasks);
        let report = run(check(&**fs.volume())).unwrap();
        assert!(report.is_clean(), "seed {seed}: {:#?}", report.faults);
    }
}

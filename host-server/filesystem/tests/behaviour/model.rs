//! Random operations, compared with the reference one by one: results, errors, and now and then the whole tree.

use ringfort_filesystem::check;
use ringfort_filesystem::operation::*;
use ringfort_store::model::ModelSettings;
use ringfort_store::volume::Volume;

use crate::reference::{Body, Facts, Reference};
use crate::world::{Guest, make, pattern, run, run_all};

pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) % bound
    }

    /// One to three names deep, of few names, so that paths meet.
    pub fn path(&mut self, base: &str) -> String {
        let mut path = base.to_owned();
        for _ in 0..=self.below(3) {
            path.push('/');
            path.push(char::from(b'a' + self.below(4) as u8));
        }
        path
    }

    fn length(&mut self) -> u64 {
        match self.below(4) {
            0 => self.below(20),
            1 => self.below(5) * 4096,
            2 => self.below(20_000),
            _ => self.below(100_000),
        }
    }
}

fn facts(attributes: &Attributes) -> Facts {
    Facts {
        kind: attributes.kind,
        permissions: attributes.permissions,
        links: attributes.link_count,
        size_bytes: attributes.size_bytes,
    }
}

/// Does one random thing to both.
pub async fn step<V: Volume>(random: &mut Random, guest: &Guest<V>, reference: &mut Reference, base: &str) {
    let path = random.path(base);
    let what = random.below(18);
    match what {
        0 | 1 => {
            let made = reference.make(&path, Body::Directory(Default::default()), 0o755);
            assert_eq!(guest.mkdir(&path).await.map(|_| ()), made.map(|_| ()), "mkdir {path}");
        }
        2..=5 => {
            let offset = random.length();
            let bytes = pattern(random.below(256) as u8, random.length() as usize);
            let expected = reference.write(&path, offset as usize, &bytes);
            let result = async {
                let handle = guest.create(&path).await?;
                let written = guest.write_at(handle, offset, &bytes).await;
                guest.close(handle).await?;
                written.map(|_| ())
            };
            assert_eq!(result.await, expected, "write {} at {offset} of {path}", bytes.len());
        }
        6 => {
            let size = random.length();
            let result = guest.truncate(&path, size).await.map(|_| ());
            assert_eq!(result, reference.truncate(&path, size as usize), "truncate {path} to {size}");
        }
        7 => {
            let (offset_bytes, len_bytes) = (random.length(), random.length() + 1);
            let expected = reference.punch(&path, offset_bytes as usize, len_bytes as usize);
            let result = async {
                let handle = guest.open(&path, "rw").await?;
                let mode = AllocateMode::PunchHole;
                guest.done(Operation::Allocate { handle, offset_bytes, len_bytes, mode }).await?;
                guest.close(handle).await
            };
            assert_eq!(result.await, expected, "punch {len_bytes} at {offset_bytes} of {path}");
        }
        8 => {
            assert_eq!(guest.unlink(&path).await, reference.remove(&path, false), "unlink {path}");
        }
        9 => {
            assert_eq!(guest.rmdir(&path).await, reference.remove(&path, true), "rmdir {path}");
        }
        10..=12 => {
            let to = random.path(base);
            let mode = match random.below(4) {
                0 => RenameMode::NoReplace,
                1 => RenameMode::Exchange,
                _ => RenameMode::Replace,
            };
            let expected = reference.rename(&path, &to, mode);
            assert_eq!(guest.rename_mode(&path, &to, mode).await, expected, "{mode:?} {path} to {to}");
        }
        13 => {
            let to = random.path(base);
            let result = guest.link(&path, &to).await.map(|_| ());
            assert_eq!(result, reference.link(&path, &to), "link {path} to {to}");
        }
        14 => {
            let target = pattern(1, 1 + random.below(50) as usize);
            let made = reference.make(&path, Body::Symlink(target.clone()), 0o777);
            let result = guest.symlink(&path, &target).await.map(|_| ());
            assert_eq!(result, made.map(|_| ()), "symlink {path}");
        }
        15 => {
            let permissions = random.below(0o1000) as u16;
            let result = guest.chmod(&path, permissions).await.map(|_| ());
            assert_eq!(result, reference.chmod(&path, permissions), "chmod {path}");
        }
        16 => {
            assert_eq!(guest.list(&path).await, reference.list(&path), "list {path}");
        }
        _ => {
            let result = guest.stat(&path).await.map(|attributes| facts(&attributes));
            assert_eq!(result, reference.facts(&path), "stat {path}");
        }
    }
}

/// Every path, fact and byte.
pub async fn compare<V: Volume>(guest: &Guest<V>, reference: &Reference) {
    for path in reference.paths() {
        let expected = reference.facts(&path).unwrap();
        assert_eq!(facts(&guest.stat(&path).await.unwrap()), expected, "{path}");
        match expected.kind {
            FileKind::Directory => {
                assert_eq!(guest.list(&path).await.unwrap(), reference.list(&path).unwrap(), "{path}");
            }
            FileKind::Symlink => assert_eq!(guest.readlink(&path).await, reference.readlink(&path)),
            _ => assert!(guest.get(&path).await.unwrap() == reference.read(&path).unwrap(), "{path}"),
        }
    }
}

#[test]
fn random_operations_do_what_the_reference_does() {
    for seed in 1..=20 {
        run(async {
            let settings = ModelSettings { suspend_seed: Some(seed), ..Default::default() };
            let guest = Guest::new(&make(settings).await);
            let mut reference = Reference::new();
            let mut random = Random::new(seed);
            for number in 0..600 {
                step(&mut random, &guest, &mut reference, "").await;
                if number % 150 == 149 {
                    compare(&guest, &reference).await;
                    let report = check(&**guest.fs.volume()).await.unwrap();
                    assert!(report.is_clean(), "seed {seed}: {:#?}", report.faults);
                    assert_eq!(report.unfinished, 0);
                }
            }
            assert_eq!(guest.fs.counts().held_inodes, 0, "seed {seed}");
        });
    }
}

#[test]
fn tasks_that_keep_to_their_own_directories_do_not_disturb_each_other() {
    for seed in 1..=6 {
        let settings = ModelSettings { suspend_seed: Some(seed), ..Default::default() };
        let fs = run(make(settings));
        let bases = ["/w", "/x", "/y", "/z"];
        let guest = Guest::new(&fs);
        run(async {
            for base in bases {
                guest.mkdir(base).await.unwrap();
            }
        });
        run_all(
            seed,
            bases
                .into_iter()
                .enumerate()
                .map(|(index, base)| {
                    let guest = Guest::new(&fs);
                    let task: std::pin::Pin<Box<dyn Future<Output = ()>>> = Box::pin(async move {
                        let mut reference = Reference::new();
                        reference.make(base, Body::Directory(Default::default()), 0o755).unwrap();
                        let mut random = Random::new(seed * 100 + index as u64);
                        for _ in 0..300 {
                            step(&mut random, &guest, &mut reference, base).await;
                        }
                        // The root has more than one task's directory.
                        for path in reference.paths().into_iter().skip(1) {
                            let result = guest.stat(&path).await.map(|found| facts(&found));
                            assert_eq!(result, reference.facts(&path), "{path}");
                            if let Ok(bytes) = reference.read(&path) {
                                assert!(guest.get(&path).await.unwrap() == bytes, "{path}");
                            }
                        }
                    });
                    task
                })
                .collect(),
        );
        let report = run(check(&**fs.volume())).unwrap();
        assert!(report.is_clean(), "seed {seed}: {:#?}", report.faults);
    }
}

//! A git repository: objects, packs, references and an index, each with its own checksums.

use anyhow::{Result, ensure};
use ringfort_qemu_tests::agent::AGENT;
use ringfort_qemu_tests::machine::Guest;
use ringfort_qemu_tests::scene::MOUNTED;

use crate::must;

/// Git finds its own parts in `/bin`; every file that it writes is synced.
const GIT: &str = "
export GIT_EXEC_PATH=/bin GIT_AUTHOR_NAME=tests GIT_AUTHOR_EMAIL=tests@guest GIT_COMMITTER_NAME=tests \
       GIT_COMMITTER_EMAIL=tests@guest GIT_CONFIG_COUNT=3 \
       GIT_CONFIG_KEY_0=core.fsync GIT_CONFIG_VALUE_0=all \
       GIT_CONFIG_KEY_1=init.defaultBranch GIT_CONFIG_VALUE_1=main \
       GIT_CONFIG_KEY_2=init.templateDir GIT_CONFIG_VALUE_2=
set -e
";

/// Files in the first commit.
const FILES: u64 = 60;

/// A repository in the volume, made from a tree that a seed describes.
pub struct Repository {
    name: &'static str,
    seed: u64,
}

impl Repository {
    pub fn new(name: &'static str, seed: u64) -> Repository {
        Repository { name, seed }
    }

    /// Three commits on a branch and one on another, merged, tagged; some of it packed, some loose.
    pub fn make(&self, guest: &Guest) -> Result<()> {
        let (path, seed) = (self.path(), self.seed);
        must(
            guest,
            &format!(
                "{GIT} git init -q {path}; cd {path}
                {AGENT} tree-make ./first {seed} {FILES} > /dev/null
                git add -A; git commit -q -m first
                git checkout -q -b side; echo side > side; git add side; git commit -q -m side; git checkout -q main
                rm -r first/*plain*; seq 1 20000 > numbers; git add -A; git commit -q -m second
                git merge -q --no-edit side; git repack -q -a -d; git tag -a -m tagged tagged
                seq 1 3 20000 > numbers; ln -s numbers pointer; git add -A; git commit -q -m third"
            ),
        )
        .map(drop)
    }

    /// Clones through git's own protocol, and holds both to be whole and equal.
    pub fn clone_and_compare(&self, guest: &Guest) -> Result<()> {
        let path = self.path();
        must(guest, &format!("{GIT} git clone -q file://{path} {path}-clone && sync"))?;
        self.require_whole_with_clone(guest)
    }

    /// Repository and clone have every object, and the same files in their working trees.
    pub fn require_whole_with_clone(&self, guest: &Guest) -> Result<()> {
        let path = self.path();
        let said = must(
            guest,
            &format!(
                "{GIT} echo 3 > /proc/sys/vm/drop_caches
                for each in {path} {path}-clone; do
                    cd $each
                    git fsck --full --strict --no-progress --no-dangling >&2
                    test -z \"$(git status --porcelain)\"
                    git rev-list --count main >&2
                    git rev-parse main tagged | sha256sum
                    git ls-files -z | sort -z | xargs -0 sha256sum | sha256sum
                done"
            ),
        )?;
        let sums: Vec<&str> = said.lines().collect();
        ensure!(sums.len() == 4, "{said}");
        ensure!(sums[0] == sums[2], "the clone has other commits: {said}");
        ensure!(sums[1] == sums[3], "the clone has other files: {said}");
        Ok(())
    }

    fn path(&self) -> String {
        format!("{MOUNTED}/{}", self.name)
    }
}

//! What POSIX and Linux promise of a filesystem, asked of the one below a folder. Runs as root; where the promise is about
//! others, a thread acts as another user.
//!
//! A check gets a folder of its own and leaves it as it likes. The same checks hold on ext4, which a test sees to.

mod acl;
mod attributes;
mod data;
mod expect;
mod links;
mod locks;
mod names;
mod nodes;
mod open;
mod permissions;
mod person;
mod rename;
mod times;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

type Check = fn(&Path) -> Result<()>;

const TOPICS: [&[(&str, Check)]; 11] = [
    acl::CHECKS,
    attributes::CHECKS,
    data::CHECKS,
    links::CHECKS,
    locks::CHECKS,
    names::CHECKS,
    nodes::CHECKS,
    open::CHECKS,
    permissions::CHECKS,
    rename::CHECKS,
    times::CHECKS,
];

/// Runs every check but those named in `without`, each in a folder of its own below `folder`, which is made and removed; the
/// error tells all that failed.
pub fn check(folder: &Path, without: &[&str]) -> Result<()> {
    fs::create_dir(folder).with_context(|| format!("creating {}", folder.display()))?;
    let checks = || TOPICS.iter().flat_map(|topic| topic.iter());
    for name in without {
        ensure!(checks().any(|(known, _)| known == name), "no check is named {name}");
    }
    let mut failures = Vec::new();
    for (name, check) in checks().filter(|(name, _)| !without.contains(name)) {
        let own = folder.join(name);
        fs::create_dir(&own).with_context(|| format!("creating {}", own.display()))?;
        match check(&own) {
            Ok(()) => println!("ok {name}"),
            Err(error) => failures.push(format!("{name}: {error:#}")),
        }
    }
    fs::remove_dir_all(folder).with_context(|| format!("removing {}", folder.display()))?;
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

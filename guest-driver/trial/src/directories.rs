//! Large directories, of which a part comes at a time.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use ringfort_guest::{DirectoryEntry, Error, NodeKind};
use ringfort_protocol::command::Opcode;
use ringfort_reference::Errno;

use crate::stage::Stage;

/// More than come at once.
const COUNT: usize = 1500;

fn names(entries: &[DirectoryEntry]) -> BTreeSet<Vec<u8>> {
    entries.iter().map(|entry| entry.name.clone()).collect()
}

/// Whole, and again from anywhere, through another handle, after what was there is gone.
pub fn large_ones_are_listed_whole(stage: &mut Stage) -> Result<()> {
    stage.choose_first();
    let volume = stage.volume();
    let folder = "/large";
    volume.create_directory(folder, 0o755)?;
    let all: BTreeSet<Vec<u8>> = (0..COUNT)
        .map(|number| format!("entry-{number}-{}", "x".repeat(number % 200)).into_bytes())
        .collect();
    let path = |name: &[u8]| format!("{folder}/{}", String::from_utf8_lossy(name));
    for name in &all {
        volume.make_node(&path(name), NodeKind::Regular, 0o644)?;
    }
    for with_attributes in [false, true] {
        let entries: Vec<_> =
            volume.read_directory(folder, with_attributes)?.collect::<Result<_, Error>>()?;
        ensure!(entries.len() == COUNT && names(&entries) == all, "{} entries, not all", entries.len());
        for at in [0, 1, COUNT / 2, COUNT - 1] {
            let from = volume.read_directory(folder, with_attributes)?.after(entries[at].position);
            let rest: Vec<_> = from.collect::<Result<_, Error>>()?;
            ensure!(rest == entries[at + 1..], "{} entries from {at} on", rest.len());
        }
        stage.seen.call(Opcode::ReadDirectory);
    }
    let removed = volume.remove_directory(folder);
    stage.same(Opcode::Unlink, "what is not empty", removed, Err(Errno::ENOTEMPTY))?;
    // Somebody who has met a half goes on where they stood, though that half is gone.
    let half: Vec<_> = volume.read_directory(folder, false)?.take(COUNT / 2).collect::<Result<_, Error>>()?;
    for entry in &half {
        volume.remove_file(&path(&entry.name))?;
    }
    let position = half.last().context("a half with nothing in it")?.position;
    let rest = volume.read_directory(folder, false)?.after(position).collect::<Result<Vec<_>, Error>>()?;
    let expected: BTreeSet<_> = all.difference(&names(&half)).cloned().collect();
    ensure!(
        rest.len() == expected.len() && names(&rest) == expected,
        "{} of {} are left",
        rest.len(),
        expected.len()
    );
    for entry in &rest {
        volume.remove_file(&path(&entry.name))?;
    }
    ensure!(volume.list(folder)?.is_empty(), "entries are left");
    Ok(volume.remove_directory(folder)?)
}

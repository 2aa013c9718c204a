//! Paths as the kernel walks them: with somebody's permissions, and through symbolic links.

use crate::person::Person;
use crate::tree::{Answer, Body, EXECUTE, ROOT, Reference};
use crate::vocabulary::{Errno, FileKind};

const LINKS_FOLLOWED_MAX: usize = 40;
const PATH_BYTES_MAX: usize = 4095;

/// A path from a node; an empty one is the node itself.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    pub start: usize,
    pub path: &'a str,
    /// Whether a symbolic link at the end is followed.
    pub follow: bool,
}

impl<'a> Place<'a> {
    /// From the root.
    pub fn new(path: &'a str) -> Self {
        Self { start: ROOT, path, follow: true }
    }
}

/// The last part of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Last {
    /// With whether a slash follows.
    Name(String, bool),
    Dot,
    DotDot,
    /// There is none: the path is the root.
    Root,
}

/// Parts of a path that are still to be walked, the next one last. One that is empty stands for a slash at the end.
fn push_parts(parts: &mut Vec<String>, path: &str) {
    if path.ends_with('/') && !path.trim_matches('/').is_empty() {
        parts.push(String::new());
    }
    parts.extend(path.split('/').rev().filter(|part| !part.is_empty()).map(str::to_owned));
}

impl Reference {
    /// The node that a path leads to.
    pub fn reach(&self, person: &Person, place: Place<'_>) -> Answer<usize> {
        let mut parts = Vec::new();
        let mut at = self.begin(place, &mut parts)?;
        let mut followed = 0;
        while let Some(part) = parts.pop() {
            let directory = at;
            at = self.step(person, directory, &part)?;
            if place.follow || !parts.is_empty() {
                at = self.follow((directory, at), &mut parts, &mut followed)?;
            }
        }
        Ok(at)
    }

    /// The directory of a path's last part, and that part.
    pub fn reach_parent(&self, person: &Person, place: Place<'_>) -> Answer<(usize, Last)> {
        self.reach_last(person, place, false)
    }

    /// As [`reach_parent`](Self::reach_parent); where a symbolic link has the name, and no slash follows, what it leads to is meant, whether it is there or not.
    pub fn reach_new(&self, person: &Person, place: Place<'_>) -> Answer<(usize, Last)> {
        self.reach_last(person, place, place.follow)
    }

    fn reach_last(&self, person: &Person, place: Place<'_>, follow: bool) -> Answer<(usize, Last)> {
        if place.path.is_empty() {
            return Err(Errno::ENOENT);
        }
        let mut parts = Vec::new();
        let mut at = self.begin(place, &mut parts)?;
        let mut followed = 0;
        loop {
            let Some(part) = parts.pop() else { return Ok((at, Last::Root)) };
            let slash = parts == [""];
            if !(parts.is_empty() || slash) {
                let next = self.step(person, at, &part)?;
                at = self.follow((at, next), &mut parts, &mut followed)?;
                continue;
            }
            self.search(person, at)?;
            let last = match &part[..] {
                "." => Last::Dot,
                ".." => Last::DotDot,
                name => {
                    // One that is too long is found where it is looked for, which is not yet.
                    let found = self.entries(at)?.get(name).copied();
                    if let Some(link) = found.filter(|found| follow && !slash && self.is_symlink(*found)) {
                        at = self.follow((at, link), &mut parts, &mut followed)?;
                        continue;
                    }
                    Last::Name(part, slash)
                }
            };
            return Ok((at, last));
        }
    }

    fn is_symlink(&self, node: usize) -> bool {
        self.at(node).kind() == FileKind::Symlink
    }

    fn begin(&self, place: Place<'_>, parts: &mut Vec<String>) -> Answer<usize> {
        if place.path.len() > PATH_BYTES_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        push_parts(parts, place.path);
        Ok(if place.path.starts_with('/') { ROOT } else { place.start })
    }

    /// Whether names may be looked for in a node.
    fn search(&self, person: &Person, at: usize) -> Answer<()> {
        self.entries(at)?;
        self.at(at).require(person, EXECUTE)
    }

    fn step(&self, person: &Person, at: usize, part: &str) -> Answer<usize> {
        if part.is_empty() {
            return self.entries(at).map(|_| at);
        }
        self.search(person, at)?;
        match part {
            "." => Ok(at),
            ".." => Ok(self.at(at).parent),
            name => self.named(at, name)?.ok_or(Errno::ENOENT),
        }
    }

    /// Where the walk goes on behind a node that was found in a directory.
    fn follow(
        &self,
        (directory, found): (usize, usize),
        parts: &mut Vec<String>,
        followed: &mut usize,
    ) -> Answer<usize> {
        let Body::Symlink(target) = &self.at(found).body else { return Ok(found) };
        *followed += 1;
        if *followed > LINKS_FOLLOWED_MAX {
            return Err(Errno::ELOOP);
        }
        let target = String::from_utf8_lossy(target);
        push_parts(parts, &target);
        Ok(if target.starts_with('/') { ROOT } else { directory })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(target: &str) -> Body {
        Body::Symlink(target.as_bytes().to_vec())
    }

    #[test]
    fn links_are_followed_and_loops_found() {
        let mut reference = Reference::new();
        let a = reference.make("/a", Body::Directory(Default::default()), 0o755).unwrap();
        let b = reference.make("/a/b", Body::File(Vec::new()), 0o644).unwrap();
        let one = reference.make("/one", link("a/../a/b"), 0o777).unwrap();
        reference.make("/a/up", link("/a"), 0o777).unwrap();
        reference.make("/loop", link("loop"), 0o777).unwrap();
        let reach = |path| reference.reach(&Person::ROOT, Place::new(path));
        assert_eq!(reach("one"), Ok(b));
        assert_eq!(reach("/a/up/up/./"), Ok(a));
        assert_eq!(reach("one/"), Err(Errno::ENOTDIR));
        assert_eq!(reach("loop"), Err(Errno::ELOOP));
        assert_eq!(reach("../../a"), Ok(a));
        assert_eq!(reference.reach(&Person::ROOT, Place { follow: false, ..Place::new("one") }), Ok(one));
        let parent = |path| reference.reach_parent(&Person::ROOT, Place::new(path));
        assert_eq!(parent("/a/up/x"), Ok((a, Last::Name("x".to_owned(), false))));
        assert_eq!(parent("a/one/"), Ok((a, Last::Name("one".to_owned(), true))));
        assert_eq!(parent("/a/.."), Ok((a, Last::DotDot)));
        assert_eq!(parent("//"), Ok((ROOT, Last::Root)));
        assert_eq!(reference.at(b).kind(), FileKind::Regular);
    }

    #[test]
    fn strangers_walk_where_they_may() {
        let mut reference = Reference::new();
        reference.make("/a", Body::Directory(Default::default()), 0o700).unwrap();
        let stranger = Person { uid: 5, gid: 5, groups: Vec::new() };
        for path in ["/a/b", "/a/.", "/a/.."] {
            assert_eq!(reference.reach(&stranger, Place::new(path)), Err(Errno::EACCES), "{path}");
        }
        assert!(reference.reach(&stranger, Place::new("/a/")).is_ok());
    }
}

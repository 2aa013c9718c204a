//! Both sides of the comparison: connections to the server, and the reference.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use ringfort_guest::{Access, Attributes, Error, File, FileKind, Volume};
use ringfort_protocol::command::Opcode;
use ringfort_reference::{Answer, Errno, FileKind as Kind, Locks, Person, ROOT, Random, Reference};

use crate::people;
use crate::seen::Seen;

/// Files that one trial has open.
const OPEN_MAX: usize = 16;

/// A file that is open on both sides.
pub struct Opened {
    pub file: File,
    /// Whose connection it belongs to.
    pub actor: usize,
    pub node: usize,
    /// Of locks.
    pub holder: u64,
    pub reads: bool,
    pub writes: bool,
    pub appends: bool,
    pub is_directory: bool,
}

/// A user with a connection.
pub struct Actor {
    pub person: Person,
    pub volume: Volume,
}

pub struct Stage {
    pub socket: PathBuf,
    pub actors: Vec<Actor>,
    /// Who acts.
    actor: usize,
    pub reference: Reference,
    pub opened: Vec<Opened>,
    /// Of `fcntl`, and of `flock`.
    pub ranges: Locks,
    pub whole: Locks,
    pub random: Random,
    pub seen: Seen,
    holders: u64,
    /// The server's number of each node of the reference that was met.
    numbers: BTreeMap<usize, u64>,
}

/// A path as a step uses it on both sides.
#[derive(Clone, Debug)]
pub struct Spot {
    /// The open directory that it begins at.
    pub base: Option<usize>,
    pub path: String,
    pub follow: bool,
}

pub fn kind_of(kind: FileKind) -> Kind {
    match kind {
        FileKind::Regular => Kind::Regular,
        FileKind::Directory => Kind::Directory,
        FileKind::Symlink => Kind::Symlink,
        FileKind::Fifo => Kind::Fifo,
        FileKind::Socket => Kind::Socket,
        FileKind::CharacterDevice => Kind::CharacterDevice,
        FileKind::BlockDevice => Kind::BlockDevice,
    }
}

/// What the server answered, where it answered.
pub fn answer<T>(result: Result<T, Error>) -> Result<Answer<T>> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(Error::Refused { errno, .. }) => Ok(Err(Errno::of(errno))),
        Err(error) => Err(error.into()),
    }
}

impl Stage {
    pub fn new(socket: &Path, seed: u64) -> Result<Stage> {
        let people = people::all()?;
        let users = people.iter().any(|person| person.uid != people[0].uid);
        let actors = people
            .into_iter()
            .map(|person| Ok(Actor { volume: people::connect(&person, socket, None)?, person }))
            .collect::<Result<Vec<_>>>()?;
        let volume = &actors[0].volume;
        let found = volume.list("/")?;
        ensure!(found.is_empty(), "the volume is not empty: it has {} entries", found.len());
        if users {
            volume.set_attributes("/", &ringfort_guest::SetAttributes::new().permissions(0o777))?;
        }
        if volume.access("/", Access::WRITE).is_err() {
            bail!("the root directory is not for this user to write: begin as root, or let root make it so");
        }
        let root = volume.stat("/")?;
        let mut reference = Reference::new();
        reference.own_root(root.uid, root.gid, u16::try_from(root.permissions)?);
        Ok(Stage {
            socket: socket.to_owned(),
            actors,
            actor: 0,
            reference,
            opened: Vec::new(),
            ranges: Locks::default(),
            whole: Locks::default(),
            random: Random::new(seed),
            seen: Seen::new(users),
            holders: 0,
            numbers: BTreeMap::from([(ROOT, root.node)]),
        })
    }

    pub fn choose_person(&mut self) {
        self.actor = self.random.below(self.actors.len() as u64) as usize;
    }

    pub fn choose(&mut self, actor: usize) {
        self.actor = actor;
    }

    /// Whoever may see everything, where there is somebody.
    pub fn choose_first(&mut self) {
        self.choose(0);
    }

    pub fn actor(&self) -> usize {
        self.actor
    }

    pub fn volume(&self) -> Volume {
        self.actors[self.actor].volume.clone()
    }

    pub fn who(&self) -> Person {
        self.actors[self.actor].person.clone()
    }

    /// For messages.
    pub fn person(&self) -> String {
        format!("user {} of connection {}", self.who().uid, self.actor)
    }

    /// Holds what the server answered to what the reference says.
    pub fn same<T: Debug + PartialEq>(
        &mut self,
        opcode: Opcode,
        what: &str,
        found: Result<T, Error>,
        expected: Answer<T>,
    ) -> Result<Option<T>> {
        self.seen.call(opcode);
        let found = answer(found)?;
        if found != expected {
            bail!("{opcode:?} {what}: the server answers {found:?}, the reference {expected:?}");
        }
        if let Err(errno) = &found {
            self.seen.error(*errno);
        }
        Ok(found.ok())
    }

    /// As [`same`](Self::same), with bytes that are too many to show.
    pub fn same_bytes(
        &mut self,
        opcode: Opcode,
        what: &str,
        found: Result<Vec<u8>, Error>,
        expected: Answer<Vec<u8>>,
    ) -> Result<()> {
        if let (Ok(found), Ok(expected)) = (&found, &expected)
            && found != expected
        {
            let differs = found.iter().zip(expected).position(|(one, other)| one != other);
            bail!(
                "{opcode:?} {what}: {} bytes where the reference has {}; they differ at {differs:?}",
                found.len(),
                expected.len()
            );
        }
        let len = |bytes: Vec<u8>| bytes.len();
        self.same(opcode, what, found.map(len), expected.map(len)).map(drop)
    }

    /// Holds attributes to what the reference knows of a node.
    pub fn same_attributes(&mut self, node: usize, found: &Attributes) -> Result<()> {
        let (facts, known) = (self.reference.facts_of(node), self.reference.at(node));
        let expected =
            (facts.kind, u32::from(facts.permissions), facts.links, facts.size_bytes, (known.uid, known.gid));
        let shown = (
            kind_of(found.kind),
            found.permissions,
            found.link_count,
            found.size_bytes,
            (found.uid, found.gid),
        );
        ensure!(shown == expected, "attributes {shown:?}, where the reference has {expected:?}");
        let number = *self.numbers.entry(node).or_insert(found.node);
        ensure!(number == found.node, "node {} where {number} was", found.node);
        Ok(())
    }

    /// What a node of the reference is at the server.
    pub fn require_node(&mut self, spot: &Spot, node: usize) -> Result<()> {
        let found = self.volume().stat(spot.real(self))?;
        self.same_attributes(node, &found)
    }

    /// An open file of who acts, for which `fits`.
    pub fn pick(&mut self, fits: impl Fn(&Opened) -> bool) -> Option<usize> {
        let actor = self.actor;
        let all: Vec<_> = (0..self.opened.len())
            .filter(|index| self.opened[*index].actor == actor && fits(&self.opened[*index]))
            .collect();
        (!all.is_empty()).then(|| all[self.random.below(all.len() as u64) as usize])
    }

    /// A path that begins at the root, or at a directory that who acts has open.
    pub fn spot(&mut self) -> Spot {
        let base = if self.random.below(4) == 0 { self.pick(|opened| opened.is_directory) } else { None };
        let mut path = self.random.path("");
        if base.is_some() || self.random.below(8) == 0 {
            path.remove(0);
        }
        match self.random.below(60) {
            0 => path = format!("./{}", path.trim_start_matches('/')),
            1 => path = format!("{}/../{}", self.random.path(""), path.trim_start_matches('/')),
            2 => path = path.replace('/', "//./"),
            3 => path.push_str(&"n".repeat(256)),
            4 => path = format!("{}{path}", "./".repeat(2100)),
            _ => {}
        }
        Spot { base, path, follow: self.random.below(4) > 0 }
    }

    /// As [`spot`](Self::spot), for what is only looked up: the path may end with anything.
    pub fn spot_to_reach(&mut self) -> Spot {
        let mut spot = self.spot();
        match self.random.below(40) {
            0 => spot.path.push('/'),
            1 => spot.path.push_str("/."),
            2 => spot.path.push_str("/.."),
            3 if spot.base.is_some() => spot.path.clear(),
            _ => {}
        }
        spot
    }

    /// As [`spot`](Self::spot), for what is made, moved or removed: now and then with an end that is no name, or one of a directory.
    pub fn spot_to_name(&mut self) -> Spot {
        let mut spot = self.spot();
        match self.random.below(60) {
            0 | 1 => spot.path.push('/'),
            2 => spot.path.push_str("/."),
            3 => spot.path.push_str("/.."),
            4 => spot.path = ["/", ".", "..", "", "//", "/./"][self.random.below(6) as usize].to_owned(),
            _ => {}
        }
        spot
    }

    /// Adds an open file to both sides; one that is open already is closed where there are many.
    pub fn opened(&mut self, opened: Opened) -> Result<()> {
        self.opened.push(opened);
        if self.opened.len() > OPEN_MAX {
            let index = self.random.below(self.opened.len() as u64) as usize;
            self.close(index)?;
        }
        Ok(())
    }

    pub fn new_holder(&mut self) -> u64 {
        self.holders += 1;
        self.holders
    }

    pub fn close(&mut self, index: usize) -> Result<()> {
        let opened = self.opened.swap_remove(index);
        self.ranges.forget(opened.holder);
        self.whole.forget(opened.holder);
        self.same(Opcode::Close, "an open file", opened.file.close(), Ok(())).map(drop)
    }

    pub fn close_all(&mut self) -> Result<()> {
        while !self.opened.is_empty() {
            self.close(0)?;
        }
        Ok(())
    }
}

impl Spot {
    pub fn root(path: &str) -> Spot {
        Spot { base: None, path: path.to_owned(), follow: true }
    }

    pub fn real<'a>(&'a self, stage: &'a Stage) -> ringfort_guest::Place<'a> {
        let place = match self.base {
            Some(index) => stage.opened[index].file.at(&self.path),
            None => ringfort_guest::Place::from(&self.path),
        };
        if self.follow { place } else { place.no_follow() }
    }

    /// The same in the reference.
    pub fn model_of<'a>(&'a self, stage: &Stage) -> ringfort_reference::Place<'a> {
        let start = self.base.map_or(ROOT, |index| stage.opened[index].node);
        ringfort_reference::Place { start, path: &self.path, follow: self.follow }
    }

    /// For messages.
    pub fn shown(&self) -> String {
        let path = match self.path.len() {
            0..=80 => self.path.clone(),
            len => format!("(a path of {len} bytes)"),
        };
        let base = self.base.map_or(String::new(), |index| format!("(directory {index})/"));
        let follow = if self.follow { "" } else { " (no follow)" };
        format!("{base}{path}{follow}")
    }
}

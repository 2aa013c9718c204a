//! Counters, gauges and latencies of one channel, readable from any thread.
//!
//! The volume's thread alone writes what commands change; what connections change comes from their threads. They are statistics: values read
//! together may be some events apart.

use std::sync::atomic::{AtomicU64, Ordering};

use ringfort_filesystem::errno::Errno;
use ringfort_protocol::command::{CommandError, Opcode};
use ringfort_protocol::completion::Completion;
use ringfort_protocol::control::message::Reason;

use crate::metrics::{Counter, Histogram, HistogramSnapshot, Tally};

/// Commands by their opcodes, in the order of these.
const COMMANDS: [(Opcode, &str); 31] = [
    (Opcode::Nop, "nop"),
    (Opcode::Open, "open"),
    (Opcode::Close, "close"),
    (Opcode::Read, "read"),
    (Opcode::Write, "write"),
    (Opcode::ReadScatter, "read_scatter"),
    (Opcode::WriteGather, "write_gather"),
    (Opcode::Sync, "sync"),
    (Opcode::SyncAll, "sync_all"),
    (Opcode::Stat, "stat"),
    (Opcode::SetAttributes, "set_attributes"),
    (Opcode::Access, "access"),
    (Opcode::MakeDirectory, "make_directory"),
    (Opcode::MakeNode, "make_node"),
    (Opcode::MakeSymlink, "make_symlink"),
    (Opcode::ReadLink, "read_link"),
    (Opcode::Link, "link"),
    (Opcode::Unlink, "unlink"),
    (Opcode::Rename, "rename"),
    (Opcode::ReadDirectory, "read_directory"),
    (Opcode::Statistics, "statistics"),
    (Opcode::GetXattr, "get_xattr"),
    (Opcode::SetXattr, "set_xattr"),
    (Opcode::ListXattr, "list_xattr"),
    (Opcode::RemoveXattr, "remove_xattr"),
    (Opcode::Allocate, "allocate"),
    (Opcode::Seek, "seek"),
    (Opcode::CopyRange, "copy_range"),
    (Opcode::SetLock, "set_lock"),
    (Opcode::GetLock, "get_lock"),
    (Opcode::Cancel, "cancel"),
];

const _: () = {
    let mut index = 0;
    while index < COMMANDS.len() {
        assert!(COMMANDS[index].0 as usize == index, "the place of a command is its opcode");
        index += 1;
    }
};

/// What no sound client sends in a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadInput {
    /// An opcode that there is not.
    Opcode,
    /// Flags that the command does not have.
    Flags,
    /// A field that the command does not use is not zero.
    Field,
    /// A credential that was not given to the ring.
    Credential,
    /// A handle that the client does not have, or has not opened so.
    Handle,
    /// An area that leaves the data area.
    Area,
    /// An input, output or list beyond the limits.
    Length,
}

impl BadInput {
    pub const ALL: [(Self, &'static str); 7] = [
        (Self::Opcode, "opcode"),
        (Self::Flags, "flags"),
        (Self::Field, "field"),
        (Self::Credential, "credential"),
        (Self::Handle, "handle"),
        (Self::Area, "area"),
        (Self::Length, "length"),
    ];

    pub fn of_slot(error: &CommandError) -> Self {
        match error {
            CommandError::Opcode { .. } => Self::Opcode,
            CommandError::Flags { .. } => Self::Flags,
            CommandError::Unused { .. } => Self::Field,
        }
    }

    /// What an error number tells by itself.
    fn of_status(status: u32) -> Option<Self> {
        match status.cast_signed() {
            status if status == Errno::EBADF.raw().abs() => Some(Self::Handle),
            status if status == Errno::EFAULT.raw().abs() => Some(Self::Area),
            status if status == Errno::E2BIG.raw().abs() => Some(Self::Length),
            _ => None,
        }
    }
}

/// Counts since the channel was started, and how things stand.
#[derive(Debug, Default)]
pub struct ChannelMetrics {
    /// From taking a command to its completion, by opcode.
    latencies: [Histogram; COMMANDS.len()],
    bad_input: [Counter; BadInput::ALL.len()],
    /// By the numbers of reasons; place 0 holds what has none.
    refusals: [Counter; REASONS.len() + 1],
    /// Connections accepted.
    pub connections: Counter,
    /// Connections that are open.
    pub open_connections: Level,
    /// Regions of memory that clients have begun to use.
    pub regions: Level,
    /// Rings that are attached.
    pub rings: Level,
    /// Completions that carried an error number.
    pub errors: Counter,
    /// Bytes of file data copied to clients.
    pub read_bytes: Tally,
    /// Bytes of file data copied from clients.
    pub written_bytes: Tally,
    /// Times that a ring was left to its client's doorbell, since the volume's thread was about to sleep.
    pub parks: Counter,
    /// Times that work came to a ring that was left so.
    pub kicks: Counter,
    /// Doorbells rung for clients.
    pub doorbells: Counter,
    /// Waits for a lock that were refused, as a quarter of their ring was waiting already.
    pub refused_waits: Counter,
    /// Connections that ended since what came over them was no message.
    pub broken_connections: Counter,
    /// Connections that ended since nothing came over them for too long.
    pub silent_connections: Counter,
}

/// How many there are.
#[derive(Debug, Default)]
pub struct Level(AtomicU64);

impl Level {
    pub fn enter(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub fn leave(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

const REASONS: [(Reason, &str); 19] = [
    (Reason::Asked, "asked"),
    (Reason::Version, "version"),
    (Reason::NotAllowed, "not_allowed"),
    (Reason::Busy, "busy"),
    (Reason::Limit, "limit"),
    (Reason::Message, "message"),
    (Reason::PageOutside, "page_outside"),
    (Reason::PageTaken, "page_taken"),
    (Reason::PageUnaligned, "page_unaligned"),
    (Reason::Nonce, "nonce"),
    (Reason::Unknown, "unknown"),
    (Reason::Exists, "exists"),
    (Reason::Layout, "layout"),
    (Reason::Descriptor, "descriptor"),
    (Reason::MemoryChanged, "memory_changed"),
    (Reason::MachineGone, "machine_gone"),
    (Reason::Silent, "silent"),
    (Reason::Stopping, "stopping"),
    (Reason::Volume, "volume"),
];

const _: () = {
    let mut index = 0;
    while index < REASONS.len() {
        assert!(REASONS[index].0 as usize == index + 1, "the place of a reason follows from its number");
        index += 1;
    }
};

impl ChannelMetrics {
    /// A command was answered `nanoseconds` after it was taken.
    pub fn observe(&self, opcode: Opcode, completion: &Completion, nanoseconds: u64) {
        if let Some(latency) = self.latencies.get(usize::from(opcode.number())) {
            latency.observe(nanoseconds);
        }
        if completion.status != 0 {
            self.errors.add(1);
            if let Some(kind) = BadInput::of_status(completion.status) {
                self.count_bad_input(kind);
            }
            return;
        }
        match opcode {
            Opcode::Read | Opcode::ReadScatter => self.read_bytes.add(completion.value),
            Opcode::Write | Opcode::WriteGather => self.written_bytes.add(completion.value),
            _ => {}
        }
    }

    pub fn count_bad_input(&self, kind: BadInput) {
        self.bad_input[kind as usize].add(1);
    }

    /// Something was refused, or ended, for the reason of this number.
    pub fn count_refusal(&self, reason: u16) {
        let place = usize::from(reason);
        self.refusals.get(place).unwrap_or(&self.refusals[0]).add(1);
    }

    /// The latencies of every command seen so far, by its name.
    pub fn commands(&self) -> Vec<(&'static str, HistogramSnapshot)> {
        let all =
            COMMANDS.iter().zip(&self.latencies).map(|((_, name), latency)| (*name, latency.snapshot()));
        all.filter(|(_, latency)| latency.count() > 0).collect()
    }

    /// Bad input of every kind.
    pub fn bad_input(&self) -> impl Iterator<Item = (&'static str, u64)> {
        BadInput::ALL.into_iter().zip(&self.bad_input).map(|((_, name), count)| (name, count.get()))
    }

    /// What was refused over connections, or ended by this side, by every reason.
    pub fn refusals(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let names = std::iter::once("other").chain(REASONS.iter().map(|(_, name)| *name));
        names.zip(self.refusals.iter().map(Counter::get))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_opcode_and_every_reason_has_a_place() {
        assert_eq!(Opcode::from_number(COMMANDS.len() as u16), None);
        assert_eq!(Reason::from_number(REASONS.len() as u16 + 1), None);
        assert!(BadInput::ALL.iter().enumerate().all(|(place, (kind, _))| *kind as usize == place));
    }

    #[test]
    fn completions_are_counted_by_their_commands_and_errors_by_what_they_tell() {
        let metrics = ChannelMetrics::default();
        let read = Completion { value: 4096, ..Completion::default() };
        metrics.observe(Opcode::Read, &read, 700);
        metrics.observe(Opcode::Nop, &read, 100);
        let failed = Completion { status: 9, value: 5, ..Completion::default() };
        metrics.observe(Opcode::Write, &failed, 200);
        let counts: Vec<_> =
            metrics.commands().into_iter().map(|(name, latency)| (name, latency.count())).collect();
        assert_eq!(counts, [("nop", 1), ("read", 1), ("write", 1)]);
        assert_eq!(
            (metrics.read_bytes.get(), metrics.written_bytes.get(), metrics.errors.get()),
            (4096, 0, 1)
        );
        assert_eq!(metrics.bad_input().find(|(name, _)| *name == "handle"), Some(("handle", 1)));
        metrics.count_refusal(Reason::Nonce.number());
        metrics.count_refusal(999);
        let refused: Vec<_> = metrics.refusals().filter(|(_, count)| *count > 0).collect();
        assert_eq!(refused, [("other", 1), ("nonce", 1)]);
    }
}

//! Rings of commands and completions in memory that two parties share, one of whom may be hostile.
//!
//! A ring is two arrays of 64-byte slots, one a direction, and two words that say who sleeps. The algorithm is here once and plays both
//! roles: a [`Requester`](requester::Requester) submits commands and takes completions, a [`Responder`](responder::Responder) takes commands and
//! gives completions.
//!
//! * **Every shared word has one writer**, and nobody reads, modifies and writes one: a slot belongs to the side that fills it, and so does
//!   the word that says whether this side sleeps. Under emulation, where a guest's atomic instructions may be none, this still holds.
//! * **A slot is published by its own last word**, which holds the sequence number of what it carries. Polling looks at the very line that
//!   will bring the message, so that one message costs one transfer of a cache line.
//! * **There are no shared cursors.** A requester has at most as many commands outstanding (submitted, their completions not yet taken) as a
//!   ring has slots. From that bound alone follows that no slot is filled before its last content was taken, in either direction; see
//!   [`Requester`](requester::Requester). One who breaks the bound overwrites its own commands or loses its own completions, and
//!   nothing else.
//! * **Sleeping** is "publish the flag, fence, look again": the sleeper stores its flag, and then looks for messages; the other side publishes
//!   messages, and then looks at the flag. A sequentially consistent fence stands between the two on both sides, so at least one
//!   sees what the other did.
//!
//! Modules, lowest first: `words` · `memory` · `slot` · `layout` · `stream` · `sleep` · `requester` · `responder`

pub mod words;

#[allow(unsafe_code)]
pub mod memory;

pub mod slot;

pub mod layout;

mod stream;

mod sleep;

pub mod requester;

pub mod responder;

#[cfg(test)]
mod tests;

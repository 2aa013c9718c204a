//! Messages of the control connection: vsock from a guest, a Unix socket from a process on the host.
//!
//! Each message is an [`Envelope`](envelope::Envelope) and a body. The client speaks first; who sends which message stands in
//! `docs/wire.md`. A message that is not understood is answered with [`Refused`](message::Message::Refused), and what cannot be read in step any
//! more ends the connection.
//!
//! Modules, lowest first: `envelope` · `message`

pub mod envelope;

pub mod message;

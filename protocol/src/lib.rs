//! Every byte that a guest and a host share: layouts and their checks, no I/O.
//!
//! Modules, lowest first:
//! `layout` · `version` · `control` · `ring` · `argument` · `command` · `completion`

#![deny(unsafe_code)]

pub mod layout;

pub mod version;

pub mod control;

pub mod ring;

pub mod argument;

pub mod command;

pub mod completion;

/// Every record, for comparison with `docs/wire.md`.
pub const LAYOUTS: &[layout::Layout] = {
    use argument::{
        AreaRecord, AttributesRecord, ChangeRecord, CopyToRecord, EntryRecord, LockRecord, StatisticsRecord,
    };
    use command::CommandRecord;
    use completion::CompletionRecord;
    use control::envelope::Envelope;
    use control::message::{
        Attach, Credential, Echo, Given, Hello, Invitation, Memory, Pages, Place, Proof, Subject, Want,
        Welcome,
    };
    use layout::Record;
    &[
        Envelope::LAYOUT,
        Hello::LAYOUT,
        Welcome::LAYOUT,
        Pages::LAYOUT,
        Memory::LAYOUT,
        Proof::LAYOUT,
        Credential::LAYOUT,
        Attach::LAYOUT,
        Subject::LAYOUT,
        Echo::LAYOUT,
        Want::LAYOUT,
        Given::LAYOUT,
        Place::LAYOUT,
        Invitation::LAYOUT,
        CommandRecord::LAYOUT,
        CompletionRecord::LAYOUT,
        AttributesRecord::LAYOUT,
        ChangeRecord::LAYOUT,
        EntryRecord::LAYOUT,
        StatisticsRecord::LAYOUT,
        LockRecord::LAYOUT,
        CopyToRecord::LAYOUT,
        AreaRecord::LAYOUT,
    ]
};

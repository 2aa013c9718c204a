//! Addresses and identifiers. None of them travels as a bare integer.

macro_rules! address {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

address! {
    /// One address space of logical blocks: a file's data.
    ObjectId(u64)
}
address! {
    /// Index of a 4 KiB block inside an object.
    LogicalBlock(u64)
}
address! {
    /// Names one immutable block content for ever; handed out in sequence, never reused.
    MiddleAddress(u64)
}
address! {
    /// Index of a 4 KiB data block in the data region; the geometry turns it into component and offset.
    PhysicalBlock(u64)
}
address! {
    /// Byte offset in the metadata region, block-aligned.
    MetadataAddress(u64)
}
address! {
    /// A segment of the data region.
    SegmentId(u32)
}
address! {
    /// A stripe inside its segment.
    StripeIndex(u32)
}
address! {
    /// A column of a stripe: data columns first, then parity.
    ColumnIndex(u8)
}
address! {
    /// The place of a component in the tree: `0..K+M` hold columns, dedicated metadata mirrors follow.
    ComponentPosition(u8)
}
address! {
    /// CRC-32C of a 4 KiB block.
    BlockChecksum(u32)
}

address! {
    /// A branch or a snapshot of the volume.
    ViewId(u16)
}

/// Keys and objects have their view in the upper bits.
const VIEW_SHIFT: u32 = 48;

impl ViewId {
    /// The volume itself, as it was created.
    pub const VOLUME: ViewId = ViewId(0);

    /// Numbers that no view has: keys may have them that were written before there were views.
    pub const OUTSIDE: ViewId = ViewId(u16::MAX);

    /// The view of a key's `hi`, or of an object's number.
    pub const fn of(number: u64) -> Self {
        Self((number >> VIEW_SHIFT) as u16)
    }

    /// The number without its view.
    pub const fn local(number: u64) -> u64 {
        number & ((1 << VIEW_SHIFT) - 1)
    }

    /// The same number in this view.
    pub const fn place(self, number: u64) -> u64 {
        (self.0 as u64) << VIEW_SHIFT | Self::local(number)
    }

    /// The least and the greatest number in this view.
    pub const fn numbers(self) -> (u64, u64) {
        (self.place(0), self.place(u64::MAX))
    }
}

macro_rules! identity {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u128);

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                let id = self.0;
                write!(
                    f,
                    "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
                    id >> 96,
                    (id >> 80) & 0xffff,
                    (id >> 64) & 0xffff,
                    (id >> 48) & 0xffff,
                    id & 0xffff_ffff_ffff
                )
            }
        }
    };
}

identity! {
    /// A volume, chosen at random when it is created.
    VolumeId
}
identity! {
    /// A component, chosen at random when it joins a volume; never reused.
    ComponentId
}

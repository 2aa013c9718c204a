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
    /// CRC-32C of a 4 KiB block.
    BlockChecksum(u32)
}

//! What an open volume has done since it was opened.

/// Bytes written to devices by what they are for, all copies and parity counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathCounters {
    /// Log records.
    pub log_bytes: u64,
    /// Stripes of data and parity.
    pub stripe_bytes: u64,
    /// Pages of the trees.
    pub page_bytes: u64,
    /// Roots.
    pub root_bytes: u64,
    /// Data blocks handed in by transactions, counted once.
    pub user_bytes: u64,
    /// Zeros that filled up stripes that had to be written early, parity not counted.
    pub padding_bytes: u64,
    pub commits: u64,
    /// Checkpoints of the maps.
    pub checkpoints: u64,
    /// Checkpoints of the first stage: the log's commits without their data went to the metadata log.
    pub moves: u64,
    /// Records of the metadata log.
    pub metadata_log_bytes: u64,
    pub transactions: u64,
    pub syncs: u64,
    /// Stripes that were written in full instead of going through the log.
    pub large_stripes: u64,
    pub bank_stripes: u64,
    pub freed_segments: u64,
    pub cleaning: CleaningCounters,
}

/// What cleaning has done. Its stripes and padding count nowhere else but in `stripe_bytes`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CleaningCounters {
    /// Blocks that were written once more to free their segments.
    pub relocated_blocks: u64,
    /// Segments out of which everything moved that lived.
    pub cleaned_segments: u64,
    /// Read from segments, dead blocks between live ones included.
    pub read_bytes: u64,
    /// Written to devices, parity and padding included.
    pub written_bytes: u64,
    /// Zeros that filled up last stripes, parity not counted.
    pub padding_bytes: u64,
    /// Times that a segment was left as it is because a block in it could not be read.
    pub unreadable_segments: u64,
}

//! What a committer can be told, and what it tells.

use std::time::Duration;

/// When a record counts as committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SyncMode {
    /// After a write with `O_DSYNC`, which is write and fdatasync in one, or after fdatasync, or after syncfs when many
    /// files are dirty.
    #[default]
    Fdatasync,
    /// After it was written to the operating system: a power failure may lose it, a killed process does not.
    Os,
}

/// Deliberate defects, for the tests that prove that tests find them.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Planted {
    /// Reports a commit before its sync.
    pub ack_before_sync: bool,
    /// Accepts records whatever their checksum.
    pub no_crc_check: bool,
    /// Appends behind a torn tail without cutting it.
    pub glue_on_torn_tail: bool,
    /// Does not sync directories.
    pub no_dir_sync: bool,
    /// A sync does not cover what was written without one before.
    pub forget_unsynced: bool,
    /// Puts the commit mark on writes that follow on what is not durable.
    pub mark_unsynced: bool,
    /// Begins a segment before the one before it is durable.
    pub seal_unsynced: bool,
}

/// Limits and habits of a [`Committer`](super::Committer).
#[derive(Clone, Debug)]
pub struct CommitterOptions {
    /// When a record counts as committed.
    pub sync: SyncMode,
    /// Bytes that one commit writes to one journal, about, where a commit that writes little takes no longer than a
    /// millisecond: fast disks throttle larger writes. Where it takes longer, up to 16 times as many. (A thread of
    /// [`spawn`](super::Committer::spawn) measures that.)
    pub max_batch_bytes: usize,
    /// Bytes that may wait for the disk in all journals together.
    pub max_queued_bytes: u64,
    /// Publishing stops when less than this is free on the disk.
    pub disk_floor: u64,
    /// Write filler ahead of the records, so that a small commit changes no file size. Also the reserve in which
    /// settlements fit when the disk is full.
    pub preallocate: bool,
    /// Write what must be durable around the page cache, where the disk can: faster, and what is read back later than
    /// [`tail_cache_bytes`](Self::tail_cache_bytes) says comes from the disk. Needs `preallocate`.
    pub direct_io: bool,
    /// Segment files held open for writing, all journals together. With [`direct_io`](Self::direct_io) each takes two
    /// descriptors.
    pub max_open_files: usize,
    /// What was written without a sync is synced after this long at most, if [`spawn`](super::Committer::spawn) was called.
    pub sync_after: Duration,
    /// Recently committed bytes kept in memory for readers, all journals together.
    pub tail_cache_bytes: u64,
    #[doc(hidden)]
    pub planted: Planted,
}

impl Default for CommitterOptions {
    fn default() -> Self {
        Self {
            sync: SyncMode::Fdatasync,
            max_batch_bytes: 1 << 20,
            max_queued_bytes: 64 << 20,
            disk_floor: 64 << 20,
            preallocate: true,
            direct_io: true,
            max_open_files: 512,
            sync_after: Duration::from_millis(200),
            tail_cache_bytes: 64 << 20,
            planted: Planted::default(),
        }
    }
}

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommitStats {
    /// Writes to the disk, each for all who wait then.
    pub commits: u64,
    /// Bytes written, with filler.
    pub bytes: u64,
    /// Bytes that wait for the disk now.
    pub queued: u64,
    /// Free bytes on the disk when last asked.
    pub free: u64,
}

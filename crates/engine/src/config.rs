//! What an engine can be told.

use std::path::PathBuf;
use std::time::Duration;

/// When a record counts as committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SyncMode {
    /// When it is on disk.
    #[default]
    Fdatasync,
    /// When the operating system has it: a power failure may lose it.
    Os,
    /// At once, in memory only.
    Memory,
}

/// How much of a stream is kept. Whole segments go, oldest first, when any limit is passed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// Bytes of log per stream.
    pub max_bytes: Option<u64>,
    /// Age of the newest message of a segment.
    pub max_age: Option<Duration>,
    /// Messages per stream.
    pub max_events: Option<u64>,
    /// Also keep no more than the durable subscriptions still need, where there is at least one.
    pub interest: bool,
}

/// What happens to a durable subscription that lags past the limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LagPolicy {
    /// It is told and logged.
    #[default]
    Note,
    /// It is told, logged and forgotten, so that it pins no disk.
    Detach,
}

/// Everything an engine can be told. The default is a durable engine in `./postroad-data`.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// The data directory; `None` only with [`SyncMode::Memory`].
    pub data: Option<PathBuf>,
    /// When a record counts as committed.
    pub sync: SyncMode,
    /// A new segment begins when one is larger.
    pub segment_bytes: u64,
    /// Write filler ahead of the records.
    pub preallocate: bool,
    /// Write what must be durable around the page cache, where the disk can.
    pub direct_io: bool,
    /// Publishing stops when less than this is free on the disk.
    pub disk_floor: u64,
    /// Bytes that may wait for the disk; in memory mode what the engine may hold.
    pub queue_bytes: u64,
    /// Segment files held open for writing.
    pub max_open_files: usize,
    /// Committed bytes kept in memory for readers.
    pub tail_cache_bytes: u64,
    /// Streams.
    pub max_topics: usize,
    /// How much of each stream is kept.
    pub retention: Retention,
    /// Messages with an id that was published within this time are not stored again; zero: off.
    pub dedup_window: Duration,
    /// Ids remembered per stream at most.
    pub dedup_count: usize,
    /// Unsettled messages a durable subscription may have per stream.
    pub lag_events: Option<u64>,
    /// What happens then.
    pub lag_policy: LagPolicy,
    #[doc(hidden)]
    pub planted: Planted,
}

/// Deliberate defects, for the tests that prove that tests find them.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Planted {
    /// Says that a settlement is durable before it is committed.
    pub cursor_before_commit: bool,
    /// Those of the journal.
    pub journal: postroad_journal::Planted,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            data: Some("postroad-data".into()),
            sync: SyncMode::Fdatasync,
            segment_bytes: 64 << 20,
            preallocate: true,
            direct_io: true,
            disk_floor: 64 << 20,
            queue_bytes: 64 << 20,
            max_open_files: 512,
            tail_cache_bytes: 64 << 20,
            max_topics: 10_000,
            retention: Retention {
                max_bytes: Some(1 << 30),
                max_age: Some(Duration::from_secs(7 * 24 * 3600)),
                max_events: None,
                interest: false,
            },
            dedup_window: Duration::ZERO,
            dedup_count: 100_000,
            lag_events: None,
            lag_policy: LagPolicy::Note,
            planted: Planted::default(),
        }
    }
}

//! The log behind a stream: what the engine asks of whatever keeps its records.
//!
//! A log is asynchronous (appending gives a ticket, the commit is announced later) and has one writer: whoever opened
//! it last; earlier writers are fenced. So a replicated log can stand behind it as well as a local file.

mod journal;
mod memory;

pub use journal::JournalStore;
pub use memory::MemoryStore;
pub use postroad_journal::{
    CommitObserver, Event, JournalError as LogError, JournalStats as LogStats, PayloadKind, Publish,
    RecordView, Signal, Ticket,
};

use std::path::PathBuf;
use std::sync::Arc;

/// How safe a store must be before something is said: all up to `committed` committed, all up to `written` written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// See [`LogStore::committed`].
    pub committed: Ticket,
    /// See [`LogStore::written`].
    pub written: Ticket,
}

impl Mark {
    /// Nothing is to be waited for.
    pub const NOW: Self = Self { committed: Ticket(0), written: Ticket(0) };

    /// When `ticket` is committed.
    pub const fn committed(ticket: Ticket) -> Self {
        Self { committed: ticket, written: Ticket(0) }
    }

    /// When `ticket` is written.
    pub const fn written(ticket: Ticket) -> Self {
        Self { committed: Ticket(0), written: ticket }
    }

    /// When both are reached.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { committed: self.committed.max(other.committed), written: self.written.max(other.written) }
    }

    /// What is left to wait for when the store is at `at`.
    #[must_use]
    pub fn beyond(self, at: Self) -> Self {
        let left = |wanted: Ticket, at: Ticket| if wanted <= at { Ticket(0) } else { wanted };
        Self { committed: left(self.committed, at.committed), written: left(self.written, at.written) }
    }
}

/// Called with every record of a log that is opened, in order; may refuse one with a reason.
pub type Fold<'a> = &'a mut dyn FnMut(&RecordView<'_>) -> Result<(), String>;

/// Where records are appended.
pub trait Append {
    /// Appends a message; says its sequence.
    fn publish(&mut self, publish: &Publish<'_>) -> u64;
    /// Appends a record of another kind; `fields` is `,"key":value` for each field.
    fn record(&mut self, kind: &str, fields: &[u8]);
}

/// One log of one stream.
pub trait Log: Send + Sync {
    /// Appends all that `write` writes to one commit, or to consecutive ones; says which is the last.
    ///
    /// Does not wait, and fails only when this writer was fenced. Ask [`LogStore::admit`] before; afterwards, with
    /// no lock held, call [`LogStore::flush`].
    fn append(&self, now: u64, write: &mut dyn FnMut(&mut dyn Append)) -> Result<Ticket, LogError>;
    /// The same for what need not outlive a power failure: it is there for good, and can be read, when
    /// [`LogStore::written`] has reached the ticket. It is committed with what was appended otherwise, or a little later.
    fn append_buffered(&self, now: u64, write: &mut dyn FnMut(&mut dyn Append)) -> Result<Ticket, LogError> {
        self.append(now, write)
    }
    /// Whom to tell of commits.
    fn observe(&self, observer: Arc<dyn CommitObserver>);
    /// True if the next append should begin a new segment with a snapshot.
    fn wants_snapshot(&self) -> bool;
    /// Begins a new segment; `write` appends the snapshot without which older segments could not be trimmed.
    fn snapshot(&self, now: u64, write: &mut dyn FnMut(&mut dyn Append)) -> Result<Ticket, LogError>;
    /// The messages `seqs` that are committed, or written, in that order; what is not there is left out.
    fn read(&self, seqs: &[u64], out: &mut Vec<Event>) -> Result<(), LogError>;
    /// The first message appended at `time` (milliseconds since 1970) or later; `last + 1` if none.
    fn seek_time(&self, time: u64) -> Result<u64, LogError>;
    /// Calls `with` with a function that tells the size of a message in bytes, about.
    fn sizes(&self, with: &mut dyn FnMut(&dyn Fn(u64) -> u32));
    /// Runs of equal priority among the messages `first..=last`; what is lost is left out.
    fn priority_runs(&self, first: u64, last: u64, run: &mut dyn FnMut(u64, u64, i64));
    /// Sizes.
    fn stats(&self) -> LogStats;
    /// The trimmable units, oldest first: their newest message, bytes, and when they began.
    fn sealed(&self) -> Vec<(u64, u64, u64)>;
    /// True if [`Log::trim`] deletes nothing before the next [`Log::snapshot`]: of what an earlier life left it is not
    /// known whether its newest snapshot is whole.
    fn snapshot_due(&self) -> bool {
        false
    }
    /// Deletes whole units before `seq`, if the newest snapshot is durable; says the first message kept.
    fn trim(&self, seq: u64) -> Result<u64, LogError>;
    /// A clean end; everything is committed.
    fn close(&self) -> Result<(), LogError>;
}

/// All logs of an engine, and their commits.
pub trait LogStore: Send + Sync {
    /// `fdatasync`, `os` or `memory`: what a commit means.
    fn sync_mode(&self) -> &'static str;
    /// The names of the stream logs there are.
    fn list(&self) -> Result<Vec<String>, LogError>;
    /// Opens, or makes, the log of a stream and becomes its writer; earlier writers are fenced.
    fn open(&self, name: &str, fold: Fold<'_>) -> Result<Arc<dyn Log>, LogError>;
    /// Opens, or makes, a log that is no stream: `catalog` has the subscriptions, a door may have one of its own.
    fn open_system(&self, name: &'static str, fold: Fold<'_>) -> Result<Arc<dyn Log>, LogError>;
    /// May messages be appended now?
    fn admit(&self) -> Result<(), LogError>;
    /// Gets the commit of what was appended going; `inline` allows to run it on this thread: true if it did.
    fn flush(&self, inline: bool) -> bool;
    /// How long a thread has been committing inline, if one is.
    fn inline_for(&self) -> Option<std::time::Duration> {
        None
    }
    /// Everything up to this ticket is committed.
    fn committed(&self) -> Ticket;
    /// Everything up to this ticket is at least written to the operating system: the end of the process does not lose it.
    fn written(&self) -> Ticket {
        self.committed()
    }
    /// Why nothing is committed any more, if so.
    fn failure(&self) -> Option<LogError>;
    /// `signal` is called when `ticket` is committed, at once if it is, and when the store fails.
    fn notify(&self, ticket: Ticket, signal: &Arc<dyn Signal>);
    /// The same for when `ticket` is [`written`](Self::written).
    fn notify_written(&self, ticket: Ticket, signal: &Arc<dyn Signal>) {
        self.notify(ticket, signal);
    }
    /// How far it is.
    fn mark(&self) -> Mark {
        // Not the other way round: what is committed is written.
        let committed = self.committed();
        Mark { committed, written: self.written() }
    }
    /// Asks the disk how much is free.
    fn measure_disk(&self);
    /// Counters.
    fn stats(&self) -> postroad_journal::CommitStats;
    /// Starts what commits; `on_failure` is called once if it fails.
    fn start(&self, on_failure: Box<dyn FnOnce(LogError) + Send>) -> std::io::Result<()>;
    /// Commits what is queued or written, and ends.
    fn stop(&self);
    /// Where it is, if on a disk.
    fn root(&self) -> Option<PathBuf>;
}

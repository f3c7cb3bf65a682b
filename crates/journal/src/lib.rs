//! A durable log of checksummed JSON lines with group commit.
//!
//! A [`Journal`] is one directory of segment files. Every record is one line of valid JSON that `jq`, `grep` and
//! `less` can read, with a CRC-32C at its end. Many journals share one [`Committer`]: it takes all that is queued,
//! writes once per dirty file, syncs once, and only then says that it is committed.
//!
//! Guarantees: what was reported committed is there after a crash at any moment; a torn tail is cut, kept aside and
//! reported; bytes that changed after they were durable are an error that names file and line, never silence; a
//! failed sync is final. Not a goal: random updates, secondary indexes, more than one writer.
//!
//! `docs/journal-format.md` documents the format byte by byte.

mod committer;
mod error;
mod journal;
mod reader;
pub mod record;
mod recovery;
pub mod repair;
pub mod segment;
pub mod storage;
mod survey;
mod syndrome;
pub mod verify;

pub use committer::{CommitStats, Committer, CommitterOptions, Planted, Signal, SyncMode, Ticket};
pub use error::JournalError;
pub use journal::{CommitObserver, Journal, JournalOptions, JournalStats, Writer};
pub use record::{Event, PayloadKind, Publish, RecordView};
pub use recovery::Recovery;

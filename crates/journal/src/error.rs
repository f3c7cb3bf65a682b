//! What can go wrong with a journal.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An error of the journal: what, where, and what to do about it.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// The operating system refused an operation.
    #[error("cannot {op} {path}: {source}")]
    Io {
        /// What was tried.
        op: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: Arc<io::Error>,
    },
    /// Bytes that were durable have changed. Nothing was cut or repaired.
    #[error(
        "{path} is damaged at line {line}, byte {offset}: {what}; \
         run `postroad journal verify` on the data directory, then `postroad journal repair` to keep what is whole"
    )]
    Corrupt {
        /// The segment file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// The byte offset of the line.
        offset: u64,
        /// What is wrong with it.
        what: String,
    },
    /// Another process has the directory.
    #[error("{path} is in use by another process; stop it, or choose another data directory")]
    Locked {
        /// The data directory.
        path: PathBuf,
    },
    /// A write or a sync failed before: nothing more is promised until a restart reads the disk again.
    #[error("the journal stopped after a failure: {0}")]
    Failed(Arc<str>),
    /// The disk is at its floor or full. Publishing stops; it resumes by itself.
    #[error("the disk is full: free some space; publishing resumes by itself")]
    DiskFull,
    /// Too much waits for the disk already. Wait for the next commit.
    #[error("the commit queue is full: wait for the next commit")]
    Busy,
    /// This writer was fenced: somebody opened the log after it.
    #[error("this writer was fenced by a newer one")]
    Fenced,
}

impl JournalError {
    pub(crate) fn io(op: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { op, path: path.to_owned(), source: Arc::new(source) }
    }

    /// What could be tried again usually cannot be now: bytes are lost that nobody has any more.
    pub(crate) fn fatal(self) -> Self {
        match self {
            Self::Failed(_) => self,
            other => Self::Failed(other.to_string().into()),
        }
    }

    /// True if the process or the system has too many open files: nothing was done, and it passes.
    pub fn is_out_of_files(&self) -> bool {
        // EMFILE, ENFILE.
        matches!(self, Self::Io { source, .. } if matches!(source.raw_os_error(), Some(23 | 24)))
    }

    /// True if it is "no space left on device" or a quota.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::DiskFull => true,
            Self::Io { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            _ => false,
        }
    }
}

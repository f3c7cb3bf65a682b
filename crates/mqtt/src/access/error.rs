//! What can be wrong with the files.

use std::io;
use std::path::{Path, PathBuf};

/// A users or ACL file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The system did not let us.
    #[error("{}: cannot {doing} it: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was tried, a verb.
        doing: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A line that means nothing. The text says how to write it.
    #[error("{}:{line}: {what}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong, and how to fix it.
        what: String,
    },
    /// A user name or a password that the users file cannot hold.
    #[error("{0}")]
    Unusable(&'static str),
}

impl AccessError {
    pub(super) fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), doing, source }
    }

    pub(super) fn malformed(path: &Path, error: LineError) -> Self {
        Self::Malformed { path: path.to_owned(), line: error.line, what: error.what }
    }
}

/// A line that means nothing, in a text that came from anywhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct LineError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong, and how to fix it.
    pub what: String,
}

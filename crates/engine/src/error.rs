//! What the engine refuses, and why.

use crate::log::LogError;
use postroad_core::subject::SubjectError;

/// An error of the engine. Doors translate it into their protocol.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A topic or filter that is none.
    #[error(transparent)]
    BadSubject(#[from] SubjectError),
    /// There is no such stream, subscription or message.
    #[error("{0}")]
    NotFound(String),
    /// The delivery is not in flight at this consumer.
    #[error(
        "that event is not in flight here: it was settled, its time ran out, or it was never delivered here"
    )]
    NotInFlight,
    /// The subscription belongs to another consumer.
    #[error("another connection has this subscription: use another name, or `group` to share it")]
    InUse,
    /// Not allowed for anybody.
    #[error("{0}")]
    Denied(&'static str),
    /// A limit is reached.
    #[error("{0}")]
    Limit(String),
    /// The commit queue is full: try again after the next commit.
    #[error("too much waits for the disk: try again")]
    Busy,
    /// The log refused or failed.
    #[error(transparent)]
    Log(LogError),
    /// The engine is stopping.
    #[error("the server is shutting down")]
    ShuttingDown,
}

impl From<LogError> for EngineError {
    fn from(error: LogError) -> Self {
        match error {
            LogError::Busy => Self::Busy,
            other => Self::Log(other),
        }
    }
}

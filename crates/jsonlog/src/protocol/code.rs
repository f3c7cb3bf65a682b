//! The closed set of error codes.

use postroad_engine::EngineError;
use postroad_engine::log::LogError;

/// The second word of an `err` line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The first word is no command.
    BadCommand,
    /// The arguments are wrong.
    BadArgs,
    /// Not a valid topic or filter.
    BadTopic,
    /// Not an event.
    BadEvent,
    /// The line is not UTF-8.
    NotUtf8,
    /// The line is too long.
    TooLong,
    /// The bulk body is too large.
    TooLarge,
    /// Nothing to settle.
    NotInFlight,
    /// No such subscription on this connection.
    NotSubscribed,
    /// This connection has that subscription.
    AlreadySubscribed,
    /// Another connection has that subscription.
    InUse,
    /// There is no such thing.
    NotFound,
    /// The disk is at its floor.
    DiskFull,
    /// A limit is reached.
    Busy,
    /// Log in first.
    Auth,
    /// Not allowed.
    Denied,
    /// The log is damaged.
    Corrupt,
    /// The server stops.
    ShuttingDown,
    /// A defect of the broker, or a failed disk.
    Internal,
}

impl Code {
    /// The code as it stands in an `err` line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadCommand => "bad-command",
            Self::BadArgs => "bad-args",
            Self::BadTopic => "bad-topic",
            Self::BadEvent => "bad-event",
            Self::NotUtf8 => "not-utf8",
            Self::TooLong => "too-long",
            Self::TooLarge => "too-large",
            Self::NotInFlight => "not-in-flight",
            Self::NotSubscribed => "not-subscribed",
            Self::AlreadySubscribed => "already-subscribed",
            Self::InUse => "in-use",
            Self::NotFound => "not-found",
            Self::DiskFull => "disk-full",
            Self::Busy => "busy",
            Self::Auth => "auth",
            Self::Denied => "denied",
            Self::Corrupt => "corrupt",
            Self::ShuttingDown => "shutting-down",
            Self::Internal => "internal",
        }
    }

    /// The code of an error of the engine.
    pub fn of(error: &EngineError) -> Self {
        match error {
            EngineError::BadSubject(_) => Self::BadTopic,
            EngineError::NotFound(_) => Self::NotFound,
            EngineError::NotInFlight => Self::NotInFlight,
            EngineError::InUse => Self::InUse,
            EngineError::Denied(_) => Self::Denied,
            EngineError::Limit(_) | EngineError::Busy => Self::Busy,
            EngineError::ShuttingDown => Self::ShuttingDown,
            EngineError::Log(LogError::Corrupt { .. }) => Self::Corrupt,
            EngineError::Log(error) if error.is_disk_full() => Self::DiskFull,
            EngineError::Log(error) if error.is_out_of_files() => Self::Busy,
            _ => Self::Internal,
        }
    }
}

//! What the engine refuses, as an error of the core.

use std::borrow::Cow;

use postroad_core::{Error, ErrorKind, RetryHint};

use super::NAME;
use crate::error::EngineError;
use crate::log::LogError;

pub(super) fn error(kind: ErrorKind, text: impl Into<Cow<'static, str>>) -> Error {
    Error::new(kind, NAME, text)
}

pub(super) fn closed() -> Error {
    error(ErrorKind::Closed, "the backend was closed")
}

pub(super) fn stale() -> Error {
    error(
        ErrorKind::StaleToken,
        "the delivery is no longer this token's: its lease or its subscription ended, the message comes again",
    )
}

/// The log failed: what was not committed is unknown, and stays so until the engine is opened again.
pub(super) fn failed(why: &LogError) -> Error {
    let text = format!("{why}; open the engine again to know what is stored");
    error(ErrorKind::Disconnected, text).with_hint(RetryHint::Never)
}

pub(super) fn of(why: EngineError) -> Error {
    let kind = match &why {
        EngineError::BadSubject(_) | EngineError::Denied(_) => ErrorKind::Rejected,
        EngineError::NotFound(_) => ErrorKind::NotFound,
        EngineError::NotInFlight => return stale(),
        EngineError::InUse => {
            let text = "the subscription has a consumer: subscribe all of them as a group, or end that one";
            return error(ErrorKind::Busy, text);
        }
        EngineError::Limit(_) | EngineError::Busy => ErrorKind::Busy,
        EngineError::ShuttingDown => {
            return error(ErrorKind::Closed, "the engine is shutting down, or was dropped");
        }
        EngineError::Log(log) => match log {
            LogError::Failed(_) => return failed(log),
            LogError::Corrupt { .. } => ErrorKind::Corrupt,
            LogError::Locked { .. } | LogError::Busy => ErrorKind::Busy,
            log if log.is_disk_full() => ErrorKind::DiskFull,
            log if log.is_out_of_files() => ErrorKind::Transient,
            _ => ErrorKind::Disconnected,
        },
    };
    error(kind, why.to_string()).with_source(why)
}

/// Of an engine that does not open: what the operating system refuses is a wrong path.
pub(super) fn of_open(why: EngineError) -> Error {
    match &why {
        EngineError::Log(log @ LogError::Io { .. }) if !log.is_disk_full() && !log.is_out_of_files() => {
            error(ErrorKind::Config, why.to_string()).with_source(why)
        }
        _ => of(why),
    }
}

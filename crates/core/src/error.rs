//! One error type for every backend: what kind, whether to try again, who said it, and why.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// `Result` with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, from the caller's point of view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// It may work if tried again; nothing has to change first.
    Transient,
    /// The connection is gone. What was under way is unknown.
    Disconnected,
    /// There is no such subject, stream, subscription or message.
    NotFound,
    /// The backend cannot do this at all; see its [`Capabilities`](crate::Capabilities).
    Unsupported,
    /// The peer looked at it and said no.
    Rejected,
    /// Larger than a limit that the backend has or that was configured.
    TooLarge,
    /// The delivery is no longer this token's: its lease ended, or its connection did.
    StaleToken,
    /// The subscription, publisher or backend was closed here.
    Closed,
    /// The configuration or an option is wrong.
    Config,
    /// Not logged in, or not allowed.
    Auth,
    /// A limit is reached, or another consumer holds it. Later it may be free.
    Busy,
    /// The disk is full, or below the floor where publishing stops.
    DiskFull,
    /// Stored or received bytes are not what was written.
    Corrupt,
    /// A defect in this program.
    Internal,
}

impl ErrorKind {
    /// The kind in one lower-case word, as it stands in logs, metrics and replies.
    ///
    /// ```
    /// assert_eq!(postroad_core::ErrorKind::StaleToken.as_str(), "stale-token");
    /// ```
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Transient => "transient",
            Self::Disconnected => "disconnected",
            Self::NotFound => "not-found",
            Self::Unsupported => "unsupported",
            Self::Rejected => "rejected",
            Self::TooLarge => "too-large",
            Self::StaleToken => "stale-token",
            Self::Closed => "closed",
            Self::Config => "config",
            Self::Auth => "auth",
            Self::Busy => "busy",
            Self::DiskFull => "disk-full",
            Self::Corrupt => "corrupt",
            Self::Internal => "internal",
        }
    }

    /// The hint an error of this kind has unless its maker knows better.
    pub const fn default_hint(self) -> RetryHint {
        match self {
            Self::Transient | Self::Disconnected | Self::Busy | Self::DiskFull => RetryHint::Later,
            _ => RetryHint::Never,
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether the same call may succeed later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RetryHint {
    /// The same call fails again until somebody changes something.
    Never,
    /// Try again, with the caller's own backoff.
    Later,
    /// Try again, not before this long.
    After(Duration),
}

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    hint: RetryHint,
    backend: &'static str,
    message: Cow<'static, str>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

/// An error of a backend, publisher, subscription or token. One pointer wide, cheap to clone: one
/// broken connection resolves many tickets with it.
///
/// ```
/// use postroad_core::{Error, ErrorKind, RetryHint};
///
/// let error = Error::new(ErrorKind::Busy, "memory", "the log is full: settle or raise `max_bytes`");
/// assert_eq!(error.kind(), ErrorKind::Busy);
/// assert_eq!(error.retry_hint(), RetryHint::Later);
/// assert_eq!(error.to_string(), "memory: the log is full: settle or raise `max_bytes` (busy)");
/// ```
#[derive(Clone)]
pub struct Error(Arc<Inner>);

impl Error {
    /// An error of `kind`, said by `backend` (its URL scheme, e.g. `nats`). `message` says what and how to fix it.
    pub fn new(kind: ErrorKind, backend: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        let hint = kind.default_hint();
        Self(Arc::new(Inner { kind, hint, backend, message: message.into(), source: None }))
    }

    /// The same error with its cause, which [`source`](StdError::source) then gives.
    pub fn with_source(self, source: impl StdError + Send + Sync + 'static) -> Self {
        let mut inner = self.into_inner();
        inner.source = Some(Arc::new(source));
        Self(Arc::new(inner))
    }

    /// The same error with another retry hint.
    pub fn with_hint(self, hint: RetryHint) -> Self {
        let mut inner = self.into_inner();
        inner.hint = hint;
        Self(Arc::new(inner))
    }

    fn into_inner(self) -> Inner {
        Arc::try_unwrap(self.0).unwrap_or_else(|shared| Inner {
            kind: shared.kind,
            hint: shared.hint,
            backend: shared.backend,
            message: shared.message.clone(),
            source: shared.source.clone(),
        })
    }

    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether the same call may succeed later.
    pub fn retry_hint(&self) -> RetryHint {
        self.0.hint
    }

    /// Who said it: a URL scheme, or `core`.
    pub fn backend(&self) -> &'static str {
        self.0.backend
    }

    /// What and how to fix it, without kind and backend.
    pub fn message(&self) -> &str {
        &self.0.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.0.backend, self.0.message, self.0.kind)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Error");
        out.field("kind", &self.0.kind).field("backend", &self.0.backend).field("message", &self.0.message);
        if let Some(source) = &self.0.source {
            out.field("source", source);
        }
        out.finish_non_exhaustive()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_ref().map(|source| &**source as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_one_pointer_wide_also_in_a_result() {
        assert_eq!(size_of::<Error>(), size_of::<usize>());
        assert_eq!(size_of::<Result<()>>(), size_of::<usize>());
    }

    #[test]
    fn changing_a_shared_error_leaves_the_other_clone_alone() {
        let first = Error::new(ErrorKind::Transient, "core", "x");
        let second = first.clone().with_hint(RetryHint::After(Duration::from_secs(1)));
        let third = second.clone().with_source(std::io::Error::other("socket"));
        assert_eq!(first.retry_hint(), RetryHint::Later);
        assert_eq!(third.retry_hint(), RetryHint::After(Duration::from_secs(1)));
        assert!(second.source().is_none());
        assert_eq!(third.source().map(ToString::to_string).as_deref(), Some("socket"));
    }
}

//! What can go wrong for a client, by the code of the protocol.

use std::fmt;
use std::sync::Arc;

/// The class of a [`ClientError`]: a code of the protocol (section 4 of the protocol page), or one of the few
/// that arise on this side of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// `bad-command`: the server does not know the command (an older server).
    BadCommand,
    /// `bad-args`, or arguments that this side refused to send.
    BadArgs,
    /// `bad-topic`: not a valid topic or filter.
    BadTopic,
    /// `bad-event`: not one JSON object on one line, or `id`/`priority` of a wrong type.
    BadEvent,
    /// `not-utf8`: the line was not UTF-8.
    NotUtf8,
    /// `too-long`: the line is longer than the server's `max_line`.
    TooLong,
    /// `too-large`: the bulk body is larger than the server's `max_bulk`.
    TooLarge,
    /// `not-in-flight`: nothing of that name is in flight on this connection.
    NotInFlight,
    /// `not-subscribed`.
    NotSubscribed,
    /// `already-subscribed`, or a subscription of this connection whose filter overlaps the new one.
    AlreadySubscribed,
    /// `in-use`: another connection has the exclusive subscription.
    InUse,
    /// `not-found`.
    NotFound,
    /// `disk-full`: publishing stops until there is room; acks still work.
    DiskFull,
    /// `busy`: a limit of the server is reached.
    Busy,
    /// `auth`: a token is needed, or it was refused.
    Auth,
    /// `denied`: not allowed.
    Denied,
    /// `corrupt`: the log of the topic is damaged at that place.
    Corrupt,
    /// `shutting-down`: the server stops; nothing of the command was done.
    ShuttingDown,
    /// `internal`: a defect of the broker.
    Internal,
    /// An `err` whose code this client does not know (a newer server).
    Other,
    /// The queue of this connection is full; nothing was sent. Only from the `try_` functions.
    Full,
    /// The connection could not be made: the command was never sent.
    Connect,
    /// The connection had ended before the command was handed to it: it was never sent.
    Closed,
    /// The connection ended before the reply. Whether a publish was stored is **unknown**.
    Disconnected,
    /// The peer said something that is not in the protocol; the connection was closed. Outcome unknown, as above.
    Protocol,
}

impl ErrorKind {
    /// The kind of an `err` code.
    pub fn from_code(code: &str) -> Self {
        match code {
            "bad-command" => Self::BadCommand,
            "bad-args" => Self::BadArgs,
            "bad-topic" => Self::BadTopic,
            "bad-event" => Self::BadEvent,
            "not-utf8" => Self::NotUtf8,
            "too-long" => Self::TooLong,
            "too-large" => Self::TooLarge,
            "not-in-flight" => Self::NotInFlight,
            "not-subscribed" => Self::NotSubscribed,
            "already-subscribed" => Self::AlreadySubscribed,
            "in-use" => Self::InUse,
            "not-found" => Self::NotFound,
            "disk-full" => Self::DiskFull,
            "busy" => Self::Busy,
            "auth" => Self::Auth,
            "denied" => Self::Denied,
            "corrupt" => Self::Corrupt,
            "shutting-down" => Self::ShuttingDown,
            "internal" => Self::Internal,
            _ => Self::Other,
        }
    }

    /// The word of the protocol, or a word of the same style for the kinds of this side.
    pub fn code(self) -> &'static str {
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
            Self::Other => "other",
            Self::Full => "full",
            Self::Connect => "connect",
            Self::Closed => "closed",
            Self::Disconnected => "disconnected",
            Self::Protocol => "protocol",
        }
    }
}

/// An error of the client: its kind, and the text that says what to do.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {text}", kind.code())]
pub struct ClientError {
    kind: ErrorKind,
    text: Arc<str>,
}

impl ClientError {
    /// An error of `kind`.
    pub fn new(kind: ErrorKind, text: impl Into<Arc<str>>) -> Self {
        Self { kind, text: text.into() }
    }

    /// An `err CODE TEXT` of the server. A code this client does not know stays in the text.
    pub(super) fn from_reply(code: &str, text: &str) -> Self {
        match ErrorKind::from_code(code) {
            ErrorKind::Other => Self::new(ErrorKind::Other, format!("{code} {text}")),
            kind => Self::new(kind, text),
        }
    }

    /// The class of the error.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What happened and what to do, for people.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// True when a command that got this error may have been done by the server all the same: a publish is then
    /// neither stored nor refused but *unknown*.
    pub fn outcome_unknown(&self) -> bool {
        // After `internal` the server does not promise that nothing was done.
        matches!(
            self.kind,
            ErrorKind::Disconnected | ErrorKind::Protocol | ErrorKind::Internal | ErrorKind::Other
        )
    }
}

impl fmt::Debug for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientError({}: {})", self.kind.code(), self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_of_the_protocol_page_has_a_kind() {
        let page = include_str!("../../../../docs/jsonlog-protocol.md");
        let table = page.split("## 4. Errors").nth(1).unwrap().split("`bye CODE TEXT`").next().unwrap();
        let mut seen = 0;
        for row in table.lines().filter(|l| l.starts_with("| `")) {
            let cell = row.split('|').nth(1).unwrap();
            for code in cell.split('`').skip(1).step_by(2) {
                let kind = ErrorKind::from_code(code);
                assert_ne!(kind, ErrorKind::Other, "{code}");
                assert_eq!(kind.code(), code);
                seen += 1;
            }
        }
        assert!(seen >= 19, "{seen}");
    }
}

//! What commands resolve to.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::codec::{number, protocol, split_word};
use super::error::{ClientError, ErrorKind};
use super::events::Event;

/// The event is stored, as durably as the greeting says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishAck {
    /// The number of the event in its topic; of the first one when it is a duplicate.
    pub seq: u64,
    /// An event with this `id` was there already; this one was not stored again.
    pub duplicate: bool,
}

/// All events of a bulk are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BulkAck {
    /// The number of the first event stored; 0 when all were duplicates.
    pub first: u64,
    /// The number of the last event stored; 0 when all were duplicates.
    pub last: u64,
    /// Events that were there already.
    pub duplicates: u64,
}

/// What the reply to a command must look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expect {
    /// `ok SEQ [duplicate]`
    Publish,
    /// `ok FIRST-LAST [duplicates=N]`
    Bulk,
    /// `ok`, and nothing that matters after it.
    Done,
    /// `ok N`
    Count,
    /// `ok {…}`
    Json,
    /// `event … 0 …`
    Peek,
}

/// A successful reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    Publish(PublishAck),
    Bulk(BulkAck),
    Done,
    Count(u64),
    Json(Bytes),
    Peek(Event),
}

impl Expect {
    /// Reads what follows `ok`.
    pub(super) fn read(self, text: &Bytes) -> Result<Answer, ClientError> {
        let (word, rest) = split_word(text);
        match self {
            Self::Done => Ok(Answer::Done),
            Self::Publish => {
                let seq = number(word).ok_or_else(|| protocol("`ok SEQ`", text))?;
                Ok(Answer::Publish(PublishAck { seq, duplicate: rest == b"duplicate" }))
            }
            Self::Bulk => bulk(word, rest).map(Answer::Bulk).ok_or_else(|| protocol("`ok FIRST-LAST`", text)),
            Self::Count => number(word).map(Answer::Count).ok_or_else(|| protocol("`ok N`", text)),
            Self::Json if text.first() == Some(&b'{') => Ok(Answer::Json(text.clone())),
            Self::Json => Err(protocol("`ok {…}`", text)),
            Self::Peek => Err(protocol("the event of a peek", text)),
        }
    }
}

fn bulk(word: &[u8], rest: &[u8]) -> Option<BulkAck> {
    let dash = memchr::memchr(b'-', word)?;
    let duplicates = match rest.strip_prefix(b"duplicates=") {
        Some(n) => number(n)?,
        None => 0,
    };
    Some(BulkAck { first: number(&word[..dash])?, last: number(&word[dash + 1..])?, duplicates })
}

/// The reply to a command that was queued: await it, or drop it if the outcome does not matter. Any number may be
/// outstanding; they resolve in the order of their commands.
#[must_use = "a dropped reply is an outcome nobody looks at"]
pub struct Reply<T> {
    rx: oneshot::Receiver<Result<Answer, ClientError>>,
    read: fn(Answer) -> Option<T>,
}

impl<T> Reply<T> {
    pub(super) fn new(
        rx: oneshot::Receiver<Result<Answer, ClientError>>,
        read: fn(Answer) -> Option<T>,
    ) -> Self {
        Self { rx, read }
    }
}

impl<T> Future for Reply<T> {
    type Output = Result<T, ClientError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let gone = |_| ClientError::new(ErrorKind::Disconnected, "the tasks of the connection were stopped");
        let answer = ready!(Pin::new(&mut self.rx).poll(cx)).map_err(gone).flatten()?;
        let wrong = || ClientError::new(ErrorKind::Protocol, "the reply belongs to another command");
        Poll::Ready((self.read)(answer).ok_or_else(wrong))
    }
}

impl<T> fmt::Debug for Reply<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_of_every_command() {
        let read = |expect: Expect, text: &'static str| expect.read(&Bytes::from_static(text.as_bytes()));
        let publish = |seq, duplicate| Ok(Answer::Publish(PublishAck { seq, duplicate }));
        let bulk = |first, last, duplicates| Ok(Answer::Bulk(BulkAck { first, last, duplicates }));
        assert_eq!(read(Expect::Publish, "7"), publish(7, false));
        assert_eq!(read(Expect::Publish, "7 duplicate"), publish(7, true));
        assert_eq!(read(Expect::Bulk, "7-9"), bulk(7, 9, 0));
        assert_eq!(read(Expect::Bulk, "0-0 duplicates=3"), bulk(0, 0, 3));
        assert_eq!(read(Expect::Count, "12"), Ok(Answer::Count(12)));
        assert_eq!(read(Expect::Done, ""), Ok(Answer::Done));
        assert_eq!(read(Expect::Json, "{}"), Ok(Answer::Json("{}".into())));
        for (expect, text) in [
            (Expect::Publish, ""),
            (Expect::Publish, "x"),
            (Expect::Bulk, "7"),
            (Expect::Bulk, "7-"),
            (Expect::Bulk, "7-8 duplicates=x"),
            (Expect::Count, "-1"),
            (Expect::Json, ""),
            (Expect::Peek, ""),
        ] {
            assert_eq!(read(expect, text).unwrap_err().kind(), ErrorKind::Protocol, "{expect:?} {text:?}");
        }
    }
}

//! The envelope: a message as every Postroad part sees it.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use uuid::Uuid;

use crate::headers::{Headers, Value};
use crate::subject::Subject;
use crate::time::Timestamp;

/// The identity of a message: a UUIDv7 made here, or the text its publisher gave it.
///
/// ```
/// use postroad_core::MessageId;
///
/// assert_ne!(MessageId::generate(), MessageId::generate());
/// assert_eq!(MessageId::text("order-17")?.to_string(), "order-17");
/// # Ok::<(), postroad_core::MessageIdError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId(Repr);

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Repr {
    Uuid(Uuid),
    Text(Arc<str>),
}

/// Why a text is no [`MessageId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a message id is 1 to 255 bytes, this one is {len}: shorten it, or leave it out to get a UUID")]
pub struct MessageIdError {
    /// Its length in bytes.
    pub len: usize,
}

impl MessageId {
    /// The most bytes of a caller's text.
    pub const MAX_LEN: usize = 255;

    /// A new UUIDv7: ids made later in this process sort later.
    pub fn generate() -> Self {
        Self(Repr::Uuid(Uuid::now_v7()))
    }

    /// The caller's own id, 1 to 255 bytes. What reads as a UUID in its usual form is the same id as that UUID.
    pub fn text(text: impl AsRef<str>) -> Result<Self, MessageIdError> {
        let text = text.as_ref();
        if text.is_empty() || text.len() > Self::MAX_LEN {
            return Err(MessageIdError { len: text.len() });
        }
        // Only the exact form that `Display` writes, so that every id is shown as it was given.
        if text.len() == uuid::fmt::Hyphenated::LENGTH
            && !text.bytes().any(|byte| byte.is_ascii_uppercase())
            && let Ok(uuid) = Uuid::try_parse(text)
        {
            return Ok(Self(Repr::Uuid(uuid)));
        }
        Ok(Self(Repr::Text(text.into())))
    }

    /// The UUID, if it is one.
    pub fn as_uuid(&self) -> Option<Uuid> {
        match &self.0 {
            Repr::Uuid(uuid) => Some(*uuid),
            Repr::Text(_) => None,
        }
    }
}

impl From<Uuid> for MessageId {
    fn from(uuid: Uuid) -> Self {
        Self(Repr::Uuid(uuid))
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Repr::Uuid(uuid) => uuid.hyphenated().fmt(f),
            Repr::Text(text) => f.write_str(text),
        }
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A message. Cheap to clone: payload, subject and headers are shared.
///
/// ```
/// use postroad_core::{Envelope, Subject};
///
/// let envelope = Envelope::new(Subject::new("orders/eu")?, r#"{"n":1}"#)
///     .with_content_type("application/json")
///     .with_priority(5)
///     .with_header("trace", "a1");
/// assert_eq!(envelope.payload.len(), 7);
/// assert_eq!(envelope.headers.get_text("trace"), Some("a1"));
/// # Ok::<(), postroad_core::SubjectError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Envelope {
    /// Its identity, for dedup and correlation.
    pub id: MessageId,
    /// Where it goes.
    pub subject: Subject,
    /// What keeps messages that belong together in order, for backends with partitions; also the key of compaction.
    pub key: Option<Bytes>,
    /// The media type of the payload, like `application/json`.
    pub content_type: Option<Arc<str>>,
    /// When it was made, by its publisher.
    pub time: Timestamp,
    /// From when on it need not be delivered.
    pub expires: Option<Timestamp>,
    /// Larger is delivered first; 0 unless set.
    pub priority: i64,
    /// Where an answer is expected.
    pub reply_to: Option<Subject>,
    /// What ties an answer to its question.
    pub correlation: Option<Bytes>,
    /// Everything else about it.
    pub headers: Headers,
    /// The message itself; opaque.
    pub payload: Bytes,
}

impl Envelope {
    /// A message of now, with a new UUIDv7 and nothing else set.
    pub fn new(subject: Subject, payload: impl Into<Bytes>) -> Self {
        Self {
            id: MessageId::generate(),
            subject,
            key: None,
            content_type: None,
            time: Timestamp::now(),
            expires: None,
            priority: 0,
            reply_to: None,
            correlation: None,
            headers: Headers::new(),
            payload: payload.into(),
        }
    }

    /// With this id.
    pub fn with_id(mut self, id: MessageId) -> Self {
        self.id = id;
        self
    }

    /// With this key.
    pub fn with_key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// With this media type.
    pub fn with_content_type(mut self, content_type: impl Into<Arc<str>>) -> Self {
        self.content_type = Some(content_type.into());
        self
    }

    /// Made at this time.
    pub fn with_time(mut self, time: Timestamp) -> Self {
        self.time = time;
        self
    }

    /// Not to be delivered from this time on.
    pub fn with_expires(mut self, expires: Timestamp) -> Self {
        self.expires = Some(expires);
        self
    }

    /// With this priority; larger is delivered first.
    pub fn with_priority(mut self, priority: i64) -> Self {
        self.priority = priority;
        self
    }

    /// Answers are expected there.
    pub fn with_reply_to(mut self, reply_to: Subject) -> Self {
        self.reply_to = Some(reply_to);
        self
    }

    /// With this correlation.
    pub fn with_correlation(mut self, correlation: impl Into<Bytes>) -> Self {
        self.correlation = Some(correlation.into());
        self
    }

    /// With this header after the others.
    pub fn with_header(mut self, name: impl Into<Arc<str>>, value: impl Into<Value>) -> Self {
        self.headers.push(name, value);
        self
    }

    /// With these headers instead of the ones it has.
    pub fn with_headers(mut self, headers: Headers) -> Self {
        self.headers = headers;
        self
    }

    /// Whether it need not be delivered any more.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }

    /// Bytes that count against windows and limits: payload, headers, key, correlation and subject.
    pub fn len_bytes(&self) -> usize {
        let part = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        self.payload.len()
            + self.headers.len_bytes()
            + part(&self.key)
            + part(&self.correlation)
            + self.subject.as_str().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_shown_as_it_was_given() {
        let uuid = MessageId::generate();
        assert_eq!(MessageId::text(uuid.to_string()), Ok(uuid.clone()));
        let upper = uuid.to_string().to_uppercase();
        let braced = format!("{{{uuid}}}");
        for text in [upper.as_str(), &braced, "17", "é", "urn:uuid:x"] {
            assert_eq!(MessageId::text(text).unwrap().to_string(), text);
        }
        assert_eq!(MessageId::text(""), Err(MessageIdError { len: 0 }));
        assert_eq!(MessageId::text("x".repeat(256)), Err(MessageIdError { len: 256 }));
    }

    #[test]
    fn later_ids_sort_later() {
        let ids: Vec<_> = (0..1000).map(|_| MessageId::generate()).collect();
        assert!(ids.is_sorted());
    }

    #[test]
    fn expires_at_its_time_not_before() {
        let envelope = Envelope::new("a".parse().unwrap(), "").with_expires(Timestamp::from_millis(10));
        assert!(!envelope.is_expired(Timestamp::from_millis(9)));
        assert!(envelope.is_expired(Timestamp::from_millis(10)));
    }
}

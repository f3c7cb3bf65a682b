//! MQTT's strings.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;

use bytes::Bytes;
use bytestring::ByteString;

/// Bytes that are no MQTT string.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Utf8Error {
    /// Not UTF-8; an encoded surrogate is not. [MQTT-1.5.4-1]
    #[error("a string that is not UTF-8")]
    NotUtf8,
    /// U+0000 is in it. [MQTT-1.5.4-2]
    #[error("a string with U+0000")]
    Nul,
    /// More than [`Utf8::MAX_LEN`] bytes.
    #[error("a string of more than 65535 bytes")]
    TooLong,
}

/// An MQTT string: UTF-8 of at most 65535 bytes without U+0000. A decoded one is a slice of the input; cloning
/// counts a reference.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Utf8(ByteString);

impl Utf8 {
    /// The most bytes of a string.
    pub const MAX_LEN: usize = u16::MAX as usize;

    /// Checks `text` and takes it.
    pub fn new(text: impl Into<ByteString>) -> Result<Self, Utf8Error> {
        let text = text.into();
        if text.len() > Self::MAX_LEN {
            return Err(Utf8Error::TooLong);
        }
        if memchr::memchr(0, text.as_bytes()).is_some() {
            return Err(Utf8Error::Nul);
        }
        Ok(Self(text))
    }

    /// The string of a constant. Panics if that is none.
    pub const fn from_static(text: &'static str) -> Self {
        let bytes = text.as_bytes();
        assert!(bytes.len() <= Self::MAX_LEN, "a string of more than 65535 bytes");
        let mut at = 0;
        while at < bytes.len() {
            assert!(bytes[at] != 0, "a string with U+0000");
            at += 1;
        }
        Self(ByteString::from_static(text))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The same text in memory of its own, so that it does not keep a whole receive buffer alive.
    #[must_use]
    pub fn to_detached(&self) -> Self {
        Self(ByteString::from(self.as_str()))
    }

    /// The bytes, not copied.
    pub fn into_bytes(self) -> Bytes {
        self.0.into_bytes()
    }
}

impl Deref for Utf8 {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Utf8 {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

// Hash and Eq are those of the text, so maps can be asked with a `&str`.
impl Borrow<str> for Utf8 {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Utf8 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for Utf8 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl TryFrom<Bytes> for Utf8 {
    type Error = Utf8Error;

    fn try_from(bytes: Bytes) -> Result<Self, Utf8Error> {
        Self::new(ByteString::try_from(bytes).map_err(|_| Utf8Error::NotUtf8)?)
    }
}

impl TryFrom<&str> for Utf8 {
    type Error = Utf8Error;

    fn try_from(text: &str) -> Result<Self, Utf8Error> {
        Self::new(text)
    }
}

impl TryFrom<String> for Utf8 {
    type Error = Utf8Error;

    fn try_from(text: String) -> Result<Self, Utf8Error> {
        Self::new(text)
    }
}

impl PartialEq<str> for Utf8 {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}

impl PartialEq<&str> for Utf8 {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}

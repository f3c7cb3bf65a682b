//! Headers: an ordered multimap of typed values.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::time::Timestamp;

/// The prefix of Postroad's own headers. Callers should not make headers with it.
pub const RESERVED_PREFIX: &str = "postroad-";

/// The value of a header. Typed, because AMQP's are; protocols with text headers see [`Value::to_text`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Value {
    /// Text.
    Text(Arc<str>),
    /// Bytes that need not be text.
    Bytes(Bytes),
    /// A whole number.
    I64(i64),
    /// A floating-point number.
    F64(f64),
    /// Yes or no.
    Bool(bool),
    /// A point in time.
    Time(Timestamp),
}

impl Value {
    /// The text, if it is [`Value::Text`].
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The number, if it is [`Value::I64`].
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Self::I64(number) => Some(*number),
            _ => None,
        }
    }

    /// The value in a protocol whose headers are text: bytes become base64, times RFC 3339.
    pub fn to_text(&self) -> Arc<str> {
        match self {
            Self::Text(text) => Arc::clone(text),
            other => other.to_string().into(),
        }
    }

    /// Bytes that it takes on a wire, about: text and bytes by their length, the others 8.
    pub fn len_hint(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Bytes(bytes) => bytes.len(),
            _ => 8,
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Bytes(bytes) => {
                let engine = &base64::engine::general_purpose::STANDARD;
                base64::display::Base64Display::new(bytes, engine).fmt(f)
            }
            Self::I64(number) => number.fmt(f),
            Self::F64(number) => number.fmt(f),
            Self::Bool(yes) => yes.fmt(f),
            Self::Time(time) => time.fmt(f),
        }
    }
}

macro_rules! value_from {
    ($($variant:ident: $($type:ty),+;)+) => {
        $($(impl From<$type> for Value {
            fn from(value: $type) -> Self {
                Self::$variant(value.into())
            }
        })+)+
    };
}

value_from! {
    Text: &str, String, Arc<str>;
    Bytes: Bytes, Vec<u8>;
    I64: i64, i32, u32;
    F64: f64;
    Bool: bool;
    Time: Timestamp;
}

/// One header.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    /// Its name, compared byte for byte.
    pub name: Arc<str>,
    /// Its value.
    pub value: Value,
}

/// An ordered multimap from names to typed values. A name may stand several times; the order is kept.
///
/// Empty headers take no memory, clones share until one of them is changed.
///
/// ```
/// use postroad_core::Headers;
///
/// let mut headers = Headers::new();
/// headers.push("trace", "a1").push("tries", 3).push("trace", "b2");
/// let copy = headers.clone();
/// headers.remove("trace");
/// assert_eq!(headers.len(), 1);
/// assert_eq!(copy.get_text("trace"), Some("a1"));
/// assert_eq!(copy.get_all("trace").count(), 2);
/// ```
#[derive(Clone, Default, PartialEq)]
pub struct Headers(Option<Arc<Vec<Header>>>);

impl Headers {
    /// No headers.
    pub const fn new() -> Self {
        Self(None)
    }

    /// How many there are, each name as often as it stands.
    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.as_slice().is_empty()
    }

    /// All of them, in order.
    pub fn as_slice(&self) -> &[Header] {
        self.0.as_ref().map_or(&[], |all| all)
    }

    /// All of them, in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Header> {
        self.as_slice().iter()
    }

    /// The first value of `name`.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.iter().find(|header| *header.name == *name).map(|header| &header.value)
    }

    /// The first value of `name`, if it is text.
    pub fn get_text(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(Value::as_text)
    }

    /// All values of `name`, in order.
    pub fn get_all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Value> {
        self.iter().filter(move |header| *header.name == *name).map(|header| &header.value)
    }

    /// Adds a header at the end; others of the same name stay.
    pub fn push(&mut self, name: impl Into<Arc<str>>, value: impl Into<Value>) -> &mut Self {
        let header = Header { name: name.into(), value: value.into() };
        Arc::make_mut(self.0.get_or_insert_default()).push(header);
        self
    }

    /// The one header of `name` from now on, at the place of the first one if there was one.
    pub fn set(&mut self, name: impl Into<Arc<str>>, value: impl Into<Value>) -> &mut Self {
        let (name, value) = (name.into(), value.into());
        let all = Arc::make_mut(self.0.get_or_insert_default());
        if let Some(at) = all.iter().position(|header| header.name == name) {
            all[at].value = value;
            let mut index = 0;
            all.retain(|header| {
                index += 1;
                index - 1 <= at || header.name != name
            });
        } else {
            all.push(Header { name, value });
        }
        self
    }

    /// Removes every header of `name` and gives how many that were.
    pub fn remove(&mut self, name: &str) -> usize {
        let before = self.len();
        if self.get(name).is_some() {
            if let Some(all) = &mut self.0 {
                Arc::make_mut(all).retain(|header| *header.name != *name);
            }
            if self.is_empty() {
                self.0 = None;
            }
        }
        before - self.len()
    }

    /// Bytes that names and values take on a wire, about; see [`Value::len_hint`].
    pub fn len_bytes(&self) -> usize {
        self.iter().map(|header| header.name.len() + header.value.len_hint()).sum()
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter().map(|header| (&header.name, &header.value))).finish()
    }
}

impl<'a> IntoIterator for &'a Headers {
    type Item = &'a Header;
    type IntoIter = std::slice::Iter<'a, Header>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<N: Into<Arc<str>>, V: Into<Value>> FromIterator<(N, V)> for Headers {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(iter: I) -> Self {
        let mut headers = Self::new();
        headers.extend(iter);
        headers
    }
}

impl<N: Into<Arc<str>>, V: Into<Value>> Extend<(N, V)> for Headers {
    fn extend<I: IntoIterator<Item = (N, V)>>(&mut self, iter: I) {
        for (name, value) in iter {
            self.push(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_order_and_repeats() {
        let headers: Headers = [("b", "1"), ("a", "2"), ("b", "3")].into_iter().collect();
        let shown: Vec<_> = headers.iter().map(|h| format!("{}={}", h.name, h.value)).collect();
        assert_eq!(shown, ["b=1", "a=2", "b=3"]);
        assert_eq!(headers.len_bytes(), 6);
    }

    #[test]
    fn set_replaces_all_in_the_first_place() {
        let mut headers: Headers =
            [("a", "1"), ("b", "2"), ("a", "3"), ("c", "4"), ("a", "5")].into_iter().collect();
        headers.set("a", 9).set("d", true);
        let shown: Vec<_> = headers.iter().map(|h| format!("{}={}", h.name, h.value)).collect();
        assert_eq!(shown, ["a=9", "b=2", "c=4", "d=true"]);
    }

    #[test]
    fn a_clone_does_not_see_changes_and_shares_until_then() {
        let mut first = Headers::new();
        first.push("a", 1);
        let second = first.clone();
        assert!(std::ptr::eq(first.as_slice(), second.as_slice()));
        assert_eq!(first.remove("missing"), 0);
        assert!(std::ptr::eq(first.as_slice(), second.as_slice()), "removing nothing copies nothing");
        first.push("b", 2);
        assert_eq!((first.len(), second.len()), (2, 1));
        assert_eq!(first.remove("a") + first.remove("b"), 2);
        assert_eq!(first, Headers::new());
        assert_eq!(second.get("a").and_then(Value::as_i64), Some(1));
    }

    #[test]
    fn every_value_as_text() {
        for (value, text) in [
            (Value::from("x"), "x"),
            (Value::from(vec![0xff, 0]), "/wA="),
            (Value::from(-3), "-3"),
            (Value::from(0.5), "0.5"),
            (Value::from(true), "true"),
            (Value::from(Timestamp::EPOCH), "1970-01-01T00:00:00.000Z"),
        ] {
            assert_eq!(&*value.to_text(), text);
        }
    }
}

//! Lines to commands, and answers to lines.

use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;

/// A command of either half of the dialect.
#[derive(Debug)]
pub(super) enum Command<'a> {
    Sub { topic: Cow<'a, str> },
    Unsub { topic: Cow<'a, str> },
    Pub { topic: Cow<'a, str>, msg: &'a RawValue },
    Pubrec { id: u64, topic: Cow<'a, str> },
    Pubcomp { id: u64, topic: Cow<'a, str> },
    Pubrel { id: u64 },
}

/// Why a line is no command. The texts are the answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bad {
    Json,
    Shape,
}

impl Bad {
    pub(super) const fn text(self) -> &'static str {
        match self {
            Self::Json => "INVALID JSON",
            Self::Shape => "UNKNOWN COMMAND",
        }
    }
}

#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    topic: Option<Cow<'a, str>>,
    #[serde(borrow, default, deserialize_with = "present")]
    msg: Option<&'a RawValue>,
    #[serde(default, rename = "msgId")]
    id: Option<u64>,
}

/// `null` is a message, too.
fn present<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(from).map(Some)
}

/// Reads one line, without its end.
pub(super) fn parse(line: &[u8]) -> Result<Command<'_>, Bad> {
    let text = std::str::from_utf8(line).map_err(|_| Bad::Json)?;
    serde_json::from_str::<serde::de::IgnoredAny>(text).map_err(|_| Bad::Json)?;
    let fields: Fields<'_> = serde_json::from_str(text).map_err(|_| Bad::Shape)?;
    match (&*fields.kind, fields.topic, fields.msg, fields.id) {
        ("SUB", Some(topic), _, _) => Ok(Command::Sub { topic }),
        ("UNSUB", Some(topic), _, _) => Ok(Command::Unsub { topic }),
        ("PUB", Some(topic), Some(msg), _) => Ok(Command::Pub { topic, msg }),
        ("PUBREC", Some(topic), _, Some(id)) => Ok(Command::Pubrec { id, topic }),
        ("PUBCOMP", Some(topic), _, Some(id)) => Ok(Command::Pubcomp { id, topic }),
        ("PUBREL", _, _, Some(id)) => Ok(Command::Pubrel { id }),
        _ => Err(Bad::Shape),
    }
}

/// `text` as a JSON string.
pub(super) fn quoted(text: &str) -> String {
    // A string cannot fail to be JSON.
    serde_json::to_string(text).unwrap_or_default()
}

pub(super) fn error(text: &str) -> String {
    format!("ERROR {}", quoted(text))
}

/// `{"msgId":N,"type":"KIND"}`
pub(super) fn answer(kind: &str, id: u64) -> String {
    format!("{{\"msgId\":{id},\"type\":\"{kind}\"}}")
}

/// A message for a consumer; `msg` is JSON.
pub(super) fn delivery(topic: &str, id: u64, msg: &str) -> String {
    format!("{{\"msg\":{msg},\"msgId\":{id},\"topic\":{},\"type\":\"PUB\"}}", quoted(topic))
}

/// The name of `log NAME`. The whole line counts in lower case.
pub(super) fn login(line: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(line).ok()?.to_lowercase();
    let mut words = text.split_whitespace();
    let (Some("log"), Some(name), None) = (words.next(), words.next(), words.next()) else { return None };
    let plain = name.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | '@'));
    (plain && name.len() <= 64).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_need_their_fields_and_no_more() {
        let ok = |line: &str| parse(line.as_bytes()).is_ok();
        assert!(ok(r#"{"type":"SUB","topic":"t","extra":[1,{"a":null}]}"#));
        assert!(ok(r#" {"topic":"\u0074","type":"UNSUB"} "#));
        assert!(ok(r#"{"type":"PUB","topic":"t","msg":null}"#));
        assert!(ok(r#"{"type":"PUBREC","msgId":18446744073709551615,"topic":"t"}"#));
        for line in [
            r#"{"type":"sub","topic":"t"}"#,
            r#"{"type":"SUB","topic":7}"#,
            r#"{"type":"SUB"}"#,
            r#"{"type":"PUB","topic":"t"}"#,
            r#"{"type":"PUBREL","msgId":"1"}"#,
            r#"{"type":"PUBREL","msgId":-1}"#,
            r#"{"type":"PUBREL","msgId":1.0}"#,
            r#"{"type":"PUBREC","msgId":1}"#,
            r#"{"type":"PUB","type":"SUB","topic":"t","msg":1}"#,
            "{}",
            "[]",
            "17",
        ] {
            assert_eq!(parse(line.as_bytes()).unwrap_err(), Bad::Shape, "{line}");
        }
        for line in [&b""[..], b"hello", b"{", b"{\"type\":\"SUB\",\"topic\":\"\xff\"}", b"log amy", b"{}{}"]
        {
            assert_eq!(parse(line).unwrap_err(), Bad::Json);
        }
        assert_eq!(parse("[".repeat(100_000).as_bytes()).unwrap_err(), Bad::Json);
    }

    #[test]
    fn a_login_is_two_words() {
        assert_eq!(login(b"log Amy").as_deref(), Some("amy"));
        assert_eq!(login(b"  LOG   amy ").as_deref(), Some("amy"));
        for line in [&b"log"[..], b"log a b", b"login amy", b"", b"log a/b", b"log +", b"log \xff", b"log $x"]
        {
            assert_eq!(login(line), None);
        }
        assert_eq!(login(format!("log {}", "a".repeat(65)).as_bytes()), None);
    }
}

//! Commands to bytes. Nothing that would break the framing of the connection can be encoded.

use std::fmt::Write as _;
use std::ops::RangeInclusive;
use std::time::{Duration, SystemTime};

use bytes::BytesMut;

use super::error::{ClientError, ErrorKind};

/// Which events of a topic a command is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target<'a> {
    /// The event with this number.
    Seq(u64),
    /// Every event in flight on this connection from the first number to the second, both included.
    Range(u64, u64),
    /// The event whose `id` reads so (`17` is both `"id":17` and `"id":"17"`).
    Id(&'a str),
}

impl From<u64> for Target<'_> {
    fn from(seq: u64) -> Self {
        Self::Seq(seq)
    }
}

impl From<RangeInclusive<u64>> for Target<'_> {
    fn from(range: RangeInclusive<u64>) -> Self {
        Self::Range(*range.start(), *range.end())
    }
}

impl<'a> From<&'a str> for Target<'a> {
    fn from(id: &'a str) -> Self {
        Self::Id(id)
    }
}

/// Where a new subscription starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum StartAt {
    /// After the newest event.
    #[default]
    New,
    /// At the oldest event kept.
    First,
    /// At the newest event.
    Last,
    /// At this number.
    Seq(u64),
    /// At this time.
    Time(SystemTime),
    /// That long ago, by the server's clock.
    Ago(Duration),
}

/// A subscription, as `sub` takes it. `..Default::default()` gives the defaults of the protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscribeOptions {
    /// Topic or filter: `*` is one level, a last `>` one or more.
    pub filter: String,
    /// Survives the connection under this name: 1 to 100 letters, digits, `-`, `_`, `.`, `:`.
    pub name: Option<String>,
    /// Shared among connections; otherwise exclusive. Only with a name.
    pub group: bool,
    /// Where a subscription that does not exist yet starts.
    pub from: StartAt,
    /// Events held un-acked at once, 1 to 65536. At most that many are buffered in this process, each at most
    /// [`ClientOptions::max_reply`](super::ClientOptions::max_reply) bytes.
    pub prefetch: u32,
    /// An un-acked event comes back after this, 10 ms to 24 h. `None`: as stored with the name, else 30 s.
    pub ack_wait: Option<Duration>,
    /// After so many deliveries an event is a dead letter; 0: never. `None`: as stored with the name, else never.
    pub max_deliveries: Option<u32>,
    /// How long an event waits before delivery 2, 3, …; the last one repeats. Empty: as stored with the name, else at
    /// once.
    pub backoff: Vec<Duration>,
}

impl Default for SubscribeOptions {
    fn default() -> Self {
        Self {
            filter: String::new(),
            name: None,
            group: false,
            from: StartAt::New,
            prefetch: 1,
            ack_wait: None,
            max_deliveries: None,
            backoff: Vec::new(),
        }
    }
}

/// RFC 3339 has no time after the year 9999; a start there is after everything. Since 1970.
pub(crate) const LAST_TIME_MILLIS: u64 = 253_402_300_799_000;

/// A topic: levels separated by `/`, no wildcards.
///
/// # Errors
/// [`ErrorKind::BadTopic`].
pub(super) fn check_topic(topic: &str) -> Result<(), ClientError> {
    check_filter(topic)?;
    if topic.contains(['*', '>']) {
        return Err(bad_topic(topic, "a topic has no `*` or `>`"));
    }
    Ok(())
}

/// A topic that may have wildcards.
pub(super) fn check_filter(filter: &str) -> Result<(), ClientError> {
    // The prefix of the dead letters does not count, so that every topic can have some.
    if filter.is_empty() || filter.strip_prefix("$dead/").unwrap_or(filter).len() > 255 {
        return Err(bad_topic(filter, "1 to 255 bytes"));
    }
    if filter.contains(|c: char| c.is_control() || c.is_whitespace() || c == '\\') {
        return Err(bad_topic(filter, "no spaces, control characters or `\\`"));
    }
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        let ok = match level {
            "" | "." | ".." => false,
            "*" => true,
            ">" => levels.peek().is_none(),
            _ => !level.contains(['*', '>']),
        };
        if !ok {
            return Err(bad_topic(
                filter,
                "a level is not empty, `.`, `..`; `*` is a whole level, `>` the last one",
            ));
        }
    }
    Ok(())
}

/// The name of a subscription.
pub(super) fn check_name(name: &str) -> Result<(), ClientError> {
    let ok = (1..=100).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':'));
    if ok {
        return Ok(());
    }
    Err(ClientError::new(
        ErrorKind::BadArgs,
        format!("the name {name:?} is not 1 to 100 letters, digits, `-`, `_`, `.`, `:`"),
    ))
}

fn bad_topic(topic: &str, rule: &str) -> ClientError {
    let shown: String = topic.chars().take(80).collect();
    ClientError::new(ErrorKind::BadTopic, format!("{shown:?}: {rule}"))
}

/// Can one topic match both filters? Events name their topic, not the subscription, so a connection keeps its
/// subscriptions apart.
pub(super) fn overlap(a: &str, b: &str) -> bool {
    let (mut a, mut b) = (a.split('/'), b.split('/'));
    let mut first = true;
    loop {
        match (a.next(), b.next()) {
            (None, None) => return true,
            (None, _) | (_, None) => return false,
            (Some(x), Some(y)) => {
                let wild = |level: &str| level == "*" || level == ">";
                // A wildcard in the first level does not match topics starting with `$`.
                if first && (wild(x) && y.starts_with('$') || wild(y) && x.starts_with('$')) {
                    return false;
                }
                if x == ">" || y == ">" {
                    return true;
                }
                if x != y && x != "*" && y != "*" {
                    return false;
                }
            }
        }
        first = false;
    }
}

/// Does the filter match the topic?
pub(super) fn matches(filter: &str, topic: &str) -> bool {
    // A topic is a filter without wildcards.
    overlap(filter, topic)
}

/// A duration of the protocol, rounded up to a millisecond.
fn put_duration(out: &mut String, d: Duration) {
    let ms = d.as_nanos().div_ceil(1_000_000);
    let _ = match ms {
        0 => out.write_str("0"),
        ms if ms % 1000 == 0 => write!(out, "{}s", ms / 1000),
        ms => write!(out, "{ms}ms"),
    };
}

pub(super) fn publish(out: &mut BytesMut, topic: &str, json: &[u8]) {
    out.reserve(topic.len() + json.len() + 6);
    out.extend_from_slice(b"pub ");
    out.extend_from_slice(topic.as_bytes());
    out.extend_from_slice(b" ");
    out.extend_from_slice(json);
    out.extend_from_slice(b"\n");
}

/// One line of JSON that `pub` can carry verbatim. Whether it is JSON is for the server to say.
pub(super) fn check_json(topic: &str, json: &[u8], max_line: usize) -> Result<(), ClientError> {
    if json.is_empty() {
        return Err(ClientError::new(ErrorKind::BadEvent, "an event is one JSON object"));
    }
    if memchr::memchr2(b'\n', b'\r', json).is_some() {
        return Err(ClientError::new(
            ErrorKind::BadEvent,
            "an event is one line: write its JSON without line breaks",
        ));
    }
    let line = topic.len() + json.len() + "pub  ".len();
    if line > max_line {
        return Err(ClientError::new(
            ErrorKind::TooLong,
            format!("{line} bytes; the server takes {max_line} in a line"),
        ));
    }
    Ok(())
}

pub(super) fn publish_bulk(out: &mut BytesMut, topic: &str, lines: &[u8], count: u64) {
    out.reserve(topic.len() + lines.len() + 50);
    out.extend_from_slice(b"pubn ");
    out.extend_from_slice(topic.as_bytes());
    out.extend_from_slice(b" ");
    out.extend_from_slice(itoa::Buffer::new().format(count).as_bytes());
    out.extend_from_slice(b" ");
    out.extend_from_slice(itoa::Buffer::new().format(lines.len()).as_bytes());
    out.extend_from_slice(b"\n");
    out.extend_from_slice(lines);
}

/// `sub …` without its end.
pub(super) fn subscribe(o: &SubscribeOptions) -> Result<String, ClientError> {
    check_filter(&o.filter)?;
    let mut line = format!("sub {}", o.filter);
    if let Some(name) = &o.name {
        check_name(name)?;
        let _ = write!(line, " as {name}");
    } else if o.group {
        return Err(ClientError::new(ErrorKind::BadArgs, "a shared subscription (group) needs a name"));
    }
    let _ = write!(line, " prefetch={} from=", o.prefetch);
    match o.from {
        StartAt::New => line.push_str("new"),
        StartAt::First => line.push_str("first"),
        StartAt::Last => line.push_str("last"),
        StartAt::Seq(seq) => {
            let _ = write!(line, "@{seq}");
        }
        StartAt::Time(at) => {
            let last = SystemTime::UNIX_EPOCH + Duration::from_millis(LAST_TIME_MILLIS);
            let _ =
                write!(line, "{}", humantime::format_rfc3339_nanos(at.clamp(SystemTime::UNIX_EPOCH, last)));
        }
        StartAt::Ago(d) => put_duration(&mut line, d),
    }
    if let Some(wait) = o.ack_wait {
        line.push_str(" ack_wait=");
        put_duration(&mut line, wait);
    }
    if let Some(max) = o.max_deliveries {
        let _ = write!(line, " max_deliveries={max}");
    }
    for (i, d) in o.backoff.iter().enumerate() {
        line.push_str(if i == 0 { " backoff=" } else { "," });
        put_duration(&mut line, *d);
    }
    if o.group {
        line.push_str(" group");
    }
    Ok(line)
}

/// `VERB TOPIC TARGET`, without its end.
pub(super) fn settle(verb: &str, topic: &str, target: Target<'_>) -> Result<String, ClientError> {
    check_topic(topic)?;
    let mut line = String::with_capacity(verb.len() + topic.len() + 24);
    line.push_str(verb);
    line.push(' ');
    line.push_str(topic);
    line.push(' ');
    match target {
        Target::Seq(seq) => {
            let _ = write!(line, "@{seq}");
        }
        Target::Range(first, last) => {
            let _ = write!(line, "@{first}-@{last}");
        }
        Target::Id(id) => put_id(&mut line, id),
    }
    Ok(line)
}

/// An id as a bare word where it can be, else as a JSON string.
fn put_id(line: &mut String, id: &str) {
    let bare = !id.is_empty()
        && !id.starts_with(['@', '"'])
        && !id.contains(|c: char| c.is_control() || c.is_whitespace());
    if bare {
        line.push_str(id);
    } else {
        // A JSON string has no raw control characters, so it is one line.
        line.push_str(&serde_json::Value::from(id).to_string());
    }
}

pub(super) fn put_delay(line: &mut String, delay: Option<Duration>) {
    if let Some(delay) = delay {
        line.push_str(" delay=");
        put_duration(line, delay);
    }
}

/// The most of a reason that is sent, in bytes.
const MAX_REASON: usize = 1024;

/// A reason is for people: line breaks become spaces, and what is over the limit is cut.
pub(super) fn put_reason(line: &mut String, reason: &str) {
    if reason.is_empty() {
        return;
    }
    line.push_str(" reason=");
    let from = line.len();
    for c in reason.chars() {
        if line.len() - from + c.len_utf8() > MAX_REASON {
            break;
        }
        line.push(if c.is_control() { ' ' } else { c });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_subscription_with_everything() {
        let line = subscribe(&SubscribeOptions {
            filter: "orders/>".into(),
            name: Some("billing".into()),
            group: true,
            from: StartAt::Seq(17),
            prefetch: 100,
            ack_wait: Some(Duration::from_millis(1500)),
            max_deliveries: Some(5),
            backoff: vec![Duration::from_secs(1), Duration::from_micros(1), Duration::ZERO],
        });
        assert_eq!(
            line.unwrap(),
            "sub orders/> as billing prefetch=100 from=@17 ack_wait=1500ms max_deliveries=5 backoff=1s,1ms,0 group"
        );
        let plain = SubscribeOptions { filter: "a".into(), ..Default::default() };
        assert_eq!(subscribe(&plain).unwrap(), "sub a prefetch=1 from=new");
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1500);
        let timed = SubscribeOptions { from: StartAt::Time(at), ..plain.clone() };
        assert!(subscribe(&timed).unwrap().contains("from=1970-01-01T00:00:01.500000000Z"));
        assert_eq!(
            subscribe(&SubscribeOptions { group: true, ..plain }).unwrap_err().kind(),
            ErrorKind::BadArgs
        );
    }

    #[test]
    fn targets() {
        assert_eq!(settle("ack", "a", 3.into()).unwrap(), "ack a @3");
        assert_eq!(settle("ack", "a", (3..=9).into()).unwrap(), "ack a @3-@9");
        assert_eq!(settle("ack", "a", "a1".into()).unwrap(), "ack a a1");
        assert_eq!(settle("ack", "a", "x y".into()).unwrap(), r#"ack a "x y""#);
        assert_eq!(settle("ack", "a", "@3".into()).unwrap(), r#"ack a "@3""#);
        assert_eq!(settle("ack", "a", "\"".into()).unwrap(), r#"ack a "\"""#);
        assert_eq!(settle("ack", "a", "1\nquit".into()).unwrap(), r#"ack a "1\nquit""#);
        assert_eq!(settle("ack", "a", "".into()).unwrap(), r#"ack a """#);
        assert_eq!(settle("ack", "a\nquit", 3.into()).unwrap_err().kind(), ErrorKind::BadTopic);
    }

    #[test]
    fn filters_that_can_meet() {
        for (a, b, meet) in [
            ("a", "a", true),
            ("a", "b", false),
            ("a/*", "*/b", true),
            ("a/*", "a", false),
            (">", "a/b/c", true),
            (">", "$dead/a", false),
            ("*/a", "$dead/a", false),
            ("*/a", "$dead/>", false),
            ("$dead/>", "$dead/*", true),
            ("a/>", "a", false),
            ("a/>", "*/*/c", true),
            ("a/b/c", "a/*/d", false),
        ] {
            assert_eq!(overlap(a, b), meet, "{a} {b}");
            assert_eq!(overlap(b, a), meet, "{b} {a}");
        }
    }

    proptest! {
        #[test]
        fn a_topic_of_both_filters_means_they_overlap(
            a in prop::collection::vec("[ab*]", 1..4), b in prop::collection::vec("[ab*]", 1..4),
            tails in any::<(bool, bool)>(), topic in prop::collection::vec("[ab]", 1..5),
        ) {
            let filter = |levels: Vec<String>, tail: bool| levels.join("/") + if tail { "/>" } else { "" };
            let (a, b, topic) = (filter(a, tails.0), filter(b, tails.1), topic.join("/"));
            if matches(&a, &topic) && matches(&b, &topic) {
                prop_assert!(overlap(&a, &b));
            }
        }

        #[test]
        fn nothing_encodes_to_two_lines(topic in ".{0,20}", id in "(?s).{0,20}", reason in "(?s).{0,2000}") {
            if let Ok(mut line) = settle("nack", &topic, Target::Id(&id)) {
                put_reason(&mut line, &reason);
                prop_assert!(!line.contains(['\n', '\r']));
                prop_assert!(line.len() < 1500);
            }
        }

        #[test]
        fn durations_are_never_shortened(ns in 0u64..10_000_000_000) {
            let mut text = String::new();
            put_duration(&mut text, Duration::from_nanos(ns));
            let back = humantime::parse_duration(&text).unwrap();
            let over = back.checked_sub(Duration::from_nanos(ns)).expect("not shortened");
            prop_assert!(over < Duration::from_millis(1));
        }
    }

    #[test]
    fn names_of_topics() {
        for bad in ["", "/", "a//b", "a/", "..", "a/./b", "a b", "a\\b", "a\u{7}", "a/*b", ">", "*"] {
            assert!(check_topic(bad).is_err(), "{bad:?}");
        }
        assert!(check_topic(&"x".repeat(256)).is_err());
        for bad in [">/a", "a/b>", "**"] {
            assert!(check_filter(bad).is_err(), "{bad:?}");
        }
        for good in [">", "*", "a/*/b/>", "$dead/a"] {
            check_filter(good).unwrap();
        }
    }
}

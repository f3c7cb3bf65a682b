//! A message inside the broker, and how it stands in the log.
//!
//! In the log it is a `pub` record: its topic is the subject, its payload stands as JSON, text or base64, whichever it
//! is, and everything else is in the headers object; see `docs/mqtt-log.md`.

use crate::codec::{PacketId, PublishProperties, Qos, Utf8};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use postroad_core::mailbox::Millis;
use postroad_engine::log::{Append, Event, PayloadKind, Publish};
use serde::{Deserialize, Serialize};

/// An application message. Its payload is shared by all deliveries.
#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) topic: Utf8,
    pub(super) payload: Bytes,
    pub(super) qos: Qos,
    pub(super) retain: bool,
    /// When it was published.
    pub(super) time: Millis,
    /// Not delivered after this time. [MQTT-3.3.2-5]
    pub(super) expires: Option<Millis>,
    pub(super) properties: Option<Box<PublishProperties>>,
}

impl Message {
    /// Memory it takes, about.
    pub(super) fn size(&self) -> usize {
        size_of::<Self>()
            + self.topic.len()
            + self.payload.len()
            + self.properties.as_ref().map_or(0, |_| 256)
    }

    /// Seconds that it is still of use. [MQTT-3.3.2-6]
    pub(super) fn remaining(&self, now: Millis) -> Option<u32> {
        self.expires.map(|at| u32::try_from(at.saturating_sub(now).div_ceil(1000)).unwrap_or(u32::MAX))
    }

    pub(super) fn is_expired(&self, now: Millis) -> bool {
        self.expires.is_some_and(|at| at <= now)
    }

    /// The same in memory of its own, not in that of a receive buffer.
    pub(super) fn detach(&mut self) {
        let mut bytes = Vec::with_capacity(self.topic.len() + self.payload.len());
        bytes.extend_from_slice(self.topic.as_bytes());
        bytes.extend_from_slice(&self.payload);
        let whole = Bytes::from(bytes);
        let topic = whole.slice(..self.topic.len());
        self.payload = whole.slice(self.topic.len()..);
        if let Ok(topic) = Utf8::try_from(topic) {
            self.topic = topic;
        }
    }
}

/// Where a message comes from and where it goes beside its subscribers: the other half of its one record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Origin {
    /// The durable session that published it.
    pub(super) session: Option<u64>,
    /// The packet id to be remembered for that session, at QoS 2.
    pub(super) packet: Option<PacketId>,
    /// The session whose will it is; it has none any more then.
    pub(super) will_of: Option<u64>,
    /// Members of shared subscriptions that were chosen: their durable sessions.
    pub(super) chosen: Vec<Chosen>,
    /// Its part in an exchange of a door whose publishers release what they publish.
    pub(super) held: Option<Held>,
    /// It is a copy of an older message, so that the segment which has that one can go: it goes to nobody.
    pub(super) copy_of: Option<u64>,
    /// Sessions and work queues that had no room for it, with the numbers of the letters of that; 0: there is none.
    pub(super) refused: Vec<(u64, u64)>,
    /// It is about a dead letter.
    pub(super) letter: Option<Told>,
    /// It goes to nobody, and this is its letter: number, client, reason.
    pub(super) stillborn: Option<(u64, Box<str>, Box<str>)>,
    /// It was a dead letter with this id, and is published again.
    pub(super) again: Option<Box<str>>,
}

/// What a message does to the dead letter that it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// Subscribers were told of it.
    Announced(u64),
    /// This message is it: it is stored.
    Stored(u64),
}

/// A message that is delivered when its publisher releases it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// It is kept in the queue of `Origin::session` and goes to nobody.
    Kept,
    /// It was kept under this number; that it is published and that it is kept no more is one record.
    Released(u64),
}

/// A choice among the members of a shared subscription: session, group, filter.
pub(super) type Chosen = (u64, Box<str>, Box<str>);

/// The headers object of a `pub` record.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Head<'a> {
    #[serde(default, skip_serializing_if = "is_zero")]
    q: u8,
    #[serde(default, skip_serializing_if = "is_zero")]
    r: u8,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    f: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    p: Option<PacketId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    w: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    x: Option<Millis>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    g: Vec<Chosen>,
    /// The number of which this is a copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    o: Option<u64>,
    /// 0: held; else the number under which it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    h: Option<u64>,
    /// Queues that had no room, and letters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    d: Vec<(u64, u64)>,
    /// The letter that it announces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    l: Option<u64>,
    /// The letter that it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ls: Option<u64>,
    /// The letter of a message that goes to nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    b: Option<(u64, Box<str>, Box<str>)>,
    /// The id of the letter that it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    k: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none", borrow)]
    v: Option<Properties<'a>>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(value: &u8) -> bool {
    *value == 0
}

/// The properties of a message, in JSON.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Properties<'a> {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    utf8: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none", borrow)]
    content_type: Option<std::borrow::Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none", borrow)]
    response_topic: Option<std::borrow::Cow<'a, str>>,
    /// Base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    correlation: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty", borrow)]
    user: Vec<(std::borrow::Cow<'a, str>, std::borrow::Cow<'a, str>)>,
}

impl<'a> Properties<'a> {
    fn of(from: &'a PublishProperties) -> Option<Self> {
        let properties = Self {
            utf8: from.payload_format_indicator,
            content_type: from.content_type.as_deref().map(Into::into),
            response_topic: from.response_topic.as_deref().map(Into::into),
            correlation: from.correlation_data.as_ref().map(|data| BASE64.encode(data)),
            user: from.user_properties.iter().map(|(k, v)| (k.as_str().into(), v.as_str().into())).collect(),
        };
        let bare = properties.utf8.is_none()
            && properties.content_type.is_none()
            && properties.response_topic.is_none()
            && properties.correlation.is_none()
            && properties.user.is_empty();
        (!bare).then_some(properties)
    }

    fn read(self) -> Option<PublishProperties> {
        let text = |text: std::borrow::Cow<'_, str>| Utf8::try_from(text.into_owned()).ok();
        let user = self.user.into_iter().map(|(k, v)| Some((text(k)?, text(v)?)));
        Some(PublishProperties {
            payload_format_indicator: self.utf8,
            content_type: match self.content_type {
                Some(value) => Some(text(value)?),
                None => None,
            },
            response_topic: match self.response_topic {
                Some(value) => Some(text(value)?),
                None => None,
            },
            correlation_data: match self.correlation {
                Some(data) => Some(BASE64.decode(data).ok()?.into()),
                None => None,
            },
            user_properties: user.collect::<Option<_>>()?,
            ..PublishProperties::default()
        })
    }
}

/// The headers object of a message without an origin.
pub(super) fn head_json(message: &Message) -> Option<Box<serde_json::value::RawValue>> {
    let mut out = Vec::new();
    write_head(&mut out, message, &Origin::default());
    serde_json::value::RawValue::from_string(String::from_utf8(out).ok()?).ok()
}

/// The message of a topic, a payload and a headers object.
pub(super) fn with_head(topic: Utf8, payload: Bytes, head: Option<&str>) -> Option<Message> {
    let head: Head<'_> = match head {
        Some(head) => serde_json::from_str(head).ok()?,
        None => Head::default(),
    };
    let properties = match head.v {
        Some(properties) => Some(Box::new(properties.read()?)),
        None => None,
    };
    let (qos, retain) = (Qos::from_u8(head.q)?, head.r != 0);
    Some(Message { topic, payload, qos, retain, time: 0, expires: head.x, properties })
}

/// Reused memory for writing records.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    head: Vec<u8>,
    payload: Vec<u8>,
}

/// Writes the one record of a message; says its number in the log.
pub(super) fn append(log: &mut dyn Append, scratch: &mut Scratch, message: &Message, origin: &Origin) -> u64 {
    scratch.head.clear();
    scratch.payload.clear();
    write_head(&mut scratch.head, message, origin);
    let (kind, copied) = write_payload(&mut scratch.payload, &message.payload);
    log.publish(&Publish {
        priority: 0,
        id: None,
        subject: Some(&message.topic),
        headers: (scratch.head.len() > 2).then_some(&scratch.head),
        kind,
        payload: if copied { &scratch.payload } else { &message.payload },
    })
}

fn write_head(out: &mut Vec<u8>, message: &Message, origin: &Origin) {
    let properties = message.properties.as_deref().and_then(Properties::of);
    let head = Head {
        q: message.qos as u8,
        r: u8::from(message.retain),
        f: origin.session,
        p: origin.packet,
        w: origin.will_of,
        x: message.expires,
        g: origin.chosen.clone(),
        o: origin.copy_of,
        h: origin.held.map(|held| match held {
            Held::Kept => 0,
            Held::Released(number) => number,
        }),
        d: origin.refused.clone(),
        l: match origin.letter {
            Some(Told::Announced(letter)) => Some(letter),
            _ => None,
        },
        ls: match origin.letter {
            Some(Told::Stored(letter)) => Some(letter),
            _ => None,
        },
        b: origin.stillborn.clone(),
        k: origin.again.clone(),
        v: properties,
    };
    // Writing to memory cannot fail.
    let _ = serde_json::to_writer(out, &head);
}

/// The properties of a dead letter as JSON, for who publishes it again.
pub fn letter_properties(properties: &PublishProperties) -> Option<Box<serde_json::value::RawValue>> {
    serde_json::value::to_raw_value(&Properties::of(properties)?).ok()
}

/// The properties that [`letter_properties`] wrote; `None`: something else wrote that.
pub fn post_properties(json: &str) -> Option<PublishProperties> {
    serde_json::from_str::<Properties<'_>>(json).ok()?.read()
}

/// The payload that [`letter_payload`] wrote; `None`: something else wrote that.
pub fn post_payload(kind: PayloadKind, written: &Bytes) -> Option<Bytes> {
    Some(match kind {
        PayloadKind::Json => written.clone(),
        PayloadKind::Text => serde_json::from_slice::<String>(written).ok()?.into(),
        PayloadKind::Binary => BASE64.decode(written).ok()?.into(),
    })
}

/// A payload as a record of the log has it, for the dead letters of other doors.
pub fn letter_payload(payload: &[u8]) -> (PayloadKind, std::borrow::Cow<'_, [u8]>) {
    let mut out = Vec::new();
    match write_payload(&mut out, payload) {
        (kind, true) => (kind, out.into()),
        (kind, false) => (kind, payload.into()),
    }
}

/// True if the payload was written to `out`; else it stands as it is.
fn write_payload(out: &mut Vec<u8>, payload: &[u8]) -> (PayloadKind, bool) {
    if is_one_line_of_json(payload) {
        return (PayloadKind::Json, false);
    }
    if let Ok(text) = std::str::from_utf8(payload) {
        if text.bytes().all(|b| b >= 0x20 && b != b'"' && b != b'\\') {
            out.reserve(text.len() + 2);
            out.push(b'"');
            out.extend_from_slice(payload);
            out.push(b'"');
        } else {
            let _ = serde_json::to_writer(out, text);
        }
        return (PayloadKind::Text, true);
    }
    out.resize(payload.len().div_ceil(3) * 4, 0);
    let written = BASE64.encode_slice(payload, out).unwrap_or(0);
    out.truncate(written);
    (PayloadKind::Binary, true)
}

/// An object or an array that can stand in a line as it is.
fn is_one_line_of_json(payload: &[u8]) -> bool {
    let closed =
        matches!((payload.first(), payload.last()), (Some(b'{'), Some(b'}')) | (Some(b'['), Some(b']')));
    closed
        && memchr::memchr2(b'\n', b'\r', payload).is_none()
        && serde_json::from_slice::<serde::de::IgnoredAny>(payload).is_ok()
}

/// The message of a record of the log, and the rest that it says; `None` if it is none of ours.
pub(super) fn read(event: &Event) -> Option<(Message, Origin)> {
    let topic: String = serde_json::from_slice(event.subject.as_deref()?).ok()?;
    let head: Head<'_> = match event.headers.as_deref() {
        Some(headers) => serde_json::from_slice(headers).ok()?,
        None => Head::default(),
    };
    let payload = post_payload(event.kind, &event.payload)?;
    let properties = match head.v {
        Some(properties) => Some(Box::new(properties.read()?)),
        None => None,
    };
    let message = Message {
        topic: Utf8::try_from(topic).ok()?,
        payload,
        qos: Qos::from_u8(head.q)?,
        retain: head.r != 0,
        time: event.time,
        expires: head.x,
        properties,
    };
    let held = head.h.map(|number| if number == 0 { Held::Kept } else { Held::Released(number) });
    let origin = Origin {
        session: head.f,
        packet: head.p,
        will_of: head.w,
        chosen: head.g,
        held,
        copy_of: head.o,
        refused: head.d,
        letter: head.l.map(Told::Announced).or_else(|| head.ls.map(Told::Stored)),
        stillborn: head.b,
        again: head.k,
    };
    Some((message, origin))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Default)]
    struct One(Option<Event>);

    impl Append for One {
        fn publish(&mut self, publish: &Publish<'_>) -> u64 {
            let copy = |bytes: &[u8]| Bytes::copy_from_slice(bytes);
            self.0 = Some(Event {
                seq: 1,
                time: 77,
                priority: 0,
                id: None,
                subject: publish.subject.map(|s| serde_json::to_vec(s).unwrap().into()),
                headers: publish.headers.map(copy),
                kind: publish.kind,
                payload: copy(publish.payload),
            });
            1
        }

        fn record(&mut self, _: &str, _: &[u8]) {}
    }

    fn round_trip(message: &Message, origin: &Origin) -> (Message, Origin) {
        let mut log = One::default();
        append(&mut log, &mut Scratch::default(), message, origin);
        let event = log.0.unwrap();
        assert!(memchr::memchr2(b'\n', b'\r', &event.payload).is_none());
        read(&event).unwrap()
    }

    fn message(topic: &str, payload: Vec<u8>) -> Message {
        Message {
            topic: Utf8::try_from(topic.to_owned()).unwrap(),
            payload: payload.into(),
            qos: Qos::ExactlyOnce,
            retain: true,
            time: 77,
            expires: Some(99),
            properties: None,
        }
    }

    proptest! {
        #[test]
        fn a_message_comes_back_from_the_log_as_it_was(
            payload in prop_oneof![
                any::<Vec<u8>>(),
                any::<String>().prop_map(String::into_bytes),
                "\\{\"a\":[0-9]{1,5}\\}".prop_map(String::into_bytes),
                "\\[[ \n]?[0-9]{1,5}\\]".prop_map(String::into_bytes),
            ],
            topic in "[^\u{0}+#]{1,20}",
            user in proptest::collection::vec(("[^\u{0}]{0,5}", "[^\u{0}]{0,5}"), 0..3),
            correlation in proptest::option::of(any::<Vec<u8>>()),
            held in proptest::option::of(0..3u64),
            refused in proptest::collection::vec(any::<(u64, u64)>(), 0..3),
        ) {
            let mut message = message(&topic, payload);
            let user: Vec<_> = user.into_iter()
                .map(|(k, v)| (Utf8::try_from(k).unwrap(), Utf8::try_from(v).unwrap()))
                .collect();
            message.properties = Some(Box::new(PublishProperties {
                user_properties: user,
                correlation_data: correlation.map(Bytes::from),
                ..PublishProperties::default()
            }));
            let origin = Origin {
                session: Some(4),
                packet: PacketId::new(7),
                will_of: None,
                chosen: vec![(9, "group".into(), "a/#".into())],
                held: held.map(|n| if n == 0 { Held::Kept } else { Held::Released(n) }),
                copy_of: None,
                refused: refused.clone(),
                letter: refused.first().map(|(_, n)| if n % 2 == 0 { Told::Stored(*n) } else { Told::Announced(*n) }),
                stillborn: refused.first().map(|(n, _)| (*n, "client".into(), "why \"so\"".into())),
                again: refused.first().map(|(n, _)| format!("mqtt-{n}").into()),
            };
            let (back, from) = round_trip(&message, &origin);
            prop_assert_eq!(&back.payload, &message.payload);
            prop_assert_eq!(&back.topic, &message.topic);
            prop_assert_eq!(back.qos, message.qos);
            prop_assert!(back.retain);
            prop_assert_eq!(back.expires, message.expires);
            prop_assert_eq!(back.properties.unwrap_or_default(), message.properties.unwrap());
            prop_assert_eq!(from, origin);
        }
    }

    #[test]
    fn json_stands_in_the_log_as_it_is() {
        assert_eq!(write_payload(&mut Vec::new(), br#"{"a":1}"#), (PayloadKind::Json, false));
        assert_eq!(write_payload(&mut Vec::new(), b"{\"a\":\n1}"), (PayloadKind::Text, true));
        assert_eq!(write_payload(&mut Vec::new(), b"{a}"), (PayloadKind::Text, true));
        assert_eq!(write_payload(&mut Vec::new(), b"17"), (PayloadKind::Text, true));
        assert_eq!(write_payload(&mut Vec::new(), &[0xff]), (PayloadKind::Binary, true));
    }
}

//! MQTT 3.1.1 and 5.0 on the wire, written from the specifications alone: packets of clients to bytes, packets
//! of servers from bytes. A server that sends what a server must not send fails the test that reads it.

/// The protocol version, by its level in CONNECT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Version {
    /// 3.1.1
    V3 = 4,
    /// 5.0
    V5 = 5,
}

/// Property identifiers (5.0, 2.2.2.2).
pub(crate) mod prop {
    pub(crate) const PAYLOAD_FORMAT: u8 = 0x01;
    pub(crate) const MESSAGE_EXPIRY: u8 = 0x02;
    pub(crate) const CONTENT_TYPE: u8 = 0x03;
    pub(crate) const RESPONSE_TOPIC: u8 = 0x08;
    pub(crate) const CORRELATION: u8 = 0x09;
    pub(crate) const SUBSCRIPTION_ID: u8 = 0x0B;
    pub(crate) const SESSION_EXPIRY: u8 = 0x11;
    pub(crate) const ASSIGNED_ID: u8 = 0x12;
    pub(crate) const SERVER_KEEP_ALIVE: u8 = 0x13;
    pub(crate) const AUTH_METHOD: u8 = 0x15;
    pub(crate) const AUTH_DATA: u8 = 0x16;
    pub(crate) const WILL_DELAY: u8 = 0x18;
    pub(crate) const REQUEST_PROBLEM: u8 = 0x17;
    pub(crate) const RECEIVE_MAXIMUM: u8 = 0x21;
    pub(crate) const TOPIC_ALIAS_MAXIMUM: u8 = 0x22;
    pub(crate) const TOPIC_ALIAS: u8 = 0x23;
    pub(crate) const MAXIMUM_QOS: u8 = 0x24;
    pub(crate) const RETAIN_AVAILABLE: u8 = 0x25;
    pub(crate) const USER: u8 = 0x26;
    pub(crate) const MAXIMUM_PACKET: u8 = 0x27;
    pub(crate) const WILDCARD_AVAILABLE: u8 = 0x28;
    pub(crate) const IDS_AVAILABLE: u8 = 0x29;
    pub(crate) const SHARED_AVAILABLE: u8 = 0x2A;
}

/// The value of a property.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Value {
    Byte(u8),
    Two(u16),
    Four(u32),
    Var(u32),
    Text(String),
    Bytes(Vec<u8>),
    Pair(String, String),
}

/// Properties in their order.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Props(pub(crate) Vec<(u8, Value)>);

impl Props {
    pub(crate) fn with(mut self, id: u8, value: Value) -> Self {
        self.0.push((id, value));
        self
    }

    pub(crate) fn number(&self, id: u8) -> Option<u32> {
        self.0.iter().find(|(key, _)| *key == id).map(|(_, value)| match value {
            Value::Byte(value) => u32::from(*value),
            Value::Two(value) => u32::from(*value),
            Value::Four(value) | Value::Var(value) => *value,
            other => panic!("property {id:#04x} is {other:?}, not a number"),
        })
    }

    pub(crate) fn text(&self, id: u8) -> Option<&str> {
        self.0.iter().find(|(key, _)| *key == id).map(|(_, value)| match value {
            Value::Text(text) => text.as_str(),
            other => panic!("property {id:#04x} is {other:?}, not text"),
        })
    }

    pub(crate) fn bytes(&self, id: u8) -> Option<&[u8]> {
        self.0.iter().find(|(key, _)| *key == id).map(|(_, value)| match value {
            Value::Bytes(bytes) => bytes.as_slice(),
            other => panic!("property {id:#04x} is {other:?}, not bytes"),
        })
    }

    /// User properties, in their order.
    pub(crate) fn user(&self) -> Vec<(&str, &str)> {
        let pairs = self.0.iter().filter_map(|(_, value)| match value {
            Value::Pair(key, value) => Some((key.as_str(), value.as_str())),
            _ => None,
        });
        pairs.collect()
    }

    /// All subscription identifiers, sorted.
    pub(crate) fn subscription_ids(&self) -> Vec<u32> {
        let mut ids: Vec<u32> = self
            .0
            .iter()
            .filter_map(|(id, value)| match (id, value) {
                (&prop::SUBSCRIPTION_ID, Value::Var(value)) => Some(*value),
                _ => None,
            })
            .collect();
        ids.sort_unstable();
        ids
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        for (id, value) in &self.0 {
            body.push(*id);
            match value {
                Value::Byte(value) => body.push(*value),
                Value::Two(value) => body.extend(value.to_be_bytes()),
                Value::Four(value) => body.extend(value.to_be_bytes()),
                Value::Var(value) => body.extend(varint(*value)),
                Value::Text(text) => body.extend(string(text)),
                Value::Bytes(bytes) => body.extend(binary(bytes)),
                Value::Pair(key, value) => {
                    body.extend(string(key));
                    body.extend(string(value));
                }
            }
        }
        let mut out = varint(body.len() as u32);
        out.extend(body);
        out
    }
}

/// A variable byte integer.
pub(crate) fn varint(mut value: u32) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let byte = (value % 128) as u8;
        value /= 128;
        if value == 0 {
            out.push(byte);
            return out;
        }
        out.push(byte | 0x80);
    }
}

/// Bytes with their length before them.
pub(crate) fn binary(bytes: &[u8]) -> Vec<u8> {
    let mut out = (bytes.len() as u16).to_be_bytes().to_vec();
    out.extend(bytes);
    out
}

/// Text with its length before it.
pub(crate) fn string(text: &str) -> Vec<u8> {
    binary(text.as_bytes())
}

/// A packet: first byte, remaining length, the rest.
pub(crate) fn frame(first: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    out.extend(varint(body.len() as u32));
    out.extend(body);
    out
}

/// A message, in either direction.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Publish {
    pub(crate) dup: bool,
    pub(crate) qos: u8,
    pub(crate) retain: bool,
    pub(crate) topic: String,
    /// 0 at QoS 0.
    pub(crate) id: u16,
    pub(crate) props: Props,
    pub(crate) payload: Vec<u8>,
}

impl Publish {
    pub(crate) fn new(topic: &str, payload: impl AsRef<[u8]>, qos: u8) -> Self {
        Self { topic: topic.into(), payload: payload.as_ref().to_vec(), qos, ..Self::default() }
    }

    pub(crate) fn id(mut self, id: u16) -> Self {
        self.id = id;
        self
    }

    pub(crate) fn dup(mut self) -> Self {
        self.dup = true;
        self
    }

    pub(crate) fn retained(mut self) -> Self {
        self.retain = true;
        self
    }

    pub(crate) fn prop(mut self, id: u8, value: Value) -> Self {
        self.props = self.props.with(id, value);
        self
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.payload).expect("the tests send text")
    }

    pub(crate) fn encode(&self, version: Version) -> Vec<u8> {
        let mut body = string(&self.topic);
        if self.qos > 0 {
            body.extend(self.id.to_be_bytes());
        }
        if version == Version::V5 {
            body.extend(self.props.encode());
        }
        body.extend(&self.payload);
        frame(0x30 | u8::from(self.dup) << 3 | self.qos << 1 | u8::from(self.retain), &body)
    }
}

pub(crate) const PUBACK: u8 = 4;
pub(crate) const PUBREC: u8 = 5;
pub(crate) const PUBREL: u8 = 6;
pub(crate) const PUBCOMP: u8 = 7;

/// PUBACK, PUBREC, PUBREL or PUBCOMP.
pub(crate) fn ack(kind: u8, id: u16) -> Vec<u8> {
    frame(kind << 4 | if kind == PUBREL { 2 } else { 0 }, &id.to_be_bytes())
}

/// The same with a reason code, as 5.0 has it.
pub(crate) fn ack_with(kind: u8, id: u16, code: u8) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    frame(kind << 4 | if kind == PUBREL { 2 } else { 0 }, &[high, low, code])
}

/// What a server sends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Packet {
    Connack { present: bool, code: u8, props: Props },
    Publish(Publish),
    Ack { kind: u8, id: u16, code: u8 },
    Suback { id: u16, codes: Vec<u8> },
    Unsuback { id: u16, codes: Vec<u8> },
    Pingresp,
    Disconnect { code: u8, props: Props },
    Auth { code: u8, props: Props },
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        assert!(self.0.len() >= count, "the server sent a packet that ends too soon");
        let (head, tail) = self.0.split_at(count);
        self.0 = tail;
        head
    }

    fn byte(&mut self) -> u8 {
        self.take(1)[0]
    }

    fn two(&mut self) -> u16 {
        u16::from_be_bytes(self.take(2).try_into().expect("two"))
    }

    fn four(&mut self) -> u32 {
        u32::from_be_bytes(self.take(4).try_into().expect("four"))
    }

    fn var(&mut self) -> u32 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = self.byte();
            value |= u32::from(byte & 0x7F) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                return value;
            }
            assert!(shift < 28, "the server sent a variable byte integer of five bytes");
        }
    }

    fn bytes(&mut self) -> &'a [u8] {
        let count = self.two() as usize;
        self.take(count)
    }

    fn text(&mut self) -> String {
        let text = std::str::from_utf8(self.bytes()).expect("the server sent UTF-8");
        assert!(!text.contains('\0'), "[MQTT-1.5.4-2]: the server sent U+0000");
        text.to_owned()
    }

    fn props(&mut self, of: &str, allowed: &[u8]) -> Props {
        let length = self.var() as usize;
        let mut rest = Reader(self.take(length));
        let mut props = Props::default();
        while !rest.0.is_empty() {
            let id = rest.byte();
            assert!(allowed.contains(&id), "the server sent property {id:#04x} in {of}");
            let repeats = id == prop::USER || (id == prop::SUBSCRIPTION_ID && of == "PUBLISH");
            assert!(
                repeats || props.0.iter().all(|(key, _)| *key != id),
                "the server sent property {id:#04x} twice in {of}"
            );
            let value = match id {
                0x01 | 0x17 | 0x19 | 0x24 | 0x25 | 0x28..=0x2A => Value::Byte(rest.byte()),
                0x13 | 0x21..=0x23 => Value::Two(rest.two()),
                0x02 | 0x11 | 0x18 | 0x27 => Value::Four(rest.four()),
                0x0B => Value::Var(rest.var()),
                0x09 | 0x16 => Value::Bytes(rest.bytes().to_vec()),
                0x26 => Value::Pair(rest.text(), rest.text()),
                0x03 | 0x08 | 0x12 | 0x15 | 0x1A | 0x1C | 0x1F => Value::Text(rest.text()),
                other => panic!("the server sent property {other:#04x}, which is none"),
            };
            props = props.with(id, value);
        }
        props
    }
}

const CONNACK_PROPS: &[u8] =
    &[0x11, 0x21, 0x24, 0x25, 0x27, 0x12, 0x22, 0x1F, 0x26, 0x28, 0x29, 0x2A, 0x13, 0x1A, 0x1C, 0x15, 0x16];
const PUBLISH_PROPS: &[u8] = &[0x01, 0x02, 0x03, 0x08, 0x09, 0x0B, 0x23, 0x26];

/// Takes one packet off the front of `buffer`, if a whole one is there.
pub(crate) fn take(version: Version, buffer: &mut Vec<u8>) -> Option<Packet> {
    let (mut length, mut shift, mut at) = (0usize, 0, 1);
    loop {
        let byte = *buffer.get(at)?;
        length |= usize::from(byte & 0x7F) << shift;
        at += 1;
        if byte & 0x80 == 0 {
            break;
        }
        shift += 7;
        assert!(at < 5, "the server sent a remaining length of five bytes");
    }
    if buffer.len() < at + length {
        return None;
    }
    let packet = decode(version, buffer[0], &buffer[at..at + length]);
    buffer.drain(..at + length);
    Some(packet)
}

fn decode(version: Version, first: u8, body: &[u8]) -> Packet {
    let v5 = version == Version::V5;
    let mut body = Reader(body);
    let (kind, flags) = (first >> 4, first & 15);
    if kind != 3 {
        let wanted = if kind == PUBREL { 2 } else { 0 };
        assert_eq!(flags, wanted, "reserved flags of packet type {kind} [MQTT-2.1.3-1]");
    }
    let packet = match kind {
        2 => {
            let ack = body.byte();
            assert!(ack < 2, "reserved bits of CONNACK [MQTT-3.2.2-1]");
            let code = body.byte();
            let props = if v5 { body.props("CONNACK", CONNACK_PROPS) } else { Props::default() };
            // 3.2.2-4 / -6: what is refused has no session.
            assert!(code == 0 || ack == 0, "session present with a refusal [MQTT-3.2.2-6]");
            Packet::Connack { present: ack == 1, code, props }
        }
        3 => {
            let qos = flags >> 1 & 3;
            assert!(qos < 3, "QoS 3 [MQTT-3.3.1-4]");
            let dup = flags & 8 != 0;
            assert!(qos > 0 || !dup, "DUP at QoS 0 [MQTT-3.3.1-2]");
            let topic = body.text();
            assert!(!topic.contains(['+', '#']), "wildcard in a topic name [MQTT-3.3.2-2]");
            let id = if qos > 0 { body.two() } else { 0 };
            assert!(qos == 0 || id > 0, "packet identifier 0 [MQTT-2.2.1-4]");
            let props = if v5 { body.props("PUBLISH", PUBLISH_PROPS) } else { Props::default() };
            let payload = std::mem::take(&mut body.0).to_vec();
            Packet::Publish(Publish { dup, qos, retain: flags & 1 == 1, topic, id, props, payload })
        }
        PUBACK..=PUBCOMP => {
            let id = body.two();
            let code = if v5 && !body.0.is_empty() { body.byte() } else { 0 };
            if v5 && !body.0.is_empty() {
                body.props("an acknowledgement", &[0x1F, 0x26]);
            }
            let known: &[u8] = match kind {
                PUBACK | PUBREC => &[0, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99],
                _ => &[0, 0x92],
            };
            assert!(known.contains(&code), "reason {code:#04x} in packet type {kind}");
            Packet::Ack { kind, id, code }
        }
        9 | 11 => {
            let id = body.two();
            if v5 {
                body.props("SUBACK", &[0x1F, 0x26]);
            }
            let codes = std::mem::take(&mut body.0).to_vec();
            if kind == 9 { Packet::Suback { id, codes } } else { Packet::Unsuback { id, codes } }
        }
        13 => Packet::Pingresp,
        14 => {
            assert!(v5, "a 3.1.1 server sent DISCONNECT");
            let code = if body.0.is_empty() { 0 } else { body.byte() };
            let allowed = &[0x1F, 0x26, 0x1C];
            let props = if body.0.is_empty() { Props::default() } else { body.props("DISCONNECT", allowed) };
            Packet::Disconnect { code, props }
        }
        15 => {
            assert!(v5, "a 3.1.1 server sent AUTH");
            let code = if body.0.is_empty() { 0 } else { body.byte() };
            let allowed = &[0x15, 0x16, 0x1F, 0x26];
            let props = if body.0.is_empty() { Props::default() } else { body.props("AUTH", allowed) };
            Packet::Auth { code, props }
        }
        other => panic!("a server must not send packet type {other}"),
    };
    assert!(body.0.is_empty(), "bytes after the end of {packet:?}");
    packet
}

#[test]
fn what_the_tests_write_they_read() {
    let message = Publish::new("a/b", "hello", 2)
        .id(77)
        .dup()
        .prop(prop::MESSAGE_EXPIRY, Value::Four(9))
        .prop(prop::USER, Value::Pair("k".into(), "v".into()))
        .prop(prop::SUBSCRIPTION_ID, Value::Var(268_435_455));
    let bytes = message.encode(Version::V5);
    for cut in 0..bytes.len() {
        assert_eq!(take(Version::V5, &mut bytes[..cut].to_vec()), None, "cut at {cut}");
    }
    let mut buffer = [bytes.clone(), ack_with(PUBREC, 5, 0x10)].concat();
    assert_eq!(take(Version::V5, &mut buffer), Some(Packet::Publish(message)));
    assert_eq!(take(Version::V5, &mut buffer), Some(Packet::Ack { kind: PUBREC, id: 5, code: 0x10 }));
    assert!(buffer.is_empty());
    assert_eq!(varint(321), [0xC1, 2], "the example of 1.5.5");
}

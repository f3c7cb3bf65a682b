//! The packets that the loader needs, of MQTT 3.1.1 and 5.0; clauses are those of 5.0.

use crate::bench::event;
use anyhow::{Result, bail, ensure};

pub(super) const CONNACK: u8 = 0x20;
pub(super) const PUBLISH: u8 = 0x30;
pub(super) const PUBACK: u8 = 0x40;
pub(super) const PUBREC: u8 = 0x50;
/// With the flags it must have [MQTT-3.6.1-1].
pub(super) const PUBREL: u8 = 0x62;
pub(super) const PUBCOMP: u8 = 0x70;
pub(super) const SUBACK: u8 = 0x90;
const DISCONNECT: u8 = 0xE0;

/// Of the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Version {
    V311,
    V5,
}

/// A whole packet: its first byte, and what stands behind its length.
pub(super) struct Frame<'a> {
    pub(super) first: u8,
    pub(super) body: &'a [u8],
    /// Bytes of all of it.
    pub(super) length: usize,
}

impl Frame<'_> {
    /// The first byte as far as it tells the type: PUBLISH has flags of its own.
    pub(super) fn kind(&self) -> u8 {
        if self.first & 0xF0 == PUBLISH { PUBLISH } else { self.first }
    }
}

/// The packet at the front of `input`, `None` if it is not all there.
pub(super) fn frame(input: &[u8]) -> Result<Option<Frame<'_>>> {
    let Some((&first, rest)) = input.split_first() else { return Ok(None) };
    let Some((length, digits)) = integer(rest)? else { return Ok(None) };
    let Some(body) = rest.get(digits..digits + length) else { return Ok(None) };
    Ok(Some(Frame { first, body, length: 1 + digits + length }))
}

/// A Variable Byte Integer (1.5.5), and how many bytes it has.
fn integer(input: &[u8]) -> Result<Option<(usize, usize)>> {
    let mut value = 0;
    for (place, byte) in input.iter().take(4).enumerate() {
        value |= usize::from(byte & 0x7F) << (7 * place);
        if byte & 0x80 == 0 {
            return Ok(Some((value, place + 1)));
        }
    }
    ensure!(input.len() < 4, "a length of more than four bytes");
    Ok(None)
}

fn put_integer(out: &mut Vec<u8>, mut value: usize) {
    while value > 0x7F {
        out.push((value & 0x7F) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn put_packet(out: &mut Vec<u8>, first: u8, body: &[u8]) {
    out.push(first);
    put_integer(out, body.len());
    out.extend_from_slice(body);
}

/// CONNECT with the longest keep alive, as one of the brokers takes nobody without. A session that is not `clean` outlives its connection.
pub(super) fn connect(out: &mut Vec<u8>, version: Version, client: &str, clean: bool) {
    let mut body = Vec::with_capacity(64);
    put_text(&mut body, "MQTT");
    body.push(if version == Version::V5 { 5 } else { 4 });
    body.push(if clean { 2 } else { 0 });
    body.extend_from_slice(&u16::MAX.to_be_bytes());
    if version == Version::V5 {
        // Session Expiry Interval (3.1.2.11.2): a day, longer than any run.
        let expiry = if clean { 0_u32 } else { 86_400 };
        body.extend_from_slice(&[5, 0x11]);
        body.extend_from_slice(&expiry.to_be_bytes());
    }
    put_text(&mut body, client);
    put_packet(out, 0x10, &body);
}

/// SUBSCRIBE with packet id 1.
pub(super) fn subscribe(out: &mut Vec<u8>, version: Version, filter: &str, qos: u8) {
    let mut body = vec![0, 1];
    if version == Version::V5 {
        body.push(0);
    }
    put_text(&mut body, filter);
    body.push(qos);
    put_packet(out, 0x82, &body);
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP of success.
pub(super) fn acknowledge(out: &mut Vec<u8>, first: u8, id: u16) {
    let [high, low] = id.to_be_bytes();
    out.extend_from_slice(&[first, 2, high, low]);
}

/// A PUBLISH, all of it but its id and what the payload says.
pub(super) struct Template {
    bytes: Vec<u8>,
    id_at: Option<usize>,
    payload_at: usize,
}

impl Template {
    /// With an event as the payload.
    pub(super) fn new(version: Version, topic: &str, qos: u8) -> Self {
        Self::with(version, topic, qos, false, &event::template())
    }

    /// Retained, with any payload.
    pub(super) fn retained(version: Version, topic: &str, payload: &[u8]) -> Self {
        Self::with(version, topic, 1, true, payload)
    }

    fn with(version: Version, topic: &str, qos: u8, retain: bool, payload: &[u8]) -> Self {
        let mut body = Vec::with_capacity(topic.len() + payload.len() + 8);
        put_text(&mut body, topic);
        let id_in_body = body.len();
        if qos > 0 {
            body.extend_from_slice(&[0, 0]);
        }
        if version == Version::V5 {
            body.push(0);
        }
        body.extend_from_slice(payload);
        let mut bytes = Vec::with_capacity(body.len() + 5);
        put_packet(&mut bytes, PUBLISH | qos << 1 | u8::from(retain), &body);
        let head = bytes.len() - body.len();
        let id_at = (qos > 0).then_some(head + id_in_body);
        Self { payload_at: bytes.len() - payload.len(), id_at, bytes }
    }

    /// Appends it with a packet id.
    pub(super) fn put(&mut self, out: &mut Vec<u8>, id: u16) {
        if let Some(at) = self.id_at {
            self.bytes[at..at + 2].copy_from_slice(&id.to_be_bytes());
        }
        out.extend_from_slice(&self.bytes);
    }

    /// Appends it with a packet id, an event's id and its time.
    pub(super) fn put_event(&mut self, out: &mut Vec<u8>, id: u16, event: u64, sent: u64) {
        event::stamp(&mut self.bytes[self.payload_at..], event, sent);
        self.put(out, id);
    }
}

/// What a PUBLISH brings. The packet id is 0 at QoS 0.
pub(super) struct Publish<'a> {
    pub(super) qos: u8,
    pub(super) id: u16,
    pub(super) payload: &'a [u8],
}

pub(super) fn publish<'a>(version: Version, frame: &Frame<'a>) -> Result<Publish<'a>> {
    let qos = frame.first >> 1 & 3;
    let Some((topic, mut rest)) = frame.body.split_first_chunk::<2>() else {
        bail!("PUBLISH without a topic")
    };
    let length = usize::from(u16::from_be_bytes(*topic));
    rest = rest.get(length..).unwrap_or_default();
    let mut id = 0;
    if qos > 0 {
        let Some((bytes, behind)) = rest.split_first_chunk::<2>() else {
            bail!("PUBLISH without a packet id")
        };
        id = u16::from_be_bytes(*bytes);
        rest = behind;
        ensure!(id != 0, "PUBLISH with packet id 0");
    }
    if version == Version::V5 {
        let Some((properties, digits)) = integer(rest)? else { bail!("PUBLISH without properties") };
        rest = rest.get(digits + properties..).unwrap_or_default();
    }
    Ok(Publish { qos, id, payload: rest })
}

/// The packet id of an acknowledgement. One that refuses is an error.
pub(super) fn acknowledged(frame: &Frame<'_>) -> Result<u16> {
    let Some((id, rest)) = frame.body.split_first_chunk::<2>() else {
        bail!("an acknowledgement without an id")
    };
    let reason = rest.first().copied().unwrap_or(0);
    ensure!(reason < 0x80, "packet type {:#x} refuses with {reason:#x}", frame.first);
    Ok(u16::from_be_bytes(*id))
}

/// What a CONNACK says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Connack {
    pub(super) session_present: bool,
    /// How many QoS 1 and 2 publishes may be open (3.2.2.3.3).
    pub(super) receive_maximum: u16,
}

/// Reads a CONNACK; one that refuses is an error.
pub(super) fn connack(version: Version, frame: &Frame<'_>) -> Result<Connack> {
    let &[flags, reason, ref rest @ ..] = frame.body else {
        bail!("a CONNACK of {} bytes", frame.body.len())
    };
    ensure!(reason == 0, "CONNECT was refused with {reason:#x}");
    let mut receive_maximum = u16::MAX;
    if version == Version::V5 {
        let Some((length, digits)) = integer(rest)? else { bail!("CONNACK without properties") };
        let mut properties = rest.get(digits..digits + length).unwrap_or_default();
        while let Some((name, value)) = properties.split_first() {
            let text = || value.first_chunk::<2>().map_or(0, |n| 2 + usize::from(u16::from_be_bytes(*n)));
            let length = match name {
                0x24 | 0x25 | 0x28 | 0x29 | 0x2A => 1,
                0x13 | 0x21 | 0x22 => 2,
                0x11 | 0x27 => 4,
                0x12 | 0x15 | 0x16 | 0x1A | 0x1C | 0x1F => text(),
                // A user property is two texts.
                0x26 => {
                    let second = value.get(text()..).unwrap_or_default();
                    text() + second.first_chunk::<2>().map_or(0, |n| 2 + usize::from(u16::from_be_bytes(*n)))
                }
                other => bail!("CONNACK with property {other:#x}"),
            };
            if let (0x21, Some(most)) = (*name, value.first_chunk::<2>()) {
                receive_maximum = u16::from_be_bytes(*most);
            }
            properties = value.get(length..).unwrap_or_default();
        }
    }
    Ok(Connack { session_present: flags & 1 == 1, receive_maximum })
}

/// Reads a SUBACK that grants one filter at `qos`.
pub(super) fn suback(frame: &Frame<'_>, qos: u8) -> Result<()> {
    let granted = frame.body.last().copied().unwrap_or(0x80);
    ensure!(granted == qos, "SUBSCRIBE at QoS {qos} was answered {granted:#x}");
    Ok(())
}

/// The error for a packet that nobody waits for.
pub(super) fn unexpected(frame: &Frame<'_>) -> anyhow::Error {
    if frame.first == DISCONNECT {
        return anyhow::anyhow!(
            "the server disconnects with {:#x}",
            frame.body.first().copied().unwrap_or(0)
        );
    }
    anyhow::anyhow!("nobody waits for packet type {:#x}", frame.first)
}

#[cfg(test)]
mod tests {
    use super::{Connack, Template, Version, acknowledged, connack, frame, publish};
    use crate::bench::event;

    #[test]
    fn a_publish_is_read_as_it_was_written() {
        for version in [Version::V311, Version::V5] {
            for qos in 0..3 {
                let mut out = Vec::new();
                Template::new(version, "bench/7", qos).put_event(&mut out, 513, 9, 77);
                for cut in 0..out.len() {
                    assert!(frame(&out[..cut]).unwrap().is_none(), "cut at {cut}");
                }
                let whole = frame(&out).unwrap().unwrap();
                assert_eq!(whole.length, out.len());
                let read = publish(version, &whole).unwrap();
                assert_eq!((read.qos, read.id), (qos, if qos > 0 { 513 } else { 0 }));
                assert_eq!((event::id(read.payload), event::sent(read.payload)), (Some(9), Some(77)));
            }
        }
    }

    #[test]
    fn what_a_server_allows_is_found_among_other_properties() {
        let packet =
            [0x20, 20, 1, 0, 17, 0x24, 1, 0x26, 0, 1, b'a', 0, 2, b'b', b'c', 0x21, 0, 20, 0x22, 0, 10, 0x00];
        let whole = frame(&packet).unwrap().unwrap();
        assert_eq!(whole.length, packet.len());
        assert!(connack(Version::V5, &whole).is_err(), "property 0 does not exist");
        let packet =
            [0x20, 19, 1, 0, 16, 0x24, 1, 0x26, 0, 1, b'a', 0, 2, b'b', b'c', 0x21, 0, 20, 0x22, 0, 10];
        let read = connack(Version::V5, &frame(&packet).unwrap().unwrap()).unwrap();
        assert_eq!(read, Connack { session_present: true, receive_maximum: 20 });
        let refused = [0x20, 2, 0, 5];
        assert!(connack(Version::V311, &frame(&refused).unwrap().unwrap()).is_err());
    }

    #[test]
    fn an_acknowledgement_that_refuses_is_an_error() {
        assert_eq!(acknowledged(&frame(&[0x50, 2, 1, 2]).unwrap().unwrap()).unwrap(), 258);
        assert_eq!(acknowledged(&frame(&[0x50, 3, 1, 2, 0x10]).unwrap().unwrap()).unwrap(), 258);
        assert!(acknowledged(&frame(&[0x50, 3, 1, 2, 0x97]).unwrap().unwrap()).is_err());
        assert!(frame(&[0x30, 0x80, 0x80, 0x80, 0x80, 1]).is_err());
    }
}

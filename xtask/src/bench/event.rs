//! The events that are sent: 256 bytes of JSON, each with its own id and the time it was sent.

/// Bytes of one event. The peers carry the same bytes as their payload.
pub(crate) const EVENT: usize = 256;

const ID_AT: usize = r#"{"id":""#.len();
const SENT_AT: usize = r#"{"id":"0123456789abcdef","priority":0,"sent":""#.len();
const HEX: usize = 16;

/// An event with id 0, sent at 0.
pub(crate) fn template() -> Vec<u8> {
    let mut event = br#"{"id":"0000000000000000","priority":0,"sent":"0000000000000000","msg":""#.to_vec();
    let text = b"the quick brown fox jumps over the lazy dog, and then does so again; ";
    while event.len() < EVENT - 2 {
        event.push(text[event.len() % text.len()]);
    }
    event.extend_from_slice(br#""}"#);
    event
}

/// Writes `id` and the time of sending into an event.
pub(crate) fn stamp(event: &mut [u8], id: u64, sent: u64) {
    hex(&mut event[ID_AT..ID_AT + HEX], id);
    hex(&mut event[SENT_AT..SENT_AT + HEX], sent);
}

/// The id, if these are the bytes of an event.
pub(crate) fn id(event: &[u8]) -> Option<u64> {
    is_event(event).then(|| unhex(&event[ID_AT..ID_AT + HEX]))?
}

/// The time of sending, if these are the bytes of an event.
pub(crate) fn sent(event: &[u8]) -> Option<u64> {
    is_event(event).then(|| unhex(&event[SENT_AT..SENT_AT + HEX]))?
}

fn is_event(bytes: &[u8]) -> bool {
    bytes.len() == EVENT && bytes.starts_with(br#"{"id":""#) && bytes.ends_with(br#""}"#)
}

fn unhex(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0, |value, digit| {
        let digit = (*digit as char).to_digit(16)?;
        Some(value << 4 | u64::from(digit))
    })
}

fn hex(out: &mut [u8], value: u64) {
    for (place, byte) in out.iter_mut().rev().enumerate() {
        *byte = b"0123456789abcdef"[(value >> (4 * place)) as usize & 15];
    }
}

#[cfg(test)]
mod tests {
    use super::{EVENT, id, sent, stamp, template};

    #[test]
    fn an_event_is_json_of_the_stated_size() {
        let mut event = template();
        stamp(&mut event, 0x1f, 0xdead_beef_0000_0001);
        assert_eq!(event.len(), EVENT);
        let json: serde_json::Value = serde_json::from_slice(&event).unwrap();
        assert_eq!(json["id"], "000000000000001f");
        assert_eq!(json["priority"], 0);
        assert_eq!(sent(&event), Some(0xdead_beef_0000_0001));
        assert_eq!(id(&event), Some(0x1f));
        assert_eq!((sent(&event[1..]), id(&event[1..])), (None, None));
    }
}

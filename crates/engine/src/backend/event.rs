//! Records of the engine as envelopes. How an envelope becomes a record is [`envelope::encode`]'s.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use postroad_core::dead_letter::{self, bury};
use postroad_core::headers::Value;
use postroad_core::{Envelope, MessageId, Subject, Timestamp};

use super::envelope;
use crate::dead::{Death, former_headers};
use crate::id::id_text;
use crate::log::{Event, PayloadKind};

/// The envelope of a stored message, whichever door it came in by. Never fails: what is no envelope is a payload.
///
/// Where the record says nothing of its time, it is the time at which it was stored.
pub(super) fn decode(subject: &Subject, event: &Event) -> Envelope {
    let death = if subject.is_dead_letter() { Death::of(event) } else { None };
    let (Some(death), Some(origin)) = (death, subject.origin()) else {
        return read(subject.clone(), event.seq, event, event.id.as_deref(), event.headers.as_deref());
    };
    // A dead letter has an id of its own, by which a death is found again after a crash.
    let id = death.id.as_deref().map(str::as_bytes);
    let envelope = read(origin, death.seq, event, id, former_headers(event).as_deref());
    let death = dead_letter::Death {
        reason: death.reason.into(),
        position: Some(death.seq),
        subscription: death.subscription.into(),
        attempts: death.attempts,
        first_failure: Timestamp::from_millis(death.first),
        last_failure: Timestamp::from_millis(death.last),
    };
    bury(&envelope, &death)
}

fn read(subject: Subject, seq: u64, event: &Event, id: Option<&[u8]>, headers: Option<&[u8]>) -> Envelope {
    let stored_at = Timestamp::from_millis(event.time);
    let mut envelope = match event.kind {
        // Text is a JSON string, which is read as text.
        PayloadKind::Json | PayloadKind::Text => envelope::decode(subject, seq, &event.payload, stored_at),
        PayloadKind::Binary => {
            let mut envelope = envelope::decode(subject, seq, &Bytes::new(), stored_at);
            let bytes = BASE64.decode(&event.payload);
            envelope.payload = bytes.map_or_else(|_| event.payload.clone(), Bytes::from);
            envelope
        }
    };
    envelope.priority = event.priority;
    let id = id.and_then(|token| std::str::from_utf8(&id_text(token)).ok().map(MessageId::text));
    if let Some(Ok(id)) = id {
        envelope.id = id;
    }
    if let Some(Ok(fields)) = headers.map(serde_json::from_slice::<serde_json::Map<_, _>>) {
        for (name, value) in fields {
            envelope.headers.push(name, value_of(value));
        }
    }
    envelope
}

/// A header of another door.
fn value_of(json: serde_json::Value) -> Value {
    match json {
        serde_json::Value::String(text) => text.into(),
        serde_json::Value::Bool(yes) => yes.into(),
        serde_json::Value::Number(n) => match (n.as_i64(), n.as_f64()) {
            (Some(whole), _) => Value::I64(whole),
            (None, Some(number)) => number.into(),
            (None, None) => n.to_string().into(),
        },
        other => other.to_string().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: PayloadKind, payload: &'static str) -> Event {
        Event {
            seq: 7,
            time: 1000,
            priority: 3,
            id: None,
            subject: None,
            headers: None,
            kind,
            payload: Bytes::from_static(payload.as_bytes()),
        }
    }

    fn orders() -> Subject {
        Subject::new("orders").unwrap()
    }

    #[test]
    fn every_kind_of_record_is_read() {
        let json = decode(&orders(), &event(PayloadKind::Json, r#"{"id":17,"a":1}"#));
        assert_eq!((json.id.to_string().as_str(), &json.payload[..]), ("17", &br#"{"id":17,"a":1}"#[..]));
        assert_eq!((json.priority, json.time), (3, Timestamp::from_millis(1000)));
        let text = decode(&orders(), &event(PayloadKind::Text, r#""one \"pizza\"""#));
        assert_eq!((text.id.to_string().as_str(), &text.payload[..]), ("orders@7", &b"one \"pizza\""[..]));
        let bytes = decode(&orders(), &event(PayloadKind::Binary, "/wA="));
        assert_eq!(&bytes.payload[..], [0xff, 0]);
        // Not base64: as it is, rather than nothing.
        assert_eq!(&decode(&orders(), &event(PayloadKind::Binary, "?")).payload[..], b"?");
    }

    #[test]
    fn headers_and_id_of_another_door() {
        let mut event = event(PayloadKind::Text, "\"x\"");
        event.id = Some(Bytes::from_static(b"\"m-1\""));
        event.headers = Some(Bytes::from_static(br#"{"a":"t","b":2,"c":0.5,"d":true,"e":[1]}"#));
        let envelope = decode(&orders(), &event);
        assert_eq!(envelope.id.to_string(), "m-1");
        let shown: Vec<_> = envelope.headers.iter().map(|h| format!("{}={:?}", h.name, h.value)).collect();
        assert_eq!(shown, ["a=Text(\"t\")", "b=I64(2)", "c=F64(0.5)", "d=Bool(true)", "e=Text(\"[1]\")"]);
    }
}

//! Messages on a connection of 3.1.1, which have a topic and a payload and no properties: the envelope is the payload, as a
//! JSON object, the same as in the `jsonlog:` backend. What comes as such an object is read as an envelope on
//! connections of both versions; everything else is a payload.

use postroad_core::{Error, ErrorKind, Result, Subject, Timestamp};
use postroad_engine::backend::envelope::{decode_wrapped, encode_wrapped};

use super::{NAME, envelope};
use crate::codec::Publish;

/// What is sent for `publish`, which expires then; with `plain` its payload alone.
///
/// # Errors
/// With `plain`: [`Unsupported`](ErrorKind::Unsupported) when there is more to the message than id, time and payload.
pub(super) fn wrap(publish: &Publish, expires: Option<Timestamp>, plain: bool) -> Result<Publish> {
    let mut out = publish.clone();
    out.properties = None;
    if plain {
        if expires.is_some() || !envelope::is_bare(publish) {
            let text = "MQTT 3.1.1 has no place for headers, key, content type, reply-to, correlation and expiry, and \
                        payload=plain wants none made";
            return Err(Error::new(ErrorKind::Unsupported, NAME, text));
        }
        return Ok(out);
    }
    let subject = Subject::new(publish.topic.as_str())
        .map_err(|why| Error::new(ErrorKind::Rejected, NAME, why.to_string()))?;
    let mut whole = envelope::decode(subject, publish, Timestamp::now());
    whole.expires = expires;
    out.payload = encode_wrapped(&whole);
    Ok(out)
}

/// What was sent, if the payload is an envelope of another Postroad client.
pub(super) fn unwrap(publish: &mut Publish, subject: &Subject, now: Timestamp) {
    // A client of 5.0 has sent the rest in properties, and its payload is a payload, whatever it looks like.
    if envelope::id(publish).is_some() {
        return;
    }
    let Some(whole) = decode_wrapped(subject, &publish.payload) else { return };
    // What cannot be said in properties did not come from such a client.
    let Ok(read) = envelope::encode(&whole, publish.qos) else { return };
    publish.payload = read.payload;
    publish.properties = read.properties;
    envelope::set_expiry(publish, whole.expires, now);
}

#[cfg(test)]
mod tests {
    use postroad_core::Envelope;

    use super::*;
    use crate::codec::Qos;

    fn subject() -> Subject {
        Subject::new("orders/eu").unwrap()
    }

    fn sent(envelope: &Envelope) -> Publish {
        envelope::encode(envelope, Qos::AtLeastOnce).unwrap()
    }

    #[test]
    fn every_field_comes_back() {
        let now = Timestamp::from_millis(1_000);
        let at = Timestamp::from_millis(61_000);
        for payload in
            [&b"plain"[..], b"\0\xff", b"", b"{\"id\":\"mine\"}", b"{\"$postroad\":1,\"id\":\"x\"}"]
        {
            let whole = Envelope::new(subject(), payload.to_vec())
                .with_key(vec![0xfe, 0])
                .with_content_type("text/plain")
                .with_time(Timestamp::from_millis(1_234_567_890_123))
                .with_reply_to(Subject::new("answers").unwrap())
                .with_correlation(vec![1, 0xff])
                .with_header("line", "a\r\nb\0")
                .with_header("bytes", vec![0, 0xff])
                .with_header("fraction", 0.1);
            let mut publish = wrap(&sent(&whole), Some(at), false).unwrap();
            assert!(publish.properties.is_none(), "3.1.1 has none");
            unwrap(&mut publish, &subject(), now);
            let mut got = envelope::decode(subject(), &publish, now);
            assert_eq!(got.expires.take(), Some(at));
            assert_eq!(got, whole);
        }
    }

    #[test]
    fn payloads_of_others_are_left_alone() {
        let now = Timestamp::EPOCH;
        for payload in
            [&b"on"[..], b"{\"id\":\"7\",\"base64\":\"AA==\"}", b"{\"$postroad\":1,\"oops\":2}", b"\"text\""]
        {
            let mut publish = Publish::new(crate::codec::Utf8::from_static("orders/eu"), payload.to_vec());
            unwrap(&mut publish, &subject(), now);
            assert_eq!((publish.payload.as_ref(), &publish.properties), (payload, &None));
        }
        // With an id in its properties it came by 5.0.
        let whole = Envelope::new(subject(), "{\"$postroad\":1,\"id\":\"x\",\"payload\":1}");
        let mut publish = sent(&whole);
        unwrap(&mut publish, &subject(), now);
        assert_eq!(envelope::decode(subject(), &publish, now), whole);
    }

    #[test]
    fn plain_is_the_payload_or_nothing() {
        let bare = Envelope::new(subject(), "on");
        let publish = wrap(&sent(&bare), None, true).unwrap();
        assert_eq!((publish.payload.as_ref(), publish.properties), (b"on".as_ref(), None));
        for more in [
            bare.clone().with_header("a", "1"),
            bare.clone().with_header("postroad-id", "x"),
            bare.clone().with_key("k"),
            bare.clone().with_content_type("text/plain"),
            bare.clone().with_reply_to(subject()),
            bare.clone().with_correlation("c"),
        ] {
            assert_eq!(wrap(&sent(&more), None, true).unwrap_err().kind(), ErrorKind::Unsupported);
        }
        let late = wrap(&sent(&bare), Some(Timestamp::EPOCH), true);
        assert_eq!(late.unwrap_err().kind(), ErrorKind::Unsupported);
    }
}

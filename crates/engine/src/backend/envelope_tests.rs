use proptest::prelude::*;

use super::*;

const NOW: Timestamp = Timestamp::from_millis(1_769_860_800_250);

fn topic() -> Subject {
    Subject::new("orders/eu").unwrap()
}

fn envelope(payload: impl Into<Bytes>) -> Envelope {
    Envelope::new(topic(), payload).with_id(MessageId::text("a1").unwrap()).with_time(NOW)
}

fn show(e: &Envelope) -> String {
    String::from_utf8(encode(e).to_vec()).unwrap()
}

fn back(json: &str) -> Envelope {
    decode(topic(), 7, &Bytes::copy_from_slice(json.as_bytes()), NOW)
}

fn any_bytes() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from),
        "(?s).{0,40}".prop_map(Bytes::from),
        "[\\[\\]{}\":,0-9eE. \\\\udD8\n-]{0,20}".prop_map(Bytes::from),
        any_json().prop_map(Bytes::from),
    ]
}

fn any_json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        any::<f64>().prop_map(|x| serde_json::json!(x).to_string()),
        any::<i64>().prop_map(|x| x.to_string()),
        "[a-z\"\\\\\u{1}é]{0,5}".prop_map(|s| serde_json::json!(s).to_string()),
    ];
    leaf.prop_recursive(3, 20, 4, |inner| {
        let key = prop_oneof![
            Just("id".to_owned()),
            Just("priority".to_owned()),
            Just("base64".to_owned()),
            Just("$postroad".to_owned()),
            Just("data".to_owned()),
            "[a-z]{1,3}",
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|v| format!("[{}]", v.join(","))),
            prop::collection::vec((key, inner), 0..4).prop_map(|v| {
                let fields: Vec<String> =
                    v.into_iter().map(|(k, v)| format!("{}: {v}", serde_json::json!(k))).collect();
                format!("{{{}}}", fields.join(", "))
            }),
        ]
    })
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        "(?s).{0,10}".prop_map(Value::from),
        prop::collection::vec(any::<u8>(), 0..10).prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        // Not NaN: it is not equal to itself. Its bits have a test of their own.
        any::<f64>().prop_filter("not NaN", |x| !x.is_nan()).prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(|ms| Value::from(Timestamp::from_millis(ms))),
    ]
}

fn any_envelope() -> impl Strategy<Value = Envelope> {
    let rare = || prop::option::weighted(0.3, any_bytes());
    (
        ("(?s).{1,20}", any::<u64>(), prop_oneof![Just(0), any::<i64>()], any_bytes()),
        (rare(), rare(), prop::option::weighted(0.2, any::<u64>())),
        prop::option::weighted(0.3, "[a-z/+\"]{0,10}"),
        prop::option::weighted(0.2, "[a-z]{1,5}(/[a-z]{1,5}){0,3}"),
        prop_oneof![Just(Vec::new()), prop::collection::vec(("(?s).{0,8}", any_value()), 0..5)],
    )
        .prop_map(
            |(
                (id, time, priority, payload),
                (key, correlation, expires),
                content_type,
                reply_to,
                headers,
            )| {
                Envelope {
                    id: MessageId::text(id).unwrap(),
                    subject: topic(),
                    key,
                    content_type: content_type.map(Arc::from),
                    time: Timestamp::from_millis(time),
                    expires: expires.map(Timestamp::from_millis),
                    priority,
                    reply_to: reply_to.map(|s| Subject::new(s).unwrap()),
                    correlation,
                    headers: headers.into_iter().collect(),
                    payload,
                }
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_round_trip_is_exact(e in any_envelope()) {
        let json = encode(&e);
        let got = decode(topic(), 7, &json, e.time);
        prop_assert_eq!(&got, &e, "{}", String::from_utf8_lossy(&json));
    }

    #[test]
    fn a_plain_payload_comes_back_as_it_was(json in any_json()) {
        // With the id that the payload says, so that many of them go plain.
        let Some(id) = TopLevel::read(json.as_bytes()).and_then(|t| t.id).and_then(|id| MessageId::text(id).ok()) else {
            return Ok(());
        };
        let e = envelope(json).with_id(id);
        prop_assert_eq!(decode(topic(), 7, &encode(&e), e.time), e);
    }

    #[test]
    fn every_event_is_one_line_that_the_broker_takes(e in any_envelope()) {
        let json = encode(&e);
        prop_assert!(one_line(&json));
        prop_assert!(depth(&json) <= MAX_DEPTH);
        let value: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&json).unwrap();
        prop_assert!(value.get("priority").is_none_or(serde_json::Value::is_i64));
    }

    #[test]
    fn any_bytes_decode(bytes in any_bytes()) {
        let e = decode(topic(), 7, &bytes, NOW);
        prop_assert!(!e.id.to_string().is_empty());
    }
}

#[test]
fn a_json_object_that_agrees_goes_verbatim() {
    let payload = r#"{"id":"a1", "priority":3,"sum":12.50}"#;
    assert_eq!(show(&envelope(payload).with_priority(3)), payload);
    assert_eq!(show(&envelope(r#"{"id":17}"#).with_id(MessageId::text("17").unwrap())), r#"{"id":17}"#);
}

#[test]
fn what_does_not_agree_is_wrapped() {
    for (why, e) in [
        ("priority", envelope(r#"{"id":"a1","priority":3}"#)),
        ("other id", envelope(r#"{"id":"b"}"#)),
        ("no id", envelope("{}")),
        ("two ids", envelope(r#"{"id":"b","id":"a1"}"#)),
        ("two priorities", envelope(r#"{"id":"a1","priority":0,"priority":0}"#)),
        ("a priority that is no integer", envelope(r#"{"id":"a1","priority":1e2}"#)),
        ("a header", envelope(r#"{"id":"a1"}"#).with_header("a", "b")),
        ("a line break", envelope("{\"id\":\n\"a1\"}")),
        ("space at the end", envelope("{\"id\":\"a1\"} ")),
        ("the mark", envelope(r#"{"id":"a1","$postroad":null}"#)),
        ("too deep", envelope(format!(r#"{{"id":"a1","x":{}{}}}"#, "[".repeat(127), "]".repeat(127)))),
        ("not JSON", envelope("{id:a1}")),
    ] {
        let json = show(&e);
        assert!(
            json.starts_with(r#"{"$postroad":1,"id":"a1","time":"2026-01-31T12:00:00.250Z""#),
            "{why}: {json}"
        );
        assert_eq!(back(&json), e, "{why}");
    }
}

#[test]
fn payloads_are_as_readable_as_they_can_be() {
    for (payload, field) in [
        (b"{\"a\": [1]}".as_slice(), r#""data":{"a": [1]}}"#),
        (b"null", r#""data":null}"#),
        (b"one \"pizza\"\n", r#""text":"one \"pizza\"\n"}"#),
        (b"", r#""text":""}"#),
        (b"{\"a\":\n1}", r#""text":"{\"a\":\n1}"}"#),
        (b"\"\\ud800\"", r#""text":"\"\\ud800\""}"#),
        (b"\xff\x00", r#""base64":"/wA="}"#),
        (b"\x01\x01\x01", r#""base64":"AQEB"}"#),
    ] {
        let e = envelope(Bytes::from_static(payload));
        let json = show(&e);
        assert!(json.ends_with(field), "{json}");
        assert_eq!(back(&json), e);
    }
}

#[test]
fn headers_keep_their_types() {
    let e = envelope("x")
        .with_header("t", "1")
        .with_header("i", 1_i64)
        .with_header("f", 1.0)
        .with_header("b", vec![0xff])
        .with_header("y", true)
        .with_header("d", NOW)
        .with_header("inf", f64::INFINITY)
        .with_header("t", "again");
    let json = show(&e);
    assert!(json.contains(
        r#""headers":[["t","1"],["i",1],["f",1.0],["b",{"base64":"/w=="}],["y",true],["d",{"time":"2026-01-31T12:00:00.250Z"}],["inf",{"f64":"7ff0000000000000"}],["t","again"]]"#
    ), "{json}");
    assert_eq!(back(&json), e);

    let nan = f64::from_bits(0x7ff8_0000_0000_0001);
    let Some(Value::F64(got)) =
        back(&show(&envelope("x").with_header("nan", nan))).headers.get("nan").cloned()
    else {
        panic!("no number");
    };
    assert_eq!(got.to_bits(), nan.to_bits());
}

#[test]
fn events_that_were_not_published_here() {
    let e = back(r#"{"sum":12.50}"#);
    assert_eq!(
        (e.id.to_string().as_str(), &e.payload[..], e.time),
        ("orders/eu@7", &br#"{"sum":12.50}"#[..], NOW)
    );
    let e = back(r#"{"id":17,"priority":-2}"#);
    assert_eq!((e.id.to_string().as_str(), e.priority), ("17", -2));
    // Text and bytes of other protocols.
    assert_eq!(back(r#""one pizza""#).payload, "one pizza");
    assert_eq!(back(r#"{"base64":"/wA="}"#).payload, &[0xff, 0][..]);
    assert_eq!(back("[1]").payload, "[1]");
    // Badly wrapped: delivered as it is, not dropped.
    for json in [
        r#"{"$postroad":1}"#,
        r#"{"$postroad":2,"id":"a","time":0,"text":""}"#,
        r#"{"$postroad":1,"id":"a","time":0,"text":"","data":1}"#,
        r#"{"$postroad":1,"id":"a","time":0,"base64":"?"}"#,
        r#"{"$postroad":1,"id":"a","time":0,"text":"","new":1}"#,
    ] {
        assert_eq!(back(json).payload, json, "{json}");
    }
    // By hand, with the least that is needed.
    let e = back(r#"{"$postroad":1,"id":"a","time":"2026-01-31T12:00:00Z","text":"x"}"#);
    assert_eq!((e.id.to_string().as_str(), &e.payload[..]), ("a", &b"x"[..]));
}

#[test]
fn the_longest_topic_still_gives_an_id() {
    let subject = Subject::new("é".repeat(127)).unwrap();
    let id = |seq| decode(subject.clone(), seq, &Bytes::from_static(b"{}"), NOW).id.to_string();
    assert!(id(u64::MAX).len() <= 255 && id(u64::MAX).ends_with(&format!("@{}", u64::MAX)));
    assert_ne!(id(1), id(2));
}

#[test]
fn a_dead_letter_tells_its_death_in_headers() {
    let before = envelope("one pizza").with_header("shop", 3_i64);
    let json = format!(
        r#"{{"reason":"no shop","topic":"orders/eu","seq":17,"subscription":"orders/> as b","attempts":5,"first":"2026-01-31T12:00:00Z","last":"2026-01-31T12:00:09Z","event":{}}}"#,
        show(&before)
    );
    let subject = topic().dead_letter();
    let dead = decode(subject.clone(), 2, &json.clone().into(), NOW);
    assert_eq!((&dead.subject, &dead.payload[..]), (&subject, &b"one pizza"[..]));
    assert_eq!(dead.headers.get_text(postroad_core::dead_letter::REASON), Some("no shop"));
    assert_eq!(dead.headers.get("postroad-dead-attempts"), Some(&Value::I64(5)));
    assert_eq!(postroad_core::dead_letter::revive(&dead), Some(before));
    // A plain one without an id has the id that it had in its topic.
    let plain = json.replace(&show(&envelope("one pizza").with_header("shop", 3_i64)), "{}");
    assert_eq!(decode(subject, 2, &plain.into(), NOW).id.to_string(), "orders/eu@17");
}

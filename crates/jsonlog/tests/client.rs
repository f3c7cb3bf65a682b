//! The client, and the backend on it, against a real broker.

#[path = "client/backend.rs"]
mod backend;
#[path = "client/broker.rs"]
mod broker;

use std::time::{Duration, Instant};

use broker::Broker;
use postroad_jsonlog::client::{
    BulkAck, Client, ClientOptions, ErrorKind, Event, Events, PublishAck, StartAt, SubscribeOptions, SyncMode,
};

fn sub(filter: &str) -> SubscribeOptions {
    SubscribeOptions { filter: filter.into(), from: StartAt::First, prefetch: 10, ..Default::default() }
}

fn named(filter: &str, name: &str) -> SubscribeOptions {
    SubscribeOptions { name: Some(name.into()), ..sub(filter) }
}

async fn next(events: &mut Events) -> Event {
    tokio::time::timeout(Duration::from_secs(10), events.next())
        .await
        .expect("no event in 10 s")
        .expect("the end")
}

/// Nothing comes for a moment.
async fn quiet(events: &mut Events) {
    let event = tokio::time::timeout(Duration::from_millis(150), events.next()).await;
    assert!(event.is_err(), "{event:?}");
}

async fn publish(client: &Client, topic: &str, json: &str) -> PublishAck {
    client.publish(topic, json).await.unwrap().await.unwrap()
}

#[tokio::test]
async fn the_session_of_the_protocol_page() {
    let broker = Broker::start().await;
    let client = broker.client().await;
    assert_eq!((client.greeting().sync, client.greeting().max_line), (SyncMode::Fdatasync, 1 << 20));
    let mut events = client.subscribe(&named("orders", "billing")).await.unwrap();
    let json = r#"{"id":"a1","priority":3,"sum":12.50}"#;
    assert_eq!(publish(&client, "orders", json).await, PublishAck { seq: 1, duplicate: false });
    let event = next(&mut events).await;
    assert_eq!((&*event.topic, event.seq, event.attempt, &event.json[..]), ("orders", 1, 1, json.as_bytes()));
    client.touch("orders", 1).await.unwrap().await.unwrap();
    client.ack("orders", "a1").await.unwrap().await.unwrap();
    let again = client.ack("orders", "a1").await.unwrap().await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::NotInFlight);

    let peeked = client.peek("orders", StartAt::Last).await.unwrap();
    assert_eq!((peeked.seq, peeked.attempt, &peeked.json[..]), (1, 0, json.as_bytes()));
    assert_eq!(client.peek("orders", StartAt::Seq(2)).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(client.topics(None).await.unwrap(), r#"{"topics":["orders"]}"#);
    let stats = String::from_utf8(client.stats(Some("orders")).await.unwrap().to_vec()).unwrap();
    assert!(stats.contains("\"billing\""), "{stats}");
    assert!(client.stats(None).await.unwrap().starts_with(b"{"));

    client.quit().await.unwrap();
    assert_eq!(events.next().await, None);
    assert!(client.closed().unwrap().text().contains("quit"), "{:?}", client.closed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_in_flight_resolve_in_order() {
    let broker = Broker::start().await;
    let options = ClientOptions { in_flight: 500, ..Default::default() };
    let client = Client::connect(&broker.url, options).await.unwrap();
    let wanted = SubscribeOptions { prefetch: 100, ..sub("n") };
    let mut events = client.subscribe(&wanted).await.unwrap();
    const N: u64 = 5000;
    let consumer = tokio::spawn({
        let client = client.clone();
        async move {
            for seq in 1..=N {
                let event = next(&mut events).await;
                assert_eq!(
                    (event.seq, event.attempt, event.json),
                    (seq, 1, format!(r#"{{"n":{seq}}}"#).into())
                );
                drop(client.ack("n", seq).await.unwrap());
            }
            events.expired()
        }
    });
    let (replies, mut waiting) = tokio::sync::mpsc::unbounded_channel();
    let confirming = tokio::spawn(async move {
        let mut last = 0;
        while let Some(reply) = waiting.recv().await {
            let reply: postroad_jsonlog::client::Reply<PublishAck> = reply;
            let ack = reply.await.unwrap();
            assert_eq!(ack.seq, last + 1);
            last = ack.seq;
        }
        last
    });
    for n in 1..=N {
        replies.send(client.publish("n", format!(r#"{{"n":{n}}}"#)).await.unwrap()).unwrap();
    }
    drop(replies);
    assert_eq!(confirming.await.unwrap(), N);
    assert_eq!(consumer.await.unwrap(), 0);
}

#[tokio::test]
async fn a_bulk_is_all_or_nothing() {
    let broker = Broker::with(|engine, server| {
        engine.dedup_window = Duration::from_secs(60);
        server.max_bulk = 1000;
    })
    .await;
    let client = broker.client().await;
    let bulk = async |lines: &str, count| client.publish_bulk("b", lines, count).await.unwrap().await;
    let ack = bulk("{\"id\":1}\n{\"id\":2}\r\n{\"id\":3}\n", 3).await.unwrap();
    assert_eq!(ack, BulkAck { first: 1, last: 3, duplicates: 0 });
    assert_eq!(
        bulk("{\"id\":3}\n{\"id\":4}\n", 2).await.unwrap(),
        BulkAck { first: 4, last: 4, duplicates: 1 }
    );
    assert_eq!(bulk("{\"id\":1}\n", 1).await.unwrap(), BulkAck { first: 0, last: 0, duplicates: 1 });
    let bad = bulk("{}\n[]\n", 2).await.unwrap_err();
    assert!(bad.kind() == ErrorKind::BadEvent && bad.text().contains("line 2"), "{bad}");
    let large = format!("{{\"x\":\"{}\"}}\n", "y".repeat(1000));
    assert_eq!(bulk(&large, 1).await.unwrap_err().kind(), ErrorKind::TooLarge);
    // The connection goes on, and nothing of those was stored.
    assert_eq!(publish(&client, "b", "{}").await.seq, 5);
    assert_eq!(publish(&client, "b", r#"{"id":2}"#).await, PublishAck { seq: 2, duplicate: true });
    // What cannot be framed is not sent at all.
    assert_eq!(client.publish_bulk("b", "{}", 1).await.unwrap_err().kind(), ErrorKind::BadArgs);
    assert_eq!(client.publish_bulk("b", "{}\n", 2).await.unwrap_err().kind(), ErrorKind::BadArgs);
}

#[tokio::test]
async fn errors_are_typed() {
    let broker = Broker::start().await;
    let (client, other) = (broker.client().await, broker.client().await);
    for (topic, json, kind) in [
        ("a", "{", ErrorKind::BadEvent),
        ("a", "[]", ErrorKind::BadEvent),
        ("a", "{}\n", ErrorKind::BadEvent),
        ("a", "", ErrorKind::BadEvent),
        ("a//b", "{}", ErrorKind::BadTopic),
        ("a/*", "{}", ErrorKind::BadTopic),
        ("a\npub b", "{}", ErrorKind::BadTopic),
        ("a", &format!("{{\"x\":\"{}\"}}", "y".repeat(1 << 20)), ErrorKind::TooLong),
    ] {
        let why = match client.publish(topic, json).await {
            Ok(reply) => reply.await.unwrap_err(),
            Err(why) => why,
        };
        assert_eq!(why.kind(), kind, "{why}");
        assert!(!why.outcome_unknown() && !why.text().is_empty());
    }
    let denied = client.publish("$dead/a", "{}").await.unwrap().await.unwrap_err();
    assert!(matches!(denied.kind(), ErrorKind::BadTopic | ErrorKind::Denied), "{denied}");
    let _held = client.subscribe(&named("a", "one")).await.unwrap();
    assert_eq!(other.subscribe(&named("a", "one")).await.unwrap_err().kind(), ErrorKind::InUse);
    assert_eq!(other.unsub("a", Some("one"), true).await.unwrap_err().kind(), ErrorKind::InUse);
    assert_eq!(other.unsub("a", Some("two"), true).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(other.unsub("a", None, false).await.unwrap_err().kind(), ErrorKind::NotSubscribed);
    let wide = SubscribeOptions { prefetch: 100_000, ..sub("a") };
    assert_eq!(other.subscribe(&wide).await.unwrap_err().kind(), ErrorKind::BadArgs);
    assert_eq!(other.kick("nothing", None).await.unwrap_err().kind(), ErrorKind::NotFound);
    // After all of that both connections are in step.
    assert_eq!(publish(&client, "a", "{}").await.seq, 1);
    assert_eq!(publish(&other, "a", "{}").await.seq, 2);
}

#[tokio::test]
async fn a_token_is_needed_and_checked() {
    let broker = Broker::with(|_, server| server.tokens = vec!["s3 cret@".into()]).await;
    let connect = async |url: String| Client::connect(&url, ClientOptions::default()).await.map(drop);
    assert_eq!(connect(broker.url.clone()).await.unwrap_err().kind(), ErrorKind::Auth);
    let with = |user: &str| broker.url.replace("://", &format!("://{user}@"));
    assert_eq!(connect(with(":wrong")).await.unwrap_err().kind(), ErrorKind::Auth);
    connect(with("billing-7:s3%20cret%40")).await.unwrap();
}

#[tokio::test]
async fn what_a_lost_connection_held_comes_again() {
    let broker = Broker::start().await;
    let (one, two) = (broker.client().await, broker.client().await);
    let mut held = one.subscribe(&named("a", "n")).await.unwrap();
    publish(&two, "a", r#"{"id":"x y"}"#).await;
    assert_eq!(next(&mut held).await.attempt, 1);
    drop((one, held));
    let mut again = loop {
        match two.subscribe(&named("a", "n")).await {
            Ok(events) => break events,
            // The broker has not read the end of the other yet.
            Err(why) => assert_eq!(why.kind(), ErrorKind::InUse),
        }
    };
    assert_eq!(next(&mut again).await.attempt, 2);
    two.ack("a", "x y").await.unwrap().await.unwrap();
}

/// The clock counts whole milliseconds; a delay that begins within one still lasts.
#[tokio::test]
async fn a_delay_never_ends_before_its_time() {
    let broker = Broker::start().await;
    let client = broker.client().await;
    let mut events = client.subscribe(&sub("a")).await.unwrap();
    publish(&client, "a", "{}").await;
    let delay = Duration::from_millis(3);
    for _ in 0..50 {
        next(&mut events).await;
        let began = Instant::now();
        client.nack("a", 1, Some(delay), "").await.unwrap().await.unwrap();
        assert!(next(&mut events).await.received >= began + delay);
        client.nack("a", 1, None, "").await.unwrap().await.unwrap();
    }
}

#[tokio::test]
async fn nack_touch_and_the_end_of_a_lease() {
    let broker = Broker::start().await;
    let client = broker.client().await;
    let wanted = SubscribeOptions { ack_wait: Some(Duration::from_millis(400)), ..sub("a") };
    let mut events = client.subscribe(&wanted).await.unwrap();
    publish(&client, "a", "{}").await;
    assert_eq!(next(&mut events).await.attempt, 1);
    let began = Instant::now();
    client.nack("a", 1, Some(Duration::from_millis(200)), "not\nnow").await.unwrap().await.unwrap();
    assert_eq!(next(&mut events).await.attempt, 2);
    assert!(began.elapsed() >= Duration::from_millis(200));
    client.nack("a", 1..=1, None, "").await.unwrap().await.unwrap();
    assert_eq!(next(&mut events).await.attempt, 3);
    // Touched, it stays out longer than its lease.
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(250)).await;
        client.touch("a", 1).await.unwrap().await.unwrap();
    }
    quiet(&mut events).await;
    let event = next(&mut events).await;
    assert_eq!(event.attempt, 4, "the lease ended");
    assert!(event.received >= began + Duration::from_millis(750));
}

#[tokio::test]
async fn dead_letters_there_and_back() {
    let broker = Broker::start().await;
    let client = broker.client().await;
    let wanted = SubscribeOptions { max_deliveries: Some(2), ..named("a", "n") };
    let mut events = client.subscribe(&wanted).await.unwrap();
    let mut dead = client.subscribe(&sub("$dead/>")).await.unwrap();
    publish(&client, "a", r#"{"x":1}"#).await;
    for attempt in [1, 2] {
        assert_eq!(next(&mut events).await.attempt, attempt);
        client.nack("a", 1, None, "no shop").await.unwrap().await.unwrap();
    }
    let letter = next(&mut dead).await;
    let text = String::from_utf8(letter.json.to_vec()).unwrap();
    assert_eq!(&*letter.topic, "$dead/a");
    assert!(text.contains(r#""reason":"no shop""#) && text.ends_with(r#""event":{"x":1}}"#), "{text}");
    let buried = client.bury("$dead/a", letter.seq, "").await.unwrap().await.unwrap_err();
    assert_eq!(buried.kind(), ErrorKind::Denied);
    publish(&client, "a", r#"{"x":2}"#).await;
    next(&mut events).await;
    client.bury("a", 2, "broken").await.unwrap().await.unwrap();
    assert!(String::from_utf8_lossy(&next(&mut dead).await.json).contains(r#""reason":"broken""#));

    assert_eq!(client.kick("a", Some(1)).await.unwrap(), 1);
    assert_eq!(client.kick("a", None).await.unwrap(), 1);
    for (seq, json) in [(3, r#"{"x":1}"#), (4, r#"{"x":2}"#)] {
        let event = next(&mut events).await;
        assert_eq!((event.seq, event.attempt, event.json), (seq, 1, json.into()));
    }
    client.ack_range("a", 1, 100).await.unwrap().await.unwrap();
}

#[tokio::test]
async fn a_group_shares_and_a_name_survives() {
    let broker = Broker::start().await;
    let (one, two, producer) = (broker.client().await, broker.client().await, broker.client().await);
    let shared = SubscribeOptions { group: true, prefetch: 1, ..named("a", "g") };
    let mut first = one.subscribe(&shared).await.unwrap();
    let mut second = two.subscribe(&shared).await.unwrap();
    for _ in 0..4 {
        publish(&producer, "a", "{}").await;
    }
    let (a, b) = (next(&mut first).await, next(&mut second).await);
    assert_ne!(a.seq, b.seq);
    one.ack("a", a.seq).await.unwrap().await.unwrap();
    assert_eq!(next(&mut first).await.seq, 3);
    drop((first, second));
    // Both gone: their place is kept, and what they held comes first.
    let mut again = one.subscribe(&SubscribeOptions { prefetch: 10, ..shared }).await.unwrap();
    let mut seqs = Vec::new();
    for _ in 0..3 {
        seqs.push(next(&mut again).await.seq);
    }
    seqs.sort_unstable();
    assert_eq!(seqs, [2, 3, 4]);
}

#[tokio::test]
async fn wildcards_priority_and_places() {
    let broker = Broker::start().await;
    let client = broker.client().await;
    for (n, priority) in [(1, 0), (2, 5), (3, 5), (4, -1)] {
        publish(&client, "p/x", &format!(r#"{{"n":{n},"priority":{priority}}}"#)).await;
    }
    let mut events = client.subscribe(&sub("p/*")).await.unwrap();
    let mut order = Vec::new();
    for _ in 0..4 {
        order.push(next(&mut events).await.seq);
    }
    assert_eq!(order, [2, 3, 1, 4]);
    // A topic that did not exist.
    publish(&client, "p/y", "{}").await;
    assert_eq!(&*next(&mut events).await.topic, "p/y");
    client.unsub("p/*", None, false).await.unwrap();
    assert_eq!(events.next().await, None);
    assert_eq!(events.error(), None);

    for (from, first) in [
        (StartAt::Seq(3), Some(3)),
        (StartAt::Last, Some(4)),
        (StartAt::New, None),
        (StartAt::Ago(Duration::from_secs(3600)), Some(2)),
        (StartAt::Time(std::time::UNIX_EPOCH), Some(2)),
    ] {
        let mut events = client.subscribe(&SubscribeOptions { from, ..sub("p/x") }).await.unwrap();
        match first {
            Some(seq) => assert_eq!(next(&mut events).await.seq, seq, "{from:?}"),
            None => quiet(&mut events).await,
        }
        client.unsub("p/x", None, false).await.unwrap();
    }
}

#[tokio::test]
async fn an_orderly_stop_is_said_and_confirms_what_was_taken() {
    let mut broker = Broker::start().await;
    let client = broker.client().await;
    let mut events = client.subscribe(&sub("a")).await.unwrap();
    assert_eq!(publish(&client, "a", "{}").await.seq, 1);
    next(&mut events).await;
    broker.stop().await;
    assert_eq!(events.next().await, None);
    let why = events.error().unwrap();
    assert!(why.kind() == ErrorKind::Disconnected && why.text().contains("shutting-down"), "{why}");
    assert_eq!(client.publish("a", "{}").await.unwrap_err().kind(), ErrorKind::Closed);
    let refused = Client::connect(&broker.url, ClientOptions::default()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Connect);
}

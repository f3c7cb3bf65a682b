//! The `jsonlog:` backend.

use std::sync::Arc;
use std::time::{Duration, Instant};

use postroad_core::headers::Value;
use postroad_core::{
    Backend, Delivery, Durability, Envelope, ErrorKind, MessageId, Outcome, Publisher, PublisherExt, Receipt,
    Registry, StartAt, Subject, SubscribeOptions, Subscription, SubscriptionExt, Support, Timestamp,
    dead_letter,
};
use postroad_jsonlog::client::{ClientOptions, StartAt as ClientStart};

use crate::broker::Broker;

async fn connect(broker: &Broker) -> Arc<dyn Backend> {
    let mut registry = Registry::new();
    postroad_jsonlog::backend::register(&mut registry);
    registry.connect(&broker.url).await.unwrap()
}

fn options(filter: &str) -> SubscribeOptions {
    SubscribeOptions::new(filter.parse().unwrap()).from(StartAt::First)
}

fn subject(text: &str) -> Subject {
    Subject::new(text).unwrap()
}

fn message(topic: &str, payload: impl Into<bytes::Bytes>) -> Envelope {
    Envelope::new(subject(topic), payload)
}

async fn send(publisher: &Arc<dyn Publisher>, envelope: Envelope) -> u64 {
    publisher.send(envelope).await.into_result().unwrap().unwrap()
}

async fn next(subscription: &mut Box<dyn Subscription>) -> Delivery {
    tokio::time::timeout(Duration::from_secs(10), subscription.next())
        .await
        .expect("nothing in 10 s")
        .unwrap()
}

async fn quiet(subscription: &mut Box<dyn Subscription>) {
    let delivery = tokio::time::timeout(Duration::from_millis(150), subscription.next()).await;
    assert!(delivery.is_err(), "{delivery:?}");
}

#[tokio::test]
async fn says_what_the_broker_can_do() {
    let broker = Broker::start().await;
    let backend = connect(&broker).await;
    let can = backend.capabilities();
    assert_eq!(
        (can.durability, can.headers, can.dedup),
        (Durability::Disk, Support::Emulated, Support::Absent)
    );
    assert_eq!(can.max_payload_bytes, Some(((1 << 20) - 4096) / 4 * 3));
    let memory = Broker::with(|engine, _| engine.sync = postroad_engine::SyncMode::Memory).await;
    assert_eq!(connect(&memory).await.capabilities().durability, Durability::Memory);
    let mut registry = Registry::new();
    postroad_jsonlog::backend::register(&mut registry);
    for (url, kind) in
        [("jsonlog://127.0.0.1:1", ErrorKind::Disconnected), ("jsonlog:nowhere", ErrorKind::Config)]
    {
        assert_eq!(registry.connect(url).await.err().unwrap().kind(), kind);
    }
}

#[tokio::test]
async fn every_envelope_comes_back_exactly() {
    let broker = Broker::start().await;
    let backend = connect(&broker).await;
    let publisher = backend.publisher().await.unwrap();
    let mut inbox = backend.subscribe(options("x/>").window(100, 1 << 30)).await.unwrap();
    let deep = |n: usize| "[".repeat(n) + &"]".repeat(n);
    let mut sent = Vec::new();
    for payload in [
        &b""[..],
        b"null",
        b"one pizza",
        b"{\"a\":1}\n",
        b"{\"base64\":\"AAAA\"}",
        b"{\"$postroad\":1}",
        b"{\"id\":1,\"id\":1}",
        b"{\"priority\":1.5}",
        b"\"\\ud800\"",
        b"1e999",
        b"\xff\x00\n\r",
        b"\"quoted\"",
        deep(126).as_bytes(),
        deep(127).as_bytes(),
        deep(500).as_bytes(),
    ] {
        sent.push(message("x/a", payload.to_vec()));
    }
    sent.push(
        message("x/b", r#"{"id":"v","priority":-7}"#)
            .with_id(MessageId::text("v").unwrap())
            .with_priority(-7),
    );
    sent.push(message("x/b", "").with_id(MessageId::text("i\n\" @d").unwrap()).with_priority(i64::MIN));
    sent.push(
        message("x/b", "everything")
            .with_key(vec![0xfe, 0])
            .with_content_type("text/plain")
            .with_expires(Timestamp::from_millis(u64::MAX))
            .with_reply_to(subject("answers/here"))
            .with_correlation("17")
            .with_header("trace", "a1")
            .with_header("", "")
            .with_header("trace", Value::F64(-0.0))
            .with_header("blob", vec![1, 2, 0xff])
            .with_header("at", Timestamp::from_millis(5)),
    );
    for ticket in publisher.publish_batch(sent.clone()) {
        assert!(matches!(ticket.await, Receipt::Confirmed { duplicate: false, .. }));
    }
    for _ in 0..sent.len() {
        let delivery = next(&mut inbox).await;
        let at = sent.iter().position(|e| e.id == delivery.envelope.id).expect("an id that was sent");
        let mut want = sent.swap_remove(at);
        if delivery.envelope.id.to_string() == "v" {
            // The one plain event: it has no time.
            want.time = delivery.envelope.time;
            let raw = broker.client().await.peek("x/b", ClientStart::Seq(1)).await.unwrap();
            assert_eq!(raw.json, want.payload, "verbatim");
        }
        assert_eq!(*delivery.envelope, want);
        assert!(delivery.attempt == 1 && !delivery.redelivered && delivery.position.is_some());
        delivery.ack().await.unwrap();
    }
}

#[tokio::test]
async fn the_largest_payload_fits_and_a_larger_one_is_refused() {
    let broker = Broker::with(|_, server| server.max_line = 20_000).await;
    let backend = connect(&broker).await;
    let publisher = backend.publisher().await.unwrap();
    let most = backend.capabilities().max_payload_bytes.unwrap();
    let topic = "t".repeat(255);
    send(&publisher, message(&topic, vec![0xff; most])).await;
    let refused = publisher.send(message(&topic, vec![0xff; 20_000])).await;
    assert!(matches!(&refused, Receipt::Refused(why) if why.kind() == ErrorKind::TooLarge), "{refused:?}");
    let reserved = publisher.send(message("$dead/a", "")).await;
    assert!(matches!(&reserved, Receipt::Refused(_)), "{reserved:?}");
}

#[tokio::test]
async fn verdicts() {
    let broker = Broker::start().await;
    let backend = connect(&broker).await;
    let publisher = backend.publisher().await.unwrap();
    let mut inbox = backend.subscribe(options("a").named("n")).await.unwrap();
    let mut dead = backend.subscribe(options("$dead/a")).await.unwrap();
    let sent = message("a", "one pizza").with_header("shop", 3);
    send(&publisher, sent.clone()).await;

    // Dropped: comes again at once.
    drop(next(&mut inbox).await);
    let second = next(&mut inbox).await;
    assert!(second.attempt == 2 && second.redelivered);
    let began = Instant::now();
    second.settle(Outcome::retry_after(Duration::from_millis(200))).await.unwrap();
    let third = next(&mut inbox).await;
    assert!(third.attempt == 3 && began.elapsed() >= Duration::from_millis(200));
    third.settle(Outcome::dead_letter("no shop")).await.unwrap();

    let letter = next(&mut dead).await;
    assert_eq!(letter.envelope.headers.get_text(dead_letter::REASON), Some("no shop"));
    assert_eq!(letter.envelope.headers.get_text(dead_letter::SUBJECT), Some("a"));
    assert_eq!(letter.envelope.headers.get_text(dead_letter::SUBSCRIPTION), Some("a as n"));
    assert_eq!(letter.envelope.headers.get(dead_letter::POSITION).and_then(Value::as_i64), Some(1));
    assert_eq!(dead_letter::revive(&letter.envelope), Some(sent));
    // Where a dead letter would go it is already.
    letter.settle(Outcome::dead_letter("again")).await.unwrap();
    quiet(&mut dead).await;

    send(&publisher, message("a", "")).await;
    next(&mut inbox).await.settle(Outcome::Discard).await.unwrap();
    quiet(&mut inbox).await;
}

#[tokio::test]
async fn a_verdict_after_the_lease_is_stale_and_changes_nothing() {
    let broker = Broker::start().await;
    let backend = connect(&broker).await;
    let publisher = backend.publisher().await.unwrap();
    let mut inbox = backend.subscribe(options("a").ack_wait(Duration::from_millis(300))).await.unwrap();
    send(&publisher, message("a", "x")).await;
    let first = next(&mut inbox).await;
    let second = next(&mut inbox).await;
    assert_eq!((first.attempt, second.attempt), (1, 2));
    // Its number is in flight again, but not as this delivery.
    assert_eq!(first.ack().await.unwrap_err().kind(), ErrorKind::StaleToken);
    let mut second = second;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(150)).await;
        second.token.extend().await.unwrap();
    }
    second.ack().await.unwrap();
    // Nobody took it back, and its lease is over by the clock alone.
    send(&publisher, message("a", "y")).await;
    let mut third = next(&mut inbox).await;
    tokio::time::sleep(Duration::from_millis(320)).await;
    assert_eq!(third.token.extend().await.unwrap_err().kind(), ErrorKind::StaleToken);
    assert_eq!(third.ack().await.unwrap_err().kind(), ErrorKind::StaleToken);
    assert_eq!(next(&mut inbox).await.attempt, 2);
}

#[tokio::test]
async fn tokens_of_an_ended_subscription_are_stale() {
    let broker = Broker::start().await;
    let backend = connect(&broker).await;
    let publisher = backend.publisher().await.unwrap();
    let mut first = backend.subscribe(options("a").named("n")).await.unwrap();
    send(&publisher, message("a", "x")).await;
    let held = next(&mut first).await;
    let busy = backend.subscribe(options("a").named("n")).await.err().unwrap();
    assert_eq!(busy.kind(), ErrorKind::Busy);
    assert_eq!(backend.forget("a".parse().unwrap(), "n".into()).await.unwrap_err().kind(), ErrorKind::Busy);
    drop(first);
    let mut second = loop {
        match backend.subscribe(options("a").named("n")).await {
            Ok(subscription) => break subscription,
            Err(why) => assert_eq!(why.kind(), ErrorKind::Busy),
        }
    };
    let again = next(&mut second).await;
    assert_eq!(again.attempt, 2);
    assert_ne!(held.token.epoch(), again.token.epoch());
    assert_eq!(held.ack().await.unwrap_err().kind(), ErrorKind::StaleToken);
    again.ack().await.unwrap();
    drop(second);
    while let Err(why) = backend.forget("a".parse().unwrap(), "n".into()).await {
        assert_eq!(why.kind(), ErrorKind::Busy);
    }
    assert_eq!(
        backend.forget("a".parse().unwrap(), "n".into()).await.unwrap_err().kind(),
        ErrorKind::NotFound
    );
}

#[tokio::test]
async fn the_window_bounds_count_and_bytes() {
    let broker = Broker::start().await;
    let backend = connect(&broker).await;
    let publisher = backend.publisher().await.unwrap();
    for _ in 0..4 {
        send(&publisher, message("a", vec![b'x'; 600])).await;
    }
    let mut count = backend.subscribe(options("a").window(2, 1 << 20)).await.unwrap();
    let held = [next(&mut count).await, next(&mut count).await];
    quiet(&mut count).await;
    drop(held);
    let mut bytes = backend.subscribe(options("a").window(10, 1000)).await.unwrap();
    let held = next(&mut bytes).await;
    quiet(&mut bytes).await;
    // A verdict makes room, and wakes who waits for it.
    let (second, settled) = tokio::join!(bytes.next(), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        held.ack().await
    });
    settled.unwrap();
    let _second = second.unwrap();
    // A message larger than the window comes alone.
    let mut tiny = backend.subscribe(options("a").window(10, 1)).await.unwrap();
    let only = next(&mut tiny).await;
    quiet(&mut tiny).await;
    only.ack().await.unwrap();
    next(&mut tiny).await.ack().await.unwrap();
}

#[tokio::test]
async fn drains() {
    let broker = Broker::start().await;
    let backend = connect(&broker).await;
    let publisher = backend.publisher().await.unwrap();
    for _ in 0..3 {
        send(&publisher, message("a", "x")).await;
    }
    let mut inbox = backend.subscribe(options("a").named("n").window(3, 1 << 20)).await.unwrap();
    let (one, two, three) = (next(&mut inbox).await, next(&mut inbox).await, next(&mut inbox).await);
    inbox.begin_drain(Timestamp::now().saturating_add(Duration::from_millis(300)));
    assert_eq!(inbox.next().await.unwrap_err().kind(), ErrorKind::Closed);
    one.ack().await.unwrap();
    drop(two.retry());
    let began = Instant::now();
    let report = std::future::poll_fn(|cx| inbox.poll_drain(cx)).await.unwrap();
    assert!((Duration::from_millis(200)..Duration::from_secs(5)).contains(&began.elapsed()));
    assert_eq!((report.settled, report.returned, report.timed_out), (2, 1, true));
    assert_eq!(three.ack().await.unwrap_err().kind(), ErrorKind::StaleToken);
    assert_eq!(std::future::poll_fn(|cx| inbox.poll_drain(cx)).await.unwrap(), report);

    // Without anything in flight at once; and at the end of a lease if its token is never settled.
    let mut inbox = loop {
        let wanted = options("a").named("n").window(1, 1 << 20).ack_wait(Duration::from_millis(200));
        if let Ok(subscription) = backend.subscribe(wanted).await {
            break subscription;
        }
    };
    let held = next(&mut inbox).await;
    let report = inbox.drain(Timestamp::from_millis(u64::MAX)).await.unwrap();
    assert_eq!((report.settled, report.returned, report.timed_out), (0, 0, false));
    drop(held);
}

#[tokio::test]
async fn closing_flushes_and_ends_everything() {
    let broker = Broker::start().await;
    let backend = connect(&broker).await;
    let publisher = backend.publisher().await.unwrap();
    let mut inbox = backend.subscribe(options("a")).await.unwrap();
    let tickets: Vec<_> = (0..100).map(|_| publisher.publish(message("a", "x"))).collect();
    backend.close().await.unwrap();
    for ticket in tickets {
        assert!(ticket.try_get().expect("answered before the close ends").is_confirmed());
    }
    let late = publisher.publish(message("a", "x")).await;
    assert!(matches!(&late, Receipt::Refused(why) if why.kind() == ErrorKind::Closed), "{late:?}");
    assert_eq!(publisher.ready().await.unwrap_err().kind(), ErrorKind::Closed);
    while let Ok(delivery) = inbox.next().await {
        drop(delivery);
    }
    assert_eq!(inbox.next().await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(backend.publisher().await.err().unwrap().kind(), ErrorKind::Closed);
    assert_eq!(backend.subscribe(options("a")).await.err().unwrap().kind(), ErrorKind::Closed);
    backend.close().await.unwrap();
}

#[tokio::test]
async fn a_broker_that_goes_away() {
    let mut broker = Broker::start().await;
    let backend = connect(&broker).await;
    let publisher = backend.publisher().await.unwrap();
    let mut inbox = backend.subscribe(options("a")).await.unwrap();
    send(&publisher, message("a", "x")).await;
    let held = next(&mut inbox).await;
    broker.stop().await;
    assert_eq!(inbox.next().await.unwrap_err().kind(), ErrorKind::Disconnected);
    assert_eq!(inbox.next().await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(held.ack().await.unwrap_err().kind(), ErrorKind::StaleToken);
    assert_eq!(publisher.ready().await.unwrap_err().kind(), ErrorKind::Disconnected);
    let late = publisher.publish(message("a", "x")).await;
    assert!(matches!(&late, Receipt::Refused(why) if why.kind() == ErrorKind::Disconnected), "{late:?}");
    assert_eq!(backend.publisher().await.err().unwrap().kind(), ErrorKind::Disconnected);
}

#[tokio::test]
async fn a_full_queue_refuses_or_makes_wait() {
    let broker = Broker::start().await;
    let mut registry = Registry::new();
    let small = ClientOptions { in_flight: 10, ..ClientOptions::default() };
    postroad_jsonlog::backend::register_with(&mut registry, small);
    let backend = registry.connect(&broker.url).await.unwrap();
    let publisher = backend.publisher().await.unwrap();
    // Nothing is answered while this task does not yield.
    let tickets: Vec<_> = (0..11).map(|_| publisher.publish(message("a", "x"))).collect();
    let refused = tickets.iter().filter_map(postroad_core::Ticket::try_get).count();
    assert_eq!(refused, 1);
    assert!(matches!(tickets[10].try_get(), Some(Receipt::Refused(why)) if why.kind() == ErrorKind::Busy));
    publisher.ready().await.unwrap();
    for position in 11..=300 {
        assert_eq!(send(&publisher, message("a", "x")).await, position);
    }
}

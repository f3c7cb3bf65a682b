//! Tickets, batches, limits, and what comes back of an envelope.

use std::time::Duration;

use bytes::Bytes;
use postroad_core::headers::Value;
use postroad_core::{Durability, PublisherExt, Receipt, StartAt, Support};
use postroad_engine::NewEvent;
use postroad_engine::log::PayloadKind;

use super::*;

in_both! {
    a_ticket_is_confirmed_with_the_position_when_it_is_committed
    every_field_and_every_byte_comes_back
    a_batch_is_one_commit_with_an_answer_each
    the_same_id_is_a_duplicate
    what_is_too_large_or_reserved_is_refused
    what_a_json_log_client_published_is_read
}

async fn a_ticket_is_confirmed_with_the_position_when_it_is_committed(place: Place) {
    let world = place.open();
    let publisher = world.publisher().await;
    let first = publisher.publish(text_envelope("orders", "1"));
    let second = publisher.publish(text_envelope("orders", "2"));
    let other = publisher.publish(text_envelope("others", "1"));
    if place.is_durable() {
        // Nobody commits yet.
        assert!(first.try_get().is_none() && other.try_get().is_none());
    }
    let world = world.started();
    for (ticket, position) in [(first, 1), (second, 2), (other, 1)] {
        let receipt = ticket.await;
        assert!(receipt.position() == Some(position) && !receipt.is_duplicate(), "{receipt:?}");
    }
    let durability = if place.is_durable() { Durability::Disk } else { Durability::Memory };
    assert_eq!(publisher.capabilities().durability, durability);
    world.end();
}

async fn every_field_and_every_byte_comes_back(place: Place) {
    let world = place.open().started();
    let mut sub = world.subscribe(options("a/>")).await;
    let publisher = world.publisher().await;
    let full = text_envelope("a/b", "")
        .with_id(id("ü-1"))
        .with_key(vec![0xff, 0])
        .with_content_type("application/x-odd; a=\"b\"")
        .with_expires(START.saturating_add(Duration::from_secs(60)))
        .with_priority(-7)
        .with_reply_to(Subject::new("replies/1").unwrap())
        .with_correlation(vec![1, 2, 3])
        .with_header("trace", "a1")
        .with_header("trace", "b\n2")
        .with_header("bytes", vec![0xc3, 0x28])
        .with_header("n", i32::MIN)
        .with_header("x", f64::NEG_INFINITY)
        .with_header("yes", true)
        .with_header("at", Value::Time(Timestamp::from_millis(u64::MAX)));
    let mut sent = vec![full];
    let large = vec![0x80; 70_000];
    let payloads: [&[u8]; 8] =
        [b"\xff\xfe\x00", b"{\"a\":1}", b" {}", b"null", b"[1,\n2]", b"\"x\"", b"\\ud800", &large];
    for payload in payloads {
        sent.push(text_envelope("a/c", "").with_priority(-8));
        sent.last_mut().unwrap().payload = Bytes::copy_from_slice(payload);
    }
    for envelope in &sent {
        assert!(publisher.send(envelope.clone()).await.is_confirmed());
    }
    let mut got = Vec::new();
    while got.len() < sent.len() {
        sub.next_batch(&mut got, 100).await.unwrap();
    }
    got.sort_by_key(|d| sent.iter().position(|e| e.id == d.envelope.id));
    for (delivery, envelope) in got.iter().zip(&sent) {
        assert_eq!(&*delivery.envelope, envelope);
    }
    drop((got, sub, publisher));
    world.end();
}

async fn a_batch_is_one_commit_with_an_answer_each(place: Place) {
    let world = place.open();
    let publisher = world.publisher().await;
    let mut batch: Vec<_> = (0..50).map(|n| text_envelope("orders", &n.to_string())).collect();
    batch.insert(10, text_envelope("$dead/orders", "reserved"));
    batch.insert(20, text_envelope("others", "elsewhere"));
    let tickets = publisher.publish_batch(batch);
    assert_eq!(tickets.len(), 52);
    let before = world.engine.store_stats().commits;
    let world = world.started();
    let mut positions = Vec::new();
    for (at, ticket) in tickets.into_iter().enumerate() {
        match ticket.await {
            Receipt::Refused(error) => assert_eq!((at, error.kind()), (10, ErrorKind::Rejected)),
            receipt => positions.push(receipt.position().unwrap()),
        }
    }
    assert_eq!(positions.remove(19), 1);
    assert_eq!(positions, (1..=50).collect::<Vec<_>>());
    if place.is_durable() {
        assert_eq!(world.engine.store_stats().commits, before + 1);
    }
    world.end();
}

async fn the_same_id_is_a_duplicate(place: Place) {
    let config = EngineConfig { dedup_window: Duration::from_secs(60), ..place.config() };
    let world = place.open_with(config).started();
    let publisher = world.publisher().await;
    assert_eq!(publisher.capabilities().dedup, Support::Native);
    assert_eq!(publisher.capabilities().dedup_window, Some(Duration::from_secs(60)));
    let named = |text: &str| text_envelope("orders", text).with_id(id("17"));
    let tickets = publisher.publish_batch(vec![text_envelope("orders", "0"), named("1"), named("2")]);
    let mut receipts = Vec::new();
    for ticket in tickets {
        receipts.push(ticket.await);
    }
    let said: Vec<_> = receipts.iter().map(|r| (r.position(), r.is_duplicate())).collect();
    assert_eq!(said, [(Some(1), false), (Some(2), false), (Some(2), true)]);
    world.advance(Duration::from_secs(61));
    assert!(!publisher.send(named("3")).await.is_duplicate());
    drop(publisher);
    world.end();
    let plain = place.config();
    assert!(plain.dedup_window.is_zero());
    let world = place.open_with(plain).started();
    assert_eq!(world.backend.capabilities().dedup, Support::Absent);
    world.end();
}

async fn what_is_too_large_or_reserved_is_refused(place: Place) {
    let world = place.open().started();
    let backend = EngineBackend::with_max_payload_bytes(Arc::clone(&world.engine), 1000);
    let publisher = backend.publisher().await.unwrap();
    assert_eq!(backend.capabilities().max_payload_bytes, Some(1000));
    let of = |bytes: usize| text_envelope("orders", &"x".repeat(bytes));
    assert!(publisher.send(of(1000)).await.is_confirmed());
    let refused = |receipt| match receipt {
        Receipt::Refused(error) => error.kind(),
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(publisher.send(of(1001)).await), ErrorKind::TooLarge);
    let headers = of(1).with_header("h", "x".repeat(1 << 20));
    assert_eq!(refused(publisher.send(headers).await), ErrorKind::TooLarge);
    let key = of(1).with_key(vec![0; 1 << 20]);
    assert_eq!(refused(publisher.send(key).await), ErrorKind::TooLarge);
    assert_eq!(refused(publisher.send(text_envelope("$dead/a", "")).await), ErrorKind::Rejected);
    backend.close().await.unwrap();
    world.end();
}

async fn what_a_json_log_client_published_is_read(place: Place) {
    let world = place.open().started();
    let stream = world.engine.stream_or_create(&"orders".parse().unwrap()).unwrap();
    let json = br#"{"id":17,"priority":3,"msg":"hello"}"#;
    let event =
        NewEvent { priority: 3, id: Some(b"17"), headers: None, kind: PayloadKind::Json, payload: json };
    stream.publish(&[event]).unwrap();
    // And the other way round: what is an event already is stored as it is.
    let plain = Envelope { payload: Bytes::from_static(json), ..text_envelope("orders", "") };
    let plain = plain.with_id(id("17")).with_priority(3);
    assert!(world.publisher().await.send(plain).await.is_confirmed());
    assert_eq!(&stream.read(2).unwrap().unwrap().payload[..], json);
    let mut sub = world.subscribe(options("orders").from(StartAt::First)).await;
    for position in [1, 2] {
        let delivery = next(&mut sub).await;
        let Envelope { id, priority, payload, .. } = &*delivery.envelope;
        assert_eq!((id.to_string().as_str(), *priority, &payload[..]), ("17", 3, &json[..]));
        assert_eq!(delivery.position, Some(position));
        delivery.ack().await.unwrap();
    }
    drop(sub);
    world.end();
}

/// Bounds of the queue: of a journal that nobody commits.
#[test]
fn a_full_queue_is_not_ready_until_the_next_commit() {
    let place = Place::journal();
    let world = place.open_with(EngineConfig { queue_bytes: 10_000, ..place.config() });
    let publisher = await_in_time(world.publisher());
    let mut tickets = Vec::new();
    let refused = loop {
        let ticket = publisher.publish(text_envelope("orders", &"x".repeat(1000)));
        match ticket.try_get() {
            Some(Receipt::Refused(error)) => break error,
            other => assert!(other.is_none()),
        }
        tickets.push(ticket);
        assert!(tickets.len() < 100);
    };
    assert_eq!(refused.kind(), ErrorKind::Busy);
    assert!(tickets.len() > 5);
    let (wakes, waker) = counting();
    assert!(publisher.poll_ready(&mut Context::from_waker(&waker)).is_pending());
    assert_eq!(wakes.count(), 0);
    world.engine.flush(true);
    assert_eq!(wakes.count(), 1);
    assert!(publisher.poll_ready(&mut Context::from_waker(&waker)).is_ready());
    let world = world.started();
    for ticket in tickets {
        assert!(await_in_time(ticket).is_confirmed());
    }
    world.end();
}

#[test]
fn a_full_store_is_said_at_once() {
    let place = Place::Memory;
    let world = place.open_with(EngineConfig { queue_bytes: 5000, ..place.config() });
    let publisher = await_in_time(world.publisher());
    let full = (0..100).find_map(|_| {
        match await_in_time(publisher.send(text_envelope("orders", &"x".repeat(1000)))) {
            Receipt::Refused(error) => Some(error.kind()),
            _ => None,
        }
    });
    assert_eq!(full, Some(ErrorKind::DiskFull));
}

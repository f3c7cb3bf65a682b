//! Verdicts: what each does, when it is known, and whose token is too old.

use std::num::NonZeroUsize;
use std::time::Duration;

use postroad_core::{Outcome, StartAt, dead_letter, settle_all};

use super::*;

in_both! {
    every_verdict_does_what_it_says
    a_dropped_delivery_comes_again
    a_dead_letter_tells_its_death
    a_lease_that_ended_makes_its_token_stale
    an_extended_lease_lasts
    a_batch_is_settled_together
    a_verdict_on_some_that_are_stale_says_so
    deliveries_run_out
}

async fn every_verdict_does_what_it_says(place: Place) {
    let world = place.open().started();
    let mut sub = world.subscribe(options("orders").named("w")).await;
    world.publish("orders", &["ack", "discard", "retry", "later", "dead"]).await;
    let mut got = now(&mut sub, 9).await;
    assert_eq!(got.len(), 5);
    for delivery in got.drain(..) {
        assert_eq!((delivery.attempt, delivery.redelivered), (1, false));
        let outcome = match &delivery.envelope.payload[..] {
            b"ack" => Outcome::Ack,
            b"discard" => Outcome::Discard,
            b"retry" => Outcome::retry(),
            b"later" => Outcome::retry_after(Duration::from_secs(5)),
            _ => Outcome::dead_letter("no such shop"),
        };
        delivery.settle(outcome).await.unwrap();
    }
    let again = now(&mut sub, 9).await;
    assert_eq!(texts(&again), ["retry"]);
    assert_eq!((again[0].attempt, again[0].redelivered, again[0].position), (2, true, Some(3)));
    world.advance(Duration::from_millis(4999));
    assert!(now(&mut sub, 9).await.is_empty());
    world.advance(Duration::from_millis(1));
    assert_eq!(texts(&now(&mut sub, 9).await), ["later"]);
    let stats = world.engine.stream("orders").unwrap().members();
    assert_eq!((stats[0].lag, stats[0].floor), (2, 2));
    drop(again);
    drop(sub);
    world.end();
}

async fn a_dropped_delivery_comes_again(place: Place) {
    let world = place.open().started();
    let mut sub = world.subscribe(options("orders")).await;
    world.publish("orders", &["1"]).await;
    drop(next(&mut sub).await);
    let again = next(&mut sub).await;
    assert_eq!((again.attempt, again.redelivered), (2, true));
    again.ack().await.unwrap();
    assert!(now(&mut sub, 1).await.is_empty());
    drop(sub);
    world.end();
}

async fn a_dead_letter_tells_its_death(place: Place) {
    let world = place.open().started();
    let mut dead = world.subscribe(options("$dead/>")).await;
    let mut sub = world.subscribe(options("orders/*").named("w")).await;
    let sent = text_envelope("orders/eu", "one pizza")
        .with_header("trace", "a1")
        .with_expires(START.saturating_add(Duration::from_secs(1)));
    assert!(world.publisher().await.send(sent.clone()).await.is_confirmed());
    next(&mut sub).await.settle(Outcome::dead_letter("no such shop")).await.unwrap();
    // Known when it is there.
    let letters = now(&mut dead, 9).await;
    let letter = &letters[0].envelope;
    assert_eq!(letter.subject, "$dead/orders/eu");
    assert_eq!(letter.headers.get_text(dead_letter::REASON), Some("no such shop"));
    assert_eq!(letter.headers.get_text(dead_letter::SUBSCRIPTION), Some("orders/* as w"));
    assert_eq!(letter.headers.get(dead_letter::ATTEMPTS).unwrap().as_i64(), Some(1));
    assert_eq!(letter.headers.get(dead_letter::POSITION).unwrap().as_i64(), Some(1));
    let revived = dead_letter::revive(letter).unwrap();
    assert_eq!(revived, Envelope { expires: None, ..sent });
    // It is where it would go.
    let letter = letters.into_iter().next().unwrap();
    letter.settle(Outcome::dead_letter("twice")).await.unwrap();
    assert!(world.engine.stream("$dead/$dead/orders/eu").is_none());
    assert!(now(&mut dead, 9).await.is_empty() && now(&mut sub, 9).await.is_empty());
    drop((dead, sub));
    world.end();
}

async fn a_lease_that_ended_makes_its_token_stale(place: Place) {
    let world = place.open().started();
    let mut sub = world.subscribe(options("orders").ack_wait(Duration::from_secs(1))).await;
    world.publish("orders", &["1"]).await;
    let mut first = next(&mut sub).await;
    world.advance(Duration::from_secs(1));
    assert_eq!(kind(first.token.extend().await), ErrorKind::StaleToken);
    let second = next(&mut sub).await;
    assert_eq!((second.attempt, second.token.tag()), (2, first.token.tag()));
    // The same delivery number at the same consumer, and still not the same delivery.
    assert_eq!(kind(first.token.extend().await), ErrorKind::StaleToken);
    assert_eq!(kind(first.ack().await), ErrorKind::StaleToken);
    second.ack().await.unwrap();
    drop(sub);
    world.end();
}

async fn an_extended_lease_lasts(place: Place) {
    let world = place.open().started();
    let mut sub = world.subscribe(options("orders").ack_wait(Duration::from_secs(1))).await;
    world.publish("orders", &["1"]).await;
    let mut first = next(&mut sub).await;
    for _ in 0..5 {
        world.advance(Duration::from_millis(600));
        first.token.extend().await.unwrap();
    }
    assert!(now(&mut sub, 1).await.is_empty());
    first.ack().await.unwrap();
    drop(sub);
    world.end();
}

async fn a_batch_is_settled_together(place: Place) {
    let world = place.open().started();
    let mut sub = world.subscribe(options(">").named("w").window(1000, u64::MAX)).await;
    for topic in ["a", "b"] {
        let publisher = world.publisher().await;
        let batch = (0..200).map(|n| text_envelope(topic, &n.to_string())).collect();
        for ticket in publisher.publish_batch(batch) {
            assert!(ticket.await.is_confirmed());
        }
    }
    let mut got = Vec::new();
    while got.len() < 400 {
        sub.next_batch(&mut got, 400).await.unwrap();
    }
    let before = world.engine.store_stats().commits;
    settle_all(got.drain(..).map(|d| d.token), Outcome::Ack).await.unwrap();
    let commits = world.engine.store_stats().commits - before;
    assert!((1..=2).contains(&commits), "{commits} commits for two runs");
    for topic in ["a", "b"] {
        assert_eq!(world.engine.stream(topic).unwrap().members()[0].floor, 200);
    }
    drop(sub);
    world.end();
}

async fn a_verdict_on_some_that_are_stale_says_so(place: Place) {
    let world = place.open().started();
    let mut sub = world.subscribe(options("orders").ack_wait(Duration::from_secs(1))).await;
    world.publish("orders", &["1", "2", "3"]).await;
    let mut got = now(&mut sub, 3).await;
    world.advance(Duration::from_millis(500));
    for (at, delivery) in got.iter_mut().enumerate() {
        if at != 1 {
            delivery.token.extend().await.unwrap();
        }
    }
    world.advance(Duration::from_millis(500));
    let settled = settle_all(got.drain(..).map(|d| d.token), Outcome::Ack);
    assert_eq!(kind(settled.await), ErrorKind::StaleToken);
    assert_eq!(texts(&now(&mut sub, 9).await), ["2"]);
    drop(sub);
    world.end();
}

async fn deliveries_run_out(place: Place) {
    let world = place.open().started();
    let wanted = options("orders").named("w").max_deliveries(2).backoff([Duration::from_secs(1)]);
    let mut sub = world.subscribe(wanted.from(StartAt::First)).await;
    let mut dead = world.subscribe(options("$dead/orders")).await;
    world.publish("orders", &["1"]).await;
    next(&mut sub).await.retry().await.unwrap();
    assert!(now(&mut sub, 1).await.is_empty());
    world.advance(Duration::from_secs(1));
    // In parts, to have that, too.
    let last = next(&mut sub).await;
    for part in last.token.fan_out(NonZeroUsize::new(2).unwrap()) {
        drop(part);
    }
    let letter = next(&mut dead).await;
    assert_eq!(letter.envelope.headers.get(dead_letter::ATTEMPTS).unwrap().as_i64(), Some(2));
    drop((sub, dead, letter));
    world.end();
}

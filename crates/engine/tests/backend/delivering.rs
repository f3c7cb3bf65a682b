//! Where subscriptions start, what wakes them, and what outlives them.

use std::time::Duration;

use postroad_core::StartAt;

use super::*;

in_both! {
    a_start_for_everybody
    whoever_waits_is_woken
    what_has_expired_is_discarded
    priorities_come_first
    a_name_keeps_its_place
    a_forgotten_name_begins_again
}

async fn a_start_for_everybody(place: Place) {
    let world = place.open().started();
    for text in ["1", "2", "3", "4"] {
        world.publish("orders", &[text]).await;
        world.advance(Duration::from_secs(1));
    }
    let at = |seconds| StartAt::Time(START.saturating_add(Duration::from_secs(seconds)));
    let cases = [
        (StartAt::New, vec!["5"]),
        (StartAt::First, vec!["1", "2", "3", "4", "5"]),
        (StartAt::Last, vec!["4", "5"]),
        (StartAt::Sequence(3), vec!["3", "4", "5"]),
        (StartAt::Sequence(0), vec!["1", "2", "3", "4", "5"]),
        (at(2), vec!["3", "4", "5"]),
    ];
    for (from, expected) in cases {
        let mut sub = world.subscribe(options("orders").from(from)).await;
        let before = now(&mut sub, 99).await;
        assert_eq!(texts(&before), expected[..expected.len() - 1], "{from:?}");
    }
    world.end();
}

async fn whoever_waits_is_woken(place: Place) {
    let world = place.open().started();
    let mut literal = world.subscribe(options("orders/eu")).await;
    let mut wide = world.subscribe(options("orders/>")).await;
    std::thread::scope(|scope| {
        let waiting = [&mut literal, &mut wide]
            .map(|sub| scope.spawn(move || await_in_time(sub.next()).map(|d| d.envelope.payload.clone())));
        let publisher = await_in_time(world.publisher());
        let ticket = publisher.publish(text_envelope("orders/eu", "here"));
        for waiting in waiting {
            assert_eq!(waiting.join().unwrap().unwrap(), "here");
        }
        assert!(await_in_time(ticket).is_confirmed());
    });
    drop((literal, wide));
    world.end();
}

async fn what_has_expired_is_discarded(place: Place) {
    let world = place.open().started();
    let mut sub = world.subscribe(options("orders").named("w")).await;
    let publisher = world.publisher().await;
    for n in 0..10 {
        let expires = START.saturating_add(Duration::from_secs(if n % 3 == 0 { 100 } else { 1 }));
        let envelope = text_envelope("orders", &n.to_string()).with_expires(expires);
        assert!(publisher.send(envelope).await.is_confirmed());
    }
    world.advance(Duration::from_secs(1));
    let got = now(&mut sub, 99).await;
    assert_eq!(texts(&got), ["0", "3", "6", "9"]);
    let stats = world.engine.stream("orders").unwrap().members();
    assert_eq!((stats[0].counts.in_flight, stats[0].counts.ready), (4, 0));
    drop((got, sub));
    world.end();
}

async fn priorities_come_first(place: Place) {
    let world = place.open().started();
    let mut sub = world.subscribe(options("orders")).await;
    let publisher = world.publisher().await;
    for (text, priority) in [("a", 0), ("b", 5), ("c", -1), ("d", 5)] {
        let sent = publisher.send(text_envelope("orders", text).with_priority(priority)).await;
        assert!(sent.is_confirmed());
    }
    assert_eq!(texts(&now(&mut sub, 9).await), ["b", "d", "a", "c"]);
    drop(sub);
    world.end();
}

async fn a_name_keeps_its_place(place: Place) {
    let mut world = place.open().started();
    let mut sub = world.subscribe(options("orders").named("w")).await;
    world.publish("orders", &["1", "2", "3"]).await;
    let mut got = now(&mut sub, 9).await;
    got.remove(1).ack().await.unwrap();
    let tokens: Vec<_> = got.into_iter().map(|d| d.token).collect();
    drop(sub);
    if place.is_durable() {
        // Tokens hold no engine open.
        world.end();
        world = place.open().started();
    }
    let mut sub = world.subscribe(options("orders").named("w").from(StartAt::First)).await;
    let again = now(&mut sub, 9).await;
    assert_eq!(texts(&again), ["1", "3"]);
    assert!(again.iter().all(|d| d.attempt == 2 && d.redelivered));
    for token in tokens {
        assert_eq!(kind(token.settle(postroad_core::Outcome::Ack).await), ErrorKind::StaleToken);
    }
    for delivery in again {
        delivery.ack().await.unwrap();
    }
    drop(sub);
    world.end();
}

async fn a_forgotten_name_begins_again(place: Place) {
    let world = place.open().started();
    let sub = world.subscribe(options("orders").named("w")).await;
    let forget = |name: &str| world.backend.forget("orders".parse().unwrap(), name.into());
    assert_eq!(kind(forget("w").await), ErrorKind::Busy);
    assert_eq!(kind(forget("x").await), ErrorKind::NotFound);
    world.publish("orders", &["1"]).await;
    drop(sub);
    forget("w").await.unwrap();
    let mut sub = world.subscribe(options("orders").named("w")).await;
    assert!(now(&mut sub, 9).await.is_empty());
    drop(sub);
    world.end();
}

//! Windows: never exceeded, in count and in bytes, over all subjects; and full up to the last message that fits.

use std::time::Duration;

use postroad_core::settle_all;

use super::*;

in_both! {
    a_window_of_messages
    a_window_of_bytes_is_exact
    one_too_large_comes_alone
    a_window_is_that_of_all_subjects
    the_end_of_a_lease_makes_room
    two_full_consumers_leave_it_to_a_third
    full_consumers_do_not_wake_each_other_for_ever
}

/// Of `bytes` bytes in a window, its subject included.
fn sized(topic: &str, bytes: usize) -> Envelope {
    let envelope = text_envelope(topic, &"x".repeat(bytes - topic.len()));
    assert_eq!(envelope.len_bytes(), bytes);
    envelope
}

async fn send(world: &World, envelopes: Vec<Envelope>) {
    for ticket in world.publisher().await.publish_batch(envelopes) {
        assert!(ticket.await.is_confirmed());
    }
}

async fn a_window_of_messages(place: Place) {
    let world = place.open().started();
    let mut sub = world.subscribe(options("orders").window(2, u64::MAX)).await;
    world.publish("orders", &["1", "2", "3"]).await;
    let mut got = now(&mut sub, 9).await;
    assert_eq!(texts(&got), ["1", "2"]);
    assert!(now(&mut sub, 9).await.is_empty());
    got.pop().unwrap().ack().await.unwrap();
    assert_eq!(texts(&now(&mut sub, 9).await), ["3"]);
    drop((got, sub));
    world.end();
}

async fn a_window_of_bytes_is_exact(place: Place) {
    let world = place.open().started();
    let mut sub = world.subscribe(options("orders").named("w").window(100, 1000)).await;
    send(&world, (0..25).map(|_| sized("orders", 100)).collect()).await;
    let mut got = now(&mut sub, 100).await;
    assert_eq!(got.len(), 10);
    assert!(now(&mut sub, 100).await.is_empty());
    settle_all(got.drain(..3).map(|d| d.token), postroad_core::Outcome::Ack).await.unwrap();
    let more = now(&mut sub, 100).await;
    assert_eq!(more.iter().map(|d| d.position.unwrap()).collect::<Vec<_>>(), [11, 12, 13]);
    drop((got, more, sub));
    // What was looked at and did not fit was not tried.
    let mut sub = world.subscribe(options("orders").named("w").window(100, u64::MAX)).await;
    let rest = now(&mut sub, 100).await;
    assert_eq!(rest.len(), 22);
    assert!(rest.iter().all(|d| d.attempt == if d.position.unwrap() <= 13 { 2 } else { 1 }));
    drop((rest, sub));
    world.end();
}

async fn one_too_large_comes_alone(place: Place) {
    let world = place.open().started();
    let mut sub = world.subscribe(options("orders").window(100, 1000)).await;
    send(&world, vec![sized("orders", 5000), sized("orders", 10), sized("orders", 5000)]).await;
    for bytes in [5000, 10, 5000] {
        let got = now(&mut sub, 9).await;
        assert_eq!(got.iter().map(|d| d.envelope.len_bytes()).collect::<Vec<_>>(), [bytes]);
        assert!(now(&mut sub, 9).await.is_empty());
        for delivery in got {
            delivery.ack().await.unwrap();
        }
    }
    drop(sub);
    world.end();
}

async fn a_window_is_that_of_all_subjects(place: Place) {
    let world = place.open().started();
    let mut sub = world.subscribe(options("t/*").window(100, 1000)).await;
    let topics: Vec<_> = (0..5).map(|n| format!("t/{n}")).collect();
    send(&world, topics.iter().flat_map(|t| [sized(t, 150), sized(t, 150)]).collect()).await;
    let mut seen = 0;
    while seen < 10 {
        let got = now(&mut sub, 100).await;
        let bytes: usize = got.iter().map(|d| d.envelope.len_bytes()).sum();
        assert!(bytes <= 1000 && (got.len() == 6 || seen + got.len() == 10), "{}", got.len());
        seen += got.len();
        // One by one: each settle of one subject makes room for another.
        for delivery in got {
            delivery.ack().await.unwrap();
        }
    }
    let mut few = world.subscribe(options("u/*").window(3, u64::MAX)).await;
    send(&world, (0..5).map(|n| sized(&format!("u/{n}"), 10)).collect()).await;
    let got = now(&mut few, 100).await;
    assert_eq!(got.len(), 3);
    assert!(now(&mut few, 100).await.is_empty());
    // A settle wakes who waits for another subject.
    let (waiting, ack) = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| await_in_time(few.next()).map(drop));
        let ack = await_in_time(got.into_iter().next().unwrap().ack());
        (waiting.join().unwrap(), ack)
    });
    waiting.and(ack).unwrap();
    drop((sub, few));
    world.end();
}

async fn the_end_of_a_lease_makes_room(place: Place) {
    let world = place.open().started();
    let mut sub = world.subscribe(options("orders").window(10, 100).ack_wait(Duration::from_secs(1))).await;
    send(&world, vec![sized("orders", 90), sized("orders", 90)]).await;
    let first = next(&mut sub).await;
    assert!(now(&mut sub, 9).await.is_empty());
    world.advance(Duration::from_secs(1));
    let second = next(&mut sub).await;
    assert_eq!((second.position, second.attempt), (Some(1), 2));
    drop((first, second, sub));
    world.end();
}

async fn two_full_consumers_leave_it_to_a_third(place: Place) {
    let world = place.open().started();
    let of = |bytes| options("orders").named("g").shared().window(100, bytes);
    let mut one = world.subscribe(of(100)).await;
    let mut two = world.subscribe(of(100)).await;
    let mut three = world.subscribe(of(1000)).await;
    send(&world, (0..6).map(|_| sized("orders", 90)).collect()).await;
    let (a, b) = (now(&mut one, 9).await, now(&mut two, 9).await);
    assert_eq!((a.len(), b.len()), (1, 1));
    assert!(now(&mut one, 9).await.is_empty() && now(&mut two, 9).await.is_empty());
    let c = now(&mut three, 9).await;
    assert_eq!(c.len(), 4);
    assert!(a.iter().chain(&b).chain(&c).all(|d| d.attempt == 1));
    let busy = world.backend.subscribe(options("orders").named("g")).await;
    assert_eq!(kind(busy), ErrorKind::Busy);
    drop((a, b, c, one, two, three));
    world.end();
}

async fn full_consumers_do_not_wake_each_other_for_ever(place: Place) {
    let world = place.open().started();
    let of = || options("orders").named("g").shared().window(100, 100);
    let mut subs = [world.subscribe(of()).await, world.subscribe(of()).await];
    send(&world, (0..6).map(|_| sized("orders", 90)).collect()).await;
    let held = [now(&mut subs[0], 9).await, now(&mut subs[1], 9).await];
    assert!(held.iter().all(|held| held.len() == 1));
    // Each gives back what does not fit, which may be something for the other one.
    let wakers = [counting(), counting()];
    let mut seen = [usize::MAX; 2];
    for round in 0.. {
        assert!(round < 10, "they go on and on");
        let woken: Vec<_> = (0..2).filter(|at| wakers[*at].0.count() != seen[*at]).collect();
        if woken.is_empty() {
            break;
        }
        for at in woken {
            seen[at] = wakers[at].0.count();
            let mut cx = Context::from_waker(&wakers[at].1);
            assert!(subs[at].poll_fill(&mut cx, &mut Vec::new(), 9).is_pending());
        }
    }
    drop((held, subs));
    world.end();
}

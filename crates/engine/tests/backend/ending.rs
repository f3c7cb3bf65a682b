//! Draining, closing, opening by URL, and a log that fails.

use std::path::Path;
use std::time::Duration;

use postroad_core::{DrainReport, Receipt, Registry, RetryHint};
use postroad_engine::backend::register;
use postroad_journal::storage::SimStorage;

use super::*;

in_both! {
    a_drain_waits_for_verdicts
    a_drain_ends_at_its_deadline
    a_closed_backend_says_so
}

async fn a_drain_waits_for_verdicts(place: Place) {
    let world = place.open().started();
    let mut sub = world.subscribe(options("orders").named("w")).await;
    world.publish("orders", &["1", "2", "3"]).await;
    let got = now(&mut sub, 2).await;
    sub.begin_drain(Timestamp::from_millis(u64::MAX));
    assert_eq!(kind(sub.next().await), ErrorKind::Closed);
    let report = std::thread::scope(|scope| {
        let draining = scope.spawn(|| await_in_time(poll_fn(|cx| sub.poll_drain(cx))));
        for delivery in got {
            await_in_time(delivery.ack()).unwrap();
        }
        draining.join().unwrap().unwrap()
    });
    assert_eq!(report, DrainReport { settled: 2, returned: 0, timed_out: false });
    // Drained is gone: another one can have it.
    let mut next_one = world.subscribe(options("orders").named("w")).await;
    assert_eq!(texts(&now(&mut next_one, 9).await), ["3"]);
    drop((sub, next_one));
    world.end();
}

async fn a_drain_ends_at_its_deadline(place: Place) {
    let world = place.open().started();
    let mut sub = world.subscribe(options("orders").named("w")).await;
    world.publish("orders", &["1", "2"]).await;
    let mut got = now(&mut sub, 2).await;
    sub.begin_drain(START.saturating_add(Duration::from_secs(5)));
    assert!(sub.poll_drain(&mut Context::from_waker(Waker::noop())).is_pending());
    got.pop().unwrap().ack().await.unwrap();
    let (wakes, waker) = counting();
    assert!(sub.poll_drain(&mut Context::from_waker(&waker)).is_pending());
    world.advance(Duration::from_millis(4999));
    assert_eq!(wakes.count(), 0);
    world.advance(Duration::from_millis(1));
    assert_eq!(wakes.count(), 1);
    let report = poll_fn(|cx| sub.poll_drain(cx)).await.unwrap();
    assert_eq!(report, DrainReport { settled: 1, returned: 1, timed_out: true });
    assert_eq!(poll_fn(|cx| sub.poll_drain(cx)).await.unwrap(), report);
    assert_eq!(kind(got.pop().unwrap().ack().await), ErrorKind::StaleToken);
    drop(sub);
    world.end();
}

async fn a_closed_backend_says_so(place: Place) {
    let world = place.open().started();
    let mut sub = world.subscribe(options("orders")).await;
    let publisher = world.publisher().await;
    let ticket = publisher.publish(text_envelope("orders", "1"));
    let delivery = next(&mut sub).await;
    world.backend.close().await.unwrap();
    assert!(ticket.try_get().unwrap().is_confirmed());
    assert_eq!(kind(publisher.ready().await), ErrorKind::Closed);
    let refused = publisher.publish(text_envelope("orders", "2")).await;
    assert!(matches!(refused, Receipt::Refused(error) if error.kind() == ErrorKind::Closed));
    assert_eq!(kind(sub.next().await), ErrorKind::Closed);
    assert_eq!(kind(delivery.ack().await), ErrorKind::Closed);
    assert_eq!(kind(world.backend.subscribe(options("orders")).await), ErrorKind::Closed);
    assert_eq!(kind(world.backend.publisher().await), ErrorKind::Closed);
    world.backend.close().await.unwrap();
    // The engine is not the backend's.
    let other = EngineBackend::new(Arc::clone(&world.engine));
    assert!(other.publisher().await.unwrap().send(text_envelope("orders", "3")).await.is_confirmed());
    drop(other);
    world.end();
}

/// Waits for a future, and commits on this thread whenever it is not there yet.
fn await_committing<F: Future>(world: &World, future: F) -> F::Output {
    let mut future = pin!(future);
    for _ in 0..10 {
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => return output,
            Poll::Pending => world.engine.flush(true),
        };
    }
    panic!("ten commits were not enough");
}

#[test]
fn a_drain_waits_for_the_commits_of_verdicts() {
    let place = Place::journal();
    let world = place.open();
    let mut sub = await_committing(&world, world.subscribe(options("orders").named("w")));
    await_committing(&world, world.publish("orders", &["1", "2"]));
    let got = await_in_time(now(&mut sub, 9));
    assert_eq!(got.len(), 2);
    let (wakes, waker) = counting();
    let cx = &mut Context::from_waker(&waker);
    assert!(sub.poll_drain(cx).is_pending());
    for mut settled in got.into_iter().map(Delivery::ack) {
        assert!(settled.try_get().is_none());
    }
    assert!(sub.poll_drain(cx).is_pending());
    let before = wakes.count();
    world.engine.flush(true);
    assert!(wakes.count() > before);
    let Poll::Ready(Ok(report)) = sub.poll_drain(cx) else { panic!("not drained") };
    assert_eq!(report, DrainReport { settled: 2, returned: 0, timed_out: false });
}

#[test]
fn a_url_opens_an_engine_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let mut registry = Registry::new();
    register(&mut registry);
    let url = format!("engine:{}?sync=os", dir.path().display());
    let connect = || await_in_time(registry.connect(&url));
    let backend = connect().unwrap();
    let publisher = await_in_time(backend.publisher()).unwrap();
    assert!(await_in_time(publisher.send(text_envelope("orders", "1"))).is_confirmed());
    assert_eq!(kind(connect()), ErrorKind::Busy);
    await_in_time(backend.close()).unwrap();
    // Though the publisher is still there.
    let again = connect().unwrap();
    let from_first = options("orders").from(postroad_core::StartAt::First);
    let mut sub = await_in_time(again.subscribe(from_first)).unwrap();
    let delivery = await_in_time(sub.next()).unwrap();
    assert_eq!(delivery.envelope.payload, "1");
    // Without a close, the last one that goes shuts it down; a token is nobody.
    drop((again, sub));
    drop(connect().unwrap());
    drop((delivery, publisher));
    assert_eq!(kind(await_in_time(registry.connect("engine:/dev/null/x"))), ErrorKind::Config);
    assert_eq!(kind(await_in_time(registry.connect("engine:"))), ErrorKind::Config);
}

#[test]
fn after_a_failed_sync_a_publish_is_unknown() {
    let storage = SimStorage::new(1);
    let store = JournalStore::open_on(
        Arc::new(storage.clone()),
        Path::new("data"),
        1 << 20,
        CommitterOptions::default(),
        1,
    );
    let engine = Engine::open_with(EngineConfig::default(), Arc::new(store.unwrap()), None).unwrap();
    let backend = EngineBackend::new(Arc::clone(&engine));
    let publisher = await_in_time(backend.publisher()).unwrap();
    let mut sub = {
        let subscribing = backend.subscribe(options("orders"));
        await_in_time(subscribing).unwrap()
    };
    // Somebody waits, who has nothing to do with what fails.
    let mut idle = await_in_time(backend.subscribe(options("idle"))).unwrap();
    let (wakes, waker) = counting();
    assert!(idle.poll_fill(&mut Context::from_waker(&waker), &mut Vec::new(), 1).is_pending());
    let ticket = publisher.publish(text_envelope("orders", "1"));
    storage.fail_at(storage.calls() + 1, postroad_journal::storage::FaultKind::Eio);
    engine.start(Box::new(drop)).unwrap();
    match await_in_time(ticket) {
        Receipt::Unknown(error) => {
            assert_eq!((error.kind(), error.retry_hint()), (ErrorKind::Disconnected, RetryHint::Never));
        }
        other => panic!("{other:?}"),
    }
    for sub in [&mut sub, &mut idle] {
        assert_eq!(kind(await_in_time(sub.next())), ErrorKind::Disconnected);
        assert_eq!(kind(await_in_time(sub.next())), ErrorKind::Closed);
    }
    assert_eq!(wakes.count(), 1);
    assert_eq!(kind(await_in_time(publisher.ready())), ErrorKind::Disconnected);
}

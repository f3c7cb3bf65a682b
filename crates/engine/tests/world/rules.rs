//! Rules by name, each on the simulated disk; those of delivery in memory too.

use crate::world::{Nobody, Setup, nobody};
use postroad_core::mailbox::{Verdict, Window};
use postroad_core::{ManualClock, StartAt, Timestamp};
use postroad_engine::log::{JournalStore, LogStore, MemoryStore, PayloadKind};
use postroad_engine::{
    Consumer, Delivered, Engine, EngineConfig, EngineError, LagPolicy, NewEvent, Note, PolicyRequest,
    Published, Retention, SubscribeRequest,
};
use postroad_journal::storage::{CrashMode, SimStorage, Storage};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

struct Bench {
    engine: Arc<Engine>,
    // None: in memory.
    store: Option<Arc<JournalStore>>,
    clock: Arc<ManualClock>,
}

fn on_disk(config: EngineConfig, storage: &SimStorage) -> Bench {
    let setup = Setup { segment_bytes: config.segment_bytes, ..Setup::default() };
    let clock = Arc::new(ManualClock::new(Timestamp::from_millis(1_700_000_000_000)));
    let (store, engine) = setup.open_with(config, storage, &clock, 1).unwrap();
    Bench { engine, store: Some(store), clock }
}

fn config() -> EngineConfig {
    EngineConfig { segment_bytes: 1 << 20, retention: Retention::default(), ..EngineConfig::default() }
}

fn in_memory() -> Bench {
    let clock = Arc::new(ManualClock::new(Timestamp::from_millis(1_700_000_000_000)));
    let store: Arc<dyn LogStore> = Arc::new(MemoryStore::new(1 << 30));
    Bench { engine: Engine::open_with(config(), store, Some(clock.clone())).unwrap(), store: None, clock }
}

/// Each delivery scenario on both kinds of log.
fn both(scenario: impl Fn(&Bench)) {
    scenario(&on_disk(config(), &SimStorage::new(1)));
    scenario(&in_memory());
}

fn request(filter: &str, name: Option<&str>, window: u32) -> SubscribeRequest {
    SubscribeRequest {
        filter: filter.parse().unwrap(),
        name: name.map(str::to_owned),
        group: false,
        from: StartAt::First,
        window: Window { count: window, bytes: u64::MAX },
        policy: PolicyRequest::default(),
    }
}

impl Bench {
    fn sub(&self, request: SubscribeRequest) -> Consumer {
        self.engine.subscribe(request, Arc::new(Nobody)).unwrap().0
    }

    fn publish(&self, topic: &str, priority: i64, id: Option<&str>, payload: &str) -> Published {
        let event = NewEvent {
            priority,
            id: id.map(str::as_bytes),
            headers: None,
            kind: PayloadKind::Json,
            payload: payload.as_bytes(),
        };
        let stream = self.engine.stream_or_create(&topic.parse().unwrap()).unwrap();
        let published = stream.publish(&[event]).unwrap();
        self.commit();
        published
    }

    fn commit(&self) {
        for _ in 0..6 {
            match &self.store {
                Some(store) => while store.committer().commit_now().unwrap() {},
                None => assert!(!self.engine.flush(true)),
            }
        }
    }

    fn pass(&self, millis: u64) {
        self.clock.advance(Duration::from_millis(millis));
        self.engine.tick().unwrap();
        self.commit();
    }
}

fn take(consumer: &Consumer, max: usize) -> Vec<Delivered> {
    let mut out = Vec::new();
    consumer.take(max, usize::MAX, &mut out);
    out
}

fn seqs(delivered: &[Delivered]) -> Vec<u64> {
    delivered.iter().map(|d| d.event.seq).collect()
}

fn settle(consumer: &Consumer, topic: &str, first: u64, last: u64, verdict: &Verdict) -> u64 {
    let mut counts = Vec::new();
    consumer.settle(topic, &[(first, last)], verdict, &mut counts).unwrap();
    counts[0]
}

fn bury() -> Verdict {
    Verdict::Dead { reason: "enough".into() }
}

#[test]
fn an_exclusive_subscription_has_one_consumer() {
    both(|bench| {
        let first = bench.sub(request("a", Some("x"), 1));
        let second = bench.engine.subscribe(request("a", Some("x"), 1), nobody());
        assert!(matches!(second, Err(EngineError::InUse)));
        assert!(matches!(bench.engine.forget("a", "x"), Err(EngineError::InUse)));
        drop(first);
        bench.sub(request("a", Some("x"), 1));
    });
}

#[test]
fn a_group_gives_each_message_to_one_consumer() {
    both(|bench| {
        let group = || bench.sub(SubscribeRequest { group: true, ..request("a", Some("g"), 4) });
        let consumers = [group(), group(), group()];
        for i in 0..12 {
            bench.publish("a", 0, None, &i.to_string());
        }
        let mut all: Vec<u64> = consumers.iter().flat_map(|c| seqs(&take(c, 4))).collect();
        all.sort_unstable();
        assert_eq!(all, (1..=12).collect::<Vec<_>>());
        assert_eq!(settle(&consumers[1], "a", 1, 4, &Verdict::Ack), 0, "held by another one");
        let [first, second, _third] = consumers;
        drop(first);
        assert_eq!(settle(&second, "a", 5, 8, &Verdict::Ack), 4);
        let again = take(&second, 9);
        assert_eq!(seqs(&again), [1, 2, 3, 4]);
        assert!(again.iter().all(|d| d.attempt == 2));
    });
}

#[test]
fn a_wildcard_gets_later_topics_and_counts_one_window() {
    both(|bench| {
        let consumer = bench.sub(SubscribeRequest { from: StartAt::New, ..request("a/>", Some("w"), 5) });
        for topic in ["a/1", "a/2", "a/3", "b"] {
            for i in 0..4 {
                bench.publish(topic, 0, None, &i.to_string());
            }
        }
        let first = take(&consumer, 100);
        assert_eq!(first.len(), 5);
        assert!(take(&consumer, 100).is_empty(), "the window is full");
        let topic = first[0].stream.topic().as_str().to_owned();
        let done = settle(&consumer, &topic, 0, u64::MAX, &Verdict::Ack);
        assert_eq!(take(&consumer, 100).len() as u64, done);
        let mut total = 5 + done;
        loop {
            let mut done = 0;
            for topic in ["a/1", "a/2", "a/3"] {
                done += settle(&consumer, topic, 0, u64::MAX, &Verdict::Ack);
            }
            if done == 0 {
                break;
            }
            total += take(&consumer, 100).len() as u64;
        }
        assert_eq!(total, 12);
    });
}

#[test]
fn priority_comes_first_then_sequence() {
    both(|bench| {
        let consumer = bench.sub(request("a", None, 10));
        for priority in [0, 5, -3, 5, 0] {
            bench.publish("a", priority, None, "1");
        }
        assert_eq!(seqs(&take(&consumer, 10)), [2, 4, 1, 5, 3]);
        let retry = Verdict::Retry { after: None, reason: None };
        assert_eq!(settle(&consumer, "a", 4, 5, &retry), 2);
        assert_eq!(seqs(&take(&consumer, 10)), [4, 5]);
    });
}

#[test]
fn a_lease_ends_and_deliveries_run_out() {
    both(|bench| {
        let policy = PolicyRequest {
            ack_wait: Some(Duration::from_millis(100)),
            backoff: Some(vec![Duration::from_millis(50)]),
            max_deliveries: Some(2),
        };
        let consumer = bench.sub(SubscribeRequest { policy, ..request("a", Some("x"), 10) });
        bench.publish("a", 0, None, "1");
        assert_eq!(take(&consumer, 1)[0].attempt, 1);
        bench.pass(99);
        assert!(take(&consumer, 1).is_empty());
        bench.pass(1);
        assert!(take(&consumer, 1).is_empty(), "it waits");
        bench.pass(50);
        assert_eq!(take(&consumer, 1)[0].attempt, 2);
        bench.pass(100);
        assert_eq!(bench.engine.stream("$dead/a").unwrap().log_stats().last, 1);
        let (kicked, _) = bench.engine.kick(&"a".parse().unwrap(), 9).unwrap();
        bench.commit();
        assert_eq!((kicked, seqs(&take(&consumer, 9))), (1, vec![2]));
        assert_eq!(bench.engine.kick(&"a".parse().unwrap(), 9).unwrap().0, 0);
    });
}

#[test]
fn an_id_is_remembered_over_a_restart_as_text() {
    let storage = SimStorage::new(1);
    let config = EngineConfig { dedup_window: Duration::from_secs(60), ..config() };
    let bench = on_disk(config.clone(), &storage);
    assert_eq!(bench.publish("a", 0, Some("2"), "1").first, 1);
    assert_eq!(bench.publish("a", 0, Some("\"2\""), "1").duplicate_of, 1);
    bench.engine.shutdown().unwrap();
    drop(bench);
    let bench = on_disk(config, &storage);
    let again = bench.publish("a", 0, Some("\"2\""), "1");
    assert_eq!((again.first, again.duplicates, again.duplicate_of), (0, 1, 1));
    bench.pass(60_000);
    assert_eq!(bench.publish("a", 0, Some("2"), "1").first, 2);
}

#[test]
fn opening_a_log_again_fences_the_first_writer() {
    let storage = SimStorage::new(1);
    let clock = Arc::new(ManualClock::new(Timestamp::from_millis(1)));
    let (store, engine) = Setup::default().open_with(config(), &storage, &clock, 1).unwrap();
    let bench = Bench { engine, store: Some(store.clone()), clock };
    bench.publish("a", 0, None, "1");
    let _second = store.open("a", &mut |_| Ok(())).unwrap();
    let event = NewEvent { priority: 0, id: None, headers: None, kind: PayloadKind::Json, payload: b"2" };
    let refused = bench.engine.stream("a").unwrap().publish(&[event]);
    assert!(matches!(refused, Err(EngineError::Log(postroad_engine::log::LogError::Fenced))), "{refused:?}");
    assert!(bench.engine.stream("a").unwrap().barrier().is_err());
}

#[test]
fn retention_leaves_no_ghosts_and_state_survives_with_the_newest_segments() {
    let storage = SimStorage::new(1);
    let retention = Retention { max_events: Some(10), ..Retention::default() };
    let config = EngineConfig { segment_bytes: 1000, retention, ..config() };
    let bench = on_disk(config.clone(), &storage);
    let consumer = bench.sub(request("a", Some("x"), 200));
    bench.publish("a", 0, None, "\"first\"");
    assert_eq!(seqs(&take(&consumer, 1)), [1]);
    for i in 0..100 {
        bench.publish("a", i % 3, None, "\"some text that fills the segment\"");
    }
    let last = bench.engine.stream("a").unwrap().log_stats().last;
    assert_eq!(take(&consumer, 200).len(), 100);
    assert_eq!(settle(&consumer, "a", last, last, &Verdict::Ack), 1);
    assert_eq!(settle(&consumer, "a", 98, 99, &bury()), 2);
    bench.commit();
    bench.engine.maintain().unwrap();
    let stats = bench.engine.stream("a").unwrap().log_stats();
    assert!(stats.first > 80 && stats.last - stats.first + 1 >= 10, "{stats:?}");
    let lost: u64 =
        consumer.notes().iter().map(|note| if let Note::Lagged(_, lost) = note { *lost } else { 0 }).sum();
    assert!(lost > 50);
    let counts = bench.engine.stream("a").unwrap().members()[0].counts;
    assert!(counts.pending() <= stats.last - stats.first + 1);
    assert!(seqs(&take(&consumer, 1000)).iter().all(|seq| *seq >= stats.first));
    assert!(bench.engine.stream("a").unwrap().read(1).unwrap().is_none());
    let pending = counts.pending();
    storage.crash(CrashMode::DropUnsynced);
    drop((consumer, bench));
    let bench = on_disk(config, &storage);
    let member = bench.engine.stream("a").unwrap().members().remove(0);
    assert_eq!(
        (member.counts.pending(), bench.engine.stream("a").unwrap().log_stats().first),
        (pending, stats.first)
    );
}

#[test]
fn who_lags_too_far_is_detached() {
    let storage = SimStorage::new(1);
    let config = EngineConfig { lag_events: Some(5), lag_policy: LagPolicy::Detach, ..config() };
    let bench = on_disk(config, &storage);
    let consumer = bench.sub(request("a", Some("x"), 1));
    for _ in 0..5 {
        bench.publish("a", 0, None, "1");
    }
    bench.engine.maintain().unwrap();
    assert_eq!(bench.engine.stream("a").unwrap().members().len(), 1);
    bench.publish("a", 0, None, "1");
    bench.engine.maintain().unwrap();
    assert!(bench.engine.stream("a").unwrap().members().is_empty());
    assert_eq!(consumer.notes(), [Note::Detached("a".into())]);
    assert!(take(&consumer, 1).is_empty());
    assert!(matches!(bench.engine.forget("a", "x"), Err(EngineError::NotFound(_))));
}

#[test]
fn the_catalog_is_compacted() {
    let storage = SimStorage::new(1);
    let config = EngineConfig { segment_bytes: 4000, ..config() };
    let bench = on_disk(config.clone(), &storage);
    bench.sub(request("a", Some("stays"), 1));
    for i in 0..700 {
        let name = format!("n{i}");
        drop(bench.sub(request("a", Some(&name), 1)));
        bench.engine.forget("a", &name).unwrap();
        if i % 50 == 0 {
            bench.commit();
            bench.engine.maintain().unwrap();
        }
    }
    bench.commit();
    bench.engine.shutdown().unwrap();
    drop(bench);
    for _ in 0..2 {
        let bench = on_disk(config.clone(), &storage);
        // The first turn begins it anew, the second removes what that replaces.
        for _ in 0..2 {
            bench.commit();
            bench.engine.maintain().unwrap();
        }
        let members = bench.engine.stream("a").unwrap().members();
        assert_eq!(members.iter().map(|m| m.title.as_str()).collect::<Vec<_>>(), ["a as stays"]);
        bench.engine.shutdown().unwrap();
        let files = storage.list(Path::new("/data/catalog")).unwrap();
        let bytes: u64 = files.iter().map(|file| file.len).sum();
        assert!(files.len() <= 2 && bytes < 9000, "{files:?}");
    }
}

#[test]
fn a_catalog_whose_snapshot_takes_several_commits_is_never_lost() {
    let storage = SimStorage::new(1);
    let setup = Setup { max_batch_bytes: 300, segment_bytes: 1500, ..Setup::default() };
    let clock = Arc::new(ManualClock::new(Timestamp::from_millis(1)));
    let (store, engine) = setup.open(&storage, &clock, 1).unwrap();
    let bench = Bench { engine, store: Some(store.clone()), clock };
    for promised in 0..40_usize {
        drop(bench.sub(request("a", Some(&format!("n{promised}")), 1)));
        while store.committer().commit_now().unwrap() {
            bench.engine.maintain().unwrap();
            let disk = storage.fork(promised as u64);
            disk.crash(CrashMode::DropUnsynced);
            // In the next life retention may not take what an unfinished snapshot was to replace.
            let (_, engine) = setup.open(&disk, &bench.clock, 2).unwrap();
            engine.maintain().unwrap();
            drop(engine);
            disk.crash(CrashMode::DropUnsynced);
            let (_, engine) = setup.open(&disk, &bench.clock, 3).unwrap();
            let there = engine.stream("a").map_or(0, |stream| stream.members().len());
            assert!(there >= promised, "{there} of {promised} subscriptions are there");
        }
    }
}

#[test]
fn dead_letters_of_two_lives_are_two() {
    let storage = SimStorage::new(1);
    for life in 1..=2 {
        let bench = on_disk(config(), &storage);
        bench.publish("a", 0, None, "1");
        // Its number is free again after a restart.
        let consumer = bench.sub(request("a", None, 10));
        assert_eq!(seqs(&take(&consumer, 1)), [1]);
        assert_eq!(settle(&consumer, "a", 1, 1, &bury()), 1);
        bench.commit();
        assert_eq!(bench.engine.stream("$dead/a").unwrap().log_stats().last, life);
        drop(consumer);
        bench.engine.shutdown().unwrap();
    }
}

#[test]
fn a_pending_message_costs_at_most_64_bytes() {
    let bench = in_memory();
    let disk = on_disk(EngineConfig { segment_bytes: 64 << 20, ..config() }, &SimStorage::new(1));
    for bench in [&disk, &bench] {
        let consumer = bench.sub(request("a", Some("x"), 10));
        let stream = bench.engine.stream("a").unwrap();
        let mut rng = fastrand::Rng::with_seed(7);
        const COUNT: usize = 200_000;
        for _ in 0..COUNT / 1000 {
            let events: Vec<NewEvent<'_>> = (0..1000)
                .map(|_| NewEvent {
                    priority: rng.i64(-3..4),
                    id: None,
                    headers: None,
                    kind: PayloadKind::Json,
                    payload: b"1",
                })
                .collect();
            stream.publish(&events).unwrap();
        }
        bench.commit();
        assert_eq!(stream.members()[0].counts.ready, COUNT as u64);
        let each = stream.memory() / COUNT;
        assert!(each <= 64, "{each} bytes for each pending message");
        drop(consumer);
    }
}

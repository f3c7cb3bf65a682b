//! A snapshot that a crash cut off: what came before it is still needed, in this life and in the next ones.

use crate::world::{Setup, nobody};
use postroad_core::mailbox::{Verdict, Window};
use postroad_core::{ManualClock, StartAt, Timestamp};
use postroad_engine::log::{JournalStore, PayloadKind};
use postroad_engine::{Consumer, Engine, NewEvent, PolicyRequest, Retention, SubscribeRequest};
use postroad_journal::storage::{CrashMode, SimStorage};
use std::sync::Arc;

struct Life {
    store: Arc<JournalStore>,
    engine: Arc<Engine>,
}

fn setup(max_batch_bytes: usize) -> Setup {
    let retention = Retention { max_events: Some(1), ..Retention::default() };
    Setup { segment_bytes: 1000, max_batch_bytes, retention, ..Setup::default() }
}

impl Life {
    fn on(disk: &SimStorage, number: u64, batch: usize) -> Self {
        let clock = Arc::new(ManualClock::new(Timestamp::from_millis(1_700_000_000_000)));
        let (store, engine) = setup(batch).open(disk, &clock, number).unwrap();
        Self { store, engine }
    }

    /// Until nothing is left to do, or the machine is dead.
    fn commit(&self) {
        while self.store.committer().commit_now().unwrap_or(false) {}
    }

    fn maintain(&self) {
        // The first turn may begin a snapshot, the second removes what that replaces.
        for _ in 0..2 {
            self.engine.maintain().unwrap();
            self.commit();
        }
    }

    fn publish(&self) {
        let event =
            NewEvent { priority: 0, id: None, headers: None, kind: PayloadKind::Json, payload: b"\"text\"" };
        self.engine.stream_or_create(&"a".parse().unwrap()).unwrap().publish(&[event]).unwrap();
    }

    fn subscribe(&self, filter: &str, name: &str) -> Consumer {
        let request = SubscribeRequest {
            filter: filter.parse().unwrap(),
            name: Some(name.to_owned()),
            group: false,
            from: StartAt::First,
            window: Window { count: 1000, bytes: u64::MAX },
            policy: PolicyRequest::default(),
        };
        self.engine.subscribe(request, nobody()).unwrap().0
    }

    fn first(&self) -> u64 {
        self.engine.stream("a").unwrap().log_stats().first
    }
}

/// The numbers that a consumer gets, each acked, and that committed.
fn ack_all(life: &Life, consumer: &Consumer) -> Vec<u64> {
    let mut out = Vec::new();
    consumer.take(1000, usize::MAX, &mut out);
    let seqs: Vec<u64> = out.iter().map(|delivered| delivered.event.seq).collect();
    if let (Some(first), Some(last)) = (seqs.first(), seqs.last()) {
        consumer.settle("a", &[(*first, *last)], &Verdict::Ack, &mut Vec::new()).unwrap();
        life.commit();
    }
    seqs
}

/// Topic `a`, its segment full, everything in it settled by `a as x`, nothing by `a as y`.
fn full_segment() -> SimStorage {
    let disk = SimStorage::new(1);
    let life = Life::on(&disk, 1, 1 << 20);
    let (x, y) = (life.subscribe("a", "x"), life.subscribe("a", "y"));
    // One that failed: its attempts are in the snapshot, too.
    life.publish();
    life.commit();
    let mut held = Vec::new();
    y.take(1, usize::MAX, &mut held);
    y.settle("a", &[(1, 1)], &Verdict::Retry { after: None, reason: None }, &mut Vec::new()).unwrap();
    let mut size = 0;
    while size < 1000 {
        life.publish();
        life.commit();
        ack_all(&life, &x);
        size = life.engine.stream("a").unwrap().log_stats().bytes;
    }
    assert_eq!(life.engine.stream("a").unwrap().log_stats().segments, 1);
    disk
}

/// Kills the machine in each call to the disk that `act` and its commits make. In the next life some more is settled and retention
/// runs; in the one after that nothing that was settled comes again.
fn nothing_settled_returns(batch: usize, act: impl Fn(&Life)) {
    let full = full_segment();
    let (mut crashes, mut trims) = (0, 0);
    for mode in CrashMode::ALL {
        for call in 1.. {
            let disk = full.fork(call);
            let life = Life::on(&disk, 2, batch);
            disk.crash_at(disk.calls() + call);
            act(&life);
            life.commit();
            if !disk.has_crashed() {
                break;
            }
            drop(life);
            disk.crash(mode);
            crashes += 1;

            let life = Life::on(&disk, 3, batch);
            let before = life.first();
            life.publish();
            life.commit();
            let x = life.subscribe("a", "x");
            let acked = ack_all(&life, &x);
            life.maintain();
            trims += u64::from(life.first() > before);
            drop((x, life));
            disk.crash(CrashMode::DropUnsynced);

            let life = Life::on(&disk, 4, batch);
            let again = ack_all(&life, &life.subscribe("a", "x"));
            assert!(again.is_empty(), "call {call}, {mode:?}: {acked:?} were settled, {again:?} came again");
        }
    }
    assert!(crashes > 10, "{crashes} crashes");
    assert_eq!(trims, crashes, "retention still removes what it should");
}

#[test]
fn a_snapshot_that_is_cut_off_is_not_trimmed_to() {
    // The snapshot takes several commits.
    nothing_settled_returns(100, Life::publish);
    nothing_settled_returns(1 << 20, Life::publish);
}

#[test]
fn who_joins_at_a_start_does_not_leave_others_out_of_the_snapshot() {
    nothing_settled_returns(1 << 20, |life| {
        // The catalog is written before the topic: killed in between, `late` joins the topic at the next start.
        drop(life.subscribe("z/*", "first"));
        drop(life.subscribe(">", "late"));
    });
}

/// A stream's log and the catalog are two: a crash may take a new subscription from one and leave it in the other. Its
/// id must then not become that of the next subscription, which would begin where the lost one stood.
#[test]
fn the_id_of_a_subscription_that_a_crash_took_is_not_given_again() {
    let full = full_segment();
    let mut crashes = 0;
    for mode in CrashMode::ALL {
        for call in 1.. {
            let disk = full.fork(call);
            let life = Life::on(&disk, 2, 1 << 20);
            disk.crash_at(disk.calls() + call);
            let request = SubscribeRequest {
                filter: "a".parse().unwrap(),
                name: Some("lost".to_owned()),
                group: false,
                from: StartAt::New,
                window: Window { count: 1000, bytes: u64::MAX },
                policy: PolicyRequest::default(),
            };
            let lost = life.engine.subscribe(request, nobody());
            life.commit();
            if !disk.has_crashed() {
                break;
            }
            drop((lost, life));
            disk.crash(mode);
            crashes += 1;

            // The next one may be taken from the other of the two.
            for second in 1.. {
                let disk = disk.fork(second);
                let life = Life::on(&disk, 3, 1 << 20);
                disk.crash_at(disk.calls() + second);
                drop(life.subscribe("a", "from the first"));
                life.commit();
                let dead = disk.has_crashed();
                drop(life);
                disk.crash(mode);

                let life = Life::on(&disk, 4, 1 << 20);
                let expected = life.engine.stream("a").unwrap().log_stats().last;
                let got = ack_all(&life, &life.subscribe("a", "from the first"));
                assert_eq!(got.len() as u64, expected, "calls {call} and {second}, {mode:?}");
                if !dead {
                    break;
                }
            }
        }
    }
    assert!(crashes > 10, "{crashes} crashes");
}

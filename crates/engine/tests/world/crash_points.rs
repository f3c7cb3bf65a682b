//! A crash in every single call to the disk of a scenario with everything in it.

use crate::cases;
use crate::cast::{From, Op};
use crate::world::{Setup, World};
use postroad_engine::Retention;
use postroad_journal::storage::{CrashMode, SimStorage};

pub fn scenario() -> Vec<Op> {
    let publish = |topic, count, priority, id, size| Op::Pub { topic, count, priority, id, size };
    let take = |consumer, max| Op::Take { consumer, max };
    let ack = |consumer, at, span| Op::Ack { consumer, at, span };
    let bury = |consumer, at, span| Op::Bury { consumer, at, span };
    let nack = |consumer, at, delay| Op::Nack { consumer, at, span: 0, delay };
    vec![
        publish(0, 3, 0, Some(1), 30),
        Op::Commit,
        Op::Sub { cast: 0, from: From::First },
        Op::Sub { cast: 1, from: From::First },
        Op::Sub { cast: 1, from: From::First },
        Op::Commit,
        Op::Sub { cast: 2, from: From::First },
        Op::Sub { cast: 3, from: From::First },
        publish(0, 4, 2, None, 700),
        publish(1, 2, 0, Some(3), 50),
        Op::Commit,
        take(0, 3),
        take(1, 2),
        take(2, 2),
        take(3, 4),
        take(4, 9),
        ack(0, 1, 0),
        nack(1, 0, Some(300)),
        nack(2, 0, None),
        nack(4, 0, Some(0)),
        Op::Commit,
        bury(1, 0, 0),
        bury(3, 0, 0),
        ack(4, 2, 3),
        Op::Commit,
        Op::Time { millis: 1000 },
        Op::CommitOne,
        take(1, 2),
        take(2, 2),
        Op::Touch { consumer: 1, at: 0, span: 0 },
        publish(2, 2, 1, Some(5), 600),
        publish(0, 3, -1, Some(1), 200),
        Op::Commit,
        Op::Maintain,
        take(0, 3),
        ack(0, 0, 9),
        Op::Detach { consumer: 1 },
        Op::Forget { cast: 1 },
        Op::CommitOne,
        Op::Time { millis: 2500 },
        Op::Commit,
        Op::Kick { topic: 0, max: 2 },
        take(0, 3),
        bury(0, 0, 1),
        Op::Restart,
        Op::Sub { cast: 3, from: From::New },
        take(0, 30),
        nack(0, 0, None),
        ack(0, 3, 2),
        Op::Commit,
        Op::Forget { cast: 0 },
        publish(0, 2, 0, None, 900),
        publish(1, 2, 0, None, 900),
        Op::Commit,
        Op::Maintain,
        Op::Sub { cast: 0, from: From::Last },
        publish(0, 3, 0, Some(1), 1200),
        ack(0, 0, 1),
        Op::Commit,
    ]
}

/// What the life after a crash does, so that it is seen to go on.
fn sequel() -> Vec<Op> {
    let all = |op: fn(usize) -> Op| (0..3).map(op);
    let mut ops = vec![
        Op::Sub { cast: 3, from: From::First },
        Op::Sub { cast: 0, from: From::First },
        Op::Sub { cast: 2, from: From::New },
        Op::Pub { topic: 0, count: 2, priority: 1, id: None, size: 400 },
        Op::Pub { topic: 2, count: 1, priority: 0, id: None, size: 40 },
        Op::Commit,
    ];
    ops.extend(all(|consumer| Op::Take { consumer, max: 5 }));
    ops.extend(all(|consumer| Op::Ack { consumer, at: 1, span: 1 }));
    ops.push(Op::Commit);
    ops.extend(all(|consumer| Op::Nack { consumer, at: 0, span: 0, delay: None }));
    ops.push(Op::CommitOne);
    ops
}

/// The ways to crash in call `k`: the worst one, and the others in turn; all of them if more cases are asked for.
fn modes(k: u64) -> Vec<(CrashMode, u64)> {
    let others = [
        (CrashMode::RandomSectors, 0),
        (CrashMode::KeepAll, 0),
        (CrashMode::RandomSectors, 1),
        (CrashMode::RandomPrefix, 0),
    ];
    let all = cases(1) > 1;
    let others =
        others.into_iter().enumerate().filter(|(i, _)| all || *i as u64 == k % 4).map(|(_, mode)| mode);
    std::iter::once((CrashMode::DropUnsynced, 0)).chain(others).collect()
}

/// Crashes the scenario in call `k`, in every way. True if there was no such call any more.
fn crash_in(setup: &Setup, ops: &[Op], k: u64) -> Result<bool, String> {
    for (mode, seed) in modes(k) {
        let storage = SimStorage::new(seed * 10_000 + k);
        storage.crash_at(k);
        let mut world = World::new(setup, &storage);
        world.run(ops).map_err(|e| format!("before the crash: {e}"))?;
        let over = !storage.has_crashed();
        let after = |world: &mut World| {
            world.crash(mode)?;
            world.run(&sequel())?;
            world.crash(CrashMode::DropUnsynced).map_err(|e| format!("second crash: {e}"))
        };
        after(&mut world).map_err(|e| format!("crash at call {k}, {mode:?}, seed {seed}: {e}"))?;
        if over {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Crashes in every `step`-th call: the first violation, or how many calls there are.
pub fn crash_everywhere(setup: &Setup, step: usize) -> Result<u64, String> {
    let ops = scenario();
    let mut k = 1;
    while !crash_in(setup, &ops, k)? {
        k += step as u64;
    }
    Ok(k)
}

#[test]
fn a_crash_in_any_call_takes_nothing_that_was_promised() {
    let calls = crash_everywhere(&Setup::default(), 1).unwrap();
    assert!(calls > 150, "{calls} calls are not much of a scenario");
}

#[test]
fn nor_with_small_commits_and_retention() {
    let retention = Retention { max_events: Some(6), ..Retention::default() };
    let setup =
        Setup { retention, segment_bytes: 1000, max_batch_bytes: 250, dedup_window: 0, ..Setup::default() };
    crash_everywhere(&setup, 3).unwrap();
}

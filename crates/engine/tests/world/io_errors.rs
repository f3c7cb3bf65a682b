//! Disks that fail: after an error nothing is promised any more; a full disk only makes wait.

use crate::cast::{From, Op};
use crate::crash_points::scenario;
use crate::world::{Setup, World};
use postroad_journal::storage::{CrashMode, FaultKind, SimStorage};

fn calls() -> u64 {
    let storage = SimStorage::new(1);
    World::new(&Setup::default(), &storage).run(&scenario()).unwrap();
    storage.calls()
}

/// The `k`-th call fails with `kind`; then the machine is reset.
fn fail_in(k: u64, kind: FaultKind) -> Result<bool, String> {
    let storage = SimStorage::new(k);
    storage.fail_at(k, kind);
    let mut world = World::new(&Setup::default(), &storage);
    let outcome = world.run(&scenario());
    let mut final_failure = false;
    if let Some(engine) = world.engine.clone()
        && engine.failure().is_some()
    {
        final_failure = true;
        let committed = engine.committed();
        for _ in 0..3 {
            if let Some(stream) = engine.stream("b").or_else(|| engine.stream("a/1")) {
                let _ = stream.barrier();
            }
            engine.flush(true);
            let _ = world.store.as_ref().unwrap().committer().commit_now();
        }
        if engine.committed() != committed || engine.admit().is_ok() {
            return Err("something was promised after the log failed".into());
        }
        if outcome.is_ok() {
            return Err("the failure was not noticed".into());
        }
    }
    world.crash(CrashMode::DropUnsynced)?;
    Ok(final_failure)
}

#[test]
fn after_an_error_nothing_is_promised_and_nothing_promised_is_lost() {
    let mut failures = 0;
    for (kind, step) in [(FaultKind::Eio, 1), (FaultKind::ShortWriteThenEio, 3)] {
        for k in (1..=calls()).step_by(step) {
            let failed = fail_in(k, kind).unwrap_or_else(|e| panic!("call {k}, {kind:?}: {e}"));
            failures += u64::from(failed);
        }
    }
    assert!(failures > 50, "{failures} errors reached the log");
}

#[test]
fn short_writes_and_signals_change_nothing() {
    for kind in [FaultKind::ShortWrite, FaultKind::EintrOnce] {
        for k in (1..=calls()).step_by(2) {
            let storage = SimStorage::new(k);
            storage.fail_at(k, kind);
            let mut world = World::new(&Setup::default(), &storage);
            world.run(&scenario()).unwrap_or_else(|e| panic!("call {k}, {kind:?}: {e}"));
        }
    }
}

#[test]
fn a_full_disk_makes_wait_and_goes_on_when_space_returns() {
    for room in (0..6000).step_by(97) {
        let storage = SimStorage::new(room);
        let mut world = World::new(&Setup::default(), &storage);
        let publish = |topic, size| Op::Pub { topic, count: 3, priority: 0, id: None, size };
        world.run(&[publish(0, 300), Op::Sub { cast: 0, from: From::First }, Op::Commit]).unwrap();
        let used = (1 << 40) - world.store.as_ref().unwrap().committer().stats().free;
        let used = used.max(1500);
        storage.set_capacity(Some(used + room));
        let mut full = None;
        for _ in 0..12 {
            let step = world.run(&[publish(0, 250), publish(1, 100), Op::Take { consumer: 0, max: 1 }]);
            let step = step.and_then(|()| world.run(&[Op::Ack { consumer: 0, at: 0, span: 0 }, Op::Commit]));
            if let Err(error) = step {
                full = Some(error);
                break;
            }
        }
        let full = full.unwrap_or_else(|| panic!("room {room}: the disk never filled"));
        assert!(full.contains("full") || full.contains("free"), "room {room}: {full}");
        let engine = world.engine().clone();
        assert!(engine.failure().is_none(), "room {room}: a full disk is no failure: {full}");
        assert!(engine.admit().is_err());
        storage.set_capacity(None);
        world.note_commits().unwrap();
        world.commit().unwrap_or_else(|e| panic!("room {room}, space is back: {e}"));
        engine.maintain().unwrap();
        world.run(&[publish(0, 50), Op::Take { consumer: 0, max: 2 }, Op::Commit]).unwrap();
        world.crash(CrashMode::DropUnsynced).unwrap_or_else(|e| panic!("room {room}: {e}"));
    }
}

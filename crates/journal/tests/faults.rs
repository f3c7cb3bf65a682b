//! Every call to the disk fails once, in every way; and a disk that is full.

mod common;

use std::path::Path;

use common::{Run, Setup, Step, buffered_workload, check_after_crash, workload};
use postroad_journal::{
    JournalError, SyncMode,
    storage::{Call, CrashMode, FaultKind, SimStorage, Storage},
};

fn calls(setup: &Setup, steps: &[Step]) -> u64 {
    let storage = SimStorage::new(0);
    Run::new(setup, &storage).run(steps).unwrap();
    storage.calls()
}

/// Runs the workload with call `k` failing; the run as far as it came.
fn run_with_fault(setup: &Setup, steps: &[Step], k: u64, kind: FaultKind) -> (Run, Result<(), JournalError>) {
    let storage = SimStorage::new(k);
    storage.fail_at(k, kind);
    let mut run = Run::new(setup, &storage);
    let outcome = match run.open() {
        Ok(checked) => {
            checked.unwrap();
            run.run(steps)
        }
        Err(error) => Err(error),
    };
    (run, outcome)
}

fn each_call(setup: &Setup, kind: FaultKind, mut check: impl FnMut(u64, Run, Result<(), JournalError>)) {
    for steps in [workload(setup.logs), buffered_workload(setup.logs)] {
        for k in 1..=calls(setup, &steps) {
            let (run, outcome) = run_with_fault(setup, &steps, k, kind);
            check(k, run, outcome);
        }
    }
}

fn setups() -> [Setup; 3] {
    [Setup::default(), Setup { preallocate: true, ..Setup::default() }, Setup { logs: 4, ..Setup::default() }]
}

#[test]
fn interrupted_and_short_calls_are_nobodys_business() {
    for setup in setups() {
        for kind in [FaultKind::EintrOnce, FaultKind::ShortWrite] {
            each_call(&setup, kind, |k, run, outcome| {
                outcome.unwrap_or_else(|e| panic!("{kind:?} at call {k}: {e}"));
                run.storage.crash(CrashMode::DropUnsynced);
                check_after_crash(&run, &run.storage).unwrap_or_else(|e| panic!("{kind:?} at call {k}: {e}"));
            });
        }
    }
}

#[test]
fn after_an_error_nothing_more_is_promised_and_nothing_promised_is_lost() {
    for setup in setups() {
        for kind in [FaultKind::Eio, FaultKind::ShortWriteThenEio] {
            each_call(&setup, kind, |k, mut run, outcome| {
                let failed = run.storage.trace()[k as usize - 1].0;
                if outcome.is_err() && matches!(failed, Call::SyncData | Call::SyncAll | Call::Write) {
                    // Whatever comes later must not count as committed.
                    let before: Vec<usize> = run.models.iter().map(|m| m.committed).collect();
                    if let Some(opened) = &run.opened
                        && opened.committer.failure().is_some()
                    {
                        assert!(opened.committer.admit().is_err());
                        for _ in 0..3 {
                            let error = run.step(&Step::Publish { log: 0, sizes: vec![1] });
                            let commit = run.step(&Step::Commit);
                            assert!(error.is_err() || commit.is_err(), "call {k}: the failure was forgotten");
                        }
                        let after: Vec<usize> = run.models.iter().map(|m| m.committed).collect();
                        assert_eq!(before, after, "call {k}: promised after a failed {failed:?}");
                    }
                }
                for mode in [CrashMode::DropUnsynced, CrashMode::KeepAll, CrashMode::RandomSectors] {
                    let disk = run.storage.fork(k);
                    disk.crash(mode);
                    check_after_crash(&run, &disk)
                        .unwrap_or_else(|e| panic!("{kind:?} at call {k} ({failed:?}), then {mode:?}: {e}"));
                }
            });
        }
    }
}

#[test]
fn a_full_disk_at_any_call_is_waited_for_or_reported() {
    let both = |setup: Setup| {
        [(setup.clone(), workload(setup.logs)), (setup.clone(), buffered_workload(setup.logs))]
    };
    for (setup, steps) in setups().into_iter().flat_map(both) {
        for k in 1..=calls(&setup, &steps) {
            let storage = SimStorage::new(k);
            storage.fail_at(k, FaultKind::Enospc);
            let mut run = Run::new(&setup, &storage);
            if let Ok(checked) = run.open() {
                checked.unwrap();
                for step in &steps {
                    // Space is back at once: the same step goes through, and nothing was lost in between.
                    match run.step(step) {
                        Err(error) if matches!(step, Step::Commit) && error.is_disk_full() => {
                            assert!(run.opened.as_ref().unwrap().committer.admit().is_err());
                            run.step(step).unwrap_or_else(|e| panic!("call {k}: {e}"));
                        }
                        Err(_) => break,
                        Ok(()) => {}
                    }
                }
            }
            storage.crash(CrashMode::DropUnsynced);
            check_after_crash(&run, &storage).unwrap_or_else(|e| panic!("ENOSPC at call {k}: {e}"));
        }
    }
}

#[test]
fn a_disk_that_fills_up_stops_commits_and_goes_on_when_there_is_space() {
    for preallocate in [false, true] {
        let setup = Setup { preallocate, segment_bytes: 8000, ..Setup::default() };
        let storage = SimStorage::new(3);
        storage.set_capacity(Some(40_000));
        let mut run = Run::new(&setup, &storage);
        run.run(&[]).unwrap();
        let mut rounds = 0;
        let error = loop {
            rounds += 1;
            assert!(rounds < 100, "the disk never filled up");
            run.step(&Step::Publish { log: 0, sizes: vec![500, 500] }).unwrap();
            if let Err(error) = run.step(&Step::Commit) {
                break error;
            }
        };
        assert!(matches!(error, JournalError::DiskFull), "{error}");
        let committer = run.opened.as_ref().unwrap().committer.clone();
        assert!(committer.failure().is_none(), "a full disk is no failure");
        assert!(matches!(committer.admit(), Err(JournalError::DiskFull)));
        assert!(run.step(&Step::Commit).is_err(), "still full");
        assert!(run.models[0].committed < run.models[0].appended.len());

        // A kill now loses nothing that was promised, full disk or not.
        let killed = storage.fork(9);
        killed.crash(CrashMode::DropUnsynced);
        killed.set_capacity(None);
        check_after_crash(&run, &killed).unwrap();

        storage.set_capacity(Some(80_000));
        run.step(&Step::Commit).unwrap();
        assert_eq!(run.models[0].committed, run.models[0].appended.len());
        run.step(&Step::Publish { log: 0, sizes: vec![500] }).unwrap();
        run.step(&Step::Commit).unwrap();
        committer.admit().unwrap();
        storage.crash(CrashMode::DropUnsynced);
        check_after_crash(&run, &storage).unwrap();
    }
}

#[test]
fn above_the_floor_publishing_stops_while_small_records_still_fit() {
    let setup = Setup { disk_floor: 400_000, segment_bytes: 8 << 20, preallocate: true, ..Setup::default() };
    let storage = SimStorage::new(3);
    storage.set_capacity(Some(2 << 20));
    let mut run = Run::new(&setup, &storage);
    run.run(&[]).unwrap();
    let committer = run.opened.as_ref().unwrap().committer.clone();
    let mut rounds = 0;
    while committer.admit().is_ok() {
        rounds += 1;
        assert!(rounds < 3000, "the floor was never reached");
        run.step(&Step::Publish { log: 0, sizes: vec![900] }).unwrap();
        run.step(&Step::Commit).unwrap();
    }
    assert!(matches!(committer.admit(), Err(JournalError::DiskFull)));
    assert!(
        storage.free_bytes(Path::new(common::ROOT)).unwrap() > 0,
        "stopped before the disk was really full"
    );
    for _ in 0..50 {
        run.step(&Step::Mark { log: 0 }).unwrap();
        run.step(&Step::Commit).unwrap();
    }
    // Space returns, and nobody has to restart anything.
    storage.set_capacity(Some(8 << 20));
    committer.measure_disk();
    committer.admit().unwrap();
}

#[test]
fn without_sync_a_kill_loses_nothing() {
    // What `sync=os` promises; a power cut may take the end.
    let options = postroad_journal::CommitterOptions {
        sync: SyncMode::Os,
        preallocate: false,
        disk_floor: 0,
        ..Default::default()
    };
    let storage = SimStorage::new(1);
    let open = |storage: &SimStorage| {
        let committer = postroad_journal::Committer::open(
            std::sync::Arc::new(storage.clone()),
            Path::new("/d"),
            options.clone(),
        )
        .unwrap();
        let mut count = 0;
        let journal_options = postroad_journal::JournalOptions { name: "log".into(), segment_bytes: 1 << 20 };
        let opened =
            postroad_journal::Journal::open(&committer, Path::new("/d/log"), journal_options, &mut |_| {
                count += 1;
                Ok(())
            });
        opened.map(|(journal, _)| (committer, journal, count))
    };
    let (committer, journal, _) = open(&storage).unwrap();
    journal.roll(1, 7);
    for _ in 0..20 {
        journal.writer(1).publish(&common::publish(b"1", 0));
        assert!(committer.commit_now().unwrap());
    }
    assert!(!storage.trace().iter().any(|(call, _)| *call == Call::SyncData));
    let power = storage.fork(1);
    power.crash(CrashMode::DropUnsynced);
    let (.., count) = open(&power).unwrap();
    assert!(count < 20);
    storage.crash(CrashMode::KeepAll);
    let (.., count) = open(&storage).unwrap();
    assert_eq!(count, 20);
}

#[test]
fn a_deletion_that_fails_leaves_no_gap() {
    let options = postroad_journal::CommitterOptions { disk_floor: 0, ..Default::default() };
    let open = |storage: &SimStorage| {
        let disk = std::sync::Arc::new(storage.clone());
        let committer = postroad_journal::Committer::open(disk, Path::new("/d"), options.clone()).unwrap();
        let options = postroad_journal::JournalOptions { name: "log".into(), segment_bytes: 1 };
        let opened =
            postroad_journal::Journal::open(&committer, Path::new("/d/log"), options, &mut |_| Ok(()));
        opened.map(|(journal, _)| (committer, journal))
    };
    for call in 1..=6 {
        let storage = SimStorage::new(call);
        let (committer, journal) = open(&storage).unwrap();
        for number in 0..6 {
            journal.roll(1, number);
            journal.writer(1).publish(&common::publish(b"1", 0));
            while committer.commit_now().unwrap() {}
        }
        storage.fail_at(storage.calls() + call, FaultKind::Eio);
        let failed = journal.trim(4);
        assert!(failed.is_err(), "call {call}");
        // A later turn may not delete what comes behind it.
        let _ = journal.trim(6);
        for mode in CrashMode::ALL {
            let disk = storage.fork(call);
            disk.crash(mode);
            if let Err(error) = open(&disk) {
                panic!("call {call}, {mode:?}: {error}");
            }
        }
    }
}

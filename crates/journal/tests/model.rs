//! Any order of appends, commits, rolls, trims, restarts and crashes, against the model.

mod common;

use common::{Run, Setup, Step};
use postroad_journal::{
    PayloadKind,
    storage::{CrashMode, SimStorage},
};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Action {
    Step(Step),
    /// Die this many calls from now, at the latest after the next few steps.
    CrashSoon(u64, CrashMode),
    Crash(CrashMode),
}

fn log() -> impl Strategy<Value = usize> {
    0..2_usize
}

fn mode() -> impl Strategy<Value = CrashMode> {
    prop::sample::select(CrashMode::ALL.to_vec())
}

fn action() -> impl Strategy<Value = Action> {
    let sizes = prop::collection::vec(prop_oneof![4 => 0..60_usize, 1 => 400..1600_usize], 1..8);
    prop_oneof![
        4 => (log(), sizes.clone()).prop_map(|(log, sizes)| Action::Step(Step::Buffered { log, sizes })),
        1 => Just(Action::Step(Step::Sync)),
        6 => (log(), sizes).prop_map(|(log, sizes)| Action::Step(Step::Publish { log, sizes })),
        2 => log().prop_map(|log| Action::Step(Step::Mark { log })),
        5 => Just(Action::Step(Step::Commit)),
        1 => log().prop_map(|log| Action::Step(Step::Roll { log })),
        1 => (log(), any::<u8>()).prop_map(|(log, fraction)| Action::Step(Step::Trim { log, fraction })),
        1 => Just(Action::Step(Step::Restart)),
        2 => (1..12_u64, mode()).prop_map(|(calls, mode)| Action::CrashSoon(calls, mode)),
        1 => mode().prop_map(Action::Crash),
    ]
}

/// Every message that the log says it has can be read, and is the one that was appended.
fn check_reads(run: &Run) {
    let Some(opened) = &run.opened else { return };
    for (model, (journal, ..)) in run.models.iter().zip(&opened.logs) {
        let stats = journal.stats();
        let mut events = Vec::new();
        let seqs: Vec<u64> = (stats.first..=stats.committed).collect();
        journal.read_many(&seqs, &mut events).unwrap();
        assert_eq!(events.len(), seqs.len());
        let expected = model.appended.iter().filter(|(r, _)| r.kind == "pub" && seqs.contains(&r.seq));
        for (event, (record, _)) in events.iter().zip(expected) {
            assert_eq!((event.seq, event.kind), (record.seq, PayloadKind::Json));
            assert_eq!(event.payload, record.content.as_bytes());
        }
        assert_eq!(journal.read(stats.committed + 1).unwrap(), None, "what is not committed cannot be read");
        assert_eq!(journal.seek_time(0).unwrap(), stats.first);
        assert_eq!(journal.seek_time(u64::MAX).unwrap(), stats.committed + 1);
        if let Some(event) = events.last() {
            let found = journal.seek_time(event.time).unwrap();
            let first = events.iter().find(|e| e.time >= event.time).map(|e| e.seq);
            assert_eq!(Some(found), first);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, max_shrink_iters: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_log_is_what_was_appended(
        seed in any::<u64>(), preallocate in any::<bool>(), actions in prop::collection::vec(action(), 1..40),
    ) {
        let setup = Setup { logs: 2, preallocate, ..Setup::default() };
        let storage = SimStorage::new(seed);
        let mut run = Run::new(&setup, &storage);
        run.run(&[]).unwrap();
        let mut later = CrashMode::KeepAll;
        for action in &actions {
            let crash = match action {
                Action::Step(step) => match run.step(step) {
                    Ok(()) => None,
                    Err(error) => {
                        prop_assert!(storage.has_crashed(), "{step:?}: {error}");
                        Some(later)
                    }
                },
                Action::CrashSoon(calls, mode) => {
                    storage.crash_at(storage.calls() + calls);
                    later = *mode;
                    None
                }
                Action::Crash(mode) => Some(*mode),
            };
            if let Some(mode) = crash {
                storage.crash(mode);
                let result = run.open().map_err(|e| TestCaseError::fail(format!("after {mode:?}: {e}")))?;
                prop_assert_eq!(result, Ok(()), "after {:?}", mode);
            }
            if !storage.has_crashed() {
                // Not counted as calls of the log, so that a crash still comes where it was planned.
                let aside = storage.fork(1);
                let mut copy = run.reborn(&aside);
                prop_assert_eq!(copy.open().unwrap(), Ok(()));
                check_reads(&copy);
            }
        }
    }
}

#[test]
fn every_line_of_every_file_is_json() {
    let setup = Setup { logs: 2, preallocate: true, ..Setup::default() };
    let storage = SimStorage::new(1);
    let mut run = Run::new(&setup, &storage);
    run.run(&common::workload(2)).unwrap();
    let mut lines = 0;
    for log in 0..2 {
        for (_, bytes) in common::segments(&storage, &setup.dir(log)) {
            let text = std::str::from_utf8(&bytes).unwrap();
            for line in text.lines().filter(|line| !line.is_empty()) {
                let value: serde_json::Value = serde_json::from_str(line).unwrap();
                assert!(value["s"].is_u64() && value["t"].is_u64() && value["k"].is_string(), "{line}");
                lines += 1;
            }
        }
    }
    assert!(lines > 30);
}

#[test]
fn an_empty_segment_between_others_is_no_damage() {
    let setup = Setup::default();
    let storage = SimStorage::new(0);
    let mut run = Run::new(&setup, &storage);
    let roll = [Step::Roll { log: 0 }, Step::Commit];
    run.run(&[Step::Publish { log: 0, sizes: vec![0] }]).unwrap();
    run.run(&roll).unwrap();
    run.run(&roll).unwrap();
    storage.crash(CrashMode::DropUnsynced);
    run.open().unwrap().unwrap();
    check_reads(&run);
}

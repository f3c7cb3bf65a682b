//! A case that cannot fail is not a test: every lie must be caught.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use postroad_conformance::faulty::{Faulty, Lie};
use postroad_conformance::limited::Limited;
use postroad_conformance::memory::MemoryHarness;
use postroad_conformance::{Case, Harness, Need, Plan, Verdict, cases, run_all};
use postroad_core::{Backend, Capabilities};

/// Which cases fail on this.
fn caught_by(harness: &dyn Harness) -> Vec<&'static str> {
    run_all(harness).failures().map(|entry| entry.case).collect()
}

fn harness(lie: Lie) -> MemoryHarness {
    if Lie::OF_CONNECTIONS.iter().any(|(of_connections, _)| *of_connections == lie) {
        return MemoryHarness::wired(format!("faulty-{lie}"), Some(lie));
    }
    MemoryHarness::wrapped(format!("faulty-{lie}"), move |memory| {
        Arc::new(Faulty::new(memory, lie)) as Arc<dyn Backend>
    })
}

#[test]
fn every_lie_is_caught() {
    let table = Mutex::new(BTreeMap::new());
    let next = Mutex::new(Lie::ALL.iter().enumerate());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let Some((at, lie)) = next.lock().unwrap().next() else { break };
                    let caught = caught_by(&harness(*lie));
                    table.lock().unwrap().insert(at, (*lie, caught));
                }
            });
        }
    });
    let table = table.into_inner().unwrap();
    println!("| lie | cases | the first of them |\n|---|---|---|");
    for (lie, caught) in table.values() {
        println!("| {lie} | {} | {} |", caught.len(), caught[..caught.len().min(3)].join(", "));
    }
    let told: Vec<_> = table.values().filter(|(_, caught)| caught.is_empty()).map(|(lie, _)| lie).collect();
    assert!(told.is_empty(), "nobody caught {told:?}");
    for (lie, case) in Lie::OF_CONNECTIONS {
        let noticed = table.values().any(|(other, caught)| other == lie && caught.contains(case));
        assert!(noticed, "{case} did not catch {lie}");
    }
}

/// What can be declared absent, and still leaves a backend.
fn little() -> Capabilities {
    Capabilities {
        ordering: postroad_core::Ordering::Total,
        redelivery: postroad_core::Support::Native,
        attempts: postroad_core::Attempts::Exact,
        confirm: postroad_core::Support::Native,
        // It cannot be taken away from outside.
        dedup: postroad_core::Support::Native,
        individual_ack: postroad_core::Support::Native,
        ..Capabilities::NONE
    }
}

#[test]
fn what_is_absent_is_refused() {
    let harness = MemoryHarness::wrapped("limited", |memory| {
        Arc::new(Limited::new(memory, little())) as Arc<dyn Backend>
    });
    let report = run_all(&harness);
    let failures: Vec<_> = report.failures().collect();
    assert!(failures.is_empty(), "{failures:#?}");
    let twins = report.entries.iter().filter(|entry| matches!(entry.plan, Plan::Twin(_))).count();
    let others = |case: &&Case| case.twin.is_some_and(|(need, _)| need != Need::Dedup);
    assert_eq!(twins, cases().filter(others).count(), "every twin is run");
}

#[test]
fn silence_where_a_refusal_is_due_is_caught() {
    let harness = MemoryHarness::wrapped("silent", |memory| {
        Arc::new(Limited::new(memory, little()).silent()) as Arc<dyn Backend>
    });
    for entry in run_all(&harness).entries {
        if matches!(entry.plan, Plan::Twin(_)) {
            assert!(matches!(entry.verdict, Verdict::Failed(_)), "{}: {:?}", entry.case, entry.verdict);
        }
    }
}

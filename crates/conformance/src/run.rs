//! Running cases: one, or all into a report.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::case::{Case, Plan, cases, find};
use crate::context::{CaseResult, Context};
use crate::harness::{Failure, Harness, Time};
use crate::report::{Entry, Report};

/// The variable that sets the seed of everything random: a number.
pub const SEED: &str = "POSTROAD_CONFORMANCE_SEED";

fn seed() -> u64 {
    std::env::var(SEED).ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| fastrand::u64(..))
}

/// How a case ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It held.
    Passed,
    /// It did not.
    Failed(Failure),
    /// There was nothing to run.
    Skipped,
}

/// Runs one case on a runtime of its own. The verdict of a failure names the seed.
pub fn run_case(harness: &dyn Harness, case: &Case) -> Entry {
    let plan = case.plan_for(harness);
    let began = Instant::now();
    let run = match (plan, case.twin) {
        (Plan::Run, _) => case.run,
        (Plan::Twin(_), Some((_, twin))) => twin,
        _ => return Entry { case: case.name, plan, verdict: Verdict::Skipped, time: Duration::ZERO },
    };
    let seed = seed();
    let mut runtime = match harness.time() {
        Time::Real => tokio::runtime::Builder::new_multi_thread(),
        Time::Virtual => tokio::runtime::Builder::new_current_thread(),
    };
    let runtime =
        runtime.worker_threads(2).start_paused(harness.time() == Time::Virtual).enable_all().build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(async {
                let environment = harness.start(case.name).await?;
                let tempo = harness.tempo();
                let context = Arc::new(Context { environment, can: harness.capabilities(), tempo, seed });
                // In a task of its own, so that a panic of the backend is a failure of this case only.
                let mut task = tokio::spawn(run(Arc::clone(&context)));
                let result = match tokio::time::timeout(tempo.limit, &mut task).await {
                    Ok(Ok(result)) => result,
                    Ok(Err(panic)) => Err(Failure::new(format!("panicked: {panic}"))),
                    Err(_) => {
                        task.abort();
                        Err(Failure::new(format!("did not end in {:?}", tempo.limit)))
                    }
                };
                context.environment.stop().await;
                result
            });
            runtime.shutdown_timeout(Duration::from_secs(5));
            result
        }
        Err(why) => Err(why.into()),
    };
    let verdict = match result {
        Ok(()) => Verdict::Passed,
        Err(why) => Verdict::Failed(Failure::new(format!("{why} (seed {seed}: {SEED}={seed})"))),
    };
    Entry { case: case.name, plan, verdict, time: began.elapsed() }
}

/// Runs all cases, one after the other.
pub fn run_all(harness: &dyn Harness) -> Report {
    run_some(harness, |_| true)
}

/// Runs the cases that `wanted` chooses, one after the other.
pub fn run_some(harness: &dyn Harness, wanted: impl Fn(&Case) -> bool) -> Report {
    let entries = cases().filter(|case| wanted(case)).map(|case| run_case(harness, case)).collect();
    Report { backend: harness.name().to_owned(), capabilities: harness.capabilities(), entries }
}

/// For [`conformance_tests!`](crate::conformance_tests): runs one case and panics if it fails. A skip prints why.
pub fn test_case(harness: &dyn Harness, name: &str) {
    let Some(case) = find(name) else { panic!("there is no case `{name}`") };
    let entry = run_case(harness, case);
    match entry.plan {
        Plan::Skip(need) => println!("{}: {name} skipped: no {need}", harness.name()),
        Plan::Twin(need) => {
            println!("{}: {name}: no {need}, so asking for it must be refused", harness.name());
        }
        Plan::Run => {}
    }
    if let Verdict::Failed(why) = entry.verdict {
        panic!("{}: {name}: {why}", harness.name());
    }
}

/// Waits for `count` tasks, each of which must succeed.
pub(crate) async fn join_all<T: 'static>(
    tasks: impl IntoIterator<Item = tokio::task::JoinHandle<CaseResult<T>>>,
) -> CaseResult<Vec<T>> {
    let mut results = Vec::new();
    for task in tasks {
        let result = task.await.map_err(|why| Failure::new(format!("a task of the case panicked: {why}")))?;
        results.push(result?);
    }
    Ok(results)
}

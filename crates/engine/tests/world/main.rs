//! The engine in a world without threads: a simulated disk, a clock that stands still, and crashes at any call.
#![allow(missing_docs, unreachable_pub)]

mod cast;
mod crash_points;
mod io_errors;

mod model;
mod planted;

mod random;
mod rules;
mod snapshots;

mod world;

/// How many times the usual number of random cases: `POSTROAD_CASES`.
fn cases(usual: u64) -> u64 {
    let times = std::env::var("POSTROAD_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    usual * times
}

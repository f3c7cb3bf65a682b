//! What the JSON-log door must reach against its peers.

use super::report::{Goal, Report, thousands};
use super::speed::{BULK, DEEP, DELIVER, Load, MANY, ONE};
use crate::server::Kind;

/// One disk sync each way bounds both: rates this close are the same.
const LEVEL: f64 = 0.9;

/// The goals of the loads that were run.
pub(crate) fn of(report: &Report, publish: bool, deliver: bool) -> Vec<Goal> {
    let mut goals = Vec::new();
    let find = |load: Load, kind: Kind| report.find(&load.name(), kind.name());
    let ours = |load| find(load, Kind::Postroad);
    let rate = |load: Load, kind, base: Load| Some(ours(load)?.rate / find(base, kind)?.rate);
    let mut at_least = |name: &str, want: f64, got: Option<f64>, note: &str| {
        goals.push(Goal {
            name: name.into(),
            want: format!(">= {want}x {note}"),
            got: got.map(|got| format!("{got:.2}x")),
            met: got.is_some_and(|got| got >= want),
        });
    };
    if publish {
        at_least("publish 50 x 32", 2.0, rate(DEEP, Kind::Redis, DEEP), "redis");
        at_least("publish 50 x 1", 1.2, rate(MANY, Kind::Redis, MANY), "redis");
        at_least("publish 1 x 1", 1.5, rate(ONE, Kind::Redis, ONE), "redis");
        at_least("publish 1 x 1", LEVEL, rate(ONE, Kind::Beanstalkd, ONE), "beanstalkd (level)");
        at_least("pubn", 4.0, rate(BULK, Kind::Redis, DEEP), "redis 50 x 32");
        let cpu = ours(DEEP)
            .zip(find(DEEP, Kind::Redis))
            .filter(|(_, redis)| redis.cpu_us > 0.0)
            .map(|(ours, redis)| ours.cpu_us / redis.cpu_us);
        goals.push(Goal {
            name: "server CPU per event, 50 x 32".into(),
            want: "<= 1/3 of redis".into(),
            got: cpu.map(|cpu| format!("{cpu:.2}x")),
            met: cpu.is_some_and(|cpu| cpu <= 1.0 / 3.0),
        });
    }
    if deliver {
        let peer = find(DELIVER, Kind::Beanstalkd);
        let want = peer.map_or(250_000.0, |peer| (5.0 * peer.rate).max(250_000.0));
        let note = if peer.is_some() { "250 000, or 5x beanstalkd" } else { "beanstalkd was not measured" };
        let got = ours(DELIVER).map(|sample| sample.rate);
        goals.push(Goal {
            name: DELIVER.name(),
            want: format!(">= {}/s ({note})", thousands(want)),
            got: got.map(|got| format!("{}/s", thousands(got))),
            met: got.is_some_and(|got| got >= want),
        });
    }
    goals
}

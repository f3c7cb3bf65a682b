//! What was measured, as a table, as JSON, and held against the goals.

use super::speed::Load;
use crate::server::Kind;
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use std::fmt::Write;

/// Milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Percentiles {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
}

impl Percentiles {
    pub(crate) fn of(hist: &Histogram<u64>) -> Self {
        let at = |percent| hist.value_at_percentile(percent) as f64 / 1e6;
        Self { p50: at(50.0), p99: at(99.0), p999: at(99.9) }
    }

    fn json(self) -> Value {
        json!({ "p50_ms": self.p50, "p99_ms": self.p99, "p999_ms": self.p999 })
    }
}

/// One measurement, or the median of several.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Sample {
    /// Events a second.
    pub(crate) rate: f64,
    /// CPU time of the server per event, in microseconds.
    pub(crate) cpu_us: f64,
    pub(crate) publish: Percentiles,
    pub(crate) delivery: Option<Percentiles>,
}

/// All measurements of one load on one server.
pub(crate) struct Row {
    pub(crate) load: Load,
    pub(crate) kind: Kind,
    pub(crate) samples: Vec<Sample>,
}

impl Row {
    /// The measurement in the middle, by its rate: figures that belong together stay together.
    pub(crate) fn median(&self) -> Sample {
        let mut sorted = self.samples.clone();
        sorted.sort_by(|a, b| a.rate.total_cmp(&b.rate));
        sorted[sorted.len() / 2]
    }
}

/// Something that must be reached.
pub(crate) struct Goal {
    pub(crate) name: String,
    pub(crate) want: String,
    /// What was measured; `None` if it was not.
    pub(crate) got: Option<String>,
    pub(crate) met: bool,
}

/// Everything a run found out.
#[derive(Default)]
pub(crate) struct Report {
    /// How the run was made: rounds, seconds, sizes.
    pub(crate) setup: String,
    /// Each server's own words about when it answers.
    pub(crate) modes: Vec<String>,
    pub(crate) rows: Vec<Row>,
    pub(crate) goals: Vec<Goal>,
    /// Figures without a goal of their own.
    pub(crate) facts: Vec<String>,
}

impl Report {
    pub(crate) fn find(&self, load: Load, kind: Kind) -> Option<Sample> {
        self.rows.iter().find(|row| row.load == load && row.kind == kind).map(Row::median)
    }

    /// The rate of a row by that of the same load on `other`.
    fn ratio(&self, row: &Row, other: Kind) -> Option<f64> {
        if row.kind == other {
            return None;
        }
        Some(row.median().rate / self.find(row.load, other)?.rate)
    }

    /// The report as Markdown.
    pub(crate) fn markdown(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let out = &mut text;
        let _ = writeln!(out, "# bench jsonlog\n\n{}\n", self.setup);
        if !self.modes.is_empty() {
            let _ = writeln!(out, "Sync mode: {}\n", self.modes.join("; "));
        }
        if !self.rows.is_empty() {
            let _ = writeln!(
                out,
                "| load | server | events/s | server CPU us/event | p50 ms | p99 ms | p99.9 ms | x redis | x beanstalkd |"
            );
            let _ = writeln!(out, "|---|---|--:|--:|--:|--:|--:|--:|--:|");
        }
        for row in &self.rows {
            let sample = row.median();
            let ratio = |other| self.ratio(row, other).map_or_else(String::new, |r| format!("{r:.2}"));
            let (redis, beanstalkd) = (ratio(Kind::Redis), ratio(Kind::Beanstalkd));
            let line = |p: Percentiles| format!("{} | {} | {}", ms(p.p50), ms(p.p99), ms(p.p999));
            let _ = writeln!(
                out,
                "| {} | {} | {} | {:.2} | {} | {redis} | {beanstalkd} |",
                row.load.name(),
                row.kind.name(),
                thousands(sample.rate),
                sample.cpu_us,
                line(sample.publish)
            );
            if let Some(delivery) = sample.delivery {
                let _ = writeln!(
                    out,
                    "| … publish to delivery | {} | | | {} | | |",
                    row.kind.name(),
                    line(delivery)
                );
            }
        }
        if !self.goals.is_empty() {
            let _ = writeln!(out, "\n| goal | wanted | measured | |\n|---|---|---|---|");
        }
        for goal in &self.goals {
            let verdict = match (&goal.got, goal.met) {
                (None, _) => "not measured",
                (_, true) => "pass",
                (_, false) => "MISSED",
            };
            let got = goal.got.as_deref().unwrap_or("");
            let _ = writeln!(out, "| {} | {} | {got} | {verdict} |", goal.name, goal.want);
        }
        for fact in &self.facts {
            let _ = writeln!(out, "\n{fact}");
        }
        text
    }

    pub(crate) fn json(&self) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                let sample = row.median();
                json!({
                    "load": row.load.name(),
                    "server": row.kind.name(),
                    "events_per_s": sample.rate,
                    "server_cpu_us_per_event": sample.cpu_us,
                    "publish": sample.publish.json(),
                    "delivery": sample.delivery.map(Percentiles::json),
                    "rates": row.samples.iter().map(|sample| sample.rate).collect::<Vec<_>>(),
                })
            })
            .collect();
        let goals: Vec<Value> = self
            .goals
            .iter()
            .map(|goal| json!({ "goal": goal.name, "wanted": goal.want, "measured": goal.got, "met": goal.met }))
            .collect();
        json!({
            "setup": self.setup,
            "sync_modes": self.modes,
            "rows": rows,
            "goals": goals,
            "facts": self.facts,
        })
    }
}

/// `1234567.8` as `1 234 568`.
pub(crate) fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// Milliseconds with three digits that mean something.
pub(crate) fn ms(value: f64) -> String {
    match value {
        v if v < 1.0 => format!("{v:.3}"),
        v if v < 10.0 => format!("{v:.2}"),
        v if v < 100.0 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::{Percentiles, Row, Sample, ms, thousands};
    use crate::bench::speed::ONE;
    use crate::server::Kind;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(thousands(1_234_567.8), "1 234 568");
        assert_eq!(thousands(999.0), "999");
        assert_eq!([0.1234, 1.239, 12.34, 1234.5].map(ms), ["0.123", "1.24", "12.3", "1234"]);
    }

    #[test]
    fn the_median_is_one_measurement() {
        let none = Percentiles { p50: 0.0, p99: 0.0, p999: 0.0 };
        let sample = |rate, cpu_us| Sample { rate, cpu_us, publish: none, delivery: None };
        let samples = vec![sample(5.0, 1.0), sample(1.0, 2.0), sample(3.0, 3.0)];
        let row = Row { load: ONE, kind: Kind::Redis, samples };
        assert_eq!(row.median(), sample(3.0, 3.0));
    }
}

//! What was measured, as a table, as JSON, and held against the goals.

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
    /// Events, or whatever the style counts, a second.
    pub(crate) rate: f64,
    /// CPU time of the server for each, in microseconds.
    pub(crate) cpu_us: f64,
    pub(crate) latency: Percentiles,
    /// Where it is another one: from publish to delivery.
    pub(crate) delivery: Option<Percentiles>,
    pub(crate) faults: Faults,
}

/// What a server did to messages that it had taken.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Faults {
    /// Deliveries that never came.
    pub(crate) lost: u64,
    /// Deliveries that came again.
    pub(crate) twice: u64,
}

/// All measurements of one load on one server.
pub(crate) struct Row {
    pub(crate) load: String,
    pub(crate) server: String,
    /// When it answers, in its own words.
    pub(crate) durability: String,
    pub(crate) samples: Vec<Sample>,
}

impl Row {
    /// The measurement in the middle, by its rate, with the latencies in the middle, by their p99: which round had the
    /// middle rate says nothing of what held up a message at another time in it.
    pub(crate) fn median(&self) -> Sample {
        let middle = |key: fn(&Sample) -> f64| {
            let mut sorted = self.samples.clone();
            sorted.sort_by(|a, b| key(a).total_cmp(&key(b)));
            sorted[sorted.len() / 2]
        };
        Sample { latency: middle(|sample| sample.latency.p99).latency, ..middle(|sample| sample.rate) }
    }

    /// What went wrong in all measurements together.
    pub(crate) fn faults(&self) -> Faults {
        self.samples.iter().fold(Faults::default(), |sum, sample| Faults {
            lost: sum.lost + sample.faults.lost,
            twice: sum.twice + sample.faults.twice,
        })
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

/// What a report is about.
pub(crate) struct Style {
    pub(crate) command: &'static str,
    /// What is counted, one of it.
    pub(crate) unit: &'static str,
    /// Above the chart.
    pub(crate) headline: &'static str,
    /// The servers that others are compared with.
    pub(crate) bases: &'static [&'static str],
    /// Whether messages can be lost or come twice; if not, that ends a run.
    pub(crate) faults: bool,
    /// What latencies are those of, when it is not the load itself: ` at half load`.
    pub(crate) latency_at: &'static str,
}

/// Figures that the rows have no column for.
pub(crate) struct Table {
    pub(crate) title: String,
    pub(crate) head: &'static [&'static str],
    pub(crate) rows: Vec<Vec<String>>,
}

impl Table {
    fn markdown(&self, out: &mut String) {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "\n{}\n\n| {} |", self.title, self.head.join(" | "));
        let _ = writeln!(out, "|{}", "---|".repeat(self.head.len()));
        for row in &self.rows {
            let _ = writeln!(out, "| {} |", row.join(" | "));
        }
    }

    fn json(&self) -> Value {
        let row = |row: &Vec<String>| -> Value {
            self.head.iter().zip(row).map(|(name, cell)| ((*name).to_owned(), json!(cell))).collect()
        };
        json!({ "title": self.title, "rows": self.rows.iter().map(row).collect::<Vec<_>>() })
    }
}

/// Everything a run found out.
pub(crate) struct Report {
    pub(crate) style: Style,
    /// How the run was made: rounds, seconds, sizes.
    pub(crate) setup: String,
    pub(crate) rows: Vec<Row>,
    pub(crate) tables: Vec<Table>,
    pub(crate) goals: Vec<Goal>,
    /// Figures without a goal of their own.
    pub(crate) facts: Vec<String>,
}

impl Report {
    pub(crate) fn new(style: Style, setup: String) -> Self {
        Self { style, setup, rows: Vec::new(), tables: Vec::new(), goals: Vec::new(), facts: Vec::new() }
    }

    pub(crate) fn row(&self, load: &str, server: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.load == load && row.server == server)
    }

    pub(crate) fn find(&self, load: &str, server: &str) -> Option<Sample> {
        self.row(load, server).map(Row::median)
    }

    /// Adds a measurement to its row.
    pub(crate) fn add(&mut self, load: &str, server: &str, durability: &str, sample: Sample) {
        match self.rows.iter_mut().find(|row| row.load == load && row.server == server) {
            Some(row) => row.samples.push(sample),
            None => self.rows.push(Row {
                load: load.into(),
                server: server.into(),
                durability: durability.into(),
                samples: vec![sample],
            }),
        }
    }

    /// The rate of a row by that of the same load on `other`.
    fn ratio(&self, row: &Row, other: &str) -> Option<f64> {
        if row.server == other {
            return None;
        }
        Some(row.median().rate / self.find(&row.load, other)?.rate)
    }

    /// The report as Markdown.
    pub(crate) fn markdown(&self) -> String {
        let Style { command, unit, bases, faults, latency_at: at, .. } = self.style;
        let mut text = String::new();
        // Writing to a String cannot fail.
        let out = &mut text;
        let _ = writeln!(out, "# {command}\n\n{}\n", self.setup);
        if !self.rows.is_empty() {
            let _ = write!(
                out,
                "| load | server | durability | {unit}/s | server CPU us/{unit} | p50 ms{at} | p99 ms{at} | p99.9 ms{at} |"
            );
            let _ = write!(out, "{}", if faults { " lost | twice |" } else { "" });
            for base in bases {
                let _ = write!(out, " x {base} |");
            }
            let _ = writeln!(out);
            let numbers = 5 + self.extra_columns();
            let _ = writeln!(out, "|---|---|---|{}", "--:|".repeat(numbers));
        }
        for row in &self.rows {
            let sample = row.median();
            let line = |p: Percentiles| format!("{} | {} | {}", ms(p.p50), ms(p.p99), ms(p.p999));
            let _ = write!(
                out,
                "| {} | {} | {} | {} | {:.2} | {} |",
                row.load,
                row.server,
                row.durability,
                thousands(sample.rate),
                sample.cpu_us,
                line(sample.latency)
            );
            if faults {
                let count = |n: u64| if n == 0 { "0".into() } else { format!("**{n}**") };
                let Faults { lost, twice } = row.faults();
                let _ = write!(out, " {} | {} |", count(lost), count(twice));
            }
            for base in bases {
                let ratio = self.ratio(row, base).map_or_else(String::new, |r| format!("{r:.2}"));
                let _ = write!(out, " {ratio} |");
            }
            let _ = writeln!(out);
            if let Some(delivery) = sample.delivery {
                let rest = " |".repeat(self.extra_columns());
                let _ = writeln!(
                    out,
                    "| … publish to delivery | {} | | | | {} |{rest}",
                    row.server,
                    line(delivery)
                );
            }
        }
        for table in &self.tables {
            table.markdown(out);
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

    fn extra_columns(&self) -> usize {
        self.style.bases.len() + if self.style.faults { 2 } else { 0 }
    }

    pub(crate) fn json(&self) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                let sample = row.median();
                let Faults { lost, twice } = row.faults();
                json!({
                    "load": row.load,
                    "server": row.server,
                    "durability": row.durability,
                    "unit": self.style.unit,
                    "per_s": sample.rate,
                    "server_cpu_us": sample.cpu_us,
                    "lost": lost,
                    "twice": twice,
                    "latency": sample.latency.json(),
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
            "rows": rows,
            "latency_at": self.style.latency_at.trim(),
            "tables": self.tables.iter().map(Table::json).collect::<Vec<_>>(),
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
    use super::{Faults, Percentiles, Report, Sample, Style, Table, ms, thousands};

    const NONE: Percentiles = Percentiles { p50: 0.0, p99: 0.0, p999: 0.0 };

    fn sample(rate: f64, cpu_us: f64, lost: u64) -> Sample {
        Sample { rate, cpu_us, latency: NONE, delivery: None, faults: Faults { lost, twice: 0 } }
    }

    fn report() -> Report {
        let style = Style {
            command: "bench x",
            unit: "delivery",
            headline: "",
            bases: &["other"],
            faults: true,
            latency_at: " at half",
        };
        Report::new(style, String::new())
    }

    #[test]
    fn other_figures_have_a_table_of_their_own() {
        let mut report = report();
        let rows = vec![vec!["1:1".into(), "0.97".into()]];
        report.tables.push(Table { title: "Slow.".into(), head: &["load", "ratio"], rows });
        let text = report.markdown();
        assert!(text.ends_with("\nSlow.\n\n| load | ratio |\n|---|---|\n| 1:1 | 0.97 |\n"), "{text}");
        assert_eq!(report.json()["tables"][0]["rows"][0]["ratio"], "0.97");
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!(thousands(1_234_567.8), "1 234 568");
        assert_eq!(thousands(999.0), "999");
        assert_eq!([0.1234, 1.239, 12.34, 1234.5].map(ms), ["0.123", "1.24", "12.3", "1234"]);
    }

    #[test]
    fn rate_and_latency_have_each_their_median() {
        let mut report = report();
        let late = |p99| Percentiles { p50: p99 / 2.0, p99, p999: p99 };
        for (rate, cpu, p99) in [(5.0, 1.0, 4.0), (1.0, 2.0, 6.0), (3.0, 3.0, 2.0)] {
            report.add("load", "ours", "disk", Sample { latency: late(p99), ..sample(rate, cpu, 0) });
        }
        assert_eq!(report.find("load", "ours"), Some(Sample { latency: late(4.0), ..sample(3.0, 3.0, 0) }));
    }

    #[test]
    fn a_loss_in_any_round_is_in_the_table_and_so_is_the_ratio() {
        let mut report = report();
        for lost in [0, 7] {
            report.add("load", "ours", "disk", sample(300.0, 1.0, lost));
            report.add("load", "other", "memory", sample(200.0, 1.0, 0));
        }
        let text = report.markdown();
        assert!(text.contains("| p99 ms at half |"), "{text}");
        assert!(
            text.contains("| load | ours | disk | 300 | 1.00 | 0.000 | 0.000 | 0.000 | **7** | 0 | 1.50 |"),
            "{text}"
        );
        assert!(
            text.contains("| load | other | memory | 200 | 1.00 | 0.000 | 0.000 | 0.000 | 0 | 0 |  |"),
            "{text}"
        );
        let widths: Vec<usize> =
            text.lines().filter(|line| line.starts_with('|')).map(|line| line.matches('|').count()).collect();
        assert!(widths.iter().all(|width| *width == widths[0]), "{text}");
        assert_eq!(report.json()["rows"][0]["lost"], 7);
    }
}

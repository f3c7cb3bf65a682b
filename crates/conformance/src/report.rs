//! What a run of the kit says: for people, for continuous integration, and for the table of a README.

use std::fmt::Write as _;
use std::time::Duration;

use postroad_core::Capabilities;
use serde_json::json;

use crate::case::Plan;
use crate::certificate::describe;
use crate::run::Verdict;

/// One case of a report.
#[derive(Debug, Clone)]
pub struct Entry {
    /// `GROUP/NAME`.
    pub case: &'static str,
    /// What was to be done with it.
    pub plan: Plan,
    /// How it ended.
    pub verdict: Verdict,
    /// How long it took, on the world's clock.
    pub time: Duration,
}

/// A run of the kit on one backend.
#[derive(Debug, Clone)]
pub struct Report {
    /// The harness's name.
    pub backend: String,
    /// What the backend says that it can do.
    pub capabilities: Capabilities,
    /// The cases, in the order of the registry.
    pub entries: Vec<Entry>,
}

impl Report {
    /// Those that failed.
    pub fn failures(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| matches!(entry.verdict, Verdict::Failed(_)))
    }

    /// Whether none failed.
    pub fn is_passed(&self) -> bool {
        self.failures().next().is_none()
    }

    /// How many passed as they are, passed as their negative twin, failed, were skipped.
    pub fn counts(&self) -> [usize; 4] {
        let mut counts = [0; 4];
        for entry in &self.entries {
            let at = match (&entry.verdict, entry.plan) {
                (Verdict::Passed, Plan::Twin(_)) => 1,
                (Verdict::Passed, _) => 0,
                (Verdict::Failed(_), _) => 2,
                (Verdict::Skipped, _) => 3,
            };
            counts[at] += 1;
        }
        counts
    }

    /// As one JSON object.
    pub fn to_json(&self) -> String {
        let [passed, absent, failed, skipped] = self.counts();
        let cases: Vec<_> = self
            .entries
            .iter()
            .map(|entry| {
                let (result, text) = match &entry.verdict {
                    Verdict::Passed => ("passed", None),
                    Verdict::Failed(why) => ("failed", Some(why.to_string())),
                    Verdict::Skipped => ("skipped", None),
                };
                let (plan, missing) = match entry.plan {
                    Plan::Run => ("run", None),
                    Plan::Twin(need) => ("absent", Some(need.as_str())),
                    Plan::Skip(need) => ("skip", Some(need.as_str())),
                };
                json!({
                    "case": entry.case, "plan": plan, "missing": missing, "result": result, "text": text,
                    "seconds": entry.time.as_secs_f64(),
                })
            })
            .collect();
        let capabilities: serde_json::Map<_, _> = describe(&self.capabilities)
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.into()))
            .collect();
        json!({
            "backend": self.backend,
            "passed": passed, "absent": absent, "failed": failed, "skipped": skipped,
            "capabilities": capabilities, "cases": cases,
        })
        .to_string()
    }

    /// As a JUnit `testsuite`.
    pub fn to_junit(&self) -> String {
        let [passed, absent, failed, skipped] = self.counts();
        let total: Duration = self.entries.iter().map(|entry| entry.time).sum();
        let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
        let backend = escape(&self.backend);
        let _ = writeln!(
            xml,
            "<testsuite name=\"conformance-{backend}\" tests=\"{}\" failures=\"{failed}\" skipped=\"{skipped}\" time=\"{:.3}\">",
            passed + absent + failed + skipped,
            total.as_secs_f64()
        );
        for entry in &self.entries {
            let _ = write!(
                xml,
                "  <testcase classname=\"{backend}\" name=\"{}\" time=\"{:.3}\"",
                escape(entry.case),
                entry.time.as_secs_f64()
            );
            let _ = match (&entry.verdict, entry.plan) {
                (Verdict::Passed, _) => writeln!(xml, "/>"),
                (Verdict::Failed(why), _) => {
                    writeln!(xml, "><failure message=\"{}\"/></testcase>", escape(&why.to_string()))
                }
                (Verdict::Skipped, Plan::Skip(need)) => {
                    writeln!(xml, "><skipped message=\"no {}\"/></testcase>", escape(need.as_str()))
                }
                (Verdict::Skipped, _) => writeln!(xml, "><skipped/></testcase>"),
            };
        }
        xml.push_str("</testsuite>\n");
        xml
    }

    /// The head of the table that [`to_markdown_row`](Self::to_markdown_row) continues.
    pub fn markdown_head(&self) -> String {
        let names: Vec<_> = describe(&self.capabilities).into_iter().map(|(name, _)| name).collect();
        format!("| backend | {} | cases |\n|---{}|\n", names.join(" | "), "|---".repeat(names.len() + 1))
    }

    /// One row of a Markdown table: what it can do, and how many cases passed.
    pub fn to_markdown_row(&self) -> String {
        let [passed, absent, failed, skipped] = self.counts();
        let values: Vec<_> = describe(&self.capabilities).into_iter().map(|(_, value)| value).collect();
        let mut cases = format!("{passed} passed");
        for (count, word) in [(absent, "absent as declared"), (skipped, "skipped"), (failed, "**failed**")] {
            if count > 0 {
                let _ = write!(cases, ", {count} {word}");
            }
        }
        format!("| {} | {} | {cases} |\n", self.backend, values.join(" | "))
    }
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            // Not allowed in XML 1.0, not even escaped.
            c if (c.is_control() && !matches!(c, '\t' | '\n' | '\r'))
                || matches!(c, '\u{fffe}' | '\u{ffff}') =>
            {
                out.push('\u{fffd}');
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::Failure;
    use crate::need::Need;

    fn report() -> Report {
        let entry = |case, plan, verdict| Entry { case, plan, verdict, time: Duration::from_millis(1500) };
        Report {
            backend: "x<y".into(),
            capabilities: Capabilities::NONE,
            entries: vec![
                entry("a/one", Plan::Run, Verdict::Passed),
                entry("a/two", Plan::Run, Verdict::Failed(Failure::new("got \"\u{1}\" & more"))),
                entry("a/three", Plan::Twin(Need::Nack), Verdict::Passed),
                entry("a/four", Plan::Skip(Need::Kill), Verdict::Skipped),
            ],
        }
    }

    #[test]
    fn every_form_says_what_failed_and_what_was_missing() {
        let report = report();
        assert!(!report.is_passed());
        let json: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
        assert_eq!(
            (&json["passed"], &json["absent"], &json["failed"], &json["skipped"]),
            (&json!(1), &json!(1), &json!(1), &json!(1))
        );
        assert_eq!(json["cases"][3]["missing"], "harness: kill");
        let xml = report.to_junit();
        assert!(xml.contains("tests=\"4\" failures=\"1\" skipped=\"1\" time=\"6.000\""), "{xml}");
        assert!(
            xml.contains("message=\"got &quot;\u{fffd}&quot; &amp; more\"") && xml.contains("x&lt;y"),
            "{xml}"
        );
        let row = report.to_markdown_row();
        assert!(row.ends_with("| 1 passed, 1 absent as declared, 1 skipped, 1 **failed** |\n"), "{row}");
        let columns = |line: &str| line.matches('|').count();
        assert!(report.markdown_head().lines().all(|line| columns(line) == columns(&row)));
    }
}

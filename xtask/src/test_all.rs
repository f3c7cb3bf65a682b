//! The one test command: every check, its time, and what could not run.

use crate::args::Args;
use crate::brokers::Brokers;
use crate::{bench, deb, matrix, properties, sh, tidy};
use anyhow::{Context, Result, bail, ensure};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Cases of every property test in its second run; the first has proptest's own number.
const CASES: &str = "2000";

/// What has happened so far.
#[derive(Default)]
struct Tally {
    phases: Vec<(String, Duration, bool)>,
    /// `test result: …` lines of cargo.
    results: Vec<String>,
    passed: u64,
    failed: u64,
    missing: Vec<String>,
}

/// `cargo xtask test-all`.
pub(crate) fn run(raw: &[String]) -> Result<()> {
    let args = Args::parse(raw, &["allow-missing", "quick", "docker", "native"], &[])?;
    let quick = args.has("quick");
    let allow_missing = args.has("allow-missing");
    let mut tally = Tally::default();

    tally.phase("tools", |tally| {
        let missing = deb::ensure(&deb::ALL);
        tally.missing.extend(missing.iter().map(|tool| format!("{} (no {})", tool.needed_for, tool.name)));
        Ok(())
    });
    let mut brokers = None;
    tally.phase("brokers", |_| {
        brokers = Some(Brokers::ready(args.has("docker"), args.has("native"))?);
        Ok(())
    });
    tally.phase("format", |_| sh::show(sh::cargo().args(["fmt", "--all", "--check"])));
    tally.phase("tidy", |_| {
        tidy::run(&[])?;
        matrix::run(&["--check".into()])
    });
    tally.phase("lints", |_| {
        let clippy = ["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"];
        sh::show(sh::cargo().args(clippy))
    });
    // The binary for the black-box tests and the bench; tests then need not build it again.
    let built = tally.phase("build", |_| sh::show(sh::cargo().args(["build", "--workspace", "--bins"])));
    tally.phase("tests: rules, properties, black-box, docs", |tally| {
        let mut tests = sh::cargo();
        tests.args(["test", "--workspace", "--no-fail-fast"]);
        if let Some(brokers) = &brokers {
            tests.env("POSTROAD_TESTBED", brokers.mode());
        }
        if allow_missing {
            // A test that cannot run here then says so and passes; what it said must be seen.
            tests.args(["--", "--show-output"]).env("POSTROAD_ALLOW_MISSING", "1");
        }
        tally.cargo_test(&mut tests)
    });
    if let Some(brokers) = brokers.as_ref().filter(|brokers| brokers.are_containers()) {
        tally.phase("our broker in a container: conformance", |tally| {
            brokers.with_postroad(|url| tally.cargo_test(&mut crate::certify::command(url)?))
        });
    }
    if let Some(brokers) = brokers {
        tally.phase("brokers gone", |_| brokers.gone());
    }
    if !quick {
        tally.phase("properties, more cases", |tally| {
            let mut tests = sh::cargo();
            let names = properties::names(&tidy::tracked()?);
            ensure!(!names.is_empty(), "there are no property tests");
            tests.args(["test", "--workspace", "--no-fail-fast", "--quiet", "--tests", "--"]).args(&names);
            tests.env("PROPTEST_CASES", CASES);
            // The same tests as above: they are not counted again, but a failure is.
            let (before, lines) = (tally.passed, tally.results.len());
            let done = tally.cargo_test(&mut tests);
            let ran = (tally.passed - before) as usize;
            tally.passed = before;
            done?;
            tally.results.truncate(lines);
            ensure!(ran >= names.len(), "only {ran} of {} property tests ran", names.len());
            Ok(())
        });
        if built {
            tally.phase("bench, quick", |_| {
                let binary = sh::target().join("debug/postroad").display().to_string();
                bench::run(&["jsonlog".into(), "--quick".into(), "--binary".into(), binary])
            });
        }
    }
    tally.finish(allow_missing)
}

impl Tally {
    /// Runs a phase, shows how it went; gives whether it passed.
    fn phase(&mut self, name: &str, work: impl FnOnce(&mut Self) -> Result<()>) -> bool {
        println!("== {name}");
        let (start, failed_before) = (Instant::now(), self.failed);
        let done = work(self);
        let took = start.elapsed();
        if let Err(error) = &done {
            println!("== {name} FAILED: {error:#}");
            // Failed tests are counted one by one, other failures as one.
            if self.failed == failed_before {
                self.failed += 1;
            }
        }
        self.phases.push((name.to_owned(), took, done.is_ok()));
        done.is_ok()
    }

    /// Runs `cargo test`, shows its output and keeps its result lines.
    fn cargo_test(&mut self, command: &mut Command) -> Result<()> {
        command.env("PATH", sh::path_with_tools()).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start cargo")?;
        let stdout = child.stdout.take().context("cargo has no output")?;
        for line in BufReader::new(stdout).lines() {
            let line = line?;
            println!("{line}");
            if let Some(what) = line.strip_prefix("not run: ") {
                self.missing.push(what.to_owned());
            }
            if let Some((passed, failed)) = counts(&line) {
                self.passed += passed;
                self.failed += failed;
                if passed + failed > 0 {
                    self.results.push(line);
                }
            }
        }
        let status = child.wait()?;
        if status.success() { Ok(()) } else { bail!("cargo test: {status}") }
    }

    fn finish(self, allow_missing: bool) -> Result<()> {
        println!("\n== summary");
        for (name, took, passed) in &self.phases {
            println!("{:>8.1} s  {}  {name}", took.as_secs_f64(), if *passed { "ok    " } else { "FAILED" });
        }
        for what in &self.missing {
            println!("did not run: {what}");
        }
        let missing = if allow_missing { 0 } else { self.missing.len() as u64 };
        let failed = self.failed + missing;
        for line in &self.results {
            println!("{line}");
        }
        println!("{} passed, {failed} failed", self.passed);
        if failed == 0 {
            return Ok(());
        }
        let phases: Vec<&str> =
            self.phases.iter().filter(|phase| !phase.2).map(|phase| phase.0.as_str()).collect();
        bail!("failed: {}; could not run: {missing} (--allow-missing lets that pass)", phases.join(", "))
    }
}

/// `test result: ok. 3 passed; 1 failed; …` → (3, 1)
fn counts(line: &str) -> Option<(u64, u64)> {
    let rest = line.strip_prefix("test result: ")?;
    let number = |word: &str| {
        let (before, _) = rest.split_once(word)?;
        before.trim_end().rsplit(' ').next()?.parse().ok()
    };
    Some((number(" passed")?, number(" failed")?))
}

#[cfg(test)]
mod tests {
    use super::counts;

    #[test]
    fn cargo_s_result_line_is_understood() {
        let line = "test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        assert_eq!(counts(line), Some((12, 3)));
        assert_eq!(counts("test a::b ... ok"), None);
    }
}

//! The one test command: every check, its time, and what could not run.

use crate::args::Args;
use crate::brokers::Brokers;
use crate::{bench, matrix, properties, sh, tidy, tools};
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
    /// What the phase "brokers" took so long for.
    parts: Vec<(String, Duration)>,
    /// `test result: …` lines of cargo.
    results: Vec<String>,
    passed: u64,
    failed: u64,
    missing: Vec<String>,
    /// What failed tests said.
    failures: Failures,
}

/// `cargo xtask test-all`.
pub(crate) fn run(raw: &[String]) -> Result<()> {
    let args = Args::parse(raw, &["allow-missing", "quick", "docker", "native"], &["only"])?;
    let quick = args.has("quick");
    let allow_missing = args.has("allow-missing");
    let mut tally = Tally::default();
    if let Some(only) = args.text("only") {
        ensure!(only == "brokers", "--only brokers is all there is, not {only}");
        return only_brokers(tally, &args);
    }

    tally.phase("tools", |tally| {
        let missing = tools::ensure(&tools::ALL);
        tally.missing.extend(missing.iter().map(|tool| format!("{} (no {})", tool.needed_for, tool.name())));
        Ok(())
    });
    let brokers = tally.brokers(&args);
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
        if !quick {
            tally.phase("our image: built by its Dockerfile, run, stopped", |tally| {
                let mut test = sh::cargo();
                test.args(["test", "--package", "postroad-testbed", "--test", "docker", "--", "--nocapture"]);
                test.args(["--exact", "the_image_of_the_dockerfile"]);
                tally.cargo_test(test.env("POSTROAD_TESTBED", "docker").env("POSTROAD_TEST_DOCKERFILE", "1"))
            });
        }
    }
    tally.brokers_gone(brokers);
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
                bench::run(&["jsonlog".into(), "--quick".into(), "--binary".into(), binary.clone()])?;
                let few = ["--servers", "postroad,postroad-memory,mosquitto", "--only", "pair,lone"];
                let few = few.iter().map(|word| (*word).to_owned());
                let words = ["mqtt", "--quick", "--binary"].iter().map(|word| (*word).to_owned());
                bench::run(&words.chain([binary]).chain(few).collect::<Vec<_>>())
            });
        }
    }
    tally.finish(allow_missing)
}

/// The brokers, the tests that hurt them, and their end, as in the whole run.
fn only_brokers(mut tally: Tally, args: &Args) -> Result<()> {
    let brokers = tally.brokers(args);
    tally.phase("tests: brokers", |tally| {
        let mut tests = sh::cargo();
        tests.args(["test", "--package", "postroad-testbed", "--no-fail-fast"]);
        if let Some(brokers) = &brokers {
            tests.env("POSTROAD_TESTBED", brokers.mode());
        }
        tally.cargo_test(&mut tests)
    });
    tally.brokers_gone(brokers);
    tally.finish(args.has("allow-missing"))
}

impl Tally {
    /// Gets the brokers; none if that failed.
    fn brokers(&mut self, args: &Args) -> Option<Brokers> {
        let mut brokers = None;
        self.phase("brokers", |tally| {
            let (ready, times) = Brokers::ready(args.has("docker"), args.has("native"))?;
            tally.parts.extend(times);
            brokers = Some(ready);
            Ok(())
        });
        brokers
    }

    fn brokers_gone(&mut self, brokers: Option<Brokers>) {
        if let Some(brokers) = brokers {
            self.phase("brokers gone", |_| brokers.gone());
        }
    }

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
            self.failures.read(&line);
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
        for (name, took) in &self.parts {
            println!("{:>8.1} s  of that: {name}", took.as_secs_f64());
        }
        for what in &self.missing {
            println!("did not run: {what}");
        }
        let missing = if allow_missing { 0 } else { self.missing.len() as u64 };
        let failed = self.failed + missing;
        for line in &self.results {
            println!("{line}");
        }
        for line in &self.failures.lines {
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

/// The beginning of what each failed test said, without the backtrace: a log that is cut still has it at its end.
#[derive(Default)]
struct Failures {
    lines: Vec<String>,
    /// How many more lines of the test that is being read are kept.
    left: usize,
}

impl Failures {
    const LINES: usize = 20;

    fn read(&mut self, line: &str) {
        if line.starts_with("---- ") && line.ends_with(" stdout ----") {
            self.left = Self::LINES;
        } else if line.starts_with("stack backtrace:") || line == "failures:" {
            self.left = 0;
        }
        if self.left > 0 && !line.is_empty() {
            self.left -= 1;
            self.lines.push(line.to_owned());
        }
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
    use super::{Failures, counts};

    #[test]
    fn what_a_failed_test_said_is_kept() {
        let said = "test a ... FAILED\n\nfailures:\n\n---- a stdout ----\n\nthread 'a' panicked at b.rs:1:1:\nwhy\n\
            stack backtrace:\n   0: somewhere\n\n\nfailures:\n    a\n";
        let mut failures = Failures::default();
        said.lines().for_each(|line| failures.read(line));
        assert_eq!(failures.lines, ["---- a stdout ----", "thread 'a' panicked at b.rs:1:1:", "why"]);
    }

    #[test]
    fn cargo_s_result_line_is_understood() {
        let line = "test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        assert_eq!(counts(line), Some((12, 3)));
        assert_eq!(counts("test a::b ... ok"), None);
    }
}

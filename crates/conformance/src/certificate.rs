//! The committed file that says which cases are run on a backend: a case that silently stops being run fails the build.

use std::fmt::Write as _;
use std::path::Path;

use postroad_core::{Capabilities, Support};

use crate::case::{Plan, cases};
use crate::harness::{Failure, Harness};

/// The variable that renews the files in `capabilities/` instead of comparing with them. Any value but an empty one.
pub const RENEW: &str = "POSTROAD_CONFORMANCE_RENEW";

fn support(support: Support) -> String {
    match support {
        Support::Native => "native",
        Support::Emulated => "emulated",
        Support::Absent => "absent",
    }
    .to_owned()
}

fn limit(limit: Option<usize>) -> String {
    limit.map_or_else(|| "none".to_owned(), |bytes| format!("{bytes} bytes"))
}

/// Every ability with its value, in words.
pub(crate) fn describe(can: &Capabilities) -> Vec<(&'static str, String)> {
    let word = |value: &dyn std::fmt::Debug| format!("{value:?}").to_lowercase();
    vec![
        ("ordering", word(&can.ordering)),
        ("redelivery", support(can.redelivery)),
        ("attempts", word(&can.attempts)),
        ("durability", word(&can.durability)),
        ("confirm", support(can.confirm)),
        ("dedup", support(can.dedup)),
        ("replay.first", support(can.replay.first)),
        ("replay.last", support(can.replay.last)),
        ("replay.sequence", support(can.replay.sequence)),
        ("replay.time", support(can.replay.time)),
        ("named", support(can.named)),
        ("groups", support(can.groups)),
        ("individual_ack", support(can.individual_ack)),
        ("nack", support(can.nack)),
        ("nack_delay", support(can.nack_delay)),
        ("extend", support(can.extend)),
        ("dead_letter", support(can.dead_letter)),
        ("priority", support(can.priority)),
        ("headers", support(can.headers)),
        ("max_header_bytes", limit(can.max_header_bytes)),
        ("max_payload_bytes", limit(can.max_payload_bytes)),
    ]
}

/// What is run, refused and skipped on this harness, as TOML.
pub fn certificate(harness: &dyn Harness) -> String {
    let mut text = format!(
        "# What the conformance kit does on this backend. A change here is a change of what is tested.\n\
         # To renew it: {RENEW}=1, and run the tests.\n\nbackend = \"{}\"\n\n[capabilities]\n",
        harness.name()
    );
    for (name, value) in describe(&harness.capabilities()) {
        // The dots of a name would be tables.
        let name = if name.contains('.') { format!("\"{name}\"") } else { name.to_owned() };
        let _ = writeln!(text, "{name} = \"{value}\"");
    }
    text.push_str("\n[cases]\n");
    for case in cases() {
        let plan = match case.plan_for(harness) {
            Plan::Run => "run".to_owned(),
            Plan::Twin(need) => format!("refused: no {need}"),
            Plan::Skip(need) => format!("skipped: no {need}"),
        };
        let _ = writeln!(text, "\"{}\" = \"{plan}\"", case.name);
    }
    text
}

/// Compares with `DIRECTORY/NAME.toml`, or writes it if [`RENEW`] is set.
///
/// # Errors
/// When the file is missing or says something else: the lines that differ, and how to renew it.
pub fn check_certificate(harness: &dyn Harness, directory: &Path) -> Result<(), Failure> {
    let path = directory.join(format!("{}.toml", harness.name()));
    let current = certificate(harness);
    if std::env::var_os(RENEW).is_some_and(|value| !value.is_empty()) {
        std::fs::create_dir_all(directory)?;
        std::fs::write(&path, current)?;
        return Ok(());
    }
    let committed = std::fs::read_to_string(&path).map_err(|why| {
        Failure::new(format!("{}: {why}. Make it: {RENEW}=1, and run the tests", path.display()))
    })?;
    let differences = compare(&committed, &current);
    if differences.is_empty() {
        return Ok(());
    }
    let text = format!(
        "what is tested on `{}` has changed:\n{}\nIf that is meant, renew {}: {RENEW}=1, and run the tests",
        harness.name(),
        differences.join("\n"),
        path.display()
    );
    Err(Failure::new(text))
}

/// The lines that only one of them has.
fn compare(committed: &str, current: &str) -> Vec<String> {
    let lines = |text: &str| -> Vec<String> {
        text.lines()
            .map(|line| line.trim().to_owned())
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .collect()
    };
    let (old, new) = (lines(committed), lines(current));
    let gone = old.iter().filter(|line| !new.contains(line)).map(|line| format!("- {line}"));
    let came = new.iter().filter(|line| !old.contains(line)).map(|line| format!("+ {line}"));
    gone.chain(came).collect()
}

#[cfg(test)]
mod tests {
    use super::compare;

    #[test]
    fn only_what_is_said_counts() {
        assert_eq!(compare("# a\na = 1\r\n\r\nb = 2\n", "a = 1\nb = 2\n# other\n"), [""; 0]);
        assert_eq!(compare("a = \"run\"\n", "a = \"skipped\"\n"), ["- a = \"run\"", "+ a = \"skipped\""]);
    }
}

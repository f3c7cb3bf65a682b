//! `cargo xtask fuzz`: the fuzz targets, one after the other, each from its seeds and from what earlier runs found.

use crate::args::Args;
use crate::sh;
use anyhow::{Context, Result, bail, ensure};
use postroad_testbed::run::which;
use std::fs;
use std::process::Command;

/// Seconds for each target, if none are named.
const SECONDS: u64 = 60;
/// What a target may have: the largest input in bytes, seconds for one, memory of the process and of one allocation
/// in MiB. Inputs are small, so that an allocation that is not is a finding.
const LIMITS: [&str; 4] = ["-max_len=8192", "-timeout=20", "-rss_limit_mb=2048", "-malloc_limit_mb=64"];

pub(crate) fn run(raw: &[String]) -> Result<()> {
    let args = Args::parse(raw, &["build"], &["seconds"])?;
    let seconds = args.get("seconds")?.unwrap_or(SECONDS);
    let all = targets()?;
    for word in &args.words {
        ensure!(all.contains(word), "{word} is no fuzz target; they are {}", all.join(", "));
    }
    let wanted = all.into_iter().filter(|name| args.words.is_empty() || args.words.contains(name));
    if which("cargo-fuzz").is_none() {
        bail!("cargo-fuzz is missing: cargo install cargo-fuzz");
    }
    for target in wanted {
        if args.has("build") {
            sh::show(fuzz().args(["build", &target]))?;
            continue;
        }
        let corpus = sh::root().join("fuzz/corpus").join(&target);
        fs::create_dir_all(&corpus).with_context(|| format!("cannot make {}", corpus.display()))?;
        let mut run = fuzz();
        run.args(["run", &target]).arg(corpus).arg(sh::root().join("fuzz/seeds").join(&target));
        run.arg("--").args(LIMITS).arg(format!("-max_total_time={seconds}"));
        sh::show(&mut run)?;
    }
    Ok(())
}

/// With the nightly compiler, whatever compiles the rest.
fn fuzz() -> Command {
    let mut command = Command::new("cargo");
    command
        .args(["+nightly", "fuzz"])
        .current_dir(sh::root().join("fuzz"))
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("CARGO");
    command
}

/// The names of all targets.
fn targets() -> Result<Vec<String>> {
    let dir = sh::root().join("fuzz/fuzz_targets");
    let entries = fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "rs") {
            names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
        }
    }
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::targets;
    use crate::sh;
    use std::fs;

    /// A target that the manifest does not know is never built, and one without seeds begins with nothing.
    #[test]
    fn each_target_is_in_the_manifest_and_has_seeds() {
        let manifest = fs::read_to_string(sh::root().join("fuzz/Cargo.toml")).unwrap();
        let targets = targets().unwrap();
        assert!(targets.len() >= 9, "{targets:?}");
        for target in targets {
            assert!(manifest.contains(&format!("path = \"fuzz_targets/{target}.rs\"")), "{target}");
            let seeds = sh::root().join("fuzz/seeds").join(&target);
            assert!(
                fs::read_dir(&seeds).is_ok_and(|mut entries| entries.next().is_some()),
                "{target}: no seeds"
            );
        }
    }
}

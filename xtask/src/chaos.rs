//! `cargo xtask chaos`: the tests that kill, for as long as one likes, with other seeds each time.

use crate::args::Args;
use crate::sh;
use anyhow::{Context, Result, ensure};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Kills of the real process in one turn; `test-all` has far fewer.
const ROUNDS: &str = "60";

/// Minutes of simulated worlds in one turn.
const WORLDS: f64 = 2.0;

pub(crate) fn run(raw: &[String]) -> Result<()> {
    let args = Args::parse(raw, &[], &["minutes", "kills"])?;
    if args.words == ["mqtt"] {
        return mqtt(args.get("kills")?.unwrap_or(1000));
    }
    ensure!(args.words.is_empty(), "what is `{}`? see `cargo xtask help`", args.words.join(" "));
    let minutes: f64 = args.get("minutes")?.unwrap_or(10.0);
    let time = Duration::try_from_secs_f64(minutes * 60.0).with_context(|| format!("--minutes {minutes}"))?;
    sh::show(sh::cargo().args(["build", "--quiet", "--release", "--package", "postroad-sim"]))?;
    sh::show(sh::cargo().args([
        "test",
        "--quiet",
        "--package",
        "postroad",
        "--test",
        "blackbox",
        "--no-run",
    ]))?;
    // Building does not count.
    let end = Instant::now() + time;
    let mut turn = 0;
    while turn == 0 || Instant::now() < end {
        turn += 1;
        println!("== turn {turn}: kills of the real process, under load");
        let mut kills = sh::cargo();
        kills.args(["test", "--package", "postroad", "--test", "blackbox", "kill9"]);
        sh::show(kills.env("POSTROAD_KILL_ROUNDS", ROUNDS).env("PATH", sh::path_with_tools()))?;
        println!("== turn {turn}: simulated worlds");
        // Other worlds than any turn before.
        let seed = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() * 1_000_000;
        let mut worlds = Command::new(sh::target().join("release/postroad-sim"));
        let left = end.saturating_duration_since(Instant::now()).as_secs_f64() / 60.0;
        let minutes = left.clamp(0.1, WORLDS).to_string();
        sh::show(worlds.args(["--minutes", &minutes, "--seed"]).arg(seed.to_string()))?;
    }
    println!("{turn} turns without a fault");
    Ok(())
}

/// `kills` kills of the MQTT door at random moments, with its clients dying as well.
fn mqtt(kills: u32) -> Result<()> {
    let mut tests = sh::cargo();
    tests.args(["test", "--package", "postroad", "--test", "mqtt", "kills::random", "--", "--nocapture"]);
    sh::show(tests.env("POSTROAD_MQTT_KILLS", kills.to_string()).env("PATH", sh::path_with_tools()))
}

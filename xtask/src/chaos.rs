//! `cargo xtask chaos`: the tests that kill, for as long as one likes, with other seeds each time.

use crate::args::Args;
use crate::sh;
use anyhow::{Result, ensure};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Kills of the real process in one turn; `test-all` has far fewer.
const ROUNDS: &str = "60";

pub(crate) fn run(raw: &[String]) -> Result<()> {
    let args = Args::parse(raw, &[], &["minutes"])?;
    ensure!(args.words.is_empty(), "what is `{}`? see `cargo xtask help`", args.words.join(" "));
    let minutes: f64 = args.get("minutes")?.unwrap_or(10.0);
    let end = Instant::now() + Duration::from_secs_f64(minutes * 60.0);
    sh::show(sh::cargo().args(["build", "--quiet", "--release", "--package", "postroad-sim"]))?;
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
        sh::show(worlds.args(["--minutes", "2", "--seed"]).arg(seed.to_string()))?;
    }
    println!("{turn} turns without a fault");
    Ok(())
}

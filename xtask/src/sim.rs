//! `cargo xtask sim`: whole brokers and their clients in simulated worlds, built with optimisation.

use crate::args::Args;
use crate::sh;
use anyhow::{Result, ensure};
use std::process::Command;

const FLAGS: [&str; 6] = ["inhabitant", "seed", "minutes", "worlds", "threads", "plant"];

pub(crate) fn run(raw: &[String]) -> Result<()> {
    let args = Args::parse(raw, &[], &FLAGS)?;
    ensure!(args.words.is_empty(), "what is `{}`? see `cargo xtask help`", args.words.join(" "));
    sh::show(sh::cargo().args(["build", "--quiet", "--release", "--package", "postroad-sim"]))?;
    sh::show(Command::new(sh::target().join("release/postroad-sim")).args(raw).current_dir(sh::root()))
}

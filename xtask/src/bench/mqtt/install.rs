//! Getting the brokers that are not here: all into cargo's target directory, by the clients of their registries.

use super::brokers::Brand;
use crate::sh;
use anyhow::{Context, Result, ensure};
use postroad_testbed::debian::{self, Tool};
use postroad_testbed::places::tools;
use postroad_testbed::run::which;
use postroad_testbed::{Broker as Standard, Wanted, programs};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

pub(super) const MOSQUITTO: Tool = Tool { name: "mosquitto", file: "mosquitto", package: "mosquitto" };

const RUMQTTD: &str = "0.20.0";

pub(super) fn mochi() -> PathBuf {
    tools().join("mochi-bench")
}

pub(super) fn nats() -> Option<PathBuf> {
    // Before 2.10 it has no QoS 2.
    let modern = |version: &str| {
        let mut numbers = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
        (numbers.next(), numbers.next()) >= (Some(2), Some(10))
    };
    programs::all(Standard::Nats).into_iter().find(|nats| modern(&nats.version)).map(|nats| nats.file)
}

pub(super) fn rumqttd() -> PathBuf {
    tools().join("bin/rumqttd")
}

/// Where the server of `xtask/bench/aedes` is, with what it needs.
pub(super) fn aedes() -> PathBuf {
    tools().join("aedes")
}

/// Where the jars are that `xtask/bench/moquette` names.
pub(super) fn moquette() -> PathBuf {
    tools().join("moquette")
}

/// Gets what is not here. Gives what cannot run, with the reason.
pub(super) fn ensure(wanted: &[Brand], ours: &Path) -> Vec<(Brand, String)> {
    let mut missing = Vec::new();
    for brand in wanted {
        let got = match brand {
            Brand::Postroad | Brand::PostroadOs | Brand::PostroadMemory => speaks_mqtt(ours),
            Brand::Mosquitto { .. } => debian::fetch(&[&MOSQUITTO]),
            Brand::Mochi | Brand::MochiBolt => build_mochi(),
            Brand::Aedes | Brand::AedesLevel => install_aedes(),
            Brand::Nats | Brand::NatsAlways => fetch_nats(),
            Brand::Rumqttd => install_rumqttd(),
            Brand::RabbitMq => programs::find_or_fetch(&Wanted::from(Standard::RabbitMq)).map(drop),
            Brand::Moquette | Brand::MoquetteH2 => install_moquette(),
        };
        if let Err(error) = got {
            missing.push((*brand, format!("{error:#}")));
        }
    }
    missing
}

fn speaks_mqtt(ours: &Path) -> Result<()> {
    let help = sh::output(Command::new(ours).args(["serve", "--help"]))?;
    ensure!(help.contains("--mqtt"), "{} has no --mqtt", ours.display());
    Ok(())
}

fn source(name: &str) -> PathBuf {
    sh::root().join("xtask/bench").join(name)
}

/// Builds the broker of `xtask/bench/mochi`; Go knows when nothing has changed.
fn build_mochi() -> Result<()> {
    let go = which("go").context("there is no go to build mochi")?;
    let build = ["build", "-trimpath", "-o"];
    sh::output(Command::new(go).args(build).arg(mochi()).arg(".").current_dir(source("mochi"))).map(drop)
}

fn fetch_nats() -> Result<()> {
    if nats().is_none() {
        postroad_testbed::fetch::fetch(&"nats@2.10.27".parse()?)?;
    }
    nats().map(drop).context("there is no nats-server of 2.10 or later")
}

/// Copies what is in `xtask/bench/NAME` and, where that has changed, runs `get` in the copy. Whole or not at all: it
/// is made aside.
fn from_source(name: &str, get: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let (source, place) = (source(name), tools().join(name));
    let files: Vec<PathBuf> = fs::read_dir(&source)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    let same = |file: &PathBuf| {
        let kept = file.file_name().map(|file| place.join(file));
        kept.is_some_and(|kept| matches!((fs::read(kept), fs::read(file)), (Ok(old), Ok(new)) if old == new))
    };
    if files.iter().all(same) {
        return Ok(());
    }
    let aside = tools().join(format!(".{name}-{}", std::process::id()));
    let made = (|| {
        fs::create_dir_all(&aside)?;
        for file in &files {
            fs::copy(file, aside.join(file.file_name().context("a file without a name")?))?;
        }
        get(&aside)?;
        if place.exists() {
            fs::remove_dir_all(&place)?;
        }
        fs::rename(&aside, &place).with_context(|| format!("moving {name} into its place"))
    })();
    let _ = fs::remove_dir_all(&aside);
    made
}

/// The exact packages of its lock file.
fn install_aedes() -> Result<()> {
    which("node").context("there is no node to run aedes")?;
    from_source("aedes", |dir| {
        let npm = which("npm").context("there is no npm to get aedes")?;
        sh::output(Command::new(npm).args(["ci", "--no-audit", "--no-fund"]).current_dir(dir)).map(drop)
    })
}

fn install_moquette() -> Result<()> {
    which("java").context("there is no java to run moquette")?;
    from_source("moquette", |dir| {
        let maven = which("mvn").context("there is no mvn to get moquette")?;
        let copy = ["--batch-mode", "--quiet", "dependency:copy-dependencies", "-DincludeScope=runtime"];
        let to = format!("-DoutputDirectory={}", dir.display());
        sh::output(Command::new(maven).args(copy).arg(to).current_dir(dir)).map(drop)
    })
}

/// Takes minutes. Not by its own lock file: that has a `metrics` that compilers of today refuse.
fn install_rumqttd() -> Result<()> {
    if rumqttd().is_file() {
        return Ok(());
    }
    let mut install = sh::cargo();
    // Away from the settings of this workspace.
    install.current_dir(std::env::temp_dir());
    install
        .args(["install", "rumqttd", "--version", RUMQTTD, "--no-default-features", "--root"])
        .arg(tools());
    sh::output(&mut install).map(drop)
}

//! `cargo xtask images`: builds the images of brokers that tests run, where they are missing or out of date.

use crate::args::Args;
use crate::sh;
use anyhow::{Context, Result, bail};
use postroad_testbed::Wanted;
use postroad_testbed::docker::images::{self, BUILT, Image};
use postroad_testbed::docker::{Daemon, Life};
use std::path::PathBuf;
use std::time::Instant;

/// `cargo xtask images [--list] [--install] [--binary FILE] [BROKER[@VERSION] | postroad …]`.
pub(crate) fn run(raw: &[String]) -> Result<()> {
    let mut args = Args::parse(raw, &["list", "install"], &["binary"])?;
    let names = std::mem::take(&mut args.words);
    let wanted = wanted(&names)?;
    let start = Instant::now();
    let daemon = if args.has("install") { Daemon::find_or_start(Life::Owned)? } else { Daemon::find()? };
    println!(
        "Docker {}, Compose {} ({:.1} s)",
        daemon.version,
        daemon.compose_version()?,
        start.elapsed().as_secs_f64()
    );
    if args.has("list") {
        for image in wanted {
            let state = if image.is_current(&daemon) { "here" } else { "missing or out of date" };
            println!("{:36} {state}", image.tag());
        }
        return Ok(());
    }
    images::build_missing(&daemon, &wanted, |image, how, took| {
        println!("{:36} {how:8} {:6.1} s", image.tag(), took.as_secs_f64());
    })?;
    if names.is_empty() || names.iter().any(|name| name == "postroad") {
        let start = Instant::now();
        let program = program(args.text("binary"))?;
        let resolved = images::postroad(&daemon, &program)?;
        let took = start.elapsed().as_secs_f64();
        println!("{:36} {:8} {took:6.1} s  of {}", resolved.image, resolved.how, program.display());
    }
    Ok(())
}

/// The images that were named, or all.
fn wanted(names: &[String]) -> Result<Vec<Image>> {
    if names.is_empty() {
        return Ok(BUILT.to_vec());
    }
    let mut all = Vec::new();
    for name in names.iter().filter(|name| *name != "postroad") {
        let wanted: Wanted = name.parse()?;
        let found = images::built(wanted.broker, wanted.version.as_deref());
        if found.is_empty() {
            bail!("no image of {wanted} can be built");
        }
        all.extend(found);
    }
    Ok(all)
}

/// The program to put into the image: the one that is named, or a fresh build.
fn program(named: Option<&str>) -> Result<PathBuf> {
    if let Some(named) = named {
        return Ok(PathBuf::from(named));
    }
    sh::show(sh::cargo().args(["build", "--quiet", "-p", "postroad", "--bin", "postroad"]))?;
    let program = sh::target().join("debug/postroad");
    program.canonicalize().with_context(|| format!("{} was not built", program.display()))
}

#[cfg(test)]
mod tests {
    use super::wanted;

    #[test]
    fn images_are_named_like_brokers() {
        let tags = |names: &[&str]| -> Vec<String> {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            wanted(&names).unwrap().iter().map(super::Image::tag).collect()
        };
        assert_eq!(tags(&["rabbitmq@3.10", "postroad"]), ["postroad-test/rabbitmq:3.10"]);
        assert_eq!(tags(&["mosquitto"]).len(), 2);
        assert_eq!(tags(&["postroad"]).len(), 0);
        assert_eq!(tags(&[]).len(), 9);
        assert!(wanted(&["kafka".into()]).is_err());
        assert!(wanted(&["rabbitmq@9".into()]).is_err());
    }
}

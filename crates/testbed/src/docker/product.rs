//! Images of Postroad itself, by the Dockerfile for users at the root of the repository.

use super::daemon::Daemon;
use super::images::{
    How, Resolved, Suite, base_recipe, build, build_command, ensure_base, files_of, folder, hash, is_here,
    label, pull,
};
use super::workspace;
use crate::run::output;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The release below our images, also in the Dockerfile.
const SUITE: Suite = Suite::Bookworm;

/// An image of Postroad with a program that was built here: what the Dockerfile makes, but for its build. Its base
/// has the C library of Debian bookworm: a program that needs a newer one fails its healthcheck.
pub fn postroad(daemon: &Daemon, program: &Path) -> Result<Resolved> {
    let image = "postroad-test/postroad:local";
    let dockerfile = workspace().join("Dockerfile");
    let bytes = fs::read(program).with_context(|| format!("reading {}", program.display()))?;
    let recipe = hash(&[&fs::read(&dockerfile)?, &bytes, base_recipe(SUITE).as_bytes()]);
    if label(daemon, image).as_deref() == Some(&recipe) {
        return Ok(Resolved { image: image.into(), how: How::Here });
    }
    let base = format!("BASE_IMAGE={}", ensure_base(daemon, SUITE)?);
    let runtime = "postroad-test/postroad:runtime";
    let context = tempfile::tempdir()?;
    fs::copy(&dockerfile, context.path().join("Dockerfile"))?;
    build(daemon, runtime, &recipe, context.path(), &["--target", "runtime", "--build-arg", &base])?;
    fs::write(context.path().join("Dockerfile"), format!("FROM {runtime}\nCOPY postroad /usr/local/bin/\n"))?;
    fs::copy(program, context.path().join("postroad"))?;
    build(daemon, image, &recipe, context.path(), &[])?;
    Ok(Resolved { image: image.into(), how: How::Built })
}

/// The image for users, built of the sources as they are. Where the Rust image cannot be pulled, it is built with
/// the toolchain of this machine.
pub fn postroad_from_source(daemon: &Daemon) -> Result<Resolved> {
    let image = "postroad-test/postroad:source";
    let upstream = default_of("BUILD_IMAGE")?;
    let rust = if is_here(daemon, &upstream) || pull(daemon, &upstream).is_ok() {
        upstream
    } else {
        ensure_rust(daemon)?
    };
    // Whether anything has changed is seen by the daemon, from the files that it is sent.
    let base = format!("BASE_IMAGE={}", ensure_base(daemon, SUITE)?);
    let rust = format!("BUILD_IMAGE={rust}");
    build(daemon, image, "source", &workspace(), &["--build-arg", &base, "--build-arg", &rust])?;
    Ok(Resolved { image: image.into(), how: How::Built })
}

/// What the Dockerfile says when nothing else is said.
fn default_of(argument: &str) -> Result<String> {
    let text = fs::read_to_string(workspace().join("Dockerfile"))?;
    let line =
        text.lines().find_map(|line| line.strip_prefix("ARG ")?.strip_prefix(argument)?.strip_prefix('='));
    line.map(str::to_owned).with_context(|| format!("the Dockerfile has no ARG {argument}"))
}

/// An image with the toolchain of this machine.
fn ensure_rust(daemon: &Daemon) -> Result<String> {
    let tag = "postroad-test/rust:host".to_owned();
    let mut rustc = Command::new("rustc");
    let version = output(rustc.arg("--version").arg("--verbose"))?;
    let dir = folder("rust");
    let recipe = hash(&[&files_of(&dir)?, version.as_bytes(), base_recipe(SUITE).as_bytes()]);
    if label(daemon, &tag).as_deref() == Some(&recipe) {
        return Ok(tag);
    }
    let base = ensure_base(daemon, SUITE)?;
    let toolchain = PathBuf::from(output(Command::new("rustc").args(["--print", "sysroot"]))?.trim());
    let mut tar = Command::new("tar");
    tar.args([
        "-c",
        "--exclude=./share",
        "--exclude=./lib/rustlib/src",
        "--transform",
        "s,^\\./,toolchain/,",
        "-C",
    ]);
    tar.arg(&toolchain).args(["./bin", "./lib", "-C"]).arg(&dir).arg("Dockerfile");
    tar.args(["-C", "/etc/ssl/certs", "ca-certificates.crt"]);
    let mut tar = tar.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("starting tar")?;
    let archive = tar.stdout.take().context("tar has no stdout")?;
    let mut build = build_command(daemon, &tag, &recipe);
    build.args(["--build-arg", &format!("BASE={base}"), "-"]).stdin(archive);
    let built = build.output().context("docker build")?;
    let packed = tar.wait()?;
    let said = String::from_utf8_lossy(&built.stderr);
    ensure!(
        built.status.success() && packed.success(),
        "building {tag}: {}, tar: {packed}\n{said}",
        built.status
    );
    Ok(tag)
}

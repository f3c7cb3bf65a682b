//! `cargo xtask certify`: the conformance kit against one backend, or against a server that somebody runs.

use crate::args::Args;
use crate::sh;
use anyhow::{Result, bail};
use std::process::Command;

/// `cargo xtask certify memory | engine | jsonlog | mqtt | URL`.
pub(crate) fn run(raw: &[String]) -> Result<()> {
    let args = Args::parse(raw, &[], &[])?;
    let [what] = args.words.as_slice() else {
        bail!("say one of: memory, engine, jsonlog, mqtt, jsonlog://HOST:PORT")
    };
    sh::show(&mut command(what)?)
}

/// The tests that certify a backend.
pub(crate) fn command(what: &str) -> Result<Command> {
    let mut tests = sh::cargo();
    match what {
        "memory" => tests.args(["test", "--package", "postroad-conformance", "--test", "memory"]),
        "engine" => tests.args(["test", "--package", "postroad-engine", "--test", "conformance"]),
        "jsonlog" => tests.args(["test", "--package", "postroad", "--test", "conformance"]),
        // Its own server, mosquitto and RabbitMQ; `postroad serve` is with `jsonlog`.
        "mqtt" => tests.args(["test", "--package", "postroad-mqtt", "--test", "client"]),
        url if url.starts_with("jsonlog://") => tests
            .args([
                "test",
                "--package",
                "postroad-jsonlog",
                "--test",
                "certify",
                "--",
                "--ignored",
                "--nocapture",
            ])
            .env("POSTROAD_CERTIFY_URL", url),
        other => {
            bail!("nothing is known of `{other}`: memory, engine, jsonlog, mqtt, or jsonlog://HOST:PORT")
        }
    };
    Ok(tests)
}

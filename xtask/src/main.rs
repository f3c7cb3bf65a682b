//! The project's own commands. `cargo xtask help` lists them.

mod args;
mod bench;
mod brokers;
mod certify;
mod chaos;
mod ci;
mod docker;
mod doctor;
mod fuzz;
mod images;
mod matrix;
mod properties;
mod server;
mod sh;
mod sim;
mod test_all;
mod tidy;
mod tools;
mod up;

use anyhow::{Result, bail, ensure};
use postroad_testbed::supervise;
use std::process::{Command, ExitCode};

const HELP: &str = "\
cargo xtask COMMAND

  test-all [--docker | --native] [--allow-missing] [--quick | --only brokers]
        Everything that must hold: format, lints, tidy, all tests, real brokers, property tests
        with more cases, a short run of the bench against its peers. --docker insists on brokers
        in containers (a daemon that is missing is installed, started, and stopped at the end) and
        certifies our own broker in one; --native insists on processes; without either it is what
        is quickest to have, and says which. What could not run is listed and fails the command,
        unless --allow-missing. --quick leaves out the last two; --only brokers leaves out all but
        the brokers and the tests of the testbed. Killed at any moment, it leaves nothing.
  chaos [--minutes M]
        The tests that kill, in turns with other seeds, for M minutes (default 10).
  chaos mqtt [--kills N]
        N random kills (default 1000) of the MQTT door under load, with its clients dying, too.
  matrix [--check]
        Writes the table of what each backend can do into the README, from the certificates.
  certify memory | engine | jsonlog | mqtt | jsonlog://HOST:PORT
        The conformance kit against one backend, or against a server that somebody runs.
  tidy  The laws that a compiler does not check: who may depend on whom, folder names, lints,
        versions, links in the docs, no paths of somebody's machine.
  ci [--allow-missing]
        What a pull request must pass: test-all, then the API docs without a warning, then
        cargo-deny where it is installed.
  bench jsonlog [--quick] [--only LIST] [--servers LIST] [--seconds N] [--rounds N]
                [--binary FILE] [--json FILE] [--svg FILE] [--check]
        The JSON-log door against Redis Streams and beanstalkd, all of them durable before they
        answer. --only: one or more of publish,deliver,scale,recovery,memory. --servers: one or
        more of postroad,redis,beanstalkd. --check fails when a goal is missed. --quick is a
        short run without goals. Writes target/bench/jsonlog.json and .svg.
  bench mqtt [--quick] [--only LIST] [--servers LIST] [--qos LIST] [--protocol 3.1.1|5]
             [--sessions durable|clean] [--ahead] [--seconds N] [--rounds N] [--binary FILE]
             [--json FILE] [--svg FILE] [--check]
        The MQTT door against other brokers, each row with its durability, the server's CPU time
        for a delivery, latency at half of the rate, and what was lost or came twice. --only: one
        or more of pair, pairs, fanout, fanin, lone (one message in flight), slow (with and without
        5 ms more for every sync), idle (10 000 connections), recovery (a million retained
        messages, 100 000 sessions, or what fits into a minute each). --servers: one or more of
        postroad, postroad-os, postroad-memory, mosquitto, mochi, mochi-bolt, aedes; and of those
        that are there only when they are named, and fetched then: aedes-level, nats, nats-always,
        rumqttd, rabbitmq, moquette, moquette-h2. --ahead: publishers do not wait for deliveries. --check fails when
        p99 at half load is 5 ms or more. --quick is a short run without goals and mochi-bolt, with
        one QoS for each part unless --qos says more. Writes target/bench/mqtt.json and .svg.
  sim [--inhabitant jsonlog|mqtt] [--seed N] [--minutes M] [--worlds N] [--threads N] [--plant BUG]
        Brokers and their clients in worlds made from seeds: virtual time, a network that delays,
        cuts and splits, a disk that loses and tears, kills of anybody at any step. Prints worlds a
        second. A world that breaks a promise is shown with its seed, shrunk to few steps, and
        fails the command; --seed N alone runs it again. --plant puts a known defect into the
        broker, which must be found: ack-before-sync, cursor-before-commit, glue-on-torn-tail,
        no-crc-check, no-dir-sync.
  fuzz [--seconds N] [--build] [TARGET ...]
        The fuzz targets (all of them if none is named), each for N seconds (default 60), with the
        nightly compiler and cargo-fuzz. --build only builds them.
  doctor
        What this machine has for building and testing, what it lacks, and how to get it.
  up [--docker | --native] [--install] [BROKER[@VERSION] ...]
        Brings brokers up and leaves them: rabbitmq, nats, nats-streaming, mosquitto, redis,
        beanstalkd; all of them if none is named. In containers where Docker answers, else as
        processes, fetched if they are not here. --install gets and starts Docker (root).
  down [BROKER[@VERSION] ...] | status | logs [--lines N] [BROKER ...]
        Takes them down, with their data, and a Docker daemon that `up` started; says whether they
        answer; shows what they printed.
  peers Fetches the peers of the bench and the tools of the tests into target/peers and says where
        they are. Installs nothing.
  images [--list] [--install] [--binary FILE] [BROKER[@VERSION] | postroad ...]
        Builds the container images of brokers that are missing or out of date, from Debian's
        packages or by `go install`, and one of Postroad (of FILE, or of a fresh build); all of
        them if none is named. --list only says what is here. --install gets what is missing on
        this machine (root): packages, a Docker daemon for as long as the command runs, Compose.
  docker start | stop | down | status
        A Docker daemon for tests that stays until it is stopped, where none runs (root); down
        removes what killed runs left; status names the daemon, Compose and what runs in it.
";

/// The verb of the process in which a supervised command does its work.
const INSIDE: &str = "inside";

/// Runs a command in a process of its own, and sees that nothing is left of it.
fn supervised(verb: &str, rest: &[String]) -> Result<()> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(INSIDE).arg(verb).args(rest);
    let ended = supervise::run(verb, &command)?;
    for left in &ended.left {
        eprintln!("xtask {verb}: left behind, and taken away now: {left}");
    }
    for file in &ended.files {
        eprintln!("xtask {verb}: left behind, and taken away now: {}", file.display());
    }
    ensure!(ended.status.success() && ended.left.is_empty(), "{}", ended.status);
    Ok(())
}

fn inside(words: &[String]) -> Result<()> {
    let [verb, rest @ ..] = words else { bail!("what?") };
    match verb.as_str() {
        "test-all" => test_all::run(rest),
        "ci" => ci::run(rest),
        "chaos" => chaos::run(rest),
        "bench" => bench::run(rest),
        other => bail!("{other} is not supervised"),
    }
}

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let verb = words.next().unwrap_or_else(|| "help".into());
    let rest: Vec<String> = words.collect();
    let done = match verb.as_str() {
        // They start servers, and end within minutes: whatever becomes of them, nothing stays.
        "test-all" | "ci" | "chaos" | "bench" => supervised(&verb, &rest),
        INSIDE => inside(&rest),
        "tidy" => tidy::run(&rest),
        "certify" => certify::run(&rest),
        "matrix" => matrix::run(&rest),
        "peers" => tools::run(&rest),
        "sim" => sim::run(&rest),
        "fuzz" => fuzz::run(&rest),
        "images" => images::run(&rest),
        "docker" => docker::run(&rest),
        "doctor" => doctor::run(&rest),
        "up" => up::up(&rest),
        "down" => up::down(&rest),
        "status" => up::status(&rest),
        "logs" => up::logs(&rest),
        "help" | "--help" | "-h" => {
            print!("{HELP}");
            Ok(())
        }
        other => Err(anyhow::anyhow!("no command `{other}`\n\n{HELP}")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask {verb}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

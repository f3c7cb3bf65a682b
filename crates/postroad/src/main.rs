//! The Postroad binary: the broker and its command-line clients.

mod cli;
mod client;
mod config;
mod config_cmd;
mod exit;
mod journal_cmd;
mod logging;
mod mqtt;
mod mqtt_cmd;
mod mqtt_users;
mod serve;

use std::process::ExitCode;

use clap::Parser as _;

use crate::cli::{Cli, Command};

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Config(command) => config_cmd::run(command),
        Command::Serve(args) => serve::run(&args),
        Command::Pub(args) => client::run(client::publish::run(args)),
        Command::Sub(args) => client::run(client::subscribe::run(args)),
        Command::Dlq(command) => client::run(client::dead_letters::run(command)),
        Command::Journal(command) => journal_cmd::run(&command),
        Command::Mqtt(command) => mqtt_cmd::run(command),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.print();
            ExitCode::from(failure.exit as u8)
        }
    }
}

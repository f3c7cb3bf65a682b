//! `cargo xtask docker`: a Docker daemon for tests, where this machine has none running.

use anyhow::{Result, bail};
use postroad_testbed::docker::{self, Daemon, Life};
use std::time::Instant;

/// `cargo xtask docker start | stop | down | status`.
pub(crate) fn run(raw: &[String]) -> Result<()> {
    let start = Instant::now();
    match raw {
        [verb] if verb == "start" => {
            let daemon = Daemon::find_or_start(Life::Kept)?;
            say(&daemon)?;
        }
        [verb] if verb == "stop" => {
            down()?;
            println!("{}", if docker::stop_kept()? { "stopped" } else { "there was no daemon of ours" });
        }
        [verb] if verb == "down" => down()?,
        [verb] if verb == "status" => {
            let daemon = Daemon::find()?;
            say(&daemon)?;
            for name in docker::projects(&daemon)? {
                println!("{name}");
            }
        }
        _ => bail!("say one of: start, stop, down, status"),
    }
    println!("({:.1} s)", start.elapsed().as_secs_f64());
    Ok(())
}

fn say(daemon: &Daemon) -> Result<()> {
    println!("Docker {}, Compose {}", daemon.version, daemon.compose_version()?);
    if let Some(host) = daemon.host() {
        println!("DOCKER_HOST={host}");
    }
    Ok(())
}

/// Removes what killed runs left and what was started to stay.
fn down() -> Result<()> {
    if let Ok(daemon) = Daemon::find() {
        for name in docker::down_all(&daemon)? {
            println!("removed {name}");
        }
    }
    Ok(())
}

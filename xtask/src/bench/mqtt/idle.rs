//! What a connection with one subscription costs while nothing happens.

use super::brokers::Broker;
use super::clients::Idle;
use super::speed::Sessions;
use crate::bench::loader::Loader;
use crate::bench::report::thousands;
use crate::server::Server;
use anyhow::{Context, Result};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// Connections that are made at once: the backlog of a listener is short.
const BATCH: u64 = 100;
/// A broker that makes a file of each subscription takes long; it is not waited for.
const LIMIT: Duration = Duration::from_secs(30);

/// A sentence about `conns` idle connections.
pub(super) fn run(broker: Broker, sessions: Sessions, ours: &Path, conns: u64) -> Result<String> {
    let server = Server::start(broker, ours)?;
    let (made, bytes, took) = cost(&server, sessions, conns)
        .with_context(|| format!("{conns} connections to {}\n{}", broker.brand.name(), server.log()))?;
    let short = if made < conns { ", and no more in that time," } else { "" };
    Ok(format!(
        "{} ({}): {} connections with a subscription each, made in {:.1} s{short} take {} B each.",
        broker.brand.name(),
        server.mode,
        thousands(made as f64),
        took.as_secs_f64(),
        thousands(bytes)
    ))
}

fn cost(server: &Server<Broker>, sessions: Sessions, conns: u64) -> Result<(u64, f64, Duration)> {
    // What the first connections allocate is not part of what an idle one costs.
    let warm = connect(server, sessions, "warm", BATCH, LIMIT)?;
    drop(warm);
    std::thread::sleep(Duration::from_millis(300));
    let empty = server.resident()?;
    let start = Instant::now();
    let held = connect(server, sessions, "idle", conns, LIMIT)?;
    let (made, took) = (held.tally.greeted, start.elapsed());
    std::thread::sleep(Duration::from_millis(500));
    Ok((made, server.resident()?.saturating_sub(empty) as f64 / made as f64, took))
}

/// So many clients, each subscribed to a topic of its own; fewer, if that takes longer than `limit`.
pub(super) fn connect(
    server: &Server<Broker>,
    sessions: Sessions,
    name: &str,
    conns: u64,
    limit: Duration,
) -> Result<Loader> {
    let mut loader = Loader::new()?;
    let start = Instant::now();
    for n in 0..conns {
        let link = sessions.link(format!("{name}-{n}"), Some((format!("{name}/{n}"), 1)));
        loader.add_and_send(TcpStream::connect(server.addr)?, Idle::new(link))?;
        let made = n + 1;
        if made % BATCH == 0 || made == conns {
            loader.run_until(Duration::from_secs(60), |tally| tally.greeted == made)?;
            if start.elapsed() > limit {
                break;
            }
        }
    }
    Ok(loader)
}

//! Ten thousand connections at once: how fast they get in, what they cost when idle, and whether each
//! gets its publish onto the disk.

use super::loader::Loader;
use super::report::{Goal, Report, thousands};
use super::wire::Publisher;
use super::wire::jsonlog::{Greeted, Pub};
use crate::server::{Kind, Server};
use anyhow::{Context, Result, ensure};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Resource, Rlimit};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

pub(crate) fn run(ours: &Path, conns: u64, report: &mut Report) -> Result<()> {
    raise_file_limit(conns + 500)?;
    let server = Server::start(Kind::Postroad, ours)?;
    let done = storm(&server, conns, report);
    done.with_context(|| format!("{conns} connections\n{}", server.log()))
}

fn storm(server: &Server, conns: u64, report: &mut Report) -> Result<()> {
    // What the first connection allocates is not part of what an idle one costs.
    super::speed::greeted(server)?;
    std::thread::sleep(Duration::from_millis(200));
    let empty = server.resident()?;
    let mut loader = Loader::new()?;
    let start = Instant::now();
    for _ in 0..conns {
        loader.add(connecting(server.addr)?, Greeted::new())?;
    }
    loader.run_until(Duration::from_secs(60), |tally| tally.greeted == conns)?;
    let connected = start.elapsed();

    std::thread::sleep(Duration::from_millis(500));
    let idle = server.resident()?.saturating_sub(empty) as f64 / conns as f64;

    loader.drive(|| Publisher::new(Pub::new(), 1));
    loader.tally.limit = conns;
    let start = Instant::now();
    loader.kick()?;
    loader.run_until(Duration::from_secs(60), |tally| tally.confirmed == conns)?;
    let published = start.elapsed();
    let held = super::control::held(server)?;
    ensure!(held == conns, "{conns} events were confirmed, the server holds {held}");
    let busy = server.resident()?.saturating_sub(empty) as f64 / conns as f64;

    let count = thousands(conns as f64);
    report.goals.push(Goal {
        name: format!("{count} connections, all at once"),
        want: "<= 5 s".into(),
        got: Some(format!("{:.2} s", connected.as_secs_f64())),
        met: connected < Duration::from_secs(5),
    });
    report.goals.push(Goal {
        name: "resident memory per idle connection".into(),
        want: "<= 20 KB".into(),
        got: Some(format!("{:.1} KB", idle / 1000.0)),
        met: idle <= 20_000.0,
    });
    report.facts.push(format!(
        "{count} connections, each publishing one event: all acked after {:.2} s; {:.1} KB resident per connection then.",
        published.as_secs_f64(),
        busy / 1000.0
    ));
    Ok(())
}

/// A connection on its way. A blocking `connect` would pace the storm to what the server accepts.
fn connecting(addr: SocketAddr) -> Result<TcpStream> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &addr) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket.into()),
        Err(error) => Err(error).context("connecting"),
    }
}

/// For this process and the servers it starts.
pub(crate) fn raise_file_limit(files: u64) -> Result<()> {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= files) {
        return Ok(());
    }
    let maximum = limit.maximum.map(|maximum| maximum.max(files));
    let raised = Rlimit { current: Some(files), maximum };
    rustix::process::setrlimit(Resource::Nofile, raised)
        .with_context(|| format!("this needs {files} open files; the limit is {:?}", limit.maximum))
}

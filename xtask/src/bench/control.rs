//! A connection to ask by hand: one command, one answer, and what a server says it holds.

use super::wire::jsonlog::TOPIC;
use crate::server::{Kind, Server};
use anyhow::{Context, Result, bail, ensure};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A blocking connection of lines.
pub(crate) struct Control {
    stream: BufReader<TcpStream>,
}

impl Control {
    /// Connects and reads the greeting of postroad.
    pub(crate) fn open(addr: SocketAddr) -> Result<Self> {
        let mut control = Self::plain(addr)?;
        let greeting = control.line()?;
        ensure!(greeting.starts_with("hello postroad/"), "instead of a greeting: `{greeting}`");
        Ok(control)
    }

    /// Connects to a server that does not greet.
    pub(crate) fn plain(addr: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(addr)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// The next line, without its end.
    pub(crate) fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        let read = self.stream.read_line(&mut line).context("waiting for an answer")?;
        ensure!(read > 0, "the server closed the connection");
        Ok(line.trim_end_matches(['\r', '\n']).to_owned())
    }

    /// Sends a command and reads one line.
    pub(crate) fn ask(&mut self, command: &str) -> Result<String> {
        self.stream.get_mut().write_all(format!("{command}\r\n").as_bytes())?;
        self.line()
    }

    /// Sends a command of postroad; gives what stands behind `ok`.
    pub(crate) fn call(&mut self, command: &str) -> Result<String> {
        let answer = self.ask(command)?;
        match answer.strip_prefix("ok") {
            Some(rest) => Ok(rest.trim_start().to_owned()),
            None => bail!("`{command}` was answered `{answer}`"),
        }
    }

    /// The socket, to be handed to the loader.
    pub(crate) fn into_stream(self) -> Result<TcpStream> {
        ensure!(self.stream.buffer().is_empty(), "the server said more than was asked");
        Ok(self.stream.into_inner())
    }
}

/// How many events the server says it holds.
pub(crate) fn held(server: &Server) -> Result<u64> {
    match server.kind {
        Kind::Postroad => {
            let stats = Control::open(server.addr)?.call(&format!("stats {TOPIC}"))?;
            let stats: serde_json::Value = serde_json::from_str(&stats)?;
            stats["events"].as_u64().with_context(|| format!("no `events` in {stats}"))
        }
        Kind::Redis => {
            let answer = Control::plain(server.addr)?.ask("XLEN k")?;
            answer.strip_prefix(':').and_then(|n| n.parse().ok()).with_context(|| format!("XLEN: `{answer}`"))
        }
        Kind::Beanstalkd => {
            let mut control = Control::plain(server.addr)?;
            let mut line = control.ask("stats")?;
            loop {
                if let Some(jobs) = line.strip_prefix("current-jobs-ready: ") {
                    return Ok(jobs.parse()?);
                }
                line = control.line()?;
            }
        }
    }
}

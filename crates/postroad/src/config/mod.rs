//! The configuration: every setting, its default, and its shape in a file.
//!
//! Defaults, then the file, then `POSTROAD__SECTION__KEY`, then flags; the later one wins (`sources`).

mod check;
mod listen;
mod mqtt;
mod secret;
mod show;
mod size;
mod sources;
mod span;

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

pub(crate) use self::{
    listen::Listen,
    mqtt::{Durability, Http, Lines, Mqtt, Overflow},
    secret::Secret,
    size::ByteSize,
    sources::{Loaded, Overrides, load},
    span::Span,
};

/// All settings.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    pub(crate) server: Server,
    pub(crate) jsonlog: JsonLog,
    pub(crate) mqtt: Mqtt,
    pub(crate) lines: Lines,
    pub(crate) http: Http,
    pub(crate) journal: Journal,
    pub(crate) retention: Retention,
    pub(crate) limits: Limits,
    pub(crate) log: Log,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Server {
    /// Where everything durable is.
    pub(crate) data: PathBuf,
    /// Allows a door without tokens to be reached from other machines.
    pub(crate) insecure: bool,
    /// How long a stopping server waits for its clients.
    pub(crate) drain_timeout: Span,
}

impl Default for Server {
    fn default() -> Self {
        Self { data: "./postroad-data".into(), insecure: false, drain_timeout: seconds(10) }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct JsonLog {
    pub(crate) listen: Listen,
    /// The longest line, without its end.
    pub(crate) max_line: ByteSize,
    /// The largest body of `pubn`.
    pub(crate) max_bulk: ByteSize,
    pub(crate) max_connections: usize,
    /// A client that reads nothing for so long is disconnected.
    pub(crate) write_timeout: Span,
    /// Output buffered for one connection.
    pub(crate) max_output: ByteSize,
    /// Half-sent lines of all connections.
    pub(crate) max_partial: ByteSize,
    /// Who may log in. Empty: everybody.
    pub(crate) tokens: Vec<Secret>,
    /// How long an event's `id` is remembered to drop duplicates; 0: not at all.
    pub(crate) dedup_window: Span,
    pub(crate) words: Words,
}

impl Default for JsonLog {
    fn default() -> Self {
        Self {
            listen: Listen::At(([127, 0, 0, 1], 8000).into()),
            max_line: mib(1),
            max_bulk: mib(8),
            max_connections: 20_000,
            write_timeout: seconds(60),
            max_output: ByteSize(256 << 10),
            max_partial: mib(256),
            tokens: Vec::new(),
            dedup_window: seconds(0),
            words: Words::default(),
        }
    }
}

/// The four command words that can be changed.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Words {
    #[serde(rename = "pub")]
    pub(crate) publish: String,
    #[serde(rename = "sub")]
    pub(crate) subscribe: String,
    #[serde(rename = "unsub")]
    pub(crate) unsubscribe: String,
    pub(crate) ack: String,
}

impl Default for Words {
    fn default() -> Self {
        Self {
            publish: "pub".into(),
            subscribe: "sub".into(),
            unsubscribe: "unsub".into(),
            ack: "ack".into(),
        }
    }
}

/// When a promise is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Sync {
    /// After the record is on disk
    Fdatasync,
    /// After the operating system has it; a power failure can lose it
    Os,
    /// Nothing is written to a disk
    Memory,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Journal {
    pub(crate) sync: Sync,
    pub(crate) segment_bytes: ByteSize,
    pub(crate) preallocate: bool,
    pub(crate) direct_io: bool,
    /// Publishing stops when less than this is free; acks go on.
    pub(crate) disk_floor: ByteSize,
    /// Records waiting for the disk; beyond it publishers are not read.
    pub(crate) queue_bytes: ByteSize,
}

impl Default for Journal {
    fn default() -> Self {
        Self {
            sync: Sync::Fdatasync,
            segment_bytes: mib(64),
            preallocate: true,
            direct_io: true,
            disk_floor: mib(64),
            queue_bytes: mib(64),
        }
    }
}

/// What a topic keeps. 0 means no limit.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Retention {
    pub(crate) max_bytes: ByteSize,
    pub(crate) max_age: Span,
    pub(crate) max_events: u64,
    /// Also remove what every named subscription has acked.
    pub(crate) interest: bool,
}

impl Default for Retention {
    fn default() -> Self {
        Self { max_bytes: mib(1024), max_age: seconds(7 * 86_400), max_events: 0, interest: false }
    }
}

/// What happens to a subscription that is more than `lag_events` behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LagPolicy {
    Note,
    Detach,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Limits {
    pub(crate) max_topics: usize,
    /// 0: no limit.
    pub(crate) lag_events: u64,
    pub(crate) lag_policy: LagPolicy,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_topics: 10_000, lag_events: 0, lag_policy: LagPolicy::Note }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// Pretty on a terminal, else JSON.
    Auto,
    Pretty,
    Json,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Log {
    /// `error` to `trace`, or directives like `info,postroad_engine=debug`.
    pub(crate) level: String,
    pub(crate) format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".into(), format: LogFormat::Auto }
    }
}

impl JsonLog {
    /// The tokens behind the references.
    pub(crate) fn resolve_tokens(&self) -> Result<Vec<String>, String> {
        let mut tokens = Vec::new();
        for secret in &self.tokens {
            tokens.extend(secret.resolve()?);
        }
        Ok(tokens)
    }
}

const fn mib(number: u64) -> ByteSize {
    ByteSize(number << 20)
}

const fn seconds(number: u64) -> Span {
    Span(Duration::from_secs(number))
}

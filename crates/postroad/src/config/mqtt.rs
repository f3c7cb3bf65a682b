//! The settings of the MQTT broker, and of the HTTP port that its WebSocket is on.

use super::{ByteSize, Listen, Span, mib, seconds};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What happens to a message for a session whose queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Overflow {
    /// The new message becomes a dead letter.
    DropNewest,
    /// The oldest one that was not sent yet does.
    DropOldest,
}

/// When a message is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Durability {
    /// When it is on the disk, if `journal.sync` is not weaker.
    Fsync,
    /// When it is written to the operating system: the end of the process does not lose it, a power failure may.
    Os,
    /// At once; it is gone with the process.
    Memory,
}

/// The durability of one listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ListenerDurability {
    /// As `mqtt.durability` says.
    Default,
    Fsync,
    Os,
    Memory,
}

impl ListenerDurability {
    pub(crate) fn or(self, default: Durability) -> Durability {
        match self {
            Self::Default => default,
            Self::Fsync => Durability::Fsync,
            Self::Os => Durability::Os,
            Self::Memory => Durability::Memory,
        }
    }
}

/// A durability for the topics that a filter matches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rule {
    pub(crate) filter: String,
    pub(crate) durability: Durability,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Mqtt {
    pub(crate) listen: Listen,
    /// MQTT over TLS; needs `certificate` and `key`.
    pub(crate) tls: Listen,
    /// PEM file; empty: none.
    pub(crate) certificate: PathBuf,
    /// PEM file; empty: none.
    pub(crate) key: PathBuf,
    /// PEM file with who signs the certificates of clients; empty: clients are not asked for one.
    pub(crate) client_ca: PathBuf,
    /// Clients without a certificate are refused.
    pub(crate) require_client_certificate: bool,
    /// Users and their passwords; empty: nobody has to log in.
    pub(crate) users: PathBuf,
    /// Who may do what; empty: everybody everything.
    pub(crate) acl: PathBuf,
    /// With `users`: clients without a user name are let in, too.
    pub(crate) allow_anonymous: bool,
    /// The reason code for a subscription that is not allowed: 135 (not authorized) or 128.
    pub(crate) subscribe_refusal: u8,
    pub(crate) max_connections: usize,
    pub(crate) max_sessions: usize,
    /// Subscriptions of one session.
    pub(crate) max_subscriptions: usize,
    pub(crate) max_packet: ByteSize,
    /// Messages that a client may send unacknowledged.
    pub(crate) receive_maximum: u16,
    /// Messages that a client is sent unacknowledged, if it takes as many.
    pub(crate) max_in_flight: u16,
    pub(crate) topic_aliases: u16,
    /// The longest keep alive that clients of MQTT 5.0 get; 0: any.
    pub(crate) keep_alive_max: Span,
    /// How long sessions of older clients outlive their connection; 0: for ever.
    pub(crate) session_expiry: Span,
    /// The longest that any session outlives its connection; 0: for ever.
    pub(crate) session_expiry_max: Span,
    /// Messages that wait for one session.
    pub(crate) max_queued: usize,
    pub(crate) overflow: Overflow,
    pub(crate) max_retained: usize,
    pub(crate) max_output: ByteSize,
    pub(crate) max_partial: ByteSize,
    pub(crate) write_timeout: Span,
    /// How often `$SYS` is published; 0: never.
    pub(crate) sys_interval: Span,
    pub(crate) durability: Durability,
    /// Of the listener with TLS.
    pub(crate) tls_durability: ListenerDurability,
    /// Topics with a durability of their own; the first filter that matches counts.
    pub(crate) rules: Vec<Rule>,
}

impl Default for Mqtt {
    fn default() -> Self {
        Self {
            listen: Listen::At(([127, 0, 0, 1], 1883).into()),
            tls: Listen::Off,
            certificate: PathBuf::new(),
            key: PathBuf::new(),
            client_ca: PathBuf::new(),
            require_client_certificate: false,
            users: PathBuf::new(),
            acl: PathBuf::new(),
            allow_anonymous: false,
            subscribe_refusal: 135,
            max_connections: 20_000,
            max_sessions: 1_000_000,
            max_subscriptions: 10_000,
            max_packet: mib(1),
            receive_maximum: 1024,
            max_in_flight: 1024,
            topic_aliases: 16,
            keep_alive_max: seconds(0),
            session_expiry: seconds(0),
            session_expiry_max: seconds(0),
            max_queued: 100_000,
            overflow: Overflow::DropNewest,
            max_retained: 2_000_000,
            max_output: ByteSize(256 << 10),
            max_partial: mib(256),
            write_timeout: seconds(60),
            sys_interval: seconds(10),
            durability: Durability::Fsync,
            tls_durability: ListenerDurability::Default,
            rules: Vec::new(),
        }
    }
}

/// The JSON line dialect: a second door to the MQTT broker.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Lines {
    /// Consumers; publishers have the next port.
    pub(crate) listen: Listen,
    pub(crate) max_line: ByteSize,
    /// When what was not answered is sent again.
    pub(crate) resend: Span,
    /// How often it is sent.
    pub(crate) max_sends: u32,
}

impl Default for Lines {
    fn default() -> Self {
        Self {
            listen: Listen::At(([127, 0, 0, 1], 4040).into()),
            max_line: ByteSize(64 << 10),
            resend: seconds(10),
            max_sends: 5,
        }
    }
}

/// The HTTP port. For now it has one thing: MQTT over WebSocket at `/mqtt`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Http {
    pub(crate) listen: Listen,
    /// From where browsers may connect, like `https://example.com`; empty: from everywhere.
    pub(crate) origins: Vec<String>,
    /// Of what comes over WebSocket.
    pub(crate) durability: ListenerDurability,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: Listen::At(([127, 0, 0, 1], 8080).into()),
            origins: Vec::new(),
            durability: ListenerDurability::Default,
        }
    }
}

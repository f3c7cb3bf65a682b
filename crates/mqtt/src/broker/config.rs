//! What the broker can be told.

use super::session::NEVER;
use postroad_core::retry::RetryPolicy;
use std::num::NonZeroU32;
use std::time::Duration;

/// When a message of QoS 1 or 2 is acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// When its record is committed, as durable as the data directory's `sync` makes it.
    #[default]
    Fsync,
    /// When its record is written to the operating system: the end of the process does not lose it, a power failure may
    /// lose the last moments.
    Os,
    /// At once. It is gone with the process.
    Memory,
}

/// What happens to a message for a session whose queue is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overflow {
    /// The new message becomes a dead letter.
    #[default]
    DropNewest,
    /// The oldest message that was not sent yet becomes a dead letter.
    DropOldest,
}

/// One listener: what its clients may do.
#[derive(Clone, Debug)]
pub struct ListenerConfig {
    /// For logs and errors.
    pub name: String,
    /// Connections at once.
    pub max_connections: usize,
    /// The largest packet in bytes that is accepted.
    pub max_packet_size: u32,
    /// The largest CONNECT in bytes.
    pub max_connect_size: u32,
    /// Messages of QoS 1 and 2 that a client may have unacknowledged (MQTT 5.0; older clients are slowed down).
    pub receive_maximum: u16,
    /// Topic aliases that a client may use.
    pub topic_alias_maximum: u16,
    /// The longest keep alive in seconds of MQTT 5.0 clients; 0: any.
    pub keep_alive_max: u16,
    /// How long CONNECT may take.
    pub connect_timeout: Duration,
    /// Clients without a user name and a certificate are let in.
    pub allow_anonymous: bool,
    /// When messages that come in here are acknowledged.
    pub durability: Durability,
}

impl Default for ListenerConfig {
    fn default() -> Self {
        Self {
            name: "mqtt".into(),
            max_connections: 20_000,
            max_packet_size: 1 << 20,
            max_connect_size: 64 << 10,
            receive_maximum: 1024,
            topic_alias_maximum: 16,
            keep_alive_max: 0,
            connect_timeout: Duration::from_secs(10),
            allow_anonymous: true,
            durability: Durability::Fsync,
        }
    }
}

/// A topic filter with its durability.
pub type DurabilityRule = (String, Durability);

/// The whole broker.
#[derive(Clone, Debug)]
pub struct BrokerConfig {
    /// Connections over all listeners.
    pub max_connections: usize,
    /// Clients that wait for the check of their password; of more, those of the busiest address are refused.
    pub max_logins: usize,
    /// Sessions, with and without a connection.
    pub max_sessions: usize,
    /// Subscriptions of one session.
    pub max_subscriptions: usize,
    /// Messages that wait for one session.
    pub max_queued: usize,
    /// Bytes of one session's messages that only memory has.
    pub max_queued_bytes: usize,
    /// What happens when a session's queue is full.
    pub overflow: Overflow,
    /// Messages sent to one client and not acknowledged, if the client allows as many.
    pub max_in_flight: u16,
    /// Bytes that wait to be written to one connection before it gets no more messages. QoS 0, which cannot wait, is
    /// dropped beyond four times as many.
    pub max_output: usize,
    /// Work queues: they stay when their consumers go.
    pub max_queues: usize,
    /// Messages of a work queue that one consumer may have at once.
    pub queue_window: u16,
    /// When messages of work queues come again, and when they do not any more.
    pub queue_policy: RetryPolicy,
    /// Dead letters that are kept if nobody says that they are stored elsewhere; then the oldest are forgotten.
    pub max_letters: usize,
    /// Retained messages.
    pub max_retained: usize,
    /// Seconds that the session of a client before MQTT 5.0 lives on without a connection; `u32::MAX`: for ever.
    pub session_expiry_v3: u32,
    /// The longest session expiry that a client gets, seconds.
    pub session_expiry_max: u32,
    /// Topics with a durability of their own; the first filter that matches counts.
    pub durability: Vec<DurabilityRule>,
    /// The code with which a subscription that is not allowed is refused follows from the access rules; this one says
    /// how often `$SYS` is published, zero: never.
    pub sys_interval: Duration,
    /// A record that nobody waits for may stay in memory this long.
    pub lazy: Duration,
    #[doc(hidden)]
    pub planted: Planted,
}

/// Deliberate defects, for the tests that prove that tests find them.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Planted {
    /// PUBREC and PUBACK leave before the commit.
    pub ack_before_commit: bool,
    /// PUBREL leaves before PUBREC is recorded.
    pub release_before_record: bool,
    /// The packet id of a QoS 2 message is not in its record.
    pub id_forgotten: bool,
    /// PUBCOMP leaves before the release is recorded.
    pub complete_before_record: bool,
    /// A message goes to its subscribers before it is committed.
    pub deliver_before_commit: bool,
    /// A message of a session is settled as dead, and memory alone has its letter.
    pub letter_after_settle: bool,
    /// The record of a message does not say which queues had no room for it.
    pub refusal_forgotten: bool,
    /// Wills of clients that were connected are gone with a crash.
    pub will_forgotten: bool,
}

impl Default for BrokerConfig {
    fn default() -> Self {
        Self {
            max_connections: 20_000,
            max_logins: 256,
            max_sessions: 1_000_000,
            max_subscriptions: 10_000,
            max_queued: 100_000,
            max_queued_bytes: 16 << 20,
            overflow: Overflow::DropNewest,
            max_in_flight: 1024,
            max_output: 256 << 10,
            max_queues: 10_000,
            queue_window: 16,
            queue_policy: RetryPolicy {
                ack_wait: Duration::from_secs(30),
                backoff: vec![Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(30)],
                max_deliveries: NonZeroU32::new(10),
            },
            max_letters: 10_000,
            max_retained: 2_000_000,
            session_expiry_v3: NEVER,
            session_expiry_max: NEVER,
            durability: Vec::new(),
            sys_interval: Duration::from_secs(10),
            lazy: Duration::from_millis(20),
            planted: Planted::default(),
        }
    }
}

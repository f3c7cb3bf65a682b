//! One connection: what is known of it beside its session.

use super::ConnId;
use super::config::ListenerConfig;
use super::outbox::Outbox;
use crate::access::{Exchange, Identity};
use crate::codec::{Connect, Decoder, Limits, Utf8, Version};
use postroad_core::mailbox::Millis;
use postroad_engine::log::Mark;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

/// Where a connection comes from.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// Its address.
    pub address: Option<SocketAddr>,
    /// The name in its verified certificate.
    pub certificate: Option<Arc<str>>,
}

/// How far a connection is.
pub(super) enum Stage {
    /// No CONNECT yet.
    New,
    /// Extended authentication before CONNACK.
    Authenticating(Box<(Connect, Box<dyn Exchange>)>),
    /// Its password is being checked; nothing is read from it.
    Checking(Box<Connect>),
    /// It has this session.
    Open { session: usize },
    /// Nothing more is read from it.
    Closing,
}

/// What few connections need.
#[derive(Default)]
pub(super) struct Extras {
    /// Topic aliases of the client, from 1.
    pub(super) aliases_in: Vec<Option<Utf8>>,
    /// Topic aliases given to the client.
    pub(super) aliases_out: HashMap<Utf8, NonZeroU16>,
    /// The method of its authentication, and a re-authentication under way.
    pub(super) method: Option<Utf8>,
    pub(super) exchange: Option<Box<dyn Exchange>>,
}

pub(super) struct Conn {
    pub(super) id: ConnId,
    pub(super) listener: Arc<ListenerConfig>,
    pub(super) peer: Peer,
    pub(super) decoder: Decoder,
    pub(super) version: Version,
    pub(super) stage: Stage,
    pub(super) out: Outbox,
    pub(super) who: Identity,
    /// CONNACK was sent.
    pub(super) greeted: bool,
    /// It has no transport: another door holds it.
    pub(super) inner: bool,
    /// In the list of touched connections.
    pub(super) touched: bool,
    /// It was told not to send, by not being read.
    pub(super) held: bool,
    /// Milliseconds without a packet after which it is closed; 0: never.
    pub(super) keep_alive: Millis,
    /// When the last packet came, or a good part of one.
    pub(super) last_seen: Millis,
    /// How much of the next packet had come then.
    pub(super) unfinished: usize,
    /// When its timer goes off: it has one at most.
    pub(super) armed: Millis,
    /// The largest packet that the client takes.
    pub(super) max_packet: u32,
    /// Topic aliases that the client takes.
    pub(super) alias_max: u16,
    /// Whether reason strings may be sent with everything.
    pub(super) problem_information: bool,
    /// Acknowledgements of its QoS 1 and 2 messages that wait for a commit.
    pub(super) unacknowledged: u32,
    /// Packets for it that wait for this; later ones must not overtake them.
    pub(super) ticket: Mark,
    pub(super) extras: Option<Box<Extras>>,
}

impl Conn {
    pub(super) fn new(id: ConnId, listener: &Arc<ListenerConfig>, peer: Peer, now: Millis) -> Self {
        let limits = Limits {
            max_packet_size: listener.max_packet_size,
            max_connect_size: listener.max_connect_size,
            ..Limits::default()
        };
        Self {
            id,
            listener: listener.clone(),
            peer,
            decoder: Decoder::server(limits),
            version: Version::V311,
            stage: Stage::New,
            out: Outbox::default(),
            who: Identity::anonymous(),
            greeted: false,
            inner: false,
            touched: false,
            held: false,
            keep_alive: 0,
            last_seen: now,
            unfinished: 0,
            armed: 0,
            max_packet: u32::MAX,
            alias_max: 0,
            problem_information: true,
            unacknowledged: 0,
            ticket: Mark::NOW,
            extras: None,
        }
    }

    pub(super) fn extras(&mut self) -> &mut Extras {
        self.extras.get_or_insert_default()
    }

    pub(super) fn session(&self) -> Option<usize> {
        match self.stage {
            Stage::Open { session } => Some(session),
            _ => None,
        }
    }
}

//! What the log of a broker says, for whoever looks at it from outside: the fold that a start does, without a start.
//!
//! Nothing here changes anything. The broker may be running, and then what it knows beyond its log is not seen: sessions
//! that end with their connection, messages that only memory has, what a connected client was sent since it came, and
//! acknowledgements that are not in the log yet.
//!
//! The log is read twice: first by [`Inspector::record`], then by [`Contents::look`], which adds what only the messages
//! themselves say. So memory holds what is owed, not what there ever was.

use super::fold::Fold;
use super::message::{self, Message};
use super::outgoing::{self, packet_id};
use super::session::NEVER;
use crate::codec::Qos;
use postroad_core::mailbox::Millis;
use postroad_engine::log::RecordView;
use std::collections::HashMap;

/// The directory of the broker's log in a data directory.
pub const LOG: &str = "mqtt";

/// Reads a broker's log from its first record on.
#[derive(Debug, Default)]
pub struct Inspector {
    fold: Fold,
}

/// What a log says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Sessions that are in the log, by client id.
    pub sessions: Vec<Session>,
    /// Retained messages, by topic; expired ones, too.
    pub retained: Vec<Retained>,
}

/// A session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The client id.
    pub client: String,
    /// Its number in the log, never used again.
    pub number: u64,
    /// The user that it belongs to; `None`: an anonymous client.
    pub user: Option<String>,
    /// Seconds that it outlives its connection; `None`: for ever.
    pub expiry: Option<u32>,
    /// Since when it has no connection, milliseconds since 1970. `None`: it has one, or the broker was killed.
    pub away: Option<Millis>,
    /// Messages that its client takes at once.
    pub window: u16,
    /// Its subscriptions, by filter.
    pub subscriptions: Vec<Subscription>,
    /// Messages of QoS 1 and 2 whose exchange with its client is not over, in order.
    pub outgoing: Vec<Outgoing>,
    /// Packet ids of QoS 2 messages of its client that were taken and not released, ascending.
    pub incoming: Vec<u16>,
    /// Its will.
    pub will: Option<Will>,
}

/// A subscription of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// The topic filter, with `$share/GROUP/` if it is a shared one.
    pub filter: String,
    /// The QoS that was granted.
    pub qos: u8,
    /// Messages of the client itself do not come.
    pub no_local: bool,
    /// The retain flag comes as it was published.
    pub retain_as_published: bool,
    /// The subscription identifier.
    pub id: Option<u32>,
}

/// How far the exchange of a message with its subscriber is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// It was not sent.
    Queued,
    /// It may have been sent. Of a client that is connected the log does not say how much it was sent, so that this is
    /// said of all that it is owed.
    Sent,
    /// QoS 2: its client has it, PUBREC is recorded; PUBCOMP is not.
    Released,
}

/// A message on its way to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// Its number in the session.
    pub number: u64,
    /// Its packet id.
    pub packet: u16,
    /// Its number in the log.
    pub seq: u64,
    /// The QoS with which it is delivered: 1 or 2.
    pub qos: u8,
    /// How far it is.
    pub phase: Phase,
    /// What the message says; `None`: it is not in the log any more.
    pub about: Option<About>,
}

/// What a message says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// Where it was published.
    pub topic: String,
    /// Bytes of its payload.
    pub bytes: u64,
    /// The QoS with which it was published.
    pub qos: u8,
    /// When it was published, milliseconds since 1970.
    pub time: Millis,
    /// When it expires, milliseconds since 1970; `None`: never.
    pub expires: Option<Millis>,
}

/// A retained message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retained {
    /// Its topic.
    pub topic: String,
    /// Its number in the log.
    pub seq: u64,
    /// When it expires, milliseconds since 1970; `None`: never.
    pub expires: Option<Millis>,
    /// What the message says; `None`: it is not in the log any more.
    pub about: Option<About>,
}

/// The will of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Will {
    /// Where it will be published.
    pub topic: String,
    /// Bytes of its payload.
    pub bytes: u64,
    /// Its QoS.
    pub qos: u8,
    /// It is to be retained.
    pub retain: bool,
    /// Seconds between the end of the connection and its publication.
    pub delay: u32,
    /// Seconds that it is of use once it is published; `None`: any number.
    pub expiry: Option<u32>,
}

impl Inspector {
    /// Reads a record; records come in the order of the log. Fails, with the reason, at a record that no broker of
    /// this version wrote.
    pub fn record(&mut self, record: &RecordView<'_>) -> Result<(), String> {
        self.fold.apply(record)
    }

    /// What all records together say.
    pub fn finish(self) -> Contents {
        let state = self.fold.finish();
        let mut sessions: Vec<Session> =
            state.sessions.iter().map(|(_, session)| Session::of(session)).collect();
        sessions.sort_by(|a, b| a.client.cmp(&b.client));
        let retained = state.retained.iter().map(|(topic, kept)| Retained {
            topic: topic.to_owned(),
            seq: kept.seq,
            expires: kept.expires,
            about: None,
        });
        Contents { sessions, retained: retained.collect() }
    }
}

impl Contents {
    /// Looks through the log again for the messages that are named here, and adds what they say. `read` calls what it is given with
    /// every record; its error is passed on.
    pub fn look<E>(
        &mut self,
        read: impl FnOnce(&mut dyn FnMut(&RecordView<'_>)) -> Result<(), E>,
    ) -> Result<(), E> {
        let owed = self.sessions.iter().flat_map(|session| &session.outgoing).map(|message| message.seq);
        let kept = self.retained.iter().map(|retained| retained.seq);
        let mut wanted: HashMap<u64, Option<About>> = owed.chain(kept).map(|seq| (seq, None)).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        read(&mut |record| {
            if record.kind == "pub"
                && let Some(place) = wanted.get_mut(&record.seq)
            {
                let line = bytes::Bytes::copy_from_slice(record.line);
                *place = record
                    .event(&line)
                    .and_then(|event| message::read(&event))
                    .map(|(message, _)| About::of(&message));
            }
        })?;
        let find = |seq: &u64| wanted.get(seq).cloned().flatten();
        for message in self.sessions.iter_mut().flat_map(|session| &mut session.outgoing) {
            message.about = find(&message.seq);
        }
        for retained in &mut self.retained {
            retained.about = find(&retained.seq);
        }
        Ok(())
    }
}

impl Session {
    fn of(session: &super::session::Session) -> Self {
        let subscriptions = session.subscriptions.iter().map(|(filter, options)| Subscription {
            filter: filter.as_str().to_owned(),
            qos: options.qos as u8,
            no_local: options.no_local,
            retain_as_published: options.retain_as_published,
            id: options.id.map(crate::codec::SubscriptionId::get),
        });
        let queue = session.outgoing().into_iter().flat_map(outgoing::Outgoing::iter);
        let owed = queue.filter(|(_, entry)| entry.seq != 0 && entry.qos != Qos::AtMostOnce);
        let outgoing = owed.map(|(number, entry)| Outgoing {
            number,
            packet: packet_id(number).get(),
            seq: entry.seq,
            qos: entry.qos as u8,
            phase: match entry.phase {
                outgoing::Phase::Queued => Phase::Queued,
                outgoing::Phase::Sent => Phase::Sent,
                outgoing::Phase::Released => Phase::Released,
            },
            about: None,
        });
        Self {
            client: session.client.as_str().to_owned(),
            number: session.number,
            user: session.owner.as_deref().map(str::to_owned),
            expiry: (session.expiry != NEVER).then_some(session.expiry),
            away: session.away,
            window: session.window,
            subscriptions: subscriptions.collect(),
            outgoing: outgoing.collect(),
            incoming: session.open_packets().into_iter().map(crate::codec::PacketId::get).collect(),
            will: session.will.as_deref().map(|will| Will {
                topic: will.message.topic.as_str().to_owned(),
                bytes: will.message.payload.len() as u64,
                qos: will.message.qos as u8,
                retain: will.message.retain,
                delay: will.delay,
                expiry: will.expiry,
            }),
        }
    }

    /// How many messages are in this phase.
    pub fn count(&self, phase: Phase) -> usize {
        self.outgoing.iter().filter(|message| message.phase == phase).count()
    }

    /// When it ends if its client does not come back, milliseconds since 1970; `None`: never, or it is not away.
    pub fn ends(&self) -> Option<Millis> {
        Some(self.away? + u64::from(self.expiry?) * 1000)
    }
}

impl About {
    fn of(message: &Message) -> Self {
        Self {
            topic: message.topic.as_str().to_owned(),
            bytes: message.payload.len() as u64,
            qos: message.qos as u8,
            time: message.time,
            expires: message.expires,
        }
    }
}

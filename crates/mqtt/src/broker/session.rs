//! Sessions and their subscriptions.

use super::ConnId;
use super::incoming::Incoming;
use super::message::Message;
use super::outgoing::{Entry, Outgoing, SubscriptionIds};
use crate::access::Identity;
use crate::codec::{Qos, RetainHandling, Subscription, SubscriptionId, Utf8};
use postroad_core::mailbox::Millis;
use postroad_engine::log::{Mark, Ticket};
use std::collections::{BTreeMap, VecDeque};

/// The session never expires. [section 3.1.2.11.2]
pub(super) const NEVER: u32 = u32::MAX;

/// Options of one subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) qos: Qos,
    pub(super) no_local: bool,
    pub(super) retain_as_published: bool,
    pub(super) id: Option<SubscriptionId>,
    /// All messages come at QoS 2, whatever they were published with: a door whose protocol has nothing else.
    pub(super) exactly_once: bool,
}

impl Options {
    pub(super) fn of(subscription: &Subscription, id: Option<SubscriptionId>) -> Self {
        Self {
            qos: subscription.qos,
            no_local: subscription.no_local,
            retain_as_published: subscription.retain_as_published,
            id,
            exactly_once: false,
        }
    }

    /// The QoS with which a message goes to the subscriber. [MQTT-3.8.4-8]
    pub(super) fn level(self, published: Qos) -> Qos {
        if self.exactly_once { Qos::ExactlyOnce } else { self.qos.min(published) }
    }

    /// As one number, for the log.
    pub(super) fn bits(self) -> u8 {
        let flags = [(self.no_local, 4), (self.retain_as_published, 8), (self.exactly_once, 16)];
        flags.iter().fold(self.qos as u8, |bits, (set, bit)| if *set { bits | bit } else { bits })
    }

    pub(super) fn from_bits(bits: u8, id: Option<SubscriptionId>) -> Option<Self> {
        Some(Self {
            qos: Qos::from_u8(bits & 3)?,
            no_local: bits & 4 != 0,
            retain_as_published: bits & 8 != 0,
            id,
            exactly_once: bits & 16 != 0,
        })
    }
}

/// Whether retained messages are to be sent for a subscription. [MQTT-3.3.1-9] to [MQTT-3.3.1-11]
pub(super) fn wants_retained(handling: RetainHandling, existed: bool) -> bool {
    match handling {
        RetainHandling::Send => true,
        RetainHandling::SendIfNew => !existed,
        RetainHandling::DoNotSend => false,
    }
}

/// A message to be published when the connection ends without a DISCONNECT.
#[derive(Clone, Debug)]
pub(super) struct Will {
    pub(super) message: Message,
    /// Seconds that it is of use once it is published.
    pub(super) expiry: Option<u32>,
    /// Seconds between the end of the connection and its publication.
    pub(super) delay: u32,
}

/// Who listens under a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subscriber {
    /// A session, by its place.
    Session(usize, Options),
    /// The members of a shared subscription, by its place.
    Share(usize),
    /// A work queue, by its place.
    Queue(usize),
}

/// A shared subscription.
#[derive(Debug)]
pub(super) struct Share {
    pub(super) group: Box<str>,
    pub(super) filter: Box<str>,
    pub(super) members: Vec<(usize, Options)>,
    /// Whose turn it is.
    pub(super) turn: usize,
}

/// Retained messages for a new subscription, sent page by page as the connection takes them.
#[derive(Clone, Debug)]
pub(super) struct Replay {
    pub(super) filter: Utf8,
    pub(super) options: Options,
    /// The topic that was looked at last.
    pub(super) after: Option<Box<str>>,
}

/// A client's session.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) client: Utf8,
    /// Its number in the log, never used again.
    pub(super) number: u64,
    /// The log has it: it outlives its connection, and the broker.
    pub(super) durable: bool,
    /// The log has heard of it, if only for its will.
    pub(super) in_log: bool,
    /// It has just been made.
    pub(super) fresh: bool,
    /// Seconds that it lives on without a connection.
    pub(super) expiry: u32,
    pub(super) conn: Option<ConnId>,
    pub(super) who: Identity,
    /// The user it belongs to: nobody else gets it, who may know the client id.
    pub(super) owner: Option<Box<str>>,
    /// When it lost its connection.
    pub(super) away: Option<Millis>,
    /// Without a connection: messages up to this number may have been sent. After a crash nothing else says so, and
    /// what may have been received must not go to another member of a share, nor expire.
    pub(super) sent: u64,
    /// The window of its last connection.
    pub(super) window: u16,
    pub(super) incoming: Incoming,
    // Most sessions have nothing in flight most of the time.
    outgoing: Option<Box<Outgoing>>,
    // The next number of `outgoing` while there is none.
    next: u64,
    /// Where the log's own count of its messages stands: messages in memory only are not in it.
    pub(super) logged_next: u64,
    /// Numbers up to this one may have been given to messages that the log lost, or never had: after a crash they are
    /// not given again, because the client may still know their packet ids.
    pub(super) reserved: u64,
    /// When the record of that is committed.
    pub(super) reserved_at: Ticket,
    /// Its client is content when its records are written to the operating system.
    pub(super) buffered: bool,
    pub(super) subscriptions: BTreeMap<Utf8, Options>,
    pub(super) will: Option<Box<Will>>,
    /// Retained messages that it is still to be sent.
    pub(super) replays: VecDeque<Replay>,
    /// The newest record that concerns it.
    pub(super) ticket: Mark,
    // Which publish last matched it, and as which target.
    pub(super) stamp: (u64, usize),
}

impl Session {
    pub(super) fn new(client: Utf8, number: u64, durable: bool, expiry: u32) -> Self {
        Self {
            client,
            number,
            durable,
            in_log: false,
            fresh: false,
            expiry,
            conn: None,
            who: Identity::anonymous(),
            owner: None,
            away: None,
            sent: 0,
            window: 0,
            incoming: Incoming::default(),
            outgoing: None,
            next: 1,
            logged_next: 1,
            reserved: 0,
            reserved_at: Ticket(0),
            buffered: false,
            subscriptions: BTreeMap::new(),
            will: None,
            replays: VecDeque::new(),
            ticket: Mark::NOW,
            stamp: (0, 0),
        }
    }

    /// Its queue, if there is something in it.
    pub(super) fn outgoing(&self) -> Option<&Outgoing> {
        self.outgoing.as_deref()
    }

    pub(super) fn outgoing_mut(&mut self) -> Option<&mut Outgoing> {
        self.outgoing.as_deref_mut()
    }

    /// Its queue, made if there is none.
    pub(super) fn queue(&mut self) -> &mut Outgoing {
        let (next, window, online) = (self.next, self.window, self.conn.is_some());
        self.outgoing.get_or_insert_with(|| {
            let mut queue = Box::<Outgoing>::default();
            queue.skip_to(next);
            if online {
                queue.attach(window);
            }
            queue
        })
    }

    /// The number that its next message gets.
    pub(super) fn next(&self) -> u64 {
        self.outgoing.as_ref().map_or(self.next, |queue| queue.next())
    }

    /// Keeps a message of the log for a publisher that has not released it.
    pub(super) fn hold(&mut self, seq: u64) {
        let mut entry = Entry::new(seq, None, Qos::ExactlyOnce, false, SubscriptionIds::new());
        entry.logged = true;
        self.logged_next = self.queue().push(entry) + 1;
    }

    /// Gives memory back if nothing waits and nobody is there.
    pub(super) fn tidy(&mut self) {
        if let Some(queue) = &self.outgoing
            && queue.len() == 0
        {
            self.next = queue.next();
            self.outgoing = None;
        }
    }
}

/// One session that gets a message.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) session: usize,
    /// Its number, to see whether the place still has the same session.
    pub(super) id: u64,
    /// Its number in the session's queue; 0 at QoS 0.
    pub(super) number: u64,
    pub(super) qos: Qos,
    pub(super) retain: bool,
    pub(super) ids: SubscriptionIds,
    /// The shared subscription through which it was chosen.
    pub(super) share: Option<usize>,
}

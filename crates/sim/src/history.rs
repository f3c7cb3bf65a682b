//! What was seen at the broker's door, in the order in which it was seen.
//!
//! A [`Fact`] is noted when bytes enter or leave the broker, not when they reach a client: a promise counts from the moment it
//! left, and nothing the network does can change the order of facts. [`check`] is a pure function of the facts and of an [`Audit`]
//! of what the disk held in the end.

mod deliveries;
mod stored;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

/// A connection; never used twice in one world.
pub type Conn = u32;
/// One sending of a message, the index into [`History::sent`].
pub type Tag = u32;
/// Index into the topics of the world.
pub type Topic = u8;

/// A message as one command carried it.
#[derive(Clone, Debug)]
pub struct Sent {
    /// What the publisher wants to be stored once; sent again under another tag when the outcome is unknown.
    pub message: u32,
    /// Where it goes.
    pub topic: Topic,
    /// Larger is delivered first.
    pub priority: i64,
    /// Sent in one command with others: the first tag of them.
    pub batch: Option<Tag>,
    /// Its bytes.
    pub payload: Vec<u8>,
}

/// What a subscription was asked to be. Those with the same filter and name are one subscription, whoever asks.
#[derive(Clone, Debug)]
pub struct SubSpec {
    /// As written.
    pub filter: &'static str,
    /// `None`: it lives as long as its connection.
    pub name: Option<&'static str>,
    /// Shared by several connections.
    pub group: bool,
    /// Where a new one starts.
    pub from: Start,
    /// Un-acked messages of a connection.
    pub prefetch: u32,
    /// Milliseconds.
    pub ack_wait: u64,
    /// 0: no limit.
    pub max_deliveries: u32,
    /// Milliseconds before delivery 2, 3, …
    pub backoff: &'static [u64],
    /// The topics that match.
    pub topics: &'static [Topic],
}

/// Where a new subscription starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// After the newest message.
    New,
    /// At the first one.
    First,
    /// At the first one that was stored not longer than so many milliseconds ago.
    Ago(u64),
}

impl SubSpec {
    /// Its name in dead letters.
    pub fn title(&self) -> String {
        self.name.map_or_else(|| self.filter.to_owned(), |name| format!("{} as {name}", self.filter))
    }
}

/// Index of a [`SubSpec`] of the world.
pub type Spec = u8;

/// What a consumer says of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Done.
    Ack,
    /// Again, not before so many milliseconds if it says so.
    Nack(Option<u64>),
    /// To the dead letters.
    Bury,
    /// Still working.
    Touch,
}

/// A verdict on a range of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Settle {
    /// Which.
    pub verdict: Verdict,
    /// Of which topic.
    pub topic: Topic,
    /// The first message meant.
    pub first: u64,
    /// The last message meant.
    pub last: u64,
}

/// Something that happened at the door of the broker.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Fact {
    /// The broker began to serve what the disk held.
    Opened,
    /// The broker was stopped or killed: its connections are gone.
    Closed,
    /// The power is gone; threads that still ran for a moment may say what they know.
    Gasp,
    /// A call to the disk was made to fail.
    DiskFault,
    /// The broker let go of a connection.
    Gone(Conn),
    /// A publish came in.
    Publish(Tag),
    /// It was confirmed under a number; `duplicate`: of an earlier sending of the same message.
    Stored {
        /// Which sending.
        tag: Tag,
        /// Its number, or that of the first sending.
        seq: u64,
        /// It was there before.
        duplicate: bool,
    },
    /// It was confirmed without a number.
    Kept(Tag),
    /// It was refused: nothing was stored.
    Refused(Tag),
    /// Somebody asked for a subscription.
    Asking(Conn, Spec),
    /// A subscription was confirmed.
    Attached(Conn, Spec),
    /// A connection ended its subscription.
    Detached(Conn),
    /// Somebody asked to forget a subscription: from here on it may be another one.
    Forget(Spec),
    /// The broker ended and forgot a subscription that was too far behind: whoever had it has it no more.
    Ended(Spec),
    /// A message left for a consumer.
    Delivered {
        /// To whom.
        conn: Conn,
        /// From where.
        topic: Topic,
        /// Its number.
        seq: u64,
        /// 1 for the first time.
        attempt: u32,
        /// Which sending it is, byte for byte.
        tag: Tag,
    },
    /// A verdict came in.
    Verdict(Conn, Settle),
    /// It was confirmed; `asked` is when it came in.
    Settled {
        /// By whom.
        conn: Conn,
        /// What.
        settle: Settle,
        /// When it came in, milliseconds.
        asked: u64,
    },
    /// Retention removed all messages before this one.
    Trimmed(Topic, u64),
    /// Dead letters of a topic are to be published again.
    Kick(Topic),
    /// The broker answered with an inner error, which only a disk that fails excuses.
    Internal(String),
    /// The door itself broke a rule of its protocol.
    Wrong(String),
}

/// Everything seen in one world.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Virtual time, milliseconds; stamped on facts.
    pub now: u64,
    /// With the time of each.
    pub facts: Vec<(u64, Fact)>,
    /// By tag.
    pub sent: Vec<Sent>,
    messages: u32,
}

impl History {
    /// Notes a fact, now.
    pub fn note(&mut self, fact: Fact) {
        self.facts.push((self.now, fact));
    }

    /// The number of a message that is new.
    pub fn new_message(&mut self) -> u32 {
        self.messages += 1;
        self.messages
    }

    /// Enters a sending; `payload` makes its bytes, which must contain the tag.
    pub fn send(
        &mut self,
        message: u32,
        topic: Topic,
        priority: i64,
        batch: Option<Tag>,
        payload: impl FnOnce(Tag) -> Vec<u8>,
    ) -> Tag {
        let tag = self.sent.len() as Tag;
        self.sent.push(Sent { message, topic, priority, batch, payload: payload(tag) });
        tag
    }
}

/// A dead letter on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// The title of the subscription that gave it up.
    pub subscription: String,
    /// Where it was published.
    pub topic: Topic,
    /// Its number there.
    pub seq: u64,
    /// Its bytes are those of that message.
    pub payload: Vec<u8>,
}

/// What the disk held in the end, after everything was drained and one more crash.
#[derive(Clone, Debug, Default)]
pub struct Audit {
    /// The first number that each topic keeps.
    pub first: BTreeMap<Topic, u64>,
    /// The payloads of each topic, from that number on.
    pub logs: BTreeMap<Topic, Vec<Vec<u8>>>,
    /// Topics of whose dead letters retention removed some.
    pub dead_trimmed: BTreeSet<Topic>,
    /// In the order of their topics and numbers.
    pub dead: Vec<DeadLetter>,
    /// Unsettled messages of each durable subscription that is there, by spec and topic.
    pub pending: BTreeMap<(Spec, Topic), u64>,
}

impl Audit {
    /// Retention removed what was there.
    fn is_trimmed(&self, place: (Topic, u64)) -> bool {
        self.first.get(&place.0).is_some_and(|first| place.1 < *first)
    }
}

/// What the rules need to know about a world.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// The subscriptions that were used.
    pub specs: &'a [SubSpec],
    /// A message with an id is stored once.
    pub dedup: bool,
}

/// A rule that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Which, and by what.
    pub why: String,
    /// The index of the fact that broke it; `None`: it is seen in the end.
    pub fact: Option<usize>,
}

/// The first rule that was broken, if any.
///
/// # Errors
/// That rule.
pub fn check(terms: Terms<'_>, history: &History, audit: &Audit) -> Result<(), Broken> {
    let ledger = deliveries::check(terms, history)?;
    stored::check(terms, history, &ledger, audit).map_err(|why| Broken { why, fact: None })
}

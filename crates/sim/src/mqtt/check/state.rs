//! What the rules remember of messages, connections and sessions.

use crate::mqtt::cast::{Ask, FILTERS, topic as name_of};
use crate::mqtt::facts::{Id, Sent, Tag, Who, Will};
use postroad_mqtt::codec::topic;
use std::collections::{HashMap, HashSet};

/// Whether one of [`FILTERS`] matches a topic.
pub(super) fn matches(filter: u8, name: &str) -> bool {
    let filter = FILTERS[usize::from(filter)];
    let filter =
        filter.strip_prefix("$share/g/").or_else(|| filter.strip_prefix("$queue/jobs/")).unwrap_or(filter);
    topic::matches(filter, name)
}

/// A message on its way in. Facts are meant by their index.
#[derive(Clone, Debug, Default)]
pub(super) struct Message {
    /// PUBLISH came for the first time, and for the last.
    pub(super) first: usize,
    pub(super) last: usize,
    /// The last time that it may have counted.
    pub(super) counted: usize,
    pub(super) came: bool,
    /// PUBACK or PUBREC left.
    pub(super) taken: Option<usize>,
    /// When it came for the first time, and for the last.
    pub(super) first_time: u64,
    pub(super) last_time: u64,
    /// The life of the broker in which it came first, and last.
    pub(super) lives: (u32, u32),
    /// Its place in the order of its publisher is not known.
    pub(super) unordered: bool,
}

impl Message {
    pub(super) fn came(&mut self, at: usize, now: u64, life: u32, qos: u8) {
        if !self.came {
            (self.came, self.first, self.first_time, self.lives.0) = (true, at, now, life);
        }
        (self.last, self.last_time, self.lives.1) = (at, now, life);
        if qos < 2 || self.taken.is_none() {
            self.counted = at;
        }
    }
}

/// One connection.
#[derive(Debug)]
pub(super) struct Door {
    pub(super) who: Who,
    pub(super) clean: bool,
    pub(super) lasting: u32,
    pub(super) window: u16,
    pub(super) session: Option<usize>,
    /// When it came, the session before had been gone for too long.
    pub(super) expired: bool,
    /// When something came in last.
    pub(super) heard: u64,
    pub(super) asking: HashMap<Id, usize>,
    pub(super) ending: HashMap<Id, u8>,
    pub(super) in_flight: HashSet<Id>,
    /// Messages of work queues.
    pub(super) work: HashMap<Id, Tag>,
    pub(super) will: Option<Will>,
    /// There was no session when it came.
    pub(super) anew: bool,
    /// When CONNECT came in.
    pub(super) since: u64,
}

impl Door {
    pub(super) fn new(
        who: Who,
        clean: bool,
        lasting: u32,
        window: u16,
        will: Option<Will>,
        now: u64,
    ) -> Self {
        Self {
            who,
            clean,
            lasting,
            window,
            session: None,
            expired: false,
            heard: now,
            asking: HashMap::new(),
            ending: HashMap::new(),
            in_flight: HashSet::new(),
            work: HashMap::new(),
            will,
            anew: false,
            since: now,
        }
    }
}

/// One subscription of a session: it may route from `asked` to `ended`, and must from `sure` to `ending`.
#[derive(Clone, Debug)]
pub(super) struct Sub {
    pub(super) ask: Ask,
    pub(super) asked: usize,
    pub(super) sure: Option<usize>,
    pub(super) ending: Option<usize>,
    pub(super) ended: Option<usize>,
    /// Topics whose retained message came with it: which, and in which life.
    pub(super) replayed: HashMap<u8, (Tag, u32)>,
}

impl Sub {
    /// Whether it is for a message.
    pub(super) fn takes(&self, who: Who, sent: &Sent) -> bool {
        matches(self.ask.filter, name_of(sent.topic)) && !(self.ask.no_local && sent.by == who)
    }

    /// Its identifier, as a bit.
    pub(super) fn bit(&self) -> u32 {
        if self.ask.has_id { 2 << self.ask.filter } else { 0 }
    }
}

/// What an id of a session stands for.
#[derive(Clone, Debug)]
pub(super) struct Bind {
    pub(super) tag: Option<Tag>,
    pub(super) qos: u8,
    pub(super) retain: bool,
    pub(super) received: bool,
    pub(super) released: bool,
    pub(super) settled: bool,
    pub(super) refused: bool,
    /// The session was in doubt since.
    pub(super) doubtful: bool,
    /// The life of the broker that sent it first.
    pub(super) life: u32,
}

impl Bind {
    pub(super) fn is_same(&self, other: &Self) -> bool {
        (self.tag, self.qos, self.retain) == (other.tag, other.qos, other.retain)
    }
}

/// A session, from CONNACK to its end.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) who: Who,
    pub(super) lasting: u32,
    pub(super) subs: Vec<Sub>,
    pub(super) binds: HashMap<Id, Bind>,
    /// Messages that it was sent, not counting repetitions.
    pub(super) got: HashMap<Tag, u32>,
    /// The last message of each publisher, topic and QoS.
    pub(super) order: HashMap<(Who, u8, u8), Tag>,
    /// It has no connection: since which fact, and when.
    pub(super) gone: Option<(usize, u64)>,
    /// The last fact with which it lost a connection.
    pub(super) parted: usize,
    /// What its client refused.
    pub(super) refused: HashSet<Tag>,
    pub(super) heard: u64,
    /// It may have ended, and another one begun.
    pub(super) doubtful: bool,
    /// It was doubtful once, and went on.
    pub(super) merged: bool,
    pub(super) ended: Option<usize>,
}

impl Session {
    pub(super) fn new(who: Who, lasting: u32) -> Self {
        Self {
            who,
            lasting,
            subs: Vec::new(),
            binds: HashMap::new(),
            got: HashMap::new(),
            order: HashMap::new(),
            gone: None,
            parted: 0,
            refused: HashSet::new(),
            heard: 0,
            doubtful: false,
            merged: false,
            ended: None,
        }
    }

    /// It loses its connection.
    pub(super) fn part(&mut self, at: usize, now: u64) {
        // DISCONNECT, and the end of its transport later, are one end.
        let first = self.gone.is_none();
        self.gone.get_or_insert((at, now));
        // Of a doubtful one, that connection may have found nothing.
        if first && self.ended.is_none() && !self.doubtful {
            self.parted = at;
        }
        if self.lasting == 0 {
            self.ended.get_or_insert(at);
        }
    }

    /// It may be another one from here on.
    pub(super) fn doubt(&mut self, at: usize) {
        self.doubtful = true;
        for sub in &mut self.subs {
            sub.ending.get_or_insert(at);
        }
    }

    /// It has a connection.
    pub(super) fn back(&mut self, now: u64) {
        if std::mem::take(&mut self.doubtful) {
            self.merged = true;
            self.binds.values_mut().for_each(|bind| bind.doubtful = true);
        }
        (self.gone, self.heard) = (None, now);
    }

    /// SUBSCRIBE: the place of the subscription, which may be there already.
    pub(super) fn ask(&mut self, ask: Ask, at: usize) -> usize {
        let same = |sub: &Sub| sub.ask.filter == ask.filter && sub.ending.is_none();
        if let Some(place) = self.subs.iter().position(same) {
            return place;
        }
        self.subs.push(Sub {
            ask,
            asked: at,
            sure: None,
            ending: None,
            ended: None,
            replayed: HashMap::new(),
        });
        self.subs.len() - 1
    }
}

//! What the rules remember of messages, connections and sessions.

use crate::mqtt::cast::FILTERS;
use crate::mqtt::facts::{Id, Tag, Who};
use postroad_mqtt::codec::topic;
use std::collections::{HashMap, HashSet};

/// Whether one of [`FILTERS`] matches a topic.
pub(super) fn matches(filter: u8, name: &str) -> bool {
    let filter = FILTERS[usize::from(filter)];
    topic::matches(filter.strip_prefix("$share/g/").unwrap_or(filter), name)
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
}

impl Message {
    pub(super) fn came(&mut self, at: usize, qos: u8) {
        if !self.came {
            (self.came, self.first) = (true, at);
        }
        self.last = at;
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
}

impl Door {
    pub(super) fn new(who: Who, clean: bool, lasting: u32, window: u16, now: u64) -> Self {
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
        }
    }
}

/// One subscription of a session: it may route from `asked` to `ended`, and must from `sure` to `ending`.
#[derive(Clone, Debug)]
pub(super) struct Sub {
    pub(super) filter: u8,
    pub(super) qos: u8,
    pub(super) asked: usize,
    pub(super) sure: Option<usize>,
    pub(super) ending: Option<usize>,
    pub(super) ended: Option<usize>,
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
            heard: 0,
            doubtful: false,
            merged: false,
            ended: None,
        }
    }

    /// It loses its connection.
    pub(super) fn part(&mut self, at: usize, now: u64) {
        self.gone.get_or_insert((at, now));
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
    pub(super) fn ask(&mut self, filter: u8, qos: u8, at: usize) -> usize {
        let same = |sub: &Sub| sub.filter == filter && sub.ending.is_none();
        if let Some(place) = self.subs.iter().position(same) {
            return place;
        }
        self.subs.push(Sub { filter, qos, asked: at, sure: None, ending: None, ended: None });
        self.subs.len() - 1
    }
}

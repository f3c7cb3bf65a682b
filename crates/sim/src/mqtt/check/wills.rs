//! Wills: published when a connection breaks and its client does not come back in time, and at no other time.
//!
//! | rule | clause |
//! |---|---|
//! | after DISCONNECT it is gone | [MQTT-3.1.2-10] |
//! | it is published when the connection broke and the delay is over | [MQTT-3.1.2-8] |
//! | not if the client was back before | [MQTT-3.1.3-9] |
//! | once, also when the broker is killed | 4.3.3 |

use super::ends::client;
use super::{Rule, Walk};
use crate::history::Conn;
use crate::mqtt::cast::EVER;
use crate::mqtt::facts::{Tag, Who, Will};
use std::collections::{BTreeMap, HashMap};

/// How the connection of a will ended.
#[derive(Clone, Copy, Debug)]
struct End {
    now: u64,
    /// In which life of the broker DISCONNECT came, if it did.
    polite: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Open,
    Never,
    Surely,
    Unknown,
}

#[derive(Debug)]
struct State {
    conn: Conn,
    who: Who,
    delay: u64,
    // CONNACK left.
    since: usize,
    end: Option<End>,
    // Connections of the same client since, that were not answered; the first of them came then.
    attempts: u32,
    tried: u64,
    fate: Fate,
}

/// All wills there were.
#[derive(Debug, Default)]
pub(super) struct Wills {
    all: BTreeMap<Tag, State>,
    current: HashMap<Who, Tag>,
    opened: u64,
}

impl Wills {
    fn of(&mut self, who: Who) -> Option<&mut State> {
        self.all.get_mut(self.current.get(&who)?)
    }

    pub(super) fn opened(&mut self, now: u64) {
        self.opened = now;
    }

    pub(super) fn gone(&mut self, conn: Conn, polite: bool, now: u64, life: u32) {
        for state in self.all.values_mut().filter(|state| state.conn == conn && state.end.is_none()) {
            state.end = Some(End { now, polite: polite.then_some(life) });
        }
    }

    pub(super) fn closed(&mut self, now: u64) {
        for state in self.all.values_mut().filter(|state| state.end.is_none()) {
            state.end = Some(End { now, polite: None });
        }
    }

    /// The broker stops politely: clients that come back to its next life have not died.
    pub(super) fn stopping(&mut self) {
        for state in self.all.values_mut().filter(|state| state.end.is_none()) {
            state.fate = Fate::Unknown;
        }
    }

    /// CONNECT came in: it takes over what is still open.
    pub(super) fn connect(&mut self, who: Who, now: u64) {
        let Some(state) = self.of(who) else { return };
        state.end.get_or_insert(End { now, polite: None });
        if state.attempts == 0 {
            state.tried = now;
        }
        state.attempts += 1;
    }

    /// CONNACK left: what became of the will before is decided.
    pub(super) fn connack(&mut self, who: Who, conn: Conn, will: Option<Will>, at: usize, life: u32) {
        let opened = self.opened;
        if let Some(state) = self.of(who)
            && let (Some(end), Fate::Open) = (state.end, state.fate)
        {
            let latest = end.now.max(opened) + state.delay;
            state.fate = match end.polite {
                Some(then) if then == life && state.attempts == 1 => Fate::Never,
                Some(_) => Fate::Unknown,
                None if state.delay == 0 || state.tried > latest => Fate::Surely,
                None if state.attempts == 1 && state.tried < end.now + state.delay => Fate::Never,
                None => Fate::Unknown,
            };
        }
        if let Some(Will { tag, delay }) = will {
            let delay = u64::from(delay) * 1000;
            let state =
                State { conn, who, delay, since: at, end: None, attempts: 0, tried: 0, fate: Fate::Open };
            self.all.insert(tag, state);
            self.current.insert(who, tag);
        }
    }

    /// It was sent to somebody.
    pub(super) fn published(&self, tag: Tag, life: u32) -> Rule {
        let Some(state) = self.all.get(&tag) else { return Ok(()) };
        if state.fate == Fate::Never {
            return Err(format!(
                "will {tag} is published, and its client was back in time or had said goodbye"
            ));
        }
        if state.fate == Fate::Open && state.end.is_some_and(|end| end.polite == Some(life)) {
            return Err(format!("will {tag} is published, and its client had said goodbye"));
        }
        Ok(())
    }
}

/// In the end: who subscribed to wills has those that were to be published, and no other.
pub(super) fn check(walk: &Walk<'_>) -> Rule {
    for (tag, state) in &walk.wills.all {
        let sent = &walk.seen.sent[*tag as usize];
        let there = |session: &&super::Session| {
            session.ended.is_none() && !session.doubtful && session.lasting == EVER
        };
        for session in walk.sessions.iter().filter(there) {
            let got = session.got.contains_key(tag);
            let surely = session.subs.iter().any(|sub| {
                sub.takes(session.who, sent)
                    && sub.sure.is_some_and(|sure| sure < state.since)
                    && sub.ending.is_none()
            });
            let dead = walk.dead.contains_key(&(client(session.who), *tag));
            let (who, by) = (session.who, state.who);
            if state.fate == Fate::Surely && surely && !got && !dead {
                return Err(format!("will {tag} of c{by} was to be published, and is lost for c{who}"));
            }
            if state.fate == Fate::Never && got {
                return Err(format!("will {tag} of c{by} came to c{who}, and was not to be published"));
            }
        }
    }
    Ok(())
}

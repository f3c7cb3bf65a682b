//! The line dialect.
//!
//! | rule | `docs/mqtt-lines.md` |
//! |---|---|
//! | a name of a publisher's message is of one message | ids are never used again |
//! | what is not released comes to nobody | Publishers |
//! | PUBREL of what is held is PUBCOMP | Publishers |
//! | a name of a delivery is of one message, and a message has one name for its consumer | Consumers |
//! | one message of a topic at a time, in the order of their publisher | Consumers |
//! | nothing comes after UNSUB | Consumers |
//! | PUB not after PUBREC, PUBREL not after PUBCOMP | Consumers |
//! | each is sent a few times, no more | Consumers |
//! | in the end everything that was published since SUB has come, once | Consumers |
//! | a line that is no command is a dead letter | Dead letters |

use super::{Rule, Walk};
use crate::history::Conn;
use crate::mqtt::cast::{LETTERS, READER, topic as name_of};
use crate::mqtt::facts::{LineFact, Name, Tag, Who};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// PUB and PUBREL are sent so often at most.
const MAX_SENDS: u32 = 5;

/// What a name of a delivery stands for.
type Meaning = (u8, Option<Tag>, Option<u32>);

/// A message on its way on a connection.
#[derive(Debug, Default)]
struct Flight {
    name: Name,
    sends: u32,
    received: u32,
    released: u32,
    over: bool,
    // SUB came since it was sent: it may have been parked, and come again.
    parked: bool,
}

/// A topic of a consumer.
#[derive(Debug, Default)]
struct Place {
    asked: bool,
    sure: Option<usize>,
    // UNSUB was answered, and no SUB came since.
    left: bool,
    // SUBs of a connection that are not answered: they count when they are.
    asking: (Conn, u32),
    got: HashMap<Tag, u32>,
    names: HashSet<Name>,
    order: HashMap<Who, Tag>,
    recorded: HashSet<Name>,
    received: HashSet<Name>,
    completed: HashSet<Name>,
}

#[derive(Debug, Default)]
pub(super) struct Lines {
    held: HashMap<Name, Tag>,
    names: HashMap<Name, Meaning>,
    places: BTreeMap<(Who, u8), Place>,
    flights: HashMap<(Conn, u8), Flight>,
    // Lines that were no commands: when they came, if that was answered; and those whose letter came to whom.
    junk: HashMap<u32, usize>,
    refused: BTreeSet<u32>,
    letters: HashSet<(Who, u32)>,
    // Messages whose letters came.
    dead: HashSet<(Who, Tag)>,
}

impl Walk<'_> {
    pub(super) fn line(&mut self, conn: Conn, who: Who, fact: &LineFact) -> Rule {
        let (at, now, life) = (self.at, self.now, self.life);
        match *fact {
            LineFact::Put { .. } | LineFact::Unsub { .. } => {}
            LineFact::Welcome => {
                // What was asked for on the connection before may have counted.
                for (_, place) in self.lines.places.iter_mut().filter(|((user, _), _)| *user == who) {
                    place.left &= place.asking.1 == 0;
                    place.asking = (conn, 0);
                }
            }
            LineFact::Junk { junk } => {
                self.lines.junk.insert(junk, at);
            }
            LineFact::Held { tag, name } => {
                if let Some(other) = self.lines.held.insert(name, tag) {
                    return Err(format!("id {name} of a publisher is of message {other} and of {tag}"));
                }
            }
            LineFact::Let { name } => {
                if let Some(message) = self.held(name).and_then(|tag| self.messages.get_mut(tag as usize)) {
                    message.came(at, now, life, 2);
                    // It may have been refused for now, because it could not be read, and the next one not.
                    message.unordered |= self.seen.disk_fails && message.lives.0 != life;
                }
            }
            LineFact::Done { name } => {
                let Some(tag) = self.held(name) else {
                    return Err(format!("PUBCOMP {name}, and nothing was held under that id"));
                };
                self.messages[tag as usize].taken.get_or_insert(at);
            }
            LineFact::Sub { topic } => {
                self.afresh(conn, topic);
                let place = self.lines.places.entry((who, topic)).or_default();
                place.asked = true;
                let before = if place.asking.0 == conn { place.asking.1 } else { 0 };
                place.asking = (conn, before + 1);
            }
            LineFact::Subbed { topic } => {
                let place = self.lines.places.entry((who, topic)).or_default();
                place.sure.get_or_insert(at);
                place.left = false;
                place.asking.1 = place.asking.1.saturating_sub(1);
            }
            LineFact::Unsubbed { topic } => {
                self.lines.flights.remove(&(conn, topic));
                let place = self.lines.places.entry((who, topic)).or_default();
                place.left = place.asking.0 != conn || place.asking.1 == 0;
            }
            LineFact::Deliver { topic, name, tag } => {
                return self.delivered(conn, who, name, (topic, tag, None));
            }
            LineFact::Letter { name, tag, junk } => {
                self.lines.letters.extend(junk.map(|junk| (who, junk)));
                self.lines.dead.extend(tag.map(|tag| (who, tag)));
                return self.delivered(conn, who, name, (LETTERS, tag, junk));
            }
            LineFact::Received { name } => {
                let Some(topic) = self.meant(name) else { return Ok(()) };
                self.lines.places.entry((who, topic)).or_default().received.insert(name);
                if let Some(flight) = self.flight(conn, topic, name) {
                    flight.received += 1;
                }
            }
            LineFact::Recorded { name } => {
                let Some(topic) = self.meant(name) else { return Ok(()) };
                self.lines.places.entry((who, topic)).or_default().recorded.insert(name);
            }
            LineFact::Released { name } => return self.line_released(conn, who, name),
            LineFact::Settled { name } => {
                let topic = self.meant(name);
                if let Some(flight) = topic.and_then(|topic| self.flight(conn, topic, name)) {
                    flight.over = true;
                }
            }
            LineFact::Completed { name } => {
                let Some(topic) = self.meant(name) else { return Ok(()) };
                self.lines.places.entry((who, topic)).or_default().completed.insert(name);
            }
            LineFact::Refused { junk } => {
                self.lines.refused.insert(junk);
            }
            LineFact::Error { ref to, ref why } => return self.line_error(conn, who, to.as_deref(), why),
        }
        Ok(())
    }

    fn held(&self, name: Name) -> Option<Tag> {
        self.lines.held.get(&name).copied()
    }

    fn meant(&self, name: Name) -> Option<u8> {
        self.lines.names.get(&name).map(|(topic, ..)| *topic)
    }

    /// What was parked is sent as often again.
    fn afresh(&mut self, conn: Conn, topic: u8) {
        if let Some(flight) = self.lines.flights.get_mut(&(conn, topic)) {
            (flight.sends, flight.parked) = (0, true);
        }
    }

    fn flight(&mut self, conn: Conn, topic: u8, name: Name) -> Option<&mut Flight> {
        self.lines.flights.get_mut(&(conn, topic)).filter(|flight| flight.name == name)
    }

    /// PUB to a consumer.
    fn delivered(&mut self, conn: Conn, who: Who, name: Name, meaning: Meaning) -> Rule {
        let (topic, tag, _) = meaning;
        let what = || format!("message {tag:?}, id {name}, on {}", name_of(topic));
        if self.drained {
            return Err(format!("{} comes to {who} again, and all was settled", what()));
        }
        match self.lines.names.insert(name, meaning) {
            Some(other) if other != meaning => {
                return Err(format!("id {name} is of {other:?} and of {meaning:?}"));
            }
            _ => {}
        }
        let place = self.lines.places.entry((who, topic)).or_default();
        if !place.asked || place.left {
            return Err(format!("{} comes to {who}, who did not subscribe", what()));
        }
        if place.recorded.contains(&name) {
            return Err(format!("{} comes to {who} again after its PUBREC", what()));
        }
        let flight = self.lines.flights.entry((conn, topic)).or_default();
        if flight.name != name {
            // What is given up after its last PUBREL makes room for the next.
            if flight.name != 0 && !flight.over && flight.released < MAX_SENDS {
                return Err(format!("{} comes to {who}, and {} is on its way", what(), flight.name));
            }
            *flight = Flight { name, ..Flight::default() };
        }
        flight.parked = false;
        flight.sends += 1;
        if flight.sends > MAX_SENDS {
            return Err(format!("{} is sent to {who} for the {}th time", what(), flight.sends));
        }
        let (true, Some(tag)) = (place.names.insert(name), tag) else { return Ok(()) };
        if topic == LETTERS {
            return Ok(());
        }
        let (sent, message) = (&self.seen.sent[tag as usize], &self.messages[tag as usize]);
        if !message.came {
            return Err(format!("{} comes to {who}, and was not published", what()));
        }
        let got = place.got.entry(tag).or_default();
        *got += 1;
        // At QoS 1 the same message may be published twice.
        if sent.qos != 1 && *got > 1 {
            return Err(format!("{} comes to {who} once more under another id", what()));
        }
        if sent.qos == 2 && !message.unordered && !self.seen.overflows {
            let last = place.order.insert(sent.by, tag);
            let there = place.sure.is_some_and(|sure| sure < message.first);
            if there && last.is_some_and(|last| last > tag) {
                return Err(format!("{} comes to {who} after {last:?}", what()));
            }
        }
        Ok(())
    }

    /// PUBREL to a consumer.
    fn line_released(&mut self, conn: Conn, who: Who, name: Name) -> Rule {
        if self.drained {
            return Err(format!("PUBREL {name} comes to {who} again, and all was settled"));
        }
        let Some(topic) = self.meant(name) else { return Err(format!("PUBREL {name} of nothing to {who}")) };
        let place = self.lines.places.entry((who, topic)).or_default();
        if !place.received.contains(&name) {
            return Err(format!("PUBREL {name} to {who}, from whom no PUBREC came"));
        }
        if place.completed.contains(&name) {
            return Err(format!("PUBREL {name} to {who} after its PUBCOMP"));
        }
        let flight = self.lines.flights.entry((conn, topic)).or_default();
        if flight.name != name {
            *flight = Flight { name, ..Flight::default() };
        }
        flight.released += 1;
        if flight.released > MAX_SENDS {
            return Err(format!("PUBREL {name} is sent to {who} for the {}th time", flight.released));
        }
        Ok(())
    }

    fn line_error(&mut self, conn: Conn, who: Who, to: Option<&LineFact>, why: &str) -> Rule {
        match to {
            Some(LineFact::Let { name }) => {
                let Some(tag) = self.held(*name) else { return Ok(()) };
                if !why.contains("cannot be read now") {
                    return Err(format!(
                        "message {tag}, id {name}, was held, and its PUBREL is answered {why}"
                    ));
                }
                self.messages[tag as usize].unordered = true;
            }
            Some(LineFact::Received { name }) => {
                let topic = self.meant(*name);
                let flight = topic.and_then(|topic| self.flight(conn, topic, *name));
                let there = |flight: &mut Flight| !flight.over && flight.released == 0 && !flight.parked;
                if flight.is_some_and(|flight| flight.received == 1 && there(flight))
                    && why.contains("unknown msgId")
                {
                    return Err(format!("PUBREC {name} of {who} is answered {why}, and it is on its way"));
                }
            }
            Some(LineFact::Sub { .. } | LineFact::Unsub { .. }) => {
                return Err(format!("a subscription of {who} is answered {why}"));
            }
            _ => {}
        }
        Ok(())
    }
}

/// What must hold when everything was drained.
pub(super) fn check(walk: &Walk<'_>) -> Rule {
    for ((who, topic), place) in &walk.lines.places {
        let Some(sure) = place.sure else { continue };
        if *topic == LETTERS {
            let lost = walk.lines.refused.iter().find(|junk| {
                walk.lines.junk.get(junk).is_some_and(|since| *since > sure)
                    && !walk.lines.letters.contains(&(*who, **junk))
            });
            if let Some(junk) = lost
                && !walk.seen.overflows
            {
                return Err(format!("line {junk} was no command, and is no dead letter for {who}"));
            }
            continue;
        }
        for (tag, message) in walk.messages.iter().enumerate() {
            let sent = &walk.seen.sent[tag];
            let Some(_) = message.taken.filter(|_| sent.topic == *topic && !sent.empty && sent.qos > 0)
            else {
                continue;
            };
            let tag = tag as Tag;
            let got = place.got.get(&tag).copied().unwrap_or(0);
            if message.first > sure && got == 0 && !walk.is_letter(tag) {
                return Err(format!("message {tag} on {} was taken, and is lost for {who}", name_of(*topic)));
            }
            let apps = walk.apps.get(&(*who, tag)).copied().unwrap_or(0);
            if sent.qos == 2 && got > 0 && apps != 1 {
                return Err(format!("the application of {who} got message {tag} {apps} times"));
            }
        }
    }
    Ok(())
}

impl Walk<'_> {
    /// A message did not arrive, and that is known. When queues are full, the letter may have found one, too.
    fn is_letter(&self, tag: Tag) -> bool {
        self.seen.overflows || self.lines.dead.contains(&(READER, tag))
    }
}

//! The publisher's half: PUB is kept until PUBREL, and only then delivered. A publisher that lost the answer to a PUB
//! knows no id, so it publishes again: that is a new message, and the first one is never delivered.

use super::config::DEAD_LETTERS;
use super::line::{LineId, Stage};
use super::{Doors, payload, text};
use crate::broker::door::{DoorMessage, Let};
use crate::codec::{Utf8, topic};
use postroad_core::mailbox::Millis;
use postroad_engine::log::{LogError, Ticket};
use serde_json::value::RawValue;

/// The session that holds what was published and not released: no user has an empty name.
pub(super) const HOLDER: &str = "$lines//held";
/// What publishers, and consumers before they log in, are called in access rules.
pub(super) const CLIENT: &str = "$lines//";
/// The longest topic, bytes; and levels.
const MAX_TOPIC: usize = 1024;
const MAX_LEVELS: usize = 128;

/// A message that is held.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kept {
    pub(super) since: Millis,
    /// When it is committed. Before, nobody can know its id.
    pub(super) ticket: Ticket,
}

/// Checks the topic of a command.
pub(super) fn check_topic(name: &str) -> Result<Utf8, &'static str> {
    if name.len() > MAX_TOPIC {
        return Err("the topic is too long");
    }
    if name.starts_with('$') {
        return Err("topics that begin with $ are the server's");
    }
    if name.chars().any(char::is_control) {
        return Err("the topic has a control character");
    }
    if topic::validate_name(name, MAX_LEVELS).is_err() {
        return Err("the topic is empty, has a wildcard (+ or #), or too many levels");
    }
    Utf8::try_from(name).map_err(|_| "the topic is no MQTT string")
}

impl Doors {
    /// PUB
    pub(super) fn hold(&mut self, id: LineId, topic: &str, msg: &RawValue, now: Millis) {
        let topic = match check_topic(topic) {
            Ok(topic) => topic,
            Err(why) => return self.say_error(id, why),
        };
        let Some(Stage::Publisher(who)) = self.line(id).map(|line| &line.stage) else { return };
        if topic.as_str() == DEAD_LETTERS || !self.broker.door_may_publish(who, CLIENT, &topic) {
            return self.say_error(id, "publishing there is not allowed");
        }
        if self.held.len() >= self.config.max_held {
            return self.say_error(id, "too many messages wait for PUBREL");
        }
        // A disk that is only busy takes it: this connection is then not read for a while.
        if let Err(error @ LogError::DiskFull) = self.broker.door_admit() {
            return self.say_error(id, &error.to_string());
        }
        let (payload, properties) = payload::of_value(msg);
        let message = DoorMessage { topic, payload, properties };
        let (number, ticket) = self.broker.door_hold(&Utf8::from_static(HOLDER), message, now);
        self.held.insert(number, Kept { since: now, ticket });
        self.say(id, ticket, &text::answer("PUBREC", number));
    }

    /// PUBREL
    pub(super) fn pubrel(&mut self, id: LineId, number: u64, now: Millis) {
        if self.held.get(&number).is_some_and(|kept| !self.broker.is_committed(kept.ticket)) {
            return self.say_error(id, "unknown msgId");
        }
        let ticket = if self.config.planted.release_in_two {
            self.broker.door_release_in_two(HOLDER, number, now)
        } else {
            self.broker.door_release(HOLDER, number, now)
        };
        let ticket = match ticket {
            Let::Go(ticket) => ticket,
            // A repetition, because PUBCOMP was lost. The release may still wait for its commit.
            Let::Before => self.broker.door_ticket(),
            Let::Never => return self.say_error(id, "unknown msgId"),
            Let::Unreadable => return self.say_error(id, "the message cannot be read now"),
        };
        self.held.remove(&number);
        self.say(id, ticket, &text::answer("PUBCOMP", number));
    }

    /// When the oldest message that is held has been so for too long.
    pub(super) fn held_until(&self) -> Option<Millis> {
        let hold = u64::try_from(self.config.hold.as_millis()).unwrap_or(u64::MAX);
        self.held.first_key_value().map(|(_, kept)| kept.since.saturating_add(hold))
    }

    pub(super) fn expire_held(&mut self, now: Millis) {
        while self.held_until().is_some_and(|until| until <= now)
            && let Some((number, _)) = self.held.pop_first()
        {
            self.broker.door_expire(HOLDER, number, "it was not released in time", now);
        }
    }
}

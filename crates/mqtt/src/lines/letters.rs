//! Dead letters: lines that are no commands, and messages that did not arrive, in the topic [`DEAD_LETTERS`].

use super::config::DEAD_LETTERS;
use super::{Doors, payload};
use crate::broker::door::{DoorMessage, RESERVED};
use crate::codec::Utf8;
use postroad_core::mailbox::Millis;
use postroad_engine::log::Ticket;
use serde::Serialize;
use serde_json::value::RawValue;

/// The session that keeps dead letters for those who have not subscribed yet.
pub(super) const STORE: &str = "$lines//letters";

pub(super) fn store() -> Utf8 {
    Utf8::from_static(STORE)
}

/// One entry. Fields stand in alphabetical order, as everywhere in this dialect.
#[derive(Serialize)]
struct Letter<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts: Option<u32>,
    died: Millis,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    msg: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    published: Option<Millis>,
    reason: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    topic: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a str>,
}

impl Doors {
    /// A line that is no command.
    pub(super) fn bury_line(&mut self, user: Option<&str>, line: &[u8], reason: &str, now: Millis) -> Ticket {
        let line = payload::to_value(line, Some("text/plain"));
        let line = RawValue::from_string(line).ok();
        self.enter(
            None,
            &Letter {
                attempts: None,
                died: now,
                line: line.as_deref(),
                msg: None,
                published: None,
                reason,
                topic: None,
                user,
            },
            now,
        )
    }

    /// Messages of this dialect that did not arrive; true if there were some. The entry in the topic of dead letters and
    /// that the letter is stored are one record.
    pub(super) fn bury_dead(&mut self, now: Millis) -> bool {
        let mut some = false;
        for dead in self.broker.door_letters(now) {
            let name = dead.client.strip_prefix(RESERVED).unwrap_or_default();
            if dead.topic.as_str() == DEAD_LETTERS {
                // A letter about a letter would have no end.
                tracing::warn!(client = %*dead.client, reason = %dead.reason, "a dead letter did not arrive");
                self.broker.letters_stored(&[dead.number], now);
                continue;
            }
            some = true;
            let user = name.split('/').next().filter(|user| !user.is_empty());
            let msg = RawValue::from_string(payload::to_value(
                &dead.payload,
                dead.content_type().map(Utf8::as_str),
            ))
            .ok();
            self.enter(
                Some(dead.number),
                &Letter {
                    attempts: Some(dead.attempts),
                    died: dead.died,
                    line: None,
                    msg: msg.as_deref(),
                    published: Some(dead.published),
                    reason: &dead.reason,
                    topic: Some(&dead.topic),
                    user,
                },
                now,
            );
        }
        some
    }

    fn enter(&mut self, about: Option<u64>, letter: &Letter<'_>, now: Millis) -> Ticket {
        // Strings, numbers and valid JSON cannot fail to be JSON.
        let (payload, properties) = payload::json(serde_json::to_string(letter).unwrap_or_default());
        let message = DoorMessage { topic: Utf8::from_static(DEAD_LETTERS), payload, properties };
        let ticket = match about {
            Some(dead) => self.broker.door_store_letter(dead, message, now),
            None => self.broker.door_publish(message, now),
        };
        self.broker.door_store_limit(STORE, self.config.max_letters, now);
        ticket
    }
}

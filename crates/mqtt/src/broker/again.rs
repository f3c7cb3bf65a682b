//! Dead letters that were published again: whoever asks for it twice, because a crash took the first answer, does it once.

use super::Broker;
use super::message::{Message, Origin};
use crate::codec::{PublishProperties, Qos, Utf8, topic};
use bytes::Bytes;
use postroad_core::mailbox::Millis;
use postroad_engine::log::Ticket;
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

/// Ids that are remembered. One `kick` has no more.
const IDS: usize = 10_000;
/// Levels of a topic.
const MAX_LEVELS: usize = 128;

/// The ids of letters that were published again, the newest ones.
#[derive(Debug, Default)]
pub(super) struct Again {
    known: HashSet<Arc<str>>,
    ages: VecDeque<Arc<str>>,
}

impl Again {
    pub(super) fn contains(&self, id: &str) -> bool {
        self.known.contains(id)
    }

    pub(super) fn insert(&mut self, id: &str) {
        let id: Arc<str> = id.into();
        if !self.known.insert(id.clone()) {
            return;
        }
        self.ages.push_back(id);
        if self.ages.len() > IDS
            && let Some(oldest) = self.ages.pop_front()
        {
            self.known.remove(&oldest);
        }
    }

    /// All of them, the oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &str> {
        self.ages.iter().map(|id| &**id)
    }
}

/// A message from the process of the broker itself.
#[derive(Clone, Debug, Default)]
pub struct Post {
    /// Where it is published.
    pub topic: Utf8,
    /// Its payload.
    pub payload: Bytes,
    /// Its properties; those of one PUBLISH only (aliases, subscription identifiers) are not looked at.
    pub properties: PublishProperties,
    /// It was a dead letter with this [`DeadLetter::id`](super::DeadLetter::id). It is published once, however often it
    /// is given, and only if somebody subscribes: else it would be gone.
    pub letter: Option<String>,
}

/// It is published at QoS 2 when this ticket is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Posted(pub Ticket);

/// Why a [`Post`] is not published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PostError {
    /// The topic is none that a message can have.
    #[error("this topic cannot be published to")]
    Topic,
    /// Nobody subscribes, and no work queue takes it.
    #[error("nobody subscribes to it")]
    NoSubscribers,
    /// Too little of the disk is free, or the log has failed.
    #[error("the log takes no messages now")]
    NoRoom,
    /// The broker has ended, or ended before this was committed: it may or may not be published.
    #[error("the broker has ended")]
    Stopped,
}

impl Broker {
    /// Publishes a message at QoS 2, in the log, whatever the listeners and rules say of durability.
    pub fn post(&mut self, post: Post, now: Millis) -> Result<Posted, PostError> {
        let Post { topic, payload, properties, letter } = post;
        if topic::validate_name(&topic, MAX_LEVELS).is_err() || topic.starts_with('$') {
            return Err(PostError::Topic);
        }
        if let Some(id) = &letter {
            if self.state.again.contains(id) {
                // Its record was appended before.
                self.overdue = true;
                return Ok(Posted(self.book.appended.committed));
            }
            if !self.state.is_wanted(&topic) {
                return Err(PostError::NoSubscribers);
            }
        }
        if self.book.failure().is_some() || self.book.store.admit().is_err() {
            return Err(PostError::NoRoom);
        }
        self.maybe_snapshot(now);
        if let Some(id) = &letter {
            self.state.again.insert(id);
        }
        let message = Message {
            topic,
            payload,
            qos: Qos::ExactlyOnce,
            retain: false,
            time: now,
            expires: None,
            properties: Some(Box::new(properties)),
        };
        let origin = Origin { again: letter.map(Into::into), ..Origin::default() };
        Ok(Posted(self.distribute(message, None, origin, now)))
    }
}

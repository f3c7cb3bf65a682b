//! A message on its way to somebody who must settle it.

use std::sync::Arc;

use crate::ack::{AckToken, Settled};
use crate::envelope::Envelope;
use crate::outcome::Outcome;
use crate::time::Timestamp;

/// A message and the token that settles it. Dropping it unsettled means [`Outcome::Retry`].
#[derive(Debug)]
#[must_use = "a delivery that is dropped comes again"]
pub struct Delivery {
    /// The message. Shared, because a broker hands one message to many subscriptions.
    pub envelope: Arc<Envelope>,
    /// 1 for the first delivery to this subscription, then counted up. 0 where the backend does not count.
    pub attempt: u32,
    /// Whether it was, or may have been, delivered to this subscription before.
    pub redelivered: bool,
    /// Its number in its stream, where the backend has numbers.
    pub position: Option<u64>,
    /// When it was taken from the backend.
    pub received_at: Timestamp,
    /// What settles it.
    pub token: AckToken,
}

impl Delivery {
    /// Settles it. See [`AckToken::settle`].
    pub fn settle(self, outcome: Outcome) -> Settled {
        self.token.settle(outcome)
    }

    /// Settles it as done.
    pub fn ack(self) -> Settled {
        self.settle(Outcome::Ack)
    }

    /// Gives it back, to come again as the subscription's backoff says.
    pub fn retry(self) -> Settled {
        self.settle(Outcome::retry())
    }

    /// The message and the token apart, so that the payload can be dropped before the settle.
    pub fn split(self) -> (Arc<Envelope>, AckToken) {
        (self.envelope, self.token)
    }
}

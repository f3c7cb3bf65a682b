//! Consumers that let a lease end: passed over for as long as a lease while another one has room.
//!
//! Nobody may have told us that such a consumer is gone (a connection can fall silent without an end). Without this a
//! message could go back to it again and again, until its deliveries are used up, while others wait for work.

use super::{Consumer, ConsumerId, Mailbox, Millis, millis};

impl Consumer {
    fn has_room(&self) -> bool {
        self.count < self.window.count && (self.count == 0 || self.bytes < self.window.bytes)
    }

    pub(super) fn is_late(&self) -> bool {
        self.late_until > 0
    }
}

impl Mailbox {
    /// A lease of `consumer` ended without a verdict.
    pub(super) fn was_late(&mut self, consumer: ConsumerId, now: Millis) {
        let until = now + millis(self.policy.ack_wait).max(1);
        if let Some(consumer) = self.consumers.get_mut(&consumer) {
            consumer.late_until = until;
        }
        self.forgive_at = Some(until);
        self.forgive(0);
    }

    /// `consumer` said something in time: it is there.
    #[inline]
    pub(super) fn was_in_time(&mut self, consumer: ConsumerId) {
        if self.forgive_at.is_some()
            && let Some(consumer) = self.consumers.get_mut(&consumer)
            && consumer.is_late()
        {
            consumer.late_until = 0;
            self.forgive(0);
        }
    }

    /// Who was late long enough ago takes part again.
    pub(super) fn forgive(&mut self, now: Millis) {
        if self.forgive_at.is_none() {
            return;
        }
        self.forgive_at = None;
        for consumer in self.consumers.values_mut().filter(|consumer| consumer.is_late()) {
            if consumer.late_until <= now {
                consumer.late_until = 0;
            } else {
                let until = consumer.late_until;
                self.forgive_at = Some(self.forgive_at.map_or(until, |at| at.min(until)));
            }
        }
    }

    /// Somebody who is not late could take.
    pub(super) fn others_wait(&self) -> bool {
        self.forgive_at.is_some() && self.consumers.values().any(|other| !other.is_late() && other.has_room())
    }
}

//! Deliveries of a stream: giving them out, and what becomes of them.

use super::{Effects, Stream};
use crate::engine::Shared;
use crate::error::EngineError;
use crate::later::Receipt;
use crate::log::Ticket;
use crate::subscription::Subscription;
use postroad_core::mailbox::{ConsumerId, Taken, Verdict};
use std::sync::Arc;

impl Stream {
    /// Gives messages to a consumer, up to `max` of them or about `max_bytes`. True if more are ready.
    pub(crate) fn take(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        sub: &Arc<Subscription>,
        consumer: ConsumerId,
        max: usize,
        max_bytes: usize,
        taken: &mut Vec<Taken>,
    ) -> bool {
        self.take_sized(shared, sub, consumer, max, max_bytes, taken, |logged| logged)
    }

    /// The same, the bytes of the window left to [`Stream::weigh`], which must follow.
    pub(crate) fn take_unweighed(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        sub: &Arc<Subscription>,
        consumer: ConsumerId,
        max: usize,
        max_bytes: usize,
        taken: &mut Vec<Taken>,
    ) -> bool {
        self.take_sized(shared, sub, consumer, max, max_bytes, taken, |_| 0)
    }

    /// `weight`: what counts in the window of a message of so many bytes in the log.
    #[allow(clippy::too_many_arguments, reason = "two callers, just above")]
    fn take_sized(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        sub: &Arc<Subscription>,
        consumer: ConsumerId,
        max: usize,
        max_bytes: usize,
        taken: &mut Vec<Taken>,
        weight: fn(u32) -> u32,
    ) -> bool {
        let now = shared.now();
        let mut effects = Effects::default();
        let mut guard = self.state();
        let state = &mut *guard;
        let Some(member) = state.members.get_mut(&sub.id) else { return false };
        member.listed = false;
        let mut bytes = 0;
        let before = taken.len();
        self.log.sizes(&mut |size_of| {
            while taken.len() - before < max && bytes < max_bytes {
                if member.mailbox.take(consumer, now, 1, |seq| weight(size_of(seq)), taken) == 0 {
                    break;
                }
                bytes += taken.last().map_or(0, |t| size_of(t.seq) as usize);
            }
        });
        let more = member.mailbox.counts().ready > 0;
        if more {
            // Another consumer of the group may have room.
            self.wake_others(state, sub.id, consumer, &mut effects);
        }
        self.set_timer(shared, state, sub.id);
        drop(guard);
        self.run(shared, effects, None);
        more
    }

    /// How many messages a consumer holds here.
    pub(crate) fn held(&self, sub: u64, consumer: ConsumerId) -> Vec<u64> {
        self.state().members.get(&sub).map(|m| m.mailbox.held(consumer, 0, u64::MAX)).unwrap_or_default()
    }

    /// One verdict on ranges of messages that `consumer` holds; `counts` gets how many each settled.
    pub(crate) fn settle(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        sub: &Arc<Subscription>,
        consumer: ConsumerId,
        ranges: &[(u64, u64)],
        verdict: &Verdict,
        counts: &mut Vec<u64>,
    ) -> Result<Receipt, EngineError> {
        let receipt = self.change(shared, sub.id, |member, now, records| {
            counts.extend(ranges.iter().map(|&(first, last)| {
                member.mailbox.settle_range(consumer, first, last, verdict, now, records)
            }));
        })?;
        Ok(self.promised(shared, receipt))
    }

    /// Starts the leases of ranges again; says how many there were.
    pub(crate) fn touch(
        &self,
        shared: &Shared,
        sub: u64,
        consumer: ConsumerId,
        first: u64,
        last: u64,
    ) -> usize {
        let now = shared.now();
        let mut state = self.state();
        let Some(member) = state.members.get_mut(&sub) else { return 0 };
        let held = member.mailbox.held(consumer, first, last);
        held.into_iter().filter(|seq| member.mailbox.touch(consumer, *seq, now).is_ok()).count()
    }

    /// Leases expire and delays end.
    pub(crate) fn tick(self: &Arc<Self>, shared: &Arc<Shared>) -> Result<(), EngineError> {
        let ids: Vec<u64> = {
            let mut state = self.state();
            state.timer = None;
            state.members.keys().copied().collect()
        };
        let passed = shared.clock.passed().as_millis();
        for id in ids {
            self.change(shared, id, |member, _, records| member.mailbox.tick(passed, records))?;
        }
        Ok(())
    }

    /// The dead letter of `seq` is durable, or could not be written.
    pub(crate) fn buried(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        sub: u64,
        seq: u64,
        result: &Result<(), EngineError>,
    ) -> Result<Ticket, EngineError> {
        let receipt = self.change(shared, sub, |member, now, records| {
            if result.is_ok() {
                member.mailbox.buried(seq, records);
            } else {
                member.mailbox.revive(seq, now + 1000);
            }
        })?;
        match receipt {
            Receipt::At(ticket) => Ok(ticket),
            Receipt::Later(_) => Ok(Ticket(0)),
        }
    }
}

//! What a consumer holds of a stream: exact sizes, exact attempts. For doors whose tokens name one delivery.

use super::{Effects, Stream};
use crate::engine::Shared;
use crate::error::EngineError;
use crate::later::Receipt;
use crate::subscription::Subscription;
use postroad_core::mailbox::{ConsumerId, Mailbox, Verdict};
use std::sync::Arc;

/// How much a consumer holds, somewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) count: u64,
    pub(crate) bytes: u64,
}

impl Usage {
    pub(crate) fn plus(self, other: Self) -> Self {
        Self { count: self.count + other.count, bytes: self.bytes.saturating_add(other.bytes) }
    }
}

impl Stream {
    /// How much a consumer holds here.
    pub(crate) fn usage(&self, sub: u64, consumer: ConsumerId) -> Usage {
        let state = self.state();
        let (count, bytes) = state.members.get(&sub).map_or((0, 0), |m| m.mailbox.usage(consumer));
        Usage { count: u64::from(count), bytes }
    }

    /// The exact sizes of messages that [`Stream::take_unweighed`] gave, in its order. What fits the window with what is
    /// held elsewhere is kept, the rest is given back as if it had not been taken; says how many are kept.
    pub(crate) fn weigh(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        sub: &Arc<Subscription>,
        consumer: ConsumerId,
        sizes: &[(u64, u64)],
        elsewhere: Usage,
        window_bytes: u64,
    ) -> usize {
        let mut effects = Effects::default();
        let mut guard = self.state();
        let state = &mut *guard;
        let Some(member) = state.members.get_mut(&sub.id) else { return sizes.len() };
        let mailbox = &mut member.mailbox;
        let (count, bytes) = mailbox.usage(consumer);
        let new = sizes.iter().filter(|(seq, _)| mailbox.attempt(consumer, *seq).is_some()).count();
        let mut held = elsewhere.plus(Usage { count: u64::from(count) - new as u64, bytes });
        let mut kept = 0;
        for &(seq, size) in sizes {
            if held.count > 0 && held.bytes.saturating_add(size) > window_bytes {
                break;
            }
            kept += 1;
            // A lease that has ended already takes no room.
            if mailbox.resize(consumer, seq, u32::try_from(size).unwrap_or(u32::MAX)) {
                held = held.plus(Usage { count: 1, bytes: size });
            }
        }
        for (seq, _) in &sizes[kept..] {
            mailbox.give_back(consumer, *seq);
        }
        if kept < sizes.len() {
            self.wake_others(state, sub.id, consumer, &mut effects);
        }
        drop(guard);
        self.run(shared, effects, None);
        kept
    }

    /// One verdict on those of `first..=last` that `consumer` holds in their delivery number `attempt`; also says how
    /// many there were.
    pub(crate) fn settle_attempt(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        sub: &Arc<Subscription>,
        consumer: ConsumerId,
        (first, last): (u64, u64),
        attempt: u32,
        verdict: &Verdict,
    ) -> Result<(u64, Receipt), EngineError> {
        let mut settled = 0;
        let receipt = self.change(shared, sub.id, |member, now, records| {
            let mut runs = Vec::new();
            attempt_runs(&member.mailbox, consumer, (first, last), attempt, &mut runs);
            for (first, last) in runs {
                settled += member.mailbox.settle_range(consumer, first, last, verdict, now, records);
            }
        })?;
        Ok((settled, self.promised(shared, receipt)))
    }

    /// Starts the lease of one delivery again; false if `consumer` does not hold it in its delivery number `attempt`.
    pub(crate) fn touch_attempt(
        &self,
        shared: &Shared,
        sub: u64,
        consumer: ConsumerId,
        seq: u64,
        attempt: u32,
    ) -> bool {
        let now = shared.now();
        let mut state = self.state();
        let Some(member) = state.members.get_mut(&sub) else { return false };
        member.mailbox.attempt(consumer, seq) == Some(attempt)
            && member.mailbox.touch(consumer, seq, now).is_ok()
    }
}

/// The runs of neighbours that `consumer` holds in their delivery number `attempt`.
fn attempt_runs(
    mailbox: &Mailbox,
    consumer: ConsumerId,
    (first, last): (u64, u64),
    attempt: u32,
    runs: &mut Vec<(u64, u64)>,
) {
    for seq in first..=last {
        if mailbox.attempt(consumer, seq) != Some(attempt) {
            continue;
        }
        match runs.last_mut() {
            Some((_, end)) if *end + 1 == seq => *end = seq,
            _ => runs.push((seq, seq)),
        }
    }
}

//! Subscriptions of a stream: how they join with what the log knows of them, and their consumers.

use super::{Effects, KICK, KICK_NAME, Member, Stream};
use crate::engine::Shared;
use crate::error::EngineError;
use crate::log::Ticket;
use crate::records::{self, Folded};
use crate::subscription::Subscription;
use postroad_core::mailbox::{ConsumerId, Mailbox, Window};
use postroad_core::{StartAt, Subject};
use std::sync::Arc;
use std::time::Duration;

impl Stream {
    /// Lets go of everything that refers back to this stream.
    pub(crate) fn clear(&self) {
        for member in std::mem::take(&mut self.state().members).into_values() {
            let mut sub_state = member.sub.state();
            sub_state.streams.clear();
            sub_state.active.clear();
        }
    }

    /// Adds a subscription. `folded` is its state from the log, if it was there before.
    pub(crate) fn join(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        sub: &Arc<Subscription>,
        from: &StartAt,
        folded: Option<&Folded>,
    ) -> Result<Ticket, EngineError> {
        let now = shared.now();
        let stats = self.log.stats();
        let floor = match from {
            StartAt::Time(time) => self.log.seek_time(time.as_millis())? - 1,
            StartAt::First => stats.first - 1,
            StartAt::Last => stats.last.max(stats.first) - 1,
            StartAt::Sequence(seq) => seq.saturating_sub(1).max(stats.first - 1),
            _ => u64::MAX,
        };
        let mut guard = self.state();
        let state = &mut *guard;
        let floor = floor.min(self.log.stats().last);
        let mut mailbox = Mailbox::new(sub.shape().policy.clone(), if folded.is_some() { 0 } else { floor });
        if let Some(folded) = folded {
            // What retention removed before it was settled, here or in an earlier life.
            let mut lost = 0;
            folded.floor.above().gaps(folded.floor.floor() + 1, stats.first - 1, |a, b| lost += b - a + 1);
            if lost > 0 && sub.id != KICK {
                sub.lagged(self.topic.as_str(), lost);
            }
            folded.restore(&mut mailbox);
            mailbox.trim(stats.first);
        }
        // What is not committed yet is offered when it is.
        let flat = sub.id == KICK;
        self.log.priority_runs(mailbox.floor().floor() + 1, state.offered, &mut |first, last, priority| {
            mailbox.offer(first, last, if flat { 0 } else { priority });
        });
        let mut ticket = Ticket(0);
        if folded.is_none()
            && let Some(name) = &sub.name
        {
            if self.log.wants_snapshot() {
                self.snapshot(state, now)?;
            }
            ticket = self.log.append(now, &mut |append| {
                records::checkpoint(append, "sub", sub.id, sub.filter.as_str(), name, &mailbox);
            })?;
        }
        let mut effects = Effects::default();
        {
            let mut sub_state = sub.state();
            for (id, attached) in &sub_state.consumers {
                mailbox.attach(*id, attached.window);
            }
            if !sub_state.streams.iter().any(|s| Arc::ptr_eq(s, self)) {
                sub_state.streams.push(self.clone());
            }
        }
        let member = Member { sub: sub.clone(), mailbox, listed: false, lagging: false };
        state.members.insert(sub.id, member);
        self.wake(state, sub.id, &mut effects);
        self.set_timer(shared, state, sub.id);
        drop(guard);
        self.run(shared, effects, None);
        Ok(ticket)
    }

    /// Removes a subscription.
    pub(crate) fn leave(&self, id: u64) {
        self.state().members.remove(&id);
    }

    /// Lets a consumer take from this stream.
    pub(crate) fn attach(self: &Arc<Self>, shared: &Arc<Shared>, sub: &Arc<Subscription>, id: ConsumerId) {
        let mut effects = Effects::default();
        {
            let mut state = self.state();
            let window = sub.state().consumers.get(&id).map(|attached| attached.window);
            if let (Some(window), Some(member)) = (window, state.members.get_mut(&sub.id)) {
                member.mailbox.set_policy(sub.shape().policy.clone());
                member.mailbox.attach(id, window);
                self.wake(&mut state, sub.id, &mut effects);
            }
        }
        self.run(shared, effects, None);
    }

    /// The subscription `id` of this stream.
    pub(crate) fn member(&self, id: u64) -> Option<Arc<Subscription>> {
        self.state().members.get(&id).map(|member| member.sub.clone())
    }

    /// Lets a consumer take that is not known to its subscription and needs no signal.
    pub(crate) fn attach_quietly(&self, id: u64, consumer: ConsumerId, window: Window) {
        if let Some(member) = self.state().members.get_mut(&id) {
            member.mailbox.attach(consumer, window);
        }
    }

    /// A consumer is gone: what it held goes back.
    pub(crate) fn detach(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        sub: &Arc<Subscription>,
        consumer: ConsumerId,
    ) -> Result<(), EngineError> {
        self.change(shared, sub.id, |member, now, records| member.mailbox.detach(consumer, now, records))?;
        Ok(())
    }

    pub(crate) fn kick_subscription(stream: &Subject) -> Arc<Subscription> {
        let policy = postroad_core::retry::RetryPolicy {
            ack_wait: Duration::from_secs(3600),
            ..postroad_core::retry::RetryPolicy::default()
        };
        // The filter is not used (it joins its stream directly), but it has no wildcard: there is one stream.
        let shape = crate::subscription::Shape { group: true, policy };
        Subscription::new(KICK, postroad_core::Filter::from(stream.clone()), Some(KICK_NAME.into()), shape)
    }
}

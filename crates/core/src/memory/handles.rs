//! The publishers and subscriptions of the memory backend.

use std::sync::Arc;
use std::task::{Context, Poll};

use super::broker::{Broker, Seat};
use super::{Shared, error};
use crate::ack::{AckSink, AckToken, Settled};
use crate::backend::{DrainReport, Publisher, Subscription};
use crate::capabilities::Capabilities;
use crate::delivery::Delivery;
use crate::envelope::Envelope;
use crate::error::{ErrorKind, Result};
use crate::outcome::Outcome;
use crate::ticket::Ticket;
use crate::time::Timestamp;

pub(super) struct MemoryPublisher(pub(super) Arc<Shared>);

impl Publisher for MemoryPublisher {
    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        match self.0.with(|broker| broker.poll_room(cx.waker())) {
            Ok(true) => Poll::Ready(Ok(())),
            Ok(false) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    fn publish(&self, envelope: Envelope) -> Ticket {
        let now = self.0.clock.now();
        self.0.with(|broker| broker.publish(envelope, now))
    }

    fn publish_batch(&self, envelopes: Vec<Envelope>) -> Vec<Ticket> {
        let now = self.0.clock.now();
        self.0.with(|broker| envelopes.into_iter().map(|envelope| broker.publish(envelope, now)).collect())
    }

    fn capabilities(&self) -> &Capabilities {
        &self.0.capabilities
    }
}

/// What the tokens of one subscription speak to. Their tag is the group's number of the message, their epoch the
/// attempt.
struct Sink {
    shared: Arc<Shared>,
    seat: Seat,
}

impl AckSink for Sink {
    fn settle(&self, tag: u64, epoch: u32, outcome: Outcome) -> Settled {
        if matches!(outcome, Outcome::Ack) {
            return self.shared.with(|broker| broker.ack(self.seat, tag, epoch)).into();
        }
        let clock = || self.shared.clock.now();
        self.shared.with(|broker| broker.settle(self.seat, tag, epoch, outcome, clock)).into()
    }

    fn settle_run(&self, first: u64, last: u64, epoch: u32, outcome: Outcome) -> Settled {
        let clock = || self.shared.clock.now();
        let settle = |broker: &mut Broker| {
            if matches!(outcome, Outcome::Ack) {
                return broker.ack_run(self.seat, first, last, epoch);
            }
            let mut result = Ok(());
            for tag in first..=last {
                let settled = broker.settle(self.seat, tag, epoch, outcome.clone(), clock);
                result = result.and(settled);
            }
            result
        };
        self.shared.with(settle).into()
    }

    fn extend(&self, tag: u64, epoch: u32) -> Settled {
        let now = self.shared.clock.now();
        self.shared.with(|broker| broker.extend(self.seat, tag, epoch, now)).into()
    }

    fn dropped(&self, _: u64, _: u32) {
        self.shared.with(|broker| broker.stats.dropped += 1);
    }
}

pub(super) struct MemorySubscription {
    sink: Arc<Sink>,
    /// The same, as tokens hold it.
    tokens: Arc<dyn AckSink>,
    draining: bool,
    report: Option<DrainReport>,
}

impl MemorySubscription {
    pub(super) fn new(shared: Arc<Shared>, seat: Seat) -> Self {
        let sink = Arc::new(Sink { shared, seat });
        Self { tokens: Arc::clone(&sink) as Arc<dyn AckSink>, sink, draining: false, report: None }
    }
}

impl Subscription for MemorySubscription {
    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Vec<Delivery>,
        max: usize,
    ) -> Poll<Result<usize>> {
        if self.draining {
            return Poll::Ready(Err(error(ErrorKind::Closed, "the subscription was drained")));
        }
        if max == 0 {
            return Poll::Ready(Ok(0));
        }
        let Sink { shared, seat } = &*self.sink;
        let tokens = &self.tokens;
        let now = shared.clock.now();
        // Given back so that an old waker is dropped without the lock: it may hold one of our handles.
        let (answer, _old) = shared.with(|broker| {
            let filled = broker.fill(*seat, max, now, |taken, position, envelope, received_at| {
                out.push(Delivery {
                    envelope: Arc::clone(envelope),
                    attempt: taken.attempt,
                    redelivered: taken.attempt > 1,
                    position: Some(position),
                    received_at,
                    token: AckToken::new(Arc::clone(tokens), taken.seq, taken.attempt),
                });
            });
            match filled {
                Ok(0) => (Poll::Pending, broker.wait(*seat, cx.waker())),
                other => (Poll::Ready(other), None),
            }
        });
        answer
    }

    fn begin_drain(&mut self, deadline: Timestamp) {
        self.draining = true;
        self.sink.shared.with(|broker| broker.begin_drain(self.sink.seat, deadline));
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<Result<DrainReport>> {
        if let Some(report) = self.report {
            return Poll::Ready(Ok(report));
        }
        if !self.draining {
            self.begin_drain(Timestamp::from_millis(u64::MAX));
        }
        let Sink { shared, seat } = &*self.sink;
        let now = shared.clock.now();
        let (report, _old) = shared.with(|broker| match broker.drained(*seat, now) {
            Some(report) => (Some(report), None),
            None => (None, broker.wait(*seat, cx.waker())),
        });
        self.report = report;
        report.map_or(Poll::Pending, |report| Poll::Ready(Ok(report)))
    }

    fn capabilities(&self) -> &Capabilities {
        &self.sink.shared.capabilities
    }
}

impl Drop for MemorySubscription {
    fn drop(&mut self) {
        let Sink { shared, seat } = &*self.sink;
        let now = shared.clock.now();
        shared.with(|broker| broker.leave(*seat, now));
    }
}

//! Lies about deliveries, verdicts and drains.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use postroad_core::{
    AckSink, AckToken, Capabilities, Delivery, DrainReport, Envelope, ErrorKind, Headers, MessageId, Outcome,
    Result, Settled, Subscription, Timestamp,
};

use super::{Lie, Shared, with};
use crate::tokens::Tokens;

/// A tag that no delivery of the backend inside has.
const NOBODY: u64 = u64::MAX;

pub(super) struct Sink {
    shared: Arc<Shared>,
    tokens: Tokens,
    dropped: Mutex<HashSet<u64>>,
    /// Messages out, so that they can come again after their ack.
    out: Mutex<HashMap<MessageId, Arc<Envelope>>>,
    again: Mutex<(Vec<Arc<Envelope>>, Option<Waker>)>,
}

impl Sink {
    fn come_again(&self, id: &MessageId) {
        let Some(envelope) = with(&self.out, |out| out.get(id).cloned()) else { return };
        let waker = with(&self.again, |(again, waker)| {
            again.push(envelope);
            waker.take()
        });
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Sink {
    /// Nobody has asked for that.
    pub(super) fn ack_all(&self) {
        for token in self.tokens.take_up_to(u64::MAX) {
            token.settle(Outcome::Ack);
        }
    }

    /// Nor for that.
    pub(super) fn extend_all(&self) {
        self.tokens.extend_all();
    }
}

impl AckSink for Sink {
    fn settle(&self, tag: u64, _: u32, outcome: Outcome) -> Settled {
        let Some((id, token)) = self.tokens.take(tag) else { return Settled::ok() };
        let dropped = with(&self.dropped, |dropped| dropped.remove(&tag));
        let forget = |id, token| {
            self.tokens.put_back(tag, id, token);
            Settled::ok()
        };
        match (self.shared.lie, outcome) {
            (Lie::AckWithoutEffect, Outcome::Ack) => forget(id, token),
            (Lie::AckSettlesAllBefore, Outcome::Ack) => {
                for other in self.tokens.take_up_to(tag) {
                    other.settle(Outcome::Ack);
                }
                token.settle(Outcome::Ack)
            }
            (Lie::DeliversAfterAck, Outcome::Ack) => {
                let settled = token.settle(Outcome::Ack);
                if self.shared.every(5) {
                    self.come_again(&id);
                }
                settled
            }
            (Lie::RetryIsAck, Outcome::Retry { .. }) => token.settle(Outcome::Ack),
            (Lie::RetryWithoutEffect, Outcome::Retry { .. }) if !dropped => forget(id, token),
            (Lie::IgnoresDelay, Outcome::Retry { .. }) => token.settle(Outcome::retry()),
            (Lie::DiscardIsRetry, Outcome::Discard) => token.settle(Outcome::retry()),
            (Lie::DeadLetterIsDiscard, Outcome::DeadLetter { .. }) => token.settle(Outcome::Discard),
            (Lie::DeadLetterWithoutReason, Outcome::DeadLetter { .. }) => {
                token.settle(Outcome::dead_letter(""))
            }
            (Lie::DeadLetterComesAgain, outcome @ Outcome::DeadLetter { .. }) => {
                let settled = token.settle(outcome);
                self.come_again(&id);
                settled
            }
            (Lie::DroppedIsAck, _) if dropped => token.settle(Outcome::Ack),
            (Lie::DroppedIsForgotten, _) if dropped => forget(id, token),
            (Lie::StaleIsOk, outcome) => {
                let mut settled = token.settle(outcome);
                match settled.try_get() {
                    Some(Err(why)) if why.kind() == ErrorKind::StaleToken => Settled::ok(),
                    _ => settled,
                }
            }
            (Lie::StaleSettlesNewer, outcome) => {
                let mut settled = token.settle(outcome.clone());
                if matches!(settled.try_get(), Some(Err(_))) {
                    for other in self.tokens.take_same(&id) {
                        other.settle(outcome.clone());
                    }
                }
                settled
            }
            (Lie::TakesOldTokens, outcome) => {
                let mut settled = token.settle(outcome);
                match settled.try_get() {
                    Some(Err(_)) if self.shared.after_loss(Lie::TakesOldTokens) => Settled::ok(),
                    _ => settled,
                }
            }
            (Lie::OldTokensSettleNewer, outcome) => {
                let mut settled = token.settle(outcome.clone());
                if matches!(settled.try_get(), Some(Err(_)))
                    && self.shared.after_loss(Lie::OldTokensSettleNewer)
                {
                    let sinks = with(&self.shared.sinks, |sinks| sinks.clone());
                    for other in
                        sinks.iter().filter_map(Weak::upgrade).flat_map(|one| one.tokens.take_same(&id))
                    {
                        other.settle(outcome.clone());
                    }
                }
                settled
            }
            (Lie::DeliversAckedAfterLoss, Outcome::Ack) => {
                if let Some(envelope) = with(&self.out, |out| out.remove(&id)) {
                    with(&self.shared.acked, |acked| acked.push(envelope));
                }
                token.settle(Outcome::Ack)
            }
            (_, outcome) => token.settle(outcome),
        }
    }

    fn extend(&self, tag: u64, _: u32) -> Settled {
        if self.shared.lie == Lie::ExtendWithoutEffect {
            return Settled::ok();
        }
        self.tokens.extend(tag)
    }

    fn dropped(&self, tag: u64, _: u32) {
        with(&self.dropped, |dropped| dropped.insert(tag));
    }
}

pub(super) struct FaultySubscription {
    /// Taken out when it must not end.
    inner: Option<Box<dyn Subscription>>,
    sink: Arc<Sink>,
    ready: VecDeque<Delivery>,
    deadline: Option<Timestamp>,
    /// Nothing comes.
    mute: bool,
    /// Made after a loss.
    again: bool,
}

impl FaultySubscription {
    pub(super) fn new(inner: Box<dyn Subscription>, shared: Arc<Shared>) -> Self {
        let mute = shared.after_loss(Lie::SilentAfterLoss);
        let again = shared.after_loss(Lie::ForgetsAttemptsAfterLoss);
        let acked = if shared.after_loss(Lie::DeliversAckedAfterLoss) {
            with(&shared.acked, std::mem::take)
        } else {
            Vec::new()
        };
        let sink = Arc::new(Sink {
            shared,
            tokens: Tokens::default(),
            dropped: Mutex::default(),
            out: Mutex::default(),
            again: Mutex::new((acked, None)),
        });
        Self { inner: Some(inner), sink, ready: VecDeque::new(), deadline: None, mute, again }
    }

    pub(super) fn sink(&self) -> Weak<Sink> {
        Arc::downgrade(&self.sink)
    }

    fn lie(&self) -> Lie {
        self.sink.shared.lie
    }

    fn token(&self, tag: u64, epoch: u32) -> AckToken {
        AckToken::new(Arc::clone(&self.sink) as Arc<dyn AckSink>, tag, epoch)
    }

    /// The same again, with a token that does nothing.
    fn copy(&self, envelope: Arc<Envelope>, position: Option<u64>) -> Delivery {
        Delivery {
            envelope,
            attempt: 1,
            redelivered: false,
            position,
            received_at: Timestamp::now(),
            token: self.token(NOBODY, 0),
        }
    }

    /// Takes it in, unless it gets lost.
    fn take(&mut self, mut delivery: Delivery) {
        let lie = self.lie();
        let shared = Arc::clone(&self.sink.shared);
        if lie == Lie::LosesDeliveries && shared.every(7)
            || lie == Lie::LosesEmpty && delivery.envelope.payload.is_empty()
        {
            drop(delivery.ack());
            return;
        }
        let tokens = &self.sink.tokens;
        tokens.wrap(&mut delivery, |tag, epoch| self.token(tag, epoch));
        let mut envelope = Envelope::clone(&delivery.envelope);
        if bend(&mut envelope, lie, &shared) {
            delivery.envelope = Arc::new(envelope);
        }
        match lie {
            Lie::ForgetsAttempts => delivery.attempt = 1,
            Lie::DoublesAttempts => delivery.attempt = delivery.attempt * 2 - 1,
            Lie::ForgetsRedelivered => delivery.redelivered = false,
            Lie::ForgetsAttemptsAfterLoss if self.again => {
                (delivery.attempt, delivery.redelivered) = (1, false);
            }
            Lie::DeliversAfterAck | Lie::DeadLetterComesAgain | Lie::DeliversAckedAfterLoss => {
                let (id, envelope) = (delivery.envelope.id.clone(), Arc::clone(&delivery.envelope));
                with(&self.sink.out, |out| out.insert(id, envelope));
            }
            Lie::Duplicates if shared.every(5) => {
                let copy = self.copy(Arc::clone(&delivery.envelope), delivery.position);
                self.ready.push_back(copy);
            }
            _ => {}
        }
        self.ready.push_back(delivery);
    }
}

/// What becomes of a message on its way; whether anything does.
fn bend(envelope: &mut Envelope, lie: Lie, shared: &Shared) -> bool {
    match lie {
        Lie::DropsHeaders => envelope.headers = Headers::new(),
        Lie::MergesHeaders => {
            let mut merged = Headers::new();
            for header in &envelope.headers {
                merged.set(Arc::clone(&header.name), header.value.clone());
            }
            envelope.headers = merged;
        }
        Lie::TextHeaders => {
            envelope.headers = envelope
                .headers
                .iter()
                .map(|header| (Arc::clone(&header.name), header.value.to_text()))
                .collect();
        }
        Lie::DropsFields => (envelope.key, envelope.content_type, envelope.correlation) = (None, None, None),
        Lie::RenamesMessages => envelope.id = MessageId::generate(),
        Lie::CutsPayload => envelope.payload.truncate(64 << 10),
        Lie::LossyUtf8 => {
            envelope.payload =
                Bytes::from(String::from_utf8_lossy(&envelope.payload).into_owned().into_bytes());
        }
        Lie::TrimsPayload => envelope.payload = Bytes::copy_from_slice(envelope.payload.trim_ascii()),
        Lie::IgnoresDedup => {
            if let Some(id) = with(&shared.renamed, |renamed| renamed.get(&envelope.id).cloned()) {
                envelope.id = id;
            }
        }
        _ => return false,
    }
    true
}

impl Subscription for FaultySubscription {
    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Vec<Delivery>,
        max: usize,
    ) -> Poll<Result<usize>> {
        if self.mute {
            return Poll::Pending;
        }
        let again = with(&self.sink.again, |(again, waker)| {
            *waker = Some(cx.waker().clone());
            std::mem::take(again)
        });
        for envelope in again {
            let copy = self.copy(envelope, None);
            self.ready.push_back(copy);
        }
        let mut taken = Vec::new();
        while self.ready.is_empty() && max > 0 {
            let Some(inner) = &mut self.inner else { return Poll::Pending };
            // Two at once, so that there is something to put in another order.
            let count = if self.sink.shared.lie == Lie::Reorders { 2 } else { max };
            match inner.poll_fill(cx, &mut taken, count) {
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) if self.sink.shared.after_loss(Lie::ConsumerNeverHears) => {
                    return Poll::Pending;
                }
                other => return other,
            }
            if self.lie() == Lie::Reorders {
                taken.reverse();
            }
            for delivery in taken.drain(..) {
                self.take(delivery);
            }
        }
        let count = self.ready.len().min(max);
        out.extend(self.ready.drain(..count));
        Poll::Ready(Ok(count))
    }

    fn begin_drain(&mut self, deadline: Timestamp) {
        self.deadline = Some(deadline);
        let deadline = match self.lie() {
            Lie::DrainHasNoDeadline => Timestamp::from_millis(u64::MAX),
            Lie::DrainFetches => return,
            _ => deadline,
        };
        if let Some(inner) = &mut self.inner {
            inner.begin_drain(deadline);
        }
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<Result<DrainReport>> {
        let lie = self.lie();
        let Some(inner) = &mut self.inner else { return Poll::Pending };
        match lie {
            Lie::DrainDoesNotWait => return Poll::Ready(Ok(DrainReport::default())),
            Lie::DrainFetches => inner.begin_drain(self.deadline.unwrap_or(Timestamp::from_millis(u64::MAX))),
            _ => {}
        }
        let mut report = inner.poll_drain(cx);
        if let (Lie::DrainMiscounts, Poll::Ready(Ok(report))) = (lie, &mut report) {
            report.settled = 0;
        }
        if let (Lie::DrainSaysAllSettled, Poll::Ready(Ok(report))) = (lie, &mut report) {
            let settled = report.settled + report.returned;
            *report = DrainReport { settled, returned: 0, timed_out: false };
        }
        report
    }

    fn capabilities(&self) -> &Capabilities {
        &self.sink.shared.can
    }
}

impl Drop for FaultySubscription {
    fn drop(&mut self) {
        if self.lie() == Lie::GoneKeepsMessages
            && let Some(inner) = self.inner.take()
        {
            with(&self.sink.shared.undead, |undead| undead.push(inner));
        }
    }
}

//! One verdict on many deliveries, at the price of a few.

use super::{AckToken, Settled, State};
use crate::outcome::Outcome;

/// Gives the same verdict on all of `tokens`. Neighbours (consecutive tags of one sink and epoch) are settled by one
/// call of [`AckSink::settle_run`](super::AckSink::settle_run), which is what a consumer that works in batches wants.
///
/// Resolves when every verdict is as durable as the backend makes it, with the first error if there was one.
///
/// ```
/// # use postroad_core::{Backend, Envelope, Outcome, Publisher, SubscribeOptions, SubscriptionExt, block_on, settle_all};
/// # use postroad_core::memory::Memory;
/// # block_on(async {
/// # let memory = Memory::new();
/// # let mut subscription = memory.subscribe(SubscribeOptions::new("orders".parse()?)).await?;
/// # let publisher = memory.publisher().await?;
/// # publisher.publish(Envelope::new("orders".parse()?, "1"));
/// let mut batch = Vec::new();
/// subscription.next_batch(&mut batch, 256).await?;
/// settle_all(batch.drain(..).map(|delivery| delivery.token), Outcome::Ack).await?;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
pub fn settle_all(tokens: impl IntoIterator<Item = AckToken>, outcome: Outcome) -> Settled {
    let mut tokens = tokens.into_iter();
    let mut parts = Parts::default();
    let mut next = tokens.next();
    while let Some(first) = next {
        let mut run = Run::new(first);
        next = loop {
            match tokens.next() {
                Some(mut token) if run.is_next(&token) => {
                    run.last = token.tag;
                    token.armed = false;
                }
                other => break other,
            }
        };
        parts.add(run.settle(outcome.clone()));
    }
    parts.all()
}

/// Neighbours without a verdict. Dropped, by a panic of the iterator, each of them is Retry.
struct Run {
    first: AckToken,
    last: u64,
}

impl Run {
    fn new(first: AckToken) -> Self {
        Self { last: first.tag, first }
    }

    #[inline]
    fn is_next(&self, token: &AckToken) -> bool {
        self.last.checked_add(1) == Some(token.tag)
            && self.first.epoch == token.epoch
            && std::ptr::addr_eq(&raw const *self.first.sink, &raw const *token.sink)
    }

    fn settle(mut self, outcome: Outcome) -> Settled {
        self.first.armed = false;
        self.first.sink.settle_run(self.first.tag, self.last, self.first.epoch, outcome)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // The first token says so itself.
        if self.first.armed {
            for tag in (self.first.tag..=self.last).skip(1) {
                self.first.sink.dropped(tag, self.first.epoch);
                self.first.sink.settle(tag, self.first.epoch, Outcome::retry());
            }
        }
    }
}

/// What several verdicts come to. What is known at once costs no memory.
#[derive(Default)]
pub(super) struct Parts {
    failed: Option<Settled>,
    waiting: Vec<Settled>,
}

impl Parts {
    pub(super) fn add(&mut self, settled: Settled) {
        match &settled.0 {
            State::Ready(Ok(())) => {}
            State::Ready(Err(_)) => {
                self.failed.get_or_insert(settled);
            }
            _ => self.waiting.push(settled),
        }
    }

    pub(super) fn all(mut self) -> Settled {
        if self.waiting.is_empty() {
            return self.failed.unwrap_or_else(Settled::ok);
        }
        self.waiting.extend(self.failed);
        Settled(State::All(self.waiting))
    }
}

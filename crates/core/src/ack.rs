//! The token that settles a delivery, exactly once.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::error::{Error, Result};
use crate::outcome::Outcome;
use crate::slot::Slot;

mod batch;
mod split;

pub use batch::settle_all;
pub use split::join;

/// What a backend does with verdicts. One object for many deliveries: `tag` and `epoch` say which one is meant.
pub trait AckSink: Send + Sync {
    /// The verdict on the delivery `tag` of connection generation `epoch`. Must not wait: the returned future does.
    ///
    /// An old epoch, or a delivery whose lease ended, is answered with
    /// [`StaleToken`](crate::ErrorKind::StaleToken) and changes nothing.
    fn settle(&self, tag: u64, epoch: u32, outcome: Outcome) -> Settled;

    /// One verdict on the deliveries `first..=last`, whose tokens all exist. Like as many calls of
    /// [`settle`](Self::settle), which is what it does unless a backend knows something cheaper.
    fn settle_run(&self, first: u64, last: u64, epoch: u32, outcome: Outcome) -> Settled {
        let mut parts = batch::Parts::default();
        for tag in first..=last {
            parts.add(self.settle(tag, epoch, outcome.clone()));
        }
        parts.all()
    }

    /// The consumer still works on it: its lease starts again. Must not wait.
    ///
    /// Where there are no leases, answer [`Unsupported`](crate::ErrorKind::Unsupported).
    fn extend(&self, tag: u64, epoch: u32) -> Settled;

    /// A token was dropped without a verdict. [`settle`](Self::settle) with [`Outcome::retry`] follows; this is the
    /// place to count and log it.
    fn dropped(&self, tag: u64, epoch: u32) {
        let _ = (tag, epoch);
    }
}

/// The right to settle one delivery. [`settle`](Self::settle) takes the token, so nobody can settle twice:
///
/// ```compile_fail,E0382
/// # fn f(token: postroad_core::AckToken) {
/// token.settle(postroad_core::Outcome::Ack);
/// token.settle(postroad_core::Outcome::Ack); // moved
/// # }
/// ```
///
/// Dropping it, also by a panic, means [`Outcome::Retry`] and a call of [`AckSink::dropped`].
#[must_use = "a token that is dropped means Retry"]
pub struct AckToken {
    sink: Arc<dyn AckSink>,
    tag: u64,
    epoch: u32,
    armed: bool,
}

const _: () = assert!(size_of::<AckToken>() == 32 || size_of::<usize>() != 8);

impl AckToken {
    /// For a backend: the token of delivery `tag` of connection generation `epoch`.
    pub fn new(sink: Arc<dyn AckSink>, tag: u64, epoch: u32) -> Self {
        Self { sink, tag, epoch, armed: true }
    }

    /// Gives the verdict. It is on its way when this returns; await the result to know that it arrived and is as
    /// durable as the backend makes it. Not awaiting it is fine.
    pub fn settle(mut self, outcome: Outcome) -> Settled {
        self.armed = false;
        self.sink.settle(self.tag, self.epoch, outcome)
    }

    /// Still working: the lease starts again. The future need not be awaited.
    pub fn extend(&mut self) -> Settled {
        self.sink.extend(self.tag, self.epoch)
    }

    /// What the backend calls the delivery.
    pub fn tag(&self) -> u64 {
        self.tag
    }

    /// The connection generation it belongs to.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }
}

impl Drop for AckToken {
    fn drop(&mut self) {
        if self.armed {
            self.sink.dropped(self.tag, self.epoch);
            self.sink.settle(self.tag, self.epoch, Outcome::retry());
        }
    }
}

impl fmt::Debug for AckToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AckToken").field("tag", &self.tag).field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

/// The future of a verdict: `Ok` when it is as durable as the backend makes it. It need not be awaited. Awaiting it
/// again gives the same answer.
#[derive(Debug)]
pub struct Settled(State);

#[derive(Debug)]
enum State {
    Ready(Result<()>),
    Waiting(Arc<Slot<Result<()>>>),
    /// Of a token that was fanned out: known when the root's is.
    Shared(Arc<split::FanOut>),
    /// Of joined tokens: known when all are.
    All(Vec<Settled>),
}

impl Settled {
    /// Done. Allocates nothing.
    pub const fn ok() -> Self {
        Self(State::Ready(Ok(())))
    }

    /// Failed, at once.
    pub const fn failed(error: Error) -> Self {
        Self(State::Ready(Err(error)))
    }

    /// To be known later. One allocation.
    pub fn pending() -> (SettledResolver, Self) {
        let slot = Arc::new(Slot::new());
        (SettledResolver(Some(Arc::clone(&slot))), Self(State::Waiting(slot)))
    }

    /// The answer, if it is there without waiting.
    pub fn try_get(&mut self) -> Option<Result<()>> {
        if let State::Ready(result) = &self.0 {
            return Some(result.clone());
        }
        let mut cx = Context::from_waker(std::task::Waker::noop());
        match Pin::new(self).poll(&mut cx) {
            Poll::Ready(result) => Some(result),
            Poll::Pending => None,
        }
    }

    /// Waits on this thread; inside a runtime, `.await` instead.
    pub fn wait(self) -> Result<()> {
        crate::block_on(self)
    }
}

impl From<Result<()>> for Settled {
    fn from(result: Result<()>) -> Self {
        Self(State::Ready(result))
    }
}

impl Future for Settled {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        match &mut self.0 {
            State::Ready(result) => Poll::Ready(result.clone()),
            State::Waiting(slot) => slot.poll(cx),
            State::Shared(root) => root.poll(cx),
            State::All(parts) => {
                let mut worst = Ok(());
                for part in parts {
                    match Pin::new(part).poll(cx) {
                        Poll::Ready(result) => worst = worst.and(result),
                        Poll::Pending => return Poll::Pending,
                    }
                }
                Poll::Ready(worst)
            }
        }
    }
}

/// The backend's half of a pending [`Settled`]. Dropped without an answer it answers
/// [`Disconnected`](crate::ErrorKind::Disconnected): unknown is not success.
#[derive(Debug)]
pub struct SettledResolver(Option<Arc<Slot<Result<()>>>>);

impl SettledResolver {
    /// Answers.
    pub fn resolve(mut self, result: Result<()>) {
        if let Some(slot) = self.0.take() {
            slot.set(result);
        }
    }
}

impl Drop for SettledResolver {
    fn drop(&mut self) {
        if let Some(slot) = self.0.take() {
            let text = "the backend went away before it confirmed the verdict";
            slot.set(Err(Error::new(crate::ErrorKind::Disconnected, "core", text)));
        }
    }
}

#[cfg(test)]
#[path = "ack_tests.rs"]
mod tests;

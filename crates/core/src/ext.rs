//! `async` methods over the poll methods of the backend traits.

use std::future::poll_fn;
use std::pin::pin;

use crate::backend::{DrainReport, Publisher, Subscription};
use crate::delivery::Delivery;
use crate::envelope::Envelope;
use crate::error::{Error, ErrorKind, Result};
use crate::ticket::Receipt;
use crate::time::Timestamp;

/// `async` methods for every [`Subscription`], `dyn` ones too. All are cancel-safe: a future that is dropped has taken
/// nothing.
pub trait SubscriptionExt: Subscription {
    /// Waits for at least one delivery and appends up to `max` to `out`; gives how many.
    fn next_batch<'a>(
        &'a mut self,
        out: &'a mut Vec<Delivery>,
        max: usize,
    ) -> impl Future<Output = Result<usize>> + Send + 'a {
        poll_fn(move |cx| self.poll_fill(cx, out, max))
    }

    /// Waits for one delivery. Allocates; [`next_batch`](Self::next_batch) does not.
    fn next(&mut self) -> impl Future<Output = Result<Delivery>> + Send + '_ {
        async move {
            let mut one = Vec::with_capacity(1);
            self.next_batch(&mut one, 1).await?;
            one.pop().ok_or_else(|| {
                Error::new(ErrorKind::Internal, "core", "a fill gave no delivery and no error")
            })
        }
    }

    /// Stops fetching and waits until everything in flight is settled, or for the deadline on the backend's clock.
    fn drain(&mut self, deadline: Timestamp) -> impl Future<Output = Result<DrainReport>> + Send + '_ {
        self.begin_drain(deadline);
        poll_fn(move |cx| self.poll_drain(cx))
    }
}

impl<S: Subscription + ?Sized> SubscriptionExt for S {}

/// `async` methods for every [`Publisher`], `dyn` ones too.
pub trait PublisherExt: Publisher {
    /// Waits until a publish is likely to be taken.
    fn ready(&self) -> impl Future<Output = Result<()>> + Send + '_ {
        poll_fn(move |cx| self.poll_ready(cx))
    }

    /// Waits for room, publishes, and waits for the receipt. One message at a time; to pipeline, keep the tickets of
    /// [`publish`](Publisher::publish).
    fn send(&self, envelope: Envelope) -> impl Future<Output = Receipt> + Send + '_ {
        async move {
            if let Err(error) = self.ready().await {
                return Receipt::Refused(error);
            }
            let ticket = pin!(self.publish(envelope));
            ticket.await
        }
    }
}

impl<P: Publisher + ?Sized> PublisherExt for P {}

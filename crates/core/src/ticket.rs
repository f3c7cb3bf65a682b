//! The answer to a publish, now or later.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::error::{Error, ErrorKind, Result};
use crate::slot::Slot;

/// What became of a publish.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Receipt {
    /// The backend has it, as durably as its [`Capabilities`](crate::Capabilities) say.
    Confirmed {
        /// Its number in its stream, where the backend has numbers.
        position: Option<u64>,
        /// It had been published before, inside the dedup window: nothing was stored, `position` is the first one's.
        duplicate: bool,
    },
    /// The backend does not have it, for sure.
    Refused(Error),
    /// It was sent and no answer came: the backend may have it. Publish it again with the same id if it dedups.
    Unknown(Error),
}

impl Receipt {
    /// The position, or the error of either kind.
    pub fn into_result(self) -> Result<Option<u64>> {
        match self {
            Self::Confirmed { position, .. } => Ok(position),
            Self::Refused(error) | Self::Unknown(error) => Err(error),
        }
    }

    /// Whether the backend has it for sure.
    pub fn is_confirmed(&self) -> bool {
        matches!(self, Self::Confirmed { .. })
    }

    /// Whether it was confirmed as a duplicate.
    pub fn is_duplicate(&self) -> bool {
        matches!(self, Self::Confirmed { duplicate: true, .. })
    }

    /// Where it is, if it was confirmed and the backend has positions.
    pub fn position(&self) -> Option<u64> {
        match self {
            Self::Confirmed { position, .. } => *position,
            _ => None,
        }
    }
}

/// The future of a [`Receipt`]. Dropping it forgets the answer, not the publish.
///
/// A backend that has the answer at once makes it [`ready`](Self::ready) and allocates nothing. Else it makes a
/// [`pending`](Self::pending) pair.
///
/// ```
/// use postroad_core::{Receipt, Ticket, block_on};
///
/// let (resolver, ticket) = Ticket::pending();
/// assert!(ticket.try_get().is_none());
/// resolver.confirm(Some(7), false);
/// assert_eq!(block_on(ticket).position(), Some(7));
/// ```
#[derive(Debug)]
#[must_use = "a publish is known to be safe only when its ticket says so"]
pub struct Ticket(State);

#[derive(Debug)]
enum State {
    Ready(Receipt),
    Waiting(Arc<Slot<Receipt>>),
}

impl Ticket {
    /// With the answer.
    pub const fn ready(receipt: Receipt) -> Self {
        Self(State::Ready(receipt))
    }

    /// With the answer [`Receipt::Confirmed`].
    pub const fn confirmed(position: Option<u64>, duplicate: bool) -> Self {
        Self::ready(Receipt::Confirmed { position, duplicate })
    }

    /// With the answer [`Receipt::Refused`].
    pub const fn refused(error: Error) -> Self {
        Self::ready(Receipt::Refused(error))
    }

    /// With the answer to come. One allocation.
    pub fn pending() -> (TicketResolver, Self) {
        let slot = Arc::new(Slot::new());
        (TicketResolver(Some(Arc::clone(&slot))), Self(State::Waiting(slot)))
    }

    /// The answer, if there is one.
    pub fn try_get(&self) -> Option<Receipt> {
        match &self.0 {
            State::Ready(receipt) => Some(receipt.clone()),
            State::Waiting(slot) => slot.get(),
        }
    }

    /// Waits on this thread; inside a runtime, `.await` instead.
    pub fn wait(self) -> Receipt {
        crate::block_on(self)
    }
}

impl Future for Ticket {
    type Output = Receipt;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Receipt> {
        match &self.0 {
            State::Ready(receipt) => Poll::Ready(receipt.clone()),
            State::Waiting(slot) => slot.poll(cx),
        }
    }
}

/// The backend's half of a [`Ticket`]. Dropped without an answer it answers [`Receipt::Unknown`].
#[derive(Debug)]
pub struct TicketResolver(Option<Arc<Slot<Receipt>>>);

impl TicketResolver {
    /// Answers.
    pub fn resolve(mut self, receipt: Receipt) {
        if let Some(slot) = self.0.take() {
            slot.set(receipt);
        }
    }

    /// Answers [`Receipt::Confirmed`].
    pub fn confirm(self, position: Option<u64>, duplicate: bool) {
        self.resolve(Receipt::Confirmed { position, duplicate });
    }

    /// Answers [`Receipt::Refused`].
    pub fn refuse(self, error: Error) {
        self.resolve(Receipt::Refused(error));
    }

    /// Answers [`Receipt::Unknown`].
    pub fn unknown(self, error: Error) {
        self.resolve(Receipt::Unknown(error));
    }
}

impl Drop for TicketResolver {
    fn drop(&mut self) {
        if let Some(slot) = self.0.take() {
            let error =
                Error::new(ErrorKind::Disconnected, "core", "the backend went away before it answered");
            slot.set(Receipt::Unknown(error));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_resolver_is_unknown_not_success() {
        let (resolver, ticket) = Ticket::pending();
        drop(resolver);
        assert!(matches!(ticket.wait(), Receipt::Unknown(error) if error.kind() == ErrorKind::Disconnected));
    }

    #[test]
    fn an_answer_from_another_thread_wakes() {
        let (resolver, ticket) = Ticket::pending();
        let answering = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(20));
            resolver.confirm(Some(3), true);
        });
        let receipt = ticket.wait();
        assert!(receipt.is_duplicate() && receipt.position() == Some(3));
        answering.join().unwrap();
    }
}

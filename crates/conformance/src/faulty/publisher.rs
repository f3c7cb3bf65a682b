//! Lies about publishes.

use std::sync::Arc;
use std::task::{Context, Poll};

use postroad_core::{
    Capabilities, Envelope, Error, ErrorKind, MessageId, Publisher, Receipt, Result, Ticket,
};

use super::{Lie, Shared, with};

pub(super) struct FaultyPublisher {
    inner: Arc<dyn Publisher>,
    shared: Arc<Shared>,
}

impl FaultyPublisher {
    pub(super) fn new(inner: Arc<dyn Publisher>, shared: Arc<Shared>) -> Self {
        Self { inner, shared }
    }

    fn is_too_large(&self, envelope: &Envelope) -> bool {
        self.shared.can.max_payload_bytes.is_some_and(|limit| envelope.payload.len() > limit)
    }
}

/// Another answer, if it is there already.
fn bent(ticket: Ticket, bend: impl FnOnce(Receipt) -> Receipt) -> Ticket {
    match ticket.try_get() {
        Some(receipt) => Ticket::ready(bend(receipt)),
        None => ticket,
    }
}

/// Another answer to what its connection lost; `None` is none at all. Needs a Tokio runtime.
fn bent_if_lost(
    ticket: Ticket,
    shared: &Arc<Shared>,
    bend: impl FnOnce(Error) -> Option<Receipt> + Send + 'static,
) -> Ticket {
    if ticket.try_get().is_some_and(|receipt| receipt.is_confirmed()) {
        return ticket;
    }
    let (resolver, bent) = Ticket::pending();
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let receipt = match ticket.await {
            Receipt::Unknown(why) => bend(why),
            Receipt::Refused(why) if why.kind() == ErrorKind::Disconnected => bend(why),
            receipt => Some(receipt),
        };
        match receipt {
            Some(receipt) => resolver.resolve(receipt),
            None => with(&shared.unanswered, |all| all.push(resolver)),
        }
    });
    bent
}

impl Publisher for FaultyPublisher {
    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        match self.inner.poll_ready(cx) {
            Poll::Ready(Err(_)) if self.shared.after_loss(Lie::PublisherNeverHears) => Poll::Pending,
            ready => ready,
        }
    }

    fn publish(&self, mut envelope: Envelope) -> Ticket {
        let shared = &*self.shared;
        match shared.lie {
            Lie::PublisherNeverHears => bent_if_lost(self.inner.publish(envelope), &self.shared, |_| None),
            Lie::ConfirmsTheLost => bent_if_lost(self.inner.publish(envelope), &self.shared, |_| {
                Some(Receipt::Confirmed { position: None, duplicate: false })
            }),
            Lie::RefusesTheLost => {
                bent_if_lost(self.inner.publish(envelope), &self.shared, |why| Some(Receipt::Refused(why)))
            }
            Lie::LosesConfirmed if shared.every(4) => Ticket::confirmed(None, false),
            Lie::ConfirmsBeforeStoring => {
                let before = with(&shared.late, |late| std::mem::replace(late, vec![envelope]));
                for envelope in before {
                    drop(self.inner.publish(envelope));
                }
                Ticket::confirmed(None, false)
            }
            Lie::NeverConfirms => {
                drop(self.inner.publish(envelope));
                let (resolver, ticket) = Ticket::pending();
                with(&shared.unanswered, |all| all.push(resolver));
                ticket
            }
            Lie::RefusesAndStores if shared.every(4) => {
                drop(self.inner.publish(envelope));
                Ticket::refused(Error::new(ErrorKind::Transient, "faulty", "not now"))
            }
            Lie::ConfirmsTooLarge if self.is_too_large(&envelope) => Ticket::confirmed(None, false),
            Lie::CutsTooLarge if self.is_too_large(&envelope) => {
                envelope.payload.truncate(1000);
                self.inner.publish(envelope)
            }
            Lie::IgnoresDedup => {
                let id = MessageId::generate();
                let old = std::mem::replace(&mut envelope.id, id.clone());
                with(&shared.renamed, |renamed| renamed.insert(id, old));
                self.inner.publish(envelope)
            }
            Lie::CallsAllDuplicates => bent(self.inner.publish(envelope), |receipt| match receipt {
                Receipt::Confirmed { position, .. } => Receipt::Confirmed { position, duplicate: true },
                other => other,
            }),
            Lie::WrongPosition => bent(self.inner.publish(envelope), |receipt| match receipt {
                Receipt::Confirmed { position, duplicate } => {
                    Receipt::Confirmed { position: position.map(|position| position + 1), duplicate }
                }
                other => other,
            }),
            Lie::IgnoresPriority => {
                envelope.priority = 0;
                self.inner.publish(envelope)
            }
            _ => self.inner.publish(envelope),
        }
    }

    fn publish_batch(&self, envelopes: Vec<Envelope>) -> Vec<Ticket> {
        match self.shared.lie {
            Lie::BatchHidesFailures => {
                let hide = |ticket| bent(ticket, |_| Receipt::Confirmed { position: None, duplicate: false });
                self.inner.publish_batch(envelopes).into_iter().map(hide).collect()
            }
            Lie::BatchFailsTogether if envelopes.iter().any(|one| self.is_too_large(one)) => {
                let why = Error::new(ErrorKind::TooLarge, "faulty", "one of them is too large");
                envelopes.iter().map(|_| Ticket::refused(why.clone())).collect()
            }
            _ => envelopes.into_iter().map(|envelope| self.publish(envelope)).collect(),
        }
    }

    fn capabilities(&self) -> &Capabilities {
        if self.shared.lie == Lie::DeclaresOther { &self.shared.none } else { &self.shared.can }
    }
}

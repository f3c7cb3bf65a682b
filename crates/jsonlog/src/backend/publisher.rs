//! Publishing: one connection, pipelined.

use std::sync::Arc;
use std::task::{Context, Poll};

use postroad_core::{
    Capabilities, Envelope, Error, ErrorKind as CoreKind, Publisher, Receipt, Result, Ticket,
};

use super::{NAME, envelope, error};
use crate::client::{Answer, Client, ClientError, ErrorKind, Outcome, Slot};

#[derive(Debug)]
pub(super) struct JsonLogPublisher {
    client: Client,
    capabilities: Arc<Capabilities>,
}

impl JsonLogPublisher {
    pub(super) fn new(client: Client, capabilities: Arc<Capabilities>) -> Self {
        Self { client, capabilities }
    }

    /// Also whether it was sent.
    fn send(&self, envelope: Envelope, urgent: bool) -> (Ticket, bool) {
        let json = envelope::encode(&envelope);
        let (resolver, ticket) = Ticket::pending();
        let slot = Slot::Call(Box::new(move |outcome| resolver.resolve(receipt(outcome))));
        match self.client.publish_to(envelope.subject.as_str(), &json, urgent, slot) {
            Ok(()) => (ticket, true),
            Err((why, _)) => (Ticket::refused(self.refusal(&why)), false),
        }
    }

    /// Of what was never sent.
    fn refusal(&self, why: &ClientError) -> Error {
        if why.kind() == ErrorKind::Closed
            && let Some(ended) = self.client.closed()
        {
            return error(&ended);
        }
        error(why)
    }
}

/// What an answer means for the message.
fn receipt(outcome: Outcome) -> Receipt {
    match outcome {
        Ok(Answer::Publish(ack)) => Receipt::Confirmed { position: Some(ack.seq), duplicate: ack.duplicate },
        Ok(_) => {
            Receipt::Unknown(Error::new(CoreKind::Internal, NAME, "the reply belongs to another command"))
        }
        Err(why) if why.outcome_unknown() => Receipt::Unknown(error(&why)),
        Err(why) => Receipt::Refused(error(&why)),
    }
}

impl Publisher for JsonLogPublisher {
    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.client.poll_ready(cx).map_err(|why| self.refusal(&why))
    }

    fn publish(&self, envelope: Envelope) -> Ticket {
        self.send(envelope, false).0
    }

    /// All of them are taken when the first is: the caller has their memory already, and a batch is one write.
    fn publish_batch(&self, envelopes: Vec<Envelope>) -> Vec<Ticket> {
        let mut taken = false;
        let mut send = |envelope| {
            let (ticket, sent) = self.send(envelope, taken);
            taken |= sent;
            ticket
        };
        envelopes.into_iter().map(&mut send).collect()
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }
}

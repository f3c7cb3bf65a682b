//! Publishing into the engine of this process.

use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use postroad_core::{
    Capabilities, Envelope, Error, ErrorKind, Publisher, Result, Subject, Ticket as PublishTicket,
    TicketResolver,
};

use super::commits::{Stored, Waiting};
use super::error::{self, error};
use super::{MAX_HEADER_BYTES, Shared, envelope};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::log::{PayloadKind, Ticket as Commit};
use crate::stream::{NewEvent, Stream};

pub(super) struct EnginePublisher(pub(super) Arc<Shared>);

/// A message as the engine takes it.
struct Encoded {
    subject: Subject,
    priority: i64,
    id: String,
    json: Bytes,
}

impl Encoded {
    fn event(&self) -> NewEvent<'_> {
        NewEvent {
            priority: self.priority,
            id: Some(self.id.as_bytes()),
            headers: None,
            kind: PayloadKind::Json,
            payload: &self.json,
        }
    }
}

impl EnginePublisher {
    /// What a full queue, a full disk, a failed log or the end say.
    fn admit(&self) -> Result<Arc<Engine>> {
        let engine = self.0.engine()?;
        engine.admit().map_err(error::of)?;
        Ok(engine)
    }

    fn encode(&self, envelope: &Envelope) -> Result<Encoded> {
        let too_large = |what: &str, bytes: usize, max: usize| {
            let text =
                format!("{what} has {bytes} bytes, the limit is {max}: send less, or a reference to it");
            Err(error(ErrorKind::TooLarge, text))
        };
        let (payload, headers) = (envelope.payload.len(), envelope.headers.len_bytes());
        let rest = envelope.len_bytes() - payload - headers;
        if payload > self.0.max_payload_bytes {
            return too_large("the payload", payload, self.0.max_payload_bytes);
        }
        if headers > MAX_HEADER_BYTES {
            return too_large("the set of headers", headers, MAX_HEADER_BYTES);
        }
        if rest > MAX_HEADER_BYTES {
            return too_large("the key with the correlation", rest, MAX_HEADER_BYTES);
        }
        if envelope.subject.is_reserved() {
            let text =
                format!("`{}` belongs to the broker: publish to a subject without `$`", envelope.subject);
            return Err(error(ErrorKind::Rejected, text));
        }
        Ok(Encoded {
            subject: envelope.subject.clone(),
            priority: envelope.priority,
            // A string always serializes.
            id: serde_json::to_string(&envelope.id.to_string()).unwrap_or_default(),
            json: envelope::encode(envelope),
        })
    }

    /// Appends neighbours of one subject. Where ids are remembered each has its own answer, so each goes alone, into the
    /// same commit.
    fn append(
        engine: &Engine,
        run: &[Encoded],
        mut answer: impl FnMut(Range<usize>, Result<(Stored, Commit)>),
    ) {
        let Some(first) = run.first() else { return };
        let stream = match engine.stream_or_create(&first.subject) {
            Ok(stream) => stream,
            Err(why) => return answer(0..run.len(), Err(error::of(why))),
        };
        let each = !engine.config().dedup_window.is_zero();
        let size = if each { 1 } else { run.len() };
        for (at, part) in run.chunks(size).enumerate() {
            let events: Vec<_> = part.iter().map(Encoded::event).collect();
            answer(at * size..at * size + part.len(), publish(&stream, &events));
        }
    }
}

/// Where the first of them is, and the commit.
fn publish(stream: &Stream, events: &[NewEvent<'_>]) -> Result<(Stored, Commit)> {
    let published = stream.publish(events).map_err(error::of)?;
    let stored = match published.duplicates {
        0 => Stored { position: published.first, duplicate: false },
        _ => Stored { position: published.duplicate_of, duplicate: true },
    };
    Ok((stored, published.ticket))
}

impl Publisher for EnginePublisher {
    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let engine = match self.0.engine() {
            Ok(engine) => engine,
            Err(error) => return Poll::Ready(Err(error)),
        };
        // The second time with the waker in its place: a commit may have come in between.
        for has_waker in [false, true] {
            match engine.admit() {
                Err(EngineError::Busy) if has_waker => return Poll::Pending,
                Err(EngineError::Busy) => {
                    self.0.commits.wake_next(cx.waker());
                    engine.flush(false);
                }
                Ok(()) => break,
                // Not final, and not over soon: the publish itself is told.
                Err(EngineError::Log(why)) if why.is_disk_full() => break,
                Err(why) => return Poll::Ready(Err(error::of(why))),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn publish(&self, envelope: Envelope) -> PublishTicket {
        let encoded = self.admit().and_then(|engine| Ok((engine, self.encode(&envelope)?)));
        let (engine, encoded) = match encoded {
            Ok(encoded) => encoded,
            Err(error) => return PublishTicket::refused(error),
        };
        let mut result = Err(error(ErrorKind::Internal, "a publish had no answer"));
        Self::append(&engine, std::slice::from_ref(&encoded), |_, answer| result = answer);
        let (stored, commit) = match result {
            Ok(stored) => stored,
            Err(error) => return PublishTicket::refused(error),
        };
        engine.flush(false);
        if engine.committed() >= commit {
            return PublishTicket::confirmed(Some(stored.position), stored.duplicate);
        }
        let (resolver, ticket) = PublishTicket::pending();
        self.0.commits.add(commit, Waiting::Published(vec![(resolver, stored)]));
        ticket
    }

    fn publish_batch(&self, envelopes: Vec<Envelope>) -> Vec<PublishTicket> {
        let engine = match self.admit() {
            Ok(engine) => engine,
            Err(error) => return envelopes.iter().map(|_| PublishTicket::refused(error.clone())).collect(),
        };
        let mut batch = Batch {
            engine: &engine,
            run: Vec::new(),
            tickets: Vec::new(),
            stored: Vec::new(),
            last: Commit(0),
        };
        for envelope in &envelopes {
            match self.encode(envelope) {
                Ok(encoded) => batch.push(encoded),
                Err(error) => batch.refuse(error),
            }
        }
        batch.end_run();
        let Batch { tickets, stored, last, .. } = batch;
        engine.flush(false);
        self.0.commits.add(last, Waiting::Published(stored));
        tickets
    }

    fn capabilities(&self) -> &Capabilities {
        &self.0.capabilities
    }
}

/// Messages that are published with one commit.
struct Batch<'a> {
    engine: &'a Engine,
    /// Neighbours of one subject that are not appended yet.
    run: Vec<Encoded>,
    tickets: Vec<PublishTicket>,
    stored: Vec<(TicketResolver, Stored)>,
    last: Commit,
}

impl Batch<'_> {
    fn push(&mut self, encoded: Encoded) {
        if self.run.first().is_some_and(|first| first.subject != encoded.subject) {
            self.end_run();
        }
        self.run.push(encoded);
    }

    fn refuse(&mut self, error: Error) {
        self.end_run();
        self.tickets.push(PublishTicket::refused(error));
    }

    fn end_run(&mut self) {
        let run = std::mem::take(&mut self.run);
        EnginePublisher::append(self.engine, &run, |range, answer| match answer {
            Ok((first, commit)) => {
                self.last = self.last.max(commit);
                for position in (first.position..).take(range.len()) {
                    let (resolver, ticket) = PublishTicket::pending();
                    self.stored.push((resolver, Stored { position, ..first }));
                    self.tickets.push(ticket);
                }
            }
            Err(error) => self.tickets.extend(range.map(|_| PublishTicket::refused(error.clone()))),
        });
    }
}

//! Messages on their way into a stream, and what happens when they are committed.

use super::{Effects, KICK, Stream};
use crate::engine::Shared;
use crate::error::EngineError;
use crate::id::id_text;
use crate::log::{CommitObserver, PayloadKind, Publish, Ticket};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

/// A message to publish, in the form in which it is logged. See [`Publish`].
#[derive(Clone, Copy, Debug)]
pub struct NewEvent<'a> {
    /// Larger is delivered first.
    pub priority: i64,
    /// The message id as a JSON token.
    pub id: Option<&'a [u8]>,
    /// Other envelope fields as a JSON object on one line.
    pub headers: Option<&'a [u8]>,
    /// The form of the payload.
    pub kind: PayloadKind,
    /// The payload in that form.
    pub payload: &'a [u8],
}

/// What became of published messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// The first new sequence; 0 if all were duplicates.
    pub first: u64,
    /// The last new sequence; 0 if all were duplicates.
    pub last: u64,
    /// How many had been published before.
    pub duplicates: u64,
    /// The sequence of the last duplicate's first publication.
    pub duplicate_of: u64,
    /// Stored when this is committed.
    pub ticket: Ticket,
}

impl Stream {
    /// Appends messages, in order, to one commit or consecutive ones. They are stored when the ticket of the result is
    /// committed; call [`crate::Engine::flush`] after a group of calls.
    ///
    /// A full commit queue is no reason to refuse: whoever reads from a network asks [`crate::Engine::admit`] before it
    /// reads more.
    pub fn publish(&self, events: &[NewEvent<'_>]) -> Result<Published, EngineError> {
        let shared = self.shared()?;
        match shared.admit() {
            Ok(()) | Err(EngineError::Busy) => {}
            Err(error) => return Err(error),
        }
        self.publish_unchecked(&shared, events, false)
    }

    /// Publishes without asking for room; `again` also without asking whether the id was there before.
    pub(crate) fn publish_unchecked(
        &self,
        shared: &Arc<Shared>,
        events: &[NewEvent<'_>],
        again: bool,
    ) -> Result<Published, EngineError> {
        let now = shared.now();
        let mut published =
            Published { first: 0, last: 0, duplicates: 0, duplicate_of: 0, ticket: Ticket(0) };
        let mut guard = self.state();
        let state = &mut *guard;
        if self.log.wants_snapshot() {
            self.snapshot(state, now)?;
        }
        let ticket = self.log.append(now, &mut |append| {
            for event in events {
                let key = match (&state.dedup, event.id) {
                    (Some(_), Some(id)) => Some(Arc::<[u8]>::from(&*id_text(id))),
                    _ => None,
                };
                if let (Some(dedup), Some(key), false) = (&mut state.dedup, &key, again) {
                    dedup.expire(now);
                    if let Some(seq) = dedup.get(key, now) {
                        published.duplicates += 1;
                        published.duplicate_of = seq;
                        continue;
                    }
                }
                let seq = append.publish(&Publish {
                    priority: event.priority,
                    id: event.id,
                    subject: None,
                    headers: event.headers,
                    kind: event.kind,
                    payload: event.payload,
                });
                if let (Some(dedup), Some(key)) = (&mut state.dedup, key) {
                    dedup.insert(key, seq, now);
                }
                if published.first == 0 {
                    published.first = seq;
                }
                published.last = seq;
                match state.uncommitted.back_mut() {
                    Some(run) if run.1 + 1 == seq && run.2 == event.priority => run.1 = seq,
                    _ => state.uncommitted.push_back((seq, seq, event.priority)),
                }
            }
        })?;
        // Of duplicates alone: the log answers with the commit of what was appended last, the first ones included.
        published.ticket = ticket;
        let count = if published.first == 0 { 0 } else { published.last + 1 - published.first };
        shared.counters.published.fetch_add(count, Ordering::Relaxed);
        Ok(published)
    }

    /// Everything up to `seq` is committed: the mailboxes get it.
    fn committed(self: &Arc<Self>, seq: u64) {
        let mut effects = Effects::default();
        let Ok(shared) = self.shared() else { return };
        {
            let mut guard = self.state();
            let state = &mut *guard;
            let mut any = false;
            while let Some(run) = state.uncommitted.front_mut() {
                let (first, mut last, priority) = *run;
                if first > seq {
                    break;
                }
                if last > seq {
                    run.0 = seq + 1;
                    last = seq;
                } else {
                    state.uncommitted.pop_front();
                }
                state.offered = last;
                any = true;
                for member in state.members.values_mut() {
                    let priority = if member.sub.id == KICK { 0 } else { priority };
                    member.mailbox.offer(first, last, priority);
                }
            }
            if !any {
                return;
            }
            let ids: Vec<u64> = state.members.keys().copied().collect();
            for id in ids {
                self.wake(state, id, &mut effects);
            }
        }
        self.run(&shared, effects, None);
    }
}

pub(super) struct Observer(pub(super) Weak<Stream>);

impl CommitObserver for Observer {
    fn committed(&self, seq: u64, _: Ticket) {
        if let Some(stream) = self.0.upgrade() {
            stream.committed(seq);
        }
    }
}

//! The broker's log: appending to it, reading from it, and what is committed.

use super::message::{self, Message, Origin, Scratch};
use super::records::Pen;
use postroad_core::mailbox::Millis;
use postroad_engine::log::{Append, Event, Log, LogError, LogStore, Ticket};
use std::sync::Arc;

/// See the module.
pub(super) struct Book {
    pub(super) store: Arc<dyn LogStore>,
    log: Arc<dyn Log>,
    /// When all that was appended is committed.
    pub(super) appended: Ticket,
    pub(super) committed: Ticket,
    pen: Pen,
    scratch: Scratch,
    events: Vec<Event>,
    /// A snapshot of this ticket was written: when it is committed, messages before this one may go.
    pub(super) snapshot: Option<(Ticket, u64)>,
    failure: Option<LogError>,
}

impl Book {
    pub(super) fn new(store: Arc<dyn LogStore>, log: Arc<dyn Log>) -> Self {
        let committed = store.committed();
        Self {
            store,
            log,
            appended: Ticket(0),
            committed,
            pen: Pen::default(),
            scratch: Scratch::default(),
            events: Vec::new(),
            snapshot: None,
            failure: None,
        }
    }

    /// Why nothing is promised any more, if so.
    pub(super) fn failure(&self) -> Option<LogError> {
        self.failure.clone().or_else(|| self.store.failure())
    }

    pub(super) fn log(&self) -> &Arc<dyn Log> {
        &self.log
    }

    /// Asks the store; true if something new is committed.
    pub(super) fn refresh(&mut self) -> bool {
        let committed = self.store.committed();
        let newer = committed.0 > self.committed.0;
        self.committed = committed;
        newer
    }

    pub(super) fn is_committed(&self, ticket: Ticket) -> bool {
        ticket.0 <= self.committed.0
    }

    /// Appends records; says when they are committed.
    pub(super) fn append(&mut self, now: Millis, write: impl FnOnce(&mut Pen, &mut dyn Append)) -> Ticket {
        let mut write = Some(write);
        let pen = &mut self.pen;
        let appended = self.log.append(now, &mut |append| {
            if let Some(write) = write.take() {
                write(pen, append);
            }
        });
        self.note(appended)
    }

    /// Appends a message, after the records that `before` writes; says its number and when it is committed.
    pub(super) fn publish(
        &mut self,
        now: Millis,
        message: &Message,
        origin: &Origin,
        before: impl FnOnce(&mut Pen, &mut dyn Append),
    ) -> (u64, Ticket) {
        let mut before = Some(before);
        let (pen, scratch) = (&mut self.pen, &mut self.scratch);
        let mut seq = 0;
        let appended = self.log.append(now, &mut |append| {
            if let Some(before) = before.take() {
                before(pen, append);
            }
            seq = message::append(append, scratch, message, origin);
        });
        (seq, self.note(appended))
    }

    /// Begins a new segment with what `write` writes; messages before `oldest` are not needed when that is committed.
    pub(super) fn snapshot(
        &mut self,
        now: Millis,
        oldest: u64,
        write: impl FnOnce(&mut Pen, &mut dyn Append),
    ) {
        let mut write = Some(write);
        let mut pen = Pen::snapshot();
        let appended = self.log.snapshot(now, &mut |append| {
            if let Some(write) = write.take() {
                write(&mut pen, append);
            }
        });
        self.snapshot = Some((self.note(appended), oldest));
    }

    fn note(&mut self, appended: Result<Ticket, LogError>) -> Ticket {
        match appended {
            Ok(ticket) => {
                self.appended = self.appended.max(ticket);
                ticket
            }
            Err(error) => {
                // Nothing waits for this any more: what waits for it is never answered.
                self.failure.get_or_insert(error);
                Ticket(u64::MAX)
            }
        }
    }

    /// Calls `each` with the committed messages `seqs` that are there.
    pub(super) fn read(&mut self, seqs: &[u64], mut each: impl FnMut(u64, Message)) -> Result<(), LogError> {
        self.events.clear();
        self.log.read(seqs, &mut self.events)?;
        for event in self.events.drain(..) {
            if let Some((message, _)) = message::read(&event) {
                each(event.seq, message);
            }
        }
        Ok(())
    }
}

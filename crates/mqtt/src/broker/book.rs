//! The broker's log: appending to it, reading from it, and what is committed.

use super::message::{self, Message, Origin, Scratch};
use super::records::Pen;
use postroad_core::mailbox::Millis;
use postroad_engine::log::{Append, Event, Log, LogError, LogStore, Mark, Ticket};
use std::sync::Arc;

/// See the module.
pub(super) struct Book {
    pub(super) store: Arc<dyn LogStore>,
    log: Arc<dyn Log>,
    /// When all that was appended is as safe as was asked for.
    pub(super) appended: Mark,
    /// How far the store is.
    at: Mark,
    pen: Pen,
    scratch: Scratch,
    events: Vec<Event>,
    /// A snapshot of this ticket was written: when it is committed, messages before this one may go.
    pub(super) snapshot: Option<(Ticket, u64)>,
    failure: Option<LogError>,
}

impl Book {
    pub(super) fn new(store: Arc<dyn LogStore>, log: Arc<dyn Log>) -> Self {
        let at = store.mark();
        Self {
            store,
            log,
            appended: Mark::NOW,
            at,
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

    /// Asks the store; true if it got further.
    pub(super) fn refresh(&mut self) -> bool {
        let before = std::mem::replace(&mut self.at, self.store.mark());
        before != self.at
    }

    /// How far the store was when it was asked.
    pub(super) fn at(&self) -> Mark {
        self.at
    }

    pub(super) fn is_committed(&self, ticket: Ticket) -> bool {
        ticket <= self.at.committed
    }

    pub(super) fn is_reached(&self, mark: Mark) -> bool {
        self.left(mark) == Mark::NOW
    }

    /// What of `mark` is still to be waited for.
    pub(super) fn left(&self, mark: Mark) -> Mark {
        mark.beyond(self.at)
    }

    /// Appends records; says when they are committed.
    pub(super) fn append(&mut self, now: Millis, write: impl FnOnce(&mut Pen, &mut dyn Append)) -> Ticket {
        self.append_as(false, now, write).committed
    }

    /// Appends records; says when they are committed or, if that is enough, written.
    pub(super) fn append_as(
        &mut self,
        buffered: bool,
        now: Millis,
        write: impl FnOnce(&mut Pen, &mut dyn Append),
    ) -> Mark {
        let mut write = Some(write);
        let pen = &mut self.pen;
        let appended = append(&*self.log, buffered, now, &mut |append| {
            if let Some(write) = write.take() {
                write(pen, append);
            }
        });
        let ticket = self.note(appended, buffered);
        if buffered { Mark::written(ticket) } else { Mark::committed(ticket) }
    }

    /// Appends a message, after the records that `before` writes; says its number and when it is committed.
    pub(super) fn publish(
        &mut self,
        now: Millis,
        message: &Message,
        origin: &Origin,
        before: impl FnOnce(&mut Pen, &mut dyn Append),
    ) -> (u64, Ticket) {
        self.publish_as(false, now, message, origin, before)
    }

    /// The same; `buffered`: whoever waits for it may do so until it is written.
    pub(super) fn publish_as(
        &mut self,
        buffered: bool,
        now: Millis,
        message: &Message,
        origin: &Origin,
        before: impl FnOnce(&mut Pen, &mut dyn Append),
    ) -> (u64, Ticket) {
        let mut before = Some(before);
        let (pen, scratch) = (&mut self.pen, &mut self.scratch);
        let mut seq = 0;
        let appended = append(&*self.log, buffered, now, &mut |append| {
            if let Some(before) = before.take() {
                before(pen, append);
            }
            seq = message::append(append, scratch, message, origin);
        });
        (seq, self.note(appended, buffered))
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
        self.snapshot = Some((self.note(appended, false), oldest));
    }

    fn note(&mut self, appended: Result<Ticket, LogError>, buffered: bool) -> Ticket {
        match appended {
            Ok(ticket) => {
                self.appended.written = self.appended.written.max(ticket);
                if !buffered {
                    self.appended.committed = self.appended.committed.max(ticket);
                }
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

fn append(
    log: &dyn Log,
    buffered: bool,
    now: Millis,
    write: &mut dyn FnMut(&mut dyn Append),
) -> Result<Ticket, LogError> {
    if buffered { log.append_buffered(now, write) } else { log.append(now, write) }
}

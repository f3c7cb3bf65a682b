//! Snapshots, so that old segments of the log can go.
//!
//! A snapshot has sessions, subscriptions and what is in their queues, by number. Messages themselves are not in it:
//! the segments that have them are kept until nobody needs them.

use super::outgoing::Phase;
use super::{Broker, state::State};
use crate::codec::Qos;
use postroad_core::mailbox::Millis;

impl Broker {
    /// Before records: begins a new segment if the last one is full, or if there is none.
    pub(super) fn maybe_snapshot(&mut self, now: Millis) {
        if !self.book.log().wants_snapshot() {
            return;
        }
        self.log_over(now);
        let state = &self.state;
        // Not what is needed when the snapshot is committed: what became needless since may not be in the log yet.
        let oldest = oldest_needed(state).unwrap_or(u64::MAX);
        self.book.snapshot(now, oldest, |pen, log| {
            pen.begin(log, state.next_number());
            for (_, queue) in &state.queues {
                pen.queue(log, queue.number, &queue.name, &queue.filter);
                for (number, failures) in queue.failures() {
                    pen.queue_tried(log, queue.number, number, failures);
                }
                for (number, seq) in queue.open() {
                    pen.queue_given(log, queue.number, number, seq);
                }
                pen.queue_skip(log, queue.number, queue.next());
            }
            for (_, session) in &state.sessions {
                if !session.durable && !session.in_log {
                    continue;
                }
                let number = session.number;
                pen.here(log, session);
                if let Some(away) = session.away {
                    pen.away(log, session, away);
                }
                if !session.durable {
                    continue;
                }
                for (filter, options) in &session.subscriptions {
                    pen.subscribe(log, number, filter, *options);
                }
                let open = session.open_packets();
                if !open.is_empty() {
                    pen.open(log, number, &open);
                }
                if let Some(queue) = session.outgoing() {
                    for (at, entry) in queue.iter().filter(|(_, entry)| entry.logged) {
                        pen.given(log, number, at, entry.seq, entry.qos, entry.retain, &entry.ids);
                        if entry.phase == Phase::Released {
                            pen.received(log, number, at, at);
                        }
                    }
                }
                if session.reserved > 0 {
                    pen.reserved(log, number, session.reserved);
                }
                if session.logged_next > 1 {
                    pen.skip(log, number, session.logged_next);
                }
            }
            pen.end(log);
        });
    }

    /// Deletes segments that hold nothing that is needed, once a snapshot is committed.
    pub(super) fn trim(&mut self) {
        let Some((_, oldest)) = self.book.snapshot.filter(|(ticket, _)| self.book.is_committed(*ticket))
        else {
            return;
        };
        self.book.snapshot = None;
        if let Err(error) = self.book.log().trim(oldest) {
            tracing::warn!(%error, "old segments could not be deleted");
        }
    }
}

/// The oldest message that some session or topic needs.
fn oldest_needed(state: &State) -> Option<u64> {
    let queued = state.sessions.iter().filter_map(|(_, session)| {
        let queue = session.outgoing()?;
        queue
            .iter()
            .filter(|(_, entry)| entry.seq != 0 && (entry.logged || entry.qos == Qos::AtMostOnce))
            .map(|(_, e)| e.seq)
            .min()
    });
    let retained = state.retained.iter().map(|(_, kept)| kept.seq).filter(|seq| *seq != 0).min();
    let work = state.queues.iter().filter_map(|(_, queue)| queue.oldest()).min();
    queued.min().into_iter().chain(retained).chain(work).min()
}

//! Snapshots, so that old segments of the log can go.
//!
//! A snapshot has sessions, subscriptions and what is in their queues, by number. Messages themselves are not in it:
//! the segments that have them are kept until nobody needs them.

use super::message::Origin;
use super::outgoing::{Entry, Phase};
use super::session::Session;
use super::{Broker, state::State};
use crate::codec::Utf8;
use postroad_core::mailbox::Millis;
use std::collections::{BTreeSet, HashMap};

/// Segments that may be kept for messages in them.
const KEPT_SEGMENTS: usize = 4;
/// Messages written again at once.
const MOVED_AT_ONCE: usize = 20_000;

/// Messages that are written again, until their copies are committed.
#[derive(Debug, Default)]
pub(super) struct Moving {
    copies: HashMap<u64, u64>,
    // Topic, original, copy.
    retained: Vec<(Utf8, u64, u64)>,
}

impl Moving {
    /// Where a record that is written from now on finds a message: the snapshot under way lets the segment of the
    /// original go, and does not know of such a record.
    pub(super) fn place(&self, seq: u64) -> u64 {
        self.copies.get(&seq).copied().unwrap_or(seq)
    }
}

impl Broker {
    /// Before records: begins a new segment if the last one is full, or if there is none.
    pub(super) fn maybe_snapshot(&mut self, now: Millis) {
        if !self.book.log().wants_snapshot() {
            return;
        }
        self.log_over(now);
        self.move_forward(now);
        let state = &self.state;
        // Not what is needed when the snapshot is committed: what became needless since may not be in the log yet.
        let moving = &self.moving;
        let oldest = oldest_needed(state, moving).unwrap_or(u64::MAX);
        self.book.snapshot(now, oldest, |pen, log| {
            pen.begin(log, state.next_number(), state.graves.next());
            for (letter, grave) in state.graves.logged() {
                let mut grave = grave.clone();
                grave.seq = moving.place(grave.seq);
                pen.dead(log, letter, None, &grave);
            }
            let again: Vec<String> = state.again.iter().map(str::to_owned).collect();
            for ids in again.chunks(1000) {
                pen.again(log, ids.to_vec());
            }
            for (_, queue) in &state.queues {
                pen.queue(log, queue.number, &queue.name, &queue.filter);
                for (number, failures) in queue.failures() {
                    pen.queue_tried(log, queue.number, number, failures);
                }
                for (number, seq) in queue.open() {
                    pen.queue_given(log, queue.number, number, moving.place(seq));
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
                        let seq = if may_move(session) { moving.place(entry.seq) } else { entry.seq };
                        pen.given(log, number, at, seq, entry.qos, entry.retain, &entry.ids);
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

    /// A message that is needed keeps its segment, and all behind it. When there are many, the messages that keep the
    /// oldest ones are written again, so that one session that stays away does not fill the disk with the messages of
    /// others.
    fn move_forward(&mut self, now: Millis) {
        if !self.moving.copies.is_empty() {
            // The last ones are not committed yet.
            return;
        }
        let sealed = self.book.log().sealed();
        let Some(old) = sealed.len().checked_sub(KEPT_SEGMENTS + 1).and_then(|at| sealed.get(at)) else {
            return;
        };
        let limit = old.0;
        let mut needed: BTreeSet<u64> = BTreeSet::new();
        for (_, session) in self.state.sessions.iter().filter(|(_, session)| may_move(session)) {
            let queue = session.outgoing().into_iter().flat_map(super::outgoing::Outgoing::iter);
            let queued = queue.filter(|(_, entry)| needs_log(entry)).map(|(_, entry)| entry.seq);
            needed.extend(queued.filter(|seq| *seq <= limit));
        }
        needed.extend(
            self.state
                .queues
                .iter()
                .flat_map(|(_, queue)| queue.open())
                .map(|(_, seq)| seq)
                .filter(|s| *s <= limit),
        );
        needed.extend(
            self.state.retained.iter().map(|(_, kept)| kept.seq).filter(|seq| *seq != 0 && *seq <= limit),
        );
        needed.extend(self.state.graves.places().filter(|seq| *seq <= limit));
        let needed: Vec<u64> = needed.into_iter().take(MOVED_AT_ONCE).collect();
        for part in needed.chunks(256) {
            let mut found = Vec::new();
            if let Err(error) = self.book.read(part, |seq, message| found.push((seq, message))) {
                tracing::warn!(%error, "old messages could not be read, and their segments stay");
                return;
            }
            for (seq, mut message) in found {
                message.retain = self.state.retained.is_at(&message.topic, seq);
                let origin = Origin { copy_of: Some(seq), ..Origin::default() };
                let (copy, _) = self.book.publish(now, &message, &origin, |_, _| {});
                self.moving.copies.insert(seq, copy);
                if message.retain {
                    self.moving.retained.push((message.topic, seq, copy));
                }
            }
        }
    }

    /// The copies are committed, and can be read.
    fn moved(&mut self) {
        let moved = std::mem::take(&mut self.moving);
        if moved.copies.is_empty() {
            return;
        }
        for (topic, from, to) in moved.retained {
            self.state.retained.moved(&topic, from, to);
        }
        for (_, session) in self.state.sessions.iter_mut().filter(|(_, session)| may_move(session)) {
            if let Some(queue) = session.outgoing_mut() {
                queue.moved(&moved.copies);
            }
        }
        for (_, queue) in &mut self.state.queues {
            queue.moved(&moved.copies);
        }
        self.state.graves.moved(&moved.copies);
    }

    /// Deletes segments that hold nothing that is needed, once a snapshot is committed.
    pub(super) fn trim(&mut self) {
        let Some((_, oldest)) = self.book.snapshot.filter(|(ticket, _)| self.book.is_committed(*ticket))
        else {
            return;
        };
        self.book.snapshot = None;
        self.moved();
        if let Err(error) = self.book.log().trim(oldest) {
            tracing::warn!(%error, "old segments could not be deleted");
        }
    }
}

/// True if the log must keep the message. Once the client has it, only the handshake is left.
fn needs_log(entry: &Entry) -> bool {
    entry.seq != 0 && entry.phase != Phase::Released && (entry.logged || entry.message.is_none())
}

/// The oldest message that some session, topic or letter needs.
fn oldest_needed(state: &State, moving: &Moving) -> Option<u64> {
    let queued = state.sessions.iter().filter_map(|(_, session)| {
        let needed = session.outgoing()?.iter().filter(|(_, entry)| needs_log(entry));
        needed.map(|(_, entry)| if may_move(session) { moving.place(entry.seq) } else { entry.seq }).min()
    });
    let retained = state
        .retained
        .iter()
        .map(|(_, kept)| kept.seq)
        .filter(|seq| *seq != 0)
        .map(|seq| moving.place(seq))
        .min();
    let work =
        state.queues.iter().flat_map(|(_, queue)| queue.open()).map(|(_, seq)| moving.place(seq)).min();
    let dead = state.graves.places().map(|seq| moving.place(seq)).min();
    queued.min().into_iter().chain(retained).chain(work).chain(dead).min()
}

/// Other doors name the messages of their sessions by their numbers in the log.
fn may_move(session: &Session) -> bool {
    !session.client.starts_with(super::door::RESERVED)
}

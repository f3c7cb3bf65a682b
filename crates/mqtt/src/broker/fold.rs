//! The fold of the log: what its records and messages make of a [`State`].

use super::graves::{Grave, Sends};
use super::message::{self, Held, Message, Origin, Told};
use super::outgoing::Entry;
use super::records::Record;
use super::retained::Kept;
use super::session::{Session, Target};
use super::state::State;
use crate::codec::{Qos, Utf8};
use postroad_core::mailbox::Millis;
use postroad_core::retry::RetryPolicy;
use postroad_engine::log::RecordView;
use std::sync::Arc;

impl State {
    /// Applies a record of the log.
    pub(super) fn apply(&mut self, record: &Record<'_>, time: Millis) {
        match record {
            Record::Here { session, client, expiry, window, owner, will } => {
                let index = match self.session(*session) {
                    Some(index) => index,
                    None => {
                        let Ok(client) = Utf8::try_from(client.as_ref()) else { return };
                        self.next_number = self.next_number.max(session + 1);
                        self.insert(Session::new(client, *session, true, *expiry))
                    }
                };
                if let Some(session) = self.sessions.get_mut(index) {
                    session.expiry = *expiry;
                    session.window = *window;
                    session.away = None;
                    session.will.clone_from(will);
                    session.owner = owner.as_deref().map(Into::into);
                }
            }
            Record::Away { session, expiry, since, keep_will, sent } => {
                if let Some(session) = self.numbered(*session) {
                    session.sent = *sent;
                    session.expiry = *expiry;
                    session.away = Some(*since);
                    if !keep_will {
                        session.will = None;
                    }
                }
            }
            Record::Gone { session, burial } => {
                if let Some(index) = self.session(*session) {
                    if let Some(burial) = burial {
                        self.bury_session(index, burial, |seq| seq);
                    }
                    self.end(index);
                }
            }
            Record::Subscribe { session, filter, options } => {
                if let (Some(index), Ok(filter)) = (self.session(*session), Utf8::try_from(filter.as_ref())) {
                    self.subscribe(index, &filter, *options);
                }
            }
            Record::Unsubscribe { session, filter } => {
                if let Some(index) = self.session(*session) {
                    self.unsubscribe(index, filter);
                }
            }
            Record::Released { session, packets } => {
                if let Some(session) = self.numbered(*session) {
                    for packet in packets {
                        session.incoming.release(*packet);
                    }
                }
            }
            Record::Received { session, first, last } => {
                self.each(*session, *first, *last, |session, number| {
                    if let Some(queue) = session.outgoing_mut() {
                        queue.release(number);
                    }
                });
            }
            Record::Done { session, first, last } => self.each(*session, *first, *last, |session, number| {
                if let Some(queue) = session.outgoing_mut() {
                    queue.finish(number, time);
                }
            }),
            Record::Given { session, number, seq, qos, retain, ids, from } => {
                if let Some((from, at)) = from
                    && let Some(queue) = self.numbered(*from).and_then(Session::outgoing_mut)
                {
                    queue.finish(*at, time);
                }
                if let Some(session) = self.numbered(*session) {
                    session.queue().skip_to(*number);
                    let mut entry = Entry::new(*seq, None, *qos, *retain, ids.clone());
                    entry.logged = true;
                    session.queue().push(entry);
                    session.logged_next = number + 1;
                }
            }
            Record::Skip { session, next } => {
                if let Some(session) = self.numbered(*session) {
                    session.queue().skip_to(*next);
                    session.logged_next = session.logged_next.max(*next);
                }
            }
            Record::Open { session, packets } => {
                if let Some(session) = self.numbered(*session) {
                    for packet in packets {
                        session.incoming.begin(*packet, true);
                    }
                }
            }
            Record::Reserved { session, number } => {
                if let Some(session) = self.numbered(*session) {
                    session.reserved = session.reserved.max(*number);
                }
            }
            Record::Queue { queue, name, filter } => {
                self.next_number = self.next_number.max(queue + 1);
                if self.queue_mut(*queue).is_none() {
                    self.insert_queue(*queue, name, filter);
                }
            }
            Record::QueueGone { queue, burial } => {
                if let Some(burial) = burial {
                    self.bury_work_queue(*queue, burial, |seq| seq);
                }
                self.remove_queue(*queue);
            }
            Record::Dead { letter, source, grave } => {
                if let Some(source) = source {
                    self.settle_dead(*source, time);
                }
                self.graves.insert(*letter, grave.clone());
            }
            Record::Left { letter, death, seqs } => {
                for (letter, seq) in (*letter..).zip(seqs) {
                    let (death, sends) = (death.clone(), Sends::default());
                    self.graves
                        .insert(letter, Grave { seq: *seq, message: None, death, sends, announced: false });
                }
            }
            Record::Stored { first, last } => {
                let stored: Vec<u64> = self.graves.numbers(*first, *last).collect();
                for letter in stored {
                    self.graves.remove(letter);
                }
            }
            Record::Again { ids } => ids.iter().for_each(|id| self.again.insert(id)),
            Record::QueueDone { queue, first, last } => {
                if let Some(queue) = self.queue_mut(*queue) {
                    queue.restore_done(*first, *last);
                }
            }
            Record::QueueTried { queue, number, failures } => {
                if let Some(queue) = self.queue_mut(*queue) {
                    queue.restore_tried(*number, failures);
                }
            }
            Record::QueueGiven { queue, number, seq } => {
                if let Some(queue) = self.queue_mut(*queue) {
                    queue.skip_to(*number);
                    queue.push(*seq, None);
                }
            }
            Record::QueueSkip { queue, next } => {
                if let Some(queue) = self.queue_mut(*queue) {
                    queue.skip_to(*next);
                }
            }
            Record::Begin { next, letter } => {
                self.next_number = self.next_number.max(*next);
                self.graves.restore_next(*letter);
            }
            Record::End => {}
        }
    }

    fn numbered(&mut self, number: u64) -> Option<&mut Session> {
        let index = self.session(number)?;
        self.sessions.get_mut(index)
    }

    fn each(&mut self, session: u64, first: u64, last: u64, mut each: impl FnMut(&mut Session, u64)) {
        if let Some(session) = self.numbered(session) {
            // Beyond its queue there is nothing; a range is never larger than what is in it.
            for number in first..=last.min(session.next()) {
                each(session, number);
            }
        }
    }

    /// Applies a message of the log.
    pub(super) fn apply_message(
        &mut self,
        seq: u64,
        message: Message,
        origin: &Origin,
        targets: &mut Vec<Target>,
    ) {
        if origin.copy_of.is_some() {
            // Queues get its new number from the snapshot that follows. If it is the retained one, it says so.
            if message.retain {
                let kept = Kept { seq, qos: message.qos, expires: message.expires, message: None };
                self.retained.set(&message.topic, false, kept);
            }
            return;
        }
        match origin.letter {
            Some(Told::Announced(letter)) => {
                if let Some(grave) = self.graves.get_mut(letter) {
                    grave.announced = true;
                }
            }
            Some(Told::Stored(letter)) => drop(self.graves.remove(letter)),
            None => {}
        }
        if let Some(id) = &origin.again {
            self.again.insert(id);
        }
        if let Some((letter, client, reason)) = &origin.stillborn {
            if let Some(session) = origin.will_of.and_then(|number| self.numbered(number)) {
                session.will = None;
            }
            let client = Utf8::try_from(client.as_ref()).unwrap_or_default();
            self.inter(*letter, seq, client, reason.to_string().into(), message.time);
            return;
        }
        match (origin.held, origin.session.and_then(|number| self.numbered(number))) {
            (Some(Held::Kept), Some(session)) => return session.hold(seq),
            (Some(Held::Kept), None) => return,
            (Some(Held::Released(number)), Some(session)) => {
                if let Some(queue) = session.outgoing_mut() {
                    queue.finish(number, message.time);
                }
            }
            (Some(Held::Released(_)) | None, _) => {}
        }
        let publisher = origin.session.and_then(|number| self.session(number));
        if let (Some(index), Some(packet)) = (publisher, origin.packet)
            && let Some(session) = self.sessions.get_mut(index)
        {
            session.incoming.begin(packet, true);
        }
        if let Some(session) = origin.will_of.and_then(|number| self.numbered(number)) {
            session.will = None;
        }
        targets.clear();
        self.route(&message, publisher, Some(&origin.chosen), targets);
        if !origin.refused.is_empty() {
            self.apply_refusals(seq, message.time, &origin.refused, targets);
        }
        if message.retain {
            let kept = Kept { seq, qos: message.qos, expires: message.expires, message: None };
            self.retained.set(&message.topic, message.payload.is_empty(), kept);
        }
        self.enqueue_work(seq, None);
        if targets.iter().any(|target| target.qos != Qos::AtMostOnce) {
            self.enqueue(seq, &Arc::new(message), targets);
        }
    }
}

/// Reads the log into a [`State`].
#[derive(Debug, Default)]
pub(super) struct Fold {
    state: State,
    // A snapshot that has begun. It counts only when it is whole: the records before it are still there if it is not.
    snapshot: Option<State>,
    targets: Vec<Target>,
    /// The newest message.
    pub(super) last: u64,
    pub(super) last_time: Millis,
}

impl Fold {
    /// With the rules of work queues, which are not in the log.
    pub(super) fn new(queue_policy: RetryPolicy) -> Self {
        Self { state: State::new(queue_policy), ..Self::default() }
    }

    pub(super) fn apply(&mut self, view: &RecordView<'_>) -> Result<(), String> {
        self.last_time = self.last_time.max(view.time);
        if view.kind == "pub" {
            self.last = view.seq;
            let line = bytes::Bytes::copy_from_slice(view.line);
            let event = view.event(&line).ok_or("a message that cannot be read")?;
            let (message, origin) = message::read(&event).ok_or("a message that is not of this broker")?;
            self.state.apply_message(view.seq, message, &origin, &mut self.targets);
            return Ok(());
        }
        let Some((snapshot, record)) = super::records::read(view)? else { return Ok(()) };
        if !snapshot {
            self.state.apply(&record, view.time);
            return Ok(());
        }
        match record {
            Record::Begin { .. } => {
                let mut state = State::new(self.state.queue_policy.clone());
                state.apply(&record, view.time);
                self.snapshot = Some(state);
            }
            Record::End => {
                if let Some(mut state) = self.snapshot.take() {
                    // Retained messages are not in snapshots: their own records are kept.
                    state.retained = std::mem::take(&mut self.state.retained);
                    self.state = state;
                }
            }
            record => {
                if let Some(state) = &mut self.snapshot {
                    state.apply(&record, view.time);
                }
            }
        }
        Ok(())
    }

    /// What the log says. Sessions that were connected may have been sent anything: what they had acknowledged already
    /// may be missing in the log, so their window does not say how much.
    pub(super) fn finish(self) -> State {
        let mut state = self.state;
        for (_, queue) in &mut state.queues {
            queue.offer_all();
        }
        for (_, session) in &mut state.sessions {
            session.incoming.restored();
            if session.reserved >= session.next() {
                let next = session.reserved + 1;
                session.queue().skip_to(next);
            }
            if session.away.is_none() {
                session.sent = session.next().saturating_sub(1);
            }
            let sent = session.sent;
            if let Some(queue) = session.outgoing_mut() {
                queue.presume_sent(sent);
                queue.offer_all();
            }
        }
        state
    }
}

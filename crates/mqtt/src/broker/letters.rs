//! Dead letters: from the message that will not arrive to whoever stores its letter.
//!
//! That a message is settled as dead and that there is a letter is one record, so that no crash can come between them.
//! A letter is handed out when that record is committed, and again in the next life of the broker, until a record says
//! that it is stored elsewhere. Letters about what the log does not have (see [`super::Durability::Memory`], sessions that
//! end with their connection) are in memory only.

use super::graves::{Burial, Death, Grave, IN_MEMORY, Sends, queue_name};
use super::message::{Message, Origin, Told};
use super::{Broker, Timer, reason};
use crate::codec::{PublishProperties, Qos, Utf8};
use postroad_core::mailbox::{Failures, Millis};
use postroad_engine::log::Ticket;
use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Where dead letters are published.
pub(super) const DEAD: &str = "$dead/";
/// Letters that are announced, or handed out, at once, and about how many bytes.
const CHUNK: usize = 64;
const CHUNK_BYTES: usize = 1 << 20;
/// When the log that could not be read is read again, milliseconds.
const READ_AGAIN: u64 = 1000;

/// A message that did not arrive.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    /// Its number, for [`Broker::letters_stored`].
    pub number: u64,
    /// Where it was published; empty if the log has lost the message.
    pub topic: Utf8,
    /// Its number in the broker's log; 0 if it was in memory only.
    pub seq: u64,
    /// Its payload.
    pub payload: bytes::Bytes,
    /// Its properties (MQTT 5.0).
    pub properties: Option<Box<PublishProperties>>,
    /// The client that did not get it, or `$queue/NAME`; of a will the client that left it.
    pub client: Utf8,
    /// Names this letter: no other letter of this broker has it, in any of its lives, and this one keeps it.
    pub id: String,
    /// Why: one of [`reason`], or a text of another door.
    pub reason: Cow<'static, str>,
    /// How often it was sent. Of a session that is counted in one life of the broker: what may have been sent in an
    /// earlier one counts 1. Of a work queue it is counted over all lives.
    pub attempts: u32,
    /// When it was sent first and last, milliseconds since 1970; `None`: never, or not in this life.
    pub first: Option<Millis>,
    /// See `first`.
    pub last: Option<Millis>,
    /// When it was published, and when it died, milliseconds since 1970.
    pub published: Millis,
    /// See `published`.
    pub died: Millis,
}

impl DeadLetter {
    /// What its publisher says the payload is.
    pub fn content_type(&self) -> Option<&Utf8> {
        self.properties.as_ref().and_then(|properties| properties.content_type.as_ref())
    }
}

/// Letters on their way out.
#[derive(Debug, Default)]
pub(super) struct Letters {
    /// To be announced when that is committed, in the order of commits: first and last number.
    due: VecDeque<(Ticket, u64, u64)>,
    /// To be handed out.
    ready: VecDeque<u64>,
    /// The same about sessions of another door, if it takes them.
    ready_inner: VecDeque<u64>,
    door_takes: bool,
    /// Stored elsewhere, not yet in the log.
    stored: Vec<u64>,
    /// The log could not be read: not before then.
    not_before: Millis,
}

impl Letters {
    /// The next ones wait for this commit, which may come without anybody asking for it.
    pub(super) fn waits_for(&self) -> Option<Ticket> {
        self.due.front().map(|(ticket, ..)| *ticket)
    }

    fn queue_for(&mut self, grave: Option<&Grave>) -> &mut VecDeque<u64> {
        let inner = |grave: &Grave| grave.death.client.starts_with(super::door::RESERVED);
        if self.door_takes && grave.is_some_and(inner) { &mut self.ready_inner } else { &mut self.ready }
    }
}

/// A queue that had no room for a message.
#[derive(Debug)]
pub(super) struct Refusal {
    /// The session or the work queue, and its name.
    pub(super) number: u64,
    pub(super) client: Utf8,
    /// The record of the message says so.
    pub(super) logged: bool,
    pub(super) letter: u64,
}

impl Broker {
    /// Opening: letters that nobody has stored.
    pub(super) fn restore_letters(&mut self) {
        let last = self.state.graves.next().saturating_sub(1);
        self.letters.due.push_back((Ticket(0), 0, last));
    }

    /// The letters that are committed and were not handed out in this life, some at a time: ask until there are none.
    /// Say with [`Broker::letters_stored`] which are kept elsewhere; the others come again after a restart.
    pub fn dead_letters(&mut self, now: Millis) -> Vec<DeadLetter> {
        self.hand_out(|letters| &mut letters.ready, now)
    }

    /// From now on another door takes the letters about its own sessions, with [`Broker::door_letters`].
    pub(crate) fn door_takes_letters(&mut self) {
        self.letters.door_takes = true;
        for letter in std::mem::take(&mut self.letters.ready) {
            self.letters.queue_for(self.state.graves.get(letter)).push_back(letter);
        }
    }

    pub(crate) fn door_letters(&mut self, now: Millis) -> Vec<DeadLetter> {
        self.hand_out(|letters| &mut letters.ready_inner, now)
    }

    /// There may be more, which others should not wait for.
    pub(crate) fn door_letters_later(&mut self, now: Millis) {
        if !self.letters.ready_inner.is_empty() {
            self.timers.insert((now + 1, Timer::Letters));
        }
    }

    fn hand_out(
        &mut self,
        queue: impl Fn(&mut Letters) -> &mut VecDeque<u64>,
        now: Millis,
    ) -> Vec<DeadLetter> {
        self.advance_letters(now);
        if self.letters.not_before > now {
            return Vec::new();
        }
        let ready = queue(&mut self.letters);
        let numbers: Vec<u64> = ready.drain(..ready.len().min(CHUNK)).collect();
        if numbers.is_empty() {
            return Vec::new();
        }
        let Some(mut found) = self.read_letters(&numbers, now) else {
            numbers.iter().rev().for_each(|letter| queue(&mut self.letters).push_front(*letter));
            return Vec::new();
        };
        let mut bytes = 0;
        let kept = found.iter().take_while(|letter| {
            let before = bytes;
            bytes += letter.payload.len();
            before < CHUNK_BYTES
        });
        let kept = kept.count();
        for letter in found.drain(kept..).rev() {
            queue(&mut self.letters).push_front(letter.number);
        }
        found
    }

    /// True if [`Broker::dead_letters`] has something.
    pub fn has_letters(&self) -> bool {
        !self.letters.ready.is_empty()
    }

    /// These letters are kept elsewhere, durably: the broker forgets them.
    pub fn letters_stored(&mut self, numbers: &[u64], now: Millis) {
        for letter in numbers {
            if self.state.graves.remove(*letter).is_some() && *letter < IN_MEMORY {
                self.letters.stored.push(*letter);
            }
        }
        if !self.letters.stored.is_empty() {
            self.make_due(now);
        }
    }

    /// Letters that nobody has stored yet.
    pub fn letters_kept(&self) -> usize {
        self.state.graves.len()
    }

    /// Writes which letters are stored. Nobody waits for it: at worst they are handed out once more.
    pub(super) fn log_stored(&mut self, now: Millis) {
        if self.letters.stored.is_empty() {
            return;
        }
        let mut stored = std::mem::take(&mut self.letters.stored);
        stored.sort_unstable();
        self.book.append(now, |pen, log| {
            let mut rest = &stored[..];
            while let Some(first) = rest.first() {
                let run = rest.iter().zip(*first..).take_while(|(letter, at)| *letter == at).count();
                pen.stored(log, *first, *first + run as u64 - 1);
                rest = &rest[run..];
            }
        });
        stored.clear();
        self.letters.stored = stored;
    }

    /// Announces letters that are committed, and makes them ready to be handed out. Without somebody who stores them the
    /// oldest go.
    pub(super) fn advance_letters(&mut self, now: Millis) {
        if self.letters.not_before > now {
            return;
        }
        let mut left = CHUNK;
        while let Some((ticket, first, last)) = self.letters.due.front().copied()
            && self.book.is_committed(ticket)
        {
            if left == 0 {
                // Others first.
                self.timers.insert((now + 1, Timer::Letters));
                break;
            }
            let numbers: Vec<u64> = self.state.graves.numbers(first, last).take(left).collect();
            if self.state.has_dead_readers() && !self.announce(&numbers, now) {
                return;
            }
            left -= numbers.len();
            match numbers.last() {
                Some(at) if left == 0 && *at < last => {
                    if let Some(due) = self.letters.due.front_mut() {
                        due.1 = *at + 1;
                    }
                }
                _ => drop(self.letters.due.pop_front()),
            }
            for letter in numbers {
                self.letters.queue_for(self.state.graves.get(letter)).push_back(letter);
            }
        }
        self.forget_letters(now);
    }

    /// Tells subscribers of `$dead/…` what did not arrive; false: the log cannot be read now.
    fn announce(&mut self, numbers: &[u64], now: Millis) -> bool {
        let graves = &self.state.graves;
        let untold = numbers.iter().copied().filter(|n| graves.get(*n).is_some_and(|grave| !grave.announced));
        let untold: Vec<u64> = untold.collect();
        let Some(letters) = self.read_letters(&untold, now) else { return false };
        for letter in letters {
            if let Some(grave) = self.state.graves.get_mut(letter.number) {
                grave.announced = true;
            }
            let Some(message) = announcement(&letter, now) else { continue };
            if !self.state.is_wanted(&message.topic) {
                continue;
            }
            let told = (letter.number < IN_MEMORY).then_some(Told::Announced(letter.number));
            self.distribute(message, None, Origin { letter: told, ..Origin::default() }, now);
        }
        true
    }

    /// Without anybody who stores letters there is an end to them.
    fn forget_letters(&mut self, now: Millis) {
        let extra = self.state.graves.len().saturating_sub(self.config.max_letters);
        // Not those that are still to be committed, or announced.
        let extra = extra.min(self.letters.ready.len());
        if extra == 0 {
            return;
        }
        let oldest: Vec<u64> = self.letters.ready.drain(..extra).collect();
        tracing::warn!(letters = extra, "dead letters that nobody stores are forgotten");
        self.counters.forgotten_letters += extra as u64;
        self.letters_stored(&oldest, now);
    }

    /// `None`: the log cannot be read now. Letters about dead letters are no letters: they go.
    fn read_letters(&mut self, numbers: &[u64], now: Millis) -> Option<Vec<DeadLetter>> {
        let graves: Vec<(u64, Grave)> =
            numbers.iter().filter_map(|n| Some((*n, self.state.graves.get(*n)?.clone()))).collect();
        let mut seqs: Vec<u64> =
            graves.iter().filter(|(_, g)| g.message.is_none() && g.seq != 0).map(|(_, g)| g.seq).collect();
        seqs.sort_unstable();
        seqs.dedup();
        let mut found: HashMap<u64, Arc<Message>> = HashMap::new();
        let read = self.book.read(&seqs, |seq, message| drop(found.insert(seq, Arc::new(message))));
        if let Err(error) = read {
            tracing::error!(%error, "dead letters could not be read from the log; later again");
            self.letters.not_before = now + READ_AGAIN;
            self.timers.insert((now + READ_AGAIN, Timer::Letters));
            return None;
        }
        let mut letters = Vec::with_capacity(graves.len());
        let mut about_letters = Vec::new();
        for (number, grave) in graves {
            let message = grave.message.clone().or_else(|| found.get(&grave.seq).cloned());
            // A dead letter that does not arrive is not another one: it is where it was.
            if message.as_ref().is_some_and(|message| message.topic.starts_with(DEAD)) {
                about_letters.push(number);
            } else {
                letters.push(letter(number, &grave, message.as_deref()));
            }
        }
        self.letters_stored(&about_letters, now);
        Some(letters)
    }

    /// A letter that the log has.
    fn note_letter(&mut self, ticket: Ticket, first: u64, last: u64, now: Millis) {
        self.letters.due.push_back((ticket, first, last));
        self.make_due(now);
    }

    /// A letter that only memory has.
    fn bury_in_memory(&mut self, grave: Grave, now: Millis) {
        let letter = self.state.graves.insert_in_memory(grave, now);
        // In their turn.
        self.letters.due.push_back((Ticket(0), letter, letter));
        self.timers.insert((now, Timer::Letters));
    }

    /// A message of a session will not arrive; true if the record of its letter settles it, too.
    pub(super) fn bury(&mut self, index: usize, number: u64, reason: &'static str, now: Millis) -> bool {
        let Some(session) = self.state.sessions.get(index) else { return false };
        let Some(entry) = session.outgoing().and_then(|queue| queue.get(number)) else { return false };
        let topic = entry.message.as_ref().map(|message| &message.topic);
        if entry.qos == Qos::AtMostOnce || topic.is_some_and(|topic| topic.starts_with(DEAD)) {
            return false;
        }
        self.counters.dead += 1;
        let death = Arc::new(Death { client: session.client.clone(), reason: reason.into(), died: now });
        let mut sends = entry.sends;
        sends.count = sends.count.max(u32::from(entry.phase != super::outgoing::Phase::Queued));
        let mut grave = Grave {
            seq: self.moving.place(entry.seq),
            message: entry.message.clone(),
            death,
            sends,
            announced: false,
        };
        if !entry.logged {
            grave.seq = if grave.message.is_some() { 0 } else { grave.seq };
            self.bury_in_memory(grave, now);
            return false;
        }
        if self.config.planted.letter_after_settle {
            grave.message = None;
            self.bury_in_memory(grave, now);
            return false;
        }
        // It is read again when somebody wants it.
        grave.message = None;
        let source = (session.number, number);
        let letter = self.state.graves.take_numbers(1, now);
        let ticket = self.book.append(now, |pen, log| pen.dead(log, letter, Some(source), &grave));
        self.state.graves.insert(letter, grave);
        self.note_letter(ticket, letter, letter, now);
        true
    }

    /// A session ends with messages in its queue: says what its last record says of them.
    pub(super) fn bury_session(&mut self, index: usize, reason: &'static str, now: Millis) -> Option<Burial> {
        let session = self.state.sessions.get(index).filter(|session| session.durable)?;
        let death = Arc::new(Death { client: session.client.clone(), reason: reason.into(), died: now });
        let in_memory: Vec<Grave> = session
            .outgoing()
            .into_iter()
            .flat_map(super::outgoing::Outgoing::iter)
            .filter(|(_, entry)| !entry.logged && entry.from.is_none() && entry.qos != Qos::AtMostOnce)
            .filter(|(_, entry)| entry.phase != super::outgoing::Phase::Released)
            .filter_map(|(_, entry)| {
                let message = entry.message.clone()?;
                let (death, sends) = (death.clone(), entry.sends);
                Some(Grave { seq: 0, message: Some(message), death, sends, announced: false })
            })
            .filter(|grave| grave.message.as_ref().is_none_or(|message| !message.topic.starts_with(DEAD)))
            .collect();
        self.counters.dead += in_memory.len() as u64;
        for grave in in_memory {
            self.bury_in_memory(grave, now);
        }
        let (at, count) = self.state.burial_of_session(index)?;
        let first = self.state.graves.take_numbers(count, now);
        let burial = Burial { first, at, death };
        let moving = &self.moving;
        self.counters.dead += self.state.bury_session(index, &burial, |seq| moving.place(seq));
        Some(burial)
    }

    /// The record with a burial was appended.
    pub(super) fn buried(&mut self, ticket: Ticket, burial: &Burial, now: Millis) {
        let last = self.state.graves.next() - 1;
        self.note_letter(ticket, burial.first, last, now);
    }

    /// A work queue is to go: says what the record of that says of the messages in it.
    pub(super) fn bury_work_queue(&mut self, number: u64, now: Millis) -> Option<Burial> {
        let queue = self.state.queue_mut(number)?;
        let client = queue_name(&queue.name);
        let death = Arc::new(Death { client, reason: reason::QUEUE_REMOVED.into(), died: now });
        let in_memory: Vec<Arc<Message>> = queue.in_memory().collect();
        let open = queue.open().next().map(|(at, _)| (at, queue.next() - at));
        self.counters.dead += in_memory.len() as u64;
        for message in in_memory {
            let (death, sends) = (death.clone(), Sends::default());
            self.bury_in_memory(
                Grave { seq: 0, message: Some(message), death, sends, announced: false },
                now,
            );
        }
        let (at, count) = open?;
        let first = self.state.graves.take_numbers(count, now);
        let burial = Burial { first, at, death };
        let moving = &self.moving;
        self.counters.dead += self.state.bury_work_queue(number, &burial, |seq| moving.place(seq));
        Some(burial)
    }

    /// A message of a work queue is given up: writes the record that settles it and has its letter.
    pub(super) fn bury_work(
        &mut self,
        number: u64,
        at: u64,
        seq: u64,
        message: Option<Arc<Message>>,
        failures: &Failures,
        now: Millis,
    ) {
        self.counters.dead += 1;
        let known = [reason::EXPIRED, reason::MISSING];
        let known = known.into_iter().find(|known| failures.reason.as_deref() == Some(known));
        let reason =
            known.unwrap_or(if failures.attempts > 1 { reason::EXHAUSTED } else { reason::CONSUMER_REFUSED });
        let client = self.state.name_of(number).unwrap_or_default();
        let death = Arc::new(Death { client, reason: reason.into(), died: now });
        let sends = Sends { count: failures.attempts, first: failures.first, last: failures.last };
        let mut grave = Grave { seq: self.moving.place(seq), message, death, sends, announced: false };
        if seq == 0 {
            return self.bury_in_memory(grave, now);
        }
        grave.message = None;
        let letter = self.state.graves.take_numbers(1, now);
        let ticket = self.book.append(now, |pen, log| pen.dead(log, letter, Some((number, at)), &grave));
        self.state.graves.insert(letter, grave);
        self.note_letter(ticket, letter, letter, now);
    }

    /// The letters of a message that queues had no room for, once it is in the log under `seq`, if it is.
    pub(super) fn bury_refused(
        &mut self,
        refused: &[Refusal],
        seq: u64,
        ticket: Ticket,
        message: &Arc<Message>,
        now: Millis,
    ) {
        for refusal in refused {
            let death =
                Arc::new(Death { client: refusal.client.clone(), reason: reason::FULL.into(), died: now });
            let mut grave = Grave { seq, message: None, death, sends: Sends::default(), announced: false };
            if refusal.logged && seq != 0 {
                if refusal.letter != 0 {
                    self.counters.dead += 1;
                    self.state.graves.insert(refusal.letter, grave);
                    self.note_letter(ticket, refusal.letter, refusal.letter, now);
                }
            } else if !message.topic.starts_with(DEAD) {
                self.counters.dead += 1;
                (grave.seq, grave.message) = (0, Some(message.clone()));
                self.bury_in_memory(grave, now);
            }
        }
    }

    /// Retained messages that a queue had no room for.
    pub(super) fn bury_left_out(
        &mut self,
        client: &Utf8,
        left: Vec<(u64, Option<Arc<Message>>)>,
        now: Millis,
    ) {
        let death = Arc::new(Death { client: client.clone(), reason: reason::FULL.into(), died: now });
        self.counters.dead += left.len() as u64;
        let (logged, in_memory): (Vec<_>, Vec<_>) = left.into_iter().partition(|(seq, _)| *seq != 0);
        for (_, message) in in_memory {
            let (death, sends) = (death.clone(), Sends::default());
            self.bury_in_memory(Grave { seq: 0, message, death, sends, announced: false }, now);
        }
        for part in logged.chunks(1000) {
            let first = self.state.graves.take_numbers(part.len() as u64, now);
            let seqs: Vec<u64> = part.iter().map(|(seq, _)| self.moving.place(*seq)).collect();
            let ticket = self.book.append(now, |pen, log| pen.left(log, first, &death, &seqs));
            for (letter, seq) in (first..).zip(&seqs) {
                let (death, sends) = (death.clone(), Sends::default());
                let grave = Grave { seq: *seq, message: None, death, sends, announced: false };
                self.state.graves.insert(letter, grave);
            }
            self.note_letter(ticket, first, first + part.len() as u64 - 1, now);
        }
    }

    /// A will that may not be published: its record has its letter, and goes to nobody.
    pub(super) fn bury_will(&mut self, message: Message, client: &Utf8, will_of: Option<u64>, now: Millis) {
        let dead = message.qos != Qos::AtMostOnce && !message.topic.starts_with(DEAD);
        if !dead {
            return;
        }
        self.counters.dead += 1;
        let death = Arc::new(Death { client: client.clone(), reason: reason::WILL.into(), died: now });
        let mut grave = Grave { seq: 0, message: None, death, sends: Sends::default(), announced: false };
        if self.volatile || will_of.is_none() {
            grave.message = Some(Arc::new(message));
            return self.bury_in_memory(grave, now);
        }
        let letter = self.state.graves.take_numbers(1, now);
        let stillborn = Some((letter, client.as_str().into(), reason::WILL.into()));
        let origin = Origin { will_of, stillborn, ..Origin::default() };
        let (seq, ticket) = self.book.publish(now, &message, &origin, |_, _| {});
        grave.seq = seq;
        self.state.graves.insert(letter, grave);
        self.note_letter(ticket, letter, letter, now);
    }
}

fn letter(number: u64, grave: &Grave, message: Option<&Message>) -> DeadLetter {
    let Grave { seq, death, sends, .. } = grave;
    let reason = if message.is_some() { death.reason.clone() } else { Cow::Borrowed(reason::MISSING) };
    DeadLetter {
        number,
        topic: message.map(|message| message.topic.clone()).unwrap_or_default(),
        seq: *seq,
        payload: message.map(|message| message.payload.clone()).unwrap_or_default(),
        properties: message.and_then(|message| message.properties.clone()),
        client: death.client.clone(),
        id: if number < IN_MEMORY {
            format!("mqtt-{number}")
        } else {
            format!("mqtt-m{}", number - IN_MEMORY)
        },
        reason,
        attempts: sends.count,
        first: (sends.first != 0).then_some(sends.first),
        last: (sends.last != 0).then_some(sends.last),
        published: message.map_or(death.died, |message| message.time),
        died: death.died,
    }
}

/// What subscribers of `$dead/…` get.
fn announcement(letter: &DeadLetter, now: Millis) -> Option<Message> {
    let text = |name: &'static str, value: String| {
        Utf8::try_from(value).ok().map(|value| (Utf8::from_static(name), value))
    };
    let said = [
        text("postroad-dead-reason", letter.reason.to_string()),
        text("postroad-dead-subject", letter.topic.to_string()),
        text("postroad-dead-client", letter.client.to_string()),
        text("postroad-dead-attempts", letter.attempts.to_string()),
        text("postroad-dead-first", letter.first.unwrap_or(letter.published).to_string()),
        text("postroad-dead-last", letter.died.to_string()),
        text("postroad-dead-id", letter.id.clone()),
    ];
    let properties = PublishProperties {
        content_type: letter.content_type().cloned(),
        user_properties: said.into_iter().flatten().collect(),
        ..PublishProperties::default()
    };
    Some(Message {
        topic: Utf8::try_from(format!("{DEAD}{}", letter.topic)).ok()?,
        payload: letter.payload.clone(),
        qos: Qos::AtLeastOnce,
        retain: false,
        time: now,
        expires: None,
        properties: Some(Box::new(properties)),
    })
}

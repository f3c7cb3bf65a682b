//! Dead letters on their way from the broker to whoever stores them.

use crate::broker::{Broker, DeadLetter};
use crate::lines::Doors;
use postroad_core::mailbox::Millis;
use postroad_engine::log::Ticket;
use std::collections::VecDeque;

/// Stores a dead letter; called on the thread of the broker. Says at which commit of the server's own store that is done
/// (`Ticket(0)`: it is done), or `None`: it could not be, and is to be tried again in a second.
///
/// What is not committed when the process ends comes again in its next life, with the same [`DeadLetter::id`].
pub type OnDead = Box<dyn FnMut(&DeadLetter) -> Option<Ticket> + Send>;

/// Letters that wait for the commit of what stores them.
const MAX_WAITING: usize = 1024;
/// How long after a letter could not be stored, milliseconds.
const RETRY: u64 = 1000;

/// What letters come from.
pub(crate) trait Letterbox {
    fn letters(&mut self, now: Millis) -> Vec<DeadLetter>;
    fn has_letters(&self) -> bool;
    fn stored(&mut self, numbers: &[u64], now: Millis);
    fn committed(&self, ticket: Ticket) -> bool;
}

/// Hands letters to whoever stores them.
#[derive(Default)]
pub(crate) struct Undertaker {
    on_dead: Option<OnDead>,
    waiting: VecDeque<(Ticket, u64)>,
    /// Read, and not stored yet.
    left: VecDeque<DeadLetter>,
    due: Option<Millis>,
}

impl Undertaker {
    pub(crate) fn new(on_dead: Option<OnDead>) -> Self {
        Self { on_dead, ..Self::default() }
    }

    /// After commits, and when its time has come.
    pub(crate) fn turn(&mut self, from: &mut impl Letterbox, now: Millis) {
        let Some(on_dead) = &mut self.on_dead else { return };
        let mut stored = Vec::new();
        while let Some((ticket, letter)) = self.waiting.front().copied()
            && from.committed(ticket)
        {
            stored.push(letter);
            self.waiting.pop_front();
        }
        if !stored.is_empty() {
            from.stored(&stored, now);
        }
        if self.due.is_some_and(|due| due > now) || self.waiting.len() >= MAX_WAITING {
            return;
        }
        self.due = None;
        if self.left.is_empty() {
            self.left.extend(from.letters(now));
        }
        while let Some(letter) = self.left.pop_front() {
            match on_dead(&letter) {
                Some(ticket) => self.waiting.push_back((ticket, letter.number)),
                None => {
                    self.left.push_front(letter);
                    self.due = Some(now + RETRY);
                    return;
                }
            }
        }
        if from.has_letters() {
            // Others first.
            self.due = Some(now + 1);
        }
    }

    /// The commit that it waits for.
    pub(crate) fn pending(&self, from: &impl Letterbox) -> Option<Ticket> {
        self.waiting.back().map(|(ticket, _)| *ticket).filter(|ticket| !from.committed(*ticket))
    }

    /// When it wants a turn.
    pub(crate) fn deadline(&self) -> Option<Millis> {
        self.due
    }
}

impl Letterbox for Broker {
    fn letters(&mut self, now: Millis) -> Vec<DeadLetter> {
        self.dead_letters(now)
    }
    fn has_letters(&self) -> bool {
        self.has_letters()
    }
    fn stored(&mut self, numbers: &[u64], now: Millis) {
        self.letters_stored(numbers, now);
    }
    fn committed(&self, ticket: Ticket) -> bool {
        self.is_committed(ticket)
    }
}

impl Letterbox for Doors {
    fn letters(&mut self, now: Millis) -> Vec<DeadLetter> {
        self.dead_letters(now)
    }
    fn has_letters(&self) -> bool {
        self.has_letters()
    }
    fn stored(&mut self, numbers: &[u64], now: Millis) {
        self.letters_stored(numbers, now);
    }
    fn committed(&self, ticket: Ticket) -> bool {
        self.broker().is_committed(ticket)
    }
}

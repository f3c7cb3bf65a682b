//! Who has sent what, and who has got it: so that no loss and no duplicate goes unseen.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

/// Shared by all drivers of one load; they are on one thread.
pub(super) type Shared = Rc<RefCell<Books>>;

/// What publishers and subscribers know of each other.
pub(super) struct Books {
    /// Subscribers that get each message.
    pub(super) copies: u64,
    /// Messages sent, for each publisher.
    pub(super) sent: Vec<u64>,
    /// Their deliveries whose handshakes are over.
    pub(super) done: Vec<u64>,
    /// `None`: as fast as the window allows.
    pub(super) pace: Option<Pace>,
}

impl Books {
    pub(super) fn new(publishers: usize, copies: u64) -> Shared {
        Rc::new(RefCell::new(Self {
            copies,
            sent: vec![0; publishers],
            done: vec![0; publishers],
            pace: None,
        }))
    }

    /// A publisher's messages that somebody does not have yet.
    pub(super) fn owed(&self, publisher: usize) -> u64 {
        (self.sent[publisher] * self.copies).saturating_sub(self.done[publisher]).div_ceil(self.copies)
    }

    /// Deliveries of all messages.
    pub(super) fn expected(&self) -> u64 {
        self.sent.iter().sum::<u64>() * self.copies
    }

    /// From now on every publisher sends at its share of `rate` messages a second.
    pub(super) fn set_pace(&mut self, now: u64, rate: f64) {
        let interval = 1e9 / rate.max(0.001);
        let before = self.sent.clone();
        self.pace = Some(Pace { start: now, interval, before });
    }
}

/// Messages leave when they are due, and their latency counts from then, whether they could leave or not.
pub(super) struct Pace {
    start: u64,
    /// Nanoseconds between two messages of any publishers.
    interval: f64,
    /// What each publisher had sent before.
    before: Vec<u64>,
}

impl Pace {
    /// When the next message of `publisher` is due; publishers take turns.
    pub(super) fn due(&self, publisher: usize, sent: u64) -> u64 {
        let turn = (sent - self.before[publisher]) * self.before.len() as u64 + publisher as u64;
        self.start + (turn as f64 * self.interval) as u64
    }
}

/// How a delivery stands to those before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Arrival {
    First,
    Again,
}

/// The messages of one publisher that came to one subscriber.
#[derive(Default)]
pub(super) struct Seen {
    /// Past the highest number seen.
    next: u64,
    /// Numbers below it that did not come.
    missing: BTreeSet<u64>,
}

impl Seen {
    pub(super) fn note(&mut self, number: u64) -> Arrival {
        if number >= self.next {
            self.missing.extend(self.next..number);
            self.next = number + 1;
            Arrival::First
        } else if self.missing.remove(&number) {
            Arrival::First
        } else {
            Arrival::Again
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Arrival, Books, Seen};

    #[test]
    fn what_comes_late_is_not_a_duplicate_and_what_comes_again_is() {
        let mut seen = Seen::default();
        let all = [0, 1, 4, 2, 4, 3, 2, 0, 5].map(|number| seen.note(number));
        let again: Vec<usize> = (0..all.len()).filter(|at| all[*at] == Arrival::Again).collect();
        assert_eq!(again, [4, 6, 7]);
    }

    #[test]
    fn publishers_take_turns_at_their_pace() {
        let books = Books::new(2, 3);
        let mut books = books.borrow_mut();
        books.sent = vec![10, 20];
        books.set_pace(1_000, 1e6);
        let pace = books.pace.take().unwrap();
        let due = [(0, 10), (1, 20), (0, 11), (1, 21)].map(|(publisher, sent)| pace.due(publisher, sent));
        assert_eq!(due, [1_000, 2_000, 3_000, 4_000]);
        books.done[1] = 4;
        assert_eq!((books.owed(1), books.expected()), (19, 90));
    }
}

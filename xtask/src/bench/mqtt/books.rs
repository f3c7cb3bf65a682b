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
    /// Their deliveries of which nothing more is to come: their handshakes are over, or they are lost.
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

    /// The same of all publishers.
    pub(super) fn owed_by_all(&self) -> u64 {
        (0..self.sent.len()).map(|publisher| self.owed(publisher)).sum()
    }

    /// What has not come will not.
    pub(super) fn write_off(&mut self) {
        self.done = self.sent.iter().map(|sent| sent * self.copies).collect();
    }

    /// When the message was due that `publisher` could not send, the oldest first, `now` being the time.
    pub(super) fn overdue(&self, publisher: usize, now: u64) -> impl Iterator<Item = u64> {
        let (pace, sent) = (self.pace.as_ref(), self.sent[publisher]);
        let due = move |number| pace.map_or(u64::MAX, |pace| pace.due(publisher, number));
        (sent..).map(due).take_while(move |due| *due <= now)
    }

    /// Deliveries of all messages.
    pub(super) fn expected(&self) -> u64 {
        self.sent.iter().sum::<u64>() * self.copies
    }

    /// From now on every publisher sends at its share of `rate` messages a second, until `end`.
    pub(super) fn set_pace(&mut self, now: u64, rate: f64, end: u64) {
        let interval = 1e9 / rate.max(0.001);
        let before = self.sent.clone();
        let together = (WAKE / (interval * before.len() as f64)).max(1.0) as u64;
        self.pace = Some(Pace { start: now, end, interval, together, before });
    }
}

/// How often a publisher sends at most when it is paced, in nanoseconds: what it has for that time goes together, as with
/// the timers of real ones. Each message by itself would ask more of the loader than of the broker.
const WAKE: f64 = 5e5;

/// Messages leave when they are due, and their latency counts from then, whether they could leave or not.
pub(super) struct Pace {
    start: u64,
    end: u64,
    /// Nanoseconds between two messages of any publishers.
    interval: f64,
    /// Messages of a publisher that are due together.
    together: u64,
    /// What each publisher had sent before.
    before: Vec<u64>,
}

impl Pace {
    /// When a message of `publisher` is due, `sent` being its number; publishers take turns. Never, if that is not
    /// before the end.
    pub(super) fn due(&self, publisher: usize, sent: u64) -> u64 {
        let group = (sent - self.before[publisher]) / self.together;
        let turn = (group * self.before.len() as u64 + publisher as u64) * self.together;
        let due = self.start + (turn as f64 * self.interval) as u64;
        if due < self.end { due } else { u64::MAX }
    }
}

/// How a delivery stands to those before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Arrival {
    /// And so many before it have not come.
    First {
        skipped: u64,
    },
    /// One that was skipped.
    Late,
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
            let skipped = number - self.next;
            self.missing.extend(self.next..number);
            self.next = number + 1;
            Arrival::First { skipped }
        } else if self.missing.remove(&number) {
            Arrival::Late
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
        let first = |skipped| Arrival::First { skipped };
        let (late, again) = (Arrival::Late, Arrival::Again);
        assert_eq!(all, [first(0), first(0), first(2), late, again, late, again, again, first(0)]);
    }

    #[test]
    fn publishers_take_turns_at_their_pace() {
        let books = Books::new(2, 3);
        let mut books = books.borrow_mut();
        books.sent = vec![10, 20];
        books.set_pace(0, 1e3, 4_000_000);
        let pace = books.pace.as_ref().unwrap();
        let due = [(0, 10), (1, 20), (0, 11), (1, 21)].map(|(publisher, sent)| pace.due(publisher, sent));
        assert_eq!(due, [0, 1_000_000, 2_000_000, 3_000_000]);
        assert_eq!(pace.due(0, 12), u64::MAX, "past the end");
        books.done[1] = 4;
        assert_eq!((books.owed(1), books.owed_by_all(), books.expected()), (19, 29, 90));
        books.write_off();
        assert_eq!(books.owed_by_all(), 0);
        assert_eq!(books.overdue(1, 2_500_000).collect::<Vec<_>>(), [1_000_000]);
        assert_eq!(books.overdue(0, 9_000_000).collect::<Vec<_>>(), [0, 2_000_000]);
    }

    #[test]
    fn what_a_publisher_has_for_half_a_millisecond_is_due_together() {
        let books = Books::new(2, 1);
        let mut books = books.borrow_mut();
        // 6000 a second each.
        books.set_pace(0, 12e3, u64::MAX);
        let pace = books.pace.as_ref().unwrap();
        let due = |publisher| [0, 1, 2, 3, 5, 6].map(|sent| pace.due(publisher, sent) / 1000);
        assert_eq!(due(0), [0, 0, 0, 500, 500, 1000]);
        assert_eq!(due(1), [250, 250, 250, 750, 750, 1250]);
    }
}

//! What waits for the log, and in which order it comes.
//!
//! | waits for | line | comes when |
//! |---|---|---|
//! | a commit, perhaps a write, too | of commits | it is reached, with all before it in the line |
//! | a write alone, or its commit is there | of writes | the same |
//!
//! Writes run ahead of commits, so nothing in the line of writes waits for the other line. Of what is reached in both,
//! what began to wait first comes first: it may be of one connection, and have changed lines as its commit came.

use postroad_engine::log::Mark;
use std::collections::VecDeque;

#[derive(Debug)]
struct Waiter<T> {
    turn: u64,
    mark: Mark,
    what: T,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Turns<T> {
    commits: VecDeque<Waiter<T>>,
    writes: VecDeque<Waiter<T>>,
    turn: u64,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self { commits: VecDeque::new(), writes: VecDeque::new(), turn: 0 }
    }
}

fn reached(mark: Mark, at: Mark) -> bool {
    mark.beyond(at) == Mark::NOW
}

impl<T> Turns<T> {
    /// Puts something into the line that it must stand in while the log is `at`.
    pub(super) fn push(&mut self, mark: Mark, what: T, at: Mark) {
        let mark = self.behind(mark, at);
        let turn = self.turn;
        self.turn += 1;
        let line = if mark.committed <= at.committed { &mut self.writes } else { &mut self.commits };
        line.push_back(Waiter { turn, mark, what });
    }

    /// When something comes that waits for `mark`, and for its turn: not before what stands in its line already.
    pub(super) fn behind(&self, mark: Mark, at: Mark) -> Mark {
        let line = if mark.committed <= at.committed { &self.writes } else { &self.commits };
        line.back().map_or(mark, |before| mark.and(before.mark))
    }

    /// The next thing that need not wait any more.
    pub(super) fn next(&mut self, at: Mark) -> Option<T> {
        let ready = |line: &VecDeque<Waiter<T>>| {
            line.front().filter(|waiter| reached(waiter.mark, at)).map(|waiter| waiter.turn)
        };
        let line = match (ready(&self.writes), ready(&self.commits)) {
            (None, None) => return None,
            (Some(write), Some(commit)) if commit < write => &mut self.commits,
            (Some(_), _) => &mut self.writes,
            (None, Some(_)) => &mut self.commits,
        };
        line.pop_front().map(|waiter| waiter.what)
    }

    /// Somebody waits for commits; for writes.
    pub(super) fn waits(&self) -> (bool, bool) {
        (!self.commits.is_empty(), !self.writes.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::Turns;
    use postroad_engine::log::{Mark, Ticket};

    fn mark(committed: u64, written: u64) -> Mark {
        Mark { committed: Ticket(committed), written: Ticket(written) }
    }

    fn all(turns: &mut Turns<char>, at: Mark) -> String {
        std::iter::from_fn(|| turns.next(at)).collect()
    }

    #[test]
    fn writes_do_not_wait_for_commits() {
        let (mut turns, start) = (Turns::default(), mark(0, 0));
        turns.push(mark(1, 0), 'c', start);
        turns.push(mark(0, 1), 'w', start);
        assert_eq!(turns.waits(), (true, true));
        assert_eq!(all(&mut turns, mark(0, 1)), "w");
        assert_eq!(all(&mut turns, mark(1, 1)), "c");
        assert_eq!(turns.waits(), (false, false));
    }

    #[test]
    fn nothing_overtakes_in_its_line() {
        let (mut turns, start) = (Turns::default(), mark(0, 0));
        turns.push(mark(3, 0), 'a', start);
        turns.push(mark(1, 0), 'b', start);
        assert_eq!(turns.behind(mark(2, 0), start), mark(3, 0));
        assert_eq!(all(&mut turns, mark(2, 2)), "");
        assert_eq!(all(&mut turns, mark(3, 3)), "ab");
    }

    /// [MQTT-4.6.0-6]. The commit comes while the first one still waits for its write; the second one, of the same
    /// connection, then has to wait for a write alone.
    #[test]
    fn what_stands_in_the_other_line_since_the_commit_comes_later() {
        let mut turns = Turns::default();
        turns.push(mark(1, 2), 'a', mark(0, 1));
        assert_eq!(all(&mut turns, mark(1, 1)), "");
        turns.push(mark(1, 3), 'b', mark(1, 1));
        assert_eq!(all(&mut turns, mark(1, 3)), "ab");
    }
}

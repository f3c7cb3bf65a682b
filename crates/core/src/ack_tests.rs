use std::num::NonZeroUsize;
use std::sync::Mutex;

use super::*;
use crate::ErrorKind;

/// Writes down what it is told; answers when told to.
#[derive(Default)]
struct Book {
    said: Mutex<Vec<(u64, u32, Outcome)>>,
    dropped: Mutex<Vec<u64>>,
    extended: Mutex<Vec<u64>>,
    open: Mutex<Option<Vec<SettledResolver>>>,
}

impl AckSink for Book {
    fn settle(&self, tag: u64, epoch: u32, outcome: Outcome) -> Settled {
        self.said.lock().unwrap().push((tag, epoch, outcome));
        match &mut *self.open.lock().unwrap() {
            Some(open) => {
                let (resolver, settled) = Settled::pending();
                open.push(resolver);
                settled
            }
            None => Settled::ok(),
        }
    }

    fn extend(&self, tag: u64, _: u32) -> Settled {
        self.extended.lock().unwrap().push(tag);
        Settled::ok()
    }

    fn dropped(&self, tag: u64, _: u32) {
        self.dropped.lock().unwrap().push(tag);
    }
}

fn book() -> Arc<Book> {
    Arc::new(Book::default())
}

fn parts(token: AckToken, count: usize) -> Vec<AckToken> {
    token.fan_out(NonZeroUsize::new(count).unwrap())
}

#[test]
fn sizes() {
    assert_eq!(size_of::<AckToken>(), 32);
    assert_eq!(size_of::<Settled>(), 24);
    assert_eq!(size_of::<Option<AckToken>>(), 32);
}

#[test]
fn a_verdict_is_given_once_and_a_drop_is_a_counted_retry() {
    let book = book();
    AckToken::new(book.clone(), 1, 9).settle(Outcome::Ack).wait().unwrap();
    drop(AckToken::new(book.clone(), 2, 9));
    assert_eq!(*book.said.lock().unwrap(), [(1, 9, Outcome::Ack), (2, 9, Outcome::retry())]);
    assert_eq!(*book.dropped.lock().unwrap(), [2]);
}

#[test]
fn a_panic_is_a_retry() {
    let book = book();
    let token = AckToken::new(book.clone(), 5, 0);
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _token = token;
        std::panic::resume_unwind(Box::new("handler"));
    }));
    assert!(result.is_err());
    assert_eq!(*book.said.lock().unwrap(), [(5, 0, Outcome::retry())]);
}

#[test]
fn the_worst_part_decides_and_a_dropped_part_is_a_retry() {
    let book = book();
    let mut all = parts(AckToken::new(book.clone(), 1, 0), 3);
    all[0].extend().wait().unwrap();
    let mut first = all.pop().unwrap().settle(Outcome::Ack);
    assert!(first.try_get().is_none(), "the root is not settled");
    let mut second = all.pop().unwrap().settle(Outcome::dead_letter("x"));
    drop(all);
    assert_eq!(*book.said.lock().unwrap(), [(1, 0, Outcome::retry())]);
    assert_eq!(*book.extended.lock().unwrap(), [1]);
    assert!(first.try_get().unwrap().is_ok());
    assert!(second.try_get().unwrap().is_ok());
}

#[test]
fn parts_of_parts() {
    let book = book();
    let mut outer = parts(AckToken::new(book.clone(), 1, 0), 2);
    let inner = parts(outer.pop().unwrap(), 2);
    for part in inner {
        part.settle(Outcome::Discard);
    }
    assert!(book.said.lock().unwrap().is_empty());
    outer.pop().unwrap().settle(Outcome::Ack).wait().unwrap();
    assert_eq!(*book.said.lock().unwrap(), [(1, 0, Outcome::Discard)]);
}

#[test]
fn every_waiting_part_wakes_when_the_root_is_confirmed() {
    let book = book();
    *book.open.lock().unwrap() = Some(Vec::new());
    let waiting: Vec<_> = parts(AckToken::new(book.clone(), 1, 0), 3)
        .into_iter()
        .map(|part| part.settle(Outcome::Ack))
        .map(|settled| std::thread::spawn(move || settled.wait()))
        .collect();
    std::thread::sleep(std::time::Duration::from_millis(20));
    for resolver in book.open.lock().unwrap().take().unwrap() {
        resolver.resolve(Ok(()));
    }
    for thread in waiting {
        thread.join().unwrap().unwrap();
    }
}

#[test]
fn a_part_that_waits_wakes_when_the_last_one_settles() {
    let mut all = parts(AckToken::new(book(), 1, 0), 2);
    let early = all.pop().unwrap().settle(Outcome::Ack);
    let waiting = std::thread::spawn(move || early.wait());
    std::thread::sleep(std::time::Duration::from_millis(50));
    all.pop().unwrap().settle(Outcome::Ack);
    waiting.join().unwrap().unwrap();
}

#[test]
fn joined_tokens_share_the_verdict_and_the_first_error() {
    let book = book();
    *book.open.lock().unwrap() = Some(Vec::new());
    let mut one = join((1..=3).map(|tag| AckToken::new(book.clone(), tag, 0)).collect());
    one.extend().wait().unwrap();
    let mut settled = one.settle(Outcome::Discard);
    assert_eq!(book.said.lock().unwrap().len(), 3);
    assert!(settled.try_get().is_none());
    let mut open = book.open.lock().unwrap().take().unwrap();
    open.pop().unwrap().resolve(Ok(()));
    drop(open.pop());
    assert!(settled.try_get().is_none());
    open.pop().unwrap().resolve(Ok(()));
    assert_eq!(settled.wait().unwrap_err().kind(), ErrorKind::Disconnected);
    assert_eq!(*book.extended.lock().unwrap(), [1, 2, 3]);
}

#[test]
fn a_dropped_join_is_a_counted_retry_of_each() {
    let book = book();
    drop(join(vec![AckToken::new(book.clone(), 1, 0), AckToken::new(book.clone(), 2, 0)]));
    assert_eq!(*book.dropped.lock().unwrap(), [1, 2]);
    assert_eq!(book.said.lock().unwrap().len(), 2);
}

#[test]
fn an_extended_part_of_a_settled_root_is_stale() {
    let book = book();
    let mut all = parts(AckToken::new(book, 1, 0), 1);
    let sink = Arc::clone(&all[0].sink);
    all.pop().unwrap().settle(Outcome::Ack);
    assert_eq!(sink.extend(0, 0).wait().unwrap_err().kind(), ErrorKind::StaleToken);
}

/// Counts the calls that a batch becomes.
#[derive(Default)]
struct Runs(Mutex<Vec<(u64, u64, u32)>>, Book);

impl AckSink for Runs {
    fn settle(&self, tag: u64, epoch: u32, outcome: Outcome) -> Settled {
        self.1.settle(tag, epoch, outcome)
    }

    fn settle_run(&self, first: u64, last: u64, epoch: u32, outcome: Outcome) -> Settled {
        assert_eq!(outcome, Outcome::Ack);
        self.0.lock().unwrap().push((first, last, epoch));
        Settled::ok()
    }

    fn extend(&self, _: u64, _: u32) -> Settled {
        Settled::ok()
    }

    fn dropped(&self, tag: u64, epoch: u32) {
        self.1.dropped(tag, epoch);
    }
}

#[test]
fn neighbours_are_settled_together_and_nobody_else() {
    let (one, two) = (Arc::new(Runs::default()), Arc::new(Runs::default()));
    let first = [(1, 0), (2, 0), (3, 0), (5, 0), (6, 1), (7, 1), (7, 1), (6, 1), (u64::MAX, 1), (0, 1)];
    let mut tokens: Vec<_> =
        first.iter().map(|&(tag, epoch)| AckToken::new(one.clone(), tag, epoch)).collect();
    tokens.push(AckToken::new(two.clone(), 1, 1));
    tokens.push(AckToken::new(one.clone(), 2, 1));
    settle_all(tokens, Outcome::Ack).wait().unwrap();
    let runs = [(1, 3, 0), (5, 5, 0), (6, 7, 1), (7, 7, 1), (6, 6, 1), (u64::MAX, u64::MAX, 1), (0, 0, 1)];
    assert_eq!(one.0.lock().unwrap()[..7], runs);
    assert_eq!(one.0.lock().unwrap()[7..], [(2, 2, 1)]);
    assert_eq!(*two.0.lock().unwrap(), [(1, 1, 1)]);
    assert!(one.1.dropped.lock().unwrap().is_empty());
    settle_all([], Outcome::Ack).wait().unwrap();
}

#[test]
fn a_batch_without_a_shortcut_is_settled_one_by_one_and_resolves_with_the_last() {
    let book = book();
    *book.open.lock().unwrap() = Some(Vec::new());
    let tokens = (1..=3).map(|tag| AckToken::new(book.clone(), tag, 4));
    let mut settled = settle_all(tokens, Outcome::Discard);
    let said = (1..=3).map(|tag| (tag, 4, Outcome::Discard)).collect::<Vec<_>>();
    assert_eq!(*book.said.lock().unwrap(), said);
    let mut open = book.open.lock().unwrap().take().unwrap();
    open.pop().unwrap().resolve(Ok(()));
    open.pop().unwrap().resolve(Err(Error::new(ErrorKind::StaleToken, "test", "late")));
    assert!(settled.try_get().is_none());
    open.pop().unwrap().resolve(Ok(()));
    assert_eq!(settled.try_get().unwrap().unwrap_err().kind(), ErrorKind::StaleToken);
}

#[test]
fn a_panic_in_the_middle_of_a_batch_gives_back_what_has_no_verdict() {
    let runs = Arc::new(Runs::default());
    let tokens = [1, 2, 3, 5, 6].map(|tag| AckToken::new(runs.clone(), tag, 0));
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let tokens = tokens.into_iter().inspect(|token| {
            if token.tag() == 6 {
                std::panic::resume_unwind(Box::new("handler"));
            }
        });
        settle_all(tokens, Outcome::Ack)
    }));
    assert!(result.is_err());
    assert_eq!(*runs.0.lock().unwrap(), [(1, 3, 0)]);
    let retried: Vec<_> = runs.1.said.lock().unwrap().iter().map(|said| said.0).collect();
    let mut dropped = runs.1.dropped.lock().unwrap().clone();
    dropped.sort_unstable();
    assert_eq!(dropped, [5, 6]);
    assert_eq!(retried.len(), 2);
}

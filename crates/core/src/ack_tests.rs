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

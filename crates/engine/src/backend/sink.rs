//! The tokens of one subscription: which delivery each stands for, and what a verdict on it does.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use postroad_core::mailbox::Verdict;
use postroad_core::{AckSink, Error, ErrorKind, Outcome, Result, Settled};

use super::commits::{Commits, Waiting};
use super::error::{self, closed, error, stale};
use crate::consumer::Consumer;
use crate::engine::Engine;
use crate::later::Receipt;
use crate::log::Signal;
use crate::stream::Stream;

/// Bits of a tag that number a message in its page. A page is a stretch of one stream, so neighbours in a stream have
/// consecutive tags.
const PAGE_BITS: u32 = 44;
const IN_PAGE: u64 = (1 << PAGE_BITS) - 1;

/// What a subscription and its tokens share.
pub(super) struct Sink {
    /// `None` when the subscription is over. Tokens must not keep an engine open that nobody else has.
    link: Mutex<Option<Link>>,
    alert: Arc<Alert>,
    /// As [`Sink::link`]: streams hold the log open.
    pages: Mutex<Option<Pages>>,
    /// Closed with its backend, not by its owner.
    closed: AtomicBool,
    /// Verdicts taken and not committed yet.
    settling: AtomicU64,
    settled: AtomicU64,
    dropped: AtomicU64,
}

#[derive(Clone)]
pub(super) struct Link {
    pub(super) consumer: Arc<Consumer>,
    pub(super) engine: Arc<Engine>,
    pub(super) commits: Arc<Commits>,
}

/// Which stretch of which stream a page is.
#[derive(Default)]
struct Pages {
    places: Vec<(Arc<Stream>, u64)>,
    /// By the address of the stream, which `places` keeps alive.
    numbers: HashMap<(usize, u64), u64>,
}

/// The task that waits for a subscription.
#[derive(Default)]
pub(super) struct Alert(Mutex<Option<Waker>>);

impl Alert {
    pub(super) fn wait(&self, waker: &Waker) {
        // What is replaced is dropped without the lock: it may hold one of our handles.
        let old = {
            let mut known = lock(&self.0);
            match &*known {
                Some(known) if known.will_wake(waker) => None,
                _ => known.replace(waker.clone()),
            }
        };
        drop(old);
    }
}

impl Signal for Alert {
    fn signal(&self) {
        let waker = lock(&self.0).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sink {
    pub(super) fn new(link: Link, alert: Arc<Alert>) -> Arc<Self> {
        Arc::new(Self {
            link: Mutex::new(Some(link)),
            alert,
            pages: Mutex::new(Some(Pages::default())),
            closed: AtomicBool::new(false),
            settling: AtomicU64::new(0),
            settled: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        })
    }

    pub(super) fn link(&self) -> Option<Link> {
        lock(&self.link).clone()
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// What the consumer held goes back; its tokens are stale.
    pub(super) fn end(&self) {
        let link = lock(&self.link).take();
        // Dropped without the lock: a consumer that goes commits, and signals.
        drop(link);
        *lock(&self.pages) = None;
        self.alert();
    }

    /// The same, with the whole backend. What was over before stays just that.
    pub(super) fn close(&self) {
        let was_open = lock(&self.link).is_some();
        self.closed.store(was_open, Ordering::SeqCst);
        self.end();
    }

    pub(super) fn wait(&self, waker: &Waker) {
        self.alert.wait(waker);
    }

    pub(super) fn alert(&self) {
        self.alert.signal();
    }

    pub(super) fn signal(&self) -> Arc<dyn Signal> {
        Arc::clone(&self.alert) as Arc<dyn Signal>
    }

    /// How many were settled so far, durably.
    pub(super) fn settled_count(&self) -> u64 {
        self.settled.load(Ordering::SeqCst)
    }

    /// Verdicts under way.
    pub(super) fn settling_count(&self) -> u64 {
        self.settling.load(Ordering::SeqCst)
    }

    /// `count` verdicts are no longer under way.
    pub(super) fn settled(&self, count: u64, durable: bool) {
        if durable {
            self.settled.fetch_add(count, Ordering::SeqCst);
        }
        self.settling.fetch_sub(count, Ordering::SeqCst);
        self.alert();
    }

    /// The tag of message `seq` of `stream`; an error when the subscription is over.
    pub(super) fn tag(&self, stream: &Arc<Stream>, seq: u64) -> Result<u64> {
        let base = seq & !IN_PAGE;
        let mut pages = lock(&self.pages);
        let Some(Pages { places, numbers }) = &mut *pages else { return Err(self.over()) };
        let page = *numbers.entry((Arc::as_ptr(stream) as usize, base)).or_insert_with(|| {
            places.push((Arc::clone(stream), base));
            places.len() as u64 - 1
        });
        if page > u64::MAX >> PAGE_BITS {
            return Err(error(ErrorKind::Busy, "one subscription takes from at most 1048576 subjects"));
        }
        Ok(page << PAGE_BITS | (seq - base))
    }

    fn place(&self, tag: u64) -> Option<(Arc<Stream>, u64)> {
        let (stream, base) = lock(&self.pages).as_ref()?.places.get((tag >> PAGE_BITS) as usize)?.clone();
        Some((stream, base + (tag & IN_PAGE)))
    }

    /// Why nothing comes any more.
    pub(super) fn over(&self) -> Error {
        if self.is_closed() { closed() } else { error(ErrorKind::Closed, "the subscription is over") }
    }

    fn gone(&self) -> Settled {
        Settled::failed(if self.is_closed() { closed() } else { stale() })
    }

    /// One verdict on neighbours of one page.
    fn settle_page(
        &self,
        me: Arc<Self>,
        (first, last): (u64, u64),
        attempt: u32,
        outcome: Outcome,
    ) -> Settled {
        let (Some(link), Some((stream, seq))) = (self.link(), self.place(first)) else { return self.gone() };
        let verdict = match outcome {
            Outcome::Ack => Verdict::Ack,
            Outcome::Discard => Verdict::Discard,
            // It is where it would go.
            Outcome::DeadLetter { .. } if stream.topic().is_dead_letter() => Verdict::Ack,
            Outcome::DeadLetter { reason } => Verdict::Dead { reason: reason.as_ref().into() },
            Outcome::Retry { after } => Verdict::Retry { after, reason: None },
            // A verdict of a newer core: not success.
            _ => Verdict::Retry { after: None, reason: None },
        };
        let run = (seq, seq + (last - first));
        let all = last - first + 1;
        // Before it leaves the mailbox: a drain must see it in one of the two.
        self.settling.fetch_add(all, Ordering::SeqCst);
        let (count, receipt) = match link.consumer.settle_attempt(&stream, run, attempt, &verdict) {
            Ok((0, _)) => {
                self.settled(all, false);
                return self.gone();
            }
            Ok(settled) => settled,
            Err(why) => {
                self.settled(all, false);
                return Settled::failed(error::of(why));
            }
        };
        link.engine.flush(false);
        if count < all {
            self.settled(all - count, false);
        }
        let result = if count < all { Err(stale()) } else { Ok(()) };
        if let Receipt::At(ticket) = receipt
            && link.engine.committed() >= ticket
        {
            self.settled(count, true);
            return result.into();
        }
        let (resolver, settled) = Settled::pending();
        link.commits.add_receipt(receipt, Waiting::Settled { resolver, sink: me, count, result });
        self.alert();
        settled
    }
}

/// A sink as tokens hold it.
pub(super) struct Tokens(pub(super) Arc<Sink>);

impl AckSink for Tokens {
    fn settle(&self, tag: u64, epoch: u32, outcome: Outcome) -> Settled {
        self.0.settle_page(Arc::clone(&self.0), (tag, tag), epoch, outcome)
    }

    fn settle_run(&self, first: u64, last: u64, epoch: u32, outcome: Outcome) -> Settled {
        self.0.settle_page(Arc::clone(&self.0), (first, last), epoch, outcome)
    }

    fn extend(&self, tag: u64, epoch: u32) -> Settled {
        let (Some(link), Some((stream, seq))) = (self.0.link(), self.0.place(tag)) else {
            return self.0.gone();
        };
        match link.consumer.touch_attempt(&stream, seq, epoch) {
            true => Settled::ok(),
            false => self.0.gone(),
        }
    }

    fn dropped(&self, tag: u64, epoch: u32) {
        // After the end of its subscription there is nothing left to give back.
        let Some((stream, seq)) = self.0.place(tag).filter(|_| self.0.link().is_some()) else { return };
        let dropped = self.0.dropped.fetch_add(1, Ordering::Relaxed) + 1;
        let topic = stream.topic().as_str();
        tracing::debug!(
            topic,
            seq,
            attempt = epoch,
            dropped,
            "a delivery was dropped without a verdict: it comes again"
        );
    }
}

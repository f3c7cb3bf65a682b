//! The tokens of one subscription: which delivery each stands for, and what a verdict on it becomes on the wire.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use postroad_core::{AckSink, Error, ErrorKind as CoreKind, Outcome, Settled};
use slab::Slab;

use super::{NAME, error};
use crate::client::{Client, ErrorKind, Event, Settle, Slot};

/// A delivery that is out.
#[derive(Debug)]
struct Lease {
    topic: Arc<str>,
    seq: u64,
    bytes: u64,
    /// The lease at the server ends before this.
    until: Instant,
    /// Tells it from an earlier one in the same place.
    serial: u32,
}

#[derive(Debug)]
struct State {
    /// `None` when the subscription is over.
    client: Option<Client>,
    leases: Slab<Lease>,
    serial: u32,
    /// Of all leases and of what is being settled.
    bytes: u64,
    /// Verdicts without an answer.
    settling: u64,
    /// Answered with `ok` so far.
    settled: u64,
    dropped: u64,
    /// The task that waits for room in the window, or for a drain.
    waker: Option<Waker>,
}

/// Shared by the subscription, its tokens, and the answers under way.
#[derive(Debug)]
pub(super) struct Sink {
    state: Arc<Mutex<State>>,
    epoch: u32,
    ack_wait: Duration,
    /// The most bytes that are out, unless a single delivery is larger.
    window: u64,
}

/// What a drain must know.
#[derive(Debug, Clone, Copy)]
pub(super) struct InFlight {
    pub(super) count: u64,
    pub(super) settled: u64,
    /// When the last lease ends.
    pub(super) until: Option<Instant>,
}

impl Sink {
    pub(super) fn new(client: Client, epoch: u32, ack_wait: Duration, window: u64) -> Arc<Self> {
        let state = State {
            client: Some(client),
            leases: Slab::new(),
            serial: 0,
            bytes: 0,
            settling: 0,
            settled: 0,
            dropped: 0,
            waker: None,
        };
        Arc::new(Self { state: Arc::new(Mutex::new(state)), epoch, ack_wait, window })
    }

    pub(super) fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Whether the lease of an event that waited here is over: then the server delivers it again.
    pub(super) fn is_over(&self, event: &Event, now: Instant) -> bool {
        event.received + self.ack_wait <= now
    }

    /// The tag of a delivery of `bytes`, or `None` when the window has no room: then the task is woken when it has.
    pub(super) fn lend(&self, cx: &Context<'_>, event: &Event, bytes: u64) -> Option<u64> {
        let mut old = None;
        let tag = with(&self.state, |state| {
            if event.attempt > 1 {
                // An older delivery of the same event has lost its lease; its token must not settle this one.
                let same = |(_, l): &(usize, &Lease)| l.seq == event.seq && *l.topic == *event.topic;
                if let Some(key) = state.leases.iter().find(same).map(|(key, _)| key) {
                    state.take(key);
                }
            }
            let out = state.leases.len() as u64 + state.settling;
            if out > 0 && state.bytes.saturating_add(bytes) > self.window {
                old = state.waker.replace(cx.waker().clone());
                return None;
            }
            state.serial = state.serial.wrapping_add(1);
            state.bytes += bytes;
            let lease = Lease {
                topic: Arc::clone(&event.topic),
                seq: event.seq,
                bytes,
                until: event.received + self.ack_wait,
                serial: state.serial,
            };
            let serial = u64::from(state.serial);
            Some(serial << 32 | state.leases.insert(lease) as u64)
        });
        drop(old);
        tag
    }

    /// What is out now, leases that ended not counted; the task is woken when that changes.
    pub(super) fn in_flight(&self, cx: Option<&Context<'_>>, now: Instant) -> InFlight {
        let mut old = None;
        let answer = with(&self.state, |state| {
            if let Some(cx) = cx {
                old = state.waker.replace(cx.waker().clone());
            }
            let live = || state.leases.iter().map(|(_, lease)| lease.until).filter(|until| *until > now);
            InFlight {
                count: live().count() as u64 + state.settling,
                settled: state.settled,
                until: live().max(),
            }
        });
        drop(old);
        answer
    }

    /// The subscription is over: every token is stale.
    pub(super) fn close(&self) {
        let gone = with(&self.state, |state| {
            state.leases.clear();
            (state.client.take(), state.waker.take())
        });
        drop(gone);
    }

    /// Sends a command about the delivery `tag`. `keep`: it stays out.
    fn send(&self, tag: u64, epoch: u32, command: Settle<'_>, keep: bool) -> Settled {
        let now = Instant::now();
        let found = with(&self.state, |state| {
            let client = state.client.clone().filter(|_| epoch == self.epoch)?;
            let key = tag as u32 as usize;
            let lease = state.leases.get(key).filter(|lease| u64::from(lease.serial) == tag >> 32)?;
            let (topic, seq, bytes) = (Arc::clone(&lease.topic), lease.seq, lease.bytes);
            if lease.until <= now {
                state.take(key);
                return None;
            }
            if keep {
                // The new lease begins when the server reads this: not before now.
                state.leases[key].until += self.ack_wait;
            } else {
                state.leases.remove(key);
                state.settling += 1;
            }
            Some((client, topic, seq, bytes))
        });

        let Some((client, topic, seq, bytes)) = found else {
            self.wake();
            return Settled::failed(stale("its lease or its connection has ended: the message comes again"));
        };
        let (resolver, settled) = Settled::pending();
        let (shared, ack_wait) = (Arc::clone(&self.state), self.ack_wait);
        let slot = Slot::Call(Box::new(move |outcome| {
            let waker = with(&shared, |state| {
                if keep {
                    state.extended(tag, outcome.is_ok().then(|| Instant::now() + ack_wait));
                } else {
                    state.settling -= 1;
                    state.bytes -= bytes;
                    state.settled += u64::from(outcome.is_ok());
                }
                state.waker.take()
            });
            resolver.resolve(outcome.map(drop).map_err(|why| match why.kind() {
                // Never sent: the server has taken it back.
                ErrorKind::Closed => stale("the connection has ended: the message comes again"),
                _ => error(&why),
            }));
            if let Some(waker) = waker {
                waker.wake();
            }
        }));
        let command = match command {
            // A dead letter is already where it would go.
            Settle::Bury(_) if topic.starts_with("$dead/") => Settle::Ack,
            command => command,
        };
        client.settle_to(command, &topic, seq, slot);
        settled
    }

    fn wake(&self) {
        if let Some(waker) = with(&self.state, |state| state.waker.take()) {
            waker.wake();
        }
    }
}

impl State {
    fn take(&mut self, key: usize) {
        self.bytes -= self.leases.remove(key).bytes;
    }

    /// The answer to `touch`; `None`: the lease was over.
    fn extended(&mut self, tag: u64, until: Option<Instant>) {
        let key = tag as u32 as usize;
        if self.leases.get(key).is_none_or(|lease| u64::from(lease.serial) != tag >> 32) {
            return;
        }
        match until {
            Some(until) => self.leases[key].until = until,
            None => self.take(key),
        }
    }
}

/// Nothing is woken or dropped under the lock: that might come back here.
fn with<T>(state: &Mutex<State>, work: impl FnOnce(&mut State) -> T) -> T {
    work(&mut state.lock().unwrap_or_else(PoisonError::into_inner))
}

fn stale(text: &'static str) -> Error {
    Error::new(CoreKind::StaleToken, NAME, text)
}

impl AckSink for Sink {
    fn settle(&self, tag: u64, epoch: u32, outcome: Outcome) -> Settled {
        match outcome {
            Outcome::Ack | Outcome::Discard => self.send(tag, epoch, Settle::Ack, false),
            Outcome::Retry { after } => self.send(tag, epoch, Settle::Nack(after), false),
            Outcome::DeadLetter { reason } => self.send(tag, epoch, Settle::Bury(&reason), false),
            // A verdict of a newer core: not success.
            _ => self.send(tag, epoch, Settle::Nack(None), false),
        }
    }

    fn extend(&self, tag: u64, epoch: u32) -> Settled {
        self.send(tag, epoch, Settle::Touch, true)
    }

    fn dropped(&self, tag: u64, epoch: u32) {
        let (live, dropped) = with(&self.state, |state| {
            let lease = state.leases.get(tag as u32 as usize).filter(|l| u64::from(l.serial) == tag >> 32);
            let lease = lease.map(|l| (Arc::clone(&l.topic), l.seq)).filter(|_| epoch == self.epoch);
            state.dropped += u64::from(lease.is_some());
            (lease, state.dropped)
        });
        // After the end of its subscription there is nothing left to give back.
        if let Some((topic, seq)) = live {
            tracing::debug!(%topic, seq, dropped, "a delivery was dropped without a verdict: it comes again");
        }
    }
}

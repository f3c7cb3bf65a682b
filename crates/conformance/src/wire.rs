//! Connections to a backend in this process, which can be cut, fall silent and stand still as those of a broker do.
//!
//! Every publisher and every subscription has one of its own. Without sockets and threads, so that the cases about
//! connections run in virtual time, too; and every [lie](crate::faulty) about them can be told.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

use postroad_core::{
    AckSink, AckToken, Backend, BoxFuture, Capabilities, Delivery, DrainReport, Envelope, Error, ErrorKind,
    Filter, Outcome, Publisher, Result, Settled, SettledResolver, SubscribeOptions, Subscription, Ticket,
    TicketResolver, Timestamp,
};
use tokio::sync::watch;

use crate::tokens::Tokens;

/// What waits for a silent connection, at most.
const QUEUE: usize = 4096;

fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The ways to one broker.
#[derive(Clone)]
pub struct Wire {
    links: Arc<Mutex<Vec<Arc<Link>>>>,
    paused: watch::Sender<bool>,
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wire").field("paused", &*self.paused.borrow()).finish_non_exhaustive()
    }
}

impl Default for Wire {
    fn default() -> Self {
        Self { links: Arc::default(), paused: watch::channel(false).0 }
    }
}

impl Wire {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A client of `broker`, with connections of its own. Its close ends these, not the broker.
    pub fn connect<B: Backend>(&self, broker: B) -> Wired<B> {
        Wired { broker, wire: self.clone(), own: Mutex::new(Some(Vec::new())), closes: false }
    }

    /// Connections for what is a client by itself: its close is that of `client`.
    pub fn extend<B: Backend>(&self, client: B) -> Wired<B> {
        Wired { closes: true, ..self.connect(client) }
    }

    /// Loses all connections; both sides notice. New ones work.
    pub fn cut(&self) {
        for link in std::mem::take(&mut *lock(&self.links)) {
            link.end(ErrorKind::Disconnected);
        }
    }

    /// From now on nothing passes over the connections there are, and nobody notices. New ones work.
    pub fn half_open(&self) {
        for link in &*lock(&self.links) {
            lock(&link.state).silent = true;
        }
    }

    /// Loses what is half-open, with whatever waited for it.
    pub fn heal(&self) {
        let (lost, left) =
            std::mem::take(&mut *lock(&self.links)).into_iter().partition(|link| lock(&link.state).silent);
        *lock(&self.links) = left;
        let lost: Vec<Arc<Link>> = lost;
        for link in lost {
            link.end(ErrorKind::Disconnected);
        }
    }

    /// The broker answers nobody until [`resume`](Self::resume).
    pub fn pause(&self) {
        self.paused.send_replace(true);
        for link in &*lock(&self.links) {
            lock(&link.state).paused = true;
        }
    }

    /// It goes on, with what came meanwhile.
    pub fn resume(&self) {
        self.paused.send_replace(false);
        let links = lock(&self.links).clone();
        for link in links {
            link.resume();
        }
    }

    async fn answers(&self) {
        // The sender is in `self`.
        let _ = self.paused.subscribe().wait_for(|paused| !paused).await;
    }
}

/// What a client has said while nothing passed.
enum Said {
    Publish(Envelope, TicketResolver),
    Settle(u64, Outcome, SettledResolver),
    Extend(u64, SettledResolver),
}

#[derive(Default)]
struct State {
    silent: bool,
    paused: bool,
    /// Why it is over.
    ended: Option<ErrorKind>,
    /// Its client is gone, and the broker has not heard of it.
    orphan: bool,
    said: VecDeque<Said>,
    publisher: Option<Arc<dyn Publisher>>,
    subscription: Option<Box<dyn Subscription>>,
    waker: Option<Waker>,
}

impl State {
    fn passes(&self) -> bool {
        !self.silent && !self.paused
    }
}

/// One connection.
struct Link {
    name: &'static str,
    state: Mutex<State>,
    tokens: Tokens,
}

impl Link {
    fn error(&self, kind: ErrorKind) -> Error {
        Error::new(
            kind,
            self.name,
            if kind == ErrorKind::Closed { "closed" } else { "the connection is lost" },
        )
    }

    fn end(&self, why: ErrorKind) {
        let (said, subscription, waker) = {
            let mut state = lock(&self.state);
            state.ended.get_or_insert(why);
            state.publisher = None;
            (std::mem::take(&mut state.said), state.subscription.take(), state.waker.take())
        };
        // First the broker: what it finds in no consumer's hands is not settled by them any more.
        drop(subscription);
        for said in said {
            match said {
                Said::Publish(_, ticket) => ticket.unknown(self.error(ErrorKind::Disconnected)),
                Said::Settle(.., settled) | Said::Extend(_, settled) => {
                    settled.resolve(Err(self.error(ErrorKind::Disconnected)));
                }
            }
        }
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn resume(&self) {
        let (said, publisher, waker, orphan) = {
            let mut state = lock(&self.state);
            state.paused = false;
            if state.silent {
                return;
            }
            (std::mem::take(&mut state.said), state.publisher.clone(), state.waker.take(), state.orphan)
        };
        for said in said {
            match (said, &publisher) {
                (Said::Publish(envelope, ticket), Some(publisher)) => {
                    let inner = publisher.publish(envelope);
                    tokio::spawn(async move { ticket.resolve(inner.await) });
                }
                (Said::Publish(_, ticket), None) => ticket.unknown(self.error(ErrorKind::Disconnected)),
                (Said::Settle(tag, outcome, settled), _) => {
                    let inner = self.settle_now(tag, outcome);
                    tokio::spawn(async move { settled.resolve(inner.await) });
                }
                (Said::Extend(tag, settled), _) => {
                    let inner = self.tokens.extend(tag);
                    tokio::spawn(async move { settled.resolve(inner.await) });
                }
            }
        }
        if let Some(waker) = waker {
            waker.wake();
        }
        if orphan {
            self.end(ErrorKind::Closed);
        }
    }

    fn settle_now(&self, tag: u64, outcome: Outcome) -> Settled {
        match self.tokens.take(tag) {
            Some((_, token)) => token.settle(outcome),
            None => Settled::failed(self.error(ErrorKind::StaleToken)),
        }
    }

    /// Keeps what is said for later, if it does not pass now.
    fn later(&self, said: impl FnOnce(SettledResolver) -> Said) -> Option<Settled> {
        let mut state = lock(&self.state);
        if state.ended.is_some() {
            return Some(Settled::failed(self.error(ErrorKind::StaleToken)));
        }
        if state.passes() {
            return None;
        }
        let (resolver, settled) = Settled::pending();
        state.said.push_back(said(resolver));
        Some(settled)
    }
}

impl AckSink for Link {
    fn settle(&self, tag: u64, _: u32, outcome: Outcome) -> Settled {
        let waits = self.later(|settled| Said::Settle(tag, outcome.clone(), settled));
        waits.unwrap_or_else(|| self.settle_now(tag, outcome))
    }

    fn extend(&self, tag: u64, _: u32) -> Settled {
        self.later(|settled| Said::Extend(tag, settled)).unwrap_or_else(|| self.tokens.extend(tag))
    }
}

/// A client of a broker in this process. Made by [`Wire::connect`].
pub struct Wired<B> {
    broker: B,
    wire: Wire,
    /// `None` when it is closed.
    own: Mutex<Option<Vec<Weak<Link>>>>,
    /// Whether a close is passed on.
    closes: bool,
}

impl<B: Backend> Wired<B> {
    fn check_open(&self) -> Result<()> {
        match &*lock(&self.own) {
            Some(_) => Ok(()),
            None => Err(Error::new(ErrorKind::Closed, self.broker.name(), "the client was closed")),
        }
    }

    fn link(
        &self,
        publisher: Option<Arc<dyn Publisher>>,
        subscription: Option<Box<dyn Subscription>>,
    ) -> Arc<Link> {
        // With this lock, so that a pause finds it or is seen here.
        let mut links = lock(&self.wire.links);
        let paused = *self.wire.paused.borrow();
        let state = State { paused, publisher, subscription, ..State::default() };
        let link =
            Arc::new(Link { name: self.broker.name(), state: Mutex::new(state), tokens: Tokens::default() });
        if let Some(own) = &mut *lock(&self.own) {
            own.retain(|link| link.strong_count() > 0);
            own.push(Arc::downgrade(&link));
        }
        links.retain(|link| lock(&link.state).ended.is_none());
        links.push(Arc::clone(&link));
        link
    }
}

impl<B: Backend> Backend for Wired<B> {
    fn name(&self) -> &'static str {
        self.broker.name()
    }

    fn publisher(&self) -> BoxFuture<'_, Result<Arc<dyn Publisher>>> {
        Box::pin(async {
            self.check_open()?;
            self.wire.answers().await;
            let inner = self.broker.publisher().await?;
            let can = inner.capabilities().clone();
            Ok(Arc::new(WiredPublisher { link: self.link(Some(inner), None), can }) as Arc<dyn Publisher>)
        })
    }

    fn subscribe(&self, options: SubscribeOptions) -> BoxFuture<'_, Result<Box<dyn Subscription>>> {
        Box::pin(async {
            self.check_open()?;
            self.wire.answers().await;
            let inner = self.broker.subscribe(options).await?;
            let can = inner.capabilities().clone();
            let link = self.link(None, Some(inner));
            Ok(Box::new(WiredSubscription { link, can, told: false }) as Box<dyn Subscription>)
        })
    }

    fn forget(&self, filter: Filter, name: Arc<str>) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            self.check_open()?;
            self.wire.answers().await;
            self.broker.forget(filter, name).await
        })
    }

    fn capabilities(&self) -> &Capabilities {
        self.broker.capabilities()
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            // First this: it flushes, and answers what is under way.
            let closed = if self.closes { self.broker.close().await } else { Ok(()) };
            let own = lock(&self.own).take();
            for link in own.into_iter().flatten().filter_map(|link| link.upgrade()) {
                link.end(ErrorKind::Closed);
            }
            closed
        })
    }
}

struct WiredPublisher {
    link: Arc<Link>,
    can: Capabilities,
}

impl Publisher for WiredPublisher {
    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let state = lock(&self.link.state);
        match (state.ended, &state.publisher) {
            (Some(why), _) => Poll::Ready(Err(self.link.error(why))),
            (None, Some(publisher)) if state.passes() => publisher.poll_ready(cx),
            _ => Poll::Ready(Ok(())),
        }
    }

    fn publish(&self, envelope: Envelope) -> Ticket {
        let mut state = lock(&self.link.state);
        match (state.ended, &state.publisher) {
            (Some(why), _) => Ticket::refused(self.link.error(why)),
            (None, Some(publisher)) if state.passes() => {
                let publisher = Arc::clone(publisher);
                drop(state);
                publisher.publish(envelope)
            }
            _ if state.said.len() >= QUEUE => Ticket::refused(self.link.error(ErrorKind::Busy)),
            _ => {
                let (resolver, ticket) = Ticket::pending();
                state.said.push_back(Said::Publish(envelope, resolver));
                ticket
            }
        }
    }

    fn publish_batch(&self, envelopes: Vec<Envelope>) -> Vec<Ticket> {
        let passes = {
            let state = lock(&self.link.state);
            state.publisher.clone().filter(|_| state.passes())
        };
        match passes {
            Some(publisher) => publisher.publish_batch(envelopes),
            None => envelopes.into_iter().map(|envelope| self.publish(envelope)).collect(),
        }
    }

    fn capabilities(&self) -> &Capabilities {
        &self.can
    }
}

impl Drop for WiredPublisher {
    fn drop(&mut self) {
        leave(&self.link);
    }
}

/// The client goes; the broker hears of it when something passes.
fn leave(link: &Link) {
    let passes = {
        let mut state = lock(&link.state);
        state.orphan = true;
        state.passes()
    };
    if passes {
        link.end(ErrorKind::Closed);
    }
}

struct WiredSubscription {
    link: Arc<Link>,
    can: Capabilities,
    /// That the connection is lost.
    told: bool,
}

impl Subscription for WiredSubscription {
    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Vec<Delivery>,
        max: usize,
    ) -> Poll<Result<usize>> {
        let mut state = lock(&self.link.state);
        if let Some(why) = state.ended {
            let why = if std::mem::replace(&mut self.told, true) { ErrorKind::Closed } else { why };
            return Poll::Ready(Err(self.link.error(why)));
        }
        state.waker = Some(cx.waker().clone());
        if !state.passes() {
            return Poll::Pending;
        }
        let Some(inner) = &mut state.subscription else { return Poll::Pending };
        let from = out.len();
        let filled = inner.poll_fill(cx, out, max);
        for delivery in out.iter_mut().skip(from) {
            let sink = Arc::clone(&self.link) as Arc<dyn AckSink>;
            self.link.tokens.wrap(delivery, |tag, epoch| AckToken::new(sink, tag, epoch));
        }
        filled
    }

    fn begin_drain(&mut self, deadline: Timestamp) {
        if let Some(inner) = &mut lock(&self.link.state).subscription {
            inner.begin_drain(deadline);
        }
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<Result<DrainReport>> {
        let mut state = lock(&self.link.state);
        state.waker = Some(cx.waker().clone());
        match &mut state.subscription {
            Some(inner) => inner.poll_drain(cx),
            // The broker has taken all of it back.
            None => Poll::Ready(Ok(DrainReport::default())),
        }
    }

    fn capabilities(&self) -> &Capabilities {
        &self.can
    }
}

impl Drop for WiredSubscription {
    fn drop(&mut self) {
        leave(&self.link);
    }
}

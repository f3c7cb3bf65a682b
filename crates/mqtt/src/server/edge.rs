//! What all connections of a server share, and its turn.
//!
//! Everything here is on one thread. Tasks of connections read and hand bytes to the machine; each then asks for a turn.
//! The turn is a task of its own, and the runtime runs tasks in the order in which they were woken, so it comes after all
//! connections that were ready with the first: what they appended is one commit, and what they caused is written with one
//! call a connection.

use super::connection::{Connection, Wrote};
use super::counters::Counters;
use super::machine::Machine;
use super::signal::CommitSignal;
use crate::access::Denied;
use bytes::BytesMut;
use postroad_core::{Clock as _, SystemClock};
use postroad_engine::log::{LogStore, Mark, Signal};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::time::Sleep;

/// Rounds of committing and writing in one turn; each may release what goes on.
const ROUNDS: usize = 4;
/// A disk that takes longer is not waited for on this thread for a while.
const SLOW_COMMIT: Duration = Duration::from_millis(2);
const SLOW_REST: Duration = Duration::from_secs(1);

/// Passwords that are checked at once: two, if that leaves a processor for the thread that serves.
pub(super) const MAX_CHECKS: usize = 2;

fn check_threads() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    processors.saturating_sub(1).clamp(1, MAX_CHECKS)
}

pub(super) struct Edge<M: Machine> {
    pub(super) machine: RefCell<M>,
    store: Arc<dyn LogStore>,
    clock: SystemClock,
    pub(super) connections: RefCell<HashMap<M::Id, Rc<Connection<M>>>>,
    /// The one read buffer: an idle connection has none.
    pub(super) scratch: RefCell<BytesMut>,
    pub(super) counters: Arc<Counters>,
    pub(super) max_connections: usize,
    pub(super) max_partial: usize,
    pub(super) write_timeout: Duration,
    pub(super) draining: Cell<bool>,
    turn_wanted: Cell<bool>,
    turn_waker: RefCell<Option<Waker>>,
    // Inputs since the last turn: one is a lone client.
    pub(super) inputs: Cell<u32>,
    signal: Arc<CommitSignal>,
    // The commit this thread is to be told of.
    asked: Cell<Mark>,
    // How far the store was when the machine was told.
    told: Cell<Mark>,
    no_inline_before: Cell<Option<Instant>>,
    // Passwords that are being checked on other threads, and how many at once.
    checking: Cell<usize>,
    check_threads: usize,
    touched: RefCell<Vec<M::Id>>,
    pub(super) closed: Notify,
    pub(super) panicked: Notify,
}

impl<M: Machine> Edge<M> {
    /// What the HTTP port has beside WebSocket.
    pub(super) fn page(&self, path: &str) -> Option<String> {
        match path {
            "/metrics" => Some(self.machine.borrow().metrics()),
            "/livez" | "/readyz" => Some("ok\n".to_owned()),
            _ => None,
        }
    }

    pub(super) fn new(
        machine: M,
        store: Arc<dyn LogStore>,
        clock: SystemClock,
        counters: Arc<Counters>,
        max_connections: usize,
        max_partial: usize,
        write_timeout: Duration,
    ) -> Rc<Self> {
        Rc::new(Self {
            machine: RefCell::new(machine),
            store,
            clock,
            connections: RefCell::new(HashMap::new()),
            scratch: RefCell::new(BytesMut::new()),
            counters,
            max_connections,
            max_partial,
            write_timeout,
            draining: Cell::new(false),
            turn_wanted: Cell::new(true),
            turn_waker: RefCell::new(None),
            inputs: Cell::new(0),
            signal: Arc::new(CommitSignal::default()),
            asked: Cell::new(Mark::NOW),
            told: Cell::new(Mark::NOW),
            no_inline_before: Cell::new(None),
            checking: Cell::new(0),
            check_threads: check_threads(),
            touched: RefCell::new(Vec::new()),
            closed: Notify::new(),
            panicked: Notify::new(),
        })
    }

    /// Wakes the turn from any thread.
    pub(super) fn signal(&self) -> Arc<dyn Signal> {
        self.signal.clone()
    }

    pub(super) fn now(&self) -> u64 {
        self.clock.now().as_millis()
    }

    /// Runs a task that takes the whole server with it if it panics: a broker whose state stopped half-way must not go on.
    pub(super) fn spawn(self: &Rc<Self>, task: impl Future<Output = ()> + 'static) {
        struct Alarm<M: Machine>(Rc<Edge<M>>);
        impl<M: Machine> Drop for Alarm<M> {
            fn drop(&mut self) {
                if std::thread::panicking() {
                    self.0.panicked.notify_one();
                }
            }
        }
        let alarm = Alarm(self.clone());
        tokio::task::spawn_local(async move {
            let _alarm = alarm;
            task.await;
        });
    }

    /// A turn comes when all tasks that are ready now have run.
    pub(super) fn want_turn(&self) {
        if !self.turn_wanted.replace(true)
            && let Some(waker) = &*self.turn_waker.borrow()
        {
            waker.wake_by_ref();
        }
    }

    /// Runs turns as long as the server runs.
    pub(super) async fn turns(self: Rc<Self>) {
        let mut timer: Option<(u64, Pin<Box<Sleep>>)> = None;
        // Writing to many sockets is not to be stopped half-way by the runtime's own idea of fairness.
        tokio::task::unconstrained(poll_fn(move |cx| {
            self.register(cx.waker());
            loop {
                if self.turn_wanted.replace(false) | self.signal.take() {
                    self.turn();
                }
                let now = self.now();
                let Some(deadline) = self.machine.borrow().next_deadline() else {
                    timer = None;
                    break;
                };
                if deadline <= now {
                    self.machine.borrow_mut().tick(now);
                    self.turn();
                    if self.machine.borrow().next_deadline().is_some_and(|next| next <= self.now()) {
                        // More than one tick may do: others first.
                        self.want_turn();
                        break;
                    }
                    continue;
                }
                if Self::wait(&mut timer, deadline, now, cx).is_pending() {
                    break;
                }
            }
            Poll::<()>::Pending
        }))
        .await;
    }

    fn wait(
        timer: &mut Option<(u64, Pin<Box<Sleep>>)>,
        deadline: u64,
        now: u64,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let at = || tokio::time::Instant::now() + Duration::from_millis(deadline - now);
        let sleep = match timer {
            Some((set, sleep)) => {
                if *set != deadline {
                    *set = deadline;
                    sleep.as_mut().reset(at());
                }
                sleep
            }
            None => &mut timer.insert((deadline, Box::pin(tokio::time::sleep_until(at())))).1,
        };
        let polled = sleep.as_mut().poll(cx);
        if polled.is_ready() {
            *timer = None;
        }
        polled
    }

    fn register(&self, waker: &Waker) {
        let mut slot = self.turn_waker.borrow_mut();
        if slot.as_ref().is_none_or(|old| !old.will_wake(waker)) {
            *slot = Some(waker.clone());
        }
        self.signal.register(waker);
    }

    /// Gets passwords checked on other threads: hashes here would hold up everybody.
    fn check_passwords(self: &Rc<Self>) {
        while self.checking.get() < self.check_threads {
            let Some((id, check)) = self.machine.borrow_mut().next_login() else { return };
            self.checking.set(self.checking.get() + 1);
            let edge = self.clone();
            self.spawn(async move {
                let result = tokio::task::spawn_blocking(move || check.run()).await;
                edge.checking.set(edge.checking.get() - 1);
                // Nobody gets in by a check that panicked.
                let result = result.unwrap_or(Err(Denied::NotAuthorized));
                edge.machine.borrow_mut().logged_in(id, result, edge.now());
                edge.want_turn();
            });
        }
    }

    /// Gets commits and checks going, tells the machine of commits that are done, and writes.
    fn turn(self: &Rc<Self>) {
        self.check_passwords();
        self.counters.turns.add(1);
        let now = self.now();
        let lone = self.inputs.replace(0) <= 1;
        self.committed(now);
        for _ in 0..ROUNDS {
            while self.commit(lone, now) {}
            if !self.write(now) {
                return;
            }
        }
        // More was released by what was written. Others first.
        self.want_turn();
    }

    /// Writes to the connections that have something; true if there was one.
    fn write(&self, now: u64) -> bool {
        let mut touched = self.touched.take();
        self.machine.borrow_mut().touched(&mut touched);
        let some = !touched.is_empty();
        let mut cx = Context::from_waker(Waker::noop());
        for id in touched.drain(..) {
            let Some(connection) = self.connections.borrow().get(&id).cloned() else { continue };
            match connection.write(self, now, &mut cx) {
                // Its own task waits for the socket; so must it look when it may be read again.
                Wrote::Blocked | Wrote::Failed | Wrote::Close => connection.wake(),
                Wrote::All => connection.wake_if_paused(self),
            }
        }
        self.touched.replace(touched);
        some
    }

    /// True if something was committed and there may be more to commit.
    fn commit(&self, lone: bool, now: u64) -> bool {
        let Some(mark) = self.machine.borrow_mut().pending() else { return false };
        let began = Instant::now();
        // A lone client pays for no hand-off to another thread; with more of them, one commit fills while another is on
        // the disk.
        let inline = lone && self.no_inline_before.get().is_none_or(|at| began >= at);
        if self.store.flush(inline) {
            self.counters.inline_commits.add(1);
            if began.elapsed() > SLOW_COMMIT {
                self.no_inline_before.set(Some(began + SLOW_REST));
            }
        }
        if mark.beyond(self.store.mark()) != mark {
            self.machine.borrow_mut().committed(now);
            return true;
        }
        let asked = self.asked.replace(self.asked.get().and(mark));
        let signal = || -> Arc<dyn Signal> { self.signal.clone() };
        if mark.committed > asked.committed {
            self.store.notify(mark.committed, &signal());
        }
        if mark.written > asked.written {
            self.store.notify_written(mark.written, &signal());
        }
        false
    }

    /// A commit that is done while sockets are read does not wait for the last of them.
    pub(super) fn pass_on(&self) {
        if self.signal.take() {
            let now = self.now();
            self.committed(now);
            self.write(now);
        }
    }

    /// Tells the machine how far the store is, also when that is not as far as it asked for last: under a steady flow
    /// it has always asked for more by then.
    fn committed(&self, now: u64) {
        let (asked, at) = (self.asked.get(), self.store.mark());
        if asked == Mark::NOW || at == self.told.get() && self.store.failure().is_none() {
            return;
        }
        self.told.set(at);
        self.asked.set(asked.beyond(at));
        self.machine.borrow_mut().committed(now);
    }

    /// What the last turn appended goes to the disk.
    pub(super) fn flush(&self) {
        self.store.flush(true);
    }
}

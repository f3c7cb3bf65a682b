//! What moves the bytes of one connection: between a socket and a state machine, both sides at once.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};
use std::time::Duration;

use bytes::BytesMut;
use postroad_core::{Clock, Error, ErrorKind, Result, SystemClock, Timestamp};
use postroad_journal::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::connection::Connection;
use super::{NAME, lost, refusal};
use crate::codec::{Disconnect, Packet, ReasonCode, Utf8};

/// How long a close waits for answers.
pub(super) const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// More is not taken from a machine before the socket has room.
const WRITE_AHEAD: usize = 1 << 20;

/// The rules of one side of the protocol.
pub(super) trait Machine: Send {
    /// A packet of the server.
    fn packet(&mut self, packet: Packet, now: Timestamp) -> Result<()>;
    /// Time has passed, or a commit is done.
    fn advance(&mut self, now: Timestamp);
    /// When time matters next.
    fn deadline(&self) -> Option<Timestamp> {
        None
    }
    /// What is to be written.
    fn out(&mut self) -> &mut BytesMut;
    /// Gets commits going.
    fn flush(&mut self);
    /// Why nothing is committed any more.
    fn failure(&self) -> Option<Error>;
    /// Whether nothing waits for an answer.
    fn is_idle(&self) -> bool;
    /// Whether something was written whose arrival only a PINGRESP proves.
    fn wants_proof(&self) -> bool {
        false
    }
    /// PINGREQ follows what was written so far.
    fn ping_sent(&mut self) {}
    /// PINGRESP is here: what was written before PINGREQ has arrived.
    fn ping_answered(&mut self) {}
}

/// Wakes the task that drives a connection.
#[derive(Debug, Default)]
pub(super) struct Wake(pub(super) Notify);

impl Signal for Wake {
    fn signal(&self) {
        self.0.notify_one();
    }
}

pub(super) struct State<M> {
    pub(super) machine: M,
    /// Nothing new is taken; when the machine is idle, or at this time, the connection ends.
    pub(super) closing: Option<Instant>,
    /// Why it is over.
    pub(super) ended: Option<Error>,
    wakers: Vec<Waker>,
}

/// A machine, shared by handles and the task that drives its connection.
pub(super) struct Link<M> {
    state: Mutex<State<M>>,
    pub(super) wake: Arc<Wake>,
    clock: SystemClock,
}

impl<M: Machine> Link<M> {
    pub(super) fn new(machine: M, wake: Arc<Wake>) -> Arc<Self> {
        let state = State { machine, closing: None, ended: None, wakers: Vec::new() };
        Arc::new(Self { state: Mutex::new(state), wake, clock: SystemClock::new() })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State<M>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// What waits of time is held against this.
    pub(super) fn passed(&self) -> Timestamp {
        self.clock.passed()
    }

    /// The driver looks again.
    pub(super) fn poke(&self) {
        self.wake.0.notify_one();
    }

    /// Begins the end.
    pub(super) fn close(&self, patience: Duration) {
        self.lock().closing.get_or_insert_with(|| Instant::now() + patience);
        self.poke();
    }

    /// Nothing comes any more.
    pub(super) fn end(&self, why: &Error) {
        let wakers = {
            let mut state = self.lock();
            state.ended.get_or_insert_with(|| why.clone());
            std::mem::take(&mut state.wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Waits until it has ended.
    pub(super) async fn ended(&self) {
        std::future::poll_fn(|cx| {
            let mut state = self.lock();
            if state.ended.is_some() {
                return std::task::Poll::Ready(());
            }
            state.wait(cx);
            std::task::Poll::Pending
        })
        .await;
    }

    fn turn(&self, writing: &mut BytesMut) -> Turn {
        let (passed, now) = (self.passed(), self.now());
        let mut state = self.lock();
        state.machine.advance(passed);
        state.machine.flush();
        if writing.len() < WRITE_AHEAD {
            let out = state.machine.out();
            if writing.is_empty() {
                *writing = out.split();
            } else {
                writing.unsplit(out.split());
            }
        }
        let turn = Turn {
            failure: state.machine.failure(),
            closing: state.closing,
            idle: state.machine.is_idle(),
            proof: state.machine.wants_proof(),
            // The clock is read in whole milliseconds.
            timer: state.machine.deadline().map(|at| at.since(now) + Duration::from_millis(2)),
        };
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        turn
    }

    /// Advances the machine without a connection, once.
    pub(super) fn turn_without_connection(&self) {
        self.turn(&mut BytesMut::new());
    }

    /// Drives the connection to its end; says why it ended.
    pub(super) async fn drive(&self, connection: Connection) -> Error {
        let Connection { version, stream, mut decoder, mut buffer, keep_alive, .. } = connection;
        let (mut read, mut write) = tokio::io::split(stream);
        let mut writing = BytesMut::new();
        let (mut heard, mut sent) = (Instant::now(), Instant::now());
        let mut ping: Option<Instant> = None;
        // What came with CONNACK or SUBACK.
        if let Err(why) = self.read(&mut decoder, &mut buffer, &mut ping) {
            return why;
        }
        loop {
            let turn = self.turn(&mut writing);
            if let Some(why) = turn.failure {
                return why;
            }
            let now = Instant::now();
            if let Some(deadline) = turn.closing
                && ((turn.idle && writing.is_empty()) || now >= deadline)
            {
                let mut bytes = BytesMut::new();
                let _ = Disconnect::new(ReasonCode::Success).encode(version, &mut bytes);
                let goodbye = async {
                    write.write_all(&bytes).await?;
                    write.shutdown().await
                };
                // The server may be gone already.
                let _ = tokio::time::timeout(Duration::from_secs(1), goodbye).await;
                return Error::new(ErrorKind::Closed, NAME, "it was closed");
            }
            let next_ping = match ping {
                Some(since) if now >= since + keep_alive => {
                    return lost(format!("the server did not answer in {keep_alive:?}"));
                }
                Some(since) => since + keep_alive,
                None => {
                    let due = heard.min(sent) + keep_alive / 2;
                    if turn.proof || now >= due {
                        // What it proves must stand before it.
                        self.lock().machine.ping_sent();
                        let _ = Packet::Pingreq.encode(version, &mut writing);
                        ping = Some(now);
                        now + keep_alive
                    } else {
                        due
                    }
                }
            };
            let mut at = next_ping;
            at = turn.timer.map_or(at, |timer| at.min(now + timer.min(Duration::from_secs(3600))));
            at = turn.closing.map_or(at, |closing| at.min(closing));
            tokio::select! {
                got = read.read_buf(&mut buffer) => {
                    match got {
                        Ok(0) => return lost("the server closed the connection"),
                        Ok(_) => {}
                        Err(why) => return lost(why.to_string()),
                    }
                    heard = Instant::now();
                    if let Err(why) = self.read(&mut decoder, &mut buffer, &mut ping) {
                        return why;
                    }
                }
                wrote = write.write_buf(&mut writing), if !writing.is_empty() => {
                    match wrote {
                        Ok(_) => sent = Instant::now(),
                        Err(why) => return lost(why.to_string()),
                    }
                }
                () = self.wake.0.notified() => {}
                () = sleep_until(at) => {}
            }
        }
    }

    /// All whole packets of the buffer.
    fn read(
        &self,
        decoder: &mut crate::codec::Decoder,
        buffer: &mut BytesMut,
        ping: &mut Option<Instant>,
    ) -> Result<()> {
        let now = self.now();
        let mut state = self.lock();
        loop {
            match decoder.decode(buffer) {
                Ok(None) => return Ok(()),
                Ok(Some(Packet::Pingresp)) => {
                    if ping.take().is_some() {
                        state.machine.ping_answered();
                    }
                }
                Ok(Some(Packet::Disconnect(disconnect))) => {
                    let text = disconnect.properties.as_ref().and_then(|all| all.reason_string.as_ref());
                    let said = refusal(disconnect.reason, text.map(Utf8::as_str));
                    return Err(lost(format!("the server ended the connection: {}", said.message())));
                }
                Ok(Some(packet)) => state.machine.packet(packet, now)?,
                Err(why) => return Err(lost(format!("the server sent what is no MQTT: {why}"))),
            }
        }
    }
}

struct Turn {
    failure: Option<Error>,
    closing: Option<Instant>,
    idle: bool,
    proof: bool,
    timer: Option<Duration>,
}

impl<M> State<M> {
    /// The task is woken when anything changes.
    pub(super) fn wait(&mut self, cx: &Context<'_>) {
        if !self.wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
            self.wakers.push(cx.waker().clone());
        }
    }
}

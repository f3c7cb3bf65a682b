//! One connection: bytes from its socket to the machine, and back.

use super::counters::Counters;
use super::edge::Edge;
use super::machine::{Machine, Output};
use super::stream::Stream;
use super::websocket::{WebSocket, WebSocketError};
use bytes::BytesMut;
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncRead as _, AsyncReadExt as _, AsyncWrite as _, ReadBuf};
use tokio::time::Sleep;

/// The read buffer is made so large when it is used up.
const READ: usize = 128 << 10;
/// A read is offered at least so much of it.
const MIN_READ: usize = 16 << 10;
/// Bytes of one connection before others get their turn.
const FAIR: usize = 256 << 10;
/// What is left of a buffer moves to one of its size if the buffer is larger than that and mostly empty.
const KEEP: usize = 4 << 10;
/// How long, and how much, a closed connection is still read, so that the last packet is not lost to a reset.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 1 << 20;

/// A transport that the machine knows.
pub(super) struct Connection<M: Machine> {
    id: M::Id,
    stream: RefCell<Stream>,
    websocket: Option<Box<RefCell<WebSocket>>>,
    // The front of a packet that has not wholly arrived.
    partial: RefCell<BytesMut>,
    counted: Cell<usize>,
    waker: RefCell<Option<Waker>>,
    state: Cell<State>,
    // The socket took less than there was.
    blocked: Cell<bool>,
    progressed: Cell<bool>,
    // The machine is to be told when all is out.
    unreported: Cell<bool>,
    // The machine does not want input.
    paused: Cell<bool>,
    _slot: Slot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// All is written and the machine wants it closed.
    Closing,
    Failed,
}

/// What became of what was to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wrote {
    All,
    Blocked,
    Close,
    Failed,
}

/// How a connection ends.
enum End {
    /// The peer is gone, or does not read.
    Cut,
    /// The peer is told, and may still be sending.
    Close,
}

/// A place among the connections that may be open, held as long as the socket is.
pub(super) struct Slot {
    counters: Arc<Counters>,
    listener: Rc<Cell<usize>>,
}

impl Slot {
    pub(super) fn take(counters: &Arc<Counters>, listener: &Rc<Cell<usize>>) -> Self {
        counters.open.add(1);
        listener.set(listener.get() + 1);
        Self { counters: counters.clone(), listener: listener.clone() }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.counters.open.sub(1);
        self.listener.set(self.listener.get().saturating_sub(1));
    }
}

/// Serves one connection until its end; `received` came before.
pub(super) async fn serve<M: Machine>(edge: Rc<Edge<M>>, connection: Rc<Connection<M>>, received: BytesMut) {
    let mut end = None;
    if !received.is_empty() {
        edge.scratch.borrow_mut().extend_from_slice(&received);
        end = connection.input(&edge).err();
    }
    drop(received);
    let end = match end {
        Some(end) => end,
        None => {
            let mut stalled = None;
            let (edge, connection) = (&edge, &connection);
            poll_fn(move |cx| connection.poll(edge, cx, &mut stalled)).await
        }
    };
    edge.connections.borrow_mut().remove(&connection.id);
    connection.count_partial(&edge, 0);
    edge.machine.borrow_mut().lost(connection.id, edge.now());
    edge.want_turn();
    if matches!(end, End::Close) {
        // Boxed: few connections are at this point.
        Box::pin(async {
            let _ = tokio::time::timeout(LINGER, connection.linger()).await;
        })
        .await;
    }
    drop(connection);
    edge.closed.notify_one();
}

impl<M: Machine> Connection<M> {
    /// Makes a connection known; [`serve`] is to follow.
    pub(super) fn open(edge: &Edge<M>, id: M::Id, stream: Stream, websocket: bool, slot: Slot) -> Rc<Self> {
        let connection = Rc::new(Self {
            id,
            stream: RefCell::new(stream),
            websocket: websocket.then(Box::default),
            partial: RefCell::new(BytesMut::new()),
            counted: Cell::new(0),
            waker: RefCell::new(None),
            state: Cell::new(State::Open),
            blocked: Cell::new(false),
            progressed: Cell::new(false),
            unreported: Cell::new(false),
            paused: Cell::new(false),
            _slot: slot,
        });
        edge.connections.borrow_mut().insert(id, connection.clone());
        connection
    }

    pub(super) fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    pub(super) fn wake_if_paused(&self, edge: &Edge<M>) {
        if self.paused.get() && edge.machine.borrow_mut().wants_input(self.id) {
            self.wake();
        }
    }

    fn poll(&self, edge: &Edge<M>, cx: &mut Context<'_>, stalled: &mut Option<Pin<Box<Sleep>>>) -> Poll<End> {
        {
            let mut waker = self.waker.borrow_mut();
            if waker.as_ref().is_none_or(|old| !old.will_wake(cx.waker())) {
                *waker = Some(cx.waker().clone());
            }
        }
        match self.state.get() {
            State::Open => {}
            State::Closing => return Poll::Ready(End::Close),
            State::Failed => return Poll::Ready(End::Cut),
        }
        if self.blocked.get() {
            match self.write(edge, edge.now(), cx) {
                // The machine may have more now.
                Wrote::All => edge.want_turn(),
                Wrote::Blocked => {
                    if self.progressed.take() {
                        *stalled = None;
                    }
                    let sleep =
                        stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(edge.write_timeout)));
                    if sleep.as_mut().poll(cx).is_ready() {
                        tracing::info!(id = ?self.id, "a connection was not read for {:?} and is cut", edge.write_timeout);
                        edge.counters.slow.add(1);
                        return Poll::Ready(End::Cut);
                    }
                }
                Wrote::Close => return Poll::Ready(End::Close),
                Wrote::Failed => return Poll::Ready(End::Cut),
            }
        }
        if !self.blocked.get() {
            *stalled = None;
        }
        self.poll_read(edge, cx)
    }

    fn poll_read(&self, edge: &Edge<M>, cx: &mut Context<'_>) -> Poll<End> {
        let mut total = 0;
        while total < FAIR {
            if !edge.machine.borrow_mut().wants_input(self.id) {
                // The machine touches the connection when it wants to go on.
                self.paused.set(true);
                return Poll::Pending;
            }
            if self.paused.replace(false) && !self.partial.borrow().is_empty() {
                // Whole packets may have been left.
                if let Err(end) = self.input(edge) {
                    return Poll::Ready(end);
                }
                continue;
            }
            let mut scratch = edge.scratch.borrow_mut();
            if scratch.capacity() < MIN_READ {
                scratch.reserve(READ);
            }
            let mut stream = self.stream.borrow_mut();
            let read = pin!(stream.read_buf(&mut *scratch)).poll(cx);
            drop((stream, scratch));
            match read {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(0)) => {
                    // It may have closed its side only: what is ready goes out.
                    self.write(edge, edge.now(), cx);
                    return Poll::Ready(End::Cut);
                }
                Poll::Ready(Ok(read)) => {
                    total += read;
                    if let Err(end) = self.input(edge) {
                        return Poll::Ready(end);
                    }
                    edge.pass_on();
                }
                Poll::Ready(Err(_)) => return Poll::Ready(End::Cut),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Gives what was read, behind what was kept, to the machine.
    fn input(&self, edge: &Edge<M>) -> Result<(), End> {
        let mut scratch = edge.scratch.borrow_mut();
        let mut result = Ok(());
        if let Some(websocket) = &self.websocket {
            let mut websocket = websocket.borrow_mut();
            let (kept, framing) = websocket.decode(&mut scratch);
            scratch.truncate(kept);
            if let Err(error) = framing {
                if error != WebSocketError::Closed {
                    tracing::debug!(id = ?self.id, %error, "closing a WebSocket");
                }
                websocket.close(Some(error));
                result = Err(End::Close);
            }
        }
        edge.inputs.set(edge.inputs.get() + 1);
        let now = edge.now();
        let mut partial = self.partial.borrow_mut();
        if partial.is_empty() {
            edge.machine.borrow_mut().input(self.id, &mut scratch, now);
            if !scratch.is_empty() {
                *partial = BytesMut::from(&scratch[..]);
            }
        } else {
            partial.extend_from_slice(&scratch);
            edge.machine.borrow_mut().input(self.id, &mut partial, now);
            if partial.is_empty() {
                *partial = BytesMut::new();
            } else if partial.capacity() > KEEP && partial.capacity() / 4 > partial.len() {
                *partial = BytesMut::from(&partial[..]);
            }
        }
        scratch.clear();
        let held = if partial.is_empty() { 0 } else { partial.capacity() };
        drop((partial, scratch));
        if !self.count_partial(edge, held) {
            tracing::warn!(id = ?self.id, "too many bytes of unfinished packets: a connection is cut");
            edge.counters.overfull.add(1);
            return Err(End::Cut);
        }
        if let Some(websocket) = &self.websocket
            && websocket.borrow().wants_write()
        {
            // A pong, or the answer to a close.
            self.write(edge, now, &mut Context::from_waker(Waker::noop()));
            if self.blocked.get() {
                self.wake();
            }
        }
        edge.want_turn();
        result
    }

    /// False if all connections together now hold too much.
    fn count_partial(&self, edge: &Edge<M>, held: usize) -> bool {
        let before = self.counted.replace(held);
        if before == held {
            return true;
        }
        edge.counters.partial.sub(before as u64);
        edge.counters.partial.add(held as u64);
        held < before || edge.counters.partial.get() <= edge.max_partial as u64
    }

    /// Writes what there is, as far as the socket takes it; with a waker that does nothing, [`Connection::wake`] is to follow.
    pub(super) fn write(&self, edge: &Edge<M>, now: u64, cx: &mut Context<'_>) -> Wrote {
        let wrote = self.write_out(edge, cx);
        if wrote == Wrote::All && self.unreported.take() {
            edge.machine.borrow_mut().written(self.id, now);
        }
        self.blocked.set(wrote == Wrote::Blocked);
        match wrote {
            Wrote::Close if self.state.get() == State::Open => self.state.set(State::Closing),
            Wrote::Failed => self.state.set(State::Failed),
            _ => {}
        }
        wrote
    }

    fn write_out(&self, edge: &Edge<M>, cx: &mut Context<'_>) -> Wrote {
        let mut stream = self.stream.borrow_mut();
        let mut stream = Pin::new(&mut *stream);
        loop {
            let mut machine = edge.machine.borrow_mut();
            let Some(outbox) = machine.outbox(self.id) else { return Wrote::Close };
            let framing = self.websocket.as_ref().is_some_and(|websocket| websocket.borrow().wants_write());
            if outbox.is_empty() && !framing {
                let close = outbox.close_after();
                drop(machine);
                return match stream.as_mut().poll_flush(cx) {
                    Poll::Pending => Wrote::Blocked,
                    Poll::Ready(Err(_)) => Wrote::Failed,
                    Poll::Ready(Ok(())) if close => Wrote::Close,
                    Poll::Ready(Ok(())) => Wrote::All,
                };
            }
            let written = match &self.websocket {
                None => {
                    let mut slices = Vec::with_capacity(16);
                    outbox.slices(&mut slices);
                    stream.as_mut().poll_write_vectored(cx, &slices)
                }
                Some(websocket) => {
                    let mut websocket = websocket.borrow_mut();
                    write_framed(&mut websocket, outbox, stream.as_mut(), cx)
                }
            };
            match written {
                Poll::Pending => return Wrote::Blocked,
                Poll::Ready(Err(_)) => return Wrote::Failed,
                Poll::Ready(Ok(payload)) => {
                    outbox.advance(payload);
                    self.progressed.set(true);
                    self.unreported.set(true);
                }
            }
        }
    }

    /// Says goodbye, and reads on for a while: a socket that is closed with bytes unread resets the connection, and the
    /// peer would lose what it has not read yet.
    async fn linger(&self) {
        if let Some(websocket) = &self.websocket {
            websocket.borrow_mut().close(None);
            poll_fn(|cx| self.poll_goodbye(websocket, cx)).await;
        }
        if poll_fn(|cx| Pin::new(&mut *self.stream.borrow_mut()).poll_shutdown(cx)).await.is_err() {
            return;
        }
        let mut total = 0;
        while total < LINGER_BYTES {
            let read = poll_fn(|cx| {
                let mut sink = [0; 1024];
                let mut sink = ReadBuf::new(&mut sink);
                Pin::new(&mut *self.stream.borrow_mut())
                    .poll_read(cx, &mut sink)
                    .map_ok(|()| sink.filled().len())
            });
            match read.await {
                Ok(read) if read > 0 => total += read,
                _ => return,
            }
        }
    }

    fn poll_goodbye(&self, websocket: &RefCell<WebSocket>, cx: &mut Context<'_>) -> Poll<()> {
        let mut websocket = websocket.borrow_mut();
        while websocket.wants_write() {
            let (head, _) = websocket.frame(0);
            match Pin::new(&mut *self.stream.borrow_mut()).poll_write(cx, head) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(written)) if written > 0 => websocket.advance(written),
                Poll::Ready(_) => return Poll::Ready(()),
            };
        }
        Pin::new(&mut *self.stream.borrow_mut()).poll_flush(cx).map(drop)
    }
}

/// Writes the front of `outbox` in a frame; says how much of it the socket took.
fn write_framed(
    websocket: &mut WebSocket,
    outbox: &impl Output,
    stream: Pin<&mut Stream>,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    let mut payload = Vec::with_capacity(16);
    outbox.slices(&mut payload);
    let (head, mut room) = websocket.frame(payload.iter().map(|slice| slice.len()).sum());
    let mut slices = Vec::with_capacity(payload.len() + 1);
    slices.push(IoSlice::new(head));
    for slice in &payload {
        // What came into the outbox since the header went out belongs to the next frame.
        let part = slice.len().min(room);
        room -= part;
        slices.push(IoSlice::new(&slice[..part]));
    }
    let written = stream.poll_write_vectored(cx, &slices);
    written.map_ok(|written| websocket.advance(written))
}

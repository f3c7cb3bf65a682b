//! One TCP connection: moves bytes between its socket and its session.

use super::Shared;
use super::wake::WakeSignal;
use crate::session::{Bye, Session};
use socket2::SockRef;
use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, ErrorKind, Read as _};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

/// Bytes read at once. The buffers belong to the threads: an idle connection holds none.
const READ: usize = 128 << 10;
/// Reads before another connection gets its turn.
const TURNS: usize = 16;

thread_local! {
    static INPUT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static OUTPUT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

struct Connection {
    shared: Arc<Shared>,
    stream: TcpStream,
    session: Session,
    signal: Arc<WakeSignal>,
    // What the socket did not take, from `sent` on.
    unsent: Vec<u8>,
    sent: usize,
    // Runs while the socket takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
    eof: bool,
    spin: Spin,
}

/// Waiting for the next request of a lone client without going to sleep: waking up costs as much as the disk.
#[derive(Default)]
struct Spin {
    // The last input was committed by this thread: nobody else is busy.
    worthwhile: bool,
    // Inputs for which it is not tried, after it was in vain.
    rest: u32,
    vain: u32,
}

/// How long a spin lasts at most.
const SPIN: Duration = Duration::from_micros(40);
/// Inputs that are read in a row by spinning, before others get their turn.
const SPIN_TURNS: u32 = 64;

/// Serves one connection until its end.
pub(super) async fn serve(shared: Arc<Shared>, stream: TcpStream) {
    let signal = Arc::new(WakeSignal::default());
    let key = shared.signals().insert(signal.clone());
    let session = Session::new(shared.engine.clone(), shared.hub.clone(), signal.clone());
    let mut connection = Connection {
        shared: shared.clone(),
        stream,
        session,
        signal,
        unsent: Vec::new(),
        sent: 0,
        stalled: None,
        eof: false,
        spin: Spin::default(),
    };
    poll_fn(|cx| connection.poll(cx)).await;
    drop(connection);
    shared.signals().remove(key);
    shared.closed.notify_one();
}

impl Connection {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.signal.register(cx.waker());
        self.signal.take();
        let (mut turns, mut spins) = (0, 0);
        while turns < TURNS {
            if self.shared.draining.load(Ordering::Relaxed) {
                self.session.close(Bye::ShuttingDown);
            }
            match self.poll_write(cx) {
                Ok(true) => {}
                // The socket is full: nothing more is produced, and nothing is read.
                Ok(false) => return self.poll_stalled(cx),
                Err(()) => return Poll::Ready(()),
            }
            if self.session.is_done() {
                return Poll::Ready(());
            }
            if self.eof || !self.session.wants_input() {
                return Poll::Pending;
            }
            if self.spin.worthwhile && spins < SPIN_TURNS {
                spins += 1;
                match self.spin_read() {
                    Ok(true) => continue,
                    Ok(false) => {}
                    Err(()) => return Poll::Ready(()),
                }
            }
            turns += 1;
            match self.poll_read(cx) {
                Ok(true) => {}
                Ok(false) => return Poll::Pending,
                Err(()) => return Poll::Ready(()),
            }
        }
        // Others first.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Writes what there is to write; true if the socket took it all.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Result<bool, ()> {
        loop {
            if self.sent < self.unsent.len() {
                match self.stream.poll_write_ready(cx) {
                    Poll::Pending => return Ok(false),
                    Poll::Ready(Err(_)) => return Err(()),
                    Poll::Ready(Ok(())) => {}
                }
                match self.stream.try_write(&self.unsent[self.sent..]) {
                    Ok(written) => {
                        self.sent += written;
                        self.stalled = None;
                        continue;
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                    Err(_) => return Err(()),
                }
            }
            self.unsent = Vec::new();
            self.sent = 0;
            if self.session.is_done() {
                return Ok(true);
            }
            let wrote_all = OUTPUT.with_borrow_mut(|out| {
                out.clear();
                self.session.output(out, self.shared.max_output);
                if out.is_empty() {
                    return Ok(None);
                }
                let written = match self.stream.try_write(out) {
                    Ok(written) => written,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
                    Err(_) => return Err(()),
                };
                if written < out.len() {
                    self.unsent = out[written..].to_vec();
                    return Ok(Some(false));
                }
                if out.capacity() > 4 * self.shared.max_output {
                    *out = Vec::new();
                }
                // Room for more than one turn of output: there may be more.
                Ok(if out.len() < self.shared.max_output { None } else { Some(true) })
            })?;
            if wrote_all.is_none() {
                return Ok(true);
            }
        }
    }

    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let timeout = self.shared.write_timeout;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        if stalled.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        tracing::info!("a connection was not read for {timeout:?} and is closed");
        // Best effort: whoever reads again at least finds out why.
        self.session.close(Bye::Slow);
        let _ = self.stream.try_write(b"\nbye slow this connection was not read for too long\n");
        Poll::Ready(())
    }

    /// Reads until something comes, for a moment; false if nothing came.
    fn spin_read(&mut self) -> Result<bool, ()> {
        self.spin.worthwhile = false;
        if self.spin.rest > 0 {
            self.spin.rest -= 1;
            return Ok(false);
        }
        let end = Instant::now() + SPIN;
        loop {
            // The client may be waiting for this very processor.
            std::thread::yield_now();
            // Not through the runtime, which would not look before it polls for events.
            if self.read(|stream, buffer| (&*SockRef::from(&*stream)).read(buffer))?.is_some() {
                self.spin.vain = 0;
                return Ok(true);
            }
            if Instant::now() >= end {
                break;
            }
        }
        self.spin.vain = (self.spin.vain + 1).min(8);
        self.spin.rest = 1 << self.spin.vain;
        Ok(false)
    }

    /// Reads once; false if there is nothing to read.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Result<bool, ()> {
        // Not `try_read`: this knows that a read which did not fill the buffer emptied the socket, and need not ask again.
        let read = self.read(|stream, buffer| {
            let mut buffer = ReadBuf::new(buffer);
            match Pin::new(stream).poll_read(cx, &mut buffer) {
                Poll::Ready(result) => result.map(|()| buffer.filled().len()),
                Poll::Pending => Err(ErrorKind::WouldBlock.into()),
            }
        });
        read.map(|read| read.is_some())
    }

    /// Reads what is there; `None` if nothing is.
    fn read(
        &mut self,
        receive: impl FnOnce(&mut TcpStream, &mut [u8]) -> io::Result<usize>,
    ) -> Result<Option<()>, ()> {
        INPUT.with_borrow_mut(|buffer| {
            buffer.resize(READ, 0);
            match receive(&mut self.stream, buffer) {
                Ok(0) => {
                    self.eof = true;
                    self.session.end_of_input();
                    Ok(Some(()))
                }
                Ok(read) => {
                    self.session.input(&buffer[..read]);
                    self.spin.worthwhile = self.shared.engine.flush(true);
                    Ok(Some(()))
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
                Err(_) => Err(()),
            }
        })
    }
}

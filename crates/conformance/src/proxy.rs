//! A TCP proxy that is a bad network: it delays, splits, stalls, falls silent and cuts.
//!
//! It has threads of its own and no runtime, so that it goes on while its user blocks, and serves async and blocking
//! clients alike.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Systems hand ports from 32768 up to clients, and one of those may sit where a proxy wants to listen.
const PORTS: Range<u16> = 10_000..12_000;
/// How long the broker may take to accept.
const CONNECT: Duration = Duration::from_secs(5);
/// Each connection has two; none of them does anything deep.
const STACK: usize = 128 << 10;

/// Which way no byte passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Neither.
    Both,
    /// From the client to the broker: it is heard, and hears nobody.
    ToBroker,
    /// From the broker to the client: what the client sends has effects, and no answer.
    ToClient,
}

impl Way {
    fn covers(self, to: Self) -> bool {
        self == Self::Both || self == to
    }
}

/// What is wrong with the network just now, for all connections. The default is nothing.
#[derive(Debug, Clone, Copy, Default)]
struct Weather {
    delay: Duration,
    /// Bytes in one write at most; 0: as they came.
    split: usize,
    stalled: bool,
    refuse: bool,
}

#[derive(Debug)]
struct Connection {
    client: TcpStream,
    broker: TcpStream,
    silent: Option<Way>,
    /// Directions that have ended in good order.
    ended: u8,
}

impl Connection {
    fn close(&self) {
        let _ = self.client.shutdown(Shutdown::Both);
        let _ = self.broker.shutdown(Shutdown::Both);
    }
}

#[derive(Debug, Default)]
struct State {
    weather: Weather,
    connections: HashMap<u64, Connection>,
    accepted: u64,
    /// How many have been cut, also of those that are just being made.
    cut_up_to: u64,
    closing: bool,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    target: SocketAddr,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until bytes may pass, and gives the weather; `None` when the connection is cut.
    fn may_pass(&self, id: u64, to: Way, not_before: Instant) -> Option<Weather> {
        let mut state = self.state();
        loop {
            let silent = state.connections.get(&id)?.silent.is_some_and(|way| way.covers(to));
            let left = not_before.saturating_duration_since(Instant::now());
            if silent || state.weather.stalled {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            } else if left.is_zero() {
                return Some(state.weather);
            } else {
                state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    fn close(&self, id: u64) {
        if let Some(connection) = self.state().connections.remove(&id) {
            connection.close();
        }
        self.changed.notify_all();
    }

    /// One direction has ended; with the other one the connection has.
    fn end(&self, id: u64) {
        let mut state = self.state();
        if let Some(connection) = state.connections.get_mut(&id) {
            connection.ended += 1;
            if connection.ended == 2 {
                state.connections.remove(&id);
            }
        }
    }
}

/// Listens on a port of 127.0.0.1 from 10000 to 11999. Dropping it closes what goes through it.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepting: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Connects each client that comes to `target`.
    ///
    /// # Errors
    /// When there is no free port or no thread.
    pub fn start(target: SocketAddr) -> io::Result<Self> {
        let listener = listen()?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new(), target });
        let accepting = spawn({
            let shared = Arc::clone(&shared);
            move || accept(&listener, &shared)
        })?;
        Ok(Self { shared, address, accepting: Some(accepting) })
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections there have been.
    pub fn accepted(&self) -> u64 {
        self.shared.state().accepted
    }

    fn set(&self, change: impl FnOnce(&mut Weather)) {
        change(&mut self.shared.state().weather);
        self.shared.changed.notify_all();
    }

    /// Every piece, in both directions, arrives this much later. Pieces wait one after the other, so this also limits
    /// the rate.
    pub fn delay(&self, delay: Duration) {
        self.set(|weather| weather.delay = delay);
    }

    /// Nothing is sent with more than `bytes` at once; 0 ends that.
    pub fn split(&self, bytes: usize) {
        self.set(|weather| weather.split = bytes);
    }

    /// Stops all connections, those to come too, without closing any. What is sent meanwhile arrives when it ends.
    pub fn stall(&self, on: bool) {
        self.set(|weather| weather.stalled = on);
    }

    /// Closes new connections at once; those that are open stay.
    pub fn refuse(&self, on: bool) {
        self.set(|weather| weather.refuse = on);
    }

    /// From now on no byte of the connections there are passes this way, nor does their end that way. New ones work.
    pub fn half_open(&self, way: Way) {
        for connection in self.shared.state().connections.values_mut() {
            connection.silent = Some(way);
        }
    }

    /// Good weather, and an end to what is half-open: it is closed, and what was on its way is lost.
    pub fn heal(&self) {
        let mut state = self.shared.state();
        state.weather = Weather::default();
        state.connections.retain(|_, connection| {
            if connection.silent.is_some() {
                connection.close();
            }
            connection.silent.is_none()
        });
        self.shared.changed.notify_all();
    }

    /// Closes every connection, both sides, with whatever was on its way. New ones work.
    pub fn cut(&self) {
        let mut state = self.shared.state();
        state.cut_up_to = state.accepted;
        for (_, connection) in state.connections.drain() {
            connection.close();
        }
        self.shared.changed.notify_all();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.state().closing = true;
        self.cut();
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

fn listen() -> io::Result<TcpListener> {
    let count = PORTS.end - PORTS.start;
    let from = fastrand::u16(..count);
    let mut result = Err(ErrorKind::AddrInUse.into());
    for step in 0..count {
        result = TcpListener::bind((Ipv4Addr::LOCALHOST, PORTS.start + (from + step) % count));
        if !matches!(&result, Err(why) if why.kind() == ErrorKind::AddrInUse) {
            break;
        }
    }
    result
}

fn spawn(work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name("proxy".to_owned()).stack_size(STACK).spawn(work)
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while let Ok((client, _)) = listener.accept() {
        let id = {
            let mut state = shared.state();
            if state.closing {
                return;
            }
            if state.weather.refuse {
                continue;
            }
            state.accepted += 1;
            state.accepted
        };
        let shared = Arc::clone(shared);
        // Without a thread for it the client is closed, as by a broker without room.
        let _ = spawn(move || {
            let _ = connect(client, id, &shared);
        });
    }
}

/// Makes the other half, and passes bytes on until both directions end.
fn connect(client: TcpStream, id: u64, shared: &Arc<Shared>) -> io::Result<()> {
    let broker = TcpStream::connect_timeout(&shared.target, CONNECT)?;
    client.set_nodelay(true)?;
    broker.set_nodelay(true)?;
    let (client_in, client_out) = (client.try_clone()?, client.try_clone()?);
    let (broker_in, broker_out) = (broker.try_clone()?, broker.try_clone()?);
    {
        let mut state = shared.state();
        if id <= state.cut_up_to {
            return Ok(());
        }
        state.connections.insert(id, Connection { client, broker, silent: None, ended: 0 });
    }
    let back = Arc::clone(shared);
    let spawned = spawn(move || pump(broker_in, client_out, &back, id, Way::ToClient));
    if spawned.is_err() {
        shared.close(id);
    }
    pump(client_in, broker_out, shared, id, Way::ToBroker);
    Ok(())
}

/// Passes one direction on until it ends or is cut. An end is passed on like data, and as late.
fn pump(mut from: TcpStream, mut to: TcpStream, shared: &Shared, id: u64, way: Way) {
    let mut buffer = [0; 16 << 10];
    loop {
        let read = match from.read(&mut buffer) {
            Err(why) if why.kind() == ErrorKind::Interrupted => continue,
            Err(_) => 0,
            Ok(read) => read,
        };
        let delay = shared.state().weather.delay;
        let Some(mut weather) = shared.may_pass(id, way, Instant::now() + delay) else { return };
        let mut rest = buffer.get(..read).unwrap_or_default();
        while !rest.is_empty() {
            let size = if weather.split == 0 { rest.len() } else { weather.split.min(rest.len()) };
            let (piece, left) = rest.split_at(size);
            if to.write_all(piece).is_err() {
                // Whoever was to read it is gone.
                return shared.close(id);
            }
            rest = left;
            if !rest.is_empty() {
                match shared.may_pass(id, way, Instant::now()) {
                    Some(now) => weather = now,
                    None => return,
                }
            }
        }
        if read == 0 {
            let _ = to.shutdown(Shutdown::Write);
            return shared.end(id);
        }
    }
}

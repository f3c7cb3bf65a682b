//! A TCP proxy that is a bad network: it delays, splits, stalls and cuts.

use crate::ports::Port;
use anyhow::Result;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// What is wrong with the network just now. The default is nothing.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Weather {
    delay: Duration,
    /// Bytes in one write at most; 0: as they came.
    split: usize,
    /// Nothing passes and nothing is closed.
    half_open: bool,
    /// New connections are closed at once.
    refuse: bool,
}

#[derive(Debug)]
struct State {
    weather: Weather,
    /// A connection lives as long as this is what it was when it was accepted.
    generation: u64,
    connections: Vec<TcpStream>,
    closing: bool,
    accepted: u64,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    upstream: SocketAddr,
}

/// A proxy on a loopback port. Dropping it cuts what goes through it.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    port: Port,
    accepting: Option<JoinHandle<()>>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `generation` may send, and gives the weather; `None` if it is cut meanwhile.
    fn may_send(&self, generation: u64, not_before: Instant) -> Option<Weather> {
        let mut state = self.state();
        loop {
            if state.generation != generation {
                return None;
            }
            let left = not_before.saturating_duration_since(Instant::now());
            if state.weather.half_open {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            } else if left.is_zero() {
                return Some(state.weather);
            } else {
                let waited = self.changed.wait_timeout(state, left);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }
}

impl Proxy {
    /// Listens on a free port of 127.0.0.1 and connects each client to `upstream`.
    pub fn start(upstream: SocketAddr) -> Result<Self> {
        let port = Port::claim()?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port.number()))?;
        let state = State {
            weather: Weather::default(),
            generation: 0,
            connections: Vec::new(),
            closing: false,
            accepted: 0,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new(), upstream });
        let accepting = Some(thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&listener, &shared)
        }));
        Ok(Self { shared, port, accepting })
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port.number()))
    }

    /// How many connections there have been.
    pub fn accepted(&self) -> u64 {
        self.shared.state().accepted
    }

    fn set(&self, change: impl FnOnce(&mut Weather)) {
        change(&mut self.shared.state().weather);
        self.shared.changed.notify_all();
    }

    /// Every piece, in both directions, arrives this much later. Pieces wait one after the other, so this
    /// also limits the rate.
    pub fn delay(&self, delay: Duration) {
        self.set(|weather| weather.delay = delay);
    }

    /// Nothing is sent with more than `bytes` at once; 0 ends that.
    pub fn split(&self, bytes: usize) {
        self.set(|weather| weather.split = bytes);
    }

    /// Stops forwarding without closing anything, as when a cable is pulled. What is sent meanwhile arrives
    /// when it ends, unless the connection is cut first.
    pub fn half_open(&self, on: bool) {
        self.set(|weather| weather.half_open = on);
    }

    /// Closes new connections at once; those that are open stay.
    pub fn refuse(&self, on: bool) {
        self.set(|weather| weather.refuse = on);
    }

    /// Closes every connection, both sides, with whatever was on its way. New ones are accepted.
    pub fn cut(&self) {
        let mut state = self.shared.state();
        state.generation += 1;
        for connection in state.connections.drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
        self.shared.changed.notify_all();
    }

    /// Good weather again.
    pub fn heal(&self) {
        self.set(|weather| *weather = Weather::default());
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.state().closing = true;
        self.cut();
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address());
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while let Ok((client, _)) = listener.accept() {
        let generation = {
            let mut state = shared.state();
            if state.closing {
                return;
            }
            if state.weather.refuse {
                continue;
            }
            state.accepted += 1;
            state.generation
        };
        let Ok(server) = TcpStream::connect_timeout(&shared.upstream, Duration::from_secs(5)) else {
            continue;
        };
        let _ = client.set_nodelay(true);
        let _ = server.set_nodelay(true);
        let clones = (client.try_clone(), server.try_clone(), client.try_clone(), server.try_clone());
        let (Ok(client_out), Ok(server_out), Ok(client_cut), Ok(server_cut)) = clones else { continue };
        {
            let mut state = shared.state();
            if state.generation != generation {
                continue;
            }
            state.connections.retain(|connection| connection.peer_addr().is_ok());
            state.connections.extend([client_cut, server_cut]);
        }
        for (from, to) in [(client, server_out), (server, client_out)] {
            let shared = Arc::clone(shared);
            thread::spawn(move || pump(from, to, &shared, generation));
        }
    }
}

/// Forwards one direction until it ends or is cut. An end is passed on like data, and as late.
fn pump(mut from: TcpStream, mut to: TcpStream, shared: &Shared, generation: u64) {
    let mut buffer = [0; 16 * 1024];
    loop {
        let read = match from.read(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => 0,
            Ok(read) => read,
        };
        let delay = shared.state().weather.delay;
        let Some(mut weather) = shared.may_send(generation, Instant::now() + delay) else { return };
        let mut rest = &buffer[..read];
        while !rest.is_empty() {
            let piece = if weather.split == 0 { rest.len() } else { weather.split.min(rest.len()) };
            if to.write_all(&rest[..piece]).is_err() {
                let _ = from.shutdown(Shutdown::Read);
                return;
            }
            rest = &rest[piece..];
            if !rest.is_empty() {
                match shared.may_send(generation, Instant::now()) {
                    Some(now) => weather = now,
                    None => return,
                }
            }
        }
        if read == 0 {
            let _ = to.shutdown(Shutdown::Write);
            return;
        }
    }
}

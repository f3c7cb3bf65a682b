//! The load: one thread, one epoll, any number of connections. What a connection says and how it
//! reads answers is its `Driver`; this file only moves bytes, so that every server is loaded by the
//! same code at the same cost.

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use rustix::event::{Timespec, epoll};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// One side of a connection.
pub(crate) trait Driver {
    /// Appends what is to be sent now. Called when everything before it has left.
    fn fill(&mut self, out: &mut Vec<u8>, tally: &mut Tally);
    /// Takes whole answers from the front of `input`; gives how many bytes they had. An answer that
    /// is not the expected one is an error and ends the run.
    fn take(&mut self, input: &[u8], tally: &mut Tally) -> Result<usize>;
}

/// What is counted, over all connections.
pub(crate) struct Tally {
    /// Nanoseconds since the loader was made, of the bytes being worked on.
    pub(crate) now: u64,
    /// No publisher sends past this many events.
    pub(crate) limit: u64,
    /// Events sent, events answered `ok`, events whose ack was answered.
    pub(crate) sent: u64,
    pub(crate) confirmed: u64,
    pub(crate) delivered: u64,
    pub(crate) acked: u64,
    /// Events that were delivered before.
    pub(crate) twice: u64,
    /// Greetings read.
    pub(crate) greeted: u64,
    /// Nanoseconds from sending a publish to its `ok`, one count an event.
    pub(crate) publish: Histogram<u64>,
    /// Nanoseconds from sending a publish to its delivery at the subscriber.
    pub(crate) delivery: Histogram<u64>,
    /// Connections that may have become able to send by what others received.
    pub(crate) wake: Vec<usize>,
}

impl Tally {
    fn new() -> Self {
        // Up to ten minutes, three digits: more than any run here.
        let hist = || {
            let mut hist =
                Histogram::new_with_bounds(1_000, 600_000_000_000, 3).expect("these bounds are valid");
            hist.auto(true);
            hist
        };
        Self {
            now: 0,
            limit: u64::MAX,
            sent: 0,
            confirmed: 0,
            delivered: 0,
            acked: 0,
            twice: 0,
            greeted: 0,
            publish: hist(),
            delivery: hist(),
            wake: Vec::new(),
        }
    }

    /// Events sent and not yet answered.
    pub(crate) fn open(&self) -> u64 {
        self.sent - self.confirmed
    }
}

struct Conn {
    stream: TcpStream,
    /// The start of an answer whose end has not come yet.
    rest: Vec<u8>,
    out: Vec<u8>,
    out_at: usize,
    waits_to_write: bool,
    driver: Box<dyn Driver>,
}

/// All connections of one load.
pub(crate) struct Loader {
    epoll: OwnedFd,
    conns: Vec<Conn>,
    pub(crate) tally: Tally,
    /// How long to wait after something came, so that more comes with it: one read then brings many
    /// packets, and one write answers them.
    pub(crate) linger: Duration,
    start: Instant,
    scratch: Vec<u8>,
    events: Vec<epoll::Event>,
}

/// What one read may bring.
const READ: usize = 256 * 1024;

/// Not a connection but the timer of `run_ticking`.
const TIMER: u64 = u64::MAX;

impl Loader {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            conns: Vec::new(),
            tally: Tally::new(),
            linger: Duration::ZERO,
            start: Instant::now(),
            scratch: vec![0; READ],
            events: Vec::with_capacity(1024),
        })
    }

    /// Adds a connection, connected or connecting.
    pub(crate) fn add(&mut self, stream: TcpStream, driver: impl Driver + 'static) -> Result<()> {
        stream.set_nonblocking(true)?;
        let _ = stream.set_nodelay(true);
        let data = epoll::EventData::new_u64(self.conns.len() as u64);
        epoll::add(&self.epoll, &stream, data, epoll::EventFlags::IN)?;
        let driver = Box::new(driver);
        self.conns.push(Conn {
            stream,
            rest: Vec::new(),
            out: Vec::new(),
            out_at: 0,
            waits_to_write: false,
            driver,
        });
        Ok(())
    }

    /// Adds a connection and lets it send at once.
    pub(crate) fn add_and_send(&mut self, stream: TcpStream, driver: impl Driver + 'static) -> Result<()> {
        self.add(stream, driver)?;
        self.send(self.conns.len() - 1)
    }

    /// Gives every connection a new driver.
    pub(crate) fn drive<D: Driver + 'static>(&mut self, mut driver: impl FnMut() -> D) {
        for conn in &mut self.conns {
            conn.driver = Box::new(driver());
        }
    }

    /// Lets every connection send what it has to say.
    pub(crate) fn kick(&mut self) -> Result<()> {
        for index in 0..self.conns.len() {
            self.send(index)?;
        }
        Ok(())
    }

    /// Runs for `time`; every `tick` the first `senders` connections may send. The timeout of epoll has
    /// milliseconds only, so it is a timer that wakes it.
    pub(crate) fn run_ticking(&mut self, time: Duration, tick: Duration, senders: usize) -> Result<()> {
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        let every = Timespec::try_from(tick).context("too long a tick")?;
        let every = Itimerspec { it_interval: every, it_value: every };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &every)?;
        epoll::add(&self.epoll, &timer, epoll::EventData::new_u64(TIMER), epoll::EventFlags::IN)?;
        let until = Instant::now() + time;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            self.step(left)?;
            // It cannot be read when it was something else that woke us.
            if rustix::io::read(&timer, &mut [0_u8; 8]).is_ok() {
                for index in 0..senders.min(self.conns.len()) {
                    self.send(index)?;
                }
            }
        }
        epoll::delete(&self.epoll, &timer)?;
        Ok(())
    }

    /// Nanoseconds since it was made.
    pub(crate) fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// Runs for `time`.
    pub(crate) fn run_for(&mut self, time: Duration) -> Result<()> {
        let until = Instant::now() + time;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            self.step(left)?;
        }
        Ok(())
    }

    /// Runs until `done`; past `limit` it is an error.
    pub(crate) fn run_until(&mut self, limit: Duration, done: impl Fn(&Tally) -> bool) -> Result<()> {
        let until = Instant::now() + limit;
        while !done(&self.tally) {
            let Some(left) = until.checked_duration_since(Instant::now()) else {
                let tally = &self.tally;
                bail!(
                    "not done after {limit:?}: {} greeted, {} sent, {} confirmed, {} delivered, {} acked",
                    tally.greeted,
                    tally.sent,
                    tally.confirmed,
                    tally.delivered,
                    tally.acked
                );
            };
            self.step(left.min(Duration::from_millis(100)))?;
        }
        Ok(())
    }

    /// Waits for what is ready and works on it.
    pub(crate) fn step(&mut self, wait: Duration) -> Result<()> {
        let timeout = Timespec::try_from(wait).context("too long a wait")?;
        let mut events = std::mem::take(&mut self.events);
        events.clear();
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if !self.linger.is_zero() {
            std::thread::sleep(self.linger);
        }
        self.clock();
        for event in &events {
            // The kernel's struct is packed: fields are copied out, not borrowed.
            let (data, flags) = (event.data, event.flags);
            if data.u64() == TIMER {
                continue;
            }
            let index = data.u64() as usize;
            if flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::HUP | epoll::EventFlags::ERR) {
                self.receive(index)?;
            }
            self.send(index)?;
        }
        self.events = events;
        while let Some(index) = self.tally.wake.pop() {
            self.send(index)?;
        }
        Ok(())
    }

    fn clock(&mut self) {
        self.tally.now = self.now();
    }

    fn receive(&mut self, index: usize) -> Result<()> {
        let conn = &mut self.conns[index];
        let kept = conn.rest.len();
        if kept + 4096 > self.scratch.len() {
            self.scratch.resize(kept + READ, 0);
        }
        self.scratch[..kept].copy_from_slice(&conn.rest);
        let read = match conn.stream.read(&mut self.scratch[kept..]) {
            Ok(0) => bail!("the server closed a connection{}", said(&conn.rest)),
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error).context("reading from the server"),
        };
        let input = &self.scratch[..kept + read];
        let used = conn.driver.take(input, &mut self.tally)?;
        conn.rest.clear();
        conn.rest.extend_from_slice(&input[used..]);
        Ok(())
    }

    fn send(&mut self, index: usize) -> Result<()> {
        let conn = &mut self.conns[index];
        loop {
            if conn.out.is_empty() {
                // The time of sending, not of the wake-up: work on other connections lies between.
                self.tally.now = self.start.elapsed().as_nanos() as u64;
                conn.driver.fill(&mut conn.out, &mut self.tally);
                if conn.out.is_empty() {
                    return Ok(());
                }
            }
            let blocked = write_all_it_takes(conn)?;
            if blocked == conn.waits_to_write {
                return Ok(());
            }
            conn.waits_to_write = blocked;
            let mut flags = epoll::EventFlags::IN;
            flags.set(epoll::EventFlags::OUT, blocked);
            epoll::modify(&self.epoll, &conn.stream, epoll::EventData::new_u64(index as u64), flags)?;
            if blocked {
                return Ok(());
            }
            // It was blocked and is not any more: the driver may have more since.
        }
    }
}

/// Gives whether bytes are left.
fn write_all_it_takes(conn: &mut Conn) -> Result<bool> {
    while conn.out_at < conn.out.len() {
        match conn.stream.write(&conn.out[conn.out_at..]) {
            Ok(wrote) => conn.out_at += wrote,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
            Err(error) => return Err(error).context("writing to the server"),
        }
    }
    conn.out.clear();
    conn.out_at = 0;
    Ok(false)
}

/// The last words of a server, for an error.
fn said(rest: &[u8]) -> String {
    if rest.is_empty() { String::new() } else { format!(" after `{}`", String::from_utf8_lossy(rest)) }
}

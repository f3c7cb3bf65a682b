//! What every test from outside needs: a server process, a client that speaks lines, and ways to be rude.

mod client;
mod server;

use std::net::TcpListener;
use std::process::Command;
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

pub(crate) use client::{Client, Event, Item};
pub(crate) use server::{Server, Setup};

/// How long anything that must happen may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

/// Long enough to say that nothing came.
pub(crate) const A_WHILE: Duration = Duration::from_millis(150);

static TURNS: RwLock<()> = RwLock::new(());

/// Held by a test that may run beside others.
pub(crate) fn turn() -> RwLockReadGuard<'static, ()> {
    TURNS.read().unwrap_or_else(PoisonError::into_inner)
}

/// Held by a test that measures time or memory, or that needs the whole machine.
pub(crate) fn alone() -> RwLockWriteGuard<'static, ()> {
    TURNS.write().unwrap_or_else(PoisonError::into_inner)
}

/// A loopback port below the range the kernel gives to clients, never given twice by this process.
pub(crate) fn free_port() -> u16 {
    static GIVEN: Mutex<Vec<u16>> = Mutex::new(Vec::new());
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let port = fastrand::u16(12_000..32_000);
        if !given.contains(&port) && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            given.push(port);
            return port;
        }
    }
}

/// Polls until `ready` says yes; panics with `what` after [`PATIENCE`].
pub(crate) fn eventually(what: &str, mut ready: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !ready() {
        assert!(Instant::now() < end, "not in {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A seed from `POSTROAD_SEED`, else a new one; printed, so that a failure can be run again.
pub(crate) fn seed(test: &str) -> fastrand::Rng {
    let seed = std::env::var("POSTROAD_SEED")
        .ok()
        .map_or_else(|| fastrand::u64(..), |text| text.parse().expect("POSTROAD_SEED is a number"));
    println!("{test}: POSTROAD_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

/// True when the program can be started at all.
pub(crate) fn have(program: &str) -> bool {
    Command::new("sh")
        .args(["-c", &format!("command -v {program} >/dev/null")])
        .status()
        .is_ok_and(|status| status.success())
}

/// Fails unless `program` is there, and says how to get it.
pub(crate) fn need(program: &str, package: &str) {
    assert!(have(program), "this test needs `{program}`: install it with `apt-get install {package}`");
}

/// `program`, ended after half a minute whatever it does: a test that waits for it does not hang.
pub(crate) fn limited(program: &str) -> Command {
    let mut command = Command::new("timeout");
    command.args(["-k", "1", "30", program]);
    command
}

/// A part of the suite that this machine cannot run: said aloud, and a failure unless
/// `POSTROAD_ALLOW_MISSING` is set.
pub(crate) fn missing(what: &str) {
    println!("not run: {what}");
    assert!(
        std::env::var_os("POSTROAD_ALLOW_MISSING").is_some(),
        "not run: {what}. Set POSTROAD_ALLOW_MISSING=1 to accept that."
    );
}

/// Lets this process open `wanted` files, as far as its hard limit (or being root) allows.
/// The answer is the limit in force.
pub(crate) fn raise_nofile(wanted: u64) -> u64 {
    let pid = std::process::id().to_string();
    let now = || {
        let limits = std::fs::read_to_string("/proc/self/limits").expect("/proc/self/limits");
        let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("nofile").to_owned();
        let mut words = line.split_whitespace().skip(3);
        let mut next = || words.next().expect("a limit").parse::<u64>().unwrap_or(u64::MAX);
        (next(), next())
    };
    let (soft, hard) = now();
    if soft < wanted {
        for limit in [format!("{wanted}:{}", hard.max(wanted)), format!("{hard}:{hard}")] {
            let done = Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={limit}")]).output();
            if done.is_ok_and(|done| done.status.success()) {
                break;
            }
        }
    }
    now().0
}

//! What a backend brings to be tested: where to get fresh ones, how fast they are, and what may be done to them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use postroad_core::{Backend, BoxFuture, Capabilities, Error, Timestamp};

/// Why a case failed, or why there was nothing to test.
#[derive(Clone, PartialEq, Eq)]
pub struct Failure(String);

impl Failure {
    /// With this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(error.to_string())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self(error.to_string())
    }
}

/// How long the cases wait for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tempo {
    /// What must come has come after this, or the case fails.
    pub patience: Duration,
    /// What must not come is waited for this long.
    pub quiet: Duration,
    /// A lease that cases wait out. At least the shortest that the backend takes, and long enough that a verdict given
    /// at once is in time.
    pub lease: Duration,
    /// The whole case.
    pub limit: Duration,
}

impl Default for Tempo {
    /// 10 s, 150 ms, 600 ms, 90 s: for a broker on this machine.
    fn default() -> Self {
        Self {
            patience: Duration::from_secs(10),
            quiet: Duration::from_millis(150),
            lease: Duration::from_millis(600),
            limit: Duration::from_secs(90),
        }
    }
}

/// Which time the cases run in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Time {
    /// The world's, on a runtime with two threads.
    #[default]
    Real,
    /// Tokio's paused time: it jumps on whenever everybody waits. Only for backends that have no socket, no thread and
    /// no other clock than Tokio's.
    Virtual,
}

/// A backend to be tested.
pub trait Harness: Send + Sync {
    /// Its name: of its report, and of its file in `capabilities/`. Letters, digits, `-`, `.`.
    fn name(&self) -> &str;

    /// What it says that it can do. A case checks that its clients say the same.
    fn capabilities(&self) -> Capabilities;

    /// What [`Environment::chaos`] will be able to do.
    fn chaos(&self) -> ChaosAbilities {
        ChaosAbilities::NONE
    }

    /// How long to wait for it.
    fn tempo(&self) -> Tempo {
        Tempo::default()
    }

    /// Which time it lives in.
    fn time(&self) -> Time {
        Time::Real
    }

    /// A place for one case, where nobody else is: a broker of its own, or subjects of its own on a shared one.
    fn start(&self, case: &str) -> BoxFuture<'_, Result<Box<dyn Environment>, Failure>>;
}

/// Where one case runs.
pub trait Environment: Send + Sync {
    /// A client of its own, with connections of its own.
    fn connect(&self) -> BoxFuture<'_, Result<Arc<dyn Backend>, Failure>>;

    /// What all subjects of the case begin with, without a `/` at its end. Unique, also over several runs.
    fn prefix(&self) -> &str;

    /// The time on the backend's clock.
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    /// What may be done to it.
    fn chaos(&self) -> Option<&dyn Chaos> {
        None
    }

    /// Ends everything that was started for the case.
    fn stop(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// Which of the methods of [`Chaos`] a harness has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ChaosAbilities {
    /// [`Chaos::restart`].
    pub restart: bool,
    /// [`Chaos::kill`].
    pub kill: bool,
    /// [`Chaos::cut`].
    pub cut: bool,
    /// [`Chaos::half_open`] and [`Chaos::heal`].
    pub half_open: bool,
    /// [`Chaos::pause`] and [`Chaos::resume`].
    pub pause: bool,
}

impl ChaosAbilities {
    /// Nothing.
    pub const NONE: Self = Self { restart: false, kill: false, cut: false, half_open: false, pause: false };
}

fn cannot(what: &str) -> BoxFuture<'_, Result<(), Failure>> {
    Box::pin(std::future::ready(Err(Failure::new(format!("this harness cannot {what}")))))
}

/// What may be done to a broker and to the way there. All clients reach it at the same place afterwards.
pub trait Chaos: Send + Sync {
    /// Stops the broker in the orderly way and starts it again on the same data.
    fn restart(&self) -> BoxFuture<'_, Result<(), Failure>> {
        cannot("restart the broker")
    }

    /// Ends the broker without a word, as `kill -9` does, and starts it again on the same data.
    fn kill(&self) -> BoxFuture<'_, Result<(), Failure>> {
        cannot("kill the broker")
    }

    /// Closes all connections; new ones work.
    fn cut(&self) -> BoxFuture<'_, Result<(), Failure>> {
        cannot("cut connections")
    }

    /// From now on no byte of the connections there are arrives anywhere, and none of them is closed. New ones work.
    fn half_open(&self) -> BoxFuture<'_, Result<(), Failure>> {
        cannot("make connections half-open")
    }

    /// Closes what is half-open.
    fn heal(&self) -> BoxFuture<'_, Result<(), Failure>> {
        cannot("heal connections")
    }

    /// The broker stands still, with its connections open.
    fn pause(&self) -> BoxFuture<'_, Result<(), Failure>> {
        cannot("pause the broker")
    }

    /// It goes on.
    fn resume(&self) -> BoxFuture<'_, Result<(), Failure>> {
        cannot("resume the broker")
    }
}

//! From a seed to the steps of a world.

use fastrand::Rng;

/// What kind of thing happens in a step. What exactly depends on the numbers of the step and on what there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A client does something, or connects.
    Act,
    /// Bytes reach the broker.
    Up,
    /// Bytes reach a client.
    Down,
    /// The broker writes what it has to say.
    Pump,
    /// The committing thread gets its turn.
    Commit,
    /// Time passes.
    Time,
    /// The second hand of the engine's timer: retention, free space.
    Maintain,
    /// A connection breaks, in one of several ways.
    Cut,
    /// A connection goes silent: both ends believe in it.
    HalfOpen,
    /// The broker finds out that a connection is dead.
    Reap,
    /// A client is killed.
    KillClient,
    /// The broker is killed between two calls to the disk.
    KillBroker,
    /// The broker will be killed in one of its next calls to the disk.
    ArmKill,
    /// The broker is stopped politely.
    Restart,
    /// The disk is full, or has space again.
    Space,
    /// One of the next calls to the disk fails.
    FailCall,
}

/// How often each kind happens. The kills of brokers come on top, see [`Plan`].
const WEIGHTS: [(Kind, u16); 16] = [
    (Kind::Act, 380),
    (Kind::Up, 260),
    (Kind::Down, 180),
    (Kind::Pump, 90),
    (Kind::Commit, 80),
    (Kind::Time, 24),
    (Kind::Maintain, 4),
    (Kind::Cut, 6),
    (Kind::HalfOpen, 2),
    (Kind::Reap, 4),
    (Kind::KillClient, 3),
    (Kind::KillBroker, 3),
    (Kind::ArmKill, 4),
    (Kind::Restart, 1),
    (Kind::Space, 2),
    (Kind::FailCall, 1),
];

/// One step: a kind and the numbers that choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Step {
    /// What kind of thing happens.
    pub kind: Kind,
    /// Chooses whom it happens to.
    pub who: u32,
    /// Chooses how.
    pub how: u32,
}

/// What a world is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Climate {
    /// A bit for each client that takes part.
    pub clients: u32,
    /// A message with an id is stored once.
    pub dedup: bool,
    /// The thread that reads also commits.
    pub inline: bool,
    /// Bytes of a segment.
    pub segment_bytes: u64,
    /// Bytes of one commit to one log, about.
    pub batch_bytes: usize,
    /// Committed bytes kept in memory.
    pub tail_bytes: u64,
    /// Filler is written ahead, and what must be durable goes around the page cache.
    pub ahead: bool,
    /// Bytes that the broker writes to a connection at once.
    pub output: usize,
    /// Bytes that a pipe holds.
    pub pipe: usize,
    /// Messages that a topic keeps, if not all.
    pub keep: Option<u64>,
    /// A topic keeps no more than its durable subscriptions need.
    pub interest: bool,
    /// Single calls to the disk may fail, and it may be full.
    pub disk_faults: bool,
    /// Clients must log in.
    pub token: bool,
    /// What happens to a durable subscription that is too far behind.
    pub lag: Option<Lag>,
}

/// A limit of unsettled messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lag {
    /// So many may be.
    pub events: u64,
    /// Who has more is ended, else told.
    pub ends: bool,
}

/// Clients of a world at most.
pub const CLIENTS: u32 = 8;

impl Climate {
    fn of(rng: &mut Rng) -> Self {
        let pick = |rng: &mut Rng, of: &[usize]| of[rng.usize(..of.len())];
        Self {
            clients: (1 << CLIENTS) - 1,
            dedup: rng.u8(..4) == 0,
            inline: rng.bool(),
            segment_bytes: pick(rng, &[900, 2500, 2500, 8000]) as u64,
            batch_bytes: pick(rng, &[300, 1 << 20, 1 << 20]),
            tail_bytes: pick(rng, &[0, 2000, 1 << 20]) as u64,
            ahead: rng.u8(..4) == 0,
            output: pick(rng, &[100, 1000, 64 << 10]),
            pipe: pick(rng, &[64, 1000, 64 << 10]),
            keep: (rng.u8(..6) == 0).then(|| rng.u64(3..30)),
            interest: rng.u8(..6) == 0,
            disk_faults: rng.u8(..4) == 0,
            token: rng.u8(..6) == 0,
            lag: (rng.u8(..6) == 0).then(|| Lag { events: rng.u64(2..25), ends: rng.bool() }),
        }
    }
}

/// A world to be: its climate and its steps.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed it came from.
    pub seed: u64,
    /// What it is like.
    pub climate: Climate,
    /// What happens.
    pub steps: Vec<Step>,
    /// What happens besides, one step after the other, until clients have sent [`COMMANDS`].
    pub reserve: Vec<Step>,
}

/// Commands that clients send in a world at least.
pub const COMMANDS: u64 = 200;

impl Plan {
    /// The plan of `seed`. At least one step kills the broker.
    pub fn of(seed: u64, steps: usize) -> Self {
        // Neighbouring seeds must not make similar worlds.
        let mut rng = Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5dee_ce66);
        let climate = Climate::of(&mut rng);
        let mut list = draw(&mut rng, &climate, steps);
        if !list.is_empty() {
            let at = rng.usize(list.len() / 4..list.len());
            list[at].kind = if rng.bool() { Kind::KillBroker } else { Kind::ArmKill };
        }
        let reserve = draw(&mut rng, &climate, steps);
        Self { seed, climate, steps: list, reserve }
    }
}

fn draw(rng: &mut Rng, climate: &Climate, count: usize) -> Vec<Step> {
    let total: u16 = WEIGHTS.iter().map(|(_, weight)| weight).sum();
    let mut list = Vec::with_capacity(count);
    for _ in 0..count {
        let mut at = rng.u16(..total);
        let kind = WEIGHTS.iter().find(|(_, weight)| {
            let here = at < *weight;
            at = at.saturating_sub(*weight);
            here
        });
        let kind = kind.map_or(Kind::Act, |(kind, _)| *kind);
        if climate.disk_faults || !matches!(kind, Kind::Space | Kind::FailCall) {
            list.push(Step { kind, who: rng.u32(..), how: rng.u32(..) });
        }
    }
    list
}

//! The machine that the broker runs on: a simulated disk, a clock that stands still, and one life of the engine after another.

use crate::history::{Audit, DeadLetter, Spec, SubSpec};
use crate::plan::Climate;
use postroad_core::{Clock as _, ManualClock, Timestamp};
use postroad_engine::log::JournalStore;
use postroad_engine::{Death, Engine, EngineConfig, EngineError, LagPolicy, MemberStats, Planted, Retention};
use postroad_journal::CommitterOptions;
use postroad_journal::storage::{CrashMode, SimStorage};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// When worlds begin, milliseconds since 1970.
const START: u64 = 1_700_000_000_000;

/// A process that serves.
pub struct Life {
    /// The broker without a protocol.
    pub engine: Arc<Engine>,
    store: Arc<JournalStore>,
}

impl Life {
    /// The committing thread gets its turn: one commit. False if there was nothing to do.
    ///
    /// # Errors
    /// The disk is full, has failed, or the machine is dead.
    pub fn commit(&self) -> Result<bool, String> {
        self.store.committer().commit_now().map_err(|error| error.to_string())
    }
}

/// Disk, clock, and the process if it runs.
pub struct Machine {
    /// The disk.
    pub storage: SimStorage,
    /// The process, if one runs.
    pub life: Option<Life>,
    clock: Arc<ManualClock>,
    climate: Climate,
    planted: Planted,
    lives: u64,
    seed: u64,
}

impl Machine {
    /// A machine with an empty disk, switched on.
    pub fn new(seed: u64, climate: Climate, planted: Planted) -> Self {
        Self {
            storage: SimStorage::new(seed),
            life: None,
            clock: Arc::new(ManualClock::new(Timestamp::from_millis(START))),
            climate,
            planted,
            lives: 0,
            seed,
        }
    }

    /// Milliseconds since the beginning of the world.
    pub fn now(&self) -> u64 {
        self.clock.now().as_millis() - START
    }

    /// Time passes; the timers of the process are told.
    pub fn pass(&self, millis: u64) {
        self.clock.advance(Duration::from_millis(millis));
        if let Some(life) = &self.life {
            // An error is kept by the log for everybody who asks.
            let _ = life.engine.tick();
        }
    }

    /// Milliseconds until a timer has something to do.
    pub fn next_deadline(&self) -> Option<u64> {
        let due = self.life.as_ref()?.engine.next_deadline()?;
        Some(due.saturating_sub(self.clock.now().as_millis()))
    }

    /// Starts a process.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn start(&mut self) -> Result<(), EngineError> {
        self.lives += 1;
        let climate = &self.climate;
        let options = CommitterOptions {
            max_batch_bytes: climate.batch_bytes,
            preallocate: climate.ahead,
            direct_io: climate.ahead,
            tail_cache_bytes: climate.tail_bytes,
            disk_floor: 0,
            max_open_files: 2,
            planted: self.planted.journal,
            ..CommitterOptions::default()
        };
        let config = EngineConfig {
            segment_bytes: climate.segment_bytes,
            retention: Retention {
                max_events: climate.keep,
                interest: climate.interest,
                ..Retention::default()
            },
            dedup_window: if climate.dedup { Duration::from_secs(24 * 3600) } else { Duration::ZERO },
            lag_events: climate.lag.map(|lag| lag.events),
            lag_policy: match climate.lag {
                Some(lag) if lag.ends => LagPolicy::Detach,
                _ => LagPolicy::Note,
            },
            planted: self.planted,
            ..EngineConfig::default()
        };
        let disk = Arc::new(self.storage.clone());
        let salt = self.seed.wrapping_add(self.lives << 32);
        let store = JournalStore::open_on(disk, Path::new("/data"), climate.segment_bytes, options, salt)?;
        let store = Arc::new(store);
        let engine = Engine::open_with(config, store.clone(), Some(self.clock.clone()))?;
        self.life = Some(Life { engine, store });
        Ok(())
    }

    /// The process is gone, and with it what `mode` takes. Let go of everything that holds the engine afterwards.
    pub fn kill(&mut self, mode: CrashMode) {
        self.storage.crash(mode);
        self.life = None;
    }

    /// Retention runs, as it does every second.
    pub fn maintain(&self) {
        if let Some(life) = &self.life {
            // An error is kept by the log for everybody who asks.
            let _ = life.engine.maintain();
        }
    }

    /// The most unsettled messages in one topic of each durable subscription that there is.
    pub fn lags(&self, topics: &[&str], specs: &[SubSpec]) -> BTreeMap<Spec, u64> {
        let mut lags = BTreeMap::new();
        let Some(life) = &self.life else { return lags };
        for member in topics.iter().filter_map(|topic| life.engine.stream(topic)).flat_map(|s| s.members()) {
            if let Some(spec) = spec_of(specs, &member) {
                let most: &mut u64 = lags.entry(spec).or_default();
                *most = member.lag.max(*most);
            }
        }
        lags
    }

    /// The first message that each topic keeps.
    pub fn firsts(&self, topics: &[&str]) -> Vec<u64> {
        let engine = self.life.as_ref().map(|life| &life.engine);
        let first = |topic| engine.and_then(|engine| engine.stream(topic)).map_or(1, |s| s.log_stats().first);
        topics.iter().map(|topic| first(topic)).collect()
    }

    /// What the disk holds. A process must run.
    ///
    /// # Errors
    /// Something cannot be read.
    pub fn audit(&self, topics: &[&str], specs: &[SubSpec]) -> Result<Audit, String> {
        let engine = &self.life.as_ref().ok_or("no process runs")?.engine;
        let mut audit = Audit::default();
        for (at, topic) in topics.iter().enumerate() {
            let at = at as u8;
            let Some(stream) = engine.stream(topic) else { continue };
            let stats = stream.log_stats();
            let (first, last) = (stats.first, stats.last);
            audit.first.insert(at, first);
            let log = audit.logs.entry(at).or_default();
            for seq in first..=last {
                let event = stream.read(seq).map_err(|error| format!("{topic}/{seq}: {error}"))?;
                let event = event.ok_or_else(|| format!("{topic}/{seq} is not there, {last} is"))?;
                log.push(event.payload.to_vec());
            }
            for member in stream.members() {
                if let Some(spec) = spec_of(specs, &member) {
                    audit.pending.insert((spec, at), member.counts.pending());
                }
            }
            let Some(dead) = engine.stream(&format!("$dead/{topic}")) else { continue };
            let stats = dead.log_stats();
            if stats.first > 1 {
                audit.dead_trimmed.insert(at);
            }
            for seq in stats.first..=stats.last {
                let event = dead.read(seq).map_err(|error| format!("$dead/{topic}/{seq}: {error}"))?;
                let event = event.ok_or_else(|| format!("$dead/{topic}/{seq} is not there"))?;
                let death =
                    Death::of(&event).ok_or_else(|| format!("$dead/{topic}/{seq} does not say why"))?;
                if death.topic != *topic {
                    return Err(format!("$dead/{topic}/{seq} is of {}", death.topic));
                }
                audit.dead.push(DeadLetter {
                    subscription: death.subscription,
                    topic: at,
                    seq: death.seq,
                    payload: event.payload.to_vec(),
                });
            }
        }
        Ok(audit)
    }
}

/// The durable subscription that this is.
fn spec_of(specs: &[SubSpec], member: &MemberStats) -> Option<Spec> {
    let is = |spec: &SubSpec| {
        spec.name.is_some() && spec.name == member.name.as_deref() && spec.filter == member.filter
    };
    specs.iter().position(is).map(|at| at as Spec)
}

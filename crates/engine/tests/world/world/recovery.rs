//! What is left after a restart or a crash, against what must and may be.

use super::{Check, World, fail, nobody, now_of};
use crate::cast::{CASTS, LONG, TOPICS};
use crate::model::{Model, Pending, State};
use postroad_core::mailbox::Window;
use postroad_core::{ManualClock, StartAt, Timestamp};
use postroad_engine::{EngineError, PolicyRequest, SubscribeRequest};
use postroad_journal::storage::CrashMode;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

impl World {
    pub(super) fn restart(&mut self) -> Check {
        while !self.consumers.is_empty() {
            self.detach(0);
        }
        if let Err(error) = self.engine().shutdown() {
            return if self.gone() { Ok(()) } else { fail(format!("cannot stop: {error}")) };
        }
        self.note_commits()?;
        if self.gone() {
            return Ok(());
        }
        self.model.all_committed();
        self.close();
        // What stays must be exactly this; delays run on, which the check of a crash does not know.
        let states = self.model.clone();
        if !self.recover(u64::MAX)? {
            return Ok(());
        }
        for (sub, was) in self.model.subs.iter_mut().zip(states.subs) {
            for (topic, mailbox) in &mut sub.boxes {
                for (seq, msg) in &mut mailbox.msgs {
                    msg.state = was.boxes[topic].msgs[seq].state;
                }
            }
        }
        // A delay that ended before is still in the log.
        self.pass(0)
    }

    /// Lets go of the engine as it is.
    pub fn close(&mut self) {
        self.consumers.clear();
        self.laters.clear();
        self.engine = None;
        self.store = None;
    }

    pub fn crash(&mut self, mode: CrashMode) -> Check {
        let committed = self.engine.as_ref().map_or(0, |e| e.committed().0);
        self.storage.crash(mode);
        self.close();
        if !self.recover(committed)? {
            return Ok(());
        }
        self.pass(LONG)?;
        for sub in 0..self.model.subs.len() {
            let max = self.model.subs[sub].cast().max;
            let boxes =
                if self.model.subs[sub].alive { self.model.subs[sub].boxes.clone() } else { BTreeMap::new() };
            for (topic, mailbox) in boxes {
                let spent = mailbox
                    .msgs
                    .iter()
                    .filter(|(_, m)| m.state == State::Ready && max > 0 && m.attempts >= max);
                for (seq, _) in spent {
                    self.model.die(sub, topic, *seq);
                }
            }
        }
        Ok(())
    }

    /// What a consumer of each subscription gets from a copy of the disk.
    fn probe(&self) -> Result<(Pending, BTreeSet<(usize, usize)>), String> {
        let disk = self.storage.fork(self.lives);
        let clock = Arc::new(ManualClock::new(Timestamp::from_millis(now_of(self))));
        let (_store, engine) =
            self.setup.open(&disk, &clock, self.lives + 1000).map_err(|e| format!("cannot open: {e}"))?;
        let mut there = BTreeSet::new();
        for (topic, name) in TOPICS.iter().enumerate() {
            let titles: Vec<String> = engine
                .stream(name)
                .map(|s| s.members().into_iter().map(|m| m.title).collect())
                .unwrap_or_default();
            there
                .extend((0..CASTS.len()).filter(|c| titles.contains(&CASTS[*c].title())).map(|c| (c, topic)));
        }
        let mut consumers = Vec::new();
        for cast in there.iter().map(|(cast, _)| *cast).collect::<BTreeSet<_>>() {
            let it = &CASTS[cast];
            let request = SubscribeRequest {
                filter: it.filter.parse().unwrap(),
                name: it.name.map(str::to_owned),
                group: it.group,
                from: StartAt::New,
                window: Window { count: u32::MAX, bytes: u64::MAX },
                policy: PolicyRequest { max_deliveries: Some(0), ..it.request() },
            };
            let (consumer, _) = engine.subscribe(request, nobody()).map_err(|e| e.to_string())?;
            consumers.push((cast, consumer));
        }
        clock.advance(Duration::from_millis(LONG));
        engine.tick().map_err(|e| e.to_string())?;
        let mut pending = Pending::new();
        for (cast, consumer) in &consumers {
            let mut out = Vec::new();
            consumer.take(usize::MAX, usize::MAX, &mut out);
            for delivered in out {
                let name = delivered.stream.topic().as_str();
                let topic = TOPICS.iter().position(|t| *t == name).ok_or("a topic nobody made")?;
                pending.entry((*cast, topic)).or_default().insert(delivered.event.seq, delivered.attempt);
            }
        }
        Ok((pending, there))
    }

    /// Opens what is there and compares it with what must and may be. False if the machine stopped again.
    pub fn recover(&mut self, committed: u64) -> Result<bool, String> {
        let (pending, there) = self.probe()?;
        if !self.open()? {
            return Ok(false);
        }
        let engine = self.engine().clone();
        for (topic, name) in TOPICS.iter().enumerate() {
            let state = &mut self.model.topics[topic];
            let promised =
                state.events.iter().rposition(|e| e.ticket <= committed).map_or(0, |at| at as u64 + 1);
            let Some(stream) = engine.stream(name) else {
                if promised > 0 {
                    return fail(format!("{name} is gone, {promised} messages were committed"));
                }
                *state = Model::new().topics.remove(0);
                for sub in &mut self.model.subs {
                    sub.boxes.remove(&topic);
                }
                continue;
            };
            state.exists = true;
            let stats = stream.log_stats();
            if stats.last < promised || stats.last > state.events.len() as u64 {
                let all = state.events.len();
                return fail(format!("{name} ends at {}, {promised} of {all} were committed", stats.last));
            }
            if stats.first < state.first {
                return fail(format!("{name} begins at {}, {} was removed", stats.first, state.first - 1));
            }
            state.events.truncate(stats.last as usize);
            for seq in stats.first..=stats.last {
                let event =
                    stream.read(seq).map_err(|e| e.to_string())?.ok_or_else(|| format!("{seq} is lost"))?;
                let was = &state.events[seq as usize - 1];
                if was.payload.as_bytes() != &event.payload[..] || was.priority != event.priority {
                    return fail(format!("{seq} of {name} is not what was published"));
                }
            }
            self.model.topics[topic].offered = stats.last;
            self.model.trim(topic, stats.first);
            let dead = engine.stream(&format!("$dead/{name}")).map_or(0, |s| s.log_stats().last);
            if dead < self.model.topics[topic].seen {
                return fail(format!(
                    "{dead} dead letters of {name}, {} were committed",
                    self.model.topics[topic].seen
                ));
            }
        }
        self.read_dead()?;
        for topic in &mut self.model.topics {
            topic.deaths.retain(|d| d.at.is_some());
        }
        self.check_subs(&pending, &there, committed)?;
        self.model.reborn(self.setup.dedup_window);
        self.model.all_committed();
        Ok(true)
    }

    fn check_subs(&mut self, pending: &Pending, there: &BTreeSet<(usize, usize)>, committed: u64) -> Check {
        let engine = self.engine().clone();
        let nothing = BTreeMap::new();
        for (cast, it) in CASTS.iter().enumerate().filter(|(_, c)| c.name.is_some()) {
            let newest = self.model.subs.iter().rposition(|sub| sub.cast == cast);
            let exists = there.iter().any(|(c, _)| *c == cast);
            let Some(sub) = newest else {
                if exists {
                    return fail(format!("{} was never made", it.title()));
                }
                continue;
            };
            match self.model.subs[sub].forgotten {
                None if self.model.subs[sub].ticket <= committed => {
                    if it.is_literal() && !exists {
                        return fail(format!("{} is gone, it was committed", it.title()));
                    }
                    for (topic, name) in TOPICS.iter().enumerate() {
                        if !it.matches(topic) || !self.model.topics[topic].exists {
                            continue;
                        }
                        if !there.contains(&(cast, topic)) {
                            return fail(format!("{} is gone from {name}", it.title()));
                        }
                        let found = pending.get(&(cast, topic)).unwrap_or(&nothing);
                        self.model.check_mailbox(sub, topic, found, committed)?;
                    }
                }
                Some(ticket) if ticket <= committed && exists => {
                    return fail(format!("{} is there again, it was forgotten", it.title()));
                }
                // Nothing was promised of it.
                _ => {
                    let sub = &mut self.model.subs[sub];
                    sub.alive = false;
                    sub.forgotten.get_or_insert(0);
                    // It may be there without a topic that shows it.
                    match engine.forget(it.filter, it.name.unwrap()) {
                        Ok(_) => {
                            while self
                                .store
                                .as_ref()
                                .expect("open")
                                .committer()
                                .commit_now()
                                .map_err(|e| e.to_string())?
                            {}
                        }
                        Err(EngineError::NotFound(_)) if !exists => {}
                        Err(error) => return fail(error.to_string()),
                    }
                }
            }
        }
        Ok(())
    }
}

//! An engine on a simulated disk beside the model of what it must do.

use crate::cast::{CASTS, From, Op, TOPICS};
use crate::model::{Death, Ev, Model, State, Sub, UNKNOWN, remember};
use postroad_core::mailbox::{Verdict, Window};
use postroad_core::{Clock as _, ManualClock, StartAt, Timestamp};
use postroad_engine::log::{JournalStore, PayloadKind, Signal, Ticket};
use postroad_engine::{
    Consumer, Engine, EngineConfig, EngineError, Later, NewEvent, Planted, Receipt, Retention,
    SubscribeRequest,
};
use postroad_journal::CommitterOptions;
use postroad_journal::storage::SimStorage;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

mod recovery;

const START: u64 = 1_700_000_000_000;

#[derive(Clone, Debug)]
pub struct Setup {
    pub segment_bytes: u64,
    pub max_batch_bytes: usize,
    pub preallocate: bool,
    pub tail_cache_bytes: u64,
    pub retention: Retention,
    pub dedup_window: u64,
    pub disk_floor: u64,
    pub planted: Planted,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            segment_bytes: 2500,
            max_batch_bytes: 1 << 20,
            preallocate: false,
            tail_cache_bytes: 0,
            retention: Retention::default(),
            dedup_window: 60_000,
            disk_floor: 0,
            planted: Planted::default(),
        }
    }
}

impl Setup {
    pub fn config(&self) -> EngineConfig {
        EngineConfig {
            segment_bytes: self.segment_bytes,
            retention: self.retention.clone(),
            dedup_window: Duration::from_millis(self.dedup_window),
            planted: self.planted,
            ..EngineConfig::default()
        }
    }

    pub fn open(
        &self,
        storage: &SimStorage,
        clock: &Arc<ManualClock>,
        life: u64,
    ) -> Result<(Arc<JournalStore>, Arc<Engine>), EngineError> {
        self.open_with(self.config(), storage, clock, life)
    }

    pub fn open_with(
        &self,
        config: EngineConfig,
        storage: &SimStorage,
        clock: &Arc<ManualClock>,
        life: u64,
    ) -> Result<(Arc<JournalStore>, Arc<Engine>), EngineError> {
        let options = CommitterOptions {
            max_batch_bytes: self.max_batch_bytes,
            preallocate: self.preallocate,
            tail_cache_bytes: self.tail_cache_bytes,
            disk_floor: self.disk_floor,
            max_open_files: 2,
            planted: self.planted.journal,
            ..CommitterOptions::default()
        };
        let disk = Arc::new(storage.clone());
        let store = JournalStore::open_on(disk, Path::new("/data"), self.segment_bytes, options, life + 1)?;
        let store = Arc::new(store);
        let engine = Engine::open_with(config, store.clone(), Some(clock.clone()))?;
        Ok((store, engine))
    }
}

pub struct Nobody;

impl Signal for Nobody {
    fn signal(&self) {}
}

pub fn nobody() -> Arc<dyn Signal> {
    Arc::new(Nobody)
}

pub struct Live {
    pub consumer: Consumer,
    pub sub: usize,
    pub id: usize,
}

pub struct World {
    pub setup: Setup,
    pub storage: SimStorage,
    pub clock: Arc<ManualClock>,
    pub store: Option<Arc<JournalStore>>,
    pub engine: Option<Arc<Engine>>,
    pub consumers: Vec<Live>,
    pub model: Model,
    laters: Vec<(Arc<Later>, usize, usize, Vec<u64>)>,
    next_consumer: usize,
    published: usize,
    lives: u64,
    // A crash came in the middle of a kick or of retention.
    kicks_unknown: bool,
}

type Check = Result<(), String>;

fn fail<T>(what: impl Into<String>) -> Result<T, String> {
    Err(what.into())
}

fn now_of(world: &World) -> u64 {
    world.clock.now().as_millis()
}

impl World {
    pub fn new(setup: &Setup, storage: &SimStorage) -> Self {
        Self {
            setup: setup.clone(),
            storage: storage.clone(),
            clock: Arc::new(ManualClock::new(Timestamp::from_millis(START))),
            store: None,
            engine: None,
            consumers: Vec::new(),
            model: Model::new(),
            laters: Vec::new(),
            next_consumer: 0,
            published: 0,
            lives: 0,
            kicks_unknown: false,
        }
    }

    pub fn engine(&self) -> &Arc<Engine> {
        self.engine.as_ref().expect("open")
    }

    fn gone(&self) -> bool {
        self.storage.has_crashed()
    }

    /// Opens the engine; false if the simulated machine stopped meanwhile.
    pub fn open(&mut self) -> Result<bool, String> {
        self.lives += 1;
        match self.setup.open(&self.storage, &self.clock, self.lives) {
            Ok((store, engine)) => {
                self.store = Some(store);
                self.engine = Some(engine);
                Ok(true)
            }
            Err(_) if self.gone() => Ok(false),
            Err(error) => fail(format!("cannot open: {error}")),
        }
    }

    /// Runs until the end or until the machine stops.
    pub fn run(&mut self, ops: &[Op]) -> Check {
        if self.engine.is_none() && !self.open()? {
            return Ok(());
        }
        for (i, op) in ops.iter().enumerate() {
            let step = self.apply(op);
            if self.gone() {
                return Ok(());
            }
            step.and_then(|()| self.compare()).map_err(|e| format!("step {i}, {op:?}: {e}"))?;
        }
        Ok(())
    }

    fn apply(&mut self, op: &Op) -> Check {
        match *op {
            Op::Pub { topic, count, priority, id, size } => self.publish(topic, count, priority, id, size),
            Op::Sub { cast, from } => self.subscribe(cast, from),
            Op::Take { consumer, max } => self.take(consumer, max),
            Op::Ack { consumer, at, span } => self.settle(consumer, at, span, &Verdict::Ack),
            Op::Nack { consumer, at, span, delay } => {
                let after = delay.map(Duration::from_millis);
                self.settle(consumer, at, span, &Verdict::Retry { after, reason: Some("no".into()) })
            }
            Op::Bury { consumer, at, span } => {
                self.settle(consumer, at, span, &Verdict::Dead { reason: "enough".into() })
            }
            Op::Touch { consumer, at, span } => self.touch(consumer, at, span),
            Op::Detach { consumer } => {
                if !self.consumers.is_empty() {
                    self.detach(consumer % self.consumers.len());
                }
                Ok(())
            }
            Op::Forget { cast } => self.forget(cast),
            Op::Kick { topic, max } => self.kick(topic, max),
            Op::Time { millis } => self.pass(millis),
            Op::Maintain => self.maintain(),
            Op::CommitOne => self.commit_one().map(|_| ()),
            Op::Commit => self.commit(),
            Op::Restart => self.restart(),
            Op::Crash { mode } => self.crash(mode),
        }
    }

    fn publish(&mut self, topic: usize, count: usize, priority: i64, id: Option<u8>, size: usize) -> Check {
        let now = now_of(self);
        let engine = self.engine().clone();
        let stream = match engine.stream_or_create(&TOPICS[topic].parse().unwrap()) {
            Ok(stream) => stream,
            Err(_) if self.gone() => return Ok(()),
            Err(error) => return fail(error.to_string()),
        };
        if !self.model.topics[topic].exists {
            self.model.create(topic);
        }
        let mut payloads = Vec::new();
        for i in 0..count {
            self.published += 1;
            let id = id.map(|id| usize::from(id) + i);
            // A number and its text are one id.
            let token =
                id.map(
                    |id| if self.published.is_multiple_of(2) { id.to_string() } else { format!("\"{id}\"") },
                );
            let payload = format!("{{\"n\":{},\"pad\":\"{}\"}}", self.published, "x".repeat(size));
            payloads.push((payload, token, id.map(|id| id.to_string())));
        }
        let events: Vec<NewEvent<'_>> = payloads
            .iter()
            .map(|(payload, token, _)| NewEvent {
                priority,
                id: token.as_ref().map(String::as_bytes),
                headers: None,
                kind: PayloadKind::Json,
                payload: payload.as_bytes(),
            })
            .collect();
        let done = stream.publish(&events).map_err(|e| e.to_string())?;
        let window = self.setup.dedup_window;
        let state = &mut self.model.topics[topic];
        let (before, mut again) = (state.events.len() as u64, 0);
        for (payload, _, id) in payloads {
            let seq = state.events.len() as u64 + 1;
            if let Some(id) = &id
                && remember(&mut state.ids, id, seq, now, window).is_some()
            {
                again += 1;
                continue;
            }
            state.events.push(Ev { payload, priority, id, time: now, ticket: done.ticket.0 });
        }
        let after = state.events.len() as u64;
        let expected = if after == before { (0, 0, again) } else { (before + 1, after, again) };
        if (done.first, done.last, done.duplicates) != expected {
            return fail(format!("published {done:?}, expected {expected:?}"));
        }
        Ok(())
    }

    fn subscribe(&mut self, cast: usize, from: From) -> Check {
        let it = &CASTS[cast];
        let request = SubscribeRequest {
            filter: it.filter.parse().unwrap(),
            name: it.name.map(str::to_owned),
            group: it.group,
            from: match from {
                From::New => StartAt::New,
                From::First => StartAt::First,
                From::Last => StartAt::Last,
                From::Seq(seq) => StartAt::Sequence(seq),
            },
            window: Window { count: it.window, bytes: u64::MAX },
            policy: it.request(),
        };
        let known = it.name.and_then(|_| self.model.current(cast));
        let busy = known.is_some_and(|sub| !it.group && !self.model.subs[sub].consumers.is_empty());
        if !busy && self.consumers.len() >= 8 {
            return Ok(());
        }
        let (consumer, receipt) = match self.engine().subscribe(request, nobody()) {
            Ok(done) if !busy => done,
            Ok(_) => return fail("an exclusive subscription was given twice"),
            Err(EngineError::InUse) if busy => return Ok(()),
            Err(_) if self.gone() => return Ok(()),
            Err(error) => return fail(error.to_string()),
        };
        let Receipt::At(Ticket(ticket)) = receipt else { return fail("a subscription takes one commit") };
        let sub = known.unwrap_or_else(|| {
            for topic in (0..TOPICS.len()).filter(|t| it.is_literal() && it.matches(*t)) {
                if !self.model.topics[topic].exists {
                    self.model.create(topic);
                }
            }
            let boxes = BTreeMap::new();
            let ticket = UNKNOWN;
            self.model.subs.push(Sub {
                cast,
                alive: true,
                ticket,
                forgotten: None,
                boxes,
                consumers: Vec::new(),
            });
            let sub = self.model.subs.len() - 1;
            for topic in (0..TOPICS.len()).filter(|t| it.matches(*t)) {
                let state = &self.model.topics[topic];
                if state.exists {
                    let floor = match from {
                        From::New => u64::MAX,
                        From::First => state.first - 1,
                        From::Last => (state.events.len() as u64).max(state.first) - 1,
                        From::Seq(seq) => seq.saturating_sub(1).max(state.first - 1),
                    };
                    self.model.join(sub, topic, floor.min(state.events.len() as u64));
                }
            }
            sub
        });
        self.next_consumer += 1;
        let entry = &mut self.model.subs[sub];
        entry.ticket = entry.ticket.min(ticket);
        entry.consumers.push(self.next_consumer);
        self.consumers.push(Live { consumer, sub, id: self.next_consumer });
        Ok(())
    }

    fn take(&mut self, consumer: usize, max: usize) -> Check {
        if self.consumers.is_empty() {
            return Ok(());
        }
        let now = now_of(self);
        let at = consumer % self.consumers.len();
        let (sub, id) = (self.consumers[at].sub, self.consumers[at].id);
        let cast = self.model.subs[sub].cast();
        let mut out = Vec::new();
        self.consumers[at].consumer.take(max, usize::MAX, &mut out);
        if self.gone() {
            return Ok(());
        }
        let room = (cast.window as usize).saturating_sub(self.model.subs[sub].held(id).len());
        let topics: Vec<usize> = self.model.subs[sub].boxes.keys().copied().collect();
        let mut ready: BTreeMap<usize, Vec<u64>> =
            topics.into_iter().map(|topic| (topic, self.model.ready(sub, topic))).collect();
        let all = ready.values().map(Vec::len).sum();
        let expected = if self.model.subs[sub].is_passed_over(id) { 0 } else { max.min(room).min(all) };
        if out.len() != expected {
            return fail(format!("{} of {} came: {ready:?}", out.len(), expected));
        }
        for delivered in out {
            let name = delivered.stream.topic().as_str();
            let topic = TOPICS.iter().position(|t| *t == name).ok_or("a topic nobody made")?;
            let queue = ready.get_mut(&topic).ok_or("a topic that does not match")?;
            let seq = delivered.event.seq;
            if queue.first() != Some(&seq) {
                return fail(format!("{seq} of {name} came, the order is {queue:?}"));
            }
            queue.remove(0);
            let event = &self.model.topics[topic].events[seq as usize - 1];
            if event.payload.as_bytes() != &delivered.event.payload[..]
                || event.priority != delivered.event.priority
            {
                return fail(format!("{seq} of {name} is not what was published"));
            }
            let msg = self.model.msg(sub, topic, seq);
            if delivered.attempt != msg.attempts + 1 {
                return fail(format!(
                    "{seq} of {name}: attempt {} after {}",
                    delivered.attempt, msg.attempts
                ));
            }
            msg.state = State::Held(id, now + cast.ack_wait);
        }
        Ok(())
    }

    /// The topic and the messages that the consumer `at` holds from its `nth` one on.
    fn pick(&self, at: usize, nth: usize, span: u64) -> Option<(usize, u64, Vec<u64>)> {
        let held = self.model.subs[self.consumers[at].sub].held(self.consumers[at].id);
        let &(topic, first) = held.get(nth % held.len().max(1))?;
        let range = first..=first + span;
        Some((
            topic,
            first,
            held.iter().filter(|(t, s)| *t == topic && range.contains(s)).map(|(_, s)| *s).collect(),
        ))
    }

    fn settle(&mut self, consumer: usize, nth: usize, span: u64, verdict: &Verdict) -> Check {
        if self.consumers.is_empty() {
            return Ok(());
        }
        let now = now_of(self);
        let at = consumer % self.consumers.len();
        let sub = self.consumers[at].sub;
        let mut counts = Vec::new();
        let Some((topic, first, seqs)) = self.pick(at, nth, span) else {
            // Nothing is in flight here.
            let _ = self.consumers[at].consumer.settle(TOPICS[0], &[(0, u64::MAX)], verdict, &mut counts);
            return if counts.iter().sum::<u64>() == 0 {
                Ok(())
            } else {
                fail("settled what it does not hold")
            };
        };
        let range = [(first, first + span)];
        let receipt = self.consumers[at].consumer.settle(TOPICS[topic], &range, verdict, &mut counts);
        if self.gone() {
            return Ok(());
        }
        let receipt = receipt.map_err(|e| e.to_string())?;
        if counts != [seqs.len() as u64] {
            return fail(format!("settled {counts:?} of {seqs:?}"));
        }
        let ticket = match &receipt {
            Receipt::At(ticket) => ticket.0,
            Receipt::Later(_) => UNKNOWN,
        };
        let id = self.consumers[at].id;
        self.model.subs[sub].not_late(id);
        for &seq in &seqs {
            match verdict {
                Verdict::Ack | Verdict::Discard => {
                    let msg = self.model.msg(sub, topic, seq);
                    msg.state = State::Settled;
                    msg.settled = Some(ticket);
                }
                Verdict::Retry { after, .. } => {
                    let delay = after.map(|d| d.as_millis() as u64);
                    self.model.fail(sub, topic, seq, delay, now, ticket);
                }
                Verdict::Dead { .. } => {
                    let msg = self.model.msg(sub, topic, seq);
                    msg.attempts += 1;
                    msg.tried.push((UNKNOWN, msg.attempts));
                    self.model.die(sub, topic, seq);
                    if self.setup.planted.cursor_before_commit {
                        // It says that it is done.
                        self.model.msg(sub, topic, seq).settled = Some(ticket);
                    }
                }
            }
        }
        if let Receipt::Later(later) = receipt {
            self.laters.push((later, sub, topic, seqs));
        }
        Ok(())
    }

    fn touch(&mut self, consumer: usize, nth: usize, span: u64) -> Check {
        if self.consumers.is_empty() {
            return Ok(());
        }
        let at = consumer % self.consumers.len();
        let Some((topic, first, seqs)) = self.pick(at, nth, span) else { return Ok(()) };
        let touched = self.consumers[at].consumer.touch(TOPICS[topic], first, first + span);
        if touched != seqs.len() {
            return fail(format!("touched {touched} of {seqs:?}"));
        }
        let (sub, id) = (self.consumers[at].sub, self.consumers[at].id);
        let deadline = now_of(self) + self.model.subs[sub].cast().ack_wait;
        self.model.subs[sub].not_late(id);
        for seq in seqs {
            self.model.msg(sub, topic, seq).state = State::Held(id, deadline);
        }
        Ok(())
    }

    pub fn detach(&mut self, at: usize) {
        let live = self.consumers.remove(at);
        drop(live.consumer);
        let now = now_of(self);
        for (topic, seq) in self.model.subs[live.sub].held(live.id) {
            self.model.fail(live.sub, topic, seq, Some(0), now, UNKNOWN);
        }
        let sub = &mut self.model.subs[live.sub];
        sub.consumers.retain(|id| *id != live.id);
        sub.not_late(live.id);
        sub.alive &= sub.is_durable() || !sub.consumers.is_empty();
    }

    fn forget(&mut self, cast: usize) -> Check {
        let Some(name) = CASTS[cast].name else { return Ok(()) };
        let known = self.model.current(cast);
        let busy = known.is_some_and(|sub| !self.model.subs[sub].consumers.is_empty());
        match (self.engine().forget(CASTS[cast].filter, name), known) {
            (Ok(Receipt::At(ticket)), Some(sub)) if !busy => {
                self.model.subs[sub].alive = false;
                self.model.subs[sub].forgotten = Some(ticket.0);
                Ok(())
            }
            (Err(EngineError::InUse), Some(_)) if busy => Ok(()),
            (Err(EngineError::NotFound(_)), None) => Ok(()),
            (other, _) => fail(format!("forget: {other:?}")),
        }
    }

    fn kick(&mut self, topic: usize, max: usize) -> Check {
        if self.kicks_unknown || self.setup.retention != Retention::default() {
            return Ok(());
        }
        self.commit()?;
        if self.gone() {
            return Ok(());
        }
        let now = now_of(self);
        let window = self.setup.dedup_window;
        let kicked = match self.engine().kick(&TOPICS[topic].parse().unwrap(), max) {
            Ok((kicked, _)) => kicked,
            Err(EngineError::NotFound(_)) if !self.model.topics[topic].exists => return Ok(()),
            Err(_) if self.gone() => return Ok(()),
            Err(error) => return fail(error.to_string()),
        };
        let state = &mut self.model.topics[topic];
        let expected = (state.seen - state.kicked).min(max as u64);
        if kicked != expected {
            return fail(format!("kicked {kicked}, there were {expected}"));
        }
        for at in state.kicked + 1..=state.kicked + kicked {
            let death = state.deaths.iter().find(|d| d.at == Some(at)).ok_or("a dead letter nobody knows")?;
            let event = Ev { time: now, ticket: UNKNOWN, ..state.events[death.seq as usize - 1].clone() };
            let seq = state.events.len() as u64 + 1;
            if let Some(id) = &event.id {
                remember(&mut state.ids, id, seq, now, window);
            }
            state.events.push(event);
        }
        state.kicked += kicked;
        self.kicks_unknown = true;
        self.commit()?;
        if !self.gone() {
            self.kicks_unknown = false;
        }
        Ok(())
    }

    fn pass(&mut self, millis: u64) -> Check {
        self.clock.advance(Duration::from_millis(millis));
        self.engine().tick().map_err(|e| e.to_string())?;
        let now = now_of(self);
        self.model.tick(now);
        Ok(())
    }

    fn maintain(&mut self) -> Check {
        let result = self.engine().maintain();
        if self.gone() {
            return Ok(());
        }
        result.map_err(|e| e.to_string())?;
        for (topic, name) in TOPICS.iter().enumerate() {
            if let Some(stream) = self.engine().stream(name) {
                let first = stream.log_stats().first;
                if first < self.model.topics[topic].first {
                    return fail("what was removed is back");
                }
                self.model.trim(topic, first);
            }
        }
        Ok(())
    }

    /// One cycle; false if nothing was to be done.
    pub fn commit_one(&mut self) -> Result<bool, String> {
        let store = self.store.clone().expect("open");
        let did = match store.committer().commit_now() {
            Ok(did) => did,
            Err(_) if self.gone() => return Ok(false),
            Err(error) => return fail(format!("cannot commit: {error}")),
        };
        self.note_commits()?;
        Ok(did)
    }

    pub fn commit(&mut self) -> Check {
        while self.commit_one()? {}
        if !self.gone() {
            self.model.all_committed();
            if let Some((_, sub, topic, seqs)) = self.laters.first() {
                return fail(format!(
                    "nothing waits, but burying {seqs:?} of {} is not done: {sub}",
                    TOPICS[*topic]
                ));
            }
            for (topic, state) in self.model.topics.iter().enumerate() {
                if let Some(death) = state.deaths.iter().find(|d| d.at.is_none()) {
                    return fail(format!("a dead letter of {} was not written: {death:?}", TOPICS[topic]));
                }
            }
        }
        Ok(())
    }

    /// What the engine says is committed now.
    pub fn note_commits(&mut self) -> Check {
        let committed = self.engine().committed().0;
        for (topic, name) in TOPICS.iter().enumerate() {
            let Some(stream) = self.engine().stream(name) else { continue };
            let seq = stream.log_stats().committed;
            let events = &self.model.topics[topic].events;
            let said = events.iter().take_while(|e| e.ticket <= committed).count() as u64;
            if said > seq || seq > events.len() as u64 {
                return fail(format!("{name} is committed to {seq}, the tickets say {said}"));
            }
            self.model.offer(topic, seq);
        }
        self.read_dead()?;
        self.model.settle_buried();
        let mut laters = std::mem::take(&mut self.laters);
        for (later, sub, topic, seqs) in laters.extract_if(.., |(later, ..)| later.poll(&nobody()).is_some())
        {
            let ticket = later.poll(&nobody()).expect("done").map_err(|e| e.to_string())?;
            for seq in seqs {
                // Trimmed meanwhile, or settled by its death.
                let mailbox = self.model.subs[sub].boxes.get_mut(&topic);
                if let Some(msg) = mailbox.and_then(|b| b.msgs.get_mut(&seq))
                    && let Some(settled) = &mut msg.settled
                {
                    *settled = (*settled).min(ticket.0);
                }
            }
        }
        self.laters = laters;
        Ok(())
    }

    /// Every dead letter must be one that the model expects, once.
    fn read_dead(&mut self) -> Check {
        for (topic, name) in TOPICS.iter().enumerate() {
            let Some(dead) = self.engine().stream(&format!("$dead/{name}")) else { continue };
            let stats = dead.log_stats();
            for seq in self.model.topics[topic].seen + 1..=stats.committed {
                let event = match dead.read(seq) {
                    Ok(Some(event)) => event,
                    Ok(None) if seq < stats.first => continue,
                    _ if self.gone() => return Ok(()),
                    other => return fail(format!("dead letter {seq} cannot be read: {other:?}")),
                };
                let death = postroad_engine::Death::of(&event).ok_or("a dead letter without a death")?;
                let model = &mut self.model;
                let payload = &model.topics[topic].events[death.seq as usize - 1].payload;
                if payload.as_bytes() != &event.payload[..] {
                    return fail("a dead letter that is not the message that died");
                }
                let subs = &model.subs;
                let expected = model.topics[topic].deaths.iter_mut().find(|d: &&mut Death| {
                    d.at.is_none()
                        && (d.seq, d.attempts) == (death.seq, death.attempts)
                        && subs[d.sub].cast().title() == death.subscription
                });
                let Some(expected) = expected else { return fail(format!("{death:?} died twice, or never")) };
                expected.at = Some(seq);
                model.topics[topic].seen = seq;
            }
        }
        Ok(())
    }

    /// The engine's own numbers against the model.
    pub fn compare(&self) -> Check {
        for (topic, name) in TOPICS.iter().enumerate() {
            let Some(stream) = self.engine().stream(name) else { continue };
            let members = stream.members();
            for sub in self.model.subs.iter().filter(|s| s.alive && s.boxes.contains_key(&topic)) {
                if !members.iter().any(|m| m.title == sub.cast().title()) {
                    return fail(format!("{} has no part in {name}", sub.cast().title()));
                }
            }
            for member in members.into_iter().filter(|m| m.name.is_some()) {
                let cast = CASTS
                    .iter()
                    .position(|c| c.title() == member.title)
                    .ok_or("a subscription nobody made")?;
                let sub = self.model.current(cast).ok_or_else(|| format!("{} is gone", member.title))?;
                let mut counts = [0; 4];
                let mut may_be_settled = 0;
                for msg in self.model.subs[sub].boxes[&topic].msgs.values() {
                    match msg.state {
                        State::Ready => counts[0] += 1,
                        State::Held(..) => counts[1] += 1,
                        State::Delayed(_) => counts[2] += 1,
                        State::Dying if msg.settled.is_some() => may_be_settled += 1,
                        State::Dying => counts[3] += 1,
                        State::Settled => {}
                    }
                }
                let c = member.counts;
                counts[3] = c.dying.clamp(counts[3], counts[3] + may_be_settled);
                let found = [c.ready, c.in_flight, c.delayed, c.dying];
                if found != counts {
                    return fail(format!("{} in {name}: {found:?}, expected {counts:?}", member.title));
                }
            }
        }
        Ok(())
    }
}

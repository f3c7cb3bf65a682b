//! What must be true: a second, slow opinion of streams, subscriptions and dead letters, and of what a crash may take.

use crate::cast::{CASTS, Cast, TOPICS};
use std::collections::{BTreeMap, HashMap};

/// The ticket of what was appended by the engine itself; known to be committed after a full commit.
pub const UNKNOWN: u64 = u64::MAX;

#[derive(Clone, Debug)]
pub struct Ev {
    pub payload: String,
    pub priority: i64,
    pub id: Option<String>,
    pub time: u64,
    pub ticket: u64,
}

/// A message that a subscription gave up.
#[derive(Clone, Debug)]
pub struct Death {
    pub sub: usize,
    pub seq: u64,
    pub attempts: u32,
    /// Its sequence in the dead letters, once it is seen there.
    pub at: Option<u64>,
}

#[derive(Clone, Debug, Default)]
pub struct Topic {
    pub exists: bool,
    pub events: Vec<Ev>,
    pub first: u64,
    /// `first` before the last retention.
    pub first_before: u64,
    pub offered: u64,
    pub ids: HashMap<String, (u64, u64)>,
    pub deaths: Vec<Death>,
    /// How many of the dead letters were seen, and how many kicked.
    pub seen: u64,
    pub kicked: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Ready,
    Held(usize, u64),
    Delayed(u64),
    Dying,
    Settled,
}

#[derive(Clone, Debug)]
pub struct Msg {
    pub state: State,
    pub attempts: u32,
    /// Attempts that were logged, with their tickets.
    pub tried: Vec<(u64, u32)>,
    pub settled: Option<u64>,
}

#[derive(Clone, Debug, Default)]
pub struct Mailbox {
    pub floor: u64,
    pub msgs: BTreeMap<u64, Msg>,
    /// Until when a consumer that let a lease end is passed over.
    pub late: BTreeMap<usize, u64>,
}

#[derive(Clone, Debug)]
pub struct Sub {
    pub cast: usize,
    pub alive: bool,
    pub ticket: u64,
    pub forgotten: Option<u64>,
    pub boxes: BTreeMap<usize, Mailbox>,
    pub consumers: Vec<usize>,
}

impl Sub {
    pub fn cast(&self) -> &'static Cast {
        &CASTS[self.cast]
    }

    pub fn is_durable(&self) -> bool {
        self.cast().name.is_some()
    }

    pub fn held(&self, consumer: usize) -> Vec<(usize, u64)> {
        let mut held = Vec::new();
        for (topic, mailbox) in &self.boxes {
            let seqs =
                mailbox.msgs.iter().filter(|(_, m)| matches!(m.state, State::Held(c, _) if c == consumer));
            held.extend(seqs.map(|(seq, _)| (*topic, *seq)));
        }
        held
    }
}

impl Sub {
    /// It let a lease end, and a consumer that did not has room. Only groups have several consumers, and they are in
    /// one topic.
    pub fn is_passed_over(&self, consumer: usize) -> bool {
        self.boxes.values().any(|mailbox| {
            let mut others = self.consumers.iter().filter(|other| !mailbox.late.contains_key(*other));
            mailbox.late.contains_key(&consumer)
                && others.any(|other| self.held(*other).len() < self.cast().window as usize)
        })
    }

    /// It said something in time, or is gone.
    pub fn not_late(&mut self, consumer: usize) {
        for mailbox in self.boxes.values_mut() {
            mailbox.late.remove(&consumer);
        }
    }
}

/// What a fresh look at a disk found: pending messages with the attempt they came with.
pub type Pending = BTreeMap<(usize, usize), BTreeMap<u64, u32>>;

#[derive(Clone, Debug, Default)]
pub struct Model {
    pub topics: Vec<Topic>,
    pub subs: Vec<Sub>,
}

impl Model {
    pub fn new() -> Self {
        let topic = Topic { first: 1, first_before: 1, ..Topic::default() };
        Self { topics: vec![topic; TOPICS.len()], subs: Vec::new() }
    }

    pub fn current(&self, cast: usize) -> Option<usize> {
        self.subs.iter().rposition(|sub| sub.cast == cast && sub.alive)
    }

    /// A topic comes to be: every subscription that matches has it from its first message.
    pub fn create(&mut self, topic: usize) {
        self.topics[topic].exists = true;
        for sub in self.subs.iter_mut().filter(|s| s.alive && s.cast().matches(topic)) {
            sub.boxes.insert(topic, Mailbox::default());
        }
    }

    pub fn join(&mut self, sub: usize, topic: usize, floor: u64) {
        let (first, offered) = (self.topics[topic].first, self.topics[topic].offered);
        let mailbox = self.subs[sub].boxes.entry(topic).or_default();
        mailbox.floor = floor;
        for seq in first.max(floor + 1)..=offered {
            mailbox.msgs.insert(seq, Msg::new());
        }
    }

    /// Messages up to `seq` are committed.
    pub fn offer(&mut self, topic: usize, seq: u64) {
        let from = self.topics[topic].offered + 1;
        self.topics[topic].offered = self.topics[topic].offered.max(seq);
        for sub in self.subs.iter_mut().filter(|s| s.alive) {
            if let Some(mailbox) = sub.boxes.get_mut(&topic) {
                for seq in from.max(mailbox.floor + 1)..=seq {
                    mailbox.msgs.entry(seq).or_insert_with(Msg::new);
                }
            }
        }
    }

    /// The order in which the ready messages of a mailbox are to come.
    pub fn ready(&self, sub: usize, topic: usize) -> Vec<u64> {
        let Some(mailbox) = self.subs[sub].boxes.get(&topic) else { return Vec::new() };
        let events = &self.topics[topic].events;
        let ready = mailbox.msgs.iter().filter(|(_, m)| m.state == State::Ready);
        let mut seqs: Vec<u64> = ready.map(|(seq, _)| *seq).collect();
        seqs.sort_by_key(|seq| (std::cmp::Reverse(events[*seq as usize - 1].priority), *seq));
        seqs
    }

    pub fn msg(&mut self, sub: usize, topic: usize, seq: u64) -> &mut Msg {
        self.subs[sub].boxes.get_mut(&topic).unwrap().msgs.get_mut(&seq).unwrap()
    }

    /// One delivery failed. `delay`: else the backoff.
    pub fn fail(&mut self, sub: usize, topic: usize, seq: u64, delay: Option<u64>, now: u64, ticket: u64) {
        let cast = self.subs[sub].cast();
        let msg = self.msg(sub, topic, seq);
        msg.attempts += 1;
        msg.tried.push((ticket, msg.attempts));
        if cast.max > 0 && msg.attempts >= cast.max {
            self.die(sub, topic, seq);
            return;
        }
        let delay = delay.unwrap_or_else(|| cast.delay_after(msg.attempts));
        msg.state = if delay > 0 { State::Delayed(now + delay) } else { State::Ready };
    }

    /// Its dead letter is to be written; settled once that is committed. At once if the dead letter is there.
    pub fn die(&mut self, sub: usize, topic: usize, seq: u64) {
        let attempts = self.msg(sub, topic, seq).attempts;
        let known = self.topics[topic].deaths.iter().find(|d| (d.sub, d.seq) == (sub, seq)).map(|d| d.at);
        if known.is_none() {
            self.topics[topic].deaths.push(Death { sub, seq, attempts, at: None });
        }
        let msg = self.msg(sub, topic, seq);
        msg.state = State::Dying;
        if known.is_some_and(|at| at.is_some()) {
            // Settled now, or with the commit that comes.
            msg.settled = Some(UNKNOWN);
        }
    }

    /// Those whose dead letter was seen are settled.
    pub fn settle_buried(&mut self) {
        for (topic, state) in self.topics.iter().enumerate() {
            for death in state.deaths.iter().filter(|d| d.at.is_some()) {
                let mailbox = self.subs[death.sub].boxes.get_mut(&topic);
                if let Some(msg) = mailbox.and_then(|b| b.msgs.get_mut(&death.seq))
                    && msg.state == State::Dying
                {
                    msg.state = State::Settled;
                    msg.settled.get_or_insert(UNKNOWN);
                }
            }
        }
    }

    /// Time has passed.
    pub fn tick(&mut self, now: u64) {
        for sub in 0..self.subs.len() {
            if !self.subs[sub].alive {
                continue;
            }
            let topics: Vec<usize> = self.subs[sub].boxes.keys().copied().collect();
            for topic in topics {
                let again = now + self.subs[sub].cast().ack_wait;
                if let Some(mailbox) = self.subs[sub].boxes.get_mut(&topic) {
                    mailbox.late.retain(|_, until| *until > now);
                    for msg in mailbox.msgs.values() {
                        if let State::Held(holder, deadline) = msg.state
                            && deadline <= now
                        {
                            mailbox.late.insert(holder, again);
                        }
                    }
                }
                let due: Vec<(u64, State)> =
                    self.subs[sub].boxes[&topic].msgs.iter().map(|(seq, m)| (*seq, m.state)).collect();
                for (seq, state) in due {
                    if matches!(state, State::Held(_, deadline) if deadline <= now) {
                        self.fail(sub, topic, seq, None, now, UNKNOWN);
                    } else if matches!(state, State::Delayed(due) if due <= now) {
                        self.msg(sub, topic, seq).state = State::Ready;
                    }
                }
            }
        }
    }

    /// Everything that was appended is committed.
    pub fn all_committed(&mut self) {
        for sub in &mut self.subs {
            sub.ticket = if sub.ticket == UNKNOWN { 0 } else { sub.ticket };
            for msg in sub.boxes.values_mut().flat_map(|b| b.msgs.values_mut()) {
                msg.tried.iter_mut().for_each(|(ticket, _)| *ticket = 0);
                msg.settled = msg.settled.map(|_| 0);
            }
        }
        for event in self.topics.iter_mut().flat_map(|t| &mut t.events) {
            event.ticket = 0;
        }
    }

    /// Messages below `first` are gone.
    pub fn trim(&mut self, topic: usize, first: u64) {
        self.topics[topic].first_before = self.topics[topic].first;
        self.topics[topic].first = first;
        for sub in &mut self.subs {
            if let Some(mailbox) = sub.boxes.get_mut(&topic) {
                mailbox.msgs = mailbox.msgs.split_off(&first);
                mailbox.floor = mailbox.floor.max(first - 1);
            }
        }
    }

    /// A new life: the ids that the kept messages have, and nobody is connected.
    pub fn reborn(&mut self, dedup_window: u64) {
        for topic in &mut self.topics {
            topic.ids.clear();
            for (i, event) in topic.events.iter().enumerate().skip(topic.first as usize - 1) {
                if let Some(id) = &event.id {
                    remember(&mut topic.ids, id, i as u64 + 1, event.time, dedup_window);
                }
            }
        }
        for sub in &mut self.subs {
            sub.consumers.clear();
            sub.boxes.values_mut().for_each(|mailbox| mailbox.late.clear());
            sub.alive &= sub.is_durable();
        }
    }

    /// Compares what a crash left of one mailbox with what it may leave, and takes it over.
    pub fn check_mailbox(
        &mut self,
        sub: usize,
        topic: usize,
        pending: &BTreeMap<u64, u32>,
        committed: u64,
    ) -> Result<(), String> {
        let title = format!("{} in {}", self.subs[sub].cast().title(), TOPICS[topic]);
        let state = &self.topics[topic];
        let (first, last) = (state.first, state.events.len() as u64);
        let buried: Vec<u64> =
            state.deaths.iter().filter(|d| d.sub == sub && d.at.is_some()).map(|d| d.seq).collect();
        let mailbox = self.subs[sub].boxes.entry(topic).or_default();
        let range = first.max(mailbox.floor + 1)..=last;
        if let Some(seq) = pending.keys().find(|seq| !range.contains(seq)) {
            return Err(format!("{title}: {seq} came, which is not for it ({range:?})"));
        }
        mailbox.msgs.retain(|seq, _| range.contains(seq));
        for seq in range {
            let msg = mailbox.msgs.entry(seq).or_insert_with(Msg::new);
            let at_least =
                msg.tried.iter().filter(|(t, _)| *t <= committed).map(|(_, a)| *a).max().unwrap_or(0);
            let at_most = msg.tried.iter().map(|(_, a)| *a).max().unwrap_or(0);
            match pending.get(&seq) {
                Some(_) if msg.settled.is_some_and(|ticket| ticket <= committed) => {
                    return Err(format!("{title}: {seq} came again, its settlement was committed"));
                }
                Some(attempt) if !(at_least..=at_most).contains(&(attempt - 1)) => {
                    let had = attempt - 1;
                    return Err(format!(
                        "{title}: {seq} has {had} attempts, {at_least} to {at_most} were logged"
                    ));
                }
                Some(attempt) => {
                    *msg = Msg { attempts: attempt - 1, tried: vec![(0, attempt - 1)], ..Msg::new() };
                }
                None => {
                    let dead = msg.state == State::Dying && buried.contains(&seq);
                    if msg.settled.is_none() && !dead {
                        return Err(format!("{title}: {seq} is lost, it was {:?}", msg.state));
                    }
                    msg.state = State::Settled;
                    msg.settled = Some(0);
                }
            }
        }
        Ok(())
    }
}

impl Msg {
    pub fn new() -> Self {
        Self { state: State::Ready, attempts: 0, tried: Vec::new(), settled: None }
    }
}

/// The id of a message that is published at `now`; says the earlier one it repeats.
pub fn remember(
    ids: &mut HashMap<String, (u64, u64)>,
    id: &str,
    seq: u64,
    now: u64,
    window: u64,
) -> Option<u64> {
    if window == 0 {
        return None;
    }
    if let Some((earlier, born)) = ids.get(id)
        && now - born < window
    {
        return Some(*earlier);
    }
    ids.insert(id.to_owned(), (seq, now));
    None
}

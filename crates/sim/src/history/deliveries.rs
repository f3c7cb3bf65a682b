//! The rules of deliveries: a fold over the facts.

use super::{Broken, Conn, Fact, History, Settle, Spec, Start, Tag, Terms, Topic, Verdict};
use std::collections::{BTreeMap, BTreeSet};

/// A subscription: one with a name is the same for every connection.
type Key = (Spec, Option<Conn>);

/// What was seen of one subscription.
#[derive(Debug, Default)]
pub(super) struct Member {
    /// Confirmed acks and burials.
    done: BTreeSet<(Topic, u64)>,
    /// Verdicts that came in, confirmed or not, that settle.
    pub(super) asked: BTreeSet<(Topic, u64)>,
    /// Burials that were confirmed.
    pub(super) buried: BTreeSet<(Topic, u64)>,
    /// Burials that came in.
    pub(super) burying: BTreeSet<(Topic, u64)>,
    /// The highest attempt of each, in any life.
    pub(super) attempts: BTreeMap<(Topic, u64), u32>,
    // The highest number delivered for the first time, by topic and priority.
    high: BTreeMap<(Topic, i64), u64>,
    /// The index of the fact since when it is sure to be there.
    pub(super) since: Option<usize>,
    // When it was asked for; only of one that lives as long as its connection.
    asked_at: Option<(usize, u64)>,
}

/// A delivery that was not settled, in this life of the broker.
#[derive(Clone, Copy, Debug)]
struct Lease {
    conn: Conn,
    until: u64,
    attempt: u32,
    // A confirmed delay: not before.
    due: u64,
    // The consumer spoke, or is gone.
    over: bool,
}

/// What the deliveries and confirms say about the log.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// What somebody was told to be there.
    pub(super) told: BTreeMap<(Topic, u64), Tag>,
    pub(super) refused: BTreeSet<Tag>,
    /// Confirmed without a number.
    pub(super) kept: BTreeSet<Tag>,
    pub(super) members: BTreeMap<Key, Member>,
    /// How often each durable subscription may have been made anew.
    pub(super) forgotten: BTreeMap<Spec, u32>,
    /// Shared ones that may have been made anew while others had them, or not: less is known of them.
    pub(super) loose: BTreeSet<Spec>,
    pub(super) kicked: BTreeSet<Topic>,
    /// A call to the disk was made to fail: what could not be read was not delivered, but counted.
    pub(super) disk_failed: bool,
    /// When each publish came in, as the index of the fact.
    pub(super) published: BTreeMap<Tag, usize>,
}

struct Fold<'a> {
    terms: Terms<'a>,
    history: &'a History,
    ledger: Ledger,
    attached: BTreeMap<Conn, Spec>,
    // The index of the fact that asked for it.
    asking: BTreeMap<Conn, usize>,
    // The index of the last fact that ended it.
    ended: BTreeMap<Spec, usize>,
    // The index of the fact that first told of a place.
    first_told: BTreeMap<(Topic, u64), usize>,
    leases: BTreeMap<(Key, Topic, u64), Lease>,
    gasping: bool,
}

pub(super) fn check(terms: Terms<'_>, history: &History) -> Result<Ledger, Broken> {
    let mut fold = Fold {
        terms,
        history,
        ledger: Ledger::default(),
        attached: BTreeMap::new(),
        asking: BTreeMap::new(),
        ended: BTreeMap::new(),
        first_told: BTreeMap::new(),
        leases: BTreeMap::new(),
        gasping: false,
    };
    for (index, (now, fact)) in history.facts.iter().enumerate() {
        fold.apply(index, *now, fact).map_err(|why| Broken {
            why: format!("fact {index}, {now} ms, {fact:?}: {why}"),
            fact: Some(index),
        })?;
    }
    Ok(fold.ledger)
}

impl Fold<'_> {
    fn key(&self, conn: Conn) -> Result<Key, String> {
        let spec = *self.attached.get(&conn).ok_or("this connection has no confirmed subscription")?;
        Ok(self.key_of(spec, conn))
    }

    fn key_of(&self, spec: Spec, conn: Conn) -> Key {
        (spec, self.terms.specs[usize::from(spec)].name.is_none().then_some(conn))
    }

    fn release(&mut self, conn: Conn) {
        for lease in self.leases.values_mut().filter(|lease| lease.conn == conn) {
            lease.over = true;
        }
    }

    fn apply(&mut self, index: usize, now: u64, fact: &Fact) -> Result<(), String> {
        match fact {
            Fact::Opened => self.gasping = false,
            Fact::Closed => {
                self.attached.clear();
                self.leases.clear();
            }
            Fact::Gasp => self.gasping = true,
            Fact::DiskFault => self.ledger.disk_failed = true,
            Fact::Gone(conn) | Fact::Detached(conn) => {
                self.release(*conn);
                if let Some(spec) = self.attached.remove(conn)
                    && self.terms.specs[usize::from(spec)].name.is_none()
                {
                    // It ended; the connection may make another one.
                    self.ledger.members.remove(&(spec, Some(*conn)));
                    self.leases.retain(|(key, ..), _| *key != (spec, Some(*conn)));
                }
            }
            Fact::Publish(tag) => {
                self.ledger.published.insert(*tag, index);
            }
            Fact::Stored { tag, seq, duplicate } => self.stored(index, *tag, *seq, *duplicate)?,
            Fact::Kept(tag) => {
                self.ledger.kept.insert(*tag);
            }
            Fact::Asking(conn, _) => {
                self.asking.insert(*conn, index);
            }
            Fact::Refused(tag) => {
                self.ledger.refused.insert(*tag);
            }
            Fact::Attached(conn, spec) => {
                let asking = self.asking.get(conn).copied();
                if asking.is_some() && asking < self.ended.get(spec).copied() {
                    // It was ended before its `ok` came.
                    return Ok(());
                }
                let shape = &self.terms.specs[usize::from(*spec)];
                let other = self.attached.iter().find(|(_, has)| **has == *spec).map(|(conn, _)| *conn);
                if let (Some(_), false, Some(other)) = (shape.name, shape.group, other) {
                    return Err(format!("connection {other} has this exclusive subscription"));
                }
                self.attached.insert(*conn, *spec);
                let key = self.key_of(*spec, *conn);
                let member = self.ledger.members.entry(key).or_default();
                member.since.get_or_insert(index);
                member.asked_at = asking.map(|at| (at, self.history.facts[at].0));
            }
            Fact::Forget(spec) => {
                if self.terms.specs[usize::from(*spec)].group {
                    self.ledger.loose.insert(*spec);
                }
                self.forget(*spec);
            }
            Fact::Ended(spec) => {
                self.attached.retain(|_, has| has != spec);
                self.ended.insert(*spec, index);
                self.forget(*spec);
            }
            Fact::Delivered { conn, topic, seq, attempt, tag } => {
                self.delivered(index, now, *conn, (*topic, *seq), *attempt, *tag)?;
            }
            Fact::Verdict(conn, settle) => self.verdict(*conn, settle),
            Fact::Settled { conn, settle, asked } => self.settled(*conn, settle, *asked),
            Fact::Trimmed(topic, first) => {
                for ((_, of, seq), lease) in &mut self.leases {
                    lease.over |= of == topic && seq < first;
                }
            }
            Fact::Kick(topic) => {
                self.ledger.kicked.insert(*topic);
            }
            Fact::Wrong(why) => return Err(why.clone()),
            Fact::Internal(why) => {
                if !self.gasping && !self.ledger.disk_failed {
                    return Err(why.clone());
                }
            }
        }
        Ok(())
    }

    /// It may be another one from here on.
    fn forget(&mut self, spec: Spec) {
        *self.ledger.forgotten.entry(spec).or_default() += 1;
        self.ledger.members.remove(&(spec, None));
        self.leases.retain(|(key, ..), _| key.0 != spec);
    }

    fn stored(&mut self, index: usize, tag: Tag, seq: u64, duplicate: bool) -> Result<(), String> {
        let sent = &self.history.sent[tag as usize];
        let place = (sent.topic, seq);
        if !duplicate {
            return self.told(index, place, tag);
        }
        if !self.terms.dedup {
            return Err("a duplicate without a window".into());
        }
        match self.ledger.told.get(&place) {
            Some(first) if self.history.sent[*first as usize].message != sent.message => {
                Err(format!("it is no duplicate of {first}"))
            }
            _ => Ok(()),
        }
    }

    fn told(&mut self, index: usize, place: (Topic, u64), tag: Tag) -> Result<(), String> {
        self.first_told.entry(place).or_insert(index);
        let known = *self.ledger.told.entry(place).or_insert(tag);
        if known == tag { Ok(()) } else { Err(format!("this number was said to be sending {known}")) }
    }

    /// A subscription that started some time ago gets nothing older that was there when it started.
    fn is_too_old(&self, key: Key, ago: u64, place: (Topic, u64), tag: Tag) -> bool {
        let asked = self.ledger.members.get(&key).and_then(|member| member.asked_at);
        let (Some((index, asked)), Some(published)) = (asked, self.ledger.published.get(&tag)) else {
            return false;
        };
        let was_there = self.first_told.get(&place).is_some_and(|told| *told < index);
        // What a kick published again is newer than its tag says.
        let kicked = self.ledger.kicked.contains(&place.0);
        key.1.is_some() && was_there && !kicked && self.history.facts[*published].0 + ago < asked
    }

    fn delivered(
        &mut self,
        index: usize,
        now: u64,
        conn: Conn,
        place: (Topic, u64),
        attempt: u32,
        tag: Tag,
    ) -> Result<(), String> {
        let key = self.key(conn)?;
        let spec = &self.terms.specs[usize::from(key.0)];
        let sent = &self.history.sent[tag as usize];
        if sent.topic != place.0 {
            return Err("it was published to another topic".into());
        }
        if !spec.topics.contains(&place.0) {
            return Err("the filter does not match".into());
        }
        self.told(index, place, tag)?;
        if let Start::Ago(ago) = spec.from
            && self.is_too_old(key, ago, place, tag)
        {
            return Err(format!("it is older than {ago} ms before the subscription was asked for"));
        }
        let loose = self.ledger.loose.contains(&key.0);
        let member = self.ledger.members.entry(key).or_default();
        if member.done.contains(&place) && !loose {
            return Err("it was settled, and that was confirmed".into());
        }
        if attempt == 0 || (spec.max_deliveries > 0 && attempt > spec.max_deliveries) {
            return Err(format!("of at most {} deliveries", spec.max_deliveries));
        }
        if let Some(lease) = self.leases.get(&(key, place.0, place.1)) {
            if !lease.over && now < lease.until {
                return Err(format!("connection {} has it until {}", lease.conn, lease.until));
            }
            if now < lease.due {
                return Err(format!("it was to wait until {}", lease.due));
            }
            if attempt <= lease.attempt {
                return Err(format!("after attempt {}", lease.attempt));
            }
        }
        if !self.gasping && !self.ledger.disk_failed && !loose {
            let first = !member.attempts.contains_key(&place);
            let high = member.high.entry((place.0, sent.priority)).or_default();
            if first && attempt == 1 && place.1 < *high {
                return Err(format!("after {high}, which has the same priority"));
            }
            *high = place.1.max(*high);
        }
        let most = member.attempts.entry(place).or_default();
        *most = attempt.max(*most);
        let lease = Lease { conn, until: now + spec.ack_wait, attempt, due: 0, over: false };
        self.leases.insert((key, place.0, place.1), lease);
        let held = self.leases.values().filter(|l| l.conn == conn && !l.over && now < l.until).count();
        if held > spec.prefetch as usize {
            return Err(format!("{held} are un-acked, {} may be", spec.prefetch));
        }
        Ok(())
    }

    fn verdict(&mut self, conn: Conn, settle: &Settle) {
        let Ok(key) = self.key(conn) else { return };
        let member = self.ledger.members.entry(key).or_default();
        for seq in settle.first..=settle.last {
            let place = (settle.topic, seq);
            match settle.verdict {
                Verdict::Touch => continue,
                Verdict::Nack(_) => {}
                Verdict::Ack => {
                    member.asked.insert(place);
                }
                Verdict::Bury => {
                    member.asked.insert(place);
                    member.burying.insert(place);
                }
            }
            if let Some(lease) = self.leases.get_mut(&(key, settle.topic, seq))
                && lease.conn == conn
            {
                lease.over = true;
            }
        }
    }

    fn settled(&mut self, conn: Conn, settle: &Settle, asked: u64) {
        // Of a range it is only known that one of it was in flight.
        let Ok(key) = self.key(conn) else { return };
        if settle.first != settle.last {
            return;
        }
        let place = (settle.topic, settle.first);
        let spec = &self.terms.specs[usize::from(key.0)];
        let member = self.ledger.members.entry(key).or_default();
        let lease =
            self.leases.get_mut(&(key, settle.topic, settle.first)).filter(|lease| lease.conn == conn);
        match settle.verdict {
            Verdict::Ack => {
                member.done.insert(place);
            }
            Verdict::Bury => {
                member.done.insert(place);
                member.buried.insert(place);
            }
            Verdict::Touch => {
                if let Some(lease) = lease.filter(|lease| !lease.over) {
                    lease.until = lease.until.max(asked + spec.ack_wait);
                }
            }
            Verdict::Nack(delay) => {
                if let (Some(delay), Some(lease)) = (delay, lease.filter(|lease| lease.over)) {
                    lease.due = asked + delay;
                }
            }
        }
    }
}

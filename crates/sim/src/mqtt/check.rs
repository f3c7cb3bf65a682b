//! What must hold on a whole history.
//!
//! | rule | clause |
//! |---|---|
//! | QoS 2 is delivered once to whoever was subscribed from before it came until it was taken | [MQTT-4.3.3-8] and on |
//! | QoS 1 at least once, and nothing to who did not subscribe | 4.3.2, 3.8, 3.10 |
//! | in the order of its publisher, for each topic and QoS | [MQTT-4.6.0-6] |
//! | not more at once than the client takes, and no id twice | [MQTT-3.3.4-9], [MQTT-2.2.1-4] |
//! | what is sent again says so, and not after PUBREL | [MQTT-3.3.1-1], [MQTT-4.3.3-6] |
//! | session present is true if, and only if, there was one | [MQTT-3.2.2-2], [MQTT-3.2.2-3] |
//! | retained is what was last taken | 3.3.1.3 |
//!
//! Where the broker died before it answered, both outcomes are right; the rules ask only for what was promised.

mod deliver;
mod ends;
mod lines;
mod state;
#[cfg(test)]
mod tests;
mod wills;

pub(super) use deliver::MAX_TRIES;

use super::cast::{AUDITOR, EVER, MEMORY, WILLS};
use super::facts::{Fact, Id, Seen, Tag, Who, Will};
use crate::history::Conn;
use state::{Door, Message, Session, Sub};
use std::collections::{HashMap, HashSet};

/// A rule that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Which, and by what.
    pub why: String,
    /// The index of the fact that broke it; `None`: it is seen in the end.
    pub fact: Option<usize>,
}

/// The first rule that was broken, if any.
///
/// # Errors
/// That rule.
pub fn check(seen: &Seen) -> Result<(), Broken> {
    let mut walk = Walk::new(seen);
    for (at, (now, fact)) in seen.facts.iter().enumerate() {
        (walk.at, walk.now) = (at, *now);
        walk.fact(fact).map_err(|why| Broken { why, fact: Some(at) })?;
    }
    ends::check(&walk).map_err(|why| Broken { why, fact: None })
}

type Rule = Result<(), String>;

/// What is known after the facts so far.
struct Walk<'a> {
    seen: &'a Seen,
    at: usize,
    now: u64,
    // How often the broker was started, and when the last time.
    life: u32,
    opened: u64,
    drained: bool,
    messages: Vec<Message>,
    doors: HashMap<Conn, Door>,
    // The newest connection of each client.
    newest: HashMap<Who, Conn>,
    // All sessions there ever were, and the present one of each client.
    sessions: Vec<Session>,
    current: HashMap<Who, usize>,
    // Which message an id of a publisher stands for, and since which life.
    ids: HashMap<(Who, Id), (Tag, u32)>,
    // How often the group got a message of QoS 2, in lasting sessions.
    group: HashMap<Tag, u32>,
    apps: HashMap<(Who, Tag), u32>,
    retained: HashMap<u8, Tag>,
    // Letters, by client id and message: the name of the death, and why.
    dead: HashMap<(String, Tag), (String, String)>,
    // Messages of work queues that somebody was done with, and how often they came in this life.
    done: HashSet<Tag>,
    tries: HashMap<Tag, u32>,
    wills: wills::Wills,
    lines: lines::Lines,
}

impl<'a> Walk<'a> {
    fn new(seen: &'a Seen) -> Self {
        Self {
            seen,
            at: 0,
            now: 0,
            life: 0,
            opened: 0,
            drained: false,
            messages: vec![Message::default(); seen.sent.len()],
            doors: HashMap::new(),
            newest: HashMap::new(),
            sessions: Vec::new(),
            current: HashMap::new(),
            ids: HashMap::new(),
            group: HashMap::new(),
            apps: HashMap::new(),
            retained: HashMap::new(),
            dead: HashMap::new(),
            done: HashSet::new(),
            tries: HashMap::new(),
            wills: wills::Wills::default(),
            lines: lines::Lines::default(),
        }
    }

    /// The session of a connection, unless a newer one took it over: what still leaves there nobody hears.
    fn session(&mut self, conn: Conn) -> Option<(&mut Session, &mut Door)> {
        let door = self.doors.get_mut(&conn)?;
        if self.newest.get(&door.who) != Some(&conn) {
            return None;
        }
        Some((self.sessions.get_mut(door.session?)?, door))
    }

    fn fact(&mut self, fact: &Fact) -> Rule {
        let (at, now, life) = (self.at, self.now, self.life);
        match *fact {
            Fact::Opened => {
                (self.life, self.opened) = (life + 1, now);
                self.tries.clear();
                self.wills.opened(now);
            }
            Fact::Closed => self.closed(),
            Fact::Stopping => self.wills.stopping(),
            Fact::Drained => self.drained = true,
            Fact::Connect { conn, who, clean, lasting, window, will } => {
                self.connect(conn, who, clean, lasting, window, will);
            }
            Fact::Connack { conn, present } => return self.connack(conn, present),
            Fact::Gone { conn, polite } => {
                self.wills.gone(conn, polite, now, life);
                if let Some((session, _)) = self.session(conn) {
                    session.part(at, now);
                }
            }
            Fact::Publish { conn, id, tag, .. } => {
                let Some(door) = self.doors.get_mut(&conn) else { return Ok(()) };
                if self.newest.get(&door.who) != Some(&conn) {
                    // Another connection has taken the session over: nothing is read here any more.
                    return Ok(());
                }
                door.heard = now;
                self.ids.insert((door.who, id), (tag, life));
                if let Some(message) = self.messages.get_mut(tag as usize) {
                    message.came(at, now, life, self.seen.sent[tag as usize].qos);
                    // It may have been refused, because the disk was full, the next one not, and nobody have heard of that.
                    message.unordered |= self.seen.disk_fails && message.lives.0 != life;
                }
            }
            Fact::Taken { conn, id, ok } => {
                let who = self.doors.get(&conn).map(|door| door.who);
                let tag = who.and_then(|who| self.ids.get(&(who, id)));
                match tag {
                    Some((tag, _)) if ok => self.messages[*tag as usize].taken.get_or_insert(at),
                    Some((tag, _)) => {
                        // It was refused. If nobody hears of that, it comes again.
                        self.messages[*tag as usize].unordered = true;
                        return Ok(());
                    }
                    None => return Err(format!("id {id} is answered, and nothing was published under it")),
                };
            }
            Fact::Complete { conn, id, known } => {
                let who = self.doors.get(&conn).map(|door| door.who);
                let since = who.and_then(|who| self.ids.get(&(who, id)));
                if !known && since.is_some_and(|(_, since)| *since == life) {
                    return Err(format!(
                        "PUBCOMP {id} says that the id is not known, in the life that took it"
                    ));
                }
            }
            Fact::Subscribe { conn, id, ask } => {
                if let Some((session, door)) = self.session(conn) {
                    door.heard = now;
                    door.asking.insert(id, session.ask(ask, at));
                }
            }
            Fact::Subscribed { conn, id, ok } => {
                if !ok {
                    return Err(format!("SUBACK {id} refuses"));
                }
                if let Some((session, door)) = self.session(conn)
                    && let Some(sub) = door.asking.remove(&id).and_then(|sub| session.subs.get_mut(sub))
                {
                    sub.sure.get_or_insert(at);
                }
            }
            Fact::Unsubscribe { conn, id, filter } => {
                if let Some((session, door)) = self.session(conn) {
                    door.heard = now;
                    for sub in session.subs.iter_mut().filter(|sub| sub.ask.filter == filter) {
                        sub.ending.get_or_insert(at);
                    }
                    door.ending.insert(id, filter);
                }
            }
            Fact::Unsubscribed { conn, id } => {
                if let Some((session, door)) = self.session(conn)
                    && let Some(filter) = door.ending.remove(&id)
                {
                    let of = |sub: &&mut Sub| sub.ask.filter == filter && sub.ending.is_some();
                    session.subs.iter_mut().filter(of).for_each(|sub| {
                        sub.ended.get_or_insert(at);
                    });
                }
            }
            Fact::Deliver { conn, id, tag, qos, retain, dup, ids, expiry } => {
                let delivery = deliver::Delivery { id, tag, qos, retain, dup, ids, expiry };
                return self.deliver(conn, &delivery);
            }
            Fact::Refused { conn, id } => self.refused(conn, id),
            Fact::Dead { ref client, tag, ref id, ref reason } => {
                return tag.map_or(Ok(()), |tag| self.died(client, tag, id, reason));
            }
            Fact::Line { conn, who, ref fact } => return self.line(conn, who, fact),
            Fact::Received { conn, id } => {
                if let Some((session, door)) = self.session(conn) {
                    door.heard = now;
                    if let Some(bind) = session.binds.get_mut(&id) {
                        bind.received = true;
                    }
                }
            }
            Fact::Released { conn, id } => return self.released(conn, id),
            Fact::Settled { conn, id } => {
                if let Some((session, door)) = self.session(conn) {
                    door.heard = now;
                    door.in_flight.remove(&id);
                    if let Some(tag) = door.work.remove(&id) {
                        self.done.insert(tag);
                        return Ok(());
                    }
                    if let Some(bind) = session.binds.get_mut(&id) {
                        bind.settled = bind.qos == 1 || bind.released;
                    }
                }
            }
            Fact::Release { conn, .. } => {
                if let Some(door) = self.doors.get_mut(&conn) {
                    door.heard = now;
                }
            }
            Fact::App { who, tag, retain } => {
                if !retain {
                    *self.apps.entry((who, tag)).or_default() += 1;
                }
            }
            Fact::Wrong(ref why) => return Err(why.clone()),
        }
        Ok(())
    }

    fn closed(&mut self) {
        let (at, now) = (self.at, self.now);
        for session in self.sessions.iter_mut().filter(|session| session.gone.is_none()) {
            session.part(at, now);
        }
        self.newest.clear();
        self.wills.closed(now);
    }

    fn connect(&mut self, conn: Conn, who: Who, clean: bool, lasting: u32, window: u16, will: Option<Will>) {
        let (at, now, opened) = (self.at, self.now, self.opened);
        let (mut expired, mut anew) = (false, true);
        self.wills.connect(who, now);
        let before =
            self.newest.insert(who, conn).and_then(|conn| self.doors.get(&conn)).map(|door| door.heard);
        self.doors.insert(conn, Door::new(who, clean, lasting, window, will, now));
        match self.current.get(&who).and_then(|at| self.sessions.get_mut(*at)) {
            Some(session) if session.ended.is_none() => {
                anew = false;
                let over = |gone: u64| now > gone.max(opened) + u64::from(session.lasting) * 1000;
                expired = session.lasting != EVER && session.gone.is_some_and(|(_, gone)| over(gone));
                session.gone = None;
                // When the broker saw the last connection end is known only within limits.
                let heard = before.unwrap_or(session.heard).min(session.heard);
                let expires = u64::from(session.lasting) * 1000;
                if clean || session.lasting == 0 || session.lasting != EVER && now >= heard + expires {
                    session.doubt(at);
                }
            }
            // CONNACK may never leave, and the session be there.
            _ if lasting > 0 => {
                let mut session = Session::new(who, lasting);
                session.doubt(at);
                self.current.insert(who, self.sessions.len());
                self.sessions.push(session);
            }
            _ => {}
        }
        if let Some(door) = self.doors.get_mut(&conn) {
            (door.expired, door.anew) = (expired, anew);
        }
    }

    fn connack(&mut self, conn: Conn, present: bool) -> Rule {
        let (at, now) = (self.at, self.now);
        let Some(door) = self.doors.get_mut(&conn) else { return Ok(()) };
        let who = door.who;
        let anew = door.anew;
        if self.newest.get(&who) != Some(&conn) {
            return Ok(());
        }
        self.wills.connack(who, conn, door.will, at, self.life);
        let old = self.current.get(&who).copied();
        let session =
            old.and_then(|old| self.sessions.get_mut(old)).filter(|session| session.ended.is_none());
        if present {
            if door.clean {
                return Err("session present, and a new one was asked for".into());
            }
            let Some(session) = session.filter(|_| !anew) else {
                return Err("session present, and there was none".into());
            };
            if door.expired {
                return Err("session present, and it had expired".into());
            }
            session.back(now);
            door.session = old;
            return Ok(());
        }
        if let Some(session) = session {
            if !session.doubtful {
                return Err(format!("the session of c{who} is gone"));
            }
            session.ended = Some(at);
        }
        let mut session = Session::new(who, door.lasting);
        session.back(now);
        door.session = Some(self.sessions.len());
        self.current.insert(who, self.sessions.len());
        self.sessions.push(session);
        Ok(())
    }

    fn released(&mut self, conn: Conn, id: Id) -> Rule {
        let (seen, drained) = (self.seen, self.drained);
        let Some((session, _)) = self.session(conn) else { return Ok(()) };
        let who = session.who;
        let tag = session.binds.get(&id).and_then(|bind| bind.tag);
        let will = tag.is_some_and(|tag| seen.sent[tag as usize].topic == WILLS);
        if drained && who != AUDITOR && session.lasting == EVER && !will {
            return Err(format!("PUBREL {id} comes to c{who} again, and all was settled"));
        }
        match session.binds.get_mut(&id) {
            Some(bind) if bind.qos == 2 && bind.received => bind.released = true,
            _ if session.merged => {}
            _ => return Err(format!("PUBREL {id} to c{who}, from whom no PUBREC came")),
        }
        Ok(())
    }

    /// The client wants nothing of a message.
    fn refused(&mut self, conn: Conn, id: Id) {
        let now = self.now;
        let Some((session, door)) = self.session(conn) else { return };
        door.heard = now;
        door.in_flight.remove(&id);
        if door.work.remove(&id).is_some() {
            return;
        }
        if let Some(bind) = session.binds.get_mut(&id) {
            bind.refused = true;
            session.refused.extend(bind.tag);
        }
    }

    /// A letter is stored.
    fn died(&mut self, client: &str, tag: Tag, id: &str, reason: &str) -> Rule {
        let sent = &self.seen.sent[tag as usize];
        let message = &self.messages[tag as usize];
        if reason == "it expired"
            && sent.expires.is_none_or(|after| self.now < message.first_time + u64::from(after) * 1000)
        {
            return Err(format!("message {tag} is said to have expired, and had not"));
        }
        let key = (client.to_owned(), tag);
        // Of a session that ends nothing is known after a crash, and the next one may get it.
        let ends = |session: &Session| session.lasting != EVER && ends::client(session.who) == client;
        let once = sent.qos == 2 && !self.sessions.iter().any(ends);
        match self.dead.get(&key) {
            // At QoS 1 the same message may be published twice, of what only memory has nothing is known after a crash,
            // and what is retained may die as such, too.
            Some((other, _)) if once && other != id && sent.topic != MEMORY && !sent.retain => {
                Err(format!("message {tag} died twice for {client}: {other}, {id}"))
            }
            _ => {
                self.dead.insert(key, (id.to_owned(), reason.to_owned()));
                Ok(())
            }
        }
    }
}

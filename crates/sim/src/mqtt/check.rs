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

mod ends;
mod state;

use super::cast::{AUDITOR, EVER, SHARED, TOPICS};
use super::facts::{Fact, Id, Seen, Tag, Who};
use crate::history::Conn;
use state::{Bind, Door, Message, Session, Sub, matches};
use std::collections::HashMap;

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
            Fact::Opened => (self.life, self.opened) = (life + 1, now),
            Fact::Closed => self.closed(),
            Fact::Drained => self.drained = true,
            Fact::Connect { conn, who, clean, lasting, window } => {
                self.connect(conn, who, clean, lasting, window);
            }
            Fact::Connack { conn, present } => return self.connack(conn, present),
            Fact::Gone { conn } => {
                if let Some((session, _)) = self.session(conn) {
                    session.part(at, now);
                }
            }
            Fact::Publish { conn, id, tag, .. } => {
                let Some(door) = self.doors.get_mut(&conn) else { return Ok(()) };
                door.heard = now;
                self.ids.insert((door.who, id), (tag, life));
                if let Some(message) = self.messages.get_mut(tag as usize) {
                    message.came(at, self.seen.sent[tag as usize].qos);
                }
            }
            Fact::Taken { conn, id, ok } => {
                let who = self.doors.get(&conn).map(|door| door.who);
                let tag = who.and_then(|who| self.ids.get(&(who, id)));
                match tag {
                    Some((tag, _)) if ok => self.messages[*tag as usize].taken.get_or_insert(at),
                    Some(_) => return Ok(()),
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
            Fact::Subscribe { conn, id, filter, qos } => {
                if let Some((session, door)) = self.session(conn) {
                    door.heard = now;
                    door.asking.insert(id, session.ask(filter, qos, at));
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
                    for sub in session.subs.iter_mut().filter(|sub| sub.filter == filter) {
                        sub.ending.get_or_insert(at);
                    }
                    door.ending.insert(id, filter);
                }
            }
            Fact::Unsubscribed { conn, id } => {
                if let Some((session, door)) = self.session(conn)
                    && let Some(filter) = door.ending.remove(&id)
                {
                    let of = |sub: &&mut Sub| sub.filter == filter && sub.ending.is_some();
                    session.subs.iter_mut().filter(of).for_each(|sub| {
                        sub.ended.get_or_insert(at);
                    });
                }
            }
            Fact::Deliver { conn, id, tag, qos, retain, dup } => {
                return self.deliver(conn, id, tag, qos, retain, dup);
            }
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
    }

    fn connect(&mut self, conn: Conn, who: Who, clean: bool, lasting: u32, window: u16) {
        let (at, now, opened) = (self.at, self.now, self.opened);
        let mut expired = false;
        let before =
            self.newest.insert(who, conn).and_then(|conn| self.doors.get(&conn)).map(|door| door.heard);
        self.doors.insert(conn, Door::new(who, clean, lasting, window, now));
        match self.current.get(&who).and_then(|at| self.sessions.get_mut(*at)) {
            Some(session) if session.ended.is_none() => {
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
            door.expired = expired;
        }
    }

    fn connack(&mut self, conn: Conn, present: bool) -> Rule {
        let (at, now) = (self.at, self.now);
        let Some(door) = self.doors.get_mut(&conn) else { return Ok(()) };
        let who = door.who;
        if self.newest.get(&who) != Some(&conn) {
            return Ok(());
        }
        let old = self.current.get(&who).copied();
        let session =
            old.and_then(|old| self.sessions.get_mut(old)).filter(|session| session.ended.is_none());
        if present {
            if door.clean {
                return Err("session present, and a new one was asked for".into());
            }
            let Some(session) = session else { return Err("session present, and there was none".into()) };
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

    fn deliver(&mut self, conn: Conn, id: Id, tag: Option<Tag>, qos: u8, retain: bool, dup: bool) -> Rule {
        let (at, seen, drained, life) = (self.at, self.seen, self.drained, self.life);
        let message = tag.and_then(|tag| self.messages.get(tag as usize)).cloned().unwrap_or_default();
        let Some((session, door)) = self.session(conn) else { return Ok(()) };
        let who = session.who;
        if drained && who != AUDITOR && session.lasting == EVER {
            return Err(format!("message {tag:?} comes to c{who} again, and all was settled"));
        }
        let sent = tag.and_then(|tag| seen.sent.get(tag as usize));
        let topic = sent.map(|sent| TOPICS[usize::from(sent.topic)]);
        if let (Some(sent), Some(topic)) = (sent, topic) {
            let asked = |sub: &&Sub| {
                let late = if sub.filter == SHARED || retain { at } else { message.last };
                matches(sub.filter, topic)
                    && sub.asked <= late
                    && sub.ended.is_none_or(|ended| ended >= message.first)
            };
            let most = session.subs.iter().filter(asked).map(|sub| sub.qos.min(sent.qos)).max();
            if most.is_none_or(|most| qos > most) {
                return Err(format!("message {tag:?} comes to c{who} at QoS {qos}, who asked for {most:?}"));
            }
            if retain && !sent.retain {
                return Err(format!("message {tag:?} was not retained"));
            }
        }
        if qos == 0 {
            if let (Some(tag), false, Some(0)) = (tag, retain, sent.map(|sent| sent.qos))
                && session.got.insert(tag, 1).is_some()
            {
                return Err(format!("message {tag} of QoS 0 comes to c{who} twice"));
            }
            if who == AUDITOR && retain {
                self.audit(tag);
            }
            return Ok(());
        }
        if !door.in_flight.insert(id) {
            return Err(format!("id {id} is sent to c{who} twice on one connection"));
        }
        if door.in_flight.len() > usize::from(door.window) {
            return Err(format!(
                "{} messages at once to c{who}, who takes {}",
                door.in_flight.len(),
                door.window
            ));
        }
        let bind = Bind {
            tag,
            qos,
            retain,
            received: false,
            released: false,
            settled: false,
            doubtful: false,
            life,
        };
        if let Some(old) = session.binds.get_mut(&id).filter(|old| old.doubtful && old.is_same(&bind)) {
            *old = bind;
            return Ok(());
        }
        // An id of QoS 1 may stand for another message after a crash: its receiver keeps no state.
        let free = |old: &Bind| old.settled || old.qos == 1 && old.life != life;
        let sure = |old: &&mut Bind| !old.doubtful && (!free(old) || old.is_same(&bind));
        if let Some(old) = session.binds.get_mut(&id).filter(sure) {
            if !old.is_same(&bind) {
                return Err(format!("id {id} to c{who} is of message {:?} and of {tag:?}", old.tag));
            }
            if old.released {
                return Err(format!("message {tag:?} comes to c{who} again after PUBREL {id}"));
            }
            // A publisher may publish a message of QoS 1 twice, and the second be the first of this number that is logged.
            let twice = sent.is_some_and(|sent| sent.qos == 1) && old.life != life;
            if !dup && !twice {
                return Err(format!("message {tag:?} comes to c{who} again, without DUP"));
            }
            old.settled = false;
            return Ok(());
        }
        session.binds.insert(id, bind);
        let (Some(tag), Some(sent)) = (tag, sent) else { return Ok(()) };
        if retain {
            if who == AUDITOR {
                self.audit(Some(tag));
            }
            return Ok(());
        }
        let got = session.got.entry(tag).or_default();
        *got += 1;
        // At QoS 1 the same message may be published twice.
        if qos == 2 && *got > 1 {
            return Err(format!("message {tag} comes to c{who} twice: again under id {id}"));
        }
        let shared = topic.is_some_and(|topic| topic.starts_with("s/"));
        if !shared && sent.qos == 2 {
            let last = session.order.insert((sent.by, sent.topic, qos), tag);
            // Who was not there when it came for the first time may get it late: nobody had to remember it.
            let there = |sub: &Sub| {
                topic.is_some_and(|topic| matches(sub.filter, topic))
                    && sub.sure.is_some_and(|sure| sure < message.first)
            };
            if last.is_some_and(|last| last > tag) && session.subs.iter().any(there) {
                return Err(format!("message {tag} comes to c{who} after {last:?}"));
            }
        }
        if shared && qos == 2 && session.lasting == EVER {
            let got = self.group.entry(tag).or_default();
            *got += 1;
            if *got > 1 {
                return Err(format!("message {tag} comes to two members of the group"));
            }
        }
        Ok(())
    }

    /// The auditor asked what is retained.
    fn audit(&mut self, tag: Option<Tag>) {
        if let Some(tag) = tag {
            self.retained.insert(self.seen.sent[tag as usize].topic, tag);
        }
    }

    fn released(&mut self, conn: Conn, id: Id) -> Rule {
        let drained = self.drained;
        let Some((session, _)) = self.session(conn) else { return Ok(()) };
        let who = session.who;
        if drained && who != AUDITOR && session.lasting == EVER {
            return Err(format!("PUBREL {id} comes to c{who} again, and all was settled"));
        }
        match session.binds.get_mut(&id) {
            Some(bind) if bind.qos == 2 && bind.received => bind.released = true,
            _ if session.merged => {}
            _ => return Err(format!("PUBREL {id} to c{who}, from whom no PUBREC came")),
        }
        Ok(())
    }
}

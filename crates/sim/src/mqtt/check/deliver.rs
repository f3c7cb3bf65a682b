//! What must hold when PUBLISH leaves for a client of MQTT.

use super::state::{Bind, Door, Message, Session};
use super::{Rule, Walk};
use crate::history::Conn;
use crate::mqtt::cast::{AUDITOR, EVER, MEMORY, SHARED, TOPICS, WILLS, WORK};
use crate::mqtt::facts::{Id, Sent, Tag};

/// Deliveries of one message of a work queue in one life of the broker, at most.
pub(in crate::mqtt) const MAX_TRIES: u32 = 4;

/// What PUBLISH says.
#[derive(Clone, Copy)]
pub(super) struct Delivery {
    pub(super) id: Id,
    pub(super) tag: Option<Tag>,
    pub(super) qos: u8,
    pub(super) retain: bool,
    pub(super) dup: bool,
    pub(super) ids: u32,
    pub(super) expiry: Option<u32>,
}

impl Walk<'_> {
    pub(super) fn deliver(&mut self, conn: Conn, delivery: &Delivery) -> Rule {
        let Delivery { id, tag, qos, dup, .. } = *delivery;
        let (at, now, seen, drained, life) = (self.at, self.now, self.seen, self.drained, self.life);
        let message = tag.and_then(|tag| self.messages.get(tag as usize)).cloned().unwrap_or_default();
        let Some((session, door)) = self.session(conn) else { return Ok(()) };
        let who = session.who;
        let sent = tag.and_then(|tag| seen.sent.get(tag as usize));
        // The last crash broke connections, too.
        let will = sent.is_some_and(|sent| sent.topic == WILLS);
        if drained && who != AUDITOR && session.lasting == EVER && !will {
            return Err(format!("message {tag:?} comes to c{who} again, and all was settled"));
        }
        let topic = sent.map(|sent| TOPICS[usize::from(sent.topic)]);
        let mut replay = delivery.retain;
        if let Some(sent) = sent {
            if sent.line && !message.came {
                return Err(format!("message {tag:?} comes to c{who}, and was not released"));
            }
            replay = asked_for(session, sent, &message, at, delivery)?;
            in_time(door, sent, &message, now, delivery)?;
            if sent.topic == WORK {
                return self.work(conn, delivery, sent);
            }
        }
        if qos == 0 {
            if let (Some(tag), false, Some(0)) = (tag, replay, sent.map(|sent| sent.qos))
                && session.got.insert(tag, 1).is_some()
            {
                return Err(format!("message {tag} of QoS 0 comes to c{who} twice"));
            }
            if who == AUDITOR && replay {
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
        // Only memory has it: after a crash its publisher may have published it again.
        let again = message.lives.0 != message.lives.1;
        let forgotten = again && sent.is_some_and(|sent| sent.topic == MEMORY);
        let bind = Bind {
            tag,
            qos,
            retain: delivery.retain,
            received: false,
            released: false,
            settled: false,
            refused: false,
            doubtful: false,
            life,
        };
        if let Some(old) = session.binds.get_mut(&id).filter(|old| old.doubtful && old.is_same(&bind)) {
            *old = bind;
            return Ok(());
        }
        // An id of QoS 1 may stand for another message after a crash: its receiver keeps no state.
        let free = |old: &Bind| old.settled || old.qos == 1 && old.life != life;
        let sure = |old: &&mut Bind| !old.doubtful && (old.is_same(&bind) || !free(old) && !old.refused);
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
        if replay {
            let fresh = session.subs.iter_mut().filter(|sub| sub.ending.is_none() && sub.takes(who, sent));
            for sub in fresh.filter(|sub| sub.ask.handling == 1) {
                // What was sent at QoS 1 comes again after a crash.
                if let Some(old) = sub.replayed.insert(sent.topic, (tag, life))
                    && (old.0 != tag || old.1 == life)
                {
                    return Err(format!("retained message {tag} comes to c{who}, whose subscription is old"));
                }
            }
            if who == AUDITOR {
                self.audit(Some(tag));
            }
            return Ok(());
        }
        // At QoS 1 the same message may be published twice; a letter may be of what came because it is retained.
        let key = (super::ends::client(who), tag);
        let once = sent.qos == 2 && !sent.retain && !forgotten && session.lasting == EVER;
        if let Some((_, why)) = self.dead.get(&key).filter(|_| once) {
            return Err(format!("message {tag} comes to c{who}, and is a dead letter: {why}"));
        }
        let Some((session, _)) = self.session(conn) else { return Ok(()) };
        let got = session.got.entry(tag).or_default();
        *got += 1;
        // At QoS 1 the same message may be published twice.
        if qos == 2 && *got > 1 && !forgotten {
            return Err(format!("message {tag} comes to c{who} twice: again under id {id}"));
        }
        let shared = topic.is_some_and(|topic| topic.starts_with("s/"));
        // What expired, or had to make room, before it was sent may after a crash be taken for sent, and come again.
        let late = sent.topic == MEMORY || sent.expires.is_some() || seen.overflows;
        if !shared && sent.qos == 2 && !late && !message.unordered {
            let last = session.order.insert((sent.by, sent.topic, qos), tag);
            // Who was not there when it came for the first time may get it late: nobody had to remember it.
            let there =
                |sub: &super::Sub| sub.takes(who, sent) && sub.sure.is_some_and(|sure| sure < message.first);
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
        if sent.topic == WILLS {
            self.wills.published(tag, life)?;
        }
        Ok(())
    }

    /// A message of a work queue: it may come more than once, but not for ever.
    fn work(&mut self, conn: Conn, delivery: &Delivery, sent: &Sent) -> Rule {
        let Some(tag) = delivery.tag else { return Ok(()) };
        if let Some(door) = self.doors.get_mut(&conn) {
            door.work.insert(delivery.id, tag);
        }
        let tries = self.tries.entry(tag).or_default();
        *tries += 1;
        // At QoS 1 the same message may be published twice.
        if sent.qos == 2 && *tries > MAX_TRIES {
            return Err(format!("message {tag} is given to a worker for the {tries}th time"));
        }
        Ok(())
    }

    /// The auditor asked what is retained.
    fn audit(&mut self, tag: Option<Tag>) {
        if let Some(tag) = tag {
            self.retained.insert(self.seen.sent[tag as usize].topic, tag);
        }
    }
}

/// Who gets a message has asked for it, and as it comes. True: it comes because it is retained.
fn asked_for(
    session: &Session,
    sent: &Sent,
    message: &Message,
    at: usize,
    delivery: &Delivery,
) -> Result<bool, String> {
    let Delivery { tag, qos, retain, ids, .. } = *delivery;
    let who = session.who;
    // As published, the flag says nothing of why it comes; then it never comes because it is retained.
    let takes = || session.subs.iter().filter(|sub| sub.takes(who, sent));
    let as_published = takes().any(|sub| sub.ask.as_published);
    if as_published && retain != sent.retain {
        return Err(format!("message {tag:?} comes to c{who}, and RETAIN is not as it was published"));
    }
    let replay = retain && !as_published;
    if replay && takes().all(|sub| sub.ask.handling == 2) {
        return Err(format!("message {tag:?} comes to c{who} because it is retained, who did not want that"));
    }
    let asked = || {
        takes().filter(|sub| {
            let late = if sub.ask.filter == SHARED || replay || matches!(sent.topic, WILLS | WORK) {
                at
            } else {
                message.last
            };
            sub.asked <= late && sub.ended.is_none_or(|ended| ended >= message.first)
        })
    };
    // A work queue keeps what comes at QoS 0, too.
    let published = if sent.topic == WORK { 1 } else { sent.qos };
    let most = asked().map(|sub| sub.ask.qos.min(published)).max();
    if most.is_none_or(|most| qos > most) {
        return Err(format!("message {tag:?} comes to c{who} at QoS {qos}, who asked for {most:?}"));
    }
    if retain && !sent.retain {
        return Err(format!("message {tag:?} was not retained"));
    }
    let may = asked().fold(0, |bits, sub| bits | sub.bit());
    let surely = |sub: &&super::Sub| {
        !replay && sub.sure.is_some_and(|sure| sure < message.first) && sub.ending.is_none()
    };
    let must = takes().filter(surely).fold(0, |bits, sub| bits | sub.bit());
    if ids & !may != 0 || must & !ids != 0 {
        return Err(format!(
            "message {tag:?} comes to c{who} with the identifiers {ids:b}, of {may:b} it must have {must:b}"
        ));
    }
    Ok(replay)
}

/// What expires says how much is left, and does not come for the first time when nothing is.
fn in_time(door: &Door, sent: &Sent, message: &Message, now: u64, delivery: &Delivery) -> Rule {
    let Delivery { tag, dup, expiry, .. } = *delivery;
    let who = door.who;
    let (after, left) = match (sent.expires, expiry) {
        (None, None) => return Ok(()),
        (Some(after), Some(left)) if left <= after => (u64::from(after) * 1000, u64::from(left) * 1000),
        (after, left) => {
            return Err(format!("message {tag:?} to c{who} expires after {after:?}, not {left:?}"));
        }
    };
    // A second more or less is one of rounding.
    if left + (now - message.first_time) + 1000 < after {
        return Err(format!("message {tag:?} to c{who} has {left} ms left, too little"));
    }
    // When it was written is not known, but not before this connection was there.
    let waited = door.since.saturating_sub(message.last_time);
    if waited >= after && !dup {
        return Err(format!("message {tag:?} comes to c{who}, and had expired"));
    }
    if left > after.saturating_sub(waited) + 1000 {
        return Err(format!("message {tag:?} to c{who} has {left} ms left, after {waited} of {after}"));
    }
    Ok(())
}

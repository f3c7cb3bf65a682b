//! What must hold when everything was drained: nothing that was promised is missing.

use super::state::{Message, Session, matches};
use super::{Rule, Walk};
use crate::mqtt::cast::{EVER, MEMORY, QUEUE, RETAINED, SHARED, TOPICS, WORK};
use crate::mqtt::facts::{Tag, Who};

pub(super) fn check(walk: &Walk<'_>) -> Rule {
    for (tag, message) in walk.messages.iter().enumerate() {
        if let Some(taken) = message.taken {
            if walk.seen.sent[tag].topic == WORK {
                work(walk, tag as Tag, message)?;
                continue;
            }
            each(walk, tag as Tag, message, taken)?;
            group(walk, tag as Tag, message)?;
        }
    }
    super::wills::check(walk)?;
    super::lines::check(walk)?;
    RETAINED.into_iter().try_for_each(|topic| retained(walk, topic))
}

/// A message that was taken is with everybody who was subscribed all the while.
fn each(walk: &Walk<'_>, tag: Tag, message: &Message, taken: usize) -> Rule {
    let sent = &walk.seen.sent[tag as usize];
    let topic = TOPICS[usize::from(sent.topic)];
    if sent.empty || sent.topic == MEMORY {
        // Before 5.0 nothing says which one it was; what only memory has is gone with every crash.
        return Ok(());
    }
    for session in &walk.sessions {
        // What waits for a session that ends dies with it.
        let ended = session.ended.is_some() && session.lasting > 0 && taken < session.parted;
        if !ended && (session.ended.is_some() || session.doubtful) {
            continue;
        }
        let surely = session.subs.iter().filter(|sub| {
            sub.ask.filter != SHARED
                && sub.takes(session.who, sent)
                && sub.sure.is_some_and(|sure| sure < message.first)
                && sub.ending.is_none_or(|ending| ending > taken)
        });
        let qos = surely.map(|sub| sub.ask.qos.min(sent.qos)).max().unwrap_or(0);
        let got = session.got.get(&tag).copied().unwrap_or(0);
        let who = session.who;
        let dead = walk.dead.contains_key(&(client(who), tag));
        if qos > 0 && got == 0 && !dead {
            return Err(format!(
                "message {tag} on {topic} was taken, and is lost for c{who}, who was subscribed"
            ));
        }
        if session.refused.contains(&tag) {
            if !dead {
                return Err(format!("c{who} refused message {tag}, and it is no dead letter"));
            }
            continue;
        }
        let apps = walk.apps.get(&(who, tag)).copied().unwrap_or(0);
        let once = apps == 1 || apps == 0 && dead;
        if qos == 2 && !once && keeps(session) && !ended {
            return Err(format!("the application of c{who} got message {tag} {apps} times"));
        }
    }
    Ok(())
}

/// The client id of a client.
pub(super) fn client(who: Who) -> String {
    format!("c{who}")
}

/// A message of a work queue is with somebody who was done with it, or dead.
fn work(walk: &Walk<'_>, tag: Tag, message: &Message) -> Rule {
    let consumers = walk.sessions.iter().flat_map(|session| &session.subs);
    let there = consumers
        .filter(|sub| sub.ask.filter == QUEUE)
        .any(|sub| sub.sure.is_some_and(|sure| sure < message.first));
    let qos = walk.seen.sent[tag as usize].qos;
    let dead = walk.dead.contains_key(&("$queue/jobs".to_owned(), tag));
    if there && qos > 0 && !walk.done.contains(&tag) && !dead {
        return Err(format!("message {tag} was taken, and nobody did the work"));
    }
    Ok(())
}

/// Its client never forgot anything.
fn keeps(session: &Session) -> bool {
    session.lasting == EVER && !session.merged && !matches!(session.who, 2 | 7)
}

/// A message that was taken is with one member of the group, if no member ever left it.
fn group(walk: &Walk<'_>, tag: Tag, message: &Message) -> Rule {
    let sent = &walk.seen.sent[tag as usize];
    if sent.qos == 0 || !matches(SHARED, TOPICS[usize::from(sent.topic)]) {
        return Ok(());
    }
    let members = || {
        let shared = |session: &&Session| session.subs.iter().any(|sub| sub.ask.filter == SHARED);
        walk.sessions.iter().filter(shared)
    };
    let subs = || members().flat_map(|session| session.subs.iter().filter(|sub| sub.ask.filter == SHARED));
    let faithful = members()
        .all(|session| session.lasting == EVER && session.ended.is_none() && !session.merged)
        && subs().all(|sub| sub.ending.is_none());
    let there = subs().any(|sub| sub.sure.is_some_and(|sure| sure < message.first));
    let got: u32 = members().map(|session| session.got.get(&tag).copied().unwrap_or(0)).sum();
    let dead = members().any(|session| walk.dead.contains_key(&(client(session.who), tag)));
    if faithful && there && got == 0 && !dead {
        return Err(format!("message {tag} was taken, and is lost for the group"));
    }
    Ok(())
}

/// What is retained is the last message that was taken, or one whose outcome nobody was told.
fn retained(walk: &Walk<'_>, topic: u8) -> Rule {
    let of = |(tag, message): &(usize, &Message)| {
        let sent = &walk.seen.sent[*tag];
        sent.topic == topic && sent.retain && message.came
    };
    let all = || walk.messages.iter().enumerate().filter(of);
    let taken = || all().filter(|(_, message)| message.taken.is_some());
    let last = |message: &Message| !taken().any(|(_, later)| later.first > message.counted);
    let mut possible = all().filter(|(_, message)| last(message));
    let found = walk.retained.get(&topic);
    let name = TOPICS[usize::from(topic)];
    match found {
        Some(found) => {
            if !possible.any(|(tag, _)| tag == *found as usize) {
                return Err(format!("{name} retains message {found}, and a later one was taken"));
            }
        }
        None => {
            if taken().next().is_some() && !possible.any(|(tag, _)| walk.seen.sent[tag].empty) {
                return Err(format!("{name} retains nothing, and something was taken"));
            }
        }
    }
    Ok(())
}

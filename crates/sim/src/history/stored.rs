//! The rules of what is on the disk in the end.

use super::deliveries::Ledger;
use super::{Audit, Fact, History, Start, Tag, Terms, Topic};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What the logs hold, as tags.
fn read(history: &History, audit: &Audit) -> Result<BTreeMap<(Topic, u64), Tag>, String> {
    let tags: HashMap<&[u8], Tag> =
        history.sent.iter().enumerate().map(|(tag, sent)| (sent.payload.as_slice(), tag as Tag)).collect();
    let mut log = BTreeMap::new();
    for (topic, payloads) in &audit.logs {
        for (at, payload) in payloads.iter().enumerate() {
            let seq = audit.first.get(topic).copied().unwrap_or(1) + at as u64;
            let tag = tags.get(payload.as_slice()).ok_or_else(|| {
                format!(
                    "topic {topic} holds at {seq} what nobody published: {}",
                    String::from_utf8_lossy(payload)
                )
            })?;
            if history.sent[*tag as usize].topic != *topic {
                return Err(format!("topic {topic} holds at {seq} what was published to another"));
            }
            log.insert((*topic, seq), *tag);
        }
    }
    Ok(log)
}

pub(super) fn check(
    terms: Terms<'_>,
    history: &History,
    ledger: &Ledger,
    audit: &Audit,
) -> Result<(), String> {
    let log = read(history, audit)?;
    for (place, tag) in &ledger.told {
        match log.get(place) {
            Some(there) if there == tag => {}
            None if audit.is_trimmed(*place) => {}
            other => {
                return Err(format!("{place:?} was said to be sending {tag}; in the end it is {other:?}"));
            }
        }
    }
    kept(terms, history, ledger, audit, &log)?;
    copies(terms, history, ledger, audit, &log)?;
    batches(terms, history, ledger, audit, &log)?;
    dead_letters(terms, history, ledger, audit, &log)?;
    settled(terms, history, ledger, audit, &log)
}

/// What was confirmed without a number is there.
fn kept(
    terms: Terms<'_>,
    history: &History,
    ledger: &Ledger,
    audit: &Audit,
    log: &BTreeMap<(Topic, u64), Tag>,
) -> Result<(), String> {
    let message = |tag: &Tag| history.sent[*tag as usize].message;
    let tags: BTreeSet<Tag> = log.values().copied().collect();
    let messages: BTreeSet<u32> = tags.iter().map(message).collect();
    for tag in &ledger.kept {
        // It may have been a duplicate.
        let there = tags.contains(tag) || terms.dedup && messages.contains(&message(tag));
        let topic = history.sent[*tag as usize].topic;
        if !there && audit.first.get(&topic).is_none_or(|first| *first <= 1) {
            return Err(format!("sending {tag} was confirmed without a number and is not there"));
        }
    }
    Ok(())
}

/// Nothing refused is there, and nothing twice without a reason.
fn copies(
    terms: Terms<'_>,
    history: &History,
    ledger: &Ledger,
    audit: &Audit,
    log: &BTreeMap<(Topic, u64), Tag>,
) -> Result<(), String> {
    let mut tags = BTreeSet::new();
    let mut messages = BTreeSet::new();
    for (place, tag) in log {
        if ledger.refused.contains(tag) {
            return Err(format!("sending {tag} was refused and is at {place:?}"));
        }
        if !ledger.published.contains_key(tag) {
            return Err(format!("sending {tag} never came in and is at {place:?}"));
        }
        if ledger.kicked.contains(&place.0) {
            continue;
        }
        if !tags.insert(*tag) {
            return Err(format!("sending {tag} is there twice, the second time at {place:?}"));
        }
        let message = history.sent[*tag as usize].message;
        if terms.dedup && !messages.insert(message) {
            return Err(format!("message {message} is there twice, the second time at {place:?}"));
        }
    }
    // A duplicate is one of something that is there.
    for (_, fact) in &history.facts {
        if let Fact::Stored { tag, seq, duplicate: true } = fact {
            let sent = &history.sent[*tag as usize];
            let there = log.get(&(sent.topic, *seq)).map(|tag| history.sent[*tag as usize].message);
            if there != Some(sent.message) && !audit.is_trimmed((sent.topic, *seq)) {
                return Err(format!("sending {tag} was said to be a duplicate of {seq}, which is {there:?}"));
            }
        }
    }
    Ok(())
}

/// Of a bulk without an answer a first part may be there.
fn batches(
    terms: Terms<'_>,
    history: &History,
    ledger: &Ledger,
    audit: &Audit,
    log: &BTreeMap<(Topic, u64), Tag>,
) -> Result<(), String> {
    if terms.dedup {
        return Ok(());
    }
    let mut places: BTreeMap<Tag, u64> = BTreeMap::new();
    for ((topic, seq), tag) in log {
        if !ledger.kicked.contains(topic) {
            places.insert(*tag, *seq);
        }
    }
    for (tag, sent) in history.sent.iter().enumerate() {
        let tag = tag as Tag;
        let Some(first) = sent.batch.filter(|first| *first != tag) else { continue };
        if ledger.kicked.contains(&sent.topic) {
            continue;
        }
        if let Some(seq) = places.get(&tag)
            && audit.first.get(&sent.topic).is_none_or(|first| seq > first)
            && places.get(&(tag - 1)).is_none_or(|before| before + 1 != *seq)
        {
            return Err(format!("sending {tag} of the bulk {first} is there without the one before it"));
        }
    }
    Ok(())
}

/// Who was given up is there once, with its bytes.
fn dead_letters(
    terms: Terms<'_>,
    history: &History,
    ledger: &Ledger,
    audit: &Audit,
    log: &BTreeMap<(Topic, u64), Tag>,
) -> Result<(), String> {
    let mut found: BTreeMap<(&str, Topic, u64), u32> = BTreeMap::new();
    for letter in &audit.dead {
        let place = (letter.topic, letter.seq);
        let same = log.get(&place).is_some_and(|tag| history.sent[*tag as usize].payload == letter.payload);
        if !same && !audit.is_trimmed(place) {
            return Err(format!("the dead letter of {place:?} is not that message"));
        }
        *found.entry((letter.subscription.as_str(), letter.topic, letter.seq)).or_default() += 1;
    }
    for (at, spec) in terms.specs.iter().enumerate().filter(|(_, spec)| spec.name.is_some()) {
        let at = at as u8;
        if ledger.loose.contains(&at) {
            continue;
        }
        let lives = 1 + ledger.forgotten.get(&at).copied().unwrap_or(0);
        let title = spec.title();
        let member = ledger.members.get(&(at, None));
        for (&(_, topic, seq), &count) in
            found.range((title.as_str(), 0, 0)..=(title.as_str(), u8::MAX, u64::MAX))
        {
            if count > lives {
                return Err(format!("{title} gave up {topic}/{seq} {count} times"));
            }
            let asked = member.is_some_and(|m| m.burying.contains(&(topic, seq)));
            let attempts = member.and_then(|m| m.attempts.get(&(topic, seq))).copied().unwrap_or(0);
            let spent = spec.max_deliveries > 0 && (attempts >= spec.max_deliveries || ledger.disk_failed);
            if lives == 1 && !asked && !spent {
                return Err(format!("{title} gave up {topic}/{seq} without a reason"));
            }
        }
        for &(topic, seq) in member.iter().flat_map(|m| &m.buried) {
            let there = found.contains_key(&(title.as_str(), topic, seq));
            if !there && !audit.dead_trimmed.contains(&topic) {
                return Err(format!("{title} buried {topic}/{seq}, but there is no dead letter"));
            }
        }
    }
    Ok(())
}

/// Durable subscriptions had everything, and nothing was settled for them that they did not settle.
fn settled(
    terms: Terms<'_>,
    history: &History,
    ledger: &Ledger,
    audit: &Audit,
    log: &BTreeMap<(Topic, u64), Tag>,
) -> Result<(), String> {
    for (at, spec) in terms.specs.iter().enumerate().filter(|(_, spec)| spec.name.is_some()) {
        let at = at as u8;
        if ledger.loose.contains(&at) {
            continue;
        }
        let title = spec.title();
        let Some(member) = ledger.members.get(&(at, None)) else { continue };
        let Some(since) = member.since else { continue };
        for (&(topic, seq), tag) in log.iter().filter(|((topic, _), _)| spec.topics.contains(topic)) {
            let Some(&pending) = audit.pending.get(&(at, topic)) else {
                return Err(format!("{title} was confirmed and is gone from topic {topic}"));
            };
            if pending > 0 {
                return Err(format!("{title} has {pending} messages of topic {topic} that are not settled"));
            }
            // What a kick published again has the tag of its first time.
            let kicked = ledger.kicked.contains(&topic);
            let came = ledger.published.get(tag).copied().filter(|_| !kicked);
            let after = came.is_some_and(|came| came > since);
            let time = |fact: usize| history.facts[fact].0;
            let before = match spec.from {
                Start::First => true,
                Start::New => false,
                // It was asked for before it was confirmed.
                Start::Ago(ago) => came.is_some_and(|came| time(came) + ago >= time(since)),
            };
            // Whether it was forgotten, or is still the one that had those before, nobody may have said.
            let before = before && !ledger.forgotten.contains_key(&at);
            if !(before || after) {
                continue;
            }
            let place = (topic, seq);
            let spent = spec.max_deliveries > 0
                && (ledger.disk_failed
                    || member.attempts.get(&place).is_some_and(|n| *n >= spec.max_deliveries));
            if !member.attempts.contains_key(&place) && !ledger.disk_failed {
                return Err(format!("{title} never got {topic}/{seq}, sending {tag}"));
            }
            if !member.asked.contains(&place) && !spent {
                return Err(format!("{topic}/{seq} is settled for {title}, which did not do that"));
            }
        }
    }
    Ok(())
}

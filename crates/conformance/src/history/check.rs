//! The rules, one pass over the history.

use std::collections::{BTreeMap, HashMap};

use super::{Event, Finding, Record, Rules, Terms, VerdictKind, Violation};

#[derive(Default)]
struct Message {
    /// How often it was published, and the first time: its record, who, and which lane.
    published: u32,
    at: usize,
    source: u32,
    lane: u64,
    digest: u64,
    confirmed: bool,
    refused: bool,
}

/// A delivery, and what is known of it since.
struct Out {
    consumer: u32,
    bytes: u64,
    attempt: u32,
    /// When its lease began, or was made longer.
    since: u64,
    /// No longer surely in flight: a verdict is under way or given, its consumer is gone, or the broker was.
    released: bool,
    /// It may come again without waiting for its lease.
    may_come_again: bool,
    /// The broker went away after it: the attempt may have been forgotten with it.
    restarted: bool,
    /// A final verdict was given.
    finished: bool,
    /// A final verdict was confirmed.
    done: bool,
}

#[derive(Default)]
struct Subscription {
    /// Where its first consumer came.
    at: usize,
    consumers: HashMap<u32, Terms>,
    terms: Option<Terms>,
    out: BTreeMap<u64, Out>,
    /// The latest publish of each source and lane that was delivered.
    latest: HashMap<(u32, u64), usize>,
    /// Somebody went, or the broker did.
    disturbed: bool,
}

struct Checker<'a> {
    rules: &'a Rules,
    messages: BTreeMap<u64, Message>,
    subscriptions: BTreeMap<u32, Subscription>,
    findings: Vec<Finding>,
}

/// What is wrong with this history, in the order in which it shows. Nothing is reported that a correct broker could
/// have done: where the records leave it open, they are believed.
pub fn check(history: &[Record], rules: &Rules) -> Vec<Finding> {
    let mut checker =
        Checker { rules, messages: BTreeMap::new(), subscriptions: BTreeMap::new(), findings: Vec::new() };
    for (at, record) in history.iter().enumerate() {
        checker.see(at, record);
    }
    if rules.ended {
        checker.end(history.len());
    }
    checker.findings
}

impl Checker<'_> {
    fn see(&mut self, at: usize, record: &Record) {
        match &record.event {
            Event::Publish { message, source, lane, digest } => {
                let one = self.messages.entry(*message).or_default();
                one.published += 1;
                if one.published == 1 {
                    (one.at, one.source, one.lane, one.digest) = (at, *source, *lane, *digest);
                }
            }
            Event::Confirmed { message, .. } => self.messages.entry(*message).or_default().confirmed = true,
            Event::Refused { message } => self.messages.entry(*message).or_default().refused = true,
            Event::Unknown { .. } => {}
            Event::Subscribed { subscription, consumer, terms } => {
                let one = self.subscriptions.entry(*subscription).or_insert_with(|| Subscription {
                    at,
                    terms: Some(terms.clone()),
                    ..Subscription::default()
                });
                one.consumers.insert(*consumer, terms.clone());
            }
            Event::Delivered { subscription, consumer, message, attempt, bytes, digest } => {
                let seen = Seen {
                    at,
                    now: record.millis,
                    consumer: *consumer,
                    message: *message,
                    attempt: *attempt,
                    bytes: *bytes,
                    digest: *digest,
                };
                self.delivered(*subscription, &seen);
            }
            Event::Settle { subscription, message, verdict } => {
                if let Some(out) = self.out(*subscription, *message) {
                    out.released = true;
                    out.finished |= *verdict == VerdictKind::Final;
                    out.may_come_again |= *verdict == VerdictKind::Again;
                }
            }
            Event::Settled { subscription, message, verdict, done } => {
                if let Some(out) = self.out(*subscription, *message) {
                    out.done |= *done && *verdict == VerdictKind::Final;
                    out.may_come_again |= !*done;
                }
            }
            Event::Extended { subscription, message } => {
                if let Some(out) = self.out(*subscription, *message) {
                    out.since = record.millis;
                }
            }
            Event::Gone { subscription, consumer } => {
                let Some(one) = self.subscriptions.get_mut(subscription) else { return };
                one.disturbed = true;
                one.consumers.remove(consumer);
                for out in one.out.values_mut().filter(|out| out.consumer == *consumer) {
                    (out.released, out.may_come_again) = (true, true);
                }
            }
            Event::Restarted => {
                for one in self.subscriptions.values_mut() {
                    one.disturbed = true;
                    for out in one.out.values_mut() {
                        (out.released, out.may_come_again, out.restarted) = (true, true, true);
                    }
                }
            }
        }
    }

    fn out(&mut self, subscription: u32, message: u64) -> Option<&mut Out> {
        self.subscriptions.get_mut(&subscription)?.out.get_mut(&message)
    }

    fn delivered(&mut self, subscription: u32, seen: &Seen) {
        let (message, at) = (seen.message, seen.at);
        let mut found = Vec::new();
        let Some(one) = self.subscriptions.get_mut(&subscription) else {
            self.findings.push(Finding { at, violation: Violation::Misrouted { subscription, message } });
            return;
        };
        match self.messages.get(&message).filter(|published| published.published > 0) {
            None => found.push(Violation::Phantom { subscription, message }),
            Some(published) => content(subscription, seen, published, one, &mut found),
        }
        let stored_twice = self.messages.get(&message).is_some_and(|published| published.published > 1);
        if let Some(before) = one.out.get(&message) {
            again(subscription, seen, before, one, self.rules, stored_twice, &mut found);
        } else if self.rules.attempts_dense && !one.disturbed && seen.attempt != 1 {
            found.push(Violation::Attempt { subscription, message, attempt: seen.attempt, before: 0 });
        }
        one.out.insert(
            message,
            Out {
                consumer: seen.consumer,
                bytes: seen.bytes,
                attempt: seen.attempt,
                since: seen.now,
                released: false,
                may_come_again: false,
                restarted: false,
                finished: false,
                done: false,
            },
        );
        window(subscription, seen, one, &mut found);
        self.findings.extend(found.into_iter().map(|violation| Finding { at, violation }));
    }

    fn end(&mut self, at: usize) {
        for (&subscription, one) in &self.subscriptions {
            for (&message, published) in &self.messages {
                let wanted = one.wants(published.lane) && published.at > one.at;
                if published.confirmed && wanted && !one.out.contains_key(&message) {
                    self.findings.push(Finding { at, violation: Violation::Lost { subscription, message } });
                }
            }
            for (&message, out) in &one.out {
                // A final verdict without an answer may have been taken.
                if !(out.done || out.finished && out.may_come_again) {
                    self.findings.push(Finding { at, violation: Violation::Open { subscription, message } });
                }
            }
        }
    }
}

/// A delivery, as it was seen.
struct Seen {
    at: usize,
    now: u64,
    consumer: u32,
    message: u64,
    attempt: u32,
    bytes: u64,
    digest: u64,
}

impl Subscription {
    fn wants(&self, lane: u64) -> bool {
        let lanes = self.terms.as_ref().and_then(|terms| terms.lanes.as_ref());
        lanes.is_none_or(|lanes| lanes.contains(&lane))
    }
}

fn content(s: u32, seen: &Seen, published: &Message, one: &mut Subscription, found: &mut Vec<Violation>) {
    let (subscription, message) = (s, seen.message);
    if published.refused && !published.confirmed && published.published == 1 {
        found.push(Violation::RefusedDelivered { subscription, message });
    }
    if published.digest != seen.digest {
        found.push(Violation::Changed { subscription, message });
    }
    if !one.wants(published.lane) {
        found.push(Violation::Misrouted { subscription, message });
    }
    let ordered = one.terms.as_ref().is_some_and(|terms| terms.ordered);
    if ordered && published.published == 1 && !one.out.contains_key(&message) {
        let latest = one.latest.entry((published.source, published.lane)).or_insert(published.at);
        if published.at < *latest {
            found.push(Violation::OutOfOrder { subscription, message });
        } else {
            *latest = published.at;
        }
    }
}

fn again(
    subscription: u32,
    seen: &Seen,
    before: &Out,
    one: &Subscription,
    rules: &Rules,
    stored_twice: bool,
    found: &mut Vec<Violation>,
) {
    let message = seen.message;
    if stored_twice {
        // Two messages that look like one: nothing can be told apart.
        return;
    }
    let lease = one.terms.as_ref().map_or(0, |terms| terms.lease).saturating_sub(rules.slack);
    if before.done {
        found.push(Violation::AfterAck { subscription, message });
    } else if !before.may_come_again && seen.now < before.since.saturating_add(lease) {
        found.push(Violation::Duplicate { subscription, message });
    }
    let (attempt, last) = (seen.attempt, before.attempt);
    let grown = if before.restarted { attempt >= last } else { attempt > last };
    let dense = !rules.attempts_dense || one.disturbed || attempt == last + 1;
    if rules.attempts && !(grown && dense) {
        found.push(Violation::Attempt { subscription, message, attempt, before: last });
    }
}

fn window(subscription: u32, seen: &Seen, one: &Subscription, found: &mut Vec<Violation>) {
    let Some(terms) = one.consumers.get(&seen.consumer) else { return };
    // What surely is in flight: a lease that may be over is not.
    let held = one.out.values().filter(|out| {
        out.consumer == seen.consumer && !out.released && seen.now < out.since.saturating_add(terms.lease)
    });
    let (count, bytes) = held.fold((0, 0), |(count, bytes), out| (count + 1, bytes + out.bytes));
    let consumer = seen.consumer;
    if count > terms.window_count {
        found.push(Violation::WindowCount { subscription, consumer, in_flight: count });
    }
    if bytes > terms.window_bytes && count > 1 {
        found.push(Violation::WindowBytes { subscription, consumer, bytes });
    }
}

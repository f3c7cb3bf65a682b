//! All that the broker knows of sessions, subscriptions and retained messages: the fold of its log, and of what it
//! does not log. The same functions change it when it serves and when it reads its log again.

use super::again::Again;
use super::graves::Graves;
use super::message::{Chosen, Message};
use super::outgoing::{Entry, SubscriptionIds};
use super::queue::{self, Queue};
use super::retained::Retained;
use super::session::{NEVER, Options, Session, Share, Subscriber, Target};
use crate::codec::{PacketId, Qos, Utf8, topic};
use crate::filters::Filters;
use postroad_core::mailbox::Millis;
use postroad_core::retry::RetryPolicy;
use slab::Slab;
use std::collections::HashMap;
use std::sync::Arc;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) sessions: Slab<Session>,
    pub(super) by_client: HashMap<Utf8, usize>,
    pub(super) by_number: HashMap<u64, usize>,
    filters: Filters<Subscriber>,
    shares: Slab<Share>,
    share_names: HashMap<(Box<str>, Box<str>), usize>,
    pub(super) retained: Retained,
    pub(super) queues: Slab<Queue>,
    pub(super) queue_names: HashMap<(Box<str>, Box<str>), usize>,
    pub(super) queue_numbers: HashMap<u64, usize>,
    pub(super) queue_policy: RetryPolicy,
    /// The work queues that the message routed last goes to.
    pub(super) matched_queues: Vec<usize>,
    /// Messages that did not arrive.
    pub(super) graves: Graves,
    /// Dead letters that were published again.
    pub(super) again: Again,
    pub(super) next_number: u64,
    // Publishes matched so far.
    stamp: u64,
}

impl State {
    /// With the rules of work queues.
    pub(super) fn new(queue_policy: RetryPolicy) -> Self {
        Self { queue_policy, ..Self::default() }
    }

    /// Subscriptions there are; a shared one counts once.
    pub(super) fn subscription_count(&self) -> usize {
        self.filters.len()
    }

    /// True if a message with this topic would go to somebody.
    pub(super) fn is_wanted(&self, topic: &str) -> bool {
        let mut wanted = false;
        self.filters.matches(topic, |_| wanted = true);
        wanted
    }

    /// True if somebody may want to hear of dead letters.
    pub(super) fn has_dead_readers(&self) -> bool {
        self.filters.has_first("$dead")
    }

    pub(super) fn session(&self, number: u64) -> Option<usize> {
        self.by_number.get(&number).copied()
    }

    /// The session that `target` means, if it is still there.
    pub(super) fn target_mut(&mut self, target: &Target) -> Option<&mut Session> {
        self.sessions.get_mut(target.session).filter(|session| session.number == target.id)
    }

    pub(super) fn add_queue_filter(&mut self, filter: &str, place: usize) {
        self.filters.insert(filter, Subscriber::Queue(place));
    }

    pub(super) fn remove_queue_filter(&mut self, filter: &str, place: usize) {
        self.filters.remove(filter, |s| *s == Subscriber::Queue(place));
    }

    /// A number for a session or a queue.
    pub(super) fn take_number(&mut self) -> u64 {
        let number = self.next_number.max(1);
        self.next_number = number + 1;
        number
    }

    /// The number that the next session gets.
    pub(super) fn next_number(&self) -> u64 {
        self.next_number
    }

    /// A new session.
    pub(super) fn begin(&mut self, client: Utf8, durable: bool, expiry: u32) -> usize {
        let number = self.take_number();
        self.insert(Session::new(client, number, durable, expiry))
    }

    pub(super) fn insert(&mut self, session: Session) -> usize {
        let (client, number) = (session.client.clone(), session.number);
        let index = self.sessions.insert(session);
        self.by_client.insert(client, index);
        self.by_number.insert(number, index);
        index
    }

    /// A session ends, with all its subscriptions.
    pub(super) fn end(&mut self, index: usize) -> Option<Session> {
        let session = self.sessions.try_remove(index)?;
        self.by_client.remove(&session.client);
        self.by_number.remove(&session.number);
        for filter in session.subscriptions.keys() {
            match queue::parse(filter) {
                // The queue stays, for those who come later.
                Some((name, filter)) => drop(self.leave_queue(name, filter, session.number)),
                None => self.remove_filter(index, filter),
            }
        }
        Some(session)
    }

    /// True if the session had that subscription already. [MQTT-3.8.4-3]
    pub(super) fn subscribe(&mut self, index: usize, filter: &Utf8, options: Options) -> bool {
        let Some(session) = self.sessions.get_mut(index) else { return false };
        let existed = session.subscriptions.insert(filter.clone(), options).is_some();
        if let Some((name, filter)) = queue::parse(filter) {
            let session = session.number;
            if let Some(place) = self.queue_names.get(&(Box::from(name), Box::from(filter))).copied() {
                self.join_queue(place, session);
            }
        } else if let Some(Ok(shared)) = topic::shared(filter) {
            let name = (Box::from(shared.group), Box::from(shared.filter));
            let share = match self.share_names.get(&name) {
                Some(share) => *share,
                None => {
                    let share = self.shares.insert(Share {
                        group: name.0.clone(),
                        filter: name.1.clone(),
                        members: Vec::new(),
                        turn: 0,
                    });
                    self.share_names.insert(name, share);
                    self.filters.insert(shared.filter, Subscriber::Share(share));
                    share
                }
            };
            if let Some(share) = self.shares.get_mut(share) {
                share.members.retain(|(member, _)| *member != index);
                share.members.push((index, options));
            }
        } else if existed {
            let found =
                self.filters.find_mut(filter, |s| matches!(s, Subscriber::Session(i, _) if *i == index));
            if let Some(found) = found {
                *found = Subscriber::Session(index, options);
            }
        } else {
            self.filters.insert(filter, Subscriber::Session(index, options));
        }
        existed
    }

    /// True if there was such a subscription.
    pub(super) fn unsubscribe(&mut self, index: usize, filter: &str) -> bool {
        let Some(session) = self.sessions.get_mut(index) else { return false };
        if session.subscriptions.remove(filter).is_none() {
            return false;
        }
        self.remove_filter(index, filter);
        true
    }

    fn remove_filter(&mut self, index: usize, filter: &str) {
        if let Some((name, filter)) = queue::parse(filter) {
            if let Some(number) = self.sessions.get(index).map(|session| session.number) {
                self.leave_queue(name, filter, number);
            }
            return;
        }
        let Some(Ok(shared)) = topic::shared(filter) else {
            self.filters.remove(filter, |s| matches!(s, Subscriber::Session(i, _) if *i == index));
            return;
        };
        let name = (Box::from(shared.group), Box::from(shared.filter));
        let Some(place) = self.share_names.get(&name).copied() else { return };
        let Some(share) = self.shares.get_mut(place) else { return };
        share.members.retain(|(member, _)| *member != index);
        if share.members.is_empty() {
            self.shares.remove(place);
            self.share_names.remove(&name);
            self.filters.remove(shared.filter, |s| *s == Subscriber::Share(place));
        }
    }

    /// Who gets a message. Several subscriptions of one session that match are one target: with the highest QoS and
    /// the ids of all of them (section 3.3.4).
    ///
    /// `chosen`: the members of shared subscriptions, where that was decided before; else they take turns, and those
    /// that are there come before those that are not.
    pub(super) fn route(
        &mut self,
        message: &Message,
        publisher: Option<usize>,
        chosen: Option<&[Chosen]>,
        targets: &mut Vec<Target>,
    ) {
        self.stamp += 1;
        let Self { sessions, filters, shares, stamp, matched_queues, .. } = self;
        matched_queues.clear();
        let mut shared: smallvec::SmallVec<[usize; 4]> = smallvec::SmallVec::new();
        filters.matches(&message.topic, |subscriber| match *subscriber {
            Subscriber::Session(index, options) => {
                // [MQTT-3.8.3-3]
                if !(options.no_local && publisher == Some(index)) {
                    add(sessions, *stamp, index, options, message, None, targets);
                }
            }
            Subscriber::Share(share) => shared.push(share),
            Subscriber::Queue(place) => matched_queues.push(place),
        });
        for place in shared {
            let Some(share) = shares.get_mut(place) else { continue };
            let member = match chosen {
                Some(chosen) => {
                    let here = chosen
                        .iter()
                        .find(|(_, group, filter)| *group == share.group && *filter == share.filter);
                    here.and_then(|(number, ..)| {
                        share
                            .members
                            .iter()
                            .copied()
                            .find(|(i, _)| sessions.get(*i).is_some_and(|s| s.number == *number))
                    })
                }
                None => share.choose(sessions, None),
            };
            if let Some((index, options)) = member {
                // Messages of a share stay apart from others of the session: they may have to go to another member.
                targets.push(target(sessions, index, options, message, Some(place)));
            }
        }
    }

    /// Another member of the share, one that is there now.
    pub(super) fn choose_other(&mut self, share: usize, not: usize) -> Option<(usize, Options)> {
        let Self { sessions, shares, .. } = self;
        let share = shares.get_mut(share)?;
        let (index, options) = share.choose(sessions, Some(not))?;
        sessions.get(index)?.conn.is_some().then_some((index, options))
    }

    /// The share that a subscription of a session belongs to.
    pub(super) fn share_of(&self, filter: &str) -> Option<usize> {
        let shared = topic::shared(filter)?.ok()?;
        self.share_names.get(&(Box::from(shared.group), Box::from(shared.filter))).copied()
    }

    /// The choices of a routing that the log must know.
    pub(super) fn choices(&self, targets: &[Target]) -> Vec<Chosen> {
        let shared = targets.iter().filter_map(|target| Some((target, self.shares.get(target.share?)?)));
        shared
            .filter(|(target, _)| self.sessions.get(target.session).is_some_and(|s| s.durable))
            .map(|(target, share)| (target.id, share.group.clone(), share.filter.clone()))
            .collect()
    }

    /// Puts a message into the queues of its targets. `seq` is its number in the log, or 0.
    pub(super) fn enqueue(&mut self, seq: u64, message: &Arc<Message>, targets: &mut [Target]) {
        for target in targets.iter_mut().filter(|target| target.qos != Qos::AtMostOnce) {
            let Some(session) = self.sessions.get_mut(target.session) else { continue };
            // Nobody there to take it: it is read from the log when somebody is.
            let keep = seq == 0 || !session.durable || session.conn.is_some();
            let body = keep.then(|| message.clone());
            let mut entry = Entry::new(seq, body, target.qos, target.retain, target.ids.clone());
            entry.shared = target.share.is_some();
            entry.logged = session.durable && seq != 0;
            let logged = entry.logged;
            target.number = session.queue().push(entry);
            if logged {
                session.logged_next = target.number + 1;
            }
        }
    }
}

impl Share {
    /// The next member in turn; one that is there before one that is not.
    fn choose(&mut self, sessions: &Slab<Session>, not: Option<usize>) -> Option<(usize, Options)> {
        let count = self.members.len();
        let candidates = (0..count).map(|i| (self.turn + i) % count);
        let candidates = candidates.filter(|at| self.members.get(*at).is_some_and(|(i, _)| Some(*i) != not));
        let online = |at: &usize| {
            let member = self.members.get(*at).and_then(|(index, _)| sessions.get(*index));
            member.is_some_and(|session| session.conn.is_some())
        };
        let at = candidates.clone().find(online).or_else(|| candidates.clone().next())?;
        self.turn = at + 1;
        self.members.get(at).copied()
    }
}

fn add(
    sessions: &mut Slab<Session>,
    stamp: u64,
    index: usize,
    options: Options,
    message: &Message,
    share: Option<usize>,
    targets: &mut Vec<Target>,
) {
    let Some(session) = sessions.get_mut(index) else { return };
    if session.stamp.0 == stamp
        && let Some(target) = targets.get_mut(session.stamp.1)
    {
        target.qos = target.qos.max(options.level(message.qos));
        target.retain |= options.retain_as_published && message.retain;
        target.ids.extend(options.id);
        return;
    }
    session.stamp = (stamp, targets.len());
    targets.push(target(sessions, index, options, message, share));
}

fn target(
    sessions: &Slab<Session>,
    session: usize,
    options: Options,
    message: &Message,
    share: Option<usize>,
) -> Target {
    Target {
        session,
        id: sessions.get(session).map_or(0, |s| s.number),
        number: 0,
        qos: options.level(message.qos),
        // [MQTT-3.3.1-12], [MQTT-3.3.1-13]
        retain: options.retain_as_published && message.retain,
        ids: options.id.into_iter().collect::<SubscriptionIds>(),
        share,
    }
}

impl Session {
    /// When it expires, if it is away and does. [MQTT-4.1.0-2]
    pub(super) fn expires_at(&self) -> Option<Millis> {
        let away = self.away?;
        (self.expiry != NEVER).then(|| away + u64::from(self.expiry) * 1000)
    }

    /// The ids of its open QoS 2 messages that the log knows.
    pub(super) fn open_packets(&self) -> Vec<PacketId> {
        self.incoming.logged().collect()
    }
}

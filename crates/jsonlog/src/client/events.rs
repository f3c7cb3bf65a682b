//! Deliveries: which subscription an event belongs to, and the handle that yields them.

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::Bytes;

use super::Handle;
use super::command;
use super::error::{ClientError, ErrorKind};

/// One delivery, or the answer to a peek.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The topic it was published to.
    pub topic: Arc<str>,
    /// Its number in the topic.
    pub seq: u64,
    /// 1 for the first delivery; 0 for a peek.
    pub attempt: u32,
    /// Exactly as published.
    pub json: Bytes,
    /// When it came here. Its lease began a little earlier, when the server sent it.
    pub received: Instant,
}

/// Something happened to a subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// `lagged`, `detached`, `corrupt`.
    pub code: String,
    /// The topic or filter it is about.
    pub topic: String,
    /// For people.
    pub text: String,
}

/// Notes kept for a subscription that does not take them; the oldest goes first.
const MAX_NOTES: usize = 16;

/// One subscription of the connection.
#[derive(Debug)]
struct Sub {
    options: Wanted,
    queue: VecDeque<Event>,
    notes: VecDeque<Note>,
    /// Events given up in the queue because the server, their lease over, had sent newer ones.
    expired: u64,
    /// Shared by consecutive events of one topic.
    last_topic: Arc<str>,
    waker: Option<Waker>,
    /// Why no more events come.
    ended: Option<Ended>,
}

#[derive(Debug, Clone)]
struct Wanted {
    filter: String,
    name: Option<String>,
    prefetch: usize,
}

#[derive(Debug, Clone)]
enum Ended {
    Unsubscribed,
    Failed(ClientError),
}

/// The subscriptions of one connection. Their filters never overlap: an `event` line names its topic only.
#[derive(Debug, Default)]
pub(super) struct Subs {
    next_id: u64,
    by_id: HashMap<u64, Sub>,
    /// Filters without wildcards.
    exact: HashMap<String, u64>,
    wild: Vec<(String, u64)>,
    /// Filters whose `unsub` is on its way: until it is answered, their events still come.
    leaving: Vec<(String, u64)>,
    /// Woken after the lock is released.
    pub(super) woken: Vec<Waker>,
}

impl Subs {
    /// A new subscription, before its `sub` is sent, so that no event can come too early.
    pub(super) fn add(&mut self, o: &command::SubscribeOptions) -> Result<u64, ClientError> {
        let active = self.exact.keys().chain(self.wild.iter().map(|(f, _)| f));
        for filter in active {
            if command::overlap(filter, &o.filter) {
                return Err(ClientError::new(
                    ErrorKind::AlreadySubscribed,
                    format!("{} overlaps {filter} on this connection; use a second connection", o.filter),
                ));
            }
        }
        let id = self.next_id;
        self.next_id += 1;
        if o.filter.contains(['*', '>']) {
            self.wild.push((o.filter.clone(), id));
        } else {
            self.exact.insert(o.filter.clone(), id);
        }
        let options =
            Wanted { filter: o.filter.clone(), name: o.name.clone(), prefetch: o.prefetch.max(1) as usize };
        self.by_id.insert(
            id,
            Sub {
                options,
                queue: VecDeque::new(),
                notes: VecDeque::new(),
                expired: 0,
                last_topic: Arc::from(""),
                waker: None,
                ended: None,
            },
        );
        Ok(id)
    }

    fn route(&self, topic: &str) -> Option<u64> {
        // Older than every other one that matches: replies and events come in the order of the commands.
        if self.leaving.iter().any(|(f, _)| command::matches(f, topic)) {
            return None;
        }
        self.exact
            .get(topic)
            .copied()
            .or_else(|| self.wild.iter().find(|(f, _)| command::matches(f, topic)).map(|(_, id)| *id))
    }

    /// A delivery. One that nobody has subscribed to (an `unsub` is on its way) is left to the server.
    pub(super) fn deliver(&mut self, topic: &str, seq: u64, attempt: u32, json: Bytes, received: Instant) {
        let Some(sub) = self.route(topic).and_then(|id| self.by_id.get_mut(&id)) else { return };
        if *sub.last_topic != *topic {
            sub.last_topic = Arc::from(topic);
        }
        let event = Event { topic: Arc::clone(&sub.last_topic), seq, attempt, json, received };
        // The server keeps at most `prefetch` leases here. One event more means that the lease of a queued one ran
        // out: the older delivery of the same event, else the oldest.
        let same = |e: &Event| e.seq == seq && *e.topic == *topic;
        if attempt > 1
            && let Some(stale) = sub.queue.iter().position(same)
        {
            sub.queue.remove(stale);
            sub.expired += 1;
        } else if sub.queue.len() >= sub.options.prefetch {
            sub.queue.pop_front();
            sub.expired += 1;
        }
        sub.queue.push_back(event);
        self.woken.extend(sub.waker.take());
    }

    /// A note, to the subscriptions it is about.
    pub(super) fn note(&mut self, note: &Note) {
        tracing::warn!(code = %note.code, topic = %note.topic, text = %note.text, "the broker notes");
        let about = |sub: &Sub| {
            sub.options.filter == note.topic || command::overlap(&sub.options.filter, &note.topic)
        };
        let mut detached = Vec::new();
        for (id, sub) in self.by_id.iter_mut().filter(|(_, sub)| about(sub)) {
            if sub.notes.len() == MAX_NOTES {
                sub.notes.pop_front();
            }
            sub.notes.push_back(note.clone());
            self.woken.extend(sub.waker.take());
            if note.code == "detached" {
                detached.push(*id);
            }
        }
        for id in detached {
            let why = ClientError::new(ErrorKind::NotSubscribed, format!("detached: {}", note.text));
            self.end(id, Ended::Failed(why));
        }
    }

    fn end(&mut self, id: u64, why: Ended) {
        self.unroute(id);
        let Some(sub) = self.by_id.get_mut(&id) else { return };
        self.woken.extend(sub.waker.take());
        if sub.ended.is_none() {
            sub.ended = Some(why);
            // Their leases are gone with the subscription.
            sub.queue.clear();
        }
    }

    fn unroute(&mut self, id: u64) {
        self.exact.retain(|_, v| *v != id);
        self.wild.retain(|(_, v)| *v != id);
    }

    /// The subscription was refused, or its handle is gone.
    pub(super) fn remove(&mut self, id: u64) {
        self.unroute(id);
        if let Some(sub) = self.by_id.remove(&id) {
            self.woken.extend(sub.waker);
        }
    }

    /// An `unsub` was answered with `ok`.
    pub(super) fn unsubscribed(&mut self, filter: &str, name: Option<&str>) {
        let hit = |o: &Wanted| o.filter == filter && (name.is_none() || o.name.as_deref() == name);
        let ids: Vec<u64> = self.by_id.iter().filter(|(_, s)| hit(&s.options)).map(|(id, _)| *id).collect();
        for id in ids {
            self.end(id, Ended::Unsubscribed);
        }
    }

    /// The connection ended.
    pub(super) fn end_all(&mut self, why: &ClientError) {
        let ids: Vec<u64> = self.by_id.keys().copied().collect();
        for id in ids {
            self.end(id, Ended::Failed(why.clone()));
        }
        self.leaving.clear();
    }

    /// Its handle was dropped. What to unsubscribe, if it was active; [`left`](Self::left) follows.
    fn leave(&mut self, id: u64) -> Option<(String, Option<String>)> {
        let active = self.by_id.get(&id).filter(|s| s.ended.is_none());
        let wanted = active.map(|s| (s.options.filter.clone(), s.options.name.clone()));
        self.remove(id);
        let (filter, name) = wanted?;
        self.leaving.push((filter.clone(), id));
        Some((filter, name))
    }

    /// The `unsub` of a dropped handle was answered.
    pub(super) fn left(&mut self, id: u64) {
        self.leaving.retain(|(_, v)| *v != id);
    }

    fn wait(&mut self, id: u64, cx: &Context<'_>) {
        if let Some(sub) = self.by_id.get_mut(&id) {
            let old = sub.waker.replace(cx.waker().clone());
            // Another task has the handle now; an extra wake is harmless, dropping its waker here might not be.
            self.woken.extend(old.filter(|old| !old.will_wake(cx.waker())));
        }
    }
}

/// The events of one subscription. Dropping it ends the subscription (`unsub`): its un-acked events go back, and
/// a named one keeps its place.
#[derive(Debug)]
pub struct Events {
    handle: Arc<Handle>,
    id: u64,
}

impl Events {
    pub(super) fn new(handle: Arc<Handle>, id: u64) -> Self {
        Self { handle, id }
    }

    /// The next event; `None` when there will be no more: see [`error`](Self::error). Cancel-safe.
    pub async fn next(&mut self) -> Option<Event> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Polled form of [`next`](Self::next).
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.with(|subs, id| {
            let Some(sub) = subs.by_id.get_mut(&id) else { return Poll::Ready(None) };
            match sub.queue.pop_front() {
                Some(event) => Poll::Ready(Some(event)),
                None if sub.ended.is_some() => Poll::Ready(None),
                None => {
                    subs.wait(id, cx);
                    Poll::Pending
                }
            }
        })
    }

    /// Moves up to `max` events, the notes, and the end to `news`; waits when there is none of them.
    pub(crate) fn poll_news(&mut self, cx: &mut Context<'_>, max: usize, news: &mut News) -> Poll<()> {
        self.with(|subs, id| {
            let Some(sub) = subs.by_id.get_mut(&id) else { return Poll::Ready(()) };
            let n = sub.queue.len().min(max);
            news.events.extend(sub.queue.drain(..n));
            news.notes.extend(sub.notes.drain(..));
            news.ended = sub.ended.as_ref().map(|ended| match ended {
                Ended::Failed(why) => why.clone(),
                Ended::Unsubscribed => ClientError::new(ErrorKind::Closed, "unsubscribed"),
            });
            if n == 0 && news.notes.is_empty() && news.ended.is_none() {
                subs.wait(id, cx);
                return Poll::Pending;
            }
            Poll::Ready(())
        })
    }

    /// The notes since the last call, at most the newest 16.
    pub fn take_notes(&mut self) -> Vec<Note> {
        self.with(|subs, id| subs.by_id.get_mut(&id).map(|s| s.notes.drain(..).collect())).unwrap_or_default()
    }

    /// Why the events ended: `None` while they have not, or after `unsub`.
    pub fn error(&self) -> Option<ClientError> {
        self.with(|subs, id| match subs.by_id.get(&id)?.ended.clone()? {
            Ended::Failed(why) => Some(why),
            Ended::Unsubscribed => None,
        })
    }

    /// True when no more events come.
    pub fn is_ended(&self) -> bool {
        self.with(|subs, id| subs.by_id.get(&id).is_none_or(|s| s.ended.is_some()))
    }

    /// Events that waited here longer than their lease and were given up for newer ones: `prefetch` is too large or
    /// `ack_wait` too short for this consumer.
    pub fn expired(&self) -> u64 {
        self.with(|subs, id| subs.by_id.get(&id).map_or(0, |s| s.expired))
    }

    fn with<T>(&self, work: impl FnOnce(&mut Subs, u64) -> T) -> T {
        self.handle.shared.with(|state| work(&mut state.subs, self.id))
    }
}

/// What [`Events::poll_news`] brings.
#[derive(Debug, Default)]
pub(crate) struct News {
    pub(crate) events: VecDeque<Event>,
    pub(crate) notes: Vec<Note>,
    pub(crate) ended: Option<ClientError>,
}

impl Drop for Events {
    fn drop(&mut self) {
        self.handle.shared.with(|state| {
            if let Some((filter, name)) = state.subs.leave(self.id) {
                state.unsub_forgotten(self.id, &filter, name.as_deref());
            }
        });
        self.handle.shared.wake_writer();
    }
}

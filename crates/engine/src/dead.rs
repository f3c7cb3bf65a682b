//! Dead letters: messages that could not be done, on `$dead/<subject>`, with why.

use crate::door::Returned;
use crate::engine::Shared;
use crate::error::EngineError;
use crate::id::id_text;
use crate::later::{Later, Receipt};
use crate::log::{Event, Ticket};
use crate::stream::{KICK, NewEvent, Stream};
use crate::subscription::Subscription;
use postroad_core::dead_letter as names;
use postroad_core::mailbox::{ConsumerId, Failures, Verdict, Window};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

/// What a dead letter says about its death; read from its headers.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Death {
    /// Why.
    #[serde(rename = "postroad-dead-reason")]
    pub reason: String,
    /// The topic it was published to.
    #[serde(rename = "postroad-dead-subject")]
    pub topic: String,
    /// Its sequence there.
    #[serde(rename = "postroad-dead-position")]
    pub seq: u64,
    /// The subscription that gave it up.
    #[serde(rename = "postroad-dead-subscription")]
    pub subscription: String,
    /// How often it was delivered.
    #[serde(rename = "postroad-dead-attempts")]
    pub attempts: u32,
    /// When the first delivery failed, milliseconds since 1970.
    #[serde(rename = "postroad-dead-first")]
    pub first: u64,
    /// When the last delivery failed, milliseconds since 1970.
    #[serde(rename = "postroad-dead-last")]
    pub last: u64,
    /// The id it was published with, as a JSON token.
    #[serde(rename = "postroad-dead-id", default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The protocol that it came from and goes back to, if that keeps its messages itself.
    #[serde(rename = "postroad-dead-door", default, skip_serializing_if = "Option::is_none")]
    pub door: Option<String>,
}

impl Death {
    /// The death in the headers of a message, if it is a dead letter.
    pub fn of(event: &Event) -> Option<Self> {
        serde_json::from_slice(event.headers.as_ref()?).ok()
    }
}

/// The headers of a dead letter: those the message had, and its death.
fn headers(event: &Event, death: &Death) -> Vec<u8> {
    let mut map: Map<String, Value> =
        event.headers.as_ref().and_then(|h| serde_json::from_slice(h).ok()).unwrap_or_default();
    if let Ok(Value::Object(death)) = serde_json::to_value(death) {
        map.extend(death);
    }
    serde_json::to_vec(&map).unwrap_or_default()
}

/// The headers the message had before it died; `None` if none.
pub(crate) fn former_headers(event: &Event) -> Option<Vec<u8>> {
    let mut map: Map<String, Value> = serde_json::from_slice(event.headers.as_ref()?).ok()?;
    let own = [
        names::REASON,
        names::SUBJECT,
        names::POSITION,
        names::SUBSCRIPTION,
        names::ATTEMPTS,
        names::FIRST_FAILURE,
        names::LAST_FAILURE,
        "postroad-dead-id",
        "postroad-dead-door",
    ];
    for name in own {
        map.remove(name);
    }
    if map.is_empty() { None } else { serde_json::to_vec(&map).ok() }
}

/// Writes the dead letter of `seq`, then settles it in its stream; no lock may be held.
pub(crate) fn bury(
    shared: &Arc<Shared>,
    stream: &Arc<Stream>,
    sub: &Arc<Subscription>,
    seq: u64,
    failures: &Failures,
    later: Option<Arc<Later>>,
) {
    let result = write(shared, stream, sub, seq, failures);
    let finish = {
        let (stream, id) = (stream.clone(), sub.id);
        move |shared: &Arc<Shared>, result: Result<(), EngineError>| {
            let settled = stream.buried(shared, id, seq, &result);
            if let Some(later) = later {
                later.step(result.and(settled));
            }
        }
    };
    match result {
        Ok(ticket) => shared.after(ticket, move |shared| finish(shared, Ok(()))),
        Err(error) => {
            tracing::warn!(topic = stream.topic.as_str(), seq, %error, "a dead letter could not be written; it will be tried again");
            finish(shared, Err(error));
        }
    }
}

fn write(
    shared: &Arc<Shared>,
    stream: &Arc<Stream>,
    sub: &Arc<Subscription>,
    seq: u64,
    failures: &Failures,
) -> Result<Ticket, EngineError> {
    if stream.topic.is_dead_letter() {
        // It is one already, and stays where it is.
        return Ok(Ticket(0));
    }
    // Removed by retention meanwhile: there is nothing left to bury.
    let Some(event) = stream.read(seq)? else { return Ok(Ticket(0)) };
    shared.admit()?;
    let dead = shared.stream_or_create(&stream.topic.dead_letter())?;
    let death = Death {
        reason: failures.reason.as_deref().unwrap_or("unknown").to_owned(),
        topic: stream.topic.as_str().to_owned(),
        seq,
        subscription: sub.title(),
        attempts: failures.attempts,
        first: failures.first,
        last: failures.last,
        id: event.id.as_ref().and_then(|id| String::from_utf8(id.to_vec()).ok()),
        door: None,
    };
    let headers = headers(&event, &death);
    // After a crash between this record and the settlement the same death comes again: the id finds it. (Numbers of
    // subscriptions without a name are used again in another life, but such a subscription does not outlive a crash.)
    let id = sub.is_durable().then(|| format!("\"{}:{seq}\"", sub.id));
    let new = NewEvent {
        priority: event.priority,
        id: id.as_ref().map(String::as_bytes),
        headers: Some(&headers),
        kind: event.kind,
        payload: &event.payload,
    };
    let published = dead.publish_unchecked(shared, &[new], false)?;
    shared.counters.dead.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    shared.store.flush(false);
    Ok(published.ticket)
}

/// A message of a door that keeps its messages itself, and its death.
#[derive(Clone, Copy, Debug)]
pub struct Letter<'a> {
    /// Names this death as a JSON string: the same one is written once.
    pub id: &'a str,
    /// Its death.
    pub death: &'a Death,
    /// Other headers, a JSON object on one line.
    pub headers: Option<&'a [u8]>,
    /// How the payload is written.
    pub kind: crate::log::PayloadKind,
    /// Its payload, as [`crate::log::Publish`] has it.
    pub payload: &'a [u8],
}

/// Writes a dead letter of a door to `$dead/TOPIC`.
pub(crate) fn write_letter(
    shared: &Arc<Shared>,
    topic: &postroad_core::Subject,
    letter: &Letter<'_>,
) -> Result<Ticket, EngineError> {
    shared.admit()?;
    let dead = shared.stream_or_create(&topic.dead_letter())?;
    let mut map: Map<String, Value> =
        letter.headers.and_then(|headers| serde_json::from_slice(headers).ok()).unwrap_or_default();
    if let Ok(Value::Object(death)) = serde_json::to_value(letter.death) {
        map.extend(death);
    }
    let headers = serde_json::to_vec(&map).unwrap_or_default();
    let new = NewEvent {
        priority: 0,
        id: Some(letter.id.as_bytes()),
        headers: Some(&headers),
        kind: letter.kind,
        payload: letter.payload,
    };
    let published = dead.publish_unchecked(shared, &[new], false)?;
    shared.counters.dead.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    shared.store.flush(false);
    Ok(published.ticket)
}

/// Publishes up to `max` dead letters of `topic` again where they came from, oldest first; says how many, and when they
/// are stored there and settled here. Letters that a door does not take stay, and the outcome is an error that says why.
pub(crate) fn kick(
    shared: &Arc<Shared>,
    topic: &postroad_core::Subject,
    max: usize,
) -> Result<(u64, Arc<Later>), EngineError> {
    let Some(dead) = shared.find_stream(topic.dead_letter().as_str()) else {
        if shared.find_stream(topic.as_str()).is_none() {
            return Err(EngineError::NotFound(format!("there is no topic {}", topic.as_str())));
        }
        let later = Later::new(1);
        later.step(Ok(Ticket(0)));
        return Ok((0, later));
    };
    shared.admit()?;
    let Some(sub) = dead.member(KICK) else { return Err(EngineError::NotFound("no dead letters".into())) };
    let consumer = shared.next_consumer();
    dead.attach_quietly(KICK, consumer, Window { count: u32::MAX, bytes: u64::MAX });
    let mut taken = Vec::new();
    dead.take(shared, &sub, consumer, max, 8 << 20, &mut taken);
    let seqs: Vec<u64> = taken.iter().map(|t| t.seq).collect();
    let kick = Kick { dead, sub, consumer, later: Later::new(1), state: Mutex::default() };
    match give_back(shared, topic, &Arc::new(kick), &seqs) {
        Ok(parts) => Ok(parts),
        Err((kick, error)) => {
            let _ = kick.dead.detach(shared, &kick.sub, kick.consumer);
            Err(error)
        }
    }
}

/// A kick under way.
struct Kick {
    dead: Arc<Stream>,
    sub: Arc<Subscription>,
    consumer: ConsumerId,
    later: Arc<Later>,
    state: Mutex<KickState>,
}

#[derive(Default)]
struct KickState {
    /// Places that have not answered.
    open: usize,
    done: Vec<u64>,
    /// Why letters stay, and how many.
    stay: BTreeMap<String, u64>,
}

impl Kick {
    /// A place has answered; the last answer settles what is published.
    fn part(&self, shared: &Arc<Shared>, done: Vec<u64>, stay: Vec<String>) {
        let state = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.open = state.open.saturating_sub(1);
            state.done.extend(done);
            for why in stay {
                *state.stay.entry(why).or_default() += 1;
            }
            if state.open > 0 {
                return;
            }
            std::mem::take(&mut *state)
        };
        let (mut counts, ranges) = (Vec::new(), ranges(state.done));
        let receipt = self.dead.settle(shared, &self.sub, self.consumer, &ranges, &Verdict::Ack, &mut counts);
        let _ = self.dead.detach(shared, &self.sub, self.consumer);
        // The answer of a door comes on a thread of its own.
        shared.store.flush(false);
        let kicked: u64 = counts.iter().sum();
        let stay: u64 = state.stay.values().sum();
        self.later.step(match (receipt, state.stay.keys().next()) {
            (Ok(_), Some(why)) => Err(EngineError::NotFound(format!(
                "{kicked} dead letters were published again, {stay} stay: {why}"
            ))),
            (Ok(Receipt::At(ticket)), None) => Ok(ticket),
            (Ok(Receipt::Later(_)), None) => Ok(Ticket(0)),
            (Err(error), _) => Err(error),
        });
    }
}

fn ranges(mut seqs: Vec<u64>) -> Vec<(u64, u64)> {
    seqs.sort_unstable();
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for seq in seqs {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == seq => *last = seq,
            _ => ranges.push((seq, seq)),
        }
    }
    ranges
}

fn give_back(
    shared: &Arc<Shared>,
    topic: &postroad_core::Subject,
    kick: &Arc<Kick>,
    seqs: &[u64],
) -> Result<(u64, Arc<Later>), (Arc<Kick>, EngineError)> {
    let failed = |error: EngineError| (kick.clone(), error);
    let mut events = Vec::new();
    kick.dead.log.read(seqs, &mut events).map_err(|error| failed(error.into()))?;
    let mut own: Vec<Event> = Vec::new();
    let mut doors: BTreeMap<String, (Vec<u64>, Vec<Returned>)> = BTreeMap::new();
    for event in events {
        match Death::of(&event) {
            Some(death) if death.door.is_some() => {
                let (seqs, letters) = doors.entry(death.door.clone().unwrap_or_default()).or_default();
                let id = event.id.as_deref().map(id_text).unwrap_or_default();
                seqs.push(event.seq);
                letters.push(Returned {
                    id: String::from_utf8_lossy(&id).into_owned(),
                    headers: former_headers(&event),
                    death,
                    kind: event.kind,
                    payload: event.payload,
                });
            }
            _ => own.push(event),
        }
    }
    // Of letters that retention took away nothing is left to publish: they are settled.
    let found = own.iter().map(|event| event.seq).chain(doors.values().flat_map(|(seqs, _)| seqs).copied());
    let found: BTreeSet<u64> = found.collect();
    let mut settled: Vec<u64> = seqs.iter().copied().filter(|seq| !found.contains(seq)).collect();
    settled.extend(own.iter().map(|event| event.seq));
    let mut count = own.len() as u64;
    let mut ticket = Ticket(0);
    if !own.is_empty() {
        let target = shared.stream_or_create(topic).map_err(failed)?;
        ticket = republish(shared, &target, &own).map_err(failed)?;
    }
    let open = |name: &String| shared.door(name);
    let (there, closed): (Vec<_>, Vec<_>) = doors.into_iter().partition(|(name, _)| open(name).is_some());
    count += there.iter().map(|(_, (seqs, _))| seqs.len() as u64).sum::<u64>();
    if count == 0
        && let Some((name, _)) = closed.first()
    {
        return Err(failed(EngineError::NotFound(format!(
            "these dead letters came by {name}, which is not served now: they stay"
        ))));
    }
    kick.state.lock().unwrap_or_else(PoisonError::into_inner).open = 1 + there.len();
    for (name, (seqs, letters)) in there {
        let Some(door) = open(&name) else { continue };
        let (kick, shared) = (kick.clone(), shared.clone());
        let done = move |results: Vec<Result<(), String>>| {
            let (mut done, mut stay) = (Vec::new(), Vec::new());
            let mut results = results.into_iter();
            for seq in seqs {
                match results.next() {
                    Some(Ok(())) => done.push(seq),
                    Some(Err(why)) => stay.push(why),
                    None => stay.push(format!("{name} did not answer")),
                }
            }
            kick.part(&shared, done, stay);
        };
        door.take_back(letters, Box::new(done));
    }
    let last = kick.clone();
    shared.after(ticket, move |shared| last.part(shared, settled, Vec::new()));
    shared.store.flush(false);
    Ok((count, kick.later.clone()))
}

fn republish(shared: &Arc<Shared>, target: &Arc<Stream>, events: &[Event]) -> Result<Ticket, EngineError> {
    let mut last = Ticket(0);
    for event in events {
        let headers = former_headers(event);
        let id = Death::of(event).and_then(|death| death.id);
        let new = NewEvent {
            priority: event.priority,
            id: id.as_ref().map(String::as_bytes),
            headers: headers.as_deref(),
            kind: event.kind,
            payload: &event.payload,
        };
        last = last.max(target.publish_unchecked(shared, &[new], true)?.ticket);
    }
    Ok(last)
}

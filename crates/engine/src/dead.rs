//! Dead letters: messages that could not be done, on `$dead/<subject>`, with why.

use crate::engine::Shared;
use crate::error::EngineError;
use crate::later::Later;
use crate::log::{Event, Ticket};
use crate::stream::{KICK, NewEvent, Stream};
use crate::subscription::Subscription;
use postroad_core::dead_letter as names;
use postroad_core::mailbox::{Failures, Verdict, Window};
use serde_json::{Map, Value};
use std::sync::Arc;

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
    let headers = serde_json::to_vec(letter.death).unwrap_or_default();
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

/// Publishes up to `max` dead letters of `topic` to it again, oldest first; says how many, and when they are stored.
pub(crate) fn kick(
    shared: &Arc<Shared>,
    topic: &postroad_core::Subject,
    max: usize,
) -> Result<(u64, Arc<Later>), EngineError> {
    let later = Later::new(1);
    let Some(dead) = shared.find_stream(topic.dead_letter().as_str()) else {
        if shared.find_stream(topic.as_str()).is_none() {
            return Err(EngineError::NotFound(format!("there is no topic {}", topic.as_str())));
        }
        later.step(Ok(Ticket(0)));
        return Ok((0, later));
    };
    shared.admit()?;
    let target = shared.stream_or_create(topic)?;
    let Some(sub) = dead.member(KICK) else { return Err(EngineError::NotFound("no dead letters".into())) };
    let consumer = shared.next_consumer();
    dead.attach_quietly(KICK, consumer, Window { count: u32::MAX, bytes: u64::MAX });
    let mut taken = Vec::new();
    dead.take(shared, &sub, consumer, max, 8 << 20, &mut taken);
    let result = republish(shared, &dead, &target, &taken.iter().map(|t| t.seq).collect::<Vec<_>>());
    let settle = {
        let (dead, later) = (dead.clone(), later.clone());
        move |shared: &Arc<Shared>| {
            let mut counts = Vec::new();
            let receipt = dead.settle(shared, &sub, consumer, &[(0, u64::MAX)], &Verdict::Ack, &mut counts);
            let _ = dead.detach(shared, &sub, consumer);
            later.step(receipt.map(|receipt| match receipt {
                crate::later::Receipt::At(ticket) => ticket,
                crate::later::Receipt::Later(_) => Ticket(0),
            }));
        }
    };
    match result {
        Ok(ticket) => {
            let count = taken.len() as u64;
            shared.after(ticket, settle);
            shared.store.flush(false);
            Ok((count, later))
        }
        Err(error) => {
            if let Some(sub) = dead.member(KICK) {
                let _ = dead.detach(shared, &sub, consumer);
            }
            Err(error)
        }
    }
}

fn republish(
    shared: &Arc<Shared>,
    dead: &Arc<Stream>,
    target: &Arc<Stream>,
    seqs: &[u64],
) -> Result<Ticket, EngineError> {
    let mut events = Vec::new();
    dead.log.read(seqs, &mut events)?;
    let mut last = Ticket(0);
    for event in &events {
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

//! Dead letters between the MQTT broker and the engine: to `$dead/TOPIC`, where every door can read them, and back to
//! MQTT when they are kicked.

use std::sync::Arc;

use postroad_core::Subject;
use postroad_engine::{Death, Done, Door, Engine, Letter, Returned, log::Ticket};
use postroad_mqtt::{
    broker::{DeadLetter, Post, letter_payload, letter_properties, post_payload, post_properties},
    codec::Utf8,
    server::{OnDead, ServerHandle},
};

/// How letters say where they came from.
pub(super) const DOOR: &str = "mqtt";
/// Where letters go whose topic no other door can have, with empty levels for example.
const OTHERS: &str = "mqtt";
/// The header with the properties of the message.
const PROPERTIES: &str = "mqtt";

/// Stores dead letters. A letter that comes again after a crash has the same id, by which the topic knows it.
pub(super) fn graveyard(engine: Arc<Engine>) -> OnDead {
    let mut failing = false;
    Box::new(move |letter: &DeadLetter| match bury(&engine, letter) {
        Ok(ticket) => {
            failing = false;
            Some(ticket)
        }
        Err(error) => {
            if !failing {
                tracing::error!(topic = %letter.topic, client = %letter.client, %error,
                    "dead letters cannot be moved to $dead/TOPIC; the MQTT broker keeps them, and tries again");
            }
            failing = true;
            None
        }
    })
}

fn bury(engine: &Engine, letter: &DeadLetter) -> Result<Ticket, String> {
    let topic =
        Subject::new(letter.topic.as_str()).or_else(|_| Subject::new(OTHERS)).map_err(|e| e.to_string())?;
    let death = Death {
        reason: letter.reason.clone().into_owned(),
        topic: letter.topic.as_str().to_owned(),
        seq: letter.seq,
        subscription: format!("mqtt client {}", letter.client),
        attempts: letter.attempts,
        first: letter.first.unwrap_or(letter.published),
        last: letter.died,
        id: None,
        door: Some(DOOR.to_owned()),
    };
    let id = serde_json::to_string(&letter.id).map_err(|e| e.to_string())?;
    let properties = letter.properties.as_deref().and_then(letter_properties);
    let headers = properties.map(|properties| format!("{{\"{PROPERTIES}\":{properties}}}"));
    let (kind, payload) = letter_payload(&letter.payload);
    let letter = Letter {
        id: &id,
        death: &death,
        headers: headers.as_deref().map(str::as_bytes),
        kind,
        payload: &payload,
    };
    engine.dead_letter(&topic, &letter).map_err(|e| e.to_string())
}

/// The way back.
pub(super) struct Back(pub(super) ServerHandle);

impl Door for Back {
    fn take_back(&self, letters: Vec<Returned>, done: Done) {
        let posts: Vec<Result<Post, &'static str>> = letters.into_iter().map(post).collect();
        let good = posts.iter().flatten().cloned().collect();
        self.0.post(good, move |results| {
            let mut results = results.into_iter();
            let all = posts.into_iter().map(|post| match post {
                Ok(_) => match results.next() {
                    Some(result) => result.map_err(|error| error.to_string()),
                    None => Err("the broker did not answer".to_owned()),
                },
                Err(why) => Err(why.to_owned()),
            });
            done(all.collect());
        });
    }
}

fn post(letter: Returned) -> Result<Post, &'static str> {
    let payload = post_payload(letter.kind, &letter.payload).ok_or("the payload cannot be read")?;
    let headers: serde_json::Map<String, serde_json::Value> =
        letter.headers.and_then(|headers| serde_json::from_slice(&headers).ok()).unwrap_or_default();
    let properties = headers.get(PROPERTIES).and_then(|own| post_properties(&own.to_string()));
    Ok(Post {
        topic: Utf8::try_from(letter.death.topic).map_err(|_| "this topic cannot be published to")?,
        payload,
        properties: properties.unwrap_or_default(),
        letter: Some(letter.id),
    })
}

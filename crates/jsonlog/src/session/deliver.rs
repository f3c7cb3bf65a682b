//! Deliveries: from the consumers of a session to `event` lines.

use super::Session;
use super::reply::push_event_head;
use postroad_engine::log::{Event, PayloadKind};
use postroad_engine::{Consumer, Death, Delivered, Note};
use std::time::{Duration, UNIX_EPOCH};

/// Messages taken from one consumer at a time.
const TURN: usize = 256;

/// A subscription of this connection.
pub(super) struct Attachment {
    pub(super) number: u32,
    pub(super) consumer: Consumer,
    // Its `ok` was sent: events may follow.
    pub(super) open: bool,
}

impl Session {
    /// Writes notes and events while there is room, giving each subscription its turn.
    pub(super) fn emit_deliveries(&mut self, out: &mut Vec<u8>, limit: usize) {
        let count = self.attachments.len();
        let mut delivered: Vec<Delivered> = Vec::new();
        let mut idle = 0;
        while idle < count && out.len() < limit {
            self.turn = (self.turn + 1) % count;
            let attachment = &mut self.attachments[self.turn];
            if !attachment.open {
                idle += 1;
                continue;
            }
            for note in attachment.consumer.notes() {
                push_note(out, &note);
            }
            delivered.clear();
            let taken = attachment.consumer.take(TURN, limit - out.len().min(limit), &mut delivered);
            for delivery in &delivered {
                let topic = delivery.stream.topic();
                push_event_head(out, topic.as_str(), delivery.event.seq, delivery.attempt);
                push_payload(out, topic.is_dead_letter(), &delivery.event);
                out.push(b'\n');
            }
            idle = if taken == 0 { idle + 1 } else { 0 };
        }
    }
}

/// The JSON of an event line.
pub(super) fn push_payload(out: &mut Vec<u8>, dead: bool, event: &Event) {
    let Some(death) = dead.then(|| Death::of(event)).flatten() else {
        push_plain(out, event);
        return;
    };
    let time =
        |millis| humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(millis)).to_string();
    let head = serde_json::json!({
        "reason": death.reason,
        "topic": death.topic,
        "seq": death.seq,
        "subscription": death.subscription,
        "attempts": death.attempts,
        "first": time(death.first),
        "last": time(death.last),
    });
    let head = head.to_string();
    out.extend_from_slice(&head.as_bytes()[..head.len() - 1]);
    out.extend_from_slice(b",\"event\":");
    push_plain(out, event);
    out.push(b'}');
}

fn push_plain(out: &mut Vec<u8>, event: &Event) {
    match event.kind {
        PayloadKind::Json | PayloadKind::Text => out.extend_from_slice(&event.payload),
        PayloadKind::Binary => {
            out.extend_from_slice(b"{\"base64\":\"");
            out.extend_from_slice(&event.payload);
            out.extend_from_slice(b"\"}");
        }
    }
}

fn push_note(out: &mut Vec<u8>, note: &Note) {
    let line = match note {
        Note::Lagged(topic, lost) => {
            format!("note lagged {topic} retention removed {lost} events that were not acked\n")
        }
        Note::Lagging(topic, lag) => {
            format!("note lagging {topic} {lag} events wait: ack faster, or add consumers\n")
        }
        Note::Detached(topic) => {
            format!("note detached {topic} the subscription fell behind its limit and was ended\n")
        }
        Note::Corrupt(topic, what) => format!("note corrupt {topic} {}\n", what.replace('\n', " ")),
    };
    out.extend_from_slice(line.as_bytes());
}

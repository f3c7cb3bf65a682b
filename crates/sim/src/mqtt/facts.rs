//! What was seen at the door of an MQTT broker, in the order in which it was seen.
//!
//! A packet counts when its last byte enters or leaves the broker, not when it reaches a client: a promise counts from the
//! moment it left.

use super::cast::Ask;
use crate::history::Conn;

/// A client, by its place in the cast.
pub type Who = u8;
/// One message, the index into [`Seen::sent`].
pub type Tag = u32;
/// A packet id.
pub type Id = u16;

/// A message that a client published.
#[derive(Clone, Debug, Default)]
pub struct Sent {
    /// Who published it.
    pub by: Who,
    /// Index into [`super::cast::TOPICS`].
    pub topic: u8,
    /// 0, 1 or 2.
    pub qos: u8,
    /// It is to be retained.
    pub retain: bool,
    /// It has no payload: it removes what is retained.
    pub empty: bool,
    /// Bytes of filling.
    pub size: usize,
    /// Seconds after which it expires.
    pub expires: Option<u32>,
    /// It was published as a line.
    pub line: bool,
}

/// Something that happened at the door of the broker.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the fields are those of the packets
pub enum Fact {
    /// The broker began to serve what the disk held.
    Opened,
    /// The broker is stopped politely.
    Stopping,
    /// The broker was stopped or killed: its connections are gone.
    Closed,
    /// Everybody has what is theirs: from here on nothing of it may come again.
    Drained,
    /// CONNECT came in. `lasting`: seconds that the session outlives its connection.
    Connect { conn: Conn, who: Who, clean: bool, lasting: u32, window: u16, will: Option<Will> },
    /// CONNACK left.
    Connack { conn: Conn, present: bool },
    /// The broker let go of a connection, or a polite DISCONNECT came in.
    Gone { conn: Conn, polite: bool },
    /// PUBLISH came in.
    Publish { conn: Conn, id: Id, tag: Tag, dup: bool },
    /// PUBACK or PUBREC left.
    Taken { conn: Conn, id: Id, ok: bool },
    /// PUBREL came in.
    Release { conn: Conn, id: Id },
    /// PUBCOMP left; `known`: the id was.
    Complete { conn: Conn, id: Id, known: bool },
    /// SUBSCRIBE came in, for one of [`super::cast::FILTERS`].
    Subscribe { conn: Conn, id: Id, ask: Ask },
    /// SUBACK left.
    Subscribed { conn: Conn, id: Id, ok: bool },
    /// UNSUBSCRIBE came in.
    Unsubscribe { conn: Conn, id: Id, filter: u8 },
    /// UNSUBACK left.
    Unsubscribed { conn: Conn, id: Id },
    /// PUBLISH left. `id` is 0 at QoS 0; `tag` is `None` without a payload. `ids` has a bit for each identifier of a
    /// subscription; `expiry` is what is left.
    Deliver {
        conn: Conn,
        id: Id,
        tag: Option<Tag>,
        qos: u8,
        retain: bool,
        dup: bool,
        ids: u32,
        expiry: Option<u32>,
    },
    /// PUBREC came in.
    Received { conn: Conn, id: Id },
    /// PUBREL left.
    Released { conn: Conn, id: Id },
    /// PUBACK or PUBCOMP came in.
    Settled { conn: Conn, id: Id },
    /// PUBACK or PUBREC came in, with a reason to refuse.
    Refused { conn: Conn, id: Id },
    /// A dead letter is stored. `client`: who did not get the message; `id` names the death.
    Dead { client: String, tag: Option<Tag>, id: String, reason: String },
    /// Something of the line dialect.
    Line { conn: Conn, who: Who, fact: LineFact },
    /// The application of a client got a message, whatever the protocol repeated.
    App { who: Who, tag: Tag, retain: bool },
    /// The door or a client saw what the protocol forbids.
    Wrong(String),
}

/// The will that comes with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Will {
    /// The message.
    pub tag: Tag,
    /// Seconds after the end of the connection.
    pub delay: u32,
}

/// A name of a message in the line dialect.
pub type Name = u64;

/// Something that happened at a door of the line dialect. An answer is noted with what it answers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the fields are those of the lines
pub enum LineFact {
    /// PUB came in.
    Put {
        tag: Tag,
    },
    /// PUBREC left.
    Held {
        tag: Tag,
        name: Name,
    },
    /// PUBREL came in.
    Let {
        name: Name,
    },
    /// PUBCOMP left.
    Done {
        name: Name,
    },
    /// The log-in was answered.
    Welcome,
    /// SUB came in, OK left.
    Sub {
        topic: u8,
    },
    Subbed {
        topic: u8,
    },
    /// UNSUB came in, OK left.
    Unsub {
        topic: u8,
    },
    Unsubbed {
        topic: u8,
    },
    /// PUB left. `tag` is `None` without a payload.
    Deliver {
        topic: u8,
        name: Name,
        tag: Option<Tag>,
    },
    /// A dead letter left: of a message, or of a line that was no command.
    Letter {
        name: Name,
        tag: Option<Tag>,
        junk: Option<u32>,
    },
    /// PUBREC came in, OK left.
    Received {
        name: Name,
    },
    Recorded {
        name: Name,
    },
    /// PUBREL left.
    Released {
        name: Name,
    },
    /// PUBCOMP came in, OK left.
    Settled {
        name: Name,
    },
    Completed {
        name: Name,
    },
    /// A line that is no command came in, and its answer left.
    Junk {
        junk: u32,
    },
    Refused {
        junk: u32,
    },
    /// An error left, for what: `None` if it was not asked for.
    Error {
        to: Option<Box<Self>>,
        why: String,
    },
}

/// Everything seen in one world.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Virtual time, milliseconds; stamped on facts.
    pub now: u64,
    /// With the time of each.
    pub facts: Vec<(u64, Fact)>,
    /// By tag.
    pub sent: Vec<Sent>,
    /// Handshakes of QoS 2 that clients saw to their end as publishers, and as subscribers.
    pub exchanges: (u64, u64),
    /// Lines that are no commands, so far.
    pub junk: u32,
    /// Queues of this world are small.
    pub overflows: bool,
    /// The disk of this world fails now and then.
    pub disk_fails: bool,
}

impl Seen {
    /// Notes a fact, now.
    pub fn note(&mut self, fact: Fact) {
        self.facts.push((self.now, fact));
    }

    /// The bytes of a message. Each is of one of three kinds: JSON, text, and neither.
    pub fn payload(&self, tag: Tag) -> Vec<u8> {
        let Some(sent) = self.sent.get(tag as usize) else { return Vec::new() };
        if sent.empty {
            return Vec::new();
        }
        let filling = || "p".repeat(sent.size);
        // A line is text.
        let kind = if sent.line { [0, 1, 1] } else { [0, 1, 2] }[tag as usize % 3];
        match kind {
            0 => format!("{{\"t\":{tag},\"p\":\"{}\"}}", filling()).into_bytes(),
            1 => format!("{tag} \"{}\n", filling()).into_bytes(),
            _ => [&[0xff][..], &tag.to_be_bytes(), filling().as_bytes()].concat(),
        }
    }

    /// The message with this payload.
    ///
    /// # Errors
    /// The payload is nobody's, or not whole.
    pub fn tag_of(&self, payload: &[u8]) -> Result<Option<Tag>, String> {
        if payload.is_empty() {
            return Ok(None);
        }
        let number = |text: &[u8]| {
            let end = text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
            std::str::from_utf8(&text[..end]).ok().and_then(|text| text.parse().ok())
        };
        let tag = match payload {
            [0xff, a, b, c, d, ..] => Some(Tag::from_be_bytes([*a, *b, *c, *d])),
            [b'{', rest @ ..] => rest.strip_prefix(b"\"t\":").and_then(number),
            text => number(text),
        };
        match tag {
            Some(tag) if self.payload(tag) == payload => Ok(Some(tag)),
            _ => Err(format!(
                "the payload {:?} is not what anybody published",
                String::from_utf8_lossy(payload)
            )),
        }
    }
}

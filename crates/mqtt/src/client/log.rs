//! What the protocol of a client remembers: records of its exchanges, in memory or in a journal.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use postroad_core::mailbox::Failures;
use postroad_core::{Error, Timestamp};
use postroad_journal::RecordView;
use postroad_journal::record::{push_number_field, push_text_field};

use crate::codec::{
    Direction, Limits, MAX_REMAINING_LENGTH, Packet, PacketId, Publish, Version, decode_packet,
};

/// Which commit a record is part of.
pub(super) type Mark = u64;

/// One change of the state of an exchange. All of them can be folded twice: a snapshot repeats what is open.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Record {
    /// The next message has this number.
    Next(u64),
    /// Outbox: the client id of its session at the server.
    Client(String),
    /// Outbox: a message to be sent.
    Out { number: u64, publish: Publish, expires: Option<Timestamp> },
    /// Outbox: PUBREC came for it.
    Received(u64),
    /// Outbox: the server has lost it; it is to be sent anew.
    Again(u64),
    /// Outbox: the exchange is over.
    Done(u64),
    /// Outbox: the server does not want it.
    Refused(u64),
    /// Outbox: a message with this id was taken.
    Seen { number: u64, id: String },
    /// Inbox: a message that came at `time`.
    In { number: u64, publish: Publish, time: Timestamp },
    /// Inbox: a QoS 2 message with this id has come, and no PUBREL yet.
    Open(PacketId),
    /// Inbox: PUBREL came for this id.
    Released(PacketId),
    /// Inbox: the server knows nothing of this session: all ids are free.
    Fresh,
    /// Inbox: settled.
    Settled { first: u64, last: u64 },
    /// Inbox: failed once more.
    Tried { first: u64, last: u64, failures: Failures },
}

/// Where records go.
pub(super) trait Log: Send {
    /// Takes a record; it is durable when [`committed`](Self::committed) has reached the mark.
    fn append(&mut self, record: &Record) -> Mark;
    /// All up to here is durable.
    fn committed(&self) -> Mark;
    /// Gets the commit of what was appended going, without waiting for it.
    fn flush(&mut self);
    /// Waits until all that was appended is durable, or cannot be.
    fn commit(&mut self) {}
    /// Whether records outlive this process.
    fn is_durable(&self) -> bool;
    /// Whether so many records are there that a snapshot is due.
    fn wants_snapshot(&self) -> bool {
        false
    }
    /// These records are all there is; what was before may be forgotten.
    fn snapshot(&mut self, records: Vec<Record>) {
        let _ = records;
    }
    /// Whether records can be taken now.
    fn admit(&self) -> Result<(), Error> {
        Ok(())
    }
    /// Why nothing is committed any more, if so.
    fn failure(&self) -> Option<Error> {
        None
    }
}

/// Remembers nothing: the state of the session in memory is all there is.
#[derive(Debug)]
pub(super) struct NoLog;

impl Log for NoLog {
    fn append(&mut self, _: &Record) -> Mark {
        0
    }

    fn committed(&self) -> Mark {
        0
    }

    fn flush(&mut self) {}

    fn is_durable(&self) -> bool {
        false
    }
}

impl Record {
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Next(_) => "next",
            Self::Client(_) => "client",
            Self::Out { .. } => "out",
            Self::Received(_) => "rec",
            Self::Again(_) => "again",
            Self::Done(_) => "done",
            Self::Refused(_) => "refused",
            Self::Seen { .. } => "seen",
            Self::In { .. } => "in",
            Self::Open(_) => "open",
            Self::Released(_) => "rel",
            Self::Fresh => "fresh",
            Self::Settled { .. } => "ack",
            Self::Tried { .. } => "try",
        }
    }

    /// Appends the fields after the kind.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Next(number)
            | Self::Received(number)
            | Self::Again(number)
            | Self::Done(number)
            | Self::Refused(number) => push_number_field(out, "number", *number),
            Self::Seen { number, id } => {
                push_number_field(out, "number", *number);
                push_text_field(out, "id", id);
            }
            Self::Out { number, publish, expires } => {
                push_number_field(out, "number", *number);
                if let Some(expires) = expires {
                    push_number_field(out, "expires", expires.as_millis());
                }
                push_packet(out, publish);
            }
            Self::In { number, publish, time } => {
                push_number_field(out, "number", *number);
                push_number_field(out, "time", time.as_millis());
                push_packet(out, publish);
            }
            Self::Open(id) | Self::Released(id) => push_number_field(out, "packet_id", id.get().into()),
            Self::Client(id) => push_text_field(out, "client_id", id),
            Self::Fresh => {}
            Self::Settled { first, last } => {
                push_number_field(out, "number", *first);
                push_number_field(out, "last", *last);
            }
            Self::Tried { first, last, failures } => {
                push_number_field(out, "number", *first);
                push_number_field(out, "last", *last);
                push_number_field(out, "attempts", failures.attempts.into());
                push_number_field(out, "first_failure", failures.first);
                push_number_field(out, "last_failure", failures.last);
                push_number_field(out, "due", failures.due);
            }
        }
    }

    /// Reads a record of a journal.
    pub(super) fn read(view: &RecordView<'_>) -> Result<Self, String> {
        #[derive(serde::Deserialize)]
        struct Fields {
            number: Option<u64>,
            last: Option<u64>,
            client_id: Option<String>,
            id: Option<String>,
            packet_id: Option<PacketId>,
            packet: Option<String>,
            expires: Option<u64>,
            time: Option<u64>,
            attempts: Option<u32>,
            first_failure: Option<u64>,
            last_failure: Option<u64>,
            due: Option<u64>,
        }
        let fields: Fields = serde_json::from_slice(view.line).map_err(|why| why.to_string())?;
        let number = || fields.number.ok_or_else(|| "a record without `number`".to_owned());
        let last = || fields.last.ok_or_else(|| "a record without `last`".to_owned());
        let packet_id = || fields.packet_id.ok_or_else(|| "a record without `packet_id`".to_owned());
        let packet = |direction| read_packet(fields.packet.as_deref().unwrap_or_default(), direction);
        Ok(match view.kind {
            "next" => Self::Next(number()?),
            "client" => Self::Client(fields.client_id.ok_or("a record without `client_id`")?),
            "out" => Self::Out {
                number: number()?,
                publish: packet(Direction::ToServer)?,
                expires: fields.expires.map(Timestamp::from_millis),
            },
            "rec" => Self::Received(number()?),
            "again" => Self::Again(number()?),
            "done" => Self::Done(number()?),
            "refused" => Self::Refused(number()?),
            "seen" => Self::Seen { number: number()?, id: fields.id.ok_or("a record without `id`")? },
            "in" => Self::In {
                number: number()?,
                publish: packet(Direction::ToClient)?,
                time: Timestamp::from_millis(fields.time.unwrap_or(view.time)),
            },
            "open" => Self::Open(packet_id()?),
            "rel" => Self::Released(packet_id()?),
            "fresh" => Self::Fresh,
            "ack" => Self::Settled { first: number()?, last: last()? },
            "try" => Self::Tried {
                first: number()?,
                last: last()?,
                failures: Failures {
                    attempts: fields.attempts.unwrap_or_default(),
                    first: fields.first_failure.unwrap_or_default(),
                    last: fields.last_failure.unwrap_or_default(),
                    due: fields.due.unwrap_or_default(),
                    reason: None,
                },
            },
            other => return Err(format!("a record of the kind `{other}`")),
        })
    }
}

/// As base64 of the packet: every field and every byte of a message.
fn push_packet(out: &mut Vec<u8>, publish: &Publish) {
    let mut packet = BytesMut::with_capacity(publish.encoded_len(Version::V5));
    // What cannot be encoded was refused before it came here.
    if publish.encode(Version::V5, &mut packet).is_ok() {
        push_text_field(out, "packet", &STANDARD.encode(&packet));
    }
}

fn read_packet(text: &str, direction: Direction) -> Result<Publish, String> {
    let bytes = STANDARD.decode(text).map_err(|why| format!("`packet`: {why}"))?;
    match decode_packet(Bytes::from(bytes), Version::V5, direction, &limits()) {
        Ok(Packet::Publish(publish)) => Ok(publish),
        Ok(other) => Err(format!("`packet` is a {:?}", other.packet_type())),
        Err(why) => Err(format!("`packet`: {why}")),
    }
}

/// What the protocol allows at all: a server of one's own choice is trusted with memory.
pub(super) fn limits() -> Limits {
    Limits { max_packet_size: MAX_REMAINING_LENGTH + 5, user_properties: 65_535, ..Limits::default() }
}

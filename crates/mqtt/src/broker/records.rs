//! The records of the broker's log beside messages. `docs/mqtt-log.md` lists them.
//!
//! Numbers of sessions are `d`, numbers in a session's queue `n` (up to `to`). The journal's own
//! keys (`s`, `t`, `k`, `m`, `c`) are taken. `u` and `un` are the session and the number that a message had before. Records of a snapshot have a `z` before
//! their kind: they count only when the whole snapshot is there.

use super::graves::{Burial, Death, Grave, Sends};
use super::message::{self, Message};
use super::outgoing::SubscriptionIds;
use super::session::{Options, Session, Will};
use crate::codec::{PacketId, Qos, SubscriptionId, Utf8};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use postroad_core::mailbox::{Failures, Millis};
use postroad_engine::log::{Append, RecordView};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::sync::Arc;

/// A record, read.
#[derive(Debug)]
pub(super) enum Record<'a> {
    /// A session has a connection.
    Here {
        session: u64,
        client: Cow<'a, str>,
        expiry: u32,
        window: u16,
        owner: Option<Cow<'a, str>>,
        will: Option<Box<Will>>,
    },
    /// It has none any more; messages up to number `sent` may have been sent.
    Away { session: u64, expiry: u32, since: Millis, keep_will: bool, sent: u64 },
    /// It has ended, with letters for what was in its queue.
    Gone { session: u64, burial: Option<Burial> },
    /// It subscribes.
    Subscribe { session: u64, filter: Cow<'a, str>, options: Options },
    /// It does not any more.
    Unsubscribe { session: u64, filter: Cow<'a, str> },
    /// PUBREL came.
    Released { session: u64, packets: Vec<PacketId> },
    /// PUBREC came.
    Received { session: u64, first: u64, last: u64 },
    /// An exchange with its client is over.
    Done { session: u64, first: u64, last: u64 },
    /// A message of the log goes to this session; `from`: from the queue of another one, and its number there.
    Given {
        session: u64,
        number: u64,
        seq: u64,
        qos: Qos,
        retain: bool,
        ids: SubscriptionIds,
        from: Option<(u64, u64)>,
    },
    /// Its next message has this number.
    Skip { session: u64, next: u64 },
    /// There is a work queue.
    Queue { queue: u64, name: Cow<'a, str>, filter: Cow<'a, str> },
    /// There is not any more, with letters for what was in it.
    QueueGone { queue: u64, burial: Option<Burial> },
    /// Messages of it are done.
    QueueDone { queue: u64, first: u64, last: u64 },
    /// A message of it failed once more.
    QueueTried { queue: u64, number: u64, failures: Failures },
    /// Snapshot: a message of it that is not done.
    QueueGiven { queue: u64, number: u64, seq: u64 },
    /// Its next message has this number.
    QueueSkip { queue: u64, next: u64 },
    /// Its numbers up to this one may have been given to messages that only memory had.
    Reserved { session: u64, number: u64 },
    /// Snapshot: ids that are open.
    Open { session: u64, packets: Vec<PacketId> },
    /// A message is dead, and this is its letter; `source`: in this queue it is settled.
    Dead { letter: u64, source: Option<(u64, u64)>, grave: Grave },
    /// Retained messages that a queue had no room for, with letters from this number on.
    Left { letter: u64, death: Arc<Death>, seqs: Vec<u64> },
    /// Letters that are stored elsewhere.
    Stored { first: u64, last: u64 },
    /// Snapshot: ids of letters that were published again.
    Again { ids: Vec<String> },
    /// Snapshot: it begins; sessions get numbers from this one on, letters from that one.
    Begin { next: u64, letter: u64 },
    /// Snapshot: it is whole.
    End,
}

/// All fields there are; what a kind needs is checked when it is read.
#[derive(Default, Serialize, Deserialize)]
struct Fields<'a> {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    d: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none", borrow)]
    id: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    x: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    w: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    at: Option<Millis>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    keep: Option<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none", borrow)]
    f: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    o: Option<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    n: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    to: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    q: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    u: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    un: Option<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    i: Vec<u32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    p: Vec<PacketId>,
    /// The number of a letter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    l: Option<u64>,
    /// Why something is dead.
    #[serde(default, skip_serializing_if = "Option::is_none", borrow)]
    why: Option<Cow<'a, str>>,
    /// Sends, the first and the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sent: Option<(u32, Millis, Millis)>,
    /// Numbers of messages.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    list: Vec<u64>,
    /// Ids of letters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ids: Vec<String>,
    /// The user.
    #[serde(default, skip_serializing_if = "Option::is_none", borrow)]
    user: Option<Cow<'a, str>>,
    /// Attempts, first and last failure, due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tries: Option<(u32, Millis, Millis, Millis)>,
    #[serde(default, skip_serializing_if = "Option::is_none", borrow)]
    will: Option<WillFields<'a>>,
}

#[derive(Serialize, Deserialize)]
struct WillFields<'a> {
    #[serde(borrow)]
    topic: Cow<'a, str>,
    /// Base64.
    payload: String,
    #[serde(default, skip_serializing_if = "Option::is_none", borrow)]
    head: Option<Cow<'a, serde_json::value::RawValue>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expiry: Option<u32>,
    #[serde(default)]
    delay: u32,
}

/// Writes records, with memory that is used again.
#[derive(Debug, Default)]
pub(super) struct Pen {
    fields: Vec<u8>,
    /// Before every kind: `z` in a snapshot.
    prefix: bool,
}

impl Pen {
    pub(super) fn snapshot() -> Self {
        Self { fields: Vec::new(), prefix: true }
    }

    fn write(&mut self, log: &mut dyn Append, kind: &'static str) {
        log.record(if self.prefix { kind } else { &kind[1..] }, &self.fields);
        self.fields.clear();
    }

    fn number(&mut self, key: &'static str, value: u64) {
        postroad_journal::record::push_number_field(&mut self.fields, key, value);
    }

    /// Any fields, slower.
    fn object(&mut self, fields: &Fields<'_>) {
        let from = self.fields.len();
        // Writing to memory cannot fail. The braces go: `{"d":1}` becomes `,"d":1`.
        let _ = serde_json::to_writer(&mut self.fields, fields);
        self.fields[from] = b',';
        self.fields.pop();
    }

    pub(super) fn here(&mut self, log: &mut dyn Append, session: &Session) {
        let will = session.will.as_deref().map(|will| WillFields {
            topic: will.message.topic.as_str().into(),
            payload: BASE64.encode(&will.message.payload),
            head: message::head_json(&will.message).map(Cow::Owned),
            expiry: will.expiry,
            delay: will.delay,
        });
        self.object(&Fields {
            d: Some(session.number),
            id: Some(session.client.as_str().into()),
            x: Some(session.expiry),
            w: Some(session.window),
            user: session.owner.as_deref().map(Into::into),
            will,
            ..Fields::default()
        });
        self.write(log, "zhere");
    }

    pub(super) fn away(&mut self, log: &mut dyn Append, session: &Session, since: Millis) {
        self.object(&Fields {
            d: Some(session.number),
            x: Some(session.expiry),
            at: Some(since),
            keep: session.will.is_some().then_some(1),
            n: (session.sent > 0).then_some(session.sent),
            ..Fields::default()
        });
        self.write(log, "zaway");
    }

    pub(super) fn gone(&mut self, log: &mut dyn Append, session: u64, burial: Option<&Burial>) {
        self.object(&burial_fields(session, burial));
        self.write(log, "zgone");
    }

    pub(super) fn subscribe(&mut self, log: &mut dyn Append, session: u64, filter: &str, options: Options) {
        self.object(&Fields {
            d: Some(session),
            f: Some(filter.into()),
            o: Some(options.bits()),
            i: options.id.map(SubscriptionId::get).into_iter().collect(),
            ..Fields::default()
        });
        self.write(log, "zsubs");
    }

    pub(super) fn unsubscribe(&mut self, log: &mut dyn Append, session: u64, filter: &str) {
        self.object(&Fields { d: Some(session), f: Some(filter.into()), ..Fields::default() });
        self.write(log, "zunsub");
    }

    pub(super) fn released(&mut self, log: &mut dyn Append, session: u64, packets: &[PacketId]) {
        self.packets(session, packets);
        self.write(log, "zrel");
    }

    fn packets(&mut self, session: u64, packets: &[PacketId]) {
        self.number("d", session);
        self.fields.extend_from_slice(b",\"p\":");
        let _ = serde_json::to_writer(&mut self.fields, packets);
    }

    pub(super) fn received(&mut self, log: &mut dyn Append, session: u64, first: u64, last: u64) {
        self.range(session, first, last);
        self.write(log, "zrec");
    }

    pub(super) fn done(&mut self, log: &mut dyn Append, session: u64, first: u64, last: u64) {
        self.range(session, first, last);
        self.write(log, "zdone");
    }

    fn range(&mut self, session: u64, first: u64, last: u64) {
        self.number("d", session);
        self.number("n", first);
        if last > first {
            self.number("to", last);
        }
    }

    /// The next `given` takes its message from the queue of another session: one record, so that no crash can leave
    /// the message in both queues, or in none.
    pub(super) fn moved(&mut self, session: u64, number: u64) {
        self.number("u", session);
        self.number("un", number);
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one record")]
    pub(super) fn given(
        &mut self,
        log: &mut dyn Append,
        session: u64,
        number: u64,
        seq: u64,
        qos: Qos,
        retain: bool,
        ids: &SubscriptionIds,
    ) {
        self.number("d", session);
        self.number("o", u64::from(qos as u8 | u8::from(retain) << 2));
        self.number("n", number);
        self.number("q", seq);
        if !ids.is_empty() {
            let mut ids: Vec<u32> = ids.iter().map(|id| id.get()).collect();
            ids.dedup();
            self.fields.extend_from_slice(b",\"i\":");
            let _ = serde_json::to_writer(&mut self.fields, &ids);
        }
        self.write(log, "zgive");
    }

    pub(super) fn skip(&mut self, log: &mut dyn Append, session: u64, next: u64) {
        self.number("d", session);
        self.number("n", next);
        self.write(log, "zskip");
    }

    pub(super) fn open(&mut self, log: &mut dyn Append, session: u64, packets: &[PacketId]) {
        self.packets(session, packets);
        self.write(log, "zopen");
    }

    pub(super) fn reserved(&mut self, log: &mut dyn Append, session: u64, number: u64) {
        self.number("d", session);
        self.number("n", number);
        self.write(log, "zmem");
    }

    pub(super) fn queue(&mut self, log: &mut dyn Append, queue: u64, name: &str, filter: &str) {
        self.object(&Fields {
            d: Some(queue),
            id: Some(name.into()),
            f: Some(filter.into()),
            ..Fields::default()
        });
        self.write(log, "zqueue");
    }

    pub(super) fn queue_gone(&mut self, log: &mut dyn Append, queue: u64, burial: Option<&Burial>) {
        self.object(&burial_fields(queue, burial));
        self.write(log, "zqgone");
    }

    pub(super) fn dead(
        &mut self,
        log: &mut dyn Append,
        letter: u64,
        source: Option<(u64, u64)>,
        grave: &Grave,
    ) {
        let Sends { count, first, last } = grave.sends;
        self.object(&Fields {
            d: source.map(|source| source.0),
            n: source.map(|source| source.1),
            l: Some(letter),
            q: Some(grave.seq),
            id: Some(grave.death.client.as_str().into()),
            why: Some(grave.death.reason.as_ref().into()),
            at: Some(grave.death.died),
            sent: (count > 0).then_some((count, first, last)),
            o: grave.announced.then_some(1),
            ..Fields::default()
        });
        self.write(log, "zdead");
    }

    pub(super) fn left(&mut self, log: &mut dyn Append, letter: u64, death: &Death, seqs: &[u64]) {
        self.object(&Fields {
            l: Some(letter),
            id: Some(death.client.as_str().into()),
            why: Some(death.reason.as_ref().into()),
            at: Some(death.died),
            list: seqs.to_vec(),
            ..Fields::default()
        });
        self.write(log, "zleft");
    }

    pub(super) fn again(&mut self, log: &mut dyn Append, ids: Vec<String>) {
        self.object(&Fields { ids, ..Fields::default() });
        self.write(log, "zagain");
    }

    pub(super) fn stored(&mut self, log: &mut dyn Append, first: u64, last: u64) {
        self.number("l", first);
        if last > first {
            self.number("to", last);
        }
        self.write(log, "zstored");
    }

    pub(super) fn queue_done(&mut self, log: &mut dyn Append, queue: u64, first: u64, last: u64) {
        self.range(queue, first, last);
        self.write(log, "zqdone");
    }

    pub(super) fn queue_tried(&mut self, log: &mut dyn Append, queue: u64, number: u64, failures: &Failures) {
        self.object(&Fields {
            d: Some(queue),
            n: Some(number),
            tries: Some((failures.attempts, failures.first, failures.last, failures.due)),
            id: failures.reason.as_deref().map(Into::into),
            ..Fields::default()
        });
        self.write(log, "zqtry");
    }

    pub(super) fn queue_given(&mut self, log: &mut dyn Append, queue: u64, number: u64, seq: u64) {
        self.number("d", queue);
        self.number("n", number);
        self.number("q", seq);
        self.write(log, "zqgive");
    }

    pub(super) fn queue_skip(&mut self, log: &mut dyn Append, queue: u64, next: u64) {
        self.number("d", queue);
        self.number("n", next);
        self.write(log, "zqskip");
    }

    pub(super) fn begin(&mut self, log: &mut dyn Append, next: u64, letter: u64) {
        self.number("n", next);
        if letter > 0 {
            self.number("l", letter);
        }
        self.write(log, "zbegin");
    }

    pub(super) fn end(&mut self, log: &mut dyn Append) {
        self.write(log, "zend");
    }
}

/// A record that is no message, and whether it is of a snapshot; `Ok(None)` for the journal's own kinds.
pub(super) fn read<'a>(view: &RecordView<'a>) -> Result<Option<(bool, Record<'a>)>, String> {
    let (snapshot, kind) = match view.kind.strip_prefix('z') {
        Some(kind) => (true, kind),
        None => (false, view.kind),
    };
    let known = [
        "here", "away", "gone", "subs", "unsub", "rel", "rec", "done", "give", "skip", "mem", "queue",
        "qgone", "qdone", "qtry", "qgive", "qskip", "dead", "left", "stored", "again", "open", "begin",
        "end",
    ];
    if !known.contains(&kind) || (!snapshot && kind == "end") {
        return Ok(None);
    }
    let fields: Fields<'a> =
        serde_json::from_slice(view.line).map_err(|e| format!("a {kind} record: {e}"))?;
    let record = parse(kind, fields).ok_or_else(|| format!("a {kind} record without what it needs"))?;
    Ok(Some((snapshot, record)))
}

fn ids(numbers: &[u32]) -> Option<SubscriptionIds> {
    numbers.iter().map(|number| SubscriptionId::new(*number)).collect()
}

fn parse<'a>(kind: &str, fields: Fields<'a>) -> Option<Record<'a>> {
    let session = fields.d;
    let range = || Some((fields.n?, fields.to.or(fields.n)?));
    Some(match kind {
        "here" => Record::Here {
            session: session?,
            client: fields.id?,
            expiry: fields.x?,
            window: fields.w?,
            owner: fields.user,
            will: match fields.will {
                Some(will) => Some(Box::new(read_will(will)?)),
                None => None,
            },
        },
        "away" => Record::Away {
            session: session?,
            expiry: fields.x?,
            since: fields.at?,
            keep_will: fields.keep.is_some(),
            sent: fields.n.unwrap_or(0),
        },
        "gone" => Record::Gone {
            session: session?,
            burial: if fields.l.is_some() { Some(burial(&fields)?) } else { None },
        },
        "subs" => {
            let options = Options::from_bits(fields.o?, ids(&fields.i)?.first().copied())?;
            Record::Subscribe { session: session?, filter: fields.f?, options }
        }
        "unsub" => Record::Unsubscribe { session: session?, filter: fields.f? },
        "rel" => Record::Released { session: session?, packets: fields.p },
        "rec" => {
            let (first, last) = range()?;
            Record::Received { session: session?, first, last }
        }
        "done" => {
            let (first, last) = range()?;
            Record::Done { session: session?, first, last }
        }
        "give" => Record::Given {
            session: session?,
            number: fields.n?,
            seq: fields.q?,
            qos: Qos::from_u8(fields.o? & 3)?,
            retain: fields.o? & 4 != 0,
            ids: ids(&fields.i)?,
            from: fields.u.zip(fields.un),
        },
        "queue" => Record::Queue { queue: session?, name: fields.id?, filter: fields.f? },
        "qgone" => Record::QueueGone {
            queue: session?,
            burial: if fields.l.is_some() { Some(burial(&fields)?) } else { None },
        },
        "dead" => {
            let death = Arc::new(death(&fields)?);
            let (count, first, last) = fields.sent.unwrap_or_default();
            let sends = Sends { count, first, last };
            let announced = fields.o.is_some();
            let grave = Grave { seq: fields.q?, message: None, death, sends, announced };
            Record::Dead { letter: fields.l?, source: fields.d.zip(fields.n), grave }
        }
        "left" => Record::Left { letter: fields.l?, death: Arc::new(death(&fields)?), seqs: fields.list },
        "stored" => Record::Stored { first: fields.l?, last: fields.to.or(fields.l)? },
        "qdone" => {
            let (first, last) = range()?;
            Record::QueueDone { queue: session?, first, last }
        }
        "qtry" => {
            let (attempts, first, last, due) = fields.tries?;
            let reason = fields.id.as_deref().map(Into::into);
            let failures = Failures { attempts, first, last, due, reason };
            Record::QueueTried { queue: session?, number: fields.n?, failures }
        }
        "qgive" => Record::QueueGiven { queue: session?, number: fields.n?, seq: fields.q? },
        "qskip" => Record::QueueSkip { queue: session?, next: fields.n? },
        "mem" => Record::Reserved { session: session?, number: fields.n? },
        "skip" => Record::Skip { session: session?, next: fields.n? },
        "open" => Record::Open { session: session?, packets: fields.p },
        "again" => Record::Again { ids: fields.ids },
        "begin" => Record::Begin { next: fields.n?, letter: fields.l.unwrap_or(0) },
        "end" => Record::End,
        _ => return None,
    })
}

fn burial_fields(from: u64, burial: Option<&Burial>) -> Fields<'_> {
    Fields {
        d: Some(from),
        l: burial.map(|burial| burial.first),
        n: burial.map(|burial| burial.at),
        id: burial.map(|burial| burial.death.client.as_str().into()),
        why: burial.map(|burial| burial.death.reason.as_ref().into()),
        at: burial.map(|burial| burial.death.died),
        ..Fields::default()
    }
}

fn burial(fields: &Fields<'_>) -> Option<Burial> {
    Some(Burial { first: fields.l?, at: fields.n?, death: Arc::new(death(fields)?) })
}

fn death(fields: &Fields<'_>) -> Option<Death> {
    Some(Death {
        client: Utf8::try_from(fields.id.as_deref()?.to_owned()).ok()?,
        reason: fields.why.as_deref()?.to_owned().into(),
        died: fields.at?,
    })
}

fn read_will(fields: WillFields<'_>) -> Option<Will> {
    let message = message::with_head(
        Utf8::try_from(fields.topic.into_owned()).ok()?,
        BASE64.decode(fields.payload).ok()?.into(),
        fields.head.as_ref().map(|head| head.get()),
    )?;
    Some(Will { message, expiry: fields.expiry, delay: fields.delay })
}

impl Will {
    /// The message, published now.
    pub(super) fn publish(&self, now: Millis) -> Message {
        let mut message = self.message.clone();
        message.time = now;
        message.expires = self.expiry.map(|seconds| now + u64::from(seconds) * 1000);
        message
    }
}

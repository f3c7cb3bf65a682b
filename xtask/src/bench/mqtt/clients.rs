//! Publishers and subscribers: clients that keep the rules, an id is used again only when its handshake is over.

use super::books::{Arrival, Seen, Shared};
use super::packets::{
    CONNACK, Connack, Frame, PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL, SUBACK, Template, Version,
    acknowledge, acknowledged, connack, connect, frame, publish, suback, subscribe, unexpected,
};
use super::speed::Load;
use crate::bench::event;
use crate::bench::loader::{Driver, Tally};
use anyhow::{Context, Result, ensure};

/// Bits of an event's id that count a publisher's messages; its number stands above them.
const NUMBER_BITS: u32 = 40;

/// How a client connects.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub(super) version: Version,
    pub(super) client: String,
    pub(super) clean: bool,
}

enum Stage {
    New,
    Connecting,
    Subscribing,
    Ready,
}

/// From a new socket to a session, with a subscription if one is wanted.
pub(super) struct Link {
    identity: Identity,
    wanted: Option<(String, u8)>,
    stage: Stage,
    reply: Option<Connack>,
}

impl Link {
    pub(super) fn new(identity: Identity, wanted: Option<(String, u8)>) -> Self {
        Self { identity, wanted, stage: Stage::New, reply: None }
    }

    fn ready(&self) -> bool {
        matches!(self.stage, Stage::Ready)
    }

    fn version(&self) -> Version {
        self.identity.version
    }

    fn fill(&mut self, out: &mut Vec<u8>) {
        let Identity { version, client, clean } = &self.identity;
        match (&self.stage, &self.wanted) {
            (Stage::New, _) => {
                connect(out, *version, client, *clean);
                self.stage = Stage::Connecting;
            }
            // SUBSCRIBE may leave as soon as CONNACK is here.
            (Stage::Subscribing, Some((filter, qos))) => {
                subscribe(out, *version, filter, *qos);
                self.stage = Stage::Ready;
            }
            _ => {}
        }
    }

    /// Takes CONNACK and SUBACK; gives whether the packet was one of them.
    fn take(&mut self, frame: &Frame<'_>, tally: &mut Tally) -> Result<bool> {
        match (frame.first, &self.wanted) {
            (CONNACK, wanted) => {
                self.reply = Some(connack(self.version(), frame)?);
                self.stage = if wanted.is_some() { Stage::Subscribing } else { Stage::Ready };
                tally.greeted += u64::from(wanted.is_none());
            }
            (SUBACK, Some((_, qos))) => {
                suback(frame, *qos)?;
                tally.greeted += 1;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// Gives every whole packet of `input` to `each`; the bytes they had.
fn packets(input: &[u8], mut each: impl FnMut(&Frame<'_>) -> Result<()>) -> Result<usize> {
    let mut used = 0;
    while let Some(frame) = frame(&input[used..])? {
        each(&frame)?;
        used += frame.length;
    }
    Ok(used)
}

/// Has at most `window` messages open: their own handshake is not over, or that of a subscriber. Who runs `ahead` waits
/// for its own handshakes only, and a broker that is slower at delivering has to store what comes.
pub(super) struct Publisher {
    link: Link,
    qos: u8,
    window: u64,
    ahead: bool,
    number: usize,
    books: Shared,
    template: Template,
    /// Ids whose handshake is over, or never was.
    free: Vec<u16>,
    /// Ids from here on were never used.
    unused: u16,
    open: u64,
    answers: Vec<u8>,
}

impl Publisher {
    pub(super) fn new(link: Link, topic: &str, load: Load, number: usize, books: Shared) -> Self {
        let Load { qos, window, ahead, .. } = load;
        let template = Template::new(link.version(), topic, qos);
        let free = Vec::with_capacity(usize::from(window));
        let window = u64::from(window);
        let (unused, open, answers) = (1, 0, Vec::new());
        Self { link, qos, window, ahead, number, books, template, free, unused, open, answers }
    }

    fn id(&mut self) -> u16 {
        self.free.pop().unwrap_or_else(|| {
            self.unused += 1;
            self.unused - 1
        })
    }
}

impl Driver for Publisher {
    fn fill(&mut self, out: &mut Vec<u8>, tally: &mut Tally) {
        self.link.fill(out);
        out.append(&mut self.answers);
        if !self.link.ready() {
            return;
        }
        let window =
            self.window.min(u64::from(self.link.reply.as_ref().map_or(1, |reply| reply.receive_maximum)));
        let books = std::rc::Rc::clone(&self.books);
        let mut books = books.borrow_mut();
        while tally.sent < tally.limit {
            let sent = books.sent[self.number];
            let due = match &books.pace {
                None => tally.now,
                Some(pace) => pace.due(self.number, sent),
            };
            let owed = if self.ahead && self.qos > 0 { 0 } else { books.owed(self.number) };
            let open = self.open.max(owed);
            if due > tally.now || open >= window {
                break;
            }
            let id = if self.qos == 0 { 0 } else { self.id() };
            self.open += u64::from(self.qos > 0);
            let event = (self.number as u64) << NUMBER_BITS | sent;
            self.template.put_event(out, id, event, due);
            books.sent[self.number] += 1;
            tally.sent += 1;
        }
    }

    fn take(&mut self, input: &[u8], tally: &mut Tally) -> Result<usize> {
        packets(input, |frame| {
            let over = match (frame.first, self.qos) {
                (PUBACK, 1) | (PUBCOMP, 2) => acknowledged(frame)?,
                (PUBREC, 2) => {
                    acknowledge(&mut self.answers, PUBREL, acknowledged(frame)?);
                    return Ok(());
                }
                _ if self.link.take(frame, tally)? => return Ok(()),
                _ => return Err(unexpected(frame)),
            };
            ensure!(over < self.unused && self.open > 0, "an answer to packet id {over}, which is not open");
            self.open -= 1;
            self.free.push(over);
            tally.confirmed += 1;
            Ok(())
        })
    }
}

/// Whose message each packet id stands for, while its handshake is open.
#[derive(Default)]
struct Ids(Vec<Option<u32>>);

impl Ids {
    fn owner(&mut self, id: u16) -> &mut Option<u32> {
        let at = usize::from(id);
        if at >= self.0.len() {
            self.0.resize(at + 1, None);
        }
        &mut self.0[at]
    }
}

/// Takes everything, answers it, and keeps the books.
pub(super) struct Subscriber {
    link: Link,
    qos: u8,
    books: Shared,
    seen: Vec<Seen>,
    /// QoS 2 messages whose PUBREL has not come.
    open: Ids,
    answers: Vec<u8>,
}

impl Subscriber {
    pub(super) fn new(link: Link, qos: u8, books: Shared) -> Self {
        let seen = books.borrow().sent.iter().map(|_| Seen::default()).collect();
        Self { link, qos, books, seen, open: Ids::default(), answers: Vec::new() }
    }

    /// Counts an arrival; gives the publisher if it is the first.
    ///
    /// Of QoS 0 what is skipped is lost: a broker keeps the order of each publisher [MQTT-4.6.0-5]. A window that
    /// waited for it would never open again.
    fn arrived(&mut self, payload: &[u8], tally: &mut Tally) -> Result<Option<usize>> {
        let id = event::id(payload).context("a delivery is not what was published")?;
        let sent = event::sent(payload).context("a delivery is not what was published")?;
        let (publisher, number) = ((id >> NUMBER_BITS) as usize, id & ((1 << NUMBER_BITS) - 1));
        let seen = self.seen.get_mut(publisher).context("a delivery of nobody")?;
        match seen.note(number) {
            Arrival::Again => {
                tally.twice += 1;
                return Ok(None);
            }
            Arrival::First { skipped } if self.qos == 0 => {
                self.books.borrow_mut().done[publisher] += skipped;
            }
            Arrival::Late if self.qos == 0 => self.books.borrow_mut().done[publisher] -= 1,
            _ => {}
        }
        tally.delivered += 1;
        tally.delivery.record(tally.now.saturating_sub(sent).max(1_000))?;
        Ok(Some(publisher))
    }

    /// Nothing more is to be said about a message, and its publisher may send the next.
    fn done(&mut self, publisher: usize, tally: &mut Tally) {
        tally.acked += 1;
        self.books.borrow_mut().done[publisher] += 1;
        // Publishers are the first connections.
        if tally.wake.last() != Some(&publisher) {
            tally.wake.push(publisher);
        }
    }
}

impl Driver for Subscriber {
    fn fill(&mut self, out: &mut Vec<u8>, _: &mut Tally) {
        self.link.fill(out);
        out.append(&mut self.answers);
    }

    fn take(&mut self, input: &[u8], tally: &mut Tally) -> Result<usize> {
        packets(input, |frame| match frame.kind() {
            PUBLISH => {
                let message = publish(self.link.version(), frame)?;
                ensure!(message.qos == self.qos, "QoS {} instead of {}", message.qos, self.qos);
                match self.qos {
                    1 => acknowledge(&mut self.answers, PUBACK, message.id),
                    2 => {
                        acknowledge(&mut self.answers, PUBREC, message.id);
                        // Of an open id it is the same message again, whatever it says [MQTT-4.3.3-10].
                        if self.open.owner(message.id).is_some() {
                            return Ok(());
                        }
                    }
                    _ => {}
                }
                if let Some(publisher) = self.arrived(message.payload, tally)? {
                    match self.qos {
                        2 => *self.open.owner(message.id) = Some(publisher as u32),
                        _ => self.done(publisher, tally),
                    }
                }
                Ok(())
            }
            PUBREL => {
                let id = acknowledged(frame)?;
                acknowledge(&mut self.answers, PUBCOMP, id);
                if let Some(publisher) = self.open.owner(id).take() {
                    self.done(publisher as usize, tally);
                }
                Ok(())
            }
            _ if self.link.take(frame, tally)? => Ok(()),
            _ => Err(unexpected(frame)),
        })
    }
}

/// Connects, subscribes if that is wanted, and is silent.
pub(super) struct Idle {
    link: Link,
    /// Counts sessions that the server still had.
    resumed: bool,
}

impl Idle {
    pub(super) fn new(link: Link) -> Self {
        Self { link, resumed: false }
    }
}

impl Driver for Idle {
    fn fill(&mut self, out: &mut Vec<u8>, _: &mut Tally) {
        self.link.fill(out);
    }

    fn take(&mut self, input: &[u8], tally: &mut Tally) -> Result<usize> {
        packets(input, |frame| {
            ensure!(self.link.take(frame, tally)?, unexpected(frame));
            let present = self.link.reply.as_ref().is_some_and(|reply| reply.session_present);
            tally.confirmed += u64::from(present && !std::mem::replace(&mut self.resumed, present));
            Ok(())
        })
    }
}

/// Publishes retained messages at QoS 1, each to a topic of its own.
pub(super) struct Retainer {
    link: Link,
    window: u64,
    free: Vec<u16>,
}

/// The payload of a retained message.
pub(super) const RETAINED: [u8; 64] = *b"a retained message of sixty-four bytes, as a sensor might say it";

impl Retainer {
    pub(super) fn new(link: Link, window: u16) -> Self {
        Self { link, window: u64::from(window), free: (1..=window).collect() }
    }
}

impl Driver for Retainer {
    fn fill(&mut self, out: &mut Vec<u8>, tally: &mut Tally) {
        self.link.fill(out);
        let most =
            u64::from(self.link.reply.as_ref().map_or(0, |reply| reply.receive_maximum)).min(self.window);
        while self.link.ready() && tally.sent < tally.limit && self.window - (self.free.len() as u64) < most {
            let Some(id) = self.free.pop() else { return };
            let topic = retained_topic(tally.sent);
            Template::retained(self.link.version(), &topic, &RETAINED).put(out, id);
            tally.sent += 1;
        }
    }

    fn take(&mut self, input: &[u8], tally: &mut Tally) -> Result<usize> {
        packets(input, |frame| {
            if frame.first == PUBACK {
                self.free.push(acknowledged(frame)?);
                tally.confirmed += 1;
                return Ok(());
            }
            ensure!(self.link.take(frame, tally)?, unexpected(frame));
            Ok(())
        })
    }
}

/// A hundred sites with as many rooms as it takes.
fn retained_topic(number: u64) -> String {
    format!("retained/site{}/room{number}/temperature", number % 100)
}

/// Counts what a QoS 0 subscription brings.
pub(super) struct Counter {
    link: Link,
}

impl Counter {
    pub(super) fn new(link: Link) -> Self {
        Self { link }
    }
}

impl Driver for Counter {
    fn fill(&mut self, out: &mut Vec<u8>, _: &mut Tally) {
        self.link.fill(out);
    }

    fn take(&mut self, input: &[u8], tally: &mut Tally) -> Result<usize> {
        packets(input, |frame| {
            if frame.kind() == PUBLISH {
                let right = publish(self.link.version(), frame)?.payload == RETAINED;
                ensure!(right, "a retained message is not what was published");
                tally.delivered += 1;
                return Ok(());
            }
            ensure!(self.link.take(frame, tally)?, unexpected(frame));
            Ok(())
        })
    }
}

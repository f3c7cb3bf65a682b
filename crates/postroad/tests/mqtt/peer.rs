//! Clients whose state outlives their connections, as the specification has it: a publisher that finishes what it
//! began, and a subscriber that delivers each QoS 2 message once. What they were told is judged by [`Verdict`].
//!
//! They are killed, too: state changes first (that is on their disk), then bytes go out, and a death between the two,
//! or in the middle of the bytes, must do no harm.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::client::{Client, Connect};
use crate::support::PATIENCE;
use crate::wire::{PUBACK, PUBCOMP, PUBREC, PUBREL, Packet, Props, Publish, Version, ack, frame, string};

/// Ids are taken from few, so that each is used again and again.
const IDS: u16 = 200;

/// How things go on outside.
pub(crate) struct Outside {
    pub(crate) port: u16,
    /// Nothing new is published from now on.
    pub(crate) finish: AtomicBool,
    /// All is over.
    pub(crate) over: AtomicBool,
    /// Messages that reached any subscriber.
    pub(crate) received: AtomicU32,
    /// Of a thousand steps of a client so many are its last in this life.
    pub(crate) deaths: u32,
}

/// A client's dice and pen: sends, or dies.
struct Hand<'a> {
    client: Client,
    rng: &'a mut fastrand::Rng,
    deaths: u32,
}

impl Hand<'_> {
    fn say(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.rng.u32(..1000) < self.deaths {
            let cut = self.rng.usize(..=bytes.len());
            self.client.send(&bytes[..cut])?;
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.client.send(bytes)
    }
}

/// A publisher, with what it would have on its disk.
pub(crate) struct Publisher {
    pub(crate) name: String,
    version: Version,
    qos: u8,
    window: usize,
    gap: Duration,
    /// `None`: until told to finish.
    quota: Option<u32>,
    pub(crate) published: u32,
    last_id: u16,
    /// Identifier, number, and whether PUBREC was there, in the order of publishing.
    open: VecDeque<(u16, u32, bool)>,
    known: bool,
    /// How often a durable session was gone.
    pub(crate) forgotten: u32,
    pub(crate) faults: Vec<String>,
}

impl Publisher {
    pub(crate) fn new(name: &str, version: Version, qos: u8) -> Self {
        Self {
            name: name.into(),
            version,
            qos,
            window: 20,
            gap: Duration::from_millis(2),
            quota: None,
            published: 0,
            last_id: 0,
            open: VecDeque::new(),
            known: false,
            forgotten: 0,
            faults: Vec::new(),
        }
    }

    pub(crate) fn quota(mut self, messages: u32) -> Self {
        self.quota = Some(messages);
        self
    }

    pub(crate) fn gap(mut self, gap: Duration) -> Self {
        self.gap = gap;
        self
    }

    pub(crate) fn exactly_once(&self) -> bool {
        self.qos == 2
    }

    fn message(&self, id: u16, number: u32) -> Publish {
        Publish::new(&format!("k/{}", self.name), format!("{}:{number}", self.name), self.qos).id(id)
    }

    fn done(&self, outside: &Outside) -> bool {
        let enough = self
            .quota
            .map_or_else(|| outside.finish.load(Ordering::Relaxed), |quota| self.published >= quota);
        enough && self.open.is_empty()
    }

    /// Until all is published and completed.
    pub(crate) fn run(&mut self, outside: &Outside, rng: &mut fastrand::Rng) {
        while !self.done(outside) && !outside.over.load(Ordering::Relaxed) {
            if self.live(outside, rng).is_err() {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    fn live(&mut self, outside: &Outside, rng: &mut fastrand::Rng) -> io::Result<()> {
        let client = Connect::durable(self.version, &self.name).try_open(outside.port)?;
        if client.code != 0 {
            return Err(io::Error::other("refused"));
        }
        if self.known && !client.present {
            self.forgotten += 1;
        }
        self.known = true;
        let mut hand = Hand { client, rng, deaths: outside.deaths };
        for &(id, number, released) in &self.open {
            // [MQTT-4.4.0-1]: what is open is sent again, in order, with its old identifier.
            let bytes =
                if released { ack(PUBREL, id) } else { self.message(id, number).dup().encode(self.version) };
            hand.say(&bytes)?;
        }
        let mut due = Instant::now();
        let mut heard = Instant::now();
        while !self.done(outside) {
            if outside.over.load(Ordering::Relaxed) {
                return Ok(());
            }
            let more = match self.quota {
                Some(quota) => self.published < quota,
                None => !outside.finish.load(Ordering::Relaxed),
            };
            if more && self.open.len() < self.window && Instant::now() >= due {
                due = Instant::now() + self.gap;
                let (id, number) = (self.free_id(), self.published);
                self.published += 1;
                self.open.push_back((id, number, false));
                let bytes = self.message(id, number).encode(self.version);
                hand.say(&bytes)?;
            }
            let patience = due
                .saturating_duration_since(Instant::now())
                .max(Duration::from_micros(200))
                .min(Duration::from_millis(20));
            let Some(packet) = hand.client.next(patience)? else {
                if !self.open.is_empty() && heard.elapsed() > PATIENCE {
                    self.faults.push(format!("{}: no answer to {:?}", self.name, self.open));
                    return Err(io::ErrorKind::TimedOut.into());
                }
                continue;
            };
            heard = Instant::now();
            self.answered(packet, &mut hand)?;
        }
        hand.client.disconnect();
        Ok(())
    }

    fn answered(&mut self, packet: Packet, hand: &mut Hand<'_>) -> io::Result<()> {
        let Packet::Ack { kind, id, code } = packet else {
            return match packet {
                Packet::Disconnect { code: 0x8E, .. } => Err(io::ErrorKind::ConnectionReset.into()),
                other => {
                    self.faults.push(format!("{}: {other:?}", self.name));
                    Ok(())
                }
            };
        };
        let place = self.open.iter().position(|entry| entry.0 == id);
        match (kind, place) {
            (PUBREC, Some(place)) if self.qos == 2 => {
                if code >= 0x80 {
                    self.faults.push(format!("{}: PUBREC {code:#04x} of {:?}", self.name, self.open[place]));
                }
                self.open[place].2 = true;
                hand.say(&ack(PUBREL, id))
            }
            (PUBCOMP, Some(place)) if self.open[place].2 => {
                // 0x92 here would say that the exchange was forgotten.
                if code != 0 {
                    self.faults.push(format!("{}: PUBCOMP {code:#04x} of {:?}", self.name, self.open[place]));
                }
                self.open.remove(place);
                Ok(())
            }
            (PUBACK, Some(place)) if self.qos == 1 => {
                self.open.remove(place);
                Ok(())
            }
            _ => {
                self.faults.push(format!("{}: packet type {kind} for {id}, open {:?}", self.name, self.open));
                Ok(())
            }
        }
    }

    fn free_id(&mut self) -> u16 {
        loop {
            self.last_id = self.last_id % IDS + 1;
            if self.open.iter().all(|entry| entry.0 != self.last_id) {
                return self.last_id;
            }
        }
    }
}

/// A subscriber, with what it would have on its disk.
pub(crate) struct Subscriber {
    pub(crate) name: String,
    version: Version,
    filter: String,
    subscribed: bool,
    known: bool,
    /// QoS 2 messages whose PUBREL is awaited.
    open: BTreeMap<u16, String>,
    /// What was delivered, in order.
    pub(crate) got: Vec<String>,
    pub(crate) forgotten: u32,
    pub(crate) faults: Vec<String>,
}

impl Subscriber {
    pub(crate) fn new(name: &str, version: Version, filter: &str) -> Self {
        Self {
            name: name.into(),
            version,
            filter: filter.into(),
            subscribed: false,
            known: false,
            open: BTreeMap::new(),
            got: Vec::new(),
            forgotten: 0,
            faults: Vec::new(),
        }
    }

    /// Makes the session and the subscription, before any load.
    pub(crate) fn begin(&mut self, port: u16) {
        let mut client = Connect::durable(self.version, &self.name).open(port);
        assert_eq!(client.subscribe(&self.filter, 2), 2, "{} at QoS 2", self.filter);
        (self.known, self.subscribed) = (true, true);
    }

    /// Until all is over.
    pub(crate) fn run(&mut self, outside: &Outside, rng: &mut fastrand::Rng) {
        while !outside.over.load(Ordering::Relaxed) {
            if self.live(outside, rng).is_err() {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    fn live(&mut self, outside: &Outside, rng: &mut fastrand::Rng) -> io::Result<()> {
        let client = Connect::durable(self.version, &self.name).try_open(outside.port)?;
        if client.code != 0 {
            return Err(io::Error::other("refused"));
        }
        if self.known && !client.present {
            // What a client has to do then; the verdict still counts it.
            self.forgotten += 1;
            self.subscribed = false;
            self.open.clear();
        }
        self.known = true;
        let mut hand = Hand { client, rng, deaths: outside.deaths };
        if !self.subscribed {
            let mut body = vec![0xFF, 0xFF];
            if self.version == Version::V5 {
                body.extend(Props::default().encode());
            }
            body.extend(string(&self.filter));
            body.push(2);
            hand.say(&frame(0x82, &body))?;
        }
        while !outside.over.load(Ordering::Relaxed) {
            match hand.client.next(Duration::from_millis(20))? {
                None => {}
                Some(Packet::Suback { .. }) => self.subscribed = true,
                Some(Packet::Publish(message)) => self.received(message, outside, &mut hand)?,
                Some(Packet::Ack { kind: PUBREL, id, code }) => {
                    if code != 0 {
                        self.faults.push(format!("{}: PUBREL {code:#04x}", self.name));
                    }
                    self.open.remove(&id);
                    hand.say(&ack(PUBCOMP, id))?;
                }
                Some(Packet::Disconnect { code: 0x8E, .. }) => {
                    return Err(io::ErrorKind::ConnectionReset.into());
                }
                Some(other) => self.faults.push(format!("{}: {other:?}", self.name)),
            }
        }
        Ok(())
    }

    fn received(&mut self, message: Publish, outside: &Outside, hand: &mut Hand<'_>) -> io::Result<()> {
        let text = message.text().to_owned();
        if message.qos != 2 {
            self.delivered(text, outside);
            return if message.qos == 1 { hand.say(&ack(PUBACK, message.id)) } else { Ok(()) };
        }
        match self.open.get(&message.id) {
            Some(before) if *before != text => {
                self.faults.push(format!("{}: {} was {before}, now {text}", self.name, message.id));
            }
            Some(_) if !message.dup => {
                self.faults.push(format!("{}: {text} again without DUP [MQTT-3.3.1-1]", self.name));
            }
            Some(_) => {}
            None => {
                self.open.insert(message.id, text.clone());
                self.delivered(text, outside);
            }
        }
        hand.say(&ack(PUBREC, message.id))
    }

    fn delivered(&mut self, text: String, outside: &Outside) {
        self.got.push(text);
        outside.received.fetch_add(1, Ordering::Relaxed);
    }
}

/// What became of the messages of one publisher at one subscriber (or a group of them).
#[derive(Default, PartialEq, Eq, Debug)]
pub(crate) struct Verdict {
    pub(crate) lost: usize,
    pub(crate) duplicated: usize,
    /// First deliveries that came before an earlier message of the same publisher.
    pub(crate) overtaken: usize,
    /// Durable sessions that were gone.
    pub(crate) forgotten: u32,
    pub(crate) faults: Vec<String>,
}

impl Verdict {
    /// `publisher` made messages `0..published`; `got` is everything that was delivered, in order.
    pub(crate) fn judge<'a>(
        &mut self,
        publisher: &str,
        published: u32,
        got: impl Iterator<Item = &'a String>,
        ordered: bool,
        once: bool,
    ) {
        let mut counts: HashMap<u32, usize> = HashMap::new();
        let mut highest = None;
        for text in got {
            let Some((name, number)) = text.split_once(':') else { continue };
            if name != publisher {
                continue;
            }
            let number: u32 = number.parse().expect("a number");
            let count = counts.entry(number).or_default();
            *count += 1;
            if *count == 1 && ordered && highest.is_some_and(|highest| number < highest) {
                self.overtaken += 1;
            }
            highest = highest.max(Some(number));
        }
        self.lost += (0..published).filter(|number| !counts.contains_key(number)).count();
        if once {
            self.duplicated += counts.values().map(|count| count - 1).sum::<usize>();
        }
        let invented = counts.keys().filter(|&&number| number >= published).count();
        if invented > 0 {
            self.faults.push(format!("{invented} messages that nobody published"));
        }
    }
}

#[test]
fn the_verdict_sees_each_fault() {
    let judge = |numbers: &[u32]| {
        let got: Vec<String> = numbers.iter().map(|number| format!("p:{number}")).collect();
        let mut verdict = Verdict::default();
        verdict.judge("p", 4, got.iter(), true, true);
        (verdict.lost, verdict.duplicated, verdict.overtaken, verdict.faults.len())
    };
    assert_eq!(judge(&[0, 1, 2, 3]), (0, 0, 0, 0));
    assert_eq!(judge(&[0, 1, 3]), (1, 0, 0, 0));
    assert_eq!(judge(&[0, 1, 1, 2, 3, 0]), (0, 2, 0, 0));
    assert_eq!(judge(&[0, 2, 1, 3]), (0, 0, 1, 0));
    assert_eq!(judge(&[0, 1, 2, 3, 9]), (0, 0, 0, 1));
}

//! A blocking client that does what it is told, and whose patience ends.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use crate::support::{A_WHILE, PATIENCE};
use crate::wire::{
    self, PUBACK, PUBCOMP, PUBREC, PUBREL, Packet, Props, Publish, Value, Version, ack, binary, frame, prop,
    string,
};

/// Session Expiry Interval: never.
pub(crate) const FOREVER: u32 = u32::MAX;

/// A will.
#[derive(Clone, Default)]
pub(crate) struct Will {
    pub(crate) topic: String,
    pub(crate) payload: Vec<u8>,
    pub(crate) qos: u8,
    pub(crate) retain: bool,
    pub(crate) props: Props,
}

impl Will {
    pub(crate) fn new(topic: &str, payload: &str, qos: u8) -> Self {
        let (topic, payload) = (topic.into(), payload.as_bytes().to_vec());
        Self { topic, payload, qos, ..Self::default() }
    }

    pub(crate) fn delay(self, seconds: u32) -> Self {
        self.prop(prop::WILL_DELAY, Value::Four(seconds))
    }

    pub(crate) fn retained(mut self) -> Self {
        self.retain = true;
        self
    }

    pub(crate) fn prop(mut self, id: u8, value: Value) -> Self {
        self.props = self.props.with(id, value);
        self
    }
}

/// A CONNECT to be.
#[derive(Clone)]
pub(crate) struct Connect {
    pub(crate) version: Version,
    id: String,
    clean: bool,
    keep_alive: u16,
    props: Props,
    will: Option<Will>,
    user: Option<String>,
    password: Option<Vec<u8>>,
}

impl Connect {
    /// A session that ends with its connection: Clean Session, or Clean Start without expiry.
    pub(crate) fn new(version: Version, id: &str) -> Self {
        let id = id.to_owned();
        Self {
            version,
            id,
            clean: true,
            keep_alive: 0,
            props: Props::default(),
            will: None,
            user: None,
            password: None,
        }
    }

    /// A session that outlives its connections.
    pub(crate) fn durable(version: Version, id: &str) -> Self {
        let connect = Self::new(version, id).resume();
        if version == Version::V5 { connect.expiry(FOREVER) } else { connect }
    }

    /// Without Clean Start.
    pub(crate) fn resume(mut self) -> Self {
        self.clean = false;
        self
    }

    pub(crate) fn expiry(self, seconds: u32) -> Self {
        self.prop(prop::SESSION_EXPIRY, Value::Four(seconds))
    }

    pub(crate) fn keep_alive(mut self, seconds: u16) -> Self {
        self.keep_alive = seconds;
        self
    }

    pub(crate) fn prop(mut self, id: u8, value: Value) -> Self {
        self.props.0.retain(|(key, _)| *key != id || id == prop::USER);
        self.props = self.props.with(id, value);
        self
    }

    pub(crate) fn will(mut self, will: Will) -> Self {
        self.will = Some(will);
        self
    }

    pub(crate) fn user(mut self, name: &str) -> Self {
        self.user = Some(name.to_owned());
        self
    }

    pub(crate) fn password(mut self, password: &str) -> Self {
        self.password = Some(password.into());
        self
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let v5 = self.version == Version::V5;
        let mut flags = u8::from(self.clean) << 1;
        if let Some(will) = &self.will {
            flags |= 4 | will.qos << 3 | u8::from(will.retain) << 5;
        }
        if self.user.is_some() {
            flags |= 0x80;
        }
        if self.password.is_some() {
            flags |= 0x40;
        }
        let mut body = string("MQTT");
        body.extend([self.version as u8, flags]);
        body.extend(self.keep_alive.to_be_bytes());
        if v5 {
            body.extend(self.props.encode());
        }
        body.extend(string(&self.id));
        if let Some(will) = &self.will {
            if v5 {
                body.extend(will.props.encode());
            }
            body.extend(string(&will.topic));
            body.extend(binary(&will.payload));
        }
        if let Some(user) = &self.user {
            body.extend(string(user));
        }
        if let Some(password) = &self.password {
            body.extend(binary(password));
        }
        frame(0x10, &body)
    }

    /// Connects; anything but success fails the test.
    #[track_caller]
    pub(crate) fn open(&self, port: u16) -> Client {
        let client =
            self.try_open(port).unwrap_or_else(|error| panic!("{} cannot connect: {error}", self.id));
        assert_eq!(client.code, 0, "{} was refused", self.id);
        client
    }

    /// Connects and reads CONNACK, whatever it says.
    pub(crate) fn try_open(&self, port: u16) -> io::Result<Client> {
        self.try_over(Client::silent(port, self.version)?)
    }

    /// The same on a connection that is there.
    pub(crate) fn try_over(&self, mut client: Client) -> io::Result<Client> {
        client.send(&self.encode())?;
        match client.next(PATIENCE)? {
            Some(Packet::Connack { present, code, props }) => {
                (client.present, client.code, client.props) = (present, code, props);
                Ok(client)
            }
            other => Err(io::Error::other(format!("no CONNACK but {other:?}"))),
        }
    }
}

/// What a connection goes over.
pub(crate) trait Stream: Read + Write + Send {
    fn socket(&self) -> &TcpStream;
}

impl Stream for TcpStream {
    fn socket(&self) -> &TcpStream {
        self
    }
}

/// A connection.
pub(crate) struct Client {
    stream: Box<dyn Stream>,
    pub(crate) version: Version,
    buffer: Vec<u8>,
    /// Read while waiting for something else.
    stash: VecDeque<Packet>,
    last_id: u16,
    /// Session Present of CONNACK.
    pub(crate) present: bool,
    /// The return or reason code of CONNACK.
    pub(crate) code: u8,
    /// The properties of CONNACK.
    pub(crate) props: Props,
}

impl Client {
    /// A connection on which nothing was said yet.
    pub(crate) fn silent(port: u16, version: Version) -> io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self::over(Box::new(stream), version))
    }

    /// The same over a stream that is there.
    pub(crate) fn over(stream: Box<dyn Stream>, version: Version) -> Self {
        Self {
            stream,
            version,
            buffer: Vec::new(),
            stash: VecDeque::new(),
            last_id: 0,
            present: false,
            code: 0,
            props: Props::default(),
        }
    }

    /// Sends bytes as they are.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    /// Sends, and the connection must take it.
    #[track_caller]
    pub(crate) fn say(&mut self, bytes: &[u8]) {
        self.send(bytes).expect("the connection takes it");
    }

    /// The next packet from the wire; `None` when none came in time.
    pub(crate) fn next(&mut self, patience: Duration) -> io::Result<Option<Packet>> {
        let end = Instant::now() + patience;
        let mut chunk = [0; 16_384];
        loop {
            if let Some(packet) = wire::take(self.version, &mut self.buffer) {
                return Ok(Some(packet));
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.socket().set_read_timeout(Some(left))?;
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.buffer.extend(&chunk[..count]),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    return Ok(None);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The next packet, kept ones first; `None` when none came in time. The connection must stay.
    #[track_caller]
    pub(crate) fn poll(&mut self, patience: Duration) -> Option<Packet> {
        let kept = self.stash.pop_front();
        kept.or_else(|| self.next(patience).expect("the connection stays"))
    }

    /// The first packet that `wanted` takes; what comes before it is kept for later.
    #[track_caller]
    fn find<T>(&mut self, what: &str, mut wanted: impl FnMut(&Packet) -> Option<T>) -> T {
        if let Some((at, found)) =
            self.stash.iter().enumerate().find_map(|(at, packet)| Some((at, wanted(packet)?)))
        {
            self.stash.remove(at);
            return found;
        }
        let end = Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.next(left) {
                Ok(Some(packet)) => match wanted(&packet) {
                    Some(found) => return found,
                    None => self.stash.push_back(packet),
                },
                Ok(None) => panic!("{what} did not come; came: {:?}", self.stash),
                Err(error) => panic!("{what} did not come: {error}; came: {:?}", self.stash),
            }
        }
    }

    /// Waits for PUBACK, PUBREC, PUBREL or PUBCOMP; the answer is its reason code.
    #[track_caller]
    pub(crate) fn acked(&mut self, kind: u8, id: u16) -> u8 {
        self.find(&format!("packet type {kind} for {id}"), |packet| match packet {
            Packet::Ack { kind: of, id: which, code } if (*of, *which) == (kind, id) => Some(*code),
            _ => None,
        })
    }

    /// A packet identifier not used before on this connection.
    pub(crate) fn fresh_id(&mut self) -> u16 {
        self.last_id += 1;
        self.last_id
    }

    /// Publishes, and finishes the handshake; the answer is the first acknowledgement's reason code.
    #[track_caller]
    pub(crate) fn publish(&mut self, topic: &str, payload: &str, qos: u8) -> u8 {
        self.publish_this(Publish::new(topic, payload, qos))
    }

    /// The same with anything set.
    #[track_caller]
    pub(crate) fn publish_this(&mut self, mut message: Publish) -> u8 {
        if message.qos > 0 && message.id == 0 {
            message.id = self.fresh_id();
        }
        let bytes = message.encode(self.version);
        self.say(&bytes);
        match message.qos {
            0 => 0,
            1 => self.acked(PUBACK, message.id),
            _ => {
                let code = self.acked(PUBREC, message.id);
                if code < 0x80 {
                    self.say(&ack(PUBREL, message.id));
                    assert_eq!(self.acked(PUBCOMP, message.id), 0, "PUBCOMP of {message:?}");
                }
                code
            }
        }
    }

    /// Subscribes to one filter with an options byte (3.1.1: the QoS); the answer is the granted code.
    #[track_caller]
    pub(crate) fn subscribe(&mut self, filter: &str, options: u8) -> u8 {
        let codes = self.subscribe_all(&[(filter, options)], Props::default());
        assert_eq!(codes.len(), 1, "SUBACK for one filter");
        codes[0]
    }

    /// Subscribes to many.
    #[track_caller]
    pub(crate) fn subscribe_all(&mut self, filters: &[(&str, u8)], props: Props) -> Vec<u8> {
        let id = self.fresh_id();
        let mut body = id.to_be_bytes().to_vec();
        if self.version == Version::V5 {
            body.extend(props.encode());
        }
        for (filter, options) in filters {
            body.extend(string(filter));
            body.push(*options);
        }
        self.say(&frame(0x82, &body));
        self.find("SUBACK", |packet| match packet {
            Packet::Suback { id: which, codes } if *which == id => Some(codes.clone()),
            _ => None,
        })
    }

    /// Unsubscribes; the answer is the codes (none in 3.1.1).
    #[track_caller]
    pub(crate) fn unsubscribe(&mut self, filter: &str) -> Vec<u8> {
        let id = self.fresh_id();
        let mut body = id.to_be_bytes().to_vec();
        if self.version == Version::V5 {
            body.push(0);
        }
        body.extend(string(filter));
        self.say(&frame(0xA2, &body));
        self.find("UNSUBACK", |packet| match packet {
            Packet::Unsuback { id: which, codes } if *which == id => Some(codes.clone()),
            _ => None,
        })
    }

    /// The next message, not acknowledged.
    #[track_caller]
    pub(crate) fn raw_message(&mut self) -> Publish {
        self.find("a message", |packet| match packet {
            Packet::Publish(message) => Some(message.clone()),
            _ => None,
        })
    }

    /// The next message, its handshake finished.
    #[track_caller]
    pub(crate) fn message(&mut self) -> Publish {
        let message = self.raw_message();
        self.finish(&message);
        message
    }

    /// Finishes the handshake of a message.
    #[track_caller]
    pub(crate) fn finish(&mut self, message: &Publish) {
        match message.qos {
            0 => {}
            1 => self.say(&ack(PUBACK, message.id)),
            _ => {
                self.say(&ack(PUBREC, message.id));
                self.acked(PUBREL, message.id);
                self.say(&ack(PUBCOMP, message.id));
            }
        }
    }

    /// The payloads of the next `count` messages, and that there is no more.
    #[track_caller]
    pub(crate) fn texts(&mut self, count: usize) -> Vec<String> {
        let mut texts = Vec::with_capacity(count);
        for _ in 0..count {
            texts.push(self.message().text().to_owned());
        }
        self.quiet();
        texts
    }

    /// Fails when a message comes within a while.
    #[track_caller]
    pub(crate) fn quiet(&mut self) {
        self.quiet_for(A_WHILE);
    }

    /// Fails when a message comes, or the connection ends, within `span`.
    #[track_caller]
    pub(crate) fn quiet_for(&mut self, span: Duration) {
        self.ping();
        let end = Instant::now() + span;
        while let Some(packet) =
            self.next(end.saturating_duration_since(Instant::now())).expect("the connection stays")
        {
            self.stash.push_back(packet);
        }
        let message = self.stash.iter().find(|packet| matches!(packet, Packet::Publish(_)));
        assert_eq!(message, None, "nothing should have come");
    }

    /// The server answers.
    #[track_caller]
    pub(crate) fn ping(&mut self) {
        self.say(&[0xC0, 0]);
        self.find("PINGRESP", |packet| (*packet == Packet::Pingresp).then_some(()));
    }

    /// Waits for the server to close; the answer is the reason of its DISCONNECT, if it sent one.
    #[track_caller]
    pub(crate) fn closed(&mut self) -> Option<u8> {
        self.closed_within(PATIENCE)
    }

    #[track_caller]
    pub(crate) fn closed_within(&mut self, patience: Duration) -> Option<u8> {
        let mut reason = None;
        let end = Instant::now() + patience;
        loop {
            match self.next(end.saturating_duration_since(Instant::now())) {
                Ok(Some(Packet::Disconnect { code, .. })) => reason = Some(code),
                Ok(Some(packet)) => {
                    assert_eq!(reason, None, "after its DISCONNECT the server sent {packet:?}");
                    self.stash.push_back(packet);
                }
                Ok(None) => panic!("the server did not close; reason {reason:?}, came {:?}", self.stash),
                Err(_) => return reason,
            }
        }
    }

    /// DISCONNECT, and waits until the server closed.
    pub(crate) fn disconnect(mut self) {
        self.say(&[0xE0, 0]);
        self.closed();
    }

    /// DISCONNECT with a reason and properties (5.0).
    pub(crate) fn disconnect_with(mut self, code: u8, props: &Props) {
        let mut body = vec![code];
        body.extend(props.encode());
        self.say(&frame(0xE0, &body));
        self.closed();
    }

    /// What it goes over.
    pub(crate) fn into_stream(self) -> Box<dyn Stream> {
        self.stream
    }

    /// Gone without a word.
    pub(crate) fn cut(self) {
        let _ = self.stream.socket().shutdown(Shutdown::Both);
    }
}

//! rumqttc, both its client for 3.1.1 and its client for 5.0: its event loop runs on a thread of the test's.

use super::{PATIENCE, qos_levels};
use crate::broker::Broker;
use crate::support::turn;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What happened to a client.
#[derive(Debug, PartialEq)]
enum Seen {
    Connected {
        present: bool,
    },
    Subscribed,
    Message {
        text: String,
        qos: u8,
        retain: bool,
    },
    /// PUBACK or PUBCOMP came.
    Taken,
}

/// What a client is to be.
#[derive(Clone, Copy, Default)]
struct Wish<'a> {
    durable: bool,
    will: Option<&'a str>,
}

/// What the two kinds of clients have in common.
trait Commands {
    fn publish(&self, topic: &str, level: u8, retain: bool, text: &str);
    fn subscribe(&self, filter: &str, level: u8);
    fn disconnect(&self);
}

struct Guest {
    commands: Box<dyn Commands>,
    seen: mpsc::Receiver<Seen>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    present: bool,
}

/// A way to make a client of one of the versions.
type Open = fn(&str, u16, Wish<'_>) -> Guest;

impl Guest {
    /// `drive` runs an event loop for a moment and tells what happened.
    fn start(commands: Box<dyn Commands>, mut drive: impl FnMut() -> Option<Seen> + Send + 'static) -> Self {
        let (sender, seen) = mpsc::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if let Some(event) = drive() {
                    let _ = sender.send(event);
                }
            }
        });
        let mut guest = Self { commands, seen, stop, thread: Some(thread), present: false };
        match guest.next() {
            Seen::Connected { present } => guest.present = present,
            other => panic!("{other:?} before CONNACK"),
        }
        guest
    }

    fn next(&self) -> Seen {
        self.seen.recv_timeout(PATIENCE).expect("something happens")
    }

    fn subscribe(&self, filter: &str, level: u8) {
        self.commands.subscribe(filter, level);
        assert_eq!(self.next(), Seen::Subscribed);
    }

    /// Publishes and waits for the end of the exchange, if there is one.
    fn publish(&self, topic: &str, level: u8, retain: bool, text: &str) {
        self.commands.publish(topic, level, retain, text);
        if level > 0 {
            assert_eq!(self.next(), Seen::Taken);
        }
    }

    fn quiet(&self) {
        let more = self.seen.recv_timeout(Duration::from_millis(300));
        assert!(more.is_err(), "unexpected: {more:?}");
    }

    fn disconnect(mut self) {
        self.commands.disconnect();
        std::thread::sleep(Duration::from_millis(100));
        self.end();
    }

    /// Ends without DISCONNECT: the socket is closed with the event loop.
    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the event loop");
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.end();
    }
}

/// A client of one version of the protocol, from the types of its module.
macro_rules! guest {
    ($open:ident, $client:ty, $options:ty, $event:path, $packet:path, $qos:path, $prepare:expr) => {
        impl Commands for $client {
            fn publish(&self, topic: &str, level: u8, retain: bool, text: &str) {
                Self::publish(self, topic, $qos(level).expect("0, 1 or 2"), retain, text.to_owned())
                    .expect("queued");
            }
            fn subscribe(&self, filter: &str, level: u8) {
                Self::subscribe(self, filter, $qos(level).expect("0, 1 or 2")).expect("queued");
            }
            fn disconnect(&self) {
                Self::disconnect(self).expect("queued");
            }
        }

        fn $open(name: &str, port: u16, wish: Wish<'_>) -> Guest {
            use $event as Event;
            use $packet as Packet;
            let mut options = <$options>::new(name, "127.0.0.1", port);
            options.set_keep_alive(Duration::from_secs(30));
            let prepare: fn(&mut $options, Wish<'_>) = $prepare;
            prepare(&mut options, wish);
            let (client, mut connection) = <$client>::new(options, 100);
            Guest::start(Box::new(client), move || {
                // An error is followed by a new connection.
                let Ok(Ok(Event::Incoming(packet))) = connection.recv_timeout(Duration::from_millis(20))
                else {
                    return None;
                };
                match packet {
                    Packet::ConnAck(connack) => Some(Seen::Connected { present: connack.session_present }),
                    Packet::SubAck(_) => Some(Seen::Subscribed),
                    Packet::Publish(message) => Some(Seen::Message {
                        text: String::from_utf8_lossy(&message.payload).into_owned(),
                        qos: message.qos as u8,
                        retain: message.retain,
                    }),
                    Packet::PubAck(_) | Packet::PubComp(_) => Some(Seen::Taken),
                    _ => None,
                }
            })
        }
    };
}

guest!(
    open_v3,
    rumqttc::Client,
    rumqttc::MqttOptions,
    rumqttc::Event,
    rumqttc::Packet,
    rumqttc::qos,
    |options, wish| {
        options.set_clean_session(!wish.durable);
        if let Some(topic) = wish.will {
            options.set_last_will(rumqttc::LastWill::new(topic, "gone", rumqttc::QoS::ExactlyOnce, false));
        }
    }
);

guest!(
    open_v5,
    rumqttc::v5::Client,
    rumqttc::v5::MqttOptions,
    rumqttc::v5::Event,
    rumqttc::v5::mqttbytes::v5::Packet,
    rumqttc::v5::mqttbytes::qos,
    |options, wish| {
        options.set_clean_start(!wish.durable);
        options.set_session_expiry_interval(wish.durable.then_some(u32::MAX));
        if let Some(topic) = wish.will {
            let level = rumqttc::v5::mqttbytes::QoS::ExactlyOnce;
            options
                .set_last_will(rumqttc::v5::mqttbytes::v5::LastWill::new(topic, "gone", level, false, None));
        }
    }
);

fn steps(open: Open, tag: &str) {
    let mut broker = Broker::start();
    let port = broker.port();
    let named = |name: &str, wish: Wish<'_>| open(&format!("rumqttc-{name}-{tag}"), port, wish);
    let topic = |name: &str| format!("rumqttc/{tag}/{name}");
    let message = |text: &str, qos: u8, retain: bool| Seen::Message { text: text.into(), qos, retain };

    let (one, two) = (named("1", Wish::default()), named("2", Wish::default()));
    for level in qos_levels() {
        let topic = topic(&level.to_string());
        one.subscribe(&topic, level);
        for number in 0..20 {
            two.publish(&topic, level, false, &number.to_string());
        }
        for number in 0..20 {
            assert_eq!(one.next(), message(&number.to_string(), level, false));
        }
    }
    one.quiet();

    two.publish(&topic("retained"), 1, true, "kept");
    one.subscribe(&topic("retained"), 1);
    assert_eq!(one.next(), message("kept", 1, true));

    one.subscribe(&topic("will"), 2);
    named("mortal", Wish { will: Some(&topic("will")), ..Wish::default() }).end();
    assert_eq!(one.next(), message("gone", 2, false));

    let three = named("3", Wish::default());
    for member in [&one, &three] {
        member.subscribe(&format!("$share/g/{}", topic("shared")), 2);
    }
    for number in 0..30 {
        two.publish(&topic("shared"), 2, false, &number.to_string());
    }
    let (mut got, mut busy) = (BTreeSet::new(), BTreeSet::new());
    let late = Instant::now() + PATIENCE;
    while got.len() < 30 {
        assert!(Instant::now() < late, "{got:?}");
        for (who, member) in [&one, &three].into_iter().enumerate() {
            if let Ok(Seen::Message { text, .. }) = member.seen.recv_timeout(Duration::from_millis(50)) {
                assert!(got.insert(text.parse::<u32>().expect("a number")), "{text} twice");
                busy.insert(who);
            }
        }
    }
    assert_eq!(busy.len(), 2, "both members get some");
    one.quiet();
    three.quiet();

    let durable = Wish { durable: true, ..Wish::default() };
    let subscriber = named("durable", durable);
    assert!(!subscriber.present);
    subscriber.subscribe(&topic("durable"), 2);
    subscriber.disconnect();
    for number in 0..50 {
        two.publish(&topic("durable"), 2, false, &number.to_string());
    }
    drop((one, two, three));
    broker.bounce9();
    let subscriber = named("durable", durable);
    assert!(subscriber.present, "the session was kept");
    for number in 0..50 {
        assert_eq!(subscriber.next(), message(&number.to_string(), 2, false));
    }
    subscriber.quiet();
}

#[test]
fn rumqttc_v3() {
    let _turn = turn();
    steps(open_v3, "v3");
}

#[test]
fn rumqttc_v5() {
    let _turn = turn();
    steps(open_v5, "v5");
}

//! Publishing: one connection for each publisher, or one outbox for all.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use postroad_core::{Capabilities, Envelope, Error, ErrorKind, Publisher, Result, Ticket, Timestamp};

use super::connection::{Session, Target, connect};
use super::link::{Link, Machine, Wake};
use super::log::{Log, NoLog, Record};
use super::outgoing::Outgoing;
use super::{NAME, closed, envelope};
use crate::codec::{Packet, Publish, Qos, Version};

/// Messages that a publisher holds, without and with an outbox, and their bytes.
const MAX_BACKLOG: [usize; 2] = [4096, 65_536];
const MAX_BACKLOG_BYTES: usize = 64 << 20;

impl Machine for Outgoing {
    fn packet(&mut self, packet: Packet, now: Timestamp) -> Result<()> {
        Self::packet(self, &packet, now)
    }

    fn advance(&mut self, now: Timestamp) {
        Self::advance(self, now);
    }

    fn out(&mut self) -> &mut BytesMut {
        &mut self.out
    }

    fn flush(&mut self) {
        self.log.flush();
    }

    fn failure(&self) -> Option<Error> {
        self.log.failure()
    }

    fn is_idle(&self) -> bool {
        self.backlog().0 == 0
    }
}

/// What publishers of one connection share.
pub(super) type Sender = Link<Outgoing>;

/// A publisher of its own connection, which ends with it.
pub(super) async fn open(target: &Target) -> Result<Arc<Sender>> {
    let id = format!("{}-{}", target.options.prefix(), postroad_core::MessageId::generate());
    let session = Session { client_id: &id, clean_start: true, expiry: 0 };
    let connection = connect(target, session).await?;
    let link =
        Link::new(Outgoing::new(Box::new(NoLog), Vec::new(), &target.options), Arc::new(Wake::default()));
    link.lock().machine.connected(connection.terms(), link.now());
    let driven = Arc::clone(&link);
    tokio::spawn(async move {
        let why = driven.drive(connection).await;
        driven.lock().machine.lost(&why);
        driven.end(&why);
    });
    Ok(link)
}

/// A publisher with an outbox: it connects again and again until it is closed.
pub(super) fn open_outbox(
    target: Arc<Target>,
    log: Box<dyn Log>,
    records: Vec<Record>,
    wake: Arc<Wake>,
) -> Arc<Sender> {
    let link = Link::new(Outgoing::new(log, records, &target.options), wake);
    let driven = Arc::clone(&link);
    tokio::spawn(async move {
        let why = supervise(&target, &driven).await;
        let log = {
            let mut state = driven.lock();
            state.machine.give_up(&why);
            // Another client may have it.
            std::mem::replace(&mut state.machine.log, Box::new(NoLog))
        };
        drop(log);
        driven.end(&why);
    });
    link
}

/// Until it is closed, the outbox has failed, or the server cannot do what was asked for.
async fn supervise(target: &Target, link: &Sender) -> Error {
    const DELAYS: std::ops::RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(10);
    let options = &target.options;
    let id = {
        let mut state = link.lock();
        let id = state.machine.client_id(options.prefix());
        // A session that nobody finds again would be for nothing.
        state.machine.log.commit();
        id
    };
    let session = Session { client_id: &id, clean_start: false, expiry: options.session_expiry };
    let mut delay = *DELAYS.start();
    loop {
        let why = match connect(target, session).await {
            Ok(connection) => {
                delay = *DELAYS.start();
                link.lock().machine.connected(connection.terms(), link.now());
                let why = link.drive(connection).await;
                link.lock().machine.lost(&why);
                why
            }
            Err(why) => why,
        };
        if let Some(failure) = link.lock().machine.failure() {
            return failure;
        }
        // Without what was asked for, trying again would only send the same messages again.
        if matches!(why.kind(), ErrorKind::Closed | ErrorKind::Unsupported) {
            return why;
        }
        tracing::info!(%why, ?delay, "the outbox waits before it connects again");
        let until = tokio::time::Instant::now() + delay;
        delay = (delay * 2).min(*DELAYS.end());
        // Records go on being committed meanwhile.
        loop {
            let closing = link.lock().closing;
            if closing.is_some_and(|at| at <= tokio::time::Instant::now()) {
                return closed();
            }
            link.turn_without_connection();
            let next = closing.map_or(until, |at| at.min(until));
            tokio::select! {
                () = link.wake.0.notified() => {}
                () = tokio::time::sleep_until(next) => {
                    if next == until {
                        break;
                    }
                }
            }
        }
    }
}

/// The connection of one publisher, or of an outbox: closed when nobody has it any more.
pub(super) struct Open(pub(super) Arc<Sender>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.close(super::link::CLOSE_TIMEOUT);
    }
}

pub(super) struct MqttPublisher {
    pub(super) open: Arc<Open>,
    pub(super) qos: Qos,
    pub(super) capabilities: Arc<Capabilities>,
}

/// Whether one more has room.
fn has_room(machine: &Outgoing) -> bool {
    let (messages, bytes) = machine.backlog();
    let most = MAX_BACKLOG[usize::from(machine.log.is_durable())];
    messages < most && bytes + machine.out.len() < MAX_BACKLOG_BYTES
}

impl Publisher for MqttPublisher {
    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let mut state = self.open.0.lock();
        if let Some(why) = &state.ended {
            return Poll::Ready(Err(why.clone()));
        }
        if state.closing.is_some() {
            return Poll::Ready(Err(closed()));
        }
        if has_room(&state.machine) {
            return Poll::Ready(Ok(()));
        }
        state.wait(cx);
        Poll::Pending
    }

    fn publish(&self, envelope: Envelope) -> Ticket {
        self.publish_batch(vec![envelope]).pop().unwrap_or_else(|| Ticket::refused(closed()))
    }

    fn publish_batch(&self, envelopes: Vec<Envelope>) -> Vec<Ticket> {
        let now = self.open.0.now();
        let encoded: Vec<_> =
            envelopes.iter().map(|one| (envelope::encode(one, self.qos), one.expires)).collect();
        let mut tickets = Vec::with_capacity(encoded.len());
        let mut state = self.open.0.lock();
        let over = state.ended.clone().or_else(|| state.closing.map(|_| closed()));
        let refused = over.or_else(|| state.machine.log.admit().err()).or_else(|| {
            let text = "too much waits to be sent: wait for `poll_ready`";
            (!has_room(&state.machine)).then(|| Error::new(ErrorKind::Busy, NAME, text))
        });
        // All of a batch are taken when the first is: the caller has their memory already.
        for (publish, expires) in encoded {
            let largest = state.machine.maximum_packet_size();
            let fits = |publish: Publish| {
                // With room for a packet id and an expiry.
                if publish.encoded_len(Version::V5) as u64 + 8 <= u64::from(largest) {
                    return Ok(publish);
                }
                let text = format!("larger than {largest} bytes, the largest packet of the server");
                Err(Error::new(ErrorKind::TooLarge, NAME, text))
            };
            let publish = match &refused {
                Some(why) => Err(why.clone()),
                None => publish.and_then(fits),
            };
            tickets.push(match publish {
                Ok(publish) => {
                    let (resolver, ticket) = Ticket::pending();
                    state.machine.publish(publish, expires, resolver, now);
                    ticket
                }
                Err(why) => Ticket::refused(why),
            });
        }
        drop(state);
        self.open.0.poke();
        tickets
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }
}

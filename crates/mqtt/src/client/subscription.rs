//! Receiving: one connection, one subscription.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use postroad_core::mailbox::Window;
use postroad_core::retry::RetryPolicy;
use postroad_core::{
    AckSink, AckToken, Capabilities, Delivery, DrainReport, Error, ErrorKind, Outcome, Result, Settled,
    SubscribeOptions, Subscription, Timestamp,
};
use tokio::time::{Instant, Sleep};

use super::connection::{Connection, Session, Target, connect};
use super::incoming::{Given, Incoming};
use super::link::{CLOSE_TIMEOUT, Link, Machine, Wake};
use super::log::{Log, NoLog, Record};
use super::{NAME, closed, envelope, lost, lower_qos, refusal};
use crate::codec::Subscription as FilterOptions;
use crate::codec::{
    Disconnect, Packet, PacketId, Qos, ReasonCode, RetainHandling, Subscribe, Unsubscribe, Utf8,
};

/// Longer than anybody waits, and short enough for every timer.
const FAR: Duration = Duration::from_secs(365 * 24 * 3600);
/// How long the server may take to answer SUBSCRIBE.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(10);

impl Machine for Incoming {
    fn packet(&mut self, packet: Packet, now: Timestamp) -> Result<()> {
        Self::packet(self, packet, now)
    }

    fn advance(&mut self, now: Timestamp) {
        self.tick(now);
        Self::advance(self);
    }

    fn deadline(&self) -> Option<Timestamp> {
        self.next_deadline()
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
        !self.is_settling()
    }

    fn wants_proof(&self) -> bool {
        !self.unproven.is_empty()
    }

    fn ping_sent(&mut self) {
        self.proving.append(&mut self.unproven);
    }

    fn ping_answered(&mut self) {
        for answer in self.proving.drain(..) {
            answer.resolve(Ok(()));
        }
    }
}

pub(super) type Receiver = Link<Incoming>;

/// Connects and subscribes. `log` is that of an inbox.
pub(super) async fn open(
    target: &Target,
    wanted: &SubscribeOptions,
    client_id: &str,
    log: Option<(Box<dyn Log>, Vec<Record>)>,
    wake: Arc<Wake>,
) -> Result<Arc<Receiver>> {
    let options = &target.options;
    let filter = envelope::filter(&wanted.filter)?;
    let named = wanted.name.is_some();
    let expiry = if named { options.session_expiry } else { 0 };
    let session = Session { client_id, clean_start: !named, expiry };
    let mut connection = connect(target, session).await?;

    let policy =
        RetryPolicy { ack_wait: wanted.ack_wait, backoff: wanted.backoff.clone(), max_deliveries: None };
    let window = Window { count: wanted.window.count.get(), bytes: wanted.window.bytes };
    let (log, records) = log.unwrap_or_else(|| (Box::new(NoLog), Vec::new()));
    let filter_of_core = wanted.filter.clone();
    let machine = Incoming::new(log, records, filter_of_core, named, policy, window, options);
    let link = Link::new(machine, wake);
    let is_new = !connection.connack.session_present;
    link.lock().machine.connected(connection.version, !is_new);

    let mut subscription = FilterOptions::new(filter.clone(), options.qos);
    // What was published before is not new. 3.1.1 cannot say it, so it is looked for when it comes.
    subscription.retain_handling = RetainHandling::DoNotSend;
    let subscribe = Subscribe { packet_id: PacketId::MIN, filters: vec![subscription], properties: None };
    let granted = tokio::time::timeout(SUBSCRIBE_TIMEOUT, ask(&mut connection, &link, subscribe)).await;
    let granted = granted.map_err(|_| lost(format!("no SUBACK in {SUBSCRIBE_TIMEOUT:?}"))).flatten();
    if let Err(why) = granted {
        if is_new && named {
            withdraw(&mut connection, filter).await;
        }
        return Err(why);
    }

    let driven = Arc::clone(&link);
    tokio::spawn(async move {
        let why = driven.drive(connection).await;
        driven.lock().machine.lost();
        driven.end(&why);
        // Verdicts on what an inbox holds count without a connection, too.
        loop {
            let over = {
                let state = driven.lock();
                state.closing.is_some()
                    || !state.machine.log.is_durable()
                    || state.machine.failure().is_some()
            };
            if over {
                return;
            }
            driven.wake.0.notified().await;
            driven.turn_without_connection();
        }
    });
    Ok(link)
}

/// A server that has granted less than was asked for would keep messages for nobody. Of a session that was there before,
/// what it had stays.
async fn withdraw(connection: &mut Connection, filter: Utf8) {
    let packets = [
        Packet::from(Unsubscribe { packet_id: PacketId::MIN, filters: vec![filter], properties: None }),
        Packet::from(Disconnect::new(ReasonCode::Success)),
    ];
    let mut bytes = BytesMut::new();
    for packet in packets {
        // The filter was encoded before.
        let _ = packet.encode(connection.version, &mut bytes);
    }
    // If the connection is gone, there may be nothing to withdraw.
    let _ = connection.write(bytes).await;
}

/// Sends SUBSCRIBE and waits for SUBACK; messages of a session that goes on may come before it.
async fn ask(connection: &mut Connection, link: &Receiver, subscribe: Subscribe) -> Result<()> {
    let wanted = subscribe.filters.first().map_or(Qos::AtMostOnce, |filter| filter.qos);
    let mut bytes = BytesMut::new();
    let encoded = Packet::from(subscribe).encode(connection.version, &mut bytes);
    encoded.map_err(|why| Error::new(ErrorKind::Config, NAME, why.to_string()))?;
    connection.write(bytes).await?;
    loop {
        match connection.packet().await? {
            Packet::Suback(suback) => {
                let reason = suback.reasons.first().copied();
                let reason = reason.ok_or_else(|| lost("the server sent a SUBACK for nothing"))?;
                if reason.is_error() {
                    let text = suback.properties.as_ref().and_then(|all| all.reason_string.as_ref());
                    return Err(refusal(reason, text.map(Utf8::as_str)));
                }
                match Qos::from_u8(reason as u8) {
                    Some(granted) if granted < wanted => return Err(lower_qos(granted)),
                    _ => {}
                }
                return Ok(());
            }
            Packet::Disconnect(disconnect) => return Err(refusal(disconnect.reason, None)),
            Packet::Pingresp => {}
            packet => {
                let now = link.now();
                let mut state = link.lock();
                state.machine.packet(packet, now)?;
                state.machine.flush();
            }
        }
    }
}

/// What the tokens of one subscription speak to. Their tag is the number of the message here, their epoch the attempt.
struct Sink {
    link: Arc<Receiver>,
}

impl AckSink for Sink {
    fn settle(&self, tag: u64, epoch: u32, outcome: Outcome) -> Settled {
        let now = self.link.now();
        let mut state = self.link.lock();
        let gone = state.closing.is_some() || (state.ended.is_some() && !state.machine.log.is_durable());
        if gone {
            let text = "its subscription or its connection has ended: the message comes again";
            return Settled::failed(Error::new(ErrorKind::StaleToken, NAME, text));
        }
        let (resolver, settled) = Settled::pending();
        state.machine.settle(tag, epoch, outcome, resolver, now);
        drop(state);
        self.link.poke();
        settled
    }

    fn extend(&self, tag: u64, epoch: u32) -> Settled {
        let now = self.link.now();
        self.link.lock().machine.extend(tag, epoch, now).into()
    }

    fn dropped(&self, tag: u64, epoch: u32) {
        if self.link.lock().closing.is_none() {
            tracing::debug!(tag, epoch, "a delivery was dropped without a verdict: it comes again");
        }
    }
}

pub(super) struct MqttSubscription {
    sink: Arc<Sink>,
    /// The same, as tokens hold it.
    tokens: Arc<dyn AckSink>,
    capabilities: Arc<Capabilities>,
    given: Vec<Given>,
    drain: Option<Drain>,
}

struct Drain {
    deadline: Timestamp,
    /// Verdicts before it began.
    settled_before: u64,
    timer: Option<Pin<Box<Sleep>>>,
    report: Option<DrainReport>,
}

impl MqttSubscription {
    pub(super) fn new(link: Arc<Receiver>, capabilities: Arc<Capabilities>) -> Self {
        let sink = Arc::new(Sink { link });
        let tokens = Arc::clone(&sink) as Arc<dyn AckSink>;
        Self { sink, tokens, capabilities, given: Vec::new(), drain: None }
    }
}

/// The consumer is gone: its tokens are stale, and another one may have its place.
pub(super) fn end(link: &Receiver) {
    let now = link.now();
    let log = {
        let mut state = link.lock();
        if state.closing.is_some() {
            return;
        }
        state.closing = Some(Instant::now() + CLOSE_TIMEOUT);
        state.machine.detach(now);
        // What has a verdict gets its answer now: the records go with the log to whoever comes next.
        state.machine.log.commit();
        Incoming::advance(&mut state.machine);
        state.machine.retire()
    };
    drop(log);
    link.end(&closed());
    link.poke();
}

impl Subscription for MqttSubscription {
    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Vec<Delivery>,
        max: usize,
    ) -> Poll<Result<usize>> {
        if self.drain.is_some() {
            return Poll::Ready(Err(Error::new(ErrorKind::Closed, NAME, "the subscription was drained")));
        }
        let link = &self.sink.link;
        let (now, received_at) = (link.now(), Timestamp::now());
        {
            let mut state = link.lock();
            if let Some(why) = state.machine.errors.pop_front() {
                return Poll::Ready(Err(why));
            }
            if let Some(why) = &state.ended {
                return Poll::Ready(Err(why.clone()));
            }
            if max == 0 {
                return Poll::Ready(Ok(0));
            }
            state.machine.take(now, max, &mut self.given);
            if self.given.is_empty() {
                state.wait(cx);
                return Poll::Pending;
            }
        }
        // The lease has an end that the driver must know.
        link.poke();
        let count = self.given.len();
        for given in self.given.drain(..) {
            out.push(Delivery {
                envelope: given.envelope,
                attempt: given.attempt,
                redelivered: given.redelivered,
                position: None,
                received_at,
                token: AckToken::new(Arc::clone(&self.tokens), given.number, given.attempt),
            });
        }
        Poll::Ready(Ok(count))
    }

    fn begin_drain(&mut self, deadline: Timestamp) {
        match &mut self.drain {
            Some(drain) => {
                drain.deadline = deadline;
                drain.timer = None;
            }
            None => {
                let (_, settled_before) = self.sink.link.lock().machine.in_flight();
                self.drain = Some(Drain { deadline, settled_before, timer: None, report: None });
            }
        }
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<Result<DrainReport>> {
        if self.drain.is_none() {
            self.begin_drain(Timestamp::from_millis(u64::MAX));
        }
        loop {
            let Some(drain) = &mut self.drain else { return Poll::Pending };
            if let Some(report) = drain.report {
                return Poll::Ready(Ok(report));
            }
            let clock = Timestamp::now();
            let (in_flight, settled, settling, gone) = {
                let mut state = self.sink.link.lock();
                state.wait(cx);
                let (in_flight, settled) = state.machine.in_flight();
                (in_flight, settled, state.machine.is_settling(), state.ended.is_some())
            };
            let late = clock >= drain.deadline;
            if (in_flight == 0 && !settling) || late || gone {
                drain.report = Some(DrainReport {
                    settled: settled - drain.settled_before,
                    returned: in_flight,
                    timed_out: late && in_flight > 0,
                });
                end(&self.sink.link);
                continue;
            }
            let wait = drain.deadline.since(clock).min(FAR).max(Duration::from_millis(1));
            let at = Instant::now() + wait;
            let timer = drain.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
            timer.as_mut().reset(at);
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }
}

impl Drop for MqttSubscription {
    fn drop(&mut self) {
        end(&self.sink.link);
    }
}

//! Receiving from the engine of this process.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};

use postroad_core::mailbox::Verdict;
use postroad_core::{
    AckSink, AckToken, Capabilities, Delivery, DrainReport, Envelope, Error, ErrorKind, Result, Subscription,
    Timestamp,
};

use super::error::{error, failed};
use super::sink::{Link, Sink, Tokens};
use super::{Shared, event};
use crate::consumer::Delivered;
use crate::subscription::Note;

pub(super) struct EngineSubscription {
    /// An engine that belongs to the backend stays open as long as this is there.
    _shared: Arc<Shared>,
    sink: Arc<Sink>,
    tokens: Arc<dyn AckSink>,
    capabilities: Arc<Capabilities>,
    window_bytes: u64,
    /// To be said before anything else.
    errors: VecDeque<Error>,
    drain: Option<Drain>,
    delivered: Vec<Delivered>,
    envelopes: VecDeque<Arc<Envelope>>,
}

struct Drain {
    deadline: Timestamp,
    in_flight: u64,
    settled_before: u64,
    /// For which deadline the alarm is set.
    alarm: Option<Timestamp>,
    report: Option<DrainReport>,
}

impl EngineSubscription {
    pub(super) fn new(
        shared: Arc<Shared>,
        sink: Arc<Sink>,
        capabilities: Arc<Capabilities>,
        window_bytes: u64,
    ) -> Self {
        Self {
            _shared: shared,
            tokens: Arc::new(Tokens(Arc::clone(&sink))),
            sink,
            capabilities,
            window_bytes,
            errors: VecDeque::new(),
            drain: None,
            delivered: Vec::new(),
            envelopes: VecDeque::new(),
        }
    }

    /// Appends what is there and fits the window, up to `max` in all. What has expired is discarded instead.
    fn take(&mut self, link: &Link, out: &mut Vec<Delivery>, max: usize) -> Result<usize> {
        let received_at = Timestamp::from_millis(link.engine.now());
        let before = out.len();
        let mut discarded = false;
        while out.len() - before < max {
            let envelopes = &mut self.envelopes;
            let mut weigh = |delivered: &Delivered| {
                let envelope = event::decode(delivered.stream.topic(), &delivered.event);
                let bytes = envelope.len_bytes() as u64;
                envelopes.push_back(Arc::new(envelope));
                bytes
            };
            let room = max - (out.len() - before);
            let taken = link.consumer.take_weighed(room, self.window_bytes, &mut weigh, &mut self.delivered);
            if taken == 0 {
                self.envelopes.clear();
                break;
            }
            for (Delivered { stream, attempt, event }, envelope) in
                self.delivered.drain(..).zip(self.envelopes.drain(..))
            {
                if envelope.is_expired(received_at) {
                    let run = (event.seq, event.seq);
                    if let Err(why) = link.consumer.settle_attempt(&stream, run, attempt, &Verdict::Discard) {
                        tracing::debug!(%why, "an expired message could not be discarded; it comes again");
                    }
                    discarded = true;
                    continue;
                }
                let tag = self.sink.tag(&stream, event.seq)?;
                out.push(Delivery {
                    envelope,
                    attempt,
                    redelivered: attempt > 1,
                    position: Some(event.seq),
                    received_at,
                    token: AckToken::new(Arc::clone(&self.tokens), tag, attempt),
                });
            }
        }
        if discarded {
            link.engine.flush(false);
        }
        Ok(out.len() - before)
    }

    /// What happened to the subscription, as errors. A gap is never silent.
    fn hear(&mut self, link: &Link) {
        for note in link.consumer.notes() {
            let (kind, text) = match note {
                Note::Lagged(topic, lost) => (
                    ErrorKind::Transient,
                    format!("retention removed {lost} messages of {topic} that were not settled"),
                ),
                Note::Lagging(topic, lag) => (
                    ErrorKind::Transient,
                    format!("{lag} messages of {topic} wait: settle faster, or add consumers"),
                ),
                Note::Detached(topic) => {
                    self.sink.end();
                    (
                        ErrorKind::Busy,
                        format!("the subscription fell behind its limit on {topic} and was ended"),
                    )
                }
                Note::Corrupt(topic, what) => (ErrorKind::Corrupt, format!("{topic}: {what}")),
            };
            self.errors.push_back(error(kind, text));
        }
        if let Some(why) = link.engine.failure() {
            self.sink.end();
            self.errors.push_back(failed(&why));
        }
    }
}

impl Subscription for EngineSubscription {
    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Vec<Delivery>,
        max: usize,
    ) -> Poll<Result<usize>> {
        if self.drain.is_some() {
            return Poll::Ready(Err(error(ErrorKind::Closed, "the subscription was drained")));
        }
        // Before looking, so that nothing happens unseen in between.
        self.sink.wait(cx.waker());
        let link = self.sink.link();
        if let Some(link) = &link {
            self.hear(link);
        }
        if let Some(error) = self.errors.pop_front() {
            return Poll::Ready(Err(error));
        }
        let Some(link) = link else { return Poll::Ready(Err(self.sink.over())) };
        if max == 0 {
            return Poll::Ready(Ok(0));
        }
        match self.take(&link, out, max) {
            // Reading may have found damage.
            Ok(0) => {
                match self.sink.link().map(|link| self.hear(&link)).and_then(|()| self.errors.pop_front()) {
                    Some(error) => Poll::Ready(Err(error)),
                    None => Poll::Pending,
                }
            }
            other => Poll::Ready(other),
        }
    }

    fn begin_drain(&mut self, deadline: Timestamp) {
        match &mut self.drain {
            Some(drain) => drain.deadline = deadline,
            None => {
                let in_flight = self.sink.link().map_or(0, |link| link.consumer.usage().count);
                let drain = Drain {
                    deadline,
                    in_flight: in_flight + self.sink.settling_count(),
                    settled_before: self.sink.settled_count(),
                    alarm: None,
                    report: None,
                };
                self.drain = Some(drain);
            }
        }
        self.sink.alert();
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<Result<DrainReport>> {
        if self.drain.is_none() {
            self.begin_drain(Timestamp::from_millis(u64::MAX));
        }
        let Some(drain) = &mut self.drain else { return Poll::Pending };
        if let Some(report) = drain.report {
            return Poll::Ready(Ok(report));
        }
        self.sink.wait(cx.waker());
        let link = self.sink.link();
        // In this order: a verdict goes from the one to the other.
        let held = link.as_ref().map_or(0, |link| link.consumer.usage().count);
        let open = held + self.sink.settling_count();
        let mut late = false;
        if open > 0
            && let Some(Link { engine, .. }) = &link
            && engine.failure().is_none()
        {
            late = engine.now() >= drain.deadline.as_millis();
            if !late {
                if drain.alarm != Some(drain.deadline) && drain.deadline.as_millis() < u64::MAX {
                    drain.alarm = Some(drain.deadline);
                    engine.notify_at(drain.deadline.as_millis(), &self.sink.signal());
                }
                return Poll::Pending;
            }
        }
        let settled = (self.sink.settled_count() - drain.settled_before).min(drain.in_flight);
        let report = DrainReport { settled, returned: drain.in_flight - settled, timed_out: late };
        drain.report = Some(report);
        self.sink.end();
        Poll::Ready(Ok(report))
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }
}

impl Drop for EngineSubscription {
    fn drop(&mut self) {
        self.sink.end();
    }
}

//! Receiving: one connection, one subscription.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use postroad_core::{
    AckSink, AckToken, Capabilities, Delivery, DrainReport, Envelope, Error, ErrorKind as CoreKind, Result,
    Subject, Subscription, Timestamp,
};
use tokio::time::Sleep;

use super::sink::Sink;
use super::{NAME, envelope, error};
use crate::client::{Event, Events, News, Note};

/// Longer than anybody waits, and short enough for every timer.
const FAR: Duration = Duration::from_secs(365 * 24 * 3600);

pub(super) struct JsonLogSubscription {
    /// `None` when it is over.
    events: Option<Events>,
    sink: Arc<Sink>,
    /// The same, as tokens hold it.
    tokens: Arc<dyn AckSink>,
    capabilities: Arc<Capabilities>,
    news: News,
    /// Decoded, and waiting for room in the window.
    held: Option<(Event, Arc<Envelope>)>,
    /// To be said before anything else.
    errors: VecDeque<Error>,
    drain: Option<Drain>,
}

struct Drain {
    deadline: Timestamp,
    /// Settled before it began.
    settled_before: u64,
    timer: Option<Pin<Box<Sleep>>>,
    report: Option<DrainReport>,
}

impl JsonLogSubscription {
    pub(super) fn new(events: Events, sink: Arc<Sink>, capabilities: Arc<Capabilities>) -> Self {
        Self {
            events: Some(events),
            tokens: Arc::clone(&sink) as Arc<dyn AckSink>,
            sink,
            capabilities,
            news: News::default(),
            held: None,
            errors: VecDeque::new(),
            drain: None,
        }
    }

    /// Gives back what is in flight; nothing comes any more.
    fn end(&mut self) {
        // First the tokens, so that none of them is sent for what the server has taken back.
        self.sink.close();
        self.events = None;
        self.news.events.clear();
        self.held = None;
    }

    /// Appends what is here and fits the window. `None` when the window is full.
    fn hand_out(&mut self, cx: &Context<'_>, out: &mut Vec<Delivery>, max: usize) -> Option<usize> {
        let (now, received_at) = (Instant::now(), Timestamp::now());
        let mut n = 0;
        while n < max {
            let next = match self.held.take() {
                Some(held) => Some(held),
                None => self.news.events.pop_front().and_then(|event| self.decode(event, received_at)),
            };
            let Some((event, envelope)) = next else {
                if self.news.events.is_empty() {
                    break;
                }
                continue;
            };
            if self.sink.is_over(&event, now) {
                continue;
            }
            let Some(tag) = self.sink.lend(cx, &event, envelope.len_bytes() as u64) else {
                self.held = Some((event, envelope));
                return if n == 0 { None } else { Some(n) };
            };
            out.push(Delivery {
                envelope,
                attempt: event.attempt,
                redelivered: event.attempt > 1,
                position: Some(event.seq),
                received_at,
                token: AckToken::new(Arc::clone(&self.tokens), tag, self.sink.epoch()),
            });
            n += 1;
        }
        Some(n)
    }

    fn decode(&mut self, event: Event, now: Timestamp) -> Option<(Event, Arc<Envelope>)> {
        match Subject::new(Arc::clone(&event.topic)) {
            Ok(subject) => {
                let envelope = envelope::decode(subject, event.seq, &event.json, now);
                Some((event, Arc::new(envelope)))
            }
            Err(why) => {
                // Only a broker with other rules: the event stays un-acked, and somebody hears of it.
                let text = format!("topic {:?} of event {}: {why}", event.topic, event.seq);
                self.errors.push_back(Error::new(CoreKind::Corrupt, NAME, text));
                None
            }
        }
    }
}

/// A gap is never silent.
fn note_error(note: Note) -> Error {
    let kind = match note.code.as_str() {
        "corrupt" => CoreKind::Corrupt,
        "detached" => CoreKind::Busy,
        // The subscription goes on behind the gap.
        _ => CoreKind::Transient,
    };
    Error::new(kind, NAME, format!("{} {}: {}", note.code, note.topic, note.text))
}

fn over() -> Error {
    Error::new(CoreKind::Closed, NAME, "the subscription is over")
}

impl Subscription for JsonLogSubscription {
    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Vec<Delivery>,
        max: usize,
    ) -> Poll<Result<usize>> {
        if self.drain.is_some() {
            return Poll::Ready(Err(Error::new(CoreKind::Closed, NAME, "the subscription was drained")));
        }
        loop {
            if let Some(error) = self.errors.pop_front() {
                return Poll::Ready(Err(error));
            }
            let Some(events) = &mut self.events else { return Poll::Ready(Err(over())) };
            if max == 0 {
                return Poll::Ready(Ok(0));
            }
            // What waits here is handed out before more is taken; the end and the notes are always looked at.
            let waiting = self.held.is_some() || !self.news.events.is_empty();
            let polled = events.poll_news(cx, if waiting { 0 } else { max }, &mut self.news);
            self.errors.extend(self.news.notes.drain(..).map(note_error));
            if let Some(why) = self.news.ended.take() {
                self.end();
                self.errors.push_back(error(&why));
                continue;
            }
            if !self.errors.is_empty() {
                continue;
            }
            if polled.is_pending() && !waiting {
                return Poll::Pending;
            }
            match self.hand_out(cx, out, max) {
                // The window is full: its sink wakes.
                None => return Poll::Pending,
                // All of it had waited too long.
                Some(0) => {}
                Some(n) => return Poll::Ready(Ok(n)),
            }
        }
    }

    fn begin_drain(&mut self, deadline: Timestamp) {
        match &mut self.drain {
            Some(drain) => {
                drain.deadline = deadline;
                drain.timer = None;
            }
            None => {
                let settled_before = self.sink.in_flight(None, Instant::now()).settled;
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
            let (now, clock) = (Instant::now(), Timestamp::now());
            let in_flight = self.sink.in_flight(Some(cx), now);
            // The connection may end first.
            let mut news = News::default();
            let gone = match &mut self.events {
                // Until it waits: a note is taken at once and says nothing to a drain.
                Some(events) => {
                    while news.ended.is_none() && events.poll_news(cx, 0, &mut news).is_ready() {}
                    news.ended.is_some()
                }
                None => true,
            };
            let late = clock >= drain.deadline;
            if in_flight.count == 0 || late || gone {
                drain.report = Some(DrainReport {
                    settled: in_flight.settled - drain.settled_before,
                    returned: in_flight.count,
                    timed_out: late && in_flight.count > 0,
                });
                self.end();
                continue;
            }
            // The deadline, or the end of the last lease.
            let wait = drain.deadline.since(clock).min(FAR);
            let wait = in_flight.until.map_or(wait, |until| wait.min(until.saturating_duration_since(now)));
            let at = tokio::time::Instant::from_std(now + wait.max(Duration::from_millis(1)));
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

impl Drop for JsonLogSubscription {
    fn drop(&mut self) {
        self.end();
    }
}

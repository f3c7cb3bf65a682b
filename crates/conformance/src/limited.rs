//! A backend that can do less than the one inside, and says so.

use std::sync::Arc;
use std::task::{Context, Poll};

use postroad_core::{
    AckSink, AckToken, Backend, BoxFuture, Capabilities, Delivery, DrainReport, Envelope, Error, ErrorKind,
    Filter, Outcome, Publisher, Result, Settled, StartAt, SubscribeOptions, Subscription, Ticket, Timestamp,
};

use crate::tokens::Tokens;

/// `B` with some abilities taken away: they are declared absent, and asking for them is `Unsupported`. With
/// [`silent`](Self::silent) asking for them seems to work, which is a lie that the negative twins catch.
/// Dedup cannot be taken away like this.
pub struct Limited<B> {
    inner: Arc<B>,
    rules: Arc<Rules>,
}

struct Rules {
    can: Capabilities,
    name: &'static str,
    silent: bool,
}

impl<B: Backend> Limited<B> {
    /// What `inner` does of this. Abilities that `inner` lacks stay absent only if they are so in `can`.
    pub fn new(inner: B, can: Capabilities) -> Self {
        let name = inner.name();
        Self { inner: Arc::new(inner), rules: Arc::new(Rules { can, name, silent: false }) }
    }

    /// The same, but asking for what is absent is not refused.
    pub fn silent(self) -> Self {
        let Rules { can, name, .. } = &*self.rules;
        let rules = Rules { can: can.clone(), name, silent: true };
        Self { inner: self.inner, rules: Arc::new(rules) }
    }
}

impl Rules {
    fn refuse(&self, what: &str) -> Result<()> {
        if self.silent {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Unsupported, self.name, format!("{what} cannot be had here")))
    }

    fn subscribe(&self, options: &mut SubscribeOptions) -> Result<()> {
        let can = &self.can;
        if options.name.is_some() && !can.named.is_there() {
            self.refuse("a name")?;
            (options.name, options.group) = (None, false);
        }
        if options.group && !can.groups.is_there() {
            self.refuse("a group")?;
            options.group = false;
        }
        if options.max_deliveries.is_some() && !can.dead_letter.is_there() {
            self.refuse("a maximum of deliveries")?;
            options.max_deliveries = None;
        }
        let (what, support) = match options.from {
            StartAt::New => return Ok(()),
            StartAt::First => ("a start at the first", can.replay.first),
            StartAt::Last => ("a start at the last", can.replay.last),
            StartAt::Sequence(_) => ("a start at a position", can.replay.sequence),
            StartAt::Time(_) => ("a start at a time", can.replay.time),
        };
        if !support.is_there() {
            self.refuse(what)?;
            options.from = StartAt::New;
        }
        Ok(())
    }

    fn publish(&self, envelope: &mut Envelope) -> Result<()> {
        if envelope.priority != 0 && !self.can.priority.is_there() {
            self.refuse("a priority")?;
            envelope.priority = 0;
        }
        if !envelope.headers.is_empty() && !self.can.headers.is_there() {
            self.refuse("headers")?;
            envelope.headers = postroad_core::Headers::new();
        }
        Ok(())
    }

    fn settle(&self, outcome: &Outcome) -> Result<()> {
        match outcome {
            Outcome::Retry { after: None } if !self.can.nack.is_there() => self.refuse("retry"),
            Outcome::Retry { after: Some(_) } if !self.can.nack_delay.is_there() => {
                self.refuse("retry with a delay")
            }
            Outcome::DeadLetter { .. } if !self.can.dead_letter.is_there() => self.refuse("a dead letter"),
            _ => Ok(()),
        }
    }
}

impl<B: Backend> Backend for Limited<B> {
    fn name(&self) -> &'static str {
        self.rules.name
    }

    fn publisher(&self) -> BoxFuture<'_, Result<Arc<dyn Publisher>>> {
        Box::pin(async {
            let inner = self.inner.publisher().await?;
            Ok(Arc::new(LimitedPublisher { inner, rules: Arc::clone(&self.rules) }) as Arc<dyn Publisher>)
        })
    }

    fn subscribe(&self, mut options: SubscribeOptions) -> BoxFuture<'_, Result<Box<dyn Subscription>>> {
        Box::pin(async move {
            self.rules.subscribe(&mut options)?;
            let inner = self.inner.subscribe(options).await?;
            let sink = Arc::new(LimitedSink { tokens: Tokens::default(), rules: Arc::clone(&self.rules) });
            Ok(Box::new(LimitedSubscription { inner, sink }) as Box<dyn Subscription>)
        })
    }

    fn forget(&self, filter: Filter, name: Arc<str>) -> BoxFuture<'_, Result<()>> {
        self.inner.forget(filter, name)
    }

    fn capabilities(&self) -> &Capabilities {
        &self.rules.can
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        self.inner.close()
    }
}

struct LimitedPublisher {
    inner: Arc<dyn Publisher>,
    rules: Arc<Rules>,
}

impl Publisher for LimitedPublisher {
    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.inner.poll_ready(cx)
    }

    fn publish(&self, mut envelope: Envelope) -> Ticket {
        match self.rules.publish(&mut envelope) {
            Ok(()) => self.inner.publish(envelope),
            Err(why) => Ticket::refused(why),
        }
    }

    fn capabilities(&self) -> &Capabilities {
        &self.rules.can
    }
}

struct LimitedSink {
    tokens: Tokens,
    rules: Arc<Rules>,
}

impl AckSink for LimitedSink {
    fn settle(&self, tag: u64, _: u32, outcome: Outcome) -> Settled {
        let Some((id, token)) = self.tokens.take(tag) else { return Settled::ok() };
        match self.rules.settle(&outcome) {
            Err(why) => {
                // The lease goes on, and ends.
                self.tokens.put_back(tag, id, token);
                Settled::failed(why)
            }
            Ok(()) => token.settle(outcome),
        }
    }

    fn extend(&self, tag: u64, _: u32) -> Settled {
        if !self.rules.can.extend.is_there() {
            return self.rules.refuse("a longer lease").into();
        }
        self.tokens.extend(tag)
    }
}

struct LimitedSubscription {
    inner: Box<dyn Subscription>,
    sink: Arc<LimitedSink>,
}

impl Subscription for LimitedSubscription {
    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Vec<Delivery>,
        max: usize,
    ) -> Poll<Result<usize>> {
        let from = out.len();
        let filled = self.inner.poll_fill(cx, out, max);
        for delivery in &mut out[from..] {
            let sink = Arc::clone(&self.sink) as Arc<dyn AckSink>;
            self.sink.tokens.wrap(delivery, |tag, epoch| AckToken::new(sink, tag, epoch));
        }
        filled
    }

    fn begin_drain(&mut self, deadline: Timestamp) {
        self.inner.begin_drain(deadline);
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<Result<DrainReport>> {
        self.inner.poll_drain(cx)
    }

    fn capabilities(&self) -> &Capabilities {
        &self.sink.rules.can
    }
}

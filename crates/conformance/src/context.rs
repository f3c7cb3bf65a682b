//! What a case has at hand: its environment, and the waiting that every case does.

use std::sync::Arc;
use std::time::Duration;

use postroad_core::{
    Backend, Capabilities, Delivery, Envelope, ErrorKind, Filter, Outcome, Publisher, PublisherExt, Receipt,
    Settled, Subject, SubscribeOptions, Subscription, SubscriptionExt, Ticket, Timestamp,
};
use tokio::time::{Instant, timeout};

use crate::harness::{Chaos, Environment, Failure, Tempo};

/// What a case ends with.
pub type CaseResult<T = ()> = Result<T, Failure>;

/// Fails the case unless the condition holds.
macro_rules! ensure {
    ($holds:expr, $($text:tt)+) => {
        if !$holds {
            return Err($crate::Failure::new(format!($($text)+)));
        }
    };
}

/// Fails the case unless both are equal.
macro_rules! ensure_eq {
    ($left:expr, $right:expr, $($text:tt)+) => {{
        let (left, right) = (&$left, &$right);
        if left != right {
            return Err($crate::Failure::new(format!(
                "{}: got {left:?}, expected {right:?}", format_args!($($text)+)
            )));
        }
    }};
}

pub(crate) use {ensure, ensure_eq};

/// What a case is given. Shared with the tasks that it spawns.
pub struct Context {
    pub(crate) environment: Box<dyn Environment>,
    /// What the backend says that it can do.
    pub can: Capabilities,
    /// How long to wait.
    pub tempo: Tempo,
    /// Of everything random in the case.
    pub seed: u64,
}

impl Context {
    /// A client of its own.
    pub async fn connect(&self) -> CaseResult<Arc<dyn Backend>> {
        self.in_time("connecting", self.environment.connect()).await?
    }

    /// A subject of the case.
    pub fn subject(&self, name: &str) -> Subject {
        let text = format!("{}/{name}", self.environment.prefix());
        Subject::new(text.as_str()).unwrap_or_else(|why| panic!("{text}: {why}"))
    }

    /// A filter of the case; wildcards are allowed.
    pub fn filter(&self, name: &str) -> Filter {
        let text = format!("{}/{name}", self.environment.prefix());
        text.parse().unwrap_or_else(|why| panic!("{text}: {why}"))
    }

    /// New messages of `name`, with the defaults of [`SubscribeOptions::new`].
    pub fn options(&self, name: &str) -> SubscribeOptions {
        SubscribeOptions::new(self.filter(name))
    }

    /// Like [`options`](Self::options), with a lease that cases wait out.
    pub fn leased(&self, name: &str) -> SubscribeOptions {
        self.options(name).ack_wait(self.tempo.lease)
    }

    /// A message to `name`.
    pub fn message(&self, name: &str, payload: impl Into<bytes::Bytes>) -> Envelope {
        Envelope::new(self.subject(name), payload)
    }

    /// What may be done to the broker.
    pub fn chaos(&self) -> CaseResult<&dyn Chaos> {
        self.environment
            .chaos()
            .ok_or_else(|| Failure::new("the harness declares chaos that its environment does not have"))
    }

    /// The time on the backend's clock.
    pub fn now(&self) -> Timestamp {
        self.environment.now()
    }

    /// Waits, but not longer than the case's patience.
    pub async fn in_time<T>(&self, what: &str, future: impl Future<Output = T>) -> CaseResult<T> {
        let patience = self.tempo.patience;
        timeout(patience, future)
            .await
            .map_err(|_| Failure::new(format!("{what}: no answer in {patience:?}")))
    }

    /// A publisher.
    pub async fn publisher(&self, backend: &Arc<dyn Backend>) -> CaseResult<Arc<dyn Publisher>> {
        Ok(self.in_time("making a publisher", backend.publisher()).await??)
    }

    /// A subscription. A place that another consumer has is waited for: its end may not have been noticed yet.
    pub async fn subscribe(
        &self,
        backend: &Arc<dyn Backend>,
        options: SubscribeOptions,
    ) -> CaseResult<Box<dyn Subscription>> {
        let until = Instant::now() + self.tempo.patience;
        loop {
            match self.in_time("subscribing", backend.subscribe(options.clone())).await? {
                Err(why) if why.kind() == ErrorKind::Busy && Instant::now() < until => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                other => return Ok(other?),
            }
        }
    }

    /// Waits for the answer to a publish.
    pub async fn receipt(&self, ticket: Ticket) -> CaseResult<Receipt> {
        self.in_time("a publish", ticket).await
    }

    /// Publishes; the backend must take it. Gives its position, where there are positions.
    pub async fn send(&self, publisher: &Arc<dyn Publisher>, envelope: Envelope) -> CaseResult<Option<u64>> {
        self.in_time("room for a publish", publisher.ready()).await??;
        Ok(self.receipt(publisher.publish(envelope)).await?.into_result()?)
    }

    /// Publishes `texts`, one after the other.
    pub async fn send_all(
        &self,
        publisher: &Arc<dyn Publisher>,
        name: &str,
        texts: impl IntoIterator<Item = String>,
    ) -> CaseResult {
        for text in texts {
            self.send(publisher, self.message(name, text)).await?;
        }
        Ok(())
    }

    /// The next delivery, which must come.
    pub async fn next(&self, subscription: &mut Box<dyn Subscription>) -> CaseResult<Delivery> {
        let patience = self.tempo.patience;
        match timeout(patience, subscription.next()).await {
            Ok(delivery) => Ok(delivery?),
            Err(_) => Err(Failure::new(format!("a delivery is missing: nothing came in {patience:?}"))),
        }
    }

    /// The next `count` deliveries, which must come.
    pub async fn take(
        &self,
        subscription: &mut Box<dyn Subscription>,
        count: usize,
    ) -> CaseResult<Vec<Delivery>> {
        let mut taken = Vec::with_capacity(count);
        while taken.len() < count {
            let had = taken.len();
            let next = self.next(subscription).await;
            taken.push(next.map_err(|why| Failure::new(format!("after {had} of {count}: {why}")))?);
        }
        Ok(taken)
    }

    /// The payloads of the next `count` deliveries as text; each is acked, and the ack must arrive.
    pub async fn take_texts(
        &self,
        subscription: &mut Box<dyn Subscription>,
        count: usize,
    ) -> CaseResult<Vec<String>> {
        let mut texts = Vec::with_capacity(count);
        while texts.len() < count {
            let had = texts.len();
            let next = self.next(subscription).await;
            let delivery =
                next.map_err(|why| Failure::new(format!("after {texts:?}, {had} of {count}: {why}")))?;
            texts.push(text(&delivery));
            self.ack(delivery).await?;
        }
        Ok(texts)
    }

    /// Nothing may come for a moment.
    pub async fn quiet(&self, subscription: &mut Box<dyn Subscription>) -> CaseResult {
        self.quiet_for(subscription, self.tempo.quiet).await
    }

    /// Nothing may come for so long.
    pub async fn quiet_for(&self, subscription: &mut Box<dyn Subscription>, time: Duration) -> CaseResult {
        match timeout(time, subscription.next()).await {
            Err(_) => Ok(()),
            Ok(Err(why)) => Err(why.into()),
            Ok(Ok(delivery)) => Err(Failure::new(format!(
                "a delivery that must not come: {:?} on {}, attempt {}",
                text(&delivery),
                delivery.envelope.subject,
                delivery.attempt
            ))),
        }
    }

    /// Waits for the answer to a verdict, which must be yes.
    pub async fn settled(&self, settled: Settled) -> CaseResult {
        Ok(self.in_time("a verdict", settled).await??)
    }

    /// Acks, and the ack must arrive.
    pub async fn ack(&self, delivery: Delivery) -> CaseResult {
        self.settled(delivery.ack()).await
    }

    /// Settles, and the verdict must arrive.
    pub async fn settle(&self, delivery: Delivery, outcome: Outcome) -> CaseResult {
        self.settled(delivery.settle(outcome)).await
    }

    /// Waits for the answer to a verdict, which must be an error of this kind.
    pub async fn refused(&self, settled: Settled, kind: ErrorKind) -> CaseResult {
        match self.in_time("a verdict", settled).await? {
            Err(why) if why.kind() == kind => Ok(()),
            other => Err(Failure::new(format!("a verdict must fail as {kind}, and is {other:?}"))),
        }
    }
}

/// The payload as text.
pub(crate) fn text(delivery: &Delivery) -> String {
    const SHOWN: usize = 200;
    let payload = &delivery.envelope.payload;
    String::from_utf8_lossy(&payload[..payload.len().min(SHOWN)]).into_owned()
}

/// `0`, `1`, … as texts.
pub(crate) fn numbers(count: usize) -> Vec<String> {
    (0..count).map(|n| n.to_string()).collect()
}

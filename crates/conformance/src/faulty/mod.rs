//! A backend that breaks the contract on purpose, in one way at a time. The kit must catch every way.

mod lie;
mod publisher;
mod subscription;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use postroad_core::{
    Backend, BoxFuture, Capabilities, Envelope, Filter, MessageId, Publisher, Result, StartAt,
    SubscribeOptions, Subscription, TicketResolver,
};

pub use lie::Lie;
use publisher::FaultyPublisher;
use subscription::FaultySubscription;

/// `B`, with one lie. It is meant for backends that answer a publish at once, like the memory backend: of answers that
/// come later only those of lost connections are lied about.
pub struct Faulty<B> {
    inner: B,
    shared: Arc<Shared>,
    /// The sinks of this client's subscriptions.
    sinks: Mutex<Vec<Weak<subscription::Sink>>>,
}

/// One liar behind several clients, which is told when their connections get lost.
#[derive(Clone)]
pub struct Liar(Arc<Shared>);

impl Liar {
    /// Of a backend that can do this.
    pub fn new(lie: Lie, can: Capabilities) -> Self {
        Self(Arc::new(Shared {
            lie,
            can,
            none: Capabilities::NONE,
            turn: AtomicU64::new(0),
            late: Mutex::default(),
            unanswered: Mutex::default(),
            renamed: Mutex::default(),
            undead: Mutex::default(),
            lost: AtomicBool::new(false),
            acked: Mutex::default(),
            sinks: Mutex::default(),
        }))
    }

    /// A client of it.
    pub fn client<B: Backend>(&self, inner: B) -> Faulty<B> {
        Faulty { inner, shared: Arc::clone(&self.0), sinks: Mutex::default() }
    }

    /// Which lie it is.
    pub fn lie(&self) -> Lie {
        self.0.lie
    }

    /// The connections there are get lost. Needs a Tokio runtime.
    pub fn connections_get_lost(&self) {
        self.0.lost.store(true, Ordering::SeqCst);
        if self.0.lie == Lie::LostKeepsMessages {
            let held: Vec<_> = with(&self.0.sinks, std::mem::take);
            tokio::spawn(async move {
                while held.iter().filter_map(Weak::upgrade).map(|sink| sink.extend_all()).count() > 0 {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            });
        }
    }
}

impl std::fmt::Debug for Liar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Liar").field(&self.0.lie).finish()
    }
}

/// What all handles of a faulty backend know.
struct Shared {
    lie: Lie,
    can: Capabilities,
    none: Capabilities,
    /// Counts whatever a lie tells only now and then.
    turn: AtomicU64,
    /// Said to be stored, and not.
    late: Mutex<Vec<Envelope>>,
    /// Never answered.
    unanswered: Mutex<Vec<TicketResolver>>,
    /// Stored under another id.
    renamed: Mutex<HashMap<MessageId, MessageId>>,
    /// Dropped by their consumers, and still there.
    undead: Mutex<Vec<Box<dyn Subscription>>>,
    /// A connection was lost.
    lost: AtomicBool,
    /// What a lie delivers once more.
    acked: Mutex<Vec<Arc<Envelope>>>,
    /// Of all subscriptions of all clients.
    sinks: Mutex<Vec<Weak<subscription::Sink>>>,
}

impl Shared {
    /// Whether this lie is the one, and a connection was lost.
    fn after_loss(&self, lie: Lie) -> bool {
        self.lie == lie && self.lost.load(Ordering::SeqCst)
    }

    /// Whether it is its turn, every so often.
    fn every(&self, nth: u64) -> bool {
        self.turn.fetch_add(1, Ordering::Relaxed) % nth == nth - 1
    }
}

fn with<T, R>(what: &Mutex<T>, work: impl FnOnce(&mut T) -> R) -> R {
    work(&mut what.lock().unwrap_or_else(PoisonError::into_inner))
}

impl<B: Backend> Faulty<B> {
    /// `inner`, lying like this.
    pub fn new(inner: B, lie: Lie) -> Self {
        let can = inner.capabilities().clone();
        Liar::new(lie, can).client(inner)
    }

    fn bend(&self, options: &mut SubscribeOptions) {
        let unique = |name: &Arc<str>| -> Arc<str> {
            format!("{name}.{}", self.shared.turn.fetch_add(1, Ordering::Relaxed)).into()
        };
        match (self.shared.lie, options.from) {
            (Lie::MixesTopics, _) => {
                if let Ok(all) = ">".parse() {
                    options.filter = all;
                }
            }
            (Lie::IgnoresWindowCount, _) => options.window.count = std::num::NonZeroU32::MAX,
            (Lie::IgnoresWindowBytes, _) => options.window.bytes = u64::MAX,
            (Lie::LeaseNeverEnds, _) => options.ack_wait = Duration::from_secs(86_400),
            (Lie::LeaseEndsEarly, _) => options.ack_wait /= 2,
            (Lie::IgnoresBackoff, _) => options.backoff.clear(),
            (Lie::IgnoresMaxDeliveries, _) => options.max_deliveries = None,
            (Lie::ForgetsNames, _) if !options.group => options.name = options.name.as_ref().map(unique),
            (Lie::GroupsGetAll, _) if options.group => options.name = options.name.as_ref().map(unique),
            (Lie::SharesExclusive, _) => options.group = options.name.is_some(),
            (Lie::StartsNewAtFirst, StartAt::New) => options.from = StartAt::First,
            (Lie::StartsFirstAtNew, StartAt::First) => options.from = StartAt::New,
            (Lie::StartsLastAtFirst, StartAt::Last) => options.from = StartAt::First,
            (Lie::SequenceIsOneLate, StartAt::Sequence(seq)) => options.from = StartAt::Sequence(seq + 1),
            (Lie::TimeIsFirst, StartAt::Time(_)) => options.from = StartAt::First,
            _ => {}
        }
    }
}

impl<B: Backend> Backend for Faulty<B> {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn publisher(&self) -> BoxFuture<'_, Result<Arc<dyn Publisher>>> {
        Box::pin(async {
            let inner = self.inner.publisher().await?;
            Ok(Arc::new(FaultyPublisher::new(inner, Arc::clone(&self.shared))) as Arc<dyn Publisher>)
        })
    }

    fn subscribe(&self, mut options: SubscribeOptions) -> BoxFuture<'_, Result<Box<dyn Subscription>>> {
        Box::pin(async move {
            self.bend(&mut options);
            let inner = self.inner.subscribe(options).await?;
            let subscription = FaultySubscription::new(inner, Arc::clone(&self.shared));
            for sinks in [&self.sinks, &self.shared.sinks] {
                with(sinks, |sinks| sinks.push(subscription.sink()));
            }
            Ok(Box::new(subscription) as Box<dyn Subscription>)
        })
    }

    fn forget(&self, filter: Filter, name: Arc<str>) -> BoxFuture<'_, Result<()>> {
        if self.shared.lie == Lie::ForgetDoesNothing {
            return Box::pin(std::future::ready(Ok(())));
        }
        self.inner.forget(filter, name)
    }

    fn capabilities(&self) -> &Capabilities {
        &self.shared.can
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        match self.shared.lie {
            Lie::CloseDoesNothing => Box::pin(std::future::ready(Ok(()))),
            Lie::CloseHangs => Box::pin(std::future::pending()),
            Lie::CloseSettlesTheRest => {
                for sink in with(&self.sinks, std::mem::take).into_iter().filter_map(|sink| sink.upgrade()) {
                    sink.ack_all();
                }
                self.inner.close()
            }
            _ => self.inner.close(),
        }
    }
}

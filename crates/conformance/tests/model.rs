//! The memory backend, step by step, against a model of what a queue is.
//!
//! `POSTROAD_SEED` repeats a run; a failure prints it, and the shortest run that still fails.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use postroad_conformance::faulty::{Faulty, Lie};
use postroad_core::memory::{Memory, Options};
use postroad_core::{
    Backend, Clock, Delivery, Envelope, ManualClock, Outcome, Publisher, SubscribeOptions, Subscription,
    Timestamp, block_on,
};
use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};

const LEASE: u64 = 1000;
const WINDOW: usize = 3;
const MAX_DELIVERIES: u32 = 4;

/// What somebody does. `held` is one of the deliveries that are held: their places follow from the steps before.
#[derive(Debug, Clone)]
enum Step {
    Publish { priority: i64 },
    Take { max: usize },
    Ack { held: usize },
    Retry { held: usize, delay: Option<u64> },
    DeadLetter { held: usize },
    Drop { held: usize },
    Extend { held: usize },
    Pass { millis: u64 },
    Reconnect,
}

impl Step {
    fn held(&self) -> Option<usize> {
        match self {
            Self::Ack { held }
            | Self::Retry { held, .. }
            | Self::DeadLetter { held }
            | Self::Drop { held }
            | Self::Extend { held } => Some(*held),
            Self::Publish { .. } | Self::Take { .. } | Self::Pass { .. } | Self::Reconnect => None,
        }
    }
}

/// Where a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Ready,
    Until(u64),
    Out { until: u64 },
    Settled,
    Dead,
}

/// A queue in the plainest words: which message is where, how often it was delivered, and who holds what.
#[derive(Debug, Clone, Default)]
struct Model {
    now: u64,
    messages: BTreeMap<u64, (i64, Place, u32)>,
    /// Which message, at which attempt; also those that came again since.
    held: Vec<(u64, u32)>,
    /// Whether the verdict of the last step was in time.
    in_time: bool,
}

impl Model {
    fn count(&self, wanted: impl Fn(&Place) -> bool) -> usize {
        self.messages.values().filter(|(_, place, _)| wanted(place)).count()
    }

    fn in_flight(&self) -> usize {
        self.count(|place| matches!(place, Place::Out { .. }))
    }

    fn put(&mut self, number: u64, place: Place) {
        if let Some(message) = self.messages.get_mut(&number) {
            message.1 = place;
        }
    }

    /// What comes next: by priority, then by number.
    fn next(&self) -> Option<u64> {
        let ready = self.messages.iter().filter(|(_, (_, place, _))| *place == Place::Ready);
        ready.min_by_key(|(number, (priority, ..))| (-priority, **number)).map(|(number, _)| *number)
    }

    fn take(&mut self, max: usize) {
        for _ in 0..max {
            let next = self.next().filter(|_| self.in_flight() < WINDOW);
            let Some((number, message)) = next.and_then(|next| self.messages.get_key_value(&next)) else {
                break;
            };
            let (number, attempt) = (*number, message.2 + 1);
            self.messages.insert(number, (message.0, Place::Out { until: self.now + LEASE }, attempt));
            self.held.push((number, attempt));
        }
    }

    /// It goes back, unless it was delivered often enough.
    fn give_back(&mut self, number: u64, delay: u64) {
        let attempts = self.messages.get(&number).map_or(0, |(.., attempts)| *attempts);
        let place = match (attempts >= MAX_DELIVERIES, delay) {
            (true, _) => Place::Dead,
            (false, 0) => Place::Ready,
            (false, delay) => Place::Until(self.now + delay),
        };
        self.put(number, place);
    }

    fn out(&self, wanted: impl Fn(u64) -> bool) -> Vec<u64> {
        let out = |place: &Place| matches!(place, Place::Out { until } if wanted(*until));
        self.messages.iter().filter(|(_, (_, place, _))| out(place)).map(|(number, _)| *number).collect()
    }

    fn pass(&mut self, millis: u64) {
        self.now += millis;
        let now = self.now;
        for number in self.out(|until| until <= now) {
            self.give_back(number, 0);
        }
        for (_, place, _) in self.messages.values_mut() {
            if matches!(place, Place::Until(until) if *until <= now) {
                *place = Place::Ready;
            }
        }
    }

    /// The message of a delivery, if that is the one that is out now; and whether it is.
    fn let_go(&mut self, held: usize) -> Option<u64> {
        let (number, attempt) = self.held.swap_remove(held);
        self.in_time = self.is_current(number, attempt);
        self.in_time.then_some(number)
    }

    fn is_current(&self, number: u64, attempt: u32) -> bool {
        matches!(self.messages.get(&number), Some((_, Place::Out { .. }, attempts)) if *attempts == attempt)
    }
}

impl ReferenceStateMachine for Model {
    type State = Self;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Self> {
        Just(Self::default()).boxed()
    }

    fn transitions(state: &Self) -> BoxedStrategy<Step> {
        let free = prop_oneof![
            4 => (-1..2_i64).prop_map(|priority| Step::Publish { priority }),
            4 => (1..5_usize).prop_map(|max| Step::Take { max }),
            2 => (1..1500_u64).prop_map(|millis| Step::Pass { millis }),
            1 => Just(Step::Reconnect),
        ];
        if state.held.is_empty() {
            return free.boxed();
        }
        let held = 0..state.held.len();
        prop_oneof![
            11 => free,
            3 => held.clone().prop_map(|held| Step::Ack { held }),
            3 => (held.clone(), prop::option::of(1..2000_u64))
                .prop_map(|(held, delay)| Step::Retry { held, delay }),
            1 => held.clone().prop_map(|held| Step::DeadLetter { held }),
            1 => held.clone().prop_map(|held| Step::Drop { held }),
            1 => held.prop_map(|held| Step::Extend { held }),
        ]
        .boxed()
    }

    /// Of a run made shorter, too.
    fn preconditions(state: &Self, step: &Step) -> bool {
        step.held().is_none_or(|held| held < state.held.len())
    }

    fn apply(mut model: Self, step: &Step) -> Self {
        match *step {
            Step::Publish { priority } => {
                model.messages.insert(model.messages.len() as u64, (priority, Place::Ready, 0));
            }
            Step::Take { max } => model.take(max),
            Step::Ack { held } => {
                if let Some(number) = model.let_go(held) {
                    model.put(number, Place::Settled);
                }
            }
            Step::Retry { held, delay } => {
                if let Some(number) = model.let_go(held) {
                    model.give_back(number, delay.unwrap_or(0));
                }
            }
            Step::DeadLetter { held } => {
                if let Some(number) = model.let_go(held) {
                    model.put(number, Place::Dead);
                }
            }
            Step::Drop { held } => {
                if let Some(number) = model.let_go(held) {
                    model.give_back(number, 0);
                }
            }
            Step::Extend { held } => {
                let (number, attempt) = model.held[held];
                model.in_time = model.is_current(number, attempt);
                if model.in_time {
                    model.put(number, Place::Out { until: model.now + LEASE });
                }
            }
            Step::Pass { millis } => model.pass(millis),
            Step::Reconnect => {
                for number in model.out(|_| true) {
                    model.give_back(number, 0);
                }
            }
        }
        model
    }
}

thread_local! {
    /// What the backends of this thread lie about.
    static LIE: Cell<Option<Lie>> = const { Cell::new(None) };
}

struct Real {
    clock: Arc<ManualClock>,
    memory: Memory,
    backend: Arc<dyn Backend>,
    publisher: Arc<dyn Publisher>,
    inbox: Option<Box<dyn Subscription>>,
    held: Vec<Delivery>,
    published: u64,
}

impl Real {
    fn new(lie: Option<Lie>) -> Self {
        let clock = Arc::new(ManualClock::new(Timestamp::from_millis(1)));
        let memory = Memory::with(Options::default(), Arc::clone(&clock));
        let backend: Arc<dyn Backend> = match lie {
            Some(lie) => Arc::new(Faulty::new(memory.clone(), lie)),
            None => Arc::new(memory.clone()),
        };
        let publisher = block_on(backend.publisher()).unwrap();
        let mut real =
            Self { clock, memory, backend, publisher, inbox: None, held: Vec::new(), published: 0 };
        real.subscribe();
        real
    }

    fn subscribe(&mut self) {
        self.inbox = None;
        let options = SubscribeOptions::new("a".parse().unwrap())
            .named("n")
            .window(WINDOW as u32, 1 << 20)
            .ack_wait(Duration::from_millis(LEASE))
            .max_deliveries(MAX_DELIVERIES);
        self.inbox = Some(block_on(self.backend.subscribe(options)).unwrap());
    }

    fn fill(&mut self, max: usize) {
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        let inbox = self.inbox.as_mut().unwrap();
        let had = self.held.len();
        let filled = match inbox.poll_fill(&mut cx, &mut self.held, max) {
            std::task::Poll::Ready(filled) => filled.unwrap(),
            std::task::Poll::Pending => 0,
        };
        assert_eq!(had + filled, self.held.len(), "what it says that it gave");
    }
}

fn number(delivery: &Delivery) -> u64 {
    std::str::from_utf8(&delivery.envelope.payload).unwrap().parse().unwrap()
}

impl StateMachineTest for Real {
    type SystemUnderTest = Self;
    type Reference = Model;

    fn init_test(_: &Model) -> Self {
        Self::new(LIE.get())
    }

    fn apply(mut real: Self, model: &Model, step: Step) -> Self {
        match step {
            Step::Publish { priority } => {
                let envelope = Envelope::new("a".parse().unwrap(), real.published.to_string());
                real.published += 1;
                let receipt = real.publisher.publish(envelope.with_priority(priority)).wait();
                assert!(receipt.is_confirmed(), "{receipt:?}");
            }
            Step::Take { max } => real.fill(max),
            Step::Ack { held } => {
                let settled = real.held.swap_remove(held).ack().wait();
                assert_eq!(settled.is_ok(), model.in_time, "an ack is in time: {settled:?}");
            }
            Step::Retry { held, delay } => {
                let outcome = Outcome::Retry { after: delay.map(Duration::from_millis) };
                let settled = real.held.swap_remove(held).settle(outcome).wait();
                assert_eq!(settled.is_ok(), model.in_time, "a retry is in time: {settled:?}");
            }
            Step::DeadLetter { held } => {
                let settled = real.held.swap_remove(held).settle(Outcome::dead_letter("x")).wait();
                assert_eq!(settled.is_ok(), model.in_time, "a dead letter is in time: {settled:?}");
            }
            Step::Drop { held } => drop(real.held.swap_remove(held)),
            Step::Extend { held } => {
                let extended = real.held[held].token.extend().wait();
                assert_eq!(extended.is_ok(), model.in_time, "a lease can be extended: {extended:?}");
            }
            Step::Pass { millis } => {
                real.clock.advance(Duration::from_millis(millis));
                real.memory.tick();
            }
            Step::Reconnect => real.subscribe(),
        }
        real
    }

    fn check_invariants(real: &Self, model: &Model) {
        let held: Vec<_> = real.held.iter().map(|one| (number(one), one.attempt)).collect();
        assert_eq!(held, model.held, "the deliveries that are held: which, at which attempt");
        // The real one counts what it waits for; the model does, too.
        let stats = real.memory.stats();
        assert_eq!(stats.in_flight, model.in_flight() as u64, "in flight at {:?}", real.clock.now());
        let pending = model.count(|place| !matches!(place, Place::Settled | Place::Dead));
        assert_eq!(stats.pending, pending as u64, "pending");
        let dead = model.count(|place| *place == Place::Dead);
        assert_eq!(stats.dead_letters, dead as u64, "dead letters");
    }
}

fn config() -> ProptestConfig {
    static SEED: OnceLock<u64> = OnceLock::new();
    let seed = *SEED.get_or_init(|| match std::env::var("POSTROAD_SEED") {
        Ok(text) => text.parse().expect("POSTROAD_SEED is a number"),
        Err(_) => fastrand::u64(..),
    });
    println!("POSTROAD_SEED={seed}");
    ProptestConfig {
        cases: 512,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(seed),
        ..ProptestConfig::default()
    }
}

prop_state_machine! {
    #![proptest_config(config())]

    #[test]
    fn the_memory_backend_is_the_model(sequential 1..80 => Real);
}

/// The model sees what is wrong, not only what is right.
#[test]
fn lies_differ_from_the_model() {
    for lie in [
        Lie::LosesConfirmed,
        Lie::Reorders,
        Lie::ForgetsAttempts,
        Lie::IgnoresWindowCount,
        Lie::IgnoresPriority,
        Lie::IgnoresDelay,
        Lie::IgnoresMaxDeliveries,
        Lie::AckWithoutEffect,
        Lie::AckSettlesAllBefore,
        Lie::RetryIsAck,
        Lie::DeadLetterIsDiscard,
        Lie::DroppedIsAck,
        Lie::LeaseNeverEnds,
        Lie::LeaseEndsEarly,
        Lie::ExtendWithoutEffect,
        Lie::StaleIsOk,
        Lie::StaleSettlesNewer,
    ] {
        LIE.set(Some(lie));
        let config = ProptestConfig { max_shrink_iters: 0, ..config() };
        let steps = Model::sequential_strategy(1..80);
        let found = TestRunner::new(config.clone()).run(&steps, |(model, steps, _)| {
            // Only shrinking needs to know how far it came.
            Real::test_sequential(config.clone(), model, steps, None);
            Ok(())
        });
        assert!(found.is_err(), "{lie} looks like the model");
    }
}

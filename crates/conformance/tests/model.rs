//! Random operations on the memory backend, one at a time, against a model of what a queue is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use postroad_conformance::faulty::{Faulty, Lie};
use postroad_core::memory::{Memory, Options};
use postroad_core::{
    Backend, Clock, Delivery, Envelope, ManualClock, Outcome, Publisher, SubscribeOptions, Subscription,
    Timestamp, block_on,
};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

const LEASE: u64 = 1000;
const WINDOW: usize = 3;
const MAX_DELIVERIES: u32 = 4;

/// What somebody does. Deliveries are chosen by number among those that are held, modulo how many there are.
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

fn any_step() -> impl Strategy<Value = Step> {
    let held = 0..8_usize;
    prop_oneof![
        4 => (-1..2_i64).prop_map(|priority| Step::Publish { priority }),
        4 => (1..5_usize).prop_map(|max| Step::Take { max }),
        3 => held.clone().prop_map(|held| Step::Ack { held }),
        3 => (held.clone(), prop::option::of(1..2000_u64)).prop_map(|(held, delay)| Step::Retry { held, delay }),
        1 => held.clone().prop_map(|held| Step::DeadLetter { held }),
        1 => held.clone().prop_map(|held| Step::Drop { held }),
        1 => held.prop_map(|held| Step::Extend { held }),
        2 => (1..1500_u64).prop_map(|millis| Step::Pass { millis }),
        1 => Just(Step::Reconnect),
    ]
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

/// A queue in the plainest words: which message is where, and how often it was delivered.
#[derive(Debug, Default)]
struct Model {
    now: u64,
    messages: BTreeMap<u64, (i64, Place, u32)>,
}

impl Model {
    fn in_flight(&self) -> usize {
        self.messages.values().filter(|(_, place, _)| matches!(place, Place::Out { .. })).count()
    }

    /// What comes next: by priority, then by number.
    fn next(&self) -> Option<u64> {
        let ready = self.messages.iter().filter(|(_, (_, place, _))| *place == Place::Ready);
        ready.min_by_key(|(number, (priority, ..))| (-priority, **number)).map(|(number, _)| *number)
    }

    /// It goes back, unless it was delivered often enough.
    fn give_back(&mut self, number: u64, delay: u64) {
        let now = self.now;
        let Some((_, place, attempts)) = self.messages.get_mut(&number) else { return };
        *place = match (*attempts >= MAX_DELIVERIES, delay) {
            (true, _) => Place::Dead,
            (false, 0) => Place::Ready,
            (false, delay) => Place::Until(now + delay),
        };
    }

    fn pass(&mut self, millis: u64) {
        self.now += millis;
        let now = self.now;
        let ended = |place: &Place| matches!(place, Place::Out { until } if *until <= now);
        let over: Vec<_> = self.messages.iter().filter(|(_, (_, p, _))| ended(p)).map(|(n, _)| *n).collect();
        for number in over {
            self.give_back(number, 0);
        }
        for (_, place, _) in self.messages.values_mut() {
            if matches!(place, Place::Until(until) if *until <= now) {
                *place = Place::Ready;
            }
        }
    }

    fn reconnect(&mut self) {
        let out = self.messages.iter().filter(|(_, (_, place, _))| matches!(place, Place::Out { .. }));
        let numbers: Vec<_> = out.map(|(number, _)| *number).collect();
        for number in numbers {
            self.give_back(number, 0);
        }
    }

    /// Whether this delivery is the one that is out now.
    fn is_current(&self, number: u64, attempt: u32) -> bool {
        matches!(self.messages.get(&number), Some((_, Place::Out { .. }, attempts)) if *attempts == attempt)
    }
}

struct Real {
    clock: Arc<ManualClock>,
    memory: Memory,
    backend: Arc<dyn Backend>,
    publisher: Arc<dyn Publisher>,
    inbox: Option<Box<dyn Subscription>>,
    held: Vec<Delivery>,
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
        let mut real = Self { clock, memory, backend, publisher, inbox: None, held: Vec::new() };
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

    fn fill(&mut self, max: usize) -> usize {
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        let inbox = self.inbox.as_mut().unwrap();
        match inbox.poll_fill(&mut cx, &mut self.held, max) {
            std::task::Poll::Ready(filled) => filled.unwrap(),
            std::task::Poll::Pending => 0,
        }
    }

    fn take_held(&mut self, chosen: usize) -> Option<Delivery> {
        if self.held.is_empty() { None } else { Some(self.held.swap_remove(chosen % self.held.len())) }
    }
}

fn number(delivery: &Delivery) -> u64 {
    std::str::from_utf8(&delivery.envelope.payload).unwrap().parse().unwrap()
}

fn apply(real: &mut Real, model: &mut Model, step: Step) -> Result<(), TestCaseError> {
    match step {
        Step::Publish { priority } => {
            let next = model.messages.len() as u64;
            let envelope = Envelope::new("a".parse().unwrap(), next.to_string()).with_priority(priority);
            prop_assert!(real.publisher.publish(envelope).wait().is_confirmed());
            model.messages.insert(next, (priority, Place::Ready, 0));
        }
        Step::Take { max } => {
            let from = real.held.len();
            let filled = real.fill(max);
            let mut expected = Vec::new();
            while expected.len() < max && model.in_flight() < WINDOW {
                let Some(next) = model.next() else { break };
                let until = model.now + LEASE;
                let entry = model.messages.get_mut(&next).unwrap();
                entry.1 = Place::Out { until };
                entry.2 += 1;
                expected.push((next, entry.2));
            }
            let got: Vec<_> = real.held[from..].iter().map(|one| (number(one), one.attempt)).collect();
            prop_assert_eq!(filled, got.len());
            prop_assert_eq!(got, expected);
        }
        Step::Ack { held } => {
            let Some(delivery) = real.take_held(held) else { return Ok(()) };
            let current = model.is_current(number(&delivery), delivery.attempt);
            let number = number(&delivery);
            prop_assert_eq!(delivery.ack().wait().is_ok(), current);
            if current {
                model.messages.get_mut(&number).unwrap().1 = Place::Settled;
            }
        }
        Step::Retry { held, delay } => {
            let Some(delivery) = real.take_held(held) else { return Ok(()) };
            let number = number(&delivery);
            let current = model.is_current(number, delivery.attempt);
            let outcome = Outcome::Retry { after: delay.map(Duration::from_millis) };
            prop_assert_eq!(delivery.settle(outcome).wait().is_ok(), current);
            if current {
                model.give_back(number, delay.unwrap_or(0));
            }
        }
        Step::DeadLetter { held } => {
            let Some(delivery) = real.take_held(held) else { return Ok(()) };
            let number = number(&delivery);
            let current = model.is_current(number, delivery.attempt);
            prop_assert_eq!(delivery.settle(Outcome::dead_letter("x")).wait().is_ok(), current);
            if current {
                model.messages.get_mut(&number).unwrap().1 = Place::Dead;
            }
        }
        Step::Drop { held } => {
            let Some(delivery) = real.take_held(held) else { return Ok(()) };
            let number = number(&delivery);
            let current = model.is_current(number, delivery.attempt);
            drop(delivery);
            if current {
                model.give_back(number, 0);
            }
        }
        Step::Extend { held } => {
            let Some(mut delivery) = real.take_held(held) else { return Ok(()) };
            let number = number(&delivery);
            let current = model.is_current(number, delivery.attempt);
            prop_assert_eq!(delivery.token.extend().wait().is_ok(), current);
            if current {
                let until = model.now + LEASE;
                model.messages.get_mut(&number).unwrap().1 = Place::Out { until };
            }
            real.held.push(delivery);
        }
        Step::Pass { millis } => {
            real.clock.advance(Duration::from_millis(millis));
            real.memory.tick();
            model.pass(millis);
        }
        Step::Reconnect => {
            real.subscribe();
            model.reconnect();
        }
    }
    // The real one counts what it waits for; the model does, too.
    let stats = real.memory.stats();
    prop_assert_eq!(stats.in_flight, model.in_flight() as u64, "in flight at {:?}", real.clock.now());
    let open = |place: &Place| !matches!(place, Place::Settled | Place::Dead);
    let pending = model.messages.values().filter(|(_, place, _)| open(place)).count();
    prop_assert_eq!(stats.pending, pending as u64, "pending");
    let dead = model.messages.values().filter(|(_, place, _)| *place == Place::Dead).count();
    prop_assert_eq!(stats.dead_letters, dead as u64, "dead letters");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_memory_backend_is_the_model(steps in prop::collection::vec(any_step(), 1..80)) {
        let (mut real, mut model) = (Real::new(None), Model::default());
        for step in steps {
            apply(&mut real, &mut model, step)?;
        }
    }
}

/// The model sees what is wrong, not only what is right.
#[test]
fn lies_differ_from_the_model() {
    let steps = prop::collection::vec(any_step(), 1..80);
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
        let config =
            ProptestConfig { failure_persistence: None, max_shrink_iters: 0, ..ProptestConfig::default() };
        let found = TestRunner::new(config).run(&steps, |steps| {
            let (mut real, mut model) = (Real::new(Some(lie)), Model::default());
            steps.into_iter().try_for_each(|step| apply(&mut real, &mut model, step))
        });
        assert!(found.is_err(), "{lie} looks like the model");
    }
}

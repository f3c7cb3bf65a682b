//! Many publishers and consumers at once, with verdicts by chance, and the history checker over all of it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use postroad_core::{
    Attempts, Delivery, Error, Outcome, PublisherExt, Receipt, StartAt, SubscribeOptions, Subscription,
    SubscriptionExt,
};
use tokio::time::{Instant, timeout};

use crate::Failure;
use crate::case::{Case, case};
use crate::context::{CaseResult, Context, ensure};
use crate::harness::ChaosAbilities;
use crate::history::{Event, Recorder, Rules, Terms, VerdictKind, check};
use crate::need::Need;
use crate::run::join_all;

pub(crate) const CASES: &[Case] = &[
    case!("load/verdicts_by_chance", verdicts_by_chance, [Confirm]),
    case!("load/through_cuts", through_cuts, [Confirm, Named, Redelivery, Cut]),
    case!("load/through_silence", through_silence, [Confirm, Named, Redelivery, HalfOpen]),
    case!("load/through_pauses", through_pauses, [Confirm, Named, Redelivery, Pause]),
    case!("load/through_restarts", through_restarts, [Confirm, Named, Redelivery, SurvivesKill, Restart]),
    case!("load/through_kills", through_kills, [Confirm, Named, Redelivery, SurvivesKill, Kill]),
];

const SOURCES: usize = 3;
const LANES: usize = 4;
const EACH: usize = 120;
const WINDOW: u32 = 8;
const WINDOW_BYTES: u64 = 4000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    None,
    Cut,
    Silence,
    Pause,
    Restart,
    Kill,
}

async fn verdicts_by_chance(cx: Arc<Context>) -> CaseResult {
    load(cx, Trouble::None).await
}

async fn through_cuts(cx: Arc<Context>) -> CaseResult {
    load(cx, Trouble::Cut).await
}

async fn through_silence(cx: Arc<Context>) -> CaseResult {
    load(cx, Trouble::Silence).await
}

async fn through_pauses(cx: Arc<Context>) -> CaseResult {
    load(cx, Trouble::Pause).await
}

async fn through_restarts(cx: Arc<Context>) -> CaseResult {
    load(cx, Trouble::Restart).await
}

async fn through_kills(cx: Arc<Context>) -> CaseResult {
    load(cx, Trouble::Kill).await
}

/// What all tasks of a load share.
struct World {
    cx: Arc<Context>,
    recorder: Recorder,
    trouble: Trouble,
    /// For each subscription: which messages have got a final verdict.
    finished: Vec<Mutex<BTreeSet<u64>>>,
}

impl World {
    fn is_finished(&self, subscription: usize) -> bool {
        self.finished[subscription].lock().unwrap_or_else(PoisonError::into_inner).len() == SOURCES * EACH
    }

    fn random(&self, who: u64) -> fastrand::Rng {
        fastrand::Rng::with_seed(self.cx.seed.wrapping_add(who))
    }
}

/// FNV-1a: of the content, so that a changed one shows.
fn digest(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

fn payload(message: u64, random: &mut fastrand::Rng) -> Vec<u8> {
    let mut payload = format!("{message} ").into_bytes();
    let filler = random.usize(..600);
    payload.extend(std::iter::repeat_with(|| random.u8(b'a'..=b'z')).take(filler));
    payload
}

async fn load(cx: Arc<Context>, trouble: Trouble) -> CaseResult {
    // Subscription 0 is one consumer's; 1 is a group's, where there are groups and nobody is cut off: then only the
    // consumer itself knows when what it holds may go to another.
    let group = trouble == Trouble::None && cx.can.groups.is_there() && cx.can.named.is_there();
    let subscriptions = if group { 2 } else { 1 };
    let world = Arc::new(World {
        recorder: Recorder::new(),
        trouble,
        finished: (0..subscriptions).map(|_| Mutex::default()).collect(),
        cx,
    });
    let mut consuming = Vec::new();
    for (subscription, consumer) in [(0, 0), (1, 1), (1, 2), (1, 3)] {
        if subscription < subscriptions {
            let mut who = Consumer::new(&world, subscription, consumer);
            who.subscribe().await?;
            consuming.push(tokio::spawn(who.run()));
        }
    }
    let publishing: Vec<_> =
        (0..SOURCES).map(|source| tokio::spawn(publish(Arc::clone(&world), source))).collect();
    let disturbing = tokio::spawn(disturb(Arc::clone(&world)));
    join_all(publishing).await?;
    join_all([disturbing]).await?;
    join_all(consuming).await?;
    let rules = Rules {
        ended: true,
        // A kill takes with it which attempts were out.
        attempts: world.cx.can.attempts == Attempts::Exact && trouble != Trouble::Kill,
        attempts_dense: false,
        slack: 5,
    };
    let history = world.recorder.history();
    let findings = check(&history, &rules);
    let shown: Vec<_> = findings.iter().take(5).map(ToString::to_string).collect();
    ensure!(findings.is_empty(), "{} of {} records: {}", findings.len(), history.len(), shown.join("; "));
    Ok(())
}

async fn disturb(world: Arc<World>) -> CaseResult {
    let cx = &world.cx;
    for _ in 0..3 {
        if world.trouble == Trouble::None {
            break;
        }
        tokio::time::sleep(cx.tempo.quiet).await;
        world.recorder.record(Event::Restarted);
        match world.trouble {
            Trouble::None => {}
            Trouble::Cut => cx.chaos()?.cut().await?,
            Trouble::Silence => {
                cx.chaos()?.half_open().await?;
                tokio::time::sleep(cx.tempo.quiet).await;
                cx.chaos()?.heal().await?;
            }
            Trouble::Pause => {
                cx.chaos()?.pause().await?;
                tokio::time::sleep(cx.tempo.quiet).await;
                cx.chaos()?.resume().await?;
            }
            Trouble::Restart => cx.chaos()?.restart().await?,
            Trouble::Kill => cx.chaos()?.kill().await?,
        }
        world.recorder.record(Event::Restarted);
    }
    Ok(())
}

async fn publish(world: Arc<World>, source: usize) -> CaseResult {
    let cx = &world.cx;
    let mut random = world.random(source as u64);
    let mut publisher = None;
    for n in 0..EACH {
        let message = (source * EACH + n) as u64;
        let lane = random.usize(..LANES);
        let payload = payload(message, &mut random);
        let envelope = cx.message(&format!("load/{lane}"), payload.clone());
        let until = Instant::now() + cx.tempo.patience;
        loop {
            let open = match &publisher {
                Some(open) => Arc::clone(open),
                None => match connect(cx).await {
                    Ok(new) => Arc::clone(publisher.insert(new)),
                    Err(why) if Instant::now() < until && world.trouble != Trouble::None => {
                        let _ = why;
                        tokio::time::sleep(Duration::from_millis(5)).await;
                        continue;
                    }
                    Err(why) => return Err(why),
                },
            };
            let (source, lane) = (source as u32, lane as u64);
            world.recorder.record(Event::Publish { message, source, lane, digest: digest(&payload) });
            let receipt = timeout(cx.tempo.patience, open.send(envelope.clone()))
                .await
                .map_err(|_| Failure::new(format!("publish of {message}: no answer")))?;
            let why = match receipt {
                Receipt::Confirmed { duplicate, .. } => {
                    world.recorder.record(Event::Confirmed { message, duplicate });
                    break;
                }
                Receipt::Refused(why) => {
                    world.recorder.record(Event::Refused { message });
                    why
                }
                Receipt::Unknown(why) => {
                    world.recorder.record(Event::Unknown { message });
                    why
                }
                other => return Err(Failure::new(format!("{other:?}"))),
            };
            if world.trouble == Trouble::None || Instant::now() >= until {
                return Err(why.into());
            }
            publisher = None;
        }
        if world.trouble != Trouble::None {
            // Spread over the time of the trouble.
            tokio::time::sleep(cx.tempo.quiet * 4 / EACH as u32).await;
        }
    }
    Ok(())
}

async fn connect(cx: &Context) -> CaseResult<Arc<dyn postroad_core::Publisher>> {
    cx.publisher(&cx.connect().await?).await
}

struct Consumer {
    world: Arc<World>,
    subscription: usize,
    consumer: u32,
    inbox: Option<Box<dyn Subscription>>,
    random: fastrand::Rng,
}

impl Consumer {
    fn new(world: &Arc<World>, subscription: usize, consumer: u32) -> Self {
        let random = world.random(1000 + u64::from(consumer));
        Self { world: Arc::clone(world), subscription, consumer, inbox: None, random }
    }

    fn options(&self) -> SubscribeOptions {
        let cx = &self.world.cx;
        let options = cx.options("load/*").window(WINDOW, WINDOW_BYTES).from(StartAt::New);
        match self.subscription {
            1 => options.named("group").shared(),
            _ if cx.can.named.is_there() => options.named("alone"),
            _ => options,
        }
    }

    async fn subscribe(&mut self) -> CaseResult {
        let cx = &self.world.cx;
        let until = Instant::now() + cx.tempo.patience;
        let options = self.options();
        let lease = options.ack_wait.as_millis() as u64;
        let inbox = loop {
            let subscribed = async { cx.subscribe(&cx.connect().await?, options.clone()).await };
            match subscribed.await {
                Ok(inbox) => break inbox,
                Err(why) if self.world.trouble == Trouble::None || Instant::now() >= until => {
                    return Err(why);
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        let ordered = self.subscription == 0 && Need::OrderPerSubject.is_met(&cx.can, ChaosAbilities::NONE);
        let terms =
            Terms { window_count: WINDOW.into(), window_bytes: WINDOW_BYTES, lease, ordered, lanes: None };
        let (subscription, consumer) = (self.subscription as u32, self.consumer);
        self.world.recorder.record(Event::Subscribed { subscription, consumer, terms });
        self.inbox = Some(inbox);
        Ok(())
    }

    fn leave(&mut self) {
        let (subscription, consumer) = (self.subscription as u32, self.consumer);
        self.world.recorder.record(Event::Gone { subscription, consumer });
        self.inbox = None;
        // Another one, as far as the history knows.
        self.consumer += 100;
    }

    async fn run(mut self) -> CaseResult {
        let world = Arc::clone(&self.world);
        let mut last = Instant::now();
        let mut pending = Vec::new();
        loop {
            let wait = world.cx.tempo.quiet;
            let Some(inbox) = &mut self.inbox else {
                self.subscribe().await?;
                continue;
            };
            match timeout(wait, inbox.next()).await {
                Ok(Ok(delivery)) => {
                    last = Instant::now();
                    self.verdict(delivery, &mut pending);
                }
                Ok(Err(why)) => self.lost(why)?,
                Err(_) if world.is_finished(self.subscription) => break,
                // The checker says what is missing.
                Err(_) if last.elapsed() >= world.cx.tempo.patience => break,
                Err(_) => {}
            }
            pending.retain(|answer: &tokio::task::JoinHandle<()>| !answer.is_finished());
        }
        for answer in pending {
            let answered = timeout(world.cx.tempo.patience, answer).await;
            ensure!(matches!(answered, Ok(Ok(()))), "a verdict has no answer");
        }
        Ok(())
    }

    fn lost(&mut self, why: Error) -> CaseResult {
        if self.world.trouble == Trouble::None {
            return Err(why.into());
        }
        self.leave();
        Ok(())
    }

    /// By chance.
    fn verdict(&mut self, delivery: Delivery, pending: &mut Vec<tokio::task::JoinHandle<()>>) {
        let world = Arc::clone(&self.world);
        let can = &world.cx.can;
        let (subscription, consumer) = (self.subscription as u32, self.consumer);
        let payload = &delivery.envelope.payload;
        let number = payload.split(|byte| *byte == b' ').next().unwrap_or_default();
        let message = std::str::from_utf8(number).ok().and_then(|text| text.parse().ok()).unwrap_or(u64::MAX);
        world.recorder.record(Event::Delivered {
            subscription,
            consumer,
            message,
            attempt: delivery.attempt,
            bytes: delivery.envelope.len_bytes() as u64,
            digest: digest(payload),
        });
        let chance = self.random.u8(..100);
        if chance < 3 && self.subscription == 1 {
            // Gone with what it holds.
            self.leave();
            drop(delivery);
            return;
        }
        let (outcome, verdict) = match chance {
            0..=12 if can.nack.is_there() => (Some(Outcome::retry()), VerdictKind::Again),
            13..=17 if can.nack_delay.is_there() => (
                Some(Outcome::retry_after(Duration::from_millis(self.random.u64(1..30)))),
                VerdictKind::Again,
            ),
            18..=22 if can.nack.is_there() => (None, VerdictKind::Again),
            23..=27 => (Some(Outcome::Discard), VerdictKind::Final),
            _ => (Some(Outcome::Ack), VerdictKind::Final),
        };
        world.recorder.record(Event::Settle { subscription, message, verdict });
        let Some(outcome) = outcome else {
            drop(delivery);
            return;
        };
        let settled = delivery.settle(outcome);
        let at = self.subscription;
        pending.push(tokio::spawn(async move {
            let done = settled.await.is_ok();
            world.recorder.record(Event::Settled { subscription, message, verdict, done });
            if verdict == VerdictKind::Final {
                // Without an answer it may be settled: it need not come again.
                world.finished[at].lock().unwrap_or_else(PoisonError::into_inner).insert(message);
            }
        }));
    }
}

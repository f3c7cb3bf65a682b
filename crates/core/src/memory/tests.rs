use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use super::*;
use crate::{
    Delivery, DrainReport, Envelope, ManualClock, MessageId, Outcome, Publisher, Receipt, StartAt,
    Subscription, block_on, dead_letter, settle_all,
};

const SECOND: Duration = Duration::from_secs(1);

struct World {
    clock: Arc<ManualClock>,
    memory: Memory,
    publisher: Arc<dyn Publisher>,
}

impl World {
    fn new() -> Self {
        Self::bounded(Options::default())
    }

    fn bounded(options: Options) -> Self {
        let clock = Arc::new(ManualClock::new(Timestamp::from_millis(1_000_000)));
        let memory = Memory::with(options, Arc::clone(&clock));
        let publisher = block_on(memory.publisher()).unwrap();
        Self { clock, memory, publisher }
    }

    fn publish(&self, subject: &str, payload: &'static str) -> u64 {
        self.send(Envelope::new(subject.parse().unwrap(), payload)).position().unwrap()
    }

    fn send(&self, envelope: Envelope) -> Receipt {
        self.publisher.publish(envelope).try_get().unwrap()
    }

    fn subscribe(&self, options: SubscribeOptions) -> Box<dyn Subscription> {
        block_on(self.memory.subscribe(options)).unwrap()
    }

    fn refused(&self, options: SubscribeOptions) -> ErrorKind {
        block_on(self.memory.subscribe(options)).err().unwrap().kind()
    }

    fn later(&self, duration: Duration) {
        self.clock.advance(duration);
        self.memory.tick();
    }
}

fn on(filter: &str) -> SubscribeOptions {
    SubscribeOptions::new(filter.parse().unwrap())
}

fn take(subscription: &mut Box<dyn Subscription>) -> Vec<Delivery> {
    let mut out = Vec::new();
    match subscription.poll_fill(&mut Context::from_waker(Waker::noop()), &mut out, 100) {
        Poll::Ready(result) => assert_eq!(result.unwrap(), out.len()),
        Poll::Pending => assert!(out.is_empty()),
    }
    out
}

fn texts(deliveries: &[Delivery]) -> Vec<String> {
    deliveries.iter().map(|d| String::from_utf8(d.envelope.payload.to_vec()).unwrap()).collect()
}

fn kind(result: Result<()>) -> ErrorKind {
    result.unwrap_err().kind()
}

#[derive(Default)]
struct Alarm(AtomicUsize);

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Alarm {
    /// Polls until the subscription waits, then tells how often it was woken by `act`.
    fn woken_by(subscription: &mut Box<dyn Subscription>, act: impl FnOnce()) -> usize {
        let alarm = Arc::new(Self::default());
        let waker = Waker::from(Arc::clone(&alarm));
        let mut out = Vec::new();
        assert!(subscription.poll_fill(&mut Context::from_waker(&waker), &mut out, 1).is_pending());
        act();
        alarm.0.load(Ordering::SeqCst)
    }
}

#[test]
fn delivers_in_order_with_position_and_attempt() {
    let world = World::new();
    let mut all = world.subscribe(on(">"));
    let mut eu = world.subscribe(on("orders/eu"));
    assert_eq!(world.publish("orders/us", "a"), 1);
    assert_eq!(world.publish("orders/eu", "b"), 2);
    let got = take(&mut all);
    assert_eq!(texts(&got), ["a", "b"]);
    let got = take(&mut eu).pop().unwrap();
    assert_eq!((got.attempt, got.redelivered, got.position), (1, false, Some(2)));
    assert_eq!(got.received_at, Timestamp::from_millis(1_000_000));
    got.ack().wait().unwrap();
    world.later(60 * SECOND);
    assert!(take(&mut eu).is_empty());
}

#[test]
fn a_delivery_without_a_verdict_comes_again_and_its_token_is_stale() {
    let world = World::new();
    let mut jobs = world.subscribe(on("jobs").ack_wait(SECOND));
    world.publish("jobs", "a");
    let mut first = take(&mut jobs).pop().unwrap();
    world.later(SECOND / 2);
    first.token.extend().wait().unwrap();
    world.later(SECOND / 2);
    assert!(take(&mut jobs).is_empty(), "extended");
    world.later(SECOND / 2);
    let mut again = take(&mut jobs);
    assert_eq!((again[0].attempt, again[0].redelivered), (2, true));
    assert_eq!(kind(first.token.extend().wait()), ErrorKind::StaleToken);
    drop(first);
    assert!(take(&mut jobs).is_empty(), "a stale token does not give back the new delivery");
    assert_eq!(again.pop().unwrap().ack().try_get().map(|r| r.is_ok()), Some(true));
    let stats = world.memory.stats();
    assert_eq!((stats.stale, stats.dropped, stats.acked, stats.pending), (1, 1, 1, 0));
}

#[test]
fn an_ack_that_comes_after_the_lease_is_stale_and_changes_nothing() {
    let world = World::new();
    let mut jobs = world.subscribe(on("jobs").ack_wait(SECOND));
    world.publish("jobs", "a");
    let late = take(&mut jobs).pop().unwrap();
    world.later(SECOND);
    assert_eq!(kind(late.ack().wait()), ErrorKind::StaleToken);
    assert_eq!(take(&mut jobs)[0].attempt, 2);
}

#[test]
fn a_batch_is_settled_together_as_far_as_its_leases_last() {
    let world = World::new();
    let mut subscription = world.subscribe(on("a"));
    for _ in 0..6 {
        world.publish("a", "x");
    }
    let mut batch = take(&mut subscription);
    let middle = batch.remove(2);
    let tokens = |batch: Vec<Delivery>| batch.into_iter().map(|delivery| delivery.token);
    settle_all(tokens(batch), Outcome::Ack).wait().unwrap();
    assert_eq!((world.memory.stats().acked, world.memory.stats().pending), (5, 1));
    middle.retry().wait().unwrap();

    let again = take(&mut subscription);
    world.publish("a", "y");
    let new = take(&mut subscription);
    assert_eq!((again[0].attempt, new[0].attempt), (2, 1));
    settle_all(tokens(again).chain(tokens(new)), Outcome::Ack).wait().unwrap();
    assert_eq!(world.memory.stats().pending, 0);

    for _ in 0..3 {
        world.publish("a", "z");
    }
    let late = take(&mut subscription);
    world.later(60 * SECOND);
    let stale_before = world.memory.stats().stale;
    assert_eq!(kind(settle_all(tokens(late), Outcome::Ack).wait()), ErrorKind::StaleToken);
    assert_eq!(world.memory.stats().stale - stale_before, 3);
    assert_eq!(world.memory.stats().pending, 3);
    let again = take(&mut subscription);
    settle_all(tokens(again), Outcome::dead_letter("no")).wait().unwrap();
    assert_eq!((world.memory.stats().pending, world.memory.stats().dead), (0, 3));
}

#[test]
fn retry_waits_as_told_else_as_the_backoff_says() {
    let world = World::new();
    let mut jobs = world.subscribe(on("jobs").backoff([2 * SECOND, 5 * SECOND]));
    world.publish("jobs", "a");
    take(&mut jobs).pop().unwrap().retry().wait().unwrap();
    assert_eq!(world.memory.next_deadline(), Some(Timestamp::from_millis(1_002_000)));
    world.later(SECOND);
    assert!(take(&mut jobs).is_empty());
    world.later(SECOND);
    let second = take(&mut jobs).pop().unwrap();
    assert_eq!(second.attempt, 2);
    second.settle(Outcome::retry_after(SECOND / 10));
    world.later(SECOND / 10);
    assert_eq!(take(&mut jobs).pop().unwrap().attempt, 3);
}

#[test]
fn the_last_delivery_without_ack_makes_a_dead_letter() {
    let world = World::new();
    let mut jobs = world.subscribe(on("jobs/*").named("w").max_deliveries(2));
    let mut dead = world.subscribe(on("$dead/>"));
    world.publish("jobs/x", "a");
    drop(take(&mut jobs));
    world.clock.advance(SECOND);
    take(&mut jobs).pop().unwrap().retry().wait().unwrap();
    let letter = take(&mut dead).pop().unwrap();
    let headers = &letter.envelope.headers;
    assert_eq!(letter.envelope.subject, "$dead/jobs/x");
    assert_eq!(headers.get_text(dead_letter::SUBSCRIPTION), Some("jobs/* as w"));
    assert_eq!(headers.get_text(dead_letter::REASON), Some("deliveries exhausted"));
    assert_eq!(headers.get(dead_letter::ATTEMPTS).unwrap().as_i64(), Some(2));
    assert_eq!(headers.get(dead_letter::POSITION).unwrap().as_i64(), Some(1));
    let times =
        [dead_letter::FIRST_FAILURE, dead_letter::LAST_FAILURE].map(|name| headers.get(name).cloned());
    assert_eq!(times, [1_000_000, 1_001_000].map(|ms| Some(Timestamp::from_millis(ms).into())));
    assert_eq!(world.memory.stats().pending, 1, "only the dead letter itself");

    letter.settle(Outcome::dead_letter("again")).wait().unwrap();
    assert!(take(&mut dead).is_empty(), "a dead letter does not die twice");
    assert_eq!(world.memory.stats().dead_letters, 1);
}

#[test]
fn a_dead_letter_verdict_keeps_its_reason_and_discard_keeps_nothing() {
    let world = World::new();
    let mut jobs = world.subscribe(on("jobs"));
    let mut dead = world.subscribe(on("$dead/jobs"));
    world.publish("jobs", "a");
    world.publish("jobs", "b");
    let mut got = take(&mut jobs);
    got.pop().unwrap().settle(Outcome::Discard).wait().unwrap();
    got.pop().unwrap().settle(Outcome::dead_letter("no such shop")).wait().unwrap();
    let letters = take(&mut dead);
    assert_eq!(texts(&letters), ["a"]);
    assert_eq!(letters[0].envelope.headers.get_text(dead_letter::REASON), Some("no such shop"));
}

#[test]
fn a_lease_that_ends_while_nobody_polls_also_kills() {
    let world = World::new();
    let mut jobs = world.subscribe(on("jobs").ack_wait(SECOND).max_deliveries(1));
    let mut dead = world.subscribe(on("$dead/jobs"));
    world.publish("jobs", "a");
    let held = take(&mut jobs);
    assert_eq!(Alarm::woken_by(&mut dead, || world.later(SECOND)), 1);
    assert_eq!(take(&mut dead).len(), 1);
    drop(held);
}

#[test]
fn higher_priorities_first_ties_by_position() {
    let world = World::new();
    let mut jobs = world.subscribe(on("jobs"));
    for (text, priority) in [("a", 0), ("b", 5), ("c", -1), ("d", 5)] {
        world.send(Envelope::new("jobs".parse().unwrap(), text).with_priority(priority));
    }
    assert_eq!(texts(&take(&mut jobs)), ["b", "d", "a", "c"]);
}

#[test]
fn a_window_holds_count_and_bytes() {
    let world = World::new();
    let mut two = world.subscribe(on("jobs").window(2, 1000));
    let mut narrow = world.subscribe(on("jobs").window(10, 10));
    for text in ["aaaa", "bbbb", "cccc"] {
        world.publish("jobs", text);
    }
    let mut got = take(&mut two);
    assert_eq!(texts(&got), ["aaaa", "bbbb"]);
    got.pop().unwrap().ack();
    assert_eq!(texts(&take(&mut two)), ["cccc"]);
    // The subject counts too: 8 bytes each, so only one fits into 10.
    let mut got = take(&mut narrow);
    assert_eq!(texts(&got), ["aaaa"]);
    assert_eq!(Alarm::woken_by(&mut narrow, || drop(got.pop().unwrap().ack())), 1, "room wakes");
    assert_eq!(texts(&take(&mut narrow)), ["bbbb"]);
}

#[test]
fn starts_where_told() {
    let world = World::new();
    for text in ["a", "b", "c", "d"] {
        world.publish(if text == "d" { "other" } else { "jobs" }, text);
        world.clock.advance(SECOND);
    }
    let from = |from| texts(&take(&mut world.subscribe(on("jobs").from(from))));
    assert_eq!(from(StartAt::New), [""; 0]);
    assert_eq!(from(StartAt::First), ["a", "b", "c"]);
    assert_eq!(from(StartAt::Last), ["c"]);
    assert_eq!(from(StartAt::Sequence(2)), ["b", "c"]);
    assert_eq!(from(StartAt::Sequence(0)), ["a", "b", "c"]);
    assert_eq!(from(StartAt::Time(Timestamp::from_millis(1_001_000))), ["b", "c"]);
    assert_eq!(from(StartAt::Time(Timestamp::from_millis(1_000_001))), ["b", "c"]);
}

#[test]
fn a_start_in_the_future_leaves_out_what_comes_before() {
    let world = World::new();
    let mut by_number = world.subscribe(on("jobs").from(StartAt::Sequence(3)));
    let mut by_time = world.subscribe(on("jobs").from(StartAt::Time(Timestamp::from_millis(1_002_000))));
    for text in ["a", "b", "c", "d"] {
        world.publish("jobs", text);
        world.clock.advance(SECOND);
    }
    assert_eq!(texts(&take(&mut by_number)), ["c", "d"]);
    assert_eq!(texts(&take(&mut by_time)), ["c", "d"]);
}

#[test]
fn a_named_subscription_keeps_its_place_and_is_exclusive() {
    let world = World::new();
    let named = || on("jobs").named("w");
    let mut first = world.subscribe(named());
    assert_eq!(world.refused(named()), ErrorKind::Busy);
    assert_eq!(world.refused(named().shared()), ErrorKind::Busy);
    world.publish("jobs", "a");
    world.publish("jobs", "b");
    let mut held = take(&mut first);
    held.remove(0).ack().wait().unwrap();
    drop(first);
    assert_eq!(kind(held.pop().unwrap().ack().wait()), ErrorKind::StaleToken);
    world.publish("jobs", "c");
    let mut second = world.subscribe(named().from(StartAt::First));
    let got = take(&mut second);
    assert_eq!(texts(&got), ["b", "c"]);
    assert_eq!((got[0].attempt, got[1].attempt), (2, 1));

    let forget = |name: &str| block_on(world.memory.forget("jobs".parse().unwrap(), name.into()));
    assert_eq!(kind(forget("w")), ErrorKind::Busy);
    drop(second);
    forget("w").unwrap();
    assert_eq!(kind(forget("w")), ErrorKind::NotFound);
    assert!(take(&mut world.subscribe(named())).is_empty(), "it is new again");
}

#[test]
fn a_group_shares_and_a_leaving_member_gives_back() {
    let world = World::new();
    let member = || world.subscribe(on("jobs").named("g").shared().window(2, 1000));
    let (mut one, mut two) = (member(), member());
    for text in ["a", "b", "c", "d", "e"] {
        world.publish("jobs", text);
    }
    let ones = take(&mut one);
    assert_eq!(texts(&ones), ["a", "b"]);
    let mut twos = take(&mut two);
    assert_eq!(texts(&twos), ["c", "d"]);
    // "e" is ready, but the window of `two` is full.
    assert_eq!(Alarm::woken_by(&mut two, || drop(one)), 1);
    twos.drain(..).for_each(|delivery| drop(delivery.ack()));
    let again = take(&mut two);
    assert_eq!(texts(&again), ["a", "b"]);
    assert_eq!(again[0].attempt, 2);
    drop(ones);
    assert_eq!(world.memory.stats().in_flight, 2, "tokens of a member that left are stale");
}

#[test]
fn an_unnamed_subscription_ends_with_its_handle() {
    let world = World::new();
    let mut one = world.subscribe(on("jobs"));
    world.publish("jobs", "a");
    let held = take(&mut one).pop().unwrap();
    drop(one);
    assert_eq!(world.memory.stats().subscriptions, 0);
    // Another subscription takes its slot; the old token must not reach it.
    let mut other = world.subscribe(on("jobs").from(StartAt::First));
    let new = take(&mut other);
    assert_eq!(kind(held.ack().wait()), ErrorKind::StaleToken);
    assert_eq!(world.memory.stats().in_flight, new.len() as u64);
}

#[test]
fn the_same_id_on_the_same_subject_is_a_duplicate() {
    let world = World::new();
    let message = |subject: &str| {
        Envelope::new(subject.parse().unwrap(), "x").with_id(MessageId::text("order-1").unwrap())
    };
    assert_eq!(world.send(message("a")).position(), Some(1));
    let again = world.send(message("a"));
    assert!(again.is_duplicate() && again.position() == Some(1));
    assert!(!world.send(message("b")).is_duplicate());
    world.clock.advance(120 * SECOND);
    assert!(!world.send(message("a")).is_duplicate(), "the window is over");
    assert_eq!(world.memory.stats().messages, 3);
}

#[test]
fn what_cannot_be_published() {
    let world = World::bounded(Options { max_message_bytes: 10, ..Options::default() });
    let refused = |subject: &str, payload: &'static str| match world
        .send(Envelope::new(subject.parse().unwrap(), payload))
    {
        Receipt::Refused(error) => error.kind(),
        other => panic!("{other:?}"),
    };
    assert_eq!(refused("$dead/jobs", "x"), ErrorKind::Rejected);
    assert_eq!(refused("jobs", "1234567"), ErrorKind::TooLarge);
    assert_eq!(world.publish("jobs", "123456"), 1);
    assert_eq!(world.memory.capabilities().max_payload_bytes, Some(10));
}

#[test]
fn what_cannot_be_subscribed() {
    let world = World::new();
    assert_eq!(world.refused(on("a").shared()), ErrorKind::Config);
    assert_eq!(world.refused(on("a").named("no spaces")), ErrorKind::Config);
    assert_eq!(world.refused(on("a").named("")), ErrorKind::Config);
    assert_eq!(world.refused(on("a").ack_wait(Duration::ZERO)), ErrorKind::Config);
}

#[test]
fn a_full_log_drops_what_nobody_waits_for_and_refuses_the_rest() {
    let world = World::bounded(Options { max_messages: 3, ..Options::default() });
    for text in ["a", "b", "c", "d"] {
        world.publish("jobs", text);
    }
    let mut jobs = world.subscribe(on("jobs").from(StartAt::First));
    let mut held = take(&mut jobs);
    assert_eq!(texts(&held), ["b", "c", "d"]);

    let alarm = Arc::new(Alarm::default());
    let waker = Waker::from(Arc::clone(&alarm));
    let mut cx = Context::from_waker(&waker);
    assert!(world.publisher.poll_ready(&mut cx).is_pending());
    let full = world.send(Envelope::new("jobs".parse().unwrap(), "e"));
    assert!(matches!(full, Receipt::Refused(error) if error.kind() == ErrorKind::Busy));

    held.remove(0).ack().wait().unwrap();
    assert_eq!(alarm.0.load(Ordering::SeqCst), 1);
    assert!(world.publisher.poll_ready(&mut cx).is_ready());
    assert_eq!(world.publish("jobs", "e"), 5);
    assert_eq!(world.memory.stats().messages, 3);
}

#[test]
fn a_dead_letter_has_spare_room_and_else_waits_for_it() {
    let world = World::bounded(Options { max_messages: 2, ..Options::default() });
    let mut jobs = world.subscribe(on("jobs"));
    let mut blocker = world.subscribe(on("jobs"));
    world.publish("jobs", "a");
    world.publish("jobs", "b");
    let mut held = take(&mut jobs);
    let mut blocking = take(&mut blocker);
    held.remove(0).settle(Outcome::dead_letter("x")).wait().unwrap();
    assert_eq!(world.memory.stats().messages, 3, "one more than the limit");
    assert_eq!(kind(held.remove(0).settle(Outcome::dead_letter("x")).wait()), ErrorKind::Busy);
    assert_eq!(world.memory.stats().pending, 3);
    assert!(take(&mut jobs).is_empty());

    blocking.remove(0).ack().wait().unwrap();
    world.later(SECOND);
    let again = take(&mut jobs).pop().unwrap();
    assert_eq!((again.position, again.attempt), (Some(2), 2));
    again.settle(Outcome::dead_letter("x")).wait().unwrap();
    assert_eq!(world.memory.stats().dead_letters, 2);
}

#[test]
fn an_expired_message_is_discarded_instead() {
    let world = World::new();
    let mut jobs = world.subscribe(on("jobs"));
    let expires = Timestamp::from_millis(1_000_500);
    world.send(Envelope::new("jobs".parse().unwrap(), "a").with_expires(expires));
    world.publish("jobs", "b");
    world.clock.advance(SECOND);
    assert_eq!(texts(&take(&mut jobs)), ["b"]);
    let stats = world.memory.stats();
    assert_eq!((stats.expired, stats.delivered), (1, 1));
}

#[test]
fn waiting_subscriptions_are_woken_by_what_concerns_them() {
    let world = World::new();
    let mut jobs = world.subscribe(on("jobs").ack_wait(SECOND));
    assert_eq!(Alarm::woken_by(&mut jobs, || assert_eq!(world.publish("other", "x"), 1)), 0);
    assert_eq!(Alarm::woken_by(&mut jobs, || assert_eq!(world.publish("jobs", "x"), 2)), 1);
    let held = take(&mut jobs);
    assert_eq!(Alarm::woken_by(&mut jobs, || drop(held)), 1, "a dropped token");
    let held = take(&mut jobs);
    assert_eq!(Alarm::woken_by(&mut jobs, || world.later(SECOND)), 1, "the end of a lease");
    drop((take(&mut jobs), held));
    take(&mut jobs).pop().unwrap().ack();
    assert_eq!(Alarm::woken_by(&mut jobs, || block_on(world.memory.close()).unwrap()), 1);
}

#[test]
fn a_drain_waits_for_verdicts_until_its_deadline() {
    let world = World::new();
    let mut cx = Context::from_waker(Waker::noop());
    let mut jobs = world.subscribe(on("jobs").named("w"));
    for text in ["a", "b", "c"] {
        world.publish("jobs", text);
    }
    let mut held = take(&mut jobs);
    world.publish("jobs", "d");
    jobs.begin_drain(Timestamp::from_millis(1_005_000));
    let closed = jobs.poll_fill(&mut cx, &mut Vec::new(), 1);
    assert!(matches!(closed, Poll::Ready(Err(error)) if error.kind() == ErrorKind::Closed));
    held.pop().unwrap().ack();
    assert!(jobs.poll_drain(&mut cx).is_pending());
    assert_eq!(world.memory.next_deadline(), Some(Timestamp::from_millis(1_005_000)));
    world.later(5 * SECOND);
    let report = DrainReport { settled: 1, returned: 2, timed_out: true };
    for _ in 0..2 {
        assert!(matches!(jobs.poll_drain(&mut cx), Poll::Ready(Ok(got)) if got == report));
    }
    assert_eq!(kind(held.pop().unwrap().ack().wait()), ErrorKind::StaleToken);
    let mut next = world.subscribe(on("jobs").named("w"));
    assert_eq!(texts(&take(&mut next)), ["a", "b", "d"]);
}

#[test]
fn a_drain_ends_with_the_last_verdict_and_wakes() {
    let world = World::new();
    let mut jobs = world.subscribe(on("jobs"));
    world.publish("jobs", "a");
    let held = take(&mut jobs).pop().unwrap();
    let acking = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        held.ack()
    });
    let report = block_on(std::future::poll_fn(|cx| jobs.poll_drain(cx))).unwrap();
    assert_eq!(report, DrainReport { settled: 1, returned: 0, timed_out: false });
    acking.join().unwrap().wait().unwrap();
}

#[test]
fn after_close_everything_is_closed() {
    let world = World::new();
    let mut jobs = world.subscribe(on("jobs"));
    world.publish("jobs", "a");
    let held = take(&mut jobs).pop().unwrap();
    block_on(world.memory.close()).unwrap();
    assert_eq!(kind(held.ack().wait()), ErrorKind::Closed);
    assert_eq!(world.refused(on("jobs")), ErrorKind::Closed);
    assert!(
        matches!(world.send(Envelope::new("a".parse().unwrap(), "")), Receipt::Refused(e) if e.kind() == ErrorKind::Closed)
    );
    let mut cx = Context::from_waker(Waker::noop());
    assert!(
        matches!(jobs.poll_fill(&mut cx, &mut Vec::new(), 1), Poll::Ready(Err(e)) if e.kind() == ErrorKind::Closed)
    );
    assert!(
        matches!(world.publisher.poll_ready(&mut cx), Poll::Ready(Err(e)) if e.kind() == ErrorKind::Closed)
    );
}

#[test]
fn a_filter_with_gaps_does_not_hold_the_log() {
    let world = World::bounded(Options { max_messages: 4, ..Options::default() });
    let mut even = world.subscribe(on("even"));
    for round in 0..50 {
        world.publish(if round % 2 == 0 { "even" } else { "odd" }, "x");
        for delivery in take(&mut even) {
            delivery.ack().wait().unwrap();
        }
    }
    assert_eq!(world.memory.stats().acked, 25);
}

#[test]
fn names_in_urls_are_shared_inside_one_registry() {
    let mut registry = Registry::new();
    register(&mut registry);
    let connect = |url: &str| block_on(registry.connect(url)).unwrap();
    let (one, two, fresh) = (connect("memory:x"), connect("memory:x"), connect("memory:"));
    let mut on_two = block_on(two.subscribe(on("a"))).unwrap();
    let mut on_fresh = block_on(fresh.subscribe(on("a"))).unwrap();
    let publisher = block_on(one.publisher()).unwrap();
    assert!(publisher.publish(Envelope::new("a".parse().unwrap(), "1")).wait().is_confirmed());
    assert_eq!(take(&mut on_two).len(), 1);
    assert!(take(&mut on_fresh).is_empty());
}

#[test]
fn consumers_on_threads_lose_and_double_nothing() {
    const MESSAGES: usize = 2000;
    let memory = Memory::new();
    let options = || on("jobs").named("g").shared().window(8, 1 << 20);
    // All members first, so that none misses its share.
    let members: Vec<_> = (0..4).map(|_| block_on(memory.subscribe(options())).unwrap()).collect();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let threads: Vec<_> = members
        .into_iter()
        .map(|mut member| {
            let seen = Arc::clone(&seen);
            std::thread::spawn(move || {
                let mut batch = Vec::new();
                loop {
                    let filled = block_on(std::future::poll_fn(|cx| member.poll_fill(cx, &mut batch, 5)));
                    if filled.is_err() {
                        return;
                    }
                    for delivery in batch.drain(..) {
                        let position = delivery.position.unwrap();
                        // Every seventh is dropped once.
                        if position % 7 == 0 && delivery.attempt == 1 {
                            continue;
                        }
                        delivery.ack().wait().unwrap();
                        seen.lock().unwrap().push(position as usize);
                    }
                }
            })
        })
        .collect();
    let publisher = block_on(memory.publisher()).unwrap();
    for _ in 0..MESSAGES {
        assert!(publisher.publish(Envelope::new("jobs".parse().unwrap(), "x")).wait().is_confirmed());
    }
    let start = std::time::Instant::now();
    while memory.stats().pending > 0 {
        assert!(start.elapsed() < 30 * SECOND, "{memory:?}");
        std::thread::yield_now();
    }
    block_on(memory.close()).unwrap();
    for thread in threads {
        thread.join().unwrap();
    }
    let mut seen = std::mem::take(&mut *seen.lock().unwrap());
    seen.sort_unstable();
    assert_eq!(seen, (1..=MESSAGES).collect::<Vec<_>>());
    assert_eq!(memory.stats().dropped, (MESSAGES / 7) as u64);
}

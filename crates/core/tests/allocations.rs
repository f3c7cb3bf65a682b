//! Receiving and settling through `dyn` costs no allocation once buffers have grown.

use std::task::{Context, Poll, Waker};

use postroad_core::memory::{Memory, Options};
use postroad_core::{
    Backend, Delivery, Envelope, Outcome, Publisher, Subject, SubscribeOptions, Subscription, block_on,
    settle_all,
};

const BATCH: usize = 64;
const ROUNDS: usize = 100;

fn publish(publisher: &dyn Publisher, subject: &Subject, count: usize) {
    for number in 0..count {
        let envelope = Envelope::new(subject.clone(), format!("message {number}")).with_header("n", 1);
        assert!(publisher.publish(envelope).wait().is_confirmed());
    }
}

fn receive_and_settle(subscription: &mut dyn Subscription, batch: &mut Vec<Delivery>) -> usize {
    let mut cx = Context::from_waker(Waker::noop());
    let Poll::Ready(count) = subscription.poll_fill(&mut cx, batch, BATCH) else {
        panic!("messages are missing")
    };
    let count = count.unwrap();
    for delivery in batch.drain(BATCH / 2..) {
        assert!(delivery.ack().try_get().is_some_and(|result| result.is_ok()));
    }
    let mut settled = settle_all(batch.drain(..).map(|delivery| delivery.token), Outcome::Ack);
    assert!(settled.try_get().is_some_and(|result| result.is_ok()));
    count
}

#[test]
fn receive_and_settle_allocate_nothing_per_message() {
    let options = Options { dedup_count: 0, ..Options::default() };
    let memory = Memory::with(options, postroad_core::SystemClock::new());
    let publisher = block_on(memory.publisher()).unwrap();
    let subject = Subject::new("orders/eu").unwrap();
    let filter = "orders/>".parse().unwrap();
    let mut subscription = block_on(memory.subscribe(SubscribeOptions::new(filter))).unwrap();
    let mut batch = Vec::with_capacity(BATCH);

    publish(&*publisher, &subject, 2 * BATCH * ROUNDS);
    for _ in 0..ROUNDS {
        assert_eq!(receive_and_settle(&mut *subscription, &mut batch), BATCH);
    }
    let mut received = 0;
    let info = allocation_counter::measure(|| {
        for _ in 0..ROUNDS {
            received += receive_and_settle(&mut *subscription, &mut batch);
        }
    });
    assert_eq!(received, BATCH * ROUNDS);
    assert_eq!(info.count_total, 0, "{received} messages: {info:?}");
    assert_eq!(memory.stats().pending, 0);
}

#[test]
fn a_ready_ticket_and_a_ready_verdict_allocate_nothing() {
    let info = allocation_counter::measure(|| {
        assert!(postroad_core::Ticket::confirmed(Some(1), false).try_get().is_some());
        assert!(postroad_core::Settled::ok().try_get().is_some());
    });
    assert_eq!(info.count_total, 0);
}

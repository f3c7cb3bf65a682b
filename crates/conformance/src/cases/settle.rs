//! Verdicts: each has its effect, and no other.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use postroad_core::headers::Value;
use postroad_core::{Delivery, Outcome, StartAt, SubscribeOptions, Subscription, dead_letter, settle_all};
use tokio::time::Instant;

use super::twins::{refuses_to_settle, refuses_to_subscribe};
use crate::case::{Case, case};
use crate::context::{CaseResult, Context, ensure, ensure_eq, numbers, text};

pub(crate) const CASES: &[Case] = &[
    case!("settle/ack_is_final", ack_is_final, []),
    case!("settle/ack_is_only_for_its_own", ack_is_only_for_its_own, [IndividualAck, Redelivery]),
    case!("settle/retry", retry, [Nack], Nack => no_retry),
    case!("settle/retry_with_delay", retry_with_delay, [NackDelay], NackDelay => no_delay),
    case!("settle/delay_holds_up_nobody", delay_holds_up_nobody, [NackDelay, IndividualAck]),
    case!("settle/backoff", backoff, [NackDelay]),
    case!("settle/discard_is_final", discard_is_final, []),
    case!("settle/dropped_delivery", dropped_delivery, [Nack]),
    case!("settle/dropped_by_a_panic", dropped_by_a_panic, [Nack]),
    case!("settle/attempts_are_counted", attempts_are_counted, [Nack, CountedAttempts]),
    case!("settle/redelivered_is_flagged", redelivered_is_flagged, [Nack, RedeliveredFlag]),
    case!("settle/dead_letter", dead_letter_case, [DeadLetter], DeadLetter => no_dead_letter),
    case!("settle/too_many_deliveries", too_many_deliveries, [DeadLetter, Nack], DeadLetter => no_max_deliveries),
    case!("settle/together", together, []),
];

/// A consumer that has a lease to wait out, and messages `0` to `count - 1`.
async fn filled(cx: &Context, options: SubscribeOptions, count: usize) -> CaseResult<Box<dyn Subscription>> {
    let backend = cx.connect().await?;
    let inbox = cx.subscribe(&backend, options).await?;
    cx.send_all(&cx.publisher(&backend).await?, "a", numbers(count)).await?;
    Ok(inbox)
}

async fn ack_is_final(cx: Arc<Context>) -> CaseResult {
    let mut inbox = filled(&cx, cx.leased("a"), 10).await?;
    let got: BTreeSet<_> = cx.take_texts(&mut inbox, 10).await?.into_iter().collect();
    ensure_eq!(got.len(), 10, "different messages");
    // Also not when the leases would have ended.
    cx.quiet_for(&mut inbox, cx.tempo.lease + cx.tempo.quiet).await
}

async fn ack_is_only_for_its_own(cx: Arc<Context>) -> CaseResult {
    let mut inbox = filled(&cx, cx.leased("a"), 4).await?;
    let held = cx.take(&mut inbox, 4).await?;
    let mut open = BTreeSet::new();
    let mut kept = Vec::new();
    for (at, delivery) in held.into_iter().enumerate() {
        if at == 2 {
            cx.ack(delivery).await?;
        } else {
            open.insert(text(&delivery));
            kept.push(delivery);
        }
    }
    // Their leases end; of the three not acked all come again.
    let again: BTreeSet<_> = cx.take_texts(&mut inbox, 3).await?.into_iter().collect();
    ensure_eq!(again, open, "what comes again");
    drop(kept);
    cx.quiet(&mut inbox).await
}

async fn retry(cx: Arc<Context>) -> CaseResult {
    let mut inbox = filled(&cx, cx.options("a"), 3).await?;
    let first = cx.take(&mut inbox, 3).await?;
    let ids: BTreeSet<_> = first.iter().map(|delivery| delivery.envelope.id.clone()).collect();
    for delivery in first {
        cx.settled(delivery.retry()).await?;
    }
    // Long before its lease of 30 seconds.
    let again = cx.take(&mut inbox, 3).await?;
    let same: BTreeSet<_> = again.iter().map(|delivery| delivery.envelope.id.clone()).collect();
    ensure!(ids == same, "other messages came again");
    for delivery in again {
        ensure!(
            matches!(cx.can.attempts, postroad_core::Attempts::Unknown) || delivery.redelivered,
            "a repeated delivery is not called redelivered"
        );
        cx.ack(delivery).await?;
    }
    cx.quiet(&mut inbox).await
}

async fn no_retry(cx: Arc<Context>) -> CaseResult {
    refuses_to_settle(&cx, "nack", Outcome::retry()).await
}

async fn retry_with_delay(cx: Arc<Context>) -> CaseResult {
    let delay = cx.tempo.quiet * 3;
    let mut inbox = filled(&cx, cx.options("a"), 1).await?;
    let delivery = cx.next(&mut inbox).await?;
    let began = Instant::now();
    cx.settle(delivery, Outcome::retry_after(delay)).await?;
    let again = cx.next(&mut inbox).await?;
    let took = began.elapsed();
    ensure!(took >= delay, "a delay of {delay:?} was over after {took:?}");
    cx.ack(again).await?;
    cx.quiet(&mut inbox).await
}

async fn no_delay(cx: Arc<Context>) -> CaseResult {
    refuses_to_settle(&cx, "nack with a delay", Outcome::retry_after(Duration::from_millis(100))).await
}

async fn delay_holds_up_nobody(cx: Arc<Context>) -> CaseResult {
    let mut inbox = filled(&cx, cx.options("a").window(1, 1 << 20), 3).await?;
    let delivery = cx.next(&mut inbox).await?;
    let delayed = text(&delivery);
    // Much longer than the others need.
    cx.settle(delivery, Outcome::retry_after(cx.tempo.patience / 2)).await?;
    let others = cx.take_texts(&mut inbox, 2).await?;
    ensure!(!others.contains(&delayed), "{delayed} was to wait, and came before the others");
    ensure_eq!(cx.take_texts(&mut inbox, 1).await?, [delayed], "what comes after the delay");
    Ok(())
}

async fn backoff(cx: Arc<Context>) -> CaseResult {
    let steps = [cx.tempo.quiet, cx.tempo.quiet * 3];
    let mut inbox = filled(&cx, cx.options("a").backoff(steps), 1).await?;
    let mut delivery = cx.next(&mut inbox).await?;
    // The last one repeats.
    for step in [steps[0], steps[1], steps[1]] {
        let began = Instant::now();
        cx.settled(delivery.retry()).await?;
        delivery = cx.next(&mut inbox).await?;
        let took = began.elapsed();
        ensure!(took >= step, "a backoff of {step:?} was over after {took:?}");
        ensure!(took < step + cx.tempo.patience / 2, "a backoff of {step:?} took {took:?}");
    }
    cx.ack(delivery).await
}

async fn discard_is_final(cx: Arc<Context>) -> CaseResult {
    let mut inbox = filled(&cx, cx.leased("a"), 2).await?;
    for delivery in cx.take(&mut inbox, 2).await? {
        cx.settle(delivery, Outcome::Discard).await?;
    }
    cx.quiet_for(&mut inbox, cx.tempo.lease + cx.tempo.quiet).await
}

async fn dropped_delivery(cx: Arc<Context>) -> CaseResult {
    let mut inbox = filled(&cx, cx.options("a"), 2).await?;
    let first = cx.next(&mut inbox).await?;
    let (id, dropped) = (first.envelope.id.clone(), text(&first));
    drop(first);
    // Again, and long before its lease of 30 seconds.
    let again = cx.take(&mut inbox, 2).await?;
    ensure!(
        again.iter().any(|delivery| delivery.envelope.id == id),
        "{dropped} was dropped and did not come again"
    );
    for delivery in again {
        cx.ack(delivery).await?;
    }
    cx.quiet(&mut inbox).await
}

async fn dropped_by_a_panic(cx: Arc<Context>) -> CaseResult {
    struct Boom;
    let mut inbox = filled(&cx, cx.options("a"), 1).await?;
    let delivery = cx.next(&mut inbox).await?;
    let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _held = delivery;
        // Not `panic!`: nothing is to be printed.
        std::panic::resume_unwind(Box::new(Boom));
    }));
    ensure!(unwound.is_err(), "the panic did not happen");
    ensure_eq!(cx.take_texts(&mut inbox, 1).await?, ["0"], "what comes again");
    cx.quiet(&mut inbox).await
}

async fn attempts_are_counted(cx: Arc<Context>) -> CaseResult {
    let mut inbox = filled(&cx, cx.options("a"), 1).await?;
    for attempt in 1..=5 {
        let delivery = cx.next(&mut inbox).await?;
        ensure_eq!(delivery.attempt, attempt, "attempt");
        if attempt == 5 {
            cx.ack(delivery).await?;
        } else if attempt == 3 {
            drop(delivery);
        } else {
            cx.settled(delivery.retry()).await?;
        }
    }
    Ok(())
}

async fn redelivered_is_flagged(cx: Arc<Context>) -> CaseResult {
    let mut inbox = filled(&cx, cx.options("a"), 1).await?;
    for redelivered in [false, true, true] {
        let delivery = cx.next(&mut inbox).await?;
        ensure_eq!(delivery.redelivered, redelivered, "redelivered");
        cx.settled(delivery.retry()).await?;
    }
    Ok(())
}

/// The dead letters of `name`.
async fn dead_letters(cx: &Context, name: &str) -> CaseResult<Box<dyn Subscription>> {
    let filter = format!("$dead/{}", cx.subject(name));
    let filter = filter.parse().map_err(|why| crate::Failure::new(format!("{filter}: {why}")))?;
    let from = if cx.can.replay.first.is_there() { StartAt::First } else { StartAt::New };
    cx.subscribe(&cx.connect().await?, SubscribeOptions::new(filter).from(from)).await
}

fn check_death(cx: &Context, letter: &Delivery, payload: &str, attempts: i64) -> CaseResult {
    let headers = &letter.envelope.headers;
    let subject = format!("$dead/{}", cx.subject("a"));
    ensure_eq!(letter.envelope.subject.as_str(), subject, "subject of a dead letter");
    ensure_eq!(text(letter), payload, "payload of a dead letter");
    ensure_eq!(headers.get_text("shop"), Some("7"), "the message's own header");
    let died = cx.subject("a");
    ensure_eq!(headers.get_text(dead_letter::SUBJECT), Some(died.as_str()), "where it died");
    if matches!(cx.can.attempts, postroad_core::Attempts::Exact) {
        ensure_eq!(
            headers.get(dead_letter::ATTEMPTS).and_then(Value::as_i64),
            Some(attempts),
            "its attempts"
        );
    }
    Ok(())
}

async fn dead_letter_case(cx: Arc<Context>) -> CaseResult {
    let backend = cx.connect().await?;
    let mut inbox = cx.subscribe(&backend, cx.leased("a")).await?;
    let mut dead = dead_letters(&cx, "a").await?;
    let sent = cx.message("a", "broken").with_header("shop", "7");
    cx.send(&cx.publisher(&backend).await?, sent.clone()).await?;
    let delivery = cx.next(&mut inbox).await?;
    cx.settle(delivery, Outcome::dead_letter("no such shop")).await?;
    let letter = cx.next(&mut dead).await?;
    check_death(&cx, &letter, "broken", 1)?;
    let reason = letter.envelope.headers.get_text(dead_letter::REASON);
    ensure_eq!(reason, Some("no such shop"), "the reason");
    let revived = dead_letter::revive(&letter.envelope);
    ensure_eq!(revived.map(|envelope| envelope.id), Some(sent.id), "the id of what is revived");
    cx.ack(letter).await?;
    cx.quiet(&mut dead).await?;
    // It is done with here.
    cx.quiet_for(&mut inbox, cx.tempo.lease + cx.tempo.quiet).await
}

async fn no_dead_letter(cx: Arc<Context>) -> CaseResult {
    refuses_to_settle(&cx, "a dead letter", Outcome::dead_letter("why")).await
}

async fn too_many_deliveries(cx: Arc<Context>) -> CaseResult {
    let backend = cx.connect().await?;
    let mut inbox = cx.subscribe(&backend, cx.leased("a").max_deliveries(3)).await?;
    let mut dead = dead_letters(&cx, "a").await?;
    cx.send(&cx.publisher(&backend).await?, cx.message("a", "broken").with_header("shop", "7")).await?;
    for _ in 0..2 {
        let delivery = cx.next(&mut inbox).await?;
        cx.settled(delivery.retry()).await?;
    }
    cx.quiet(&mut dead).await?;
    let last = cx.next(&mut inbox).await?;
    cx.settled(last.retry()).await?;
    let letter = cx.next(&mut dead).await?;
    check_death(&cx, &letter, "broken", 3)?;
    let has_reason = letter.envelope.headers.get_text(dead_letter::REASON).is_some_and(|why| !why.is_empty());
    ensure!(has_reason, "a dead letter without a reason: {:?}", letter.envelope.headers);
    cx.ack(letter).await?;
    cx.quiet_for(&mut inbox, cx.tempo.lease + cx.tempo.quiet).await
}

async fn no_max_deliveries(cx: Arc<Context>) -> CaseResult {
    refuses_to_subscribe(&cx, "a maximum of deliveries", cx.options("a").max_deliveries(3)).await
}

async fn together(cx: Arc<Context>) -> CaseResult {
    let mut inbox = filled(&cx, cx.leased("a"), 30).await?;
    let tokens: Vec<_> = cx.take(&mut inbox, 30).await?.into_iter().map(|delivery| delivery.token).collect();
    cx.settled(settle_all(tokens, Outcome::Ack)).await?;
    cx.quiet_for(&mut inbox, cx.tempo.lease + cx.tempo.quiet).await
}

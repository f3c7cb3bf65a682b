//! Leases: what is not settled in time comes again, and the old token has no say any more.

use std::sync::Arc;

use postroad_core::ErrorKind;
use tokio::time::Instant;

use super::twins::no_extend;
use crate::case::{Case, case};
use crate::context::{CaseResult, Context, ensure, ensure_eq, text};

pub(crate) const CASES: &[Case] = &[
    case!("lease/ends", ends, [Redelivery]),
    case!("lease/is_counted_as_an_attempt", is_counted_as_an_attempt, [Redelivery, CountedAttempts]),
    case!("lease/old_token_is_stale", old_token_is_stale, [Redelivery]),
    case!("lease/extend", extend, [Redelivery, Extend], Extend => no_extend),
    case!("lease/extend_too_late", extend_too_late, [Redelivery, Extend]),
];

async fn ends(cx: Arc<Context>) -> CaseResult {
    let backend = cx.connect().await?;
    let mut inbox = cx.subscribe(&backend, cx.leased("a")).await?;
    cx.send(&cx.publisher(&backend).await?, cx.message("a", "x")).await?;
    let began = Instant::now();
    let held = cx.next(&mut inbox).await?;
    let again = cx.next(&mut inbox).await?;
    let took = began.elapsed();
    ensure_eq!(again.envelope.id, held.envelope.id, "what comes again");
    ensure!(took >= cx.tempo.lease, "a lease of {:?} ended after {took:?}", cx.tempo.lease);
    drop(held);
    cx.ack(again).await?;
    cx.quiet_for(&mut inbox, cx.tempo.lease + cx.tempo.quiet).await
}

async fn is_counted_as_an_attempt(cx: Arc<Context>) -> CaseResult {
    let backend = cx.connect().await?;
    let mut inbox = cx.subscribe(&backend, cx.leased("a")).await?;
    cx.send(&cx.publisher(&backend).await?, cx.message("a", "x")).await?;
    let mut held = Vec::new();
    for attempt in 1..=3 {
        let delivery = cx.next(&mut inbox).await?;
        ensure_eq!(delivery.attempt, attempt, "attempt");
        held.push(delivery);
    }
    Ok(())
}

async fn old_token_is_stale(cx: Arc<Context>) -> CaseResult {
    let backend = cx.connect().await?;
    let mut inbox = cx.subscribe(&backend, cx.leased("a")).await?;
    cx.send(&cx.publisher(&backend).await?, cx.message("a", "x")).await?;
    let old = cx.next(&mut inbox).await?;
    let new = cx.next(&mut inbox).await?;
    cx.refused(old.ack(), ErrorKind::StaleToken).await?;
    // The ack of the old one had no effect on the new one: it comes a third time, and can be acked then.
    let third = cx.next(&mut inbox).await?;
    ensure_eq!(text(&third), "x", "what comes the third time");
    cx.refused(new.ack(), ErrorKind::StaleToken).await?;
    cx.ack(third).await?;
    cx.quiet_for(&mut inbox, cx.tempo.lease + cx.tempo.quiet).await
}

async fn extend(cx: Arc<Context>) -> CaseResult {
    let backend = cx.connect().await?;
    let mut inbox = cx.subscribe(&backend, cx.leased("a")).await?;
    cx.send(&cx.publisher(&backend).await?, cx.message("a", "x")).await?;
    let mut delivery = cx.next(&mut inbox).await?;
    // Two and a half leases long.
    for _ in 0..5 {
        cx.quiet_for(&mut inbox, cx.tempo.lease / 2).await?;
        cx.settled(delivery.token.extend()).await?;
    }
    cx.ack(delivery).await?;
    cx.quiet_for(&mut inbox, cx.tempo.lease + cx.tempo.quiet).await
}

async fn extend_too_late(cx: Arc<Context>) -> CaseResult {
    let backend = cx.connect().await?;
    let mut inbox = cx.subscribe(&backend, cx.leased("a")).await?;
    cx.send(&cx.publisher(&backend).await?, cx.message("a", "x")).await?;
    let mut old = cx.next(&mut inbox).await?;
    let new = cx.next(&mut inbox).await?;
    cx.refused(old.token.extend(), ErrorKind::StaleToken).await?;
    cx.ack(new).await
}

//! Groups: several consumers, each message to one of them.

use std::collections::BTreeSet;
use std::sync::Arc;

use postroad_core::{ErrorKind, SubscribeOptions};

use super::twins::refuses_to_subscribe;
use crate::Failure;
use crate::case::{Case, case};
use crate::context::{CaseResult, Context, ensure, ensure_eq, numbers, text};

pub(crate) const CASES: &[Case] = &[
    case!("groups/share", share, [Groups, Named], Groups => no_groups),
    case!("groups/two_groups_get_all", two_groups_get_all, [Groups, Named]),
    case!("groups/many_consumers", many_consumers, [Groups, Named]),
    case!("groups/consumer_gone", consumer_gone, [Groups, Named, Redelivery]),
    case!("groups/exclusive_is_busy", exclusive_is_busy, [Named]),
    case!("groups/need_a_name", need_a_name, [Groups]),
];

fn group(cx: &Context, name: &str) -> SubscribeOptions {
    cx.options("a").named(name).shared()
}

async fn share(cx: Arc<Context>) -> CaseResult {
    let (one, two) = (cx.connect().await?, cx.connect().await?);
    let mut first = cx.subscribe(&one, group(&cx, "g").window(1, 1 << 20)).await?;
    let mut second = cx.subscribe(&two, group(&cx, "g").window(1, 1 << 20)).await?;
    cx.send_all(&cx.publisher(&one).await?, "a", numbers(2)).await?;
    // Each holds one, so each has got one.
    let (a, b) = (cx.next(&mut first).await?, cx.next(&mut second).await?);
    ensure!(a.envelope.id != b.envelope.id, "both consumers of a group got {}", text(&a));
    cx.ack(a).await?;
    cx.ack(b).await?;
    cx.quiet(&mut first).await?;
    cx.quiet(&mut second).await
}

async fn no_groups(cx: Arc<Context>) -> CaseResult {
    refuses_to_subscribe(&cx, "a group", group(&cx, "g")).await
}

async fn two_groups_get_all(cx: Arc<Context>) -> CaseResult {
    let backend = cx.connect().await?;
    let mut first = cx.subscribe(&backend, group(&cx, "g1")).await?;
    let mut second = cx.subscribe(&backend, group(&cx, "g2")).await?;
    cx.send_all(&cx.publisher(&backend).await?, "a", numbers(20)).await?;
    for inbox in [&mut first, &mut second] {
        let got: BTreeSet<_> = cx.take_texts(inbox, 20).await?.into_iter().collect();
        ensure_eq!(got.len(), 20, "different messages");
        cx.quiet(inbox).await?;
    }
    Ok(())
}

async fn many_consumers(cx: Arc<Context>) -> CaseResult {
    const CONSUMERS: usize = 5;
    const COUNT: usize = 200;
    let producer = cx.connect().await?;
    let mut consuming = Vec::new();
    let (got, mut all) = tokio::sync::mpsc::unbounded_channel();
    for _ in 0..CONSUMERS {
        let backend = cx.connect().await?;
        let mut inbox = cx.subscribe(&backend, group(&cx, "g").window(4, 1 << 20)).await?;
        let (cx, got) = (Arc::clone(&cx), got.clone());
        consuming.push(tokio::spawn(async move {
            loop {
                let delivery = cx.next(&mut inbox).await?;
                let text = text(&delivery);
                cx.ack(delivery).await?;
                if got.send(text).is_err() {
                    return Ok::<(), Failure>(());
                }
            }
        }));
    }
    cx.send_all(&cx.publisher(&producer).await?, "a", numbers(COUNT)).await?;
    let mut seen = BTreeSet::new();
    while seen.len() < COUNT {
        let text = cx.in_time("a delivery to the group", all.recv()).await?.unwrap_or_default();
        ensure!(seen.insert(text.clone()), "{text} came twice to a group");
    }
    let late = tokio::time::timeout(cx.tempo.quiet, all.recv()).await;
    ensure!(late.is_err(), "{late:?} came after all had come");
    consuming.iter().for_each(tokio::task::JoinHandle::abort);
    Ok(())
}

async fn consumer_gone(cx: Arc<Context>) -> CaseResult {
    let (one, two) = (cx.connect().await?, cx.connect().await?);
    let mut first = cx.subscribe(&one, group(&cx, "g").window(2, 1 << 20)).await?;
    cx.send_all(&cx.publisher(&two).await?, "a", numbers(4)).await?;
    let held = cx.take(&mut first, 2).await?;
    let mut second = cx.subscribe(&two, group(&cx, "g")).await?;
    ensure_eq!(cx.take_texts(&mut second, 2).await?.len(), 2, "what the other gets meanwhile");
    // Long before the lease of 30 seconds.
    drop(first);
    let mut got = cx.take_texts(&mut second, 2).await?;
    got.sort_unstable();
    ensure_eq!(got, ["0", "1"], "what the consumer that went held");
    for delivery in held {
        cx.refused(delivery.ack(), ErrorKind::StaleToken).await?;
    }
    cx.quiet(&mut second).await
}

async fn exclusive_is_busy(cx: Arc<Context>) -> CaseResult {
    let (one, two) = (cx.connect().await?, cx.connect().await?);
    let _held = cx.subscribe(&one, cx.options("a").named("n")).await?;
    match cx.in_time("subscribing", two.subscribe(cx.options("a").named("n"))).await? {
        Err(why) if why.kind() == ErrorKind::Busy => Ok(()),
        Err(why) => Err(Failure::new(format!("an exclusive subscription that is taken must be busy: {why}"))),
        Ok(_) => Err(Failure::new("an exclusive subscription was given to two")),
    }
}

async fn need_a_name(cx: Arc<Context>) -> CaseResult {
    let backend = cx.connect().await?;
    match cx.in_time("subscribing", backend.subscribe(cx.options("a").shared())).await? {
        Err(why) if why.kind() == ErrorKind::Config => Ok(()),
        Err(why) => Err(Failure::new(format!("a group without a name must be a wrong configuration: {why}"))),
        Ok(_) => Err(Failure::new("a group without a name was made")),
    }
}

//! Connections and brokers that go away, with and without a word.

use std::collections::BTreeSet;
use std::sync::Arc;

use postroad_core::{Backend, ErrorKind, PublisherExt, Receipt, Subscription, SubscriptionExt};

use crate::Failure;
use crate::case::{Case, case};
use crate::context::{CaseResult, Context, ensure, ensure_eq, numbers, text};

pub(crate) const CASES: &[Case] = &[
    case!("connection/cut_consumer", cut_consumer, [Cut, Named, Redelivery]),
    case!("connection/cut_publisher", cut_publisher, [Cut, Confirm, Named]),
    case!("connection/loss_is_noticed", loss_is_noticed, [Cut, Named]),
    case!(
        "connection/attempts_survive_a_cut",
        attempts_survive_a_cut,
        [Cut, Named, Redelivery, Nack, ExactAttempts]
    ),
    case!("connection/half_open_consumer", half_open_consumer, [HalfOpen, Named, Groups, Redelivery]),
    case!("connection/half_open_publisher", half_open_publisher, [HalfOpen, Confirm]),
    case!("connection/pause", pause, [Pause, Confirm, Named]),
    case!("connection/restart", restart, [Restart, SurvivesKill, Confirm, Named]),
    case!("connection/kill", kill, [Kill, SurvivesKill, Confirm, Named]),
    case!(
        "connection/attempts_survive_a_restart",
        attempts_survive_a_restart,
        [Restart, SurvivesKill, Named, Nack, ExactAttempts]
    ),
];

async fn cut_consumer(cx: Arc<Context>) -> CaseResult {
    let (consumer, producer) = (cx.connect().await?, cx.connect().await?);
    let mut inbox = cx.subscribe(&consumer, cx.options("a").named("n")).await?;
    cx.send_all(&cx.publisher(&producer).await?, "a", numbers(3)).await?;
    let mut held = cx.take(&mut inbox, 3).await?;
    cx.ack(held.remove(0)).await?;
    cx.chaos()?.cut().await?;
    drop(inbox);
    let mut inbox = cx.subscribe(&cx.connect().await?, cx.options("a").named("n")).await?;
    // Long before the lease of 30 seconds.
    let again = cx.take(&mut inbox, 2).await?;
    let mut got: Vec<_> = again.iter().map(text).collect();
    got.sort_unstable();
    ensure_eq!(got, ["1", "2"], "what a lost connection held");
    // The old tokens have no say, above all not over the new deliveries.
    for delivery in held {
        let settled = cx.in_time("a verdict of a lost connection", delivery.ack()).await?;
        ensure!(settled.is_err(), "a verdict of a lost connection was taken");
    }
    // Whoever holds the newer one decides: acked it is gone, dropped it comes again.
    let mut again = again.into_iter();
    if let Some(acked) = again.next() {
        cx.ack(acked).await?;
    }
    for dropped in again {
        let id = dropped.envelope.id.clone();
        drop(dropped);
        let back = cx.next(&mut inbox).await?;
        ensure_eq!(back.envelope.id, id, "what was dropped after a verdict of a lost connection");
        cx.ack(back).await?;
    }
    cx.quiet(&mut inbox).await
}

/// Publishes without waiting; all tickets get an answer, whatever happens in between. Which were confirmed, and which
/// surely not stored.
async fn publish_through(
    cx: &Arc<Context>,
    backend: &Arc<dyn Backend>,
    trouble: impl Future<Output = CaseResult>,
) -> CaseResult<(BTreeSet<String>, BTreeSet<String>)> {
    const COUNT: usize = 400;
    let publisher = cx.publisher(backend).await?;
    let mut tickets = Vec::new();
    let mut trouble = Some(trouble);
    for (n, text) in numbers(COUNT).into_iter().enumerate() {
        if n == COUNT / 2
            && let Some(trouble) = trouble.take()
        {
            trouble.await?;
        }
        if cx.in_time("room for a publish", publisher.ready()).await?.is_err() {
            break;
        }
        tickets.push((text.clone(), publisher.publish(cx.message("a", text))));
    }
    let (mut confirmed, mut refused) = (BTreeSet::new(), BTreeSet::new());
    for (text, ticket) in tickets {
        match cx.receipt(ticket).await? {
            Receipt::Confirmed { .. } => _ = confirmed.insert(text),
            Receipt::Refused(_) => _ = refused.insert(text),
            _ => {}
        }
    }
    Ok((confirmed, refused))
}

/// All that was confirmed is there, and nothing of what was refused.
async fn holds(
    cx: &Context,
    inbox: &mut Box<dyn Subscription>,
    mut confirmed: BTreeSet<String>,
    refused: &BTreeSet<String>,
) -> CaseResult {
    while !confirmed.is_empty() {
        let delivery = cx.next(inbox).await;
        let delivery = delivery.map_err(|why| {
            let some: Vec<_> = confirmed.iter().take(5).collect();
            Failure::new(format!(
                "{} that were confirmed are missing, {some:?} first: {why}",
                confirmed.len()
            ))
        })?;
        let text = text(&delivery);
        confirmed.remove(&text);
        ensure!(!refused.contains(&text), "{text} was refused, and came");
        cx.ack(delivery).await?;
    }
    Ok(())
}

async fn cut_publisher(cx: Arc<Context>) -> CaseResult {
    drop(cx.subscribe(&cx.connect().await?, cx.options("a").named("n")).await?);
    let backend = cx.connect().await?;
    let (confirmed, refused) = publish_through(&cx, &backend, async { cx.chaos()?.cut().await }).await?;
    // A new publisher works.
    let backend = cx.connect().await?;
    cx.send(&cx.publisher(&backend).await?, cx.message("a", "after")).await?;
    let mut inbox = cx.subscribe(&backend, cx.options("a").named("n")).await?;
    let confirmed = confirmed.into_iter().chain(["after".to_owned()]).collect();
    holds(&cx, &mut inbox, confirmed, &refused).await
}

async fn loss_is_noticed(cx: Arc<Context>) -> CaseResult {
    let backend = cx.connect().await?;
    let mut inbox = cx.subscribe(&backend, cx.options("a").named("n")).await?;
    let publisher = cx.publisher(&backend).await?;
    cx.send(&publisher, cx.message("a", "before")).await?;
    cx.ack(cx.next(&mut inbox).await?).await?;
    // Somebody waits.
    let waiting = tokio::spawn(async move {
        let first = inbox.next().await.map(|delivery| text(&delivery));
        (first, inbox.next().await.map(|delivery| text(&delivery)))
    });
    tokio::time::sleep(cx.tempo.quiet).await;
    cx.chaos()?.cut().await?;
    let heard = cx.in_time("a consumer that lost its connection", waiting).await?;
    let (first, then) = heard.map_err(|why| Failure::new(why.to_string()))?;
    let gone = |next: &Result<String, postroad_core::Error>, kinds: &[ErrorKind]| {
        next.as_ref().is_err_and(|why| kinds.contains(&why.kind()))
    };
    let ended = [ErrorKind::Disconnected, ErrorKind::Closed];
    ensure!(gone(&first, &ended), "a consumer that lost its connection gets {first:?}");
    ensure!(gone(&then, &ended), "and asked again, {then:?}");
    let until = tokio::time::Instant::now() + cx.tempo.patience;
    loop {
        ensure!(tokio::time::Instant::now() < until, "a publisher goes on without its connection");
        if cx.in_time("room without a connection", publisher.ready()).await?.is_err() {
            break;
        }
        let receipt = cx.receipt(publisher.publish(cx.message("b", "x"))).await?;
        ensure!(!receipt.is_confirmed(), "a publish without a connection is {receipt:?}");
        tokio::time::sleep(cx.tempo.quiet / 10).await;
    }
    Ok(())
}

async fn attempts_survive_a_cut(cx: Arc<Context>) -> CaseResult {
    let backend = cx.connect().await?;
    let mut inbox = cx.subscribe(&backend, cx.options("a").named("n")).await?;
    cx.send(&cx.publisher(&backend).await?, cx.message("a", "x")).await?;
    cx.settle(cx.next(&mut inbox).await?, postroad_core::Outcome::retry()).await?;
    let held = cx.next(&mut inbox).await?;
    ensure_eq!(held.attempt, 2, "attempt");
    cx.chaos()?.cut().await?;
    drop((inbox, held));
    let mut inbox = cx.subscribe(&cx.connect().await?, cx.options("a").named("n")).await?;
    let again = cx.next(&mut inbox).await?;
    ensure_eq!((again.attempt, again.redelivered), (3, true), "attempt, redelivered after a cut");
    cx.ack(again).await
}

async fn half_open_consumer(cx: Arc<Context>) -> CaseResult {
    let group = || cx.leased("a").named("g").shared().window(1, 1 << 20);
    let one = cx.connect().await?;
    let mut first = cx.subscribe(&one, group()).await?;
    cx.send(&cx.publisher(&one).await?, cx.message("a", "x")).await?;
    let held = cx.next(&mut first).await?;
    cx.chaos()?.half_open().await?;
    // Nobody tells the broker that the first is gone: the lease does.
    let two = cx.connect().await?;
    let mut second = cx.subscribe(&two, group()).await?;
    let again = cx.next(&mut second).await?;
    ensure_eq!(again.envelope.id, held.envelope.id, "what the other one gets");
    cx.ack(again).await?;
    cx.chaos()?.heal().await?;
    let settled = cx.in_time("a verdict of a dead connection", held.ack()).await?;
    ensure!(settled.is_err(), "a verdict of a dead connection was taken");
    cx.quiet_for(&mut second, cx.tempo.lease + cx.tempo.quiet).await
}

async fn half_open_publisher(cx: Arc<Context>) -> CaseResult {
    let backend = cx.connect().await?;
    let publisher = cx.publisher(&backend).await?;
    cx.send(&publisher, cx.message("a", "before")).await?;
    cx.chaos()?.half_open().await?;
    let mut ticket = publisher.publish(cx.message("a", "into the void"));
    // No answer is no answer.
    if let Ok(receipt) = tokio::time::timeout(cx.tempo.quiet * 3, &mut ticket).await {
        ensure!(!receipt.is_confirmed(), "a publish that cannot have arrived is {receipt:?}");
    }
    cx.chaos()?.heal().await?;
    let receipt = cx.receipt(ticket).await?;
    ensure!(matches!(receipt, Receipt::Unknown(_)), "a publish on a connection that died is {receipt:?}");
    let publisher = cx.publisher(&cx.connect().await?).await?;
    cx.send(&publisher, cx.message("a", "after")).await?;
    Ok(())
}

async fn pause(cx: Arc<Context>) -> CaseResult {
    let backend = cx.connect().await?;
    drop(cx.subscribe(&backend, cx.options("a").named("n")).await?);
    let publisher = cx.publisher(&backend).await?;
    cx.chaos()?.pause().await?;
    let mut ticket = publisher.publish(cx.message("a", "x"));
    let early = tokio::time::timeout(cx.tempo.quiet * 3, &mut ticket).await;
    cx.chaos()?.resume().await?;
    let receipt = match early {
        Ok(receipt) => receipt,
        Err(_) => cx.receipt(ticket).await?,
    };
    if receipt.is_confirmed() {
        let mut inbox = cx.subscribe(&cx.connect().await?, cx.options("a").named("n")).await?;
        ensure_eq!(cx.take_texts(&mut inbox, 1).await?, ["x"], "what was confirmed around a pause");
    }
    Ok(())
}

async fn restart(cx: Arc<Context>) -> CaseResult {
    through_an_end(&cx, async { cx.chaos()?.restart().await }).await
}

async fn kill(cx: Arc<Context>) -> CaseResult {
    through_an_end(&cx, async { cx.chaos()?.kill().await }).await
}

/// What was confirmed before and around the end of the broker is there, and what was acked is not.
async fn through_an_end(cx: &Arc<Context>, end: impl Future<Output = CaseResult>) -> CaseResult {
    let backend = cx.connect().await?;
    let mut inbox = cx.subscribe(&backend, cx.options("a").named("n")).await?;
    let publisher = cx.publisher(&backend).await?;
    cx.send_all(&publisher, "a", ["acked".to_owned(), "open".to_owned()]).await?;
    let (mut acked, mut open) = (false, None);
    for delivery in cx.take(&mut inbox, 2).await? {
        if text(&delivery) == "acked" {
            cx.ack(delivery).await?;
            acked = true;
        } else {
            open = Some(delivery);
        }
    }
    ensure!(acked && open.is_some(), "both messages must come");
    let (mut confirmed, refused) = publish_through(cx, &backend, end).await?;
    confirmed.insert("open".to_owned());
    drop((inbox, open));
    let mut inbox = cx.subscribe(&cx.connect().await?, cx.options("a").named("n")).await?;
    let refused = refused.into_iter().chain(["acked".to_owned()]).collect();
    holds(cx, &mut inbox, confirmed, &refused).await
}

async fn attempts_survive_a_restart(cx: Arc<Context>) -> CaseResult {
    let backend = cx.connect().await?;
    let mut inbox = cx.subscribe(&backend, cx.options("a").named("n")).await?;
    cx.send(&cx.publisher(&backend).await?, cx.message("a", "x")).await?;
    for attempt in 1..=2 {
        let delivery = cx.next(&mut inbox).await?;
        ensure_eq!(delivery.attempt, attempt, "attempt");
        // The second one is on its way again when the window has no room for it.
        let again = cx.tempo.patience / 20;
        cx.settle(delivery, postroad_core::Outcome::retry_after(again)).await?;
    }
    drop(inbox);
    cx.chaos()?.restart().await?;
    let mut inbox = cx.subscribe(&cx.connect().await?, cx.options("a").named("n")).await?;
    let delivery = cx.next(&mut inbox).await?;
    ensure_eq!(delivery.attempt, 3, "the attempt after a restart");
    cx.ack(delivery).await
}

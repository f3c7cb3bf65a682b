//! Ends: of consumers, publishers, drains and backends.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use postroad_core::{ErrorKind, PublisherExt, Receipt, StartAt, SubscriptionExt, Timestamp};
use tokio::time::Instant;

use crate::Failure;
use crate::case::{Case, case};
use crate::context::{CaseResult, Context, ensure, ensure_eq, numbers, text};

pub(crate) const CASES: &[Case] = &[
    case!("lifecycle/consumer_gone", consumer_gone, [Named, Redelivery]),
    case!("lifecycle/publisher_gone", publisher_gone, [Confirm]),
    case!("lifecycle/drain_waits_for_verdicts", drain_waits_for_verdicts, []),
    case!("lifecycle/drain_ends_at_its_deadline", drain_ends_at_its_deadline, [Named, Redelivery]),
    case!("lifecycle/drain_of_nothing", drain_of_nothing, []),
    case!("lifecycle/drain_fetches_nothing", drain_fetches_nothing, [Named]),
    case!("lifecycle/close_flushes", close_flushes, [Confirm, ReplayFirst]),
    case!("lifecycle/close_while_busy", close_while_busy, []),
    case!("lifecycle/close_returns_the_rest", close_returns_the_rest, [Cut, Named, Redelivery]),
    case!("lifecycle/closed_is_closed", closed_is_closed, []),
    case!("lifecycle/a_dropped_wait_takes_nothing", a_dropped_wait_takes_nothing, []),
];

async fn consumer_gone(cx: Arc<Context>) -> CaseResult {
    let backend = cx.connect().await?;
    let mut inbox = cx.subscribe(&backend, cx.options("a").named("n")).await?;
    cx.send_all(&cx.publisher(&backend).await?, "a", numbers(3)).await?;
    let held = cx.take(&mut inbox, 3).await?;
    // Long before the lease of 30 seconds.
    drop(inbox);
    let mut inbox = cx.subscribe(&backend, cx.options("a").named("n")).await?;
    let mut got = cx.take_texts(&mut inbox, 3).await?;
    got.sort_unstable();
    ensure_eq!(got, numbers(3), "what the consumer held that went");
    for delivery in held {
        cx.refused(delivery.ack(), ErrorKind::StaleToken).await?;
    }
    cx.quiet(&mut inbox).await
}

async fn publisher_gone(cx: Arc<Context>) -> CaseResult {
    let backend = cx.connect().await?;
    let mut inbox = cx.subscribe(&backend, cx.options("a")).await?;
    let publisher = cx.publisher(&backend).await?;
    let mut tickets = Vec::new();
    for text in numbers(50) {
        cx.in_time("room for a publish", publisher.ready()).await??;
        tickets.push((text.clone(), publisher.publish(cx.message("a", text))));
    }
    // With all of them under way.
    drop(publisher);
    let mut confirmed = BTreeSet::new();
    for (text, ticket) in tickets {
        if cx.receipt(ticket).await?.is_confirmed() {
            confirmed.insert(text);
        }
    }
    while !confirmed.is_empty() {
        let delivery = cx.next(&mut inbox).await;
        let delivery =
            delivery.map_err(|why| Failure::new(format!("{confirmed:?} were confirmed: {why}")))?;
        confirmed.remove(&text(&delivery));
        cx.ack(delivery).await?;
    }
    Ok(())
}

async fn drain_waits_for_verdicts(cx: Arc<Context>) -> CaseResult {
    let backend = cx.connect().await?;
    let mut inbox = cx.subscribe(&backend, cx.options("a")).await?;
    cx.send_all(&cx.publisher(&backend).await?, "a", numbers(3)).await?;
    let held = cx.take(&mut inbox, 3).await?;
    let (pause, began) = (cx.tempo.quiet, Instant::now());
    let settling = tokio::spawn(async move {
        tokio::time::sleep(pause).await;
        for delivery in held {
            let _ = delivery.ack().await;
        }
    });
    let deadline = cx.now().saturating_add(cx.tempo.patience);
    let report = cx.in_time("a drain", inbox.drain(deadline)).await??;
    let took = began.elapsed();
    ensure!(took >= pause, "a drain ended after {took:?}, with verdicts to come");
    ensure!(took < cx.tempo.patience, "a drain waited for its deadline although all was settled");
    ensure_eq!(
        (report.settled, report.returned, report.timed_out),
        (3, 0, false),
        "settled, returned, timed out"
    );
    settling.await.map_err(|why| Failure::new(why.to_string()))?;
    Ok(())
}

async fn drain_ends_at_its_deadline(cx: Arc<Context>) -> CaseResult {
    let backend = cx.connect().await?;
    let mut inbox = cx.subscribe(&backend, cx.options("a").named("n")).await?;
    cx.send_all(&cx.publisher(&backend).await?, "a", numbers(3)).await?;
    let mut held = cx.take(&mut inbox, 3).await?;
    let wait = cx.tempo.quiet * 2;
    let (began, deadline) = (Instant::now(), cx.now().saturating_add(wait));
    inbox.begin_drain(deadline);
    cx.ack(held.remove(0)).await?;
    let drained = cx.in_time("a drain", std::future::poll_fn(|task| inbox.poll_drain(task)));
    let report = drained.await??;
    let took = began.elapsed();
    // Both clocks are read in whole milliseconds.
    ensure!(took + Duration::from_millis(2) >= wait, "a drain of {wait:?} ended after {took:?}");
    ensure_eq!(
        (report.settled, report.returned, report.timed_out),
        (1, 2, true),
        "settled, returned, timed out"
    );
    for delivery in held {
        cx.refused(delivery.ack(), ErrorKind::StaleToken).await?;
    }
    drop(inbox);
    let mut inbox = cx.subscribe(&backend, cx.options("a").named("n")).await?;
    ensure_eq!(cx.take_texts(&mut inbox, 2).await?.len(), 2, "what the drain returned");
    cx.quiet(&mut inbox).await
}

async fn drain_of_nothing(cx: Arc<Context>) -> CaseResult {
    let backend = cx.connect().await?;
    let mut inbox = cx.subscribe(&backend, cx.options("a")).await?;
    let report = cx.in_time("a drain", inbox.drain(Timestamp::from_millis(u64::MAX))).await??;
    ensure_eq!(
        (report.settled, report.returned, report.timed_out),
        (0, 0, false),
        "settled, returned, timed out"
    );
    let again = cx.in_time("a drain", inbox.drain(Timestamp::EPOCH)).await??;
    ensure_eq!(again, report, "the report when it is asked for again");
    Ok(())
}

async fn drain_fetches_nothing(cx: Arc<Context>) -> CaseResult {
    let backend = cx.connect().await?;
    let mut inbox = cx.subscribe(&backend, cx.options("a").named("n").window(2, 1 << 20)).await?;
    cx.send_all(&cx.publisher(&backend).await?, "a", numbers(4)).await?;
    let held = cx.take(&mut inbox, 2).await?;
    inbox.begin_drain(cx.now().saturating_add(cx.tempo.patience));
    for delivery in held {
        cx.ack(delivery).await?;
    }
    match cx.in_time("a fetch during a drain", inbox.next()).await? {
        Err(why) if why.kind() == ErrorKind::Closed => {}
        Err(why) => return Err(Failure::new(format!("a fetch during a drain must be closed: {why}"))),
        Ok(delivery) => return Err(Failure::new(format!("a drain fetched {}", text(&delivery)))),
    }
    drop(inbox);
    let mut inbox = cx.subscribe(&backend, cx.options("a").named("n")).await?;
    let mut got = cx.take_texts(&mut inbox, 2).await?;
    got.sort_unstable();
    ensure_eq!(got, ["2", "3"], "what the drain left");
    cx.quiet(&mut inbox).await
}

async fn close_flushes(cx: Arc<Context>) -> CaseResult {
    const COUNT: usize = 50;
    let backend = cx.connect().await?;
    // One that stays, in case the first one is all there is of the backend.
    let publisher = cx.publisher(&backend).await?;
    let tickets: Vec<_> =
        numbers(COUNT).into_iter().map(|text| publisher.publish(cx.message("a", text))).collect();
    cx.in_time("closing", backend.close()).await??;
    let mut confirmed = 0;
    for ticket in tickets {
        match ticket.try_get() {
            Some(Receipt::Confirmed { .. }) => confirmed += 1,
            Some(_) => {}
            None => return Err(Failure::new("a publish has no answer after the close")),
        }
    }
    ensure_eq!(confirmed, COUNT, "confirmed publishes at an orderly close");
    Ok(())
}

async fn close_while_busy(cx: Arc<Context>) -> CaseResult {
    let backend = cx.connect().await?;
    let mut inbox = cx.subscribe(&backend, cx.options("a")).await?;
    let publisher = cx.publisher(&backend).await?;
    let busy = {
        let cx = Arc::clone(&cx);
        tokio::spawn(async move {
            // Until it is told to stop, and then by an error, not for ever.
            loop {
                if publisher.ready().await.is_err() {
                    return;
                }
                let receipt = publisher.publish(cx.message("a", "x")).await;
                if !receipt.is_confirmed() {
                    return;
                }
                // A sleep, not a yield: virtual time stands still while anybody is busy.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
    };
    let mut held = Vec::new();
    for _ in 0..20 {
        held.push(cx.next(&mut inbox).await?);
        drop(held.pop().filter(|_| held.len() > 5).map(postroad_core::Delivery::ack));
    }
    // Somebody waits on it while it is closed.
    let waiting = tokio::spawn(async move {
        loop {
            match inbox.next().await {
                Ok(delivery) => drop(delivery.ack()),
                Err(why) => return why,
            }
        }
    });
    cx.in_time("closing", backend.close()).await??;
    cx.in_time("a publisher of a closed backend", busy)
        .await?
        .map_err(|why| Failure::new(why.to_string()))?;
    let why = cx.in_time("a subscription of a closed backend", waiting).await?;
    let why = why.map_err(|why| Failure::new(why.to_string()))?;
    ensure!(
        matches!(why.kind(), ErrorKind::Closed | ErrorKind::Disconnected),
        "a subscription of a closed backend: {why}"
    );
    // Tokens have no say any more, and nothing hangs.
    for delivery in held {
        let settled = cx.in_time("a verdict after the close", delivery.ack()).await?;
        ensure!(settled.is_err(), "a verdict after the close was taken");
    }
    Ok(())
}

/// Where clients have connections of their own, so that one can be closed and another one look.
async fn close_returns_the_rest(cx: Arc<Context>) -> CaseResult {
    let backend = cx.connect().await?;
    let mut inbox = cx.subscribe(&backend, cx.options("a").named("n")).await?;
    cx.send_all(&cx.publisher(&backend).await?, "a", numbers(4)).await?;
    let mut held = cx.take(&mut inbox, 4).await?;
    cx.ack(held.remove(0)).await?;
    cx.in_time("closing", backend.close()).await??;
    let mut inbox = cx.subscribe(&cx.connect().await?, cx.options("a").named("n")).await?;
    let mut got = cx.take_texts(&mut inbox, 3).await?;
    got.sort_unstable();
    ensure_eq!(got, ["1", "2", "3"], "what a closed client held");
    for delivery in held {
        let settled = cx.in_time("a verdict after the close", delivery.ack()).await?;
        ensure!(settled.is_err(), "a verdict after the close was taken");
    }
    cx.quiet(&mut inbox).await
}

async fn closed_is_closed(cx: Arc<Context>) -> CaseResult {
    let backend = cx.connect().await?;
    let publisher = cx.publisher(&backend).await?;
    let mut inbox = cx.subscribe(&backend, cx.options("a").from(StartAt::New)).await?;
    cx.in_time("closing", backend.close()).await??;
    let kind = |why: postroad_core::Error| why.kind();
    match cx.receipt(publisher.publish(cx.message("a", "x"))).await? {
        Receipt::Refused(why) => {
            ensure_eq!(why.kind(), ErrorKind::Closed, "a publish after the close ({why})");
        }
        other => ensure!(false, "a publish after the close must be refused, and is {other:?}"),
    }
    let next = cx.in_time("a fetch after the close", inbox.next()).await?;
    ensure_eq!(
        next.map(|delivery| text(&delivery)).map_err(kind),
        Err(ErrorKind::Closed),
        "a fetch after the close"
    );
    let subscribed = cx.in_time("subscribing", backend.subscribe(cx.options("a"))).await?;
    ensure_eq!(subscribed.map(drop).map_err(kind), Err(ErrorKind::Closed), "a subscription after the close");
    let again = cx.in_time("making a publisher", backend.publisher()).await?;
    ensure_eq!(again.map(drop).map_err(kind), Err(ErrorKind::Closed), "a publisher after the close");
    // Closing twice is fine.
    cx.in_time("closing", backend.close()).await??;
    Ok(())
}

async fn a_dropped_wait_takes_nothing(cx: Arc<Context>) -> CaseResult {
    let backend = cx.connect().await?;
    let mut inbox = cx.subscribe(&backend, cx.options("a").window(1, 1 << 20)).await?;
    let publisher = cx.publisher(&backend).await?;
    for n in 0..20 {
        // Polled, and given up, around the moment when a message comes.
        let wait = Duration::from_micros(50 * n);
        let sending = publisher.publish(cx.message("a", n.to_string()));
        let early = tokio::time::timeout(wait, inbox.next()).await;
        let delivery = match early {
            Ok(delivery) => delivery?,
            Err(_) => cx.next(&mut inbox).await?,
        };
        ensure_eq!(text(&delivery), n.to_string(), "after a wait that was given up");
        cx.ack(delivery).await?;
        cx.receipt(sending).await?.into_result()?;
    }
    Ok(())
}

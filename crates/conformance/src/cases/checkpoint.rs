//! What a name keeps: exactly what is not settled, whatever the order in which the rest was.

use std::sync::Arc;

use postroad_core::{Backend, ErrorKind, StartAt};

use super::twins::refuses_to_subscribe;
use crate::case::{Case, case};
use crate::context::{CaseResult, Context, ensure, ensure_eq, numbers, text};

pub(crate) const CASES: &[Case] = &[
    case!("checkpoint/a_name_keeps_its_place", a_name_keeps_its_place, [Named], Named => no_names),
    case!("checkpoint/a_name_gets_what_it_missed", a_name_gets_what_it_missed, [Named]),
    case!(
        "checkpoint/floor_stays_below_the_open_one",
        floor_stays_below_the_open_one,
        [Named, IndividualAck]
    ),
    case!("checkpoint/what_was_out_comes_first", what_was_out_comes_first, [Named, OrderPerSubject]),
    case!("checkpoint/names_are_apart", names_are_apart, [Named]),
    case!("checkpoint/forget", forget, [Named, ReplayFirst]),
    case!("checkpoint/restart_replays_the_rest", restart_replays_the_rest, [Named, IndividualAck, Restart]),
];

async fn a_name_keeps_its_place(cx: Arc<Context>) -> CaseResult {
    let backend = cx.connect().await?;
    let mut inbox = cx.subscribe(&backend, cx.options("a").named("n")).await?;
    cx.send_all(&cx.publisher(&backend).await?, "a", numbers(6)).await?;
    let mut got = cx.take_texts(&mut inbox, 3).await?;
    drop(inbox);
    // Where it starts matters only when it is new.
    let from = if cx.can.replay.first.is_there() { StartAt::First } else { StartAt::New };
    let mut inbox = cx.subscribe(&cx.connect().await?, cx.options("a").named("n").from(from)).await?;
    got.extend(cx.take_texts(&mut inbox, 3).await?);
    got.sort_unstable();
    ensure_eq!(got, numbers(6), "both lives of a name together");
    cx.quiet(&mut inbox).await
}

async fn no_names(cx: Arc<Context>) -> CaseResult {
    refuses_to_subscribe(&cx, "a name", cx.options("a").named("n")).await
}

async fn a_name_gets_what_it_missed(cx: Arc<Context>) -> CaseResult {
    let backend = cx.connect().await?;
    drop(cx.subscribe(&backend, cx.options("a").named("n")).await?);
    cx.send_all(&cx.publisher(&backend).await?, "a", numbers(5)).await?;
    let mut inbox = cx.subscribe(&backend, cx.options("a").named("n")).await?;
    let mut got = cx.take_texts(&mut inbox, 5).await?;
    got.sort_unstable();
    ensure_eq!(got, numbers(5), "what came while nobody was there");
    cx.quiet(&mut inbox).await
}

/// Takes `0` to `7` and acks some of them, last first.
async fn settle_some(cx: &Context, backend: &Arc<dyn Backend>) -> CaseResult {
    let mut inbox = cx.subscribe(backend, cx.options("a").named("n")).await?;
    cx.send_all(&cx.publisher(backend).await?, "a", numbers(8)).await?;
    let mut held = cx.take(&mut inbox, 8).await?;
    held.sort_by_key(text);
    let mut open = Vec::new();
    for delivery in held.into_iter().rev() {
        if ["0", "1", "4", "6"].contains(&text(&delivery).as_str()) {
            cx.ack(delivery).await?;
        } else {
            open.push(delivery);
        }
    }
    drop(inbox);
    drop(open);
    Ok(())
}

async fn the_rest_comes(cx: &Context, backend: &Arc<dyn Backend>) -> CaseResult {
    let mut inbox = cx.subscribe(backend, cx.options("a").named("n")).await?;
    let mut got = cx.take_texts(&mut inbox, 4).await?;
    got.sort_unstable();
    ensure_eq!(got, ["2", "3", "5", "7"], "what was not settled");
    cx.quiet(&mut inbox).await
}

async fn floor_stays_below_the_open_one(cx: Arc<Context>) -> CaseResult {
    let backend = cx.connect().await?;
    settle_some(&cx, &backend).await?;
    the_rest_comes(&cx, &cx.connect().await?).await
}

async fn what_was_out_comes_first(cx: Arc<Context>) -> CaseResult {
    let backend = cx.connect().await?;
    let mut inbox = cx.subscribe(&backend, cx.options("a").named("n").window(2, 1 << 20)).await?;
    cx.send_all(&cx.publisher(&backend).await?, "a", numbers(5)).await?;
    let held = cx.take(&mut inbox, 2).await?;
    drop(inbox);
    drop(held);
    let mut inbox = cx.subscribe(&backend, cx.options("a").named("n").window(1, 1 << 20)).await?;
    ensure_eq!(cx.take_texts(&mut inbox, 5).await?, numbers(5), "the order after a new start");
    Ok(())
}

async fn names_are_apart(cx: Arc<Context>) -> CaseResult {
    let backend = cx.connect().await?;
    let mut one = cx.subscribe(&backend, cx.options("a").named("one")).await?;
    let mut two = cx.subscribe(&backend, cx.options("a").named("two")).await?;
    let mut elsewhere = cx.subscribe(&backend, cx.options("b").named("one")).await?;
    cx.send_all(&cx.publisher(&backend).await?, "a", numbers(3)).await?;
    for inbox in [&mut one, &mut two] {
        ensure_eq!(cx.take_texts(inbox, 3).await?.len(), 3, "messages of a name");
        cx.quiet(inbox).await?;
    }
    // The same name on another filter is another subscription.
    cx.quiet(&mut elsewhere).await
}

async fn forget(cx: Arc<Context>) -> CaseResult {
    let backend = cx.connect().await?;
    let mut inbox = cx.subscribe(&backend, cx.options("a").named("n")).await?;
    cx.send_all(&cx.publisher(&backend).await?, "a", numbers(2)).await?;
    cx.take_texts(&mut inbox, 2).await?;
    let forget = || backend.forget(cx.filter("a"), "n".into());
    match cx.in_time("forgetting", forget()).await? {
        Err(why) if why.kind() == ErrorKind::Unsupported => return Ok(()),
        Err(why) if why.kind() == ErrorKind::Busy => {}
        other => ensure!(false, "forgetting a name that has a consumer: {other:?}"),
    }
    drop(inbox);
    let until = tokio::time::Instant::now() + cx.tempo.patience;
    while let Err(why) = cx.in_time("forgetting", forget()).await? {
        let waiting = why.kind() == ErrorKind::Busy && tokio::time::Instant::now() < until;
        ensure!(waiting, "forgetting a name: {why}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    match cx.in_time("forgetting", forget()).await? {
        Err(why) if why.kind() == ErrorKind::NotFound => {}
        other => ensure!(false, "forgetting a name twice: {other:?}"),
    }
    // It is new again, so it starts where it is told.
    let mut inbox = cx.subscribe(&backend, cx.options("a").named("n").from(StartAt::First)).await?;
    ensure_eq!(cx.take_texts(&mut inbox, 2).await?.len(), 2, "what a forgotten name gets");
    Ok(())
}

async fn restart_replays_the_rest(cx: Arc<Context>) -> CaseResult {
    let backend = cx.connect().await?;
    settle_some(&cx, &backend).await?;
    cx.chaos()?.restart().await?;
    the_rest_comes(&cx, &cx.connect().await?).await
}

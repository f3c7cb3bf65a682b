//! Replay: a new subscription starts where it was told to.

use std::sync::Arc;

use postroad_core::{StartAt, Timestamp};

use super::twins::refuses_to_subscribe;
use crate::case::{Case, case};
use crate::context::{CaseResult, Context, ensure, ensure_eq, numbers};

pub(crate) const CASES: &[Case] = &[
    case!("replay/from_new", from_new, [Confirm]),
    case!("replay/from_first", from_first, [Confirm, ReplayFirst], ReplayFirst => no_first),
    case!("replay/from_last", from_last, [Confirm, ReplayLast], ReplayLast => no_last),
    case!("replay/from_sequence", from_sequence, [Confirm, ReplaySequence], ReplaySequence => no_sequence),
    case!("replay/from_time", from_time, [Confirm, ReplayTime], ReplayTime => no_time),
    case!("replay/goes_on_with_new", goes_on_with_new, [Confirm, ReplayFirst]),
    case!("replay/acks_of_others_do_not_matter", acks_of_others_do_not_matter, [Confirm, ReplayFirst]),
];

/// What a subscription gets that starts there, with one message more behind it all.
async fn starting(cx: &Context, from: StartAt, count: usize) -> CaseResult<Vec<String>> {
    let backend = cx.connect().await?;
    let mut inbox = cx.subscribe(&backend, cx.options("a").from(from)).await?;
    cx.send(&cx.publisher(&backend).await?, cx.message("a", "new")).await?;
    let got = cx.take_texts(&mut inbox, count).await?;
    cx.quiet(&mut inbox).await?;
    Ok(got)
}

/// `0` to `4` are stored; their positions.
async fn stored(cx: &Context) -> CaseResult<Vec<Option<u64>>> {
    let publisher = cx.publisher(&cx.connect().await?).await?;
    let mut positions = Vec::new();
    for text in numbers(5) {
        positions.push(cx.send(&publisher, cx.message("a", text)).await?);
    }
    // And one that does not match: the last of the log is not the last of the filter.
    cx.send(&publisher, cx.message("b", "other")).await?;
    Ok(positions)
}

async fn from_new(cx: Arc<Context>) -> CaseResult {
    stored(&cx).await?;
    ensure_eq!(starting(&cx, StartAt::New, 1).await?, ["new"], "from now on");
    Ok(())
}

async fn from_first(cx: Arc<Context>) -> CaseResult {
    stored(&cx).await?;
    ensure_eq!(starting(&cx, StartAt::First, 6).await?, ["0", "1", "2", "3", "4", "new"], "from the first");
    Ok(())
}

async fn no_first(cx: Arc<Context>) -> CaseResult {
    refuses_to_subscribe(&cx, "a start at the first message", cx.options("a").from(StartAt::First)).await
}

async fn from_last(cx: Arc<Context>) -> CaseResult {
    stored(&cx).await?;
    ensure_eq!(starting(&cx, StartAt::Last, 2).await?, ["4", "new"], "from the last");
    Ok(())
}

async fn no_last(cx: Arc<Context>) -> CaseResult {
    refuses_to_subscribe(&cx, "a start at the last message", cx.options("a").from(StartAt::Last)).await
}

async fn from_sequence(cx: Arc<Context>) -> CaseResult {
    let positions = stored(&cx).await?;
    let Some(third) = positions[2] else {
        return Err(crate::Failure::new("a start at a position is declared, and receipts have no positions"));
    };
    ensure_eq!(
        starting(&cx, StartAt::Sequence(third), 4).await?,
        ["2", "3", "4", "new"],
        "from the third on"
    );
    Ok(())
}

async fn no_sequence(cx: Arc<Context>) -> CaseResult {
    refuses_to_subscribe(&cx, "a start at a position", cx.options("a").from(StartAt::Sequence(1))).await
}

async fn from_time(cx: Arc<Context>) -> CaseResult {
    stored(&cx).await?;
    // More than the clocks' grain to both sides.
    let gap = cx.tempo.quiet;
    tokio::time::sleep(gap).await;
    let between = cx.now();
    tokio::time::sleep(gap).await;
    let publisher = cx.publisher(&cx.connect().await?).await?;
    cx.send(&publisher, cx.message("a", "5")).await?;
    ensure_eq!(starting(&cx, StartAt::Time(between), 2).await?, ["5", "new"], "from a time on");
    let all = starting(&cx, StartAt::Time(Timestamp::EPOCH), 8).await?;
    ensure_eq!(all, ["0", "1", "2", "3", "4", "5", "new", "new"], "from a time before all");
    Ok(())
}

async fn no_time(cx: Arc<Context>) -> CaseResult {
    let time = StartAt::Time(Timestamp::EPOCH);
    refuses_to_subscribe(&cx, "a start at a time", cx.options("a").from(time)).await
}

async fn goes_on_with_new(cx: Arc<Context>) -> CaseResult {
    const COUNT: usize = 200;
    let backend = cx.connect().await?;
    let publisher = cx.publisher(&backend).await?;
    cx.send_all(&publisher, "a", numbers(COUNT / 2)).await?;
    // Between the stored and the new ones none is lost or doubled.
    let publishing = {
        let cx = Arc::clone(&cx);
        let rest = numbers(COUNT).split_off(COUNT / 2);
        tokio::spawn(async move { cx.send_all(&publisher, "a", rest).await })
    };
    let mut inbox = cx.subscribe(&backend, cx.options("a").from(StartAt::First)).await?;
    let mut got = cx.take_texts(&mut inbox, COUNT).await?;
    crate::run::join_all([publishing]).await?;
    got.sort_unstable_by_key(|text| text.parse::<usize>().ok());
    ensure_eq!(got, numbers(COUNT), "stored and new ones");
    cx.quiet(&mut inbox).await
}

async fn acks_of_others_do_not_matter(cx: Arc<Context>) -> CaseResult {
    stored(&cx).await?;
    for _ in 0..2 {
        let backend = cx.connect().await?;
        let mut inbox = cx.subscribe(&backend, cx.options("a").from(StartAt::First)).await?;
        let got = cx.take_texts(&mut inbox, 5).await?;
        ensure!(got == numbers(5), "a second reader got {got:?}");
    }
    Ok(())
}

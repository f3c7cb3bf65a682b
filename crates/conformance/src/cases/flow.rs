//! Windows: no more is in flight than was asked for, and a verdict makes room.

use std::sync::Arc;

use crate::case::{Case, case};
use crate::context::{CaseResult, Context, ensure_eq, numbers, text};

pub(crate) const CASES: &[Case] = &[
    case!("flow/window_of_messages", window_of_messages, []),
    case!("flow/window_of_one", window_of_one, []),
    case!("flow/window_of_bytes", window_of_bytes, []),
    case!("flow/larger_than_the_window", larger_than_the_window, []),
    case!("flow/retry_makes_room", retry_makes_room, [Nack]),
    case!("flow/slow_consumer_holds_up_nobody", slow_consumer_holds_up_nobody, []),
];

async fn window_of_messages(cx: Arc<Context>) -> CaseResult {
    const WINDOW: u32 = 3;
    let backend = cx.connect().await?;
    let mut inbox = cx.subscribe(&backend, cx.options("a").window(WINDOW, 1 << 30)).await?;
    cx.send_all(&cx.publisher(&backend).await?, "a", numbers(10)).await?;
    let mut held = cx.take(&mut inbox, WINDOW as usize).await?;
    cx.quiet(&mut inbox).await?;
    // One out, one in.
    for _ in 0..7 {
        cx.ack(held.remove(0)).await?;
        held.push(cx.next(&mut inbox).await?);
        cx.quiet_for(&mut inbox, cx.tempo.quiet / 4).await?;
    }
    for delivery in held {
        cx.ack(delivery).await?;
    }
    cx.quiet(&mut inbox).await
}

async fn window_of_one(cx: Arc<Context>) -> CaseResult {
    let backend = cx.connect().await?;
    let mut inbox = cx.subscribe(&backend, cx.options("a").window(1, 1 << 30)).await?;
    cx.send_all(&cx.publisher(&backend).await?, "a", numbers(3)).await?;
    for _ in 0..3 {
        let delivery = cx.next(&mut inbox).await?;
        cx.quiet_for(&mut inbox, cx.tempo.quiet / 2).await?;
        cx.ack(delivery).await?;
    }
    Ok(())
}

async fn window_of_bytes(cx: Arc<Context>) -> CaseResult {
    const EACH: usize = 1000;
    let backend = cx.connect().await?;
    // Two fit, with what the subject adds; a third does not.
    let mut inbox = cx.subscribe(&backend, cx.options("a").window(100, 3 * EACH as u64 - 1)).await?;
    cx.send_all(&cx.publisher(&backend).await?, "a", (0..5).map(|n| format!("{n}{}", "x".repeat(EACH - 1))))
        .await?;
    let mut held = cx.take(&mut inbox, 2).await?;
    cx.quiet(&mut inbox).await?;
    for _ in 0..3 {
        cx.ack(held.remove(0)).await?;
        held.push(cx.next(&mut inbox).await?);
        cx.quiet_for(&mut inbox, cx.tempo.quiet / 4).await?;
    }
    Ok(())
}

async fn larger_than_the_window(cx: Arc<Context>) -> CaseResult {
    let backend = cx.connect().await?;
    let mut inbox = cx.subscribe(&backend, cx.options("a").window(100, 10)).await?;
    cx.send_all(&cx.publisher(&backend).await?, "a", (0..3).map(|n| format!("{n}{}", "x".repeat(99))))
        .await?;
    // Each alone.
    for _ in 0..3 {
        let delivery = cx.next(&mut inbox).await?;
        ensure_eq!(delivery.envelope.payload.len(), 100, "payload");
        cx.quiet_for(&mut inbox, cx.tempo.quiet / 2).await?;
        cx.ack(delivery).await?;
    }
    cx.quiet(&mut inbox).await
}

async fn retry_makes_room(cx: Arc<Context>) -> CaseResult {
    let backend = cx.connect().await?;
    let mut inbox = cx.subscribe(&backend, cx.options("a").window(1, 1 << 30)).await?;
    cx.send_all(&cx.publisher(&backend).await?, "a", numbers(2)).await?;
    for _ in 0..10 {
        let delivery = cx.next(&mut inbox).await?;
        cx.settled(delivery.retry()).await?;
    }
    let mut got = cx.take_texts(&mut inbox, 2).await?;
    got.sort_unstable();
    ensure_eq!(got, ["0", "1"], "what is left");
    cx.quiet(&mut inbox).await
}

async fn slow_consumer_holds_up_nobody(cx: Arc<Context>) -> CaseResult {
    const COUNT: usize = 300;
    let backend = cx.connect().await?;
    let mut slow = cx.subscribe(&backend, cx.options("a").window(1, 1 << 20)).await?;
    let mut quick = cx.subscribe(&backend, cx.options("a")).await?;
    let publisher = cx.publisher(&backend).await?;
    // One that takes one and sits on it, and this one never even asks.
    let _never = cx.subscribe(&backend, cx.options("a")).await?;
    let publishing = {
        let cx = Arc::clone(&cx);
        tokio::spawn(async move { cx.send_all(&publisher, "a", numbers(COUNT)).await })
    };
    let held = cx.next(&mut slow).await?;
    let got = cx.take_texts(&mut quick, COUNT).await?;
    ensure_eq!(got.len(), COUNT, "messages of the quick one");
    crate::run::join_all([publishing]).await?;
    ensure_eq!(text(&held), "0", "what the slow one holds");
    cx.ack(held).await?;
    cx.next(&mut slow).await?.ack().await?;
    Ok(())
}

//! Order: of first deliveries, as far as it is declared.

use std::collections::HashMap;
use std::sync::Arc;

use super::twins::refuses_to_publish;
use crate::case::{Case, case};
use crate::context::{CaseResult, Context, ensure_eq, numbers, text};

pub(crate) const CASES: &[Case] = &[
    case!("order/of_a_subject", of_a_subject, [OrderPerSubject]),
    case!("order/of_everything", of_everything, [OrderTotal]),
    case!("order/of_a_key", of_a_key, [OrderPerKey, Headers]),
    case!("order/after_a_retry", after_a_retry, [OrderPerSubject, Nack, RedeliveredFlag]),
    case!("order/of_priorities", of_priorities, [Priority, ReplayFirst], Priority => no_priority),
];

async fn of_a_subject(cx: Arc<Context>) -> CaseResult {
    const COUNT: usize = 500;
    let backend = cx.connect().await?;
    let mut inbox = cx.subscribe(&backend, cx.options("a").window(16, 1 << 30)).await?;
    let publisher = cx.publisher(&backend).await?;
    let publishing = {
        let cx = Arc::clone(&cx);
        tokio::spawn(async move {
            let mut tickets = Vec::new();
            for text in numbers(COUNT) {
                cx.in_time("room for a publish", std::future::poll_fn(|task| publisher.poll_ready(task)))
                    .await??;
                tickets.push(publisher.publish(cx.message("a", text)));
            }
            for ticket in tickets {
                cx.receipt(ticket).await?.into_result()?;
            }
            Ok(())
        })
    };
    ensure_eq!(cx.take_texts(&mut inbox, COUNT).await?, numbers(COUNT), "the order of a subject");
    crate::run::join_all([publishing]).await?;
    Ok(())
}

async fn of_everything(cx: Arc<Context>) -> CaseResult {
    let backend = cx.connect().await?;
    let mut inbox = cx.subscribe(&backend, cx.options(">")).await?;
    let publisher = cx.publisher(&backend).await?;
    for text in numbers(60) {
        let name = format!("s{}", text.len() + text.as_bytes()[0] as usize % 5);
        cx.send(&publisher, cx.message(&name, text)).await?;
    }
    ensure_eq!(cx.take_texts(&mut inbox, 60).await?, numbers(60), "the order of all subjects");
    Ok(())
}

async fn of_a_key(cx: Arc<Context>) -> CaseResult {
    const KEYS: usize = 8;
    let backend = cx.connect().await?;
    let mut inbox = cx.subscribe(&backend, cx.options("a").window(16, 1 << 30)).await?;
    let publisher = cx.publisher(&backend).await?;
    for n in 0..KEYS * 30 {
        let key = format!("k{}", n % KEYS);
        cx.send(&publisher, cx.message("a", n.to_string()).with_key(key)).await?;
    }
    let mut next: HashMap<Vec<u8>, usize> = HashMap::new();
    for _ in 0..KEYS * 30 {
        let delivery = cx.next(&mut inbox).await?;
        let key = delivery.envelope.key.clone().unwrap_or_default().to_vec();
        let number: usize = text(&delivery).parse().unwrap_or(usize::MAX);
        let expected = next.entry(key).or_insert(number % KEYS);
        ensure_eq!(number, *expected, "the order of a key");
        *expected += KEYS;
        cx.ack(delivery).await?;
    }
    Ok(())
}

async fn after_a_retry(cx: Arc<Context>) -> CaseResult {
    let backend = cx.connect().await?;
    let mut inbox = cx.subscribe(&backend, cx.options("a").window(1, 1 << 20)).await?;
    cx.send_all(&cx.publisher(&backend).await?, "a", numbers(5)).await?;
    let mut firsts = Vec::new();
    let mut all = 0;
    while all < 7 {
        let delivery = cx.next(&mut inbox).await?;
        all += 1;
        if !delivery.redelivered {
            firsts.push(text(&delivery));
        }
        // The first and the third are given back once.
        if !delivery.redelivered && matches!(text(&delivery).as_str(), "0" | "2") {
            cx.settled(delivery.retry()).await?;
        } else {
            cx.ack(delivery).await?;
        }
    }
    ensure_eq!(firsts, numbers(5), "the order of first deliveries");
    cx.quiet(&mut inbox).await
}

async fn of_priorities(cx: Arc<Context>) -> CaseResult {
    let backend = cx.connect().await?;
    let publisher = cx.publisher(&backend).await?;
    for (text, priority) in [("c", 0), ("a", 9), ("d", -3), ("b", 9)] {
        cx.send(&publisher, cx.message("a", text).with_priority(priority)).await?;
    }
    let options = cx.options("a").from(postroad_core::StartAt::First).window(1, 1 << 20);
    let mut inbox = cx.subscribe(&backend, options).await?;
    ensure_eq!(cx.take_texts(&mut inbox, 4).await?, ["a", "b", "c", "d"], "the order of priorities");
    Ok(())
}

async fn no_priority(cx: Arc<Context>) -> CaseResult {
    refuses_to_publish(&cx, "priority", cx.message("a", "x").with_priority(5)).await
}

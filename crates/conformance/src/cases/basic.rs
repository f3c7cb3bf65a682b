//! Messages arrive, each where it belongs, also when many do it at once.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::Failure;
use crate::case::{Case, case};
use crate::context::{CaseResult, Context, ensure, ensure_eq, numbers, text};
use crate::run::join_all;

pub(crate) const CASES: &[Case] = &[
    case!("basic/declares_what_it_can", declares_what_it_can, []),
    case!("basic/send_and_receive", send_and_receive, []),
    case!("basic/every_subscription_gets_all", every_subscription_gets_all, []),
    case!("basic/topics_are_apart", topics_are_apart, []),
    case!("basic/filters_join_topics", filters_join_topics, []),
    case!("basic/many_publishers", many_publishers, []),
    case!("basic/many_topics_at_once", many_topics_at_once, []),
];

async fn declares_what_it_can(cx: Arc<Context>) -> CaseResult {
    let backend = cx.connect().await?;
    ensure_eq!(*backend.capabilities(), cx.can, "the backend and its harness declare different things");
    let publisher = cx.publisher(&backend).await?;
    ensure_eq!(*publisher.capabilities(), cx.can, "its publisher declares different things");
    let subscription = cx.subscribe(&backend, cx.options("a")).await?;
    ensure_eq!(*subscription.capabilities(), cx.can, "its subscription declares different things");
    ensure!(!backend.name().is_empty(), "the backend has no name");
    Ok(())
}

async fn send_and_receive(cx: Arc<Context>) -> CaseResult {
    let (consumer, producer) = (cx.connect().await?, cx.connect().await?);
    let mut inbox = cx.subscribe(&consumer, cx.options("a")).await?;
    let publisher = cx.publisher(&producer).await?;
    for payload in ["one", "two", "three"] {
        let sent = cx.message("a", payload);
        let position = cx.send(&publisher, sent.clone()).await?;
        let delivery = cx.next(&mut inbox).await?;
        ensure_eq!(text(&delivery), payload, "payload");
        ensure_eq!(delivery.envelope.id, sent.id, "message id");
        ensure_eq!(delivery.envelope.subject, sent.subject, "subject");
        ensure!(!delivery.redelivered, "a first delivery is called redelivered");
        if let (Some(position), Some(delivered)) = (position, delivery.position) {
            ensure_eq!(delivered, position, "the delivery's position, and the receipt's");
        }
        cx.ack(delivery).await?;
    }
    cx.quiet(&mut inbox).await
}

async fn every_subscription_gets_all(cx: Arc<Context>) -> CaseResult {
    let (one, two) = (cx.connect().await?, cx.connect().await?);
    let mut first = cx.subscribe(&one, cx.options("a")).await?;
    let mut second = cx.subscribe(&two, cx.options("a")).await?;
    cx.send_all(&cx.publisher(&one).await?, "a", numbers(20)).await?;
    for inbox in [&mut first, &mut second] {
        let got: BTreeSet<_> = cx.take_texts(inbox, 20).await?.into_iter().collect();
        ensure_eq!(got.len(), 20, "different messages");
        cx.quiet(inbox).await?;
    }
    Ok(())
}

async fn topics_are_apart(cx: Arc<Context>) -> CaseResult {
    let backend = cx.connect().await?;
    let mut inbox = cx.subscribe(&backend, cx.options("a")).await?;
    let publisher = cx.publisher(&backend).await?;
    // Names that are prefixes of each other, or differ in the case of a letter.
    for name in ["b", "ab", "a/b", "A"] {
        cx.send(&publisher, cx.message(name, name)).await?;
    }
    cx.send(&publisher, cx.message("a", "a")).await?;
    let delivery = cx.next(&mut inbox).await?;
    ensure_eq!(text(&delivery), "a", "a message of another topic");
    cx.ack(delivery).await?;
    cx.quiet(&mut inbox).await
}

async fn filters_join_topics(cx: Arc<Context>) -> CaseResult {
    let backend = cx.connect().await?;
    let mut one_level = cx.subscribe(&backend, cx.options("f/*")).await?;
    let mut all_levels = cx.subscribe(&backend, cx.options("f/>")).await?;
    let publisher = cx.publisher(&backend).await?;
    for name in ["f/a", "g/a", "f/b", "f/a/deep"] {
        cx.send(&publisher, cx.message(name, name)).await?;
    }
    let mut got = cx.take_texts(&mut one_level, 2).await?;
    got.sort_unstable();
    ensure_eq!(got, ["f/a", "f/b"], "`*` is one level");
    cx.quiet(&mut one_level).await?;
    let mut got = cx.take_texts(&mut all_levels, 3).await?;
    got.sort_unstable();
    ensure_eq!(got, ["f/a", "f/a/deep", "f/b"], "`>` is all levels below");
    cx.quiet(&mut all_levels).await
}

async fn many_publishers(cx: Arc<Context>) -> CaseResult {
    const PUBLISHERS: usize = 10;
    const EACH: usize = 50;
    let backend = cx.connect().await?;
    let mut inbox = cx.subscribe(&backend, cx.options("a")).await?;
    let tasks = (0..PUBLISHERS).map(|who| {
        let cx = Arc::clone(&cx);
        tokio::spawn(async move {
            let publisher = cx.publisher(&cx.connect().await?).await?;
            cx.send_all(&publisher, "a", (0..EACH).map(|n| format!("{who}-{n}"))).await
        })
    });
    let publishing: Vec<_> = tasks.collect();
    let got = cx.take_texts(&mut inbox, PUBLISHERS * EACH).await?;
    join_all(publishing).await?;
    let different: BTreeSet<_> = got.iter().collect();
    ensure_eq!(different.len(), PUBLISHERS * EACH, "different messages");
    cx.quiet(&mut inbox).await
}

async fn many_topics_at_once(cx: Arc<Context>) -> CaseResult {
    const TOPICS: usize = 12;
    const EACH: usize = 25;
    let tasks = (0..TOPICS).map(|topic| {
        let cx = Arc::clone(&cx);
        tokio::spawn(async move {
            let backend = cx.connect().await?;
            let name = format!("t{topic}");
            let mut inbox = cx.subscribe(&backend, cx.options(&name)).await?;
            let publisher = cx.publisher(&backend).await?;
            cx.send_all(&publisher, &name, (0..EACH).map(|n| format!("{topic}-{n}"))).await?;
            let got = cx.take_texts(&mut inbox, EACH).await?;
            let foreign = got.iter().find(|text| !text.starts_with(&format!("{topic}-")));
            match foreign {
                Some(text) => Err(Failure::new(format!("{name} got {text}"))),
                None => cx.quiet(&mut inbox).await,
            }
        })
    });
    join_all(tasks.collect::<Vec<_>>()).await?;
    Ok(())
}

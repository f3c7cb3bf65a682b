//! What a receipt is worth.

use std::collections::BTreeSet;
use std::sync::Arc;

use postroad_core::{ErrorKind, MessageId, Receipt, StartAt};

use crate::Failure;
use crate::case::{Case, case};
use crate::context::{CaseResult, Context, ensure, ensure_eq, numbers};

pub(crate) const CASES: &[Case] = &[
    case!("publish/confirms_in_pipeline", confirms_in_pipeline, [Confirm]),
    case!("publish/positions_grow", positions_grow, [Confirm]),
    case!("publish/confirmed_is_stored", confirmed_is_stored, [Confirm, ReplayFirst]),
    case!("publish/batch", batch, [Confirm]),
    case!("publish/batch_fails_in_part", batch_fails_in_part, [Confirm, PayloadLimit]),
    case!("publish/duplicate", duplicate, [Confirm, Dedup], Dedup => no_dedup),
];

async fn confirms_in_pipeline(cx: Arc<Context>) -> CaseResult {
    const COUNT: usize = 200;
    let backend = cx.connect().await?;
    let mut inbox = cx.subscribe(&backend, cx.options("a")).await?;
    let publisher = cx.publisher(&backend).await?;
    let mut tickets = Vec::new();
    for text in numbers(COUNT) {
        cx.in_time("room for a publish", std::future::poll_fn(|task| publisher.poll_ready(task))).await??;
        tickets.push(publisher.publish(cx.message("a", text)));
    }
    for ticket in tickets {
        match cx.receipt(ticket).await? {
            Receipt::Confirmed { duplicate: false, .. } => {}
            other => return Err(Failure::new(format!("a new message must be confirmed, and is {other:?}"))),
        }
    }
    let got: BTreeSet<_> = cx.take_texts(&mut inbox, COUNT).await?.into_iter().collect();
    ensure_eq!(got.len(), COUNT, "different messages");
    cx.quiet(&mut inbox).await
}

async fn positions_grow(cx: Arc<Context>) -> CaseResult {
    let backend = cx.connect().await?;
    let mut inbox = cx.subscribe(&backend, cx.options("a")).await?;
    let publisher = cx.publisher(&backend).await?;
    let mut last = None;
    for text in numbers(20) {
        let position = cx.send(&publisher, cx.message("a", text)).await?;
        ensure!(position.is_none() || position > last, "position {position:?} after {last:?}");
        let delivery = cx.next(&mut inbox).await?;
        if let (Some(position), Some(delivered)) = (position, delivery.position) {
            ensure_eq!(delivered, position, "the delivery's position, and the receipt's");
        }
        cx.ack(delivery).await?;
        last = position;
    }
    Ok(())
}

async fn confirmed_is_stored(cx: Arc<Context>) -> CaseResult {
    let backend = cx.connect().await?;
    let publisher = cx.publisher(&backend).await?;
    for count in 1..=20 {
        cx.send(&publisher, cx.message("a", count.to_string())).await?;
        // Somebody who asks now must be told of it, without another publish that pushes it through.
        let mut inbox = cx.subscribe(&cx.connect().await?, cx.options("a").from(StartAt::First)).await?;
        let got = cx.take(&mut inbox, count).await?;
        let newest = got.iter().any(|delivery| delivery.envelope.payload == count.to_string());
        ensure!(newest, "message {count} was confirmed and is not there");
    }
    Ok(())
}

async fn batch(cx: Arc<Context>) -> CaseResult {
    const COUNT: usize = 100;
    let backend = cx.connect().await?;
    let mut inbox = cx.subscribe(&backend, cx.options("a")).await?;
    let publisher = cx.publisher(&backend).await?;
    let sent: Vec<_> = numbers(COUNT).into_iter().map(|text| cx.message("a", text)).collect();
    let ids: BTreeSet<_> = sent.iter().map(|envelope| envelope.id.clone()).collect();
    let tickets = publisher.publish_batch(sent);
    ensure_eq!(tickets.len(), COUNT, "tickets of a batch");
    let mut last = None;
    for ticket in tickets {
        let position = cx.receipt(ticket).await?.into_result()?;
        ensure!(position.is_none() || position > last, "position {position:?} after {last:?} in a batch");
        last = position;
    }
    let got: BTreeSet<_> = cx
        .take(&mut inbox, COUNT)
        .await?
        .into_iter()
        .map(|delivery| {
            let id = delivery.envelope.id.clone();
            drop(delivery.ack());
            id
        })
        .collect();
    ensure!(got == ids, "a batch must arrive whole: {} of {COUNT} ids", got.intersection(&ids).count());
    cx.quiet(&mut inbox).await
}

async fn batch_fails_in_part(cx: Arc<Context>) -> CaseResult {
    let limit = cx.can.max_payload_bytes.unwrap_or_default();
    let backend = cx.connect().await?;
    let mut inbox = cx.subscribe(&backend, cx.options("a")).await?;
    let publisher = cx.publisher(&backend).await?;
    let large = cx.message("a", vec![b'x'; 2 * limit + 64]);
    let sent = vec![cx.message("a", "0"), large.clone(), cx.message("a", "2"), large, cx.message("a", "4")];
    let tickets = publisher.publish_batch(sent);
    ensure_eq!(tickets.len(), 5, "tickets of a batch");
    for (at, ticket) in tickets.into_iter().enumerate() {
        match (at % 2, cx.receipt(ticket).await?) {
            (0, Receipt::Confirmed { .. }) => {}
            (1, Receipt::Refused(why)) if why.kind() == ErrorKind::TooLarge => {}
            (_, other) => {
                return Err(Failure::new(format!(
                    "item {at} of a batch, items 1 and 3 too large: {other:?}"
                )));
            }
        }
    }
    let mut got = cx.take_texts(&mut inbox, 3).await?;
    got.sort_unstable();
    ensure_eq!(got, ["0", "2", "4"], "what arrives of a batch");
    cx.quiet(&mut inbox).await
}

async fn duplicate(cx: Arc<Context>) -> CaseResult {
    let backend = cx.connect().await?;
    let mut inbox = cx.subscribe(&backend, cx.options("a")).await?;
    let publisher = cx.publisher(&backend).await?;
    let sent = cx.message("a", "once").with_id(MessageId::generate());
    let first = cx.receipt(publisher.publish(sent.clone())).await?;
    ensure!(first.is_confirmed() && !first.is_duplicate(), "the first publish is {first:?}");
    cx.send(&publisher, cx.message("a", "between")).await?;
    // The same, and the same from somebody else.
    let other = cx.publisher(&cx.connect().await?).await?;
    for publisher in [&publisher, &other] {
        let again = cx.receipt(publisher.publish(sent.clone())).await?;
        ensure!(again.is_duplicate(), "the same message id again is {again:?}");
        ensure_eq!(again.position(), first.position(), "a duplicate has the position of the first");
    }
    let mut got = cx.take_texts(&mut inbox, 2).await?;
    got.sort_unstable();
    ensure_eq!(got, ["between", "once"], "what arrives");
    cx.quiet(&mut inbox).await
}

/// Nothing can be refused here: but it must not say that it noticed.
async fn no_dedup(cx: Arc<Context>) -> CaseResult {
    let backend = cx.connect().await?;
    let publisher = cx.publisher(&backend).await?;
    let sent = cx.message("a", "once");
    for _ in 0..2 {
        let receipt = cx.receipt(publisher.publish(sent.clone())).await?;
        ensure!(!receipt.is_duplicate(), "dedup is declared absent, and a publish is {receipt:?}");
    }
    Ok(())
}

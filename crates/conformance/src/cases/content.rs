//! What arrives is what was sent: bytes, headers, fields, and sizes up to the limit.

use std::sync::Arc;

use postroad_core::headers::Value;
use postroad_core::{Envelope, ErrorKind, Receipt, Timestamp};

use super::twins::refuses_to_publish;
use crate::case::{Case, case};
use crate::context::{CaseResult, Context, ensure, ensure_eq};

pub(crate) const CASES: &[Case] = &[
    case!("content/odd_bytes", odd_bytes, []),
    case!("content/empty_payload", empty_payload, []),
    case!("content/headers", headers, [Headers], Headers => no_headers),
    case!("content/repeated_headers", repeated_headers, [Headers]),
    case!("content/fields", fields, [Headers]),
    case!("content/large_payload", large_payload, []),
    case!("content/payload_over_the_limit", payload_over_the_limit, [PayloadLimit]),
];

/// Sends each and compares what comes.
async fn there_and_back(
    cx: &Context,
    envelopes: Vec<Envelope>,
) -> CaseResult<Vec<(Envelope, Arc<Envelope>)>> {
    let backend = cx.connect().await?;
    let mut inbox = cx.subscribe(&backend, cx.options("a")).await?;
    let publisher = cx.publisher(&backend).await?;
    let mut pairs = Vec::with_capacity(envelopes.len());
    for sent in envelopes {
        cx.send(&publisher, sent.clone()).await?;
        let (got, token) = cx.next(&mut inbox).await?.split();
        cx.settled(token.settle(postroad_core::Outcome::Ack)).await?;
        ensure_eq!(got.id, sent.id, "message id");
        let same = got.payload == sent.payload;
        ensure!(same, "a payload of {} bytes arrived as {} others", sent.payload.len(), got.payload.len());
        pairs.push((sent, got));
    }
    cx.quiet(&mut inbox).await?;
    Ok(pairs)
}

async fn odd_bytes(cx: Arc<Context>) -> CaseResult {
    let every: Vec<u8> = (0..=255).collect();
    let payloads: [&[u8]; 12] = [
        &every,
        b"\0",
        b"\n",
        b"\r\n",
        b"\xff\xfe",
        b"plain",
        "žluťoučký 🐎".as_bytes(),
        b"{\"id\":\"mine\",\"priority\":7}",
        b" { \"a\" : [ 1 ] } ",
        b"null",
        b"\"quoted \\ud800\"",
        b"{\"a\":1}\n{\"b\":2}",
    ];
    there_and_back(&cx, payloads.iter().map(|payload| cx.message("a", payload.to_vec())).collect()).await?;
    Ok(())
}

async fn empty_payload(cx: Arc<Context>) -> CaseResult {
    there_and_back(&cx, vec![cx.message("a", ""), cx.message("a", "after it"), cx.message("a", "")]).await?;
    Ok(())
}

async fn headers(cx: Arc<Context>) -> CaseResult {
    let sent = cx
        .message("a", "x")
        .with_header("text", "plain")
        .with_header("empty", "")
        .with_header("unicode", "žluťoučký 🐎")
        .with_header("line", "a\r\nb: c")
        .with_header("Mixed-Case", "kept")
        .with_header("bytes", vec![0, 0xff, b'\n'])
        .with_header("number", i64::MIN)
        .with_header("fraction", 0.1)
        .with_header("yes", true)
        .with_header("at", Timestamp::from_millis(1_234_567_890_123));
    for (sent, got) in there_and_back(&cx, vec![sent]).await? {
        for header in &sent.headers {
            let value = got.headers.get(&header.name);
            ensure!(value.is_some(), "header {:?} did not arrive", header.name);
            ensure_eq!(value, Some(&header.value), "header {:?}", header.name);
        }
        ensure_eq!(got.headers.len(), sent.headers.len(), "headers");
    }
    Ok(())
}

async fn no_headers(cx: Arc<Context>) -> CaseResult {
    refuses_to_publish(&cx, "headers", cx.message("a", "x").with_header("a", "1")).await
}

async fn repeated_headers(cx: Arc<Context>) -> CaseResult {
    let sent = cx.message("a", "x").with_header("b", "1").with_header("a", "2").with_header("b", "3");
    for (sent, got) in there_and_back(&cx, vec![sent]).await? {
        let values: Vec<_> = got.headers.get_all("b").collect();
        ensure_eq!(values, [&Value::from("1"), &Value::from("3")], "a header that is there twice");
        ensure_eq!(got.headers, sent.headers, "headers in their order");
    }
    Ok(())
}

async fn fields(cx: Arc<Context>) -> CaseResult {
    let sent = cx
        .message("a", "x")
        .with_key(vec![0xfe, 0])
        .with_content_type("text/plain; charset=utf-8")
        .with_time(Timestamp::from_millis(1_234_567_890_123))
        .with_reply_to(cx.subject("answers"))
        .with_correlation(vec![1, 0xff]);
    for (sent, got) in there_and_back(&cx, vec![sent]).await? {
        ensure_eq!(got.key, sent.key, "key");
        ensure_eq!(got.content_type, sent.content_type, "content type");
        ensure_eq!(got.time, sent.time, "time");
        ensure_eq!(got.reply_to, sent.reply_to, "reply-to");
        ensure_eq!(got.correlation, sent.correlation, "correlation");
    }
    Ok(())
}

/// Bytes that do not repeat, so that a piece in the wrong place shows.
fn bytes(cx: &Context, len: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(cx.seed);
    std::iter::repeat_with(|| random.u8(..)).take(len).collect()
}

async fn large_payload(cx: Arc<Context>) -> CaseResult {
    // The borders of buffers and frames, and the largest that is allowed, or a megabyte.
    let limit = cx.can.max_payload_bytes.unwrap_or(1 << 20).min(1 << 20);
    // What the subject and the id add may count, too.
    let largest = limit - limit.min(1024);
    let sizes = [4095, 4096, 65_535, 65_536, 131_073, largest];
    let messages =
        sizes.into_iter().filter(|size| *size <= largest).map(|size| cx.message("a", bytes(&cx, size)));
    there_and_back(&cx, messages.collect()).await?;
    Ok(())
}

async fn payload_over_the_limit(cx: Arc<Context>) -> CaseResult {
    let limit = cx.can.max_payload_bytes.unwrap_or_default();
    let backend = cx.connect().await?;
    let mut inbox = cx.subscribe(&backend, cx.options("a")).await?;
    let publisher = cx.publisher(&backend).await?;
    // Far over it: a limit on encoded sizes may let a little more pass.
    let receipt = cx.receipt(publisher.publish(cx.message("a", bytes(&cx, 2 * limit + 64)))).await?;
    match receipt {
        Receipt::Refused(why) => {
            ensure_eq!(why.kind(), ErrorKind::TooLarge, "the kind of the refusal ({why})");
        }
        other => ensure!(false, "{} bytes where {limit} are allowed: {other:?}", 2 * limit + 64),
    }
    // The publisher goes on, and nothing of it arrives.
    cx.send(&publisher, cx.message("a", "after it")).await?;
    ensure_eq!(cx.take_texts(&mut inbox, 1).await?, ["after it"], "what arrives after a refusal");
    cx.quiet(&mut inbox).await
}

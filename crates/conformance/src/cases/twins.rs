//! What must happen when somebody asks for what is declared absent: it is refused as `Unsupported`.

use std::sync::Arc;

use postroad_core::{Envelope, ErrorKind, Outcome, Receipt, SubscribeOptions};

use crate::Failure;
use crate::context::{CaseResult, Context};

/// Subscribing with these options is refused.
pub(crate) async fn refuses_to_subscribe(cx: &Context, what: &str, options: SubscribeOptions) -> CaseResult {
    let backend = cx.connect().await?;
    match cx.in_time("subscribing", backend.subscribe(options)).await? {
        Err(why) if why.kind() == ErrorKind::Unsupported => Ok(()),
        Err(why) => {
            Err(Failure::new(format!("{what} is declared absent, but refused with another error: {why}")))
        }
        Ok(_) => Err(Failure::new(format!("{what} is declared absent, but the subscription was made"))),
    }
}

/// This verdict is refused.
pub(crate) async fn refuses_to_settle(cx: &Context, what: &str, outcome: Outcome) -> CaseResult {
    let backend = cx.connect().await?;
    let mut inbox = cx.subscribe(&backend, cx.options("a")).await?;
    cx.send(&cx.publisher(&backend).await?, cx.message("a", "x")).await?;
    let delivery = cx.next(&mut inbox).await?;
    let settled = cx.in_time("a verdict", delivery.settle(outcome)).await?;
    refused(what, settled)
}

/// This message is refused.
pub(crate) async fn refuses_to_publish(cx: &Context, what: &str, envelope: Envelope) -> CaseResult {
    let backend = cx.connect().await?;
    let publisher = cx.publisher(&backend).await?;
    match cx.receipt(publisher.publish(envelope)).await? {
        Receipt::Refused(why) if why.kind() == ErrorKind::Unsupported => Ok(()),
        other => Err(Failure::new(format!("{what} is declared absent, but a publish with it is {other:?}"))),
    }
}

/// A longer lease is refused.
pub(crate) async fn no_extend(cx: Arc<Context>) -> CaseResult {
    let backend = cx.connect().await?;
    let mut inbox = cx.subscribe(&backend, cx.options("a")).await?;
    cx.send(&cx.publisher(&backend).await?, cx.message("a", "x")).await?;
    let mut delivery = cx.next(&mut inbox).await?;
    let extended = cx.in_time("extending a lease", delivery.token.extend()).await?;
    refused("extend", extended)?;
    // The token is still good.
    cx.ack(delivery).await
}

fn refused(what: &str, result: postroad_core::Result<()>) -> CaseResult {
    match result {
        Err(why) if why.kind() == ErrorKind::Unsupported => Ok(()),
        other => Err(Failure::new(format!("{what} is declared absent, but asking for it is {other:?}"))),
    }
}

//! The envelope, the ack and the delivery rules that every Postroad backend shares.
//!
//! - A message is an [`Envelope`] on a [`Subject`]. It comes as a [`Delivery`] with an [`AckToken`], which settles it by
//!   value with an [`Outcome`]; dropped, it means Retry.
//! - A [`Backend`] gives [`Publisher`]s and [`Subscription`]s, and says in its [`Capabilities`] what it can do. A
//!   [`Registry`] connects them by URL.
//! - [`mailbox`] is the delivery state machine behind every broker-side part; [`memory`] is a whole backend on it,
//!   and the executable specification of the others.
//!
//! Nothing here does I/O, starts threads or needs a runtime.
//!
//! ```
//! use postroad_core::{Backend, Envelope, PublisherExt, SubscribeOptions, SubscriptionExt, block_on, memory::Memory};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! block_on(async {
//!     let backend = Memory::new();
//!     let mut orders = backend.subscribe(SubscribeOptions::new("orders/*".parse()?)).await?;
//!     let publisher = backend.publisher().await?;
//!     publisher.send(Envelope::new("orders/eu".parse()?, "one pizza")).await.into_result()?;
//!
//!     let delivery = orders.next().await?;
//!     assert_eq!(delivery.envelope.payload, "one pizza");
//!     delivery.ack().await?;
//!     Ok(())
//! })
//! # }
//! ```

mod ack;
pub mod ack_floor;
mod backend;
mod capabilities;
pub mod cloudevents;
pub mod dead_letter;
pub mod dedup;
mod delivery;
mod envelope;
mod error;
mod ext;
pub mod headers;
pub mod mailbox;
pub mod memory;
mod outcome;
mod park;
pub mod range_set;
mod registry;
pub mod retry;
mod slot;
pub mod subject;
mod ticket;
mod time;

pub use ack::{AckSink, AckToken, Settled, SettledResolver, join, settle_all};
pub use backend::{
    Backend, BoxFuture, DrainReport, Publisher, StartAt, SubscribeOptions, Subscription, WindowOptions,
};
pub use capabilities::{Attempts, Capabilities, Durability, Ordering, Replay, Support};
pub use delivery::Delivery;
pub use envelope::{Envelope, MessageId, MessageIdError};
pub use error::{Error, ErrorKind, Result, RetryHint};
pub use ext::{PublisherExt, SubscriptionExt};
pub use headers::Headers;
pub use outcome::Outcome;
pub use park::block_on;
pub use registry::Registry;
pub use subject::{Filter, Subject, SubjectError};
pub use ticket::{Receipt, Ticket, TicketResolver};
pub use time::{Clock, ManualClock, SystemClock, Timestamp, TimestampError};

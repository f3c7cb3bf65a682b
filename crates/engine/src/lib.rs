//! Streams, subscriptions, dead letters and retention: the broker without a protocol.
//!
//! A **stream** is one log. What is published goes to one stream and fans out to the mailbox of every subscription whose
//! filter matches, whatever door the subscriber came in by. Doors (network protocols) call [`Engine`]; delivery rules
//! are those of [`postroad_core::mailbox`], and nowhere else.
//!
//! - Nothing is delivered before it is committed, and nothing is promised before its [`log::Ticket`] is.
//! - What is durably known is the fold of the logs: streams with their messages and settlements, and the catalog of
//!   durable subscriptions. There is no second store.
//! - Commands never wait for the disk: they give a ticket, and a [`log::Signal`] is called when it is committed.
//!
//! ```
//! use postroad_engine::{Engine, EngineConfig, NewEvent, SyncMode, log::PayloadKind};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let engine = Engine::open(EngineConfig { sync: SyncMode::Memory, data: None, ..EngineConfig::default() })?;
//! let orders = engine.stream_or_create(&"orders".parse()?)?;
//! let event = NewEvent { priority: 0, id: None, headers: None, kind: PayloadKind::Json, payload: br#"{"sum":12}"# };
//! let published = orders.publish(&[event])?;
//! engine.flush(true);
//! assert!(engine.committed() >= published.ticket);
//! # Ok(())
//! # }
//! ```

pub mod backend;
mod config;
mod consumer;
mod dead;
mod door;
mod engine;
mod error;
mod id;
mod later;
pub mod log;
mod records;
mod registry;
mod stream;
mod subscription;
mod trie;

pub use backend::EngineBackend;
pub use config::{EngineConfig, LagPolicy, Planted, Retention, SyncMode};
pub use consumer::{Consumer, Delivered};
pub use dead::{Death, Letter};
pub use door::{Done, Door, Returned};
pub use engine::{Counters, Engine};
pub use error::EngineError;
pub use later::{Later, Receipt};
pub use stream::{MemberStats, NewEvent, Published, Stream};
pub use subscription::{Note, PolicyRequest, SubscribeRequest};
pub use trie::{LevelTrie, SubjectTrie, SubjectWildcards, Wildcards};

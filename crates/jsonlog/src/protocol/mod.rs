//! The text protocol, as pure functions: `docs/jsonlog-protocol.md` is its contract.

mod code;
mod command;
mod event;
mod value;

pub use code::Code;
pub use command::{Command, Refusal, SubOptions, Target, Words, parse};
pub use event::{EventKey, check_event};
pub use value::{parse_duration, parse_time};

/// The version of the protocol in the greeting.
pub const VERSION: u32 = 1;

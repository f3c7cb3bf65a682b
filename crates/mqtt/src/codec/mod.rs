//! MQTT packets from and to bytes, without a socket: 3.1, 3.1.1 and 5.0, for servers and clients.
//!
//! - [`Decoder`] takes packets off the front of a receive buffer, [`Packet::encode`] appends them to a send buffer.
//! - Strings, payloads and binary data are slices of the input, which stays in memory as long as one of them does.
//!   PUBLISH without properties and the acknowledgements allocate nothing.
//! - Decoding is strict: a packet that breaks a rule is a [`DecodeError`], which knows the rule and the reason code
//!   for the peer. What needs the state of a session (packet ids in use, known aliases, the receive maximum) is not
//!   checked here.
//!
//! ```
//! use bytes::BytesMut;
//! use postroad_mqtt::codec::{Decoder, Limits, Packet, Publish, Utf8, Version};
//!
//! let mut wire = BytesMut::new();
//! let message = Publish::new(Utf8::from_static("orders/eu"), "one large pizza");
//! message.encode(Version::V5, &mut wire)?;
//!
//! let mut decoder = Decoder::client(Version::V5, Limits::default());
//! assert_eq!(decoder.decode(&mut wire)?, Some(Packet::Publish(message)));
//! assert_eq!(decoder.decode(&mut wire)?, None);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod ack;
mod auth;
mod connack;
mod connect;
mod decoder;
mod disconnect;
mod error;
mod packet;
mod packet_type;
mod properties;
mod publish;
mod qos;
mod read;
mod reason;
mod suback;
mod subscribe;
pub mod topic;
mod utf8;
mod version;
mod write;

pub use ack::Ack;
pub use auth::Auth;
pub use connack::Connack;
pub use connect::{Connect, Will};
pub use decoder::{Decoder, Frame, Limits, decode_packet, frame};
pub use disconnect::Disconnect;
pub use error::{DecodeError, EncodeError};
pub use packet::Packet;
pub use packet_type::{Direction, PacketType, check_direction};
pub use properties::{
    AckProperties, AuthProperties, ConnackProperties, ConnectProperties, DisconnectProperties,
    PublishProperties, SubscribeProperties, UnsubscribeProperties, WillProperties,
};
pub use publish::{Publish, PublishHead};
pub use qos::{PacketId, Qos, SubscriptionId};
pub use reason::ReasonCode;
pub use suback::{Suback, Unsuback};
pub use subscribe::{RetainHandling, Subscribe, Subscription, Unsubscribe};
pub use utf8::{Utf8, Utf8Error};
pub use version::Version;

/// The most bytes after the fixed header (section 2.1.4).
pub const MAX_REMAINING_LENGTH: u32 = 268_435_455;

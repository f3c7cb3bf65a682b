//! What is wrong with bytes from a peer, or with a packet that is to be sent.

use std::fmt;

use super::{PacketType, ReasonCode, Utf8Error, Version};

macro_rules! decode_errors {
    ($($name:ident, $reason:ident, $clause:literal, $what:literal;)*) => {
        /// A rule that a packet breaks. After one, the connection is of no more use.
        ///
        /// [`reason`](Self::reason) is for the CONNACK or DISCONNECT of an MQTT 5.0 connection; before 5.0 the
        /// connection is closed without a word, except for a CONNECT that was refused with
        /// [`UnsupportedProtocolVersion`](ReasonCode::UnsupportedProtocolVersion) or
        /// [`ClientIdentifierNotValid`](ReasonCode::ClientIdentifierNotValid).
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum DecodeError {
            $(#[doc = concat!($what, ". [", $clause, "]")] $name,)*
        }

        impl DecodeError {
            /// Every rule.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The reason code that tells the peer.
            pub const fn reason(self) -> ReasonCode {
                match self {
                    $(Self::$name => ReasonCode::$reason,)*
                }
            }

            /// The normative statement of MQTT 5.0, `MQTT-3.1.0-1`; where the rule has no number, the section of
            /// MQTT 5.0, `section 3.8.3.1`; `limit` if it is one of ours. `of 3.1.1` if 5.0 dropped the rule.
            pub const fn clause(self) -> &'static str {
                match self {
                    $(Self::$name => $clause,)*
                }
            }

            const fn what(self) -> &'static str {
                match self {
                    $(Self::$name => $what,)*
                }
            }
        }
    };
}

decode_errors! {
    // The fixed header.
    PacketType, MalformedPacket, "section 2.1.2", "a packet type that this version does not have";
    FixedFlags, MalformedPacket, "MQTT-2.1.3-1", "the reserved flags of the fixed header are not as they must be";
    TooLarge, PacketTooLarge, "MQTT-3.1.2-24, MQTT-3.2.2-15", "the packet is larger than the maximum packet size";
    WrongDirection, ProtocolError, "section 2.1.2", "the packet may only go the other way";
    NotConnect, ProtocolError, "MQTT-3.1.0-1", "the first packet is not CONNECT";
    SecondConnect, ProtocolError, "MQTT-3.1.0-2", "a second CONNECT";
    // What every packet is made of.
    Truncated, MalformedPacket, "section 4.13.1", "the packet ends before its fields do";
    Trailing, MalformedPacket, "section 4.13.1", "there are bytes after the last field";
    VarInt, MalformedPacket, "section 1.5.5", "a variable byte integer has more than four bytes";
    VarIntNotMinimal, MalformedPacket, "MQTT-1.5.5-1", "a variable byte integer is longer than it must be";
    NotUtf8, MalformedPacket, "MQTT-1.5.4-1", "a string is not UTF-8";
    Nul, MalformedPacket, "MQTT-1.5.4-2", "a string has U+0000";
    PacketIdZero, ProtocolError, "MQTT-2.2.1-3", "the packet identifier is 0";
    ReasonCode, MalformedPacket, "section 2.4", "a reason code that this packet may not carry";
    // Properties.
    PropertyUnknown, MalformedPacket, "section 2.2.2.2", "a property that this packet may not have";
    PropertyTwice, ProtocolError, "section 2.2.2.2", "a property that may be there once is there twice";
    PropertyFlag, ProtocolError, "section 2.2.2.2", "a property that is 0 or 1 is neither";
    PropertyLength, MalformedPacket, "section 2.2.2.1", "the property length runs past the packet";
    ReceiveMaximumZero, ProtocolError, "section 3.1.2.11.3", "the receive maximum is 0";
    MaximumPacketSizeZero, ProtocolError, "section 3.1.2.11.4", "the maximum packet size is 0";
    MaximumQos, ProtocolError, "section 3.2.2.3.4", "the maximum QoS is neither 0 nor 1";
    TopicAliasZero, TopicAliasInvalid, "MQTT-3.3.2-8", "the topic alias is 0";
    SubscriptionIdZero, ProtocolError, "section 3.8.2.1.2", "the subscription identifier is 0";
    AuthenticationData, ProtocolError, "section 3.1.2.11.10", "authentication data without a method";
    UserProperties, QuotaExceeded, "limit", "more user properties than are accepted";
    // CONNECT and CONNACK.
    ProtocolName, UnsupportedProtocolVersion, "MQTT-3.1.2-1", "the protocol name is not MQTT";
    ProtocolLevel, UnsupportedProtocolVersion, "MQTT-3.1.2-2", "a protocol version that is not 3.1, 3.1.1 or 5.0";
    ConnectFlagReserved, MalformedPacket, "MQTT-3.1.2-3", "the reserved flag of CONNECT is set";
    WillQosWithoutWill, MalformedPacket, "MQTT-3.1.2-11", "a will QoS without a will";
    WillQos, MalformedPacket, "MQTT-3.1.2-12", "the will QoS is 3";
    WillRetainWithoutWill, MalformedPacket, "MQTT-3.1.2-13", "a will retain without a will";
    PasswordWithoutUserName, MalformedPacket, "MQTT-3.1.2-22 of 3.1.1", "a password without a user name, before MQTT 5.0";
    ClientId, ClientIdentifierNotValid, "MQTT-3.1.3-8 of 3.1.1", "no client identifier where one is needed";
    ConnackFlags, MalformedPacket, "MQTT-3.2.2-1", "the reserved acknowledge flags are not 0";
    SessionPresent, ProtocolError, "MQTT-3.2.2-6", "a session is present, but the connection is refused";
    // PUBLISH.
    PublishQos, MalformedPacket, "MQTT-3.3.1-4", "the QoS is 3";
    DupQos0, MalformedPacket, "MQTT-3.3.1-2", "DUP is set at QoS 0";
    TopicWildcard, TopicNameInvalid, "MQTT-3.3.2-2", "a topic name with a wildcard";
    TopicEmpty, MalformedPacket, "MQTT-4.7.3-1", "an empty topic";
    TopicMissing, ProtocolError, "section 3.3.2.1", "neither a topic name nor a topic alias";
    TopicLevels, QuotaExceeded, "limit", "more topic levels than are accepted";
    ResponseTopic, ProtocolError, "MQTT-3.3.2-14", "the response topic has a wildcard";
    SubscriptionIdToServer, ProtocolError, "MQTT-3.3.4-6", "a client publishes with a subscription identifier";
    // SUBSCRIBE and UNSUBSCRIBE.
    NoFilter, ProtocolError, "MQTT-3.8.3-2", "a SUBSCRIBE without a filter";
    NoUnsubscribeFilter, ProtocolError, "MQTT-3.10.3-2", "an UNSUBSCRIBE without a filter";
    Filters, QuotaExceeded, "limit", "more filters in one packet than are accepted";
    FilterHash, MalformedPacket, "MQTT-4.7.1-1", "`#` is not a whole last level of the filter";
    FilterPlus, MalformedPacket, "MQTT-4.7.1-2", "`+` is not a whole level of the filter";
    ShareName, MalformedPacket, "MQTT-4.8.2-1", "the share name is empty";
    ShareSyntax, MalformedPacket, "MQTT-4.8.2-2", "the share name has a wildcard or no filter follows it";
    SubscribeQos, ProtocolError, "section 3.8.3.1", "the maximum QoS of a subscription is 3";
    SubscribeOptions, MalformedPacket, "MQTT-3.8.3-5", "the reserved bits of the subscription options are not 0";
    RetainHandling, ProtocolError, "section 3.8.3.1", "the retain handling is 3";
    NoLocalShared, ProtocolError, "MQTT-3.8.3-4", "no local on a shared subscription";
    NoReasonCode, ProtocolError, "section 3.9.3", "an acknowledgement without reason codes";
    // DISCONNECT and AUTH.
    SessionExpiryFromServer, ProtocolError, "MQTT-3.14.2-2", "a server's DISCONNECT with a session expiry interval";
    AuthenticationMethod, ProtocolError, "section 3.15.2.2.2", "an AUTH without an authentication method";
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}]", self.what(), self.clause())
    }
}

impl std::error::Error for DecodeError {}

impl From<Utf8Error> for DecodeError {
    fn from(error: Utf8Error) -> Self {
        match error {
            Utf8Error::Nul => Self::Nul,
            // A length of two bytes cannot say more.
            Utf8Error::NotUtf8 | Utf8Error::TooLong => Self::NotUtf8,
        }
    }
}

/// A packet that has no bytes in that version. Nothing was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// More than 268,435,455 bytes after the fixed header.
    #[error("the packet has {0} bytes after its fixed header, 268435455 is the most")]
    TooLarge(usize),
    /// A password, will payload, correlation or authentication data of more than 65535 bytes.
    #[error("{0} bytes of binary data in one field, 65535 is the most")]
    BinaryTooLong(usize),
    /// A PUBLISH of QoS 1 or 2 without a packet id, or one of QoS 0 with one. [MQTT-2.2.1-2]
    #[error("a PUBLISH has a packet id if, and only if, its QoS is 1 or 2")]
    PacketId,
    /// The version has no such packet, in no direction.
    #[error("{0:?} cannot be sent in MQTT {1:?}")]
    NotInVersion(PacketType, Version),
    /// A reason code that the packet may not carry.
    #[error("{0:?} may not carry {1:?}")]
    ReasonCode(PacketType, ReasonCode),
}

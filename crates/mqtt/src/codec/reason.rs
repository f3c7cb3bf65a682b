//! Reason codes of MQTT 5.0 and the return codes that stand for them before.

use super::PacketType;

macro_rules! reason_codes {
    ($($(#[doc = $doc:literal])* $name:ident = $value:literal on [$($packet:ident)*],)*) => {
        /// Why, as MQTT 5.0 says it (section 2.4). The codes of older versions are translated to these.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum ReasonCode {
            $($(#[doc = $doc])* $name = $value,)*
        }

        impl ReasonCode {
            /// Every code, ascending.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The code of a byte, if it is one.
            pub const fn from_u8(byte: u8) -> Option<Self> {
                match byte {
                    $($value => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// Whether packets of this type may carry it in MQTT 5.0 (the tables of chapter 3).
            pub const fn allowed_on(self, packet: PacketType) -> bool {
                match self {
                    $(Self::$name => matches!(packet, $(PacketType::$packet)|*),)*
                }
            }
        }
    };
}

reason_codes! {
    /// Success; normal disconnection; granted QoS 0.
    Success = 0x00 on [Connack Puback Pubrec Pubrel Pubcomp Suback Unsuback Disconnect Auth],
    /// The subscription has QoS 1.
    GrantedQos1 = 0x01 on [Suback],
    /// The subscription has QoS 2.
    GrantedQos2 = 0x02 on [Suback],
    /// The client goes and wants its will published.
    DisconnectWithWill = 0x04 on [Disconnect],
    /// Accepted, but nobody subscribes.
    NoMatchingSubscribers = 0x10 on [Puback Pubrec],
    /// There was nothing to unsubscribe from.
    NoSubscriptionExisted = 0x11 on [Unsuback],
    /// The next step of the authentication.
    ContinueAuthentication = 0x18 on [Auth],
    /// The client begins a re-authentication.
    ReAuthenticate = 0x19 on [Auth],
    /// None of the others, or not to be said.
    UnspecifiedError = 0x80 on [Connack Puback Pubrec Suback Unsuback Disconnect],
    /// Bytes that are no packet.
    MalformedPacket = 0x81 on [Connack Disconnect],
    /// A packet that is not allowed here, or with values that are not.
    ProtocolError = 0x82 on [Connack Disconnect],
    /// Valid, but not accepted here.
    ImplementationSpecificError = 0x83 on [Connack Puback Pubrec Suback Unsuback Disconnect],
    /// The server does not speak this version.
    UnsupportedProtocolVersion = 0x84 on [Connack],
    /// The client id is not allowed.
    ClientIdentifierNotValid = 0x85 on [Connack],
    /// The user name or the password is not accepted.
    BadUserNameOrPassword = 0x86 on [Connack],
    /// Not allowed to this client.
    NotAuthorized = 0x87 on [Connack Puback Pubrec Suback Unsuback Disconnect],
    /// The server is not available.
    ServerUnavailable = 0x88 on [Connack],
    /// The server is busy.
    ServerBusy = 0x89 on [Connack Disconnect],
    /// The client is banned.
    Banned = 0x8A on [Connack],
    /// The server goes down.
    ServerShuttingDown = 0x8B on [Disconnect],
    /// The authentication method is not supported, or not the one in use.
    BadAuthenticationMethod = 0x8C on [Connack Disconnect],
    /// Nothing was heard for one and a half times the keep alive.
    KeepAliveTimeout = 0x8D on [Disconnect],
    /// Another connection uses the same client id.
    SessionTakenOver = 0x8E on [Disconnect],
    /// The filter is well formed, but not accepted.
    TopicFilterInvalid = 0x8F on [Suback Unsuback Disconnect],
    /// The topic name is not accepted.
    TopicNameInvalid = 0x90 on [Connack Puback Pubrec Disconnect],
    /// The packet id is in use.
    PacketIdentifierInUse = 0x91 on [Puback Pubrec Suback Unsuback],
    /// The packet id is not known.
    PacketIdentifierNotFound = 0x92 on [Pubrel Pubcomp],
    /// More was sent unacknowledged than the receive maximum.
    ReceiveMaximumExceeded = 0x93 on [Disconnect],
    /// A topic alias above the maximum, or 0.
    TopicAliasInvalid = 0x94 on [Disconnect],
    /// Larger than the receiver's maximum packet size.
    PacketTooLarge = 0x95 on [Connack Disconnect],
    /// Too much at once.
    MessageRateTooHigh = 0x96 on [Disconnect],
    /// A limit of the implementation or of the administrator.
    QuotaExceeded = 0x97 on [Connack Puback Pubrec Suback Disconnect],
    /// Closed by an administrator.
    AdministrativeAction = 0x98 on [Disconnect],
    /// The payload is not what its format indicator says.
    PayloadFormatInvalid = 0x99 on [Connack Puback Pubrec Disconnect],
    /// The server keeps no retained messages.
    RetainNotSupported = 0x9A on [Connack Disconnect],
    /// The QoS is above the server's maximum.
    QosNotSupported = 0x9B on [Connack Disconnect],
    /// For now, another server.
    UseAnotherServer = 0x9C on [Connack Disconnect],
    /// From now on, another server.
    ServerMoved = 0x9D on [Connack Disconnect],
    /// The server has no shared subscriptions.
    SharedSubscriptionsNotSupported = 0x9E on [Suback Disconnect],
    /// Too many connections at once.
    ConnectionRateExceeded = 0x9F on [Connack Disconnect],
    /// Connected for as long as is allowed.
    MaximumConnectTime = 0xA0 on [Disconnect],
    /// The server has no subscription identifiers.
    SubscriptionIdentifiersNotSupported = 0xA1 on [Suback Disconnect],
    /// The server has no wildcard subscriptions.
    WildcardSubscriptionsNotSupported = 0xA2 on [Suback Disconnect],
}

impl ReasonCode {
    /// Whether it says that something failed: 0x80 and up.
    pub const fn is_error(self) -> bool {
        self as u8 >= 0x80
    }

    /// The return code of a CONNACK before 5.0 that says nearly the same (MQTT 3.1.1, table 3.1).
    pub const fn connack_v3(self) -> u8 {
        match self {
            Self::UnsupportedProtocolVersion => 1,
            Self::ClientIdentifierNotValid => 2,
            Self::BadUserNameOrPassword => 4,
            Self::NotAuthorized | Self::Banned | Self::BadAuthenticationMethod => 5,
            code if code.is_error() => 3,
            _ => 0,
        }
    }

    /// The code of a CONNACK return code before 5.0.
    pub const fn from_connack_v3(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Success),
            1 => Some(Self::UnsupportedProtocolVersion),
            2 => Some(Self::ClientIdentifierNotValid),
            3 => Some(Self::ServerUnavailable),
            4 => Some(Self::BadUserNameOrPassword),
            5 => Some(Self::NotAuthorized),
            _ => None,
        }
    }

    /// The return code of a SUBACK before 5.0: the QoS, or 0x80.
    pub const fn suback_v3(self) -> u8 {
        if self.is_error() { 0x80 } else { self as u8 }
    }
}

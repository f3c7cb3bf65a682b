//! Which MQTT a connection speaks.

/// The protocol version of a connection; CONNECT names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// 3.1: `MQIsdp`, level 3.
    V31,
    /// 3.1.1: `MQTT`, level 4.
    V311,
    /// 5.0: `MQTT`, level 5.
    V5,
}

impl Version {
    /// The protocol name and level in CONNECT.
    pub const fn name_and_level(self) -> (&'static str, u8) {
        match self {
            Self::V31 => ("MQIsdp", 3),
            Self::V311 => ("MQTT", 4),
            Self::V5 => ("MQTT", 5),
        }
    }

    /// Whether it is 5.0: only there packets have properties and most reason codes.
    pub const fn is_v5(self) -> bool {
        matches!(self, Self::V5)
    }
}

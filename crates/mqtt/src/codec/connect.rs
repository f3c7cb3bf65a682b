//! CONNECT (section 3.1).

use bytes::{BufMut, Bytes, BytesMut};

use super::properties;
use super::read::Reader;
use super::{
    ConnectProperties, DecodeError, EncodeError, Limits, PacketType, Qos, Utf8, Version, WillProperties,
    topic, write,
};

const RESERVED: u8 = 0x01;
const CLEAN_START: u8 = 0x02;
const WILL: u8 = 0x04;
const WILL_QOS: u8 = 0x18;
const WILL_RETAIN: u8 = 0x20;
const PASSWORD: u8 = 0x40;
const USER_NAME: u8 = 0x80;

/// A client opens the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connect {
    /// The version of this connection.
    pub version: Version,
    /// No earlier session is taken up. Before 5.0 it also ends with the connection.
    pub clean_start: bool,
    /// Seconds between two packets of the client at most; 0 is no limit.
    pub keep_alive: u16,
    /// The client's name; empty if the server shall choose one. 3.1 allows 1 to 23 bytes; longer ones are not
    /// refused here.
    pub client_id: Utf8,
    /// The message to publish if the connection ends without a DISCONNECT.
    pub will: Option<Will>,
    /// The user name.
    pub user_name: Option<Utf8>,
    /// The password; before 5.0 only with a user name.
    pub password: Option<Bytes>,
    /// Properties; all absent before 5.0.
    pub properties: ConnectProperties,
}

/// The message that a server publishes for a client that is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Will {
    /// Where it goes.
    pub topic: Utf8,
    /// What it says.
    pub payload: Bytes,
    /// With which QoS.
    pub qos: Qos,
    /// Whether it is retained.
    pub retain: bool,
    /// Properties; none before 5.0.
    pub properties: Option<Box<WillProperties>>,
}

impl Connect {
    /// A connection with a new session, a keep alive of 60 s and nothing else.
    pub fn new(version: Version, client_id: Utf8) -> Self {
        Self {
            version,
            clean_start: true,
            keep_alive: 60,
            client_id,
            will: None,
            user_name: None,
            password: None,
            properties: ConnectProperties::default(),
        }
    }

    /// The version of a CONNECT's body.
    pub(super) fn peek_version(body: &[u8]) -> Result<Version, DecodeError> {
        let (len, rest) = body.split_first_chunk::<2>().ok_or(DecodeError::Truncated)?;
        let name_len = usize::from(u16::from_be_bytes(*len));
        let name = rest.get(..name_len).ok_or(DecodeError::Truncated)?;
        let level = *rest.get(name_len).ok_or(DecodeError::Truncated)?;
        match (name, level) {
            (b"MQIsdp", 3) => Ok(Version::V31),
            (b"MQTT", 4) => Ok(Version::V311),
            (b"MQTT", 5) => Ok(Version::V5),
            (b"MQIsdp" | b"MQTT", _) => Err(DecodeError::ProtocolLevel),
            _ => Err(DecodeError::ProtocolName),
        }
    }

    pub(super) fn decode(mut reader: Reader, limits: &Limits) -> Result<Self, DecodeError> {
        let version = Self::peek_version(reader.as_slice())?;
        reader.take(2 + version.name_and_level().0.len() + 1)?;
        let flags = reader.u8()?;
        if flags & RESERVED != 0 {
            return Err(DecodeError::ConnectFlagReserved);
        }
        let will_qos = Qos::from_u8((flags & WILL_QOS) >> 3).ok_or(DecodeError::WillQos)?;
        if flags & WILL == 0 {
            if will_qos != Qos::AtMostOnce {
                return Err(DecodeError::WillQosWithoutWill);
            }
            if flags & WILL_RETAIN != 0 {
                return Err(DecodeError::WillRetainWithoutWill);
            }
        }
        if !version.is_v5() && flags & (USER_NAME | PASSWORD) == PASSWORD {
            return Err(DecodeError::PasswordWithoutUserName);
        }
        let clean_start = flags & CLEAN_START != 0;
        let keep_alive = reader.u16()?;
        let properties = match version {
            Version::V5 => properties::read(&mut reader, limits)?,
            _ => ConnectProperties::default(),
        };
        let client_id = reader.utf8()?;
        if client_id.is_empty() {
            match version {
                Version::V5 => {}
                Version::V311 if clean_start => {}
                _ => return Err(DecodeError::ClientId),
            }
        }
        let will = if flags & WILL != 0 {
            let properties = match version {
                Version::V5 => properties::read_boxed(&mut reader, limits)?,
                _ => None,
            };
            let topic = reader.utf8()?;
            topic::validate_name(&topic, limits.levels)?;
            let payload = reader.binary()?;
            Some(Will { topic, payload, qos: will_qos, retain: flags & WILL_RETAIN != 0, properties })
        } else {
            None
        };
        let user_name = if flags & USER_NAME != 0 { Some(reader.utf8()?) } else { None };
        let password = if flags & PASSWORD != 0 { Some(reader.binary()?) } else { None };
        reader.end()?;
        Ok(Self { version, clean_start, keep_alive, client_id, will, user_name, password, properties })
    }

    fn flags(&self) -> u8 {
        let mut flags = 0;
        if self.clean_start {
            flags |= CLEAN_START;
        }
        if let Some(will) = &self.will {
            flags |= WILL | (will.qos as u8) << 3;
            if will.retain {
                flags |= WILL_RETAIN;
            }
        }
        if self.user_name.is_some() {
            flags |= USER_NAME;
        }
        if self.password.is_some() {
            flags |= PASSWORD;
        }
        flags
    }

    /// Bytes after the fixed header.
    pub(super) fn remaining(&self) -> usize {
        let v5 = self.version.is_v5();
        let properties_len = |len| if v5 { properties::len(len) } else { 0 };
        let will = self.will.as_ref().map_or(0, |will| {
            let properties = properties_len(properties::body_len(will.properties.as_deref()));
            properties + 4 + will.topic.len() + will.payload.len()
        });
        2 + self.version.name_and_level().0.len()
            + 4
            + properties_len(properties::body_len(Some(&self.properties)))
            + 2
            + self.client_id.len()
            + will
            + self.user_name.as_ref().map_or(0, |name| 2 + name.len())
            + self.password.as_ref().map_or(0, |password| 2 + password.len())
    }

    fn check(&self) -> Result<(), EncodeError> {
        properties::check(Some(&self.properties))?;
        if let Some(will) = &self.will {
            write::check_binary(&will.payload)?;
            properties::check(will.properties.as_deref())?;
        }
        if let Some(password) = &self.password {
            write::check_binary(password)?;
            if self.user_name.is_none() && !self.version.is_v5() {
                // [MQTT-3.1.2-22] of 3.1.1
                return Err(EncodeError::NotInVersion(PacketType::Connect, self.version));
            }
        }
        Ok(())
    }

    /// Appends the packet, in its own version, to `out`.
    pub fn encode(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
        self.check()?;
        let remaining = self.remaining();
        write::fixed_header(0x10, remaining, remaining, out)?;
        let (name, level) = self.version.name_and_level();
        write::binary(name.as_bytes(), out);
        out.put_u8(level);
        out.put_u8(self.flags());
        out.put_u16(self.keep_alive);
        if self.version.is_v5() {
            properties::write(Some(&self.properties), out);
        }
        write::binary(self.client_id.as_bytes(), out);
        if let Some(will) = &self.will {
            if self.version.is_v5() {
                properties::write(will.properties.as_deref(), out);
            }
            write::binary(will.topic.as_bytes(), out);
            write::binary(&will.payload, out);
        }
        if let Some(name) = &self.user_name {
            write::binary(name.as_bytes(), out);
        }
        if let Some(password) = &self.password {
            write::binary(password, out);
        }
        Ok(())
    }
}

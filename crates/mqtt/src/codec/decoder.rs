//! Packets off the front of a receive buffer.

use bytes::{Buf, Bytes, BytesMut};

use super::read::{self, Reader};
use super::{
    Ack, Auth, Connack, Connect, DecodeError, Direction, Disconnect, Packet, PacketId, PacketType, Publish,
    Suback, Subscribe, Unsuback, Unsubscribe, Version, check_direction,
};

/// What a decoder accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// The largest packet in bytes, its fixed header included. 1 MiB if not set.
    pub max_packet_size: u32,
    /// The largest CONNECT in bytes: nobody has said yet who they are. 64 KiB if not set.
    pub max_connect_size: u32,
    /// The most user properties of a packet, or of a will. 64 if not set.
    pub user_properties: usize,
    /// The most levels of a topic or filter. 128 if not set.
    pub levels: usize,
    /// The most filters of a SUBSCRIBE or UNSUBSCRIBE. 1024 if not set.
    pub filters: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_packet_size: 1 << 20,
            max_connect_size: 64 << 10,
            user_properties: 64,
            levels: 128,
            filters: 1024,
        }
    }
}

/// How far the front of a buffer is from a whole packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame {
    /// At least this many more bytes are missing, 1 or more.
    Need(usize),
    /// The packet is there.
    Whole {
        /// Bytes of its fixed header, 2 to 5.
        header: usize,
        /// Bytes after it.
        body: usize,
    },
}

/// Finds the end of the packet at the front of `buf`, which may have `max` bytes with its fixed header.
///
/// A length above `max` is refused as soon as it is known. Do not reserve what is missing at once: the peer may never
/// send it.
pub fn frame(buf: &[u8], max: u32) -> Result<Frame, DecodeError> {
    if buf.len() < 2 {
        return Ok(Frame::Need(2 - buf.len()));
    }
    let Some((body, len)) = read::varint(&buf[1..])? else { return Ok(Frame::Need(1)) };
    let (header, body) = (1 + len, body as usize);
    if header + body > max as usize {
        return Err(DecodeError::TooLarge);
    }
    match (header + body).checked_sub(buf.len()) {
        None | Some(0) => Ok(Frame::Whole { header, body }),
        Some(missing) => Ok(Frame::Need(missing)),
    }
}

/// What a packet is read with.
pub(super) struct Context<'a> {
    pub(super) version: Version,
    pub(super) direction: Direction,
    pub(super) limits: &'a Limits,
}

/// Reads one whole packet, `bytes`, of a connection of `version`; a CONNECT names its own.
pub fn decode_packet(
    bytes: Bytes,
    version: Version,
    direction: Direction,
    limits: &Limits,
) -> Result<Packet, DecodeError> {
    let Frame::Whole { header, body } = frame(&bytes, limits.max_packet_size)? else {
        return Err(DecodeError::Truncated);
    };
    if bytes.len() > header + body {
        return Err(DecodeError::Trailing);
    }
    let kind = check_first_byte(bytes[0], Some(version), direction)?;
    decode_body(kind, bytes, header, &Context { version, direction, limits })
}

/// The packet's type, if the first byte is one that may come.
fn check_first_byte(
    first: u8,
    version: Option<Version>,
    direction: Direction,
) -> Result<PacketType, DecodeError> {
    let kind = PacketType::from_first_byte(first).ok_or(DecodeError::PacketType)?;
    check_direction(kind, direction, version.unwrap_or(Version::V5))?;
    if kind != PacketType::Publish {
        let mut flags = first & 0x0F;
        if version == Some(Version::V31) && kind.fixed_flags() != 0 {
            // 3.1 has DUP on every packet of QoS 1 (section 2.1).
            flags &= !0x08;
        }
        if flags != kind.fixed_flags() {
            return Err(DecodeError::FixedFlags);
        }
    }
    Ok(kind)
}

fn decode_body(
    kind: PacketType,
    mut bytes: Bytes,
    header: usize,
    context: &Context<'_>,
) -> Result<Packet, DecodeError> {
    let first = bytes[0];
    bytes.advance(header);
    let reader = Reader::new(bytes);
    Ok(match kind {
        PacketType::Connect => Packet::Connect(Box::new(Connect::decode(reader, context.limits)?)),
        PacketType::Connack => Packet::Connack(Box::new(Connack::decode(reader, context)?)),
        PacketType::Publish => Packet::Publish(Publish::decode(first, reader, context)?),
        PacketType::Puback => Packet::Puback(Ack::decode(kind, reader, context)?),
        PacketType::Pubrec => Packet::Pubrec(Ack::decode(kind, reader, context)?),
        PacketType::Pubrel => Packet::Pubrel(Ack::decode(kind, reader, context)?),
        PacketType::Pubcomp => Packet::Pubcomp(Ack::decode(kind, reader, context)?),
        PacketType::Subscribe => Packet::Subscribe(Subscribe::decode(reader, context)?),
        PacketType::Suback => Packet::Suback(Suback::decode(reader, context)?),
        PacketType::Unsubscribe => Packet::Unsubscribe(Unsubscribe::decode(reader, context)?),
        PacketType::Unsuback => Packet::Unsuback(Unsuback::decode(reader, context)?),
        PacketType::Pingreq => {
            reader.end()?;
            Packet::Pingreq
        }
        PacketType::Pingresp => {
            reader.end()?;
            Packet::Pingresp
        }
        PacketType::Disconnect => Packet::Disconnect(Disconnect::decode(reader, context)?),
        PacketType::Auth => Packet::Auth(Auth::decode(reader, context)?),
    })
}

/// The reading half of one connection.
///
/// After an error it is of no more use, and the connection is to be closed.
#[derive(Debug, Clone)]
pub struct Decoder {
    version: Option<Version>,
    connected: bool,
    direction: Direction,
    limits: Limits,
}

impl Decoder {
    /// Of a server. The first packet must be CONNECT, which says the version; no second one may come.
    pub fn server(limits: Limits) -> Self {
        Self { version: None, connected: false, direction: Direction::ToServer, limits }
    }

    /// Of a client that connects with `version`.
    pub fn client(version: Version, limits: Limits) -> Self {
        Self { version: Some(version), connected: true, direction: Direction::ToClient, limits }
    }

    /// The version, as soon as it is known: after a malformed CONNECT too, if that part of it could be read.
    pub fn version(&self) -> Option<Version> {
        self.version
    }

    /// What is accepted.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// What is accepted from now on.
    pub fn limits_mut(&mut self) -> &mut Limits {
        &mut self.limits
    }

    fn max_size(&self) -> u32 {
        if self.connected {
            self.limits.max_packet_size
        } else {
            self.limits.max_connect_size.min(self.limits.max_packet_size)
        }
    }

    /// How many bytes at least must follow those in `buf` before [`decode`](Self::decode) yields more than it does
    /// now; 0 if it yields a packet. Reserve in steps, not all at once: the peer may never send it.
    pub fn missing(&self, buf: &[u8]) -> Result<usize, DecodeError> {
        let Some(&first) = buf.first() else { return Ok(2) };
        self.check_first(first)?;
        match frame(buf, self.max_size())? {
            Frame::Need(missing) => Ok(missing),
            Frame::Whole { .. } => Ok(0),
        }
    }

    fn check_first(&self, first: u8) -> Result<PacketType, DecodeError> {
        // PUBLISH may go either way in every version, and its flags are its own.
        if self.connected && first >> 4 == PacketType::Publish as u8 {
            return Ok(PacketType::Publish);
        }
        let kind = check_first_byte(first, self.version, self.direction);
        match (self.connected, kind) {
            (false, Ok(PacketType::Connect) | Err(DecodeError::FixedFlags)) => kind,
            (false, _) => Err(DecodeError::NotConnect),
            (true, Ok(PacketType::Connect)) => Err(DecodeError::SecondConnect),
            (true, kind) => kind,
        }
    }

    /// Takes the packet at the front off `buf`; `None` if it is not all there yet.
    ///
    /// What is wrong with a first byte or a length is said before the rest has come.
    #[inline]
    pub fn decode(&mut self, buf: &mut BytesMut) -> Result<Option<Packet>, DecodeError> {
        // An acknowledgement without a reason: four bytes, the same in every version, read in place because half of all
        // packets are such.
        if let &[first @ (0x40 | 0x50 | 0x62 | 0x70), 2, high, low, ..] = &buf[..]
            && self.connected
            && self.limits.max_packet_size >= 4
        {
            let id = PacketId::new(u16::from_be_bytes([high, low])).ok_or(DecodeError::PacketIdZero)?;
            let ack = Ack::new(id);
            buf.advance(4);
            return Ok(Some(match first {
                0x40 => Packet::Puback(ack),
                0x50 => Packet::Pubrec(ack),
                0x62 => Packet::Pubrel(ack),
                _ => Packet::Pubcomp(ack),
            }));
        }
        self.decode_any(buf)
    }

    fn decode_any(&mut self, buf: &mut BytesMut) -> Result<Option<Packet>, DecodeError> {
        let Some(&first) = buf.first() else { return Ok(None) };
        let kind = self.check_first(first)?;
        let Frame::Whole { header, body } = frame(buf, self.max_size())? else { return Ok(None) };
        let bytes = buf.split_to(header + body).freeze();
        if kind == PacketType::Connect {
            self.version = Some(Connect::peek_version(&bytes[header..])?);
            self.connected = true;
        }
        let version = self.version.ok_or(DecodeError::NotConnect)?;
        let context = Context { version, direction: self.direction, limits: &self.limits };
        decode_body(kind, bytes, header, &context).map(Some)
    }
}

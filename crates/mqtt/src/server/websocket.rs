//! WebSocket frames (RFC 6455) of a server: bytes in, bytes out.
//!
//! MQTT packets may be split over frames, and a frame may hold several [MQTT-6.0.0-2], so that frames are no more than
//! a wrapping of the byte stream: payloads are unmasked where they lie, whatever the length of their frame, and none is
//! ever gathered.

use bytes::{Buf as _, BytesMut};

/// Payload of a control frame at most (RFC 6455, 5.5).
const MAX_CONTROL: usize = 125;
/// Two bytes, eight of length, four of mask.
const MAX_HEADER: usize = 14;

const CONTINUATION: u8 = 0x0;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xA;
const FIN: u8 = 0x80;

/// Why a WebSocket ends (RFC 6455, 7.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum WebSocketError {
    #[error("a frame breaks RFC 6455")]
    Protocol,
    #[error("a frame that is not binary [MQTT-6.0.0-1]")]
    NotBinary,
    #[error("the client closed the WebSocket")]
    Closed,
}

impl WebSocketError {
    fn code(self) -> u16 {
        match self {
            Self::Protocol => 1002,
            Self::NotBinary => 1003,
            Self::Closed => 1000,
        }
    }
}

/// One connection's framing.
#[derive(Debug, Default)]
pub(super) struct WebSocket {
    header: [u8; MAX_HEADER],
    header_len: u8,
    // Of the frame that is being read.
    opcode: u8,
    fin: bool,
    mask: [u8; 4],
    mask_at: u8,
    left: u64,
    in_payload: bool,
    // A binary message has begun and goes on in continuation frames.
    fragmented: bool,
    control: Vec<u8>,
    // Goes out before any payload: control frames, and the header of the frame that follows.
    head: BytesMut,
    // Payload that still belongs to the frame whose header went out.
    frame_left: usize,
    // Waits for the end of that frame. Only the newest ping is answered (RFC 6455, 5.5.3).
    pong: Option<Vec<u8>>,
    close: Option<u16>,
    closed: bool,
}

impl WebSocket {
    /// Unmasks `bytes` in place and moves what is payload to the front; says how much that is. It counts also if an
    /// error, or the client's goodbye, comes behind it.
    pub(super) fn decode(&mut self, bytes: &mut [u8]) -> (usize, Result<(), WebSocketError>) {
        let mut kept = 0;
        let result = self.unwrap_frames(bytes, &mut kept);
        (kept, result)
    }

    fn unwrap_frames(&mut self, bytes: &mut [u8], kept: &mut usize) -> Result<(), WebSocketError> {
        let mut at = 0;
        while at < bytes.len() {
            if !self.in_payload {
                self.header[usize::from(self.header_len)] = bytes[at];
                self.header_len += 1;
                at += 1;
                if !self.header()? {
                    continue;
                }
            }
            let take = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len() - at);
            if self.opcode < CLOSE {
                self.unmask(&mut bytes[at..at + take]);
                bytes.copy_within(at..at + take, *kept);
                *kept += take;
            } else {
                self.unmask(&mut bytes[at..at + take]);
                self.control.extend_from_slice(&bytes[at..at + take]);
            }
            at += take;
            self.left -= take as u64;
            if self.left == 0 {
                self.end_of_frame()?;
            }
        }
        Ok(())
    }

    /// True if the header is whole; checks it.
    fn header(&mut self) -> Result<bool, WebSocketError> {
        let len = usize::from(self.header_len);
        let [first, second, ..] = self.header;
        if len < 2 {
            return Ok(false);
        }
        if len == 2 {
            self.opcode = first & 0x0F;
            self.fin = first & FIN != 0;
            // Extensions are never agreed on, and a client masks (RFC 6455, 5.1 and 5.2).
            if first & 0x70 != 0 || second & 0x80 == 0 {
                return Err(WebSocketError::Protocol);
            }
            match self.opcode {
                BINARY if !self.fragmented => {}
                CONTINUATION if self.fragmented => {}
                BINARY | CONTINUATION => return Err(WebSocketError::Protocol),
                0x1 => return Err(WebSocketError::NotBinary),
                CLOSE | PING | PONG if self.fin && usize::from(second & 0x7F) <= MAX_CONTROL => {}
                _ => return Err(WebSocketError::Protocol),
            }
        }
        let extended = match second & 0x7F {
            127 => 8,
            126 => 2,
            _ => 0,
        };
        if len < 2 + extended + 4 {
            return Ok(false);
        }
        let length = &self.header[2..2 + extended];
        self.left = if extended == 0 {
            u64::from(second & 0x7F)
        } else {
            length.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
        };
        // The shortest form, and no top bit (RFC 6455, 5.2).
        let shortest = match extended {
            8 => 0x1_0000,
            2 => 126,
            _ => 0,
        };
        if self.left < shortest || self.left >> 63 != 0 {
            return Err(WebSocketError::Protocol);
        }
        self.mask.copy_from_slice(&self.header[2 + extended..2 + extended + 4]);
        self.mask_at = 0;
        self.header_len = 0;
        self.in_payload = true;
        if self.opcode < CLOSE {
            self.fragmented = !self.fin;
        }
        if self.left == 0 {
            self.end_of_frame()?;
            return Ok(false);
        }
        Ok(true)
    }

    fn unmask(&mut self, bytes: &mut [u8]) {
        let mut mask = self.mask;
        mask.rotate_left(usize::from(self.mask_at));
        let wide =
            u64::from_ne_bytes([mask[0], mask[1], mask[2], mask[3], mask[0], mask[1], mask[2], mask[3]]);
        let (words, rest) = bytes.as_chunks_mut::<8>();
        for word in words {
            *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
        }
        for (byte, mask) in rest.iter_mut().zip(mask.iter().cycle()) {
            *byte ^= mask;
        }
        self.mask_at = ((usize::from(self.mask_at) + bytes.len()) % 4) as u8;
    }

    fn end_of_frame(&mut self) -> Result<(), WebSocketError> {
        self.in_payload = false;
        let payload = std::mem::take(&mut self.control);
        match self.opcode {
            PING => self.pong = Some(payload),
            // One byte cannot be a code (RFC 6455, 5.5.1).
            CLOSE if payload.len() == 1 => return Err(WebSocketError::Protocol),
            CLOSE => return Err(WebSocketError::Closed),
            _ => {}
        }
        Ok(())
    }

    /// The last frame out says `error`, or that all is well.
    pub(super) fn close(&mut self, error: Option<WebSocketError>) {
        if !self.closed && self.close.is_none() {
            self.close = Some(error.map_or(1000, WebSocketError::code));
        }
    }

    /// True if something besides payload is to be written.
    pub(super) fn wants_write(&self) -> bool {
        self.frame_left == 0 && (!self.head.is_empty() || self.pong.is_some() || self.close.is_some())
    }

    /// Prepares to write `payload` bytes; gives what goes before them, and how many of them may follow it now.
    pub(super) fn frame(&mut self, payload: usize) -> (&[u8], usize) {
        if self.frame_left == 0 && self.head.is_empty() {
            if let Some(pong) = self.pong.take() {
                self.head.extend_from_slice(&[FIN | PONG, pong.len() as u8]);
                self.head.extend_from_slice(&pong);
            }
            if payload > 0 && !self.closed {
                self.head.extend_from_slice(&[FIN | BINARY]);
                match payload {
                    0..=125 => self.head.extend_from_slice(&[payload as u8]),
                    126..=0xFFFF => {
                        self.head.extend_from_slice(&[126]);
                        self.head.extend_from_slice(&(payload as u16).to_be_bytes());
                    }
                    _ => {
                        self.head.extend_from_slice(&[127]);
                        self.head.extend_from_slice(&(payload as u64).to_be_bytes());
                    }
                }
                self.frame_left = payload;
            } else if let Some(code) = self.close.take() {
                self.head.extend_from_slice(&[FIN | CLOSE, 2]);
                self.head.extend_from_slice(&code.to_be_bytes());
                self.closed = true;
            }
        }
        (&self.head, self.frame_left)
    }

    /// `written` bytes of what [`WebSocket::frame`] gave are out; says how many of them were payload.
    pub(super) fn advance(&mut self, written: usize) -> usize {
        let head = written.min(self.head.len());
        self.head.advance(head);
        if self.head.is_empty() {
            // An idle connection keeps nothing.
            self.head = BytesMut::new();
        }
        let payload = (written - head).min(self.frame_left);
        self.frame_left -= payload;
        payload
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn client_frame(first: u8, mask: [u8; 4], payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![first];
        match payload.len() {
            n @ 0..=125 => frame.push(0x80 | n as u8),
            n @ 126..=0xFFFF => {
                frame.push(0x80 | 0x7E);
                frame.extend((n as u16).to_be_bytes());
            }
            n => {
                frame.push(0x80 | 0x7F);
                frame.extend((n as u64).to_be_bytes());
            }
        }
        frame.extend(mask);
        frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        frame
    }

    fn decode_all(bytes: &[u8], cuts: &[usize]) -> Result<(Vec<u8>, WebSocket), WebSocketError> {
        let mut socket = WebSocket::default();
        let (mut out, mut rest, mut turn) = (Vec::new(), bytes.to_vec(), 0);
        while !rest.is_empty() {
            let cut = if cuts.is_empty() { rest.len() } else { cuts[turn % cuts.len()].clamp(1, rest.len()) };
            turn += 1;
            let mut piece: Vec<u8> = rest.drain(..cut).collect();
            let (kept, result) = socket.decode(&mut piece);
            out.extend_from_slice(&piece[..kept]);
            result?;
        }
        Ok((out, socket))
    }

    proptest! {
        #[test]
        fn any_framing_gives_the_same_stream(
            messages in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..300), any::<[u8; 4]>(), 0..3_usize), 0..12),
            cuts in prop::collection::vec(1..40_usize, 1..20),
        ) {
            let (mut wire, mut expected) = (Vec::new(), Vec::new());
            for (payload, mask, split) in &messages {
                expected.extend_from_slice(payload);
                match split {
                    0 => wire.extend(client_frame(FIN | BINARY, *mask, payload)),
                    1 => {
                        // Two fragments with a ping between them.
                        let (a, b) = payload.split_at(payload.len() / 2);
                        wire.extend(client_frame(BINARY, *mask, a));
                        wire.extend(client_frame(FIN | PING, *mask, b"are you there"));
                        wire.extend(client_frame(FIN, *mask, b));
                    }
                    _ => {
                        wire.extend(client_frame(BINARY, *mask, payload));
                        wire.extend(client_frame(CONTINUATION, *mask, b""));
                        wire.extend(client_frame(FIN, *mask, b""));
                    }
                }
            }
            let (got, _) = decode_all(&wire, &cuts).unwrap();
            prop_assert_eq!(got, expected);
        }

        #[test]
        fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), cuts in prop::collection::vec(1..9_usize, 1..5)) {
            let _ = decode_all(&bytes, &cuts);
        }

        #[test]
        fn what_goes_out_is_framed_however_it_is_taken(
            payloads in prop::collection::vec(1..70_000_usize, 1..4),
            takes in prop::collection::vec(1..30_000_usize, 1..8),
        ) {
            let mut socket = WebSocket::default();
            let total: usize = payloads.iter().sum();
            let (mut queued, mut wire, mut turn, mut next) = (0, Vec::new(), 0, payloads.iter());
            let mut sent = 0;
            while sent < total {
                if queued == 0 {
                    queued += next.next().unwrap();
                }
                let (head, room) = socket.frame(queued);
                prop_assert!(room <= queued);
                let take = takes[turn % takes.len()].min(head.len() + room);
                turn += 1;
                wire.extend_from_slice(&head[..take.min(head.len())]);
                let payload = socket.advance(take);
                wire.extend((0..payload).map(|i| (sent + i) as u8));
                sent += payload;
                queued -= payload;
            }
            // Read it back, unmasked.
            let (mut at, mut got) = (0, Vec::new());
            while at < wire.len() {
                prop_assert_eq!(wire[at], FIN | BINARY);
                let (len, header) = match wire[at + 1] {
                    126 => (u16::from_be_bytes([wire[at + 2], wire[at + 3]]) as usize, 4),
                    127 => (u64::from_be_bytes(wire[at + 2..at + 10].try_into().unwrap()) as usize, 10),
                    n => (n as usize, 2),
                };
                got.extend_from_slice(&wire[at + header..at + header + len]);
                at += header + len;
            }
            prop_assert_eq!(got, (0..total).map(|i| i as u8).collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_rfc_6455_and_mqtt_forbid_is_refused() {
        let mask = [1, 2, 3, 4];
        let error = |wire: &[u8]| decode_all(wire, &[]).map(|_| ()).unwrap_err();
        use WebSocketError::{Closed, NotBinary, Protocol};
        assert_eq!(error(&client_frame(FIN | 0x1, mask, b"text")), NotBinary, "MQTT-6.0.0-1");
        assert_eq!(error(&[FIN | BINARY, 0x01, 0x00]), Protocol, "not masked");
        assert_eq!(error(&client_frame(FIN | 0x40 | BINARY, mask, b"")), Protocol, "a reserved bit");
        assert_eq!(error(&client_frame(FIN | 0x3, mask, b"")), Protocol, "a reserved opcode");
        assert_eq!(error(&client_frame(FIN | CONTINUATION, mask, b"")), Protocol, "nothing to continue");
        assert_eq!(error(&client_frame(PING, mask, b"")), Protocol, "a fragmented ping");
        assert_eq!(error(&client_frame(FIN | PING, mask, &[0; 126])), Protocol, "a long ping");
        assert_eq!(error(&client_frame(FIN | CLOSE, mask, &[0])), Protocol, "half a code");
        assert_eq!(error(&client_frame(FIN | CLOSE, mask, &[3, 232])), Closed);
        assert_eq!(
            error(&[FIN | BINARY, 0x80 | 0x7E, 0, 125, 0, 0, 0, 0]),
            Protocol,
            "not the shortest length"
        );
        assert_eq!(
            error(&[FIN | BINARY, 0x80 | 0x7F, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            Protocol,
            "the top bit"
        );
        let mut twice = client_frame(BINARY, mask, b"");
        twice.extend(client_frame(FIN | BINARY, mask, b""));
        assert_eq!(error(&twice), Protocol, "a message inside of a message");
    }

    #[test]
    fn what_comes_before_an_error_counts() {
        let mut wire = client_frame(FIN | BINARY, [5; 4], b"last words");
        wire.extend(client_frame(FIN | CLOSE, [6; 4], b""));
        assert_eq!(WebSocket::default().decode(&mut wire), (10, Err(WebSocketError::Closed)));
        assert_eq!(&wire[..10], b"last words");
    }

    #[test]
    fn the_newest_ping_is_answered_between_frames() {
        let mut socket = WebSocket::default();
        assert_eq!(socket.frame(10).1, 10);
        socket.advance(2 + 4);
        for ping in [&b"one"[..], b"two"] {
            let mut wire = client_frame(FIN | PING, [9; 4], ping);
            assert_eq!(socket.decode(&mut wire), (0, Ok(())));
        }
        assert!(!socket.wants_write(), "a frame is half out");
        assert_eq!(socket.frame(6), (&b""[..], 6));
        assert_eq!(socket.advance(6), 6);
        assert!(socket.wants_write());
        assert_eq!(socket.frame(0), (&b"\x8a\x03two"[..], 0));
        socket.advance(5);
        assert!(!socket.wants_write());
        socket.close(None);
        assert_eq!(socket.frame(0), (&b"\x88\x02\x03\xe8"[..], 0));
    }
}

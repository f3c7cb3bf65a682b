//! Any bytes are WebSocket frames or an error.

#[path = "../../src/server/websocket.rs"]
mod frames;

use frames::WebSocket;

/// The first byte says how many of the next are the sizes of the pieces.
pub(crate) fn check(data: &[u8]) {
    let [count, rest @ ..] = data else { return };
    let (cuts, stream) = rest.split_at(usize::from(*count).min(rest.len()));
    let mut whole = WebSocket::default();
    let mut expected = stream.to_vec();
    let (kept, end) = whole.decode(&mut expected);
    assert!(kept <= stream.len());
    expected.truncate(kept);

    let mut pieces = WebSocket::default();
    let (mut payload, mut rest) = (Vec::new(), stream);
    let mut sizes = cuts.iter().map(|size| usize::from(*size));
    let mut result = Ok(());
    while !rest.is_empty() && result.is_ok() {
        let (piece, after) = rest.split_at(sizes.next().unwrap_or(usize::MAX).min(rest.len()));
        rest = after;
        let mut piece = piece.to_vec();
        let (kept, done) = pieces.decode(&mut piece);
        payload.extend_from_slice(piece.get(..kept).expect("no more than came"));
        result = done;
    }
    assert_eq!(result, end);
    assert_eq!(payload, expected);
    assert_eq!(answer(pieces, end.err(), payload.len()), answer(whole, end.err(), expected.len()));
}

/// Writes a payload of that length, and the goodbye, one byte at a time; gives what goes around the payload.
fn answer(mut socket: WebSocket, error: Option<frames::WebSocketError>, payload: usize) -> Vec<u8> {
    let (mut left, mut around) = (payload, Vec::new());
    if error.is_some() {
        socket.close(error);
    }
    loop {
        let (head, frame) = socket.frame(left);
        if let Some(first) = head.first() {
            around.push(*first);
            assert_eq!(socket.advance(1), 0);
        } else if frame > 0 {
            let part = socket.advance(frame.min(left));
            assert!(part > 0, "no progress");
            left -= part;
        } else {
            assert_eq!((left, socket.wants_write()), (0, false));
            return around;
        }
        assert!(around.len() < 512, "it never ends");
    }
}

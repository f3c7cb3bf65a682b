//! From an HTTP request to a WebSocket (RFC 6455, 4.2).

use super::config::WebSocketRules;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::BytesMut;
use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Bytes of a request at most.
const MAX_REQUEST: usize = 8 << 10;
const MAX_HEADERS: usize = 64;

/// Why a request is refused, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    BadRequest,
    Forbidden,
    NotFound,
    Method,
    Upgrade,
    TooLong,
}

impl Refusal {
    fn response(self) -> &'static str {
        match self {
            Self::BadRequest => "400 Bad Request\r\n",
            Self::Forbidden => "403 Forbidden\r\n",
            Self::NotFound => "404 Not Found\r\n",
            Self::Method => "405 Method Not Allowed\r\nAllow: GET\r\n",
            Self::Upgrade => "426 Upgrade Required\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
            Self::TooLong => "431 Request Header Fields Too Large\r\n",
        }
    }
}

/// What a request is answered with.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// It is a WebSocket from now on: the length of the request, and the response.
    Switch(usize, String),
    /// Text, and that is the end.
    Page(String),
}

/// Answers the request; what came behind it is left in `received`. An error ends the connection: the client was told.
///
/// `page` has the text of other paths.
pub(super) async fn upgrade(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    received: &mut BytesMut,
    rules: &WebSocketRules,
    page: &dyn Fn(&str) -> Option<String>,
) -> io::Result<()> {
    let answer = loop {
        match answer(received, rules, page) {
            Ok(Some(Answer::Page(text))) => {
                let length = text.len();
                let kind = "Content-Type: text/plain; version=0.0.4; charset=utf-8";
                let head = format!(
                    "HTTP/1.1 200 OK\r\n{kind}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
                );
                stream.write_all(head.as_bytes()).await?;
                stream.write_all(text.as_bytes()).await?;
                stream.shutdown().await?;
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a page, no WebSocket"));
            }
            Ok(Some(Answer::Switch(length, answer))) => {
                let _ = received.split_to(length);
                break answer;
            }
            Ok(None) if received.len() < MAX_REQUEST => {
                if stream.read_buf(received).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            refused => {
                let refusal = refused.err().unwrap_or(Refusal::TooLong);
                let response =
                    format!("HTTP/1.1 {}Connection: close\r\nContent-Length: 0\r\n\r\n", refusal.response());
                stream.write_all(response.as_bytes()).await?;
                stream.shutdown().await?;
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("refused a WebSocket: {refusal:?}"),
                ));
            }
        }
    };
    stream.write_all(answer.as_bytes()).await?;
    stream.flush().await
}

/// `None`: not a whole request yet.
fn answer(
    request: &[u8],
    rules: &WebSocketRules,
    page: &dyn Fn(&str) -> Option<String>,
) -> Result<Option<Answer>, Refusal> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    let length = match parsed.parse(request) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(Refusal::TooLong),
        Err(_) => return Err(Refusal::BadRequest),
    };
    if parsed.method != Some("GET") {
        return Err(Refusal::Method);
    }
    let target = parsed.path.unwrap_or_default();
    let path = target.split('?').next().unwrap_or_default();
    if path != rules.path {
        return page(path).map(|text| Some(Answer::Page(text))).ok_or(Refusal::NotFound);
    }
    let headers = &*parsed.headers;
    if !has_token(headers, "Upgrade", |token| token.eq_ignore_ascii_case("websocket"))
        || !has_token(headers, "Connection", |token| token.eq_ignore_ascii_case("upgrade"))
        || single(headers, "Sec-WebSocket-Version")? != Some("13")
        || parsed.version != Some(1)
    {
        return Err(Refusal::Upgrade);
    }
    // A browser says which page opens the connection, and any page may try to reach a broker of this machine.
    if let (Some(allowed), Some(origin)) = (&rules.origins, single(headers, "Origin")?)
        && !allowed.iter().any(|allowed| allowed.eq_ignore_ascii_case(origin))
    {
        return Err(Refusal::Forbidden);
    }
    let key = single(headers, "Sec-WebSocket-Key")?.ok_or(Refusal::BadRequest)?;
    if STANDARD.decode(key).map_err(|_| Refusal::BadRequest)?.len() != 16 {
        return Err(Refusal::BadRequest);
    }
    // [MQTT-6.0.0-3], [MQTT-6.0.0-4]; clients of 3.1 ask for `mqttv3.1`.
    let mut protocol = None;
    for offered in ["mqtt", "mqttv3.1"] {
        if protocol.is_none() && has_token(headers, "Sec-WebSocket-Protocol", |token| token == offered) {
            protocol = Some(offered);
        }
    }
    let protocol = protocol.ok_or(Refusal::BadRequest)?;
    let accept = accept_key(key);
    Ok(Some(Answer::Switch(
        length,
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: {protocol}\r\n\r\n"
        ),
    )))
}

fn accept_key(key: &str) -> String {
    let mut hash = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(key.as_bytes());
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(hash.finish())
}

fn values<'a>(headers: &'a [httparse::Header<'a>], name: &str) -> impl Iterator<Item = &'a [u8]> {
    headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
}

fn has_token(headers: &[httparse::Header<'_>], name: &str, wanted: impl Fn(&str) -> bool) -> bool {
    values(headers, name)
        .filter_map(|value| std::str::from_utf8(value).ok())
        .flat_map(|value| value.split(','))
        .any(|token| wanted(token.trim()))
}

/// A header that must not come twice.
fn single<'a>(headers: &'a [httparse::Header<'a>], name: &str) -> Result<Option<&'a str>, Refusal> {
    let mut values = values(headers, name);
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Refusal::BadRequest);
    }
    std::str::from_utf8(value).map(|value| Some(value.trim())).map_err(|_| Refusal::BadRequest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(change: impl Fn(String) -> String) -> Result<Option<Answer>, Refusal> {
        let request = "GET /mqtt HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Protocol: chat, mqtt\r\nOrigin: http://a.example\r\n\r\n";
        let rules =
            WebSocketRules { origins: Some(vec!["http://A.example".into()]), ..WebSocketRules::default() };
        let request = change(request.into());
        let page = |path: &str| (path == "/page").then(|| "text".to_owned());
        for cut in 0..request.len() {
            if let Ok(Some(_)) = answer(&request.as_bytes()[..cut], &rules, &page) {
                panic!("answered after {cut} bytes");
            }
        }
        answer(request.as_bytes(), &rules, &page)
    }

    #[test]
    fn the_sample_of_the_rfc_is_accepted() {
        let Ok(Some(Answer::Switch(_, answer))) = request(|request| request) else { panic!("no switch") };
        assert!(answer.starts_with("HTTP/1.1 101 "));
        assert!(answer.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{answer}");
        assert!(answer.contains("Sec-WebSocket-Protocol: mqtt\r\n"));
        let old = request(|request| request.replace("chat, mqtt", "mqttv3.1"));
        let Ok(Some(Answer::Switch(_, old))) = old else { panic!("no switch") };
        assert_eq!(request(|r| r.replacen("/mqtt", "/page?x", 1)), Ok(Some(Answer::Page("text".into()))));
        assert!(old.contains("Sec-WebSocket-Protocol: mqttv3.1\r\n"));
    }

    #[test]
    fn what_is_not_asked_rightly_is_refused() {
        for (from, to, refusal) in [
            ("GET", "POST", Refusal::Method),
            ("/mqtt", "/other", Refusal::NotFound),
            ("/mqtt", "/mqtt/more", Refusal::NotFound),
            ("Upgrade: websocket\r\n", "", Refusal::Upgrade),
            ("keep-alive, Upgrade", "keep-alive", Refusal::Upgrade),
            ("Version: 13", "Version: 8", Refusal::Upgrade),
            ("HTTP/1.1", "HTTP/1.0", Refusal::Upgrade),
            ("chat, mqtt", "chat", Refusal::BadRequest),
            ("Sec-WebSocket-Protocol: chat, mqtt\r\n", "", Refusal::BadRequest),
            ("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ=", Refusal::BadRequest),
            ("Host: localhost", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", Refusal::BadRequest),
            ("a.example", "b.example", Refusal::Forbidden),
            ("Host:", "\u{1}Host", Refusal::BadRequest),
        ] {
            assert_eq!(request(|request| request.replacen(from, to, 1)), Err(refusal), "{from} -> {to}");
        }
        let none = request(|request| request.replace("Origin: http://a.example\r\n", "")).unwrap();
        assert!(none.is_some(), "only browsers have an origin");
    }
}

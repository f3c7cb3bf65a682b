//! Just enough of each protocol, in bytes written by hand, to see that a broker really serves it.
//! Every call gives up after a few seconds instead of hanging.

use anyhow::{Context, Result, bail, ensure};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long a peer may take for one answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// More than any answer to what is asked here.
const MAX_ANSWER: usize = 1 << 20;

/// A blocking connection with a buffer of what has been read too far.
pub struct Line {
    stream: TcpStream,
    ahead: Vec<u8>,
}

impl Line {
    /// Connects; waits at most 5 seconds, then and at each read.
    pub fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, ahead: Vec::new() })
    }

    /// Sends all of `bytes`.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<()> {
        Ok(self.stream.write_all(bytes.as_ref())?)
    }

    /// Waits for answers at most this long.
    pub fn patience(&mut self, patience: Duration) -> Result<()> {
        Ok(self.stream.set_read_timeout(Some(patience))?)
    }

    fn fill(&mut self) -> Result<()> {
        ensure!(self.ahead.len() < MAX_ANSWER, "an answer of more than {MAX_ANSWER} bytes");
        let mut piece = [0; 4096];
        match self.stream.read(&mut piece)? {
            0 => bail!("the peer closed the connection"),
            n => self.ahead.extend_from_slice(&piece[..n]),
        }
        Ok(())
    }

    /// The next `count` bytes.
    pub fn bytes(&mut self, count: usize) -> Result<Vec<u8>> {
        ensure!(count <= MAX_ANSWER, "an answer of {count} bytes");
        while self.ahead.len() < count {
            self.fill()?;
        }
        Ok(self.ahead.drain(..count).collect())
    }

    /// All up to `end`, without it.
    pub fn until(&mut self, end: &[u8]) -> Result<Vec<u8>> {
        loop {
            if let Some(at) = self.ahead.windows(end.len()).position(|window| window == end) {
                let found = self.ahead.drain(..at).collect();
                self.ahead.drain(..end.len());
                return Ok(found);
            }
            self.fill()?;
        }
    }

    /// The next line that ends with CR LF, as text.
    pub fn line(&mut self) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.until(b"\r\n")?).into_owned())
    }

    /// Sends a command of a line protocol and checks how the answer begins.
    pub fn ask(&mut self, command: &str, expect: &str) -> Result<String> {
        self.send(command)?;
        let answer = self.line()?;
        ensure!(answer.starts_with(expect), "{:?} was answered {answer:?}", command.trim_end());
        Ok(answer)
    }
}

/// Answers PINGs and skips `+OK` until something else comes.
pub fn nats_line(nats: &mut Line) -> Result<String> {
    loop {
        let line = nats.line()?;
        match line.as_str() {
            "PING" => nats.send("PONG\r\n")?,
            "+OK" => {}
            _ => return Ok(line),
        }
    }
}

/// Connects to NATS: INFO, CONNECT, PING, PONG.
pub fn nats(address: SocketAddr) -> Result<Line> {
    let mut nats = Line::connect(address)?;
    let info = nats.line()?;
    ensure!(info.starts_with("INFO {"), "no INFO but {info:?}");
    nats.send("CONNECT {\"verbose\":false,\"pedantic\":false,\"name\":\"postroad-testbed\"}\r\nPING\r\n")?;
    let answer = nats_line(&mut nats)?;
    ensure!(answer == "PONG", "no PONG but {answer:?}");
    Ok(nats)
}

/// Sees that a STAN server listens behind NATS: asks it to take a client whose id no server allows, so that
/// an answer is certain and no client stays.
pub fn stan_listens(nats: &mut Line, cluster: &str) -> Result<()> {
    // The port opens before the server subscribes to its subjects; what comes between is not answered.
    nats.patience(Duration::from_millis(300))?;
    let client = b"\x0a\x0dpostroad.test";
    nats.send(format!("SUB _INBOX.stan 3\r\nPUB _STAN.discover.{cluster} _INBOX.stan {}\r\n", client.len()))?;
    nats.send([client, &b"\r\n"[..]].concat())?;
    let head = nats_line(nats)?;
    ensure!(head.starts_with("MSG _INBOX.stan "), "no answer of STAN but {head:?}");
    Ok(())
}

/// A field of an MQTT packet: two bytes of length, then the text.
pub fn mqtt_text(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u16).to_be_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

/// An MQTT packet of at most 127 bytes after its header.
pub fn mqtt_packet(first: u8, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    debug_assert!(body.len() < 128, "this writes one byte of length");
    [&[first, body.len() as u8], body.as_slice()].concat()
}

/// The next MQTT packet: its first byte and its body.
pub fn mqtt_read(mqtt: &mut Line) -> Result<(u8, Vec<u8>)> {
    let first = mqtt.bytes(1)?[0];
    let (mut length, mut shift) = (0_usize, 0);
    loop {
        let byte = mqtt.bytes(1)?[0];
        length |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
        ensure!(shift < 28, "a length of more than four bytes");
    }
    Ok((first, mqtt.bytes(length)?))
}

/// Connects to MQTT 3.1.1 with a clean session: CONNECT, CONNACK.
pub fn mqtt(address: SocketAddr, client: &str, login: Option<(&str, &str)>) -> Result<Line> {
    let mut mqtt = Line::connect(address)?;
    let mut flags = 0x02;
    let mut names = mqtt_text(client);
    if let Some((user, password)) = login {
        flags |= 0xc0;
        names.extend(mqtt_text(user));
        names.extend(mqtt_text(password));
    }
    mqtt.send(mqtt_packet(0x10, &[&mqtt_text("MQTT"), &[4, flags, 0, 60], &names]))?;
    let (first, body) = mqtt_read(&mut mqtt)?;
    ensure!(first == 0x20 && body.get(1) == Some(&0), "no CONNACK that accepts but {first:#x} {body:?}");
    Ok(mqtt)
}

/// One AMQP 0-9-1 method frame on channel 0.
fn amqp_method(class: u16, method: u16, arguments: &[u8]) -> Vec<u8> {
    let mut frame = vec![1, 0, 0];
    frame.extend((arguments.len() as u32 + 4).to_be_bytes());
    frame.extend(class.to_be_bytes());
    frame.extend(method.to_be_bytes());
    frame.extend_from_slice(arguments);
    frame.push(0xce);
    frame
}

fn amqp_expect(amqp: &mut Line, class: u16, method: u16) -> Result<Vec<u8>> {
    loop {
        let head = amqp.bytes(7)?;
        ensure!(head[0] == 1 || head[0] == 8, "no AMQP frame but {head:?}");
        let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
        let mut body = amqp.bytes(size + 1)?;
        ensure!(body.pop() == Some(0xce), "an AMQP frame without its end");
        if head[0] == 8 {
            continue;
        }
        let wanted = [class.to_be_bytes(), method.to_be_bytes()].concat();
        ensure!(body.starts_with(&wanted), "no method {class}.{method} but {body:?}");
        return Ok(body.split_off(4));
    }
}

/// Logs in over AMQP 0-9-1 and opens the virtual host `/`.
pub fn amqp(address: SocketAddr, user: &str, password: &str) -> Result<Line> {
    let mut amqp = Line::connect(address)?;
    amqp.send(b"AMQP\0\0\x09\x01")?;
    amqp_expect(&mut amqp, 10, 10)?;
    let secret = format!("\0{user}\0{password}");
    let mut start_ok = vec![0, 0, 0, 0];
    start_ok.extend_from_slice(b"\x05PLAIN");
    start_ok.extend((secret.len() as u32).to_be_bytes());
    start_ok.extend_from_slice(secret.as_bytes());
    start_ok.extend_from_slice(b"\x05en_US");
    amqp.send(amqp_method(10, 11, &start_ok))?;
    let tune = amqp_expect(&mut amqp, 10, 30)?;
    amqp.send(amqp_method(10, 31, &tune))?;
    amqp.send(amqp_method(10, 40, b"\x01/\0\0"))?;
    amqp_expect(&mut amqp, 10, 41)?;
    Ok(amqp)
}

/// Says goodbye over AMQP, so that the broker logs no lost connection.
pub fn amqp_close(mut amqp: Line) -> Result<()> {
    amqp.send(amqp_method(10, 50, &[0, 200, 0, 0, 0, 0, 0]))?;
    amqp_expect(&mut amqp, 10, 51).map(drop)
}

/// A frame of the RabbitMQ Streams protocol: key, version 1, then what follows.
fn stream_frame(key: u16, rest: &[u8]) -> Vec<u8> {
    let size = (rest.len() as u32 + 4).to_be_bytes();
    [&size[..], &key.to_be_bytes(), &[0, 1], rest].concat()
}

/// The next frame, which must be `key`: what follows its version.
fn stream_expect(stream: &mut Line, key: u16) -> Result<Vec<u8>> {
    let size = stream.bytes(4)?;
    let mut body = stream.bytes(u32::from_be_bytes([size[0], size[1], size[2], size[3]]) as usize)?;
    ensure!(body.starts_with(&key.to_be_bytes()) && body.len() >= 4, "no frame {key:#x} but {body:?}");
    Ok(body.split_off(4))
}

/// A request with correlation 7 and its answer, which must be OK: what follows the code.
fn stream_request(stream: &mut Line, key: u16, rest: &[u8]) -> Result<Vec<u8>> {
    stream.send(stream_frame(key, &[&[0, 0, 0, 7], rest].concat()))?;
    let mut answer = stream_expect(stream, key | 0x8000)?;
    ensure!(answer.starts_with(b"\0\0\0\x07\0\x01"), "request {key} was answered {answer:?}");
    Ok(answer.split_off(6))
}

/// Asks a RabbitMQ Streams port for its properties, and gives them as they came.
pub fn stream_properties(address: SocketAddr) -> Result<Vec<u8>> {
    let mut stream = Line::connect(address)?;
    stream_request(&mut stream, 17, &[0, 0, 0, 0])
}

/// Logs in over the RabbitMQ Streams protocol, opens `/`, and gives the properties of the connection, among
/// them the advertised host and port.
pub fn stream_open(address: SocketAddr, user: &str, password: &str) -> Result<Vec<u8>> {
    let mut stream = Line::connect(address)?;
    stream_request(&mut stream, 17, &[0, 0, 0, 0])?;
    stream_request(&mut stream, 18, &[])?;
    let secret = format!("\0{user}\0{password}");
    let login = [b"\0\x05PLAIN", &(secret.len() as u32).to_be_bytes()[..], secret.as_bytes()].concat();
    stream_request(&mut stream, 19, &login)?;
    let tune = stream_expect(&mut stream, 20)?;
    stream.send(stream_frame(20, &tune))?;
    stream_request(&mut stream, 21, b"\0\x01/")
}

/// The status and body of an HTTP GET. `login` is `user:password` in base64.
pub fn http_get(address: SocketAddr, path: &str, login: Option<&str>) -> Result<(u16, String)> {
    let mut http = Line::connect(address)?;
    let login = login.map_or_else(String::new, |login| format!("Authorization: Basic {login}\r\n"));
    http.send(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n{login}\r\n"))?;
    let status = http.line()?;
    let code = status.split(' ').nth(1).and_then(|code| code.parse().ok());
    let code = code.with_context(|| format!("no HTTP status but {status:?}"))?;
    http.until(b"\r\n\r\n")?;
    let mut body = std::mem::take(&mut http.ahead);
    http.stream.take(MAX_ANSWER as u64).read_to_end(&mut body)?;
    Ok((code, String::from_utf8_lossy(&body).into_owned()))
}

/// Opens a WebSocket, sees it accepted, and leaves.
pub fn web_socket(address: SocketAddr, path: &str, protocol: &str) -> Result<()> {
    let mut http = Line::connect(address)?;
    http.send(format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: {protocol}\r\n\
         Sec-WebSocket-Key: cG9zdHJvYWQtdGVzdGJlZA==\r\n\r\n"
    ))?;
    let status = http.line()?;
    ensure!(status.starts_with("HTTP/1.1 101 "), "the WebSocket was answered {status:?}");
    Ok(())
}

/// Logs in over STOMP.
pub fn stomp(address: SocketAddr, user: &str, password: &str) -> Result<Line> {
    let mut stomp = Line::connect(address)?;
    stomp.send(format!("CONNECT\naccept-version:1.2\nhost:/\nlogin:{user}\npasscode:{password}\n\n\0"))?;
    let answer = stomp.until(b"\0")?;
    ensure!(answer.starts_with(b"CONNECTED"), "no CONNECTED but {:?}", String::from_utf8_lossy(&answer));
    Ok(stomp)
}

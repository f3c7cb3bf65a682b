//! `mqtt:` URLs and what they set.

use std::path::PathBuf;
use std::time::Duration;

use postroad_core::{Durability, Error, ErrorKind, Result};

use super::NAME;
use crate::codec::{Qos, Version};

/// What a client is told. [`MqttOptions::from_url`] reads it from a URL.
#[derive(Clone, PartialEq, Eq)]
pub struct MqttOptions {
    /// The server's name or address.
    pub host: String,
    /// Its port: 1883, or 8883 with TLS, unless a URL says another.
    pub port: u16,
    /// Whether the connection is encrypted: `mqtts:`.
    pub tls: bool,
    /// The PEM file of the authorities that may sign the server's certificate. Needed with TLS.
    pub ca: Option<PathBuf>,
    /// The user name.
    pub user: Option<String>,
    /// The password.
    pub password: Option<String>,
    /// What client ids of this program begin with (default: `postroad`). Two programs with one prefix that subscribe with
    /// one name to one filter take each other's place at the server, so give each its own.
    pub client_id: Option<String>,
    /// The version to speak. `None`: 5.0, and 3.1.1 if the server refuses that or closes the connection twice without an
    /// answer. What it took first is kept to from then on.
    pub version: Option<Version>,
    /// Payloads as they are to a server of 3.1.1, where a message has no properties (default: `false`, which puts the
    /// whole envelope into the payload, as JSON). Ids and times are not sent then, and headers, keys, content types,
    /// reply-tos, correlations and expiries are [`Unsupported`](ErrorKind::Unsupported). With 5.0 it means only that no
    /// payload is read as an envelope.
    pub plain: bool,
    /// The QoS of publishes, and the highest of subscriptions (default: 2).
    pub qos: Qos,
    /// The most time without a packet (default: 30 s). After one and a half times that without an answer the connection
    /// is given up.
    pub keep_alive: Duration,
    /// Seconds that the server keeps the session of a named subscription, or of an outbox, without a connection (default:
    /// `u32::MAX`, for ever). In 3.1.1 a client cannot say it: the server decides.
    pub session_expiry: u32,
    /// How many QoS 1 and 2 messages the server may have under way to a subscription (default: 1024). Those that a
    /// consumer leaves unsettled count too, unless there is an inbox. In 3.1.1 a client cannot say it: the server decides.
    pub receive_maximum: u16,
    /// Publishes are written there before they are sent, and sent until the server has them.
    pub outbox: Option<PathBuf>,
    /// Messages are written there before the server hears that they arrived, and kept until they are settled.
    pub inbox: Option<PathBuf>,
    /// What a message survives that this server has confirmed (default: [`Durability::Memory`]). The protocol does not
    /// say it, so whoever runs the server does.
    pub durability: Durability,
    #[doc(hidden)]
    pub planted: Planted,
}

/// Deliberate defects, for the tests that prove that tests find them.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Planted {
    /// Sends a PUBLISH before its record is committed.
    pub send_before_record: bool,
    /// Sends PUBREC and hands a message out before its record is committed.
    pub ack_before_record: bool,
    /// Forgets the ids of received messages when a connection ends.
    pub id_forgotten: bool,
    /// Sends PUBREL before the record of PUBREC is committed.
    pub release_before_record: bool,
}

impl std::fmt::Debug for MqttOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MqttOptions")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("tls", &self.tls)
            .field("client_id", &self.client_id)
            .field("version", &self.version)
            .field("qos", &self.qos)
            .field("outbox", &self.outbox)
            .field("inbox", &self.inbox)
            .finish_non_exhaustive()
    }
}

fn bad(what: impl std::fmt::Display) -> Error {
    let text = format!("bad URL: {what}; write mqtt://[USER:PASSWORD@]HOST[:PORT][?OPTION=VALUE&…]");
    Error::new(ErrorKind::Config, NAME, text)
}

impl MqttOptions {
    /// The defaults for a server.
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self {
            host: host.into(),
            port,
            tls: false,
            ca: None,
            user: None,
            password: None,
            client_id: None,
            version: None,
            plain: false,
            qos: Qos::ExactlyOnce,
            keep_alive: Duration::from_secs(30),
            session_expiry: u32::MAX,
            receive_maximum: 1024,
            outbox: None,
            inbox: None,
            durability: Durability::Memory,
            planted: Planted::default(),
        }
    }

    /// Reads `mqtt://[USER[:PASSWORD]@]HOST[:PORT][?OPTION=VALUE&…]`, or `mqtts://…`. User, password and values are
    /// percent-encoded. The options are `client_id`, `version` (`5`, `3.1.1`), `payload` (`envelope`, `plain`), `qos` (0, 1, 2), `keep_alive` and `session_expiry` (seconds),
    /// `receive_maximum`, `outbox`, `inbox` and `ca` (paths), `durability` (`sent`, `memory`, `os`, `disk`,
    /// `replicated`).
    ///
    /// # Errors
    /// [`Config`](ErrorKind::Config), without repeating the URL, which may hold a password.
    pub fn from_url(url: &str) -> Result<Self> {
        let (tls, rest) = match (url.strip_prefix("mqtt://"), url.strip_prefix("mqtts://")) {
            (Some(rest), _) => (false, rest),
            (_, Some(rest)) => (true, rest),
            _ => return Err(bad("it does not start with mqtt:// or mqtts://")),
        };
        let (place, query) = rest.split_once('?').map_or((rest, None), |(place, query)| (place, Some(query)));
        let place = place.strip_suffix('/').unwrap_or(place);
        if place.contains(['/', '#']) {
            return Err(bad("no path may follow the port"));
        }
        let (login, place) =
            place.rsplit_once('@').map_or((None, place), |(user, place)| (Some(user), place));
        let (host, port) = host_and_port(place)?;
        let mut options = Self::new(host, port.unwrap_or(if tls { 8883 } else { 1883 }));
        options.tls = tls;
        if let Some(login) = login {
            let (user, password) = login.split_once(':').map_or((login, None), |(u, p)| (u, Some(p)));
            options.user = Some(decode(user)?);
            options.password = password.map(decode).transpose()?;
        }
        for pair in query.into_iter().flat_map(|query| query.split('&')).filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').ok_or_else(|| bad("an option without a value"))?;
            options.set(key, decode(value)?)?;
        }
        options.check()?;
        Ok(options)
    }

    fn set(&mut self, key: &str, value: String) -> Result<()> {
        fn number<T: std::str::FromStr>(key: &str, value: &str) -> Result<T> {
            value.parse().map_err(|_| bad(format_args!("`{key}` is not a number in its range")))
        }
        match key {
            "client_id" => self.client_id = Some(value),
            "qos" => {
                let qos = value.parse().ok().and_then(Qos::from_u8);
                self.qos = qos.ok_or_else(|| bad("`qos` is 0, 1 or 2"))?;
            }
            "version" => {
                self.version = Some(match value.as_str() {
                    "5" | "5.0" => Version::V5,
                    "3.1.1" => Version::V311,
                    _ => return Err(bad("`version` is 5 or 3.1.1")),
                });
            }
            "payload" => {
                self.plain = match value.as_str() {
                    "envelope" => false,
                    "plain" => true,
                    _ => return Err(bad("`payload` is envelope or plain")),
                }
            }
            "keep_alive" => self.keep_alive = Duration::from_secs(number::<u16>(key, &value)?.into()),
            "session_expiry" => self.session_expiry = number(key, &value)?,
            "receive_maximum" => self.receive_maximum = number(key, &value)?,
            "outbox" => self.outbox = Some(value.into()),
            "inbox" => self.inbox = Some(value.into()),
            "ca" => self.ca = Some(value.into()),
            "durability" => {
                self.durability = match value.as_str() {
                    "sent" => Durability::Sent,
                    "memory" => Durability::Memory,
                    "os" => Durability::Os,
                    "disk" => Durability::Disk,
                    "replicated" => Durability::Replicated,
                    _ => return Err(bad("`durability` is sent, memory, os, disk or replicated")),
                }
            }
            _ => return Err(bad(format_args!("there is no option `{key}`"))),
        }
        Ok(())
    }

    /// What cannot be together.
    pub(super) fn check(&self) -> Result<()> {
        let wrong = |text| Err(Error::new(ErrorKind::Config, NAME, text));
        if self.keep_alive.is_zero() || self.receive_maximum == 0 {
            return wrong("keep_alive and receive_maximum are at least 1");
        }
        if self.version == Some(Version::V31) {
            return wrong("MQTT 3.1 is not spoken: 5.0 or 3.1.1");
        }
        if self.tls && self.ca.is_none() {
            return wrong("mqtts: needs `ca=FILE`, the authorities that may sign the server's certificate");
        }
        if self.outbox.is_some() && self.qos == Qos::AtMostOnce {
            return wrong("an outbox needs qos=1 or qos=2: at 0 the server never says that it has a message");
        }
        Ok(())
    }

    /// What client ids begin with.
    pub(super) fn prefix(&self) -> &str {
        self.client_id.as_deref().unwrap_or("postroad")
    }
}

/// An IPv6 address is written in brackets.
fn host_and_port(place: &str) -> Result<(&str, Option<u16>)> {
    let (host, port) = match place.strip_prefix('[') {
        Some(v6) => {
            let (host, rest) = v6.split_once(']').ok_or_else(|| bad("`[` without `]`"))?;
            let port = rest.strip_prefix(':');
            if port.is_none() && !rest.is_empty() {
                return Err(bad("no port after `]`"));
            }
            (host, port)
        }
        None => place.split_once(':').map_or((place, None), |(host, port)| (host, Some(port))),
    };
    if host.is_empty() {
        return Err(bad("no host"));
    }
    let port = port.map(|port| port.parse().map_err(|_| bad("the port is not a number"))).transpose()?;
    Ok((host, port))
}

fn decode(text: &str) -> Result<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digits = rest.split_first_chunk::<2>().filter(|(hex, _)| hex.iter().all(u8::is_ascii_hexdigit));
        let (hex, tail) = digits.ok_or_else(|| bad("a bad `%` escape"))?;
        let hex = std::str::from_utf8(hex).ok().and_then(|hex| u8::from_str_radix(hex, 16).ok());
        out.push(hex.ok_or_else(|| bad("a bad `%` escape"))?);
        rest = tail;
    }
    String::from_utf8(out).map_err(|_| bad("a `%` escape that is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_says_it_all() {
        let url =
            "mqtt://u%40x:p%3a@[::1]:1884/?client_id=a&qos=1&keep_alive=5&outbox=/tmp/a%20b&durability=disk";
        let read = MqttOptions::from_url(url).unwrap();
        assert_eq!((read.host.as_str(), read.port, read.tls), ("::1", 1884, false));
        assert_eq!((read.user.as_deref(), read.password.as_deref()), (Some("u@x"), Some("p:")));
        assert_eq!((read.client_id.as_deref(), read.qos), (Some("a"), Qos::AtLeastOnce));
        assert_eq!(read.keep_alive, Duration::from_secs(5));
        assert_eq!(read.outbox, Some("/tmp/a b".into()));
        assert_eq!(read.durability, Durability::Disk);
        assert_eq!((read.version, read.plain), (None, false));
        let older = MqttOptions::from_url("mqtt://h?version=3.1.1&payload=plain").unwrap();
        assert_eq!((older.version, older.plain), (Some(Version::V311), true));
        assert_eq!(MqttOptions::from_url("mqtts://h?ca=f").unwrap().port, 8883);
        assert!(!format!("{read:?}").contains("p:"));
    }

    #[test]
    fn what_is_wrong_is_said_without_the_password() {
        for url in [
            "http://h",
            "mqtt://",
            "mqtt://:1",
            "mqtt://h:x",
            "mqtt://h/path",
            "mqtt://h?qos=3",
            "mqtt://h?x=1",
            "mqtt://h?qos",
            "mqtt://%zz@h",
            "mqtt://[::1",
            "mqtts://h",
            "mqtt://h?keep_alive=0",
            "mqtt://h?outbox=a&qos=0",
            "mqtt://h?receive_maximum=0",
            "mqtt://h?version=3.1",
            "mqtt://h?payload=x",
            "mqtt://:secret@h:x",
        ] {
            let error = MqttOptions::from_url(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config, "{url}");
            assert!(!error.to_string().contains("secret"));
        }
    }
}

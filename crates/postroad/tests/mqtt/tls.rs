//! TLS as clients see it: certificates made for the test, changed while the server runs, and certificates of clients
//! that are their log-in.

use std::fs;
use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, crypto::ring};

use crate::client::{Client, Connect, Stream};
use crate::support::{PATIENCE, Server, Setup, eventually, free_port, turn};
use crate::wire::Version;

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    der: CertificateDer<'static>,
}

struct Identity {
    certificate: CertificateDer<'static>,
    pem: String,
    key: KeyPair,
}

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate().expect("a key");
    let certificate = params.self_signed(&key).expect("a certificate");
    Authority { pem: certificate.pem(), der: certificate.der().clone(), issuer: Issuer::new(params, key) }
}

impl Authority {
    fn sign(&self, name: &str) -> Identity {
        let mut params = CertificateParams::new(vec!["localhost".into()]).expect("a name");
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        Identity { certificate: certificate.der().clone(), pem: certificate.pem(), key }
    }
}

impl Stream for StreamOwned<ClientConnection, TcpStream> {
    fn socket(&self) -> &TcpStream {
        &self.sock
    }
}

/// A server with TLS on one port.
struct Safe {
    server: Server,
    port: u16,
    home: tempfile::TempDir,
}

impl Safe {
    /// `clients`: who signs their certificates, and whether they need one.
    fn start(ours: &Identity, clients: Option<(&Authority, bool)>, acl: Option<&str>) -> Self {
        let (home, port) = (tempfile::tempdir().expect("a directory"), free_port());
        let mut safe = Self::write(&home, ours);
        let mut set = |key: &str, name: &str, content: Option<&str>| {
            let path = home.path().join(name);
            if let Some(content) = content {
                fs::write(&path, content).expect("a file");
            }
            safe.push(format!("{key}={}", path.display()));
        };
        set("mqtt.certificate", "cert.pem", None);
        set("mqtt.key", "key.pem", None);
        if let Some((clients, _)) = clients {
            set("mqtt.client_ca", "ca.pem", Some(&clients.pem));
        }
        if let Some(acl) = acl {
            set("mqtt.acl", "acl", Some(acl));
        }
        if clients.is_some_and(|(_, required)| required) {
            safe.push("mqtt.require_client_certificate=true".into());
        }
        safe.push(format!("mqtt.tls=127.0.0.1:{port}"));
        let setup = safe.iter().fold(Setup::default(), |setup, text| setup.argument("--set").argument(text));
        let mut safe = Self { server: setup.launch(), port, home };
        let end = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(safe.server.alive() && Instant::now() < end, "{}", safe.server.stderr());
            std::thread::sleep(Duration::from_millis(5));
        }
        safe
    }

    fn write(home: &tempfile::TempDir, ours: &Identity) -> Vec<String> {
        fs::write(home.path().join("cert.pem"), &ours.pem).expect("a file");
        fs::write(home.path().join("key.pem"), ours.key.serialize_pem()).expect("a file");
        Vec::new()
    }

    /// A handshake with who `trusted` signed.
    fn dial(&self, version: Version, trusted: &Authority, own: Option<&Identity>) -> io::Result<Client> {
        let mut roots = RootCertStore::empty();
        roots.add(trusted.der.clone()).expect("a root");
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots);
        let config = match own {
            None => builder.with_no_client_auth(),
            Some(own) => {
                let key = PrivateKeyDer::try_from(own.key.serialize_der()).expect("a key");
                builder.with_client_auth_cert(vec![own.certificate.clone()], key).expect("an identity")
            }
        };
        let client = ClientConnection::new(Arc::new(config), "localhost".try_into().expect("a name"))
            .expect("a client");
        let socket = TcpStream::connect(("127.0.0.1", self.port))?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let mut stream = StreamOwned::new(client, socket);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(Client::over(Box::new(stream), version))
    }

    /// The code of CONNACK; an error where TLS fails, which in 1.3 is after the client's part of the handshake.
    fn open(&self, connect: &Connect, trusted: &Authority, own: Option<&Identity>) -> io::Result<Client> {
        connect.try_over(self.dial(connect.version, trusted, own)?)
    }
}

#[test]
fn messages_go_through_tls() {
    let _turn = turn();
    let ours = authority("ours");
    let server = Safe::start(&ours.sign("server"), None, None);
    for version in [Version::V3, Version::V5] {
        let mut client = server.open(&Connect::new(version, "tls"), &ours, None).expect("CONNACK");
        assert_eq!(client.code, 0);
        assert_eq!(client.subscribe("tls", 2), 2);
        for qos in 0..=2 {
            let text = "x".repeat(100_000 * usize::from(qos) + 1);
            client.publish("tls", &text, qos);
            assert_eq!(client.message().payload.len(), text.len());
        }
        client.disconnect();
    }
    assert!(server.open(&Connect::new(Version::V5, "no"), &authority("other"), None).is_err());
    // Not TLS: an alert and a closed connection, at once.
    let begin = Instant::now();
    let mut plain = Client::silent(server.port, Version::V5).expect("a connection");
    plain.say(&Connect::new(Version::V5, "plain").encode());
    let mut rest = Vec::new();
    let mut socket = plain.into_stream();
    let _ = io::Read::read_to_end(&mut socket, &mut rest);
    assert!(rest.len() < 10 && begin.elapsed() < Duration::from_secs(5), "{rest:02x?}");
}

/// A certificate is changed without a stop: connections stay, new ones get the new one; files that do not fit together
/// change nothing.
#[test]
fn certificates_change_while_it_runs() {
    let _turn = turn();
    let (first, second) = (authority("first"), authority("second"));
    let server = Safe::start(&first.sign("server"), None, None);
    let connect = Connect::new(Version::V5, "stays");
    let mut stays = server.open(&connect, &first, None).expect("CONNACK");
    let other = Connect::new(Version::V5, "other");
    // Half of a change: a certificate whose key is another one.
    fs::write(server.home.path().join("cert.pem"), second.sign("server").pem).expect("a file");
    eventually("it is seen", || server.server.stderr().contains("the old certificate stays"));
    assert!(server.open(&other, &first, None).is_ok(), "the old one stays");
    fs::write(server.home.path().join("key.pem"), "no key\n").expect("a file");
    std::thread::sleep(Duration::from_millis(2500));
    assert!(server.open(&other, &first, None).is_ok());
    Safe::write(&server.home, &second.sign("server"));
    eventually("the new certificate is in force", || server.open(&other, &second, None).is_ok());
    assert!(server.open(&other, &first, None).is_err());
    stays.ping();
}

/// A certificate of a client is its user name, for rules and for sessions; user name and password count for nothing.
#[test]
fn certificates_of_clients_are_their_log_in() {
    let _turn = turn();
    let (ours, theirs) = (authority("ours"), authority("theirs"));
    let acl = "all\n  allow readwrite home/%u/#\nuser dev1\n  allow publish alarm\n";
    let server = Safe::start(&ours.sign("server"), Some((&theirs, true)), Some(acl));
    let (dev1, dev2) = (theirs.sign("dev1"), theirs.sign("dev2"));
    let connect = Connect::durable(Version::V5, "thing").user("dev2").password("x");
    let mut client = server.open(&connect, &ours, Some(&dev1)).expect("CONNACK");
    assert_eq!(client.code, 0);
    assert_eq!((client.subscribe("home/dev1/#", 1), client.subscribe("home/dev2/#", 1)), (1, 0x87));
    assert_eq!((client.publish("alarm", "!", 1) < 0x80, client.publish("home/dev2/x", "!", 1)), (true, 0x87));
    client.publish("home/dev1/x", "mine", 1);
    assert_eq!(client.message().text(), "mine");
    let thief = server.open(&connect, &ours, Some(&dev2)).expect("CONNACK");
    assert_eq!(thief.code, 0x87, "the session is that of another user");
    client.ping();
    let mut client = server.open(&connect, &ours, Some(&dev1)).expect("CONNACK");
    assert!(client.present);
    client.ping();
    // Without one, and with one that somebody else signed.
    let connect = Connect::new(Version::V5, "no");
    assert!(server.open(&connect, &ours, None).is_err());
    assert!(server.open(&connect, &ours, Some(&authority("nobody").sign("dev1"))).is_err());
    assert!(server.open(&connect, &ours, Some(&theirs.sign("#"))).is_ok_and(|mut client| {
        client.subscribe("home/#", 1) == 0x87 && client.subscribe("home/+/x", 1) == 0x87
    }));
}

/// Where certificates are asked for and not needed, who has none is anonymous.
#[test]
fn a_certificate_may_be_left_out_where_it_is_not_required() {
    let _turn = turn();
    let (ours, theirs) = (authority("ours"), authority("theirs"));
    let acl = "user dev1\n  allow readwrite #\nanonymous\n  allow subscribe public/#\n";
    let server = Safe::start(&ours.sign("server"), Some((&theirs, false)), Some(acl));
    let connect = Connect::new(Version::V5, "c");
    let mut known = server.open(&connect, &ours, Some(&theirs.sign("dev1"))).expect("CONNACK");
    assert_eq!((known.code, known.subscribe("secret", 1)), (0, 1));
    let other = Connect::new(Version::V5, "d");
    let named = server.open(&other.clone().user("dev1"), &ours, None).expect("CONNACK");
    assert_eq!(named.code, 0x86, "a name without proof");
    let mut unknown = server.open(&other, &ours, None).expect("CONNACK");
    assert_eq!(
        (unknown.code, unknown.subscribe("secret", 1), unknown.subscribe("public/x", 1)),
        (0, 0x87, 1)
    );
    assert!(server.open(&connect, &ours, Some(&authority("nobody").sign("dev1"))).is_err());
}

/// Half a handshake, a byte a second, and silence: each is closed when its 10 s are over; others are served meanwhile.
#[test]
fn slow_handshakes_end() {
    let _turn = turn();
    let ours = authority("ours");
    let server = Safe::start(&ours.sign("server"), None, None);
    let hello = [&[0x16, 3, 1, 2, 0][..], &[1, 0, 1, 0xFC, 3, 3], &[7; 32]].concat();
    let mut slow: Vec<(TcpStream, usize)> = (0..30)
        .map(|number| (TcpStream::connect(("127.0.0.1", server.port)).expect("a connection"), number % 3))
        .collect();
    let begin = Instant::now();
    let mut at = 0;
    while begin.elapsed() < Duration::from_secs(12) {
        for (stream, kind) in &mut slow {
            let bytes = match kind {
                0 => &hello[at.min(hello.len() - 1)..=at.min(hello.len() - 1)],
                1 if at == 0 => &hello[..],
                _ => &[],
            };
            let _ = io::Write::write_all(stream, bytes);
        }
        at += 1;
        let mut client =
            server.open(&Connect::new(Version::V5, "quick"), &ours, None).expect("served meanwhile");
        client.ping();
        std::thread::sleep(Duration::from_millis(900));
    }
    for (stream, kind) in &mut slow {
        stream.set_read_timeout(Some(Duration::from_secs(2))).expect("a time-out");
        let end = io::Read::read(stream, &mut [0; 64]);
        let closed = match &end {
            Ok(read) => *read == 0,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        };
        assert!(closed, "kind {kind}: {end:?}");
    }
}

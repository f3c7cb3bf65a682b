//! A broker with users and rules, and what the specifications say a client does to log in.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::{digest, hmac, pbkdf2};
use tempfile::TempDir;

use crate::client::{Client, Connect};
use crate::support::{PATIENCE, Server, Setup, free_port};
use crate::wire::Version;

/// How long until a changed file counts: it is looked at every 2 s, connections every second.
pub(crate) const RELOADED: Duration = Duration::from_secs(8);

/// A server with files that say who may do what.
pub(crate) struct Guarded {
    pub(crate) server: Server,
    pub(crate) port: u16,
    home: TempDir,
}

/// What is to be in the files.
#[derive(Default)]
pub(crate) struct Files<'a> {
    /// Names and passwords; empty: there is no such file.
    pub(crate) users: &'a [(&'a str, &'a str)],
    /// The text of the ACL file; `None`: there is none.
    pub(crate) acl: Option<&'a str>,
    /// Further settings.
    pub(crate) settings: &'a [&'a str],
}

impl Files<'_> {
    pub(crate) fn start(&self) -> Guarded {
        let mut guarded = self.launch();
        guarded.wait_ready();
        guarded
    }

    /// Does not wait: it may be one that must not start.
    pub(crate) fn launch(&self) -> Guarded {
        let home = tempfile::tempdir().expect("a directory");
        let port = free_port();
        let mut settings = vec!["mqtt.sys_interval=1s".to_owned()];
        if !self.users.is_empty() {
            let path = home.path().join("users");
            self.users.iter().for_each(|(name, password)| add_user(&path, name, password));
            settings.push(format!("mqtt.users={}", path.display()));
        }
        if let Some(acl) = self.acl {
            std::fs::write(home.path().join("acl"), acl).expect("the ACL file");
            settings.push(format!("mqtt.acl={}", home.path().join("acl").display()));
        }
        settings.extend(self.settings.iter().map(|text| (*text).to_owned()));
        let setup = Setup::default().argument("--mqtt").argument(&format!("127.0.0.1:{port}"));
        let setup = settings.iter().fold(setup, |setup, text| setup.argument("--set").argument(text));
        Guarded { server: setup.launch(), port, home }
    }
}

impl Guarded {
    /// Until somebody is answered, whatever the answer is.
    pub(crate) fn wait_ready(&mut self) {
        let end = Instant::now() + PATIENCE;
        while Connect::new(Version::V3, "ready").try_open(self.port).is_err() {
            assert!(self.server.alive(), "the broker ended at its start\n{}", self.server.stderr());
            assert!(Instant::now() < end, "no CONNACK in {PATIENCE:?}\n{}", self.server.stderr());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Another content for a file, all at once as an editor writes it.
    pub(crate) fn rewrite(&self, name: &str, content: impl AsRef<[u8]>) {
        let new = self.home.path().join("new");
        std::fs::write(&new, content).expect("a file");
        std::fs::rename(new, self.file(name)).expect("its place");
    }

    #[track_caller]
    pub(crate) fn open(&self, version: Version, id: &str, user: &str, password: &str) -> Client {
        Connect::new(version, id).user(user).password(password).open(self.port)
    }

    /// The code of CONNACK.
    #[track_caller]
    pub(crate) fn code(&self, connect: &Connect) -> u8 {
        connect.try_open(self.port).expect("CONNACK").code
    }
}

/// `postroad mqtt user add`.
pub(crate) fn add_user(users: &Path, name: &str, password: &str) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_postroad"));
    command.args(["mqtt", "user", "add", name, "--users"]).arg(users);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("it starts");
    child.stdin.take().expect("a pipe").write_all(format!("{password}\n").as_bytes()).expect("it reads");
    assert!(child.wait().expect("its end").success(), "user add {name}");
}

/// A line of a users file whose password takes `iterations` to check.
pub(crate) fn user_line(name: &str, password: &str, iterations: u32) -> String {
    let salt = b"not very random!";
    let salted = salted(password, salt, iterations);
    let stored = digest::digest(&digest::SHA256, &mac(&salted, b"Client Key"));
    let [salt, stored, server] =
        [&salt[..], stored.as_ref(), &mac(&salted, b"Server Key")].map(|bytes| STANDARD.encode(bytes));
    format!("{name}:$scram-sha-256${iterations}${salt}${stored}${server}\n")
}

fn mac(key: &[u8], text: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text).as_ref().to_vec()
}

fn salted(password: &str, salt: &[u8], iterations: u32) -> [u8; 32] {
    let mut out = [0; 32];
    let iterations = iterations.try_into().expect("not 0");
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, salt, password.as_bytes(), &mut out);
    out
}

/// The client's side of SCRAM-SHA-256, from RFC 5802 and RFC 7677.
pub(crate) struct Scram {
    password: String,
    first: String,
    nonce: String,
    expected: String,
}

impl Scram {
    pub(crate) fn new(user: &str, password: &str, nonce: &str) -> Self {
        let first = format!("n={user},r={nonce}");
        Self { password: password.into(), first, nonce: nonce.into(), expected: String::new() }
    }

    pub(crate) fn first(&self) -> Vec<u8> {
        format!("n,,{}", self.first).into_bytes()
    }

    /// The answer to the server's first message.
    #[track_caller]
    pub(crate) fn last(&mut self, challenge: &[u8]) -> Vec<u8> {
        let challenge = std::str::from_utf8(challenge).expect("text");
        let parts: Vec<&str> = challenge.split(',').collect();
        let [nonce, salt, iterations] = parts[..] else { panic!("{challenge}") };
        let nonce = nonce.strip_prefix("r=").expect("a nonce");
        assert!(nonce.starts_with(&self.nonce) && nonce.len() > self.nonce.len() + 16, "{challenge}");
        let salt = STANDARD.decode(salt.strip_prefix("s=").expect("a salt")).expect("base64");
        let iterations: u32 = iterations.strip_prefix("i=").expect("iterations").parse().expect("a number");
        assert!(iterations >= 4096, "RFC 7677, 4");
        let salted = salted(&self.password, &salt, iterations);
        let bare = format!("c=biws,r={nonce}");
        let signed = format!("{},{challenge},{bare}", self.first);
        let key = mac(&salted, b"Client Key");
        let stored = digest::digest(&digest::SHA256, &key);
        let signature = mac(stored.as_ref(), signed.as_bytes());
        let proof: Vec<u8> = key.iter().zip(signature).map(|(key, other)| key ^ other).collect();
        self.expected =
            format!("v={}", STANDARD.encode(mac(&mac(&salted, b"Server Key"), signed.as_bytes())));
        format!("{bare},p={}", STANDARD.encode(proof)).into_bytes()
    }

    /// What a server says that has the password's hash.
    pub(crate) fn expected(&self) -> &[u8] {
        self.expected.as_bytes()
    }
}

#[test]
fn the_client_of_these_tests_is_that_of_rfc_7677() {
    let mut scram = Scram::new("user", "pencil", "rOprNGfwEbeRWgbNEkqO");
    let challenge = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
    let wanted: &[u8] = b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                          p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
    assert_eq!(scram.first(), b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
    assert_eq!(scram.last(challenge), wanted);
    assert_eq!(scram.expected(), b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
}

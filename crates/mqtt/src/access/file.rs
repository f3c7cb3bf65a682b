//! Access as two files have it.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use super::acl::Acl;
use super::crypto::{self, Hash};
use super::error::{AccessError, LineError};
use super::scram::{self, ScramServer};
use super::users::Users;
use super::{Access, Attempt, Check, Denied, Exchange, Identity, PasswordCheck, Permit, Proof, UserLimits};
use crate::codec::ReasonCode;

/// Where [`FileAccess`] has its rules from.
#[derive(Debug, Clone)]
pub struct FileSettings {
    /// The users file ([`users`](super::users)). `None`: there are no users but those with certificates.
    pub users: Option<PathBuf>,
    /// The ACL file ([`acl`](super::acl)). `None`: who is in may do everything, except publish to `$`-topics.
    pub acl: Option<PathBuf>,
    /// What a subscription that is not allowed is answered with in MQTT 5.0: `NotAuthorized` (0x87), or
    /// `UnspecifiedError` (0x80) for servers that do not say why.
    pub refusal: ReasonCode,
}

impl Default for FileSettings {
    fn default() -> Self {
        Self { users: None, acl: None, refusal: ReasonCode::NotAuthorized }
    }
}

/// Access by a users file and an ACL file, either of which may be left out.
#[derive(Debug)]
pub struct FileAccess {
    rules: RwLock<Rules>,
    generation: AtomicU64,
    files: Mutex<Files>,
    refusal: ReasonCode,
    /// Random, for the life of the process.
    secret: Hash,
}

/// What is in force. Each part is replaced as a whole.
#[derive(Debug, Clone)]
struct Rules {
    users: Arc<Users>,
    acl: Option<Arc<Acl>>,
}

#[derive(Debug)]
struct Files {
    users: Option<Watched>,
    acl: Option<Watched>,
}

/// A file, and what it was when it was last read.
#[derive(Debug)]
struct Watched {
    path: PathBuf,
    /// `None` if it may change without looking different.
    seen: Option<Stamp>,
    /// What the rules in force were read from.
    content: Option<Hash>,
    /// The last error, not to be logged each time.
    complaint: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// How old the last change must be for its time to tell it from a next one.
const SETTLED: Duration = Duration::from_secs(2);

impl Stamp {
    fn of(file: &File) -> io::Result<(Self, u32)> {
        let meta = file.metadata()?;
        let stamp = Self {
            device: meta.dev(),
            inode: meta.ino(),
            len: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        };
        Ok((stamp, meta.mode()))
    }

    fn is_settled(&self) -> bool {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let changed = Duration::from_secs(u64::try_from(self.changed.0.max(self.modified.0)).unwrap_or(0));
        now > changed + SETTLED
    }
}

impl Watched {
    fn new(path: PathBuf) -> Self {
        Self { path, seen: None, content: None, complaint: None }
    }

    /// The file read by `parse`; `None` if it is what it was.
    fn read<T>(
        &mut self,
        private: bool,
        parse: impl FnOnce(&str) -> Result<T, LineError>,
    ) -> Result<Option<T>, AccessError> {
        let path = &self.path;
        let mut file = File::open(path).map_err(|e| AccessError::io("open", path, e))?;
        let (stamp, mode) = Stamp::of(&file).map_err(|e| AccessError::io("look at", path, e))?;
        if self.seen == Some(stamp) && self.complaint.is_none() {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(|e| AccessError::io("read", path, e))?;
        let content = crypto::sha256(&bytes);
        if self.content == Some(content) && self.complaint.is_none() {
            self.seen = stamp.is_settled().then_some(stamp);
            return Ok(None);
        }
        if private && mode & 0o077 != 0 {
            tracing::warn!(path = %path.display(), mode = format!("{:o}", mode & 0o777), "others can read the password hashes; chmod 600 it");
        }
        let parsed = text_of(&bytes).and_then(parse).map_err(|e| AccessError::malformed(path, e))?;
        self.content = Some(content);
        self.seen = stamp.is_settled().then_some(stamp);
        Ok(Some(parsed))
    }

    /// Like [`read`](Self::read), for a file that was good once: what is wrong now is logged, once.
    fn reread<T>(
        &mut self,
        private: bool,
        parse: impl FnOnce(&str) -> Result<T, LineError>,
    ) -> Result<Option<T>, AccessError> {
        let read = self.read(private, parse);
        match &read {
            Ok(_) => self.complaint = None,
            Err(error) => {
                let complaint = error.to_string();
                if self.complaint.as_ref() != Some(&complaint) {
                    tracing::error!(%error, "the old rules stay in force");
                    self.complaint = Some(complaint);
                }
            }
        }
        read
    }
}

fn text_of(bytes: &[u8]) -> Result<&str, LineError> {
    std::str::from_utf8(bytes).map_err(|e| LineError {
        line: 1 + bytes.iter().take(e.valid_up_to()).filter(|byte| **byte == b'\n').count(),
        what: "not UTF-8; write the file as UTF-8".to_owned(),
    })
}

impl FileAccess {
    /// Reads the files. Any error means that there is no access control, so the server must not start.
    pub fn open(settings: FileSettings) -> Result<Self, AccessError> {
        let secret =
            crypto::random::<32>().map_err(|e| AccessError::io("draw a secret for", "access".as_ref(), e))?;
        let mut files =
            Files { users: settings.users.map(Watched::new), acl: settings.acl.map(Watched::new) };
        let users = match &mut files.users {
            Some(file) => file.read(true, |text| Users::parse(text, secret))?,
            None => None,
        };
        let acl = match &mut files.acl {
            Some(file) => file.read(false, Acl::parse)?,
            None => None,
        };
        let rules =
            Rules { users: Arc::new(users.unwrap_or_else(|| Users::none(secret))), acl: acl.map(Arc::new) };
        Ok(Self {
            rules: RwLock::new(rules),
            generation: AtomicU64::new(0),
            files: Mutex::new(files),
            refusal: settings.refusal,
            secret,
        })
    }

    /// Reads again what has changed; costs two `stat`s if nothing has. To be called on SIGHUP and every few seconds.
    /// True if other rules are in force now. A file that is gone or malformed leaves its old rules in force, without
    /// holding up the other file; that is logged once, and the first error is returned each time.
    pub fn reload(&self) -> Result<bool, AccessError> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let Files { users, acl } = &mut *files;
        let users =
            users.as_mut().map(|file| file.reread(true, |text| Users::parse(text, self.secret))).transpose();
        let acl = acl.as_mut().map(|file| file.reread(false, Acl::parse)).transpose();
        let (users, acl, error) = match (users, acl) {
            (Ok(users), Ok(acl)) => (users.flatten(), acl.flatten(), None),
            (Ok(users), Err(e)) => (users.flatten(), None, Some(e)),
            (Err(e), acl) => (None, acl.ok().flatten().flatten(), Some(e)),
        };
        let changed = users.is_some() || acl.is_some();
        if changed {
            let mut rules = self.rules.write().unwrap_or_else(PoisonError::into_inner);
            if let Some(users) = users {
                rules.users = Arc::new(users);
            }
            if let Some(acl) = acl {
                rules.acl = Some(Arc::new(acl));
            }
            // With the lock held: who sees the new number sees the new rules.
            self.generation.fetch_add(1, Ordering::Release);
        }
        match error {
            Some(error) => Err(error),
            None => Ok(changed),
        }
    }

    fn users(&self) -> Arc<Users> {
        Arc::clone(&self.rules.read().unwrap_or_else(PoisonError::into_inner).users)
    }

    fn by_acl<T>(&self, with: impl FnOnce(&Acl) -> T, without: T) -> T {
        match &self.rules.read().unwrap_or_else(PoisonError::into_inner).acl {
            Some(acl) => with(acl),
            None => without,
        }
    }
}

/// Takes the time of a hash.
fn verify(users: &Users, name: &str, password: &[u8]) -> Result<Identity, Denied> {
    let mark = users.verify(name, password).ok_or(Denied::BadUserNameOrPassword)?;
    Ok(Identity::with_password(name, mark))
}

impl Access for FileAccess {
    fn authenticate(&self, attempt: &Attempt<'_>) -> Result<Identity, Denied> {
        match (attempt.certificate, attempt.user_name, attempt.password) {
            (Some(""), ..) => Err(Denied::NotAuthorized),
            (Some(name), ..) => Ok(Identity::user(name)),
            (None, Some(name), Some(password)) => verify(&self.users(), name, password),
            (None, None, None) if attempt.allow_anonymous => Ok(Identity::anonymous()),
            (None, None, None) => Err(Denied::NotAuthorized),
            (None, ..) => Err(Denied::BadUserNameOrPassword),
        }
    }

    fn check(&self, attempt: &Attempt<'_>) -> Check {
        let (None, Some(name), Some(password)) = (attempt.certificate, attempt.user_name, attempt.password)
        else {
            return Check::Known(self.authenticate(attempt));
        };
        let users = self.users();
        // Clients that all come back at once do not wait behind strangers.
        if let Some(mark) = users.recall(name, password) {
            return Check::Known(Ok(Identity::with_password(name, mark)));
        }
        let (name, password): (Box<str>, Box<[u8]>) = (name.into(), password.into());
        Check::Password(PasswordCheck::new(move || verify(&users, &name, &password)))
    }

    fn begin_exchange(&self, method: &str, _attempt: &Attempt<'_>) -> Result<Box<dyn Exchange>, Denied> {
        if method != scram::METHOD {
            return Err(Denied::BadMethod);
        }
        let nonce = scram::nonce().map_err(|_| Denied::NotAuthorized)?;
        Ok(Box::new(ScramServer::new(self.users(), nonce)))
    }

    fn may_publish(&self, who: &Identity, client_id: &str, topic: &str, _retain: bool) -> bool {
        self.by_acl(|acl| acl.may_publish(who, client_id, topic), !topic.starts_with('$'))
    }

    fn may_subscribe(&self, who: &Identity, client_id: &str, filter: &str) -> Permit {
        match self.by_acl(|acl| acl.may_subscribe(who, client_id, filter), true) {
            true => Permit::Yes,
            false => Permit::No(self.refusal),
        }
    }

    fn may_receive(&self, who: &Identity, client_id: &str, topic: &str) -> bool {
        self.by_acl(|acl| acl.may_receive(who, client_id, topic), true)
    }

    fn limits(&self, who: &Identity) -> UserLimits {
        self.by_acl(|acl| acl.limits(who), UserLimits::default())
    }

    fn is_current(&self, who: &Identity) -> bool {
        match (who.proof, who.name()) {
            (Proof::Password(mark), Some(name)) => self.users().mark(name) == Some(mark),
            _ => true,
        }
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }
}

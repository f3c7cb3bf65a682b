//! Changing a users file: one line of it, or none.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use super::super::crypto;
use super::super::error::AccessError;
use super::{Credential, UNKNOWN, Users, unusable_name};

/// What [`add`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The user is new.
    Added,
    /// The user was there, and has the new password now.
    Replaced,
}

/// Adds a user, or changes the password of one. The file is made if it is not there; its other lines stay as they are.
/// When this returns, the change is durable; if the power fails before, the file is the old one or the new one.
pub fn add(path: &Path, name: &str, password: &[u8], iterations: u32) -> Result<Change, AccessError> {
    if let Some(what) = unusable_name(name) {
        return Err(AccessError::Unusable(what));
    }
    let line = format!("{name}:{}", Credential::new(password, iterations)?);
    let file = Locked::open(path)?;
    let mut text = file.read_or_empty()?;
    parse(&file.path, &text)?;
    if !text.lines().any(|line| is_of(line, UNKNOWN)) {
        let key = crypto::random::<32>().map_err(|e| AccessError::io("draw a key for", path, e))?;
        text.insert_str(0, &format!("{UNKNOWN}:{}\n", crypto::encode(&key)));
    }
    let mut change = Change::Added;
    let mut lines: Vec<&str> = text.lines().collect();
    match lines.iter_mut().find(|line| is_of(line, name)) {
        Some(old) => {
            *old = &line;
            change = Change::Replaced;
        }
        None => lines.push(&line),
    }
    file.replace(&lines)?;
    Ok(change)
}

/// Removes a user. False if there is none of this name. As durable as [`add`].
pub fn remove(path: &Path, name: &str) -> Result<bool, AccessError> {
    let file = Locked::open(path)?;
    let text = file.read().map_err(|e| AccessError::io("read", path, e))?;
    parse(&file.path, &text)?;
    let lines: Vec<&str> = text.lines().filter(|line| !is_of(line, name)).collect();
    if unusable_name(name).is_some() || lines.len() == text.lines().count() {
        return Ok(false);
    }
    file.replace(&lines)?;
    Ok(true)
}

/// The names of the users, ascending.
pub fn list(path: &Path) -> Result<Vec<String>, AccessError> {
    let text = fs::read_to_string(path).map_err(|e| AccessError::io("read", path, e))?;
    Ok(parse(path, &text)?.names().map(str::to_owned).collect())
}

fn parse(path: &Path, text: &str) -> Result<Users, AccessError> {
    Users::parse(text, [0; 32]).map_err(|e| AccessError::malformed(path, e))
}

/// Whether the line is the one of this name.
fn is_of(line: &str, name: &str) -> bool {
    line.trim().split_once(':').is_some_and(|(other, _)| other == name)
}

/// A users file that nobody else changes meanwhile.
struct Locked {
    path: PathBuf,
    dir: PathBuf,
    /// Its lock is the lock of the file: the file itself is another one after each change.
    lock: File,
}

impl Locked {
    fn open(path: &Path) -> Result<Self, AccessError> {
        // A symbolic link is followed, not replaced.
        let path = match fs::canonicalize(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => path.to_owned(),
            found => found.map_err(|e| AccessError::io("find", path, e))?,
        };
        let dir = match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir.to_owned(),
            _ => PathBuf::from("."),
        };
        let lock = File::open(&dir).map_err(|e| AccessError::io("open", &dir, e))?;
        lock.lock().map_err(|e| AccessError::io("lock", &dir, e))?;
        Ok(Self { path, dir, lock })
    }

    fn read(&self) -> io::Result<String> {
        fs::read_to_string(&self.path)
    }

    fn read_or_empty(&self) -> Result<String, AccessError> {
        match self.read() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            read => read.map_err(|e| AccessError::io("read", &self.path, e)),
        }
    }

    /// Writes the lines to a new file, mode 0600 and with the old one's owner, and puts it in the old one's place.
    fn replace(&self, lines: &[&str]) -> Result<(), AccessError> {
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let new = self.dir.join(name);
        let write = || {
            // Left by a process that was killed; the lock says that nobody writes it now.
            match fs::remove_file(&new) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
            if let Ok(old) = fs::metadata(&self.path) {
                let made = file.metadata()?;
                if (old.uid(), old.gid()) != (made.uid(), made.gid()) {
                    fchown(&file, Some(old.uid()), Some(old.gid()))?;
                }
            }
            let mut text = lines.join("\n");
            if !lines.is_empty() {
                text.push('\n');
            }
            file.write_all(text.as_bytes())?;
            file.sync_all()
        };
        write().map_err(|e| AccessError::io("write", &new, e))?;
        fs::rename(&new, &self.path).map_err(|e| AccessError::io("replace", &self.path, e))?;
        // The name is durable with the directory.
        self.lock.sync_all().map_err(|e| AccessError::io("sync", &self.dir, e))
    }
}

//! Where things are: all below cargo's target directory, so that `cargo clean` takes them away.

use anyhow::{Context, Result};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// The directory cargo builds into.
pub fn target() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap_or_else(|| Path::new("."));
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir))
}

/// What Debian's packages were unpacked into; nothing of it is installed.
pub fn peers() -> PathBuf {
    target().join("peers")
}

/// Programs that `go install` put.
pub fn tools() -> PathBuf {
    target().join("tools")
}

/// State, port claims, and a directory for each run.
pub fn testbed() -> Result<PathBuf> {
    let dir = target().join("testbed");
    fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    Ok(dir)
}

/// Where each running broker has its files.
pub fn runs() -> Result<PathBuf> {
    let dir = testbed()?.join("runs");
    fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    Ok(dir)
}

/// Held by the one process that fetches; the others wait for it, and look again.
pub(crate) fn fetching() -> Result<File> {
    let lock = File::create(testbed()?.join("fetch.lock"))?;
    lock.lock()?;
    Ok(lock)
}

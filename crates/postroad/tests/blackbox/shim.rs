//! The switchboard of `shim.c`: a server whose disk can be made slow, stuck or broken.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::support::{Setup, need};

/// The library, compiled once by each run and put in its place whole, so that runs beside each other do not meet.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        need("cc", "gcc");
        let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let own = tempfile::tempdir_in(&dir).expect("a directory in the target directory");
        let (source, made) = (own.path().join("shim.c"), own.path().join("shim.so"));
        fs::write(&source, include_str!("shim.c")).expect("the source is written");
        let done = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o"])
            .args([&made, &source])
            .output()
            .expect("cc starts");
        assert!(done.status.success(), "cc: {}", String::from_utf8_lossy(&done.stderr));
        let library = dir.join("postroad-shim.so");
        fs::rename(made, &library).expect("the library is moved to its place");
        library
    })
}

/// The directory with the switches.
pub(crate) struct Shim {
    dir: TempDir,
}

impl Shim {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("temp dir") }
    }

    /// Puts the shim into a server that is going to be started.
    pub(crate) fn with(&self, setup: Setup) -> Setup {
        setup
            .env("LD_PRELOAD", library().to_str().expect("UTF-8"))
            .env("SHIM_DIR", self.dir.path().to_str().expect("UTF-8"))
    }

    /// Turns `block`, `delay` or `fail` on.
    pub(crate) fn on(&self, switch: &str) {
        fs::write(self.dir.path().join(switch), "").expect("switch on");
    }

    pub(crate) fn off(&self, switch: &str) {
        fs::remove_file(self.dir.path().join(switch)).expect("switch off");
    }

    /// True when a sync was made to fail.
    pub(crate) fn has_failed(&self) -> bool {
        self.dir.path().join("failed").exists()
    }

    /// Syncs that succeeded so far.
    pub(crate) fn calls(&self) -> u64 {
        fs::metadata(self.dir.path().join("calls")).map_or(0, |data| data.len())
    }
}

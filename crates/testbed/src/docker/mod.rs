//! Brokers in containers: a daemon, images, and Compose projects that go away with who started them.
//!
//! [`Daemon::find`] says whether this machine can do it, [`Daemon::find_or_start`] makes it able to where
//! it may. [`images::resolve`] gets an image: one that is named by the environment, one that is here, a
//! pulled one, or one built from Debian's packages. [`Project::up`] starts a broker of it by the files in
//! `compose/`, and [`Project::down`], or dropping it, takes away all that it made. A process that is
//! killed is cleaned up after by a helper; what even that missed, by the next run ([`leftovers`]).

mod compose;
mod daemon;
pub mod images;
mod owner;
mod product;

pub use compose::{Data, Project, Spec, check};
pub use daemon::{Daemon, Life, stop_kept};
pub use owner::{Owner, down_all, leftovers, projects, remove, sweep};

use std::path::{Path, PathBuf};

/// The workspace's root.
pub(crate) fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}

/// What is dear to make and survives `cargo clean`: images of a daemon of ours, Compose, servers for images.
/// `POSTROAD_TESTBED_CACHE`, else `postroad-testbed` in the user's cache directory.
pub fn cache() -> PathBuf {
    let home = || std::env::var_os("HOME").map_or_else(std::env::temp_dir, PathBuf::from);
    std::env::var_os("POSTROAD_TESTBED_CACHE").map_or_else(
        || {
            let caches =
                std::env::var_os("XDG_CACHE_HOME").map_or_else(|| home().join(".cache"), PathBuf::from);
            caches.join("postroad-testbed")
        },
        PathBuf::from,
    )
}

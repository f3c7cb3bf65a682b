//! Where the workspace is, and running commands in it.

use anyhow::{Context, Result, bail};
use postroad_testbed::debian;
use postroad_testbed::run::line_of;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub(crate) use postroad_testbed::places::target;
pub(crate) use postroad_testbed::run::output;

/// The workspace's root.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// The cargo that started us.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// `PATH` with the fetched tools first, so that tests find `nc` and `jq` where nothing is installed.
pub(crate) fn path_with_tools() -> OsString {
    let mut path = debian::bin_dir().into_os_string();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    path
}

/// Runs a command with its output shown; an exit other than 0 is an error.
pub(crate) fn show(command: &mut Command) -> Result<()> {
    let line = line_of(command);
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("cannot start: {line}"))?;
    if !status.success() {
        bail!("{line}: {status}");
    }
    Ok(())
}

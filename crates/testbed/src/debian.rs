//! Programs out of Debian's packages, unpacked into `target/peers` and run from there. Nothing is installed
//! and no service is started.

use crate::places;
use crate::run::{output, which};
use anyhow::{Context, Result, bail, ensure};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A program that a package has, to be found on a `PATH` with [`bin_dir`] in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tool {
    /// The name to run it by.
    pub name: &'static str,
    /// The file that the package calls it.
    pub file: &'static str,
    /// The package.
    pub package: &'static str,
}

/// Where tools are run from.
pub fn bin_dir() -> PathBuf {
    places::peers().join("bin")
}

/// The path of a tool, if it is here: unpacked before, or the system's.
pub fn find(tool: &Tool) -> Option<PathBuf> {
    let unpacked = bin_dir().join(tool.name);
    if unpacked.is_file() { Some(unpacked) } else { which(tool.file) }
}

/// Gets those of `tools` that are not here. One process at a time does; the others wait, and find them there.
pub fn fetch(tools: &[&Tool]) -> Result<()> {
    let missing = || tools.iter().copied().filter(|tool| find(tool).is_none()).collect::<Vec<_>>();
    if missing().is_empty() {
        return Ok(());
    }
    let _one_at_a_time = places::fetching()?;
    let wanted = missing();
    if wanted.is_empty() {
        return Ok(());
    }
    unpack(&wanted.iter().map(|tool| tool.package).collect::<Vec<_>>())?;
    wanted.into_iter().try_for_each(wrap)
}

/// What can keep packages from being unpacked here, if so.
pub fn obstacle() -> Option<&'static str> {
    match (which("apt-get"), which("dpkg")) {
        (None, _) => Some("there is no apt-get"),
        (_, None) => Some("there is no dpkg"),
        _ => None,
    }
}

/// What packages were unpacked into.
pub(crate) fn root() -> PathBuf {
    places::peers().join("root")
}

/// Where unpacked programs find their libraries, and Erlang itself.
pub(crate) fn environment() -> Vec<(OsString, OsString)> {
    let mut env = Vec::new();
    if let Ok(libs) = std::env::join_paths(library_dirs()) {
        env.push(("LD_LIBRARY_PATH".into(), libs));
    }
    let erlang = root().join("usr/lib/erlang/bin");
    if erlang.is_dir() {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let dirs = std::iter::once(erlang).chain(std::env::split_paths(&path));
        if let Ok(path) = std::env::join_paths(dirs) {
            env.push(("PATH".into(), path));
        }
    }
    env
}

fn library_dirs() -> Vec<PathBuf> {
    let libs = ["usr/lib", "lib"].iter().filter_map(|lib| fs::read_dir(root().join(lib)).ok()).flatten();
    let libs = libs.filter_map(|entry| Some(entry.ok()?.path()));
    libs.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().contains("-linux-gnu")))
        .collect()
}

/// Downloads packages, with what they need and this system lacks, and unpacks them. For one process at a time.
pub(crate) fn unpack(packages: &[&str]) -> Result<()> {
    if let Some(obstacle) = obstacle() {
        bail!("{obstacle} to get {}", packages.join(", "));
    }
    let (debs, root) = (places::peers().join("debs"), root());
    fs::create_dir_all(debs.join("partial"))?;
    fs::create_dir_all(&root)?;
    let download = || {
        // `install --download-only` brings what a package needs, and installs nothing.
        output(
            Command::new("apt-get")
                .args(["install", "--download-only", "--yes", "--no-install-recommends", "-q", "-o"])
                .arg(format!("Dir::Cache::archives={}", debs.display()))
                .args(["-o", "APT::Sandbox::User=root"])
                .args(packages)
                .env("DEBIAN_FRONTEND", "noninteractive"),
        )
    };
    if let Err(first) = download() {
        // Lists that are old name files that are gone; only root may renew them.
        output(Command::new("apt-get").args(["update", "-q"])).map_err(|_| first)?;
        download()?;
    }
    unpack_new(&debs, &root, &places::peers().join("unpacked"))?;
    relocate_erlang(&root)
}

/// Unpacks the packages in `debs` that have no mark in `marks`, and removes them. What another package needs, too, is
/// brought again, and must not be written again below a program that runs or starts.
fn unpack_new(debs: &Path, root: &Path, marks: &Path) -> Result<()> {
    fs::create_dir_all(marks)?;
    for entry in fs::read_dir(debs)? {
        let file = entry?.path();
        let Some(name) = file.file_name().filter(|_| file.extension().is_some_and(|ext| ext == "deb")) else {
            continue;
        };
        let mark = marks.join(name);
        if !mark.exists() {
            output(Command::new("dpkg").arg("--extract").arg(&file).arg(root))?;
            fs::write(&mark, "")?;
        }
        fs::remove_file(&file)?;
    }
    Ok(())
}

/// Debian's `erl` looks for Erlang where the package would install it.
fn relocate_erlang(root: &Path) -> Result<()> {
    let home = root.join("usr/lib/erlang");
    let script = home.join("bin/erl");
    let Ok(text) = fs::read_to_string(&script) else { return Ok(()) };
    let moved = text.replace("ROOTDIR=/usr/lib/erlang\n", &format!("ROOTDIR='{}'\n", home.display()));
    if moved == text {
        return Ok(());
    }
    fs::write(&script, moved).with_context(|| format!("changing {}", script.display()))
}

/// Writes `bin/NAME`, which becomes the unpacked program (`exec`: its process id is ours to measure).
fn wrap(tool: &Tool) -> Result<()> {
    let program = ["usr/bin", "usr/sbin", "bin", "sbin"]
        .iter()
        .map(|dir| root().join(dir).join(tool.file))
        .find(|file| file.is_file())
        .with_context(|| format!("package {} has no program {}", tool.package, tool.file))?;
    let libs = std::env::join_paths(library_dirs())?.to_string_lossy().into_owned();
    ensure!(!libs.contains('\''), "{libs}: a quote in this path is more than a script can take");
    let script = format!(
        "#!/bin/sh\nLD_LIBRARY_PATH='{libs}'\nexport LD_LIBRARY_PATH\nexec '{}' \"$@\"\n",
        program.display()
    );
    fs::create_dir_all(bin_dir())?;
    // Written aside and moved: another run may be using the old one.
    let (file, aside) = (bin_dir().join(tool.name), bin_dir().join(format!(".{}.new", tool.name)));
    fs::write(&aside, script)?;
    fs::set_permissions(&aside, fs::Permissions::from_mode(0o755))?;
    fs::rename(&aside, &file)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unpacked_is_not_written_again() {
        if let Some(obstacle) = obstacle() {
            println!("not run: packages are unpacked once ({obstacle})");
            return;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let place = |name: &str| dir.path().join(name);
        let (debs, root, marks) = (place("debs"), place("root"), place("marks"));
        for folder in [&debs, &root, &place("made/DEBIAN"), &place("made/usr/lib")] {
            fs::create_dir_all(folder).expect("a directory");
        }
        let about = "Package: small\nVersion: 1\nArchitecture: all\nMaintainer: nobody\nDescription: small\n";
        fs::write(place("made/DEBIAN/control"), about).expect("a file");
        fs::write(place("made/usr/lib/it"), "new").expect("a file");
        let deb = debs.join("small_1_all.deb");
        let unpacked = root.join("usr/lib/it");
        let mut found = Vec::new();
        for _ in 0..2 {
            output(Command::new("dpkg-deb").arg("--build").arg(place("made")).arg(&deb)).expect("a package");
            unpack_new(&debs, &root, &marks).expect("unpacked");
            assert!(!deb.exists());
            found.push(fs::read_to_string(&unpacked).expect("it was unpacked"));
            fs::write(&unpacked, "in use").expect("a file");
        }
        assert_eq!(found, ["new", "in use"]);
    }
}

//! Peers and tools out of Debian's packages, unpacked into `target/peers` and run from there.
//! Nothing is installed and no service is started.

use crate::sh;
use anyhow::{Context, Result, bail};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A program that the tests or the bench use.
pub(crate) struct Tool {
    /// The name to run it by.
    pub(crate) name: &'static str,
    /// The file that Debian's package calls it.
    file: &'static str,
    package: &'static str,
    /// What does not run without it.
    pub(crate) needed_for: &'static str,
}

pub(crate) const NC: Tool = Tool {
    name: "nc",
    file: "nc.openbsd",
    package: "netcat-openbsd",
    needed_for: "black-box tests with netcat",
};
pub(crate) const JQ: Tool =
    Tool { name: "jq", file: "jq", package: "jq", needed_for: "black-box tests that read the log" };
pub(crate) const REDIS: Tool = Tool {
    name: "redis-server",
    file: "redis-server",
    package: "redis-server",
    needed_for: "bench against Redis",
};
pub(crate) const BEANSTALKD: Tool = Tool {
    name: "beanstalkd",
    file: "beanstalkd",
    package: "beanstalkd",
    needed_for: "bench against beanstalkd",
};

/// Everything this module can fetch.
pub(crate) const ALL: [&Tool; 4] = [&NC, &JQ, &REDIS, &BEANSTALKD];

fn dir() -> PathBuf {
    sh::target().join("peers")
}

/// Where the fetched programs are run from.
pub(crate) fn bin_dir() -> PathBuf {
    dir().join("bin")
}

/// The path of a tool, if it is here.
pub(crate) fn find(tool: &Tool) -> Option<PathBuf> {
    let fetched = bin_dir().join(tool.name);
    if fetched.is_file() { Some(fetched) } else { sh::which(tool.file) }
}

/// Makes the tools available; gives back those that cannot be had, with the reason in `stderr`.
pub(crate) fn ensure(tools: &[&'static Tool]) -> Vec<&'static Tool> {
    let missing = |tools: &[&'static Tool]| -> Vec<&'static Tool> {
        tools.iter().copied().filter(|tool| find(tool).is_none()).collect()
    };
    let wanted = missing(tools);
    if wanted.is_empty() {
        return wanted;
    }
    if let Err(error) = fetch(&wanted) {
        eprintln!("xtask: could not fetch {}: {error:#}", names(&wanted));
    }
    missing(tools)
}

/// `a, b, c`.
pub(crate) fn names(tools: &[&Tool]) -> String {
    tools.iter().map(|tool| tool.name).collect::<Vec<_>>().join(", ")
}

/// `cargo xtask peers`.
pub(crate) fn run(_: &[String]) -> Result<()> {
    let missing = ensure(&ALL);
    for tool in ALL {
        match find(tool) {
            Some(path) => println!("{:14} {}", tool.name, path.display()),
            None => println!("{:14} missing: {} cannot run", tool.name, tool.needed_for),
        }
    }
    if missing.is_empty() { Ok(()) } else { bail!("missing: {}", names(&missing)) }
}

fn fetch(tools: &[&'static Tool]) -> Result<()> {
    let apt = sh::which("apt-get").context("there is no apt-get on this system; install them by hand")?;
    let (debs, root) = (dir().join("debs"), dir().join("root"));
    fs::create_dir_all(debs.join("partial"))?;
    fs::create_dir_all(&root)?;
    if rustix::process::geteuid().is_root() {
        // Old package lists name files that are gone. A failure here may still leave usable lists.
        if let Err(error) = sh::output(Command::new(&apt).args(["update", "-q"])) {
            eprintln!("xtask: {error:#}");
        }
    }
    // `install --download-only` brings what the packages need and this system lacks, and installs nothing.
    let packages = tools.iter().map(|tool| tool.package);
    sh::output(
        Command::new(&apt)
            .args(["install", "--download-only", "--yes", "--no-install-recommends", "-q", "-o"])
            .arg(format!("Dir::Cache::archives={}", debs.display()))
            .args(["-o", "APT::Sandbox::User=root"])
            .args(packages)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )?;
    for entry in fs::read_dir(&debs)? {
        let file = entry?.path();
        if file.extension().is_some_and(|ext| ext == "deb") {
            sh::output(Command::new("dpkg").arg("--extract").arg(&file).arg(&root))?;
        }
    }
    for tool in tools {
        wrap(tool, &root)?;
    }
    Ok(())
}

/// Writes `bin/NAME`, which becomes the unpacked program (`exec`: its process id is ours to measure).
fn wrap(tool: &Tool, root: &Path) -> Result<()> {
    let program = ["usr/bin", "usr/sbin", "bin", "sbin"]
        .iter()
        .map(|dir| root.join(dir).join(tool.file))
        .find(|file| file.is_file())
        .with_context(|| format!("package {} has no program {}", tool.package, tool.file))?;
    let libs: Vec<String> = ["usr/lib", "lib"]
        .iter()
        .filter_map(|lib| fs::read_dir(root.join(lib)).ok())
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().contains("-linux-gnu")))
        .map(|path| path.display().to_string())
        .collect();
    fs::create_dir_all(bin_dir())?;
    let script = format!(
        "#!/bin/sh\nLD_LIBRARY_PATH='{}'\nexport LD_LIBRARY_PATH\nexec '{}' \"$@\"\n",
        libs.join(":"),
        program.display()
    );
    // Written aside and moved: another run may be using the old one.
    let (file, aside) = (bin_dir().join(tool.name), bin_dir().join(format!(".{}.new", tool.name)));
    fs::write(&aside, script)?;
    fs::set_permissions(&aside, fs::Permissions::from_mode(0o755))?;
    fs::rename(&aside, &file)?;
    Ok(())
}

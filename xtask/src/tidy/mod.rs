//! The laws that no compiler checks.

mod docs;
mod files;
mod law;
mod manifests;

use crate::sh;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// `cargo xtask tidy`.
pub(crate) fn run(_: &[String]) -> Result<()> {
    let packages = packages()?;
    let files = tracked()?;
    let mut wrong = law::check(&packages);
    wrong.extend(law::check_core_is_pure()?);
    wrong.extend(manifests::check(&packages)?);
    wrong.extend(files::check(&files));
    wrong.extend(docs::check(&files));
    for (lines, file) in files::long(&files) {
        println!("tidy: {file}: {lines} lines; past about {} it is probably two files", files::LONG);
    }
    println!("tidy: {} crates, {} files, {} wrong", packages.len(), files.len(), wrong.len());
    if wrong.is_empty() {
        return Ok(());
    }
    for line in &wrong {
        println!("tidy: {line}");
    }
    bail!("{} wrong", wrong.len())
}

/// A workspace member, as cargo sees it.
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) manifest: PathBuf,
    pub(crate) needs: Vec<Need>,
}

/// A dependency.
pub(crate) struct Need {
    pub(crate) name: String,
    /// Only its tests need it.
    pub(crate) dev: bool,
}

fn packages() -> Result<Vec<Package>> {
    let text = sh::output(sh::cargo().args(["metadata", "--format-version", "1", "--no-deps"]))?;
    let json: serde_json::Value = serde_json::from_str(&text)?;
    let list = json["packages"].as_array().context("cargo metadata has no packages")?;
    list.iter().map(|package| package_of(package).context("cargo metadata is not understood")).collect()
}

fn package_of(json: &serde_json::Value) -> Option<Package> {
    let needs = json["dependencies"].as_array()?.iter();
    let needs =
        needs.map(|need| Some(Need { name: need["name"].as_str()?.into(), dev: need["kind"] == "dev" }));
    Some(Package {
        name: json["name"].as_str()?.into(),
        manifest: json["manifest_path"].as_str()?.into(),
        needs: needs.collect::<Option<_>>()?,
    })
}

/// A file of the repository.
pub(crate) struct Tracked {
    /// From the root, with `/`.
    pub(crate) name: String,
    /// Its text, or `None` if it is not text.
    pub(crate) text: Option<String>,
}

impl Tracked {
    pub(crate) fn is(&self, extension: &str) -> bool {
        Path::new(&self.name).extension().is_some_and(|found| found == extension)
    }
}

/// What git has, and what it would take with the next `git add`.
pub(crate) fn tracked() -> Result<Vec<Tracked>> {
    let mut git = Command::new("git");
    git.current_dir(sh::root()).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let mut files = Vec::new();
    for name in sh::output(&mut git)?.split('\0').filter(|name| !name.is_empty()) {
        // A deleted file is listed until the next commit.
        let Ok(bytes) = std::fs::read(sh::root().join(name)) else { continue };
        files.push(Tracked { name: name.to_owned(), text: String::from_utf8(bytes).ok() });
    }
    Ok(files)
}

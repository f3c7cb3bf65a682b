//! Folder names, inherited lints, and versions in one place.

use super::Package;
use crate::sh;
use anyhow::{Context, Result};
use std::path::Path;

pub(crate) fn check(packages: &[Package]) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    for package in packages {
        let dir = package.manifest.parent().unwrap_or_else(|| Path::new(""));
        let dir = dir.strip_prefix(sh::root()).unwrap_or(dir);
        let expected = match package.name.strip_prefix("postroad-").unwrap_or(&package.name) {
            "xtask" => "xtask".to_owned(),
            name => format!("crates/{name}"),
        };
        if dir != Path::new(&expected) {
            wrong.push(format!("{}: its folder is {}, not {expected}", package.name, dir.display()));
        }
        let text = std::fs::read_to_string(&package.manifest)
            .with_context(|| format!("reading {}", package.manifest.display()))?;
        wrong.extend(in_manifest(&text).into_iter().map(|what| format!("{}: {what}", package.name)));
    }
    Ok(wrong)
}

/// What a member's manifest must not lack or have.
fn in_manifest(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut section = "";
    let mut lints = false;
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name;
            continue;
        }
        lints |= section == "lints" && line.replace(' ', "") == "workspace=true";
        if section.ends_with("dependencies") && !line.replace(' ', "").contains("workspace=true") {
            let name = line.split(['=', ' ', '.']).next().unwrap_or(line);
            // The second and later lines of a long feature list name nothing.
            if line.contains('=') {
                wrong.push(format!("{name} must come from the workspace (name.workspace = true)"));
            }
        }
    }
    if !lints {
        wrong.push("the lints of the workspace are not inherited ([lints] workspace = true)".into());
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::in_manifest;

    const GOOD: &str = "[package]\nversion.workspace = true\n[lints]\nworkspace = true\n[dependencies]\na.workspace = true\n\
                        b = { workspace = true, features = [\n\"x\",\n] }\n";

    #[test]
    fn a_member_inherits() {
        assert_eq!(in_manifest(GOOD), [""; 0]);
        assert_eq!(in_manifest(&GOOD.replace("[lints]", "[other]")).len(), 1);
        assert_eq!(
            in_manifest(&format!("{GOOD}c = \"1.0\"\n[dev-dependencies]\nd = {{ version = \"2\" }}\n")).len(),
            2
        );
    }
}

//! `cargo xtask matrix`: the table of what each backend can do, from the certificates that the tests hold to.

use crate::args::Args;
use crate::sh;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

const BEGIN: &str = "<!-- cargo xtask matrix -->";
const END: &str = "<!-- end of the matrix -->";

/// What `capabilities/NAME.toml` says.
struct Certificate {
    backend: String,
    capabilities: Vec<(String, String)>,
    /// `run`, `twin`, `skip`: how many cases.
    cases: BTreeMap<String, usize>,
}

/// Writes the table into the README; with `--check` it only looks whether it is the one there.
pub(crate) fn run(raw: &[String]) -> Result<()> {
    let args = Args::parse(raw, &["check"], &[])?;
    let path = sh::root().join("README.md");
    let text = fs::read_to_string(&path)?;
    let wanted = replaced(&text, &table(&certificates()?))?;
    if args.has("check") {
        ensure!(
            wanted == text,
            "the table in the README is not that of the certificates: `cargo xtask matrix`"
        );
        return Ok(());
    }
    fs::write(path, wanted)?;
    Ok(())
}

fn certificates() -> Result<Vec<Certificate>> {
    let mut files: Vec<PathBuf> = Vec::new();
    for package in fs::read_dir(sh::root().join("crates"))? {
        let Ok(entries) = fs::read_dir(package?.path().join("capabilities")) else { continue };
        files.extend(entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?);
    }
    let mut all = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file)?;
        all.push(parse(&text).with_context(|| format!("{} is no certificate", file.display()))?);
    }
    all.sort_by(|a, b| a.backend.cmp(&b.backend));
    ensure!(!all.is_empty(), "there are no certificates");
    Ok(all)
}

fn parse(text: &str) -> Option<Certificate> {
    let mut certificate =
        Certificate { backend: String::new(), capabilities: Vec::new(), cases: BTreeMap::new() };
    let mut section = "";
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[') {
            section = name.strip_suffix(']')?;
            continue;
        }
        let (key, value) = line.split_once('=')?;
        let (key, value) = (key.trim().trim_matches('"'), value.trim().trim_matches('"'));
        match section {
            "" if key == "backend" => value.clone_into(&mut certificate.backend),
            "capabilities" => certificate.capabilities.push((key.to_owned(), value.to_owned())),
            "cases" => {
                let how = value.split([':', ' ']).next().unwrap_or(value);
                *certificate.cases.entry(how.to_owned()).or_default() += 1;
            }
            _ => {}
        }
    }
    (!certificate.backend.is_empty()).then_some(certificate)
}

fn table(certificates: &[Certificate]) -> String {
    let row = |first: &str, cells: Vec<String>| format!("| {first} | {} |\n", cells.join(" | "));
    let mut out = row("", certificates.iter().map(|c| format!("`{}`", c.backend)).collect());
    out += &row("---", certificates.iter().map(|_| "---".to_owned()).collect());
    let names = certificates.first().map(|c| c.capabilities.iter().map(|(name, _)| name.as_str()));
    for name in names.into_iter().flatten() {
        let value = |c: &Certificate| c.capabilities.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
        let title = name.replace(['_', '.'], " ");
        out += &row(&title, certificates.iter().map(|c| value(c).unwrap_or_default()).collect());
    }
    let cases = |c: &Certificate| {
        let counts: Vec<_> = c.cases.iter().map(|(how, count)| format!("{count} {how}")).collect();
        counts.join(", ")
    };
    out += &row("cases of the kit", certificates.iter().map(cases).collect());
    out
}

fn replaced(text: &str, table: &str) -> Result<String> {
    let (before, rest) = text.split_once(BEGIN).context("the README has no place for the matrix")?;
    let (_, after) = rest.split_once(END).context("the matrix in the README has no end")?;
    Ok(format!("{before}{BEGIN}\n{table}{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_becomes_a_column() {
        let text = "# why\nbackend = \"x\"\n[capabilities]\nnamed = \"native\"\n\"replay.first\" = \"absent\"\n[cases]\n\"a/b\" = \"run\"\n\"a/c\" = \"run\"\n\"a/d\" = \"skip: no chaos\"\n";
        let table = table(&[parse(text).unwrap()]);
        assert!(
            table.contains("|  | `x` |\n| --- | --- |\n| named | native |\n| replay first | absent |\n"),
            "{table}"
        );
        assert!(table.ends_with("| cases of the kit | 2 run, 1 skip |\n"), "{table}");
        assert!(parse("[capabilities]\n").is_none());
        let text = format!("a\n{BEGIN}\nold\n{END}\nb\n");
        assert_eq!(replaced(&text, "new\n").unwrap(), format!("a\n{BEGIN}\nnew\n{END}\nb\n"));
        assert!(replaced("a", "new").is_err());
    }
}

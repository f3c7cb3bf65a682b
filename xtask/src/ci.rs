//! What a pull request must pass.

use crate::args::Args;
use crate::{sh, test_all};
use anyhow::Result;
use postroad_testbed::run::which;

/// `cargo xtask ci`. The checks that `test-all` has no place for come first: its last lines count.
pub(crate) fn run(raw: &[String]) -> Result<()> {
    Args::parse(raw, &["allow-missing"], &[])?;
    let mut doc = sh::cargo();
    doc.args(["doc", "--workspace", "--no-deps", "--quiet"]).env("RUSTDOCFLAGS", "-D warnings");
    sh::show(&mut doc)?;
    if which("cargo-deny").is_some() {
        sh::show(sh::cargo().args(["deny", "check"]))?;
    } else {
        println!("ci: cargo-deny is not installed: licences and advisories were not checked");
    }
    test_all::run(raw)
}

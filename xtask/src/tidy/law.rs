//! One way down: which crate may depend on which.

use super::Package;
use crate::sh;
use anyhow::Result;

const CORE: &[&str] = &["core"];
const SERVER: &[&str] = &["core", "engine"];
/// Everything below the servers: what the testbed may use.
const BELOW_SERVERS: &[&str] =
    &["core", "journal", "engine", "streams", "nats", "amqp", "route", "conformance"];
/// What the tests of any crate may use besides.
const TEST_KIT: &[&str] = &["conformance", "sim", "testbed"];

/// What a crate may depend on; `None` if there is no law for it yet.
fn allowed(name: &str) -> Option<&'static [&'static str]> {
    Some(match name {
        "core" => &[],
        "journal" | "streams" | "nats" | "amqp" | "route" | "conformance" => CORE,
        "engine" => &["core", "journal"],
        "jsonlog" | "rpc" => SERVER,
        // The client's outbox and inbox are journals of their own.
        "mqtt" => &["core", "journal", "engine"],
        // A server may speak through the client of its own protocol.
        "stan" => &["core", "engine", "nats"],
        "gateway" => &["core", "engine", "amqp"],
        // Whole brokers live in it: the sessions of every server, without their sockets.
        "sim" => &["core", "journal", "engine", "jsonlog", "mqtt"],
        "testbed" => BELOW_SERVERS,
        _ => return None,
    })
}

/// `postroad-x` is `x`; other crates are not ours.
fn ours(name: &str) -> Option<&str> {
    name.strip_prefix("postroad-")
}

/// The dependencies that break the law.
pub(crate) fn check(packages: &[Package]) -> Vec<String> {
    let mut wrong = Vec::new();
    for package in packages {
        match (package.name.as_str(), ours(&package.name)) {
            // The binary knows everybody.
            ("postroad", _) => {}
            (_, Some(name)) => match allowed(name) {
                Some(allowed) => wrong.extend(broken(package, name, allowed)),
                None => wrong.push(format!(
                    "{}: no law says what it may depend on (xtask/src/tidy/law.rs)",
                    package.name
                )),
            },
            // Tools see the product from outside; they bring brokers up as its tests do.
            (_, None) => wrong.extend(broken(package, "", &["testbed"])),
        }
    }
    wrong
}

fn broken(package: &Package, name: &str, allowed: &[&str]) -> Vec<String> {
    let mut wrong = Vec::new();
    for need in &package.needs {
        let needed = match need.name.as_str() {
            "postroad" => "postroad",
            other => match ours(other) {
                Some(needed) => needed,
                None => continue,
            },
        };
        let fine = allowed.contains(&needed) || need.dev && (needed == name || TEST_KIT.contains(&needed));
        if !fine {
            wrong.push(format!("{} must not depend on {}", package.name, need.name));
        }
    }
    wrong
}

/// The core does no I/O: no runtime and no TLS anywhere below it.
pub(crate) fn check_core_is_pure() -> Result<Vec<String>> {
    let args =
        ["tree", "--package", "postroad-core", "--edges", "normal", "--prefix", "none", "--format", "{p}"];
    let tree = sh::output(sh::cargo().args(args))?;
    Ok(impure(&tree))
}

fn impure(tree: &str) -> Vec<String> {
    const IO: [&str; 6] = ["tokio", "rustls", "mio", "async-std", "hyper", "socket2"];
    let names = tree.lines().filter_map(|line| line.split(' ').next());
    let mut found: Vec<&str> = names.filter(|name| IO.contains(name)).collect();
    found.sort_unstable();
    found.dedup();
    found.iter().map(|name| format!("postroad-core must not bring {name}")).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{Need, Package};
    use super::{check, impure};

    fn package(name: &str, needs: &[&str]) -> Package {
        let needs = needs.iter().map(|need| match need.strip_prefix("dev:") {
            Some(name) => Need { name: name.into(), dev: true },
            None => Need { name: (*need).into(), dev: false },
        });
        Package { name: name.into(), manifest: "Cargo.toml".into(), needs: needs.collect() }
    }

    #[test]
    fn lawful_dependencies_pass() {
        let packages = [
            package("postroad-core", &["bytes", "dev:proptest"]),
            package("postroad-jsonlog", &["postroad-core", "postroad-engine", "tokio", "dev:postroad-sim"]),
            package("postroad-stan", &["postroad-nats"]),
            package("postroad", &["postroad-jsonlog", "postroad-journal"]),
            package("xtask", &["anyhow"]),
        ];
        assert_eq!(check(&packages), [""; 0]);
    }

    #[test]
    fn every_kind_of_breach_is_named() {
        for (name, need) in [
            ("postroad-core", "postroad-journal"),
            ("postroad-journal", "postroad-engine"),
            ("postroad-jsonlog", "postroad-journal"),
            ("postroad-jsonlog", "postroad-mqtt"),
            ("postroad-nats", "postroad-engine"),
            ("postroad-route", "postroad-engine"),
            ("postroad-engine", "postroad"),
            ("postroad-engine", "dev:postroad-jsonlog"),
            ("xtask", "postroad-core"),
        ] {
            let wrong = check(&[package(name, &[need])]);
            assert_eq!(wrong.len(), 1, "{name} needs {need}");
        }
        assert_eq!(check(&[package("postroad-new", &[])]).len(), 1);
    }

    #[test]
    fn a_runtime_below_core_is_seen() {
        assert_eq!(impure("postroad-core v0.1.0\nbytes v1.0\n"), [""; 0]);
        assert_eq!(
            impure("postroad-core v0.1.0\ntokio v1.0\ntokio v1.0 (*)\n"),
            ["postroad-core must not bring tokio"]
        );
    }
}

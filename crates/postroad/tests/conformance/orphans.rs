//! A server ends with its test, however that ends.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::{Server, eventually};

const HOLD: &str = "POSTROAD_TEST_HOLD";

#[test]
#[ignore = "started by the test below, which kills it"]
fn holds_a_server() {
    if std::env::var_os(HOLD).is_some() {
        let server = Server::start();
        server.pause();
        println!("\nholding {} {}", server.pid(), server.home().display());
        std::thread::sleep(Duration::from_secs(60));
    }
}

#[test]
fn nothing_outlives_a_killed_test() {
    let mut test = Command::new(std::env::current_exe().expect("this test"))
        .args(["--ignored", "--exact", "--nocapture", "orphans::holds_a_server"])
        .env(HOLD, "1")
        .stdout(Stdio::piped())
        .spawn()
        .expect("this test starts");
    let mut lines = BufReader::new(test.stdout.take().expect("a pipe")).lines();
    let said = lines.find_map(|line| Some(line.expect("text").strip_prefix("holding ")?.to_owned()));
    let said = said.expect("it holds a server");
    let (pid, home) = said.split_once(' ').expect("a number and a directory");
    let process = format!("/proc/{pid}");
    assert!(Path::new(&process).exists() && Path::new(home).exists());
    test.kill().expect("kill");
    test.wait().expect("wait");
    eventually("the server is gone", || !Path::new(&process).exists());
    eventually("its files are gone", || !Path::new(home).exists());
}

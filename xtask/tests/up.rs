//! `cargo xtask up`, `status` and `down` after a boot: the state file names processes that are gone, and ports on which
//! somebody else listens by now.
#![cfg(target_os = "linux")]

use postroad_testbed::{Broker, Mode, Options, Testbed, places};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

/// What a command prints, and whether it succeeded; its state is below `target`.
fn xtask(target: &Path, args: &[&str]) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    let out = command.args(args).env("CARGO_TARGET_DIR", target).output().unwrap();
    let text = [out.stdout, out.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    println!("xtask {}: {}\n{text}", args.join(" "), out.status);
    (out.status.success(), text)
}

fn number_after<T: std::str::FromStr>(text: &str, before: &str) -> T
where
    T::Err: std::fmt::Debug,
{
    let (_, rest) = text.split_once(before).unwrap();
    rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap()
}

struct Down<'a>(&'a Path);

impl Drop for Down<'_> {
    fn drop(&mut self) {
        let down =
            Command::new(env!("CARGO_BIN_EXE_xtask")).arg("down").env("CARGO_TARGET_DIR", self.0).status();
        assert!(std::thread::panicking() || down.unwrap().success());
    }
}

#[test]
fn a_broker_that_a_boot_has_ended_is_noticed_and_started_anew() {
    // Its program is fetched where everybody's are, so that this fetches nothing.
    drop(Testbed::start(Broker::Redis, &Options { mode: Some(Mode::Native), ..Options::default() }).unwrap());
    let target = tempfile::tempdir().unwrap();
    if places::peers().is_dir() {
        std::os::unix::fs::symlink(places::peers(), target.path().join("peers")).unwrap();
    }
    // Also when this test fails.
    let _down = Down(target.path());
    let up = || {
        let (up, text) = xtask(target.path(), &["up", "--native", "redis"]);
        assert!(up, "{text}");
        (number_after::<i32>(&text, "pid "), number_after::<u16>(&text, "redis://127.0.0.1:"))
    };
    let boot = |pid: i32, port: u16| {
        rustix::process::kill_process_group(
            rustix::process::Pid::from_raw(pid).unwrap(),
            rustix::process::Signal::KILL,
        )
        .unwrap();
        let bound = (0..2000).find_map(|_| {
            std::thread::sleep(std::time::Duration::from_millis(5));
            TcpListener::bind(("127.0.0.1", port)).ok()
        });
        let listener = bound.expect("the port is free when the server is gone");
        // Somebody else's server.
        std::thread::spawn(move || {
            for mut client in listener.incoming().flatten() {
                let _ = client.read(&mut [0; 100]);
                let _ = client.write_all(b"+PONG\r\n");
            }
        });
    };

    let first = up();
    assert_eq!(up(), first, "it stands already");
    assert!(xtask(target.path(), &["status"]).0);
    boot(first.0, first.1);
    let second = up();
    assert!(second.0 != first.0 && second.1 != first.1, "{first:?}, {second:?}");

    boot(second.0, second.1);
    let (well, text) = xtask(target.path(), &["status"]);
    assert!(!well && text.contains("is gone"), "{text}");
    let (well, text) = xtask(target.path(), &["status"]);
    assert!(well && text.contains("nothing is up"), "{text}");
    let runs = std::fs::read_dir(target.path().join("testbed/runs")).unwrap().flatten();
    assert_eq!(runs.map(|entry| entry.file_name()).collect::<Vec<_>>(), [""; 0]);
}

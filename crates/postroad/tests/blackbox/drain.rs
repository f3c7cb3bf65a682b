//! SIGTERM, and two servers on one directory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::kill9::under_load;
use crate::model::Truth;
use crate::support::{Client, PATIENCE, Server, Setup, alone, seed, turn};

#[test]
fn a_drain_under_load_keeps_every_promise() {
    let _turn = turn();
    let mut rng = seed("a_drain_under_load_keeps_every_promise");
    let mut server = Server::start();
    let truth = Arc::new(Truth::default());
    server.client().ok("sub k/* as g group from=first prefetch=1");
    for _ in 0..5 {
        let mut idle = server.client();
        idle.ok("sub k/a as idle prefetch=1");
        let mut quiet = server.client();
        quiet.raw(b"pub t {\"half\":");
        let pause = Duration::from_millis(rng.u64(50..300));
        under_load(&mut server, &truth, &mut rng, |server| {
            std::thread::sleep(pause);
            let begin = Instant::now();
            server.terminate();
            let status = server.wait_exit(PATIENCE);
            assert_eq!(status.code(), Some(0));
            println!("drained in {:?}", begin.elapsed());
            assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
        });
        idle.expect_bye("shutting-down");
        quiet.expect_bye("shutting-down");
        server.restart();
        truth.check_logs(&mut server.client(), true);
    }
    truth.check_group(&mut server.client());
}

#[test]
fn commands_after_the_signal_are_answered_or_not_done() {
    let _turn = turn();
    let mut server = Server::start();
    let mut client = server.client();
    client.ok("pub t {\"n\":1}");
    let batch = "pub t {\"n\":2}\n".repeat(20_000);
    let mut writer = client.stream().try_clone().expect("clone");
    let sender = std::thread::spawn(move || {
        let _ = std::io::Write::write_all(&mut writer, batch.as_bytes());
    });
    std::thread::sleep(Duration::from_millis(50));
    server.terminate();
    let mut stored = 1;
    let mut refused = false;
    while let Some(reply) = client.try_reply() {
        if reply.starts_with("err shutting-down ") {
            refused = true;
            continue;
        }
        assert!(!refused, "{reply} after shutting-down");
        stored += 1;
        assert_eq!(reply, format!("ok {stored}"));
    }
    assert!(
        client.bye.as_deref().is_some_and(|bye| bye.starts_with("bye shutting-down")),
        "{:?}",
        client.bye
    );
    assert_eq!(server.wait_exit(PATIENCE).code(), Some(0));
    sender.join().expect("sender");
    server.restart();
    assert_eq!(
        server.client().peek("t", "last").seq,
        stored,
        "a publish that was not answered with ok is there"
    );
}

#[test]
fn an_idle_server_ends_at_once() {
    let _turn = alone();
    let mut server = Server::start();
    let begin = Instant::now();
    server.terminate();
    assert_eq!(server.wait_exit(PATIENCE).code(), Some(0));
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    server.restart();
    let mut clients: Vec<Client> = (0..100).map(|_| server.client()).collect();
    clients[0].ok("sub t prefetch=10");
    clients[0].ok("pub t {}");
    clients[0].expect("t", 1, 1);
    let begin = Instant::now();
    server.terminate();
    for client in &mut clients {
        client.expect_bye("shutting-down");
    }
    assert_eq!(server.wait_exit(PATIENCE).code(), Some(0));
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    assert!(server.try_client().is_err(), "the port is closed");
}

/// Peers that never read cannot hold up the end for ever.
#[test]
fn a_deaf_peer_does_not_stop_the_end() {
    let _turn = alone();
    let mut server = Setup::config("[jsonlog]\nwrite_timeout = \"2s\"\n").start();
    let mut deaf = server.client();
    deaf.ok("sub t prefetch=1000");
    let mut client = server.client();
    for _ in 0..60 {
        client.publish("t", &format!("{{\"pad\":\"{}\"}}", "x".repeat(200_000)));
    }
    let begin = Instant::now();
    server.terminate();
    assert_eq!(server.wait_exit(Duration::from_secs(30)).code(), Some(0));
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
}

#[test]
fn one_directory_one_server() {
    let _turn = turn();
    let mut first = Server::start();
    first.client().ok("pub t {\"n\":1}");
    let mut second = Setup::default().data(first.data()).launch();
    let status = second.wait_exit(PATIENCE);
    assert!(status.code().is_some_and(|code| code != 0), "{status}");
    let stderr = second.stderr();
    assert!(!stderr.contains("panicked"), "{stderr}");
    let data = first.data().to_string_lossy().into_owned();
    assert!(stderr.contains(&data), "the message does not name the directory: {stderr}");
    let lower = stderr.to_lowercase();
    assert!(["lock", "in use", "already", "another"].iter().any(|word| lower.contains(word)), "{stderr}");
    assert_eq!(first.client().publish("t", "{\"n\":2}"), 2);
    first.kill9();
    second.restart();
    assert_eq!(second.client().peek("t", "last").seq, 2);
}

#[test]
fn a_taken_port_is_an_error_with_its_name() {
    let _turn = turn();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = taken.local_addr().expect("address").port();
    let home = tempfile::tempdir().expect("temp dir");
    let done = std::process::Command::new(env!("CARGO_BIN_EXE_postroad"))
        .args([
            "serve",
            "--mqtt",
            "off",
            "--http",
            "off",
            "--lines",
            "off",
            "--jsonlog",
            &format!("127.0.0.1:{port}"),
            "--data",
        ])
        .arg(home.path().join("data"))
        .current_dir(home.path())
        .output()
        .expect("starts");
    let stderr = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.code().is_some_and(|code| code != 0), "{}", done.status);
    assert!(stderr.contains(&port.to_string()) && !stderr.contains("panicked"), "{stderr}");
}

#[test]
fn a_data_directory_that_is_none() {
    let _turn = turn();
    let home = tempfile::tempdir().expect("temp dir");
    let file = home.path().join("file");
    std::fs::write(&file, "not a directory").expect("written");
    for data in [file.clone(), file.join("below"), "/proc/nothing/here".into()] {
        let mut server = Setup::default().data(&data).launch();
        let status = server.wait_exit(PATIENCE);
        assert!(status.code().is_some_and(|code| code != 0), "{}: {status}", data.display());
        let stderr = server.stderr();
        assert!(stderr.contains(&*data.to_string_lossy()) && !stderr.contains("panicked"), "{stderr}");
    }
    assert_eq!(std::fs::read_to_string(&file).expect("still there"), "not a directory");
}

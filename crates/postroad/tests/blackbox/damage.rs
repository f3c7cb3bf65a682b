//! Log files that are cut, flipped, or gone. Never a wrong event, never silently fewer, never a panic.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::{Client, PATIENCE, Server, Setup, seed, turn};

const CONFIG: &str = "[journal]\nsegment_bytes = 65536\npreallocate = false\n";

fn event(n: u64) -> String {
    format!("{{\"id\":\"e{n}\",\"pad\":\"{}\"}}", "x".repeat(500))
}

/// A stopped (or killed) server with `count` events in `t` and one in `other`, over several segments.
fn filled(count: u64, killed: bool) -> Server {
    let mut server = Setup::config(CONFIG).start();
    let mut client = server.client();
    client.publish("other", "{\"n\":1}");
    for n in 1..=count {
        assert_eq!(client.publish("t", &event(n)), n);
    }
    if killed {
        server.kill9();
    } else {
        server.terminate();
        assert!(server.wait_exit(PATIENCE).success());
    }
    server
}

/// The segments of `t`, oldest first.
fn segments(server: &Server) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = server
        .segments()
        .into_iter()
        .filter(|path| {
            fs::read_to_string(path)
                .is_ok_and(|text| text.contains("\"i\":\"e") || text.contains("\"id\":\"e"))
        })
        .collect();
    found.sort();
    found
}

fn verify(dir: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_postroad"))
        .args(["journal", "verify"])
        .arg(dir)
        .output()
        .expect("starts")
}

/// Starts; a server that refuses must say which file, and that is an answer too.
fn start_or_refuse(server: &mut Server, file: &Path) -> bool {
    server.respawn();
    loop {
        if server.try_client().is_ok() {
            return true;
        }
        if !server.alive() {
            let stderr = server.stderr();
            let name = file.file_name().expect("a name").to_string_lossy().into_owned();
            assert!(stderr.contains(&name) && !stderr.contains("panicked"), "no word of {name}:\n{stderr}");
            return false;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// Every event is there as it was, or `corrupt` is said in its place; how often it is said.
fn read_all(client: &mut Client, count: u64) -> u64 {
    let mut corrupt = 0;
    for seq in 1..=count {
        let reply = client.cmd(&format!("peek t @{seq}"));
        if reply.starts_with("err corrupt ") {
            corrupt += 1;
        } else {
            assert_eq!(reply, format!("event t {seq} 0 {}", event(seq)));
        }
    }
    corrupt
}

#[test]
fn a_torn_tail_is_cut() {
    let _turn = turn();
    let mut rng = seed("a_torn_tail_is_cut");
    let count = 50;
    let mut server = filled(count, true);
    let path = segments(&server).pop().expect("a segment");
    let whole = fs::read(&path).expect("a segment");
    let text_end = whole.iter().rposition(|byte| *byte == b'}').expect("a record") + 1;
    let record = event(1).len();
    for round in 0..8 {
        let mut bytes = whole.clone();
        let cut = text_end - rng.usize(1..record);
        bytes.truncate(cut);
        match round % 4 {
            0 => {}
            1 => bytes.extend([0; 4096]),
            2 => bytes.extend((0..300).map(|_| rng.u8(..))),
            _ => bytes.extend(b"\n\n\n{\"s\":"),
        }
        fs::write(&path, &bytes).expect("written");
        server.restart();
        let mut client = server.client();
        let last = client.peek("t", "last").seq;
        assert!(
            last >= count - 2 && last < count,
            "{last} of {count} after cutting {} bytes",
            text_end - cut
        );
        assert_eq!(read_all(&mut client, last), 0);
        assert_eq!(client.publish("t", "{\"after\":true}"), last + 1);
        // Killed first: a connection that ends counts an attempt.
        server.bounce9();
        drop(client);
        let mut client = server.client();
        assert_eq!(read_all(&mut client, last), 0);
        assert_eq!(client.peek("t", "last").json, "{\"after\":true}");
        assert_eq!(client.publish("other", "{}"), 2 + round);
        server.kill9();
        // Back to the start: later files of this round go, the segment gets its old bytes.
        for later in segments(&server).into_iter().filter(|other| *other > path) {
            fs::remove_file(later).expect("removed");
        }
    }
}

#[test]
fn a_flipped_bit_is_found() {
    let _turn = turn();
    let mut rng = seed("a_flipped_bit_is_found");
    let count = 400;
    let mut server = filled(count, false);
    let files = segments(&server);
    assert!(files.len() >= 3, "{files:?}");
    let done = verify(server.data());
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    for round in 0..8 {
        let path = &files[rng.usize(..files.len() - 1)];
        let whole = fs::read(path).expect("a segment");
        let mut bytes = whole.clone();
        let at = rng.usize(..bytes.len());
        bytes[at] ^= 1 << rng.u8(0..8);
        fs::write(path, &bytes).expect("written");
        let what = format!("round {round}: byte {at} of {}", path.display());
        let done = verify(server.data());
        let said =
            String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
        assert!(done.status.code().is_some_and(|code| code != 0), "{what}: verify found nothing: {said}");
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        assert!(said.contains(&name) && !said.contains("panicked"), "{what}: {said}");
        if start_or_refuse(&mut server, path) {
            let mut client = server.client();
            assert_eq!(client.peek("other", "last").json, "{\"n\":1}", "{what}");
            assert!(read_all(&mut client, count) > 0, "{what}: nobody noticed");
            // A subscriber is told, and gets no wrong event.
            client.ok("sub t from=first prefetch=1000");
            while let Some(got) = client.try_event(std::time::Duration::from_millis(200)) {
                assert_eq!(got.json, event(got.seq), "{what}");
            }
            assert!(
                client.notes.iter().any(|note| note.starts_with("note corrupt t ")),
                "{what}: {:?}",
                client.notes
            );
            server.kill9();
        }
        // Nothing was thrown away or repaired behind our back.
        assert!(
            fs::read(path).is_ok_and(|now| now == bytes),
            "{what}: the damaged file was changed or moved"
        );
        fs::write(path, &whole).expect("written");
    }
    server.restart();
    assert_eq!(read_all(&mut server.client(), count), 0);
}

#[test]
fn a_lost_segment_is_missed() {
    let _turn = turn();
    let count = 400;
    let mut server = filled(count, false);
    let files = segments(&server);
    assert!(files.len() >= 3, "{files:?}");
    let lost = fs::read(&files[1]).expect("a segment");
    fs::remove_file(&files[1]).expect("removed");
    assert!(!verify(server.data()).status.success(), "verify does not miss a segment");
    if start_or_refuse(&mut server, &files[1]) {
        assert!(read_all(&mut server.client(), count) > 0, "nobody noticed");
        server.kill9();
    }
    fs::write(&files[1], lost).expect("written");
    server.restart();
    assert_eq!(read_all(&mut server.client(), count), 0);
}

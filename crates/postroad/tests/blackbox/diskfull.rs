//! A full disk: publishing stops with a clear error, acks go on, and it heals by itself.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::model::read_log;
use crate::support::{Client, Item, PATIENCE, Server, Setup, eventually, missing, turn};

/// A small file system in memory, unmounted with the test.
struct SmallDisk {
    path: PathBuf,
    _home: tempfile::TempDir,
}

impl SmallDisk {
    fn mount(kib: u32) -> Option<Self> {
        let home = tempfile::tempdir().expect("temp dir");
        let path = home.path().join("disk");
        fs::create_dir(&path).expect("mount point");
        let done = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={kib}k"), "tmpfs"])
            .arg(&path)
            .output()
            .expect("mount starts");
        if !done.status.success() {
            missing(&format!(
                "a small disk cannot be mounted: {}",
                String::from_utf8_lossy(&done.stderr).trim()
            ));
            return None;
        }
        Some(Self { path, _home: home })
    }

    fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }

    /// A file of somebody else's takes the space.
    fn take(&self, kib: usize) {
        fs::write(self.ballast(), vec![b'b'; kib * 1024]).expect("there is room for the ballast");
    }

    /// ... to the last byte.
    fn take_all(&self) {
        let mut file = fs::File::create(self.ballast()).expect("ballast");
        while file.write_all(&[b'b'; 4096]).is_ok() {}
        while file.write_all(b"b").is_ok() {}
    }

    fn give_back(&self) {
        fs::remove_file(self.ballast()).expect("ballast");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

const CONFIG: &str = "[journal]\nsegment_bytes = 262144\ndisk_floor = 524288\n";

fn start(disk: &Path) -> Server {
    Setup::config(CONFIG).data(&disk.join("data")).start()
}

fn event(n: usize) -> String {
    format!("{{\"id\":\"e{n}\",\"pad\":\"{}\"}}", "x".repeat(3000))
}

/// Publishes until the disk is full; `stored` grows by what got `ok`.
fn fill(client: &mut Client, stored: &mut Vec<String>) {
    for _ in 0..5000 {
        let json = event(stored.len() + 1);
        let reply = client.cmd(&format!("pub t {json}"));
        if reply.starts_with("err disk-full ") {
            return;
        }
        stored.push(json);
        assert_eq!(reply, format!("ok {}", stored.len()));
    }
    panic!("5000 events of 3 KB on a disk of 4 MB and no disk-full");
}

fn heal(client: &mut Client, stored: &mut Vec<String>) {
    let json = event(stored.len() + 1);
    eventually("publishing resumes by itself", || {
        let reply = client.cmd(&format!("pub t {json}"));
        assert!(reply.starts_with("ok ") || reply.starts_with("err disk-full "), "{reply}");
        reply.starts_with("ok ")
    });
    stored.push(json);
}

#[test]
fn publishing_stops_acks_go_on_and_it_heals() {
    let _turn = turn();
    let Some(disk) = SmallDisk::mount(4096) else { return };
    disk.take(1024);
    let mut server = start(&disk.path);
    let mut client = server.client();
    let mut consumer = server.client();
    consumer.ok("sub t as n prefetch=1000");
    let mut stored = Vec::new();
    fill(&mut client, &mut stored);
    assert!(stored.len() > 100, "full after {} events", stored.len());

    // Full: every publish says so, everything else works.
    let events = [event(0), event(0)];
    assert!(client.bulk("t", &events).starts_with("err disk-full "));
    client.err("pub other {}", "disk-full");
    for seq in 1..=stored.len() as u64 {
        assert_eq!(consumer.expect("t", seq, 1).json, stored[seq as usize - 1]);
    }
    let mut acked = 0;
    for seq in 1..=60 {
        consumer.ok(&format!("ack t @{seq}"));
        acked = seq;
    }
    consumer.ok("nack t @61");
    consumer.expect("t", 61, 2);
    assert_eq!(client.peek("t", "last").seq, stored.len() as u64);
    client.err("pub t {}", "disk-full");

    // Acks that were ok on a full disk survive there.
    server.bounce9();
    let mut client = server.client();
    let mut consumer = server.client();
    consumer.ok("sub t as n prefetch=1000");
    assert_eq!(consumer.event().seq, acked + 1);
    client.err("pub t {}", "disk-full");

    disk.give_back();
    heal(&mut client, &mut stored);
    fill(&mut client, &mut stored);
    server.bounce9();
    assert_eq!(read_log(&mut server.client(), "t", 1), stored);
}

/// Not one byte is left, again and again: a publish is still answered, at once.
#[test]
fn a_publish_without_a_byte_left_is_answered() {
    let _turn = turn();
    let Some(disk) = SmallDisk::mount(4096) else { return };
    let server = start(&disk.path);
    let mut client = server.client();
    let mut stored = Vec::new();
    for round in 0..5 {
        println!("round {round}: {} stored", stored.len());
        heal(&mut client, &mut stored);
        disk.take_all();
        // What is left in files that were allocated before may still be used.
        fill(&mut client, &mut stored);
        client.err(&format!("pub new/topic {}", event(0)), "disk-full");
        assert!(client.bulk("t", &[event(0), event(0)]).starts_with("err disk-full "));
        disk.give_back();
    }
}

/// Publishes until there is an error, or no answer for a while; true when an answer is still due.
fn fill_patiently(client: &mut Client, stored: &mut Vec<String>) -> bool {
    for _ in 0..5000 {
        let json = event(stored.len() + 1);
        client.send(&format!("pub t {json}"));
        match client.next(Duration::from_millis(500)) {
            Item::Reply(reply) if reply.starts_with("err disk-full ") => return false,
            Item::Reply(reply) => assert_eq!(reply, format!("ok {}", stored.len() + 1)),
            Item::Silence => return true,
            other => panic!("{other:?}"),
        }
        stored.push(json);
    }
    panic!("5000 events of 3 KB on a disk of 4 MB and no disk-full");
}

/// Answers may wait for space here, but they come, and every `ok` holds: over a stop, and over a crash in the middle.
#[test]
fn the_last_byte_goes_to_somebody_else() {
    let _turn = turn();
    let Some(disk) = SmallDisk::mount(4096) else { return };
    let mut server = start(&disk.path);
    let mut client = server.client();
    let mut consumer = server.client();
    consumer.ok("sub t as n prefetch=1000");
    let mut stored = Vec::new();
    for n in 1..=100 {
        stored.push(event(n));
        client.ok(&format!("pub t {}", stored[n - 1]));
        consumer.expect("t", n as u64, 1);
    }
    // Acked for sure, and perhaps.
    let (mut acked, mut asked) = (Vec::new(), Vec::new());
    for round in 0..3 {
        println!("round {round}: {} stored, {} acked", stored.len(), acked.len());
        disk.take_all();
        let pending = fill_patiently(&mut client, &mut stored);
        let seqs: Vec<u64> = (round * 20 + 1..=round * 20 + 20).collect();
        consumer.raw(seqs.iter().map(|seq| format!("ack t @{seq}\n")).collect::<String>().as_bytes());
        std::thread::sleep(Duration::from_millis(300));
        assert!(server.alive());
        if round == 1 {
            // A crash while there is no byte left; the next start has none either.
            server.kill9();
            server.respawn();
            std::thread::sleep(Duration::from_millis(500));
            let started = server.alive();
            disk.give_back();
            if started {
                server.wait_ready();
            } else {
                let stderr = server.stderr();
                assert!(!stderr.contains("panicked"), "{stderr}");
                assert!(stderr.to_lowercase().contains("space") || stderr.contains("disk"), "{stderr}");
                server.restart();
            }
        } else {
            disk.give_back();
            if pending {
                let reply = client.reply();
                if !reply.starts_with("err disk-full ") {
                    assert_eq!(reply, format!("ok {}", stored.len() + 1));
                    stored.push(event(stored.len() + 1));
                }
            }
        }
        while let Some(reply) = (seqs.len() > acked.len() + asked.len() - round as usize * 20)
            .then(|| consumer.try_reply())
            .flatten()
        {
            let seq = seqs[acked.len() + asked.len() - round as usize * 20];
            assert!(reply == "ok" || reply.starts_with("err disk-full "), "{reply}");
            if reply == "ok" { acked.push(seq) } else { asked.push(seq) }
        }
        // No answer, because of the crash.
        asked.extend(
            seqs.iter()
                .filter(|seq| !acked.contains(seq) && !asked.contains(seq))
                .copied()
                .collect::<Vec<_>>(),
        );
        if round == 1 {
            client = server.client();
            consumer = server.client();
            consumer.ok("sub t as n prefetch=1000");
            // The publish without an answer may be there.
            let last = client.peek("t", "last").seq as usize;
            assert!(
                last == stored.len() || (pending && last == stored.len() + 1),
                "{last} of {}",
                stored.len()
            );
            if last > stored.len() {
                stored.push(event(last));
            }
        }
        heal(&mut client, &mut stored);
    }
    drop(consumer);
    server.terminate();
    assert!(server.wait_exit(PATIENCE).success());
    server.restart();
    let mut client = server.client();
    assert_eq!(read_log(&mut client, "t", 1), stored);
    client.ok("sub t as n prefetch=1000");
    let mut came = Vec::new();
    while let Some(event) = client.try_event(Duration::from_millis(200)) {
        came.push(event.seq);
    }
    for seq in 1..=stored.len() as u64 {
        assert!(
            came.contains(&seq) != acked.contains(&seq) || asked.contains(&seq),
            "{seq}: {came:?} {acked:?}"
        );
    }
}

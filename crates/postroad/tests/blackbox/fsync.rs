//! A disk that is slow, stuck or broken: `ok` means durable, and a failed sync is the end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::kill9::under_load;
use crate::model::{Truth, read_log};
use crate::shim::Shim;
use crate::support::{A_WHILE, Client, Item, PATIENCE, Setup, seed, turn};

/// What a server must say about a broken disk: the last line, clear, and not a panic.
fn check_last_words(stderr: &str) {
    assert!(!stderr.contains("panicked"), "a panic is no message:\n{stderr}");
    let last = stderr.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default().to_lowercase();
    assert!(
        ["sync", "disk", "journal"].iter().any(|word| last.contains(word)),
        "not a clear last line: {last:?}"
    );
}

/// The sync fails in the middle of the load and what it should have written is gone from the files: every `ok` that
/// was seen must have been covered by an earlier sync.
#[test]
fn a_failed_sync_is_the_end_and_nothing_promised_is_lost() {
    let _turn = turn();
    let mut rng = seed("a_failed_sync_is_the_end_and_nothing_promised_is_lost");
    for round in 0..6 {
        let shim = Shim::new();
        // Without preallocation the length of a file says what was synced, and the shim can take the rest away.
        let config = [
            "[journal]\npreallocate = false\n",
            "[journal]\npreallocate = true\n",
            "[journal]\npreallocate = true\ndirect_io = false\n",
        ][round % 3];
        let mut server = shim.with(Setup::config(config)).start();
        let truth = Arc::new(Truth::default());
        server.client().ok("sub k/* as g group from=first prefetch=1");
        let mut idle = server.client();
        let pause = Duration::from_millis(rng.u64(100..400));
        under_load(&mut server, &truth, &mut rng, |server| {
            std::thread::sleep(pause);
            shim.on("fail");
            let status = server.wait_exit(PATIENCE);
            assert!(status.code().is_some_and(|code| code != 0), "round {round}: {status}");
        });
        assert!(shim.has_failed());
        idle.expect_bye("failed");
        check_last_words(&server.stderr());
        server.restart_plain();
        truth.check_logs(&mut server.client(), true);
        truth.check_group(&mut server.client());
        assert!(truth.stored() > 20, "too little load: {}", truth.summary());
    }
}

/// The sync behind `command` fails: no `ok`, a bye, an end with a message, and what was promised before is there.
fn fails_for_good(command: &str) {
    println!("{command}");
    let shim = Shim::new();
    let mut server = shim.with(Setup::config("")).start();
    let mut client = server.client();
    client.ok("sub t as n from=first prefetch=2");
    client.ok("pub t {\"n\":0}");
    client.ok("pub t {\"n\":1}");
    client.expect("t", 1, 1);
    client.expect("t", 2, 1);
    if !command.ends_with("first dead letter") {
        client.ok("bury t @1");
    }
    shim.on("fail");
    client.send(command);
    while let Some(reply) = client.try_reply() {
        assert!(reply.starts_with("err "), "{command}: {reply}");
    }
    let bye = client.bye.clone();
    assert!(bye.as_deref().is_some_and(|bye| bye.starts_with("bye failed")), "{command}: {bye:?}");
    let status = server.wait_exit(PATIENCE);
    assert!(status.code().is_some_and(|code| code != 0), "{command}: {status}");
    check_last_words(&server.stderr());
    server.restart_plain();
    let log = read_log(&mut server.client(), "t", 1);
    assert!(log.len() >= 2 && log[..2] == ["{\"n\":0}", "{\"n\":1}"], "{command}: {log:?}");
}

/// One command at a time, so that the only thing that runs is the promise itself.
#[test]
fn a_failed_sync_answers_nobody_with_ok() {
    let _turn = turn();
    for command in [
        "pub t {\"n\":2}",
        "pubn t 1 8\n{\"n\":2}",
        "ack t @2",
        "bury t @2",
        "sub t as fresh",
        "kick t",
        "unsub t as n forget",
    ] {
        fails_for_good(command);
    }
}

/// The same where the sync belongs to the making of a topic.
#[test]
fn a_failed_sync_of_a_new_topic_is_the_end_too() {
    let _turn = turn();
    for command in
        ["pub u {\"n\":2}", "pubn u 1 8\n{\"n\":2}", "sub u as fresh", "bury t @1 reason=first dead letter"]
    {
        fails_for_good(command);
    }
}

/// While no sync returns, nothing that promises durability is answered, and nobody sees what is not durable.
#[test]
fn nothing_is_promised_while_the_disk_is_stuck() {
    let _turn = turn();
    let shim = Shim::new();
    let server = shim.with(Setup::config("")).start();
    let mut watcher = server.client();
    watcher.ok("sub t prefetch=100");
    let mut client = server.client();
    client.ok("sub t as n prefetch=100");
    for n in 1..=6 {
        client.publish("t", &format!("{{\"id\":\"e{n}\"}}"));
        watcher.expect("t", n, 1);
        client.expect("t", n, 1);
    }
    let mut expected = 6;
    let commands = [
        "pub t {\"x\":1}",
        "pubn t 2 11\n{\"a\":1}\n{}",
        "ack t e1",
        "ack t @2-@3",
        "bury t @4",
        "pub fresh/topic {}",
        "sub v as other",
        "unsub v as other forget",
        "kick t",
    ];
    for command in commands {
        let before = shim.calls();
        shim.on("block");
        client.send(command);
        match client.next(Duration::from_millis(200)) {
            Item::Silence => {}
            other => panic!("{command}: {other:?} before any sync has returned"),
        }
        watcher.no_event(Duration::from_millis(1));
        assert_eq!(shim.calls(), before);
        shim.off("block");
        let reply = client.reply();
        assert!(reply.starts_with("ok"), "{command}: {reply}");
        assert!(shim.calls() > before, "{command}: ok without a sync");
        let published = match command.split(' ').next() {
            Some("pub") if command.starts_with("pub t") => 1,
            Some("pubn") => 2,
            Some("kick") => 1,
            _ => 0,
        };
        for _ in 0..published {
            expected += 1;
            watcher.expect("t", expected, 1);
            client.expect("t", expected, 1);
        }
    }
}

/// In quiet mode nothing says `ok` to a publish, so the next `ok` of any command covers what came before it.
#[test]
fn in_quiet_mode_the_next_ok_waits_for_what_came_before() {
    let _turn = turn();
    let shim = Shim::new();
    let server = shim.with(Setup::config("")).start();
    let mut client = server.client();
    client.publish("t", "{\"n\":1}");
    client.ok("sub t as n from=first prefetch=1");
    client.expect("t", 1, 1);
    client.ok("hello {\"mode\":\"quiet\"}");
    let mut others: Vec<Client> = (0..3).map(|_| server.client()).collect();
    for command in ["pub t {}", "pubn t 2 6\n{}\n{}", "ack t @1"] {
        // Several wait for one commit: after that the session's own thread does not commit, and stays free to answer.
        shim.on("block");
        for other in &mut others {
            other.send("pub u {}");
            std::thread::sleep(Duration::from_millis(20));
        }
        shim.off("block");
        for other in &mut others {
            assert!(other.reply().starts_with("ok "));
        }
        shim.on("block");
        // What answers without a commit of its own.
        client.send(&format!("{command}\ntouch t @1\nhello {{\"mode\":\"quiet\"}}"));
        match client.next(Duration::from_millis(200)) {
            // The ack made room for an event that has been durable for long.
            Item::Silence | Item::Event(_) => {}
            other => panic!("{command}: {other:?} before any sync has returned"),
        }
        shim.off("block");
        let first = client.reply();
        assert!(first == "ok" || first.starts_with("err not-in-flight"), "{command}: {first}");
        assert_eq!(client.reply(), "ok", "{command}");
    }
}

/// A stuck disk stops writers, not the rest: greetings, help, errors and reads are still answered.
#[test]
fn a_stuck_disk_does_not_stop_readers() {
    let _turn = turn();
    stuck(false);
}

/// The same when the writers make new topics.
#[test]
fn a_stuck_disk_with_new_topics_does_not_stop_readers() {
    let _turn = turn();
    stuck(true);
}

fn stuck(new_topics: bool) {
    let shim = Shim::new();
    let server = shim.with(Setup::config("")).start();
    let mut reader = server.client();
    reader.ok("pub t {\"n\":1}");
    let mut writers: Vec<Client> = (0..8).map(|_| server.client()).collect();
    if !new_topics {
        for n in 0..writers.len() {
            reader.ok(&format!("pub t{n} {{}}"));
        }
    }
    shim.on("block");
    for (n, writer) in writers.iter_mut().enumerate() {
        writer.send(&format!("pub t{n} {{}}"));
    }
    std::thread::sleep(A_WHILE);
    let begin = Instant::now();
    let mut fresh = server.client();
    fresh.err("nonsense", "bad-command");
    assert_eq!(reader.peek("t", "first").json, "{\"n\":1}");
    reader.ok("sub t from=first");
    reader.expect("t", 1, 1);
    reader.ok("topics");
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    shim.off("block");
    for writer in &mut writers {
        assert_eq!(writer.reply(), if new_topics { "ok 1" } else { "ok 2" });
    }
}

#[test]
fn every_ok_has_a_sync_before_it_and_many_share_one() {
    let _turn = turn();
    let shim = Shim::new();
    let server = shim.with(Setup::config("")).start();
    let mut client = server.client();
    client.ok("sub t as n");
    for n in 1..=30 {
        let before = shim.calls();
        client.publish("t", "{}");
        assert!(shim.calls() > before, "publish {n} got ok without a sync");
        client.expect("t", n, 1);
        let before = shim.calls();
        client.ok(&format!("ack t @{n}"));
        assert!(shim.calls() > before, "ack {n} got ok without a sync");
    }
    shim.on("delay");
    let begin = Instant::now();
    for _ in 0..20 {
        client.publish("u", "{}");
    }
    assert!(begin.elapsed() >= Duration::from_millis(100), "20 syncs of 5 ms took {:?}", begin.elapsed());
    let (before, begin) = (shim.calls(), Instant::now());
    let mut many: Vec<Client> = (0..10).map(|_| server.client()).collect();
    for client in &mut many {
        client.raw("pub u {}\n".repeat(100).as_bytes());
    }
    for client in &mut many {
        for _ in 0..100 {
            assert!(client.reply().starts_with("ok "));
        }
    }
    let used = shim.calls() - before;
    assert!(used < 200, "1000 publishes, {used} syncs, {:?}: no group commit", begin.elapsed());
}

#[test]
fn sync_os_does_not_sync_for_each_ok_and_survives_a_kill() {
    let _turn = turn();
    let shim = Shim::new();
    let mut server = shim.with(Setup::config("[journal]\nsync = \"os\"\n")).start();
    let mut client = server.client();
    client.publish("t", "{\"n\":1}");
    let before = shim.calls();
    for n in 2..=200 {
        client.publish("t", &format!("{{\"n\":{n}}}"));
    }
    assert!(shim.calls() - before < 10, "{} syncs", shim.calls() - before);
    server.bounce9();
    let log = read_log(&mut server.client(), "t", 1);
    assert_eq!(log.len(), 200);
    assert_eq!(log[199], "{\"n\":200}");
}

/// The n-th sync fails, from the first one of an empty directory on: the server ends with a message or never needed it;
/// it does not hang, and the next start finds what was promised.
#[test]
fn the_nth_sync_fails() {
    let _turn = turn();
    for n in 1..=16 {
        let shim = Shim::new();
        let mut server = shim
            .with(Setup::config("[journal]\nsegment_bytes = 65536\n").env("SHIM_FAIL_AT", n.to_string()))
            .launch();
        let mut acknowledged: Vec<String> = Vec::new();
        let end = Instant::now() + PATIENCE;
        let client = loop {
            match server.try_client() {
                Ok(client) => break Some(client),
                Err(_) if !server.alive() => break None,
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
            assert!(Instant::now() < end, "neither a greeting nor an end when sync {n} fails");
        };
        if let Some(mut client) = client {
            for seq in 1..=40 {
                let event = format!("{{\"n\":{seq},\"pad\":\"{}\"}}", "x".repeat(5000));
                if client.try_send(format!("pub t {event}\n").as_bytes()).is_err() {
                    break;
                }
                match client.try_reply() {
                    Some(reply) if reply == format!("ok {seq}") => acknowledged.push(event),
                    Some(reply) => assert!(reply.starts_with("err "), "sync {n}: {reply}"),
                    None => break,
                }
            }
        }
        assert!(shim.has_failed(), "sync {n} was never made");
        let status = server.wait_exit(PATIENCE);
        assert!(status.code().is_some_and(|code| code != 0), "sync {n}: {status}");
        check_last_words(&server.stderr());
        server.restart_plain();
        let log = read_log(&mut server.client(), "t", 1);
        assert!(log.len() >= acknowledged.len() && log[..acknowledged.len()] == acknowledged[..], "sync {n}");
        assert_eq!(server.client().publish("t", "{}"), log.len() as u64 + 1);
    }
}

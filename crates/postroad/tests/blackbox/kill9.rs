//! `kill -9` at random moments, under load of publishers and a group.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::model::Truth;
use crate::support::{Server, Setup, seed, turn};

/// Runs publishers and consumers until `end` has ended the server; the answer is when all have noticed.
pub(crate) fn under_load(
    server: &mut Server,
    truth: &Arc<Truth>,
    rng: &mut fastrand::Rng,
    end: impl FnOnce(&mut Server),
) {
    let round = truth.next_round();
    let port = server.port();
    let until = Instant::now() + Duration::from_secs(60);
    let mut threads = Vec::new();
    for who in 0..3 {
        let (truth, tag, seed) = (Arc::clone(truth), format!("r{round}p{who}"), rng.u64(..));
        threads.push(std::thread::spawn(move || truth.publisher(port, &tag, seed, who == 2, until)));
    }
    for _ in 0..3 {
        let (truth, seed) = (Arc::clone(truth), rng.u64(..));
        threads.push(std::thread::spawn(move || truth.consumer(port, seed)));
    }
    end(server);
    for thread in threads {
        thread.join().expect("a client found a fault");
    }
}

fn rounds(default: usize) -> usize {
    std::env::var("POSTROAD_KILL_ROUNDS")
        .map_or(default, |text| text.parse().expect("POSTROAD_KILL_ROUNDS is a number"))
}

fn kill_loop(mut server: Server, mut rng: fastrand::Rng, rounds: usize, configs: &[&str]) {
    let truth = Arc::new(Truth::default());
    server.client().ok("sub k/* as g group from=first prefetch=1");
    for round in 0..rounds {
        let pause = Duration::from_millis(rng.u64(20..400));
        under_load(&mut server, &truth, &mut rng, |server| {
            std::thread::sleep(pause);
            server.kill9();
        });
        if !configs.is_empty() {
            server.set_config(configs[rng.usize(..configs.len())]);
        }
        // A kill in the middle of the recovery from the kill.
        while rng.u8(0..3) == 0 {
            server.respawn();
            std::thread::sleep(Duration::from_millis(rng.u64(0..60)));
            server.kill9();
        }
        let begin = Instant::now();
        server.restart();
        let started = begin.elapsed();
        truth.check_logs(&mut server.client(), round + 1 == rounds);
        println!(
            "round {round}: started in {started:?}, checked in {:?}",
            begin.elapsed().saturating_sub(started)
        );
    }
    truth.check_group(&mut server.client());
    assert!(truth.stored() > rounds * 10, "too little load to prove anything: {}", truth.summary());
}

#[test]
fn what_got_ok_survives_kills() {
    let _turn = turn();
    let rng = seed("what_got_ok_survives_kills");
    kill_loop(Server::start(), rng, rounds(10), &[]);
}

/// The same with many small segments, and settings that change from start to start.
#[test]
fn what_got_ok_survives_kills_and_new_settings() {
    let _turn = turn();
    let rng = seed("what_got_ok_survives_kills_and_new_settings");
    let configs = [
        "[journal]\nsegment_bytes = 65536\n",
        "[journal]\nsegment_bytes = 65536\npreallocate = true\n",
        "[journal]\nsegment_bytes = 1048576\npreallocate = true\n",
        "[journal]\nsegment_bytes = 65536\nsync = \"os\"\n",
    ];
    kill_loop(Setup::config(configs[1]).start(), rng, rounds(10), &configs);
}

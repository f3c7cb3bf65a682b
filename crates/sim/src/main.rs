//! Runs worlds and says how many in a second. `cargo xtask sim` builds it with optimisation and starts it.

use postroad_engine::Planted;
use postroad_sim::campaign::{Campaign, Tally, explain};
use postroad_sim::jsonlog::JsonLog;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

const HELP: &str = "\
postroad-sim [--inhabitant jsonlog|mqtt] [--seed N] [--worlds N] [--minutes M] [--threads N] [--plant BUG]

  --inhabitant NAME  whose broker and clients live in the worlds (default jsonlog)

  --seed N     the first seed (default 0); alone: that one world
  --worlds N   at most so many worlds (default 1000; no limit with --minutes)
  --minutes M  at most so long
  --threads N  worlds at once (default: one a core)
  --plant BUG  a defect that the worlds must find: ack-before-sync, cursor-before-commit,
               glue-on-torn-tail, no-crc-check, no-dir-sync; with mqtt: ack-before-commit,
               release-before-record, id-forgotten, complete-before-record, deliver-before-commit,
               letter-after-settle, refusal-forgotten, will-forgotten, line-reply-before-commit,
               line-release-in-two, line-any-pubcomp, line-packet-ids, line-never-park,
               line-never-give-up, line-place-lost, and the last three of those before
";

/// Worlds between two lines of progress.
const CHUNK: u64 = 10_000;

fn planted(name: &str) -> Option<Planted> {
    let mut planted = Planted::default();
    let journal = &mut planted.journal;
    match name {
        "ack-before-sync" => journal.ack_before_sync = true,
        "cursor-before-commit" => planted.cursor_before_commit = true,
        "glue-on-torn-tail" => journal.glue_on_torn_tail = true,
        "no-crc-check" => journal.no_crc_check = true,
        "no-dir-sync" => journal.no_dir_sync = true,
        _ => return None,
    }
    Some(planted)
}

/// The campaign that the words ask for, and the words that plant its defect.
fn parse(words: impl Iterator<Item = String>) -> Result<(Campaign, String), String> {
    let mut campaign = Campaign {
        seed: 0,
        worlds: 1000,
        time: None,
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        planted: Planted::default(),
    };
    let (mut seed, mut worlds) = (None, None);
    let mut plant = String::new();
    let mut words = words;
    while let Some(word) = words.next() {
        let (name, inline) = match word.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (word, None),
        };
        let value = inline.or_else(|| words.next()).ok_or_else(|| format!("{name} needs a value"))?;
        let number = || value.parse::<u64>().map_err(|_| format!("{name} {value}: not a number"));
        match name.as_str() {
            "--seed" => seed = Some(number()?),
            "--worlds" => worlds = Some(number()?),
            "--threads" => campaign.threads = number()? as usize,
            "--minutes" => {
                let minutes: f64 = value.parse().map_err(|_| format!("{name} {value}: not a number"))?;
                let time = Duration::try_from_secs_f64(minutes * 60.0);
                campaign.time = Some(time.map_err(|_| format!("{name} {value}: not a time"))?);
            }
            "--plant" => {
                campaign.planted = planted(&value).ok_or_else(|| format!("no defect is called {value}"))?;
                plant = format!(" --plant {value}");
            }
            _ => return Err(format!("unknown flag {name}")),
        }
    }
    campaign.seed = seed.unwrap_or(0);
    campaign.worlds = match (worlds, campaign.time, seed) {
        (Some(worlds), ..) => worlds,
        (None, Some(_), _) => u64::MAX,
        (None, None, Some(_)) => 1,
        (None, None, None) => campaign.worlds,
    };
    Ok((campaign, plant))
}

fn show(tally: &Tally) {
    let worlds = tally.worlds.max(1) as f64;
    println!(
        "{} worlds in {:.1} s: {:.0} worlds a second; each about {:.0} commands (at least {}), {:.1} kills, {:.0} deliveries",
        tally.worlds,
        tally.took.as_secs_f64(),
        tally.rate(),
        tally.commands as f64 / worlds,
        if tally.worlds == 0 { 0 } else { tally.fewest },
        tally.kills as f64 / worlds,
        tally.deliveries as f64 / worlds,
    );
}

/// Writes `text` below the target directory; says where.
fn keep(seed: u64, text: &str) -> std::io::Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let dir = target.join("sim");
    std::fs::create_dir_all(&dir)?;
    let path = dir.join(format!("seed-{seed}.txt"));
    std::fs::write(&path, text)?;
    Ok(path)
}

/// Worlds of MQTT: what is left of the words without `--inhabitant`.
fn mqtt(words: Vec<String>) -> ExitCode {
    use postroad_sim::mqtt::{Plants, campaign};
    // The defects have names of their own.
    let (mut rest, mut plants, mut plant) = (Vec::new(), Plants::default(), String::new());
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let name = match word.strip_prefix("--plant") {
            Some("") => words.next().unwrap_or_default(),
            Some(value) => value.trim_start_matches('=').to_owned(),
            None => {
                rest.push(word);
                continue;
            }
        };
        let Some(found) = Plants::named(&name) else {
            eprintln!("postroad-sim: no defect of mqtt is called {name}");
            return ExitCode::from(64);
        };
        (plants, plant) = (found, format!(" --plant {name}"));
    }
    let asked = match parse(rest.into_iter()) {
        Ok((asked, _)) => asked,
        Err(why) => {
            eprintln!("postroad-sim: {why}\n\n{HELP}");
            return ExitCode::from(64);
        }
    };
    let Campaign { seed, worlds, time, threads, .. } = asked;
    let (tally, failure) = campaign::Campaign { seed, worlds, time, threads, plants }.run();
    println!("{tally}");
    let Some(failure) = failure else { return ExitCode::SUCCESS };
    // The explanation takes a while.
    println!("seed {}: {}", failure.seed, failure.violation.why);
    println!("{}", campaign::explain(plants, &failure).0);
    println!("again: cargo xtask sim --inhabitant mqtt --seed {}{plant}", failure.seed);
    ExitCode::FAILURE
}

/// Takes `--inhabitant` out of the words.
fn inhabitant(words: &mut Vec<String>) -> String {
    let Some(at) = words.iter().position(|word| word.starts_with("--inhabitant")) else {
        return "jsonlog".into();
    };
    let word = words.remove(at);
    match word.split_once('=') {
        Some((_, name)) => name.into(),
        None if at < words.len() => words.remove(at),
        None => String::new(),
    }
}

fn main() -> ExitCode {
    if std::env::args().nth(1).is_some_and(|word| matches!(word.as_str(), "help" | "--help" | "-h")) {
        print!("{HELP}");
        return ExitCode::SUCCESS;
    }
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    match inhabitant(&mut words).as_str() {
        "jsonlog" => {}
        "mqtt" => return mqtt(words),
        other => {
            eprintln!("postroad-sim: nobody is called {other}\n\n{HELP}");
            return ExitCode::from(64);
        }
    }
    let (campaign, plant) = match parse(words.into_iter()) {
        Ok(parsed) => parsed,
        Err(why) => {
            eprintln!("postroad-sim: {why}\n\n{HELP}");
            return ExitCode::from(64);
        }
    };
    let mut all = Tally { fewest: u64::MAX, ..Tally::default() };
    let mut done = 0;
    while done < campaign.worlds {
        let time = campaign.time.map(|time| time.saturating_sub(all.took));
        if time.is_some_and(|time| time.is_zero()) {
            break;
        }
        let part = Campaign {
            seed: campaign.seed.wrapping_add(done),
            worlds: CHUNK.min(campaign.worlds - done),
            time,
            ..campaign
        };
        let (tally, failure) = part.run(&JsonLog);
        done += part.worlds;
        all.join(&tally);
        show(&all);
        if let Some(failure) = failure {
            let explanation = explain(&JsonLog, campaign.planted, &failure);
            println!("{}", explanation.brief);
            match keep(failure.seed, &explanation.whole) {
                Ok(path) => println!("all of it: {}", path.display()),
                Err(error) => eprintln!("postroad-sim: cannot keep all of it: {error}"),
            }
            println!("again: cargo xtask sim --seed {}{plant}", failure.seed);
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

//! The properties of the fuzz targets, on the seeds and on damaged ones. Fuzzing goes deeper: `fuzz/README.md`.

mod packets;
mod property;
mod wire;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use bytes::BytesMut;
use postroad_mqtt::codec::{Direction, Packet, Version};
use property::{access, broker, decode, lines, records, stream, websocket};

const TARGETS: [(&str, fn(&[u8])); 7] = [
    ("mqtt_decode", decode::check),
    ("mqtt_stream", stream::check),
    ("mqtt_broker", broker::check),
    ("mqtt_lines", lines::check),
    ("mqtt_websocket", websocket::check),
    ("mqtt_records", records::check),
    ("mqtt_access", access::check),
];

fn directory(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(target)
}

/// The committed seeds of a target, by name.
fn seeds(target: &str) -> BTreeMap<String, Vec<u8>> {
    let entries =
        fs::read_dir(directory(target)).unwrap_or_else(|error| panic!("seeds of {target}: {error}"));
    entries
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())
        })
        .collect()
}

#[test]
fn each_property_holds_for_its_seeds() {
    for (target, check) in TARGETS {
        let seeds = seeds(target);
        assert!(!seeds.is_empty(), "{target} has no seeds");
        for (name, data) in seeds {
            println!("{target}/{name}");
            check(&data);
        }
    }
}

#[test]
fn each_property_holds_for_damaged_seeds() {
    for (target, check) in TARGETS {
        let mut random = fastrand::Rng::with_seed(3);
        let seeds: Vec<Vec<u8>> = seeds(target).into_values().filter(|seed| seed.len() < 4096).collect();
        let rounds = match target {
            "mqtt_broker" | "mqtt_lines" => 300,
            "mqtt_records" => 3_000,
            _ => 5_000,
        };
        for _ in 0..rounds {
            let mut data = random.choice(&seeds).unwrap().clone();
            for _ in 0..random.usize(1..6) {
                let at = random.usize(0..=data.len());
                match random.u8(0..7) {
                    0 => data.insert(at, random.u8(..)),
                    1 if at < data.len() => drop(data.remove(at)),
                    2 if at < data.len() => data[at] ^= 1 << random.u8(0..8),
                    3 => data.extend_from_slice(random.choice(&seeds).unwrap().get(1..).unwrap_or_default()),
                    4 => data.truncate(at),
                    5 => random.fill(&mut data[at..]),
                    _ if at < data.len() => data[at] = random.u8(..),
                    _ => {}
                }
            }
            // What breaks it is a new seed.
            if std::panic::catch_unwind(|| check(&data)).is_err() {
                let path = std::env::temp_dir().join(format!("postroad-{target}"));
                fs::write(&path, &data).unwrap();
                panic!("{target} does not hold for {}", path.display());
            }
        }
    }
}

/// Each generated seed is what the table of wire cases makes of it. `POSTROAD_SEEDS=write` writes them.
#[test]
fn seeds_are_made_of_the_wire_cases() {
    let write = std::env::var("POSTROAD_SEEDS").is_ok_and(|what| what == "write");
    for (target, name, data) in generated() {
        let path = directory(target).join(&name);
        if write {
            fs::create_dir_all(directory(target)).unwrap();
            fs::write(&path, &data).unwrap();
        } else {
            let there = fs::read(&path).unwrap_or_default();
            assert_eq!(
                there, data,
                "{target}/{name}: POSTROAD_SEEDS=write cargo test -p postroad-mqtt --test fuzz"
            );
        }
    }
}

fn slug(name: &str) -> String {
    let plain = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' });
    plain.collect::<String>().to_lowercase()
}

fn generated() -> Vec<(&'static str, String, Vec<u8>)> {
    let mut all: Vec<(&'static str, String, Vec<u8>)> = Vec::new();
    let cases: Vec<wire::Case> =
        wire::cases().into_iter().filter(|case| case.expected.is_ok() && case.bytes.len() < 200).collect();
    for case in &cases {
        let name = slug(case.name);
        let alike = all.iter().filter(|(_, other, _)| other.split('-').next() == Some(&*name)).count();
        if !all.iter().any(|(.., data)| *data == case.bytes) {
            all.push((
                "mqtt_decode",
                if alike == 0 { name } else { format!("{name}-{alike}") },
                case.bytes.to_vec(),
            ));
        }
    }
    for (version, name) in [(Version::V31, "3.1"), (Version::V311, "3.1.1"), (Version::V5, "5.0")] {
        let packets = |direction: Direction| {
            let these = move |case: &&wire::Case| {
                case.versions.contains(&version) && case.directions.contains(&direction)
            };
            cases.iter().filter(these)
        };
        let mode = match version {
            Version::V31 => 1,
            Version::V311 => 2,
            Version::V5 => 3,
        };
        // All that a server says, cut into pieces of 1, 2, 3 … bytes.
        let mut down = vec![mode, 20];
        down.extend(1..=20_u8);
        packets(Direction::ToClient).for_each(|case| down.extend_from_slice(&case.bytes));
        all.push(("mqtt_stream", format!("server_{name}"), down));
        // CONNECT and what follows it.
        let mut up = vec![0, 20];
        up.extend(1..=20_u8);
        let connect = packets(Direction::ToServer).find(
            |case| matches!(&case.expected, Ok(Packet::Connect(connect)) if connect.version == version),
        );
        up.extend_from_slice(&connect.expect("a CONNECT of each version").bytes);
        let others =
            || packets(Direction::ToServer).filter(|case| !matches!(case.expected, Ok(Packet::Connect(_))));
        others().for_each(|case| up.extend_from_slice(&case.bytes));
        all.push(("mqtt_stream", format!("client_{name}"), up));
        // The same to the broker; the answers are read now and then.
        let mut steps = vec![mode - 1];
        for (turn, case) in others().filter(|case| case.bytes.len() <= 256).enumerate() {
            steps.extend([1, (case.bytes.len() - 1) as u8]);
            steps.extend_from_slice(&case.bytes);
            match turn % 4 {
                1 => steps.extend([4, 0]),
                3 => steps.extend([6, turn as u8]),
                _ => {}
            }
        }
        all.push(("mqtt_broker", format!("client_{name}"), steps));
    }
    // A random walk of a client that knows what it does.
    let mut random = fastrand::Rng::with_seed(1);
    let mut steps = vec![2];
    for _ in 0..60 {
        let mut bytes = BytesMut::new();
        let packet = packets::Any { random: &mut random, version: Version::V5 }.packet(Direction::ToServer);
        packet.encode(Version::V5, &mut bytes).unwrap();
        if bytes.len() <= 256 {
            steps.extend([random.u8(0..2), (bytes.len() - 1) as u8]);
            steps.extend_from_slice(&bytes);
        }
        if random.u8(0..3) == 0 {
            steps.extend([random.u8(3..8), random.u8(..)]);
        }
    }
    all.push(("mqtt_broker", "walk_5.0".into(), steps));
    all.extend(lines_seeds());
    all.extend(other_seeds());
    all
}

fn lines_seeds() -> Vec<(&'static str, String, Vec<u8>)> {
    let send = |who: u8, text: &str, steps: &mut Vec<u8>| {
        let line = format!("{text}\r\n");
        steps.extend([who, (line.len() - 1) as u8]);
        steps.extend_from_slice(line.as_bytes());
    };
    let mut steps = vec![0];
    send(1, "log one", &mut steps);
    send(1, r#"{"type":"SUB","topic":"s"}"#, &mut steps);
    send(0, r#"{"type":"PUB","topic":"s","msg":{"a":1}}"#, &mut steps);
    steps.extend([4, 0]);
    for name in 1..4 {
        send(0, &format!(r#"{{"type":"PUBREL","id":{name}}}"#), &mut steps);
        steps.extend([4, 0]);
        send(1, &format!(r#"{{"type":"PUBREC","id":{name},"topic":"s"}}"#), &mut steps);
        steps.extend([3, 60]);
        send(1, &format!(r#"{{"type":"PUBCOMP","id":{name},"topic":"s"}}"#), &mut steps);
    }
    steps.extend([7, 0]);
    send(2, "log one", &mut steps);
    send(2, r#"{"type":"UNSUB","topic":"s"}"#, &mut steps);
    send(2, "no command", &mut steps);
    vec![("mqtt_lines", "exchange".into(), steps)]
}

fn other_seeds() -> Vec<(&'static str, String, Vec<u8>)> {
    let mask = |payload: &[u8]| -> Vec<u8> {
        payload.iter().zip([1, 2, 3, 4_u8].iter().cycle()).map(|(byte, mask)| byte ^ mask).collect()
    };
    let mut frames = vec![3, 1, 4, 9];
    for (first, payload) in
        [(0x82, &b"whole"[..]), (0x02, b"fir"), (0x89, b"ping"), (0x80, b"st"), (0x88, b"\x03\xE8")]
    {
        frames.extend([first, 0x80 | payload.len() as u8, 1, 2, 3, 4]);
        frames.extend(mask(payload));
    }
    let mut long = vec![0, 0x82, 0xFE, 0, 130, 1, 2, 3, 4];
    long.extend(mask(&[7; 130]));
    let acl = b"\0all\n  allow receive news/#\nuser alice\n  allow readwrite home/%u/#\n  deny publish home/%u/locked/#\n  \
                limit connections 10\nanonymous\n  allow subscribe public/+/temperature\n";
    let program: Vec<u8> = (0..200_u8).map(|n| n.wrapping_mul(37)).collect();
    vec![
        ("mqtt_websocket", "messages".into(), frames),
        ("mqtt_websocket", "long".into(), long),
        ("mqtt_access", "acl".into(), acl.to_vec()),
        ("mqtt_records", "program".into(), [&[1], &program[..]].concat()),
    ]
}

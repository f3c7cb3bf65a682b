//! Real input: the packages of this workspace as cargo tells them, in and out through nc and through the program's own
//! commands, byte for byte, and the log read with jq.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::support::{Server, limited, need, turn};

/// One package a line, as `cargo metadata` describes it.
fn packages() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let done = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        // It asks for packages of other systems too, which no build has brought here.
        .args(["metadata", "--format-version", "1", "--locked"])
        .current_dir(root)
        .output()
        .expect("cargo starts");
    assert!(done.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&done.stderr));
    let all: serde_json::Value = serde_json::from_slice(&done.stdout).expect("cargo writes JSON");
    let packages = all["packages"].as_array().expect("packages");
    assert!(packages.len() > 20, "only {} packages", packages.len());
    packages.iter().map(ToString::to_string).collect()
}

/// Runs `program`, gives it `input`, and returns what it wrote.
fn feed(program: &str, args: &[&str], input: &[u8]) -> Output {
    let mut child = limited(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let mut stdin = child.stdin.take().expect("stdin");
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().expect("wait");
    writer
        .join()
        .expect("writer")
        .unwrap_or_else(|error| panic!("{program} did not read its input: {error}"));
    output
}

fn postroad(server: &Server, args: &[&str], input: &[u8]) -> Vec<u8> {
    let url = format!("jsonlog://{}", server.addr());
    let args: Vec<&str> = args.iter().copied().chain(["--url", &url]).collect();
    let output = feed(env!("CARGO_BIN_EXE_postroad"), &args, input);
    assert!(output.status.success(), "postroad {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// What `nc` shows of a topic: `count` events.
fn read_with_nc(server: &Server, topic: &str, count: usize) -> Vec<String> {
    let mut child = limited("nc")
        .args(["127.0.0.1", &server.port().to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("nc starts");
    let mut stdin = child.stdin.take().expect("stdin");
    writeln!(stdin, "sub {topic} from=first prefetch={count}").expect("nc reads");
    let mut lines =
        BufReader::new(child.stdout.take().expect("stdout")).lines().map(|line| line.expect("UTF-8"));
    assert!(lines.next().is_some_and(|line| line.starts_with("hello ")));
    let mut events = Vec::new();
    while events.len() < count {
        let line = lines.next().expect("another line");
        let start = format!("event {topic} {} 1 ", events.len() + 1);
        match line.strip_prefix(&start) {
            Some(json) => events.push(json.to_owned()),
            None => assert_eq!(line, "ok"),
        }
    }
    writeln!(stdin, "quit").expect("nc reads");
    drop(stdin);
    assert_eq!(lines.next().as_deref(), Some("ok"));
    assert_eq!(lines.next().as_deref(), Some("bye quit"));
    assert!(lines.next().is_none());
    assert!(child.wait().expect("nc ends").success());
    events
}

#[test]
fn the_packages_of_this_workspace() {
    let _turn = turn();
    need("nc", "netcat-openbsd");
    need("jq", "jq");
    let packages = packages();
    let count = packages.len().to_string();
    let mut server = Server::start();
    let input: String = packages.iter().map(|line| format!("{line}\n")).collect();

    // In through both doors.
    let commands: String = packages.iter().map(|line| format!("pub by/nc {line}\n")).collect();
    let output =
        feed("nc", &["-N", "127.0.0.1", &server.port().to_string()], format!("{commands}quit\n").as_bytes());
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let oks: Vec<&str> = text.lines().skip(1).collect();
    assert_eq!(oks.len(), packages.len() + 2);
    for (n, line) in oks.iter().take(packages.len()).enumerate() {
        assert_eq!(*line, format!("ok {}", n + 1));
    }
    postroad(&server, &["pub", "by/postroad"], input.as_bytes());

    for round in 0..2 {
        // Out through both doors, from both topics.
        for topic in ["by/nc", "by/postroad"] {
            assert!(read_with_nc(&server, topic, packages.len()) == packages, "{topic} through nc");
            let raw =
                postroad(&server, &["sub", topic, "--from", "first", "--count", &count, "-o", "raw"], b"");
            assert!(raw == input.as_bytes(), "{topic} through postroad sub");
        }
        if round == 0 {
            server.bounce9();
        }
    }

    // The log is for people with jq.
    let segments = server.segments();
    assert!(segments.len() >= 2, "{segments:?}");
    let mut all = Command::new("jq")
        .args(["-c", "."])
        .args(&segments)
        .stdout(Stdio::piped())
        .spawn()
        .expect("jq starts");
    let mut text = String::new();
    all.stdout.take().expect("stdout").read_to_string(&mut text).expect("UTF-8");
    assert!(all.wait().expect("jq ends").success(), "jq does not read {segments:?}");
    let names = Command::new("jq")
        .args(["-r", "select(.k == \"pub\") | .e.id"])
        .args(&segments)
        .output()
        .expect("jq");
    let shown = String::from_utf8(names.stdout).expect("UTF-8");
    let mut shown: Vec<&str> = shown.lines().collect();
    shown.sort_unstable();
    let values: Vec<serde_json::Value> =
        packages.iter().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let mut ids: Vec<&str> =
        values.iter().chain(&values).map(|value| value["id"].as_str().expect("an id")).collect();
    ids.sort_unstable();
    assert_eq!(shown, ids);
    // Each event is in its file as it was sent.
    let bytes: Vec<u8> = segments.iter().flat_map(|path| std::fs::read(path).expect("a segment")).collect();
    let text = String::from_utf8(bytes).expect("a segment is text");
    for line in &packages {
        assert_eq!(text.matches(&format!("\"e\":{line},\"c\":\"")).count(), 2, "{}", &line[..80]);
    }
}

/// `postroad sub` with a name acks what it wrote: the next one gets the rest.
#[test]
fn a_named_subscriber_goes_on_where_it_stopped() {
    let _turn = turn();
    let server = Server::start();
    let input: String = (1..=10).map(|n| format!("{{\"n\": {n}}}\n")).collect();
    postroad(&server, &["pub", "t"], input.as_bytes());
    let mut got = Vec::new();
    for count in ["1", "3", "6"] {
        got.extend(postroad(
            &server,
            &["sub", "t", "--as", "n", "--from", "first", "--count", count, "-o", "raw"],
            b"",
        ));
    }
    assert_eq!(String::from_utf8(got).expect("UTF-8"), input);
    let refused = feed(
        env!("CARGO_BIN_EXE_postroad"),
        &["pub", "t", "--url", &format!("jsonlog://{}", server.addr())],
        b"{\"n\":11}\nnot json\n{\"n\":12}\n",
    );
    assert!(!refused.status.success(), "a bad line is an error");
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("line 2"),
        "{}",
        String::from_utf8_lossy(&refused.stderr)
    );
}

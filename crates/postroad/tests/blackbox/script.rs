//! Golden transcripts. A script has one line per line on the wire:
//!
//! - `> text` is sent (LF is added by the player),
//! - `< text` is the next reply, in the order of the commands; a last word `*` stands for any text,
//! - `= text` is the next `event` line.
//!
//! The protocol lets events come between any two replies, so the two kinds are matched apart from each other.
//! `{T}` is the topic, another one for each run.

use std::io::Write;
use std::time::Duration;

use crate::support::Client;

/// How the commands reach the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// A line, then its answers, then the next line.
    Lf,
    /// The same, ended with CRLF.
    Crlf,
    /// Each byte in a packet of its own.
    Bytes,
    /// All lines in one packet. Only for scripts where no line needs an answer first.
    Merged,
}

fn matches(pattern: &str, line: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(head) => line.starts_with(head) && line.len() > head.len(),
        None => line == pattern,
    }
}

fn read(client: &mut Client, expected: &str, script: &str) {
    let (mark, pattern) = expected.split_at(2);
    let line = match mark {
        "< " => client.reply(),
        "= " => {
            let event = client.event();
            format!("event {} {} {} {}", event.topic, event.seq, event.attempt, event.json)
        }
        _ => panic!("not a script line: {expected:?}"),
    };
    assert!(matches(pattern, &line), "expected {pattern:?}, got {line:?}, in\n{script}");
}

/// Plays `script` on `client`, which must not end before the script does.
pub(crate) fn play(client: &mut Client, script: &str, topic: &str, how: How) {
    let script = script.replace("{T}", topic);
    let lines: Vec<&str> = script.lines().map(str::trim_start).filter(|line| !line.is_empty()).collect();
    if how == How::Merged {
        let all: String =
            lines.iter().filter_map(|line| line.strip_prefix("> ")).map(|line| format!("{line}\n")).collect();
        client.raw(all.as_bytes());
    }
    for line in &lines {
        let Some(command) = line.strip_prefix("> ") else {
            read(client, line, &script);
            continue;
        };
        match how {
            How::Lf => client.send(command),
            How::Crlf => client.raw(format!("{command}\r\n").as_bytes()),
            How::Bytes => {
                for byte in format!("{command}\r\n").bytes() {
                    client.stream().write_all(&[byte]).expect("send");
                }
            }
            How::Merged => {}
        }
    }
    client.no_event(Duration::from_millis(50));
}

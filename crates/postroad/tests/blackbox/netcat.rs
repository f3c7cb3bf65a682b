//! The same with the program everybody has.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Stdio};

use crate::support::{Server, limited, need, turn};

/// A running `nc`, ended with the test.
struct Netcat(Child);

impl Netcat {
    fn start(server: &Server, args: &[&str]) -> Self {
        need("nc", "netcat-openbsd");
        let child = limited("nc")
            .args(args)
            .args(["127.0.0.1", &server.port().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("nc starts");
        Self(child)
    }
}

impl Drop for Netcat {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The session of the protocol page, each line on the wire as printed there.
#[test]
fn the_session_of_the_page() {
    let _turn = turn();
    let page = include_str!("../../../../docs/jsonlog-protocol.md");
    let text = page.split("## 6. A session").nth(1).expect("section 6");
    let text = text.split("```").nth(1).expect("a session");
    let server = Server::start();
    let mut nc = Netcat::start(&server, &[]);
    let mut input = nc.0.stdin.take().expect("stdin");
    let mut output = BufReader::new(nc.0.stdout.take().expect("stdout"));
    let commands = ["sub ", "pub ", "ack ", "quit"];
    let mut lines = 0;
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('$')) {
        lines += 1;
        if commands.iter().any(|word| line.starts_with(word)) {
            writeln!(input, "{line}").expect("nc reads");
            continue;
        }
        let mut got = String::new();
        output.read_line(&mut got).expect("nc writes");
        assert_eq!(got.trim_end_matches('\n'), line);
    }
    assert_eq!(lines, 11, "the page's session has changed its form");
    drop(input);
    let mut rest = String::new();
    output.read_to_string(&mut rest).expect("the end");
    assert_eq!(rest, "");
    assert!(nc.0.wait().expect("nc ends").success());
}

/// `nc < file`: everything arrives at once, then the end of the stream. Every command is still answered.
#[test]
fn a_file_of_commands_with_crlf_and_no_quit() {
    let _turn = turn();
    let server = Server::start();
    for end in ["\n", "\r\n"] {
        let topic = if end == "\n" { "lf" } else { "crlf" };
        let mut nc = Netcat::start(&server, &["-N"]);
        let mut input = nc.0.stdin.take().expect("stdin");
        let commands: String = (1..=200).map(|n| format!("pub {topic} {{\"n\":{n}}}{end}")).collect();
        input.write_all(commands.as_bytes()).expect("nc reads");
        drop(input);
        let mut output = String::new();
        nc.0.stdout.take().expect("stdout").read_to_string(&mut output).expect("UTF-8");
        let mut lines = output.lines();
        assert!(lines.next().is_some_and(|line| line.starts_with("hello postroad/")));
        for n in 1..=200 {
            assert_eq!(lines.next(), Some(format!("ok {n}").as_str()), "{topic}");
        }
    }
    let mut client = server.client();
    assert_eq!(client.peek("crlf", "last").json, "{\"n\":200}");
}

/// A line without its end is no command, even when the sender is gone.
#[test]
fn half_a_line_is_never_carried_out() {
    let _turn = turn();
    let server = Server::start();
    let mut nc = Netcat::start(&server, &["-N"]);
    let mut input = nc.0.stdin.take().expect("stdin");
    input.write_all(b"pub half {\"n\":1}\npub half {\"n\":2}").expect("nc reads");
    drop(input);
    let mut output = String::new();
    nc.0.stdout.take().expect("stdout").read_to_string(&mut output).expect("UTF-8");
    assert!(output.contains("\nok 1\n"), "{output}");
    assert_eq!(server.client().peek("half", "last").seq, 1);
}

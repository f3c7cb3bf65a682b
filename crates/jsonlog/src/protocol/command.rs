//! One line becomes one command.

use super::{Code, parse_duration, parse_time};
use postroad_core::StartAt;
use std::time::Duration;

/// The command words that can be chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Words {
    /// For `pub`.
    pub publish: String,
    /// For `sub`.
    pub subscribe: String,
    /// For `unsub`.
    pub unsubscribe: String,
    /// For `ack`.
    pub ack: String,
}

impl Default for Words {
    fn default() -> Self {
        Self {
            publish: "pub".into(),
            subscribe: "sub".into(),
            unsubscribe: "unsub".into(),
            ack: "ack".into(),
        }
    }
}

/// Which deliveries a command means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target<'a> {
    /// By the id of the event, as text.
    Id(std::borrow::Cow<'a, str>),
    /// By sequence, both ends included.
    Range(u64, u64),
}

/// What `sub` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubOptions {
    /// Un-acked events at once.
    pub prefetch: u32,
    /// Where a new subscription starts.
    pub from: StartAt,
    /// After it an un-acked event comes back.
    pub ack_wait: Option<Duration>,
    /// 0: never a dead letter by itself.
    pub max_deliveries: Option<u32>,
    /// Waits before redelivery.
    pub backoff: Option<Vec<Duration>>,
    /// Shared.
    pub group: bool,
}

/// A command.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are the arguments of the protocol document")]
pub enum Command<'a> {
    Pub { topic: &'a str, json: &'a str },
    Pubn { topic: &'a str, count: u64, bytes: u64 },
    Sub { topic: &'a str, name: Option<&'a str>, options: SubOptions },
    Unsub { topic: &'a str, name: Option<&'a str>, forget: bool },
    Ack { topic: &'a str, target: Target<'a> },
    Nack { topic: &'a str, target: Target<'a>, delay: Option<Duration>, reason: Option<&'a str> },
    Touch { topic: &'a str, target: Target<'a> },
    Bury { topic: &'a str, target: Target<'a>, reason: Option<&'a str> },
    Kick { topic: &'a str, count: usize },
    Peek { topic: &'a str, at: StartAt },
    Topics { filter: Option<&'a str> },
    Stats { topic: Option<&'a str> },
    Hello { json: &'a str },
    Help,
    Quit,
}

/// Why a line is no command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The code.
    pub code: Code,
    /// What to do.
    pub text: String,
    /// The server cannot know where the next command begins.
    pub framing_lost: bool,
}

impl Refusal {
    /// A refusal after which the connection goes on.
    pub fn new(code: Code, text: impl Into<String>) -> Self {
        Self { code, text: text.into(), framing_lost: false }
    }
}

fn bad_args(text: impl Into<String>) -> Refusal {
    Refusal::new(Code::BadArgs, text)
}

/// The first part, and what follows the space behind it.
fn split(text: &str) -> (&str, &str) {
    match memchr::memchr(b' ', text.as_bytes()) {
        Some(at) => (&text[..at], &text[at + 1..]),
        None => (text, ""),
    }
}

/// Parses one line, without its end; `None` if it is empty. `now` (milliseconds since 1970) is for `from=` durations.
pub fn parse<'a>(line: &'a str, words: &Words, now: u64) -> Result<Option<Command<'a>>, Refusal> {
    if line.is_empty() {
        return Ok(None);
    }
    let (word, rest) = split(line);
    let (topic, args) = split(rest);
    // The configurable words first: they may take the place of others.
    let command = if word == words.publish {
        if args.is_empty() {
            return Err(bad_args(format!("write: {word} TOPIC JSON")));
        }
        return Ok(Some(Command::Pub { topic, json: args }));
    } else if word == words.subscribe {
        let usage = || {
            format!(
                "write: {word} TOPIC [as NAME] [prefetch=N] [from=…] [ack_wait=…] [max_deliveries=N] [backoff=…] [group]"
            )
        };
        if topic.is_empty() {
            return Err(bad_args(usage()));
        }
        let (name, options) = sub_options(args, now)?;
        Command::Sub { topic, name, options }
    } else if word == words.unsubscribe {
        if topic.is_empty() {
            return Err(bad_args(format!("write: {word} TOPIC [as NAME] [forget]")));
        }
        unsub(topic, args)?
    } else if word == words.ack {
        let (target, more) = target(args, word)?;
        if !more.is_empty() {
            return Err(bad_args(format!(
                "write: {word} TOPIC ID or {word} TOPIC @SEQ or {word} TOPIC @SEQ-@SEQ; an id with a space is written as a JSON string"
            )));
        }
        Command::Ack { topic, target }
    } else {
        match word {
            "pubn" => pubn(topic, args)?,
            "nack" => {
                let (target, more) = target(args, word)?;
                let (delay, reason) = verdict_options(more, true)?;
                Command::Nack { topic, target, delay, reason }
            }
            "bury" => {
                let (target, more) = target(args, word)?;
                let (_, reason) = verdict_options(more, false)?;
                Command::Bury { topic, target, reason }
            }
            "touch" => {
                let (target, more) = target(args, word)?;
                if !more.is_empty() {
                    return Err(bad_args("write: touch TOPIC ID or touch TOPIC @SEQ"));
                }
                Command::Touch { topic, target }
            }
            "kick" => {
                let count = match args {
                    "" => usize::MAX,
                    text => text.parse().map_err(|_| bad_args("write: kick TOPIC [COUNT]"))?,
                };
                Command::Kick { topic, count }
            }
            "peek" => Command::Peek { topic, at: peek_at(args)? },
            "topics" if args.is_empty() => Command::Topics { filter: (!topic.is_empty()).then_some(topic) },
            "stats" if args.is_empty() => Command::Stats { topic: (!topic.is_empty()).then_some(topic) },
            "hello" => Command::Hello { json: rest },
            "help" => Command::Help,
            "quit" => Command::Quit,
            "topics" | "stats" => return Err(bad_args(format!("write: {word} [TOPIC]"))),
            _ => {
                let shown: String = word.chars().take(40).filter(|c| !c.is_control()).collect();
                return Err(Refusal::new(
                    Code::BadCommand,
                    format!("there is no command {shown:?}: type help for the list"),
                ));
            }
        }
    };
    Ok(Some(command))
}

fn number<T: std::str::FromStr + PartialOrd>(key: &str, value: &str, min: T, max: T) -> Result<T, Refusal>
where
    T: std::fmt::Display,
{
    match value.parse::<T>() {
        Ok(number) if number >= min && number <= max => Ok(number),
        _ => Err(bad_args(format!("{key} is a number from {min} to {max}"))),
    }
}

fn is_name(name: &str) -> bool {
    (1..=100).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':'))
}

fn checked_name(name: &str) -> Result<&str, Refusal> {
    if is_name(name) {
        Ok(name)
    } else {
        Err(bad_args("a name is 1 to 100 letters, digits, '-', '_', '.' or ':'"))
    }
}

fn sub_options(mut args: &str, now: u64) -> Result<(Option<&str>, SubOptions), Refusal> {
    let mut options = SubOptions {
        prefetch: 1,
        from: StartAt::New,
        ack_wait: None,
        max_deliveries: None,
        backoff: None,
        group: false,
    };
    let mut name = None;
    while !args.is_empty() {
        let (arg, more) = split(args);
        args = more;
        match arg.split_once('=') {
            None if arg == "as" => {
                let (text, more) = split(args);
                name = Some(checked_name(text)?);
                args = more;
            }
            None if arg == "group" => options.group = true,
            Some(("prefetch", value)) => options.prefetch = number("prefetch", value, 1, 65_536)?,
            Some(("from", value)) => options.from = start_at(value, now)?,
            Some(("ack_wait", value)) => {
                let wait = parse_duration(value).map_err(bad_args)?;
                if !(Duration::from_millis(10)..=Duration::from_secs(24 * 3600)).contains(&wait) {
                    return Err(bad_args("ack_wait is from 10ms to 24h"));
                }
                options.ack_wait = Some(wait);
            }
            Some(("max_deliveries", value)) => {
                options.max_deliveries = Some(number("max_deliveries", value, 0, u32::MAX)?);
            }
            Some(("backoff", value)) => {
                let waits: Result<Vec<_>, _> = value.split(',').map(parse_duration).collect();
                let waits = waits.map_err(bad_args)?;
                if waits.len() > 32 || waits.iter().any(|d| d.as_secs() > 30 * 86_400) {
                    return Err(bad_args("backoff has at most 32 waits of at most 30d"));
                }
                options.backoff = Some(waits);
            }
            _ => {
                return Err(bad_args(format!(
                    "unknown option {arg:?}: as NAME, prefetch=N, from=new|first|last|@SEQ|TIME, ack_wait=30s, max_deliveries=N, backoff=1s,5s, group"
                )));
            }
        }
    }
    if options.group && name.is_none() {
        return Err(bad_args("a group needs a name: sub TOPIC as NAME group"));
    }
    Ok((name, options))
}

fn start_at(value: &str, now: u64) -> Result<StartAt, Refusal> {
    Ok(match value {
        "new" => StartAt::New,
        "first" => StartAt::First,
        "last" => StartAt::Last,
        _ => match value.strip_prefix('@') {
            Some(seq) => StartAt::Sequence(number("from=@SEQ", seq, 1, u64::MAX - 1)?),
            None => {
                let time = parse_time(value, now).map_err(|error| {
                    bad_args(format!("from= is new, first, last, @SEQ or a time: {error}"))
                })?;
                StartAt::Time(postroad_core::Timestamp::from_millis(time))
            }
        },
    })
}

fn unsub<'a>(topic: &'a str, mut args: &'a str) -> Result<Command<'a>, Refusal> {
    let mut name = None;
    let mut forget = false;
    while !args.is_empty() {
        let (arg, more) = split(args);
        args = more;
        match arg {
            "as" => {
                let (text, more) = split(args);
                name = Some(checked_name(text)?);
                args = more;
            }
            "forget" => forget = true,
            _ => return Err(bad_args("write: unsub TOPIC [as NAME] [forget]")),
        }
    }
    Ok(Command::Unsub { topic, name, forget })
}

fn pubn<'a>(topic: &'a str, args: &'a str) -> Result<Command<'a>, Refusal> {
    let (count, bytes) = split(args);
    match (count.parse(), bytes.parse()) {
        (Ok(count), Ok(bytes)) => Ok(Command::Pubn { topic, count, bytes }),
        _ => Err(Refusal {
            code: Code::BadArgs,
            text: "write: pubn TOPIC COUNT BYTES, then BYTES bytes; without them the next command cannot be found".into(),
            framing_lost: true,
        }),
    }
}

fn target<'a>(args: &'a str, word: &str) -> Result<(Target<'a>, &'a str), Refusal> {
    let usage = || bad_args(format!("write: {word} TOPIC ID or {word} TOPIC @SEQ or {word} TOPIC @SEQ-@SEQ"));
    if args.is_empty() {
        return Err(usage());
    }
    if args.starts_with('"') {
        // A JSON string: ends at the first quote that is not escaped.
        let mut escaped = false;
        let end = args.char_indices().skip(1).find_map(|(at, c)| match c {
            _ if escaped => {
                escaped = false;
                None
            }
            '\\' => {
                escaped = true;
                None
            }
            '"' => Some(at + 1),
            _ => None,
        });
        let end = end.ok_or_else(|| bad_args("the id has no closing quote"))?;
        let id: String =
            serde_json::from_str(&args[..end]).map_err(|_| bad_args("the id is no JSON string"))?;
        let more = &args[end..];
        let more = match more.strip_prefix(' ') {
            Some(more) => more,
            None if more.is_empty() => more,
            None => return Err(usage()),
        };
        return Ok((Target::Id(id.into()), more));
    }
    let (text, more) = split(args);
    let Some(range) = text.strip_prefix('@') else { return Ok((Target::Id(text.into()), more)) };
    let (first, last) =
        range.split_once('-').map_or((range, range), |(a, b)| (a, b.strip_prefix('@').unwrap_or(b)));
    match (first.parse(), last.parse()) {
        (Ok(first), Ok(last)) if 1 <= first && first <= last => Ok((Target::Range(first, last), more)),
        _ => Err(usage()),
    }
}

fn verdict_options(mut args: &str, delay_allowed: bool) -> Result<(Option<Duration>, Option<&str>), Refusal> {
    let mut delay = None;
    while !args.is_empty() {
        if let Some(reason) = args.strip_prefix("reason=") {
            return Ok((delay, Some(reason)));
        }
        let (arg, more) = split(args);
        args = more;
        match arg.strip_prefix("delay=") {
            Some(value) if delay_allowed => {
                let wait = parse_duration(value).map_err(bad_args)?;
                if wait > Duration::from_secs(30 * 86_400) {
                    return Err(bad_args("a delay is at most 30d"));
                }
                delay = Some(wait);
            }
            _ => {
                let options = if delay_allowed { "delay=DURATION and reason=TEXT" } else { "reason=TEXT" };
                return Err(bad_args(format!(
                    "unknown option {arg:?}: {options} (reason is the rest of the line)"
                )));
            }
        }
    }
    Ok((delay, None))
}

fn peek_at(args: &str) -> Result<StartAt, Refusal> {
    match args {
        "first" => Ok(StartAt::First),
        "last" => Ok(StartAt::Last),
        _ => match args.strip_prefix('@').and_then(|seq| seq.parse().ok()) {
            Some(seq) => Ok(StartAt::Sequence(seq)),
            None => Err(bad_args("write: peek TOPIC @SEQ, or first, or last")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ok(line: &str) -> Command<'_> {
        parse(line, &Words::default(), 1_000_000).unwrap().unwrap()
    }

    fn code(line: &str) -> &'static str {
        parse(line, &Words::default(), 0).unwrap_err().code.as_str()
    }

    #[test]
    fn commands_are_parsed() {
        assert_eq!(ok("pub a/b {\"x\": 1}"), Command::Pub { topic: "a/b", json: "{\"x\": 1}" });
        assert_eq!(ok("ack t 17"), Command::Ack { topic: "t", target: Target::Id("17".into()) });
        assert_eq!(ok("ack t @5-@9"), Command::Ack { topic: "t", target: Target::Range(5, 9) });
        assert_eq!(ok("ack t \"a b\""), Command::Ack { topic: "t", target: Target::Id("a b".into()) });
        assert_eq!(
            ok("nack t x delay=5s reason=too hot now"),
            Command::Nack {
                topic: "t",
                target: Target::Id("x".into()),
                delay: Some(Duration::from_secs(5)),
                reason: Some("too hot now")
            }
        );
        let Command::Sub { topic: "t/>", name: Some("n"), options } =
            ok("sub t/> as n prefetch=10 from=@7 ack_wait=1s max_deliveries=3 backoff=1s,2s group")
        else {
            panic!("no sub");
        };
        assert_eq!(options.prefetch, 10);
        assert_eq!(options.from, StartAt::Sequence(7));
        assert_eq!(options.backoff.map(|waits| waits.len()), Some(2));
        assert!(options.group);
        assert_eq!(parse("", &Words::default(), 0), Ok(None));
    }

    #[test]
    fn words_can_be_chosen() {
        let words = Words { publish: "PUBLISH".into(), ..Words::default() };
        assert!(matches!(parse("PUBLISH t {}", &words, 0), Ok(Some(Command::Pub { .. }))));
        assert_eq!(parse("pub t {}", &words, 0).unwrap_err().code, Code::BadCommand);
    }

    #[test]
    fn wrong_lines_are_refused() {
        for line in ["foo", "PUB t {}", " pub t {}", "GET / HTTP/1.1", "\u{16}\u{3}"] {
            assert_eq!(code(line), "bad-command", "{line}");
        }
        for line in [
            "pub",
            "pub t",
            "sub",
            "sub t prefetch=0",
            "sub t prefetch=65537",
            "sub t as",
            "sub t as a/b",
            "sub t group",
            "sub t from=never",
            "sub t ack_wait=1ms",
            "sub t x",
            "ack t",
            "ack t a b",
            "ack t @0",
            "ack t @9-@5",
            "ack t \"a",
            "nack t x y",
            "nack t x delay=x",
            "bury t x delay=1s",
            "touch t",
            "kick t x",
            "peek t",
            "peek t x",
            "stats a b",
            "pubn t 1",
            "pubn t x 5",
            "unsub",
            "unsub t x",
            "sub t backoff=",
        ] {
            assert_eq!(code(line), "bad-args", "{line}");
        }
        assert!(parse("pubn t x 5", &Words::default(), 0).unwrap_err().framing_lost);
    }

    proptest! {
        #[test]
        fn any_line_is_parsed_without_a_panic(line in "(pub|sub|ack|nack|bury|kick|peek|pubn|unsub|touch)? ?[ -~é\"\\\\]{0,40}") {
            let _ = parse(&line, &Words::default(), 5);
        }
    }
}

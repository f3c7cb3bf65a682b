//! `postroad mqtt`: what the log of the MQTT broker says, read from its files.

use std::{
    borrow::Cow,
    fmt::Write as _,
    io::{self, BufWriter, Write as _},
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use postroad_journal::{JournalError, storage::RealStorage, verify};
use postroad_mqtt::{
    broker::inspect::{About, Contents, Inspector, LOG, Outgoing, Phase, Retained, Session},
    codec::topic,
};
use serde::Serialize;

use crate::{
    cli::{LookArgs, MqttCommand, ReportFormat},
    exit::{Exit, Failure},
    journal_cmd::{failure, is_directory},
    mqtt_users,
};

/// How often the log is read again when a running broker deletes what is being read.
const TRIES: usize = 5;

pub(crate) fn run(command: MqttCommand) -> Result<(), Failure> {
    match command {
        MqttCommand::Sessions(look) => {
            let contents = load(&look)?;
            print(contents.sessions.iter().map(|session| match look.output {
                ReportFormat::Text => summary(session),
                ReportFormat::Json => json(&SessionLine::of(session)),
            }))
        }
        MqttCommand::Session { client, look } => {
            let contents = load(&look)?;
            let Some(session) = contents.sessions.iter().find(|session| session.client == client) else {
                return Err(Failure::new(Exit::Failed, format!("the log has no session of {client:?}"))
                    .why("it never came, it ended, or it is one that ends with its connection")
                    .fix("see those that there are: `postroad mqtt sessions`"));
            };
            let text = match look.output {
                ReportFormat::Text => details(session),
                ReportFormat::Json => json(&Detailed::of(session)),
            };
            print(std::iter::once(text))
        }
        MqttCommand::Inflight(look) => {
            let contents = load(&look)?;
            print(contents.sessions.iter().flat_map(|session| in_flight(session, look.output)))
        }
        MqttCommand::Retained { filter, look } => {
            if let Some(filter) = &filter {
                topic::validate_filter(filter, usize::MAX).map_err(|error| {
                    Failure::new(Exit::Failed, format!("{filter:?} is no topic filter"))
                        .why(error)
                        .fix("write one like `sensors/+/state` or `logs/#`")
                })?;
            }
            let contents = load(&look)?;
            let now = now();
            let there = contents.retained.iter().filter(|kept| kept.expires.is_none_or(|at| at > now));
            let wanted =
                there.filter(|kept| filter.as_ref().is_none_or(|filter| topic::matches(filter, &kept.topic)));
            print(wanted.map(|kept| match look.output {
                ReportFormat::Text => retained(kept),
                ReportFormat::Json => json(&RetainedLine::of(kept)),
            }))
        }
        MqttCommand::User(command) => mqtt_users::run(command),
    }
}

/// Reads the log without its lock, as often as a broker that runs deletes a segment meanwhile.
fn load(look: &LookArgs) -> Result<Contents, Failure> {
    is_directory(&look.data)?;
    let log = look.data.join(LOG);
    if !log.is_dir() {
        return Err(Failure::new(Exit::Failed, format!("there is no MQTT log in {}", look.data.display()))
            .fix("give the data directory of a server whose MQTT broker has run: --data DIR"));
    }
    let mut tries = 0;
    loop {
        tries += 1;
        match read(&log) {
            Err(JournalError::Io { source, .. })
                if source.kind() == io::ErrorKind::NotFound && tries < TRIES => {}
            read => return read.map_err(|error| failure(&look.data, &error)),
        }
    }
}

fn read(log: &Path) -> Result<Contents, JournalError> {
    let storage = RealStorage::new();
    let mut inspector = Inspector::default();
    verify::records(&storage, log, 0, &mut |path, record| {
        inspector.record(record).map_err(|what| JournalError::Corrupt {
            path: path.to_owned(),
            line: 0,
            offset: 0,
            what: format!("the record after message {}: {what}", record.seq),
        })
    })?;
    let mut contents = inspector.finish();
    contents.look(|each| {
        verify::records(&storage, log, 0, &mut |_, record| {
            each(record);
            Ok(())
        })
    })?;
    Ok(contents)
}

fn print(lines: impl Iterator<Item = String>) -> Result<(), Failure> {
    let mut out = BufWriter::new(io::stdout().lock());
    let write = || {
        for line in lines {
            writeln!(out, "{line}")?;
        }
        out.flush()
    };
    match write() {
        // A reader that left early (`| head`) is not an error.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Exit::Io, "cannot write to stdout").why(error))
        }
        _ => Ok(()),
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

fn time(millis: u64) -> String {
    match UNIX_EPOCH.checked_add(Duration::from_millis(millis)) {
        // Beyond the year 9999 there is no such text.
        Some(time) if millis < 253_402_300_800_000 => humantime::format_rfc3339_millis(time).to_string(),
        _ => format!("{millis} ms"),
    }
}

/// Names of others, on a terminal: no control character gets there.
fn shown(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return text.into();
    }
    let each =
        text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() });
    each.collect::<String>().into()
}

fn state(session: &Session) -> String {
    match (session.away, session.ends(), session.expiry) {
        (None, ..) => "connected".to_owned(),
        (Some(away), Some(ends), _) => format!("away since {}, ends {}", time(away), time(ends)),
        (Some(away), None, _) => format!("away since {}", time(away)),
    }
}

fn summary(session: &Session) -> String {
    let mut line = format!(
        "{}\t{}\t{} subscriptions\t{} queued\t{} sent\t{} released\t{} incoming",
        shown(&session.client),
        state(session),
        session.subscriptions.len(),
        session.count(Phase::Queued),
        session.count(Phase::Sent),
        session.count(Phase::Released),
        session.incoming.len(),
    );
    if let Some(will) = &session.will {
        let _ = write!(line, "\twill {}", shown(&will.topic));
    }
    line
}

fn details(session: &Session) -> String {
    let mut text =
        format!("client {}\nnumber {}\n{}", shown(&session.client), session.number, state(session));
    if let Some(user) = &session.user {
        let _ = write!(text, "\nuser {}", shown(user));
    }
    let expiry = session
        .expiry
        .map_or_else(|| "never".to_owned(), |seconds| format!("{seconds} s after its connection"));
    let _ = write!(text, "\nexpires {expiry}\nwindow {}", session.window);
    for subscription in &session.subscriptions {
        let _ = write!(text, "\nsubscription {} qos {}", shown(&subscription.filter), subscription.qos);
        for (set, word) in
            [(subscription.no_local, "no-local"), (subscription.retain_as_published, "retain-as-published")]
        {
            if set {
                let _ = write!(text, " {word}");
            }
        }
        if let Some(id) = subscription.id {
            let _ = write!(text, " id {id}");
        }
    }
    if let Some(will) = &session.will {
        let (topic, bytes, qos) = (shown(&will.topic), will.bytes, will.qos);
        let _ = write!(text, "\nwill {topic} qos {qos} {bytes} bytes delay {} s", will.delay);
        if will.retain {
            text.push_str(" retain");
        }
    }
    for packet in &session.incoming {
        let _ = write!(text, "\nincoming {packet}");
    }
    for message in &session.outgoing {
        let _ = write!(text, "\noutgoing {}", outgoing(message));
    }
    text
}

fn word(phase: Phase) -> &'static str {
    match phase {
        Phase::Queued => "queued",
        Phase::Sent => "sent",
        Phase::Released => "released",
    }
}

fn outgoing(message: &Outgoing) -> String {
    let Outgoing { packet, phase, qos, seq, about, .. } = message;
    format!("{packet}\t{}\tqos {qos}\tmessage {seq}\t{}", word(*phase), described(about.as_ref()))
}

fn described(about: Option<&About>) -> String {
    match about {
        Some(about) => format!("{}\t{} bytes\t{}", time(about.time), about.bytes, shown(&about.topic)),
        None => "no longer in the log".to_owned(),
    }
}

/// What the client of a session and the broker have begun and not ended, both ways.
fn in_flight(session: &Session, output: ReportFormat) -> Vec<String> {
    let client = &session.client;
    let incoming = session.incoming.iter().map(|packet| match output {
        ReportFormat::Text => format!("{}\tincoming\t{packet}", shown(client)),
        ReportFormat::Json => json(&Incoming { client, way: "incoming", packet: *packet }),
    });
    let begun = session.outgoing.iter().filter(|message| message.phase != Phase::Queued);
    let begun = begun.map(|message| match output {
        ReportFormat::Text => format!("{}\toutgoing\t{}", shown(client), outgoing(message)),
        ReportFormat::Json => json(&Flying { client, way: "outgoing", message: OutgoingLine::of(message) }),
    });
    incoming.chain(begun).collect()
}

fn retained(kept: &Retained) -> String {
    let mut line = match &kept.about {
        Some(about) => format!(
            "{}\tmessage {}\t{} bytes\t{}",
            shown(&kept.topic),
            kept.seq,
            about.bytes,
            time(about.time)
        ),
        None => format!("{}\tmessage {}\tno longer in the log", shown(&kept.topic), kept.seq),
    };
    if let Some(at) = kept.expires {
        let _ = write!(line, "\texpires {}", time(at));
    }
    line
}

fn json(value: &impl Serialize) -> String {
    // Texts and numbers only: that cannot fail.
    serde_json::to_string(value).unwrap_or_default()
}

#[derive(Serialize)]
struct SessionLine<'a> {
    client: &'a str,
    number: u64,
    user: Option<&'a str>,
    connected: bool,
    away: Option<String>,
    ends: Option<String>,
    /// Seconds; none: never.
    expiry: Option<u32>,
    subscriptions: usize,
    queued: usize,
    sent: usize,
    released: usize,
    incoming: usize,
    will: Option<&'a str>,
}

impl<'a> SessionLine<'a> {
    fn of(session: &'a Session) -> Self {
        Self {
            client: &session.client,
            number: session.number,
            user: session.user.as_deref(),
            connected: session.away.is_none(),
            away: session.away.map(time),
            ends: session.ends().map(time),
            expiry: session.expiry,
            subscriptions: session.subscriptions.len(),
            queued: session.count(Phase::Queued),
            sent: session.count(Phase::Sent),
            released: session.count(Phase::Released),
            incoming: session.incoming.len(),
            will: session.will.as_ref().map(|will| will.topic.as_str()),
        }
    }
}

#[derive(Serialize)]
struct Detailed<'a> {
    client: &'a str,
    number: u64,
    user: Option<&'a str>,
    connected: bool,
    away: Option<String>,
    ends: Option<String>,
    expiry: Option<u32>,
    window: u16,
    subscriptions: Vec<SubscriptionLine<'a>>,
    will: Option<WillLine<'a>>,
    incoming: &'a [u16],
    outgoing: Vec<OutgoingLine<'a>>,
}

#[derive(Serialize)]
struct SubscriptionLine<'a> {
    filter: &'a str,
    qos: u8,
    no_local: bool,
    retain_as_published: bool,
    id: Option<u32>,
}

#[derive(Serialize)]
struct WillLine<'a> {
    topic: &'a str,
    qos: u8,
    retain: bool,
    bytes: u64,
    delay: u32,
    expiry: Option<u32>,
}

impl<'a> Detailed<'a> {
    fn of(session: &'a Session) -> Self {
        let subscriptions = session.subscriptions.iter().map(|subscription| SubscriptionLine {
            filter: &subscription.filter,
            qos: subscription.qos,
            no_local: subscription.no_local,
            retain_as_published: subscription.retain_as_published,
            id: subscription.id,
        });
        Self {
            client: &session.client,
            number: session.number,
            user: session.user.as_deref(),
            connected: session.away.is_none(),
            away: session.away.map(time),
            ends: session.ends().map(time),
            expiry: session.expiry,
            window: session.window,
            subscriptions: subscriptions.collect(),
            will: session.will.as_ref().map(|will| WillLine {
                topic: &will.topic,
                qos: will.qos,
                retain: will.retain,
                bytes: will.bytes,
                delay: will.delay,
                expiry: will.expiry,
            }),
            incoming: &session.incoming,
            outgoing: session.outgoing.iter().map(OutgoingLine::of).collect(),
        }
    }
}

#[derive(Serialize)]
struct OutgoingLine<'a> {
    packet: u16,
    phase: &'static str,
    qos: u8,
    seq: u64,
    topic: Option<&'a str>,
    bytes: Option<u64>,
    time: Option<String>,
    expires: Option<String>,
}

impl<'a> OutgoingLine<'a> {
    fn of(message: &'a Outgoing) -> Self {
        let about = message.about.as_ref();
        Self {
            packet: message.packet,
            phase: word(message.phase),
            qos: message.qos,
            seq: message.seq,
            topic: about.map(|about| about.topic.as_str()),
            bytes: about.map(|about| about.bytes),
            time: about.map(|about| time(about.time)),
            expires: about.and_then(|about| about.expires).map(time),
        }
    }
}

#[derive(Serialize)]
struct Incoming<'a> {
    client: &'a str,
    way: &'static str,
    packet: u16,
}

#[derive(Serialize)]
struct Flying<'a> {
    client: &'a str,
    way: &'static str,
    #[serde(flatten)]
    message: OutgoingLine<'a>,
}

#[derive(Serialize)]
struct RetainedLine<'a> {
    topic: &'a str,
    seq: u64,
    bytes: Option<u64>,
    qos: Option<u8>,
    time: Option<String>,
    expires: Option<String>,
}

impl<'a> RetainedLine<'a> {
    fn of(kept: &'a Retained) -> Self {
        let about = kept.about.as_ref();
        Self {
            topic: &kept.topic,
            seq: kept.seq,
            bytes: about.map(|about| about.bytes),
            qos: about.map(|about| about.qos),
            time: about.map(|about| time(about.time)),
            expires: kept.expires.map(time),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_control_character_gets_to_a_terminal() {
        assert_eq!(shown("plain/ü"), "plain/ü");
        assert_eq!(shown("a\u{1b}[2J\tb\u{9b}"), "a\\u{1b}[2J\\tb\\u{9b}");
    }

    #[test]
    fn times_of_any_size_have_a_text() {
        assert_eq!(time(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(time(u64::MAX), format!("{} ms", u64::MAX));
    }
}

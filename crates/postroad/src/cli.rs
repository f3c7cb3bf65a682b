//! The command line.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use postroad_jsonlog::client::StartAt;

use crate::{
    config::{ByteSize, Overrides, Secret, Span, Sync},
    exit::{EXIT_CODES, Exit, Failure},
};

/// Moves messages without losing them.
///
/// `postroad serve` starts a durable broker that you can talk to with netcat; the other commands are its clients.
#[derive(Debug, Parser)]
#[command(name = "postroad", version, after_help = EXIT_CODES, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start the broker
    #[command(after_help = EXIT_CODES)]
    Serve(ConfigArgs),
    /// Look at the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Publish JSON events, one a line, from stdin or the arguments
    #[command(after_help = EXIT_CODES)]
    Pub(PubArgs),
    /// Receive events, and ack each after it was written to stdout
    #[command(after_help = EXIT_CODES)]
    Sub(SubArgs),
    /// List, show and kick dead letters
    #[command(subcommand)]
    Dlq(DlqCommand),
    /// Check, read and repair the log files of a stopped broker
    #[command(subcommand)]
    Journal(JournalCommand),
    /// See what the MQTT broker keeps, and say who may log in
    #[command(subcommand)]
    Mqtt(MqttCommand),
}

/// Where the configuration comes from. Later ones win: defaults, file, `POSTROAD__SECTION__KEY`, flags.
#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    /// The configuration file (TOML)
    #[arg(long, value_name = "FILE", env = "POSTROAD_CONFIG")]
    config: Option<PathBuf>,
    /// The data directory [setting: server.data]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Where the JSON-log broker listens, or `off` [setting: jsonlog.listen]
    #[arg(long, value_name = "ADDR|off", overrides_with = "jsonlog")]
    jsonlog: Option<String>,
    /// Where the MQTT broker listens, or `off` [setting: mqtt.listen]
    #[arg(long, value_name = "ADDR|off", overrides_with = "mqtt")]
    mqtt: Option<String>,
    /// Where consumers of the JSON line dialect of the MQTT broker connect (publishers: the next port), or `off`
    /// [setting: lines.listen]
    #[arg(long, value_name = "ADDR|off", overrides_with = "lines")]
    lines: Option<String>,
    /// Where HTTP is served (MQTT over WebSocket at /mqtt), or `off` [setting: http.listen]
    #[arg(long, value_name = "ADDR|off", overrides_with = "http")]
    http: Option<String>,
    /// When `ok` is said [setting: journal.sync]
    #[arg(long, value_name = "MODE", value_enum)]
    sync: Option<Sync>,
    /// Let other machines in without a token [setting: server.insecure]
    #[arg(long)]
    insecure: bool,
    /// How much is logged [setting: log.level]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Any setting, like `--set retention.max_age=1d`
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
}

impl ConfigArgs {
    /// The flags as settings. Fails when `--set` has no `=` or a path is not text.
    pub(crate) fn overrides(&self) -> Result<Overrides, Failure> {
        let mut flags = Vec::new();
        for setting in &self.settings {
            let (key, value) = setting.split_once('=').ok_or_else(|| {
                Failure::new(Exit::Config, format!("`--set {setting}` is not a setting"))
                    .fix("write --set KEY=VALUE, like --set retention.max_age=1d")
            })?;
            flags.push((format!("--set {key}"), key.to_owned(), value.to_owned()));
        }
        let mut add = |flag: &str, key: &str, value: String| flags.push((flag.into(), key.into(), value));
        if let Some(data) = &self.data {
            let data = data.to_str().ok_or_else(|| {
                Failure::new(Exit::Config, format!("the path {} is not UTF-8", data.display()))
                    .fix("give --data a path that is")
            })?;
            add("--data", "server.data", data.to_owned());
        }
        if let Some(listen) = &self.jsonlog {
            add("--jsonlog", "jsonlog.listen", listen.clone());
        }
        if let Some(listen) = &self.mqtt {
            add("--mqtt", "mqtt.listen", listen.clone());
        }
        if let Some(listen) = &self.lines {
            add("--lines", "lines.listen", listen.clone());
        }
        if let Some(listen) = &self.http {
            add("--http", "http.listen", listen.clone());
        }
        if let Some(sync) = self.sync.as_ref().and_then(ValueEnum::to_possible_value) {
            add("--sync", "journal.sync", sync.get_name().to_owned());
        }
        if self.insecure {
            add("--insecure", "server.insecure", "true".to_owned());
        }
        if let Some(level) = &self.log_level {
            add("--log-level", "log.level", level.clone());
        }
        Ok(Overrides { file: self.config.clone(), flags })
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print every setting, as a file that can be used again
    Show {
        /// Also say where each value came from
        #[arg(long)]
        sources: bool,
        #[command(flatten)]
        config: ConfigArgs,
    },
}

/// The server to talk to.
#[derive(Debug, Args)]
pub(crate) struct ServerArgs {
    /// The server
    #[arg(long, env = "POSTROAD_URL", default_value = "jsonlog://127.0.0.1:8000", value_name = "URL")]
    pub(crate) url: String,
    /// The token to log in with; `file:PATH` and `env:NAME` keep it out of the process list
    #[arg(long, env = "POSTROAD_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<Secret>,
}

#[derive(Debug, Args)]
pub(crate) struct PubArgs {
    /// The topic
    pub(crate) topic: String,
    /// Events; without any, one JSON object a line is read from stdin
    pub(crate) events: Vec<String>,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// Say nothing but errors
    #[arg(long, short)]
    pub(crate) quiet: bool,
    /// How much is sent in one command, when that much is there
    #[arg(long, value_name = "SIZE", default_value = "256KiB")]
    pub(crate) batch: ByteSize,
    /// How the result is told: `text` on stderr, `json` as one object on stdout
    #[arg(long, short, value_enum, default_value_t = ReportFormat::Text)]
    pub(crate) output: ReportFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReportFormat {
    Text,
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct SubArgs {
    /// The topic; `*` stands for one level, a last `>` for the rest
    pub(crate) topic: String,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// A name makes the subscription durable: it keeps its place
    #[arg(long = "as", value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Share the named subscription with others: each event goes to one of them
    #[arg(long, requires = "name")]
    pub(crate) group: bool,
    /// Where a new subscription starts: new, first, last, @SEQ, a time or a duration ago
    #[arg(long, value_name = "PLACE", default_value = "new", value_parser = place)]
    pub(crate) from: StartAt,
    /// Stop after N events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
    /// Un-acked events held at once, 1 to 65536 [default: 1 with --as and --count, else 256]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub(crate) prefetch: Option<u32>,
    /// An un-acked event comes back after this long [default: as stored with the name, else 30s]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) ack_wait: Option<Duration>,
    /// After N deliveries without an ack the event is a dead letter; 0: never [default: as stored with the name, else 0]
    #[arg(long, value_name = "N")]
    pub(crate) max_deliveries: Option<u32>,
    /// How long an event waits before delivery 2, 3, …
    #[arg(long, value_name = "DURATION", value_delimiter = ',', value_parser = duration)]
    pub(crate) backoff: Vec<Duration>,
    /// text: `TOPIC SEQ ATTEMPT EVENT`; json: one object a line; raw: the event's bytes
    #[arg(long, short, value_enum, default_value_t = EventFormat::Text)]
    pub(crate) output: EventFormat,
    /// Do not ack: what was shown comes again, and only --prefetch events are shown
    #[arg(long)]
    pub(crate) no_ack: bool,
    /// Stop when nothing came for this long
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) wait: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum EventFormat {
    Json,
    Text,
    Raw,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DlqCommand {
    /// Count the dead letters of every topic that were not kicked yet, or list all that are kept of one
    Ls {
        topic: Option<String>,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Print the dead letters of a topic, one JSON object a line
    Show {
        topic: String,
        /// Only this one: its SEQ in `dlq ls`
        seq: Option<u64>,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Publish dead letters to their topic again, oldest first
    Kick {
        topic: String,
        /// How many [default: all]
        count: Option<u64>,
        #[command(flatten)]
        server: ServerArgs,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum JournalCommand {
    /// Check every record of a data directory or a log directory
    #[command(after_help = EXIT_CODES)]
    Verify { dir: PathBuf },
    /// Print the records, one JSON line each
    Cat {
        dir: PathBuf,
        /// Only the records from this number on
        #[arg(long, value_name = "SEQ", default_value_t = 0)]
        from: u64,
    },
    /// Save what is whole of a damaged log; every byte of the damaged files is kept aside
    #[command(after_help = EXIT_CODES)]
    Repair {
        dir: PathBuf,
        /// Really do it; without, only say what would be done
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum MqttCommand {
    /// List the sessions that are in the log, with what they are owed
    #[command(after_help = EXIT_CODES)]
    Sessions(LookArgs),
    /// Show one session: its subscriptions, its will, and every message it is owed
    #[command(after_help = EXIT_CODES)]
    Session {
        /// The client id
        client: String,
        #[command(flatten)]
        look: LookArgs,
    },
    /// List the exchanges that have begun and are not over, both ways
    #[command(after_help = EXIT_CODES)]
    Inflight(LookArgs),
    /// List the retained messages
    #[command(after_help = EXIT_CODES)]
    Retained {
        /// Only the topics that match
        filter: Option<String>,
        #[command(flatten)]
        look: LookArgs,
    },
    /// Add, remove and list users
    #[command(subcommand)]
    User(UserCommand),
}

/// Which log, and how it is told. It is read from its files, whether a server runs or not, and nothing is changed.
#[derive(Debug, Args)]
pub(crate) struct LookArgs {
    /// The data directory of the server
    #[arg(long, value_name = "DIR", env = "POSTROAD__SERVER__DATA", default_value = "./postroad-data")]
    pub(crate) data: PathBuf,
    /// `text`, or `json`: one object a line
    #[arg(long, short, value_enum, default_value_t = ReportFormat::Text)]
    pub(crate) output: ReportFormat,
}

#[derive(Debug, Subcommand)]
pub(crate) enum UserCommand {
    /// Add a user, or change a password; the password is asked for, or is the line on stdin
    #[command(after_help = EXIT_CODES)]
    Add {
        name: String,
        #[command(flatten)]
        users: UsersArgs,
    },
    /// Remove a user
    #[command(after_help = EXIT_CODES)]
    Remove {
        name: String,
        #[command(flatten)]
        users: UsersArgs,
    },
    /// List the names
    #[command(after_help = EXIT_CODES)]
    List {
        #[command(flatten)]
        users: UsersArgs,
    },
}

#[derive(Debug, Args)]
pub(crate) struct UsersArgs {
    /// The users file, the same as in the setting mqtt.users
    #[arg(long = "users", value_name = "FILE", env = "POSTROAD__MQTT__USERS")]
    pub(crate) file: PathBuf,
}

/// Where a subscription starts, in the words of the protocol.
fn place(text: &str) -> Result<StartAt, String> {
    match text {
        "new" => return Ok(StartAt::New),
        "first" => return Ok(StartAt::First),
        "last" => return Ok(StartAt::Last),
        _ => {}
    }
    if let Some(seq) = text.strip_prefix('@').and_then(|seq| seq.parse().ok()) {
        return Ok(StartAt::Seq(seq));
    }
    if let Ok(time) = humantime::parse_rfc3339(text) {
        return Ok(StartAt::Time(time));
    }
    duration(text).map(StartAt::Ago).map_err(|_| {
        "write new, first, last, @SEQ, 2026-01-31T12:00:00Z, or how long ago, like 1h".to_owned()
    })
}

fn duration(text: &str) -> Result<Duration, String> {
    text.parse::<Span>().map(|span| span.0)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_become_settings() {
        let cli = Cli::parse_from([
            "postroad",
            "serve",
            "--sync",
            "os",
            "--data",
            "d",
            "--insecure",
            "--set",
            "log.level=warn",
        ]);
        let Command::Serve(args) = cli.command else { panic!("not serve") };
        let flags = args.overrides().unwrap().flags;
        let pairs: Vec<_> = flags.iter().map(|(flag, key, value)| [flag.as_str(), key, value]).collect();
        assert_eq!(
            pairs,
            [
                ["--set log.level", "log.level", "warn"],
                ["--data", "server.data", "d"],
                ["--sync", "journal.sync", "os"],
                ["--insecure", "server.insecure", "true"],
            ]
        );
    }

    #[test]
    fn a_setting_needs_a_value() {
        let cli = Cli::parse_from(["postroad", "serve", "--set", "log.level"]);
        let Command::Serve(args) = cli.command else { panic!("not serve") };
        assert_eq!(args.overrides().unwrap_err().exit, Exit::Config);
    }

    #[test]
    fn places_to_start() {
        assert_eq!(place("@17"), Ok(StartAt::Seq(17)));
        assert_eq!(place("1h"), Ok(StartAt::Ago(Duration::from_secs(3600))));
        assert_eq!(
            place("1970-01-01T00:00:01Z"),
            Ok(StartAt::Time(std::time::UNIX_EPOCH + Duration::from_secs(1)))
        );
        for text in ["", "@", "@x", "17", "yesterday"] {
            assert!(place(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_group_needs_a_name() {
        assert!(Cli::try_parse_from(["postroad", "sub", "t", "--group"]).is_err());
        assert!(Cli::try_parse_from(["postroad", "sub", "t", "--group", "--as", "n"]).is_ok());
    }
}

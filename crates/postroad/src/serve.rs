//! `postroad serve`: from settings to a running broker, and to its end.

use std::{
    io::{self, Write as _},
    net::SocketAddr,
    sync::Arc,
};

use postroad_engine::{Engine, EngineConfig, EngineError, Retention, SyncMode};
use postroad_jsonlog::{
    protocol::Words,
    server::{Server, ServerConfig},
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
};

use crate::{
    cli::ConfigArgs,
    config::{self, Config, LagPolicy, Listen, Sync},
    exit::{Exit, Failure, chain},
    journal_cmd,
    logging::{self, Style},
    mqtt,
};

/// Files that are open besides connections: segments, the lock, the listener, the runtime's own.
const OTHER_FILES: u64 = 32;

/// Why the server stops.
#[derive(Clone, Debug)]
enum Reason {
    Signal(&'static str),
    /// The disk failed; nothing more may be promised.
    Fatal(String),
}

pub(crate) fn run(args: &ConfigArgs) -> Result<(), Failure> {
    let config = config::load(&args.overrides()?, std::env::vars_os())?.config;
    let tokens = config.jsonlog.resolve_tokens().map_err(|why| {
        Failure::new(Exit::Config, "cannot read the secrets of `jsonlog.tokens`")
            .why(why)
            .fix("make the file or the variable exist, readable and not empty")
    })?;
    let style = logging::start(&config.log)?;
    let (segments, connections) = divide_files(raise_open_files(), config.jsonlog.max_connections);
    let outcome = runtime::Builder::new_multi_thread()
        .enable_all()
        // A lone client keeps its thread busy for up to a few milliseconds a turn: look for others often.
        .event_interval(7)
        .build()
        .map_err(|error| Failure::new(Exit::Internal, "cannot start the runtime").why(error))
        .and_then(|runtime| {
            let outcome = runtime.block_on(serve(&config, tokens, segments, connections));
            // What could not be drained in time does not keep the process.
            runtime.shutdown_background();
            outcome
        });
    // JSON logs are read by programs: what they cannot parse would be lost on them.
    outcome
        .map_err(|failure| if style == Style::Json && !failure.is_logged() { failure.log() } else { failure })
}

async fn serve(
    config: &Config,
    tokens: Vec<String>,
    max_open_files: usize,
    max_connections: usize,
) -> Result<(), Failure> {
    let (fatal_tx, fatal_rx) = mpsc::channel(1);
    let engine = Engine::open(EngineConfig { max_open_files, ..engine_config(config) })
        .map_err(|error| cannot_open(config, &error))?;
    engine
        .start(Box::new(move |why| drop(fatal_tx.try_send(why))))
        .map_err(|error| Failure::new(Exit::Internal, "cannot start the engine").why(error))?;
    let reason = stop_reason(fatal_rx)?;

    let jsonlog = match config.jsonlog.listen {
        Listen::At(address) => {
            let settings = ServerConfig { max_connections, ..server_config(config, address, tokens) };
            let server = Server::bind(Arc::clone(&engine), settings)
                .await
                .map_err(|error| cannot_listen(address, &error))?;
            let address = server.local_addr().unwrap_or(address);
            Some((server, address))
        }
        Listen::Off => None,
    };
    let mqtt = mqtt::bind(config, &engine, max_connections)?;
    let mut doors: Vec<(&'static str, SocketAddr)> =
        jsonlog.iter().map(|(_, at)| ("JSON-log", *at)).collect();
    doors.extend(mqtt.iter().flat_map(|door| door.addresses.iter().copied()));
    if doors.is_empty() {
        tracing::warn!("no door is open: all are off");
    }
    for (door, address) in &doors {
        tracing::info!(door, %address, sync = sync_name(config.journal.sync), data = %config.server.data.display(), "serving");
    }
    banner(config, &doors);
    // A door that ends before there is a reason takes the process with it: it must not go on with half of its doors.
    let jsonlog = async {
        match jsonlog {
            Some((server, _)) => server.run(stopped(reason.clone()), config.server.drain_timeout.0).await,
            None => stopped(reason.clone()).await,
        }
        Ok(())
    };
    let mqtt = async {
        match mqtt {
            Some(door) => {
                door.watch_files();
                door.server.run(stopped(reason.clone())).await.map_err(|error| mqtt::ended(&error).log())
            }
            None => {
                stopped(reason.clone()).await;
                Ok(())
            }
        }
    };
    tokio::try_join!(jsonlog, mqtt)?;
    let reason = reason.borrow().clone();
    if let Some(Reason::Fatal(why)) = reason {
        return Err(disk_failed(&why).log());
    }
    let ended = tokio::task::spawn_blocking(move || engine.shutdown()).await;
    match ended {
        Ok(Ok(())) => {
            tracing::info!("stopped");
            Ok(())
        }
        Ok(Err(error)) => Err(disk_failed(&chain(&error)).log()),
        Err(error) => Err(Failure::new(Exit::Internal, "the end of the engine failed").why(error)),
    }
}

/// Resolves when there is a reason to stop.
async fn stopped(mut reason: watch::Receiver<Option<Reason>>) {
    // The sender lives as long as its task, and that as long as the process.
    let _ = reason.wait_for(Option::is_some).await;
}

/// Watches for signals and for the end of the disk. A second signal ends the process at once.
fn stop_reason(mut fatal: mpsc::Receiver<String>) -> Result<watch::Receiver<Option<Reason>>, Failure> {
    let failed = |error| Failure::new(Exit::Internal, "cannot listen for signals").why(error);
    let mut int = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut term = signal(SignalKind::terminate()).map_err(failed)?;
    let (tx, rx) = watch::channel(None);
    tokio::spawn(async move {
        loop {
            let reason = tokio::select! {
                biased;
                Some(why) = fatal.recv() => Reason::Fatal(why),
                _ = int.recv() => Reason::Signal("SIGINT"),
                _ = term.recv() => Reason::Signal("SIGTERM"),
            };
            let before = tx.borrow().clone();
            match (&reason, before) {
                (Reason::Signal(name), None) => {
                    tracing::info!(signal = name, "stopping; once more to stop at once");
                }
                (Reason::Signal(name), Some(Reason::Signal(_))) => {
                    tracing::warn!(signal = name, "stopped at once; what got `ok` is stored");
                    std::process::exit(Exit::Interrupted as i32);
                }
                (Reason::Signal(_), Some(Reason::Fatal(_))) => continue,
                (Reason::Fatal(why), _) => tracing::error!(why, "the disk failed, stopping"),
            }
            tx.send_replace(Some(reason));
        }
    });
    Ok(rx)
}

fn engine_config(config: &Config) -> EngineConfig {
    let (journal, retention, limits) = (&config.journal, &config.retention, &config.limits);
    EngineConfig {
        data: (journal.sync != Sync::Memory).then(|| config.server.data.clone()),
        sync: match journal.sync {
            Sync::Fdatasync => SyncMode::Fdatasync,
            Sync::Os => SyncMode::Os,
            Sync::Memory => SyncMode::Memory,
        },
        segment_bytes: journal.segment_bytes.0,
        preallocate: journal.preallocate,
        direct_io: journal.direct_io,
        disk_floor: journal.disk_floor.0,
        queue_bytes: journal.queue_bytes.0,
        max_topics: limits.max_topics,
        retention: Retention {
            max_bytes: limit(retention.max_bytes.0),
            max_age: Some(retention.max_age.0).filter(|age| !age.is_zero()),
            max_events: limit(retention.max_events),
            interest: retention.interest,
        },
        dedup_window: config.jsonlog.dedup_window.0,
        lag_events: limit(limits.lag_events),
        lag_policy: match limits.lag_policy {
            LagPolicy::Note => postroad_engine::LagPolicy::Note,
            LagPolicy::Detach => postroad_engine::LagPolicy::Detach,
        },
        ..EngineConfig::default()
    }
}

fn server_config(config: &Config, listen: SocketAddr, tokens: Vec<String>) -> ServerConfig {
    let jsonlog = &config.jsonlog;
    ServerConfig {
        listen,
        max_line: clamp(jsonlog.max_line.0),
        max_bulk: clamp(jsonlog.max_bulk.0),
        max_connections: jsonlog.max_connections,
        write_timeout: jsonlog.write_timeout.0,
        max_output: clamp(jsonlog.max_output.0),
        max_partial: clamp(jsonlog.max_partial.0),
        tokens,
        words: Words {
            publish: jsonlog.words.publish.clone(),
            subscribe: jsonlog.words.subscribe.clone(),
            unsubscribe: jsonlog.words.unsubscribe.clone(),
            ack: jsonlog.words.ack.clone(),
        },
    }
}

/// 0 means no limit.
fn limit(number: u64) -> Option<u64> {
    (number > 0).then_some(number)
}

fn clamp(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

fn sync_name(sync: Sync) -> &'static str {
    match sync {
        Sync::Fdatasync => "fdatasync",
        Sync::Os => "os",
        Sync::Memory => "memory",
    }
}

/// Each connection is an open file; the soft limit of many systems is 1024. Says how many there may be.
fn raise_open_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    if let (Some(soft), hard) = (limit.current, limit.maximum)
        && hard.is_none_or(|hard| soft < hard)
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard })
    {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Divides the files that may be open: segments, connections, and some for everything else.
fn divide_files(files: u64, wanted: usize) -> (usize, usize) {
    // A segment is open twice: `journal.direct_io`.
    let segments = (files / 8).clamp(4, 256);
    let connections = files.saturating_sub(2 * segments + OTHER_FILES).max(16);
    let connections = usize::try_from(connections).unwrap_or(usize::MAX);
    if connections < wanted {
        tracing::warn!(
            files,
            connections,
            wanted,
            "fewer connections are accepted than jsonlog.max_connections says: raise `ulimit -n`, or lower the setting"
        );
    }
    (segments as usize, connections.min(wanted))
}

fn cannot_open(config: &Config, error: &EngineError) -> Failure {
    match error {
        EngineError::Log(error) => journal_cmd::failure(&config.server.data, error),
        other => Failure::new(
            Exit::CannotOpen,
            format!("cannot open the data directory {}", config.server.data.display()),
        )
        .why(chain(other))
        .fix("give the directory of an earlier server, or one that does not exist yet (--data)"),
    }
}

fn cannot_listen(address: SocketAddr, error: &io::Error) -> Failure {
    Failure::new(Exit::CannotOpen, format!("cannot listen on {address}"))
        .why(error)
        .fix("stop the process that has it, or choose another address with --jsonlog")
}

fn disk_failed(why: &str) -> Failure {
    Failure::new(Exit::Io, "the disk failed; nothing more was promised, and what got `ok` before is stored")
        .why(why)
        .fix("look at the disk and its space, then start again: the log is read back from the disk")
}

/// What it serves, and four lines to try.
fn banner(config: &Config, doors: &[(&'static str, SocketAddr)]) {
    let sync = sync_name(config.journal.sync);
    let dir = config.server.data.display();
    let data = match config.journal.sync {
        Sync::Fdatasync => format!("{dir} (sync={sync}: an `ok` means that it is on disk)"),
        Sync::Os => format!("{dir} (sync={sync}: a power failure can lose the last seconds)"),
        Sync::Memory => format!("in memory only (sync={sync}: nothing is written to a disk)"),
    };
    let mut text = format!("postroad {}\n", env!("CARGO_PKG_VERSION"));
    for (door, address) in doors {
        text.push_str(&format!(
            "  {door:<9} {address}{}\n",
            if *door == "MQTT+WS" { " (path /mqtt)" } else { "" }
        ));
    }
    text.push_str(&format!("  {:<9} {data}\n\n", "data"));
    let address_of =
        |wanted: &str| doors.iter().find(|(door, _)| *door == wanted).map(|(_, address)| *address);
    if let Some(address) = address_of("JSON-log") {
        text.push_str(&jsonlog_lines(config, address));
    }
    if let Some(address) = address_of("MQTT") {
        let (ip, port) = (reachable(address), address.port());
        text.push_str(&format!(
            "Or with MQTT:\n  mosquitto_sub -h {ip} -p {port} -q 2 -t 'sensors/#' -v &\n  mosquitto_pub -h {ip} -p {port} -q 2 -t sensors/a -m 21.5\n\n"
        ));
    }
    // Nobody may be there to read it.
    let mut stdout = io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

/// Where everybody can reach it, this machine can by its loopback address.
fn reachable(address: SocketAddr) -> String {
    if address.ip().is_unspecified() { "127.0.0.1".to_owned() } else { address.ip().to_string() }
}

fn jsonlog_lines(config: &Config, address: SocketAddr) -> String {
    let words = &config.jsonlog.words;
    let login = if config.jsonlog.tokens.is_empty() { "" } else { r#"hello {"token":"TOKEN"}\n"# };
    let nc = format!("nc -q1 {} {}", reachable(address), address.port());
    let (publish, subscribe, ack) = (&words.publish, &words.subscribe, &words.ack);
    format!(
        r#"Try it, in another terminal:
  printf '{login}{publish} orders {{"id":"1","msg":"hello"}}\n' | {nc}
  printf '{login}{subscribe} orders from=first\n' | {nc}
  (printf '{login}{subscribe} orders as billing from=first\n'; sleep 1; printf '{ack} orders 1\n') | {nc}
  printf '{login}stats orders\n' | {nc}

"#
    )
}

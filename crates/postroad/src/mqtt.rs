//! The MQTT door of `postroad serve`: settings to listeners, dead letters to their topics, files that change.

use std::{
    net::SocketAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use postroad_engine::Engine;
use postroad_mqtt::{
    access::{Access, FileAccess, FileSettings, OpenAccess},
    broker::{self, BrokerConfig, ListenerConfig},
    codec::ReasonCode,
    lines::{LinesConfig, Role},
    server::{
        LinesOptions, ListenerOptions, Server, ServerConfig, ServerError, ServerHandle, TlsFiles,
        WebSocketRules,
    },
};

use crate::{
    config::{self, Config, Listen},
    exit::{Exit, Failure, chain},
};

mod letters;

/// How often files of users, rules and certificates are looked at.
const RELOAD: Duration = Duration::from_secs(2);

/// A door that is bound.
pub(crate) struct Door {
    pub(crate) server: Server,
    /// What is served where, for the banner.
    pub(crate) addresses: Vec<(&'static str, SocketAddr)>,
    files: Option<Arc<FileAccess>>,
    certificates: Vec<PathBuf>,
}

/// Binds what the settings ask for; `None` if that is nothing.
pub(crate) fn bind(
    config: &Config,
    engine: &Arc<Engine>,
    connections: usize,
) -> Result<Option<Door>, Failure> {
    let (listeners, mut titles) = listeners(config);
    let lines = lines(config)?;
    if listeners.is_empty() && lines.is_none() {
        return Ok(None);
    }
    let (access, files) = access(config)?;
    let settings = ServerConfig {
        listeners,
        max_connections: config.mqtt.max_connections.min(connections),
        max_partial: clamp(config.mqtt.max_partial.0),
        write_timeout: config.mqtt.write_timeout.0,
        drain_timeout: config.server.drain_timeout.0,
        broker: broker_config(config),
    };
    let store = Arc::clone(engine.log_store());
    let server = match lines {
        Some(lines) => {
            titles.extend(["lines sub", "lines pub"]);
            Server::bind_with_lines(settings, lines, store, access)
        }
        None => Server::bind(settings, store, access),
    };
    let server = server.map_err(|error| cannot_bind(&error))?;
    let server = server.on_dead(letters::graveyard(Arc::clone(engine)));
    engine.open_door(letters::DOOR, Arc::new(letters::Back(server.handle())));
    let bound = server.local_addrs().map_err(|error| cannot_bind(&ServerError::Io(error)))?;
    let mqtt = &config.mqtt;
    let certificates = [&mqtt.certificate, &mqtt.key, &mqtt.client_ca];
    let certificates =
        certificates.into_iter().filter(|path| !path.as_os_str().is_empty()).cloned().collect();
    Ok(Some(Door { server, addresses: titles.into_iter().zip(bound).collect(), files, certificates }))
}

impl Door {
    /// Looks at the files again and again; ends with the runtime.
    pub(crate) fn watch_files(&self) {
        let (files, handle) = (self.files.clone(), self.server.handle());
        let mut certificates = Certificates::new(self.certificates.clone());
        tokio::spawn(async move {
            let mut interval = tokio::time::interval(RELOAD);
            loop {
                interval.tick().await;
                let (files, handle) = (files.clone(), handle.clone());
                let seen =
                    tokio::task::spawn_blocking(move || reload(files.as_deref(), &handle, certificates))
                        .await;
                match seen {
                    Ok(seen) => certificates = seen,
                    Err(_) => return,
                }
            }
        });
    }
}

/// The files of certificates and keys. They are read when one looks different, and every minute, which costs nothing.
#[derive(Clone, Debug)]
struct Certificates {
    paths: Vec<PathBuf>,
    looks: Vec<Option<Look>>,
    turn: u32,
}

/// Inode, size, and when it was changed.
type Look = (u64, u64, i64, i64);

impl Certificates {
    fn new(paths: Vec<PathBuf>) -> Self {
        let mut new = Self { paths, looks: Vec::new(), turn: 0 };
        new.look();
        new
    }

    /// Whether one looks different from before.
    fn look(&mut self) -> bool {
        let look = |path: &PathBuf| {
            let meta = std::fs::metadata(path).ok()?;
            Some((meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec()))
        };
        let looks = self.paths.iter().map(look).collect();
        std::mem::replace(&mut self.looks, looks) != self.looks
    }
}

fn reload(files: Option<&FileAccess>, handle: &ServerHandle, mut certificates: Certificates) -> Certificates {
    if let Some(files) = files {
        // An error is logged there, and the old rules stay.
        let _ = files.reload();
    }
    if certificates.look() || certificates.turn % 30 == 29 {
        let _ = handle.reload_certificates();
    }
    certificates.turn = certificates.turn.wrapping_add(1);
    certificates
}

fn listeners(config: &Config) -> (Vec<ListenerOptions>, Vec<&'static str>) {
    let (mqtt, http) = (&config.mqtt, &config.http);
    let file = |path: &Path| (!path.as_os_str().is_empty()).then(|| path.to_path_buf());
    let tls = || TlsFiles {
        certificate: mqtt.certificate.clone(),
        key: mqtt.key.clone(),
        client_ca: file(&mqtt.client_ca),
        require_client_certificate: mqtt.require_client_certificate,
    };
    let origins = (!http.origins.is_empty()).then(|| http.origins.clone());
    let websocket = WebSocketRules { origins, ..WebSocketRules::default() };
    let doors = [
        ("MQTT", mqtt.listen, mqtt.durability, None, None),
        ("MQTT+TLS", mqtt.tls, mqtt.tls_durability.or(mqtt.durability), Some(tls()), None),
        ("MQTT+WS", http.listen, http.durability.or(mqtt.durability), None, Some(websocket)),
    ];
    let mut listeners = Vec::new();
    let mut titles = Vec::new();
    for (title, listen, promise, tls, websocket) in doors {
        let Listen::At(address) = listen else { continue };
        if config.journal.sync == config::Sync::Os && promise == config::Durability::Fsync {
            tracing::warn!(door = title, "with journal.sync=os the durability `fsync` is no more than `os`");
        }
        let durability = durability(promise);
        let rules = ListenerConfig { name: title.to_owned(), durability, ..listener_config(config) };
        listeners.push(ListenerOptions {
            address,
            tls,
            websocket,
            rules: Arc::new(rules),
            ..ListenerOptions::default()
        });
        titles.push(title);
    }
    (listeners, titles)
}

/// Consumers have the port of the setting, publishers the next one.
fn lines(config: &Config) -> Result<Option<LinesOptions>, Failure> {
    let Listen::At(consumers) = config.lines.listen else { return Ok(None) };
    let next = match consumers.port() {
        // Any port that is free.
        0 => 0,
        port => port.checked_add(1).ok_or_else(|| {
            Failure::new(Exit::Config, "the setting `lines.listen` cannot work")
                .why("publishers have the next port, and there is none after 65535")
                .fix("choose a smaller port")
        })?,
    };
    let publishers = SocketAddr::new(consumers.ip(), next);
    let listener = |name: &str, address| {
        let rules = ListenerConfig { name: name.to_owned(), ..listener_config(config) };
        ListenerOptions { address, rules: Arc::new(rules), ..ListenerOptions::default() }
    };
    Ok(Some(LinesOptions {
        listeners: vec![
            (Role::Consumers, listener("lines sub", consumers)),
            (Role::Publishers, listener("lines pub", publishers)),
        ],
        lines: LinesConfig {
            max_line: clamp(config.lines.max_line.0),
            resend: config.lines.resend.0,
            max_sends: config.lines.max_sends,
            ..LinesConfig::default()
        },
    }))
}

fn listener_config(config: &Config) -> ListenerConfig {
    let mqtt = &config.mqtt;
    ListenerConfig {
        max_connections: mqtt.max_connections,
        max_packet_size: u32::try_from(mqtt.max_packet.0).unwrap_or(u32::MAX),
        receive_maximum: mqtt.receive_maximum,
        topic_alias_maximum: mqtt.topic_aliases,
        keep_alive_max: u16::try_from(mqtt.keep_alive_max.0.as_secs()).unwrap_or(u16::MAX),
        allow_anonymous: mqtt.allow_anonymous || mqtt.users.as_os_str().is_empty(),
        ..ListenerConfig::default()
    }
}

fn durability(durability: config::Durability) -> broker::Durability {
    match durability {
        config::Durability::Fsync => broker::Durability::Fsync,
        config::Durability::Os => broker::Durability::Os,
        config::Durability::Memory => broker::Durability::Memory,
    }
}

fn broker_config(config: &Config) -> BrokerConfig {
    let mqtt = &config.mqtt;
    // 0 is for ever, which MQTT writes as the largest number.
    let expiry = |span: config::Span| match u32::try_from(span.0.as_secs()) {
        Ok(seconds) if seconds > 0 => seconds,
        _ => u32::MAX,
    };
    BrokerConfig {
        max_connections: mqtt.max_connections,
        max_sessions: mqtt.max_sessions,
        max_subscriptions: mqtt.max_subscriptions,
        max_queued: mqtt.max_queued,
        overflow: match mqtt.overflow {
            config::Overflow::DropNewest => broker::Overflow::DropNewest,
            config::Overflow::DropOldest => broker::Overflow::DropOldest,
        },
        max_in_flight: mqtt.max_in_flight,
        max_output: clamp(mqtt.max_output.0),
        max_retained: mqtt.max_retained,
        session_expiry_v3: expiry(mqtt.session_expiry),
        session_expiry_max: expiry(mqtt.session_expiry_max),
        durability: mqtt
            .rules
            .iter()
            .map(|rule| (rule.filter.clone(), durability(rule.durability)))
            .collect(),
        sys_interval: mqtt.sys_interval.0,
        ..BrokerConfig::default()
    }
}

fn access(config: &Config) -> Result<(Arc<dyn Access>, Option<Arc<FileAccess>>), Failure> {
    let mqtt = &config.mqtt;
    let file = |path: &Path| (!path.as_os_str().is_empty()).then(|| path.to_path_buf());
    let (users, acl) = (file(&mqtt.users), file(&mqtt.acl));
    if users.is_none() && acl.is_none() {
        return Ok((Arc::new(OpenAccess), None));
    }
    let refusal = ReasonCode::from_u8(mqtt.subscribe_refusal).unwrap_or(ReasonCode::NotAuthorized);
    let files = FileAccess::open(FileSettings { users, acl, refusal }).map_err(|error| {
        Failure::new(Exit::Config, "the users or the rules of the MQTT broker cannot be read")
            .why(chain(&error))
            .fix("correct the file; without it nobody is let in")
    })?;
    let files = Arc::new(files);
    Ok((files.clone(), Some(files)))
}

fn cannot_bind(error: &ServerError) -> Failure {
    Failure::new(Exit::CannotOpen, "the MQTT broker cannot listen")
        .why(chain(error))
        .fix("stop the process that has the address, choose another one with --mqtt or --http, or say `off`")
}

/// The door ended by itself.
pub(crate) fn ended(error: &ServerError) -> Failure {
    Failure::new(Exit::CannotOpen, "the MQTT broker ended; nothing more was promised").why(chain(error))
}

fn clamp(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

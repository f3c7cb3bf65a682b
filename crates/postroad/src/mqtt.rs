//! The MQTT door of `postroad serve`: settings to listeners, dead letters to their topics, files that change.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use postroad_core::Subject;
use postroad_engine::{Death, Engine, Letter};
use postroad_mqtt::{
    access::{Access, FileAccess, FileSettings, OpenAccess},
    broker::{self, BrokerConfig, DeadLetter, ListenerConfig, letter_payload},
    codec::ReasonCode,
    lines::{LinesConfig, Role},
    server::{
        LinesOptions, ListenerOptions, OnDead, Server, ServerConfig, ServerError, ServerHandle, TlsFiles,
        WebSocketRules,
    },
};

use crate::{
    config::{self, Config, Listen},
    exit::{Exit, Failure, chain},
};

/// How often files of users, rules and certificates are looked at.
const RELOAD: Duration = Duration::from_secs(2);

/// A door that is bound.
pub(crate) struct Door {
    pub(crate) server: Server,
    /// What is served where, for the banner.
    pub(crate) addresses: Vec<(&'static str, SocketAddr)>,
    files: Option<Arc<FileAccess>>,
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
    let server = server.on_dead(graveyard(Arc::clone(engine)));
    let bound = server.local_addrs().map_err(|error| cannot_bind(&ServerError::Io(error)))?;
    Ok(Some(Door { server, addresses: titles.into_iter().zip(bound).collect(), files }))
}

impl Door {
    /// Looks at the files again and again; ends with the runtime.
    pub(crate) fn watch_files(&self) {
        let (files, handle) = (self.files.clone(), self.server.handle());
        tokio::spawn(async move {
            let mut interval = tokio::time::interval(RELOAD);
            let mut certificates = Stamp::default();
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

/// When certificates were looked at last; they are read again every minute, which costs nothing.
#[derive(Clone, Copy, Debug, Default)]
struct Stamp(u32);

fn reload(files: Option<&FileAccess>, handle: &ServerHandle, Stamp(turn): Stamp) -> Stamp {
    if let Some(files) = files {
        // An error is logged there, and the old rules stay.
        let _ = files.reload();
    }
    if turn % 30 == 29 {
        let _ = handle.reload_certificates();
    }
    Stamp(turn.wrapping_add(1))
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
        ("MQTT", mqtt.listen, None, None),
        ("MQTT+TLS", mqtt.tls, Some(tls()), None),
        ("MQTT+WS", http.listen, None, Some(websocket)),
    ];
    let mut listeners = Vec::new();
    let mut titles = Vec::new();
    for (title, listen, tls, websocket) in doors {
        let Listen::At(address) = listen else { continue };
        let rules = ListenerConfig { name: title.to_owned(), ..listener_config(config) };
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
        durability: durability(mqtt.durability),
        ..ListenerConfig::default()
    }
}

fn durability(durability: config::Durability) -> broker::Durability {
    match durability {
        config::Durability::Log => broker::Durability::Log,
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

/// Dead letters go to `$dead/TOPIC`, where every door can read them.
fn graveyard(engine: Arc<Engine>) -> OnDead {
    Box::new(move |letters: Vec<DeadLetter>| {
        for letter in letters {
            if let Err(error) = bury(&engine, &letter) {
                tracing::error!(topic = %letter.topic, client = %letter.client, reason = letter.reason, %error,
                    "a dead letter could not be written");
            }
        }
    })
}

fn bury(engine: &Engine, letter: &DeadLetter) -> Result<(), String> {
    // MQTT has topics that no other door has, with empty levels for example: those have one place together.
    let topic =
        Subject::new(letter.topic.as_str()).or_else(|_| Subject::new("mqtt")).map_err(|e| e.to_string())?;
    let death = Death {
        reason: letter.reason.to_owned(),
        topic: letter.topic.as_str().to_owned(),
        seq: letter.seq,
        subscription: format!("mqtt client {}", letter.client),
        attempts: letter.attempts,
        first: letter.published,
        last: letter.died,
        id: None,
    };
    let id = serde_json::to_string(&letter.id).map_err(|e| e.to_string())?;
    let (kind, payload) = letter_payload(&letter.payload);
    let letter = Letter { id: &id, death: &death, kind, payload: &payload };
    engine.dead_letter(&topic, &letter).map(|_| ()).map_err(|e| e.to_string())
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

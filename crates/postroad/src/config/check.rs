//! Rules between settings, checked before anything is opened.

use super::{ByteSize, Listen, Loaded, Words};
use crate::exit::{Exit, Failure};

/// Commands whose words are fixed; a changed word may not hide one of them.
const FIXED_WORDS: [&str; 11] =
    ["pubn", "nack", "touch", "bury", "kick", "peek", "topics", "stats", "hello", "help", "quit"];

/// Refuses values that would be accepted one by one and cannot work.
pub(super) fn check(loaded: &Loaded) -> Result<(), Failure> {
    let config = &loaded.config;
    let refuse = |key: &str, why: String, fix: &str| {
        Err(Failure::new(Exit::Config, format!("the setting `{key}` cannot work ({})", loaded.origin(key)))
            .why(why)
            .fix(fix))
    };
    let at_least = |key: &str, value: ByteSize, least: ByteSize, because: &str| {
        if value >= least {
            return Ok(());
        }
        refuse(key, format!("{value} is less than {least}, {because}"), "make it larger")
    };

    let jsonlog = &config.jsonlog;
    at_least("jsonlog.max_line", jsonlog.max_line, ByteSize(64), "too short for a command")?;
    if jsonlog.max_line > ByteSize(64 << 20) {
        return refuse(
            "jsonlog.max_line",
            format!("{} is more than 64MiB", jsonlog.max_line),
            "make it smaller",
        );
    }
    if jsonlog.max_bulk > ByteSize(1 << 30) {
        return refuse(
            "jsonlog.max_bulk",
            format!("{} is more than 1GiB", jsonlog.max_bulk),
            "make it smaller",
        );
    }
    at_least("jsonlog.max_bulk", jsonlog.max_bulk, jsonlog.max_line, "the largest event (jsonlog.max_line)")?;
    at_least("jsonlog.max_output", jsonlog.max_output, ByteSize(4 << 10), "the smallest useful buffer")?;
    at_least(
        "jsonlog.max_partial",
        jsonlog.max_partial,
        jsonlog.max_bulk,
        "the largest command (jsonlog.max_bulk)",
    )?;
    at_least(
        "journal.queue_bytes",
        config.journal.queue_bytes,
        jsonlog.max_bulk,
        "the largest command (jsonlog.max_bulk)",
    )?;
    at_least(
        "journal.segment_bytes",
        config.journal.segment_bytes,
        ByteSize(4 << 10),
        "the smallest useful segment",
    )?;
    if jsonlog.max_connections == 0 {
        return refuse(
            "jsonlog.max_connections",
            "with 0 nobody can connect".into(),
            "set 1 or more, or jsonlog.listen = \"off\"",
        );
    }
    if jsonlog.write_timeout.0.is_zero() {
        return refuse(
            "jsonlog.write_timeout",
            "with 0 every client is too slow".into(),
            "set it to the time that a client may take, like 60s",
        );
    }
    if config.limits.max_topics == 0 {
        return refuse("limits.max_topics", "with 0 there can be no topic".into(), "set 1 or more");
    }
    check_words(&jsonlog.words).or_else(|(key, why)| {
        refuse(key, why, "use short words of lower-case letters that no other command has")
    })?;
    if jsonlog.listen.is_public() && jsonlog.tokens.is_empty() && !config.server.insecure {
        return refuse(
            "jsonlog.listen",
            format!("{} can be reached from other machines, and nobody has to log in", jsonlog.listen),
            "set jsonlog.tokens, or listen on 127.0.0.1, or say --insecure if the network is yours",
        );
    }
    let mqtt = &config.mqtt;
    for (key, listen) in [
        ("mqtt.listen", mqtt.listen),
        ("mqtt.tls", mqtt.tls),
        ("lines.listen", config.lines.listen),
        ("http.listen", config.http.listen),
    ] {
        let open =
            mqtt.users.as_os_str().is_empty() && !mqtt.require_client_certificate || mqtt.allow_anonymous;
        if listen.is_public() && open && !config.server.insecure {
            return refuse(
                key,
                format!("{listen} can be reached from other machines, and nobody has to log in"),
                "set mqtt.users, or listen on 127.0.0.1, or say --insecure if the network is yours",
            );
        }
    }
    if mqtt.tls != Listen::Off && (mqtt.certificate.as_os_str().is_empty() || mqtt.key.as_os_str().is_empty())
    {
        return refuse(
            "mqtt.tls",
            "there is no certificate".into(),
            "set mqtt.certificate and mqtt.key, PEM files",
        );
    }
    if mqtt.require_client_certificate && mqtt.client_ca.as_os_str().is_empty() {
        return refuse(
            "mqtt.require_client_certificate",
            "nobody is known who signs them".into(),
            "set mqtt.client_ca, a PEM file",
        );
    }
    if !matches!(mqtt.subscribe_refusal, 128 | 135) {
        return refuse(
            "mqtt.subscribe_refusal",
            format!("{} is not a reason code for that", mqtt.subscribe_refusal),
            "set 135 or 128",
        );
    }
    for (key, value) in [
        ("mqtt.max_connections", mqtt.max_connections),
        ("mqtt.max_sessions", mqtt.max_sessions),
        ("mqtt.max_queued", mqtt.max_queued),
        ("mqtt.receive_maximum", usize::from(mqtt.receive_maximum)),
        ("mqtt.max_in_flight", usize::from(mqtt.max_in_flight)),
    ] {
        if value == 0 {
            return refuse(key, "with 0 nothing can be received".into(), "set 1 or more");
        }
    }
    at_least("mqtt.max_packet", mqtt.max_packet, ByteSize(1 << 10), "too small for a CONNECT")?;
    at_least("lines.max_line", config.lines.max_line, ByteSize(256), "too short for a message")?;
    if config.lines.max_sends == 0 || config.lines.resend.0.is_zero() {
        return refuse(
            "lines.max_sends",
            "with 0 nothing is ever sent".into(),
            "set 1 or more, and lines.resend too",
        );
    }
    for rule in &mqtt.rules {
        if let Err(error) = postroad_mqtt::codec::topic::validate_filter(&rule.filter, 128) {
            return refuse(
                "mqtt.rules",
                format!("`{}`: {error}", rule.filter),
                "use topic filters like `sensors/+/state` or `logs/#`",
            );
        }
    }
    Ok(())
}

fn check_words(words: &Words) -> Result<(), (&'static str, String)> {
    let all = [
        ("jsonlog.words.pub", &words.publish),
        ("jsonlog.words.sub", &words.subscribe),
        ("jsonlog.words.unsub", &words.unsubscribe),
        ("jsonlog.words.ack", &words.ack),
    ];
    for (at, (key, word)) in all.iter().enumerate() {
        let valid = !word.is_empty() && word.len() <= 32 && word.bytes().all(|byte| byte.is_ascii_graphic());
        if !valid {
            return Err((key, format!("`{}` is not one word of at most 32 characters", word.escape_debug())));
        }
        if FIXED_WORDS.contains(&word.as_str()) {
            return Err((key, format!("`{word}` is another command")));
        }
        if let Some((other, _)) = all[..at].iter().find(|(_, earlier)| earlier == word) {
            return Err((key, format!("`{word}` is the word of {other} too")));
        }
    }
    Ok(())
}

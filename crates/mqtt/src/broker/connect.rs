//! CONNECT and AUTH: who it is, and which session it gets (sections 3.1, 3.2, 4.12).

use super::config::Durability;
use super::conn::Stage;
use super::message::Message;
use super::session::Will;
use super::{Broker, ConnId, Timer, Waiting};
use crate::access::{Attempt, Check, Denied, Identity, Step};
use crate::codec::{
    Auth, AuthProperties, Connack, Connect, Packet, PublishProperties, ReasonCode, Utf8, Version,
};
use postroad_core::mailbox::Millis;
use std::num::{NonZeroU16, NonZeroU32};

/// Topic aliases given to one client: each keeps its topic in memory.
const MAX_ALIASES: u16 = 64;

impl Broker {
    pub(super) fn greet(&mut self, id: ConnId, mut connect: Connect, now: Millis) {
        let Some(conn) = self.conn_mut(id) else { return };
        conn.version = connect.version;
        conn.max_packet = connect.properties.maximum_packet_size.map_or(u32::MAX, NonZeroU32::get);
        conn.alias_max = connect.properties.topic_alias_maximum.unwrap_or(0).min(MAX_ALIASES);
        conn.problem_information = connect.properties.request_problem_information.unwrap_or(true);
        // What it says outlives the buffer it came in.
        connect.client_id = connect.client_id.to_detached();
        if self.draining {
            return self.refuse(id, ReasonCode::ServerUnavailable, Some("the server goes down"));
        }
        if connect.client_id.is_empty() && !connect.clean_start && !connect.version.is_v5() {
            // [MQTT-3.1.3-8] of 3.1.1
            return self.refuse(id, ReasonCode::ClientIdentifierNotValid, None);
        }
        let Some(conn) = self.conn(id) else { return };
        if connect.client_id.starts_with(super::door::RESERVED) && !conn.inner {
            // [MQTT-3.1.3-8]: their sessions belong to clients of other doors.
            return self.refuse(id, ReasonCode::ClientIdentifierNotValid, Some("this client id is reserved"));
        }
        let attempt = Attempt {
            client_id: &connect.client_id,
            user_name: connect.user_name.as_deref(),
            password: connect.password.as_deref(),
            certificate: conn.peer.certificate.as_deref(),
            address: conn.peer.address,
            allow_anonymous: conn.listener.allow_anonymous,
        };
        let Some(method) = connect.properties.authentication_method.clone() else {
            return match self.access.check(&attempt) {
                Check::Known(Ok(who)) => self.accept(id, connect, who, None, now),
                Check::Known(Err(denied)) => self.deny(id, denied),
                Check::Password(check) => self.check_password(id, connect, check, now),
            };
        };
        let exchange = self.access.begin_exchange(&method, &attempt);
        match exchange {
            Ok(mut exchange) => {
                let step = exchange.step(connect.properties.authentication_data.as_deref());
                if let Some(conn) = self.conn_mut(id) {
                    conn.extras().method = Some(method.to_detached());
                    if matches!(step, Step::Continue(_)) {
                        conn.stage = Stage::Authenticating(Box::new((connect, exchange)));
                        self.go_on(id, step, None, now);
                    } else {
                        self.go_on(id, step, Some(connect), now);
                    }
                }
            }
            Err(denied) => self.deny(id, denied),
        }
    }

    /// AUTH of the client: the next step, or a new round on an open connection. [MQTT-4.12.0-3], [MQTT-4.12.1-1]
    pub(super) fn auth(&mut self, id: ConnId, auth: &Auth, now: Millis) {
        let method = auth.properties.as_ref().and_then(|p| p.authentication_method.clone());
        let data = auth.properties.as_ref().and_then(|p| p.authentication_data.clone());
        let Some(conn) = self.conn_mut(id) else { return };
        if conn.extras.as_ref().and_then(|extras| extras.method.clone()) != method || method.is_none() {
            return self.fail(id, ReasonCode::BadAuthenticationMethod, now);
        }
        if let Stage::Authenticating(parts) = &mut conn.stage {
            if auth.reason != ReasonCode::ContinueAuthentication {
                return self.fail(id, ReasonCode::ProtocolError, now);
            }
            let step = parts.1.step(data.as_deref());
            if matches!(step, Step::Continue(_)) {
                return self.go_on(id, step, None, now);
            }
            if let Stage::Authenticating(parts) = std::mem::replace(&mut conn.stage, Stage::New) {
                self.go_on(id, step, Some(parts.0), now);
            }
            return;
        }
        let Some(index) = conn.session() else { return self.fail(id, ReasonCode::ProtocolError, now) };
        let exchange = conn.extras.as_mut().and_then(|extras| extras.exchange.take());
        let exchange = match (auth.reason, exchange) {
            (ReasonCode::ContinueAuthentication, Some(exchange)) => exchange,
            (ReasonCode::ReAuthenticate, _) => {
                let client_id =
                    self.state.sessions.get(index).map(|session| session.client.clone()).unwrap_or_default();
                let Some(conn) = self.conn(id) else { return };
                let attempt = Attempt {
                    client_id: &client_id,
                    user_name: None,
                    password: None,
                    certificate: conn.peer.certificate.as_deref(),
                    address: conn.peer.address,
                    allow_anonymous: false,
                };
                match self.access.begin_exchange(method.as_deref().unwrap_or_default(), &attempt) {
                    Ok(exchange) => exchange,
                    Err(denied) => return self.fail(id, denied.reason(), now),
                }
            }
            _ => return self.fail(id, ReasonCode::ProtocolError, now),
        };
        self.again(id, exchange, data.as_deref(), now);
    }

    /// A step of a re-authentication. The user must stay the same.
    fn again(
        &mut self,
        id: ConnId,
        mut exchange: Box<dyn crate::access::Exchange>,
        data: Option<&[u8]>,
        now: Millis,
    ) {
        match exchange.step(data) {
            Step::Continue(data) => {
                if let Some(conn) = self.conn_mut(id) {
                    conn.extras().exchange = Some(exchange);
                }
                self.send_auth(id, ReasonCode::ContinueAuthentication, Some(data));
            }
            Step::Done(who, data) => {
                if self.conn(id).is_some_and(|conn| conn.who.name() != who.name()) {
                    return self.fail(id, ReasonCode::NotAuthorized, now);
                }
                self.send_auth(id, ReasonCode::Success, data);
            }
            // 0x86 is a reason for CONNACK only (section 3.14.2.1).
            Step::Denied(Denied::BadUserNameOrPassword) => self.fail(id, ReasonCode::NotAuthorized, now),
            Step::Denied(denied) => self.fail(id, denied.reason(), now),
        }
    }

    fn go_on(&mut self, id: ConnId, step: Step, connect: Option<Connect>, now: Millis) {
        match (step, connect) {
            (Step::Done(who, data), Some(connect)) => self.accept(id, connect, who, data, now),
            (Step::Continue(data), _) => self.send_auth(id, ReasonCode::ContinueAuthentication, Some(data)),
            (Step::Denied(denied), _) => self.deny(id, denied),
            (Step::Done(..), None) => self.fail(id, ReasonCode::ProtocolError, now),
        }
    }

    fn send_auth(&mut self, id: ConnId, reason: ReasonCode, data: Option<Vec<u8>>) {
        let method = self.conn(id).and_then(|conn| conn.extras.as_ref()?.method.clone());
        let properties = AuthProperties {
            authentication_method: method,
            authentication_data: data.map(Into::into),
            ..AuthProperties::default()
        };
        self.send(id, &Packet::Auth(Auth { reason, properties: Some(Box::new(properties)) }));
    }

    pub(super) fn deny(&mut self, id: ConnId, denied: Denied) {
        self.counters.denied += 1;
        self.refuse(id, denied.reason(), Some(&denied.to_string()));
    }

    /// The client is who it says: it gets a session. CONNACK leaves when that is in the log.
    pub(super) fn accept(
        &mut self,
        id: ConnId,
        connect: Connect,
        who: Identity,
        data: Option<Vec<u8>>,
        now: Millis,
    ) {
        let Some(conn) = self.conn(id) else { return };
        let listener = conn.listener.clone();
        // Other doors promise what they always do.
        let buffered = listener.durability == Durability::Os && !conn.inner;
        let assigned = connect.client_id.is_empty();
        let client = if assigned { self.assign_client_id() } else { connect.client_id.clone() };
        let v5 = connect.version.is_v5();
        if let Some(will) = &connect.will
            && !self.access.may_publish(&who, &client, &will.topic, will.retain)
        {
            return self.refuse(id, ReasonCode::NotAuthorized, Some("the will may not be published"));
        }
        if let Some(max) = self.access.limits(&who).max_connections {
            let same = self
                .conns
                .iter()
                .filter(|(_, conn)| conn.session().is_some() && conn.who.name() == who.name());
            let there = self.state.by_client.get(&client).and_then(|i| self.state.sessions.get(*i)?.conn);
            if same.filter(|(_, conn)| Some(conn.id) != there).count() >= max as usize {
                return self.refuse(id, ReasonCode::QuotaExceeded, Some("too many connections of this user"));
            }
        }
        let asked = match (v5, connect.clean_start) {
            (true, _) => connect.properties.session_expiry_interval.unwrap_or(0),
            (false, true) => 0,
            (false, false) => self.config.session_expiry_v3,
        };
        let expiry = asked.min(self.config.session_expiry_max);
        let other = self.state.by_client.get(&client).copied();
        if let Some(index) = other {
            if self.state.sessions.get(index).is_some_and(|session| session.owner.as_deref() != who.name()) {
                return self.refuse(
                    id,
                    ReasonCode::NotAuthorized,
                    Some("the session of this client id belongs to another user"),
                );
            }
            self.take_over(index, now);
            if connect.clean_start {
                // [MQTT-3.1.2-4]
                self.end_session(index, now);
            }
        }
        let index = match self.state.by_client.get(&client).copied() {
            Some(index) => index,
            None if self.state.sessions.len() >= self.config.max_sessions => {
                return self.refuse(id, ReasonCode::QuotaExceeded, Some("too many sessions"));
            }
            None => {
                let index = self.state.begin(client.clone(), expiry > 0, expiry);
                if let Some(session) = self.state.sessions.get_mut(index) {
                    session.fresh = true;
                }
                index
            }
        };
        let window =
            if v5 { connect.properties.receive_maximum.map_or(u16::MAX, NonZeroU16::get) } else { u16::MAX };
        let window = window.min(self.config.max_in_flight).max(1);
        let will = connect.will.map(|will| Box::new(will_of(will, now)));
        let Some(session) = self.state.sessions.get_mut(index) else { return };
        let present = !std::mem::take(&mut session.fresh);
        // Its timers are for when it is away: a client that comes and goes must not leave one each time.
        if let Some(due) = session.expires_at() {
            self.timers.remove(&(due, Timer::SessionExpiry(session.number)));
        }
        if let (Some(away), Some(will)) = (session.away, &session.will) {
            self.timers.remove(&(away + u64::from(will.delay) * 1000, Timer::WillDelay(session.number)));
        }
        session.conn = Some(id);
        session.buffered = buffered;
        session.who = who.clone();
        session.owner = who.name().map(Into::into);
        session.expiry = expiry;
        session.window = window;
        session.away = None;
        session.will = will;
        if let Some(queue) = session.outgoing_mut() {
            queue.attach(window);
        }
        let mut ticket = session.ticket;
        // A session that ends with its connection is in the log only for its will, which somebody must publish.
        if session.durable || session.will.is_some() {
            session.in_log = true;
            ticket = self.book.append_as(session.buffered, now, |pen, log| pen.here(log, session));
            session.ticket = ticket;
        }
        let keep_alive = match (v5, connect.keep_alive, listener.keep_alive_max) {
            (true, asked, max) if max > 0 && (asked == 0 || asked > max) => max,
            (_, asked, _) => asked,
        };
        let Some(conn) = self.conn_mut(id) else { return };
        conn.stage = Stage::Open { session: index };
        conn.who = who;
        // [MQTT-3.1.2-22]: one and a half times.
        conn.keep_alive = u64::from(keep_alive) * 1500;
        if keep_alive > 0 {
            let due = now + conn.keep_alive;
            self.arm(id, due);
        }
        self.counters.connects += 1;
        let mut connack = Connack::accepted(present);
        if connect.version == Version::V5 {
            let extras = self.conn(id).and_then(|conn| conn.extras.as_ref()?.method.clone());
            let properties = &mut connack.properties;
            properties.session_expiry_interval = (expiry != asked).then_some(expiry);
            properties.assigned_client_identifier = assigned.then(|| client.clone());
            properties.server_keep_alive = (keep_alive != connect.keep_alive).then_some(keep_alive);
            properties.receive_maximum = NonZeroU16::new(listener.receive_maximum);
            properties.topic_alias_maximum = Some(listener.topic_alias_maximum);
            properties.maximum_packet_size = NonZeroU32::new(listener.max_packet_size);
            properties.authentication_data = data.map(Into::into).filter(|_| extras.is_some());
            properties.authentication_method = extras;
        }
        let ticket = self.in_turn(id, ticket);
        self.after(
            ticket,
            Waiting::Packet { conn: id, packet: Box::new(Packet::Connack(Box::new(connack))) },
            now,
        );
        self.after(ticket, Waiting::Resume { conn: id }, now);
    }

    /// An id that no client has.
    fn assign_client_id(&mut self) -> Utf8 {
        loop {
            self.counters.assigned += 1;
            // Unique over restarts, without randomness: when this life began, and a count.
            let text = format!("postroad-{:x}-{}", self.started, self.counters.assigned);
            if let Ok(client) = Utf8::try_from(text)
                && !self.state.by_client.contains_key(&client)
            {
                return client;
            }
        }
    }

    /// The session's present connection ends because another one came. [MQTT-3.1.4-3]
    fn take_over(&mut self, index: usize, now: Millis) {
        let old = self.state.sessions.get(index).and_then(|session| session.conn);
        if let Some(old) = old {
            self.fail_with(
                old,
                ReasonCode::SessionTakenOver,
                Some("another connection uses this client id"),
                true,
                now,
            );
        }
    }
}

fn will_of(will: crate::codec::Will, now: Millis) -> Will {
    let properties = will.properties.unwrap_or_default();
    let mut message = Message {
        topic: will.topic,
        payload: will.payload,
        qos: will.qos,
        retain: will.retain,
        time: now,
        expires: None,
        properties: Some(Box::new(PublishProperties {
            payload_format_indicator: properties.payload_format_indicator,
            content_type: properties.content_type.as_ref().map(Utf8::to_detached),
            response_topic: properties.response_topic.as_ref().map(Utf8::to_detached),
            correlation_data: properties.correlation_data.as_deref().map(bytes::Bytes::copy_from_slice),
            user_properties: properties
                .user_properties
                .iter()
                .map(|(name, value)| (name.to_detached(), value.to_detached()))
                .collect(),
            ..PublishProperties::default()
        })),
    };
    message.detach();
    Will {
        message,
        expiry: properties.message_expiry_interval,
        delay: properties.will_delay_interval.unwrap_or(0),
    }
}

//! Clients whose password is being checked on another thread: a bounded line, fair to each address.

use super::conn::Stage;
use super::{Broker, ConnId};
use crate::access::{Denied, Identity, PasswordCheck};
use crate::codec::{Connect, ReasonCode, Utf8, Will};
use bytes::Bytes;
use postroad_core::mailbox::Millis;
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};

/// Who stands in line: an IPv4 address, or the network of an IPv6 address, of which one host has as many as it likes.
type Source = Option<IpAddr>;

fn source(address: Source) -> Source {
    address.map(|address| match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 @ IpAddr::V4(_) => v4,
    })
}

/// Checks that nobody has begun. Sources take turns; each has its own line.
#[derive(Debug, Default)]
pub(super) struct Logins {
    // No line is empty.
    lines: HashMap<Source, VecDeque<(ConnId, PasswordCheck)>>,
    turns: VecDeque<Source>,
    len: usize,
    /// Somebody takes them with [`Broker::next_login`].
    elsewhere: bool,
}

impl Logins {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Puts a check in line. Where that makes more than `max`, the last one of the longest line has to go: it is given.
    fn push(&mut self, from: Source, id: ConnId, check: PasswordCheck, max: usize) -> Option<ConnId> {
        let line = self.lines.entry(from).or_default();
        if line.is_empty() {
            self.turns.push_back(from);
        }
        line.push_back((id, check));
        self.len += 1;
        if self.len <= max {
            return None;
        }
        // Of lines of the same length the newcomer's: it has waited least.
        let longest = self.lines.iter().max_by_key(|(key, line)| (line.len(), **key == from));
        let longest = longest.map(|(key, _)| *key)?;
        let last = self.lines.get(&longest)?.back()?.0;
        self.remove(longest, last);
        Some(last)
    }

    fn pop(&mut self) -> Option<(ConnId, PasswordCheck)> {
        let from = self.turns.pop_front()?;
        let line = self.lines.get_mut(&from)?;
        let first = line.pop_front();
        if line.is_empty() {
            self.lines.remove(&from);
        } else {
            self.turns.push_back(from);
        }
        self.len -= usize::from(first.is_some());
        first
    }

    fn remove(&mut self, from: Source, id: ConnId) {
        let Some(line) = self.lines.get_mut(&from) else { return };
        let before = line.len();
        line.retain(|(other, _)| *other != id);
        self.len -= before - line.len();
        if line.is_empty() {
            self.lines.remove(&from);
            self.turns.retain(|other| *other != from);
        }
    }
}

impl Broker {
    /// From now on passwords are not checked in [`Broker::input`], which takes the time of a hash, but by whoever calls
    /// [`Broker::next_login`] after each input.
    pub fn log_in_elsewhere(&mut self) {
        self.logins.elsewhere = true;
    }

    /// A password to be checked on another thread; the result is for [`Broker::logged_in`]. The connection is not read
    /// meanwhile. Who has a check in line longer than `connect_timeout` is closed.
    pub fn next_login(&mut self) -> Option<(ConnId, PasswordCheck)> {
        self.logins.pop()
    }

    /// What became of a check. The connection may be gone.
    pub fn logged_in(&mut self, id: ConnId, result: Result<Identity, Denied>, now: Millis) {
        let Some(conn) = self.conn_mut(id).filter(|conn| matches!(conn.stage, Stage::Checking(_))) else {
            return;
        };
        let Stage::Checking(connect) = std::mem::replace(&mut conn.stage, Stage::New) else { return };
        self.maybe_snapshot(now);
        match result {
            // The users may be others than when it began.
            Ok(who) if self.access.is_current(&who) => self.accept(id, *connect, who, None, now),
            Ok(_) => self.deny(id, Denied::BadUserNameOrPassword),
            Err(denied) => self.deny(id, denied),
        }
        self.log_batch(now);
        // What came behind CONNECT may be read.
        self.touch(id);
    }

    pub(super) fn check_password(
        &mut self,
        id: ConnId,
        mut connect: Connect,
        check: PasswordCheck,
        now: Millis,
    ) {
        if !self.logins.elsewhere {
            return match check.run() {
                Ok(who) => self.accept(id, connect, who, None, now),
                Err(denied) => self.deny(id, denied),
            };
        }
        detach(&mut connect);
        let max = self.config.max_logins;
        let Some(conn) = self.conn_mut(id) else { return };
        conn.stage = Stage::Checking(Box::new(connect));
        let from = source(conn.peer.address.map(|address| address.ip()));
        if let Some(last) = self.logins.push(from, id, check, max) {
            self.counters.busy += 1;
            self.refuse(last, ReasonCode::ServerBusy, Some("too many clients log in"));
        }
    }

    /// The connection ends: nobody need check its password any more.
    pub(super) fn forget_login(&mut self, id: ConnId) {
        if let Some(conn) = self.conn(id)
            && matches!(conn.stage, Stage::Checking(_))
        {
            let from = source(conn.peer.address.map(|address| address.ip()));
            self.logins.remove(from, id);
        }
    }
}

/// Keeps what is needed of a CONNECT, and lets go of the buffer that it came in, which is much larger.
fn detach(connect: &mut Connect) {
    connect.user_name = None;
    connect.password = None;
    connect.properties.user_properties.clear();
    connect.properties.authentication_data = None;
    if let Some(Will { topic, payload, properties, .. }) = &mut connect.will {
        *topic = topic.to_detached();
        *payload = Bytes::copy_from_slice(payload);
        if let Some(properties) = properties {
            let detached = |text: &mut Option<Utf8>| *text = text.as_ref().map(Utf8::to_detached);
            detached(&mut properties.content_type);
            detached(&mut properties.response_topic);
            properties.correlation_data = properties.correlation_data.as_deref().map(Bytes::copy_from_slice);
            for (name, value) in &mut properties.user_properties {
                (*name, *value) = (name.to_detached(), value.to_detached());
            }
        }
    }
}

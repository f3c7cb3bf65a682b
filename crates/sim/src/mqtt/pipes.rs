//! What moves bytes between clients and the broker, and what breaks connections.

use super::cast::Door;
use super::facts::Fact;
use super::world::{End, World};
use crate::history::Conn;
use crate::net::Link;
use bytes::BytesMut;
use postroad_mqtt::broker::{Durability, ListenerConfig, Peer};
use postroad_mqtt::lines::{DoorListener, Role};
use std::io::IoSlice;
use std::sync::Arc;

impl World {
    /// What a client has written goes under way.
    pub(super) fn post(&mut self, who: usize) -> bool {
        let Some(Some(client)) = self.clients.get_mut(who) else { return false };
        let written = client.written();
        let link = self.links.values_mut().find(|link| link.guest == who && link.client_open);
        if let Some(link) = link {
            link.up.send(&written);
        }
        !written.is_empty()
    }

    pub(super) fn connect(&mut self, who: usize) {
        let now = self.now();
        let durability = if self.buffered() { Durability::Os } else { Durability::Fsync };
        let (Some(life), Some(Some(client))) = (&mut self.life, self.clients.get_mut(who)) else { return };
        let listener = ListenerConfig {
            receive_maximum: if self.climate.interest { 3 } else { 1024 },
            durability,
            ..ListenerConfig::default()
        };
        let rules = Arc::new(listener);
        let listener = match client.door() {
            Door::Mqtt => DoorListener::Mqtt(rules),
            Door::Consumers => DoorListener::Lines(Role::Consumers, rules),
            Door::Publishers => DoorListener::Lines(Role::Publishers, rules),
        };
        let Ok(id) = life.doors.connect(&listener, Peer::default(), now) else { return };
        let conn = self.next_conn;
        self.next_conn += 1;
        let tap = client.tap(conn);
        // A consumer of lines is greeted before it says anything.
        let end = End { id, tap, bytes: BytesMut::new(), touched: true, held: false };
        life.ends.insert(conn, end);
        client.connected(&mut self.seen);
        self.links.insert(conn, Link::new(conn, who));
        self.post(who);
    }

    /// Bytes reach the broker.
    pub(super) fn up(&mut self, which: usize, max: usize) -> bool {
        let now = self.now();
        let Some(life) = &mut self.life else { return false };
        let ready = |conn: &Conn, link: &Link| {
            link.server_open
                && (!link.up.is_empty() || link.up.ended)
                && life.ends.get(conn).is_some_and(|end| !end.held)
        };
        let ready: Vec<Conn> =
            self.links.iter().filter(|(conn, link)| ready(conn, link)).map(|(conn, _)| *conn).collect();
        if ready.is_empty() {
            return false;
        }
        let conn = ready[which % ready.len()];
        let (Some(link), Some(end)) = (self.links.get_mut(&conn), life.ends.get_mut(&conn)) else {
            return false;
        };
        if !life.doors.wants_input(end.id) {
            end.held = true;
            return false;
        }
        if link.up.is_empty() {
            self.server_closes(conn);
            return true;
        }
        link.up.receive(max, &mut self.buffer);
        end.tap.enter(&self.buffer, &mut self.seen);
        end.bytes.extend_from_slice(&self.buffer);
        let (id, mut bytes) = (end.id, std::mem::take(&mut end.bytes));
        self.with(|doors| doors.input(id, &mut bytes, now));
        if let Some(end) = self.life.as_mut().and_then(|life| life.ends.get_mut(&conn)) {
            end.bytes = bytes;
        }
        true
    }

    /// Writes what connections have to say, as far as their pipes have room. True if anything was.
    pub(super) fn pump(&mut self) -> bool {
        let mut moved = false;
        while let Some(conn) = self.pump_next() {
            moved |= conn;
        }
        moved
    }

    /// Writes to one connection that was touched and has room; whether that did anything.
    fn pump_next(&mut self) -> Option<bool> {
        let now = self.now();
        let life = self.life.as_mut()?;
        let links = &self.links;
        let pipe = self.climate.pipe;
        let room = |conn: &Conn| match links.get(conn) {
            Some(link) if link.down.silent => usize::MAX,
            Some(link) => pipe.saturating_sub(link.down.len()),
            None => 0,
        };
        let (conn, end) = life.ends.iter_mut().find(|(conn, end)| end.touched && room(conn) > 0)?;
        let (conn, room, id) = (*conn, room(conn), end.id);
        let Some(outbox) = life.doors.outbox(id) else {
            end.touched = false;
            return Some(false);
        };
        self.buffer.clear();
        let mut slices: Vec<IoSlice<'_>> = Vec::new();
        outbox.slices(&mut slices);
        for slice in &slices {
            self.buffer.extend_from_slice(slice);
        }
        self.buffer.truncate(room);
        outbox.advance(self.buffer.len());
        let (empty, close) = (outbox.is_empty(), outbox.close_after());
        end.tap.leave(&self.buffer, &mut self.seen);
        if empty {
            end.touched = false;
        }
        let link = self.links.get_mut(&conn)?;
        if !link.client_open && !link.down.silent && !self.buffer.is_empty() || empty && close {
            // Nobody is there any more, or nobody is to be.
            link.down.send(&self.buffer);
            self.server_closes(conn);
            return Some(true);
        }
        link.down.send(&self.buffer);
        let moved = !self.buffer.is_empty();
        if empty && moved {
            self.with(|doors| doors.written(id, now));
        }
        Some(moved)
    }

    /// Bytes reach a client.
    pub(super) fn down(&mut self, which: usize, max: usize) -> bool {
        let ready = |link: &Link| link.client_open && (!link.down.is_empty() || link.down.ended);
        let Some(conn) = self.nth(which, ready) else { return false };
        let Some(link) = self.links.get_mut(&conn) else { return false };
        let who = link.guest;
        if link.down.is_empty() {
            self.client_closes(conn);
            return true;
        }
        link.down.receive(max, &mut self.buffer);
        let Some(Some(client)) = self.clients.get_mut(who) else { return false };
        if !client.receive(&self.buffer, &mut self.seen) {
            self.client_closes(conn);
        }
        true
    }

    /// The `which`-th of the links that `fits`, counted in a circle.
    pub(super) fn nth(&self, which: usize, fits: impl Fn(&Link) -> bool) -> Option<Conn> {
        let fitting = || self.links.iter().filter(|(_, link)| fits(link)).map(|(conn, _)| *conn);
        let count = fitting().count();
        if count == 0 { None } else { fitting().nth(which % count) }
    }

    pub(super) fn client_closes(&mut self, conn: Conn) {
        let Some(link) = self.links.get_mut(&conn) else { return };
        if link.client_open {
            link.client_open = false;
            link.up.ended = true;
            if let Some(Some(client)) = self.clients.get_mut(link.guest) {
                client.disconnected();
            }
        }
    }

    pub(super) fn server_closes(&mut self, conn: Conn) {
        let now = self.now();
        let Some(link) = self.links.get_mut(&conn) else { return };
        if link.server_open {
            link.server_open = false;
            link.down.ended = true;
            let id = self.life.as_mut().and_then(|life| life.ends.remove(&conn)).map(|end| end.id);
            if let Some(id) = id {
                self.seen.note(Fact::Gone { conn, polite: false });
                self.with(|doors| doors.lost(id, now));
            }
        }
    }

    pub(super) fn cut(&mut self, conn: Conn, how: u32) {
        match how % 4 {
            0 => {
                self.client_closes(conn);
                self.server_closes(conn);
            }
            // The client closes; what it sent arrives.
            1 => self.client_closes(conn),
            // The client goes on another connection. What it sent here still arrives, before or after that one is there.
            2 => {
                self.client_closes(conn);
                if let Some(link) = self.links.get_mut(&conn) {
                    (link.up.silent, link.down.silent) = (true, true);
                    link.up.ended = false;
                    link.down.lose(0);
                }
            }
            // The client sees it, the broker does not, and part of what was sent is lost.
            _ => {
                if let Some(link) = self.links.get_mut(&conn) {
                    link.up.lose(how as usize / 4 % (link.up.len() + 1));
                }
                self.client_closes(conn);
                self.silence(conn);
            }
        }
    }

    pub(super) fn silence(&mut self, conn: Conn) {
        let Some(link) = self.links.get_mut(&conn) else { return };
        (link.up.silent, link.down.silent) = (true, true);
        link.up.ended = false;
        link.up.lose(0);
        link.down.lose(0);
    }
}

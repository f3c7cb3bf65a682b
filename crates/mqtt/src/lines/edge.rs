//! [`Doors`] behind the edge that serves sockets.

use super::{DoorId, DoorListener, Doors};
use crate::broker::{Outbox, Peer};
use crate::server::OnDead;
use crate::server::machine::{Machine, Origin, Rules};
use bytes::BytesMut;
use postroad_engine::log::Ticket;
use std::sync::Arc;
use std::time::Duration;

/// The doors, and where dead letters of MQTT clients go.
pub(crate) struct DoorsBehind {
    pub(crate) doors: Doors,
    pub(crate) on_dead: Option<OnDead>,
}

impl DoorsBehind {
    /// Hands on the messages that did not arrive.
    fn bury(&mut self) {
        let dead = self.doors.dead_letters();
        if !dead.is_empty()
            && let Some(on_dead) = &mut self.on_dead
        {
            on_dead(dead);
        }
    }
}

impl Machine for DoorsBehind {
    type Id = DoorId;
    type Listener = DoorListener;
    type Outbox = Outbox;

    fn connect(&mut self, listener: &Arc<DoorListener>, origin: Origin, now: u64) -> Option<DoorId> {
        self.doors
            .connect(listener, Peer { address: origin.address, certificate: origin.certificate }, now)
            .ok()
    }

    fn input(&mut self, id: DoorId, input: &mut BytesMut, now: u64) {
        self.doors.input(id, input, now);
    }

    fn lost(&mut self, id: DoorId, now: u64) {
        self.doors.lost(id, now);
    }

    fn committed(&mut self, now: u64) {
        self.doors.committed(now);
    }

    fn tick(&mut self, now: u64) {
        self.doors.tick(now);
    }

    fn next_deadline(&self) -> Option<u64> {
        self.doors.next_deadline()
    }

    fn pending(&mut self) -> Option<Ticket> {
        // Before the commit of the records that settle them.
        self.bury();
        self.doors.pending()
    }

    fn touched(&mut self, out: &mut Vec<DoorId>) {
        self.bury();
        self.doors.touched(out);
    }

    fn outbox(&mut self, id: DoorId) -> Option<&mut Outbox> {
        self.doors.outbox(id)
    }

    fn written(&mut self, id: DoorId, now: u64) {
        self.doors.written(id, now);
    }

    fn metrics(&self) -> String {
        self.doors.metrics()
    }

    fn wants_input(&mut self, id: DoorId) -> bool {
        self.doors.wants_input(id)
    }

    fn drain(&mut self, now: u64) {
        self.doors.drain(now);
    }
}

impl Rules for DoorListener {
    fn name(&self) -> &str {
        let (Self::Mqtt(rules) | Self::Lines(_, rules)) = self;
        &rules.name
    }

    fn max_connections(&self) -> usize {
        let (Self::Mqtt(rules) | Self::Lines(_, rules)) = self;
        rules.max_connections
    }

    fn connect_timeout(&self) -> Duration {
        let (Self::Mqtt(rules) | Self::Lines(_, rules)) = self;
        rules.connect_timeout
    }
}

//! [`Doors`] behind the edge that serves sockets.

use super::{DoorId, DoorListener, Doors};
use crate::broker::{Outbox, Peer};
use crate::server::machine::{Machine, Origin, Rules};
use bytes::BytesMut;
use postroad_engine::log::Ticket;
use std::sync::Arc;
use std::time::Duration;

impl Machine for Doors {
    type Id = DoorId;
    type Listener = DoorListener;
    type Outbox = Outbox;

    fn connect(&mut self, listener: &Arc<DoorListener>, origin: Origin, now: u64) -> Option<DoorId> {
        self.connect(listener, Peer { address: origin.address, certificate: origin.certificate }, now).ok()
    }

    fn input(&mut self, id: DoorId, input: &mut BytesMut, now: u64) {
        self.input(id, input, now);
    }

    fn lost(&mut self, id: DoorId, now: u64) {
        self.lost(id, now);
    }

    fn committed(&mut self, now: u64) {
        self.committed(now);
    }

    fn tick(&mut self, now: u64) {
        self.tick(now);
    }

    fn next_deadline(&self) -> Option<u64> {
        self.next_deadline()
    }

    fn pending(&mut self) -> Option<Ticket> {
        self.pending()
    }

    fn touched(&mut self, out: &mut Vec<DoorId>) {
        self.touched(out);
    }

    fn outbox(&mut self, id: DoorId) -> Option<&mut Outbox> {
        self.outbox(id)
    }

    fn written(&mut self, id: DoorId, now: u64) {
        self.written(id, now);
    }

    fn wants_input(&mut self, id: DoorId) -> bool {
        self.wants_input(id)
    }

    fn drain(&mut self, now: u64) {
        self.drain(now);
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

//! [`Doors`] behind the edge that serves sockets.

use super::{DoorId, DoorListener, Doors};
use crate::access::{Denied, Identity, PasswordCheck};
use crate::broker::{Outbox, Peer};
use crate::server::letters::Undertaker;
use crate::server::machine::{Machine, Origin, Rules};
use crate::server::post::Desk;
use bytes::BytesMut;
use postroad_engine::log::{Mark, Signal};
use std::sync::Arc;
use std::time::Duration;

/// The doors, where dead letters of MQTT clients go, and messages of this process.
pub(crate) struct DoorsBehind {
    pub(crate) doors: Doors,
    pub(crate) undertaker: Undertaker,
    pub(crate) desk: Desk,
}

impl DoorsBehind {
    fn turn(&mut self, now: u64) {
        self.undertaker.turn(&mut self.doors, now);
        self.desk.turn(&mut self.doors, now);
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
        self.turn(now);
    }

    fn tick(&mut self, now: u64) {
        self.doors.tick(now);
        self.turn(now);
    }

    fn next_deadline(&self) -> Option<u64> {
        let own = [self.undertaker.deadline(), self.desk.deadline(&self.doors)];
        own.into_iter().flatten().chain(self.doors.next_deadline()).min()
    }

    fn pending(&mut self) -> Option<Mark> {
        let own = [self.undertaker.pending(&self.doors), self.desk.pending(&self.doors)];
        own.into_iter().flatten().map(Mark::committed).chain(self.doors.pending()).reduce(Mark::and)
    }

    fn touched(&mut self, out: &mut Vec<DoorId>) {
        self.doors.touched(out);
    }

    fn outbox(&mut self, id: DoorId) -> Option<&mut Outbox> {
        self.doors.outbox(id)
    }

    fn written(&mut self, id: DoorId, now: u64) {
        self.doors.written(id, now);
    }

    fn next_login(&mut self) -> Option<(DoorId, PasswordCheck)> {
        self.doors.next_login()
    }

    fn logged_in(&mut self, id: DoorId, result: Result<Identity, Denied>, now: u64) {
        self.doors.logged_in(id, result, now);
    }

    fn wake_with(&mut self, signal: Arc<dyn Signal>) {
        self.desk.wake_with(signal);
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

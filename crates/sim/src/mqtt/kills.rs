//! Who is killed and how, and what the disk does.

use super::facts::Fact;
use super::world::{Check, World};
use postroad_journal::storage::{CrashMode, Storage as _};
use std::path::Path;

impl World {
    pub(super) fn kill_client(&mut self, who: usize, how: u32) {
        let Some(Some(client)) = self.clients.get_mut(who) else { return };
        self.summary.kills += 1;
        client.kill();
        if let Some(conn) = self.nth(0, |link| link.guest == who && link.client_open) {
            self.cut(conn, how);
        }
    }

    /// Whether answers to MQTT clients wait for the operating system only. Then only processes are killed, not machines;
    /// and disks work, because what a disk loses nobody has promised.
    pub(super) fn buffered(&self) -> bool {
        self.climate.token && !self.climate.disk_faults
    }

    /// What of the disk's cache survives a crash, if it is to be that mode.
    pub(super) fn survives(&self, mode: CrashMode) -> CrashMode {
        if self.buffered() { CrashMode::KeepAll } else { mode }
    }

    pub(super) fn kill_broker(&mut self, mode: CrashMode) {
        self.storage.crash(self.survives(mode));
        self.broker_is_gone();
    }

    fn broker_is_gone(&mut self) {
        for link in self.links.values_mut() {
            link.server_open = false;
            link.up.lose(0);
            if !link.down.silent {
                link.down.ended = true;
            }
        }
        if self.life.take().is_some() {
            self.summary.kills += 1;
            self.seen.note(Fact::Closed);
        }
    }

    /// A polite stop, as on SIGTERM, and the next start.
    pub(super) fn restart(&mut self) -> Check {
        let now = self.now();
        if self.with(|doors| doors.drain(now)).is_none() {
            return Ok(());
        }
        self.seen.note(Fact::Stopping);
        for _ in 0..100 {
            self.pump();
            if !self.commit() {
                break;
            }
            self.committed();
        }
        if self.storage.has_crashed() {
            return Ok(());
        }
        // The process ends, the machine does not.
        self.storage.crash(CrashMode::KeepAll);
        self.broker_is_gone();
        self.start()
    }

    pub(super) fn space(&mut self, how: u32) {
        const UNLIMITED: u64 = 1 << 40;
        if self.full || self.storage.has_crashed() {
            self.heal();
        } else if let Ok(free) = self.storage.free_bytes(Path::new("/data")) {
            self.storage.set_capacity(Some(UNLIMITED - free + u64::from(how % 3000)));
            self.full = true;
        }
    }

    pub(super) fn heal(&mut self) {
        self.storage.set_capacity(None);
        self.full = false;
    }
}

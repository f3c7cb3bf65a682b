//! The end of a world: nothing breaks any more, everybody does what is owed, and the disk crashes once more.

use super::{Check, World};
use postroad_journal::storage::CrashMode;

/// Rounds after which a world that still moves counts as stuck.
const ROUNDS: usize = 3000;

impl World<'_> {
    /// Heals the world and waits until nothing moves.
    pub(super) fn calm_down(&mut self) -> Check {
        // Also drops what is left of the fault plan.
        self.kill_broker(CrashMode::ALL[self.next_conn as usize % 4]);
        self.machine.storage.set_capacity(None);
        (self.faulty, self.full) = (false, false);
        for at in 0..self.links.len() {
            self.client_closes(at);
        }
        self.links.clear();
        self.start()?;
        let mut idle = 0;
        for _ in 0..ROUNDS {
            self.history.now = self.machine.now();
            if self.round() {
                idle = 0;
            } else if let Some(wait) = self.machine.next_deadline() {
                self.machine.pass(wait.max(1));
            } else {
                idle += 1;
            }
            if idle > 2 {
                return self.finish();
            }
        }
        Err(format!("the world does not come to rest: {}", self.restless()))
    }

    /// Everybody gets a turn; true if anything moved.
    fn round(&mut self) -> bool {
        let mut moved = false;
        for who in 0..self.guests.len() {
            let Some(guest) = &mut self.guests[who] else { continue };
            let Some(link) = self.links.iter_mut().find(|link| link.guest == who && link.client_open) else {
                if !guest.is_at_rest() {
                    self.connect(who);
                    moved = true;
                }
                continue;
            };
            self.buffer.clear();
            self.summary.commands += u64::from(guest.wind_down(&mut self.buffer, &mut self.history));
            moved |= !self.buffer.is_empty();
            link.up.send(&self.buffer);
        }
        for which in 0..self.links.len() {
            self.up(which, usize::MAX);
        }
        while self.commit() {
            moved = true;
        }
        // Only who was signalled is asked: a signal that is missing leaves the world stuck.
        self.pump_signalled(0, true);
        while self.links.iter().any(|link| link.client_open && (!link.down.is_empty() || link.down.ended)) {
            moved = true;
            self.down(0, usize::MAX);
            self.pump_signalled(0, true);
        }
        self.links.retain(|link| !link.is_dead());
        moved
    }

    fn finish(&mut self) -> Check {
        if self.guests.iter().flatten().any(|guest| !guest.is_at_rest()) {
            return Err(format!("nothing moves any more, but: {}", self.restless()));
        }
        self.kill_broker(CrashMode::DropUnsynced);
        self.start()
    }

    fn restless(&self) -> String {
        let restless = self.guests.iter().enumerate();
        let restless = restless.filter(|(_, guest)| guest.as_ref().is_some_and(|guest| !guest.is_at_rest()));
        let names: Vec<String> = restless.map(|(at, _)| format!("client {at}")).collect();
        if names.is_empty() {
            "every client is at rest".into()
        } else {
            format!("{} waits", names.join(", "))
        }
    }
}

//! The end of a world: nothing breaks any more, everybody gets what is theirs, and the disk crashes once more.

use super::cast::AUDITOR;
use super::facts::Fact;
use super::world::{Check, World};
use postroad_journal::storage::CrashMode;

/// Milliseconds until something that is worth waiting for.
const PATIENCE: u64 = 20_000;
/// Rounds after which a world that still moves counts as stuck.
const ROUNDS: usize = 3000;

impl World {
    /// Heals the world, waits until nothing moves, and looks at what a last crash leaves.
    pub(super) fn calm_down(&mut self) -> Check {
        self.power_cut(self.seen.facts.len())?;
        self.settle("at the end")?;
        self.seen.note(Fact::Drained);
        self.power_cut(0)?;
        self.settle("after the last crash")?;
        let auditor = usize::from(AUDITOR);
        self.connect(auditor);
        self.rounds(true)?;
        if let Some(Some(client)) = self.clients.get_mut(auditor) {
            client.subscribe_to_all();
        }
        self.rounds(true)
    }

    fn power_cut(&mut self, how: usize) -> Check {
        // Also drops what is left of the fault plan.
        self.kill_broker(CrashMode::ALL[how % 4]);
        self.heal();
        self.faulty = false;
        let open: Vec<_> = self.links.keys().copied().collect();
        for conn in open {
            self.client_closes(conn);
        }
        self.links.clear();
        self.start()
    }

    fn settle(&mut self, when: &str) -> Check {
        self.rounds(false).map_err(|why| format!("{when}: {why}"))
    }

    /// Until nothing moves.
    fn rounds(&mut self, auditor: bool) -> Check {
        let mut idle = 0;
        for _ in 0..ROUNDS {
            if self.round(auditor) {
                idle = 0;
            } else if idle < 3 {
                idle += 1;
                // What nobody waits for is still written, a little later.
                self.pass(50);
            } else if let Some(wait) = self.next_deadline().filter(|wait| *wait <= PATIENCE) {
                self.pass(wait);
            } else {
                let restless: Vec<_> = self.clients.iter().flatten().filter(|c| !c.is_at_rest()).collect();
                let restless: Vec<_> = restless.iter().map(|client| client.name()).collect();
                return if restless.iter().all(|name| !auditor && *name == "auditor") {
                    Ok(())
                } else {
                    Err(format!("nothing moves any more, but {} waits", restless.join(", ")))
                };
            }
        }
        Err("the world does not come to rest".into())
    }

    /// When the broker has something to do.
    fn next_deadline(&self) -> Option<u64> {
        let due = self.life.as_ref()?.doors.next_deadline()?;
        Some(due.saturating_sub(self.now()).max(1))
    }

    /// Everybody gets a turn; true if anything moved.
    fn round(&mut self, auditor: bool) -> bool {
        let mut moved = false;
        for who in 0..self.clients.len() {
            let Some(client) = &mut self.clients[who] else { continue };
            if who == usize::from(AUDITOR) && !auditor {
                continue;
            }
            if client.is_offline() {
                self.connect(who);
                moved = true;
                continue;
            }
            self.summary.commands += u64::from(client.wind_down(&mut self.seen));
            moved |= self.post(who);
        }
        for which in 0..self.links.len() {
            moved |= self.up(which, usize::MAX);
        }
        while self.commit() {
            moved = true;
        }
        moved |= self.committed();
        moved |= self.store_letters();
        moved |= self.pump();
        while self.down(0, usize::MAX) {
            moved = true;
            self.pump();
        }
        self.links.retain(|_, link| !link.is_dead());
        moved
    }
}

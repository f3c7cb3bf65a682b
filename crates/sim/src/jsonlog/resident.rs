//! The sessions of one life of the broker: the product's own, each with a tap on its bytes.

use super::login::TOKEN;
use super::tap::Tap;
use crate::history::{Conn, Fact, History};
use crate::inhabitants::Resident;
use crate::plan::Climate;
use postroad_engine::Engine;
use postroad_engine::log::Signal;
use postroad_jsonlog::protocol::Words;
use postroad_jsonlog::session::{Bye, Hub, Limits, Session};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[derive(Default)]
struct Flag(AtomicBool);

impl Signal for Flag {
    fn signal(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct Open {
    session: Session,
    flag: Arc<Flag>,
    tap: Tap,
}

/// See the module.
pub(super) struct Sessions {
    engine: Arc<Engine>,
    hub: Arc<Hub>,
    open: BTreeMap<Conn, Open>,
    climate: Climate,
}

impl Sessions {
    pub(super) fn new(engine: Arc<Engine>, climate: &Climate) -> Self {
        let tokens = climate.token.then(|| TOKEN.to_owned()).into_iter().collect();
        let hub = Arc::new(Hub::new(Words::default(), tokens, Limits::default()));
        Self { engine, hub, open: BTreeMap::new(), climate: *climate }
    }
}

impl Resident for Sessions {
    fn accept(&mut self, conn: Conn) {
        let flag = Arc::new(Flag::default());
        let session = Session::new(self.engine.clone(), self.hub.clone(), flag.clone());
        self.open.insert(conn, Open { session, flag, tap: Tap::new(conn, &self.climate) });
    }

    fn input(&mut self, conn: Conn, bytes: &[u8], history: &mut History) {
        if let Some(open) = self.open.get_mut(&conn) {
            open.tap.input(bytes, history);
            open.session.input(bytes);
        }
    }

    fn end_of_input(&mut self, conn: Conn) {
        if let Some(open) = self.open.get_mut(&conn) {
            open.session.end_of_input();
        }
    }

    fn wants_input(&self, conn: Conn) -> bool {
        self.open.get(&conn).is_some_and(|open| open.session.wants_input())
    }

    fn is_signalled(&mut self, conn: Conn) -> bool {
        self.open.get(&conn).is_some_and(|open| open.flag.0.swap(false, Ordering::Relaxed))
    }

    fn output(&mut self, conn: Conn, limit: usize, out: &mut Vec<u8>, history: &mut History) {
        if let Some(open) = self.open.get_mut(&conn) {
            open.session.output(out, limit);
            open.tap.output(out, history);
        }
    }

    fn is_done(&self, conn: Conn) -> bool {
        self.open.get(&conn).is_none_or(|open| open.session.is_done())
    }

    fn gone(&mut self, conn: Conn, history: &mut History) {
        // The session gives back what it held when it is dropped.
        if self.open.remove(&conn).is_some() {
            history.note(Fact::Gone(conn));
        }
    }

    fn shut_down(&mut self) {
        for open in self.open.values_mut() {
            open.session.close(Bye::ShuttingDown);
        }
    }
}

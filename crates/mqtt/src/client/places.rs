//! Which named subscriptions this process has: a server would let the next one take the session over.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use postroad_core::{Error, ErrorKind, Result};

use super::NAME;

static PLACES: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

fn places() -> MutexGuard<'static, BTreeSet<String>> {
    PLACES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The place of one consumer, free again when this is dropped.
#[derive(Debug)]
pub(super) struct Place(String);

impl Place {
    /// [`Busy`](ErrorKind::Busy) while somebody in this process has it.
    pub(super) fn take(server: &str, client_id: &str) -> Result<Self> {
        let key = format!("{server} {client_id}");
        if places().insert(key.clone()) {
            return Ok(Self(key));
        }
        let text = format!("`{client_id}` has a consumer in this process");
        Err(Error::new(ErrorKind::Busy, NAME, text))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        places().remove(&self.0);
    }
}

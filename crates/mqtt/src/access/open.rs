//! Access for everybody.

use super::{Access, Attempt, Denied, Exchange, Identity, Permit};

/// Everybody may do everything, except publish to topics that begin with `$`: those are the server's. A certificate
/// gives a name, a user name does not: nothing proves it.
#[derive(Debug, Clone, Copy, Default)]
pub struct OpenAccess;

impl Access for OpenAccess {
    fn authenticate(&self, attempt: &Attempt<'_>) -> Result<Identity, Denied> {
        match attempt.certificate {
            Some("") => Err(Denied::NotAuthorized),
            Some(name) => Ok(Identity::user(name)),
            None if attempt.allow_anonymous => Ok(Identity::anonymous()),
            None => Err(Denied::NotAuthorized),
        }
    }

    fn begin_exchange(&self, _method: &str, _attempt: &Attempt<'_>) -> Result<Box<dyn Exchange>, Denied> {
        Err(Denied::BadMethod)
    }

    fn may_publish(&self, _who: &Identity, _client_id: &str, topic: &str, _retain: bool) -> bool {
        !topic.starts_with('$')
    }

    fn may_subscribe(&self, _who: &Identity, _client_id: &str, _filter: &str) -> Permit {
        Permit::Yes
    }

    fn may_receive(&self, _who: &Identity, _client_id: &str, _topic: &str) -> bool {
        true
    }
}

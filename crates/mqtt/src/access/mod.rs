//! Who may connect, publish, subscribe and receive.
//!
//! - [`Access`] is what a broker asks. [`OpenAccess`] lets everybody in; [`FileAccess`] reads a users file ([`users`])
//!   and an ACL file ([`acl`]), again when they change. Others can be written.
//! - [`scram`] is SCRAM-SHA-256, both sides, for the AUTH packet of MQTT 5.0.
//!
//! Nothing is allowed by accident: a file that cannot be read or understood is an error at the start, and changes
//! nothing later.

pub mod acl;
mod crypto;
mod error;
mod file;
mod open;
mod pattern;
pub mod scram;
pub mod users;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

pub use error::AccessError;
pub use file::{FileAccess, FileSettings};
pub use open::OpenAccess;

use crate::codec::ReasonCode;

/// What a client brings with its CONNECT, and what its listener makes of it.
#[derive(Debug, Clone, Copy)]
pub struct Attempt<'a> {
    /// The client id. Empty if the server is to choose one.
    pub client_id: &'a str,
    /// The user name.
    pub user_name: Option<&'a str>,
    /// The password.
    pub password: Option<&'a [u8]>,
    /// The name in a verified client certificate, on listeners where that is the user. User name and password are not
    /// looked at then.
    pub certificate: Option<&'a str>,
    /// Where it comes from.
    pub address: Option<SocketAddr>,
    /// Whether the listener lets clients in that bring neither a user name nor a password nor a certificate.
    pub allow_anonymous: bool,
}

/// Who a connection was found to be.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    name: Option<Arc<str>>,
    proof: Proof,
}

/// What an identity rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Proof {
    /// Nothing.
    None,
    /// A certificate, or what the author of another [`Access`] takes for proof.
    External,
    /// The password with this mark.
    Password(users::Mark),
}

impl Identity {
    /// Nobody in particular.
    pub const fn anonymous() -> Self {
        Self { name: None, proof: Proof::None }
    }

    /// The user of this name, known by other means than the users file.
    pub fn user(name: impl Into<Arc<str>>) -> Self {
        Self { name: Some(name.into()), proof: Proof::External }
    }

    fn with_password(name: &str, mark: users::Mark) -> Self {
        Self { name: Some(name.into()), proof: Proof::Password(mark) }
    }

    /// The user's name; `None` for anonymous clients.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name().unwrap_or("(anonymous)"))
    }
}

/// Why a client does not get in. It says no more than the client may know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Denied {
    /// The user is not known, or the password is not theirs: which of the two is not said.
    #[error("bad user name or password")]
    BadUserNameOrPassword,
    /// No credentials where some are needed, or credentials that may not be used here.
    #[error("not authorized")]
    NotAuthorized,
    /// The authentication method is not known here.
    #[error("bad authentication method")]
    BadMethod,
    /// Authentication data that does not follow the method.
    #[error("malformed authentication data")]
    Malformed,
}

impl Denied {
    /// The reason code for CONNACK and DISCONNECT.
    pub const fn reason(self) -> ReasonCode {
        match self {
            Self::BadUserNameOrPassword => ReasonCode::BadUserNameOrPassword,
            // An AUTH that fails is answered with a code of 0x80 or above. [MQTT-4.12.0-4]
            Self::NotAuthorized | Self::Malformed => ReasonCode::NotAuthorized,
            Self::BadMethod => ReasonCode::BadAuthenticationMethod,
        }
    }
}

/// Whether a subscription is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Permit {
    /// It is.
    Yes,
    /// It is not; the code for SUBACK.
    No(ReasonCode),
}

impl Permit {
    /// Whether it is allowed.
    pub const fn is_yes(self) -> bool {
        matches!(self, Self::Yes)
    }
}

/// How much a user may have at once. `None`: no limit of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UserLimits {
    /// Connections of the user, over all client ids.
    pub max_connections: Option<u32>,
    /// Subscriptions of one session.
    pub max_subscriptions: Option<u32>,
}

/// What is known of a client before anything is computed.
#[derive(Debug)]
pub enum Check {
    /// Who it is, or why it does not get in.
    Known(Result<Identity, Denied>),
    /// Its password must be hashed first.
    Password(PasswordCheck),
}

/// A password to be checked, on whatever thread: milliseconds of processor time.
pub struct PasswordCheck(Box<dyn FnOnce() -> Result<Identity, Denied> + Send>);

impl PasswordCheck {
    /// A check that is done by calling `check`.
    pub fn new(check: impl FnOnce() -> Result<Identity, Denied> + Send + 'static) -> Self {
        Self(Box::new(check))
    }

    /// Does it. Rules may have changed since it was asked for: [`Access::is_current`] says whether the identity still
    /// stands.
    pub fn run(self) -> Result<Identity, Denied> {
        (self.0)()
    }
}

impl fmt::Debug for PasswordCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PasswordCheck").finish_non_exhaustive()
    }
}

/// What a broker asks before it lets a client do something. Implementations must not panic and must not block for
/// longer than checking a password takes.
pub trait Access: Send + Sync {
    /// Who this is, by user name and password, by certificate, or anonymous. With a password this takes the time of its
    /// hash (milliseconds of processor time), whether the user exists or not.
    fn authenticate(&self, attempt: &Attempt<'_>) -> Result<Identity, Denied>;

    /// The same in two parts, for a thread that must not stand still: what takes the time of a hash is given back, to be
    /// run on another one.
    fn check(&self, attempt: &Attempt<'_>) -> Check {
        Check::Known(self.authenticate(attempt))
    }

    /// Begins an extended authentication (MQTT 5.0, section 4.12), also for a re-authentication. The broker must then
    /// see to it that the user's name stays the same.
    fn begin_exchange(&self, method: &str, attempt: &Attempt<'_>) -> Result<Box<dyn Exchange>, Denied>;

    /// Whether it may publish to the topic. Also asked for a will, at CONNECT and when it is sent.
    fn may_publish(&self, who: &Identity, client_id: &str, topic: &str, retain: bool) -> bool;

    /// Whether it may subscribe to *all* that the valid filter matches. Filters of shared subscriptions come whole,
    /// with their prefix.
    fn may_subscribe(&self, who: &Identity, client_id: &str, filter: &str) -> Permit;

    /// Whether a message with this topic may be delivered to it. To be asked at delivery, also of retained messages:
    /// rights can be taken away after the subscription was made.
    fn may_receive(&self, who: &Identity, client_id: &str, topic: &str) -> bool;

    /// How much the user may have at once.
    fn limits(&self, _who: &Identity) -> UserLimits {
        UserLimits::default()
    }

    /// Whether the identity would be found again: false when the user was removed or has another password. To be
    /// asked for each connection when [`generation`](Self::generation) has changed.
    fn is_current(&self, _who: &Identity) -> bool {
        true
    }

    /// Another number whenever an answer could be another one, so that answers can be kept until then.
    fn generation(&self) -> u64 {
        0
    }
}

/// An extended authentication under way.
pub trait Exchange: Send {
    /// Takes the authentication data of CONNECT or AUTH. After anything but [`Step::Continue`] it is over, and every
    /// further step is denied.
    fn step(&mut self, data: Option<&[u8]>) -> Step;
}

/// What an [`Exchange`] answers.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// AUTH with reason 0x18 and this data.
    Continue(Vec<u8>),
    /// It is this user; CONNACK, or AUTH after a re-authentication, carries this data.
    Done(Identity, Option<Vec<u8>>),
    /// It failed.
    Denied(Denied),
}

/// The filter of a subscription without `$share/GROUP/` or `$queue/`. `None` for what is neither: a prefix without a
/// filter, or two prefixes.
fn plain_filter(filter: &str) -> Option<&str> {
    let prefixed = |filter: &str| matches!(filter.split('/').next(), Some("$share" | "$queue"));
    if !prefixed(filter) {
        return Some(filter);
    }
    let plain = match filter.strip_prefix("$queue/") {
        Some(plain) => plain,
        None => filter.strip_prefix("$share/")?.split_once('/')?.1,
    };
    // Which of two prefixes counts is not guessed.
    (!plain.is_empty() && !prefixed(plain)).then_some(plain)
}

#[cfg(test)]
mod tests;

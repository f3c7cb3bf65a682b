//! What a client says first on a connection: its token, and whether it wants to hear of everything that went well.

use crate::plan::Climate;

/// The token of worlds that ask for one.
pub(super) const TOKEN: &str = "s3cret";

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(super) struct Login {
    token: bool,
    pub(super) quiet: bool,
    said: bool,
}

impl Login {
    pub(super) fn new(climate: &Climate, quiet: bool) -> Self {
        Self { token: climate.token, quiet, said: false }
    }

    /// There is a new connection.
    pub(super) fn again(&mut self) {
        self.said = false;
    }

    /// The `hello` that is still to be said, if one is; now and then one that is refused comes before it.
    pub(super) fn hello(&mut self, how: u32) -> Option<String> {
        if self.said || !(self.token || self.quiet) {
            return None;
        }
        if self.token && how.is_multiple_of(6) {
            let wrong = ["hello {\"token\":\"s3cres\"}\n", "hello {\"mode\":\"quiet\"}\n"];
            return Some(wrong[how as usize / 6 % 2].to_owned());
        }
        self.said = true;
        let token = if self.token { format!("\"token\":\"{TOKEN}\"") } else { String::new() };
        let mode = if self.quiet { "\"mode\":\"quiet\"" } else { "" };
        let comma = if self.token && self.quiet { "," } else { "" };
        Some(format!("hello {{{token}{comma}{mode}}}\n"))
    }

    /// Now and then a client does not say `hello` where it must.
    pub(super) fn forgets(self, how: u32) -> bool {
        self.token && !self.said && how.is_multiple_of(5)
    }
}

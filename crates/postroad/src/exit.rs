//! What the process says when it fails, and the exit code that goes with it.

use std::{fmt, io::Write as _};

/// The exit codes. They are part of the interface: scripts branch on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// The command was understood and carried out, and the answer is no.
    Failed = 1,
    /// Bytes that were given are wrong: a bad event, a damaged journal.
    Data = 65,
    /// The server cannot be reached, or the connection broke.
    Unavailable = 69,
    /// A defect of Postroad.
    Internal = 70,
    /// The data directory or the address cannot be had.
    CannotOpen = 73,
    /// The disk or a stream failed while in use.
    Io = 74,
    /// The server refused for now; the same command may work later.
    Temporary = 75,
    /// Not logged in, or not allowed.
    Denied = 77,
    /// The configuration is wrong.
    Config = 78,
    /// SIGINT or SIGTERM before the command was done.
    Interrupted = 130,
}

/// The part of `--help` that documents the exit codes. `2` is clap's own.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
   0  done
   1  the answer is no (not found, in use, fewer events than --count)
   2  the command line is wrong
  65  bad data: an event that is not valid, a damaged journal
  69  no connection, or it broke; what was not confirmed is unknown
  70  a defect of Postroad, please report it
  73  the data directory or the address is taken or cannot be opened
  74  the disk failed: nothing more was promised
  75  refused for now (disk full, busy, shutting down): try again later
  77  log in first, or not allowed
  78  the configuration is wrong
 130  interrupted";

/// A failed command: what happened, why, and what to do about it.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    what: String,
    why: Option<String>,
    fix: Option<String>,
    logged: bool,
}

impl Failure {
    pub(crate) fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self { exit, what: what.into(), why: None, fix: None, logged: false }
    }

    /// Writes it to the log instead of printing it at the end.
    #[must_use]
    pub(crate) fn log(mut self) -> Self {
        self.logged = true;
        let text = |part: &Option<String>| part.clone().unwrap_or_default();
        tracing::error!(
            why = text(&self.why),
            fix = text(&self.fix),
            exit = self.exit as u8,
            "{}",
            self.what
        );
        self
    }

    pub(crate) fn is_logged(&self) -> bool {
        self.logged
    }

    /// Says it to the user, unless the log has it.
    pub(crate) fn print(&self) {
        if !self.logged {
            // Nobody may be there to read it.
            let _ = writeln!(std::io::stderr(), "{self}");
        }
    }

    #[must_use]
    pub(crate) fn why(mut self, why: impl fmt::Display) -> Self {
        self.why = Some(why.to_string());
        self
    }

    #[must_use]
    pub(crate) fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.what)?;
        if let Some(why) = &self.why {
            write!(f, "\n  why: {}", indent(why))?;
        }
        if let Some(fix) = &self.fix {
            write!(f, "\n  fix: {}", indent(fix))?;
        }
        Ok(())
    }
}

fn indent(text: &str) -> String {
    text.trim_end().replace('\n', "\n       ")
}

/// An error and its sources in one line, without saying the same thing twice.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_lists_every_code() {
        use Exit::*;
        let listed: Vec<i32> = EXIT_CODES
            .lines()
            .skip(1)
            .map(|line| line.split_whitespace().next().unwrap().parse().unwrap())
            .collect();
        for exit in
            [Failed, Data, Unavailable, Internal, CannotOpen, Io, Temporary, Denied, Config, Interrupted]
        {
            assert!(listed.contains(&(exit as i32)), "{exit:?} is not in --help");
        }
    }

    #[test]
    fn a_failure_says_what_why_and_fix() {
        let failure = Failure::new(Exit::CannotOpen, "cannot open x").why("first\nsecond").fix("use y");
        assert_eq!(failure.to_string(), "error: cannot open x\n  why: first\n       second\n  fix: use y");
    }

    #[test]
    fn chain_does_not_repeat_itself() {
        #[derive(Debug)]
        struct Outer(std::io::Error);
        impl fmt::Display for Outer {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "outer: {}", self.0)
            }
        }
        impl std::error::Error for Outer {
            fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
                Some(&self.0)
            }
        }
        let text = chain(&Outer(std::io::Error::other("disk on fire")));
        assert_eq!(text, "outer: disk on fire");
    }
}

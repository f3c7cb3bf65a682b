//! `postroad mqtt user`: who may log in to the MQTT broker. A password comes from a prompt or from stdin, never from an
//! argument, where every other user of the machine could read it.

use std::{
    io::{self, IsTerminal as _, Read as _, Write as _},
    path::Path,
};

use postroad_mqtt::access::{
    AccessError,
    users::{self, Change, DEFAULT_ITERATIONS},
};
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, tcgetattr, tcsetattr};

use crate::{
    cli::UserCommand,
    exit::{Exit, Failure, chain},
};

/// The longest password of MQTT, with a line end.
const MAX_INPUT: u64 = 65_535 + 2;
/// What Ctrl-C sends.
const INTERRUPT: u8 = 3;

pub(crate) fn run(command: UserCommand) -> Result<(), Failure> {
    match command {
        UserCommand::Add { name, users } => {
            let password = password(&name)?;
            let change = users::add(&users.file, &name, &password, DEFAULT_ITERATIONS);
            let what = match change.map_err(|error| failure(&users.file, &error))? {
                Change::Added => "added",
                Change::Replaced => "has a new password",
            };
            say(&format!("{name} {what}\n"))
        }
        UserCommand::Remove { name, users } => {
            match users::remove(&users.file, &name).map_err(|error| failure(&users.file, &error))? {
                true => say(&format!("{name} removed\n")),
                false => Err(Failure::new(Exit::Failed, format!("there is no user {name:?}"))
                    .fix("see who there is: `postroad mqtt user list`")),
            }
        }
        UserCommand::List { users } => {
            let names = users::list(&users.file).map_err(|error| failure(&users.file, &error))?;
            say(&(names.join("\n") + if names.is_empty() { "" } else { "\n" }))
        }
    }
}

fn password(name: &str) -> Result<Vec<u8>, Failure> {
    let lost = |error: io::Error| Failure::new(Exit::Io, "cannot read the password").why(error);
    if !io::stdin().is_terminal() {
        return line(io::stdin().lock()).map_err(lost)?.ok_or_else(|| {
            Failure::new(Exit::Data, "the password on stdin is more than one line, or too long")
                .fix("give one line of at most 65535 bytes, like `postroad mqtt user add NAME <FILE`")
        });
    }
    let first = prompt(&format!("Password of {name}: "))?;
    if first == prompt("Again: ")? {
        return Ok(first);
    }
    Err(Failure::new(Exit::Data, "the two passwords are not the same").fix("type them again"))
}

/// The only line there is, without its end; `None` if there is more.
fn line(from: impl io::Read) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    from.take(MAX_INPUT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_INPUT {
        return Ok(None);
    }
    if bytes.pop_if(|last| *last == b'\n').is_some() {
        bytes.pop_if(|last| *last == b'\r');
    }
    Ok((!bytes.contains(&b'\n')).then_some(bytes))
}

/// Asks on the terminal, which shows nothing of what is typed.
fn prompt(text: &str) -> Result<Vec<u8>, Failure> {
    let lost = |error: io::Error| Failure::new(Exit::Io, "cannot read the password").why(error);
    let terminal = io::stdin();
    let before = tcgetattr(&terminal).map_err(|error| lost(error.into()))?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    // Ctrl-C ends the line instead of the process: nobody would switch the echo on again.
    silent.local_modes.remove(LocalModes::ISIG);
    silent.special_codes[SpecialCodeIndex::VEOL] = INTERRUPT;
    tcsetattr(&terminal, OptionalActions::Flush, &silent).map_err(|error| lost(error.into()))?;
    let _ = write!(io::stderr(), "{text}");
    let mut typed = Vec::new();
    let mut byte = [0];
    let read = loop {
        match io::stdin().read(&mut byte) {
            Ok(0) => break Ok(()),
            Ok(_) if byte[0] == b'\n' => break Ok(()),
            Ok(_) => typed.push(byte[0]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => break Err(error),
        }
        if byte[0] == INTERRUPT {
            break Ok(());
        }
    };
    let after = tcsetattr(&terminal, OptionalActions::Now, &before);
    let _ = writeln!(io::stderr());
    read.map_err(lost)?;
    after.map_err(|error| lost(error.into()))?;
    if typed.contains(&INTERRUPT) {
        return Err(Failure::new(Exit::Interrupted, "interrupted; nothing was changed"));
    }
    Ok(typed)
}

fn failure(file: &Path, error: &AccessError) -> Failure {
    let shown = file.display();
    let (exit, fix) = match error {
        AccessError::Unusable(_) => (Exit::Data, "choose another one".to_owned()),
        AccessError::Malformed { .. } => (Exit::Config, format!("correct {shown}; nothing was changed")),
        _ => (Exit::CannotOpen, format!("see to it that this user may write {shown} and its directory")),
    };
    Failure::new(exit, "cannot do that to the users file").why(chain(error)).fix(fix)
}

fn say(text: &str) -> Result<(), Failure> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Exit::Io, "cannot write to stdout").why(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_one_line() {
        let read = |text: &str| line(text.as_bytes()).unwrap();
        assert_eq!(read("secret\n").as_deref(), Some(b"secret".as_slice()));
        assert_eq!(read("secret\r\n").as_deref(), Some(b"secret".as_slice()));
        assert_eq!(read(" with spaces ").as_deref(), Some(b" with spaces ".as_slice()));
        assert_eq!(read("").as_deref(), Some(b"".as_slice()));
        assert_eq!(read("one\ntwo\n"), None);
        assert_eq!(read(&"x".repeat(65_538)), None);
    }
}

//! `postroad journal`: the log files themselves, without a server.

use std::{
    io::{self, BufWriter, Write as _},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use postroad_journal::{JournalError, repair, storage::RealStorage, verify};

use crate::{
    cli::JournalCommand,
    exit::{Exit, Failure, chain},
};

pub(crate) fn run(command: &JournalCommand) -> Result<(), Failure> {
    match command {
        JournalCommand::Verify { dir } => check(dir),
        JournalCommand::Cat { dir, from } => print(dir, *from),
        JournalCommand::Repair { dir, yes } => mend(dir, *yes),
    }
}

fn check(dir: &Path) -> Result<(), Failure> {
    is_directory(dir)?;
    let report = verify::verify(&RealStorage::new(), dir).map_err(|error| failure(dir, &error))?;
    if report.journals.is_empty() {
        return Err(Failure::new(Exit::Failed, format!("there are no log files in {}", dir.display()))
            .fix("give the data directory of the server, or a directory below it"));
    }
    say(&report.to_string())?;
    if report.is_sound() {
        return Ok(());
    }
    Err(Failure::new(Exit::Data, format!("{} is damaged", dir.display())).why("see the list above").fix(
        format!(
            "stop the server, then see what can be saved with `postroad journal repair {}`",
            dir.display()
        ),
    ))
}

fn print(dir: &Path, from: u64) -> Result<(), Failure> {
    is_directory(dir)?;
    let mut out = BufWriter::new(io::stdout().lock());
    let printed = verify::cat(&RealStorage::new(), dir, from, &mut out)
        .and_then(|_| out.flush().map_err(|error| print_error(&error)));
    match printed {
        // A reader that left early (`| head`) is not an error.
        Err(JournalError::Io { op: "print", source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => {
            Ok(())
        }
        Err(error) => Err(failure(dir, &error)),
        Ok(()) => Ok(()),
    }
}

fn mend(dir: &Path, apply: bool) -> Result<(), Failure> {
    is_directory(dir)?;
    // The lock of a running server is in its data directory, and must be seen.
    if let Some(data) = data_directory_above(dir) {
        return Err(Failure::new(Exit::Failed, format!("{} is a part of a data directory", dir.display()))
            .why(format!("a server that runs on {} would not be noticed", data.display()))
            .fix(format!("repair the whole: `postroad journal repair {}`", data.display())));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    let report =
        repair::repair(&RealStorage::new(), dir, now, apply).map_err(|error| failure(dir, &error))?;
    say(&report.to_string())?;
    if apply || report.journals.is_empty() {
        return Ok(());
    }
    Err(Failure::new(Exit::Failed, "nothing was changed")
        .why("this was only the plan; what is marked LOST cannot be saved")
        .fix(format!(
            "do it with `postroad journal repair {} --yes`; every byte is kept aside",
            dir.display()
        )))
}

fn data_directory_above(dir: &Path) -> Option<PathBuf> {
    let full = dir.canonicalize().ok()?;
    full.ancestors()
        .skip(1)
        .find(|above| above.join(".lock").is_file() && above.join("streams").is_dir())
        .map(Path::to_owned)
}

pub(crate) fn is_directory(dir: &Path) -> Result<(), Failure> {
    let found = dir.metadata();
    if found.as_ref().is_ok_and(std::fs::Metadata::is_dir) {
        return Ok(());
    }
    let why = found.err().map_or_else(|| "it is not a directory".to_owned(), |error| error.to_string());
    Err(Failure::new(Exit::CannotOpen, format!("cannot open {}", dir.display()))
        .why(why)
        .fix("give the data directory of the server, or a directory below it"))
}

fn print_error(error: &io::Error) -> JournalError {
    JournalError::Io { op: "print", path: "stdout".into(), source: std::sync::Arc::new(error.kind().into()) }
}

/// An error of the log files as the failure of a command, `serve` included.
pub(crate) fn failure(dir: &Path, error: &JournalError) -> Failure {
    let shown = dir.display();
    let (exit, fix) = match error {
        JournalError::Locked { .. } => (
            Exit::CannotOpen,
            "stop the process that has it, or choose another data directory (--data)".to_owned(),
        ),
        JournalError::Corrupt { .. } => (
            Exit::Data,
            format!(
                "see all of it with `postroad journal verify {shown}`, and what can be saved with `postroad journal repair {shown}`"
            ),
        ),
        JournalError::Io { source, .. } => match source.kind() {
            io::ErrorKind::PermissionDenied
            | io::ErrorKind::NotFound
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::ReadOnlyFilesystem => (
                Exit::CannotOpen,
                "make it a directory that this user may write, or choose another (--data)".to_owned(),
            ),
            _ => (Exit::Io, "look at the disk: its health, its free space, its limits".to_owned()),
        },
        _ => (Exit::Io, "look at the disk: its health, its free space, its limits".to_owned()),
    };
    Failure::new(exit, format!("cannot use the log files in {shown}")).why(chain(error)).fix(fix)
}

fn say(text: &str) -> Result<(), Failure> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Exit::Io, "cannot write to stdout").why(error))
        }
        _ => Ok(()),
    }
}

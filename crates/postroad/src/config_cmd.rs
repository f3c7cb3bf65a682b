//! `postroad config show`.

use std::io::{self, Write as _};

use crate::{cli::ConfigCommand, config, exit::Failure};

pub(crate) fn run(command: ConfigCommand) -> Result<(), Failure> {
    let ConfigCommand::Show { sources, config } = command;
    let loaded = config::load(&config.overrides()?, std::env::vars_os())?;
    // A reader that left early (`| head`) is not an error.
    let _ = io::stdout().lock().write_all(loaded.show(sources)?.as_bytes());
    Ok(())
}

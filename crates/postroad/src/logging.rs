//! Logs go to stderr: for eyes on a terminal, as JSON lines otherwise.

use std::io::{self, IsTerminal};

use tracing_subscriber::{EnvFilter, fmt, prelude::*};

use crate::{
    config::{Log, LogFormat},
    exit::{Exit, Failure},
};

/// How the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    Pretty,
    Json,
}

/// Starts logging for the rest of the process.
pub(crate) fn start(log: &Log) -> Result<Style, Failure> {
    let filter = EnvFilter::builder().parse(&log.level).map_err(|error| {
        Failure::new(Exit::Config, format!("the setting `log.level` is not valid: `{}`", log.level))
            .why(error)
            .fix("set error, warn, info, debug or trace, or directives like `info,postroad_engine=debug`")
    })?;
    let terminal = io::stderr().is_terminal();
    let style = match log.format {
        LogFormat::Auto if terminal => Style::Pretty,
        LogFormat::Pretty => Style::Pretty,
        LogFormat::Auto | LogFormat::Json => Style::Json,
    };
    let layer = fmt::layer().with_writer(io::stderr);
    let layer = if style == Style::Pretty {
        layer.with_ansi(terminal).with_target(false).boxed()
    } else {
        layer.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed()
    };
    tracing_subscriber::registry()
        .with(layer.with_filter(filter))
        .try_init()
        .map(|()| style)
        .map_err(|error| Failure::new(Exit::Internal, "cannot start logging").why(error))
}

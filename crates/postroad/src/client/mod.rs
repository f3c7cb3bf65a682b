//! The commands that talk to a server.

pub(crate) mod dead_letters;
pub(crate) mod publish;
pub(crate) mod subscribe;

mod input;

use std::{future::Future, time::Duration};

use postroad_jsonlog::client::{Client, ClientError, ClientOptions, ErrorKind};
use tokio::{
    runtime,
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};

use crate::{
    cli::ServerArgs,
    exit::{Exit, Failure},
};

/// How long a command that is to end waits for the replies that are still out.
const LAST_CALL: Duration = Duration::from_secs(5);

/// Runs a client command to its end.
pub(crate) fn run(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    // Two: one for the connection while the other waits for stdout.
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Internal, "cannot start").why(error))?;
    let outcome = runtime.block_on(command);
    // A thread may still wait for a terminal that nobody types on.
    runtime.shutdown_background();
    outcome
}

/// Connects and logs in.
pub(crate) async fn connect(server: &ServerArgs) -> Result<Client, Failure> {
    let token = match &server.token {
        None => None,
        Some(secret) => {
            let secrets = secret.resolve().map_err(|why| {
                Failure::new(Exit::Config, "cannot read the token")
                    .why(why)
                    .fix("give --token or POSTROAD_TOKEN a token, file:PATH or env:NAME")
            })?;
            secrets.into_iter().next()
        }
    };
    let options = ClientOptions {
        token,
        name: Some(format!("postroad-cli-{}", std::process::id())),
        ..ClientOptions::default()
    };
    Client::connect(&server.url, options)
        .await
        .map_err(|error| failure(&error, format!("cannot talk to {}", server.url)))
}

/// An error of the client as the failure of a command.
pub(crate) fn failure(error: &ClientError, what: impl Into<String>) -> Failure {
    let (exit, fix) = match error.kind() {
        ErrorKind::BadEvent | ErrorKind::NotUtf8 | ErrorKind::TooLong => {
            (Exit::Data, "correct the event: one JSON object on one line")
        }
        ErrorKind::TooLarge => {
            (Exit::Failed, "use a smaller --batch, or raise the server's jsonlog.max_bulk")
        }
        ErrorKind::BadTopic => (Exit::Failed, "correct the topic"),
        ErrorKind::BadArgs => (Exit::Failed, "correct the arguments"),
        ErrorKind::NotFound => {
            (Exit::Failed, "look at what there is with `postroad dlq ls`, or `topics` over netcat")
        }
        ErrorKind::InUse => {
            (Exit::Failed, "stop the other consumer, or share the subscription: --group on both")
        }
        ErrorKind::AlreadySubscribed | ErrorKind::NotSubscribed | ErrorKind::NotInFlight => {
            (Exit::Failed, "try again")
        }
        ErrorKind::Connect | ErrorKind::Closed | ErrorKind::Disconnected => (
            Exit::Unavailable,
            "check that `postroad serve` runs there; give the right --url or POSTROAD_URL",
        ),
        ErrorKind::DiskFull => (Exit::Temporary, "free disk space on the server; acks still work"),
        ErrorKind::Busy | ErrorKind::ShuttingDown | ErrorKind::Full => (Exit::Temporary, "try again later"),
        ErrorKind::Auth => (Exit::Denied, "give the token: --token file:PATH or POSTROAD_TOKEN"),
        ErrorKind::Denied => (Exit::Denied, "use another topic"),
        ErrorKind::Corrupt => {
            (Exit::Data, "stop the server and run `postroad journal verify` on its data directory")
        }
        ErrorKind::Protocol | ErrorKind::BadCommand => (
            Exit::Unavailable,
            "check that this is a Postroad server of a version that fits, with unchanged command words",
        ),
        _ => (Exit::Internal, "please report it, with the log of the server"),
    };
    Failure::new(exit, what).why(error).fix(fix)
}

/// SIGINT and SIGTERM, as something to wait for.
///
/// The first one asks the command to end. The next one, or the first when the command does not end soon, ends the process
/// whatever it waits for, such as a reader of stdout that has stopped.
pub(crate) struct Interrupt {
    asked: watch::Receiver<bool>,
}

impl Interrupt {
    pub(crate) fn listen() -> Result<Self, Failure> {
        let failed = |error| Failure::new(Exit::Internal, "cannot listen for signals").why(error);
        let mut int = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut term = signal(SignalKind::terminate()).map_err(failed)?;
        let (tx, asked) = watch::channel(false);
        tokio::spawn(async move {
            one_of(&mut int, &mut term).await;
            tx.send_replace(true);
            let _ = tokio::time::timeout(LAST_CALL * 2, one_of(&mut int, &mut term)).await;
            std::process::exit(Exit::Interrupted as i32);
        });
        Ok(Self { asked })
    }

    /// Waits for the first one. Cancel-safe.
    pub(crate) async fn wait(&mut self) {
        // The sender lives as long as the process.
        let _ = self.asked.wait_for(|asked| *asked).await;
    }
}

async fn one_of(int: &mut Signal, term: &mut Signal) {
    tokio::select! {
        _ = int.recv() => {}
        _ = term.recv() => {}
    }
}

//! `postroad dlq`: what could not be delivered, and giving it another chance. Looking takes nothing.

use std::io::{self, Write as _};

use postroad_jsonlog::client::{Client, ClientError, ErrorKind, StartAt};
use serde::Deserialize;

use super::{connect, failure};
use crate::{
    cli::DlqCommand,
    exit::{Exit, Failure},
};

/// Where the broker keeps the dead letters of a topic.
const PREFIX: &str = "$dead/";
/// The most that one `kick` of the protocol takes.
const MAX_KICK: u64 = 10_000;

/// A dead letter, as far as a list needs it.
#[derive(Deserialize)]
struct Letter {
    reason: String,
    topic: String,
    seq: u64,
    subscription: String,
    attempts: u32,
    last: String,
}

#[derive(Deserialize)]
struct Topics {
    topics: Vec<String>,
}

#[derive(Deserialize)]
struct Stats {
    first: u64,
    last: u64,
    /// Dead letters of the topic that were not kicked yet.
    dead: u64,
}

pub(crate) async fn run(command: DlqCommand) -> Result<(), Failure> {
    match command {
        DlqCommand::Ls { topic: None, server } => list_topics(&connect(&server).await?).await,
        DlqCommand::Ls { topic: Some(topic), server } => {
            let client = connect(&server).await?;
            each(&client, &topic, None, |seq, json| {
                let letter: Letter = read(json)?;
                Ok(format!(
                    "{seq}\t{}\t{} attempts\tsubscription {}\tevent {} {}\t{}",
                    letter.last,
                    letter.attempts,
                    letter.subscription,
                    letter.topic,
                    letter.seq,
                    letter.reason
                ))
            })
            .await
        }
        DlqCommand::Show { topic, seq, server } => {
            let client = connect(&server).await?;
            each(&client, &topic, seq, |_, json| Ok(String::from_utf8_lossy(json).into_owned())).await
        }
        DlqCommand::Kick { topic, count, server } => kick(&connect(&server).await?, &topic, count).await,
    }
}

async fn list_topics(client: &Client) -> Result<(), Failure> {
    let failed = |error: ClientError| failure(&error, "cannot list the dead letters");
    let topics: Topics = read(&client.topics(Some("$dead/>")).await.map_err(failed)?)?;
    for dead in topics.topics {
        let topic = dead.strip_prefix(PREFIX).unwrap_or(&dead);
        // Not of the topic itself: what came by another protocol has none.
        let Some(stats) = stats(client, &dead).await? else { continue };
        if stats.dead > 0 && !say(&format!("{topic}\t{}", stats.dead))? {
            break;
        }
    }
    Ok(())
}

/// Says something about each dead letter of a topic, or about one.
async fn each(
    client: &Client,
    topic: &str,
    only: Option<u64>,
    line: impl Fn(u64, &[u8]) -> Result<String, Failure>,
) -> Result<(), Failure> {
    let dead = format!("{PREFIX}{topic}");
    let (first, last) = match only {
        Some(seq) => (seq, seq),
        None => match stats(client, &dead).await? {
            Some(stats) => (stats.first, stats.last),
            None => return Ok(()),
        },
    };
    for seq in first..=last {
        match client.peek(&dead, StartAt::Seq(seq)).await {
            Ok(event) => {
                if !say(&line(seq, &event.json)?)? {
                    break;
                }
            }
            // Retention may take one away meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound && only.is_none() => {}
            Err(error) => return Err(failure(&error, format!("cannot show dead letter {seq} of {topic}"))),
        }
    }
    Ok(())
}

async fn kick(client: &Client, topic: &str, count: Option<u64>) -> Result<(), Failure> {
    let mut left = count.unwrap_or(u64::MAX);
    let mut kicked = 0;
    while left > 0 {
        let ask = left.min(MAX_KICK);
        let n = client.kick(topic, Some(ask)).await.map_err(|error| {
            failure(&error, format!("{kicked} dead letters of {topic} were kicked, then it failed"))
        })?;
        kicked += n;
        left = left.saturating_sub(n);
        // One command is bounded in bytes, too: fewer than asked for is not the end.
        if n == 0 {
            break;
        }
    }
    say(&format!("{kicked} dead letters were published to {topic} again"))?;
    Ok(())
}

/// The extent of a topic; `None` when there is no such topic.
async fn stats(client: &Client, topic: &str) -> Result<Option<Stats>, Failure> {
    match client.stats(Some(topic)).await {
        Ok(json) => read(&json).map(Some),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failure(&error, format!("cannot look at {topic}"))),
    }
}

fn read<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, Failure> {
    serde_json::from_slice(json).map_err(|error| {
        Failure::new(Exit::Internal, "the server answered what this version does not understand")
            .why(error)
            .fix("use the same version of Postroad on both sides, or please report it")
    })
}

/// Prints a line; false when nobody reads any more.
fn say(line: &str) -> Result<bool, Failure> {
    match writeln!(io::stdout(), "{line}") {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::new(Exit::Io, "cannot write to stdout").why(error)),
    }
}

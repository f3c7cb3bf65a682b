//! Commands: what each does to the engine, and what it answers.

use super::deliver::Attachment;
use super::framing::{Input, Piece};
use super::{Bye, Mode, Session};
use crate::protocol::{self, Code, Command, Refusal, SubOptions, Target, check_event};
use postroad_core::mailbox::{Verdict, Window};
use postroad_core::{Filter, StartAt, Subject};
use postroad_engine::log::{PayloadKind, Ticket};
use postroad_engine::{EngineError, NewEvent, PolicyRequest, Receipt, Stream, SubscribeRequest};
use std::sync::Arc;

/// Dead letters kicked by one command at most.
const MAX_KICK: usize = 10_000;

/// Commands of one input that go to the engine together.
#[derive(Default)]
struct Pending<'a> {
    stream: Option<Arc<Stream>>,
    events: Vec<NewEvent<'a>>,
    ack_topic: &'a str,
    acks: Vec<(u64, u64)>,
}

impl From<EngineError> for Refusal {
    fn from(error: EngineError) -> Self {
        Self::new(Code::of(&error), error.to_string())
    }
}

impl Session {
    /// Does everything that is complete in what is held and `data`.
    pub(super) fn run(&mut self, data: &[u8]) {
        let before = self.framer.held();
        let held = self.framer.take_held(data);
        let bytes = held.as_deref().unwrap_or(data);
        let mut input = Input::new(bytes);
        let mut pending = Pending::default();
        let now = self.engine.now();
        let mut turn = 0u32;
        while self.closing.is_none() && !self.blocked {
            if self.replies.waiting() + pending.events.len() >= 2 * self.hub.limits.max_replies {
                self.blocked = true;
                break;
            }
            // Asked before every few pieces: what is begun is not refused.
            if turn.is_multiple_of(64) && matches!(self.engine.admit(), Err(EngineError::Busy)) {
                self.blocked = true;
                self.engine.notify_next(&self.signal);
                break;
            }
            turn += 1;
            let Some(piece) = self.framer.next(&mut input, self.hub.limits.max_line) else { break };
            match piece {
                Piece::Line(line) => self.line(line, now, &mut pending),
                Piece::TooLong => {
                    self.flush(&mut pending);
                    let text =
                        format!("a line is at most {} bytes; it was skipped", self.hub.limits.max_line);
                    self.replies.error(Code::TooLong, &text);
                }
                Piece::Body { topic, count, body } => {
                    self.flush(&mut pending);
                    self.body(&topic, count, body);
                }
            }
        }
        self.flush(&mut pending);
        drop(pending);
        if self.closing.is_some() {
            self.hub.hold(before, 0);
            return;
        }
        let at = input.position();
        match held {
            Some(all) => self.framer.keep_owned(all, at),
            None => self.framer.keep(&input),
        }
        let after = self.framer.held();
        if !self.hub.hold(before, after) {
            self.close(Bye::Busy);
        }
    }

    fn line<'a>(&mut self, line: &'a [u8], now: u64, pending: &mut Pending<'a>) {
        let Ok(text) = std::str::from_utf8(line) else {
            self.flush(pending);
            self.replies.error(Code::NotUtf8, "a line is UTF-8 text");
            return;
        };
        match protocol::parse(text, self.words(), now) {
            Ok(None) => {}
            Ok(Some(Command::Pub { topic, json })) if self.authorized => {
                if !pending.acks.is_empty() {
                    self.flush(pending);
                }
                if let Err(refusal) = self.publish(topic, json, pending) {
                    self.flush(pending);
                    self.refuse(&refusal);
                }
            }
            Ok(Some(Command::Ack { topic, target: Target::Range(first, last) })) if self.authorized => {
                if !pending.events.is_empty() || pending.ack_topic != topic {
                    self.flush(pending);
                }
                pending.ack_topic = topic;
                pending.acks.push((first, last));
            }
            Ok(Some(command)) => {
                self.flush(pending);
                if let Err(refusal) = self.execute(command) {
                    self.refuse(&refusal);
                }
            }
            Err(refusal) => {
                self.flush(pending);
                self.refuse(&refusal);
            }
        }
    }

    fn refuse(&mut self, refusal: &Refusal) {
        if self.engine.failure().is_some() {
            // The disk failed: `bye` says it.
            return;
        }
        self.replies.error(refusal.code, &refusal.text);
        if refusal.framing_lost {
            self.close(Bye::Framing);
        }
    }

    /// Adds an event to the group that is published together.
    fn publish<'a>(&mut self, topic: &str, json: &'a str, pending: &mut Pending<'a>) -> Result<(), Refusal> {
        let key = check_event(json).map_err(|text| Refusal::new(Code::BadEvent, text))?;
        if pending.stream.as_ref().is_none_or(|stream| stream.topic().as_str() != topic) {
            self.flush(pending);
            pending.stream = Some(self.stream(topic)?);
        }
        if pending.events.is_empty() {
            pending.events.reserve(32);
        }
        pending.events.push(NewEvent {
            priority: key.priority,
            id: key.id.map(str::as_bytes),
            headers: None,
            kind: PayloadKind::Json,
            payload: json.as_bytes(),
        });
        Ok(())
    }

    /// The stream to publish to.
    fn stream(&mut self, topic: &str) -> Result<Arc<Stream>, Refusal> {
        if let Some(stream) = self.last_stream.as_ref().filter(|s| s.topic().as_str() == topic) {
            return Ok(stream.clone());
        }
        let subject = Subject::new(topic).map_err(EngineError::from)?;
        if subject.is_reserved() {
            return Err(Refusal::new(Code::Denied, "topics that begin with $ belong to the broker"));
        }
        let stream = self.engine.stream_or_create(&subject)?;
        self.last_stream = Some(stream.clone());
        Ok(stream)
    }

    /// Gives the gathered commands to the engine.
    fn flush(&mut self, pending: &mut Pending<'_>) {
        if !pending.events.is_empty()
            && let Some(stream) = &pending.stream
        {
            self.store(stream, &pending.events);
            pending.events.clear();
        }
        if !pending.acks.is_empty() {
            self.acks(pending.ack_topic, &pending.acks);
            pending.acks.clear();
        }
    }

    fn store(&mut self, stream: &Arc<Stream>, events: &[NewEvent<'_>]) {
        let dedup = !self.engine.config().dedup_window.is_zero();
        if dedup && events.len() > 1 {
            // Each has its own answer.
            for event in events {
                self.store(stream, std::slice::from_ref(event));
            }
            return;
        }
        match stream.publish(events) {
            Ok(published) if self.mode == Mode::Quiet => {
                self.replies.silent(published.ticket);
            }
            Ok(published) if published.duplicates > 0 => {
                let line = format!("ok {} duplicate", published.duplicate_of);
                self.replies.at(line, published.ticket, None);
            }
            Ok(published) => self.replies.stored(published.first, published.last, published.ticket),
            Err(error) => {
                let refusal = Refusal::from(error);
                for _ in events {
                    self.refuse(&refusal);
                }
            }
        }
    }

    fn acks(&mut self, topic: &str, ranges: &[(u64, u64)]) {
        let mut settled: Vec<Option<Ticket>> = vec![None; ranges.len()];
        let mut failure = None;
        for attachment in &self.attachments {
            let open: Vec<usize> = (0..ranges.len()).filter(|i| settled[*i].is_none()).collect();
            if open.is_empty() {
                break;
            }
            let asked: Vec<(u64, u64)> = open.iter().map(|i| ranges[*i]).collect();
            let mut counts = Vec::with_capacity(asked.len());
            match attachment.consumer.settle(topic, &asked, &Verdict::Ack, &mut counts) {
                Ok(receipt) => {
                    let ticket = match receipt {
                        Receipt::At(ticket) => ticket,
                        Receipt::Later(_) => Ticket(0),
                    };
                    for (i, count) in open.into_iter().zip(counts) {
                        settled[i] = (count > 0).then_some(ticket);
                    }
                }
                Err(EngineError::NotInFlight) => {}
                Err(error) => failure = Some(Refusal::from(error)),
            }
        }
        for ticket in settled {
            match (ticket, &failure) {
                (Some(ticket), _) if self.mode == Mode::Quiet => self.replies.silent(ticket),
                (Some(ticket), _) => self.replies.acked(ticket),
                (None, Some(refusal)) => {
                    let refusal = refusal.clone();
                    self.refuse(&refusal);
                }
                (None, None) => self.refuse(&EngineError::NotInFlight.into()),
            }
        }
    }

    /// A `pubn` body: all of it, or nothing.
    fn body(&mut self, topic: &str, count: u64, body: &[u8]) {
        if let Err(refusal) = self.bulk(topic, count, body) {
            self.refuse(&refusal);
        }
    }

    fn bulk(&mut self, topic: &str, count: u64, body: &[u8]) -> Result<(), Refusal> {
        let Some(body) = body.strip_suffix(b"\n") else {
            let text = "BYTES does not end at the end of a line; nothing was stored";
            return Err(Refusal::new(Code::BadArgs, text));
        };
        let mut events = Vec::with_capacity(usize::try_from(count).unwrap_or(0).min(body.len() / 3 + 1));
        for (i, line) in body.split(|b| *b == b'\n').enumerate() {
            let line = std::str::from_utf8(line.strip_suffix(b"\r").unwrap_or(line)).map_err(|_| {
                Refusal::new(Code::NotUtf8, format!("line {}: an event is UTF-8 text", i + 1))
            })?;
            let key = check_event(line)
                .map_err(|text| Refusal::new(Code::BadEvent, format!("line {}: {text}", i + 1)))?;
            events.push(NewEvent {
                priority: key.priority,
                id: key.id.map(str::as_bytes),
                headers: None,
                kind: PayloadKind::Json,
                payload: line.as_bytes(),
            });
        }
        if events.len() as u64 != count {
            let text = format!("the body has {} lines, COUNT says {count}; nothing was stored", events.len());
            return Err(Refusal::new(Code::BadArgs, text));
        }
        let published = self.stream(topic)?.publish(&events)?;
        if self.mode == Mode::Quiet {
            self.replies.silent(published.ticket);
            return Ok(());
        }
        let mut line = format!("ok {}-{}", published.first, published.last);
        if published.duplicates > 0 {
            line.push_str(&format!(" duplicates={}", published.duplicates));
        }
        self.replies.at(line, published.ticket, None);
        Ok(())
    }

    fn execute(&mut self, command: Command<'_>) -> Result<(), Refusal> {
        let open = matches!(command, Command::Hello { .. } | Command::Help | Command::Quit);
        if !self.authorized && !open {
            if let Command::Pubn { bytes, .. } = command {
                self.framer.skip(bytes);
            }
            return Err(Refusal::new(Code::Auth, "log in first: hello {\"token\":\"…\"}"));
        }
        match command {
            // Those with a sequence came before.
            Command::Pub { .. } => {}
            Command::Pubn { topic, count, bytes } => {
                let limit = self.hub.limits.max_bulk;
                if count == 0 || bytes == 0 {
                    self.framer.skip(bytes);
                    return Err(Refusal::new(Code::BadArgs, "COUNT and BYTES are at least 1"));
                }
                let fits = usize::try_from(bytes).ok().filter(|bytes| *bytes <= limit);
                let Some(bytes) = fits else {
                    self.framer.skip(bytes);
                    let text =
                        format!("a bulk body is at most {limit} bytes; it is skipped: send smaller ones");
                    return Err(Refusal::new(Code::TooLarge, text));
                };
                self.framer.expect_body(topic, count, bytes);
            }
            Command::Sub { topic, name, options } => self.subscribe(topic, name, options)?,
            Command::Unsub { topic, name, forget } => self.unsubscribe(topic, name, forget)?,
            Command::Ack { topic, target } => self.settle(topic, &target, &Verdict::Ack)?,
            Command::Nack { topic, target, delay, reason } => {
                self.settle(
                    topic,
                    &target,
                    &Verdict::Retry { after: delay, reason: reason.map(Into::into) },
                )?;
            }
            Command::Bury { topic, target, reason } => {
                let reason = reason.unwrap_or("buried by the consumer").into();
                self.settle(topic, &target, &Verdict::Dead { reason })?;
            }
            Command::Touch { topic, target } => self.touch(topic, &target)?,
            Command::Kick { topic, count } => {
                let subject = Subject::new(topic).map_err(EngineError::from)?;
                if subject.is_reserved() {
                    return Err(Refusal::new(Code::BadTopic, "name the topic itself, without $dead/"));
                }
                let (kicked, later) = self.engine.kick(&subject, count.min(MAX_KICK))?;
                self.replies.receipt(format!("ok {kicked}"), Receipt::Later(later));
            }
            Command::Peek { topic, at } => self.peek(topic, &at)?,
            Command::Topics { filter } => {
                let filter = filter.map(Filter::new).transpose().map_err(EngineError::from)?;
                let topics: Vec<String> =
                    self.engine.streams().iter().map(|s| s.topic().to_string()).collect();
                let topics: Vec<&String> =
                    topics.iter().filter(|t| filter.as_ref().is_none_or(|f| f.matches(t))).collect();
                self.replies.text(format!("ok {}", serde_json::json!({ "topics": topics })));
            }
            Command::Stats { topic } => {
                let stats = self.stats(topic)?;
                self.replies.text(format!("ok {stats}"));
            }
            Command::Hello { json } => self.hello(json)?,
            Command::Help => {
                let help = self.help();
                self.replies.text(help);
            }
            Command::Quit => {
                self.replies.text("ok");
                self.close(Bye::Quit);
            }
        }
        Ok(())
    }

    fn subscribe(&mut self, topic: &str, name: Option<&str>, options: SubOptions) -> Result<(), Refusal> {
        if self.attachments.iter().any(|a| a.consumer.filter() == topic && a.consumer.name() == name) {
            let text = "this connection has that subscription: unsub it first, or use another name";
            return Err(Refusal::new(Code::AlreadySubscribed, text));
        }
        if self.attachments.len() >= self.hub.limits.max_subscriptions {
            let text = format!("a connection has at most {} subscriptions", self.attachments.len());
            return Err(Refusal::new(Code::Busy, text));
        }
        let request = SubscribeRequest {
            filter: Filter::new(topic).map_err(EngineError::from)?,
            name: name.map(str::to_owned),
            group: options.group,
            from: options.from,
            window: Window { count: options.prefetch, bytes: u64::MAX },
            policy: PolicyRequest {
                ack_wait: options.ack_wait,
                backoff: options.backoff,
                max_deliveries: options.max_deliveries,
            },
        };
        let (consumer, receipt) = self.engine.subscribe(request, self.signal.clone())?;
        let number = self.next_attachment;
        self.next_attachment += 1;
        self.attachments.push(Attachment { number, consumer, open: false });
        let ticket = match receipt {
            Receipt::At(ticket) => ticket,
            Receipt::Later(_) => Ticket(0),
        };
        self.replies.at("ok", ticket, Some(number));
        Ok(())
    }

    fn unsubscribe(&mut self, topic: &str, name: Option<&str>, forget: bool) -> Result<(), Refusal> {
        let before = self.attachments.len();
        let mut names: Vec<String> = Vec::new();
        self.attachments.retain(|attachment| {
            let consumer = &attachment.consumer;
            let gone = consumer.filter() == topic && (name.is_none() || consumer.name() == name);
            if gone {
                names.extend(consumer.name().map(str::to_owned));
            }
            !gone
        });
        let removed = before - self.attachments.len();
        if removed == 0 && !(forget && name.is_some()) {
            Filter::new(topic).map_err(EngineError::from)?;
            let text = "this connection has no such subscription";
            return Err(Refusal::new(Code::NotSubscribed, text));
        }
        if names.is_empty() {
            names.extend(name.map(str::to_owned));
        }
        let mut last = Receipt::At(Ticket(0));
        if forget {
            for name in names {
                last = self.engine.forget(topic, &name)?;
            }
        }
        self.replies.receipt("ok", last);
        Ok(())
    }

    /// The consumer and the sequences that `target` means.
    fn find(&self, topic: &str, target: &Target<'_>) -> Result<Vec<(usize, u64, u64)>, Refusal> {
        match target {
            Target::Range(first, last) => {
                Ok((0..self.attachments.len()).map(|i| (i, *first, *last)).collect())
            }
            Target::Id(id) => {
                let found = self
                    .attachments
                    .iter()
                    .enumerate()
                    .find_map(|(i, a)| a.consumer.find(topic, id).map(|seq| vec![(i, seq, seq)]));
                found.ok_or_else(|| EngineError::NotInFlight.into())
            }
        }
    }

    fn settle(&mut self, topic: &str, target: &Target<'_>, verdict: &Verdict) -> Result<(), Refusal> {
        for (i, first, last) in self.find(topic, target)? {
            let mut counts = Vec::new();
            let receipt = self.attachments[i].consumer.settle(topic, &[(first, last)], verdict, &mut counts);
            match receipt {
                Ok(receipt) if counts.first().is_some_and(|count| *count > 0) => {
                    match receipt {
                        Receipt::At(ticket) if self.mode == Mode::Quiet && *verdict == Verdict::Ack => {
                            self.replies.silent(ticket);
                        }
                        receipt => self.replies.receipt("ok", receipt),
                    }
                    return Ok(());
                }
                Ok(_) | Err(EngineError::NotInFlight) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(EngineError::NotInFlight.into())
    }

    fn touch(&mut self, topic: &str, target: &Target<'_>) -> Result<(), Refusal> {
        for (i, first, last) in self.find(topic, target)? {
            if self.attachments[i].consumer.touch(topic, first, last) > 0 {
                self.replies.text("ok");
                return Ok(());
            }
        }
        Err(EngineError::NotInFlight.into())
    }

    fn peek(&mut self, topic: &str, at: &StartAt) -> Result<(), Refusal> {
        let subject = Subject::new(topic).map_err(EngineError::from)?;
        let stream = self
            .engine
            .stream(subject.as_str())
            .ok_or_else(|| Refusal::new(Code::NotFound, "there is no such topic: see topics"))?;
        // What this connection published just before is part of the answer.
        let ticket = stream.barrier()?;
        let stats = stream.log_stats();
        let seq = match at {
            StartAt::First => stats.first,
            StartAt::Sequence(seq) => *seq,
            _ => stats.last,
        };
        self.replies.peek(stream, seq, ticket);
        Ok(())
    }

    fn hello(&mut self, json: &str) -> Result<(), Refusal> {
        #[derive(serde::Deserialize, Default)]
        #[serde(deny_unknown_fields, default)]
        struct Hello {
            token: Option<String>,
            name: Option<String>,
            mode: Option<String>,
        }
        // An array would do for the fields in their order.
        let json = if json.trim_start().starts_with('{') { json } else { "" };
        let hello: Hello = serde_json::from_str(json).map_err(|error| {
            Refusal::new(
                Code::BadArgs,
                format!("write: hello {{\"token\":…,\"name\":…,\"mode\":\"full\"}}: {error}"),
            )
        })?;
        let mode = match hello.mode.as_deref() {
            None => self.mode,
            Some("full") => Mode::Full,
            Some("quiet") => Mode::Quiet,
            Some(_) => return Err(Refusal::new(Code::BadArgs, "mode is full or quiet")),
        };
        if let Some(name) = &hello.name
            && (name.len() > 100 || name.chars().any(char::is_control))
        {
            return Err(Refusal::new(Code::BadArgs, "name is at most 100 bytes without control characters"));
        }
        if let Some(token) = &hello.token
            && !self.hub.tokens.is_empty()
            && !self.hub.knows_token(token)
        {
            return Err(Refusal::new(Code::Auth, "the token is wrong"));
        }
        self.authorized |= hello.token.is_some();
        if !self.authorized {
            return Err(Refusal::new(Code::Auth, "a token is needed: hello {\"token\":\"…\"}"));
        }
        self.mode = mode;
        self.hub.rename(self.number, hello.name);
        self.replies.text("ok");
        Ok(())
    }

    fn help(&self) -> String {
        let words = self.words();
        let (publish, subscribe, unsubscribe, ack) =
            (&words.publish, &words.subscribe, &words.unsubscribe, &words.ack);
        format!(
            "help {publish} TOPIC JSON                      store an event; ok SEQ when it is on disk\n\
             help pubn TOPIC COUNT BYTES              then BYTES bytes: COUNT lines of JSON; ok FIRST-LAST\n\
             help {subscribe} TOPIC [as NAME] [OPTIONS]       events follow; with a name it survives disconnects\n\
             help     prefetch=N from=new|first|last|@SEQ|TIME ack_wait=30s max_deliveries=N backoff=1s,5s group\n\
             help {ack} TOPIC ID|@SEQ[-@SEQ]            done with it\n\
             help nack TOPIC ID|@SEQ [delay=5s] [reason=…]   again, later\n\
             help touch TOPIC ID|@SEQ                 still working on it\n\
             help bury TOPIC ID|@SEQ [reason=…]       to the dead letters, $dead/TOPIC\n\
             help kick TOPIC [COUNT]                  dead letters back to their topic\n\
             help peek TOPIC @SEQ|first|last          look, take nothing\n\
             help {unsubscribe} TOPIC [as NAME] [forget]      end a subscription; forget deletes a named one\n\
             help topics [FILTER], stats [TOPIC], hello JSON, help, quit\n\
             ok"
        )
    }
}

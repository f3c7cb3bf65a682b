//! The client against a peer that follows a script: what a real broker does seldom or never.

use std::time::Instant;

use tokio::net::TcpListener;
use tokio::net::tcp::OwnedWriteHalf;

use super::*;

const HELLO: &str = "hello postroad/0.1.0 jsonlog/1 sync=fdatasync max_line=100 auth=none\n";

/// The other end of one connection.
struct Peer {
    read: tokio::io::Lines<tokio::io::BufReader<tokio::net::tcp::OwnedReadHalf>>,
    write: OwnedWriteHalf,
}

impl Peer {
    async fn says(&mut self, text: &str) {
        self.write.write_all(text.as_bytes()).await.unwrap();
    }

    async fn hears(&mut self) -> String {
        self.read.next_line().await.unwrap().expect("the client closed")
    }
}

async fn pair_with(greeting: &str, options: ClientOptions) -> (Result<Client, ClientError>, Peer) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("jsonlog://{}", listener.local_addr().unwrap());
    let accept = async {
        let (socket, _) = listener.accept().await.unwrap();
        let (read, write) = socket.into_split();
        let read = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(read));
        let mut peer = Peer { read, write };
        peer.says(greeting).await;
        peer
    };
    tokio::join!(Client::connect(&url, options), accept)
}

async fn pair() -> (Client, Peer) {
    let (client, peer) = pair_with(HELLO, ClientOptions::default()).await;
    (client.unwrap(), peer)
}

fn sub(filter: &str) -> SubscribeOptions {
    SubscribeOptions { filter: filter.into(), prefetch: 2, ..Default::default() }
}

/// `subscribe`, with the peer saying `ok`.
async fn subscribed(client: &Client, peer: &mut Peer, filter: &str) -> Events {
    let options = sub(filter);
    let (events, ()) = tokio::join!(client.subscribe(&options), async {
        assert!(peer.hears().await.starts_with(&format!("sub {filter} ")));
        peer.says("ok\n").await;
    });
    events.unwrap()
}

#[test]
fn a_token_is_not_printed() {
    let options = ClientOptions { token: Some("s3cret".into()), ..Default::default() };
    assert!(!format!("{options:?}").contains("s3cret"));
    assert_eq!(hello(&options), "hello {\"token\":\"s3cret\"}\n");
}

#[tokio::test]
async fn replies_are_matched_in_order_with_events_between() {
    let (client, mut peer) = pair().await;
    let mut events = subscribed(&client, &mut peer, "a").await;
    let one = client.publish("a", "{}").await.unwrap();
    let two = client.publish("b", "{}").await.unwrap();
    let bulk = client.publish_bulk("a", "{}\n{}\n", 2).await.unwrap();
    let ack = client.ack("a", 1).await.unwrap();
    for want in ["pub a {}", "pub b {}", "pubn a 2 6", "{}", "{}", "ack a @1"] {
        assert_eq!(peer.hears().await, want);
    }
    peer.says("ok 7\nevent a 1 3 {\"x\": 1}\r\nerr disk-full make room\nok 8-9 duplicates=1\nok\n").await;
    assert_eq!(one.await.unwrap(), PublishAck { seq: 7, duplicate: false });
    assert_eq!(two.await.unwrap_err(), ClientError::new(ErrorKind::DiskFull, "make room"));
    assert_eq!(bulk.await.unwrap(), BulkAck { first: 8, last: 9, duplicates: 1 });
    ack.await.unwrap();
    let event = events.next().await.unwrap();
    assert_eq!((&*event.topic, event.seq, event.attempt, &event.json[..]), ("a", 1, 3, &b"{\"x\": 1}"[..]));
    // A peek is answered by an event with attempt 0, even on a topic that is subscribed.
    let (peeked, ()) = tokio::join!(client.peek("a", StartAt::Last), async {
        assert_eq!(peer.hears().await, "peek a last");
        peer.says("event a 5 2 {}\nevent a 4 0 {}\n").await;
    });
    assert_eq!(peeked.unwrap().seq, 4);
    assert_eq!(events.next().await.unwrap().seq, 5);
}

#[tokio::test]
async fn a_broken_connection_is_unknown_and_later_commands_are_never_sent() {
    let (client, mut peer) = pair().await;
    let mut events = subscribed(&client, &mut peer, "a").await;
    let reply = client.publish("a", "{}").await.unwrap();
    assert_eq!(peer.hears().await, "pub a {}");
    peer.says("event a 1 1 {}\nbye slow read faster\n").await;
    let why = reply.await.unwrap_err();
    assert_eq!(why.kind(), ErrorKind::Disconnected);
    assert!(why.outcome_unknown() && why.text().contains("slow read faster"), "{why}");
    // The event is void: the server gives it to somebody else.
    assert_eq!(events.next().await, None);
    assert_eq!(events.error().unwrap().kind(), ErrorKind::Disconnected);
    let late = client.publish("a", "{}").await.unwrap_err();
    assert!(late.kind() == ErrorKind::Closed && !late.outcome_unknown(), "{late}");
    assert_eq!(client.closed().unwrap().kind(), ErrorKind::Disconnected);
}

#[tokio::test]
async fn what_is_not_the_protocol_ends_the_connection() {
    for nonsense in
        ["what\n", "ok\n", "ok x\n", "event a 1 0 {}\n", "hello again jsonlog/1\n", &"x".repeat(70_000)]
    {
        let options = ClientOptions { max_reply: 60_000, ..Default::default() };
        let (client, mut peer) = pair_with(HELLO, options).await;
        let reply = client.unwrap().publish("a", "{}").await.unwrap();
        peer.hears().await;
        peer.says(nonsense).await;
        assert_eq!(reply.await.unwrap_err().kind(), ErrorKind::Protocol, "{nonsense:.20}");
    }
    // A reply that nobody asked for.
    let (client, mut peer) = pair().await;
    peer.says("ok\n").await;
    poll_fn(|cx| client.handle.shared.poll_ended(cx)).await;
    assert_eq!(client.closed().unwrap().kind(), ErrorKind::Protocol);
}

#[tokio::test]
async fn a_greeting_that_is_none() {
    for (greeting, kind) in [
        ("SSH-2.0-OpenSSH\n", ErrorKind::Protocol),
        ("hello postroad/9 jsonlog/2\n", ErrorKind::Protocol),
        ("ok\n", ErrorKind::Protocol),
        ("bye busy 20000 connections\n", ErrorKind::Busy),
        ("bye shutting-down\n", ErrorKind::ShuttingDown),
        ("hello postroad/0 jsonlog/1 auth=token\n", ErrorKind::Auth),
    ] {
        let (client, _peer) = pair_with(greeting, ClientOptions::default()).await;
        assert_eq!(client.unwrap_err().kind(), kind, "{greeting:?}");
    }
    let quick = ClientOptions { connect_timeout: Duration::from_millis(50), ..Default::default() };
    let (client, _peer) = pair_with("hello without an end", quick).await;
    assert_eq!(client.unwrap_err().kind(), ErrorKind::Connect);
    let token = ClientOptions { token: Some("wrong".into()), ..Default::default() };
    let (client, mut peer) = pair_with(&format!("{HELLO}err auth another token\n"), token).await;
    assert_eq!(client.unwrap_err().kind(), ErrorKind::Auth);
    assert_eq!(peer.hears().await, "hello {\"token\":\"wrong\"}");
}

#[tokio::test]
async fn a_full_queue_waits_for_replies() {
    let options = ClientOptions { in_flight: 4, ..Default::default() };
    let (client, mut peer) = pair_with(HELLO, options).await;
    let client = client.unwrap();
    let mut replies = Vec::new();
    for _ in 0..4 {
        replies.push(client.publish("a", "{}").await.unwrap());
    }
    assert_eq!(client.try_publish("a", "{}").unwrap_err().kind(), ErrorKind::Full);
    let fifth = tokio::spawn({
        let client = client.clone();
        async move { client.publish("a", "{}").await.unwrap().await.unwrap().seq }
    });
    for _ in 0..4 {
        peer.hears().await;
    }
    // The fifth is not on the wire before there is room for it.
    let early = tokio::time::timeout(Duration::from_millis(50), peer.hears()).await;
    assert!(early.is_err(), "{early:?}");
    peer.says("ok 1\nok 2\n").await;
    peer.hears().await;
    peer.says("ok 3\nok 4\nok 5\n").await;
    assert_eq!(fifth.await.unwrap(), 5);
    for reply in replies {
        reply.await.unwrap();
    }
}

#[tokio::test]
async fn a_peer_that_does_not_read_makes_publishing_wait_in_bounded_memory() {
    let options = ClientOptions { queue_bytes: 64 << 10, ..Default::default() };
    let greeting = HELLO.replace("max_line=100", "max_line=1048576");
    let (client, mut peer) = pair_with(&greeting, options).await;
    let client = client.unwrap();
    let event = format!("{{\"x\":\"{}\"}}", "y".repeat(100_000));
    let mut sent = 0;
    // The socket buffers of both ends fill, then the queue.
    while let Ok(reply) = tokio::time::timeout(Duration::from_millis(200), client.publish("a", &event)).await
    {
        drop(reply.unwrap());
        sent += 1;
        assert!(sent < 1000, "nothing holds it");
    }
    let (queued, limit) = client.handle.shared.queued_for_test();
    assert!(queued >= limit && queued < limit + 2 * event.len(), "{queued}");
    // Read again, and it goes on.
    let reading = tokio::spawn(async move {
        for seq in 0..=sent {
            peer.hears().await;
            peer.says(&format!("ok {}\n", seq + 1)).await;
        }
        peer
    });
    assert_eq!(client.publish("a", &event).await.unwrap().await.unwrap().seq, sent + 1);
    reading.await.unwrap();
}

#[tokio::test]
async fn what_the_queue_never_wrote_was_never_sent() {
    let options = ClientOptions { queue_bytes: 350_000, ..Default::default() };
    let greeting = HELLO.replace("max_line=100", "max_line=1048576");
    let (client, peer) = pair_with(&greeting, options).await;
    let client = client.unwrap();
    let event = format!("{{\"x\":\"{}\"}}", "y".repeat(100_000));
    let mut replies = Vec::new();
    while let Ok(reply) = tokio::time::timeout(Duration::from_millis(200), client.publish("a", &event)).await
    {
        replies.push(reply.unwrap());
        // So that the writer takes them one by one.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    drop(peer);
    let mut kinds = Vec::new();
    for reply in replies {
        kinds.push(reply.await.unwrap_err().kind());
    }
    // First those that were written, then those that were not, and nothing else.
    assert_eq!(kinds.first(), Some(&ErrorKind::Disconnected));
    assert_eq!(kinds.last(), Some(&ErrorKind::Closed));
    assert!(kinds.is_sorted_by_key(|kind| *kind == ErrorKind::Closed), "{kinds:?}");
}

#[tokio::test]
async fn events_are_kept_up_to_the_prefetch() {
    let (client, mut peer) = pair().await;
    let mut events = subscribed(&client, &mut peer, "a").await;
    // The leases of 1 and 2 ran out here; the server sends on.
    peer.says("event a 1 1 {}\nevent a 2 1 {}\nevent a 2 2 {}\nevent a 1 2 {}\nevent a 3 1 {}\nok\n").await;
    let reply = client.touch("a", 3).await.unwrap();
    let _ = reply.await;
    let mut got = Vec::new();
    while let Poll::Ready(Some(e)) = events.poll_next(&mut Context::from_waker(std::task::Waker::noop())) {
        got.push((e.seq, e.attempt));
    }
    assert_eq!(got, [(1, 2), (3, 1)]);
    assert_eq!(events.expired(), 3);
}

#[tokio::test]
async fn subscriptions_of_one_connection_stay_apart() {
    let (client, mut peer) = pair().await;
    let mut a = subscribed(&client, &mut peer, "a/*").await;
    let mut dead = subscribed(&client, &mut peer, "$dead/>").await;
    assert_eq!(client.subscribe(&sub("*/x")).await.unwrap_err().kind(), ErrorKind::AlreadySubscribed);
    peer.says("event $dead/a/x 1 1 {}\nevent a/x 9 1 {}\nevent b 1 1 {}\nnote lagged a/* 3 events\n").await;
    assert_eq!(&*a.next().await.unwrap().topic, "a/x");
    assert_eq!(&*dead.next().await.unwrap().topic, "$dead/a/x");
    while a.take_notes().is_empty() {
        tokio::task::yield_now().await;
    }
    // A dropped handle unsubscribes. Until that is answered its events still come, and are nobody's.
    drop(a);
    assert_eq!(peer.hears().await, "unsub a/*");
    let options = sub("a/x");
    let (again, ()) = tokio::join!(client.subscribe(&options), async {
        assert!(peer.hears().await.starts_with("sub a/x "));
        peer.says("event a/x 10 1 {}\nok\nevent a/x 11 1 {}\nok\n").await;
    });
    let mut again = again.unwrap();
    assert_eq!(again.next().await.unwrap().seq, 11);
    // The server ends one.
    peer.says("note detached a/x it lagged too far\n").await;
    assert_eq!(again.next().await, None);
    assert!(again.error().unwrap().text().contains("lagged too far"));
    assert!(!dead.is_ended());
}

#[tokio::test]
async fn a_refused_subscription_leaves_its_filter_free() {
    let (client, mut peer) = pair().await;
    let options = sub("a");
    let (refused, ()) = tokio::join!(client.subscribe(&options), async {
        peer.hears().await;
        peer.says("err in-use another connection has it\n").await;
    });
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::InUse);
    subscribed(&client, &mut peer, "a").await;
}

#[tokio::test]
async fn the_last_handle_flushes_what_was_queued() {
    let (client, mut peer) = pair().await;
    let reply = client.publish("a", "{}").await.unwrap();
    drop(client);
    assert_eq!(peer.hears().await, "pub a {}");
    peer.says("ok 1\n").await;
    assert_eq!(reply.await.unwrap().seq, 1);
    let before = Instant::now();
    assert_eq!(peer.read.next_line().await.unwrap(), None, "closed after the answer");
    assert!(before.elapsed() < link::LINGER);
}

#[tokio::test]
async fn a_peer_that_never_answers_does_not_keep_a_closed_client() {
    let (client, mut peer) = pair().await;
    let reply = client.publish("a", "{}").await.unwrap();
    peer.hears().await;
    let before = Instant::now();
    tokio::join!(client.close(), client.close());
    assert!(before.elapsed() < link::LINGER + Duration::from_secs(2));
    assert_eq!(reply.await.unwrap_err().kind(), ErrorKind::Disconnected);
    assert_eq!(client.publish("a", "{}").await.unwrap_err().kind(), ErrorKind::Closed);
}

//! Both ends in one task: what the server says is written in advance, and time stands still.

use std::sync::Mutex;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::{Instant, advance};

use super::super::error::RequestError;
use super::super::requests::{Message, Request};
use super::*;

const WITHIN: Duration = Duration::from_secs(2);

/// A connection and its other end, behind the subscription.
fn pair() -> (Connection, DuplexStream) {
    let (ours, theirs) = duplex(1 << 20);
    let server = Server {
        max_payload: 100,
        ..Server::default()
    };
    let mut connection = Connection::over(ours, server, Some("_INBOX_a"));
    let mut theirs = theirs;
    let subscribed = format!("SUB {}.* 1\r\n", connection.inbox());
    assert!(connection.ready().now_or_never().is_none());
    assert_eq!(sent(&mut theirs), subscribed);
    (connection, theirs)
}

/// What has been sent and not yet read.
fn sent(theirs: &mut DuplexStream) -> String {
    let mut bytes = Vec::new();
    while let Some(read) = theirs.read_buf(&mut bytes).now_or_never() {
        if read.expect("it can be read") == 0 {
            break;
        }
    }
    String::from_utf8(bytes).expect("text")
}

/// A message to the inbox.
fn reply(connection: &Connection, last: &str, body: &str) -> String {
    let (inbox, bytes) = (connection.inbox(), body.len());
    format!("MSG {inbox}.{last} 1 {bytes}\r\n{body}\r\n")
}

/// All replies that have come.
fn taken(connection: &mut Connection) -> Vec<(u64, String)> {
    let mut taken = Vec::new();
    while let Some(reply) = connection.next_reply() {
        let body = str::from_utf8(reply.body).expect("text");
        taken.push((reply.number, body.to_owned()));
    }
    taken
}

fn ok(number: u64) -> (u64, String) {
    (number, "ok".to_owned())
}

async fn say(theirs: &mut DuplexStream, words: impl AsRef<[u8]>) {
    theirs.write_all(words.as_ref()).await.expect("said");
}

/// What ends the connection after these words.
async fn end_after(words: &[u8]) -> Broken {
    let (mut connection, mut theirs) = pair();
    say(&mut theirs, words).await;
    let broken = connection.ready().await.expect_err("it ends");
    assert!(connection.ended().is_some());
    let again = connection.ready().now_or_never().expect("at once");
    assert_eq!(again.expect_err("for ever").to_string(), broken.to_string());
    broken
}

#[tokio::test(start_paused = true)]
async fn messages_are_numbered_and_their_replies_have_the_numbers() {
    let (mut connection, mut theirs) = pair();
    let mut message = connection.message("a", Some(7));
    message.line("A", b"b");
    message.send(b"hi");
    connection.publish("b", Some(8), b"");
    connection.publish("c", None, b"");
    assert!(connection.queued() > 0);
    assert!(connection.ready().now_or_never().is_none());
    assert_eq!(connection.queued(), 0);
    let inbox = connection.inbox().to_owned();
    let expected = format!(
        "HPUB a {inbox}.7    18       20\r\nNATS/1.0\r\nA: b\r\n\r\nhi\r\n\
         PUB b {inbox}.8 0\r\n\r\nPUB c 0\r\n\r\n"
    );
    assert_eq!(sent(&mut theirs), expected);
    say(&mut theirs, reply(&connection, "7", "ok")).await;
    let nobody = format!("HMSG {inbox}.8 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n");
    say(&mut theirs, nobody).await;
    connection.ready().await.expect("replies");
    let first = connection.next_reply().expect("the first");
    assert_eq!(
        (first.number, first.headers.status(), first.body),
        (7, None, &b"ok"[..])
    );
    let second = connection.next_reply().expect("the second");
    assert_eq!(
        (second.number, second.headers.status(), second.body),
        (8, Some(503), &b""[..])
    );
    assert_eq!(connection.next_reply(), None);
    assert!(connection.ready().now_or_never().is_none());
}

#[tokio::test(start_paused = true)]
async fn replies_are_read_however_they_are_cut() {
    let (mut connection, mut theirs) = pair();
    let words = (0..3).map(|number| reply(&connection, &number.to_string(), "ok"));
    let words: String = words.collect::<Vec<_>>().join("PING\r\n+OK\r\n");
    let mut found = Vec::new();
    for byte in words.as_bytes() {
        say(&mut theirs, [*byte]).await;
        // Dropped after each byte.
        if connection.ready().now_or_never().is_some() {
            found.extend(taken(&mut connection));
        }
    }
    assert_eq!(found, [ok(0), ok(1), ok(2)]);
    assert_eq!(sent(&mut theirs), "PONG\r\nPONG\r\n");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_for_us_is_passed_over() {
    let (mut connection, mut theirs) = pair();
    for last in ["x", "", "1x", "r", "r7", "18446744073709551616"] {
        say(&mut theirs, reply(&connection, last, "no")).await;
    }
    say(&mut theirs, "MSG other.1 1 2\r\nno\r\n").await;
    say(&mut theirs, reply(&connection, "1", "ok")).await;
    connection.ready().await.expect("one reply");
    assert_eq!(taken(&mut connection), [ok(1)]);
}

#[tokio::test(start_paused = true)]
async fn ping_is_answered_and_silence_is_asked_about_and_ends_it() {
    let (mut connection, mut theirs) = pair();
    say(&mut theirs, "PING\r\n").await;
    assert!(connection.ready().now_or_never().is_none());
    assert_eq!(sent(&mut theirs), "PONG\r\n");
    // It was heard in the first interval; then it is asked, and answers once.
    let mut pings = Vec::new();
    let asked = Instant::now();
    for answer in ["", "PONG\r\n", "", "", ""] {
        advance(Duration::from_secs(5)).await;
        let driven = connection.ready().now_or_never();
        pings.push(sent(&mut theirs));
        if let Some(Err(broken)) = driven {
            assert!(matches!(broken, Broken::Silent(_)), "{broken}");
            break;
        }
        say(&mut theirs, answer).await;
    }
    assert_eq!(pings, ["", "PING\r\n", "", "PING\r\n", "PING\r\n"]);
    let broken = connection.ready().await.expect_err("it is silent");
    assert_eq!(broken.to_string(), "the server has been silent for 15s");
    assert_eq!(asked.elapsed(), Duration::from_secs(30));
}

#[tokio::test(start_paused = true)]
async fn first_trouble_ends_it_and_is_told_apart() {
    let publish = b"-ERR 'Permissions Violation for Publish to \"a\"'\r\n";
    let denied = end_after(publish).await;
    assert!(matches!(denied, Broken::PublishDenied(_)), "{denied}");
    let said = "the server says: Permissions Violation for Publish to \"a\"";
    assert_eq!(denied.to_string(), said);
    let subscribe = b"-ERR 'Permissions Violation for Subscription to \"a\"'\r\n-ERR 'b'\r\n";
    let denied = end_after(subscribe).await;
    assert!(matches!(denied, Broken::SubscriptionDenied(_)), "{denied}");
    let said = end_after(b"-ERR 'Stale Connection'\r\n").await;
    assert!(matches!(said, Broken::Server(_)), "{said}");
    let lame = end_after(b"INFO {\"ldm\":true}\r\n").await;
    assert!(matches!(lame, Broken::LameDuck), "{lame}");
    for wrong in [
        &b"INFO {\r\n"[..],
        b"GET / HTTP/1.1\r\n",
        b"MSG a 1 99999999999\r\n",
    ] {
        let broken = end_after(wrong).await;
        assert!(matches!(broken, Broken::Malformed(_)), "{broken}");
    }
}

#[tokio::test(start_paused = true)]
async fn line_that_was_too_long_is_no_longer_than_the_longest_that_was_sent() {
    let long = "a".repeat(300);
    let exceeded = "-ERR 'Maximum Control Line Exceeded'\r\n";
    let (mut connection, mut theirs) = pair();
    connection.message(&long, Some(7)).send(b"");
    connection.message("b", Some(8)).send(b"");
    let longest = connection.line_bytes(&long, 7);
    say(&mut theirs, exceeded).await;
    let broken = connection.ready().await.expect_err("it ends");
    assert!(matches!(broken, Broken::LineTooLong(bytes) if bytes == longest));

    let (mut connection, mut theirs) = pair();
    let requests = connection.requests();
    let longest = requests.line_bytes(&long);
    let _answers = requests.ask(question(&long)).expect("asked");
    say(&mut theirs, exceeded).await;
    let broken = connection.ready().await.expect_err("it ends");
    assert!(matches!(broken, Broken::LineTooLong(bytes) if bytes == longest));
}

#[tokio::test(start_paused = true)]
async fn request_with_a_line_that_is_known_to_be_too_long_is_not_sent() {
    let (mut connection, _theirs) = pair();
    let requests = connection.requests();
    let line = requests.line_bytes("abc");
    connection.limit_lines(line);
    let queued = connection.queued();
    let refused = requests.ask(question("abcd"));
    let (bytes, bytes_max) = (line + 1, line);
    assert!(matches!(
        refused,
        Err(RequestError::LineTooLong { bytes: found, bytes_max: max })
            if (found, max) == (bytes, bytes_max)
    ));
    assert_eq!(connection.queued(), queued);
    assert!(requests.ask(question("abc")).is_ok());
}

#[tokio::test(start_paused = true)]
async fn connection_that_is_closed_says_what_the_server_said_before() {
    let (mut connection, mut theirs) = pair();
    say(&mut theirs, reply(&connection, "1", "ok")).await;
    say(&mut theirs, "-ERR 'Maximum Payload Violation'\r\n").await;
    drop(theirs);
    connection.publish("a", Some(2), b"");
    connection.ready().await.expect("the reply comes first");
    assert_eq!(taken(&mut connection), [ok(1)]);
    let broken = connection.ready().await.expect_err("it ends");
    assert!(matches!(broken, Broken::Server(_)), "{broken}");

    let (mut connection, theirs) = pair();
    drop(theirs);
    let broken = connection.ready().await.expect_err("it ends");
    assert!(matches!(broken, Broken::Closed), "{broken}");
}

#[tokio::test(start_paused = true)]
async fn limit_that_changes_counts_at_once() {
    let (mut connection, mut theirs) = pair();
    assert_eq!(connection.max_payload(), 100);
    say(
        &mut theirs,
        "INFO {\"max_payload\":50,\"server_id\":\"B\"}\r\n",
    )
    .await;
    assert!(connection.ready().now_or_never().is_none());
    assert_eq!(connection.max_payload(), 50);
    assert_eq!(connection.server().id, "B");
    let too_large = Request {
        subject: "a",
        body: &[b'x'; 51],
        ..Request::default()
    };
    let refused = connection.requests().ask(too_large);
    assert!(matches!(
        refused,
        Err(RequestError::TooLarge { bytes: 51, .. })
    ));
}

fn question(subject: &str) -> Request<'_> {
    Request {
        subject,
        ..Request::default()
    }
}

/// The subject that the answer to the request goes to which was sent last.
fn reply_to(sent: &str) -> String {
    let line = sent
        .lines()
        .rfind(|line| line.contains("PUB "))
        .expect("a request");
    line.split_whitespace()
        .nth(2)
        .expect("a reply subject")
        .to_owned()
}

fn body(answer: Result<Message, RequestError>) -> Bytes {
    answer.expect("an answer").body
}

#[tokio::test(start_paused = true)]
async fn request_is_answered_beside_replies_in_one_task_and_wakes_the_driver() {
    let (mut connection, mut theirs) = pair();
    let requests = connection.requests();
    let server = async {
        let mut seen = String::new();
        while !seen.contains("\r\n\r\n") {
            let mut bytes = [0; 100];
            let read = theirs.read(&mut bytes).await.expect("a request");
            seen.push_str(str::from_utf8(&bytes[..read]).expect("text"));
        }
        let answer = format!("MSG {} 1 3\r\nyes\r\n", reply_to(&seen));
        say(&mut theirs, answer).await;
        theirs
    };
    let answer = requests.request(question("a"), WITHIN);
    let mut both = pin!(futures_util::future::join(answer, server));
    let (answer, _theirs) = loop {
        tokio::select! {
            biased;
            driven = connection.ready() => driven.expect("it lives"),
            done = &mut both => break done,
        }
    };
    assert_eq!(&body(answer)[..], b"yes");
}

#[tokio::test(start_paused = true)]
async fn replies_that_come_during_a_request_are_kept_in_order() {
    let (mut connection, mut theirs) = pair();
    say(&mut theirs, reply(&connection, "1", "ok")).await;
    connection
        .ready()
        .await
        .expect("a reply, which is not taken");
    let requests = connection.requests();
    let mut answers = requests.ask(question("a")).expect("asked");
    let words = ["2", "r0", "3"].map(|last| reply(&connection, last, "ok"));
    say(&mut theirs, words.concat()).await;
    let answer = connection.during(answers.next()).await.expect("it lives");
    assert_eq!(&answer.expect("an answer").body[..], b"ok");
    say(&mut theirs, reply(&connection, "4", "ok")).await;
    connection.ready().await.expect("replies");
    let all = taken(&mut connection);
    assert_eq!(all, [ok(1), ok(2), ok(3)]);
    connection.ready().await.expect("one more");
    assert_eq!(taken(&mut connection), [ok(4)]);
}

#[tokio::test(start_paused = true)]
async fn every_answer_to_a_request_comes_and_late_ones_go_nowhere() {
    let (mut connection, mut theirs) = pair();
    let mut answers = connection.requests().ask(question("a")).expect("asked");
    for _ in 0..20 {
        say(&mut theirs, reply(&connection, "r0", "ok")).await;
    }
    assert!(connection.ready().now_or_never().is_none());
    let mut found = 0;
    while answers.try_next().is_some() {
        found += 1;
    }
    assert_eq!(found, 8);
    drop(answers);
    say(&mut theirs, reply(&connection, "r0", "late")).await;
    assert!(connection.ready().now_or_never().is_none());
}

#[tokio::test(start_paused = true)]
async fn request_has_headers_and_stands_behind_what_was_published_before() {
    let (mut connection, mut theirs) = pair();
    connection.publish("first", None, b"");
    let request = Request {
        subject: "second",
        lines: b"A: b\r\n",
        body: b"hi",
    };
    let _answers = connection.requests().ask(request).expect("asked");
    connection.publish("third", None, b"");
    assert!(connection.ready().now_or_never().is_none());
    let inbox = connection.inbox().to_owned();
    let expected = format!(
        "PUB first 0\r\n\r\nHPUB second {inbox}.r0    18       20\r\nNATS/1.0\r\nA: b\r\n\r\nhi\r\n\
         PUB third 0\r\n\r\n"
    );
    assert_eq!(sent(&mut theirs), expected);
}

#[tokio::test(start_paused = true)]
async fn request_that_cannot_be_sent_is_refused_and_leaves_nothing_behind() {
    let (connection, _theirs) = pair();
    let requests = connection.requests();
    for subject in ["", "a b", "a\r\nPUB b 0\r\n"] {
        let refused = requests.ask(question(subject));
        assert!(
            matches!(refused, Err(RequestError::Subject(_))),
            "{subject:?}"
        );
    }
    let with_headers = Request {
        subject: "a",
        lines: b"A: b\r\n",
        body: &[b'x'; 83],
    };
    let refused = requests.ask(with_headers);
    assert!(matches!(
        refused,
        Err(RequestError::TooLarge { bytes: 101, .. })
    ));
    assert_eq!(connection.queued(), 0);
}

#[tokio::test(start_paused = true)]
async fn requests_fail_when_the_connection_ends_and_when_nobody_answers() {
    let (mut connection, mut theirs) = pair();
    let requests = connection.requests();
    let silent = connection
        .during(requests.request(question("a"), WITHIN))
        .await;
    let silent = silent.expect("it lives");
    assert!(
        matches!(silent, Err(RequestError::TimedOut(_))),
        "{silent:?}"
    );
    let mut asked = requests.ask(question("a")).expect("asked");
    say(
        &mut theirs,
        "-ERR 'Permissions Violation for Publish to \"a\"'\r\n",
    )
    .await;
    connection.ready().await.expect_err("it ends");
    let failed = asked.next().await.expect_err("no answer");
    assert!(matches!(failed, Broken::PublishDenied(_)), "{failed}");
    let failed = requests.ask(question("a")).expect_err("no connection");
    assert!(
        matches!(failed, RequestError::Broken(Broken::PublishDenied(_))),
        "{failed}"
    );
}

#[tokio::test(start_paused = true)]
async fn requests_end_with_a_connection_that_is_dropped() {
    let (connection, _theirs) = pair();
    let mut asked = connection.requests().ask(question("a")).expect("asked");
    drop(connection);
    let failed = asked.next().await.expect_err("no answer");
    assert!(matches!(failed, Broken::Closed), "{failed}");
}

#[tokio::test(start_paused = true)]
async fn connection_is_driven_until_no_handle_is_left() {
    let (connection, mut theirs) = pair();
    let driven = connection.spawn();
    let requests = driven.requests();
    let asked = requests.request(question("a"), WITHIN);
    let answered = async {
        let mut seen = Vec::new();
        while !seen.ends_with(b"\r\n\r\n") {
            theirs.read_buf(&mut seen).await.expect("a request");
        }
        let to = reply_to(str::from_utf8(&seen).expect("text"));
        say(&mut theirs, format!("MSG {to} 1 3\r\nyes\r\n")).await;
    };
    let (answer, ()) = tokio::join!(asked, answered);
    assert_eq!(&body(answer)[..], b"yes");
    let mut closed = pin!(driven.close());
    assert!(closed.as_mut().now_or_never().is_none());
    drop(requests);
    closed.await;
    assert_eq!(theirs.read(&mut [0; 10]).await.expect("the end"), 0);
}

#[tokio::test(start_paused = true)]
async fn too_many_requests_are_refused() {
    let (connection, _theirs) = pair();
    let requests = connection.requests();
    let asked: Vec<_> = (0..4096)
        .map(|_| requests.ask(question("a")).expect("asked"))
        .collect();
    let refused = requests.ask(question("a"));
    assert!(matches!(refused, Err(RequestError::TooMany)), "{refused:?}");
    drop(asked);
    assert!(requests.ask(question("a")).is_ok());
}

/// Counts what is written to it, and takes no more than a socket would.
struct Counted {
    writes: Arc<Mutex<Vec<usize>>>,
    most: usize,
    stream: DuplexStream,
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let most = buf.len().min(self.most);
        let written = std::task::ready!(Pin::new(&mut self.stream).poll_write(cx, &buf[..most]))?;
        self.writes.lock().expect("whole").push(written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

fn counted(most: usize, room: usize) -> (Connection, DuplexStream, Arc<Mutex<Vec<usize>>>) {
    let (stream, theirs) = duplex(room);
    let writes = Arc::new(Mutex::new(Vec::new()));
    let counted = Counted {
        writes: Arc::clone(&writes),
        most,
        stream,
    };
    let connection = Connection::over(counted, Server::default(), None);
    (connection, theirs, writes)
}

#[tokio::test(start_paused = true)]
async fn what_is_queued_leaves_in_few_writes() {
    let (mut connection, _theirs, writes) = counted(64 * 1024, 1 << 20);
    for number in 0..1000 {
        connection.publish("a", Some(number), &[b'x'; 100]);
    }
    let queued = connection.queued();
    assert!(connection.ready().now_or_never().is_none());
    assert_eq!(connection.queued(), 0);
    let writes = writes.lock().expect("whole");
    assert_eq!(writes.len(), queued.div_ceil(64 * 1024));
}

#[tokio::test(start_paused = true)]
async fn queue_that_was_full_is_told_when_it_has_room_and_loses_nothing() {
    let (mut connection, mut theirs, _) = counted(1000, 4096);
    let mut published = 0;
    while !connection.full() {
        connection.publish("a", None, format!("{published:099}").as_bytes());
        published += 1;
    }
    let mut read = Vec::new();
    let mut told = 0;
    while connection.queued() > 0 {
        if let Some(driven) = connection.ready().now_or_never() {
            driven.expect("it lives");
            assert!(connection.queued() <= QUEUED_BYTES_FULL / 2);
            told += 1;
        }
        theirs.read_buf(&mut read).await.expect("something");
        // What was taken does not pile up.
        assert!(connection.output.len() <= 2 * connection.queued() + 4096);
    }
    assert_eq!(told, 1);
    let mut rest = [0; 4096];
    while let Some(bytes) = theirs.read(&mut rest).now_or_never() {
        read.extend_from_slice(&rest[..bytes.expect("something")]);
    }
    let text = String::from_utf8(read).expect("text");
    let bodies: Vec<_> = text.lines().filter(|line| line.starts_with('0')).collect();
    let expected: Vec<_> = (0..published)
        .map(|number| format!("{number:099}"))
        .collect();
    assert_eq!(bodies, expected);
}

#[tokio::test(start_paused = true)]
async fn large_answer_is_read_whole_and_its_buffer_given_back() {
    let (mut connection, mut theirs) = pair();
    let mut answers = connection.requests().ask(question("a")).expect("asked");
    let large = "x".repeat(700_000);
    say(&mut theirs, reply(&connection, "r0", &large)).await;
    let answer = connection.during(answers.next()).await.expect("it lives");
    assert_eq!(answer.expect("an answer").body.len(), large.len());
    assert!(connection.ready().now_or_never().is_none());
    assert!(connection.received.all().len() <= 64 * 1024);
}

#[tokio::test(start_paused = true)]
async fn what_is_queued_is_sent_before_it_is_closed() {
    let (mut connection, mut theirs) = pair();
    connection.publish("a", None, b"");
    connection.close().await;
    assert_eq!(sent(&mut theirs), "PUB a 0\r\n\r\n");
}

#[test]
fn no_two_inboxes_are_the_same() {
    let names: Vec<String> = (0..100).map(|_| inbox(None, &Network::default())).collect();
    let mut different = names.clone();
    different.sort();
    different.dedup();
    assert_eq!(different.len(), names.len());
    assert!(names.iter().all(|name| name.len() == "_INBOX.".len() + 22));
}

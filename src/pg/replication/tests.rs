//! A scripted walsender at the other end of a pipe.

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::*;
use crate::lead::window::{Limits, Window};

/// Large enough for what these tests send, small enough to be refused.
const MESSAGE_BYTES_MAX: usize = 1000;

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
    [&[tag], &len[..], body].concat()
}

fn wal(lsn: u64, body: &[u8]) -> Vec<u8> {
    let lsn = lsn.to_be_bytes();
    message(b'd', &[b"w", &lsn[..], &lsn, &[0; 8], body].concat())
}

fn keepalive(wal_end: u64, reply: u8) -> Vec<u8> {
    let wal_end = wal_end.to_be_bytes();
    message(b'd', &[b"k", &wal_end[..], &[0; 8], &[reply]].concat())
}

fn said(tag: u8, code: &str) -> Vec<u8> {
    let fields = format!("SLOCAL\0VERROR\0C{code}\0Mwords\0Dmore\0Hdo it\0\0");
    message(tag, fields.as_bytes())
}

fn words(code: &str) -> ServerMessage {
    ServerMessage {
        severity: "ERROR".to_owned(),
        code: code.to_owned(),
        message: "words".to_owned(),
        detail: Some("more".to_owned()),
        hint: Some("do it".to_owned()),
    }
}

/// A server that has sent up to 0/9 already.
fn streaming() -> (Stream, DuplexStream) {
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let mut conn = Conn::scripted(ours, MESSAGE_BYTES_MAX);
    conn.phase = Phase::Stream;
    let mut stream = Stream::new(Box::new(conn));
    stream.sent = Lsn::new(9);
    (stream, theirs)
}

/// What `recv` makes of these bytes, followed by the end of the connection.
async fn received(bytes: &[u8]) -> (Vec<Frame>, Error) {
    let (mut stream, mut peer) = streaming();
    let send = async {
        peer.write_all(bytes).await.unwrap();
        drop(peer);
    };
    let recv = async {
        let mut frames = Vec::new();
        loop {
            match stream.recv().await {
                Ok(frame) => frames.push(frame),
                Err(error) => return (frames, error),
            }
        }
    };
    tokio::join!(recv, send).0
}

#[tokio::test]
async fn every_kind_of_frame_is_told_apart() {
    let bytes = [
        wal(7, b"B"),
        message(b'S', b"TimeZone\0UTC\0"),
        said(b'N', "55000"),
        keepalive(9, 1),
        keepalive(9, 0),
    ];
    let (frames, error) = received(&bytes.concat()).await;
    let wal_end = Lsn::new(9);
    let keepalive = |reply_requested| Frame::Keepalive {
        wal_end,
        reply_requested,
    };
    let body = Bytes::from_static(b"B");
    let notice = Frame::Notice(words("55000"));
    assert_eq!(
        frames,
        [
            Frame::Wal { body },
            notice,
            keepalive(true),
            keepalive(false)
        ]
    );
    assert!(error.closed(), "{error:?}");
}

#[tokio::test]
async fn end_of_stream_says_whether_it_was_in_order() {
    for tag in [b'c', b'C'] {
        let (_, error) = received(&message(tag, b"COPY 0\0")).await;
        assert!(error.ended() && !error.closed(), "{error:?}");
    }
    let (_, error) = received(&said(b'E', "57P01")).await;
    assert_eq!(error.server(), Some(&words("57P01")));
    let (_, error) = received(&wal(7, b"cut")[..12]).await;
    assert!(error.closed() && !error.ended(), "{error:?}");
}

#[tokio::test]
async fn what_is_not_understood_is_an_error() {
    for wrong in [
        message(b'd', b""),
        message(b'd', b"x"),
        message(b'd', b"k short"),
        message(b'd', &[&b"k"[..], &[0; 18]].concat()),
        message(b'd', &[&b"w"[..], &[0; 23]].concat()),
        message(b'Z', b"I"),
        vec![b'd', 0, 0, 0, 3],
    ] {
        let (frames, error) = received(&wrong).await;
        assert!(frames.is_empty() && !error.closed(), "{wrong:?}: {error:?}");
    }
}

#[tokio::test]
async fn largest_message_passes_and_a_byte_more_does_not() {
    let body = |bytes: usize| vec![0; bytes - HEADERS];
    const HEADERS: usize = 5 + WAL_HEADER_BYTES;
    let (frames, _) = received(&wal(7, &body(MESSAGE_BYTES_MAX))).await;
    assert_eq!(frames.len(), 1);
    let (frames, error) = received(&wal(7, &body(MESSAGE_BYTES_MAX + 1))).await;
    assert!(frames.is_empty());
    assert!(error.to_string().contains("1001 bytes"), "{error}");
}

#[tokio::test]
async fn future_dropped_in_the_middle_of_a_message_loses_nothing() {
    let (mut stream, mut peer) = streaming();
    for byte in wal(7, b"whole") {
        let never_ready = tokio::select! {
            biased;
            frame = stream.recv() => Some(frame),
            () = std::future::ready(()) => None,
        };
        assert!(never_ready.is_none());
        peer.write_all(&[byte]).await.unwrap();
    }
    let body = Bytes::from_static(b"whole");
    assert_eq!(stream.recv().await.unwrap(), Frame::Wal { body });
}

#[tokio::test]
async fn one_read_brings_all_frames_that_are_there() {
    let (mut stream, mut peer) = streaming();
    let bytes: Vec<u8> = (1..=100).flat_map(|lsn| wal(lsn, b"B")).collect();
    peer.write_all(&bytes).await.unwrap();
    assert!(stream.next_buffered().is_none());
    stream.recv().await.unwrap();
    let buffered = std::iter::from_fn(|| stream.next_buffered()).count();
    assert_eq!(buffered, 99);
}

#[tokio::test]
async fn status_update_is_laid_out_as_the_server_reads_it() {
    let (mut stream, mut peer) = streaming();
    queue_status(&mut stream, Lsn::new(9), Lsn::new(7), true);
    assert!(stream.wants_flush());
    stream.flush().await.unwrap();
    assert!(!stream.wants_flush());
    let mut status = [0; 39];
    peer.read_exact(&mut status).await.unwrap();
    assert_eq!(status[..6], [b'd', 0, 0, 0, 38, b'r']);
    let number = |at: usize| u64::from_be_bytes(status[at..at + 8].try_into().unwrap());
    assert_eq!([number(6), number(14), number(22)], [9, 7, 7]);
    assert_eq!(status[38], 1);
}

#[tokio::test]
async fn waiting_for_a_frame_writes_what_is_queued() {
    let (mut stream, mut peer) = streaming();
    queue_status(&mut stream, Lsn::new(3), Lsn::new(3), false);
    let answer = async {
        let mut status = [0; 39];
        peer.read_exact(&mut status).await.unwrap();
        peer.write_all(&keepalive(9, 0)).await.unwrap();
    };
    let (frame, ()) = tokio::join!(stream.recv(), answer);
    assert!(matches!(frame, Ok(Frame::Keepalive { .. })));
}

#[tokio::test]
async fn status_updates_do_not_pile_up_while_the_server_takes_none() {
    let (ours, mut peer) = tokio::io::duplex(16);
    let mut conn = Conn::scripted(ours, MESSAGE_BYTES_MAX);
    conn.phase = Phase::Stream;
    let mut stream = Stream::new(Box::new(conn));
    stream.sent = Lsn::new(1000);
    for lsn in 1..=1000 {
        queue_status(&mut stream, Lsn::new(lsn), Lsn::new(lsn), lsn == 500);
        tokio::select! {
            biased;
            _ = stream.flush() => panic!("39 bytes do not fit into 16"),
            () = std::future::ready(()) => {}
        }
    }
    let mut bytes = [0; 2 * 39];
    let (flushed, read) = tokio::join!(stream.flush(), peer.read_exact(&mut bytes));
    flushed.unwrap();
    read.unwrap();
    // The first one had begun to leave; of the others the last says it all.
    assert_eq!(bytes[6..14], 1_u64.to_be_bytes());
    assert_eq!(bytes[39 + 6..39 + 14], 1000_u64.to_be_bytes());
    assert_eq!(bytes[39 + 38], 1, "a reply was requested in between");
}

#[tokio::test]
#[should_panic(expected = "confirmed goes back from 0/2 to 0/1")]
async fn confirmed_that_goes_back_is_a_bug() {
    let (mut stream, _peer) = streaming();
    queue_status(&mut stream, Lsn::new(2), Lsn::new(2), false);
    queue_status(&mut stream, Lsn::new(2), Lsn::new(1), false);
}

#[tokio::test]
#[should_panic(expected = "confirmed 0/A is ahead of 0/9")]
async fn confirmed_ahead_of_what_was_sent_is_a_bug() {
    let (mut stream, _peer) = streaming();
    queue_status(&mut stream, Lsn::new(9), Lsn::new(9), false);
    queue_status(&mut stream, Lsn::new(10), Lsn::new(10), false);
}

#[tokio::test]
async fn closing_says_goodbye_and_reads_to_the_end() {
    let (mut stream, mut peer) = streaming();
    queue_status(&mut stream, Lsn::new(2), Lsn::new(2), false);
    let server = async {
        let mut bytes = [0; 39 + 5];
        peer.read_exact(&mut bytes).await.unwrap();
        assert_eq!(bytes[39..], [b'X', 0, 0, 0, 4]);
        peer.write_all(&wal(3, &[0; 500])).await.unwrap();
        peer.shutdown().await.unwrap();
    };
    tokio::join!(stream.close(), server);
}

/// Only a window makes what is confirmed.
fn queue_status(stream: &mut Stream, received: Lsn, confirmed: Lsn, reply_requested: bool) {
    let limits = Limits {
        events_max: 1,
        bytes_max: 1,
    };
    let window = Window::new(limits, confirmed);
    stream.queue_status(received, Some(window.confirmed()), reply_requested);
}

fn session() -> (Session, DuplexStream) {
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let conn = Box::new(Conn::scripted(ours, MESSAGE_BYTES_MAX));
    (Session { conn }, theirs)
}

fn row(values: &[&str]) -> Vec<u8> {
    let mut body = u16::try_from(values.len()).unwrap().to_be_bytes().to_vec();
    for value in values {
        body.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
        body.extend(value.as_bytes());
    }
    message(b'D', &body)
}

fn ready() -> Vec<u8> {
    message(b'Z', b"I")
}

#[tokio::test]
async fn session_survives_an_error_and_a_dropped_query() {
    let (mut session, mut peer) = session();
    peer.write_all(&[said(b'E', "42601"), ready()].concat())
        .await
        .unwrap();
    let error = session.query("SELEC").await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("42601"));

    tokio::select! {
        biased;
        _ = session.query("SELECT 'late'") => panic!("nothing was answered"),
        () = std::future::ready(()) => {}
    }
    let late = [row(&["late"]), message(b'C', b"SELECT 1\0"), ready()].concat();
    let wanted = [row(&["wanted"]), message(b'C', b"SELECT 1\0"), ready()].concat();
    peer.write_all(&[late, wanted].concat()).await.unwrap();
    let rows = session.query("SELECT 'wanted'").await.unwrap();
    assert_eq!(rows, [[Some("wanted".to_owned())]]);
}

#[tokio::test]
async fn session_comes_back_when_the_slot_is_in_use() {
    let (session, mut peer) = session();
    peer.write_all(&[said(b'E', "55006"), ready()].concat())
        .await
        .unwrap();
    let Err((session, error)) = session.start("s", &["p".to_owned()], false).await else {
        panic!("started");
    };
    assert_eq!(error.sqlstate(), Some("55006"));
    let both = message(b'W', &[0, 0, 0]);
    let bytes = [said(b'N', "01000"), both, wal(7, b"B")].concat();
    peer.write_all(&bytes).await.unwrap();
    let Ok(mut stream) = session.start("s", &["p".to_owned()], false).await else {
        panic!("not started");
    };
    assert_eq!(stream.recv().await.unwrap(), Frame::Notice(words("01000")));
    assert!(matches!(stream.recv().await.unwrap(), Frame::Wal { .. }));
}

#[test]
fn names_are_quoted_once_as_identifiers_and_the_list_as_a_literal() {
    let publications = [r#"we"ird"#.to_owned(), r"it's\".to_owned()];
    let command = start_command(r#"s"lot"#, &publications, true);
    assert_eq!(
        command,
        r#"START_REPLICATION SLOT "s""lot" LOGICAL 0/0 (proto_version '1', "#.to_owned()
            + r#"publication_names '"we""ird","it''s\"', messages 'true')"#
    );
}

#[test]
fn timeline_history_is_read_as_the_server_writes_it() {
    let file = "1\t0/3000148\tno recovery target specified\n\n# by hand\n2\tA/1\tbefore 2026\n";
    let switches = parse_history(file).unwrap();
    let expected = [(1, 0x300_0148), (2, 0xA_0000_0001)];
    let expected = expected.map(|(timeline, lsn)| TimelineSwitch {
        timeline,
        ended_at: Lsn::new(lsn),
    });
    assert_eq!(switches, expected);
    assert_eq!(parse_history("1 nonsense\n"), None);
}

proptest! {
    #[test]
    fn frames_are_the_same_however_the_bytes_are_cut(
        bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..900), 0..20),
        cuts in proptest::collection::vec(1..2000usize, 1..40),
    ) {
        let bytes: Vec<u8> = bodies.iter().flat_map(|body| wal(7, body)).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let frames = runtime.block_on(async {
            let (mut stream, mut peer) = streaming();
            let send = async {
                let mut rest = &bytes[..];
                for cut in cuts.iter().cycle() {
                    let (chunk, tail) = rest.split_at(rest.len().min(*cut));
                    peer.write_all(chunk).await.unwrap();
                    tokio::task::yield_now().await;
                    rest = tail;
                    if rest.is_empty() {
                        break;
                    }
                }
                drop(peer);
            };
            let recv = async {
                let mut frames = Vec::new();
                while let Ok(Frame::Wal { body }) = stream.recv().await {
                    frames.push(body.to_vec());
                }
                frames
            };
            tokio::join!(recv, send).0
        });
        prop_assert_eq!(frames, bodies);
    }
}

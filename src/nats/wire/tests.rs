//! What servers of both ends of the supported range say, and everything that they should not.

use proptest::prelude::*;

use super::*;

/// What the servers say to a verbose client that signs in, creates a stream, publishes into it, to
/// nobody and where it may not, subscribes where it may not, talks to itself, and sends too much.
const GOLDEN: [(&str, &[u8]); 2] = [
    (
        "2.10.26",
        include_bytes!("../../../tests/data/nats/2.10.26"),
    ),
    ("2.15.1", include_bytes!("../../../tests/data/nats/2.15.1")),
];

/// All operations, and what is left of the bytes.
fn operations(mut bytes: &[u8]) -> (Vec<Operation<'_>>, &[u8]) {
    let mut found = Vec::new();
    while let Some((operation, used)) = parse(bytes).expect("well formed") {
        found.push(operation);
        bytes = &bytes[used..];
    }
    (found, bytes)
}

fn one(bytes: &[u8]) -> Operation<'_> {
    let (operations, rest) = operations(bytes);
    assert_eq!((operations.len(), rest), (1, &b""[..]));
    operations[0]
}

fn message(bytes: &[u8]) -> Delivery<'_> {
    match one(bytes) {
        Operation::Message(message) => message,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_servers_say_is_read_to_the_end() {
    for (version, bytes) in GOLDEN {
        let (operations, rest) = operations(bytes);
        assert_eq!(rest, b"");
        let mut messages = Vec::new();
        let mut errors = Vec::new();
        let mut others = Vec::new();
        for operation in operations {
            match operation {
                Operation::Info(json) => {
                    let server = Server::parse(json).expect("an INFO");
                    assert_eq!(server.version, version);
                    assert!(server.headers && server.jetstream && server.auth_required);
                    assert_eq!(server.max_payload, 1_048_576);
                    assert!(!server.lame_duck && !server.tls_required);
                }
                Operation::Message(message) => messages.push(message),
                Operation::Error(text) => errors.push(text),
                other => others.push(other),
            }
        }
        let (ok, ping) = (Operation::Ok, Operation::Ping);
        assert_eq!(others, [ok, Operation::Pong, ping]);
        let denied = b"Permissions Violation for Publish to \"denied.x\"";
        assert_eq!(errors[0], denied);
        assert_eq!(errors[2], b"Maximum Payload Violation");
        let [created, stored, nobody, plain, headed] = messages[..] else {
            panic!("{messages:?}");
        };
        assert_eq!(created.subject, b"_INBOX.golden.r0");
        assert!(created.body.starts_with(b"{\"type\":"));
        assert_eq!(
            (stored.subject, stored.subscription),
            (&b"_INBOX.golden.1"[..], 1)
        );
        assert!(stored.body.ends_with(b"\"seq\":1}"));
        assert_eq!(
            (nobody.headers.status(), nobody.body),
            (Some(503), &b""[..])
        );
        assert_eq!(
            (plain.reply, plain.body),
            (Some(&b"back.here"[..]), &b"hi"[..])
        );
        assert_eq!((headed.reply, headed.body), (plain.reply, plain.body));
        assert_eq!(
            (headed.headers.value("A"), headed.headers.status()),
            (Some(&b"b"[..]), None)
        );
    }
}

#[test]
fn operation_is_read_when_all_of_it_is_there_and_not_before() {
    for (_, bytes) in GOLDEN {
        let mut rest = bytes;
        while let Some((operation, used)) = parse(rest).expect("well formed") {
            for short in 0..used {
                assert_eq!(parse(&rest[..short]), Ok(None));
            }
            assert_eq!(parse(&rest[..used]), Ok(Some((operation, used))));
            rest = &rest[used..];
        }
    }
}

const AROUND: (&[u8], &[u8]) = (b"MSG _INBOX.golden.", b" 1 ");

#[test]
fn reply_with_a_number_is_read_faster_and_means_the_same() {
    for (_, bytes) in GOLDEN {
        let mut rest = bytes;
        let mut found = Vec::new();
        while let Some((operation, used)) = parse(rest).expect("well formed") {
            if let Some((number, body, bytes)) = parse_numbered(rest, AROUND) {
                assert_eq!(bytes, used);
                assert!(matches!(operation, Operation::Message(message) if message.body == body));
                found.push(number);
            }
            rest = &rest[used..];
        }
        assert_eq!(found, [1]);
    }
    let read = |text: &'static str| parse_numbered(text.as_bytes(), AROUND);
    let whole = "MSG _INBOX.golden.123456789012345678 1 2\r\nhi\r\nmore";
    assert_eq!(read(whole), Some((123_456_789_012_345_678, &b"hi"[..], 46)));
    for other in [
        "MSG _INBOX.golden.1234567890123456789 1 2\r\nhi\r\n",
        "MSG _INBOX.golden.7 1 reply 2\r\nhi\r\n",
        "MSG _INBOX.golden.7 12 2\r\nhi\r\n",
        "MSG _INBOX.golden.7  1 2\r\nhi\r\n",
        "MSG _INBOX.golden. 1 2\r\nhi\r\n",
        "MSG _INBOX.golden.7 1 99999999\r\n",
        "MSG _INBOX.golden.7 1 2\r\nhi!\n",
    ] {
        assert_eq!(read(other), None, "{other:?}");
    }
    for short in 0..46 {
        assert_eq!(read(&whole[..short]), None);
    }
}

#[test]
fn names_may_be_in_any_case_and_fields_apart_by_any_space() {
    assert_eq!(one(b"ping\r\n"), Operation::Ping);
    assert_eq!(one(b"Pong \t\n"), Operation::Pong);
    assert_eq!(one(b"+ok\r\n"), Operation::Ok);
    assert_eq!(
        one(b"-err   no quotes \r\n"),
        Operation::Error(b"no quotes")
    );
    assert_eq!(one(b"-ERR\r\n"), Operation::Error(b""));
    assert_eq!(one(b"info\t{} \r\n"), Operation::Info(b"{}"));
    let odd = message(b"msg \t a  7\tb   2 \r\nhi\r\n");
    assert_eq!(
        (odd.subject, odd.subscription, odd.reply),
        (&b"a"[..], 7, Some(&b"b"[..]))
    );
    assert_eq!(odd.body, b"hi");
    assert_eq!(message(b"MSG a 1 0\r\n\r\n").body, b"");
    assert_eq!(message(b"MSG a 1 2\r\n\r\n\r\n").body, b"\r\n");
}

#[test]
fn what_is_no_operation_is_refused() {
    for wrong in [
        &b"X"[..],
        b"\r\n",
        b"MSGS a 1 0\r\n\r\n",
        b"PINGS\r\n",
        b"PI\r\n",
        b"PUB a 0\r\n\r\n",
        b"MSG\r\n",
        b"MSG a 1\r\n",
        b"MSG a x 0\r\n\r\n",
        b"MSG a 1 b 0 0\r\n\r\n",
        b"MSG a 1 b c 0 0\r\n\r\n",
        b"MSG a 1 -1\r\n",
        b"MSG a 1 18446744073709551616\r\n",
        b"MSG a 1 2\r\nhi!\n",
        b"MSG a 1 2\r\nhi\n\n",
        b"HMSG a 1 0\r\n\r\n",
        b"HMSG a 1 9 8\r\n12345678\r\n",
        b"HMSG a 1 b 2 9 8\r\n12345678\r\n",
    ] {
        let text = String::from_utf8_lossy(wrong);
        assert!(parse(wrong).is_err(), "{text:?}: {:?}", parse(wrong));
    }
}

#[test]
fn what_is_too_long_is_refused_before_it_has_come() {
    let line = |bytes: usize| [b"MSG ", vec![b'a'; bytes - 4].as_slice()].concat();
    assert_eq!(parse(&line(CONTROL_LINE_BYTES_MAX - 1)), Ok(None));
    assert!(parse(&line(CONTROL_LINE_BYTES_MAX)).is_err());
    let text = |bytes: usize| [b"INFO ", vec![b' '; bytes - 5].as_slice()].concat();
    assert_eq!(parse(&text(TEXT_BYTES_MAX - 1)), Ok(None));
    assert!(parse(&text(TEXT_BYTES_MAX)).is_err());
    let message = |bytes: usize| format!("MSG a 1 {bytes}\r\n").into_bytes();
    assert_eq!(parse(&message(RECEIVED_BYTES_MAX)), Ok(None));
    assert!(parse(&message(RECEIVED_BYTES_MAX + 1)).is_err());
}

#[test]
fn headers_are_read_past_what_is_none() {
    let block = b"NATS/1.0   429  Too Many Requests \r\nno colon\r\nA:b\r\nA: c\r\n\
        a : d\r\nOdd: \xff\r\nEmpty:\r\n\r\n";
    let headers = Headers::new(block);
    assert_eq!(headers.status(), Some(429));
    assert_eq!(headers.description(), Some(&b"Too Many Requests"[..]));
    assert_eq!(headers.value("A"), Some(&b"b"[..]));
    assert_eq!(headers.value("a"), None);
    assert_eq!(headers.value("Odd"), Some(&b"\xff"[..]));
    assert_eq!(headers.value("Empty"), Some(&b""[..]));
    assert_eq!(headers.lines().count(), 5);
    for none in [
        &b""[..],
        b"NATS/1.0",
        b"NATS/1.0\r\n\r\n",
        b"NATS/1.0 x\r\n",
        b"HTTP/1.1 200\r\n",
    ] {
        let headers = Headers::new(none);
        assert_eq!((headers.status(), headers.value("A")), (None, None));
    }
}

#[test]
fn versions_are_compared_as_numbers() {
    let server = |version: &str| Server {
        version: version.to_owned(),
        ..Server::default()
    };
    assert!(server("2.12.1").at_least(2, 12, 1));
    assert!(server("2.12.10").at_least(2, 12, 9));
    assert!(!server("2.9.31").at_least(2, 10, 0));
    assert!(!server("2.12.0").at_least(2, 12, 1));
    assert!(server("v3.0.0-beta.1").at_least(2, 15, 1));
    assert!(server("2.12.1-RC.2").at_least(2, 12, 1));
    assert!(server("2.12").at_least(2, 12, 0));
    assert!(!server("").at_least(0, 0, 0));
    assert!(!server("next").at_least(0, 0, 0));
}

#[test]
fn server_says_only_what_it_has_to_say() {
    let server = Server::parse(br#"{"server_id":"A","ldm":true,"xkey":"x","domain":"hub"}"#);
    let server = server.expect("an INFO");
    assert_eq!(
        (server.id.as_str(), server.domain.as_deref()),
        ("A", Some("hub"))
    );
    assert!(server.lame_duck);
    assert_eq!(server.max_payload, 1024 * 1024);
    assert!(Server::parse(b"{").is_err());
    assert!(Server::parse(br#"{"max_payload":-1}"#).is_err());
}

const REPLY: ReplyTo<'_> = ReplyTo {
    prefix: b"_INBOX.a.",
    number: 10,
};

#[test]
fn what_a_client_says_is_written_to_the_letter() {
    let mut output = Vec::new();
    subscribe(&mut output, "_INBOX.a.*", 1);
    publish(&mut output, "a.b", None, b"");
    publish(&mut output, "a.b", Some(REPLY), b"hello");
    let expected = "SUB _INBOX.a.* 1\r\nPUB a.b 0\r\n\r\nPUB a.b _INBOX.a.10 5\r\nhello\r\n";
    assert_eq!(String::from_utf8_lossy(&output), expected);
}

#[test]
fn message_says_how_long_its_headers_are_and_the_whole() {
    let mut output = b"before".to_vec();
    let mut draft = Draft::new(&mut output, "a", Some(REPLY));
    draft.lines(b"A: b\r\nC: d\r\n");
    draft.line("E", b"f");
    draft.number("Nats-Expected-Last-Sequence", u64::MAX);
    assert_eq!(draft.header_bytes(), 81);
    draft.send(b"hello");
    let expected = "beforeHPUB a _INBOX.a.10    81       86\r\nNATS/1.0\r\nA: b\r\nC: d\r\nE: f\r\n\
        Nats-Expected-Last-Sequence: 18446744073709551615\r\n\r\nhello\r\n";
    assert_eq!(String::from_utf8_lossy(&output), expected);
}

#[test]
fn message_that_is_not_sent_leaves_nothing_behind() {
    let mut output = b"before".to_vec();
    let mut draft = Draft::new(&mut output, "a", None);
    draft.line("A", b"b");
    drop(draft);
    assert_eq!(output, b"before");
}

#[test]
fn length_that_does_not_fit_its_field_is_written_all_the_same() {
    let mut output = Vec::new();
    let mut draft = Draft::new(&mut output, "a", None);
    draft.line("A", &[b'x'; 100_000]);
    draft.send(b"hi");
    let line = b"HPUB a 100017   100019\r\nNATS/1.0\r\nA: xxx";
    assert_eq!(
        String::from_utf8_lossy(&output[..line.len()]),
        String::from_utf8_lossy(line)
    );
}

#[test]
fn line_of_a_message_is_as_long_as_it_was_said_to_be() {
    for number in [0, 9, 10, 99, 100, u64::MAX] {
        for reply in [None, Some(ReplyTo { number, ..REPLY })] {
            let mut output = b"PING\r\n".to_vec();
            let draft = Draft::new(&mut output, "a.b", reply);
            let counted = draft.line_bytes();
            draft.send(b"hi");
            let written = output.split(|byte| *byte == b'\r').nth(1).expect("a line");
            let line = written.strip_prefix(b"\nHPUB ").expect("a message");
            assert_eq!(counted, line.len(), "{reply:?}");
            assert_eq!(line_bytes("a.b", reply), line.len(), "{reply:?}");
        }
    }
}

#[test]
fn client_says_who_it_is_and_leaves_out_what_it_has_not() {
    let mut output = Vec::new();
    let credentials = Credentials {
        user: Some("me"),
        pass: Some("\"\r\n"),
        ..Credentials::default()
    };
    let client = Connect {
        verbose: false,
        pedantic: false,
        tls_required: true,
        name: "outjet",
        lang: "rust",
        version: "1",
        protocol: 1,
        echo: true,
        headers: true,
        no_responders: true,
        credentials,
    };
    connect(&mut output, &client);
    let expected = "CONNECT {\"verbose\":false,\"pedantic\":false,\"tls_required\":true,\
        \"name\":\"outjet\",\"lang\":\"rust\",\"version\":\"1\",\"protocol\":1,\"echo\":true,\
        \"headers\":true,\"no_responders\":true,\"user\":\"me\",\"pass\":\"\\\"\\r\\n\"}\r\n";
    assert_eq!(String::from_utf8_lossy(&output), expected);
}

#[test]
fn subject_with_a_space_in_it_would_be_two_fields() {
    assert!(is_subject("a.b.>") && is_subject("größe"));
    for wrong in ["", "a b", "a\tb", "a\r\nPUB b 0", "a\0"] {
        assert!(!is_subject(wrong), "{wrong:?}");
    }
}

proptest! {
    #[test]
    fn numbers_are_written_and_read(value: u64) {
        let mut output = Vec::new();
        push_number(&mut output, value);
        prop_assert_eq!(&output, &value.to_string().into_bytes());
        prop_assert_eq!(number(&output), Some(value));
    }

    #[test]
    fn what_is_read_faster_means_the_same(
        text in "MSG _INBOX.golden.[0-9]{0,20} {1,2}[1-9] [0-9]{1,3}\r\n[a-z]{0,12}\r\n"
    ) {
        if let Some((number, body, bytes)) = parse_numbered(text.as_bytes(), AROUND) {
            let parsed = parse(text.as_bytes());
            let Ok(Some((Operation::Message(message), used))) = parsed else {
                panic!("{parsed:?}");
            };
            prop_assert_eq!((message.body, used), (body, bytes));
            let digits = message.subject.strip_prefix(b"_INBOX.golden.").expect("the inbox");
            prop_assert_eq!(super::number(digits), Some(number));
            prop_assert_eq!(message.subscription, 1);
        }
    }

    #[test]
    fn nothing_that_is_received_panics(bytes: Vec<u8>) {
        crate::fuzzing::nats(&bytes);
    }

    #[test]
    fn nothing_that_looks_like_an_operation_panics(
        text in "(H?MSG( [a.]{1,3}){0,3}( [0-9]{1,2}){1,3}\r\n[a:\r\n]{0,30}\r\n|PING\r\n){0,4}"
    ) {
        let input = [b"\x80", text.as_bytes()].concat();
        crate::fuzzing::nats(&input);
    }
}

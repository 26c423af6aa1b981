//! Our own NATS client against real servers: every way in, what a refusal says, and JetStream's
//! requests.

mod requests;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nkeys::KeyPair;
use outjet::nats::{Broken, ConnectError, ConnectErrorKind as Kind, Connection, Options, Request};
use serde_json::json;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::harness::Nats;
use crate::harness::identity::{Certificates, Operator};

fn options(url: impl Into<String>) -> Options {
    Options {
        servers: vec![url.into()],
        entered: Arc::default(),
        name: "nats_client".to_owned(),
        user: None,
        password: None,
        token: None,
        nkey: None,
        creds: None,
        tls_ca: None,
        tls_client: None,
        tls_first: false,
        connect_timeout: Duration::from_secs(10),
        inbox_prefix: None,
        domain: None,
        network: outjet::net::Network::default(),
    }
}

/// Signs in, and is answered on its inbox.
async fn enters(options: &Options) {
    let mut connection = open(options).await;
    connection.publish("outjet.nobody", Some(1), b"");
    connection.ready().await.expect("a reply");
    let reply = connection.next_reply().expect("a reply");
    assert_eq!((reply.number, reply.headers.status()), (1, Some(503)));
}

async fn open(options: &Options) -> Connection {
    let opened = Box::pin(Connection::open(options)).await;
    opened.unwrap_or_else(|error| panic!("{error:?}"))
}

async fn refused(options: &Options) -> ConnectError {
    let opened = Box::pin(Connection::open(options)).await;
    opened.map(|_| ()).expect_err("no connection")
}

async fn refuses_credentials(options: &Options) {
    let error = refused(options).await;
    assert!(matches!(error.kind(), Kind::Refused(_)), "{error:?}");
    assert!(error.refused() && !error.tls());
    assert!(
        error
            .to_string()
            .ends_with("the server says: Authorization Violation"),
        "{error}"
    );
}

#[tokio::test]
async fn user_token_and_nkey_enter_and_wrong_ones_are_refused() {
    let seed = KeyPair::new_user();
    let public = seed.public_key();
    let nats = async |authorization: &str| {
        let config = format!("authorization {{ {authorization} }}");
        Nats::builder().config(&config).start().await
    };
    let some = |text: &str| Some(text.to_owned());

    let server = nats("user: app, password: \"s3c:r@t\"").await;
    let (url, port) = (server.url(), server.port());
    let user = Options {
        user: some("app"),
        password: some("s3c:r@t"),
        ..options(&url)
    };
    enters(&user).await;
    enters(&options(format!("nats://app:s3c%3Ar%40t@127.0.0.1:{port}"))).await;
    refuses_credentials(&options(&url)).await;
    refuses_credentials(&options(format!("app:wrong@127.0.0.1:{port}"))).await;

    let server = nats("token: \"s3cret\"").await;
    let token = Options {
        token: some("s3cret"),
        ..options(server.url())
    };
    enters(&token).await;
    enters(&options(format!("s3cret@127.0.0.1:{}", server.port()))).await;
    refuses_credentials(&options(server.url())).await;

    let server = nats(&format!("users: [{{nkey: {public}}}]")).await;
    let nkey = |pair: &KeyPair| Options {
        nkey: Some(pair.seed().expect("a seed")),
        ..options(server.url())
    };
    enters(&nkey(&seed)).await;
    refuses_credentials(&nkey(&KeyPair::new_user())).await;
}

#[tokio::test]
async fn credentials_file_enters_as_long_as_it_can_be_read() {
    let operator = Operator::with_user(&json!({"subs": -1, "data": -1, "payload": -1}));
    let server = Nats::builder().config(&operator.config).start().await;
    let home = TempDir::new().expect("a directory");
    let path = home.path().join("user.creds");
    let creds = Options {
        creds: Some(path.clone()),
        ..options(server.url())
    };
    std::fs::write(&path, &operator.creds).expect("written");
    enters(&creds).await;
    refuses_credentials(&options(server.url())).await;
    std::fs::write(&path, operator.creds.replace("SU", "SX")).expect("written");
    let error = refused(&creds).await;
    assert!(matches!(error.kind(), Kind::Credentials(_)), "{error:?}");
    assert!(!error.refused());
    std::fs::remove_file(&path).expect("removed");
    let error = refused(&creds).await;
    assert!(matches!(error.kind(), Kind::Credentials(_)), "{error:?}");
}

fn trusting(certificates: &Certificates, url: impl Into<String>) -> Options {
    Options {
        tls_ca: Some(certificates.path("ca.crt")),
        ..options(url)
    }
}

#[tokio::test]
async fn server_is_trusted_through_the_authority_that_is_named_and_under_its_name() {
    let certificates = Certificates::make();
    let server = certificates.server("").start().await;
    enters(&trusting(&certificates, server.url())).await;
    enters(&trusting(
        &certificates,
        format!("tls://127.0.0.1:{}", server.port()),
    ))
    .await;
    let other = Options {
        tls_ca: Some(certificates.path("other.crt")),
        ..options(server.url())
    };
    // The system's authorities do not know the server.
    let unknown = options(server.url());
    // The certificate is for an address.
    let misnamed = trusting(&certificates, format!("localhost:{}", server.port()));
    for untrusting in [&other, &unknown, &misnamed] {
        let error = refused(untrusting).await;
        assert!(matches!(error.kind(), Kind::TlsHandshake(_)), "{error:?}");
        assert!(error.tls());
    }
    let missing = Options {
        tls_ca: Some("/nowhere/ca.crt".into()),
        ..options(server.url())
    };
    let error = refused(&missing).await;
    assert!(matches!(error.kind(), Kind::TlsSetup(_)), "{error:?}");
}

#[tokio::test]
async fn tls_is_not_done_without_where_it_is_wanted() {
    let certificates = Certificates::make();
    let server = Nats::start().await;
    for wanted in [
        trusting(&certificates, server.url()),
        options(format!("tls://127.0.0.1:{}", server.port())),
    ] {
        let error = refused(&wanted).await;
        assert!(matches!(error.kind(), Kind::TlsRefused), "{error:?}");
    }
}

#[tokio::test]
async fn tls_may_come_before_the_servers_first_word() {
    let certificates = Certificates::make();
    let server = certificates.server(", handshake_first: true").start().await;
    let first = Options {
        tls_first: true,
        ..trusting(&certificates, server.url())
    };
    enters(&first).await;
    let waiting = Options {
        connect_timeout: Duration::from_millis(500),
        ..trusting(&certificates, server.url())
    };
    let error = refused(&waiting).await;
    assert!(matches!(error.kind(), Kind::TimedOut(_)), "{error:?}");
}

#[tokio::test]
async fn client_certificate_enters_where_the_server_wants_one() {
    let certificates = Certificates::make();
    let server = certificates
        .server(", verify_and_map: true")
        .config("authorization { users: [{user: \"app@example.org\"}] }")
        .start()
        .await;
    let (cert, key) = (
        certificates.path("client.crt"),
        certificates.path("client.key"),
    );
    let identified = Options {
        tls_client: Some((cert.clone(), key)),
        ..trusting(&certificates, server.url())
    };
    enters(&identified).await;
    let error = refused(&trusting(&certificates, server.url())).await;
    assert!(matches!(error.kind(), Kind::TlsHandshake(_)), "{error:?}");
    let mismatched = Options {
        tls_client: Some((cert, certificates.path("server.key"))),
        ..trusting(&certificates, server.url())
    };
    let error = refused(&mismatched).await;
    assert!(matches!(error.kind(), Kind::TlsSetup(_)), "{error:?}");
}

#[tokio::test]
async fn client_certificate_credentials_file_and_inbox_go_together() {
    let certificates = Certificates::make();
    let operator = Operator::with_user(&json!({
        "subs": -1, "data": -1, "payload": -1,
        "sub": {"allow": ["_INBOX_app.>"]}, "pub": {"allow": ["outjet.nobody"]}
    }));
    let creds = certificates.path("user.creds");
    std::fs::write(&creds, &operator.creds).expect("written");
    let server = certificates
        .server(", verify: true")
        .config(&operator.config);
    let server = server.start().await;
    let (cert, key) = (
        certificates.path("client.crt"),
        certificates.path("client.key"),
    );
    let all = Options {
        tls_client: Some((cert, key)),
        creds: Some(creds),
        inbox_prefix: Some("_INBOX_app".to_owned()),
        ..trusting(&certificates, server.url())
    };
    enters(&all).await;
    let elsewhere = Options {
        inbox_prefix: None,
        ..all
    };
    let mut connection = open(&elsewhere).await;
    let broken = connection.ready().await.expect_err("it ends");
    assert!(matches!(broken, Broken::SubscriptionDenied(_)), "{broken}");
}

/// A server that says this first, and then nothing.
struct Mute {
    address: String,
    _listening: JoinSet<()>,
}

impl Mute {
    async fn after(words: &'static [u8]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address").to_string();
        let mut listening = JoinSet::new();
        listening.spawn(async move {
            let mut held = Vec::new();
            while let Ok((mut socket, _)) = listener.accept().await {
                socket.write_all(words).await.expect("said");
                held.push(socket);
            }
        });
        Self {
            address,
            _listening: listening,
        }
    }
}

#[tokio::test]
async fn servers_are_tried_in_turn_and_a_refusal_of_credentials_is_the_last_word() {
    let server = Nats::start().await;
    let locked = Nats::builder()
        .config("authorization { token: x }")
        .start()
        .await;
    // Nobody listens on port 1.
    let (nowhere, odd) = (
        "nats://127.0.0.1:1".to_owned(),
        "nats://no.host.invalid".to_owned(),
    );
    let silent = Mute::after(b"").await;
    let leaving = Mute::after(b"INFO {\"ldm\":true}\r\n").await;
    let silence = silent.address.clone();
    let of = |servers: Vec<String>| Options {
        servers,
        connect_timeout: Duration::from_secs(2),
        ..options("")
    };
    let left = leaving.address.clone();
    let dead = vec![nowhere.clone(), odd, silence.clone(), left];
    let options = of([dead.clone(), vec![server.url()]].concat());
    enters(&options).await;
    // It is tried first from now on.
    assert_eq!(options.entered.load(Ordering::Relaxed), dead.len());
    enters(&options).await;
    let error = refused(&of(dead.clone())).await;
    let Kind::Servers(errors) = error.kind() else {
        panic!("{error:?}");
    };
    let kinds: Vec<_> = errors.iter().map(ConnectError::kind).collect();
    assert!(
        matches!(
            kinds[..],
            [
                Kind::Unreachable(_),
                // Or whoever should know takes its time.
                Kind::Resolve(_) | Kind::TimedOut(_),
                Kind::TimedOut(_),
                Kind::LameDuck
            ]
        ),
        "{error:?}"
    );
    let refusing = of(vec![nowhere, locked.url(), server.url()]);
    refuses_credentials(&refusing).await;
    let alone = refused(&of(vec![silence])).await;
    assert!(matches!(alone.kind(), Kind::TimedOut(_)), "{alone:?}");
}

#[tokio::test]
async fn what_is_no_nats_server_is_told_and_not_waited_for() {
    for (words, expected) in [
        (
            &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
            "an operation of the server",
        ),
        (b"PING\r\n", "the server's first word"),
        (b"INFO {\r\n", "what the server says of itself"),
    ] {
        let server = Mute::after(words).await;
        let error = refused(&options(&server.address)).await;
        assert!(matches!(error.kind(), Kind::Malformed(_)), "{error:?}");
        assert!(error.to_string().ends_with(expected), "{error}");
    }
    let full = Mute::after(b"-ERR 'maximum connections exceeded'\r\n").await;
    let error = refused(&options(&full.address)).await;
    assert!(matches!(error.kind(), Kind::Server(_)), "{error:?}");
    for no_address in ["ws://127.0.0.1:1", "http://a", "nats://", "127.0.0.1:x"] {
        let error = refused(&options(no_address)).await;
        assert!(matches!(error.kind(), Kind::Address { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn what_comes_unencrypted_behind_the_first_word_is_not_taken_for_protected() {
    let certificates = Certificates::make();
    let words = b"INFO {\"tls_required\":true}\r\n+OK\r\n";
    let server = Mute::after(words).await;
    let error = refused(&trusting(&certificates, &server.address)).await;
    assert!(matches!(error.kind(), Kind::Malformed(_)), "{error:?}");
}

#[tokio::test]
async fn shutdown_that_is_announced_and_one_that_is_not_end_the_connection() {
    let mut server = Nats::start().await;
    let mut connection = open(&options(server.url())).await;
    server.process().signal(rustix::process::Signal::USR2);
    let broken = connection.ready().await.expect_err("it ends");
    assert!(matches!(broken, Broken::LameDuck), "{broken}");

    let mut server = Nats::start().await;
    let mut connection = open(&options(server.url())).await;
    let requests = connection.requests();
    server.kill().await;
    let broken = connection.ready().await.expect_err("it ends");
    assert!(
        matches!(broken, Broken::Closed | Broken::Lost(_)),
        "{broken}"
    );
    assert!(requests.ask(Request::default()).is_err());
}

//! Servers that are not what they seem, at the other end of a pipe. Real ones are in `tests/it`.

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::*;
use crate::error::{Disposition, Exit};
use crate::pg::connect;
use crate::pg::error::Error;
use crate::pg::socket::Socket;

const PASSWORD: &str = "correct horse";

fn params(more: &str) -> Params {
    let dsn = format!("host=h user=u password='{PASSWORD}' {more}");
    Params::parse(&dsn, &|_| None).unwrap()
}

fn request(code: u32, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len() + 8).unwrap().to_be_bytes();
    [&b"R"[..], &len, &code.to_be_bytes(), body].concat()
}

const OK: u32 = 0;
const CLEARTEXT: u32 = 3;
const SASL: u32 = 10;
const SASL_CONTINUE: u32 = 11;
const SASL_FINAL: u32 = 12;

fn tls() -> Protection {
    Protection::Tls {
        server_end_point: Some(vec![1, 2, 3]),
    }
}

/// Reads what the client says; the first packet has no type.
async fn heard(peer: &mut DuplexStream, header: usize) -> Vec<u8> {
    let mut head = vec![0; header];
    peer.read_exact(&mut head).await.unwrap();
    let len = u32::from_be_bytes(head[header - 4..].try_into().unwrap());
    let mut body = vec![0; len as usize - 4];
    peer.read_exact(&mut body).await.unwrap();
    body
}

/// How the login ends with a server that answers like this, and all that it got to hear.
async fn log_in(
    protection: Protection,
    more: &str,
    script: impl AsyncFnOnce(&mut DuplexStream) -> Vec<u8>,
) -> (Error, Vec<u8>) {
    let (ours, mut theirs) = tokio::io::duplex(4096);
    let params = params(more);
    let client = async {
        let socket = Socket::scripted(ours, protection);
        connect::log_in(socket, &params, &params.hosts[0], &[]).await
    };
    let server = async {
        let mut said = heard(&mut theirs, 4).await;
        said.extend(script(&mut theirs).await);
        theirs.shutdown().await.unwrap();
        theirs.read_to_end(&mut said).await.unwrap();
        said
    };
    let (outcome, said) = tokio::join!(client, server);
    (outcome.err().expect("a refused login"), said)
}

async fn says(peer: &mut DuplexStream, code: u32, body: &[u8]) {
    peer.write_all(&request(code, body)).await.unwrap();
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes
        .windows(text.len())
        .any(|window| window == text.as_bytes())
}

#[tokio::test]
async fn password_in_clear_is_not_sent_where_others_can_read_it() {
    let ask = async |peer: &mut DuplexStream| {
        says(peer, CLEARTEXT, b"").await;
        Vec::new()
    };
    let (error, said) = log_in(Protection::None, "", ask).await;
    assert!(
        error
            .failure(&params(""))
            .to_string()
            .contains("sslmode=require")
    );
    assert!(!contains(&said, PASSWORD));
    let (_, said) = log_in(tls(), "", ask).await;
    assert!(contains(&said, PASSWORD));
}

#[tokio::test]
async fn required_channel_binding_refuses_every_weaker_login() {
    for (code, body) in [
        (OK, &b""[..]),
        (CLEARTEXT, b""),
        (SASL, b"SCRAM-SHA-256\0\0"),
    ] {
        let ask = async |peer: &mut DuplexStream| {
            says(peer, code, body).await;
            Vec::new()
        };
        let (error, said) = log_in(tls(), "channel_binding=require", ask).await;
        let told = error.failure(&params("")).to_string();
        assert!(told.contains("channel_binding=require"), "{told}");
        assert!(!contains(&said, "SCRAM") && !contains(&said, PASSWORD));
    }
}

#[tokio::test]
async fn channel_binding_offered_without_tls_means_that_tls_was_removed() {
    let ask = async |peer: &mut DuplexStream| {
        says(peer, SASL, b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0").await;
        Vec::new()
    };
    let (error, _) = log_in(Protection::None, "", ask).await;
    assert!(
        error
            .failure(&params(""))
            .to_string()
            .contains("removes TLS")
    );
}

/// Plays SCRAM up to the server's first message with this many iterations; returns what the client
/// said so far.
async fn begin_scram(peer: &mut DuplexStream, mechanisms: &[u8], iterations: u32) -> Vec<u8> {
    says(peer, SASL, mechanisms).await;
    let first = heard(peer, 5).await;
    let text = String::from_utf8_lossy(&first).into_owned();
    let nonce = text.split_once("r=").expect("a nonce").1;
    let answer = format!("r={nonce}more,s=c2FsdHNhbHQ=,i={iterations}");
    says(peer, SASL_CONTINUE, answer.as_bytes()).await;
    first
}

#[tokio::test]
async fn downgrade_is_visible_to_the_server() {
    let begin = |mechanisms: &'static [u8]| {
        async move |peer: &mut DuplexStream| begin_scram(peer, mechanisms, 200_000).await
    };
    let both = b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0";
    let plain = b"SCRAM-SHA-256\0\0";
    let bound = "p=tls-server-end-point,,n=";
    let (_, said) = log_in(tls(), "", begin(both)).await;
    assert!(contains(&said, bound));
    let (_, said) = log_in(tls(), "", begin(plain)).await;
    assert!(contains(&said, "y,,n="), "we could have bound");
    let (_, said) = log_in(tls(), "channel_binding=disable", begin(both)).await;
    assert!(contains(&said, "n,,n="), "we would not have");
    let (_, said) = log_in(Protection::None, "", begin(plain)).await;
    assert!(contains(&said, "n,,n="), "we could not have");
}

#[tokio::test]
async fn too_many_iterations_are_named() {
    let begin =
        async |peer: &mut DuplexStream| begin_scram(peer, b"SCRAM-SHA-256\0\0", 100_001).await;
    let (error, _) = log_in(Protection::None, "", begin).await;
    let told = error.failure(&params("")).to_string();
    assert!(
        told.contains("100001") && told.contains("scram_iterations"),
        "{told}"
    );
}

#[tokio::test]
async fn server_that_does_not_know_the_password_is_not_believed() {
    let forge = async |peer: &mut DuplexStream| {
        let mut said = begin_scram(peer, b"SCRAM-SHA-256\0\0", 1).await;
        said.extend(heard(peer, 5).await);
        says(
            peer,
            SASL_FINAL,
            b"v=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        )
        .await;
        says(peer, OK, b"").await;
        said
    };
    let (error, _) = log_in(Protection::None, "", forge).await;
    assert!(error.failure(&params("")).to_string().contains("prove"));

    let skip = async |peer: &mut DuplexStream| {
        let said = begin_scram(peer, b"SCRAM-SHA-256\0\0", 1).await;
        says(peer, OK, b"").await;
        said
    };
    let (error, _) = log_in(Protection::None, "", skip).await;
    assert!(error.to_string().contains("SCRAM message"), "{error}");
}

#[tokio::test]
async fn stranger_cannot_make_us_buffer_much() {
    let flood = async |peer: &mut DuplexStream| {
        peer.write_all(b"E\x7f\xff\xff\xff").await.unwrap();
        Vec::new()
    };
    let (error, _) = log_in(Protection::None, "", flood).await;
    assert!(
        error.to_string().contains("larger than the limit of 30000"),
        "{error}"
    );
}

#[tokio::test]
async fn pooler_is_recognised_by_its_answer_to_the_startup_packet() {
    let refuse = async |peer: &mut DuplexStream| {
        let fields = b"SFATAL\0C08P01\0Munsupported startup parameter: replication\0\0";
        let len = u32::try_from(fields.len() + 4).unwrap().to_be_bytes();
        peer.write_all(&[b"E", &len[..], fields].concat())
            .await
            .unwrap();
        Vec::new()
    };
    let (error, _) = log_in(Protection::None, "", refuse).await;
    let failure = error.failure(&params(""));
    assert_eq!(
        (failure.disposition, failure.exit),
        (Disposition::Halt, Exit::Config)
    );
    let told = failure.to_string();
    assert!(told.contains("h:5432 is a connection pooler"), "{told}");
    assert!(
        told.contains("unsupported startup parameter: replication"),
        "{told}"
    );
}

#[tokio::test(start_paused = true)]
async fn silent_server_is_given_up_after_the_connect_timeout() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let params = Params::parse(&format!("host=127.0.0.1 port={port} user=u"), &|_| None).unwrap();
    let error = connect::connect(&params, &[])
        .await
        .err()
        .expect("nobody answers");
    let failure = error.failure(&params);
    assert_eq!(failure.disposition, Disposition::Retry);
    let told = failure.to_string();
    assert!(told.contains("no answer within 10 s"), "{told}");
    assert!(
        told.contains(&format!("pg_isready -h 127.0.0.1 -p {port}")),
        "{told}"
    );
}

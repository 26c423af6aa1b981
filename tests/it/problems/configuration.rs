//! Mistakes in the configuration and on the command line: every command says the same and ends.

use std::process::Command;

use outjet::error::Problem;

use crate::harness::binaries;

use super::{CONFIG, POSTGRES_SECRET, SECRET, Site, USAGE};

/// Neither server is asked: there is none.
async fn refused(site: &Site, code: i32, problem: &Problem) {
    for command in ["check", "run", "run --exit-on-halt", "setup", "status"] {
        site.refuses(command, code, problem).await;
    }
}

#[test]
fn reader_that_has_seen_enough_is_no_problem() {
    // Far more than a pipe holds.
    let program = binaries::outjet();
    let script = format!(
        "for n in $(seq 40); do {0} config default; done | head -n 1",
        program.display()
    );
    let output = Command::new("sh")
        .args(["-c", &script])
        .output()
        .expect("sh");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(stderr, "");
    assert!(output.stdout.starts_with(b"#"), "{output:?}");
}

#[tokio::test]
async fn unknown_key_is_pointed_at_with_what_was_meant() {
    let site = Site::default().config("postgres:\n  slto: orders\n");
    let problem = Problem::new(
        "./outjet.yaml: unknown key `slto`",
        "./outjet.yaml:2:3\n         2 |   slto: orders\n           |   ^^^^",
        "did you mean `slot`? `outjet config default` shows every key",
    );
    refused(&site, CONFIG, &problem).await;
}

#[tokio::test]
async fn unknown_variable_of_ours_is_told_the_one_that_was_meant() {
    let site = Site::default().with("OUTJET_STREAM_NAME", "ORDERS");
    let problem = Problem::new(
        "OUTJET_STREAM_NAME names no key of the configuration",
        "the environment variable OUTJET_STREAM_NAME stands for the key stream_name, which does \
         not exist",
        "did you mean OUTJET_STREAM__NAME?",
    );
    refused(&site, CONFIG, &problem).await;
}

#[tokio::test]
async fn unreadable_url_is_told_how_to_write_it_without_its_password() {
    let url = format!("postgres://app:{POSTGRES_SECRET}/1@db:port/shop");
    let site = Site::default().with("DATABASE_URL", url);
    let problem = Problem::new(
        "the Postgres connection is misconfigured",
        "the port is not a number from 1 to 65535",
        "write it as postgres://user:password@host:5432/dbname; in the password percent-encode / \
         as %2F, @ as %40, : as %3A, ? as %3F and % as %25",
    );
    refused(&site, CONFIG, &problem).await;
}

#[tokio::test]
async fn unreadable_nats_url_is_told_how_to_write_it_without_its_token() {
    let url = format!("http://{SECRET}@nats:4222");
    let site = Site::default().with("NATS_URL", url);
    let problem = Problem::new(
        "nats.url: the value has an unknown scheme: http://***@nats:4222",
        "the environment variable NATS_URL",
        "write nats://host:4222 or tls://host:4222, several separated by commas",
    );
    refused(&site, CONFIG, &problem).await;
}

#[tokio::test]
async fn mistyped_command_is_told_the_one_that_was_meant() {
    let output = Site::default().types("chekc").await;
    assert_eq!(output.code, Some(USAGE));
    assert!(
        output.stderr.contains("unrecognized subcommand 'chekc'"),
        "{}",
        output.stderr
    );
    assert!(output.stderr.contains("'check'"), "{}", output.stderr);
    let unassigned = Problem::new(
        "--set stream.name is not an assignment",
        "there is no = in it",
        "write --set KEY=VALUE, as in --set stream.name=ORDERS",
    );
    let site = Site::default();
    site.refuses("run --set stream.name", USAGE, &unassigned)
        .await;
    let output = Site::default().types("run --exit-on-hal").await;
    assert_eq!(output.code, Some(USAGE));
    assert!(
        output.stderr.contains("'--exit-on-halt'"),
        "{}",
        output.stderr
    );
}

//! `scripts/snippets`: runs the snippets of docs/producers.md, as they stand there, against servers
//! of its own, and looks at the messages that arrive. The rights are those that the page names.

#[path = "../../tests/it/harness/mod.rs"]
mod harness;

#[expect(unreachable_pub, reason = "it is a snippet for other crates")]
mod rust;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::Parser;
use tokio_postgres::NoTls;

use harness::postgres::Session;
use harness::{Postgres, World, drain, process};

const PAGE: &str = include_str!("../../docs/producers.md");

const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// How the snippets are called, in their own languages.
const PYTHON: &str = r#"
import os
with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
    place_order(connection, "python", 9.5, os.environ["TRACEPARENT"])
"#;
const TYPESCRIPT: &str = r#"
import pg from "pg";
const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL });
placeOrder(pool, "typescript", 9.5, process.env.TRACEPARENT!).finally(() => pool.end());
"#;

/// For a machine that has other things to do.
const SOON: Duration = Duration::from_secs(60);

#[derive(Parser)]
#[command(name = "scripts/snippets")]
struct Asked {
    /// A directory with the packages that snippets need, as scripts/snippets makes it
    packages: PathBuf,
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let Asked { packages } = Asked::parse();
    let world = World::with(Postgres::builder().tcp(), harness::Nats::builder()).await;
    let setup = world.outjet(["setup"]).output().await;
    assert_eq!(setup.code, Some(0), "{setup:?}");
    let owner = world.postgres.connect().await;
    owner.run("CREATE ROLE app LOGIN").await;
    let (_, grants) = PAGE.split_once("Rights: `").expect("the rights");
    owner
        .run(grants.split('`').next().expect("their end"))
        .await;
    owner
        .run(
            "CREATE TABLE orders (id text PRIMARY KEY, state text);
             GRANT ALL ON orders TO app;
             INSERT INTO orders VALUES ('sql'), ('python'), ('typescript'), ('rust')",
        )
        .await;
    let mut outjet = world.outjet(["run"]).spawn();

    let url = world.postgres.url_as("app", "postgres");
    Session::connect(&url).await.run(snippet("sql")).await;
    let environment = [("DATABASE_URL", url.as_str()), ("TRACEPARENT", TRACEPARENT)];
    let script = packages.join("snippet.py");
    write(&script, &[snippet("python"), PYTHON]);
    let python = Command::new(packages.join("python/bin/python3"));
    process::run(called(python, &script, environment));
    let script = packages.join("snippet.ts");
    write(&script, &[snippet("typescript"), TYPESCRIPT]);
    let tsx = Command::new(packages.join("node_modules/.bin/tsx"));
    process::run(called(tsx, &script, environment));
    let (mut client, connection) = tokio_postgres::connect(&url, NoTls).await.expect("connect");
    let placed = rust::place_order(&mut client, "rust", 9.5, TRACEPARENT);
    tokio::select! {
        placed = placed => placed.expect("the order is placed"),
        ended = connection => panic!("the connection ended: {ended:?}"),
    }

    let published = owner.text("SELECT outbox.wait_published('60 s')").await;
    assert_eq!(published, "t");
    let stored = drain::messages(&world.nats.jetstream().await, "OUTBOX").await;
    let languages: Vec<_> = stored
        .iter()
        .filter_map(|one| one.header("ce-subject"))
        .collect();
    assert_eq!(languages, ["sql", "python", "typescript", "rust"]);
    for message in &stored {
        assert_eq!(message.subject, "events.order.OrderPlaced");
        assert_eq!(message.payload.as_ref(), br#"{"total": 9.5}"#);
        assert_eq!(message.header("traceparent"), Some(TRACEPARENT));
    }
    let unplaced = "SELECT count(*) FROM orders WHERE state IS DISTINCT FROM 'placed'";
    assert_eq!(owner.text(unplaced).await, "0");
    assert_eq!(outjet.terminate(SOON).await, Some(0));
    println!("ran and arrived: {}", languages.join(", "));
}

/// The first block of the page in this language.
fn snippet(language: &str) -> &'static str {
    let (_, block) = PAGE
        .split_once(&format!("\n```{language}\n"))
        .expect("a block");
    let end = block.find("```\n").expect("its end");
    &block[..end]
}

fn write(path: &Path, parts: &[&str]) {
    std::fs::write(path, parts.concat()).expect("write the snippet");
}

fn called<const N: usize>(
    mut command: Command,
    script: &Path,
    environment: [(&str, &str); N],
) -> Command {
    command.arg(script).envs(environment);
    command
}

//! Where a rule is played: a real server or the model of one, with writers, an operator, and one
//! slot. What is seen of it is noted, to be compared.

mod operators;
mod writers;

use std::time::Duration;

use outjet::lsn::Lsn;
use outjet::pg::name::TableName;
use outjet::pg::{ddl, replication};
use tokio::io::duplex;
use tokio::net::UnixStream;
use tokio::task::JoinSet;

use super::talk::Talk;
use super::{Options, Postgres, Xid};
use crate::harness::postgres::{Postgres as Server, Session};

/// Long enough for anything that happens by itself.
const SOON: Duration = Duration::from_secs(20);

/// A real server that all rules are played on, one after another.
pub(super) struct Real {
    server: Server,
    database: &'static str,
    /// A superuser's session in our database; gone while the server is down.
    admin: Option<Session>,
    writers: Vec<Session>,
}

/// A model that one rule is played on.
struct Model {
    postgres: Postgres,
    writers: Vec<Xid>,
    served: JoinSet<()>,
}

enum Side {
    Real(Box<Real>),
    Model(Model),
}

/// A transaction that a writer has open.
#[derive(Clone, Copy)]
pub(super) struct Open(usize);

pub(super) struct Stage {
    side: Side,
    pub(super) major: u32,
    pub(super) said: Vec<String>,
    /// Of the rule, so that ids differ.
    at: u32,
    rows: u32,
}

impl Real {
    /// With the schema of `outjet setup`, and nothing that writes by itself.
    pub(super) async fn start(major: u32) -> Self {
        let server = Server::builder()
            .version(major)
            .setting("autovacuum", "off")
            // Or it logs running transactions every 15 s: with these it rests for minutes.
            .setting("bgwriter_delay", "10s")
            .setting("bgwriter_lru_maxpages", "0")
            .start()
            .await;
        let cluster = server.connect().await;
        cluster.run("CREATE TABLE elsewhere (n int)").await;
        cluster.run("CREATE ROLE outjet LOGIN REPLICATION").await;
        // Writers wait for nobody.
        let local = "ALTER ROLE postgres SET synchronous_commit = local";
        cluster.run(local).await;
        let mut real = Self {
            server,
            database: "outjet",
            admin: None,
            writers: Vec::new(),
        };
        real.create_database("").await;
        real
    }

    async fn create_database(&mut self, options: &str) {
        let cluster = self.server.connect().await;
        let name = self.database;
        cluster
            .run(&format!("CREATE DATABASE {name} OWNER outjet {options}"))
            .await;
        let owner = Session::connect(&self.server.url_as("outjet", name)).await;
        owner.run(ddl::INSTALL).await;
        owner.run("CREATE TABLE business (words text)").await;
        owner.run(&publication()).await;
        self.connect().await;
    }

    async fn connect(&mut self) {
        let url = self.server.url_as("postgres", self.database);
        self.admin = Some(Session::connect(&url).await);
    }

    fn admin(&self) -> &Session {
        self.admin.as_ref().expect("the server is up")
    }

    /// Whether there is a row.
    async fn has(&self, query: &str) -> bool {
        self.admin().text(&format!("SELECT EXISTS ({query})")).await == "t"
    }

    /// The SQLSTATE of its failure.
    async fn attempt(&self, sql: &str) -> Result<(), String> {
        let done = self.admin().batch_execute(sql).await;
        done.map_err(|error| error.code().map_or("gone", |code| code.code()).to_owned())
    }

    async fn lsn(&self, query: &str) -> u64 {
        lsn(&self.admin().text(query).await)
    }
}

fn publication() -> String {
    let table = TableName {
        schema: "outbox".to_owned(),
        name: "events".to_owned(),
    };
    ddl::create_publication("outjet", &[table])
}

fn lsn(text: &str) -> u64 {
    let lsn: Lsn = text.parse().expect("a position of the log");
    lsn.as_u64()
}

/// Where it is, and what is there.
impl Stage {
    pub(super) async fn of_real(real: Real, at: u32) -> Self {
        let mut stage = Self::new(Side::Real(Box::new(real)), at);
        stage.released().await;
        let _none = stage.try_drop_slot().await;
        assert!(stage.try_create_slot().await, "there is no slot");
        stage
    }

    pub(super) fn of_model(major: u32, at: u32) -> Self {
        let model = Model {
            postgres: Postgres::new(Options::new(major)),
            writers: Vec::new(),
            served: JoinSet::new(),
        };
        Self::new(Side::Model(model), at)
    }

    pub(super) fn into_real(self) -> Real {
        match self.side {
            Side::Real(mut real) => {
                real.writers.clear();
                *real
            }
            Side::Model(_) => panic!("it is the model"),
        }
    }

    fn new(side: Side, at: u32) -> Self {
        let major = match &side {
            Side::Real(real) => real.server.major(),
            Side::Model(model) => model.postgres.state().options.major,
        };
        Self {
            side,
            major,
            said: Vec::new(),
            at,
            rows: 0,
        }
    }

    pub(super) fn say(&mut self, words: impl Into<String>) {
        self.said.push(words.into());
    }

    /// Notes all of it.
    pub(super) fn say_all(&mut self, words: Vec<String>) {
        self.said.extend(words);
    }

    /// A stream to the server; `None`: it is down.
    async fn dial(&mut self) -> Option<Box<dyn outjet::net::Stream>> {
        match &mut self.side {
            Side::Real(real) => {
                let stream = UnixStream::connect(real.server.socket()).await;
                Some(Box::new(stream.ok()?))
            }
            Side::Model(model) => {
                let (ours, theirs) = duplex(64 * 1024);
                let up = model.postgres.is_up();
                up.then(|| model.served.spawn(model.postgres.clone().serve(theirs)));
                up.then(|| Box::new(ours) as _)
            }
        }
    }

    /// A replication session; what the server says against it.
    pub(super) async fn try_connect(&mut self, more: &[(&str, &str)]) -> Result<Talk, String> {
        let Some(stream) = self.dial().await else {
            return Err("it is down".to_owned());
        };
        let database = match &self.side {
            Side::Real(real) => real.database,
            Side::Model(_) => "outjet",
        };
        let mut parameters = vec![
            ("user", "outjet"),
            ("database", database),
            ("application_name", "outjet"),
            ("client_encoding", "UTF8"),
        ];
        parameters.extend(replication::REPLICATION_STARTUP);
        parameters.extend(more);
        Talk::open(stream, &parameters).await
    }

    pub(super) async fn connect(&mut self) -> Talk {
        self.try_connect(&[]).await.expect("a session")
    }

    /// A session that streams the slot from where it is.
    pub(super) async fn stream(&mut self) -> Talk {
        let mut talk = self.connect().await;
        let refused = talk.start(&start("0/0", "")).await;
        assert!(refused.is_empty(), "{refused:?}");
        talk
    }

    /// An ordinary session.
    pub(super) async fn client(&mut self) -> (tokio_postgres::Client, JoinSet<()>) {
        let stream = self.dial().await.expect("it is up");
        let mut config = tokio_postgres::Config::new();
        config
            .user("outjet")
            .dbname("outjet")
            .application_name("outjet");
        let connected = config.connect_raw(stream, tokio_postgres::NoTls).await;
        let (client, connection) = connected.expect("a session");
        let mut task = JoinSet::new();
        // Who uses the client sees its error.
        task.spawn(async move { drop(connection.await) });
        (client, task)
    }

    /// Notes what a walsender says of all that was committed.
    pub(super) async fn drain(&mut self, talk: &mut Talk) {
        let end = self.flushed().await;
        let mut said = talk.drain(end).await;
        // How often it is warned of the same is a matter of when it looks again.
        said.dedup_by(|line, before| line == before && line.starts_with("WARNING"));
        self.say_all(said);
    }

    /// How far the log is flushed; everything that was committed is before it.
    pub(super) async fn flushed(&mut self) -> u64 {
        match &self.side {
            Side::Real(real) if real.has("SELECT WHERE pg_is_in_recovery()").await => {
                real.lsn("SELECT pg_last_wal_replay_lsn()").await
            }
            Side::Real(real) => {
                let cluster = real.server.connect().await;
                cluster.run("INSERT INTO elsewhere VALUES (1)").await;
                lsn(&cluster.text("SELECT pg_current_wal_flush_lsn()").await)
            }
            Side::Model(model) => model.postgres.flushed().as_u64(),
        }
    }

    /// Where the last record ends: all that writes here flushes.
    pub(super) async fn written(&self) -> u64 {
        match &self.side {
            Side::Real(real) => real.lsn("SELECT pg_current_wal_flush_lsn()").await,
            Side::Model(model) => model.postgres.flushed().as_u64(),
        }
    }
}

/// Streams the slot from a place, with more options of pgoutput.
pub(super) fn start(from: impl std::fmt::Display, more: &str) -> String {
    format!(
        "START_REPLICATION SLOT \"outjet\" LOGICAL {from} \
         (proto_version '1', publication_names '\"outjet\"'{more})"
    )
}

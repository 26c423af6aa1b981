//! Mistakes in Postgres: the server, the way to it, the publication, the table.

use outjet::error::Problem;
use outjet::pg::ddl::INSTALL;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::{
    CONFIG, HALTED, NOT_PERMITTED, POSTGRES_SECRET, SOON, Site, UNAVAILABLE, block,
    connection_refused, ends, halted, mends,
};
use crate::harness::postgres::{self, Session};
use crate::harness::{Nats, Postgres, Stop, World, drain};

/// `host:port` of the server, as messages name it.
fn at(world: &World) -> String {
    let port = world.postgres.port().unwrap_or(5432);
    match world.postgres.port() {
        Some(_) => format!("127.0.0.1:{port}"),
        None => format!("{}:{port}", world.postgres.host()),
    }
}

async fn with(postgres: postgres::Builder) -> World {
    World::with(postgres, Nats::builder()).await
}

#[tokio::test]
async fn wal_level_below_logical_is_changed_by_the_printed_statement_and_a_restart() {
    let mut world = with(Postgres::builder().setting("wal_level", "replica")).await;
    let (site, client) = (Site::of(&world), world.postgres.connect().await);
    let mut problem = Problem::new(
        "wal_level is replica: the write-ahead log lacks the rows",
        "wal_level = replica, and reading an outbox needs logical",
        "ALTER SYSTEM SET wal_level = logical; then restart Postgres (a reload is not enough); \
         Amazon RDS: rds.logical_replication = 1 in the parameter group; Google Cloud SQL: flag \
         cloudsql.logical_decoding; Azure: server parameter wal_level",
    );
    site.fails_and_halts("server wal_level", &problem).await;
    let (statement, _) = problem.fix.split_once(" then").expect("a statement");
    client.run(statement).await;
    world.postgres.reload();
    let pending = "SELECT pending_restart FROM pg_settings WHERE name = 'wal_level'";
    client.until_text(pending, "t", SOON).await;
    problem.cause = "wal_level has been changed, and the server not restarted since".to_owned();
    problem.fix = "restart Postgres: a reload is not enough".to_owned();
    site.fails_and_halts("server wal_level", &problem).await;
    drop(client);
    world.postgres.restart(Stop::Fast).await;
    site.sets_up().await;
    site.passes().await;
}

#[tokio::test]
async fn wal_level_minimal_is_told_although_no_replication_connection_is_possible() {
    let postgres = Postgres::builder().setting("wal_level", "minimal");
    let world = with(postgres.setting("max_wal_senders", "0")).await;
    let problem = Problem::new(
        "wal_level is minimal: the write-ahead log lacks the rows",
        "wal_level = minimal, and reading an outbox needs logical",
        "ALTER SYSTEM SET wal_level = logical; then restart Postgres (a reload is not enough); \
         Amazon RDS: rds.logical_replication = 1 in the parameter group; Google Cloud SQL: flag \
         cloudsql.logical_decoding; Azure: server parameter wal_level",
    );
    let site = Site::of(&world);
    site.fails_and_halts("server wal_level", &problem).await;
}

#[tokio::test]
async fn role_without_replication_is_given_it_by_the_printed_statement() {
    let world = World::start().await;
    let (site, client) = (Site::of(&world), world.postgres.connect().await);
    site.sets_up().await;
    client.run("CREATE ROLE \"app-1\" LOGIN").await;
    let site = site.login(&world, "app-1", "postgres");
    let problem = Problem::new(
        "role \"app-1\" may not replicate",
        "it does not have the REPLICATION attribute",
        "ALTER ROLE \"app-1\" REPLICATION; on Amazon RDS: GRANT rds_replication TO \"app-1\";",
    );
    site.fails_and_halts("server role", &problem).await;
    site.refuses("setup", NOT_PERMITTED, &problem).await;
    let (statement, _) = problem.fix.split_once(" on Amazon").expect("a statement");
    client.run(statement).await;
    site.passes().await;
    ends(site.leads().await).await;
}

#[tokio::test]
async fn wrong_password_is_told_with_the_role_and_never_repeated() {
    let hba = "local all postgres trust\nlocal all all scram-sha-256\n";
    let world = with(Postgres::builder().hba(hba)).await;
    let client = world.postgres.connect().await;
    let create = "CREATE ROLE app LOGIN REPLICATION PASSWORD 'another'";
    client.run(create).await;
    Site::of(&world).sets_up().await;
    let user = format!("app:{POSTGRES_SECRET}");
    let site = Site::of(&world).login(&world, &user, "postgres");
    let problem = Problem::new(
        format!(
            "Postgres at {} refuses the password of role \"app\"",
            at(&world)
        ),
        "FATAL: password authentication failed for user \"app\" (SQLSTATE 28P01)",
        "correct it in DATABASE_URL, PGPASSWORD or ~/.pgpass, or set it: ALTER ROLE \"app\" \
         PASSWORD '…';",
    );
    site.fails_and_halts("server reachable", &problem).await;
    for command in ["status", "emit", "setup", "drop --yes"] {
        site.refuses(command, NOT_PERMITTED, &problem).await;
    }
    let (_, statement) = problem.fix.split_once("set it: ").expect("a statement");
    client.run(&statement.replace('…', POSTGRES_SECRET)).await;
    site.passes().await;
}

#[tokio::test]
async fn missing_database_is_made_by_the_printed_statement() {
    let world = World::start().await;
    let site = Site::of(&world);
    let user = format!("postgres:{POSTGRES_SECRET}");
    let site = site.login(&world, &user, "Shop");
    let problem = Problem::new(
        format!(
            "there is no database \"Shop\" on Postgres at {}",
            at(&world)
        ),
        "FATAL: database \"Shop\" does not exist (SQLSTATE 3D000)",
        "correct the name in DATABASE_URL, or: CREATE DATABASE \"Shop\";",
    );
    site.fails_and_halts("server reachable", &problem).await;
    site.refuses("status", CONFIG, &problem).await;
    let (_, statement) = problem.fix.split_once("or: ").expect("a statement");
    world.postgres.connect().await.run(statement).await;
    site.sets_up().await;
    site.passes().await;
}

#[tokio::test]
async fn server_that_is_away_is_waited_for() {
    let mut world = with(Postgres::builder().tcp()).await;
    let site = Site::of(&world);
    site.sets_up().await;
    world.postgres.stop(Stop::Fast).await;
    let port = world.postgres.port().expect("a port");
    let problem = Problem::new(
        format!("Postgres at 127.0.0.1:{port} cannot be reached"),
        connection_refused(),
        format!(
            "check that it runs and listens there: `pg_isready -h 127.0.0.1 -p {port}` \
             (listen_addresses, firewall)"
        ),
    );
    site.fails("server reachable", &problem).await;
    site.refuses("status", UNAVAILABLE, &problem).await;
    let mut running = site.retries(&problem).await;
    world.postgres.start_again().await;
    running.logged("leading", SOON).await;
    assert!(
        running
            .log()
            .iter()
            .any(|line| line["message"] == "recovered")
    );
    ends(running).await;
}

#[tokio::test]
async fn pooler_in_between_is_recognized_by_its_answer() {
    let world = with(Postgres::builder().tcp()).await;
    Site::of(&world).sets_up().await;
    let server = world.postgres.port().expect("a port");
    let pooler = Pooler::start(server, Replication::Refused).await;
    let url = format!(
        "postgres://postgres:{POSTGRES_SECRET}@127.0.0.1:{}/postgres",
        pooler.port
    );
    let site = Site::of(&world).with("DATABASE_URL", url);
    let problem = Problem::new(
        format!(
            "what answers at 127.0.0.1:{} is a connection pooler, not Postgres itself",
            pooler.port
        ),
        "FATAL: unsupported startup parameter: replication (SQLSTATE 08P01)",
        "give the server's own address in DATABASE_URL (often port 5432, or the host name without \
         \"-pooler\")",
    );
    site.fails_and_halts("server replication", &problem).await;
    // What needs no replication goes through it.
    assert_eq!(site.types("status").await.code, Some(0));
}

/// It works, so it is not refused; but it is told.
#[tokio::test]
async fn pooler_that_passes_replication_on_is_recognized_by_its_process_id() {
    let world = with(Postgres::builder().tcp()).await;
    Site::of(&world).sets_up().await;
    let direct = Site::of(&world).passes().await;
    let in_place = format!("ok    {:<20}  a replication", "server replication");
    assert!(direct.contains(&in_place), "{direct}");
    let server = world.postgres.port().expect("a port");
    let pooler = Pooler::start(server, Replication::PassedOn).await;
    let at = format!("127.0.0.1:{}", pooler.port);
    let url = format!("postgres://postgres:{POSTGRES_SECRET}@{at}/postgres");
    let site = Site::of(&world).with("DATABASE_URL", url);
    let problem = Problem::new(
        format!("a connection pooler answers at {at}/postgres as postgres"),
        "the process that its login names is not the one that serves us; what is slow or restarted \
         there cuts outjet off, and may keep the slot from a copy that takes over",
        "give the server's own address in DATABASE_URL (often port 5432, or the host name without \
         \"-pooler\")",
    );
    let warned = block("warn", "server replication", &problem);
    let passed = site.passes().await;
    assert!(passed.contains(&warned), "{passed}");
    ends(site.leads().await).await;
}

/// What a pooler does about sessions that want to replicate.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Replication {
    /// As PgBouncer 1.22 does.
    Refused,
    /// As 1.23 does.
    PassedOn,
}

/// Passes sessions on, with a key of its own to cancel with (`welcome_client`, PgBouncer).
struct Pooler {
    port: u16,
    _tasks: JoinSet<()>,
}

impl Pooler {
    async fn start(server: u16, replication: Replication) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let port = listener.local_addr().expect("an address").port();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut sessions = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                sessions.spawn(Self::session(client, server, replication));
            }
        });
        Self {
            port,
            _tasks: tasks,
        }
    }

    async fn session(mut client: TcpStream, server: u16, replication: Replication) {
        let mut startup = Self::packet(&mut client).await;
        // SSLRequest, as sslmode=prefer sends it.
        if startup.get(4..8) == Some(&80_877_103_i32.to_be_bytes()) {
            client.write_all(b"N").await.expect("an open socket");
            startup = Self::packet(&mut client).await;
        }
        let replicates = startup.windows(13).any(|name| name == b"\0replication\0");
        if replicates && replication == Replication::Refused {
            let mut fields = Vec::new();
            let parameter = "unsupported startup parameter: replication";
            for (field, text) in [
                ('S', "FATAL"),
                ('V', "FATAL"),
                ('C', "08P01"),
                ('M', parameter),
            ] {
                fields.push(field as u8);
                fields.extend_from_slice(text.as_bytes());
                fields.push(0);
            }
            fields.push(0);
            let length = i32::try_from(fields.len() + 4).expect("a short answer");
            let answer = [b"E".as_slice(), &length.to_be_bytes(), &fields].concat();
            client.write_all(&answer).await.expect("an open socket");
            return;
        }
        let mut server = TcpStream::connect(("127.0.0.1", server))
            .await
            .expect("a server");
        server.write_all(&startup).await.expect("an open socket");
        Self::own_key(&mut client, &mut server).await;
        // Either end may break off.
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
    }

    /// Passes the server's messages on up to BackendKeyData, and that with another process id.
    async fn own_key(client: &mut TcpStream, server: &mut TcpStream) {
        loop {
            let mut tag = [0];
            if server.read_exact(&mut tag).await.is_err() {
                return;
            }
            let mut packet = Self::packet(server).await;
            if tag == *b"K" {
                packet[4..8].copy_from_slice(&1_i32.to_be_bytes());
            }
            client.write_all(&tag).await.expect("an open socket");
            client.write_all(&packet).await.expect("an open socket");
            if tag == *b"K" {
                return;
            }
        }
    }

    /// A packet without a type: length and content. Empty if the client has gone.
    async fn packet(client: &mut TcpStream) -> Vec<u8> {
        let mut length = [0; 4];
        if client.read_exact(&mut length).await.is_err() {
            return Vec::new();
        }
        let bytes = usize::try_from(i32::from_be_bytes(length)).expect("a length");
        let mut packet = length.to_vec();
        packet.resize(bytes, 0);
        let read = client.read_exact(&mut packet[4..]).await;
        read.expect("the rest of the packet");
        packet
    }
}

#[tokio::test]
async fn missing_publication_and_then_the_missing_slot_are_made_by_the_printed_statements() {
    let world = World::start().await;
    let (site, client) = (Site::of(&world), world.postgres.connect().await);
    client.run(INSTALL).await;
    let publication = Problem::new(
        "publication \"outjet\" does not exist in database postgres",
        "no publication, so that no table would be published",
        "`outjet setup`, or CREATE PUBLICATION \"outjet\" FOR TABLE \"outbox\".\"events\" WITH \
         (publish = 'insert', publish_via_partition_root = true);",
    );
    site.fails_and_halts("publication exists", &publication)
        .await;
    mends(&client, &publication).await;
    let failover = match world.postgres.major() {
        17.. => ", failover => true",
        _ => "",
    };
    let slot = Problem::new(
        "replication slot \"outjet\" does not exist",
        "without it Postgres keeps nothing for outjet; if it existed before, what was written \
         since it went is not in any slot",
        format!(
            "`outjet setup`, or SELECT lsn::text FROM \
             pg_create_logical_replication_slot('outjet', 'pgoutput'{failover});"
        ),
    );
    site.fails_and_halts("slot exists", &slot).await;
    mends(&client, &slot).await;
    site.passes().await;
    ends(site.leads().await).await;
}

#[tokio::test]
async fn publication_that_is_dropped_under_a_leader_halts_it_at_the_next_row() {
    let world = World::start().await;
    let (site, client) = (Site::of(&world), world.postgres.connect().await);
    site.sets_up().await;
    let mut running = site.leads().await;
    client.run("DROP PUBLICATION outjet").await;
    client
        .run("SELECT outbox.emit('order', '1', 'Placed')")
        .await;
    let problem = Problem::new(
        "publication \"outjet\" does not exist in database postgres",
        "slot \"outjet\" exists: the publication was dropped, or never made; what was written \
         since cannot be decoded",
        "`outjet drop --force && outjet recover`: what the stream lacks is published from the \
         tables; events without a row are lost",
    );
    halted(&mut running, &problem).await;
    site.fails("publication exists", &problem).await;
    site.refuses("run --exit-on-halt", HALTED, &problem).await;
    ends(running).await;
    // The fix; --yes because there is no terminal.
    assert_eq!(site.types("drop --force --yes").await.code, Some(0));
    let recovered = site.types("recover").await;
    assert_eq!(recovered.code, Some(0), "{recovered:?}");
    let appended = recovered.stdout.contains("appended  1 events\n");
    assert!(appended, "the row that was not decoded: {recovered:?}");
    site.passes().await;
}

#[tokio::test]
async fn table_that_is_not_published_is_added_by_the_printed_statement() {
    let world = World::start().await;
    let (site, client) = (Site::of(&world), world.postgres.connect().await);
    site.sets_up().await;
    client
        .run("ALTER PUBLICATION outjet DROP TABLE outbox.events")
        .await;
    let problem = Problem::new(
        "publication \"outjet\" does not publish outbox.events",
        "the table is not in it (a table that was dropped and made again is not, either); what \
         was inserted meanwhile is not published later",
        "`outjet setup`, or ALTER PUBLICATION \"outjet\" ADD TABLE \"outbox\".\"events\"; and then \
         `outjet verify`: it names the rows that the stream lacks, and `outjet replay --id` sends \
         them",
    );
    site.fails_and_halts("publication tables", &problem).await;
    mends(&client, &problem).await;
    site.passes().await;
}

/// Commits an event into a table whose column has another name.
async fn emit(client: &Session, payload_column: &str) {
    let insert = format!(
        "INSERT INTO outbox.events (aggregatetype, aggregateid, type, {payload_column})
         VALUES ('order', '1', 'Placed', '{{}}')"
    );
    client.run(&insert).await;
}

/// The names of the columns of `outbox.events`, with this one for the payload.
fn columns(payload: &str) -> String {
    format!(
        "id, created_at, aggregatetype, aggregateid, type, {payload}, payload_raw, content_type, \
         topic, headers, tenant_id, correlation_id, traceparent, dedup_key, deliver_at, expires_at"
    )
}

/// What a leader says of a row that was written when the column was called `then`.
fn renamed(mapped: &str, then: &str) -> Problem {
    Problem::new(
        format!("table outbox.events has no column {mapped}"),
        format!(
            "payload comes from it, and the next row was written when the columns were {}",
            columns(then)
        ),
        "name the column of that time in `columns` of this table, {payload: …}: rows keep the \
         names that they were written with, whatever is renamed later",
    )
}

#[tokio::test]
async fn column_that_is_renamed_under_a_leader_halts_it_at_the_next_row_and_loses_nothing() {
    let world = World::start().await;
    let (site, client) = (Site::of(&world), world.postgres.connect().await);
    site.sets_up().await;
    let jetstream = world.nats.jetstream().await;
    let there = "ALTER TABLE outbox.events RENAME payload TO body";
    let back = "ALTER TABLE outbox.events RENAME body TO payload";

    let mut running = site.leads().await;
    emit(&client, "payload").await;
    drain::until_stored(&jetstream, "OUTBOX", 1, SOON).await;
    client.run(there).await;
    emit(&client, "body").await;
    halted(&mut running, &renamed("payload", "body")).await;
    ends(running).await;
    let now = Problem::new(
        "table outbox.events has no column payload",
        format!("its columns are {}", columns("body")),
        "map its own columns in `tables`",
    );
    site.fails_and_halts("table columns", &now).await;

    // The row bears the name that it was written with.
    client.run(back).await;
    emit(&client, "payload").await;
    site.passes().await;
    site.halts(&renamed("payload", "body")).await;

    // The fix, and the way back from it.
    let mapped = "tables: [{name: outbox.events, columns: {payload: body}}]";
    client.run(there).await;
    let mut running = site.clone().config(mapped).leads().await;
    drain::until_stored(&jetstream, "OUTBOX", 2, SOON).await;
    halted(&mut running, &renamed("body", "payload")).await;
    ends(running).await;
    client.run(back).await;
    let running = site.leads().await;
    drain::until_stored(&jetstream, "OUTBOX", 3, SOON).await;
    ends(running).await;

    let written = "SELECT string_agg(id::text, ' ' ORDER BY created_at) FROM outbox.events";
    let stored = drain::ids(&jetstream, "OUTBOX").await;
    assert_eq!(stored.join(" "), client.text(written).await);
}

//! Every committed event stands in the stream once, in commit order, whatever the transactions
//! look like.

mod bodies;
mod messages;

use std::time::Duration;
use tokio::task::JoinSet;

use crate::harness::drain::{self, Stored};
use crate::harness::nats::BATCHING;
use crate::harness::outbox::Load;
use crate::harness::postgres::{self, Session};
use crate::harness::{Judge, Nats, Outjet, Postgres, Verdict, World, binaries, nats, outjet};

/// Generous: two busy cores, a debug build.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// The stream that the configuration names if nobody says otherwise.
pub(crate) const STREAM: &str = "OUTBOX";

/// Two servers, set up by `outjet setup`, and a judge who saw everything from the start.
pub(crate) struct Delivery {
    pub(crate) world: World,
    pub(crate) judge: Judge,
    pub(crate) session: Session,
    config: String,
}

impl Delivery {
    /// The native outbox, nothing configured.
    pub(crate) async fn ready() -> Self {
        Self::configured("").await
    }

    /// The native outbox and an `outjet.yaml`.
    pub(crate) async fn configured(yaml: &str) -> Self {
        Self::on((Postgres::builder(), Nats::builder()), yaml).await
    }

    /// The same on a nats-server that stores batches.
    pub(crate) async fn batching(yaml: &str) -> Self {
        let nats = Nats::builder().version(BATCHING);
        Self::on((Postgres::builder(), nats), yaml).await
    }

    /// The native outbox on servers of the test.
    pub(crate) async fn on(servers: (postgres::Builder, nats::Builder), yaml: &str) -> Self {
        let world = World::with(servers.0, servers.1).await;
        let judge = Judge::appoint(&world.postgres).await;
        Self::set_up(world, judge, yaml).await
    }

    /// Whatever tables there are in the world already.
    pub(crate) async fn set_up(world: World, judge: Judge, yaml: &str) -> Self {
        let session = world.postgres.connect().await;
        let delivery = Self {
            world,
            judge,
            session,
            config: yaml.to_owned(),
        };
        let output = delivery.outjet(["setup"]).output().await;
        assert_eq!(output.code, Some(0), "{output:?}");
        delivery
    }

    /// What outjet is told from now on.
    pub(crate) fn configure(&mut self, yaml: &str) {
        yaml.clone_into(&mut self.config);
    }

    /// A call of outjet with this configuration.
    pub(crate) fn outjet<'a>(
        &self,
        arguments: impl IntoIterator<Item = &'a str>,
    ) -> outjet::Builder {
        self.world.outjet(arguments).config(self.config.clone())
    }

    /// `outjet run`, and its log to be waited for.
    pub(crate) fn run(&self) -> Outjet {
        self.outjet(["run", "--log-format", "json"]).spawn()
    }

    /// Waits until the slot has passed all that was committed so far.
    pub(crate) async fn confirmed(&self) {
        self.confirmed_within(SOON).await;
    }

    /// The same, for much.
    pub(crate) async fn confirmed_within(&self, within: Duration) {
        // Behind every commit that has returned.
        let written = self.session.text("SELECT pg_current_wal_flush_lsn()").await;
        let sql = format!(
            "SELECT bool_and(confirmed_flush_lsn >= '{written}') FROM pg_replication_slots
             WHERE plugin = 'pgoutput'"
        );
        self.session.until_text(&sql, "t", within).await;
    }

    /// What stands in the stream.
    pub(crate) async fn stored(&self) -> Vec<Stored> {
        drain::messages(&self.world.nats.jetstream().await, STREAM).await
    }

    /// The ids in the stream, in its order.
    pub(crate) async fn ids(&self) -> Vec<String> {
        drain::ids(&self.world.nats.jetstream().await, STREAM).await
    }

    /// How many messages the stream has.
    pub(crate) async fn count(&self) -> u64 {
        let jetstream = self.world.nats.jetstream().await;
        let stream = jetstream.get_stream(STREAM).await.expect("the stream");
        stream.cached_info().state.messages
    }

    /// Waits until all is confirmed and compares the stream with what was committed.
    pub(crate) async fn verdict(&self) -> Verdict {
        self.confirmed().await;
        self.judge.verdict(&self.ids().await).await
    }
}

#[tokio::test]
async fn mixed_transactions_arrive_in_commit_order_each_event_once_with_its_body() {
    let delivery = Delivery::ready().await;
    let _outjet = delivery.run();
    let written = Load::mixed(1).write(&delivery.world.postgres.url()).await;
    assert!(written.rolled_back > 0, "{written:?}");
    assert!(written.empty > 0, "{written:?}");
    let verdict = delivery.verdict().await;
    verdict.assert_exact();
    assert_eq!(verdict.stored as u64, written.committed);
    let stored = delivery.stored().await;
    let altered = drain::altered(&delivery.session, "outbox.events", &stored).await;
    assert_eq!(altered, Vec::<String>::new());
}

#[tokio::test]
async fn rows_that_share_an_lsn_arrive_each_once_and_in_order() {
    let delivery = Delivery::ready().await;
    let _outjet = delivery.run();
    let rows = |source: &str| {
        format!(
            "INSERT INTO outbox.events (aggregatetype, aggregateid, type, payload)
             SELECT 'order', n::text, 'created', to_jsonb(n) FROM {source} AS n"
        )
    };
    let session = &delivery.session;
    session.run(&rows("(VALUES (1), (2), (3))")).await;
    session.run(&rows("generate_series(1, 300)")).await;
    // Without the ids, COPY would insert row by row: their default is volatile.
    let file = delivery
        .world
        .postgres
        .data()
        .join("rows")
        .display()
        .to_string();
    let from = format!("COPY outbox.events (id, aggregatetype, aggregateid, type) FROM '{file}';");
    let copy = format!(
        "CREATE TABLE business AS SELECT generate_series(1, 500) AS n;
         COPY (SELECT gen_random_uuid(), 'order', n, 'created' FROM business) TO '{file}';
         BEGIN; {from} UPDATE business SET n = n; COMMIT;"
    );
    session.run(&copy).await;
    session.run(&rows("(SELECT n FROM business)")).await;
    let shared = "SELECT count(*) > count(DISTINCT lsn) FROM pg_logical_slot_peek_changes(
        'judge_postgres', NULL, NULL) WHERE starts_with(data, 'table outbox.events')";
    assert_eq!(session.text(shared).await, "t");
    let verdict = delivery.verdict().await;
    verdict.assert_exact();
    assert_eq!(verdict.stored, 3 + 300 + 500 + 500);
}

#[tokio::test]
async fn what_was_rolled_back_is_not_published() {
    let delivery = Delivery::ready().await;
    let _outjet = delivery.run();
    let emit = |kind: &str| format!("PERFORM outbox.emit('order', '1', '{kind}');");
    let (kept, gone) = (emit("kept"), emit("gone"));
    let transactions = [
        "BEGIN; DO $$ BEGIN {gone} END $$; ROLLBACK",
        "BEGIN;
           SAVEPOINT a; DO $$ BEGIN {gone} END $$;
             SAVEPOINT b; DO $$ BEGIN {gone} END $$; RELEASE SAVEPOINT b;
           ROLLBACK TO SAVEPOINT a;
           DO $$ BEGIN {kept} END $$;
           SAVEPOINT c; DO $$ BEGIN {kept} END $$; RELEASE SAVEPOINT c;
         COMMIT",
        "DO $$ BEGIN
           {kept}
           BEGIN {gone} RAISE EXCEPTION 'back'; EXCEPTION WHEN OTHERS THEN NULL; END;
           {kept}
         END $$",
        "BEGIN; SAVEPOINT d; DO $$ BEGIN {gone} END $$; RELEASE SAVEPOINT d; ROLLBACK",
    ];
    for transaction in transactions {
        let sql = transaction
            .replace("{gone}", &gone)
            .replace("{kept}", &kept);
        delivery.session.run(&sql).await;
    }
    let verdict = delivery.verdict().await;
    verdict.assert_exact();
    let subjects: Vec<_> = delivery
        .stored()
        .await
        .into_iter()
        .map(|stored| stored.subject)
        .collect();
    assert_eq!(subjects, ["events.order.kept"; 4]);
}

#[tokio::test]
async fn transactions_without_events_let_the_slot_advance() {
    // 14 sends a Begin and a Commit for each of them, later versions send nothing.
    let builds = binaries::postgres(None);
    let oldest = builds.iter().map(|build| build.major).min();
    let postgres = Postgres::builder().version(oldest.expect("a Postgres"));
    let delivery = Delivery::on((postgres, Nats::builder()), "").await;
    let mut outjet = delivery.run();
    outjet.logged("leading", SOON).await;
    let session = &delivery.session;
    session.run("CREATE TABLE business (n int)").await;
    let business = "DO $$ BEGIN FOR n IN 1..2000 LOOP
        INSERT INTO business VALUES (n); COMMIT; END LOOP; END $$";
    for _ in 0..3 {
        session.run(business).await;
        session
            .run("BEGIN; SELECT outbox.emit('order', '1', 'gone'); ROLLBACK")
            .await;
        delivery.confirmed().await;
    }
    assert_eq!(delivery.count().await, 0);
    session
        .run("SELECT outbox.emit('order', '1', 'kept')")
        .await;
    session.run(business).await;
    delivery.verdict().await.assert_exact();
}

#[tokio::test]
async fn idle_outbox_beside_a_busy_database_retains_no_wal() {
    let delivery = Delivery::ready().await;
    let mut outjet = delivery.run();
    outjet.logged("leading", SOON).await;
    delivery.session.run("CREATE DATABASE busy").await;
    let busy = delivery.world.postgres.url_as("postgres", "busy");
    let busy = Session::connect(&busy).await;
    busy.run("CREATE TABLE business (n int, words text)").await;
    let mut writer = JoinSet::new();
    writer.spawn(async move {
        loop {
            let rows = "SELECT n, repeat('word', 50) FROM generate_series(1, 500) AS n";
            busy.run(&format!("INSERT INTO business {rows}")).await;
        }
    });
    // While the writing goes on, again and again.
    for _ in 0..5 {
        delivery.confirmed().await;
    }
    assert_eq!(delivery.count().await, 0);
    assert!(writer.try_join_next().is_none(), "the writer ended");
}

#[tokio::test]
async fn rows_of_all_partitions_arrive_as_rows_of_the_table() {
    let delivery = Delivery::ready().await;
    let _outjet = delivery.run();
    let sql = "
        INSERT INTO outbox.events (aggregatetype, aggregateid, type, created_at)
        SELECT 'order', n::text, 'created', CASE n % 4
          WHEN 0 THEN now() WHEN 1 THEN now() + interval '1 day'
          WHEN 2 THEN now() + interval '10 years' ELSE timestamptz '2001-01-01' END
        FROM generate_series(1, 40) AS n";
    delivery.session.run(sql).await;
    let filled = "SELECT count(DISTINCT tableoid) || ' ' || bool_or(tableoid =
          (SELECT partdefid FROM pg_partitioned_table WHERE partrelid = 'outbox.events'::regclass))
        FROM outbox.events";
    assert_eq!(delivery.session.text(filled).await, "3 true");
    let verdict = delivery.verdict().await;
    verdict.assert_exact();
    assert_eq!(verdict.stored, 40);
    for stored in delivery.stored().await {
        assert_eq!(stored.header("ce-source"), Some("/postgres/outbox.events"));
    }
}

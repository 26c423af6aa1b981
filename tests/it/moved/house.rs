//! The outbox moves to another cluster, with a system identifier of its own: the stream goes on
//! there by `outjet recover --yes`, and by nothing else.
//!
//! The houses are servers of two major versions, and the rows are copied, as by `pg_dump`. What
//! `pg_upgrade` does is in [`super::upgrade`].

use std::ops::RangeInclusive;

use outjet::pg::ddl::INSTALL;

use crate::harness::outjet::{Builder, Output};
use crate::harness::postgres::Session;
use crate::harness::stage::{QUICK, SOON, STREAM, confirmed};
use crate::harness::{Nats, Outjet, Postgres, drain};

/// Postgres versions: of before, and of now.
const VERSIONS: (u32, u32) = (17, 18);

pub(super) struct Houses {
    pub(super) old: Postgres,
    pub(super) new: Postgres,
    pub(super) nats: Nats,
}

fn call(postgres: &Postgres, nats: &Nats, typed: &str) -> Builder {
    let yaml = QUICK.replace("takeover_after: 3s", "takeover_after: 3s, halt_retry: 1s");
    Outjet::builder()
        .env("DATABASE_URL", postgres.url())
        .env("NATS_URL", nats.url())
        .config(yaml)
        .args(typed.split(' '))
}

pub(super) async fn emit(client: &Session, numbers: RangeInclusive<u32>) {
    for number in numbers {
        let emit = format!(
            "SELECT outbox.emit('order', '{number}', 'created', payload => to_jsonb({number}))"
        );
        client.run(&emit).await;
    }
}

/// A house from which events 1 to 10 were published, by an outjet that has ended.
pub(super) async fn published_from(old: &Postgres) -> Nats {
    let nats = Nats::start().await;
    let setup = call(old, &nats, "setup").output().await;
    assert_eq!(setup.code, Some(0), "{setup:?}");
    publish(old, &nats, 1..=10).await;
    nats
}

/// Publishes these, too.
pub(super) async fn publish(old: &Postgres, nats: &Nats, numbers: RangeInclusive<u32>) {
    let mut outjet = call(old, nats, "run --log-format json").spawn();
    outjet.logged("leading", SOON).await;
    let client = old.connect().await;
    emit(&client, numbers).await;
    confirmed(&client, SOON).await;
    assert_eq!(outjet.terminate(SOON).await, Some(0));
}

impl Houses {
    /// Events 1 to 10 were published from the old one, 11 to 13 were committed there and were not.
    async fn build() -> Self {
        let (old, new) = tokio::join!(
            Postgres::builder().version(VERSIONS.0).start(),
            Postgres::builder().version(VERSIONS.1).start()
        );
        let nats = published_from(&old).await;
        emit(&old.connect().await, 11..=13).await;
        Self { old, new, nats }
    }

    /// The schema with the publication, without rows.
    async fn furnish(&self) -> Session {
        let client = self.new.connect().await;
        client.run(INSTALL).await;
        let publication = "CREATE PUBLICATION outjet FOR TABLE outbox.events
                           WITH (publish = 'insert', publish_via_partition_root = true)";
        client.run(publication).await;
        client
    }

    /// Copies the rows whose numbers are at most this.
    async fn carry(&self, numbers_max: u32) {
        let rows = format!(
            "SELECT jsonb_agg(to_jsonb(e) ORDER BY created_at) FROM outbox.events e
             WHERE aggregateid::int <= {numbers_max}"
        );
        let rows = self.old.connect().await.text(&rows).await;
        let insert = format!(
            "INSERT INTO outbox.events
             SELECT * FROM jsonb_populate_recordset(NULL::outbox.events, $rows${rows}$rows$)"
        );
        self.new.connect().await.run(&insert).await;
    }

    async fn types(&self, typed: &str) -> Output {
        call(&self.new, &self.nats, typed).output().await
    }

    pub(super) async fn leads(&self) -> Outjet {
        let mut outjet = call(&self.new, &self.nats, "run --log-format json").spawn();
        outjet.logged("leading", SOON).await;
        outjet
    }

    /// Nothing takes over by itself; what refuses to names both houses, and the fix.
    pub(super) async fn assert_refused(&self) {
        let system = "SELECT system_identifier FROM pg_control_system()";
        let old = self.old.connect().await.text(system).await;
        let new = self.new.connect().await.text(system).await;
        let slots = "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'outjet%'";
        let client = self.new.connect().await;
        let before = client.text(slots).await;
        let jetstream = self.nats.jetstream().await;
        let stored = async || drain::ids(&jetstream, STREAM).await;
        let already = stored().await;
        let mut typed = vec!["recover"];
        if before == "0" {
            typed.extend(["setup", "run --setup --exit-on-halt"]);
        }
        for typed in typed {
            let refused = self.types(typed).await;
            assert!(matches!(refused.code, Some(1 | 65)), "{typed}: {refused:?}");
            for named in [&old, &new, "`outjet recover --yes`", "slot outjet"] {
                assert!(refused.stderr.contains(named), "{typed}: {refused:?}");
            }
        }
        let run = self.types("run --exit-on-halt").await;
        assert_eq!(run.code, Some(65), "{run:?}");
        assert_eq!(client.text(slots).await, before);
        assert_eq!(stored().await, already);
    }

    pub(super) async fn moves(&self, says: &str) {
        let moved = self.types("recover --yes").await;
        assert_eq!(moved.code, Some(0), "{moved:?}");
        assert!(moved.stdout.starts_with("moving    from "), "{moved:?}");
        assert!(moved.stdout.contains(says), "{moved:?}");
        let checked = self.types("check").await;
        assert_eq!(checked.code, Some(0), "{checked:?}");
    }

    /// The stream holds these, each once.
    pub(super) async fn assert_stored(&self, numbers: RangeInclusive<u32>) {
        confirmed(&self.new.connect().await, SOON).await;
        let stored = drain::messages(&self.nats.jetstream().await, STREAM).await;
        let number = |stored: &drain::Stored| String::from_utf8_lossy(&stored.payload).into_owned();
        let stored: Vec<_> = stored.iter().map(number).collect();
        let expected: Vec<_> = numbers.map(|number| number.to_string()).collect();
        assert_eq!(stored, expected);
    }
}

#[tokio::test]
async fn waiting_events_are_published_from_the_new_house() {
    let houses = Houses::build().await;
    let client = houses.furnish().await;
    houses.carry(13).await;
    houses.assert_refused().await;
    let says = "appended  3 events\ncreated   replication slot outjet\n";
    houses.moves(says).await;
    let _outjet = houses.leads().await;
    emit(&client, 14..=16).await;
    houses.assert_stored(1..=16).await;
}

#[tokio::test]
async fn house_is_moved_where_nothing_waits_and_the_newest_event_is_still_the_old_ones() {
    let houses = Houses::build().await;
    let client = houses.furnish().await;
    houses.carry(10).await;
    houses.assert_refused().await;
    let says = "appended  0 events\ncreated   replication slot outjet\n";
    houses.moves(says).await;
    let mut outjet = houses.leads().await;
    // The record alone says whose the stream is.
    assert_eq!(outjet.terminate(SOON).await, Some(0));
    let _outjet = houses.leads().await;
    emit(&client, 11..=12).await;
    houses.assert_stored(1..=12).await;
}

#[tokio::test]
async fn drop_in_one_house_leaves_the_record_of_the_other() {
    let houses = Houses::build().await;
    houses.furnish().await;
    let dropped = houses.types("drop --yes").await;
    assert_eq!(dropped.code, Some(0), "{dropped:?}");
    let kept = "kept     record of slot outjet: it is of the cluster with system identifier ";
    assert!(dropped.stdout.contains(kept), "{dropped:?}");
    // It made nothing, and changed nothing: not even the publication.
    houses.assert_refused().await;
    let publications = "SELECT count(*) FROM pg_publication";
    let client = houses.new.connect().await;
    assert_eq!(client.text(publications).await, "0");
    let run = "run --log-format json";
    let mut outjet = call(&houses.old, &houses.nats, run).spawn();
    outjet.logged("leading", SOON).await;
    confirmed(&houses.old.connect().await, SOON).await;
}

#[tokio::test]
async fn slot_that_came_along_is_kept_with_what_it_holds() {
    let houses = Houses::build().await;
    let client = houses.furnish().await;
    houses.carry(11).await;
    client
        .run("SELECT pg_create_logical_replication_slot('outjet', 'pgoutput')")
        .await;
    emit(&client, 12..=14).await;
    houses.assert_refused().await;
    let says = "appended  1 events\nkept      replication slot outjet, which begins at ";
    houses.moves(says).await;
    let _outjet = houses.leads().await;
    emit(&client, 15..=16).await;
    houses.assert_stored(1..=16).await;
}

#[tokio::test]
async fn slot_that_would_send_what_the_stream_holds_is_replaced() {
    let houses = Houses::build().await;
    let client = houses.furnish().await;
    client
        .run("SELECT pg_create_logical_replication_slot('outjet', 'pgoutput')")
        .await;
    houses.carry(13).await;
    let says = "appended  3 events\ncreated   replication slot outjet\n";
    houses.moves(says).await;
    let _outjet = houses.leads().await;
    emit(&client, 14..=16).await;
    houses.assert_stored(1..=16).await;
}

/// The one that was moved from is started again, and disturbs nobody.
async fn old_house_is_left_alone(carried: u32, halted: &str) {
    let houses = Houses::build().await;
    let client = houses.furnish().await;
    houses.carry(carried).await;
    let appended = format!("appended  {} events\n", carried - 10);
    houses.moves(&appended).await;
    let outjet = houses.leads().await;
    let mut left = call(&houses.old, &houses.nats, "run --log-format json").spawn();
    left.logged(halted, SOON).await;
    emit(&client, carried + 1..=carried + 3).await;
    houses.assert_stored(1..=carried + 3).await;
    let lines = outjet.log();
    let told = |message: &str| lines.iter().any(|line| line["message"] == message);
    assert!(!told("recovered"), "it was disturbed: {lines:?}");
}

#[tokio::test]
async fn old_house_is_not_published_from_any_more() {
    let halted = "halted: stream \"OUTBOX\" is written by another source";
    old_house_is_left_alone(13, halted).await;
}

#[tokio::test]
async fn old_house_is_not_published_from_where_the_newest_event_is_still_its_own() {
    let halted = "halted: the stream holds events of another cluster's slot outjet";
    old_house_is_left_alone(10, halted).await;
}

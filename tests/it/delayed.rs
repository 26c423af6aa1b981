//! Events whose time has not come are kept by the server and appear when they are due, once,
//! whatever is killed; and those that have come to their end are dropped.

mod expiring;

use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::delivery::{Delivery, SOON};
use crate::faults::die_at;
use crate::harness::drain::{self, Stored};
use crate::harness::nats::BATCHING;
use crate::harness::postgres::Stop;
use crate::harness::{Judge, Nats, Postgres, Wait, World, until};

pub(crate) const DELAYED: &str = "OUTBOX_DELAYED";

/// The servers' duplicate window cannot help.
pub(crate) const CONFIG: &str = "stream: {duplicate_window: 100ms}";

/// One event, and its id.
pub(crate) async fn emit(delivery: &Delivery, arguments: &str) -> String {
    let sql = format!("SELECT outbox.emit('order', '1', 'placed', '{{\"n\": 1}}', {arguments})");
    delivery.session.text(&sql).await
}

/// All that the stream of delayed events holds.
async fn kept(delivery: &Delivery) -> Vec<Stored> {
    drain::messages(&delivery.world.nats.jetstream().await, DELAYED).await
}

/// What has become due.
async fn fired(delivery: &Delivery) -> Vec<Stored> {
    let mut fired = kept(delivery).await;
    fired.retain(|message| message.subject.starts_with("delayed."));
    fired
}

async fn until_fired(delivery: &Delivery, events: usize) -> Vec<Stored> {
    until("they are due", SOON, async || {
        let fired = fired(delivery).await;
        match fired.len() < events {
            true => Wait::NotYet(format!("{} are", fired.len())),
            false => Wait::Ready(fired),
        }
    })
    .await
}

fn ids(messages: &[Stored]) -> Vec<String> {
    let ids = messages.iter().map(|message| message.header("Outjet-Id"));
    let mut ids: Vec<_> = ids.map(|id| id.expect("an id").to_owned()).collect();
    ids.sort();
    ids
}

#[tokio::test]
async fn delayed_event_appears_when_it_is_due_and_not_before() {
    let delivery = Delivery::batching(CONFIG).await;
    let _outjet = delivery.run();
    let past = emit(&delivery, "deliver_at => now() - interval '1 hour'").await;
    let late = emit(&delivery, "deliver_at => now() + interval '1 hour'").await;
    let soon = "deliver_at => now() + interval '3 seconds', headers => '{\"X\": \"y\"}'";
    let soon = emit(&delivery, soon).await;
    let plain = emit(&delivery, "deliver_at => NULL").await;
    delivery.confirmed().await;
    assert_eq!(delivery.ids().await, [past, plain]);
    let appeared = until_fired(&delivery, 1).await;
    let [event] = appeared.as_slice() else {
        panic!("{appeared:?}");
    };
    assert_eq!(event.subject, "delayed.events.order.placed");
    assert_eq!(event.payload, "{\"n\": 1}");
    assert_eq!(event.header("ce-id"), Some(soon.as_str()));
    assert_eq!(event.header("Outjet-Id"), Some(soon.as_str()));
    assert_eq!(event.header("X"), Some("y"));
    let due = event.header("Outjet-Deliver-At").expect("the time");
    let due = OffsetDateTime::parse(due, &Rfc3339).expect("a time");
    assert!(event.stored_at >= due, "{} {due}", event.stored_at);
    let kept = kept(&delivery).await;
    let pending = kept
        .iter()
        .find(|kept| kept.header("Nats-Schedule").is_some());
    assert_eq!(
        pending.expect("it is kept").header("Outjet-Id"),
        Some(late.as_str())
    );
}

#[tokio::test]
async fn delayed_events_among_others_appear_once_whatever_is_killed() {
    let mut delivery = Delivery::batching(CONFIG).await;
    let mut delayed = Vec::new();
    let points = ["schedule_in_part", "schedule_stored"];
    for (round, point) in [points, points, points].concat().into_iter().enumerate() {
        let passage = [1, 2, 5][round / 2];
        for n in 0..6 {
            emit(&delivery, "deliver_at => NULL").await;
            let soon = format!("deliver_at => now() + interval '{} seconds'", 3 + n);
            delayed.push(emit(&delivery, &soon).await);
        }
        die_at(&delivery, point, passage).await;
        if round % 2 == 1 {
            // What was stored appears meanwhile, and is sent again.
            until_fired(&delivery, 1).await;
            delivery.world.postgres.restart(Stop::Immediate).await;
            delivery.session = delivery.world.postgres.connect().await;
        }
    }
    let _outjet = delivery.run();
    delivery.confirmed().await;
    let appeared = until_fired(&delivery, delayed.len()).await;
    delayed.sort();
    assert_eq!(ids(&appeared), delayed);
    assert_eq!(delivery.stored().await.len(), delayed.len());
}

#[tokio::test]
async fn cancelled_event_does_not_appear_nor_come_back_when_its_row_is_sent_again() {
    let mut delivery = Delivery::batching(CONFIG).await;
    let call = async |delivery: &Delivery, arguments: &[&str]| {
        let called = delivery.outjet(arguments.iter().copied());
        called.output().await
    };
    let listed = call(&delivery, &["delayed", "list"]).await;
    assert_eq!(listed.stdout, "no delayed events\n");
    let mut outjet = delivery.run();
    let id = emit(&delivery, "deliver_at => now() + interval '1 hour'").await;
    let other = emit(&delivery, "deliver_at => now() + interval '2 hours'").await;
    delivery.confirmed().await;
    let listed = call(&delivery, &["delayed", "list", "--json"]).await;
    let lines: Vec<serde_json::Value> = listed
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(
        (&lines[0]["id"], &lines[1]["id"]),
        (&id.into(), &other.as_str().into())
    );
    assert_eq!(lines[0]["subject"], "events.order.placed");
    let id = lines[0]["id"].as_str().expect("an id");
    let cancelled = call(&delivery, &["delayed", "cancel", id]).await;
    assert_eq!(cancelled.stdout, format!("cancelled  delayed event {id}\n"));
    outjet.kill().await;
    delivery.world.postgres.restart(Stop::Immediate).await;
    delivery.session = delivery.world.postgres.connect().await;
    let _outjet = delivery.run();
    emit(&delivery, "deliver_at => NULL").await;
    delivery.confirmed().await;
    let again = call(&delivery, &["delayed", "cancel", id]).await;
    assert_eq!(again.code, Some(1), "{again:?}");
    assert_eq!(again.stdout, format!("absent     delayed event {id}\n"));
    let listed = call(&delivery, &["delayed", "list"]).await.stdout;
    assert_eq!(listed.lines().count(), 2, "{listed}");
    assert!(listed.contains(&other), "{listed}");
}

#[tokio::test]
async fn server_without_schedules_makes_delayed_events_dead_letters_or_publishes_them_at_once() {
    let old = Nats::builder().version("2.10");
    let mut delivery = Delivery::on((Postgres::builder(), old), CONFIG).await;
    let check = delivery.outjet(["check"]).output().await;
    assert_eq!(check.code, Some(0), "{check:?}");
    assert!(
        check.stdout.contains("keeps no event until it is due"),
        "{check:?}"
    );
    let mut outjet = delivery.run();
    emit(&delivery, "deliver_at => now() + interval '1 hour'").await;
    let plain = emit(&delivery, "deliver_at => NULL").await;
    delivery.confirmed().await;
    assert_eq!(delivery.ids().await, [plain.as_str()]);
    let jetstream = delivery.world.nats.jetstream().await;
    let letters = drain::messages(&jetstream, "OUTBOX_DLQ").await;
    assert_eq!(letters[0].header("Outjet-Reason"), Some("delayed"));
    let error = letters[0].header("Outjet-Error").expect("an error");
    assert!(error.contains("keeps no event until it is due"), "{error}");
    outjet.kill().await;
    delivery.configure(&format!("{CONFIG}\npublish: {{delayed: now}}"));
    let _outjet = delivery.run();
    let now = emit(&delivery, "deliver_at => now() + interval '1 hour'").await;
    delivery.confirmed().await;
    assert_eq!(delivery.ids().await, [plain, now]);
    let stored = delivery.stored().await;
    assert!(
        stored[1].header("Outjet-Deliver-At").is_some(),
        "{stored:?}"
    );
    assert!(
        stored[0].header("Outjet-Deliver-At").is_none(),
        "{stored:?}"
    );
}

#[tokio::test]
async fn delayed_rows_are_not_missing_to_verify() {
    let delivery = Delivery::batching(CONFIG).await;
    let _outjet = delivery.run();
    emit(&delivery, "deliver_at => now() + interval '1 hour'").await;
    emit(&delivery, "deliver_at => now() + interval '2 seconds'").await;
    emit(&delivery, "deliver_at => NULL").await;
    delivery.confirmed().await;
    until_fired(&delivery, 1).await;
    let verify = delivery.outjet(["verify"]).output().await;
    assert_eq!(verify.code, Some(0), "{verify:?}");
    assert!(verify.stdout.contains("3 rows"), "{verify:?}");
    assert!(
        verify.stdout.contains("0 missing, 0 duplicates"),
        "{verify:?}"
    );
}

#[tokio::test]
async fn envelope_with_a_row_that_is_scheduled_for_later() {
    let batching = Nats::builder().version(BATCHING);
    let world = World::with(Postgres::builder(), batching).await;
    let session = world.postgres.connect().await;
    session
        .run(include_str!("../data/presets/envelope.sql"))
        .await;
    let judge = Judge::over(&world.postgres.url(), "public.outbox").await;
    let yaml = "tables: [{name: public.outbox, preset: envelope}]";
    let delivery = Delivery::set_up(world, judge, yaml).await;
    let _outjet = delivery.run();
    for scheduled_for in ["now() + interval '2 seconds'", "now()", "NULL"] {
        let insert = format!(
            "INSERT INTO outbox (tenant_id, aggregate_id, aggregate_type, event_type, payload,
               idempotency_key, producer, scheduled_for)
             VALUES ('acme', '1', 'lead', 'created', '{{}}', $${scheduled_for}$$, 'p',
               {scheduled_for})"
        );
        session.run(&insert).await;
    }
    delivery.confirmed().await;
    assert_eq!(delivery.stored().await.len(), 2);
    let appeared = until_fired(&delivery, 1).await;
    assert_eq!(
        appeared[0].header("Outjet-Dedup-Key"),
        Some("now() + interval '2 seconds'")
    );
    assert_eq!(appeared[0].subject, "delayed.events.lead.created");
}

#[tokio::test]
async fn message_without_a_row_is_delayed_and_expires_like_one() {
    let delivery = Delivery::batching(CONFIG).await;
    let _outjet = delivery.run();
    let emit = "SELECT outbox.emit_wal('order', '1', 'placed',
        deliver_at => now() + interval '2 seconds', expires_at => now() + interval '1 hour')";
    let id = delivery.session.text(emit).await;
    delivery.confirmed().await;
    let appeared = until_fired(&delivery, 1).await;
    assert_eq!(appeared[0].header("ce-id"), Some(id.as_str()));
    assert!(appeared[0].header("Nats-TTL").is_some(), "{appeared:?}");
}

#[tokio::test]
async fn time_that_no_server_keeps_an_event_until_is_rejected() {
    let delivery = Delivery::batching(CONFIG).await;
    let _outjet = delivery.run();
    emit(&delivery, "deliver_at => 'infinity'").await;
    emit(&delivery, "deliver_at => '2300-01-01'").await;
    delivery.confirmed().await;
    let jetstream = delivery.world.nats.jetstream().await;
    let letters = drain::messages(&jetstream, "OUTBOX_DLQ").await;
    assert_eq!(letters.len(), 2);
    for letter in letters {
        assert_eq!(letter.header("Outjet-Reason"), Some("time"), "{letter:?}");
    }
}

/// Not so long that a busy machine would be late for it.
pub(crate) const MOMENT: Duration = Duration::from_secs(20);

//! Replays into a stream that others write, too: each row once more, through who was told.

use std::time::Duration;

use super::{Elsewhere, SHARED, Strangers, assert_exact, stored_through};
use crate::harness::drain::{self, Stored};
use crate::harness::stage::{SOON, Stage, Writers};
use crate::harness::{Direction, Mode, Nats, Outjet, Verdict};
use crate::sink::more_stored;

/// What a slot has stored for the first time, and what again.
async fn parted(stage: &Stage, slot: &str) -> [Vec<String>; 2] {
    let again = |message: &Stored| message.header("Outjet-Replay") == Some("1");
    let stored = stored_through(stage, slot).await;
    let (again, live): (Vec<_>, Vec<_>) = stored.iter().partition(|message| again(message));
    let id = |message: &Stored| message.id().expect("an id").to_owned();
    [live, again].map(|stored| stored.into_iter().map(id).collect())
}

/// The ids of a table, in the order in which they are replayed.
async fn rows(stage: &Stage, table: &str, order: &str) -> Vec<String> {
    let sql = format!("SELECT string_agg(id::text, ' ' ORDER BY {order}) FROM {table}");
    let ids = stage.session.text(&sql).await;
    ids.split(' ').map(str::to_owned).collect()
}

/// Its acks are lost, and it is killed or not: who goes on finds what is stored in the stream.
async fn trouble(stage: &Stage, outjet: Outjet, killed: bool) -> Outjet {
    more_stored(stage, 500).await;
    stage.proxy.set(Mode::Stall(Direction::ToClient));
    more_stored(stage, 200).await;
    let mut outjet = outjet;
    if killed {
        outjet.kill().await;
    }
    stage.proxy.set(Mode::Refuse);
    // What the server has received and not stored yet is not known to whoever looks.
    tokio::time::sleep(Duration::from_millis(200)).await;
    stage.proxy.set(Mode::Forward);
    match killed {
        true => stage.lead().await,
        false => outjet,
    }
}

#[tokio::test]
async fn replay_into_a_shared_stream_stores_each_row_once_more_beside_others_whatever_breaks() {
    let stage = Stage::on(Nats::builder(), SHARED).await;
    let mut outjet = stage.lead().await;
    let mut elsewhere = Elsewhere::start(&stage).await;
    elsewhere.outjet.logged("leading", SOON).await;
    let strangers = Strangers::start(&stage).await;
    stage.commit(1..=3000).await;
    let wanted = rows(&stage, "outbox.events", "created_at, id").await;
    let until = stage.session.text("SELECT clock_timestamp()").await;
    let writers = stage.write(1).await;
    let theirs = Writers::start(&elsewhere.url, 1).await;
    let replay = ["replay", "--until", &until, "--rate", "500/s"];
    let mut replay = stage.outjet(replay).spawn();
    let mut killed = false;
    while replay.exited().is_none() {
        outjet = trouble(&stage, outjet, killed).await;
        killed = !killed;
    }
    assert_eq!(
        replay.exit(SOON).await.code(),
        Some(0),
        "{}",
        replay.stderr()
    );
    writers.finish().await;
    theirs.finish().await;
    strangers.finish().await;
    stage.confirmed().await;
    let [live, again] = parted(&stage, "outjet").await;
    stage.judge.verdict(&live).await.assert_exact();
    assert_eq!(wanted.len(), 3000);
    Verdict::of(&wanted, &again).assert_exact();
    assert_exact(&stage, (&elsewhere.session, &elsewhere.judge), "other").await;
    drop(outjet);
}

/// A table of the same database, whose outjet has a slot of its own and writes the same stream.
const NOTES: &str = "
tables:
  - name: public.notes
    preset: none
    columns: {id: id, payload: body, aggregatetype: {value: note}, type: {value: made}}
";

#[tokio::test]
async fn replay_goes_out_through_the_outjet_that_was_told_and_not_through_another_of_the_database()
{
    let stage = Stage::on(Nats::builder(), SHARED).await;
    let table = "CREATE TABLE public.notes (id uuid DEFAULT gen_random_uuid(), body jsonb)";
    stage.session.run(table).await;
    let yaml = SHARED.replace(
        "postgres: {",
        "postgres: {slot: other, publication: other, ",
    );
    let other = |typed: &'static str| stage.outjet(typed.split(' ')).config(yaml.clone() + NOTES);
    let output = other("setup").output().await;
    assert_eq!(output.code, Some(0), "{output:?}");
    let _ours = stage.lead().await;
    let mut theirs = other("run --log-format json").spawn();
    theirs.logged("leading", SOON).await;
    stage.commit(1..=3).await;
    let insert = "INSERT INTO public.notes (body) VALUES ('1'), ('2')";
    stage.session.run(insert).await;
    for replay in [stage.outjet(["replay", "--all"]), other("replay --all")] {
        let output = replay.output().await;
        assert_eq!(output.code, Some(0), "{output:?}");
    }
    stage.confirmed().await;
    assert_confirmed_by_other(&stage).await;
    let (events, notes) = ("outbox.events", "public.notes");
    for (slot, table, order) in [("outjet", events, "created_at, id"), ("other", notes, "id")] {
        let wanted = rows(&stage, table, order).await;
        let [mut live, mut again] = parted(&stage, slot).await;
        assert_eq!(again, wanted, "{slot}");
        live.sort();
        again.sort();
        assert_eq!(live, again, "{slot}");
    }
    let letters = drain::messages(&stage.jetstream().await, "OUTBOX_DLQ").await;
    assert!(letters.is_empty(), "{letters:?}");
}

async fn assert_confirmed_by_other(stage: &Stage) {
    let sql = "SELECT confirmed_flush_lsn >= (SELECT confirmed_flush_lsn FROM pg_replication_slots
                 WHERE slot_name = 'outjet')
               FROM pg_replication_slots WHERE slot_name = 'other'";
    stage.session.until_text(sql, "t", SOON).await;
}

//! `stream.shared`: others write into the stream, too. What holds then is asserted here, and what
//! does not is allowed, no more.

mod record;
mod refusals;
mod replay;
pub(crate) mod strict;

use std::time::Duration;

use async_nats::jetstream;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::harness::drain::{self, Stored};
use crate::harness::postgres::Session;
use crate::harness::stage::{SOON, STREAM, Stage};
use crate::harness::{Direction, Judge, Mode, Nats, Outjet, Wait, nats, until};
use crate::sink::{cut_at_random, more_stored, swallow_acks};

/// Brisk, but for the time that the server remembers ids for.
pub(crate) const SHARED: &str = "
postgres: {takeover_after: 4s}
nats: {connect_timeout: 2s}
stream: {shared: true, duplicate_window: 2m}
publish: {ack_timeout: 1s}
";

/// Where nothing breaks, nor does it on a busy machine: no silence is long enough.
pub(crate) fn calm(yaml: &str) -> String {
    let longer = [
        ("takeover_after: 4s", "takeover_after: 40s"),
        ("ack_timeout: 1s", "ack_timeout: 40s"),
    ];
    longer.iter().fold(yaml.to_owned(), |yaml, (brisk, calm)| {
        assert!(yaml.contains(brisk), "{yaml}");
        yaml.replace(brisk, calm)
    })
}

/// What the log says where nothing was disturbed.
const UNDISTURBED: [&str; 2] = ["starting", "leading"];

/// Has the stream take what is none of ours, too.
async fn widen(stage: &Stage) {
    let mut config = stage.stream().await.cached_info().config.clone();
    config.subjects.push("audit.>".to_owned());
    let widened = stage.jetstream().await.update_stream(config).await;
    widened.expect("it takes more");
}

/// Others who publish all the time, on subjects of their own and on ours.
struct Strangers {
    tasks: JoinSet<u64>,
    stop: CancellationToken,
}

impl Strangers {
    async fn start(stage: &Stage) -> Self {
        widen(stage).await;
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        for subject in ["audit.stranger", "events.order.created"] {
            let jetstream = stage.jetstream().await;
            tasks.spawn(stranger(jetstream, subject, stop.clone()));
        }
        Self { tasks, stop }
    }

    /// How many messages of theirs were stored.
    async fn finish(mut self) -> u64 {
        self.stop.cancel();
        let mut stored = 0;
        while let Some(published) = self.tasks.join_next().await {
            stored += published.expect("a stranger failed");
        }
        stored
    }
}

async fn stranger(
    jetstream: jetstream::Context,
    subject: &'static str,
    stop: CancellationToken,
) -> u64 {
    let mut stored = 0;
    while !stop.is_cancelled() {
        let published = jetstream.publish(subject, "stray".into()).await;
        match published.expect("sent").await {
            Ok(ack) if !ack.duplicate => stored += 1,
            Ok(_) | Err(_) => {}
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    stored
}

/// What the outjet of a slot has stored.
async fn stored_through(stage: &Stage, slot: &str) -> Vec<Stored> {
    let mut stored = drain::messages(&stage.jetstream().await, STREAM).await;
    let of = format!("/{slot}");
    stored.retain(|m| {
        m.header("Outjet-Source")
            .is_some_and(|source| source.ends_with(&of))
    });
    stored
}

/// Waits until all is confirmed; what that slot has stored is what was committed, in its order.
async fn assert_exact(stage: &Stage, (session, judge): (&Session, &Judge), slot: &str) {
    let flushed = session.text("SELECT pg_current_wal_flush_lsn()").await;
    let sql = format!(
        "SELECT confirmed_flush_lsn >= '{flushed}' FROM pg_replication_slots
         WHERE slot_name = '{slot}'"
    );
    session.until_text(&sql, "t", SOON).await;
    let stored = stored_through(stage, slot).await;
    let ids: Vec<String> = stored.iter().map(Stored::row_id).collect();
    judge.verdict(&ids).await.assert_exact();
    let altered = drain::altered(session, "outbox.events", &stored).await;
    assert_eq!(altered, Vec::<String>::new());
    eprintln!("{} events of {slot}, each once, in order", ids.len());
}

async fn assert_ours_exact(stage: &Stage) {
    assert_exact(stage, (&stage.session, &stage.judge), "outjet").await;
}

/// How many messages are not of an outjet.
async fn of_strangers(stage: &Stage) -> u64 {
    let stored = drain::messages(&stage.jetstream().await, STREAM).await;
    let foreign = |message: &&Stored| message.header("Outjet-Source").is_none();
    stored.iter().filter(foreign).count() as u64
}

fn assert_undisturbed(outjet: &Outjet) {
    let lines = outjet.log();
    let messages: Vec<&str> = lines
        .iter()
        .filter_map(|line| line["message"].as_str())
        .collect();
    assert_eq!(messages, UNDISTURBED, "{lines:?}");
}

/// Another database, whose outjet has a slot `other`.
struct Elsewhere {
    session: Session,
    judge: Judge,
    url: String,
    outjet: Outjet,
}

impl Elsewhere {
    async fn start(stage: &Stage) -> Self {
        stage.session.run("CREATE DATABASE elsewhere").await;
        let url = stage.world.postgres.url_as("postgres", "elsewhere");
        let judge = Judge::over(&url, "outbox.events").await;
        let output = call(stage, &url, &["setup"]).output().await;
        assert_eq!(output.code, Some(0), "{output:?}");
        let outjet = call(stage, &url, &["run", "--log-format", "json"]).spawn();
        Self {
            session: Session::connect(&url).await,
            judge,
            url,
            outjet,
        }
    }
}

fn call(stage: &Stage, url: &str, arguments: &[&str]) -> crate::harness::outjet::Builder {
    let yaml = calm(SHARED).replace("postgres: {", "postgres: {slot: other, ");
    let outjet = stage.outjet(arguments.iter().copied());
    outjet.config(yaml).env("DATABASE_URL", url)
}

async fn shared_by_two_and_strangers(nats: nats::Builder) {
    let stage = Stage::on(nats, &calm(SHARED)).await;
    let ours = stage.lead().await;
    let mut elsewhere = Elsewhere::start(&stage).await;
    elsewhere.outjet.logged("leading", SOON).await;
    let strangers = Strangers::start(&stage).await;
    let writers = stage.write(2).await;
    let theirs = crate::harness::stage::Writers::start(&elsewhere.url, 2).await;
    more_stored(&stage, 5000).await;
    writers.finish().await;
    theirs.finish().await;
    let published = strangers.finish().await;
    assert!(published > 100, "{published}");
    assert_ours_exact(&stage).await;
    let (session, judge) = (&elsewhere.session, &elsewhere.judge);
    assert_exact(&stage, (session, judge), "other").await;
    assert_eq!(of_strangers(&stage).await, published);
    assert_undisturbed(&ours);
    assert_undisturbed(&elsewhere.outjet);
    for url in [stage.world.postgres.url(), elsewhere.url] {
        let slot = ["verify", "check"].map(|command| match url.ends_with("elsewhere") {
            true => call(&stage, &url, &[command]),
            false => stage.outjet([command]),
        });
        for command in slot {
            let output = command.output().await;
            assert_eq!(output.code, Some(0), "{output:?}");
        }
    }
}

#[tokio::test]
async fn shared_stream_holds_the_events_of_two_outjets_in_their_order_among_strangers() {
    shared_by_two_and_strangers(Nats::builder()).await;
}

#[tokio::test]
async fn shared_stream_on_the_oldest_server_holds_the_events_of_two_outjets() {
    shared_by_two_and_strangers(Nats::builder().version("2.10")).await;
}

/// Troubles while others publish; ours stand there each once, in commit order. Who leads in the end
/// goes on until all is there.
async fn exact_through(nats: nats::Builder, troubles: impl AsyncFnOnce(&mut Stage) -> Outjet) {
    let mut stage = Stage::on(nats, SHARED).await;
    let strangers = Strangers::start(&stage).await;
    let writers = stage.write(3).await;
    let _outjet = troubles(&mut stage).await;
    writers.finish().await;
    let published = strangers.finish().await;
    assert!(published > 0);
    assert_ours_exact(&stage).await;
}

async fn cut_anywhere(nats: nats::Builder, seed: u64) {
    exact_through(nats, async |stage| {
        let outjet = stage.lead().await;
        cut_at_random(stage, seed).await;
        outjet
    })
    .await;
}

#[tokio::test]
async fn connections_cut_anywhere_keep_the_order_in_a_shared_stream_each_event_once() {
    cut_anywhere(Nats::builder(), 11).await;
}

#[tokio::test]
async fn connections_cut_anywhere_keep_the_order_in_a_shared_stream_of_the_oldest_server() {
    cut_anywhere(Nats::builder().version("2.10"), 12).await;
}

#[tokio::test]
async fn what_is_stored_unheard_or_delivered_late_is_in_a_shared_stream_once_and_in_order() {
    exact_through(Nats::builder(), async |stage| {
        let outjet = stage.lead().await;
        for _ in 0..4 {
            swallow_acks(stage).await;
            more_stored(stage, 200).await;
            stage.proxy.freeze();
            let connections = stage.proxy.accepted();
            until("a new connection", SOON, async || {
                let accepted = stage.proxy.accepted();
                Wait::ready_if(accepted > connections, accepted)
            })
            .await;
            stage.proxy.thaw();
            more_stored(stage, 200).await;
        }
        outjet
    })
    .await;
}

#[tokio::test]
async fn nats_may_be_killed_and_restarted_under_a_shared_stream() {
    exact_through(Nats::builder(), async |stage| {
        let outjet = stage.lead().await;
        for killed in [true, false, true, false] {
            more_stored(stage, 500).await;
            match killed {
                true => stage.world.nats.kill().await,
                false => stage.world.nats.stop().await,
            }
            stage.world.nats.start_again().await;
        }
        outjet
    })
    .await;
}

/// Others never pause: a new leader must find its place all the same.
#[tokio::test]
async fn leader_that_is_killed_is_continued_exactly_in_a_shared_stream() {
    exact_through(Nats::builder(), async |stage| {
        let mut outjet = stage.lead().await;
        for _ in 0..6 {
            more_stored(stage, 500).await;
            stage.proxy.set(Mode::Stall(Direction::ToClient));
            tokio::time::sleep(Duration::from_millis(20)).await;
            outjet.kill().await;
            stage.proxy.set(Mode::Forward);
            outjet = stage.lead().await;
        }
        outjet
    })
    .await;
}

/// As long as the server remembers ids.
#[tokio::test]
async fn leader_that_is_paused_and_wakes_up_repeats_nothing_in_a_shared_stream() {
    exact_through(Nats::builder(), async |stage| {
        let mut leader = stage.lead().await;
        for _ in 0..3 {
            more_stored(stage, 500).await;
            leader.pause().await;
            let successor = stage.lead().await;
            more_stored(stage, 500).await;
            leader.resume();
            leader.logged("standing by: another copy leads", SOON).await;
            leader.kill().await;
            leader = successor;
        }
        leader
    })
    .await;
}

/// What was stored unheard is found where it stands, by a leader as by its successor.
#[tokio::test]
async fn what_a_shared_stream_holds_is_found_after_the_server_has_forgotten_its_ids() {
    const WINDOW: Duration = Duration::from_millis(100);
    exact_through(Nats::builder(), async |stage| {
        let mut config = stage.stream().await.cached_info().config.clone();
        config.duplicate_window = WINDOW;
        let edited = stage.jetstream().await.update_stream(config).await;
        edited.expect("it forgets soon");
        let mut outjet = stage.lead().await;
        for killed in [false, true, false, true] {
            more_stored(stage, 500).await;
            stage.proxy.set(Mode::Stall(Direction::ToClient));
            more_stored(stage, 100).await;
            if killed {
                outjet.kill().await;
            }
            stage.proxy.set(Mode::Refuse);
            stage.proxy.cut();
            tokio::time::sleep(2 * WINDOW).await;
            stage.proxy.set(Mode::Forward);
            if killed {
                outjet = stage.lead().await;
            }
        }
        outjet
    })
    .await;
}

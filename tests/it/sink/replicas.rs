//! A stream on three nodes, of which one fails or gives up the lead while events are published.

use std::time::Duration;

use super::strangers::IN_FLIGHT_MAX;
use crate::harness::cluster::Cluster;
use crate::harness::nats::BATCHING;
use crate::harness::postgres::{Session, Stop};
use crate::harness::stage::{self, QUICK, SOON, STREAM, Writers};
use crate::harness::{Judge, Outjet, Postgres, Wait, drain, until};
use crate::shared::SHARED;
use crate::shared::strict::assert_each_late_at_most;

/// A busy cluster on two cores elects a new leader for some seconds, again and again.
const EVENTUALLY: Duration = Duration::from_secs(120);

/// The oldest server that is supported.
const OLDEST: Option<&str> = Some("2.10");

/// What a test of a cluster stands on.
struct Replicated {
    postgres: Postgres,
    cluster: Cluster,
    judge: Judge,
    session: Session,
    yaml: String,
}

impl Replicated {
    async fn ready(version: Option<&str>) -> Self {
        Box::pin(Self::configured(version, QUICK)).await
    }

    async fn configured(version: Option<&str>, yaml: &str) -> Self {
        let start = (Postgres::start(), Cluster::start(3, version));
        let (postgres, cluster) = tokio::join!(start.0, start.1);
        let judge = Judge::appoint(&postgres).await;
        let session = postgres.connect().await;
        let replicated = Self {
            postgres,
            cluster,
            judge,
            session,
            yaml: yaml.replace("stream: {", "stream: {replicas: 3, "),
        };
        let output = replicated.outjet("setup").output().await;
        assert_eq!(output.code, Some(0), "{output:?}");
        let jetstream = replicated.cluster.jetstream().await;
        until("three replicas", EVENTUALLY, async || {
            let stream = jetstream.get_stream(STREAM).await;
            let replicas = stream.map(|stream| stream.cached_info().config.num_replicas);
            Wait::ready_if(
                replicas.as_ref().is_ok_and(|replicas| *replicas == 3),
                replicas,
            )
        })
        .await;
        replicated
    }

    fn outjet(&self, command: &str) -> crate::harness::outjet::Builder {
        Outjet::builder()
            .args([command, "--log-format", "json"])
            .env("DATABASE_URL", self.postgres.url())
            .env("NATS_URL", self.cluster.url())
            .config(self.yaml.clone())
    }

    async fn lead(&self) -> Outjet {
        let mut outjet = self.outjet("run").spawn();
        outjet.logged("leading", SOON).await;
        outjet
    }

    /// Waits until this many more events stand in the stream.
    async fn until_more(&self, events: u64) {
        let jetstream = self.cluster.jetstream().await;
        let mut first = None;
        until("more events are stored", EVENTUALLY, async || {
            let stream = jetstream.get_stream(STREAM).await;
            let Ok(last) = stream.map(|stream| stream.cached_info().state.last_sequence) else {
                return Wait::NotYet("no leader".to_owned());
            };
            let first = *first.get_or_insert(last);
            Wait::ready_if(last >= first + events, last - first)
        })
        .await;
    }

    async fn assert_exact(&self) {
        stage::confirmed(&self.session, EVENTUALLY).await;
        let stored = drain::ids(&self.cluster.jetstream().await, STREAM).await;
        let verdict = self.judge.verdict(&stored).await;
        verdict.assert_exact();
        eprintln!("{} events, each once, in order", verdict.committed);
    }
}

async fn leader_is_killed(version: Option<&str>) {
    let mut replicated = Box::pin(Replicated::ready(version)).await;
    let _outjet = Box::pin(replicated.lead()).await;
    let writers = Writers::start(&replicated.postgres.url(), 3).await;
    for _ in 0..3 {
        replicated.until_more(300).await;
        let leader = replicated.cluster.leader(STREAM).await;
        leader.kill().await;
        Box::pin(leader.start_again()).await;
    }
    replicated.until_more(300).await;
    writers.finish().await;
    Box::pin(replicated.assert_exact()).await;
}

#[tokio::test]
async fn leader_of_three_replicas_may_be_killed_under_load() {
    leader_is_killed(None).await;
}

#[tokio::test]
async fn leader_of_three_replicas_may_be_killed_under_load_on_the_oldest_server() {
    leader_is_killed(OLDEST).await;
}

#[tokio::test]
async fn delayed_events_of_three_replicas_appear_once_though_their_rows_are_sent_again() {
    const DELAYED: &str = "OUTBOX_DELAYED";
    let mut replicated = Box::pin(Replicated::ready(Some(BATCHING))).await;
    let mut outjet = Box::pin(replicated.lead()).await;
    let emit = "SELECT string_agg(outbox.emit('order', n::text, 'placed',
          deliver_at => now() + interval '5 seconds')::text, ' ')
        FROM generate_series(1, 20) n";
    let emitted = replicated.session.text(emit).await;
    stage::confirmed(&replicated.session, EVENTUALLY).await;
    outjet.kill().await;
    replicated.cluster.leader(DELAYED).await.kill().await;
    replicated.postgres.restart(Stop::Immediate).await;
    replicated.session = replicated.postgres.connect().await;
    let _outjet = Box::pin(replicated.lead()).await;
    replicated.session.text(emit).await;
    stage::confirmed(&replicated.session, EVENTUALLY).await;
    let jetstream = replicated.cluster.jetstream().await;
    let mut appeared = until("they are due", EVENTUALLY, async || {
        let mut kept = drain::messages(&jetstream, DELAYED).await;
        kept.retain(|message| message.subject.starts_with("delayed."));
        match kept.len() {
            0..40 => Wait::NotYet(kept.len().to_string()),
            _ => Wait::Ready(kept),
        }
    })
    .await;
    assert_eq!(appeared.len(), 40);
    appeared.retain(|message| emitted.contains(message.header("Outjet-Id").expect("an id")));
    assert_eq!(appeared.len(), 20);
}

async fn leader_steps_down(replicated: Replicated) {
    let _outjet = Box::pin(step_down(&replicated)).await;
    Box::pin(replicated.assert_exact()).await;
}

/// Returns who leads in the end.
async fn step_down(replicated: &Replicated) -> Outjet {
    let outjet = Box::pin(replicated.lead()).await;
    let writers = Writers::start(&replicated.postgres.url(), 3).await;
    let jetstream = replicated.cluster.jetstream().await;
    for _ in 0..5 {
        replicated.until_more(300).await;
        // Nobody answers while there is no leader.
        until("the leader steps down", EVENTUALLY, async || {
            let subject = format!("STREAM.LEADER.STEPDOWN.{STREAM}");
            let answer = jetstream.request(subject, &serde_json::json!({})).await;
            let answer: Result<serde_json::Value, _> = answer;
            let done = answer
                .as_ref()
                .is_ok_and(|answer| answer["success"] == true);
            Wait::ready_if(done, answer)
        })
        .await;
    }
    replicated.until_more(300).await;
    writers.finish().await;
    outjet
}

/// The old leader takes no more, and the new one takes what comes next.
async fn leader_of_a_shared_stream_steps_down(version: Option<&str>) {
    let replicated = Box::pin(Replicated::configured(version, SHARED)).await;
    let _outjet = Box::pin(step_down(&replicated)).await;
    stage::confirmed(&replicated.session, EVENTUALLY).await;
    let stored = drain::ids(&replicated.cluster.jetstream().await, STREAM).await;
    let committed = replicated.judge.committed().await;
    assert_each_late_at_most(&committed, &stored, IN_FLIGHT_MAX);
}

#[tokio::test]
async fn leader_of_a_shared_stream_of_three_replicas_may_step_down_each_event_is_there_once() {
    leader_of_a_shared_stream_steps_down(None).await;
}

#[tokio::test]
async fn leader_of_a_shared_stream_of_three_replicas_may_step_down_on_the_oldest_server() {
    leader_of_a_shared_stream_steps_down(OLDEST).await;
}

#[tokio::test]
async fn leader_of_three_replicas_may_step_down_under_load() {
    leader_steps_down(Box::pin(Replicated::ready(None)).await).await;
}

#[tokio::test]
async fn leader_of_three_replicas_may_step_down_under_load_on_the_oldest_server() {
    leader_steps_down(Box::pin(Replicated::ready(OLDEST)).await).await;
}

#[tokio::test]
async fn leader_of_three_replicas_may_step_down_between_the_messages_of_atomic_transactions() {
    let yaml = QUICK.replace("publish: {", "publish: {transactions: atomic, ");
    let replicated = Box::pin(Replicated::configured(Some(BATCHING), &yaml)).await;
    leader_steps_down(replicated).await;
}

async fn one_node_is_down(version: Option<&str>) {
    let mut replicated = Box::pin(Replicated::ready(version)).await;
    replicated.cluster.follower(STREAM).await.kill().await;
    let _outjet = Box::pin(replicated.lead()).await;
    let writers = Writers::start(&replicated.postgres.url(), 3).await;
    replicated.until_more(3000).await;
    writers.finish().await;
    Box::pin(replicated.assert_exact()).await;
}

#[tokio::test]
async fn two_of_three_nodes_are_enough() {
    one_node_is_down(None).await;
}

#[tokio::test]
async fn two_of_three_nodes_are_enough_on_the_oldest_server() {
    one_node_is_down(OLDEST).await;
}

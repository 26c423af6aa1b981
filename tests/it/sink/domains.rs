//! A hub and a leaf node, each with a JetStream domain and a stream of the same name on the same
//! subjects. outjet is connected to the leaf and publishes into the hub's stream: both store what
//! it publishes, both answer, and the leaf is the first.

use async_nats::jetstream::{self, stream};
use serde_json::Value;

use crate::delayed::DELAYED;
use crate::harness::drain;
use crate::harness::nats::BATCHING;
use crate::harness::port::Port;
use crate::harness::stage::{SOON, STREAM, Stage};
use crate::harness::{Nats, Postgres, Wait, World, nats, until};

/// The duplicate window cannot help.
const CONFIG: &str = "
postgres: {takeover_after: 3s}
nats: {connect_timeout: 2s, jetstream_domain: hub}
stream: {duplicate_window: 100ms}
publish: {ack_timeout: 1s}
";

/// [`CONFIG`] with transactions that are stored as a whole.
const ATOMIC: &str = "
postgres: {takeover_after: 3s}
nats: {connect_timeout: 2s, jetstream_domain: hub}
stream: {duplicate_window: 100ms}
publish: {ack_timeout: 1s, transactions: atomic}
";

const LETTERS: &str = "OUTBOX_DLQ";

/// The hub, and a stage on the leaf.
struct Twins {
    hub: Nats,
    stage: Stage,
    _joint: Port,
}

impl Twins {
    async fn of(nats: nats::Builder, yaml: &str) -> Self {
        let joint = Port::free();
        let at = format!("127.0.0.1:{}", joint.number());
        let hub = nats
            .clone()
            .jetstream("domain: hub")
            .config(&format!("server_name: hub\nleafnodes {{listen: \"{at}\"}}"));
        let hub = hub.start().await;
        let leaf = nats.jetstream("domain: leaf").config(&format!(
            "server_name: leaf\nleafnodes {{remotes: [{{url: \"nats://{at}\"}}]}}"
        ));
        let world = World::with(Postgres::builder(), leaf).await;
        let through = jetstream::with_domain(world.nats.connect().await, "hub");
        until("the leaf has joined the hub", SOON, async || {
            let account = through.query_account().await;
            Wait::ready_if(account.is_ok(), account.err())
        })
        .await;
        let stage = Stage::with(world, yaml).await;
        Self {
            hub,
            stage,
            _joint: joint,
        }
    }

    /// Makes the leaf's stream of this name as the hub's is.
    async fn twin(&self, name: &str) {
        let ours = self.hub.jetstream().await.get_stream(name).await;
        let config = ours.expect("the hub's").cached_info().config.clone();
        let config = stream::Config {
            metadata: Default::default(),
            ..config
        };
        let made = self.stage.jetstream().await.create_stream(config).await;
        made.expect("the leaf's");
    }

    /// Waits until the leaf's stream holds as many messages.
    async fn stored_in_the_leaf(&self, name: &str, messages: u64) {
        let jetstream = self.stage.jetstream().await;
        until("the leaf stores them", SOON, async || {
            let found = jetstream.get_stream(name).await.expect("the leaf's");
            let found = found.cached_info().state.messages;
            Wait::ready_if(found >= messages, found)
        })
        .await;
    }

    /// What the hub's stream of this name holds.
    async fn in_the_hub(&self, name: &str) -> Vec<drain::Stored> {
        drain::messages(&self.hub.jetstream().await, name).await
    }

    /// Panics unless the hub's stream is what was committed, once it is confirmed.
    async fn assert_exact(&self) {
        self.stage.confirmed().await;
        let stored = drain::ids(&self.hub.jetstream().await, STREAM).await;
        self.stage.judge.verdict(&stored).await.assert_exact();
    }
}

#[tokio::test]
async fn events_that_only_a_stream_of_another_domain_acknowledged_are_not_confirmed() {
    only_the_leaf(Nats::builder()).await;
}

#[tokio::test]
async fn events_that_only_another_domain_acknowledged_are_not_confirmed_on_the_oldest_server() {
    only_the_leaf(Nats::builder().version("2.10")).await;
}

async fn only_the_leaf(nats: nats::Builder) {
    let mut twins = Twins::of(nats, CONFIG).await;
    twins.twin(STREAM).await;
    let _outjet = twins.stage.lead().await;
    twins.hub.kill().await;
    twins.stage.commit(1..=1000).await;
    twins.stored_in_the_leaf(STREAM, 1000).await;
    twins.hub.start_again().await;
    twins.assert_exact().await;
    // The two are not in step any more: the leaf's refuses all that comes.
    twins.stage.commit(1001..=2000).await;
    twins.assert_exact().await;
}

#[tokio::test]
async fn answers_of_another_domain_neither_settle_nor_disturb_and_are_told_once() {
    let twins = Twins::of(Nats::builder(), CONFIG).await;
    twins.twin(STREAM).await;
    let outjet = twins.stage.lead().await;
    for number in 1..=20 {
        twins.stage.commit(number..=number).await;
    }
    twins.assert_exact().await;
    let warned = |line: &Value| line["level"] == "WARN";
    let warnings: Vec<Value> = outjet.log().into_iter().filter(warned).collect();
    assert_eq!(warnings.len(), 1, "{}", outjet.stderr());
    let told = "a stream of another JetStream domain answers, too; it stores what we publish";
    assert_eq!(warnings[0]["message"], told);
    assert_eq!(warnings[0]["twin"], "\"OUTBOX\" of domain \"leaf\"");
}

#[tokio::test]
async fn stream_of_another_domain_that_refuses_what_ours_stores_costs_nothing() {
    let twins = Twins::of(Nats::builder(), CONFIG).await;
    let run = twins.stage.outjet(["run", "--log-format", "json"]);
    let mut outjet = run.env("NATS_URL", twins.hub.url()).spawn();
    outjet.logged("leading", SOON).await;
    twins.stage.commit(1..=5).await;
    twins.assert_exact().await;
    // Empty, so that nothing fits there.
    twins.twin(STREAM).await;
    twins.stage.commit(6..=1000).await;
    twins.assert_exact().await;
    assert_eq!(twins.stage.last_sequence().await, 0);
}

#[tokio::test]
async fn transaction_that_only_a_stream_of_another_domain_acknowledged_is_not_confirmed() {
    let mut twins = Twins::of(Nats::builder().version(BATCHING), ATOMIC).await;
    twins.twin(STREAM).await;
    let _outjet = twins.stage.lead().await;
    twins.hub.kill().await;
    twins.stage.commit(1..=9).await;
    twins.stored_in_the_leaf(STREAM, 9).await;
    twins.hub.start_again().await;
    twins.assert_exact().await;
}

#[tokio::test]
async fn dead_letter_that_only_a_stream_of_another_domain_acknowledged_is_not_confirmed() {
    let mut twins = Twins::of(Nats::builder(), CONFIG).await;
    twins.twin(LETTERS).await;
    let _outjet = twins.stage.lead().await;
    twins.hub.kill().await;
    let sql = "SELECT outbox.emit('order', '1', 'bad', topic => repeat('x', 2000))";
    twins.stage.session.text(sql).await;
    twins.stored_in_the_leaf(LETTERS, 1).await;
    twins.hub.start_again().await;
    twins.stage.confirmed().await;
    assert_eq!(twins.in_the_hub(LETTERS).await.len(), 1);
}

#[tokio::test]
async fn delayed_event_that_only_a_stream_of_another_domain_acknowledged_is_not_confirmed() {
    let mut twins = Twins::of(Nats::builder().version(BATCHING), CONFIG).await;
    let _outjet = twins.stage.lead().await;
    let sql = "SELECT outbox.emit('order', '1', 'late', deliver_at => now() + interval '1 hour')";
    // The stream is made for the first event; each takes two messages.
    twins.stage.session.text(sql).await;
    twins.stage.confirmed().await;
    twins.twin(DELAYED).await;
    twins.hub.kill().await;
    twins.stage.session.text(sql).await;
    twins.stored_in_the_leaf(DELAYED, 2).await;
    twins.hub.start_again().await;
    twins.stage.confirmed().await;
    assert_eq!(twins.in_the_hub(DELAYED).await.len(), 4);
}

#[tokio::test]
async fn check_fails_where_two_streams_answer_and_stores_nothing() {
    let twins = Twins::of(Nats::builder(), CONFIG).await;
    let alone = twins.stage.outjet(["check"]).output().await;
    assert_eq!(alone.code, Some(0), "{alone:?}");
    twins.twin(STREAM).await;
    let check = twins.stage.outjet(["check"]).output().await;
    assert_eq!(check.code, Some(1), "{check:?}");
    let said = "FAIL  stream answers        2 streams answer what is published to \
                \"events.outjet-check\"";
    assert!(check.stdout.contains(said), "{check:?}");
    assert!(check.stdout.contains("ours is in domain hub"), "{check:?}");
    assert_eq!(twins.in_the_hub(STREAM).await.len(), 0);
    assert_eq!(twins.stage.last_sequence().await, 0);
}

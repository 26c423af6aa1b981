//! `stream.ingress: private`: nobody else writes into our stream, although everybody may publish to
//! its subjects.

use async_nats::jetstream;
use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::stream::{Config, SubjectTransform};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::strangers::NOTICED;
use crate::harness::drain::{self, Stored};
use crate::harness::nats::BATCHING;
use crate::harness::outjet::Output;
use crate::harness::stage::{QUICK, SOON, STREAM, Stage};
use crate::harness::{Nats, nats};

const LETTERS: &str = "OUTBOX_DLQ";

/// The README's permissions, and those of `outjet setup`; everybody else may do all but this.
const PERMISSIONS: &str = r#"
no_auth_user: shop
authorization { users: [
  { user: shop, password: shop, permissions: { publish: { deny: ["_outjet.>"] } } }
  { user: outjet, password: s3cret, permissions: {
      publish: ["_outjet.>", "$JS.API.STREAM.INFO.OUTBOX", "$JS.API.STREAM.MSG.GET.OUTBOX",
                "$JS.API.STREAM.INFO.OUTBOX_DLQ", "$JS.API.STREAM.MSG.GET.OUTBOX_DLQ",
                "$JS.API.STREAM.INFO.OUTBOX_DELAYED", "$JS.API.STREAM.MSG.GET.OUTBOX_DELAYED",
                "$KV.OUTJET_OUTBOX.>", "$JS.API.STREAM.INFO.KV_OUTJET_OUTBOX",
                "$JS.API.STREAM.MSG.GET.KV_OUTJET_OUTBOX",
                "$JS.API.STREAM.CREATE.OUTBOX", "$JS.API.STREAM.CREATE.OUTBOX_DLQ",
                "$JS.API.STREAM.CREATE.OUTBOX_DELAYED", "$JS.API.STREAM.CREATE.KV_OUTJET_OUTBOX"]
      subscribe: ["_INBOX.>"]
  } }
] }
"#;

fn private(yaml: &str) -> String {
    let user = "nats: {user: outjet, password: s3cret, ";
    yaml.replace("stream: {", "stream: {ingress: private, ")
        .replace("nats: {", user)
}

async fn private_stage(nats: nats::Builder, yaml: &str) -> Stage {
    Stage::on(nats.config(PERMISSIONS), &private(yaml)).await
}

/// Publishes without a pause to the subjects of both streams until it is told to stop, with and
/// without asking for an answer; returns how often.
async fn stranger(jetstream: jetstream::Context, stop: CancellationToken) -> u64 {
    let client = jetstream.client();
    let mut published = 0;
    while !stop.is_cancelled() {
        for subject in ["events.order.created", "dlq.events.order.created"] {
            let unheard = client.publish(subject, "stray".into());
            unheard.await.expect("sent");
            let heard = jetstream.publish(subject, "stray".into()).await;
            let refused = heard.expect("sent").await.expect_err("nobody takes it");
            assert_eq!(refused.kind(), PublishErrorKind::StreamNotFound);
            published += 2;
        }
    }
    published
}

async fn strangers_under_load(nats: nats::Builder) {
    // A busy machine must not look like a trouble that strangers make.
    let patient = QUICK.replace("ack_timeout: 1s", "ack_timeout: 40s");
    let stage = private_stage(nats, &patient).await;
    let outjet = stage.lead().await;
    let writers = stage.write(2).await;
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(stranger(stage.jetstream().await, stop.clone()));
    stage.until_sequence(3000).await;
    stop.cancel();
    let published = tasks.join_next().await.expect("a task").expect("its end");
    let committed = writers.finish().await;
    assert!(published > 100, "{published}");
    stage.assert_exact().await;
    assert_eq!(stage.last_sequence().await, committed);
    // No epoch ended: a stranger costs nothing.
    let troubles = [NOTICED, "events do not get through"];
    let log = outjet.stderr();
    assert!(
        !troubles.iter().any(|trouble| log.contains(trouble)),
        "{log}"
    );
    let stored = drain::messages(&stage.jetstream().await, STREAM).await;
    assert!(stored.iter().all(|m| m.subject == "events.order.created"));
    assert_eq!(pending(&stage, "events.order.>").await, committed);
}

/// How many messages a consumer of a subject is about to get.
async fn pending(stage: &Stage, subject: &str) -> u64 {
    let consumer = pull::Config {
        filter_subject: subject.to_owned(),
        ..pull::Config::default()
    };
    let consumer = stage.stream().await.create_consumer(consumer).await;
    consumer.expect("a consumer").cached_info().num_pending
}

#[tokio::test]
async fn private_stream_takes_nothing_from_strangers_and_they_cost_nothing() {
    strangers_under_load(Nats::builder()).await;
}

#[tokio::test]
async fn private_stream_takes_nothing_from_strangers_on_the_oldest_server() {
    strangers_under_load(Nats::builder().version("2.10")).await;
}

#[tokio::test]
async fn what_a_private_stream_cannot_take_is_a_dead_letter_under_its_public_subject() {
    let small = Nats::builder().config("max_payload: 100000");
    let stage = private_stage(small, QUICK).await;
    let _outjet = stage.lead().await;
    let emit = "SELECT outbox.emit('order', '1', 'large',
        payload_raw => convert_to(repeat('x', 100000), 'UTF8'))";
    stage.session.text(emit).await;
    stage.commit(1..=3).await;
    stage.confirmed().await;
    let letters = drain::messages(&stage.jetstream().await, LETTERS).await;
    let subject = |message: &Stored| message.subject.clone();
    let letters: Vec<String> = letters.iter().map(subject).collect();
    assert_eq!(letters, ["dlq.events.order.large"]);
    assert_eq!(stage.last_sequence().await, 3);
}

#[tokio::test]
async fn transaction_stands_as_a_whole_in_a_private_stream() {
    let atomic = QUICK.replace("publish: {", "publish: {transactions: atomic, ");
    let batching = Nats::builder().version(BATCHING);
    let stage = private_stage(batching, &atomic).await;
    let _outjet = stage.lead().await;
    stage.commit(1..=100).await;
    stage.assert_exact().await;
    let stored = drain::messages(&stage.jetstream().await, STREAM).await;
    let together = |message: &Stored| message.header("Nats-Batch-Id").is_some();
    assert!(stored.iter().all(together));
    assert_eq!(stage.last_sequence().await, 100);
}

/// Changes a stream as its owner would.
async fn edit(stage: &Stage, name: &str, change: impl FnOnce(&mut Config)) {
    let jetstream = stage.jetstream().await;
    let stream = jetstream.get_stream(name).await.expect("the stream");
    let mut config = stream.cached_info().config.clone();
    change(&mut config);
    jetstream.update_stream(config).await.expect("updated");
}

fn transform(name: &str) -> Option<SubjectTransform> {
    Some(SubjectTransform {
        source: format!("_outjet.{name}.>"),
        destination: ">".to_owned(),
    })
}

async fn refused(stage: &Stage, fix: &str) {
    let Output { code, stderr, .. } = stage.outjet(["setup"]).output().await;
    assert_eq!(code, Some(78), "{stderr}");
    assert!(stderr.contains(fix), "{stderr}");
    let check = stage.outjet(["check"]).output().await;
    assert_eq!(check.code, Some(1), "{check:?}");
    assert!(check.stdout.contains(fix), "{check:?}");
}

const MAKE_PRIVATE: &str = "`nats stream edit OUTBOX --subjects '_outjet.OUTBOX.events.>' \
    --transform-source '_outjet.OUTBOX.>' --transform-destination '>'`";
const MAKE_PUBLIC: &str = "`nats stream edit OUTBOX --subjects 'events.>' --no-transform`";

#[tokio::test]
async fn stream_becomes_private_under_a_leader_without_losing_an_event() {
    let mut stage = Stage::ready().await;
    let mut outjet = stage.lead().await;
    let writers = stage.write(1).await;
    stage.until_sequence(100).await;
    let private = QUICK.replace("stream: {", "stream: {ingress: private, ");
    stage.configure(&private);
    refused(&stage, MAKE_PRIVATE).await;
    edit(&stage, STREAM, |config| {
        config.subjects = vec!["_outjet.OUTBOX.events.>".to_owned()];
        config.subject_transform = transform(STREAM);
    })
    .await;
    let halted = "halted: stream \"OUTBOX\" does not take events as stream.ingress says";
    let halted = outjet.logged(halted, SOON).await;
    let fix = halted["fix"].as_str().unwrap_or_default();
    assert!(fix.starts_with(MAKE_PUBLIC), "{fix}");
    outjet.terminate(SOON).await;
    // The dead letters come next.
    refused(&stage, "--transform-source '_outjet.OUTBOX_DLQ.>'").await;
    edit(&stage, LETTERS, |config| {
        let own = ["dlq.events.>", "dlq._invalid.OUTBOX"];
        config.subjects = own.map(|s| format!("_outjet.OUTBOX_DLQ.{s}")).to_vec();
        config.subject_transform = transform(LETTERS);
    })
    .await;
    let setup = stage.outjet(["setup"]).output().await;
    assert_eq!(setup.code, Some(0), "{setup:?}");
    let _outjet = stage.lead().await;
    stage.commit(1..=3).await;
    writers.finish().await;
    stage.assert_exact().await;
}

#[tokio::test]
async fn stream_that_is_private_in_part_is_refused_with_the_command_that_mends_it() {
    let mut stage = Stage::ready().await;
    let private = QUICK.replace("stream: {", "stream: {ingress: private, ");
    edit(&stage, STREAM, |config| {
        config.subjects.push("_outjet.OUTBOX.events.>".to_owned());
        config.subject_transform = transform(STREAM);
    })
    .await;
    refused(&stage, MAKE_PUBLIC).await;
    stage.configure(&private);
    refused(&stage, MAKE_PRIVATE).await;
    edit(&stage, STREAM, |config| {
        config.subjects = vec!["_outjet.OUTBOX.events.>".to_owned()];
        config.subject_transform = None;
    })
    .await;
    refused(&stage, MAKE_PRIVATE).await;
}

//! What becomes of large events where the bucket is missing, full or forbidden, and where there is
//! to be none.

use super::*;
use crate::harness::outjet::Output;

/// Runs it until it halts, and returns what it says.
async fn halts(delivery: &Delivery) -> String {
    let run = delivery.outjet(["run", "--exit-on-halt"]);
    let Output { code, stderr, .. } = run.output().await;
    assert_eq!(code, Some(65), "{stderr}");
    stderr
}

#[tokio::test]
async fn setup_makes_the_bucket_and_check_misses_it() {
    let kept = "publish: {on_oversize: object_store, claim_check: {bucket: LARGE, max_age: 7d}}";
    let mut delivery = ready(kept).await;
    let jetstream = delivery.world.nats.jetstream().await;
    let stream = jetstream.get_stream("OBJ_LARGE").await.expect("its stream");
    let config = &stream.cached_info().config;
    assert_eq!(config.subjects, ["$O.LARGE.C.>", "$O.LARGE.M.>"]);
    assert_eq!(config.max_age.as_secs(), 7 * 24 * 60 * 60);
    let check = delivery.outjet(["check"]).output().await;
    assert_eq!(check.code, Some(0), "{check:?}");
    let found = "ok    stream bodies         OBJ_LARGE, 0 messages";
    assert!(check.stdout.contains(found), "{check:?}");
    let dry = delivery.outjet(["setup", "--dry-run"]).output().await;
    let planned = "-- stream OBJ_LARGE, unless it exists";
    assert!(dry.stdout.contains(planned), "{dry:?}");

    delivery.configure(
        &format!("{CONFIG}nats: {{name: x}}").replace("stream: {", "stream: {manage: check, "),
    );
    let missing = "stream \"OBJ_OUTJET_BODIES\" does not exist";
    let check = delivery.outjet(["check"]).output().await;
    assert_eq!(check.code, Some(1), "{check:?}");
    assert!(check.stdout.contains(missing), "{check:?}");
    let said = halts(&delivery).await;
    assert!(said.contains(missing), "{said}");
    assert!(
        said.contains("fix:   `outjet setup`, or set stream.manage to create"),
        "{said}"
    );
}

#[tokio::test]
async fn stream_that_is_no_bucket_is_refused() {
    let mut delivery = ready("").await;
    let jetstream = delivery.world.nats.jetstream().await;
    let stream = async_nats::jetstream::stream::Config {
        name: format!("OBJ_{BUCKET}"),
        subjects: vec![format!("$O.{BUCKET}.>")],
        ..Default::default()
    };
    jetstream.create_stream(stream).await.expect("a stream");
    delivery.configure(CONFIG);
    let said = halts(&delivery).await;
    let lacks = "stream \"OBJ_OUTJET_BODIES\" keeps no bodies: it lacks allow_rollup_hdrs";
    assert!(said.contains(lacks), "{said}");
}

#[tokio::test]
async fn full_bucket_keeps_what_follows_in_postgres_until_there_is_room() {
    let delivery = ready(CONFIG).await;
    let jetstream = delivery.world.nats.jetstream().await;
    let limit = async |bytes| {
        let stream = jetstream.get_stream(format!("OBJ_{BUCKET}")).await;
        let mut config = stream.expect("a bucket").cached_info().config.clone();
        config.max_bytes = bytes;
        jetstream.update_stream(&config).await.expect("edited");
    };
    let mut outjet = delivery.run();
    delivery.session.run(&transaction(0)).await;
    delivery.confirmed().await;
    limit(500_000).await;
    delivery.session.run(&transaction(1)).await;
    let said = "OBJ_OUTJET_BODIES does not take the body of event";
    let line = |line: &Value| line.to_string().contains("maximum bytes exceeded");
    until("it says that the bucket is full", SOON, async || {
        let lines = outjet.log();
        let told = lines
            .iter()
            .any(|told| told.to_string().contains(said) && line(told));
        Wait::ready_if(told, lines.len())
    })
    .await;
    let stored = delivery.stored().await;
    assert_eq!(stored.len(), 7 + 3, "what stands before it is stored");
    assert_eq!(outjet.exited(), None);
    limit(1_000_000).await;
    delivery.verdict().await.assert_exact();
    let stored = delivery.stored().await;
    assert_eq!(body_of(&delivery, &stored[10]).await.len(), 300_000);
    let bucket = jetstream.get_stream(format!("OBJ_{BUCKET}")).await;
    let bucket = bucket.expect("a bucket").cached_info().state.clone();
    assert_eq!(
        bucket.messages,
        2 * (3 + 1),
        "no chunk of what was refused is left"
    );
}

#[tokio::test]
async fn body_larger_than_the_whole_bucket_is_a_dead_letter() {
    let delivery = ready(CONFIG).await;
    let jetstream = delivery.world.nats.jetstream().await;
    let bucket = jetstream.get_stream(format!("OBJ_{BUCKET}")).await;
    let mut config = bucket.expect("a bucket").cached_info().config.clone();
    config.max_bytes = 299_999;
    jetstream.update_stream(&config).await.expect("edited");
    let _outjet = delivery.run();
    delivery.session.run(&transaction(0)).await;
    delivery.confirmed().await;
    let letters = drain::messages(&jetstream, "OUTBOX_DLQ").await.len();
    assert_eq!((delivery.count().await, letters), (6, 1));
}

#[tokio::test]
async fn event_whose_headers_alone_are_too_large_is_a_dead_letter_still() {
    let delivery = ready(CONFIG).await;
    let _outjet = delivery.run();
    let sql = "SELECT outbox.emit('order', '1', 'bad', to_jsonb(repeat('x', 200000)),
        headers => jsonb_build_object('X', repeat('x', 70000)))";
    delivery.session.run(sql).await;
    delivery.session.run(&transaction(0)).await;
    delivery.confirmed().await;
    let jetstream = delivery.world.nats.jetstream().await;
    let letters = drain::messages(&jetstream, "OUTBOX_DLQ").await;
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].header("Outjet-Reason"), Some("too_large"));
    assert_eq!(
        (delivery.count().await, objects(&delivery).await.len()),
        (7, 1)
    );
}

#[tokio::test]
async fn large_events_halt_or_become_dead_letters_apart_from_other_bad_ones() {
    let bad = r#"SELECT outbox.emit('order', '1', 'bad', headers => '["no object"]')"#;
    let mut delivery = ready("publish: {on_reject: halt, on_oversize: dead_letter}").await;
    delivery.session.run(&transaction(0)).await;
    delivery.session.run(bad).await;
    let said = halts(&delivery).await;
    assert!(said.contains("publish.on_reject is halt"), "{said}");
    let jetstream = delivery.world.nats.jetstream().await;
    let letters = async || drain::messages(&jetstream, "OUTBOX_DLQ").await.len();
    assert_eq!((delivery.count().await, letters().await), (6, 1));

    delivery.configure("publish: {on_oversize: halt}");
    delivery.session.run(&transaction(1)).await;
    let said = halts(&delivery).await;
    assert!(said.contains("publish.on_oversize is halt"), "{said}");
    assert_eq!((delivery.count().await, letters().await), (9, 2));
}

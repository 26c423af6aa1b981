//! The rights on the bucket of the record: found missing by `outjet check`, and done without.

use super::*;

/// What the record takes.
const BUCKET: [&str; 3] = [
    "$KV.OUTJET_OUTBOX.>",
    "$JS.API.STREAM.INFO.KV_OUTJET_OUTBOX",
    "$JS.API.STREAM.MSG.GET.KV_OUTJET_OUTBOX",
];

/// All permissions that a fix names, but for some.
async fn all_but(denied: &[&str]) -> String {
    let site = as_restricted("\"nothing\"", "\"_INBOX_app.>\"").await;
    let (publish, _) = named(&halted(&site.halts().await).2);
    let allowed = publish.split(", ").filter(|subject| {
        let subject = subject.trim_matches('"');
        !denied.contains(&subject)
    });
    let allowed: Vec<&str> = allowed.collect();
    let count = publish.split(", ").count();
    assert_eq!(allowed.len() + denied.len(), count, "{publish}");
    allowed.join(", ")
}

fn warnings(log: &str) -> Vec<Value> {
    let lines = log
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    lines
        .filter(|line: &Value| line["level"] == "WARN")
        .collect()
}

async fn stored(site: &Site) -> u64 {
    let admin = ConnectOptions::with_user_and_password("admin".into(), "admin".into());
    let admin = admin.connect(site.world.nats.url()).await;
    messages(admin.expect("connected")).await
}

#[tokio::test]
async fn check_warns_of_each_right_on_the_bucket_that_is_missing_and_writes_nothing() {
    let revision = async |site: &Site| {
        let admin = ConnectOptions::with_user_and_password("admin".into(), "admin".into());
        let admin = admin.connect(site.world.nats.url()).await;
        let bucket = jetstream::new(admin.expect("connected"));
        let bucket = bucket.get_stream("KV_OUTJET_OUTBOX").await;
        bucket
            .expect("the bucket")
            .cached_info()
            .state
            .last_sequence
    };
    for right in BUCKET {
        let allowed = all_but(&[right]).await;
        let site = as_restricted(&allowed, "\"_INBOX_app.>\"").await;
        let before = revision(&site).await;
        let check = site.outjet(["check"]).output().await;
        assert_eq!(check.code, Some(0), "{right}: {check:?}");
        let said = &check.stdout;
        let warned = "warn  stream record         NATS at ";
        assert!(said.contains(warned), "{right}: {said}");
        let denied = format!("to \"{}", right.trim_end_matches('>'));
        assert!(said.contains(&denied), "{right}: {said}");
        for named in BUCKET {
            assert!(said.contains(named), "{right}: {said}");
        }
        assert_eq!(revision(&site).await, before, "{right}");
    }
}

#[tokio::test]
async fn leader_that_may_not_see_what_is_delayed_halts_with_the_permission_at_a_delayed_event() {
    let denied = "$JS.API.STREAM.INFO.OUTBOX_DELAYED";
    let allowed = all_but(&[denied]).await;
    let site = as_restricted(&allowed, "\"_INBOX_app.>\"").await;
    site.commit().await;
    let emit = "SELECT outbox.emit('order', '1', 'late', deliver_at => now() + interval '1 day')";
    site.session.text(emit).await;
    let (_, cause, fix) = halted(&site.halts().await);
    assert!(cause.contains(denied), "{cause}");
    assert!(fix.contains(denied), "{fix}");
}

#[tokio::test]
async fn user_that_delays_nothing_needs_no_rights_on_what_is_delayed() {
    let denied = [
        "$JS.API.STREAM.INFO.OUTBOX_DELAYED",
        "$JS.API.STREAM.MSG.GET.OUTBOX_DELAYED",
    ];
    let allowed = all_but(&denied).await;
    let mut site = as_restricted(&allowed, "\"_INBOX_app.>\"").await;
    site.yaml = format!("{APP}\npublish: {{delayed: now}}");
    let emit = "SELECT outbox.emit('order', '1', 'late', deliver_at => now() + interval '1 day')";
    for _ in 0..3 {
        site.session.text(emit).await;
    }
    let _outjet = site.outjet(["run"]).spawn();
    site.confirmed().await;
    assert_eq!(stored(&site).await, 1 + 3);
}

#[tokio::test]
async fn user_without_rights_on_the_bucket_publishes_each_event_once_and_is_warned_once() {
    let allowed = all_but(&BUCKET).await;
    let site = as_restricted(&allowed, "\"_INBOX_app.>\"").await;
    let mut outjet = site.outjet(["run", "--log-format", "json"]).spawn();
    outjet.logged("leading", SOON).await;
    for _ in 0..50 {
        site.commit().await;
    }
    site.confirmed().await;
    let said = warnings(&outjet.stderr());
    assert_eq!(said.len(), 1, "{said:?}");
    let text = said[0].to_string();
    assert!(text.contains("is not recorded"), "{text}");
    assert!(text.contains("KV_OUTJET_OUTBOX"), "{text}");
    // Killed, it searches the stream for what Postgres sends again.
    outjet.kill().await;
    let outjet = site.outjet(["run", "--log-format", "json"]).spawn();
    site.commit().await;
    site.confirmed().await;
    assert_eq!(stored(&site).await, 1 + 50 + 1);
    assert_eq!(warnings(&outjet.stderr()).len(), 1, "{}", outjet.stderr());
}

#[tokio::test]
async fn each_right_on_the_bucket_may_lack_and_no_event_is_lost_or_doubled() {
    for right in BUCKET {
        let allowed = all_but(&[right]).await;
        let site = as_restricted(&allowed, "\"_INBOX_app.>\"").await;
        for _ in 0..2 {
            let mut outjet = site.outjet(["run", "--log-format", "json"]).spawn();
            outjet.logged("leading", SOON).await;
            site.commit().await;
            site.confirmed().await;
            let said = warnings(&outjet.stderr());
            assert_eq!(said.len(), 1, "{right}: {said:?}");
            outjet.kill().await;
        }
        assert_eq!(stored(&site).await, 1 + 2, "{right}");
        let status = site.outjet(["status"]).output().await;
        assert_eq!(status.code, Some(0), "{right}: {status:?}");
    }
}

#[tokio::test]
async fn rights_on_the_bucket_that_are_taken_away_end_the_term_and_it_goes_on_without_the_record() {
    let allowed = all_but(&[]).await;
    let mut site = as_restricted(&allowed, "\"_INBOX_app.>\"").await;
    site.yaml = format!("{APP}postgres: {{takeover_after: 5s}}\n");
    let mut outjet = site.outjet(["run", "--log-format", "json"]).spawn();
    outjet.logged("leading", SOON).await;
    site.commit().await;
    site.confirmed().await;
    let usual = site.world.nats.configuration();
    let mut denied = usual.clone();
    for right in BUCKET {
        denied = denied.replace(&format!(", \"{right}\""), "");
    }
    site.world.nats.configure(&denied);
    site.world.nats.reload();
    site.commit().await;
    outjet
        .logged("the record is not written: nothing is confirmed", SOON)
        .await;
    // What is committed now is stored, and stays unconfirmed in this term.
    let before = stored(&site).await;
    let written = site
        .session
        .text("SELECT pg_current_wal_insert_lsn()")
        .await;
    site.commit().await;
    until("it is stored", SOON, async || {
        let now = stored(&site).await;
        Wait::ready_if(now > before, now)
    })
    .await;
    let unconfirmed =
        format!("SELECT confirmed_flush_lsn <= '{written}' FROM pg_replication_slots");
    assert_eq!(site.session.text(&unconfirmed).await, "t");
    assert_eq!(outjet.stderr().matches("\"leading\"").count(), 1);
    let without =
        "what is settled is not recorded: after a restart it is searched for in the stream";
    outjet.logged(without, SOON).await;
    // The connection, the writes, the end of the term, and the term without it: each once.
    let said = warnings(&outjet.stderr());
    assert_eq!(said.len(), 4, "{said:?}");
    site.confirmed().await;
    let rows = "SELECT count(*) FROM outbox.events";
    let rows = site.session.text(rows).await;
    assert_eq!(stored(&site).await.to_string(), rows, "{}", outjet.stderr());
}

//! Signing in to NATS in every way it knows, and with as few permissions as possible.

mod record;

use async_nats::{Client, ConnectOptions, jetstream};
use nkeys::KeyPair;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::identity::{Certificates, Operator};
use crate::harness::outjet::Output;
use crate::harness::postgres::Session;
use crate::harness::stage::{SOON, STREAM};
use crate::harness::{Outjet, Postgres, Wait, World, nats, outjet, until};

/// Servers that let nobody in without credentials.
struct Site {
    world: World,
    session: Session,
    yaml: String,
}

impl Site {
    async fn on(nats: nats::Builder, yaml: &str) -> Self {
        let world = World::with(Postgres::builder(), nats).await;
        let session = world.postgres.connect().await;
        let yaml = yaml.to_owned();
        Self {
            world,
            session,
            yaml,
        }
    }

    fn outjet<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> outjet::Builder {
        self.world.outjet(arguments).config(self.yaml.clone())
    }

    /// Sets all up and publishes one event as the user that the configuration names.
    async fn publishes(&self) {
        let setup = self.outjet(["setup"]).output().await;
        assert_eq!(setup.code, Some(0), "{setup:?}");
        let mut outjet = self.outjet(["run", "--log-format", "json"]).spawn();
        outjet.logged("leading", SOON).await;
        self.commit().await;
        self.confirmed().await;
    }

    async fn commit(&self) {
        let emit = "SELECT outbox.emit('order', '1', 'created')";
        self.session.text(emit).await;
    }

    async fn confirmed(&self) {
        let flushed = "SELECT pg_current_wal_flush_lsn()";
        let flushed = self.session.text(flushed).await;
        let sql = format!("SELECT confirmed_flush_lsn >= '{flushed}' FROM pg_replication_slots");
        self.session.until_text(&sql, "t", SOON).await;
    }

    /// Runs until it halts, and returns what it then said.
    async fn halts(&self) -> String {
        let arguments = ["run", "--exit-on-halt", "--log-format", "json"];
        let Output { code, stderr, .. } = self.outjet(arguments).output().await;
        assert_eq!(code, Some(65), "{stderr}");
        stderr
    }
}

async fn messages(client: Client) -> u64 {
    let stream = jetstream::new(client).get_stream(STREAM).await;
    stream.expect("the stream").cached_info().state.messages
}

#[tokio::test]
async fn user_password_token_and_nkey_sign_in() {
    let seed = KeyPair::new_user();
    let public = seed.public_key();
    let seed = seed.seed().expect("a seed");
    let ways = [
        (
            "user: app, password: \"s3cret\"".to_owned(),
            "user: app, password: \"s3cret\"".to_owned(),
        ),
        (
            "token: \"s3cret\"".to_owned(),
            "token: \"s3cret\"".to_owned(),
        ),
        (
            format!("users: [{{nkey: {public}}}]"),
            format!("nkey: {seed}"),
        ),
    ];
    for (server, client) in ways {
        let server = format!("authorization {{ {server} }}");
        let nats = crate::harness::Nats::builder().config(&server);
        let mut site = Site::on(nats, &format!("nats: {{{client}}}\n")).await;
        site.publishes().await;
        site.yaml.clear();
        let refused = site.halts().await;
        assert!(refused.contains("refuses our credentials"), "{refused}");
        assert!(!refused.contains("s3cret"), "{refused}");
    }
}

#[tokio::test]
async fn credentials_file_signs_in_and_is_read_again_for_every_connection() {
    let operator = Operator::with_user(&json!({"subs": -1, "data": -1, "payload": -1}));
    let home = TempDir::new().expect("a directory");
    let creds = home.path().join("user.creds");
    std::fs::write(&creds, &operator.creds).expect("written");
    let nats = crate::harness::Nats::builder().config(&operator.config);
    let yaml = format!("nats: {{creds: {}}}\n", creds.display());
    let mut site = Site::on(nats, &yaml).await;
    site.publishes().await;
    let mut outjet = site.outjet(["run", "--log-format", "json"]).spawn();
    outjet.logged("leading", SOON).await;
    // Rotated to something wrong, then right again: each counts from the next connection.
    std::fs::write(&creds, operator.creds.replace("SU", "SX")).expect("written");
    site.world.nats.kill().await;
    site.world.nats.start_again().await;
    site.commit().await;
    let halted = "halted: the connection to NATS cannot be set up";
    outjet.logged(halted, SOON).await;
    std::fs::write(&creds, &operator.creds).expect("written");
    outjet.terminate(SOON).await;
    site.publishes().await;
    let options = ConnectOptions::with_credentials_file(&creds).await;
    let client = options.expect("readable").connect(site.world.nats.url());
    assert_eq!(messages(client.await.expect("connected")).await, 3);
}

#[tokio::test]
async fn tls_is_trusted_through_the_authority_that_is_named_and_no_other() {
    let certificates = Certificates::make();
    let nats = certificates.server("");
    let yaml = format!("nats: {{{}}}\n", certificates.tls("ca.crt", ""));
    let mut site = Site::on(nats, &yaml).await;
    site.publishes().await;
    for ca in ["other.crt", ""] {
        site.yaml = match ca {
            // The system's authorities do not know the server.
            "" => String::new(),
            ca => format!("nats: {{{}}}\n", certificates.tls(ca, "")),
        };
        let check = site.outjet(["check"]).output().await;
        assert_eq!(check.code, Some(1), "{check:?}");
        assert!(check.stdout.contains("nats.tls.ca"), "{check:?}");
    }
}

#[tokio::test]
async fn tls_may_come_before_the_servers_first_word() {
    let certificates = Certificates::make();
    let nats = certificates.server(", handshake_first: true");
    let yaml = format!(
        "nats: {{{}}}\n",
        certificates.tls("ca.crt", ", first: true")
    );
    Site::on(nats, &yaml).await.publishes().await;
}

#[tokio::test]
async fn client_certificate_signs_in_where_the_server_wants_one() {
    let certificates = Certificates::make();
    let nats = certificates
        .server(", verify_and_map: true")
        .config("authorization { users: [{user: \"app@example.org\"}] }");
    let tls = certificates.tls("ca.crt", &certificates.identity());
    let mut site = Site::on(nats, &format!("nats: {{{tls}}}\n")).await;
    site.publishes().await;
    site.yaml = format!("nats: {{{}}}\n", certificates.tls("ca.crt", ""));
    let check = site.outjet(["check"]).output().await;
    assert_eq!(check.code, Some(1), "{check:?}");
    assert!(check.stdout.contains("cert and key"), "{check:?}");
}

#[tokio::test]
async fn client_certificate_credentials_file_and_inbox_go_together() {
    let certificates = Certificates::make();
    let permissions = json!({
        "subs": -1, "data": -1, "payload": -1,
        "sub": {"allow": ["_INBOX_app.>"]},
        "pub": {"allow": ["events.>", "$JS.API.>"]}
    });
    let operator = Operator::with_user(&permissions);
    let creds = certificates.path("user.creds");
    std::fs::write(&creds, &operator.creds).expect("written");
    let nats = certificates
        .server(", verify: true")
        .config(&operator.config);
    let tls = certificates.tls("ca.crt", &certificates.identity());
    let creds = creds.display();
    let yaml = format!("nats: {{{tls}, creds: {creds}, inbox_prefix: _INBOX_app}}\n");
    Site::on(nats, &yaml).await.publishes().await;
}

/// A user `app` who may only do this, and an administrator.
fn restricted(publish: &str, subscribe: &str) -> nats::Builder {
    let permissions = format!("publish: [{publish}], subscribe: [{subscribe}]");
    crate::harness::Nats::builder().config(&format!(
        "authorization {{ users: [
           {{user: admin, password: admin}}
           {{user: app, password: app, permissions: {{ {permissions} }} }}
         ] }}"
    ))
}

const ADMIN: &str = "nats: {user: admin, password: admin}\n";
const APP: &str = "nats: {user: app, password: app, inbox_prefix: _INBOX_app, connect_timeout: 2s}
stream: {manage: check}
";

/// What the fix of a denial names.
fn named(fix: &str) -> (String, String) {
    let (publish, subscribe) = fix
        .split_once("to publish to ")
        .and_then(|(_, rest)| rest.split_once(" and to subscribe to "))
        .unwrap_or_else(|| panic!("{fix}"));
    let quoted = |subjects: &str| {
        let subjects = subjects.split(", ");
        let subjects: Vec<String> = subjects.map(|subject| format!("\"{subject}\"")).collect();
        subjects.join(", ")
    };
    (quoted(publish), quoted(subscribe.trim()))
}

/// Everything set up by the administrator, then the user of `APP`.
async fn as_restricted(publish: &str, subscribe: &str) -> Site {
    let mut site = Site::on(restricted(publish, subscribe), ADMIN).await;
    site.publishes().await;
    site.yaml = APP.to_owned();
    site
}

/// The only line that says `halted`, and its fix.
fn halted(said: &str) -> (String, String, String) {
    let line = said
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find(|line| line["fix"].is_string() && line["level"] != "WARN")
        .or_else(|| {
            said.lines()
                .find_map(|line| serde_json::from_str(line).ok())
        });
    let text = |name: &str, line: &Value| line[name].as_str().unwrap_or_default().to_owned();
    let line = line.unwrap_or_default();
    match line["fix"].is_string() {
        true => (
            text("message", &line),
            text("cause", &line),
            text("fix", &line),
        ),
        false => (said.to_owned(), said.to_owned(), fix_line(said)),
    }
}

/// The third of the three lines of a problem.
fn fix_line(said: &str) -> String {
    let fix = said
        .lines()
        .find_map(|line| line.trim().strip_prefix("fix:"));
    fix.unwrap_or_else(|| panic!("no fix: {said}"))
        .trim()
        .to_owned()
}

const EVERYTHING: &str = "\">\"";

/// The requests about streams that publishing takes, but for one.
fn requests_but(denied: &str) -> String {
    let streams = ["OUTBOX", "OUTBOX_DLQ", "OUTBOX_DELAYED"];
    let requests = streams.iter().flat_map(|name| {
        ["STREAM.INFO", "STREAM.MSG.GET"].map(|request| format!("{request}.{name}"))
    });
    let allowed = requests.filter(|request| request != denied);
    let allowed: Vec<_> = allowed
        .map(|request| format!("\"$JS.API.{request}\""))
        .collect();
    allowed.join(", ")
}

#[tokio::test]
async fn denied_inbox_halts_with_the_permission_to_grant() {
    let site = as_restricted(EVERYTHING, "\"nothing\"").await;
    let (problem, cause, fix) = halted(&site.halts().await);
    assert!(problem.contains("does not answer us"), "{problem}");
    assert!(
        cause.contains("ermissions Violation for Subscription"),
        "{cause}"
    );
    assert_eq!(named(&fix).1, "\"_INBOX_app.>\"");
}

#[tokio::test]
async fn denied_subject_halts_with_the_permission_to_grant() {
    let site = as_restricted(&requests_but("none"), "\"_INBOX_app.>\"").await;
    site.commit().await;
    let (problem, cause, fix) = halted(&site.halts().await);
    assert!(problem.contains("does not let us publish"), "{problem}");
    assert!(cause.contains("events.order.created"), "{cause}");
    assert!(named(&fix).0.contains("\"events.>\""), "{fix}");
}

#[tokio::test]
async fn denied_request_halts_with_the_permission_to_grant() {
    for request in [
        "STREAM.INFO.OUTBOX",
        "STREAM.MSG.GET.OUTBOX",
        "STREAM.INFO.OUTBOX_DLQ",
    ] {
        let allowed = format!("{}, \"events.>\"", requests_but(request));
        let site = as_restricted(&allowed, "\"_INBOX_app.>\"").await;
        let (_, cause, fix) = halted(&site.halts().await);
        assert!(cause.contains(request), "{cause}");
        assert!(named(&fix).0.contains(request), "{fix}");
    }
}

#[tokio::test]
async fn check_finds_each_permission_that_is_missing_and_leaves_no_message() {
    let everything = format!("{}, \"events.>\", \"dlq.events.>\"", requests_but("none"));
    let lacking = [
        "\"events.>\", ",
        "\"dlq.events.>\", ",
        "\"$JS.API.STREAM.MSG.GET.OUTBOX\", ",
        "\"$JS.API.STREAM.MSG.GET.OUTBOX_DLQ\", ",
        "\"$JS.API.STREAM.MSG.GET.OUTBOX_DELAYED\", ",
    ];
    let everything = everything + ", ";
    for missing in lacking.map(Some).into_iter().chain([None]) {
        let allowed = everything.replace(missing.unwrap_or("nothing"), "");
        let site = as_restricted(allowed.trim_end_matches(", "), "\"_INBOX_app.>\"").await;
        let check = site.outjet(["check"]).output().await;
        let said = &check.stdout;
        match missing {
            None => {
                assert_eq!(check.code, Some(0), "{check:?}");
                let found = "ok    nats permissions      may publish to \
                     events.outjet-check, dlq.events.outjet-check\n";
                assert!(said.contains(found), "{said}");
            }
            Some(missing) => {
                assert_eq!(check.code, Some(1), "{missing}: {check:?}");
                let place = "FAIL  nats permissions      NATS at ";
                assert!(said.contains(place), "{missing}: {said}");
                let subject = missing.trim_matches(['"', ',', ' ']).trim_end_matches('>');
                assert!(
                    said.contains(&format!("to \"{subject}")),
                    "{missing}: {said}"
                );
                assert!(said.contains("allow our user to publish to "), "{said}");
            }
        }
        let admin = ConnectOptions::with_user_and_password("admin".into(), "admin".into());
        let admin = admin.connect(site.world.nats.url()).await;
        assert_eq!(
            messages(admin.expect("connected")).await,
            1,
            "the one of the set-up"
        );
    }
}

#[tokio::test]
async fn bucket_wants_the_permissions_that_the_fix_names_and_check_finds_each_that_is_missing() {
    let with_bucket = async |publish: &str| {
        let bucket = "publish: {on_oversize: object_store}\n";
        let nats = restricted(publish, "\"_INBOX_app.>\"");
        let mut site = Site::on(nats, &format!("{ADMIN}{bucket}")).await;
        site.publishes().await;
        site.yaml = format!("{APP}{bucket}");
        let large = "SELECT outbox.emit('order', '1', 'large', to_jsonb(repeat('x', 2000000)))";
        site.session.text(large).await;
        site
    };
    let site = with_bucket("\"nothing\"").await;
    let (publish, _) = named(&halted(&site.halts().await).2);
    for missing in [
        "$O.OUTJET_BODIES.C.>",
        "$O.OUTJET_BODIES.M.>",
        "$JS.API.STREAM.PURGE.OBJ_OUTJET_BODIES",
        "$JS.API.STREAM.MSG.GET.OBJ_OUTJET_BODIES",
    ] {
        let less = publish.replace(&format!(", \"{missing}\""), "");
        assert_ne!(less, publish, "{missing}");
        let site = with_bucket(&less).await;
        let check = site.outjet(["check"]).output().await;
        assert_eq!(check.code, Some(1), "{missing}: {check:?}");
        let denied = format!("to \"{}", missing.trim_end_matches('>'));
        assert!(check.stdout.contains(&denied), "{missing}: {check:?}");
        if !missing.contains("PURGE") {
            let (_, cause, fix) = halted(&site.halts().await);
            assert!(cause.contains(&denied), "{cause}");
            assert!(fix.contains(missing), "{fix}");
        }
    }
    let site = with_bucket(&publish).await;
    let check = site.outjet(["check"]).output().await;
    assert_eq!(check.code, Some(0), "{check:?}");
    let _outjet = site.outjet(["run"]).spawn();
    site.confirmed().await;
}

#[tokio::test]
async fn setup_that_may_not_create_the_stream_says_so() {
    let allowed = format!("{}, \"events.>\"", requests_but("none"));
    let mut site = Site::on(restricted(&allowed, "\"_INBOX_app.>\""), "").await;
    site.yaml = APP.replace("check", "create");
    let setup = site.outjet(["setup"]).output().await;
    assert_eq!(setup.code, Some(77), "{setup:?}");
    assert!(setup.stderr.contains("STREAM.CREATE.OUTBOX\""), "{setup:?}");
}

#[tokio::test]
async fn permissions_that_the_fix_names_suffice() {
    let site = as_restricted("\"nothing\"", "\"nothing\"").await;
    let (publish, subscribe) = named(&halted(&site.halts().await).2);
    let site = as_restricted(&publish, &subscribe).await;
    let check = site.outjet(["check"]).output().await;
    assert_eq!(check.code, Some(0), "{check:?}");
    let mut outjet = site.outjet(["run", "--log-format", "json"]).spawn();
    outjet.logged("leading", SOON).await;
    for _ in 0..100 {
        site.commit().await;
    }
    site.confirmed().await;
    // Killed, it has the guard read what stands there.
    outjet.kill().await;
    let outjet: Outjet = site.outjet(["run", "--log-format", "json"]).spawn();
    site.commit().await;
    site.confirmed().await;
    let admin = ConnectOptions::with_user_and_password("admin".into(), "admin".into());
    let admin = admin.connect(site.world.nats.url()).await;
    assert_eq!(messages(admin.expect("connected")).await, 1 + 100 + 1);
    assert!(
        !outjet.stderr().contains("ermissions"),
        "{}",
        outjet.stderr()
    );
}

#[tokio::test]
async fn permission_that_is_taken_away_under_way_halts_and_loses_nothing() {
    let (publish, subscribe) = ("\"events.>\", \"$JS.API.>\"", "\"_INBOX_app.>\"");
    let mut site = as_restricted(publish, subscribe).await;
    let mut outjet = site.outjet(["run", "--log-format", "json"]).spawn();
    outjet.logged("leading", SOON).await;
    site.commit().await;
    site.confirmed().await;
    let usual = site.world.nats.configuration();
    let denied = usual.replace("\"events.>\"", "\"other.>\"");
    site.world.nats.configure(&denied);
    site.world.nats.reload();
    until("it halts", SOON, async || {
        site.commit().await;
        let log = outjet.stderr();
        Wait::ready_if(log.contains("does not let us publish"), log.len())
    })
    .await;
    outjet.kill().await;
    site.world.nats.configure(&usual);
    site.world.nats.reload();
    let mut outjet = site.outjet(["run", "--log-format", "json"]).spawn();
    outjet.logged("leading", SOON).await;
    site.confirmed().await;
    let rows = site
        .session
        .text("SELECT count(*) FROM outbox.events")
        .await;
    let admin = ConnectOptions::with_user_and_password("admin".into(), "admin".into());
    let admin = admin.connect(site.world.nats.url()).await;
    assert_eq!(messages(admin.expect("connected")).await.to_string(), rows);
}

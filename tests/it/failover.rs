//! A physical standby is promoted, and outjet follows: with the slot nothing is lost or repeated,
//! without it outjet halts, and an old primary that comes back is left alone.

use tokio::task::JoinSet;

use crate::harness::postgres::Session;
use crate::harness::stage::{SOON, STREAM, Writers, confirmed};
use crate::harness::{Judge, Nats, Outjet, Postgres, Stop, drain, outjet};

/// The stream remembers message ids for less time than a failover takes.
const CONFIG: &str = "
postgres: {takeover_after: 3s, halt_retry: 1s}
nats: {connect_timeout: 2s}
stream: {duplicate_window: 100ms}
";

/// Slots are kept in step on standbys from this version on.
const WITH_FAILOVER_SLOTS: u32 = 18;

/// A primary, a standby that streams from it, and a broker.
struct Site {
    primary: Postgres,
    standby: Postgres,
    nats: Nats,
}

impl Site {
    /// The standby keeps logical slots in step if `slots`.
    async fn start(mut primary: Postgres, slots: bool) -> Self {
        primary.stop(Stop::Fast).await;
        let mut standby = primary.copy();
        primary.start_again().await;
        let session = primary.connect().await;
        let slot = "SELECT pg_create_physical_replication_slot('standby', true)";
        session.text(slot).await;
        let conninfo = format!(
            "host={} user=postgres dbname=postgres application_name=standby",
            primary.host()
        );
        standby.set("primary_conninfo", &conninfo);
        standby.set("primary_slot_name", "standby");
        standby.set("hot_standby_feedback", "on");
        if slots {
            standby.set("sync_replication_slots", "on");
            primary.set("synchronized_standby_slots", "standby");
            primary.reload();
        }
        standby.start_again().await;
        let streams = "SELECT count(*) FROM pg_stat_replication
            WHERE application_name = 'standby' AND state = 'streaming'";
        session.until_text(streams, "1", SOON).await;
        let nats = Nats::start().await;
        Self {
            primary,
            standby,
            nats,
        }
    }

    /// A call that knows both hosts and wants the one that can be written to.
    fn outjet(&self, arguments: &[&str]) -> outjet::Builder {
        let host = |postgres: &Postgres| postgres.host().replace('/', "%2F");
        let (primary, standby) = (host(&self.primary), host(&self.standby));
        let url = format!(
            "postgres://postgres@{primary},{standby}/postgres?target_session_attrs=read-write"
        );
        call(&url, &self.nats, arguments)
    }

    fn run(&self) -> Outjet {
        self.outjet(&["run", "--log-format", "json"]).spawn()
    }

    async fn set_up(&self) {
        let output = self.outjet(&["setup"]).output().await;
        assert_eq!(output.code, Some(0), "{output:?}");
    }

    /// Waits until the standby has both slots, outjet's and the judge's.
    async fn slots_are_kept(&self) {
        let (primary, standby) = (self.primary.connect().await, self.standby.connect().await);
        drain::until_slots_are_kept(&primary, &standby).await;
    }

    async fn stored(&self, messages: u64) {
        let jetstream = self.nats.jetstream().await;
        drain::until_stored(&jetstream, STREAM, messages, SOON).await;
    }
}

fn call(url: &str, nats: &Nats, arguments: &[&str]) -> outjet::Builder {
    Outjet::builder()
        .env("DATABASE_URL", url)
        .env("NATS_URL", nats.url())
        .config(CONFIG)
        .args(arguments.iter().copied())
}

const EMIT: &str = "SELECT outbox.emit('order', '1', 'created') FROM generate_series(1, 5)";

/// Commits five events at a time until the server is gone.
async fn write_until_it_is_gone(session: Session) {
    while session.batch_execute(EMIT).await.is_ok() {}
}

#[tokio::test]
async fn promoted_standby_that_has_the_slot_goes_on_where_the_primary_ended() {
    let builder = Postgres::builder().version(WITH_FAILOVER_SLOTS);
    // Its transactions would come between the slots and the first look at them on the standby.
    let primary = builder.setting("autovacuum", "off").start().await;
    let mut site = Site::start(primary, true).await;
    site.set_up().await;
    let judge = Judge::with_failover(&site.primary).await;
    let copies = [site.run(), site.run()];
    site.slots_are_kept().await;
    let mut writers = JoinSet::new();
    for _ in 0..3 {
        writers.spawn(write_until_it_is_gone(site.primary.connect().await));
    }
    site.stored(500).await;
    site.primary.crash().await;
    while let Some(written) = writers.join_next().await {
        written.expect("a writer");
    }
    site.standby.promote().await;

    let judge = judge.moved(&site.standby);
    let writers = Writers::start(&site.standby.url(), 2).await;
    let jetstream = site.nats.jetstream().await;
    let before = drain::ids(&jetstream, STREAM).await.len() as u64;
    site.stored(before + 200).await;
    writers.finish().await;
    let session = site.standby.connect().await;
    confirmed(&session, SOON).await;
    let stored = drain::messages(&jetstream, STREAM).await;
    let ids: Vec<String> = stored.iter().map(drain::Stored::row_id).collect();
    judge.verdict(&ids).await.assert_exact();
    let source = |at: usize| stored[at].header("Outjet-Source").unwrap_or_default();
    let timeline = |at| source(at).split('/').nth(1).map(str::to_owned);
    assert_eq!(timeline(0).as_deref(), Some("1"));
    assert_eq!(timeline(stored.len() - 1).as_deref(), Some("2"));
    drop(copies);
}

#[tokio::test]
async fn promoted_standby_that_lacks_the_slot_halts_with_the_size_of_the_gap() {
    let primary = Postgres::start().await;
    let mut site = Site::start(primary, false).await;
    site.set_up().await;
    let mut outjet = site.run();
    site.primary.connect().await.run(EMIT).await;
    site.stored(5).await;
    let primary = site.primary.connect().await;
    let replayed = primary.text("SELECT pg_current_wal_flush_lsn()").await;
    let replayed = format!("SELECT pg_last_wal_replay_lsn() >= '{replayed}'");
    let standby = site.standby.connect().await;
    standby.until_text(&replayed, "t", SOON).await;
    // It comes only when more was committed there.
    outjet.pause().await;
    site.primary.crash().await;
    site.standby.promote().await;
    standby.run(EMIT).await;
    outjet.resume();

    let halted = "halted: slot outjet is missing, but stream OUTBOX holds events from it";
    let line = outjet.logged(halted, SOON).await;
    let cause = line["cause"].as_str().expect("a cause");
    let (_, gap) = cause.split_once("; ").expect("the gap");
    let (bytes, gap) = gap.split_once(' ').expect("its size");
    let bytes: u64 = bytes.parse().expect("a number");
    // The events above are in it, and little else.
    assert!((500..1_000_000).contains(&bytes), "{cause}");
    assert!(gap.starts_with("bytes of WAL follow it, up to "), "{cause}");
    // Who sets up unattended is told the same, and makes no slot.
    let setup = site.outjet(&["run", "--setup", "--exit-on-halt"]);
    let setup = setup.output().await;
    assert_eq!(setup.code, Some(65), "{setup:?}");
    assert!(
        setup.stderr.contains(&halted["halted: ".len()..]),
        "{setup:?}"
    );
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE plugin = 'pgoutput'";
    assert_eq!(standby.text(slots).await, "0");
    assert_eq!(outjet.terminate(SOON).await, Some(0));
}

#[tokio::test]
async fn old_primary_that_comes_back_is_not_followed() {
    let mut old = Postgres::start().await;
    let nats = Nats::start().await;
    let publish = async |postgres: &Postgres, messages| {
        let run = call(
            &postgres.url(),
            &nats,
            &["run", "--setup", "--log-format", "json"],
        );
        let mut outjet = run.spawn();
        outjet.logged("leading", SOON).await;
        let session = postgres.connect().await;
        session.run(EMIT).await;
        confirmed(&session, SOON).await;
        let jetstream = nats.jetstream().await;
        drain::until_stored(&jetstream, STREAM, messages, SOON).await;
        assert_eq!(outjet.terminate(SOON).await, Some(0));
    };
    publish(&old, 5).await;
    old.stop(Stop::Fast).await;
    let mut new = old.copy();
    new.start_again().await;
    new.promote().await;
    publish(&new, 10).await;

    old.start_again().await;
    old.connect().await.run(EMIT).await;
    let mut outjet = call(&old.url(), &nats, &["run", "--log-format", "json"]).spawn();
    let ahead = "halted: stream \"OUTBOX\" is ahead of this server: it holds events of timeline 2";
    let line = outjet.logged(ahead, SOON).await;
    let cause = line["cause"].as_str().expect("a cause");
    assert!(
        cause.starts_with("the server is on timeline 1: "),
        "{cause}"
    );
    let ids = drain::ids(&nats.jetstream().await, STREAM).await;
    assert_eq!(ids.len(), 10);
}

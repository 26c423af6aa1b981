//! Two servers that are set up, a proxy before NATS, writers that can be told to stop, and a judge.

use async_nats::jetstream;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::outbox::Random;
use super::postgres::Session;
use super::{Judge, Nats, Outjet, Postgres, Proxy, Wait, World, drain, nats, outjet, until};

/// Generous: two busy cores, a debug build.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// The stream that the configuration names.
pub(crate) const STREAM: &str = "OUTBOX";

/// Short times, and a duplicate window that is over before it could help: exactly once must come
/// from outjet alone.
pub(crate) const QUICK: &str = "
postgres: {takeover_after: 3s}
nats: {connect_timeout: 2s}
stream: {duplicate_window: 100ms}
publish: {ack_timeout: 1s}
";

/// What a test of NATS's troubles stands on.
pub(crate) struct Stage {
    /// The servers.
    pub(crate) world: World,
    /// The only way that outjet knows to NATS.
    pub(crate) proxy: Proxy,
    /// Knows what was committed.
    pub(crate) judge: Judge,
    /// A superuser's session.
    pub(crate) session: Session,
    yaml: String,
}

impl Stage {
    /// With [`QUICK`], on the preferred server.
    pub(crate) async fn ready() -> Self {
        Self::on(Nats::builder(), QUICK).await
    }

    /// On a server and with a configuration of the test.
    pub(crate) async fn on(nats: nats::Builder, yaml: &str) -> Self {
        let world = World::with(Postgres::builder(), nats).await;
        let judge = Judge::appoint(&world.postgres).await;
        let session = world.postgres.connect().await;
        let proxy = Proxy::before_port(world.nats.port());
        let stage = Self {
            world,
            proxy,
            judge,
            session,
            yaml: yaml.to_owned(),
        };
        let output = stage.outjet(["setup"]).output().await;
        assert_eq!(output.code, Some(0), "{output:?}");
        stage
    }

    /// Another configuration for the calls that follow.
    pub(crate) fn configure(&mut self, yaml: &str) {
        self.yaml = yaml.to_owned();
    }

    /// A call of outjet, with NATS behind the proxy.
    pub(crate) fn outjet<'a>(
        &self,
        arguments: impl IntoIterator<Item = &'a str>,
    ) -> outjet::Builder {
        self.world
            .outjet(arguments)
            .env("NATS_URL", format!("nats://{}", self.proxy.address()))
            .config(self.yaml.clone())
    }

    /// `outjet run`, once it leads.
    pub(crate) async fn lead(&self) -> Outjet {
        let mut outjet = self.run();
        outjet.logged("leading", SOON).await;
        outjet
    }

    /// `outjet run`.
    pub(crate) fn run(&self) -> Outjet {
        self.outjet(["run", "--log-format", "json"]).spawn()
    }

    /// A client that bypasses the proxy.
    pub(crate) async fn jetstream(&self) -> jetstream::Context {
        self.world.nats.jetstream().await
    }

    /// The stream, as it is now.
    pub(crate) async fn stream(&self) -> jetstream::stream::Stream {
        let stream = self.jetstream().await.get_stream(STREAM).await;
        stream.expect("the stream")
    }

    /// The last sequence number of the stream.
    pub(crate) async fn last_sequence(&self) -> u64 {
        self.stream().await.cached_info().state.last_sequence
    }

    /// Commits one event for each number, in one transaction.
    pub(crate) async fn commit(&self, numbers: std::ops::RangeInclusive<u32>) {
        let (first, last) = numbers.into_inner();
        let sql = format!(
            "INSERT INTO outbox.events (aggregatetype, aggregateid, type, payload)
             SELECT 'order', n::text, 'created', to_jsonb(n)
             FROM generate_series({first}, {last}) AS n"
        );
        self.session.run(&sql).await;
    }

    /// Writers that go on until they are told to stop.
    pub(crate) async fn write(&self, writers: u64) -> Writers {
        Writers::start(&self.world.postgres.url(), writers).await
    }

    /// Waits until the slot has passed all that was committed so far.
    pub(crate) async fn confirmed(&self) {
        self.confirmed_within(SOON).await;
    }

    /// The same for a long backlog.
    pub(crate) async fn confirmed_within(&self, within: Duration) {
        confirmed(&self.session, within).await;
    }

    /// Waits until all is confirmed, and panics unless the stream is what was committed.
    pub(crate) async fn assert_exact(&self) {
        self.confirmed().await;
        let stored = drain::ids(&self.jetstream().await, STREAM).await;
        let verdict = self.judge.verdict(&stored).await;
        verdict.assert_exact();
        eprintln!("{} events, each once, in order", verdict.committed);
    }

    /// Waits until the stream's last sequence number is at least this.
    pub(crate) async fn until_sequence(&self, sequence: u64) {
        let jetstream = self.jetstream().await;
        until(&format!("sequence {sequence}"), SOON, async || {
            let stream = jetstream.get_stream(STREAM).await;
            let last = stream.map(|stream| stream.cached_info().state.last_sequence);
            Wait::ready_if(last.as_ref().is_ok_and(|last| *last >= sequence), last)
        })
        .await;
    }
}

/// Waits until the slot has passed all that was committed so far.
pub(crate) async fn confirmed(session: &Session, within: Duration) {
    let flushed = "SELECT pg_current_wal_flush_lsn()";
    let flushed = session.text(flushed).await;
    let sql = format!(
        "SELECT confirmed_flush_lsn >= '{flushed}' FROM pg_replication_slots
         WHERE slot_name = 'outjet'"
    );
    session.until_text(&sql, "t", within).await;
}

/// Sessions that commit transactions of 1 to 20 events, some of them large, as fast as they can.
pub(crate) struct Writers {
    tasks: JoinSet<u64>,
    stop: CancellationToken,
}

impl Writers {
    /// As many sessions.
    pub(crate) async fn start(url: &str, writers: u64) -> Self {
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        for seed in 0..writers {
            let session = Session::connect(url).await;
            tasks.spawn(write(session, Random(seed), stop.clone()));
        }
        Self { tasks, stop }
    }

    /// Tells them to stop; returns how many events they have committed.
    pub(crate) async fn finish(mut self) -> u64 {
        self.stop.cancel();
        let mut events = 0;
        while let Some(written) = self.tasks.join_next().await {
            events += written.expect("a writer failed");
        }
        events
    }
}

async fn write(session: Session, mut random: Random, stop: CancellationToken) -> u64 {
    let mut events = 0;
    while !stop.is_cancelled() {
        let rows = 1 + random.below(20);
        let words = match random.below(20) {
            0 => 2000,
            _ => 5,
        };
        let sql = format!(
            "INSERT INTO outbox.events (aggregatetype, aggregateid, type, payload)
             SELECT 'order', n::text, 'created', to_jsonb(repeat('word ', {words}))
             FROM generate_series(1, {rows}) AS n"
        );
        session.run(&sql).await;
        events += rows;
        tokio::time::sleep(Duration::from_millis(random.below(4))).await;
    }
    events
}

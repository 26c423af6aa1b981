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

/// Most WAL that writers are ahead of the slot: more than two full windows of events, so that the
/// sink never lacks work, and no more than a busy machine catches up with in seconds. Without it,
/// what piles up grows with the trouble and with the machine's slowness, and outlasts [`SOON`].
const AHEAD_BYTES_MAX: u64 = 4 * 1024 * 1024;

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
        Self::with(World::with(Postgres::builder(), nats).await, yaml).await
    }

    /// On servers that run, and with a configuration of the test.
    pub(crate) async fn with(world: World, yaml: &str) -> Self {
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

    /// Drops a slot once nobody has it: the server notices a client that is gone a moment later.
    pub(crate) async fn drop_slot(&self, name: &str) {
        let active = format!(
            "SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{name}' AND active"
        );
        self.session.until_text(&active, "0", SOON).await;
        let drop = format!("SELECT pg_drop_replication_slot('{name}')");
        self.session.run(&drop).await;
    }

    /// Waits until all is confirmed, and panics unless the stream is what was committed, bodies
    /// included.
    pub(crate) async fn assert_exact(&self) {
        self.confirmed().await;
        let stored = drain::messages(&self.jetstream().await, STREAM).await;
        let ids: Vec<String> = stored.iter().map(|message| message.row_id()).collect();
        let verdict = self.judge.verdict(&ids).await;
        verdict.assert_exact();
        let altered = drain::altered(&self.session, "outbox.events", &stored).await;
        assert_eq!(altered, Vec::<String>::new());
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

/// Sessions that commit transactions of 1 to 20 events, some of them large, as fast as they can
/// until they are [`AHEAD_BYTES_MAX`] ahead.
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

/// Whether the slot is so far behind that it is time to pause.
async fn ahead(session: &Session) -> bool {
    let sql = format!(
        "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn) > {AHEAD_BYTES_MAX}
         FROM pg_replication_slots WHERE slot_name = 'outjet'"
    );
    session.text(&sql).await == "t"
}

async fn write(session: Session, mut random: Random, stop: CancellationToken) -> u64 {
    let mut events = 0;
    while !stop.is_cancelled() {
        if ahead(&session).await {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        }
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

//! `outjet bench`: commits events as an application does, and sees them arrive as a consumer does.
//!
//! One clock times both ends, ours: a commit is timed from when COMMIT is sent to when it returns,
//! a delivery from then to when the message is here. Neither Postgres's nor the stream's times are
//! looked at. Ids say which event of which connection of which call a message is.

mod measured;

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval};
use tokio_postgres::{Client, Statement};
use tokio_util::sync::CancellationToken;

use self::measured::{Commit, Measured};
use crate::cli;
use crate::command::progress::Progress;
use crate::command::shutdown::Signals;
use crate::command::{Out, connect, emit, facts, signals};
use crate::config::Config;
use crate::error::{Exit, Failure, Problem};
use crate::pg::catalog::StatementError;
use crate::pg::control::Control;
use crate::pg::params::{APPLICATION_NAME, Params};
use crate::preflight;
use crate::sink::jetstream::{self, Follower};

/// What `sql/bench.sql` calls the events.
const AGGREGATETYPE: &str = "outjet_bench";
const TYPE: &str = "Bench";

/// How often it is looked whether anything still moves, and the bar is drawn.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How long what was committed may take to arrive when the end came early: more than a busy leader
/// needs, and no more than a person waits.
const GRACE: Duration = Duration::from_secs(5);

/// Commits that were not looked at yet; beyond, writers wait.
const TOLD_MAX: usize = 1024;

/// Measures and prints. `false`: an event is missing, doubled or out of order.
pub(super) async fn bench(
    typed: &cli::Bench,
    config: &Config,
    params: &Params,
    out: Out<'_>,
) -> Result<bool, Failure> {
    refuse_other_tables(config)?;
    let params = Params {
        application_name: format!("{APPLICATION_NAME}-bench"),
        ..params.clone()
    };
    let control = connect(&params).await?;
    until_led(typed, control.client(), config).await?;
    let mut bench = Bench::prepare(typed, config, (&params, &control)).await?;
    let ended = bench.follow(signals()?, (&control, config)).await;
    bench.progress.end();
    bench.writers.abort_all();
    bench.measured.print(out)?;
    control.close().await;
    ended.map(|()| bench.measured.is_exact())
}

/// `outbox.emit` writes into one table, and it must be one that is published.
fn refuse_other_tables(config: &Config) -> Result<(), Failure> {
    let tables = config.assemble_options("")?.tables;
    let names = tables
        .iter()
        .map(|table| format!("{}.{}", table.schema(), table.table()));
    let names: Vec<_> = names.collect();
    if names.iter().any(|name| name == "outbox.events") {
        return Ok(());
    }
    let problem = Problem::new(
        "outjet bench writes into outbox.events, which is not published",
        format!("the tables that are configured are {}", names.join(", ")),
        "try it in a database with the native outbox on the same servers; or add \
         {name: outbox.events} to `tables`, then `outjet setup`",
    );
    Err(Failure::halt(Exit::CheckFailed, problem))
}

/// Waits for a leader, who may just be starting.
async fn until_led(typed: &cli::Bench, client: &Client, config: &Config) -> Result<(), Failure> {
    let begun = Instant::now();
    while let Some(unled) = answered(typed, unled(client, config)).await? {
        if begun.elapsed() >= typed.wait {
            return Err(unled);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// That nobody leads. An error if nobody could.
async fn unled(client: &Client, config: &Config) -> Result<Option<Failure>, Failure> {
    let wanted = config.preflight_options();
    let facts = facts::read(client, &wanted).await?;
    facts::refuse(&preflight::judge_tables(&facts, &wanted))?;
    facts::refuse(&preflight::judge_publication(&facts, &wanted))?;
    facts::refuse(&preflight::judge_slot(&facts, &wanted))?;
    let led = facts.slot.is_some_and(|slot| slot.active);
    let problem = Problem::new(
        "nobody leads, so nothing is published",
        format!("nobody reads replication slot \"{}\"", wanted.slot),
        "start `outjet run`, here or elsewhere; `outjet status` shows who leads",
    );
    Ok((!led).then(|| Failure::halt(Exit::CheckFailed, problem)))
}

/// Does something with Postgres, which may have stalled.
async fn answered<T>(
    typed: &cli::Bench,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let done = tokio::time::timeout(typed.wait, work).await;
    done.unwrap_or_else(|_| {
        Err(Failure::retry(Problem::new(
            "Postgres does not answer",
            format!("a request took longer than {:?}", typed.wait),
            "look at its log and at what it waits for (pg_stat_activity); --wait allows more",
        )))
    })
}

struct Bench<'a> {
    typed: &'a cli::Bench,
    options: jetstream::Options,
    follower: Follower,
    told: mpsc::Receiver<Result<Commit, Failure>>,
    /// Aborted when dropped.
    writers: JoinSet<()>,
    stop: CancellationToken,
    measured: Measured,
    progress: Progress,
}

impl<'a> Bench<'a> {
    /// Connects whatever is needed; then the writers begin.
    async fn prepare(
        typed: &'a cli::Bench,
        config: &Config,
        (params, control): (&Params, &Control),
    ) -> Result<Self, Failure> {
        let (run, payload) = answered(typed, draw(control.client(), typed.bytes)).await?;
        let subject = config.subject_of(|field| match field {
            "aggregatetype" => Some(AGGREGATETYPE),
            "aggregateid" => Some(&run),
            "type" => Some(TYPE),
            _ => None,
        })?;
        let options = config.sink_options().of_stream();
        let follower = Follower::open(&options, &subject).await;
        let follower = follower.map_err(|error| {
            let mut failure = error.failure(&options);
            if failure.exit == Exit::NotPermitted {
                failure.problem.fix = Follower::rights(&options);
            }
            failure
        })?;
        let (tell, told) = mpsc::channel(TOLD_MAX);
        let (taken, stop) = (Arc::new(AtomicU64::new(0)), CancellationToken::new());
        let mut connected = Vec::new();
        for connection in 0..typed.connections {
            let control = connect(params).await?;
            let statement = control
                .client()
                .prepare(include_str!("../../../sql/bench.sql"));
            let statement = answered(typed, async {
                statement
                    .await
                    .map_err(|error| emit::failure(StatementError::new("prepare", error)))
            });
            connected.push(Writer {
                statement: statement.await?,
                control,
                connection,
                run: run.clone(),
                payload: payload.clone(),
                taken: taken.clone(),
                tell: tell.clone(),
                stop: stop.clone(),
                typed: typed.clone(),
            });
        }
        let measured = Measured::new(typed.clone(), run, subject);
        let mut writers = JoinSet::new();
        for writer in connected {
            writers.spawn(writer.write(measured.started()));
        }
        Ok(Self {
            typed,
            options,
            follower,
            told,
            writers,
            stop,
            measured,
            progress: Progress::of(typed.events, "events arrived"),
        })
    }

    /// Until all that was committed is there, or it is no use to wait longer.
    async fn follow(
        &mut self,
        mut signals: Signals,
        (control, config): (&Control, &Config),
    ) -> Result<(), Failure> {
        let mut looks = interval(LOOK_EVERY);
        let (mut failed, mut until, mut writing) = (None, None, true);
        while writing || self.measured.outstanding() {
            tokio::select! {
                id = self.follower.next() => {
                    let id = id.map_err(|error| error.failure(&self.options))?;
                    self.measured.arrive(&id, Instant::now());
                }
                told = self.told.recv(), if writing => match told {
                    Some(Ok(commit)) => self.measured.commit(commit),
                    Some(Err(failure)) => failed = failed.or(Some(failure)),
                    None => writing = false,
                },
                // A second one does not wait.
                _ = signals.next() => match self.measured.interrupted {
                    false => self.measured.interrupted = true,
                    true => break,
                },
                now = looks.tick() => {
                    self.progress.show(self.measured.arrived());
                    if until.is_some_and(|until| now >= until) {
                        break;
                    }
                    if self.measured.quiet() >= self.typed.wait {
                        return Err(self.stalled(control, config).await);
                    }
                }
            }
            if until.is_none() && (failed.is_some() || self.measured.interrupted) {
                self.stop.cancel();
                until = Some(Instant::now() + GRACE);
            }
        }
        self.progress.show(self.measured.arrived());
        failed.map_or(Ok(()), Err)
    }

    /// Why nothing arrives any more.
    async fn stalled(&self, control: &Control, config: &Config) -> Failure {
        match answered(self.typed, unled(control.client(), config)).await {
            Err(failure) | Ok(Some(failure)) => failure,
            Ok(None) => Failure::halt(
                Exit::CheckFailed,
                Problem::new(
                    "events that were committed do not arrive",
                    format!("none for {:?}, though somebody leads", self.typed.wait),
                    "`outjet status` and the leader's log; `outjet dead-letters list` shows what \
                     could not be published",
                ),
            ),
        }
    }
}

/// How ids of this call begin, and a payload that does not compress.
async fn draw(client: &Client, bytes: u32) -> Result<(String, String), Failure> {
    let sql = "SELECT left(gen_random_uuid()::text, 13), '\"' || coalesce(left((SELECT \
               string_agg(md5(random()::text), '') FROM generate_series(0, $1 / 32)), $1), '') \
               || '\"'";
    let quoted = i32::try_from(bytes).unwrap_or(i32::MAX) - 2;
    let row = client.query_one(sql, &[&quoted]).await;
    let drawn = row.and_then(|row| Ok((row.try_get(0)?, row.try_get(1)?)));
    drawn.map_err(|error| StatementError::new("draw a payload", error).failure())
}

/// Commits on one connection.
struct Writer {
    control: Control,
    statement: Statement,
    connection: u16,
    run: String,
    payload: String,
    /// Events that writers have taken on so far.
    taken: Arc<AtomicU64>,
    tell: mpsc::Sender<Result<Commit, Failure>>,
    stop: CancellationToken,
    typed: cli::Bench,
}

impl Writer {
    /// Takes on a transaction after another while there are any, and tells each.
    async fn write(self, started: Instant) {
        let (per_transaction, mut number) = (self.typed.per_transaction, 0);
        loop {
            let taken = self.taken.fetch_add(per_transaction, Ordering::Relaxed);
            let events = self.typed.events.saturating_sub(taken).min(per_transaction);
            if events == 0 {
                break;
            }
            let due = self.typed.rate.map_or(started, |rate| {
                started + Duration::from_secs_f64(taken as f64 / f64::from(rate))
            });
            let due = pin!(tokio::time::sleep_until(due));
            if self.stop.run_until_cancelled(due).await.is_none() {
                break;
            }
            let commit = answered(&self.typed, self.commit(number, events)).await;
            let failed = commit.is_err();
            if self.tell.send(commit).await.is_err() || failed {
                break;
            }
            number += events;
        }
        self.control.close().await;
    }

    async fn commit(&self, first: u64, events: u64) -> Result<Commit, Failure> {
        let failed = |error| emit::failure(StatementError::new("commit events", error));
        let numbers = first..first + events;
        let ids: Vec<_> = numbers
            .map(|number| measured::id(&self.run, self.connection, number))
            .collect();
        let client = self.control.client();
        client.batch_execute("BEGIN").await.map_err(failed)?;
        client
            .query_one(&self.statement, &[&self.run, &self.payload, &ids])
            .await
            .map_err(failed)?;
        let sent = Instant::now();
        client.batch_execute("COMMIT").await.map_err(failed)?;
        Ok(Commit {
            connection: self.connection,
            events,
            sent,
            returned: Instant::now(),
        })
    }
}

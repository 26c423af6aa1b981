//! `outjet tail`: shows what is decoded, as it would be published, through a slot of its own. That
//! slot is temporary: it vanishes with the session, and the real one is never touched.
//!
//! Who stops reading stops the stream, and so much of the log is kept; who closes the pipe ends it.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::io::{AsyncWriteExt, Stdout};
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::cli;
use crate::command::{connect, facts, signals, unwritten};
use crate::config::Config;
use crate::error::{Exit, Failure, Problem};
use crate::event::Event;
use crate::event::assemble::{Assembler, Step, timestamp};
use crate::event::route;
use crate::lead::relay;
use crate::lead::window::{Limits, Window};
use crate::lsn::Lsn;
use crate::pg::ddl;
use crate::pg::params::{APPLICATION_NAME, Params};
use crate::pg::pgoutput::PgTime;
use crate::pg::replication::{Frame, Session, Stream};
use crate::preflight;

/// How often the server is told how far we are, and standard output asked whether anybody reads.
const STATUS_EVERY: Duration = Duration::from_secs(1);

/// Nothing is outstanding in this window: what was read is done with.
const NO_LIMITS: Limits = Limits {
    events_max: usize::MAX,
    bytes_max: usize::MAX,
};

/// Shows events until there were enough, nobody reads, or a signal says so.
pub(in crate::command) async fn tail(
    typed: &cli::Tail,
    config: &Config,
    params: &Params,
) -> Result<(), Failure> {
    let mut signals = signals()?;
    // Of another name than who publishes: `synchronous_standby_names` must not wait for us.
    let params = &Params {
        application_name: format!("{APPLICATION_NAME}-tail"),
        ..params.clone()
    };
    let work = async {
        let (stream, start) = open(config, params).await?;
        let assembler = Assembler::new(config.assemble_options(&params.dbname)?);
        let tail = Tail {
            typed,
            params,
            assembler,
            window: Window::new(NO_LIMITS, start),
            committed: PgTime::new(0),
            shown: 0,
        };
        Box::pin(tail.follow(stream)).await
    };
    tokio::select! {
        // The server sees the connection end, and drops the slot.
        _ = signals.next() => Ok(()),
        done = work => done,
    }
}

/// A stream of a new temporary slot, and where it begins.
async fn open(config: &Config, params: &Params) -> Result<(Stream, Lsn), Failure> {
    let wanted = config.preflight_options();
    let control = connect(params).await?;
    let facts = facts::read(control.client(), &wanted).await?;
    facts::refuse(&preflight::judge_server(&facts))?;
    facts::refuse(&preflight::judge_tables(&facts, &wanted))?;
    facts::refuse(&preflight::judge_publication(&facts, &wanted))?;
    facts::tell_open_writers(control.client(), &mut io::stderr()).await?;
    control.close().await;
    let failure = |error: crate::pg::Error| error.failure(params);
    let mut session = Session::connect(params, &[]).await.map_err(failure)?;
    // No other session has this number while ours lives.
    let pid = first(session.query("SELECT pg_backend_pid()").await, params)?;
    let slot = format!("outjet_tail_{pid}");
    let create = ddl::create_temporary_slot(&slot);
    let made = session.query(&create).await.map_err(failure)?;
    let start = made
        .into_iter()
        .next()
        .and_then(|row| row.into_iter().nth(1)?);
    let start = start.and_then(|lsn| lsn.parse().ok()).unwrap_or(Lsn::ZERO);
    let stream = session.start(&slot, &[wanted.publication], true).await;
    let stream = stream.map_err(|(_, error)| failure(error))?;
    // Who watches may have gone.
    let _ = writeln!(io::stderr(), "following from {start}");
    Ok((stream, start))
}

type Rows = Vec<Vec<Option<String>>>;

fn first(answer: Result<Rows, crate::pg::Error>, params: &Params) -> Result<String, Failure> {
    let rows = answer.map_err(|error| error.failure(params))?;
    let value = rows.into_iter().flatten().flatten().next();
    value.ok_or_else(|| {
        let problem = Problem::new(
            "the server does not say who we are",
            "SELECT pg_backend_pid() returned no row",
            "please report this with the Postgres version",
        );
        Failure::halt(Exit::Bug, problem)
    })
}

struct Tail<'a> {
    typed: &'a cli::Tail,
    params: &'a Params,
    assembler: Assembler,
    window: Window,
    committed: PgTime,
    shown: u64,
}

/// What is to be done next.
enum Turn {
    Read(Frame),
    Written(io::Result<()>),
    Tick,
}

impl Tail<'_> {
    /// Reads a frame, writes what it holds, reads the next.
    async fn follow(mut self, mut stream: Stream) -> Result<(), Failure> {
        let mut out = tokio::io::stdout();
        let mut unread = BytesMut::new();
        let mut status = interval(STATUS_EVERY);
        status.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            match self
                .turn(&mut stream, (&mut out, &mut unread), &mut status)
                .await?
            {
                Turn::Tick if closed() => break,
                Turn::Tick => self.report(&mut stream).await?,
                Turn::Read(frame) => {
                    if let Some(line) = self.take(frame)? {
                        unread.extend_from_slice(line.as_bytes());
                    }
                }
                Turn::Written(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => break,
                Turn::Written(written) => {
                    written.map_err(unwritten)?;
                    if self.typed.limit.is_some_and(|limit| self.shown >= limit) {
                        break;
                    }
                }
            }
        }
        stream.close().await;
        Ok(())
    }

    /// Writes if there is something to be written, else reads.
    async fn turn(
        &self,
        stream: &mut Stream,
        (out, unread): (&mut Stdout, &mut BytesMut),
        status: &mut Interval,
    ) -> Result<Turn, Failure> {
        let writing = unread.has_remaining();
        Ok(tokio::select! {
            biased;
            _ = status.tick() => Turn::Tick,
            written = write(out, unread), if writing => Turn::Written(written),
            frame = stream.recv(), if !writing => {
                Turn::Read(frame.map_err(|error| error.failure(self.params))?)
            }
        })
    }

    /// What was read need not be kept for us.
    async fn report(&self, stream: &mut Stream) -> Result<(), Failure> {
        let confirmed = self.window.newly(self.window.confirmed());
        stream.queue_status(self.window.received(), confirmed, false);
        let flushed = stream.flush().await;
        flushed.map_err(|error| error.failure(self.params))
    }

    /// The line for an event.
    fn take(&mut self, frame: Frame) -> Result<Option<String>, Failure> {
        let failed = |error: relay::Error| error.failure(self.params);
        match frame {
            Frame::Wal { body } => {
                let step = self.assembler.take(&body).map_err(relay::Error::Assemble);
                let event = match step.map_err(failed)? {
                    Step::Nothing => return Ok(None),
                    Step::Begin(committed) => {
                        self.committed = committed;
                        self.window.begin();
                        return Ok(None);
                    }
                    Step::Commit(end) => {
                        self.window.commit(end);
                        return Ok(None);
                    }
                    Step::Event(event) => event,
                    Step::Rejected(rejection) => rejection.into_event(),
                };
                return Ok(self.show(&event));
            }
            Frame::Keepalive { wal_end, .. } => self.window.keepalive(wal_end),
            Frame::Notice(notice) => relay::take_notice(notice).map_err(failed)?,
        }
        Ok(None)
    }

    fn show(&mut self, event: &Event) -> Option<String> {
        let filter = self.typed.subject.as_deref();
        if filter.is_some_and(|filter| !route::matches(filter, &event.subject)) {
            return None;
        }
        if self.typed.limit.is_some_and(|limit| self.shown >= limit) {
            return None;
        }
        self.shown += 1;
        let committed = timestamp(self.committed);
        Some(match self.typed.json {
            true => json(event, &committed),
            false => line(event, &committed),
        })
    }
}

/// Cancel-safe: what was taken from `unread` is with the thread that writes. Ends when that has
/// written all of it.
async fn write(out: &mut Stdout, unread: &mut BytesMut) -> io::Result<()> {
    out.write_all_buf(unread).await?;
    out.flush().await
}

/// Whether nobody will read what is written: a pipe without a reader, a terminal that is gone.
fn closed() -> bool {
    let stdout = io::stdout();
    let mut asked = [PollFd::new(&stdout, PollFlags::empty())];
    let at_once = Timespec::default();
    let gone = PollFlags::ERR | PollFlags::HUP;
    poll(&mut asked, Some(&at_once)).is_ok() && asked[0].revents().intersects(gone)
}

fn line(event: &Event, committed: &str) -> String {
    let Event {
        position,
        subject,
        id,
        payload,
        ..
    } = event;
    let subject = if subject.is_empty() { "-" } else { subject };
    let bytes = payload.len();
    let mut line = format!("{committed}  {position}  {subject}  {id}  {bytes} B");
    if event.replayed {
        line.push_str("  replayed");
    }
    if let Some(rejected) = &event.rejected {
        line.push_str(&format!(
            "  REJECTED {}: {}",
            rejected.reason, rejected.error
        ));
    }
    // A subject or an id that no server would take may hold anything.
    line.retain(|letter| !letter.is_control());
    line + "\n"
}

/// An event in `--json`.
#[derive(Serialize)]
struct Shown<'a> {
    committed: &'a str,
    position: String,
    table: &'a str,
    id: &'a str,
    subject: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    rejected: Option<Rejected<'a>>,
    replayed: bool,
    bytes: usize,
    headers: BTreeMap<&'a str, Vec<&'a str>>,
    /// If it is JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a RawValue>,
    /// If it is other text.
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_text: Option<&'a str>,
    /// If it is neither.
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
}

#[derive(Serialize)]
struct Rejected<'a> {
    reason: &'a str,
    error: &'a str,
}

fn json(event: &Event, committed: &str) -> String {
    let mut headers: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, value) in event.headers.iter() {
        headers.entry(name).or_default().push(value);
    }
    let text = std::str::from_utf8(&event.payload).ok();
    let payload: Option<&RawValue> = text.and_then(|text| serde_json::from_str(text).ok());
    let rejected = event.rejected.as_deref().map(|rejected| Rejected {
        reason: rejected.reason,
        error: &rejected.error,
    });
    let shown = Shown {
        committed,
        position: event.position.to_string(),
        table: &event.table,
        id: &event.id,
        subject: &event.subject,
        rejected,
        replayed: event.replayed,
        bytes: event.payload.len(),
        headers,
        payload,
        payload_text: text.filter(|_| payload.is_none()),
        payload_base64: text.is_none().then(|| base64(&event.payload)),
    };
    let shown = serde_json::to_string(&shown).expect("texts and lists of texts are JSON");
    // Within JSON a line break is white space: in a text it is written as \n.
    shown.replace(['\n', '\r'], " ") + "\n"
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

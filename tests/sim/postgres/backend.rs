//! One server process: startup, queries simple and extended, and what ends it. A walsender begins
//! as one of these.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::sql::{self, Query};
use super::state::{Fate, Phase};
use super::wire;
use super::{Postgres, command, walsender};

/// `NEGOTIATE_SSL_CODE` and `PG_PROTOCOL(3, 0)`, pqcomm.h.
const SSL_REQUEST: u32 = 80_877_103;

/// A startup parameter that ours send.
const REPLICATION: &str = "replication";

/// A connection, and what was read of it.
pub(super) struct Wire<S> {
    pub(super) stream: S,
    pub(super) input: BytesMut,
    pub(super) output: BytesMut,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// Writes all; `None`: the client is gone.
    pub(super) async fn flush(&mut self) -> Option<()> {
        let written = self.stream.write_all_buf(&mut self.output).await;
        written.ok()
    }

    async fn more(&mut self) -> Option<()> {
        let read = self.stream.read_buf(&mut self.input).await;
        read.ok().filter(|bytes| *bytes > 0).map(|_| ())
    }
}

/// What is prepared: by the name of the statement or portal.
#[derive(Default)]
struct Prepared {
    statements: std::collections::BTreeMap<String, &'static Query>,
    portals: std::collections::BTreeMap<String, (&'static Query, Vec<Bytes>)>,
    /// After an error everything is passed over up to Sync.
    failed: bool,
}

/// In the list of processes until it is dropped.
pub(super) struct Process {
    pub(super) server: Postgres,
    pub(super) pid: i32,
    /// `wal_sender_timeout`.
    pub(super) timeout: std::time::Duration,
}

impl Drop for Process {
    fn drop(&mut self) {
        self.server.state().leave(self.pid);
        self.server.shared.changed.notify_waiters();
    }
}

impl Process {
    pub(super) fn fate(&self) -> Fate {
        self.server.state().fate(self.pid)
    }
}

pub(super) async fn serve(server: Postgres, stream: impl AsyncRead + AsyncWrite + Unpin) {
    let mut wire = Wire {
        stream,
        input: BytesMut::new(),
        output: BytesMut::new(),
    };
    let _ = run(server, &mut wire).await;
}

async fn run<S>(server: Postgres, wire: &mut Wire<S>) -> Option<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let process = start(server, wire).await?;
    let mut prepared = Prepared::default();
    loop {
        let (tag, body) = loop {
            match process.fate() {
                Fate::Lives => {}
                Fate::Killed => return None,
                Fate::Terminated => return terminated(wire).await,
            }
            if let Some(message) = wire::split(&mut wire.input) {
                break message;
            }
            let changed = process.server.shared.changed.notified();
            tokio::select! {
                biased;
                more = wire.more() => more?,
                () = changed => {}
            }
        };
        match tag {
            b'X' => return None,
            b'Q' => query(&process, wire, body).await?,
            b'H' => wire.flush().await?,
            // Left over from a stream that has ended.
            b'd' | b'c' | b'f' => {}
            tag => {
                extended(&process, (&mut prepared, &mut wire.output), (tag, body));
                if tag == b'S' {
                    wire.flush().await?;
                }
            }
        }
    }
}

/// `pg_terminate_backend`, or a shutdown.
pub(super) async fn terminated<S>(wire: &mut Wire<S>) -> Option<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let words = "terminating connection due to administrator command";
    wire::report(&mut wire.output, b'E', ("FATAL", "57P01", words));
    wire.flush().await;
    None
}

/// From the startup packet to ReadyForQuery.
async fn start<S>(server: Postgres, wire: &mut Wire<S>) -> Option<Process>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let parameters = loop {
        let mut packet = startup_packet(wire).await?;
        match packet.get_u32() {
            SSL_REQUEST => {
                wire.output.put_u8(b'N');
                wire.flush().await?;
            }
            _ => break parameters(packet)?,
        }
    };
    let phase = server.phase();
    if phase != Phase::Up {
        let words = "the database system is shutting down";
        wire::report(&mut wire.output, b'E', ("FATAL", "57P03", words));
        wire.flush().await;
        return None;
    }
    let value = |name: &str| {
        let mut found = parameters.iter().filter(|(given, _)| given == name);
        found.next().map(|(_, value)| value.as_str())
    };
    let walsender = value(REPLICATION) == Some("database");
    let millis = value("wal_sender_timeout").and_then(|millis| millis.parse().ok());
    let application = value("application_name").unwrap_or_default().to_owned();
    let (pid, in_recovery, version) = {
        let mut state = server.state();
        let pid = state.enter(application, walsender);
        (
            pid,
            state.catalog.in_recovery,
            sql::version(state.options.major).1,
        )
    };
    let process = Process {
        server,
        pid,
        timeout: std::time::Duration::from_millis(millis.unwrap_or(60_000)),
    };
    let out = &mut wire.output;
    wire::put(out, b'R', |out| out.put_u32(0));
    let standby = if in_recovery { "on" } else { "off" };
    for (name, value) in [
        ("server_version", version),
        ("client_encoding", "UTF8"),
        ("in_hot_standby", standby),
        ("default_transaction_read_only", "off"),
        ("integer_datetimes", "on"),
    ] {
        wire::put(out, b'S', |out| {
            wire::put_string(out, name);
            wire::put_string(out, value);
        });
    }
    wire::put(out, b'K', |out| {
        out.put_i32(pid);
        out.put_u32(0);
    });
    wire::ready(out);
    wire.flush().await?;
    Some(process)
}

async fn startup_packet<S>(wire: &mut Wire<S>) -> Option<Bytes>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        if let Some(length) = wire.input.first_chunk::<4>() {
            let length = u32::from_be_bytes(*length) as usize;
            if wire.input.len() >= length {
                let mut packet = wire.input.split_to(length).freeze();
                packet.advance(4);
                return Some(packet);
            }
        }
        wire.more().await?;
    }
}

fn parameters(mut packet: Bytes) -> Option<Vec<(String, String)>> {
    let mut parameters = Vec::new();
    loop {
        let name = wire::take_string(&mut packet)?;
        if name.is_empty() {
            return Some(parameters);
        }
        parameters.push((name, wire::take_string(&mut packet)?));
    }
}

/// The simple protocol: what ours ask on a replication session.
async fn query<S>(process: &Process, wire: &mut Wire<S>, mut body: Bytes) -> Option<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let text = wire::take_string(&mut body)?;
    if text.starts_with("START_REPLICATION ") {
        return walsender::start(process, wire, &text).await;
    }
    command::answer(process, &mut wire.output, &text);
    wire::ready(&mut wire.output);
    wire.flush().await
}

/// The extended protocol, as tokio-postgres speaks it.
fn extended(
    process: &Process,
    (prepared, out): (&mut Prepared, &mut BytesMut),
    (tag, mut body): (u8, Bytes),
) {
    if tag == b'S' {
        prepared.failed = false;
        return wire::ready(out);
    }
    if prepared.failed {
        return;
    }
    if step(process, (prepared, out), (tag, &mut body)).is_none() {
        prepared.failed = true;
        let words = format!(
            "the model does not know: {}",
            String::from_utf8_lossy(&body)
        );
        wire::report(out, b'E', ("ERROR", "0A000", &words));
    }
}

fn step(
    process: &Process,
    (prepared, out): (&mut Prepared, &mut BytesMut),
    (tag, body): (u8, &mut Bytes),
) -> Option<()> {
    match tag {
        b'P' => {
            let name = wire::take_string(body)?;
            let text = wire::take_string(&mut body.clone())?;
            prepared.statements.insert(name, Query::find(&text)?);
            wire::put(out, b'1', |_| {});
        }
        b'D' => {
            let kind = body.get_u8();
            let name = wire::take_string(body)?;
            let query = match kind {
                b'S' => *prepared.statements.get(&name)?,
                _ => prepared.portals.get(&name)?.0,
            };
            if kind == b'S' {
                wire::put(out, b't', |out| {
                    wire::put_count(out, query.parameters.len());
                    query.parameters.iter().for_each(|oid| out.put_u32(*oid));
                });
            }
            wire::describe(out, query.columns, u16::from(kind != b'S'));
        }
        b'B' => {
            let portal = wire::take_string(body)?;
            let query = *prepared.statements.get(&wire::take_string(body)?)?;
            let values = values(body);
            prepared.portals.insert(portal, (query, values));
            wire::put(out, b'2', |_| {});
        }
        b'E' => {
            let (query, values) = prepared.portals.get(&wire::take_string(body)?)?;
            let rows = query.answer(&process.server.state(), values, out);
            wire::complete(out, &format!("SELECT {rows}"));
        }
        b'C' => {
            let kind = body.get_u8();
            let name = wire::take_string(body)?;
            match kind {
                b'S' => drop(prepared.statements.remove(&name)),
                _ => drop(prepared.portals.remove(&name)),
            }
            wire::put(out, b'3', |_| {});
        }
        tag => panic!("message {:?} of a client", char::from(tag)),
    }
    Some(())
}

/// Of a Bind, without NULLs.
fn values(body: &mut Bytes) -> Vec<Bytes> {
    let formats = usize::from(body.get_u16());
    body.advance(2 * formats);
    let count = body.get_u16();
    let value = |_| {
        let length = usize::try_from(body.get_i32()).expect("no parameter is NULL");
        body.split_to(length)
    };
    (0..count).map(value).collect()
}

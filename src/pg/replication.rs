//! A walsender session: commands first, then the stream of one slot, with status updates going the
//! other way. Knows the CopyData layer, not what pgoutput says inside it.
//!
//! Invariant: a status update never confirms less than an earlier one, nor more than the server
//! has sent. Postgres checks neither, and loses events silently at the next connect.

use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Buf, BufMut, Bytes};
use postgres_protocol::escape::escape_identifier;

use super::connect::connect;
use super::error::{Error, Kind, Phase, ServerMessage};
use super::params::Params;
use super::query::text;
use super::wire::{CHUNK_BYTES, Conn, Packet, notice, server_error};
use crate::lead::window::Confirmed;
use crate::lsn::Lsn;

/// Sent in every startup packet of a replication session. Text values are made by type output
/// functions, which obey these (`libpqrcv_connect`, libpqwalreceiver.c, does the same); a role's
/// own timeouts must not end a walsender that waits for its slot.
pub const REPLICATION_STARTUP: [(&str, &str); 10] = [
    ("replication", "database"),
    ("DateStyle", "ISO"),
    ("IntervalStyle", "postgres"),
    ("extra_float_digits", "3"),
    ("TimeZone", "UTC"),
    ("bytea_output", "hex"),
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_session_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
];

/// A replication session in command mode.
pub struct Session {
    conn: Box<Conn>,
}

/// What IDENTIFY_SYSTEM says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct System {
    /// The same for a primary and its standbys, another after `initdb` and `pg_upgrade`.
    pub id: String,
    /// Grows with every promotion and point-in-time recovery.
    pub timeline: u32,
    /// How far WAL is flushed, or on a standby received.
    pub flush: Lsn,
    /// The database of the session.
    pub database: Option<String>,
}

/// An earlier timeline and where the next one left it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimelineSwitch {
    /// The earlier timeline.
    pub timeline: u32,
    /// Its WAL counts up to here.
    pub ended_at: Lsn,
}

/// In a database of `SQL_ASCII` texts may be anything, and a session that asks for UTF-8 fails for
/// good at the first that is not (`pg_server_to_any`, mbutils.c). As they are, they reach us, and a
/// row that cannot be an event is one that is rejected.
pub const ANY_BYTES: &str = "SELECT set_config('client_encoding', 'SQL_ASCII', false)
    WHERE current_setting('server_encoding') = 'SQL_ASCII'";

impl Session {
    /// Logs in as a walsender for `params.dbname`. `startup` adds parameters, such as
    /// `wal_sender_timeout`.
    pub async fn connect(params: &Params, startup: &[(&str, String)]) -> Result<Self, Error> {
        let parameters: Vec<_> = REPLICATION_STARTUP
            .into_iter()
            .chain(startup.iter().map(|(name, value)| (*name, value.as_str())))
            .collect();
        let conn = connect(params, &parameters).await?;
        let mut session = Self {
            conn: Box::new(conn),
        };
        session.query(ANY_BYTES).await?;
        Ok(session)
    }

    /// Runs SQL or a replication command by the simple query protocol.
    pub async fn query(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>, Error> {
        let rows = self.conn.simple_query(sql).await?;
        let convert = |value: Option<Bytes>| value.map(text).transpose();
        rows.into_iter()
            .map(|row| row.into_iter().map(convert).collect())
            .collect::<Result<_, _>>()
            .map_err(|kind| self.conn.error(kind))
    }

    /// Whether a pooler stands in between: to those who log in it gives a key of its own to cancel
    /// with, so that the process it names is not the one that serves them.
    pub async fn pooled(&mut self) -> Result<bool, Error> {
        let rows = self.query("SELECT pg_backend_pid()").await?;
        let serving = rows.into_iter().flatten().flatten().next();
        Ok(serving != Some(self.conn.backend_pid.to_string()))
    }

    /// Which cluster this is, and how far it has written.
    pub async fn identify_system(&mut self) -> Result<System, Error> {
        let rows = self.query("IDENTIFY_SYSTEM").await?;
        let system = rows.into_iter().next().and_then(|row| {
            let mut values = row.into_iter();
            Some(System {
                id: values.next()??,
                timeline: values.next()??.parse().ok()?,
                flush: values.next()??.parse().ok()?,
                database: values.next()?,
            })
        });
        system.ok_or_else(|| {
            self.conn
                .error(Kind::Malformed("the answer to IDENTIFY_SYSTEM"))
        })
    }

    /// Where each timeline before `timeline` ended, oldest first; empty for the first one.
    pub async fn timeline_history(&mut self, timeline: u32) -> Result<Vec<TimelineSwitch>, Error> {
        if timeline <= 1 {
            // It has no history file, and asking is an error.
            return Ok(Vec::new());
        }
        let rows = self
            .conn
            .simple_query(&format!("TIMELINE_HISTORY {timeline}"))
            .await?;
        // Raw bytes of a file: comments in it may be in any encoding.
        let file = rows
            .into_iter()
            .next()
            .and_then(|row| row.into_iter().nth(1)?);
        let file = file.map(|file| String::from_utf8_lossy(&file).into_owned());
        file.and_then(|file| parse_history(&file)).ok_or_else(|| {
            self.conn
                .error(Kind::Malformed("the timeline history file"))
        })
    }

    /// Streams `slot` from where it stands (0/0: a start of our own choosing could skip events).
    /// The session comes back with an error of the server's, SQLSTATE 55006 for example, and can
    /// be used again.
    pub async fn start(
        mut self,
        slot: &str,
        publications: &[String],
        messages: bool,
    ) -> Result<Stream, (Self, Error)> {
        self.conn.phase = Phase::Start;
        match self
            .request_stream(&start_command(slot, publications, messages))
            .await
        {
            Ok(()) => {
                self.conn.phase = Phase::Stream;
                Ok(Stream::new(self.conn))
            }
            Err(kind) => {
                let error = self.conn.error(kind);
                Err((self, error))
            }
        }
    }

    async fn request_stream(&mut self, command: &str) -> Result<(), Kind> {
        self.conn.send_query(command).await?;
        let answer = match self.conn.next().await {
            Err(kind @ Kind::Server(_)) => {
                // A FATAL error is followed by the end of the connection; the error says more.
                let _ = self.conn.settle().await;
                return Err(kind);
            }
            answer => answer?,
        };
        match answer.tag {
            // CopyBothResponse; text or binary is the same to us, and there are no columns.
            b'W' => Ok(()),
            tag => Err(Kind::Unexpected(tag)),
        }
    }

    /// Says good-bye.
    pub async fn close(self) {
        self.conn.close().await;
    }
}

/// Protocol version 1 is the same from 14 on and never shows a transaction before its commit.
fn start_command(slot: &str, publications: &[String], messages: bool) -> String {
    let names: Vec<_> = publications
        .iter()
        .map(|name| escape_identifier(name))
        .collect();
    // A list of identifiers inside a literal (SplitIdentifierString); the replication grammar's
    // literals know doubled quotes and no escapes (repl_scanner.l).
    let names = names.join(",").replace('\'', "''");
    let slot = escape_identifier(slot);
    let mut command = format!("START_REPLICATION SLOT {slot} LOGICAL 0/0 (proto_version '1'");
    let _ = write!(command, ", publication_names '{names}'");
    if messages {
        command.push_str(", messages 'true'");
    }
    command.push(')');
    command
}

/// `readTimeLineHistory`, timeline.c: `<timeline> <switch point> <reason>` a line, `#` comments.
fn parse_history(file: &str) -> Option<Vec<TimelineSwitch>> {
    file.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let mut fields = line.split_whitespace();
            Some(TimelineSwitch {
                timeline: fields.next()?.parse().ok()?,
                ended_at: fields.next()?.parse().ok()?,
            })
        })
        .collect()
}

/// What the server sends while it streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// One message of pgoutput.
    Wal {
        /// For the decoder. Shares memory with its neighbours: keep it no longer than needed.
        body: Bytes,
    },
    /// How far the server has looked, and whether it wants a status update at once.
    Keepalive {
        /// Everything committed before it has been sent.
        wal_end: Lsn,
        /// Without an answer the server closes the connection at `wal_sender_timeout`.
        reply_requested: bool,
    },
    /// A warning; 18 says so when it skips a missing publication.
    Notice(ServerMessage),
}

/// A slot being streamed. One owner reads and writes; nothing is lost if a future is dropped.
pub struct Stream {
    conn: Box<Conn>,
    /// The latest status update that has not left for the queue yet; a newer one takes its place.
    status: Option<Status>,
    /// Of the last status update queued.
    confirmed: Lsn,
    /// Highest position seen in any header.
    sent: Lsn,
}

#[derive(Clone, Copy, Debug)]
struct Status {
    received: Lsn,
    confirmed: Lsn,
    reply_requested: bool,
}

impl Stream {
    /// The read buffer consists of chunks of about this length.
    pub const CHUNK_BYTES: usize = CHUNK_BYTES;

    fn new(conn: Box<Conn>) -> Self {
        Self {
            conn,
            status: None,
            confirmed: Lsn::ZERO,
            sent: Lsn::ZERO,
        }
    }

    /// The next frame. Writes queued status updates while it waits. The end of the stream is an
    /// error: [`Error::ended`] if the server is shutting down, [`Error::closed`] if the connection
    /// just ended. Cancel-safe: bytes live in the connection's buffers, never in this future.
    pub async fn recv(&mut self) -> Result<Frame, Error> {
        loop {
            if let Some(frame) = self.next_buffered() {
                return frame;
            }
            self.move_status();
            let packet = self.conn.recv().await;
            let packet = packet.map_err(|kind| self.conn.error(kind))?;
            if let Some(frame) = self.read(packet).transpose() {
                return frame.map_err(|kind| self.conn.error(kind));
            }
        }
    }

    /// The next frame if it is here already, without a system call: to empty the buffer after
    /// [`Stream::recv`].
    pub fn next_buffered(&mut self) -> Option<Result<Frame, Error>> {
        loop {
            if let Some(notice) = self.conn.notices.pop_front() {
                return Some(Ok(Frame::Notice(notice)));
            }
            let frame = match self.conn.split() {
                Ok(None) => return None,
                Ok(Some(packet)) => self.read(packet),
                Err(kind) => Err(kind),
            };
            if let Some(frame) = frame.transpose() {
                return Some(frame.map_err(|kind| self.conn.error(kind)));
            }
        }
    }

    /// Says what we have: `received` of what the server sent, `confirmed` of what it may forget;
    /// `None` before anything was leaves the slot where it is.
    /// It leaves with the next [`Stream::recv`] or [`Stream::flush`]; while the server takes
    /// nothing, only the latest is kept.
    ///
    /// # Panics
    /// If `confirmed` goes back or is ahead of everything the server sent: both are bugs that lose
    /// events.
    pub fn queue_status(
        &mut self,
        received: Lsn,
        confirmed: Option<Confirmed>,
        reply_requested: bool,
    ) {
        if let Some(confirmed) = confirmed {
            self.confirm(confirmed.lsn());
        }
        let reply_requested = reply_requested || self.status.is_some_and(|s| s.reply_requested);
        self.status = Some(Status {
            received: received.max(self.confirmed),
            confirmed: self.confirmed,
            reply_requested,
        });
        self.move_status();
    }

    /// Hands all status updates to the operating system. Cancel-safe: the rest stays queued.
    pub async fn flush(&mut self) -> Result<(), Error> {
        loop {
            self.move_status();
            let flushed = self.conn.flush().await;
            flushed.map_err(|kind| self.conn.error(kind))?;
            if self.status.is_none() {
                return Ok(());
            }
        }
    }

    /// A status update has not left yet.
    pub fn wants_flush(&self) -> bool {
        self.status.is_some() || !self.conn.flushed()
    }

    /// How much of the read buffer was used up by the frames so far, in bytes. Whoever keeps a part
    /// of a frame keeps what came before it, too, back to at most [`Stream::CHUNK_BYTES`].
    pub fn used_bytes(&self) -> u64 {
        self.conn.used_bytes()
    }

    /// Says good-bye in good order: what was queued is written and the server has closed, or two
    /// seconds have passed.
    pub async fn close(mut self) {
        self.move_status();
        self.conn.close().await;
    }

    fn confirm(&mut self, confirmed: Lsn) {
        assert!(
            confirmed >= self.confirmed,
            "confirmed goes back from {} to {confirmed}",
            self.confirmed
        );
        assert!(
            confirmed <= self.sent,
            "confirmed {confirmed} is ahead of {}, the last that the server sent",
            self.sent
        );
        self.confirmed = confirmed;
    }

    /// A status update is queued only when the one before it is gone, so that they cannot pile up.
    fn move_status(&mut self) {
        if self.conn.queue_empty()
            && let Some(status) = self.status.take()
        {
            // Writing to memory; it cannot fail.
            let _ = self.conn.queue(|queued| {
                write_status(status, queued);
                Ok(())
            });
        }
    }

    /// `None` for what concerns nobody.
    fn read(&mut self, packet: Packet) -> Result<Option<Frame>, Kind> {
        match packet.tag {
            b'd' => self.read_copy(packet.body()).map(Some),
            b'N' => Ok(Some(Frame::Notice(notice(packet)?))),
            // ParameterStatus: a reload changed a setting that is reported.
            b'S' => Ok(None),
            b'E' => Err(Kind::Server(server_error(packet)?)),
            // CopyDone, or CommandComplete without it when the server shuts down (WalSndDone).
            b'c' | b'C' => Err(Kind::Ended),
            tag => Err(Kind::Unexpected(tag)),
        }
    }

    fn read_copy(&mut self, mut body: Bytes) -> Result<Frame, Kind> {
        match body.first() {
            Some(b'w') if body.len() >= WAL_HEADER_BYTES => {
                let mut header = body.split_to(WAL_HEADER_BYTES);
                header.advance(1);
                let (start, end) = (Lsn::new(header.get_u64()), Lsn::new(header.get_u64()));
                self.sent = self.sent.max(start).max(end);
                Ok(Frame::Wal { body })
            }
            Some(b'k') if body.len() == KEEPALIVE_BYTES => {
                body.advance(1);
                let wal_end = Lsn::new(body.get_u64());
                self.sent = self.sent.max(wal_end);
                let _send_time = body.get_i64();
                Ok(Frame::Keepalive {
                    wal_end,
                    reply_requested: body.get_u8() != 0,
                })
            }
            Some(b'w') => Err(Kind::Malformed("an XLogData message")),
            Some(b'k') => Err(Kind::Malformed("a keepalive message")),
            _ => Err(Kind::Malformed("a CopyData message of unknown type")),
        }
    }
}

/// 'w', dataStart, walEnd, sendTime (protocol.sgml, "Streaming Replication Protocol").
const WAL_HEADER_BYTES: usize = 25;

/// 'k', walEnd, sendTime, replyRequested.
const KEEPALIVE_BYTES: usize = 18;

/// 'r', write, flush, apply, client time, replyRequested.
const STATUS_BYTES: u32 = 34;

/// As CopyData. Flush is what moves the slot; apply is the same, so that a session under
/// `synchronous_commit = remote_apply` waits for us in the same way.
fn write_status(status: Status, queued: &mut impl BufMut) {
    queued.put_u8(b'd');
    queued.put_u32(4 + STATUS_BYTES);
    queued.put_u8(b'r');
    queued.put_u64(status.received.as_u64());
    queued.put_u64(status.confirmed.as_u64());
    queued.put_u64(status.confirmed.as_u64());
    queued.put_i64(postgres_now());
    queued.put_u8(status.reply_requested.into());
}

/// Microseconds since 2000-01-01 00:00:00 UTC, shown as `reply_time` in `pg_stat_replication`.
fn postgres_now() -> i64 {
    const POSTGRES_EPOCH: Duration = Duration::from_secs(946_684_800);
    let since = SystemTime::now().duration_since(UNIX_EPOCH + POSTGRES_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
    })
}

#[cfg(test)]
mod tests;

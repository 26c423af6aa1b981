//! START_REPLICATION: what was committed, as pgoutput, and what the client confirms (walsender.c).

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use outjet::lsn::Lsn;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

use super::backend::{Process, Wire, terminated};
use super::pgoutput::{self, PARTITION, ROOT};
use super::state::{Fate, Phase, State};
use super::wal::{Change, Event, Kind, Membership, Transaction};
use super::wire;

/// Takes the slot and streams it. `None`: the session is over; else it takes commands again.
pub(super) async fn start<S>(process: &Process, wire: &mut Wire<S>, command: &str) -> Option<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let begun = begin(process, command);
    let mut sender = match begun {
        Ok(sender) => sender,
        Err((code, words)) => {
            wire::report(&mut wire.output, b'E', ("ERROR", code, &words));
            wire::ready(&mut wire.output);
            return wire.flush().await;
        }
    };
    wire::put(&mut wire.output, b'W', |out| {
        out.put_u8(0);
        out.put_u16(0);
    });
    let ended = sender.stream(wire).await;
    process.server.state().release(process.pid);
    process.server.shared.changed.notify_waiters();
    if let Some(End::Failed(code, words)) = &ended {
        wire::report(&mut wire.output, b'E', ("ERROR", code, words));
        wire::ready(&mut wire.output);
    }
    wire.flush().await?;
    match ended? {
        End::CopyDone | End::Failed(..) => Some(()),
        End::Shutdown | End::Terminated => None,
    }
}

/// Why a slot is not streamed: SQLSTATE and words.
type Refusal = (&'static str, String);

fn refuse<T>(code: &'static str, words: impl Into<String>) -> Result<T, Refusal> {
    Err((code, words.into()))
}

/// What START_REPLICATION says.
struct Command {
    slot: String,
    from: u64,
    messages: bool,
}

impl Command {
    /// `START_REPLICATION SLOT "s" LOGICAL X/X (option 'value', …)`.
    fn parse(text: &str) -> Option<(Self, &str)> {
        let (words, options) = text.split_once('(')?;
        let mut words = words.split_ascii_whitespace().skip(2);
        let slot = words.next()?.trim_matches('"').to_owned();
        let from: Lsn = words.nth(1)?.parse().ok()?;
        let command = Self {
            slot,
            from: from.as_u64(),
            messages: false,
        };
        Some((command, options.strip_suffix(')')?))
    }

    /// `parse_output_parameters`, pgoutput.c. Names are not looked for before they are needed.
    fn options(&mut self, options: &str, (major, publication): (u32, &str)) -> Result<(), Refusal> {
        let version_max = match major {
            14 => 2,
            15 => 3,
            _ => 4,
        };
        let (mut version, mut names) = (None, None);
        for option in options.split(", ") {
            let (name, value) = option.split_once(' ').unwrap_or((option, ""));
            let value = value.trim_matches('\'');
            match name {
                "proto_version" => version = value.parse::<u32>().ok(),
                "publication_names" => names = Some(value.trim_matches('"')),
                "messages" => self.messages = value == "true",
                _ => return refuse("XX000", format!("unrecognized pgoutput option: {name}")),
            }
        }
        let Some(version) = version else {
            // Up to 16 it counts as version 0.
            let code = if major < 17 { "0A000" } else { "22023" };
            return refuse(code, "proto_version option missing");
        };
        let Some(names) = names else {
            return refuse("22023", "publication_names option missing");
        };
        if !(1..=version_max).contains(&version) {
            let words = format!("client sent proto_version={version}");
            return refuse("0A000", words);
        }
        // Another one is as one that does not exist, as soon as a row is decoded: not modelled.
        assert!(
            names == publication || names == "none",
            "publication {names}"
        );
        Ok(())
    }
}

fn begin<'a>(process: &'a Process, command: &str) -> Result<Walsender<'a>, Refusal> {
    let Some((mut command, options)) = Command::parse(command) else {
        return refuse("42601", "syntax error");
    };
    let mut state = process.server.state();
    let state = &mut *state;
    let major = state.options.major;
    if state.catalog.in_recovery && major < 16 {
        return refuse("0A000", "logical decoding cannot be used while in recovery");
    }
    let name = &command.slot;
    let ours = state.options.slot == *name;
    let Some(slot) = state.slot.as_mut().filter(|_| ours) else {
        return refuse(
            "42704",
            format!("replication slot \"{name}\" does not exist"),
        );
    };
    if let Some(pid) = slot.active_pid {
        let words = format!("replication slot \"{name}\" is active for PID {pid}");
        return refuse("55006", words);
    }
    if slot.lost {
        let words = format!("can no longer get changes from slot \"{name}\"");
        return refuse("55000", words);
    }
    command.options(options, (major, &state.options.publication))?;
    slot.active_pid = Some(process.pid);
    let (confirmed, restart) = (slot.now.confirmed, slot.now.restart);
    if let Some(backend) = state.backends.get_mut(&process.pid) {
        backend.streaming = true;
    }
    Ok(Walsender {
        process,
        major,
        messages: command.messages,
        next: state.wal.index_after(restart),
        sent: restart,
        told: restart,
        skip_before: confirmed.max(command.from),
        rest: None,
        described: None,
        loaded: None,
        flush: 0,
        write: 0,
        heard: Instant::now(),
        asked: false,
        asks: false,
        end: None,
    })
}

/// Why there is no more to be streamed.
enum End {
    /// The client wants no more.
    CopyDone,
    /// The client is going.
    Terminated,
    /// All is confirmed, and the server stops.
    Shutdown,
    /// A change cannot be decoded: SQLSTATE and words.
    Failed(&'static str, String),
}

/// A transaction that is being sent.
struct Rest {
    transaction: Arc<Transaction>,
    /// Its next change.
    next: usize,
    /// Its Begin is sent.
    begun: bool,
}

struct Walsender<'a> {
    process: &'a Process,
    major: u32,
    /// Of the options: logical messages are sent.
    messages: bool,
    /// The next record to be decoded.
    next: usize,
    /// `sentPtr`.
    sent: u64,
    /// The last that it has said by itself.
    told: u64,
    /// What has its record, or that of its commit, before it is not sent
    /// (`SnapBuildXactNeedsSkip`).
    skip_before: u64,
    rest: Option<Rest>,
    /// The table was described as it was in this edition of the catalog.
    described: Option<u32>,
    /// The publication was looked for in this edition of the catalog.
    loaded: Option<u32>,
    flush: u64,
    write: u64,
    heard: Instant,
    /// It has been asked for a sign of life since it was heard.
    asked: bool,
    /// It wants an answer.
    asks: bool,
    end: Option<End>,
}

/// How much is queued before it is written.
const CHUNK_BYTES: usize = 8 * 1024;

impl Walsender<'_> {
    async fn stream<S>(&mut self, wire: &mut Wire<S>) -> Option<End>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        loop {
            match self.process.fate() {
                Fate::Lives => {}
                Fate::Killed => return None,
                Fate::Terminated => {
                    terminated(wire).await;
                    return None;
                }
            }
            let changed = self.process.server.shared.changed.notified();
            if self.process.server.state().frozen {
                changed.await;
                continue;
            }
            self.take_replies(wire);
            if wire.output.is_empty() && self.end.is_none() {
                self.fill(&mut wire.output);
            }
            if self.end.is_some() {
                return self.end.take();
            }
            let timeout = self.process.timeout;
            let at = self.heard + if self.asked { timeout } else { timeout / 2 };
            let Wire {
                stream,
                input,
                output,
            } = wire;
            let (mut reader, mut writer) = tokio::io::split(stream);
            tokio::select! {
                biased;
                read = reader.read_buf(input) => {
                    if !matches!(read, Ok(bytes) if bytes > 0) {
                        return None;
                    }
                }
                written = writer.write_buf(output), if !output.is_empty() => {
                    written.ok()?;
                }
                () = changed => {}
                () = tokio::time::sleep_until(at) => {
                    if self.asked {
                        return None;
                    }
                    self.asked = true;
                    keepalive(output, self.sent, (true, self.now()));
                }
            }
        }
    }

    fn now(&self) -> i64 {
        self.process.server.state().now()
    }

    /// What the client has said.
    fn take_replies<S>(&mut self, wire: &mut Wire<S>) {
        while let Some((tag, mut body)) = wire::split(&mut wire.input) {
            self.heard = Instant::now();
            self.asked = false;
            match tag {
                b'd' if body.get_u8() == b'r' => self.take_status(body, &mut wire.output),
                b'c' => {
                    wire::put(&mut wire.output, b'c', |_| {});
                    wire::complete(&mut wire.output, "COPY 0");
                    wire::complete(&mut wire.output, "START_REPLICATION");
                    wire::ready(&mut wire.output);
                    self.end = Some(End::CopyDone);
                    return;
                }
                b'X' => {
                    self.end = Some(End::Terminated);
                    return;
                }
                tag => panic!("message {:?} of a client that streams", char::from(tag)),
            }
        }
    }

    fn take_status(&mut self, mut body: Bytes, out: &mut BytesMut) {
        self.write = body.get_u64();
        self.flush = body.get_u64();
        body.advance(8 + 8);
        if body.get_u8() == 1 {
            keepalive(out, self.sent, (false, self.now()));
        }
        let mut state = self.process.server.state();
        if let Some(backend) = state.backends.get_mut(&self.process.pid) {
            backend.replied = (self.write, self.flush);
        }
        if self.flush > 0
            && let Some(slot) = &mut state.slot
        {
            slot.confirm(self.flush);
        }
    }

    /// Decodes a chunk, or says how far it has come.
    fn fill(&mut self, out: &mut BytesMut) {
        let server = self.process.server.clone();
        let mut state = server.state();
        while out.len() < CHUNK_BYTES && self.end.is_none() {
            if let Some(rest) = self.rest.take() {
                self.send(rest, (out, &state));
                continue;
            }
            let Some(record) = state.wal.records.get(self.next) else {
                self.sent = self.sent.max(state.wal.flushed);
                break;
            };
            self.next += 1;
            let (start, end, kind) = (record.start, record.end, record.kind.clone());
            match kind {
                Kind::Running { restart } => {
                    if let Some(slot) = &mut state.slot {
                        slot.offer_restart(start, restart);
                    }
                }
                Kind::Message(body) => {
                    if start >= self.skip_before && self.messages {
                        data(out, end, (&body, state.now()));
                    }
                }
                Kind::Commit(transaction) => {
                    if start >= self.skip_before {
                        // During a transaction it is where its commit record starts.
                        self.sent = start;
                        if let Some(slot) = &mut state.slot {
                            slot.used = true;
                        }
                        self.rest = Some(Rest {
                            transaction,
                            next: 0,
                            begun: false,
                        });
                        continue;
                    }
                }
            }
            self.sent = end;
        }
        if out.is_empty() && self.end.is_none() {
            self.idle(out, &state);
        }
    }

    /// Everything is sent.
    fn idle(&mut self, out: &mut BytesMut, state: &State) {
        let stopping = state.phase == Phase::Stopping;
        // `WalSndDone`: of a client that never flushes, what it has received counts.
        let replicated = if self.flush == 0 {
            self.write
        } else {
            self.flush
        };
        if stopping && replicated == self.sent {
            wire::complete(out, "COPY 0");
            self.end = Some(End::Shutdown);
        } else if stopping && !self.asks {
            self.asks = true;
            keepalive(out, self.sent, (true, state.now()));
        } else if self.sent > self.told && self.flush < self.sent && self.write < self.sent {
            self.told = self.sent;
            keepalive(out, self.sent, (false, state.now()));
        }
    }

    /// Sends a part of a transaction. From 15 on one without changes is left out.
    fn send(&mut self, mut rest: Rest, (out, state): (&mut BytesMut, &State)) {
        let transaction = rest.transaction.clone();
        let now = state.now();
        let begin = |rest: &mut Rest, out: &mut BytesMut, lsn| {
            if !std::mem::replace(&mut rest.begun, true) {
                let mut body = BytesMut::new();
                pgoutput::begin(&mut body, transaction.place);
                data(out, lsn, (&body, now));
            }
        };
        if self.major == 14 {
            begin(&mut rest, out, transaction.first);
        }
        while let Some(change) = transaction.changes.get(rest.next) {
            rest.next += 1;
            if !self.wants(change, (out, state)) {
                if self.end.is_some() {
                    return;
                }
                continue;
            }
            begin(&mut rest, out, change.lsn);
            self.describe(change, (out, now));
            if change.membership == Membership::Untranslatable {
                let words = "character has no equivalent in encoding \"UTF8\"";
                self.end = Some(End::Failed("22P05", words.to_owned()));
                return;
            }
            data(out, change.lsn, (&change.body, now));
            if out.len() >= CHUNK_BYTES {
                self.rest = Some(rest);
                return;
            }
        }
        if rest.begun {
            let mut body = BytesMut::new();
            pgoutput::commit(&mut body, transaction.place);
            data(out, transaction.place.end, (&body, now));
        } else if state.catalog.synchronous {
            keepalive(out, transaction.place.end, (false, now));
        }
        self.sent = transaction.place.end;
    }

    /// Whether a change is sent. Up to 17 a change of any table fails where there was no
    /// publication when it was written; 18 gives a notice.
    fn wants(&mut self, change: &Change, (out, state): (&mut BytesMut, &State)) -> bool {
        if let Some(Event::Message { .. }) = change.event {
            return self.messages;
        }
        if change.membership == Membership::NoPublication {
            let name = &state.options.publication;
            let words = format!("publication \"{name}\" does not exist");
            if self.major < 18 {
                self.end = Some(End::Failed("42704", words));
            } else if self.loaded != Some(change.edition) {
                let words = format!("skipped loading publication \"{name}\"");
                wire::report(out, b'N', ("WARNING", "55000", &words));
            }
        }
        self.loaded = Some(change.edition);
        let published = [Membership::Member, Membership::Untranslatable];
        published.contains(&change.membership)
    }

    /// The root and the partition, before the first row of them.
    fn describe(&mut self, change: &Change, (out, now): (&mut BytesMut, i64)) {
        let row = matches!(change.event, Some(Event::Row(_)));
        if !row || self.described == Some(change.edition) {
            return;
        }
        self.described = Some(change.edition);
        for oid in [ROOT, PARTITION] {
            let mut body = BytesMut::new();
            pgoutput::relation(&mut body, oid);
            data(out, 0, (&body, now));
        }
    }
}

/// XLogData.
fn data(out: &mut BytesMut, lsn: u64, (body, now): (&[u8], i64)) {
    wire::put(out, b'd', |out| {
        out.put_u8(b'w');
        out.put_u64(lsn);
        out.put_u64(lsn);
        out.put_i64(now);
        out.put_slice(body);
    });
}

fn keepalive(out: &mut BytesMut, sent: u64, (asks, now): (bool, i64)) {
    wire::put(out, b'd', |out| {
        out.put_u8(b'k');
        out.put_u64(sent);
        out.put_i64(now);
        out.put_u8(asks.into());
    });
}

//! START_REPLICATION: what was committed, as pgoutput, and what the client confirms (walsender.c).

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

use super::backend::{Process, Wire, terminated};
use super::pgoutput::{self, ROOT};
use super::state::{Fate, Phase, State};
use super::wal::{Kind, Membership, Transaction};
use super::wire;

/// Takes the slot and streams until the end of the session.
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
    sender.stream(wire).await;
    process.server.state().release(process.pid);
    // No client of ours goes on after CopyDone.
    None
}

/// Why a slot is not streamed: SQLSTATE and words.
type Refusal = (&'static str, String);

fn begin<'a>(process: &'a Process, command: &str) -> Result<Walsender<'a>, Refusal> {
    let mut words = command.split_ascii_whitespace();
    let name = words
        .nth(2)
        .unwrap_or_default()
        .trim_matches('"')
        .to_owned();
    let mut state = process.server.state();
    if state.catalog.in_recovery && state.options.major < 16 {
        let words = "logical decoding cannot be used while in recovery".to_owned();
        return Err(("55000", words));
    }
    let ours = state.options.slot == name;
    let major = state.options.major;
    let state = &mut *state;
    let Some(slot) = state.slot.as_mut().filter(|_| ours) else {
        return Err((
            "42704",
            format!("replication slot \"{name}\" does not exist"),
        ));
    };
    if let Some(pid) = slot.active_pid {
        let words = format!("replication slot \"{name}\" is active for PID {pid}");
        return Err(("55006", words));
    }
    if slot.lost {
        return Err((
            "55000",
            format!("can no longer get changes from slot \"{name}\""),
        ));
    }
    slot.active_pid = Some(process.pid);
    let (confirmed, restart) = (slot.now.confirmed, slot.now.restart);
    if let Some(backend) = state.backends.get_mut(&process.pid) {
        backend.streaming = true;
    }
    Ok(Walsender {
        process,
        major,
        next: state.wal.index_after(restart),
        sent: restart,
        skip_before: confirmed,
        rest: None,
        described: false,
        flush: 0,
        write: 0,
        heard: Instant::now(),
        asked: false,
        asks: false,
        done: false,
    })
}

struct Walsender<'a> {
    process: &'a Process,
    major: u32,
    /// The next record to be decoded.
    next: usize,
    /// `sentPtr`.
    sent: u64,
    /// Transactions that end before it are not sent (`SnapBuildXactNeedsSkip`).
    skip_before: u64,
    /// A transaction that is being sent, and its next change.
    rest: Option<(Arc<Transaction>, usize)>,
    described: bool,
    flush: u64,
    write: u64,
    heard: Instant,
    /// It has been asked for a sign of life since it was heard.
    asked: bool,
    /// It wants an answer.
    asks: bool,
    done: bool,
}

/// How much is queued before it is written.
const CHUNK_BYTES: usize = 8 * 1024;

impl Walsender<'_> {
    async fn stream<S>(&mut self, wire: &mut Wire<S>) -> Option<()>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        loop {
            match self.process.fate() {
                Fate::Lives => {}
                Fate::Killed => return None,
                Fate::Terminated => return terminated(wire).await,
            }
            let changed = self.process.server.shared.changed.notified();
            if self.process.server.state().frozen {
                changed.await;
                continue;
            }
            self.take_replies(wire);
            if wire.output.is_empty() {
                self.fill(&mut wire.output);
            }
            if self.done {
                wire::complete(&mut wire.output, "COPY 0");
                return wire.flush().await;
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
                b'c' | b'X' => self.done = true,
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
        if self.flush > 0
            && let Some(slot) = &mut self.process.server.state().slot
        {
            slot.confirm(self.flush);
        }
    }

    /// Decodes a chunk, or says how far it has come.
    fn fill(&mut self, out: &mut BytesMut) {
        let server = self.process.server.clone();
        let mut state = server.state();
        let before = self.sent;
        while out.len() < CHUNK_BYTES && !self.done {
            if let Some((transaction, from)) = self.rest.take() {
                self.send(&transaction, from, (out, &state));
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
                    if end > self.skip_before {
                        data(out, end, (&body, state.now()));
                    }
                }
                Kind::Commit(transaction) => {
                    if transaction.place.end > self.skip_before {
                        // During a transaction it is where its commit record starts.
                        self.sent = start;
                        if let Some(slot) = &mut state.slot {
                            slot.used = true;
                        }
                        self.begin(&transaction, (out, &state));
                        self.rest = Some((transaction, 0));
                        continue;
                    }
                }
            }
            self.sent = end;
        }
        if out.is_empty() {
            self.idle((out, &state), before);
        }
    }

    /// Everything is sent.
    fn idle(&mut self, (out, state): (&mut BytesMut, &State), before: u64) {
        let stopping = state.phase == Phase::Stopping;
        if stopping && self.flush >= self.sent {
            self.done = true;
        } else if stopping && !self.asks {
            self.asks = true;
            keepalive(out, self.sent, (true, state.now()));
        } else if self.sent > before && self.flush < self.sent && self.write < self.sent {
            keepalive(out, self.sent, (false, state.now()));
        }
    }

    fn begin(&mut self, transaction: &Transaction, (out, state): (&mut BytesMut, &State)) {
        let sends = transaction
            .changes
            .iter()
            .any(|it| it.membership == Membership::Member);
        // From 15 on empty ones are left out.
        if sends || self.major == 14 {
            let mut body = BytesMut::new();
            pgoutput::begin(&mut body, transaction.place);
            data(out, transaction.place.commit, (&body, state.now()));
        }
    }

    fn send(
        &mut self,
        transaction: &Arc<Transaction>,
        from: usize,
        (out, state): (&mut BytesMut, &State),
    ) {
        let mut sends = self.major == 14;
        for (at, change) in transaction.changes.iter().enumerate().skip(from) {
            if change.membership != Membership::Member {
                continue;
            }
            if !std::mem::replace(&mut self.described, true) {
                let mut body = BytesMut::new();
                pgoutput::relation(&mut body, ROOT);
                data(out, 0, (&body, state.now()));
            }
            data(out, change.lsn, (&change.body, state.now()));
            if out.len() >= CHUNK_BYTES {
                self.rest = Some((transaction.clone(), at + 1));
                return;
            }
        }
        sends |= transaction
            .changes
            .iter()
            .any(|it| it.membership == Membership::Member);
        if sends {
            let mut body = BytesMut::new();
            pgoutput::commit(&mut body, transaction.place);
            data(out, transaction.place.end, (&body, state.now()));
        }
        self.sent = transaction.place.end;
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

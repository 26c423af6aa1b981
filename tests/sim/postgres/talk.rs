//! A replication session, byte by byte, whatever stands behind it. Says what it hears in words,
//! with positions of the log as [marks](super::conformance).

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

use super::conformance::Mark;
use super::wire;

/// Anything that is to be said is said by then.
const SILENCE: Duration = Duration::from_secs(5);

/// So often a walsender is asked at most how far it has come.
const ROUNDS_MAX: u32 = 100_000;

/// One connection.
pub(super) struct Talk {
    stream: Box<dyn outjet::net::Stream>,
    received: BytesMut,
    /// Of the last status update.
    pub(super) write: u64,
    pub(super) flush: u64,
    /// Where the commits that were sent begin and end.
    pub(super) commits: Vec<(u64, u64)>,
    /// Of the last keepalive.
    pub(super) wal_end: u64,
    /// The process that serves us.
    pub(super) pid: i32,
    /// What the server has said of the session by itself.
    pub(super) settings: BTreeMap<String, String>,
}

/// What a server says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Whether it asks for an answer.
    Keepalive(bool),
    /// An error or a notice.
    Report(String),
    /// ReadyForQuery.
    Ready,
    /// Anything else.
    Said(String),
    /// The connection ended.
    End,
    Silence,
}

impl Heard {
    /// In words.
    pub(super) fn words(self) -> String {
        match self {
            Self::Report(words) | Self::Said(words) => words,
            heard => format!("{heard:?}"),
        }
    }
}

impl Talk {
    /// Logs in. Why it cannot, in words.
    pub(super) async fn open(
        stream: Box<dyn outjet::net::Stream>,
        parameters: &[(&str, &str)],
    ) -> Result<Self, String> {
        let mut talk = Self {
            stream,
            received: BytesMut::new(),
            write: 0,
            flush: 0,
            commits: Vec::new(),
            wal_end: 0,
            pid: 0,
            settings: BTreeMap::new(),
        };
        let mut packet = BytesMut::new();
        packet.put_u32(196_608);
        for (name, value) in parameters {
            wire::put_string(&mut packet, name);
            wire::put_string(&mut packet, value);
        }
        packet.put_u8(0);
        let length = u32::try_from(packet.len() + 4).expect("short");
        talk.say(&length.to_be_bytes()).await;
        talk.say(&packet).await;
        loop {
            match talk.next().await {
                Heard::Ready => return Ok(talk),
                Heard::Said(_) => {}
                heard => return Err(heard.words()),
            }
        }
    }

    /// Says something, and returns all that is answered, up to ReadyForQuery or the end.
    pub(super) async fn ask(&mut self, command: &str) -> Vec<String> {
        self.query(command).await;
        self.answer().await
    }

    /// All that is said up to ReadyForQuery or the end.
    pub(super) async fn answer(&mut self) -> Vec<String> {
        let mut said = Vec::new();
        loop {
            match self.next().await {
                Heard::Ready => return said,
                Heard::Keepalive(_) => {}
                heard => {
                    let over = matches!(heard, Heard::End | Heard::Silence);
                    said.push(heard.words());
                    if over {
                        return said;
                    }
                }
            }
        }
    }

    /// Starts to stream. What is said against it.
    pub(super) async fn start(&mut self, command: &str) -> Vec<String> {
        self.query(command).await;
        match self.next().await {
            Heard::Said(words) if words == "CopyBothResponse" => Vec::new(),
            heard => {
                let mut said = vec![heard.words()];
                said.extend(self.answer().await);
                said
            }
        }
    }

    /// All that a walsender has to say of what is before `end`, but for keepalives.
    pub(super) async fn drain(&mut self, end: u64) -> Vec<String> {
        let mut said = Vec::new();
        for _ in 0..ROUNDS_MAX {
            self.status(self.write, self.flush, true).await;
            loop {
                match self.next().await {
                    Heard::Keepalive(_) if self.wal_end >= end => return said,
                    Heard::Keepalive(_) => break,
                    Heard::Ready | Heard::End => return said,
                    heard => {
                        let silence = heard == Heard::Silence;
                        said.push(heard.words());
                        if silence {
                            return said;
                        }
                    }
                }
            }
        }
        panic!("the walsender never comes to {end}: {said:?}");
    }

    /// A status update.
    pub(super) async fn status(&mut self, write: u64, flush: u64, asks: bool) {
        (self.write, self.flush) = (write, flush);
        let mut body = BytesMut::new();
        wire::put(&mut body, b'd', |out| {
            out.put_u8(b'r');
            out.put_u64(write);
            out.put_u64(flush);
            out.put_u64(flush);
            out.put_i64(0);
            out.put_u8(asks.into());
        });
        self.say(&body).await;
    }

    /// CopyDone or Terminate.
    pub(super) async fn finish(&mut self, tag: u8) {
        let mut body = BytesMut::new();
        wire::put(&mut body, tag, |_| {});
        self.say(&body).await;
    }

    /// The next thing that is not a keepalive without a question.
    pub(super) async fn next_asking(&mut self) -> Heard {
        loop {
            let heard = self.next().await;
            if heard != Heard::Keepalive(false) {
                return heard;
            }
        }
    }

    /// The next thing that it says.
    pub(super) async fn next(&mut self) -> Heard {
        let until = Instant::now() + SILENCE;
        loop {
            if let Some((tag, body)) = wire::split(&mut self.received) {
                return self.heard(tag, body);
            }
            let read = self.stream.read_buf(&mut self.received);
            match timeout_at(until, read).await {
                Err(_) => return Heard::Silence,
                Ok(Ok(0) | Err(_)) => return Heard::End,
                Ok(Ok(_)) => {}
            }
        }
    }

    async fn query(&mut self, command: &str) {
        let mut body = BytesMut::new();
        wire::put(&mut body, b'Q', |out| wire::put_string(out, command));
        self.say(&body).await;
    }

    async fn say(&mut self, bytes: &[u8]) {
        // What is closed is noticed by the next answer.
        drop(self.stream.write_all(bytes).await);
        drop(self.stream.flush().await);
    }

    fn heard(&mut self, tag: u8, mut body: Bytes) -> Heard {
        match tag {
            b'Z' => Heard::Ready,
            b'd' => match body.get_u8() {
                b'k' => {
                    self.wal_end = body.get_u64();
                    body.advance(8);
                    Heard::Keepalive(body.get_u8() == 1)
                }
                b'w' => Heard::Said(self.change(body)),
                tag => Heard::Said(format!("CopyData {}", char::from(tag))),
            },
            b'E' | b'N' => Heard::Report(report(body)),
            b'K' => {
                self.pid = body.get_i32();
                Heard::Said("BackendKeyData".to_owned())
            }
            b'S' => {
                let (name, value) = (string(&mut body), string(&mut body));
                self.settings.insert(name, value);
                Heard::Said("ParameterStatus".to_owned())
            }
            b'W' => Heard::Said("CopyBothResponse".to_owned()),
            b'c' => Heard::Said("CopyDone".to_owned()),
            b'C' => Heard::Said(format!("CommandComplete {}", string(&mut body))),
            b'T' => Heard::Said(description(body)),
            b'D' => Heard::Said(format!("DataRow {:?}", values(body))),
            tag => Heard::Said(format!("message {}", char::from(tag))),
        }
    }

    /// XLogData, and what pgoutput says in it.
    fn change(&mut self, mut body: Bytes) -> String {
        let (start, end) = (body.get_u64(), body.get_u64());
        assert_eq!(start, end, "a logical walsender names one place");
        body.advance(8);
        match body.get_u8() {
            b'B' => {
                let commit = Mark::Start(body.get_u64());
                body.advance(8);
                let xid = Mark::Xid(u64::from(body.get_u32()));
                format!("{} Begin, commit {commit}, {xid}", Mark::Start(start))
            }
            b'C' => {
                let flags = body.get_u8();
                let (commit, ends) = (body.get_u64(), body.get_u64());
                self.commits.push((commit, ends));
                let (commit, ends) = (Mark::Start(commit), Mark::End(ends));
                format!(
                    "{} Commit {commit} to {ends}, flags {flags}",
                    Mark::End(start)
                )
            }
            b'R' => format!("{} {}", Mark::Start(start), relation(body)),
            b'I' => format!("{} {}", Mark::Start(start), insert(body)),
            b'M' => {
                let transactional = body.get_u8() == 1;
                let ends = Mark::End(body.get_u64());
                let prefix = string(&mut body);
                body.advance(4);
                let content = String::from_utf8_lossy(&body);
                format!(
                    "{} Message {prefix} {content:?} to {ends}, transactional {transactional}",
                    Mark::End(start)
                )
            }
            tag => format!("{} pgoutput {}", Mark::Start(start), char::from(tag)),
        }
    }
}

/// Its severity and SQLSTATE: words differ between versions.
fn report(mut body: Bytes) -> String {
    let (mut severity, mut code, mut text) = (String::new(), String::new(), String::new());
    while body.remaining() > 1 {
        let field = body.get_u8();
        let value = string(&mut body);
        match field {
            b'V' => severity = value,
            b'C' => code = value,
            b'M' => text = value,
            _ => {}
        }
    }
    eprintln!("{severity} {code}: {text}");
    format!("{severity} {code}")
}

fn description(mut body: Bytes) -> String {
    let count = body.get_u16();
    let column = |_| {
        let name = string(&mut body);
        body.advance(6);
        let oid = body.get_u32();
        body.advance(8);
        format!("{name} {oid}")
    };
    let columns: Vec<String> = (0..count).map(column).collect();
    format!("RowDescription {columns:?}")
}

fn relation(mut body: Bytes) -> String {
    let oid = Mark::Oid(u64::from(body.get_u32()));
    let (schema, name) = (string(&mut body), string(&mut body));
    let identity = char::from(body.get_u8());
    let count = body.get_u16();
    let column = |_| {
        let flags = body.get_u8();
        let name = string(&mut body);
        let (oid, modifier) = (body.get_u32(), body.get_i32());
        format!("{flags} {name} {oid} {modifier}")
    };
    let columns: Vec<String> = (0..count).map(column).collect();
    format!("Relation {oid} {schema}.{name} {identity} {columns:?}")
}

fn insert(mut body: Bytes) -> String {
    let oid = Mark::Oid(u64::from(body.get_u32()));
    let new = char::from(body.get_u8());
    let count = body.get_u16();
    let value = |_| match body.get_u8() {
        b't' => {
            let length = body.get_u32() as usize;
            let text = body.split_to(length);
            format!("{:?}", String::from_utf8_lossy(&text))
        }
        tag => char::from(tag).to_string(),
    };
    let values: Vec<String> = (0..count).map(value).collect();
    format!("Insert {oid} {new} {}", values.join(" "))
}

/// Of a DataRow.
fn values(mut body: Bytes) -> Vec<Option<String>> {
    let count = body.get_u16();
    let value = |_| {
        let length = usize::try_from(body.get_i32()).ok()?;
        let value = body.split_to(length);
        Some(String::from_utf8_lossy(&value).into_owned())
    };
    (0..count).map(value).collect()
}

fn string(body: &mut Bytes) -> String {
    wire::take_string(body).expect("a string")
}

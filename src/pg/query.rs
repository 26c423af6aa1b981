//! The simple query protocol, all that a replication session understands. Knows no particular
//! command.

use bytes::Bytes;
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::{DataRowBody, Message};
use postgres_protocol::message::frontend;

use super::error::{Error, Kind, Phase};
use super::wire::Conn;

/// A row in text format; `None` is NULL.
pub(super) type Row = Vec<Option<Bytes>>;

/// What is asked on a replication session is about one slot, one publication or one timeline; the
/// longest answer is a list of columns.
const ROWS_MAX: usize = 100_000;

impl Conn {
    /// The rows of all statements in `sql`. After an error of the server's the connection can be
    /// used again; dropped half-way, the next command first reads what is left of this one.
    pub(super) async fn simple_query(&mut self, sql: &str) -> Result<Vec<Row>, Error> {
        self.phase = Phase::Query;
        let rows = self.run(sql).await;
        rows.map_err(|kind| self.error(kind))
    }

    /// Sends a command once everything of earlier ones has been read.
    pub(super) async fn send_query(&mut self, sql: &str) -> Result<(), Kind> {
        self.settle().await?;
        self.notices.clear();
        self.queue(|queued| frontend::query(sql, queued))?;
        self.ready_owed += 1;
        Ok(())
    }

    /// Reads up to the ReadyForQuery of the last command sent, so that its error does not stand in
    /// the way of the next one. A server that closes instead has nothing more to say.
    pub(super) async fn settle(&mut self) -> Result<(), Kind> {
        while self.ready_owed > 0 {
            match self.next().await {
                Ok(packet) if packet.tag == b'Z' => self.ready_owed -= 1,
                Ok(_) | Err(Kind::Server(_)) => {}
                Err(kind) => return Err(kind),
            }
        }
        Ok(())
    }

    async fn run(&mut self, sql: &str) -> Result<Vec<Row>, Kind> {
        self.send_query(sql).await?;
        let outcome = self.rows().await;
        if matches!(outcome, Err(Kind::Server(_))) {
            // A FATAL error is followed by the end of the connection; the error says more.
            let _ = self.settle().await;
        }
        outcome
    }

    async fn rows(&mut self) -> Result<Vec<Row>, Kind> {
        let mut rows = Vec::new();
        loop {
            let packet = self.next().await?;
            let tag = packet.tag;
            match packet.parse()? {
                Message::RowDescription(_) | Message::CommandComplete(_) => {}
                Message::EmptyQueryResponse => {}
                Message::DataRow(_) if rows.len() == ROWS_MAX => {
                    return Err(Kind::TooManyRows(ROWS_MAX));
                }
                Message::DataRow(body) => rows.push(row(&body)?),
                Message::ReadyForQuery(_) => {
                    self.ready_owed -= 1;
                    return Ok(rows);
                }
                _ => return Err(Kind::Unexpected(tag)),
            }
        }
    }
}

fn row(body: &DataRowBody) -> Result<Row, Kind> {
    let buffer = body.buffer_bytes();
    body.ranges()
        .map(|range| Ok(range.map(|range| buffer.slice(range))))
        .collect()
        .map_err(Kind::Parse)
}

/// A value as text.
pub(super) fn text(value: Bytes) -> Result<String, Kind> {
    String::from_utf8(value.into()).map_err(|_| Kind::Malformed("a value that is not UTF-8"))
}

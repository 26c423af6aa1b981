//! Decodes the messages of pgoutput, protocol version 1, from borrowed bytes: no socket, no clock,
//! no knowledge of events. Layouts: "Logical Replication Message Formats" in the Postgres manual,
//! and `src/backend/replication/logical/proto.c`.
//!
//! What is read here decides what is published, so nothing is passed over: a field out of range,
//! an unknown tag or a byte too many is an error. Input never panics; the lints below see to it.

#![deny(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod encode;
#[cfg(test)]
mod golden;
mod reader;
#[cfg(test)]
mod tests;

use std::fmt;

use self::reader::Reader;
use crate::lsn::Lsn;

/// Decodes one message. `body` is the payload of one `XLogData`, without its 24-byte header.
///
/// Allocates nothing. Strings must be UTF-8, which is what `client_encoding=UTF8` gives for every
/// database but one in `SQL_ASCII` whose names are not.
pub fn decode(body: &[u8]) -> Result<Message<'_>, DecodeError> {
    let reader = &mut Reader::new(body);
    let (message, name) = match reader.u8("tag")? {
        b'B' => (begin(reader)?, "Begin"),
        b'C' => (commit(reader)?, "Commit"),
        b'O' => (origin(reader)?, "Origin"),
        b'R' => (Message::Relation(Relation::read(reader)?), "Relation"),
        b'Y' => (type_name(reader)?, "Type"),
        b'I' => (insert(reader)?, "Insert"),
        b'U' => (update(reader)?, "Update"),
        b'D' => (delete(reader)?, "Delete"),
        b'T' => (truncate(reader)?, "Truncate"),
        b'M' => (Message::Logical(LogicalMessage::read(reader)?), "Message"),
        tag @ (b'S' | b'E' | b'c' | b'A' | b'b' | b'P' | b'K' | b'r' | b'p') => {
            return Err(DecodeError::Unexpected(tag));
        }
        tag => return Err(DecodeError::UnknownTag(tag)),
    };
    reader.end(name)?;
    Ok(message)
}

/// A message of protocol version 1. The order on the wire is: Begin, then Origin, Relation, Type
/// and the changes, then Commit; a logical message that is not transactional stands between
/// transactions, never inside one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// A committed transaction starts. Postgres 14 sends it for every transaction of the database,
    /// also when nothing in it is published.
    Begin {
        /// Where the commit record starts: the transaction's place in commit order. Only
        /// Commit's `end_lsn` may be confirmed.
        commit_lsn: Lsn,
        /// When it was committed; at its origin, if an Origin follows.
        commit_time: PgTime,
        /// The transaction's id, which wraps: no key.
        xid: u32,
    },
    /// The transaction is complete.
    Commit {
        /// The same as Begin's.
        commit_lsn: Lsn,
        /// Where the commit record ends: what is confirmed once everything in it is stored.
        end_lsn: Lsn,
        /// The same as Begin's.
        commit_time: PgTime,
    },
    /// The transaction was replicated into this database from elsewhere.
    Origin {
        /// The commit's LSN on the origin, which is another server's WAL.
        commit_lsn: Lsn,
        /// The origin's name in `pg_replication_origin`.
        name: &'a str,
    },
    /// What the following rows of this relation look like, until it is sent again.
    Relation(Relation<'a>),
    /// The name of a type that is not built in, before the Relation that uses it.
    Type {
        /// The oid in `pg_type`.
        oid: u32,
        /// Empty for `pg_catalog`.
        namespace: &'a str,
        /// For a domain, the name of its base type.
        name: &'a str,
    },
    /// A row was inserted.
    Insert {
        /// The oid of a Relation sent before.
        relation: u32,
        /// The row, in the order of the Relation's columns.
        tuple: Tuple<'a>,
    },
    /// A row was updated.
    Update {
        /// The oid of a Relation sent before.
        relation: u32,
        /// What identified the row before, if the replica identity made the server send it.
        old: Option<OldTuple<'a>>,
        /// The row as it is now; large values that did not change are `Unchanged`.
        new: Tuple<'a>,
    },
    /// A row was deleted.
    Delete {
        /// The oid of a Relation sent before.
        relation: u32,
        /// What identified the row.
        old: OldTuple<'a>,
    },
    /// Tables were emptied.
    Truncate {
        /// `TRUNCATE … CASCADE`.
        cascade: bool,
        /// `TRUNCATE … RESTART IDENTITY`.
        restart_identity: bool,
        /// The oids of Relations sent before.
        relations: Oids<'a>,
    },
    /// `pg_logical_emit_message`. The manual calls it Message.
    Logical(LogicalMessage<'a>),
}

/// A table, as the rows that follow see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relation<'a> {
    /// The oid in `pg_class`: the root's, with `publish_via_partition_root`.
    pub oid: u32,
    /// The schema; empty for `pg_catalog`.
    pub namespace: &'a str,
    /// The table's name, at the time of the change.
    pub name: &'a str,
    /// What UPDATE and DELETE send of the old row.
    pub replica_identity: ReplicaIdentity,
    /// The columns, in the order of the tuples.
    pub columns: Columns<'a>,
}

/// `relreplident` of `pg_class`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaIdentity {
    /// The primary key, if there is one.
    Default,
    /// Nothing.
    Nothing,
    /// The whole row.
    Full,
    /// The columns of an index.
    Index,
}

/// The columns of a relation: checked by [`decode`], read when they are iterated.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Columns<'a> {
    len: usize,
    body: &'a [u8],
}

/// One column of a relation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column<'a> {
    /// It is part of the replica identity.
    pub key: bool,
    /// The column's name.
    pub name: &'a str,
    /// The oid of its type.
    pub type_oid: u32,
    /// The type's modifier (`atttypmod`), -1 for none.
    pub typmod: i32,
}

/// The values of a row: checked by [`decode`], read when they are iterated. `Debug` shows lengths,
/// never values.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Tuple<'a> {
    len: usize,
    body: &'a [u8],
}

/// One value of a row. `Debug` shows its length, never the value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum TupleValue<'a> {
    /// NULL.
    Null,
    /// A large value that an UPDATE did not change and the server did not send. Never in an Insert.
    Unchanged,
    /// The type's text form, in `client_encoding`.
    Text(&'a [u8]),
    /// The type's binary form; only with the option `binary`.
    Binary(&'a [u8]),
}

/// What is sent of a row as it was before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OldTuple<'a> {
    /// The columns of the replica identity; the others are NULL.
    Key(Tuple<'a>),
    /// The whole row: replica identity FULL.
    Full(Tuple<'a>),
}

/// The oids of a Truncate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Oids<'a> {
    oids: &'a [[u8; 4]],
}

/// What `pg_logical_emit_message` wrote. `Debug` shows the content's length only.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct LogicalMessage<'a> {
    /// Whether it belongs to the transaction around it. If not, it is sent even on rollback.
    pub transactional: bool,
    /// Where its record ends in the WAL.
    pub lsn: Lsn,
    /// Who it is for.
    pub prefix: &'a str,
    /// Any bytes.
    pub content: &'a [u8],
}

/// Microseconds since 2000-01-01 00:00:00 UTC, which is how Postgres counts time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PgTime(i64);

/// Why a body is not a message. The names are those of the manual, `Message.field`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The body ends before or inside this field.
    #[error("message ends before the end of {0}")]
    Missing(&'static str),
    /// The message is complete, and more follows.
    #[error("{bytes} bytes follow after the end of {message}")]
    Trailing {
        /// The message.
        message: &'static str,
        /// How many bytes are left.
        bytes: usize,
    },
    /// A length or a count is below zero.
    #[error("{0} is negative")]
    Negative(&'static str),
    /// A name is not text as `client_encoding=UTF8` promises it.
    #[error("{0} is not valid UTF-8")]
    NotUtf8(&'static str),
    /// Flags or a kind with a value that protocol version 1 does not know.
    #[error("{field} has the unknown value {value:#04x}")]
    UnknownValue {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u8,
    },
    /// A message of streamed or prepared transactions, which we never ask for.
    #[error("message {:?} belongs to protocol version 2 or later", char::from(*.0))]
    Unexpected(u8),
    /// No version of the protocol that we know has this message.
    #[error("message tag {0:#04x} is unknown")]
    UnknownTag(u8),
}

fn begin<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    Ok(Message::Begin {
        commit_lsn: reader.lsn("Begin.commit_lsn")?,
        commit_time: reader.time("Begin.commit_time")?,
        xid: reader.u32("Begin.xid")?,
    })
}

fn commit<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    flags(reader, 0, "Commit.flags")?;
    Ok(Message::Commit {
        commit_lsn: reader.lsn("Commit.commit_lsn")?,
        end_lsn: reader.lsn("Commit.end_lsn")?,
        commit_time: reader.time("Commit.commit_time")?,
    })
}

fn origin<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    Ok(Message::Origin {
        commit_lsn: reader.lsn("Origin.commit_lsn")?,
        name: reader.str("Origin.name")?,
    })
}

fn type_name<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    Ok(Message::Type {
        oid: reader.u32("Type.oid")?,
        namespace: reader.str("Type.namespace")?,
        name: reader.str("Type.name")?,
    })
}

fn insert<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    let relation = reader.u32("Insert.relation")?;
    match reader.u8("Insert.new")? {
        b'N' => Ok(Message::Insert {
            relation,
            tuple: Tuple::read(reader)?,
        }),
        value => Err(unknown("Insert.new", value)),
    }
}

fn update<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    let relation = reader.u32("Update.relation")?;
    let (old, kind) = match reader.u8("Update.old")? {
        b'K' => (Some(OldTuple::Key(Tuple::read(reader)?)), None),
        b'O' => (Some(OldTuple::Full(Tuple::read(reader)?)), None),
        kind => (None, Some(kind)),
    };
    let kind = kind.map_or_else(|| reader.u8("Update.new"), Ok)?;
    if kind != b'N' {
        return Err(unknown("Update.new", kind));
    }
    Ok(Message::Update {
        relation,
        old,
        new: Tuple::read(reader)?,
    })
}

fn delete<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    let relation = reader.u32("Delete.relation")?;
    let old = match reader.u8("Delete.old")? {
        b'K' => OldTuple::Key(Tuple::read(reader)?),
        b'O' => OldTuple::Full(Tuple::read(reader)?),
        value => return Err(unknown("Delete.old", value)),
    };
    Ok(Message::Delete { relation, old })
}

fn truncate<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    // TRUNCATE_CASCADE and TRUNCATE_RESTART_SEQS of logicalproto.c.
    const CASCADE: u8 = 1;
    const RESTART_IDENTITY: u8 = 2;
    let count = reader.len("Truncate.relations")?;
    let options = flags(reader, CASCADE | RESTART_IDENTITY, "Truncate.options")?;
    let len = count
        .checked_mul(size_of::<u32>())
        .ok_or(DecodeError::Missing("Truncate.relations"))?;
    let (oids, _) = reader.take(len, "Truncate.relations")?.as_chunks();
    Ok(Message::Truncate {
        cascade: options & CASCADE != 0,
        restart_identity: options & RESTART_IDENTITY != 0,
        relations: Oids { oids },
    })
}

/// A byte of flags, of which only those in `known` may be set.
fn flags(reader: &mut Reader<'_>, known: u8, field: &'static str) -> Result<u8, DecodeError> {
    let value = reader.u8(field)?;
    match value & !known {
        0 => Ok(value),
        _ => Err(unknown(field, value)),
    }
}

fn unknown(field: &'static str, value: u8) -> DecodeError {
    DecodeError::UnknownValue { field, value }
}

impl<'a> Relation<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            oid: reader.u32("Relation.oid")?,
            namespace: reader.str("Relation.namespace")?,
            name: reader.str("Relation.name")?,
            replica_identity: match reader.u8("Relation.replica_identity")? {
                b'd' => ReplicaIdentity::Default,
                b'n' => ReplicaIdentity::Nothing,
                b'f' => ReplicaIdentity::Full,
                b'i' => ReplicaIdentity::Index,
                value => return Err(unknown("Relation.replica_identity", value)),
            },
            columns: Columns::read(reader)?,
        })
    }
}

impl<'a> Columns<'a> {
    /// How many columns there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// A table without columns.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The columns in order, [`Columns::len`] of them.
    pub fn iter(&self) -> impl Iterator<Item = Column<'a>> + use<'a> {
        let mut reader = Reader::new(self.body);
        (0..self.len).map_while(move |_| Column::read(&mut reader).ok())
    }

    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let len = reader.count("Relation.columns")?;
        let body =
            reader.span(|reader| (0..len).try_for_each(|_| Column::read(reader).map(drop)))?;
        Ok(Self { len, body })
    }
}

impl fmt::Debug for Columns<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<'a> Column<'a> {
    /// LOGICALREP_IS_REPLICA_IDENTITY of proto.c.
    const KEY: u8 = 1;

    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            key: flags(reader, Self::KEY, "Relation.column.flags")? == Self::KEY,
            name: reader.str("Relation.column.name")?,
            type_oid: reader.u32("Relation.column.type_oid")?,
            typmod: reader.i32("Relation.column.typmod")?,
        })
    }
}

impl<'a> Tuple<'a> {
    /// How many values there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// A row of a table without columns.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The values in the order of the relation's columns, [`Tuple::len`] of them.
    pub fn iter(&self) -> impl Iterator<Item = TupleValue<'a>> + use<'a> {
        let mut reader = Reader::new(self.body);
        (0..self.len).map_while(move |_| TupleValue::read(&mut reader).ok())
    }

    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let len = reader.count("Tuple.columns")?;
        let body =
            reader.span(|reader| (0..len).try_for_each(|_| TupleValue::read(reader).map(drop)))?;
        Ok(Self { len, body })
    }
}

impl fmt::Debug for Tuple<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<'a> TupleValue<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        match reader.u8("Tuple.kind")? {
            b't' => sized(reader).map(Self::Text),
            b'n' => Ok(Self::Null),
            b'b' => sized(reader).map(Self::Binary),
            b'u' => Ok(Self::Unchanged),
            value => Err(unknown("Tuple.kind", value)),
        }
    }
}

fn sized<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], DecodeError> {
    let len = reader.len("Tuple.length")?;
    reader.take(len, "Tuple.value")
}

impl fmt::Debug for TupleValue<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("Null"),
            Self::Unchanged => f.write_str("Unchanged"),
            Self::Text(text) => write!(f, "Text({} bytes)", text.len()),
            Self::Binary(bytes) => write!(f, "Binary({} bytes)", bytes.len()),
        }
    }
}

impl<'a> Oids<'a> {
    /// The oids in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = u32> + use<'a> {
        self.oids.iter().map(|&oid| u32::from_be_bytes(oid))
    }
}

impl<'a> LogicalMessage<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        const TRANSACTIONAL: u8 = 1;
        let flags = flags(reader, TRANSACTIONAL, "Message.flags")?;
        let lsn = reader.lsn("Message.lsn")?;
        let prefix = reader.str("Message.prefix")?;
        let len = reader.len("Message.length")?;
        Ok(Self {
            transactional: flags == TRANSACTIONAL,
            lsn,
            prefix,
            content: reader.take(len, "Message.content")?,
        })
    }
}

impl fmt::Debug for LogicalMessage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogicalMessage")
            .field("transactional", &self.transactional)
            .field("lsn", &self.lsn)
            .field("prefix", &self.prefix)
            .field("content", &format_args!("{} bytes", self.content.len()))
            .finish()
    }
}

impl PgTime {
    /// From the eight bytes of the protocol.
    pub const fn new(micros: i64) -> Self {
        Self(micros)
    }

    /// For the eight bytes of the protocol.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// Microseconds since 1970-01-01 00:00:00 UTC, at most `i64::MAX`.
    pub const fn to_unix_micros(self) -> i64 {
        // 10 957 days, POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE of timestamp.h.
        const EPOCH: i64 = 946_684_800_000_000;
        self.0.saturating_add(EPOCH)
    }
}

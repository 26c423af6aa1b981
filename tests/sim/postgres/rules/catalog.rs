//! What the server says of itself when outjet asks.

use outjet::pg::params::APPLICATION_NAME;
use outjet::pg::replication::ANY_BYTES;
use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, ToSql, Type};

use crate::postgres::conformance::{Mark, Rule};
use crate::postgres::sql::QUERIES;
use crate::postgres::stage::{Stage, start};
use crate::postgres::talk::Talk;

pub(super) const RULES: &[Rule] = &[
    Rule {
        name: "the catalog is answered: all as outjet wants it",
        play: |stage| Box::pin(as_wanted(stage)),
    },
    Rule {
        name: "the catalog is answered: a slot in use, and another that would like it",
        play: |stage| Box::pin(in_use(stage)),
    },
    Rule {
        name: "the catalog is answered: no publication, no table in it, no slot",
        play: |stage| Box::pin(missing(stage)),
    },
    Rule {
        name: "the catalog is answered: a lost slot",
        play: |stage| Box::pin(lost(stage)),
    },
    Rule {
        name: "a standby says that it is one, and is streamed from 16 on",
        play: |stage| Box::pin(standing_by(stage)),
    },
    Rule {
        name: "a replication session is answered",
        play: |stage| Box::pin(on_the_session(stage)),
    },
];

/// A value as it comes: `None` is NULL.
struct Raw(Option<Vec<u8>>);

impl<'a> FromSql<'a> for Raw {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(Some(raw.to_vec())))
    }

    fn from_sql_null(_: &Type) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(None))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

/// Differs from server to server, and from time to time.
const OF_ITS_OWN: [&str; 13] = [
    "version_num",
    "version",
    "current_lsn",
    "slots_max",
    "wal_senders_max",
    "system_identifier",
    "active_pid",
    "holder_since",
    "inactive_since",
    "until",
    "default_rows",
    "restart_lsn",
    "flushed",
];

fn value(row: &Row, at: usize) -> String {
    let column = &row.columns()[at];
    let Raw(Some(raw)) = row.get(at) else {
        return "NULL".to_owned();
    };
    if OF_ITS_OWN.contains(&column.name()) {
        return "some".to_owned();
    }
    match *column.type_() {
        Type::TEXT | Type::NAME => format!("{:?}", String::from_utf8_lossy(&raw)),
        Type::PG_LSN => {
            let lsn = raw.try_into().expect("eight bytes");
            Mark::Place(u64::from_be_bytes(lsn)).to_string()
        }
        Type::OID if column.name() == "oid" => "some".to_owned(),
        Type::TEXT_ARRAY => format!("{:?}", row.get::<_, Vec<String>>(at)),
        _ => format!("{raw:?}"),
    }
}

/// Asks everything that outjet asks, and notes what is answered.
async fn ask_all(stage: &mut Stage) {
    let (client, _task) = stage.client().await;
    let mut table = 0u32;
    for query in QUERIES {
        let statement = client.prepare(query.text).await;
        let statement = statement.unwrap_or_else(|error| panic!("{}: {error:?}", query.text));
        let columns = statement.columns().iter();
        let columns = columns.map(|column| format!("{} {}", column.name(), column.type_()));
        let columns: Vec<String> = columns.collect();
        stage.say(format!("asked for {columns:?} of {:?}", statement.params()));
        if stage.major == 14 && query.columns[0].0 == "?column?" {
            // What was used it remembers some time later.
            continue;
        }
        let of_table: [&(dyn ToSql + Sync); 3] = [&"outbox", &"events", &"outjet"];
        let parameters: &[&(dyn ToSql + Sync)] = match *statement.params() {
            [] => &[],
            [Type::TEXT, Type::TEXT, Type::TEXT] => &of_table,
            [Type::TEXT, Type::TEXT] => &[&"outjet", &APPLICATION_NAME],
            [Type::OID] => &[&table],
            _ => &[&"outjet"],
        };
        let rows = client.query(&statement, parameters).await;
        for row in rows.expect("an answer") {
            if row.columns()[0].name() == "oid" {
                table = row.get(0);
            }
            let values = (0..row.len()).map(|at| value(&row, at));
            stage.say(values.collect::<Vec<_>>().join(", "));
        }
    }
}

async fn as_wanted(stage: &mut Stage) {
    ask_all(stage).await;
    stage.write("1").await;
    let mut talk = stage.stream().await;
    stage.drain(&mut talk).await;
    let end = talk.commits[0].1;
    talk.status(end, end, true).await;
    stage.slot_of(&talk).await;
    stage.released_after(talk).await;
    stage.say("used");
    ask_all(stage).await;
}

async fn in_use(stage: &mut Stage) {
    let _holder = stage.stream().await;
    let _other = stage.connect().await;
    ask_all(stage).await;
}

async fn missing(stage: &mut Stage) {
    stage.set_published(false).await;
    ask_all(stage).await;
    stage.set_publication(false).await;
    stage.drop_slot().await;
    ask_all(stage).await;
    stage.set_publication(true).await;
}

async fn lost(stage: &mut Stage) {
    stage.lose_slot().await;
    ask_all(stage).await;
}

async fn on_the_session(stage: &mut Stage) {
    let confirmed = include_str!("../../../../sql/confirmed_flush.sql").replace("$1", "'outjet'");
    let mut talk = stage.connect().await;
    say_settings(stage, &talk);
    let pid = talk.pid.to_string();
    for _ in 0..2 {
        let queries = [ANY_BYTES, "SELECT pg_backend_pid()", &confirmed];
        // 14 remembers some time later what was used.
        let asked = if stage.major == 14 { 2 } else { 3 };
        for query in &queries[..asked] {
            for line in talk.ask(query).await {
                stage.say(without_lsn(&line.replace(&pid, "its pid")));
            }
        }
        stage.drop_slot().await;
    }
}

/// The only value with a slash in it: where the slot is is seen elsewhere.
fn without_lsn(line: &str) -> String {
    let values = line.split('"');
    let values = values.map(|value| if value.contains('/') { "X/X" } else { value });
    values.collect::<Vec<_>>().join("\"")
}

/// Notes what a server says of a session by itself, as far as outjet listens.
fn say_settings(stage: &mut Stage, talk: &Talk) {
    for name in [
        "client_encoding",
        "default_transaction_read_only",
        "in_hot_standby",
        "integer_datetimes",
    ] {
        stage.say(format!("{name}: {:?}", talk.settings.get(name)));
    }
}

async fn standing_by(stage: &mut Stage) {
    stage.write("1").await;
    stage.stand_by().await;
    ask_all(stage).await;
    let mut talk = stage.connect().await;
    say_settings(stage, &talk);
    for line in talk.ask("IDENTIFY_SYSTEM").await {
        stage.say(line.split_ascii_whitespace().next().unwrap_or_default());
    }
    let refused = talk.start(&start("0/0", "")).await;
    if refused.is_empty() {
        stage.drain(&mut talk).await;
    }
    stage.say_all(refused);
    stage.released_after(talk).await;
    stage.promote(true).await;
    stage.write("2").await;
    let mut talk = stage.stream().await;
    stage.drain(&mut talk).await;
}

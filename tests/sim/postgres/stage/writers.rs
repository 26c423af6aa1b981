//! What writers do.

use super::{Open, Side, Stage};
use crate::harness::postgres::Session;
use crate::postgres::Row;

/// When all rows have been created, unless they say otherwise: they have one partition.
const CREATED: &str = "2001-02-03 04:05:06.789+00";

impl Stage {
    pub(in crate::postgres) async fn begin(&mut self) -> Open {
        match &mut self.side {
            Side::Real(real) => {
                let url = real.server.url_as("outjet", real.database);
                let writer = Session::connect(&url).await;
                // It waits for nobody.
                writer.run("SET synchronous_commit = local").await;
                writer.run("BEGIN").await;
                real.writers.push(writer);
                Open(real.writers.len() - 1)
            }
            Side::Model(model) => {
                model
                    .writers
                    .push(model.postgres.begin().expect("it is up"));
                Open(model.writers.len() - 1)
            }
        }
    }

    /// A row with an id that no other has.
    pub(in crate::postgres) fn row(&mut self, payload: &str) -> Row {
        self.rows += 1;
        let id = (u128::from(self.at) << 32) + u128::from(self.rows);
        let mut row = Row::new(uuid::Uuid::from_u128(id).to_string(), payload);
        row.created_at = Some(CREATED.to_owned());
        row
    }

    pub(in crate::postgres) async fn insert(&mut self, open: Open, row: Row) {
        match &mut self.side {
            Side::Real(real) => real.writers[open.0].run(&insert(&row)).await,
            Side::Model(model) => model.postgres.insert(model.writers[open.0], row),
        }
    }

    /// Writes a row with a text that UTF-8 lacks.
    pub(in crate::postgres) async fn insert_untranslatable(&mut self, open: Open) {
        let row = self.row("0");
        match &mut self.side {
            Side::Real(real) => {
                let sql = insert(&row).replace("'order'", "chr(129)");
                real.writers[open.0].run(&sql).await;
            }
            Side::Model(model) => {
                let xid = model.writers[open.0];
                model.postgres.insert_untranslatable(xid, row);
            }
        }
    }

    pub(in crate::postgres) async fn message(&mut self, open: Open, content: &str) {
        match &mut self.side {
            Side::Real(real) => {
                let sql = format!("SELECT pg_logical_emit_message(true, 'p', '{content}')");
                real.writers[open.0].run(&sql).await;
            }
            Side::Model(model) => {
                let xid = model.writers[open.0];
                model.postgres.message(xid, "p", content.as_bytes());
            }
        }
    }

    pub(in crate::postgres) async fn commit(&mut self, open: Open) {
        match &mut self.side {
            Side::Real(real) => real.writers[open.0].run("COMMIT").await,
            Side::Model(model) => drop(model.postgres.commit(model.writers[open.0])),
        }
    }

    pub(in crate::postgres) async fn roll_back(&mut self, open: Open) {
        match &mut self.side {
            Side::Real(real) => real.writers[open.0].run("ROLLBACK").await,
            Side::Model(model) => model.postgres.rollback(model.writers[open.0]),
        }
    }

    /// Commits one row.
    pub(in crate::postgres) async fn write(&mut self, payload: &str) {
        let row = self.row(payload);
        let open = self.begin().await;
        self.insert(open, row).await;
        self.commit(open).await;
    }

    pub(in crate::postgres) async fn unpublished(&mut self) {
        match &self.side {
            Side::Real(real) => real.admin().run("INSERT INTO business VALUES ('x')").await,
            Side::Model(model) => drop(model.postgres.unpublished(8)),
        }
    }

    /// A message outside of transactions.
    pub(in crate::postgres) async fn signal(&mut self, content: &str) {
        match &self.side {
            Side::Real(real) => {
                let sql = format!("SELECT pg_logical_emit_message(false, 'p', '{content}')");
                real.admin().run(&sql).await;
            }
            Side::Model(model) => model.postgres.signal("p", content.as_bytes()),
        }
    }
}

fn insert(row: &Row) -> String {
    let value = |value: Option<&str>| match value {
        Some(value) => format!("'{}'", value.replace('\'', "''")),
        None => "NULL".to_owned(),
    };
    let created = row.created_at.as_deref();
    let values = row.values().map(value);
    let values: Vec<&str> = values
        .iter()
        .enumerate()
        .map(|(at, value)| match (at, created) {
            (1, None) => "DEFAULT",
            _ => value,
        })
        .collect();
    format!("INSERT INTO outbox.events VALUES ({})", values.join(", "))
}

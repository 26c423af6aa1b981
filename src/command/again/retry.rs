//! `outjet dead-letters retry`: the rows of dead letters go out once more, as they are now, through
//! whoever leads. A letter is deleted when its event is known to be stored (or is a letter again,
//! under a new number), and not before: killed at any moment, at worst it can be retried again.

use postgres_protocol::escape::escape_literal;
use tokio_postgres::Client;

use super::handover::{hand_over, handover, prepare, refuse_without_messages, until_published};
use crate::cli;
use crate::command::aside::dead_letters::Letters;
use crate::command::rows::Rows;
use crate::command::{Out, connect, unwritten};
use crate::config::Config;
use crate::error::Failure;
use crate::event::assemble::Handover;
use crate::event::mapping::{Field, Mapping};
use crate::fault;
use crate::pg::params::Params;
use crate::sink::jetstream::DeadLetter;

/// Most letters whose rows are handed over before they are waited for.
const BATCH_MAX: usize = 50;

/// Retries what was typed. `false`: a letter stays.
pub(in crate::command) async fn retry(
    typed: &cli::NamedDeadLetters,
    config: &Config,
    params: &Params,
    out: Out<'_>,
) -> Result<bool, Failure> {
    refuse_without_messages(config)?;
    let letters = Letters::open(config).await?;
    let control = connect(params).await?;
    let mut retry = Retry {
        client: control.client(),
        slot: &config.postgres.slot,
        tables: config.assemble_options(&params.dbname)?.tables,
        batch: Vec::new(),
        letters,
        kept: false,
        out,
    };
    prepare(retry.client).await?;
    for sequence in &typed.sequences {
        match retry.letters.next(*sequence).await? {
            Some(letter) if letter.sequence() == *sequence => retry.take(&letter).await?,
            Some(_) | None => retry.say("absent ", *sequence, "")?,
        }
    }
    // What becomes a letter again meanwhile stands behind the last one.
    let mut from = 1;
    while typed.all
        && let Some(letter) = retry.letters.next(from).await?
        && letter.sequence() <= retry.letters.last_sequence()
    {
        retry.take(&letter).await?;
        from = letter.sequence() + 1;
    }
    retry.settle().await?;
    Ok(!retry.kept)
}

struct Retry<'a> {
    client: &'a Client,
    slot: &'a str,
    tables: Vec<Mapping>,
    letters: Letters,
    batch: Vec<(u64, Handover)>,
    /// A letter stays, or was not there.
    kept: bool,
    out: Out<'a>,
}

impl Retry<'_> {
    async fn take(&mut self, letter: &DeadLetter) -> Result<(), Failure> {
        match self.row(letter).await? {
            Ok(row) => self.batch.push((letter.sequence(), row)),
            Err(why) => self.say("kept   ", letter.sequence(), &format!(": {why}"))?,
        }
        match self.batch.len() {
            BATCH_MAX.. => self.settle().await,
            _ => Ok(()),
        }
    }

    /// The row of a letter, or why there is none to hand over.
    async fn row(&self, letter: &DeadLetter) -> Result<Result<Handover, String>, Failure> {
        let table = letter.table();
        let named = |mapping: &&Mapping| {
            let name = table.strip_prefix(mapping.schema());
            name.and_then(|name| name.strip_prefix('.')) == Some(mapping.table())
        };
        let Some(mapping) = self.tables.iter().find(named) else {
            let why = format!("{table} is no configured table; a message is to be emitted again");
            return Ok(Err(why));
        };
        if letter.id() == letter.position() {
            return Ok(Err("its row has no id that can be read".to_owned()));
        }
        let within_table = letter.id().strip_prefix(table);
        let id = within_table.and_then(|id| id.strip_prefix(':'));
        let id = id.unwrap_or(letter.id());
        let rows = Rows::open(self.client, mapping).await?;
        let Some(column) = rows.column(Field::Id) else {
            let why = format!("the ids of {table} are no column; see `outjet replay --where`");
            return Ok(Err(why));
        };
        // More than one would make it unclear which of them it was.
        let only = format!("WHERE {column} = {} LIMIT 2", escape_literal(id));
        let mut found = rows.read("look for the row", &rows.select(&only)).await?;
        Ok(match (found.pop(), found.is_empty()) {
            (None, _) => Err(format!("{table} has no row with the id {id} any more")),
            (Some(row), true) => Ok(handover(&rows, (mapping, row), (self.slot, ""))),
            (Some(_), false) => Err(format!("{table} has several rows with the id {id}")),
        })
    }

    /// Hands over what was gathered, waits until it is stored, and deletes the letters.
    async fn settle(&mut self) -> Result<(), Failure> {
        let (sequences, rows): (Vec<u64>, Vec<Handover>) =
            std::mem::take(&mut self.batch).into_iter().unzip();
        if rows.is_empty() {
            return Ok(());
        }
        hand_over(self.client, &rows).await?;
        fault::point("handed_over");
        until_published(self.client, self.slot).await?;
        fault::point("retried");
        for sequence in sequences {
            self.letters.delete(sequence).await?;
            writeln!(self.out, "retried  dead letter {sequence}").map_err(unwritten)?;
        }
        Ok(())
    }

    fn say(&mut self, what: &str, sequence: u64, why: &str) -> Result<(), Failure> {
        self.kept = true;
        writeln!(self.out, "{what}  dead letter {sequence}{why}").map_err(unwritten)
    }
}

//! Writers that go on whatever happens to the server, and events whose every byte follows from
//! their id: what stands in a stream can be checked without remembering what was written.

use std::time::Duration;

use futures_util::SinkExt;
use tokio::task::JoinSet;
use tokio_postgres::Error;
use tokio_util::sync::CancellationToken;

use crate::harness::outbox::Random;
use crate::harness::postgres::Session;

/// Sessions that write at the same time.
const WRITERS: u64 = 4;

/// How long a writer waits before it tries to connect again.
const RECONNECT: Duration = Duration::from_millis(50);

/// Longest pause after a transaction, in milliseconds: fast enough that the stream is running when
/// a fault comes, slow enough that a debug build makes up for an outage.
const PAUSE_MAX: u64 = 80;

/// The columns that are written.
const COLUMNS: &str = "id, aggregatetype, aggregateid, type, payload";

/// Rows of the application, which outjet has nothing to do with.
pub(crate) const BUSINESS: &str =
    "CREATE TABLE business (n bigserial PRIMARY KEY, words text NOT NULL)";

/// An event of the writers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    id: String,
    aggregatetype: &'static str,
    aggregateid: String,
    kind: &'static str,
    /// As jsonb prints it.
    pub(crate) payload: String,
}

impl Event {
    /// The event of this id; `None` if no writer makes such ids.
    pub(crate) fn of(id: &str) -> Option<Self> {
        let digits: String = id.split('-').take(3).collect();
        let mut random = Random(u64::from_str_radix(&digits, 16).ok()?);
        // Now and then larger than a page, so that it is TOASTed; rarely larger than 256 KiB, which
        // some plans have as the most that is under way.
        let length = match random.below(600) {
            0 => 50_000 + random.below(300_000),
            1..=6 => 20_000,
            _ => random.below(300),
        };
        let aggregatetype = ["order", "invoice", "user"][random.below(3) as usize];
        let kind = ["created", "changed", "closed"][random.below(3) as usize];
        let words = random.words(length as usize);
        Some(Self {
            id: id.to_owned(),
            aggregatetype,
            aggregateid: random.below(20).to_string(),
            kind,
            payload: format!(r#"{{"id": "{id}", "words": "{words}"}}"#),
        })
    }

    /// Where it is published by default.
    pub(crate) fn subject(&self) -> String {
        format!("events.{}.{}", self.aggregatetype, self.kind)
    }

    fn new(random: &mut Random) -> Self {
        Self::of(&random.uuid()).expect("an id of ours")
    }

    /// The values of [`COLUMNS`], without any character that INSERT or COPY would want escaped.
    fn values(&self) -> [&str; 5] {
        [
            &self.id,
            self.aggregatetype,
            &self.aggregateid,
            self.kind,
            &self.payload,
        ]
    }
}

/// What the writers know. The judge must know of all of the first and none of the second.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Ids of transactions whose COMMIT the server answered.
    pub(crate) committed: Vec<String>,
    /// Ids that were taken back, with a transaction or with a savepoint.
    pub(crate) rolled_back: Vec<String>,
    /// Events of transactions that ended with an error: the judge says what became of them.
    pub(crate) unknown: u64,
}

/// Commits one more event.
pub(crate) async fn write_one(session: &Session, random: &mut Random) {
    let mut transaction = Transaction::default();
    transaction.insert(random, 1);
    transaction.run(session).await.expect("a server at peace");
}

/// The statement that writes the event of an id.
pub(crate) fn insert(id: &str) -> String {
    let event = Event::of(id).expect("an id of ours");
    let values = event.values().join("','");
    format!("INSERT INTO outbox.events ({COLUMNS}) VALUES ('{values}')")
}

/// Writers at work.
pub(crate) struct Writers {
    tasks: JoinSet<Known>,
    stop: CancellationToken,
}

impl Writers {
    /// Starts them.
    pub(crate) fn start(url: &str, seed: u64) -> Self {
        let mut tasks = JoinSet::new();
        let stop = CancellationToken::new();
        for number in 0..WRITERS {
            let seed = seed.wrapping_mul(1_000_003).wrapping_add(number);
            tasks.spawn(go_on(url.to_owned(), Random(seed), stop.clone()));
        }
        Self { tasks, stop }
    }

    /// Lets each end the transaction that it is in.
    pub(crate) async fn finish(mut self) -> Known {
        self.stop.cancel();
        let mut all = Known::default();
        while let Some(known) = self.tasks.join_next().await {
            let known = known.expect("a writer failed");
            all.committed.extend(known.committed);
            all.rolled_back.extend(known.rolled_back);
            all.unknown += known.unknown;
        }
        all
    }
}

async fn go_on(url: String, mut random: Random, stop: CancellationToken) -> Known {
    let mut known = Known::default();
    let mut session = None;
    while !stop.is_cancelled() {
        let Some(connected) = &session else {
            session = Session::try_connect(&url).await.ok();
            if session.is_none() {
                tokio::time::sleep(RECONNECT).await;
            }
            continue;
        };
        let transaction = Transaction::new(&mut random);
        if transaction.run(connected).await.is_ok() {
            known.committed.extend(transaction.committed);
        } else {
            known.unknown += transaction.committed.len() as u64;
            session = None;
        }
        known.rolled_back.extend(transaction.rolled_back);
        tokio::time::sleep(Duration::from_millis(random.below(PAUSE_MAX))).await;
    }
    known
}

/// What a writer sends, and what is to become of it.
#[derive(Debug, Default, PartialEq)]
struct Transaction {
    statements: Vec<Statement>,
    committed: Vec<String>,
    rolled_back: Vec<String>,
}

#[derive(Debug, PartialEq)]
enum Statement {
    Run(String),
    Copy(String),
}

impl Transaction {
    fn new(random: &mut Random) -> Self {
        let mut transaction = Self::default();
        match random.below(1_000) {
            0..450 => transaction.insert(random, 1),
            450..600 => {
                let rows = 2 + random.below(30);
                transaction.insert(random, rows);
            }
            600..680 => {
                let rows = 1 + random.below(150);
                transaction.copy(random, rows);
            }
            680..780 => transaction.several(random),
            780..870 => transaction.savepoints(random),
            870..930 => transaction.roll_back(random),
            930..985 => transaction.business("alone"),
            // After a crash the slot stands where it stood at a checkpoint.
            985..992 => transaction.say("CHECKPOINT"),
            // More than is under way at once, and spilled to disk by the server.
            _ => transaction.large(random),
        }
        transaction
    }

    async fn run(&self, session: &Session) -> Result<(), Error> {
        for statement in &self.statements {
            match statement {
                Statement::Run(sql) => session.batch_execute(sql).await?,
                Statement::Copy(lines) => {
                    let copy = format!("COPY outbox.events ({COLUMNS}) FROM STDIN");
                    let sink = session.copy_in::<_, bytes::Bytes>(&copy).await?;
                    let mut sink = std::pin::pin!(sink);
                    sink.send(lines.clone().into()).await?;
                    sink.finish().await?;
                    // That was CommandComplete, which a COPY gets before it is committed: a server
                    // that dies in between sends it all the same (postgres.c, exec_execute_message,
                    // quickdie). Only what answers the next query knows of the commit.
                    session.batch_execute("").await?;
                }
            }
        }
        Ok(())
    }

    fn several(&mut self, random: &mut Random) {
        self.say("BEGIN");
        for _ in 0..1 + random.below(8) {
            self.insert(random, 1);
            self.business("beside");
        }
        self.say("COMMIT");
    }

    fn savepoints(&mut self, random: &mut Random) {
        self.say("BEGIN");
        for round in 0..2 + random.below(5) {
            self.say("SAVEPOINT s");
            let before = self.committed.len();
            let rows = 1 + random.below(3);
            self.insert(random, rows);
            if round % 2 == 0 {
                self.say("RELEASE SAVEPOINT s");
            } else {
                self.say("ROLLBACK TO SAVEPOINT s");
                self.rolled_back.extend(self.committed.drain(before..));
            }
        }
        self.say("COMMIT");
    }

    fn roll_back(&mut self, random: &mut Random) {
        self.say("BEGIN");
        let rows = 1 + random.below(300);
        self.insert(random, rows);
        self.business("beside");
        self.say("ROLLBACK");
        self.rolled_back.append(&mut self.committed);
    }

    fn large(&mut self, random: &mut Random) {
        self.say("BEGIN");
        for _ in 0..1 + random.below(8) {
            self.copy(random, 200);
            self.insert(random, 50);
        }
        self.say("COMMIT");
    }

    fn insert(&mut self, random: &mut Random, rows: u64) {
        let rows = self.rows(random, rows, |event| {
            format!("('{}')", event.values().join("','"))
        });
        let rows = rows.join(",");
        self.say(&format!(
            "INSERT INTO outbox.events ({COLUMNS}) VALUES {rows}"
        ));
    }

    fn copy(&mut self, random: &mut Random, rows: u64) {
        let lines = self.rows(random, rows, |event| event.values().join("\t") + "\n");
        self.statements.push(Statement::Copy(lines.concat()));
    }

    fn rows(
        &mut self,
        random: &mut Random,
        rows: u64,
        text: impl Fn(&Event) -> String,
    ) -> Vec<String> {
        let mut texts = Vec::new();
        for _ in 0..rows {
            let event = Event::new(random);
            texts.push(text(&event));
            self.committed.push(event.id);
        }
        texts
    }

    fn business(&mut self, words: &str) {
        self.say(&format!("INSERT INTO business (words) VALUES ('{words}')"));
    }

    fn say(&mut self, sql: &str) {
        self.statements.push(Statement::Run(sql.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_names_the_contents() {
        let written = |seed| {
            let mut random = Random(seed);
            let transactions = (0..50).map(|_| Transaction::new(&mut random));
            transactions.collect::<Vec<_>>()
        };
        assert_eq!(written(1), written(1));
        assert_ne!(written(1), written(2));
        let all = written(1);
        let rolled_back = |one: &&Transaction| !one.rolled_back.is_empty();
        assert!(all.iter().filter(rolled_back).count() > 3);
    }

    #[test]
    fn a_body_follows_from_its_id_and_differs_from_others() {
        let mut random = Random(5);
        let (one, other) = (Event::new(&mut random), Event::new(&mut random));
        assert_eq!(Event::of(&one.id).as_ref(), Some(&one));
        assert_ne!(one.payload, other.payload);
        assert!(Event::of("forged").is_none());
    }
}

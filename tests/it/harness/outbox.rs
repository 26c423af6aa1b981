//! Writers: transactions of every kind, with known contents, from many sessions at once.
//!
//! A load is a function of its seed (but for how the sessions interleave). What was committed, and
//! in which order, is not remembered here: that is the judge's to find out (see `drain`).

use futures_util::SinkExt;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::postgres::{Postgres, Session};

/// An outbox with the columns that the native mapping needs and no more, and a table of business
/// rows beside it. What `outjet setup` installs takes the same inserts.
const PLAIN: &str = "
CREATE SCHEMA IF NOT EXISTS outbox;
CREATE TABLE IF NOT EXISTS outbox.events (
  id            uuid        NOT NULL PRIMARY KEY DEFAULT gen_random_uuid(),
  created_at    timestamptz NOT NULL DEFAULT now(),
  aggregatetype text        NOT NULL,
  aggregateid   text        NOT NULL,
  type          text        NOT NULL,
  payload       jsonb
);
";

/// Business rows: WAL that the outbox has nothing to do with.
const BUSINESS: &str = "
CREATE TABLE IF NOT EXISTS business (n bigserial PRIMARY KEY, words text NOT NULL);
";

/// Makes a plain outbox, for tests that do without `outjet setup`.
pub(crate) async fn create_plain(postgres: &Postgres) {
    postgres.connect().await.run(PLAIN).await;
}

/// Commits this many events, each in a transaction of its own, from within the server.
pub(crate) async fn backlog(session: &Session, events: u64) {
    let one = many_rows("1");
    let sql = format!("DO $$ BEGIN FOR n IN 1..{events} LOOP {one}; COMMIT; END LOOP; END $$;");
    session.run(&sql).await;
}

/// Commits this many events in one transaction.
pub(crate) async fn one_transaction(session: &Session, events: u64) {
    session.run(&many_rows(&events.to_string())).await;
}

fn many_rows(count: &str) -> String {
    format!(
        "INSERT INTO outbox.events (aggregatetype, aggregateid, type, payload)
         SELECT 'order', (i % 1000)::text, 'created',
                jsonb_build_object('i', i, 'words', repeat('word ', 30))
         FROM generate_series(1, {count}) AS i"
    )
}

/// What is to be written.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    /// Names every choice that is made.
    pub(crate) seed: u64,
    /// Sessions that write at the same time.
    pub(crate) writers: u64,
    /// Transactions of each of them.
    pub(crate) transactions: u64,
    /// A pause after each transaction, to spread the load over a test; usually none.
    pub(crate) pause: Duration,
}

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Written {
    /// Events that were committed.
    pub(crate) committed: u64,
    /// Events that were taken back, with a transaction or with a savepoint.
    pub(crate) rolled_back: u64,
    /// Transactions that committed no event.
    pub(crate) empty: u64,
}

/// Writers at work.
pub(crate) struct Writers {
    tasks: JoinSet<Written>,
    stop: CancellationToken,
}

impl Load {
    /// A mixed load that a test can afford.
    pub(crate) fn mixed(seed: u64) -> Self {
        Self {
            seed,
            writers: 4,
            transactions: 50,
            pause: Duration::ZERO,
        }
    }

    /// Starts the writers, and lets the test go on.
    pub(crate) async fn start(&self, url: &str) -> Writers {
        if cfg!(test) {
            eprintln!("{self:?}");
        }
        Session::connect(url).await.run(BUSINESS).await;
        let mut tasks = JoinSet::new();
        let stop = CancellationToken::new();
        for number in 0..self.writers {
            let session = Session::connect(url).await;
            let writer = Writer::new(self, number, session);
            tasks.spawn(writer.run(self.transactions, self.pause, stop.clone()));
        }
        Writers { tasks, stop }
    }

    /// Writes it all.
    pub(crate) async fn write(&self, url: &str) -> Written {
        self.start(url).await.finish().await
    }
}

impl Writers {
    /// Lets each end the transaction that it is in, and no more.
    pub(crate) async fn stop(self) -> Written {
        self.stop.cancel();
        self.finish().await
    }

    /// Waits until all have written what they were to write.
    pub(crate) async fn finish(mut self) -> Written {
        let mut sum = Written::default();
        while let Some(written) = self.tasks.join_next().await {
            let written = written.expect("a writer failed");
            sum.committed += written.committed;
            sum.rolled_back += written.rolled_back;
            sum.empty += written.empty;
        }
        sum
    }
}

/// The kinds of transactions; one in ten is of each kind that is named once in [`KINDS`].
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// One INSERT, committed by itself.
    Single,
    /// One INSERT of many rows.
    Rows,
    /// COPY: many rows share one WAL record.
    Copy,
    /// Several INSERTs, business rows beside them.
    Several,
    /// The same, with savepoints that are kept and taken back in turn.
    Savepoints,
    /// Rolled back as a whole.
    RolledBack,
    /// Business rows alone.
    Business,
}

const KINDS: [Kind; 10] = [
    Kind::Single,
    Kind::Single,
    Kind::Single,
    Kind::Single,
    Kind::Rows,
    Kind::Copy,
    Kind::Several,
    Kind::Savepoints,
    Kind::RolledBack,
    Kind::Business,
];

/// One session that writes.
struct Writer {
    session: Session,
    random: Random,
    number: u64,
    rows: u64,
    written: Written,
}

impl Writer {
    fn new(load: &Load, number: u64, session: Session) -> Self {
        Self {
            session,
            random: Random(load.seed.wrapping_mul(1_000_003).wrapping_add(number)),
            number,
            rows: 0,
            written: Written::default(),
        }
    }

    async fn run(mut self, transactions: u64, pause: Duration, stop: CancellationToken) -> Written {
        for _ in 0..transactions {
            if stop.is_cancelled() {
                break;
            }
            let kind = KINDS[self.random.below(KINDS.len() as u64) as usize];
            self.transaction(kind).await;
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
        }
        self.written
    }

    async fn transaction(&mut self, kind: Kind) {
        match kind {
            Kind::Single => {
                let insert = self.insert(1);
                self.session.run(&insert).await;
                self.written.committed += 1;
            }
            Kind::Rows => {
                let rows = 2 + self.random.below(30);
                let insert = self.insert(rows);
                self.session.run(&insert).await;
                self.written.committed += rows;
            }
            Kind::Copy => self.copy().await,
            Kind::Several => self.several("COMMIT").await,
            Kind::RolledBack => self.several("ROLLBACK").await,
            Kind::Savepoints => self.savepoints().await,
            Kind::Business => {
                self.session
                    .run("INSERT INTO business (words) VALUES ('alone')")
                    .await;
                self.written.empty += 1;
            }
        }
    }

    async fn copy(&mut self) {
        let rows = 1 + self.random.below(200);
        let lines: String = (0..rows).map(|_| self.row().join("\t") + "\n").collect();
        let copy = format!("COPY outbox.events ({COLUMNS}) FROM STDIN");
        let sink = self.session.copy_in::<_, bytes::Bytes>(&copy).await;
        let mut sink = std::pin::pin!(sink.expect("COPY begins"));
        sink.send(lines.into()).await.expect("COPY goes on");
        sink.finish().await.expect("COPY ends");
        self.written.committed += rows;
    }

    async fn several(&mut self, end: &str) {
        let rows = 1 + self.random.below(8);
        self.session.run("BEGIN").await;
        for _ in 0..rows {
            let insert = self.insert(1);
            self.session.run(&insert).await;
            self.session
                .run("INSERT INTO business (words) VALUES ('beside')")
                .await;
        }
        self.session.run(end).await;
        match end {
            "COMMIT" => self.written.committed += rows,
            _ => self.written.rolled_back += rows,
        }
    }

    async fn savepoints(&mut self) {
        self.session.run("BEGIN").await;
        for round in 0..2 + self.random.below(5) {
            let insert = self.insert(1);
            self.session.run(&format!("SAVEPOINT s; {insert}")).await;
            if round % 2 == 0 {
                self.session.run("RELEASE SAVEPOINT s").await;
                self.written.committed += 1;
            } else {
                self.session.run("ROLLBACK TO SAVEPOINT s").await;
                self.written.rolled_back += 1;
            }
        }
        self.session.run("COMMIT").await;
    }

    fn insert(&mut self, rows: u64) -> String {
        let rows: Vec<String> = (0..rows)
            .map(|_| format!("('{}')", self.row().join("','")))
            .collect();
        format!(
            "INSERT INTO outbox.events ({COLUMNS}) VALUES {}",
            rows.join(",")
        )
    }

    /// The values of [`COLUMNS`], without any character that INSERT or COPY would want escaped.
    fn row(&mut self) -> [String; 5] {
        let id = self.random.uuid();
        let (writer, row) = (self.number, self.rows);
        self.rows += 1;
        // Now and then larger than a page, so that it is TOASTed.
        let length = match self.random.below(50) {
            0 => 20_000,
            _ => self.random.below(300),
        };
        let words = self.random.words(length as usize);
        let payload =
            format!(r#"{{"id": "{id}", "row": {row}, "writer": {writer}, "words": "{words}"}}"#);
        let aggregate = self.random.below(20).to_string();
        [
            id,
            "order".to_owned(),
            aggregate,
            "created".to_owned(),
            payload,
        ]
    }
}

const COLUMNS: &str = "id, aggregatetype, aggregateid, type, payload";

/// Numbers that look random and follow from the seed: SplitMix64 (Steele, Lea, Flood 2014).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// Any number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, nearly evenly.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// A UUID.
    pub(crate) fn uuid(&mut self) -> String {
        let (high, low) = (self.next(), self.next());
        format!(
            "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
            high >> 32,
            high >> 16 & 0xffff,
            high & 0xfff,
            low >> 48 & 0xfff,
            low & 0xffff_ffff_ffff,
        )
    }

    /// Text of this length, of letters and spaces.
    pub(crate) fn words(&mut self, length: usize) -> String {
        let letters = "etaoin shrdlu";
        (0..length)
            .map(|_| letters.as_bytes()[self.below(letters.len() as u64) as usize] as char)
            .collect()
    }
}

//! What an operator meets: for each mistake the three lines, problem, cause and fix, through
//! `check` and through `run`, with the exit code; and the fix, done as it is printed, helps.
//!
//! Every connection string holds a secret, and nothing that outjet prints may repeat one.

mod batches;
mod configuration;
mod nats;
mod postgres;
mod silence;
mod slot;

use std::time::Duration;

use outjet::error::Problem;
use serde_json::Value;

use crate::harness::outjet::{Builder, Output};
use crate::harness::postgres::Session;
use crate::harness::{Outjet, Wait, World, drain, until};

/// For what happens at once, on a machine that does much else.
const SOON: Duration = Duration::from_secs(60);

/// In the connection strings; servers that ask for no password do not look at them.
const POSTGRES_SECRET: &str = "hunter2-postgres";
const NATS_SECRET: &str = "hunter2-nats";

/// The start of every such secret.
const SECRET: &str = "hunter2";

/// Exit codes (DESIGN §9).
const CHECK_FAILED: i32 = 1;
const USAGE: i32 = 2;
const HALTED: i32 = 65;
const UNAVAILABLE: i32 = 69;
const NOT_PERMITTED: i32 = 77;
const CONFIG: i32 = 78;

/// How outjet is called in one test.
#[derive(Clone, Default)]
struct Site {
    environment: Vec<(String, String)>,
    config: String,
}

impl Site {
    /// Both servers, as their superuser and with secrets.
    fn of(world: &World) -> Self {
        let user = format!("postgres:{POSTGRES_SECRET}");
        let database = world.postgres.url_as(&user, "postgres");
        let nats = format!("nats://{NATS_SECRET}@127.0.0.1:{}", world.nats.port());
        Self::default()
            .with("DATABASE_URL", database)
            .with("NATS_URL", nats)
            // All that it ever logs must be without secrets.
            .with("OUTJET_LOG__LEVEL", "trace")
    }

    /// The same with another variable, or with another value for it.
    fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    /// The same as another user (`name` or `name:password`), in another database.
    fn login(self, world: &World, user: &str, database: &str) -> Self {
        self.with("DATABASE_URL", world.postgres.url_as(user, database))
    }

    /// The same with this `outjet.yaml`.
    fn config(mut self, yaml: &str) -> Self {
        yaml.clone_into(&mut self.config);
        self
    }

    /// Types a command line, words between blanks.
    fn call(&self, typed: &str) -> Builder {
        let mut call = Outjet::builder().args(typed.split(' '));
        for (name, value) in &self.environment {
            call = call.env(name, value);
        }
        if !self.config.is_empty() {
            call = call.config(&self.config);
        }
        call
    }

    /// Types a command and waits for its end.
    async fn types(&self, typed: &str) -> Output {
        let output = self.call(typed).output().await;
        for text in [&output.stdout, &output.stderr] {
            assert!(!text.contains(SECRET), "a secret in the output:\n{text}");
        }
        output
    }

    /// Sets up what is missing.
    async fn sets_up(&self) {
        let output = self.types("setup").await;
        assert_eq!(output.code, Some(0), "{output:?}");
    }

    /// `check` finds nothing wrong; returns what it printed.
    async fn passes(&self) -> String {
        let output = self.types("check").await;
        assert_eq!(output.code, Some(0), "{}", output.stdout);
        output.stdout
    }

    /// `check` says this of `place`, such as `slot exists`, and exits with 1.
    #[track_caller]
    fn fails(&self, place: &str, problem: &Problem) -> impl Future<Output = ()> {
        let lines = block("FAIL", place, problem);
        async move {
            let output = self.types("check").await;
            assert!(
                output.stdout.contains(&lines),
                "not there:\n{lines}in:\n{}",
                output.stdout
            );
            assert_eq!(output.code, Some(CHECK_FAILED));
            assert_eq!(output.stderr, "");
        }
    }

    /// A command that is over soon prints this and exits with the code.
    async fn refuses(&self, typed: &str, code: i32, problem: &Problem) {
        let output = self.types(typed).await;
        assert_eq!(errors(&output.stderr), format!("outjet: {problem}\n"));
        assert_eq!(output.code, Some(code), "{output:?}");
    }

    /// `run` halts with this and stays up; with `--exit-on-halt` it exits with 65.
    async fn halts(&self, problem: &Problem) {
        let mut running = self.call("run").spawn();
        halted(&mut running, problem).await;
        assert!(running.exited().is_none(), "a halt does not end it");
        ends(running).await;
        self.refuses("run --exit-on-halt", HALTED, problem).await;
    }

    /// `check` and `run` agree: a person must act.
    async fn fails_and_halts(&self, place: &str, problem: &Problem) {
        self.fails(place, problem).await;
        self.halts(problem).await;
    }

    /// `run` tries again and again, with this warning; it is left running.
    async fn retries(&self, problem: &Problem) -> Outjet {
        let mut running = self.call("run").spawn();
        let message = format!("retrying: {}", problem.problem);
        let line = running.logged(&message, SOON).await;
        assert_eq!(line["level"], "WARN", "{line}");
        assert_eq!(of(&line), *problem);
        running
    }

    /// `run` leads.
    async fn leads(&self) -> Outjet {
        let mut running = self.call("run").spawn();
        running.logged("leading", SOON).await;
        running
    }
}

/// Copies with slots, publications and streams of their own halt for one reason each. All causes
/// but the last are taken away.
#[tokio::test]
async fn halted_copies_go_on_by_themselves_once_the_cause_is_gone_and_else_halt_again() {
    let world = World::start().await;
    let client = world.postgres.connect().await;
    client.run("CREATE ROLE c LOGIN").await;
    let user = format!("c:{POSTGRES_SECRET}");
    let sites = ["a", "b", "c", "d"].map(|name| own(Site::of(&world), name));
    for site in &sites {
        site.sets_up().await;
    }
    client
        .run("ALTER PUBLICATION a DROP TABLE outbox.events")
        .await;
    let jetstream = world.nats.jetstream().await;
    for (stream, subject) in [("B", "not-b.>"), ("D", "not-d.>")] {
        nats::update(&jetstream, stream, &[subject]).await;
    }
    client.run(EMIT).await;

    let [a, b, c, d] = sites;
    let c = c.login(&world, &user, "postgres");
    let halts = [
        (a, "publication \"a\" does not publish outbox.events"),
        (b, "stream \"B\" does not cover subject \"b.Placed\""),
        (c, "role \"c\" may not replicate"),
        (d, "stream \"D\" does not cover subject \"d.Placed\""),
    ];
    let mut running = Vec::new();
    for (site, problem) in halts {
        let mut copy = site.call("run").spawn();
        let line = copy.logged(&format!("halted: {problem}"), SOON).await;
        running.push((copy, of(&line)));
    }
    mends(&client, &running[0].1).await;
    nats::edit(&jetstream, &running[1].1).await;
    client.run("ALTER ROLE c REPLICATION").await;
    client.run(EMIT).await;
    // What was written while the table was not published never comes.
    for (stream, events) in [("A", 1), ("B", 2), ("C", 2)] {
        drain::until_stored(&jetstream, stream, events, SOON + SOON).await;
    }
    // Having led for a moment, it must not look as if it led still.
    let d = &running[3].0;
    until("it has halted twice", SOON, async || {
        let log = d.log();
        let levels: Vec<_> = log
            .iter()
            .filter_map(|line| line["level"].as_str())
            .collect();
        let halts = levels.iter().filter(|level| **level == "ERROR").count();
        Wait::ready_if(halts >= 2, levels)
    })
    .await;
    for (copy, _) in running {
        ends(copy).await;
    }
}

/// Commits one event.
const EMIT: &str = "SELECT outbox.emit('order', '1', 'Placed')";

/// With a slot, a publication, a stream and subjects of this name.
fn own(site: Site, name: &str) -> Site {
    site.with("OUTJET_POSTGRES__HALT_RETRY", "1s")
        .with("OUTJET_POSTGRES__SLOT", name)
        .with("OUTJET_POSTGRES__PUBLICATION", name)
        .with("OUTJET_STREAM__NAME", name.to_uppercase())
        .with("OUTJET_STREAM__SUBJECTS", format!("[{name}.>]"))
        .with("OUTJET_PUBLISH__SUBJECT", format!("{name}.{{type}}"))
}

/// Waits until a running outjet says that it halted, and why.
async fn halted(running: &mut Outjet, problem: &Problem) {
    let message = format!("halted: {}", problem.problem);
    let line = running.logged(&message, SOON).await;
    assert_eq!(line["level"], "ERROR", "{line}");
    assert_eq!(of(&line), *problem);
}

/// Stops a running outjet, which has kept its secrets.
async fn ends(mut running: Outjet) {
    assert_eq!(running.terminate(SOON).await, Some(0));
    let log = running.stderr() + &running.stdout();
    assert!(!log.contains(SECRET), "a secret in the log:\n{log}");
}

/// The problem that a log line tells.
fn of(line: &Value) -> Problem {
    let field = |name: &str| line[name].as_str().unwrap_or("(missing)").to_owned();
    let message = field("message");
    let (_, problem) = message.split_once(": ").unwrap_or_default();
    Problem::new(problem, field("cause"), field("fix"))
}

/// The system's words for a port that nobody listens on.
fn connection_refused() -> String {
    std::io::Error::from(rustix::io::Errno::CONNREFUSED).to_string()
}

/// What `check` prints for a problem.
fn block(verdict: &str, place: &str, problem: &Problem) -> String {
    let lines = problem.to_string().replace('\n', "\n      ");
    format!("{verdict}  {place:<20}  {lines}\n")
}

/// Standard error without the log.
fn errors(stderr: &str) -> String {
    let lines = stderr.lines().filter(|line| !line.starts_with('{'));
    lines.map(|line| format!("{line}\n")).collect()
}

/// Types the statement that a fix consists of, or begins or ends with.
async fn mends(session: &Session, problem: &Problem) {
    let (_, fix) = problem
        .fix
        .split_once("`outjet setup`, or ")
        .unwrap_or(("", &problem.fix));
    let words = ["SELECT", "ALTER", "CREATE", "BEGIN"];
    assert!(words.iter().any(|word| fix.starts_with(word)), "{fix}");
    let end = fix.rfind(';').expect("a statement ends with a semicolon");
    session.run(&fix[..=end]).await;
}

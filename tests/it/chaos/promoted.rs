//! A standby lags behind its primary, which goes on and then dies for good; the standby is
//! promoted, and everybody is led to it. What the primary alone had committed is the lost tail:
//! outjet may have published it. And what a judge makes of both histories.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::arena::{Database, Links};
use super::{LOOK, contents};
use crate::harness::drain::{Stored, until_slots_are_kept};
use crate::harness::outbox::Random;
use crate::harness::postgres::{self, Session};
use crate::harness::proxy::Upstream;
use crate::harness::{Judge, Mode, Postgres, Proxy, Stop};

/// Slots are kept in step on standbys from this version on.
pub(crate) const WITH_FAILOVER_SLOTS: u32 = 17;

/// For a standby that begins to stream, and to keep slots, while nothing fails.
const SOON: Duration = Duration::from_secs(30);

/// How long outjet is waited for that publishes what the standby lacks: everything else fails.
const TAIL_WITHIN: Duration = Duration::from_secs(30);

/// The standby's own slot, and its name.
const STANDBY: &str = "standby";

/// Who is to take over from the server, and what is left of it then.
pub(crate) struct Succession {
    /// Where writers and judges find the server, whichever that is.
    front: Proxy,
    /// What the standby streams through.
    replication: Proxy,
    /// Until it is promoted.
    standby: Option<Postgres>,
    /// The old primary, once it has died.
    dead: Option<Postgres>,
    /// Other ids than the writers'.
    random: Random,
}

impl Succession {
    /// The settings of both servers. Transactions of autovacuum would come between the slots and
    /// the first look at them on the standby.
    pub(crate) fn settings(postgres: postgres::Builder) -> postgres::Builder {
        postgres
            .setting("autovacuum", "off")
            .setting("wal_retrieve_retry_interval", "100ms")
    }

    /// Gives a primary without logical slots a standby. `synchronized_standby_slots` stays empty:
    /// with it, outjet could publish nothing that the standby lacks.
    pub(crate) async fn prepare(primary: &mut Postgres, seed: u64) -> Self {
        primary.stop(Stop::Fast).await;
        let mut standby = primary.copy();
        primary.start_again().await;
        let port = primary.port().expect("it listens");
        let (front, replication) = (Proxy::before_port(port), Proxy::before_port(port));
        let session = primary.connect().await;
        let slot = format!("SELECT pg_create_physical_replication_slot('{STANDBY}', true)");
        session.text(&slot).await;
        let conninfo = format!(
            "host=127.0.0.1 port={} user=postgres dbname=postgres application_name={STANDBY}",
            replication.port()
        );
        standby.set("primary_conninfo", &conninfo);
        standby.set("primary_slot_name", STANDBY);
        standby.set("hot_standby_feedback", "on");
        standby.set("sync_replication_slots", "on");
        standby.start_again().await;
        let streams = format!(
            "SELECT count(*) FROM pg_stat_replication
             WHERE application_name = '{STANDBY}' AND state = 'streaming'"
        );
        session.until_text(&streams, "1", SOON).await;
        Self {
            front,
            replication,
            standby: Some(standby),
            dead: None,
            random: Random(seed ^ 1 << 41),
        }
    }

    /// Where whoever is led to the server connects.
    pub(crate) fn url(&self) -> String {
        format!("postgres://postgres@{}/postgres", self.front.address())
    }

    /// Waits until the standby has both slots, outjet's and the judge's.
    pub(crate) async fn slots_are_kept(&self, primary: &Session) {
        let standby = self.standby.as_ref().expect("it was not promoted yet");
        until_slots_are_kept(primary, &standby.connect().await).await;
    }

    /// Cuts the standby off, lets the primary go on for as long, kills it, and promotes the standby
    /// in its place.
    pub(crate) async fn strike(
        &mut self,
        primary: &mut Postgres,
        links: &[Links],
        lasts: Duration,
    ) {
        let successor = self.standby.take().expect("it was not promoted yet");
        self.replication.set(Mode::Refuse);
        self.publish_tail(primary).await;
        sleep(lasts).await;
        primary.crash().await;
        successor.promote().await;
        let port = successor.port().expect("it listens");
        let elsewhere = Upstream::Tcp(([127, 0, 0, 1], port).into());
        let to_postgres = links.iter().map(|links| &links.postgres);
        for link in to_postgres.chain([&self.front]) {
            link.retarget(elsewhere.clone());
        }
        self.dead = Some(std::mem::replace(primary, successor));
    }

    /// Has an event committed that the standby will never get, and waits until outjet has confirmed
    /// it; or for too long.
    async fn publish_tail(&mut self, primary: &Postgres) {
        let url = primary.url();
        let published = timeout(TAIL_WITHIN, async {
            // A server that lost a walsender may still restart.
            while publish(&url, &self.random.uuid()).await.is_none() {
                sleep(LOOK).await;
            }
        });
        let _ = published.await;
    }

    /// The old primary, once it has died.
    pub(crate) fn dead(&self) -> Option<&Postgres> {
        self.dead.as_ref()
    }
}

/// Commits the event of an id, and waits until it is confirmed. `None`: the server went away.
async fn publish(url: &str, id: &str) -> Option<()> {
    let session = Session::try_connect(url).await.ok()?;
    session.batch_execute(&contents::insert(id)).await.ok()?;
    let flushed = "SELECT pg_current_wal_flush_lsn()::text";
    let flushed: String = session.query_one(flushed, &[]).await.ok()?.get(0);
    let confirmed = format!(
        "SELECT confirmed_flush_lsn >= '{flushed}' FROM pg_replication_slots
         WHERE slot_name = 'outjet'"
    );
    let confirmed = async || {
        let row = session.query_one(&confirmed, &[]).await.ok()?;
        Some(row.get::<_, bool>(0))
    };
    while !confirmed().await? {
        sleep(LOOK).await;
    }
    Some(())
}

/// What was committed on the old primary alone.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    /// The events.
    pub(crate) lost: HashSet<String>,
    /// Where both histories do not fit together.
    pub(crate) problem: Option<String>,
}

impl Tail {
    /// Starts the old primary again, which nobody is led to any more, and compares.
    pub(crate) async fn of(database: &mut Database, judge: &Judge, survivors: &[String]) -> Self {
        let Some(succession) = &mut database.succession else {
            return Self::default();
        };
        let Some(dead) = &mut succession.dead else {
            return Self {
                problem: Some("nothing was promoted".to_owned()),
                ..Self::default()
            };
        };
        dead.start_again().await;
        let committed = judge.clone().moved(dead).committed().await;
        Self::between(&committed, survivors)
    }

    /// Up to the fork both have the same.
    fn between(dead: &[String], survivors: &[String]) -> Self {
        let both = dead.iter().zip(survivors);
        let shared = both.take_while(|(one, other)| one == other).count();
        let lost: HashSet<String> = dead[shared..].iter().cloned().collect();
        let again = survivors[shared..].iter().find(|id| lost.contains(*id));
        let problem = again.map(|id| format!("{id} was committed before and after the fork"));
        Self { lost, problem }
    }

    /// Which messages are of the lost tail, by their ids: how many, and those that are there twice.
    pub(crate) fn among(&self, stored: &[Stored]) -> (usize, Vec<String>) {
        let mut seen = HashSet::new();
        let ids = stored.iter().filter_map(Stored::id);
        let of_tail = ids.filter(|id| self.lost.contains(*id));
        let twice = of_tail.filter(|id| !seen.insert(*id)).map(str::to_owned);
        let twice: Vec<String> = twice.collect();
        (seen.len(), twice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    fn message(id: &str) -> Stored {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Nats-Msg-Id", id);
        Stored {
            sequence: 1,
            subject: "events.order.created".to_owned(),
            headers,
            payload: "{}".into(),
            stored_at: time::OffsetDateTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn the_lost_tail_is_what_follows_the_fork_on_the_dead_timeline() {
        let tail = Tail::between(&ids("a b x y"), &ids("a b c d e"));
        assert_eq!(tail.lost, HashSet::from(["x".to_owned(), "y".to_owned()]));
        assert_eq!(tail.problem, None);
        assert!(Tail::between(&ids("a b"), &ids("a b c")).lost.is_empty());
        // In another order, it is not one history up to a fork.
        assert!(
            Tail::between(&ids("a b x"), &ids("b a c"))
                .problem
                .is_some()
        );
    }

    #[test]
    fn an_event_of_the_lost_tail_that_is_stored_twice_is_found() {
        let tail = Tail::between(&ids("a x y z"), &ids("a"));
        let stored = ["a", "x", "y", "x"].map(message);
        assert_eq!(tail.among(&stored[..3]), (2, Vec::new()));
        assert_eq!(tail.among(&stored), (2, ids("x")));
    }
}

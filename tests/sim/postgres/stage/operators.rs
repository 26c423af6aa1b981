//! What operators see and do.

use outjet::lsn::Lsn;

use super::{Real, SOON, Side, Stage, lsn, publication};
use crate::harness::binaries;
use crate::harness::postgres::Stop;
use crate::harness::wait::{Wait, until};
use crate::postgres::SlotAfter;
use crate::postgres::conformance::Mark;
use crate::postgres::talk::Talk;

impl Stage {
    /// Notes how the slot is.
    pub(in crate::postgres) async fn slot(&mut self) {
        let slot = match &self.side {
            Side::Real(real) => {
                let query = "SELECT confirmed_flush_lsn || ' ' || active || ' ' || \
                             (active_pid IS NOT NULL) || ' ' || (restart_lsn IS NULL) \
                             || ' ' || (wal_status = 'lost') \
                             FROM pg_replication_slots WHERE slot_name = 'outjet'";
                let there = real.has(query).await;
                match there {
                    true => Some(real.admin().text(query).await),
                    false => None,
                }
            }
            Side::Model(model) => model.postgres.slot().map(|slot| {
                let active = slot.active_pid.is_some();
                let lost = slot.restart.is_none();
                format!("{} {active} {active} {lost} {}", slot.confirmed, slot.lost)
            }),
        };
        let Some(slot) = slot else {
            return self.say("there is no slot");
        };
        let (confirmed, rest) = slot.split_once(' ').expect("a position");
        let confirmed = Mark::Place(lsn(confirmed));
        self.say(format!("the slot is at {confirmed}: {rest}"));
    }

    /// Notes how the slot is when the last status update has been read.
    pub(in crate::postgres) async fn slot_of(&mut self, talk: &Talk) {
        until("the status update is read", SOON, async || {
            let replied = self.replied(talk.pid).await;
            Wait::ready_if(replied == (talk.write, talk.flush), replied)
        })
        .await;
        self.slot().await;
    }

    /// Write and flush positions, as the server has been told.
    async fn replied(&self, pid: i32) -> (u64, u64) {
        match &self.side {
            Side::Real(real) => {
                let query = format!(
                    "SELECT coalesce(max(write_lsn), '0/0') || ' ' \
                     || coalesce(max(flush_lsn), '0/0') \
                     FROM pg_stat_replication WHERE pid = {pid}"
                );
                let positions = real.admin().text(&query).await;
                let (write, flush) = positions.split_once(' ').expect("two positions");
                (lsn(write), lsn(flush))
            }
            Side::Model(model) => {
                let state = model.postgres.state();
                state
                    .backends
                    .get(&pid)
                    .map_or((0, 0), |found| found.replied)
            }
        }
    }

    /// Whether the server remembers that anything was sent of the slot.
    pub(in crate::postgres) async fn used(&mut self) {
        if self.major == 14 {
            // It remembers some time later.
            return;
        }
        let (client, _task) = self.client().await;
        let used = outjet::pg::catalog::slot_used(&client, "outjet").await;
        self.say(format!("used: {used:?}"));
    }

    async fn active(&self) -> bool {
        match &self.side {
            Side::Real(real) => {
                let query = "SELECT FROM pg_replication_slots \
                             WHERE slot_name = 'outjet' AND active";
                real.has(query).await
            }
            Side::Model(model) => {
                let slot = model.postgres.slot();
                slot.is_some_and(|slot| slot.active_pid.is_some())
            }
        }
    }

    /// Waits until nobody holds the slot.
    pub(in crate::postgres) async fn released(&mut self) {
        until("the slot is free", SOON, async || {
            Wait::ready_if(!self.active().await, "active")
        })
        .await;
    }

    /// The same once this client is gone.
    pub(in crate::postgres) async fn released_after(&mut self, talk: Talk) {
        drop(talk);
        self.released().await;
    }

    pub(in crate::postgres) async fn create_slot(&mut self) {
        let made = self.try_create_slot().await;
        self.say(format!("made: {made}"));
    }

    pub(in crate::postgres) async fn drop_slot(&mut self) {
        let dropped = self.try_drop_slot().await;
        self.say(format!("dropped: {dropped}"));
    }

    pub(super) async fn try_create_slot(&mut self) -> bool {
        match &self.side {
            Side::Real(real) => {
                let more = if self.major < 17 {
                    ""
                } else {
                    ", failover => true"
                };
                let sql = format!(
                    "SELECT pg_create_logical_replication_slot('outjet', 'pgoutput'{more})"
                );
                real.attempt(&sql).await.is_ok()
            }
            Side::Model(model) => model.postgres.create_slot(),
        }
    }

    pub(super) async fn try_drop_slot(&mut self) -> bool {
        match &self.side {
            Side::Real(real) => {
                let sql = "SELECT pg_drop_replication_slot('outjet')";
                real.attempt(sql).await.is_ok()
            }
            Side::Model(model) => model.postgres.drop_slot(),
        }
    }

    pub(in crate::postgres) async fn advance_slot(&mut self, to: u64) {
        let to = Lsn::new(to);
        let moved = match &self.side {
            Side::Real(real) => {
                let sql = format!("SELECT pg_replication_slot_advance('outjet', '{to}')");
                real.attempt(&sql).await.is_ok()
            }
            Side::Model(model) => model.postgres.state().advance_slot(to),
        };
        self.say(format!("moved: {moved}"));
    }

    /// `pg_terminate_backend`, of the one that streams.
    pub(in crate::postgres) async fn terminate_walsender(&mut self) {
        match &self.side {
            Side::Real(real) => {
                let sql = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots \
                           WHERE slot_name = 'outjet'";
                real.admin().run(sql).await;
            }
            Side::Model(model) => assert!(model.postgres.terminate_walsender(), "nobody streams"),
        }
    }

    /// Waits until the walsender waits for its client to read. The model has no names for that.
    pub(in crate::postgres) async fn until_blocked(&mut self, event: &str) {
        if let Side::Real(real) = &self.side {
            let query = "SELECT max(wait_event) FROM pg_stat_activity \
                         WHERE backend_type = 'walsender'";
            real.admin().until_text(query, event, SOON).await;
        }
    }

    /// `pg_terminate_backend`, of all sessions of ours.
    pub(in crate::postgres) async fn terminate_sessions(&mut self) {
        match &self.side {
            Side::Real(real) => {
                let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                           WHERE application_name = 'outjet'";
                real.admin().run(sql).await;
            }
            Side::Model(model) => model.postgres.terminate_sessions(),
        }
    }

    /// So much is written that the slot is given up.
    pub(in crate::postgres) async fn lose_slot(&mut self) {
        match &self.side {
            Side::Real(real) => {
                let admin = real.admin();
                admin
                    .run("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'")
                    .await;
                admin.run("SELECT pg_reload_conf()").await;
                let setting = "SHOW max_slot_wal_keep_size";
                admin.until_text(setting, "1MB", SOON).await;
                for _ in 0..3 {
                    admin.run("INSERT INTO business VALUES ('x')").await;
                    admin.run("SELECT pg_switch_wal()").await;
                }
                admin.run("CHECKPOINT").await;
                admin.run("ALTER SYSTEM RESET max_slot_wal_keep_size").await;
                admin.run("SELECT pg_reload_conf()").await;
                admin.until_text(setting, "-1", SOON).await;
            }
            Side::Model(model) => assert!(model.postgres.lose_slot(), "there is none"),
        }
    }

    /// Makes or drops the publication.
    pub(in crate::postgres) async fn set_publication(&mut self, there: bool) {
        match &self.side {
            Side::Real(real) if there => real.admin().run(&publication()).await,
            Side::Real(real) => real.admin().run("DROP PUBLICATION outjet").await,
            Side::Model(model) => model.postgres.set_publication(there),
        }
    }

    /// Takes the table into the publication, or out of it.
    pub(in crate::postgres) async fn set_published(&mut self, published: bool) {
        let verb = if published { "ADD" } else { "DROP" };
        let sql = format!("ALTER PUBLICATION outjet {verb} TABLE outbox.events");
        match &self.side {
            Side::Real(real) => real.admin().run(&sql).await,
            Side::Model(model) => model.postgres.set_published(published),
        }
    }

    /// Changes something of the table that nobody is interested in.
    pub(in crate::postgres) async fn alter_table(&mut self) {
        match &self.side {
            Side::Real(real) => {
                let sql = "ALTER TABLE outbox.events_default SET (fillfactor = 90)";
                real.admin().run(sql).await;
            }
            Side::Model(model) => model.postgres.alter_table(),
        }
    }

    /// Whether clients may be waited for.
    pub(in crate::postgres) async fn set_synchronous(&mut self, synchronous: bool) {
        match &self.side {
            Side::Real(real) => {
                let admin = real.admin();
                let names = if synchronous { "outjet" } else { "" };
                let sql = format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'");
                admin.run(&sql).await;
                admin.run("SELECT pg_reload_conf()").await;
                let setting = "SHOW synchronous_standby_names";
                admin.until_text(setting, names, SOON).await;
                // It is the checkpointer that tells all others.
                admin.run("CHECKPOINT").await;
            }
            Side::Model(model) => model.postgres.set_synchronous(synchronous),
        }
    }

    /// From now on in a database of another encoding.
    pub(in crate::postgres) async fn move_to_windows(&mut self) {
        if let Side::Real(real) = &mut self.side {
            real.database = "windows";
            let options = "ENCODING 'WIN1252' LOCALE 'C' TEMPLATE template0";
            real.create_database(options).await;
        }
        assert!(self.try_drop_slot().await, "there was a slot");
        assert!(self.try_create_slot().await, "there is no slot");
    }

    pub(in crate::postgres) async fn leave_windows(&mut self) {
        if let Side::Real(real) = &mut self.side {
            real.database = "outjet";
            real.connect().await;
        }
    }

    pub(in crate::postgres) async fn checkpoint(&mut self) {
        match &self.side {
            Side::Real(real) => real.admin().run("CHECKPOINT").await,
            Side::Model(model) => model.postgres.checkpoint(),
        }
    }

    /// `kill -9`, and another start.
    pub(in crate::postgres) async fn crash(&mut self) {
        match &mut self.side {
            Side::Real(real) => {
                real.admin = None;
                real.writers.clear();
                real.server.restart(Stop::Immediate).await;
                real.connect().await;
            }
            Side::Model(model) => {
                model.postgres.crash();
                model.postgres.start();
            }
        }
    }

    /// A crash, after which it is started as a standby of nobody.
    pub(in crate::postgres) async fn stand_by(&mut self) {
        match &mut self.side {
            Side::Real(real) => {
                real.stop_to_stand_by().await;
                real.server.start_again().await;
                real.connect().await;
            }
            Side::Model(model) => model.postgres.stand_by(),
        }
    }

    /// A standby that has seen everything takes over, as this server, with the slot or without.
    pub(in crate::postgres) async fn promote(&mut self, with_slot: bool) {
        match &mut self.side {
            Side::Real(real) => {
                real.stop_to_stand_by().await;
                if !with_slot {
                    let slot = real.server.data().join("pg_replslot/outjet");
                    std::fs::remove_dir_all(slot).expect("there was a slot");
                }
                real.server.start_again().await;
                real.server.promote().await;
                real.connect().await;
            }
            Side::Model(model) => {
                let end = model.postgres.flushed();
                let slot = match with_slot {
                    true => SlotAfter::InStep,
                    false => SlotAfter::Gone,
                };
                model.postgres.promote(end, slot);
            }
        }
    }

    pub(in crate::postgres) fn begin_shutdown(&mut self) {
        match &mut self.side {
            Side::Real(real) => {
                real.admin = None;
                real.writers.clear();
                real.server.begin_stop(Stop::Fast);
            }
            Side::Model(model) => model.postgres.fast_shutdown(),
        }
    }

    /// Waits until it is down, and starts it.
    pub(in crate::postgres) async fn start_again(&mut self) {
        match &mut self.side {
            Side::Real(real) => {
                real.server.stopped().await;
                real.server.start_again().await;
                real.connect().await;
            }
            Side::Model(model) => {
                model.postgres.stopped().await;
                model.postgres.start();
            }
        }
    }
}

impl Real {
    async fn stop_to_stand_by(&mut self) {
        self.admin = None;
        self.writers.clear();
        self.server.stop(Stop::Immediate).await;
        let signal = self.server.data().join("standby.signal");
        std::fs::write(&signal, "").expect("make it a standby");
        binaries::give_to_server(&signal);
    }
}

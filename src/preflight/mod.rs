//! Judges whether outjet can stream from what stands in Postgres: facts in, verdicts out. `check`
//! prints them all, `run` stops at the first that failed, `setup` looks at the server's alone.
//! Knows no connection, and nothing of NATS.

mod publication;
mod server;
mod slot;
mod standbys;
mod table;

pub use self::slot::{free_slot, gone as slot_gone};
use crate::error::{Exit, Failure, Problem};
use crate::event::mapping::Mapping;
use crate::pg::catalog::Facts;
use crate::pg::name::TableName;

/// What is wanted of Postgres.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The replication slot.
    pub slot: String,
    /// The publication.
    pub publication: String,
    /// The outbox tables; at least one.
    pub tables: Vec<TableRequirement>,
    /// Prefixes of the logical messages that are events.
    pub prefixes: Vec<String>,
    /// We are to turn the partitions of `outbox.events`.
    pub turns_partitions: bool,
}

impl Options {
    /// The tables' names, in order.
    pub fn table_names(&self) -> Vec<TableName> {
        self.tables.iter().map(|table| table.name.clone()).collect()
    }
}

/// A table and the columns that its mapping reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableRequirement {
    /// The table.
    pub name: TableName,
    /// What is read of it.
    pub columns: Vec<RequiredColumn>,
    /// We are to delete its old rows.
    pub expires: bool,
}

/// A field of an event, and the column that it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequiredColumn {
    /// Ours: `id`, `payload`, `headers`, ….
    pub field: String,
    /// The table's.
    pub column: String,
}

impl RequiredColumn {
    /// The columns that a mapping cannot do without.
    pub fn of(mapping: &Mapping) -> Vec<Self> {
        let columns = mapping.columns();
        let columns = columns.map(|(field, column)| Self {
            field: field.to_owned(),
            column: column.to_owned(),
        });
        columns.collect()
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What it belongs to: `server`, `table`, `publication`, `slot`, `standbys`.
    pub group: &'static str,
    /// What was looked at.
    pub name: &'static str,
    /// How it is.
    pub verdict: Verdict,
}

/// How it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be; says what was found.
    Pass(String),
    /// It works, but not as well as it could.
    Warn(Problem),
    /// It does not work.
    Fail(Failure),
}

impl Check {
    /// What failed, if it did.
    pub fn failure(&self) -> Option<&Failure> {
        match &self.verdict {
            Verdict::Fail(failure) => Some(failure),
            Verdict::Pass(_) | Verdict::Warn(_) => None,
        }
    }
}

impl Verdict {
    /// A person must act.
    fn halt(problem: impl Into<String>, cause: impl Into<String>, fix: impl Into<String>) -> Self {
        let problem = Problem::new(problem, cause, fix);
        Verdict::Fail(Failure::halt(Exit::CheckFailed, problem))
    }

    fn retry(problem: impl Into<String>, cause: impl Into<String>, fix: impl Into<String>) -> Self {
        Verdict::Fail(Failure::retry(Problem::new(problem, cause, fix)))
    }

    fn warn(problem: impl Into<String>, cause: impl Into<String>, fix: impl Into<String>) -> Self {
        Verdict::Warn(Problem::new(problem, cause, fix))
    }
}

/// Everything, in the order in which it must be put right: server, tables, publication, slot; and
/// what would be after a failover.
pub fn judge(facts: &Facts, options: &Options) -> Vec<Check> {
    let mut checks = judge_server(facts);
    checks.extend(server::messages(&facts.server, &options.prefixes));
    checks.extend(judge_tables(facts, options));
    checks.extend(judge_publication(facts, options));
    checks.extend(judge_slot(facts, options));
    checks.extend(standbys::judge(facts, options));
    checks
}

/// The server and our role alone: what must hold before anything can be set up.
pub fn judge_server(facts: &Facts) -> Vec<Check> {
    server::judge(&facts.server)
}

/// The tables alone, without what is published of them.
pub fn judge_tables(facts: &Facts, options: &Options) -> Vec<Check> {
    table::judge(facts, options)
}

/// The publication alone, and what it publishes of the tables.
pub fn judge_publication(facts: &Facts, options: &Options) -> Vec<Check> {
    publication::judge(facts, options)
}

/// The slot alone.
pub fn judge_slot(facts: &Facts, options: &Options) -> Vec<Check> {
    slot::judge(facts, options)
}

/// The first that failed: what `run` does about all of them.
pub fn first_failure(checks: &[Check]) -> Option<&Failure> {
    checks.iter().find_map(Check::failure)
}

/// What somebody most probably meant by `wanted`. As cargo does it, a third of the letters may
/// differ; a word inside another counts, too (`type` and `event_type`).
fn nearest<'a>(wanted: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |name: &str| name.replace('_', "").to_lowercase();
    let wanted = plain(wanted);
    let distance = |candidate: &str| {
        let candidate = plain(candidate);
        let within = candidate.contains(&wanted) || wanted.contains(&candidate);
        let distance = strsim::damerau_levenshtein(&wanted, &candidate);
        let near = distance <= wanted.chars().count().max(3) / 3;
        (near || within).then_some((!near, distance))
    };
    candidates
        .filter_map(|candidate| distance(candidate).map(|distance| (distance, candidate)))
        .min()
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::error::Disposition;
    use crate::lsn::Lsn;
    use crate::pg::catalog::{
        Column, Decoding, Partitions, Publication, Server, Slot, Standbys, Table,
    };

    pub(crate) fn options() -> Options {
        let column = |field: &str| RequiredColumn {
            field: field.to_owned(),
            column: field.to_owned(),
        };
        Options {
            slot: "outjet".to_owned(),
            publication: "outjet".to_owned(),
            tables: vec![TableRequirement {
                name: TableName::new("outbox", "events"),
                columns: ["id", "aggregatetype", "type", "payload", "created_at"]
                    .map(column)
                    .to_vec(),
                expires: false,
            }],
            prefixes: vec!["outbox".to_owned()],
            turns_partitions: true,
        }
    }

    fn server() -> Server {
        Server {
            version_num: 180_006,
            version: "18.6".to_owned(),
            database: "app".to_owned(),
            wal_level: "logical".to_owned(),
            wal_level_pending_restart: false,
            in_recovery: false,
            current: Lsn::new(0x300),
            slots_max: 10,
            slots_used: 1,
            wal_senders_max: 10,
            wal_senders_used: 0,
            system_identifier: "7710494952070725283".to_owned(),
            role: "outjet".to_owned(),
            superuser: false,
            replication: true,
            rds_replication: false,
            idle_slot_timeout: None,
            anybody_emits: true,
            schema_installed: true,
            schema_owned: true,
        }
    }

    fn table() -> Table {
        let column = |(name, type_oid, type_name): (&str, u32, &str)| Column {
            name: name.to_owned(),
            type_oid,
            type_name: type_name.to_owned(),
            not_null: true,
            generated: false,
        };
        Table {
            name: TableName::new("outbox", "events"),
            oid: 16_400,
            kind: 'p',
            persistence: 'p',
            unlogged_partitions: Vec::new(),
            may_delete: false,
            published: true,
            published_by_partition: false,
            row_filter: None,
            published_columns: None,
            columns: [
                ("id", 2950, "uuid"),
                ("aggregatetype", 25, "text"),
                ("type", 25, "text"),
                ("payload", 3802, "jsonb"),
                ("created_at", 1184, "timestamp with time zone"),
            ]
            .map(column)
            .to_vec(),
        }
    }

    /// Everything as it should be.
    pub(crate) fn facts() -> Facts {
        Facts {
            server: server(),
            slot: Some(Slot {
                name: "outjet".to_owned(),
                plugin: Some("pgoutput".to_owned()),
                database: Some("app".to_owned()),
                active: false,
                holder: None,
                wal_status: Some("reserved".to_owned()),
                invalidation_reason: None,
                inactive_since: None,
                decoding: Decoding::default(),
                two_phase: false,
                failover: true,
                restart: Some(Lsn::new(0x100)),
                confirmed_flush: Some(Lsn::new(0x200)),
                safe_wal_size: None,
            }),
            publication: Some(Publication {
                name: "outjet".to_owned(),
                all_tables: false,
                insert: true,
                via_root: true,
                tables: vec![TableName::new("outbox", "events")],
            }),
            tables: vec![Some(table())],
            other_tables: Vec::new(),
            standbys: Standbys::default(),
            partitions: Partitions::default(),
        }
    }

    /// The first failure that these facts give.
    pub(super) fn failure(facts: &Facts) -> Failure {
        let checks = judge(facts, &options());
        first_failure(&checks).expect("something fails").clone()
    }

    /// The first failure, in the three lines that an operator reads.
    pub(super) fn text(facts: &Facts) -> String {
        failure(facts).to_string()
    }

    /// The only warning.
    pub(super) fn warning(facts: &Facts) -> String {
        let mut warnings =
            judge(facts, &options())
                .into_iter()
                .filter_map(|check| match check.verdict {
                    Verdict::Warn(problem) => Some(problem.to_string()),
                    Verdict::Pass(_) => None,
                    Verdict::Fail(failure) => panic!("{failure}"),
                });
        let warning = warnings.next().expect("something is warned about");
        assert_eq!(warnings.next(), None);
        warning
    }

    #[test]
    fn everything_passes_where_everything_is_as_it_should_be() {
        for check in judge(&facts(), &options()) {
            assert!(matches!(check.verdict, Verdict::Pass(_)), "{check:?}");
        }
    }

    #[test]
    fn what_must_be_put_right_first_is_told_first() {
        let mut facts = facts();
        facts.slot = None;
        facts.publication = None;
        facts.server.wal_level = "replica".to_owned();
        let failure = failure(&facts);
        assert_eq!(failure.disposition, Disposition::Halt);
        assert!(failure.problem.problem.contains("wal_level"), "{failure}");
    }

    #[test]
    fn nearest_name_is_a_typing_error_before_a_longer_word() {
        let columns = ["aggregate_type", "event_type", "typ", "body"];
        let nearest = |wanted| nearest(wanted, columns.into_iter());
        assert_eq!(nearest("aggregatetype"), Some("aggregate_type"));
        assert_eq!(nearest("type"), Some("typ"));
        assert_eq!(nearest("event_typ"), Some("event_type"));
        assert_eq!(nearest("correlation_id"), None);
    }
}

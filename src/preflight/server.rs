//! The server, the database and our role.

use super::{Check, Verdict};
use crate::error::{Exit, Failure, Problem};
use crate::pg::catalog::Server;
use crate::pg::name::quote;

/// Each at its own: a server may be wrong in more than one way.
pub(super) fn judge(server: &Server) -> Vec<Check> {
    let check = |name, verdict| Check {
        group: "server",
        name,
        verdict,
    };
    vec![
        check("version", version(server)),
        check("primary", primary(server)),
        check("wal_level", wal_level(server)),
        check("role", role(server)),
    ]
}

/// The oldest minor versions without known faults in logical decoding (their release notes): a
/// confirmed position that moves back, WAL removed too early (14.19, 15.14, 16.10, 17.6), slots
/// invalidated by a race (17.8, 18.2), a shutdown that hangs on a WAL sender (17.10, 18.4).
const RECOMMENDED: [i32; 5] = [140_019, 150_014, 160_010, 170_010, 180_004];

fn version(server: &Server) -> Verdict {
    let version = &server.version;
    if server.major() < 14 {
        return Verdict::halt(
            format!("Postgres {version} is too old"),
            "outjet needs Postgres 14 or newer",
            "upgrade the server",
        );
    }
    let recommended = RECOMMENDED
        .iter()
        .find(|min| *min / 10_000 == server.major());
    match recommended {
        Some(min) if server.version_num < *min => Verdict::warn(
            format!("Postgres {version} has faults in logical decoding that are known and mended"),
            format!("they are mended from {}.{} on", min / 10_000, min % 10_000),
            "install the newest minor version and restart the server",
        ),
        _ => Verdict::Pass(format!("Postgres {version}, database {}", server.database)),
    }
}

/// A standby may be promoted, so this may pass by itself.
fn primary(server: &Server) -> Verdict {
    if server.in_recovery {
        return Verdict::retry(
            "the server is a standby",
            "pg_is_in_recovery() is true; outjet streams from the primary",
            "name the primary in DATABASE_URL, or all hosts with target_session_attrs=read-write",
        );
    }
    Verdict::Pass("this server is the primary".to_owned())
}

fn wal_level(server: &Server) -> Verdict {
    let level = &server.wal_level;
    // `minimal` and `replica` are all that there is below `logical`.
    if level == "logical" {
        return Verdict::Pass("wal_level = logical".to_owned());
    }
    let problem = format!("wal_level is {level}: the write-ahead log lacks the rows");
    if server.wal_level_pending_restart {
        return Verdict::halt(
            problem,
            "wal_level has been changed, and the server not restarted since",
            "restart Postgres: a reload is not enough",
        );
    }
    Verdict::halt(
        problem,
        format!("wal_level = {level}, and reading an outbox needs logical"),
        "ALTER SYSTEM SET wal_level = logical; then restart Postgres (a reload is not enough); \
         Amazon RDS: rds.logical_replication = 1 in the parameter group; Google Cloud SQL: flag \
         cloudsql.logical_decoding; Azure: server parameter wal_level",
    )
}

fn role(server: &Server) -> Verdict {
    let role = &server.role;
    if server.superuser || server.replication || server.rds_replication {
        return Verdict::Pass(format!("role {role} may replicate"));
    }
    let quoted = quote(role);
    Verdict::Fail(Failure::halt(
        Exit::NotPermitted,
        Problem::new(
            format!("role {quoted} may not replicate"),
            "it does not have the REPLICATION attribute",
            format!(
                "ALTER ROLE {quoted} REPLICATION; on Amazon RDS: GRANT rds_replication TO {quoted};"
            ),
        ),
    ))
}

/// Who may write events without a table: nothing is wrong with either answer.
pub(super) fn messages(server: &Server, prefixes: &[String]) -> Option<Check> {
    if prefixes.is_empty() {
        return None;
    }
    let who = match server.anybody_emits {
        true => "any role of the database",
        false => "whoever may EXECUTE pg_logical_emit_message",
    };
    let prefixes = prefixes.join(", ");
    Some(Check {
        group: "server",
        name: "messages",
        verdict: Verdict::Pass(format!(
            "{who} may write events as messages (messages.prefixes: {prefixes})"
        )),
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{facts, failure, text, warning};
    use crate::error::{Disposition, Exit};

    #[test]
    fn wal_level_that_is_not_logical_needs_a_restart() {
        let mut facts = facts();
        facts.server.wal_level = "replica".to_owned();
        assert_eq!(
            text(&facts),
            "wal_level is replica: the write-ahead log lacks the rows\n  \
             cause: wal_level = replica, and reading an outbox needs logical\n  \
             fix:   ALTER SYSTEM SET wal_level = logical; then restart Postgres (a reload is not \
             enough); Amazon RDS: rds.logical_replication = 1 in the parameter group; Google Cloud \
             SQL: flag cloudsql.logical_decoding; Azure: server parameter wal_level"
        );
        facts.server.wal_level_pending_restart = true;
        assert_eq!(
            text(&facts),
            "wal_level is replica: the write-ahead log lacks the rows\n  \
             cause: wal_level has been changed, and the server not restarted since\n  \
             fix:   restart Postgres: a reload is not enough"
        );
    }

    #[test]
    fn role_needs_the_attribute_or_amazons_role() {
        let mut facts = facts();
        facts.server.role = "ap\"p".to_owned();
        facts.server.replication = false;
        assert_eq!(failure(&facts).exit, Exit::NotPermitted);
        assert_eq!(
            text(&facts),
            "role \"ap\"\"p\" may not replicate\n  \
             cause: it does not have the REPLICATION attribute\n  \
             fix:   ALTER ROLE \"ap\"\"p\" REPLICATION; on Amazon RDS: GRANT rds_replication TO \
             \"ap\"\"p\";"
        );
        facts.server.rds_replication = true;
        assert_eq!(super::judge(&facts.server)[3].failure(), None);
    }

    #[test]
    fn standby_may_be_promoted() {
        let mut facts = facts();
        facts.server.in_recovery = true;
        assert_eq!(failure(&facts).disposition, Disposition::Retry);
        assert!(text(&facts).starts_with("the server is a standby\n"));
    }

    #[test]
    fn version_before_14_is_refused() {
        let mut facts = facts();
        facts.server.version_num = 130_016;
        facts.server.version = "13.16".to_owned();
        assert!(text(&facts).starts_with("Postgres 13.16 is too old\n"));
    }

    #[test]
    fn minor_version_with_known_faults_is_warned_about_up_to_the_mended_one() {
        let mut facts = facts();
        facts.server.version_num = 170_009;
        facts.server.version = "17.9".to_owned();
        assert_eq!(
            warning(&facts),
            "Postgres 17.9 has faults in logical decoding that are known and mended\n  \
             cause: they are mended from 17.10 on\n  \
             fix:   install the newest minor version and restart the server"
        );
        for newer in [170_010, 190_000] {
            facts.server.version_num = newer;
            assert_eq!(super::judge(&facts.server)[0].failure(), None);
            assert!(matches!(
                super::judge(&facts.server)[0].verdict,
                super::Verdict::Pass(_)
            ));
        }
    }
}

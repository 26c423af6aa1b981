//! What an operator is told, and what `run` does about it: one exhaustive match over what can go
//! wrong, by SQLSTATE and by what was being done. Never by message text, which is translated and
//! changes between versions.

use postgres_protocol::escape::escape_identifier;

use super::super::params::{Address, Host, Params, PassfileError};
use super::super::tls::{self, TlsError};
use super::{AuthError, Error, Kind, Phase, ServerMessage};
use crate::error::{Disposition, Exit, Failure, Problem, chain};
use crate::tls::SetupError;

impl Error {
    /// In three lines, with what to do about it.
    pub fn failure(&self, params: &Params) -> Failure {
        let told = Told {
            error: self,
            params,
            at: match self.0.at.as_str() {
                "" => hosts(params),
                at => at.to_owned(),
            },
        };
        told.failure()
    }

    fn source_or_self(&self) -> String {
        std::error::Error::source(self).map_or_else(|| self.0.kind.to_string(), chain)
    }
}

struct Told<'a> {
    error: &'a Error,
    params: &'a Params,
    at: String,
}

impl Told<'_> {
    fn failure(&self) -> Failure {
        match &self.error.0.kind {
            Kind::Resolve(_) => Failure::retry(self.unreachable(format!(
                "check the name: `getent hosts {}`",
                self.host_name()
            ))),
            Kind::Unreachable(_) | Kind::Timeout(_) => Failure::retry(self.unreachable(format!(
                "check that it runs and listens there: {} (listen_addresses, firewall)",
                self.pg_isready()
            ))),
            Kind::TlsRefused => self.tls_refused(),
            Kind::TlsSetup(error) => self.tls_setup(error),
            Kind::TlsHandshake(error) => match tls::rustls_error(error) {
                Some(rustls::Error::InvalidCertificate(reason)) => self.untrusted(reason),
                _ => self.handshake(),
            },
            Kind::Auth(error) => self.auth(error),
            Kind::Server(message) => self.server(message),
            Kind::ReadOnly => Failure::retry(Problem::new(
                format!("Postgres at {} is a standby or read-only", self.at),
                format!("target_session_attrs={}", self.params.target_session_attrs),
                "name the primary in DATABASE_URL, or all servers: postgres://…@a,b/dbname",
            )),
            Kind::Io(error) if tls::rustls_error(error).is_some() => self.handshake(),
            Kind::Client(_) | Kind::Io(_) | Kind::Closed | Kind::Ended => {
                Failure::retry(Problem::new(
                    format!("the connection to Postgres at {} ended", self.at),
                    self.error.source_or_self(),
                    format!(
                        "nothing, if it was restarted; else see its log and {}",
                        self.pg_isready()
                    ),
                ))
            }
            Kind::TooLarge { .. }
            | Kind::TooManyRows(_)
            | Kind::Unexpected(_)
            | Kind::Malformed(_)
            | Kind::Parse(_)
            | Kind::Encode(_) => Failure::retry(Problem::new(
                format!("what Postgres at {} sends cannot be understood", self.at),
                chain(self.error),
                format!(
                    "check that a Postgres server listens there: {}",
                    self.pg_isready()
                ),
            )),
            Kind::Hosts(errors) => self.hosts(errors),
        }
    }

    /// Some of them may come back, unless a person must act on each.
    fn hosts(&self, errors: &[Error]) -> Failure {
        let failures: Vec<_> = errors
            .iter()
            .map(|error| error.failure(self.params))
            .collect();
        let retry = failures
            .iter()
            .find(|failure| failure.disposition == Disposition::Retry);
        let Some(chosen) = retry.or(failures.first()) else {
            return Failure::retry(self.unreachable("name a host in DATABASE_URL".to_owned()));
        };
        let causes: Vec<_> = failures
            .iter()
            .map(|failure| format!("{}: {}", failure.problem.problem, failure.problem.cause))
            .collect();
        let problem = format!("no usable Postgres server among {}", hosts(self.params));
        Failure {
            problem: Problem::new(problem, causes.join("; "), chosen.problem.fix.clone()),
            ..chosen.clone()
        }
    }

    fn unreachable(&self, fix: String) -> Problem {
        let problem = format!("Postgres at {} cannot be reached", self.at);
        Problem::new(problem, self.error.source_or_self(), fix)
    }

    fn tls_refused(&self) -> Failure {
        let problem = Problem::new(
            format!("Postgres at {} does not offer TLS", self.at),
            format!("sslmode={} insists on it", self.params.sslmode),
            "turn it on: ALTER SYSTEM SET ssl = on (with ssl_cert_file and ssl_key_file), then \
             SELECT pg_reload_conf(); or, on a network you trust, set sslmode=disable",
        );
        Failure::halt(Exit::Config, problem)
    }

    fn tls_setup(&self, error: &TlsError) -> Failure {
        let fix = match error {
            TlsError::KeyPermissions(path) => format!("`chmod 0600 {}`", path.display()),
            TlsError::NoRoots { .. } | TlsError::Setup(SetupError::NoSystemRoots) => {
                "name the authority's file with sslrootcert=/path/to/root.crt, or trust what the \
                 system trusts with sslrootcert=system"
                    .to_owned()
            }
            TlsError::WeakSslMode => "set sslmode=verify-full".to_owned(),
            TlsError::Setup(
                SetupError::Pem(path, _) | SetupError::Empty(path) | SetupError::Roots(path, _),
            ) => format!(
                "check that it is a PEM file we may read: `openssl storeutl -noout -text {}`",
                path.display()
            ),
            TlsError::Setup(SetupError::Name(_)) => {
                "write the host as its certificate names it".to_owned()
            }
            TlsError::Setup(SetupError::Rustls(_)) => {
                "check that sslcert and sslkey belong together: these print the same key: \
                 `openssl x509 -pubkey -noout -in <sslcert>`, `openssl pkey -pubout -in <sslkey>`"
                    .to_owned()
            }
        };
        let problem = format!("TLS to Postgres at {} cannot be set up", self.at);
        Failure::halt(Exit::Config, Problem::new(problem, chain(error), fix))
    }

    fn untrusted(&self, reason: &rustls::CertificateError) -> Failure {
        use rustls::CertificateError as Reason;
        let fix = match reason {
            Reason::NotValidForName | Reason::NotValidForNameContext { .. } => {
                "connect by a name in its subjectAltName (a common name alone does not count), \
                 issue it again with that name, or check the authority only: sslmode=verify-ca"
                    .to_owned()
            }
            // The latter if an authority of the same name signed it.
            Reason::UnknownIssuer | Reason::BadSignature => format!(
                "name its authority's certificate with sslrootcert=/path/to/root.crt; who signed \
                 it: `openssl s_client -starttls postgres -connect {} </dev/null`",
                self.at
            ),
            _ => format!(
                "look at it and issue it again (X.509 version 3, with a subjectAltName): `openssl \
                 s_client -starttls postgres -connect {} </dev/null | openssl x509 -noout -text`",
                self.at
            ),
        };
        let problem = Problem::new(
            format!("the certificate of Postgres at {} is not trusted", self.at),
            format!(
                "{} (sslmode={})",
                self.error.source_or_self(),
                self.params.sslmode
            ),
            fix,
        );
        Failure::halt(Exit::NotPermitted, problem)
    }

    /// Also what the server makes of our certificate: it says so only after the handshake.
    fn handshake(&self) -> Failure {
        let problem = Problem::new(
            format!("TLS with Postgres at {} failed", self.at),
            self.error.source_or_self(),
            format!(
                "compare with `openssl s_client -starttls postgres -connect {}`; a server with \
                 clientcert in pg_hba.conf wants sslcert and sslkey",
                self.at
            ),
        );
        Failure::retry(problem)
    }

    fn auth(&self, error: &AuthError) -> Failure {
        let role = escape_identifier(&self.params.user);
        let fix = match error {
            AuthError::NoPassword => {
                "give it in DATABASE_URL, PGPASSWORD or ~/.pgpass (host:port:dbname:user:password)"
                    .to_owned()
            }
            AuthError::Passfile(PassfileError::Permissions(path)) => {
                format!("`chmod 0600 {}`", path.display())
            }
            AuthError::Passfile(_) => "make it readable, or use PGPASSWORD".to_owned(),
            AuthError::Cleartext => {
                "use TLS (sslmode=require), or scram-sha-256 instead of password in pg_hba.conf"
                    .to_owned()
            }
            AuthError::Unsupported(_) | AuthError::Mechanisms(_) => format!(
                "in pg_hba.conf: {}, then SELECT pg_reload_conf();",
                self.hba_line("scram-sha-256")
            ),
            AuthError::Stripped => {
                "something between here and the server removes TLS: insist on it with \
                 sslmode=verify-full"
                    .to_owned()
            }
            AuthError::Unbound(_) => {
                "make the server ask for scram-sha-256 over TLS (hostssl in pg_hba.conf), or set \
                 channel_binding=prefer"
                    .to_owned()
            }
            AuthError::Iterations { .. } => format!(
                "SET scram_iterations = 4096; then set the password again: ALTER ROLE {role} \
                 PASSWORD '…';"
            ),
            AuthError::Scram(_) => {
                "check that this is your server (sslmode=verify-full shows it)".to_owned()
            }
        };
        let problem = format!("cannot log in to Postgres at {}", self.at);
        Failure::halt(Exit::NotPermitted, Problem::new(problem, chain(error), fix))
    }

    fn server(&self, message: &ServerMessage) -> Failure {
        let said =
            |(problem, fix): (String, String)| Problem::new(problem, message.to_string(), fix);
        match (self.error.0.phase, message.code.as_str()) {
            (_, "28P01") => Failure::halt(Exit::NotPermitted, said(self.wrong_password())),
            (_, code) if code.starts_with("28") => {
                Failure::halt(Exit::NotPermitted, said(self.not_let_in()))
            }
            (Phase::LogIn, "42501") => {
                Failure::halt(Exit::NotPermitted, said(self.no_replication()))
            }
            (_, "42501") => Failure::halt(Exit::NotPermitted, said(self.no_privilege())),
            (_, "3D000") => Failure::halt(Exit::Config, said(self.no_database())),
            // A server that speaks our protocol does not answer a startup packet like this; a
            // pooler does, to the parameter "replication".
            (Phase::LogIn, "08P01") => Failure::halt(Exit::Config, said(self.pooler())),
            (_, "53300") => Failure::retry(said(self.no_connection_left())),
            (_, "57P03") => Failure::retry(said((
                format!("Postgres at {} is not ready yet", self.at),
                format!("wait for it: {}", self.pg_isready()),
            ))),
            (Phase::Start, code) => self.start(code, |problem, fix| said((problem, fix))),
            _ => Failure::retry(said((
                format!(
                    "Postgres at {} refused a command or ended the session",
                    self.at
                ),
                "see the server's log; `outjet check` shows what is missing".to_owned(),
            ))),
        }
    }

    fn role(&self) -> String {
        escape_identifier(&self.params.user)
    }

    fn wrong_password(&self) -> (String, String) {
        let role = self.role();
        let problem = format!(
            "Postgres at {} refuses the password of role {role}",
            self.at
        );
        let fix = format!(
            "correct it in DATABASE_URL, PGPASSWORD or ~/.pgpass, or set it: ALTER ROLE {role} \
             PASSWORD '…';"
        );
        (problem, fix)
    }

    fn not_let_in(&self) -> (String, String) {
        let (role, dbname) = (self.role(), &self.params.dbname);
        let problem = format!(
            "Postgres at {} does not let role {role} into database \"{dbname}\"",
            self.at
        );
        let fix = format!(
            "make the role (CREATE ROLE {role} LOGIN REPLICATION PASSWORD '…';) and add to \
             pg_hba.conf: {}, then SELECT pg_reload_conf(); the word replication there is for \
             physical standbys only",
            self.hba_line("scram-sha-256")
        );
        (problem, fix)
    }

    fn no_replication(&self) -> (String, String) {
        let role = self.role();
        let fix = format!(
            "ALTER ROLE {role} REPLICATION; on Amazon RDS: GRANT rds_replication TO {role};"
        );
        (format!("role {role} may not replicate"), fix)
    }

    fn no_privilege(&self) -> (String, String) {
        let (role, dbname) = (self.role(), &self.params.dbname);
        let problem = format!("role {role} lacks a privilege in database \"{dbname}\"");
        (
            problem,
            format!("grant {role} what the cause names, then `outjet check`"),
        )
    }

    fn no_database(&self) -> (String, String) {
        let dbname = &self.params.dbname;
        let problem = format!(
            "there is no database \"{dbname}\" on Postgres at {}",
            self.at
        );
        let create = escape_identifier(dbname);
        let fix = format!("correct the name in DATABASE_URL, or: CREATE DATABASE {create};");
        (problem, fix)
    }

    fn pooler(&self) -> (String, String) {
        let problem = format!(
            "what answers at {} is a connection pooler, not Postgres itself",
            self.at
        );
        (problem, DIRECT.to_owned())
    }

    fn no_connection_left(&self) -> (String, String) {
        let fix = "see who holds them: SELECT usename, application_name, count(*) FROM \
                   pg_stat_activity GROUP BY 1, 2; else raise max_connections or max_wal_senders \
                   (needs a restart)";
        (
            format!("Postgres at {} has no connection left", self.at),
            fix.to_owned(),
        )
    }

    /// START_REPLICATION was refused.
    fn start(&self, code: &str, problem: impl Fn(String, String) -> Problem) -> Failure {
        match code {
            "55006" => Failure {
                disposition: Disposition::Standby,
                ..Failure::retry(problem(
                    "the replication slot is in use".to_owned(),
                    "nothing, if another outjet leads; else see who: SELECT active_pid FROM \
                     pg_replication_slots;"
                        .to_owned(),
                ))
            },
            "42704" => Failure::halt(
                Exit::Config,
                problem(
                    "the replication slot does not exist".to_owned(),
                    "`outjet recover`; if no events were streamed before, `outjet setup`"
                        .to_owned(),
                ),
            ),
            // Of another database, invalidated, or wal_level is not logical; 22023, 42601 and
            // XX000: options that this server does not know. 0A000 is no such answer: 14 and 15
            // give it where the server has become a standby since it was looked at.
            "55000" | "22023" | "42601" | "XX000" => Failure::halt(
                Exit::Config,
                problem(
                    "the replication slot cannot be streamed".to_owned(),
                    "`outjet check` shows what is wrong with it".to_owned(),
                ),
            ),
            _ => Failure::retry(problem(
                format!("Postgres at {} does not start the stream", self.at),
                "see the server's log; `outjet check` shows what is missing".to_owned(),
            )),
        }
    }

    fn host(&self) -> Option<&Host> {
        self.params
            .hosts
            .iter()
            .find(|host| host.to_string() == self.at)
            .or(self.params.hosts.first())
    }

    fn host_name(&self) -> String {
        match self.host().map(|host| &host.address) {
            Some(Address::Tcp { name, .. }) => name.clone(),
            Some(Address::Unix(directory)) => directory.display().to_string(),
            None => String::new(),
        }
    }

    fn pg_isready(&self) -> String {
        let port = self.host().map_or(5432, |host| host.port);
        format!("`pg_isready -h {} -p {port}`", self.host_name())
    }

    /// A line for `pg_hba.conf` that lets us in; logical replication matches by database name.
    fn hba_line(&self, method: &str) -> String {
        let (dbname, role) = (
            escape_identifier(&self.params.dbname),
            escape_identifier(&self.params.user),
        );
        match self.host().map(|host| &host.address) {
            Some(Address::Unix(_)) => format!("local {dbname} {role} {method}"),
            _ => format!("host {dbname} {role} <our address>/32 {method}"),
        }
    }
}

fn hosts(params: &Params) -> String {
    let hosts: Vec<_> = params.hosts.iter().map(Host::to_string).collect();
    hosts.join(", ")
}

/// What to do about a pooler.
pub const DIRECT: &str = "give the server's own address in DATABASE_URL (often port 5432, or the \
                          host name without \"-pooler\")";

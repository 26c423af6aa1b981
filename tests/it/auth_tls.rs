//! Logging in to real servers: every method, every sslmode, both kinds of connection.

use std::path::{Path, PathBuf};
use std::process::Command;

use outjet::error::{Disposition, Exit, Failure};
use outjet::pg::control::Control;
use outjet::pg::params::Params;
use outjet::pg::replication::Session;
use tempfile::TempDir;

use crate::harness::process::run;
use crate::harness::{Postgres, Stop};

/// Made by the openssl program, as an operator would.
struct Certificates(TempDir);

impl Certificates {
    /// An authority, another one, a server `db.test`, a client `cert_user`.
    fn make() -> Self {
        let made = Self(TempDir::new().expect("a temporary directory"));
        for authority in ["ca", "other"] {
            made.self_signed(authority, "prime256v1", &[]);
        }
        made.signed(
            "server",
            "db.test",
            "subjectAltName=DNS:db.test,IP:127.0.0.1",
        );
        made.signed("client", "cert_user", "extendedKeyUsage=clientAuth");
        made
    }

    /// `key` is an algorithm, or a curve.
    fn self_signed(&self, name: &str, key: &str, more: &[&str]) {
        let mut openssl = self.openssl("req -x509 -nodes -days 1 -newkey");
        match key.starts_with("secp") || key.starts_with("prime") {
            true => openssl.args(["ec", "-pkeyopt", &format!("ec_paramgen_curve:{key}")]),
            false => openssl.arg(key),
        };
        openssl.args(["-subj", &format!("/CN={name}")]).args(more);
        openssl.args([
            "-keyout",
            &format!("{name}.key"),
            "-out",
            &format!("{name}.crt"),
        ]);
        run(openssl);
    }

    /// By the authority `ca`; an empty `extension` makes what Postgres's manual makes: version 1.
    fn signed(&self, name: &str, subject: &str, extension: &str) {
        let (key, csr) = (format!("{name}.key"), format!("{name}.csr"));
        let mut openssl = self.openssl("req -new -nodes -newkey rsa:2048 -subj");
        openssl.args([&format!("/CN={subject}"), "-keyout", &key, "-out", &csr]);
        run(openssl);
        let mut openssl =
            self.openssl("x509 -req -days 1 -CA ca.crt -CAkey ca.key -CAcreateserial");
        openssl.args(["-in", &csr, "-out", &format!("{name}.crt")]);
        if !extension.is_empty() {
            std::fs::write(self.path("extensions"), extension).expect("write");
            openssl.args(["-extfile", "extensions"]);
        }
        run(openssl);
    }

    fn openssl(&self, arguments: &str) -> Command {
        let mut command = Command::new("openssl");
        command
            .args(arguments.split(' '))
            .current_dir(self.0.path());
        command
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).expect("a file made by openssl")
    }
}

const HBA: &str = "
local   all all trust
hostssl all cert_user     127.0.0.1/32 cert
host    all trust_user    127.0.0.1/32 trust
host    all password_user 127.0.0.1/32 password
host    all md5_user      127.0.0.1/32 md5
host    all scram_user    127.0.0.1/32 scram-sha-256
hostssl all tls_user      127.0.0.1/32 scram-sha-256
hostnossl all plain_user  127.0.0.1/32 scram-sha-256
";

const ROLES: &str = r#"
CREATE ROLE cert_user LOGIN REPLICATION;
CREATE ROLE trust_user LOGIN REPLICATION;
CREATE ROLE password_user LOGIN REPLICATION PASSWORD 'correct';
CREATE ROLE scram_user LOGIN REPLICATION PASSWORD 'correct';
CREATE ROLE tls_user LOGIN REPLICATION PASSWORD 'correct';
CREATE ROLE plain_user LOGIN REPLICATION PASSWORD 'correct';
CREATE ROLE "Od'd ""user" LOGIN REPLICATION PASSWORD 'correct';
SET password_encryption = 'md5';
CREATE ROLE md5_user LOGIN REPLICATION PASSWORD 'correct';
"#;

async fn tls_server(certificates: &Certificates, name: &str) -> Postgres {
    let postgres = Postgres::builder()
        .openssl()
        .tcp()
        .setting("ssl", "on")
        .setting("ssl_ca_file", "ca.crt")
        .file("ca.crt", certificates.read("ca.crt"))
        .file("server.crt", certificates.read(&format!("{name}.crt")))
        .file("server.key", certificates.read(&format!("{name}.key")))
        .hba(HBA)
        .start()
        .await;
    roles(&postgres).await;
    postgres
}

async fn roles(postgres: &Postgres) {
    let admin = format!(
        "host={} port={} user=postgres",
        postgres.host(),
        postgres.port().unwrap()
    );
    let admin = Control::connect(&params(&admin))
        .await
        .expect("trust over the unix socket");
    admin.client().batch_execute(ROLES).await.expect("roles");
}

/// With nothing from the environment of whoever runs the tests.
fn params(dsn: &str) -> Params {
    Params::parse(&format!("dbname=postgres {dsn}"), &|_| None).expect("parameters")
}

/// Connects both ways and says what protects the connection: `plain` or the TLS version.
async fn log_in(dsn: &str) -> Result<String, Failure> {
    let params = params(dsn);
    const PROTECTION: &str = "SELECT CASE WHEN ssl THEN version ELSE 'plain' END FROM pg_stat_ssl \
                              WHERE pid = pg_backend_pid()";
    let failed = |error: outjet::pg::Error| error.failure(&params);
    let control = Control::connect(&params).await;
    let session = Session::connect(&params, &[("wal_sender_timeout", "7s".to_owned())]).await;
    let (control, mut session) = match (control, session) {
        (Ok(control), Ok(session)) => (control, session),
        (Err(control), Err(session)) => {
            assert_eq!(failed(control), failed(session), "{dsn}");
            return Err(failed(
                Session::connect(&params, &[])
                    .await
                    .err()
                    .expect("an error"),
            ));
        }
        (control, session) => {
            panic!(
                "{dsn}: {:?} {:?}",
                control.err().map(failed),
                session.err().map(failed)
            )
        }
    };
    let row = control
        .client()
        .query_one(PROTECTION, &[])
        .await
        .expect("a row");
    let protection: String = row.get(0);
    let rows = session.query(PROTECTION).await.expect("a row");
    assert_eq!(rows, [[Some(protection.clone())]], "{dsn}");
    let timeout = session
        .query("SHOW wal_sender_timeout")
        .await
        .expect("a row");
    assert_eq!(timeout, [[Some("7s".to_owned())]]);
    session.close().await;
    Ok(protection)
}

async fn refused(dsn: &str) -> Failure {
    match log_in(dsn).await {
        Ok(protection) => panic!("{dsn}: connected, {protection}"),
        Err(failure) => failure,
    }
}

fn assert_told(failure: &Failure, exit: Exit, words: &[&str]) {
    let told = failure.to_string();
    assert_eq!(failure.exit, exit, "{told}");
    for word in words {
        assert!(told.contains(word), "no {word:?} in: {told}");
    }
}

fn server(postgres: &Postgres) -> String {
    format!("host=127.0.0.1 port={}", postgres.port().expect("TCP"))
}

fn with(dsn: &str, keyword: &str, path: &Path) -> String {
    format!("{dsn} {keyword}='{}'", path.display())
}

#[tokio::test]
async fn every_method_logs_in_with_and_without_tls() {
    let certificates = Certificates::make();
    let postgres = tls_server(&certificates, "server").await;
    let at = server(&postgres);
    for user in ["trust_user", "password_user", "md5_user", "scram_user"] {
        let login = format!("{at} user={user} password=correct");
        assert_eq!(log_in(&login).await.as_deref(), Ok("TLSv1.3"), "{user}");
        let outcome = log_in(&format!("{login} sslmode=disable")).await;
        match user {
            "password_user" => {
                let failure = outcome.expect_err("password in clear over plain TCP");
                assert_told(
                    &failure,
                    Exit::NotPermitted,
                    &["unencrypted", "sslmode=require"],
                );
            }
            _ => assert_eq!(outcome.as_deref(), Ok("plain"), "{user}"),
        }
        let wrong = format!("{at} user={user} password=wrong");
        if user != "trust_user" {
            let failure = refused(&wrong).await;
            let words = ["28P01", "refuses the password", "ALTER ROLE"];
            assert_told(&failure, Exit::NotPermitted, &words);
            assert_eq!(failure.disposition, Disposition::Halt);
        }
    }
    let failure = refused(&format!("{at} user=scram_user")).await;
    assert_told(&failure, Exit::NotPermitted, &["none is given", ".pgpass"]);
}

#[tokio::test]
async fn scram_is_bound_to_the_tls_session_whatever_hash_the_certificate_has() {
    let certificates = Certificates::make();
    certificates.self_signed("p384", "secp384r1", &["-sha384"]);
    certificates.self_signed("sha512", "rsa:2048", &["-sha512"]);
    certificates.self_signed("ed25519", "ed25519", &[]);
    let bound = "user=scram_user password=correct channel_binding=require";
    for name in ["server", "p384", "sha512"] {
        let postgres = tls_server(&certificates, name).await;
        let at = server(&postgres);
        assert_eq!(
            log_in(&format!("{at} {bound}")).await.as_deref(),
            Ok("TLSv1.3"),
            "{name}"
        );
        let failure = refused(&format!("{at} {bound} sslmode=disable")).await;
        assert_told(
            &failure,
            Exit::NotPermitted,
            &["not encrypted", "channel_binding=prefer"],
        );
        let md5 = format!("{at} user=md5_user password=correct channel_binding=require");
        let failure = refused(&md5).await;
        assert_told(&failure, Exit::NotPermitted, &["does not ask for SCRAM"]);
    }
    let postgres = tls_server(&certificates, "ed25519").await;
    let login = format!("{} user=scram_user password=correct", server(&postgres));
    assert_eq!(log_in(&login).await.as_deref(), Ok("TLSv1.3"));
}

#[tokio::test]
async fn verify_full_checks_chain_and_name_and_verify_ca_the_chain_alone() {
    let certificates = Certificates::make();
    let postgres = tls_server(&certificates, "server").await;
    let port = postgres.port().expect("TCP");
    let login = |host: &str, sslmode: &str, root: &str| {
        let dsn = format!("{host} port={port} user=trust_user sslmode={sslmode}");
        with(&dsn, "sslrootcert", &certificates.path(root))
    };
    let (name, address) = ("host=db.test hostaddr=127.0.0.1", "host=127.0.0.1");
    let wrong_name = "host=elsewhere.test hostaddr=127.0.0.1";
    for good in [
        login(name, "verify-full", "ca.crt"),
        login(address, "verify-full", "ca.crt"),
        login("hostaddr=127.0.0.1", "verify-full", "ca.crt"),
        login(wrong_name, "verify-ca", "ca.crt"),
        login(wrong_name, "require", "ca.crt"),
        login(wrong_name, "require", "missing.crt"),
        login(name, "prefer", "other.crt"),
    ] {
        assert_eq!(log_in(&good).await.as_deref(), Ok("TLSv1.3"), "{good}");
    }
    let failure = refused(&login(wrong_name, "verify-full", "ca.crt")).await;
    let words = ["not trusted", "db.test", "subjectAltName", "verify-ca"];
    assert_told(&failure, Exit::NotPermitted, &words);
    assert_eq!(failure.disposition, Disposition::Halt);
    for strict in ["verify-full", "verify-ca", "require"] {
        let failure = refused(&login(name, strict, "other.crt")).await;
        assert_told(
            &failure,
            Exit::NotPermitted,
            &["not trusted", "UnknownIssuer", "sslrootcert"],
        );
    }
    let failure = refused(&login(name, "verify-full", "missing.crt")).await;
    assert_told(
        &failure,
        Exit::Config,
        &["missing.crt does not exist", "sslrootcert=system"],
    );
    let system = format!("{name} port={port} user=trust_user sslrootcert=system");
    assert_eq!(refused(&system).await.disposition, Disposition::Halt);
}

#[tokio::test]
async fn certificate_that_is_its_own_root_is_trusted_as_openssl_does() {
    let certificates = Certificates::make();
    certificates.self_signed(
        "own",
        "rsa:2048",
        &["-addext", "subjectAltName=DNS:db.test"],
    );
    let postgres = tls_server(&certificates, "own").await;
    let at = format!(
        "hostaddr=127.0.0.1 port={} user=trust_user",
        postgres.port().expect("TCP")
    );
    let at = with(&at, "sslrootcert", &certificates.path("own.crt"));
    let full = log_in(&format!("{at} host=db.test sslmode=verify-full")).await;
    assert_eq!(full.as_deref(), Ok("TLSv1.3"));
    let failure = refused(&format!("{at} host=localhost sslmode=verify-full")).await;
    assert_told(&failure, Exit::NotPermitted, &["subjectAltName"]);
}

#[tokio::test]
async fn certificate_made_by_the_manuals_recipe_encrypts_but_cannot_be_verified() {
    let certificates = Certificates::make();
    certificates.signed("v1", "db.test", "");
    let postgres = tls_server(&certificates, "v1").await;
    let at = format!("{} user=scram_user password=correct", server(&postgres));
    let bound = log_in(&format!("{at} sslmode=require channel_binding=require")).await;
    assert_eq!(bound.as_deref(), Ok("TLSv1.3"));
    let root = with(
        &format!("{at} sslmode=verify-ca"),
        "sslrootcert",
        &certificates.path("ca.crt"),
    );
    assert_told(
        &refused(&root).await,
        Exit::NotPermitted,
        &["not trusted", "version 3"],
    );
}

#[tokio::test]
async fn client_certificate_logs_in_unless_others_can_read_its_key() {
    use std::os::unix::fs::PermissionsExt;
    let certificates = Certificates::make();
    let postgres = tls_server(&certificates, "server").await;
    let at = format!("{} user=cert_user sslmode=require", server(&postgres));
    let login = with(&at, "sslcert", &certificates.path("client.crt"));
    let login = with(&login, "sslkey", &certificates.path("client.key"));
    assert_eq!(log_in(&login).await.as_deref(), Ok("TLSv1.3"));
    let failure = refused(&at).await;
    assert_told(
        &failure,
        Exit::NotPermitted,
        &["28000", "client certificate"],
    );
    let readable = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(certificates.path("client.key"), readable).expect("chmod");
    assert_told(
        &refused(&login).await,
        Exit::Config,
        &["accessible to group", "chmod 0600"],
    );
}

#[tokio::test]
async fn sslmode_falls_back_only_where_it_may() {
    let certificates = Certificates::make();
    let postgres = tls_server(&certificates, "server").await;
    let at = format!("{} password=correct", server(&postgres));
    let login = |user: &str, sslmode: &str| {
        let dsn = format!("{at} user={user} sslmode={sslmode}");
        async move { log_in(&dsn).await }
    };
    assert_eq!(login("scram_user", "allow").await.as_deref(), Ok("plain"));
    assert_eq!(
        login("scram_user", "prefer").await.as_deref(),
        Ok("TLSv1.3")
    );
    assert_eq!(login("tls_user", "allow").await.as_deref(), Ok("TLSv1.3"));
    assert_eq!(login("plain_user", "prefer").await.as_deref(), Ok("plain"));
    for (user, sslmode) in [("tls_user", "disable"), ("plain_user", "require")] {
        let failure = login(user, sslmode)
            .await
            .expect_err("pg_hba.conf has no line");
        let words = [
            "28000",
            "pg_hba.conf",
            "physical standbys",
            "SELECT pg_reload_conf()",
        ];
        assert_told(&failure, Exit::NotPermitted, &words);
    }

    let plain = Postgres::builder().tcp().start().await;
    let at = format!("{} user=postgres", server(&plain));
    assert_eq!(
        log_in(&format!("{at} sslmode=prefer")).await.as_deref(),
        Ok("plain")
    );
    let failure = refused(&format!("{at} sslmode=require")).await;
    assert_told(&failure, Exit::Config, &["does not offer TLS", "ssl = on"]);
}

#[tokio::test]
async fn password_comes_from_the_password_file_of_the_server_that_asks() {
    use std::os::unix::fs::PermissionsExt;
    let certificates = Certificates::make();
    let postgres = tls_server(&certificates, "server").await;
    let passfile = certificates.path("pgpass");
    let line = format!(
        "127.0.0.1:{}:postgres:scram_user:correct\n",
        postgres.port().unwrap()
    );
    std::fs::write(&passfile, format!("# ours\nother:*:*:*:wrong\n{line}")).expect("write");
    let chmod = |mode| std::fs::set_permissions(&passfile, PermissionsExt::from_mode(mode));
    let login = with(
        &format!("{} user=scram_user", server(&postgres)),
        "passfile",
        &passfile,
    );
    chmod(0o600).expect("chmod");
    assert_eq!(log_in(&login).await.as_deref(), Ok("TLSv1.3"));
    chmod(0o644).expect("chmod");
    assert_told(
        &refused(&login).await,
        Exit::NotPermitted,
        &["accessible", "chmod 0600"],
    );
    let unasked = login.replace("scram_user", "trust_user");
    assert_eq!(log_in(&unasked).await.as_deref(), Ok("TLSv1.3"));
}

#[tokio::test]
async fn hosts_are_tried_until_one_answers_as_wanted() {
    let mut postgres = Postgres::builder().tcp().start().await;
    let port = postgres.port().expect("TCP");
    let nobody = format!("host=127.0.0.1,/nonexistent,127.0.0.1 port=1,1,{port} user=postgres");
    assert_eq!(log_in(&nobody).await.as_deref(), Ok("plain"));

    postgres.set("default_transaction_read_only", "on");
    postgres.restart(Stop::Fast).await;
    assert_eq!(log_in(&nobody).await.as_deref(), Ok("plain"));
    let failure = refused(&format!("{nobody} target_session_attrs=read-write")).await;
    assert_eq!(failure.disposition, Disposition::Retry);
    assert_told(
        &failure,
        Exit::Unavailable,
        &["read-only", "refused", "/nonexistent:1"],
    );
    let failure = refused(&format!(
        "host=127.0.0.1 port={port} user=postgres dbname=none"
    ))
    .await;
    assert_told(
        &failure,
        Exit::Config,
        &["3D000", "CREATE DATABASE \"none\""],
    );
    assert_eq!(failure.disposition, Disposition::Halt);
}

#[tokio::test]
async fn unix_socket_needs_no_tls_even_if_it_is_required() {
    let postgres = Postgres::start().await;
    let dsn = format!("host={} user=postgres sslmode=verify-full", postgres.host());
    assert_eq!(log_in(&dsn).await.as_deref(), Ok("plain"));
}

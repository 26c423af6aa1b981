//! Connection strings against what libpq makes of them.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

fn parse_with(dsn: &str, env: &[(&str, &str)]) -> Result<Params, ParamsError> {
    let env: HashMap<_, _> = env.iter().copied().collect();
    Params::parse(dsn, &|name| env.get(name).map(|value| (*value).to_owned()))
}

fn parse(dsn: &str) -> Params {
    parse_with(dsn, &[("HOME", "/home/me"), ("PGUSER", "me")]).unwrap()
}

fn tcp(name: &str, port: u16) -> Host {
    Host {
        address: Address::from_host(name, port),
        port,
    }
}

#[test]
fn url_and_keywords_say_the_same() {
    let url =
        parse("postgres://u%40x:p%2Fw%25@db:6432/app%20one?sslmode=require&connect_timeout=3");
    let keywords = parse(
        r"host=db port = 6432 user=u@x password='p/w%' dbname='app\ one' sslmode=require
          connect_timeout=3",
    );
    assert_eq!(url, keywords);
    assert_eq!(url.password.as_ref().map(Secret::expose), Some("p/w%"));
    assert_eq!(url.to_string(), "db:6432/app one as u@x");
    assert_eq!(url.connect_timeout, Some(Duration::from_secs(3)));
}

#[test]
fn defaults_are_libpqs_but_for_the_timeout() {
    let params = parse("host=db");
    assert_eq!(params.hosts, [tcp("db", 5432)]);
    assert_eq!((params.user.as_str(), params.dbname.as_str()), ("me", "me"));
    assert_eq!(params.sslmode, SslMode::Prefer);
    assert_eq!(params.passfile, Some("/home/me/.pgpass".into()));
    assert_eq!(params.ssl_directory, Some("/home/me/.postgresql".into()));
    assert_eq!(params.connect_timeout, Some(Duration::from_secs(10)));
    assert_eq!(params.keepalives, Some(Keepalives::default()));
    assert_eq!(params.application_name, "outjet");
}

#[test]
fn string_counts_more_than_environment() {
    let env = [
        ("PGHOST", "elsewhere"),
        ("PGHOSTADDR", "10.0.0.9"),
        ("PGPORT", "7"),
        ("PGUSER", "env"),
        ("PGPASSWORD", "secret"),
        ("PGSSLMODE", "verify-full"),
        ("PGDATABASE", ""),
    ];
    let params = parse_with("postgres://u@db", &env).unwrap();
    assert_eq!(params.hosts, [tcp("db", 7)]);
    assert_eq!(params.to_string(), "db:7/u as u");
    assert_eq!(params.sslmode, SslMode::VerifyFull);
    assert_eq!(params.password, Some(Secret::new("secret")));
    let params = parse_with("", &env).unwrap();
    let addr = Some("10.0.0.9".parse().unwrap());
    let name = "elsewhere".to_owned();
    assert_eq!(params.hosts[0].address, Address::Tcp { name, addr });
}

#[test]
fn several_hosts_share_a_port_or_have_one_each() {
    let params = parse("postgres://a,b:6432,[::1]:7,%2Ftmp/app");
    let hosts = [
        tcp("a", 5432),
        tcp("b", 6432),
        tcp("::1", 7),
        tcp("/tmp", 5432),
    ];
    assert_eq!(params.hosts, hosts);
    assert_eq!(
        params.to_string(),
        "a:5432,b:6432,[::1]:7,/tmp:5432/app as me"
    );
    assert_eq!(parse("host=a,b port=7").hosts, [tcp("a", 7), tcp("b", 7)]);
    let wrong = parse_with("host=a,b,c port=7,8 user=u", &[]);
    assert!(matches!(
        wrong,
        Err(ParamsError::Count {
            hosts: 3,
            others: 2,
            ..
        })
    ));
}

#[test]
fn unix_socket_in_query_or_authority() {
    let socket = Address::Unix("/run/pg".into());
    for dsn in [
        "postgres:///app?host=/run/pg",
        "postgres://%2Frun%2Fpg/app",
        "host=/run/pg",
    ] {
        assert_eq!(parse(dsn).hosts[0].address, socket, "{dsn}");
    }
}

#[test]
fn mistakes_are_named() {
    let error = |dsn: &str| {
        parse_with(dsn, &[("PGUSER", "me")])
            .unwrap_err()
            .to_string()
    };
    assert!(error("postgres://h/d?sslmod=require").contains("did you mean \"sslmode\""));
    assert!(error("host=h conect_timeout=3").contains("did you mean \"connect_timeout\""));
    assert!(error("host=h sslmode=sure").contains("verify-full"));
    assert!(error("host=h target_session_attrs=standby").contains("read-write"));
    assert!(error("mysql://u@h/d").contains("no Postgres URL"));
    assert!(error("jdbc:postgresql://h/d").contains("no Postgres URL"));
    assert!(error("db.example").contains("keyword=value"));
    assert!(error("host='h").contains("closing quote"));
    assert!(error("postgres://h:0/d").contains("65535"));
    assert!(error("host=h sslcrl=x").contains("not supported"));
    assert!(error("postgres://h/%zz").contains("%25"));
    assert!(error("host=h sslrootcert=system sslmode=require").contains("verify-full"));
    assert_eq!(
        parse("host=h sslrootcert=system").sslmode,
        SslMode::VerifyFull
    );
}

#[test]
fn password_appears_in_no_message() {
    let dsn = "postgres://u:hunter2@h/d";
    assert!(!format!("{:?} {}", parse(dsn), parse(dsn)).contains("hunter2"));
    for dsn in [
        "postgres://u:hunter2/x@h/d",
        "postgres://u:hunter2%@h/d",
        "host=h password='hunter2",
        "host=h password=x hunter2",
    ] {
        let error = parse_with(dsn, &[("PGUSER", "me")]).unwrap_err();
        assert!(
            !format!("{error} {}", error.failure()).contains("hunter2"),
            "{dsn}"
        );
    }
}

fn percent_encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', r"\\").replace('\'', r"\'"))
}

/// Neither empty nor with a comma, which separates hosts.
fn any_value() -> impl Strategy<Value = String> {
    "[^\0,]{1,12}"
}

proptest! {
    #[test]
    fn rendered_parameters_are_read_back(
        (user, password, dbname) in (any_value(), any_value(), any_value()),
        name in "[a-z0-9._-]{1,20}",
        port in 1..=u16::MAX,
    ) {
        let [u, p, d] = [&user, &password, &dbname].map(|text| percent_encoded(text));
        let url = parse(&format!("postgresql://{u}:{p}@{name}:{port}/{d}"));
        let [u, p, d] = [&user, &password, &dbname].map(|text| quoted(text));
        let keywords = parse(&format!(
            "user={u} password = {p} dbname={d} host={name}  port={port}"
        ));
        prop_assert_eq!(&url, &keywords);
        prop_assert_eq!(url.password, Some(Secret::new(password)));
        prop_assert_eq!((url.user, url.dbname, url.hosts), (user, dbname, vec![tcp(&name, port)]));
    }

    #[test]
    fn no_string_makes_the_parser_panic(dsn in "(postgres://)?[a-z=:/@?&%'\\\\ ,\\[\\]é]{0,40}") {
        let _ = parse_with(&dsn, &[("PGUSER", "me")]);
    }
}

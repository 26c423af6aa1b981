//! What the README says is so: the tests that it names, commands, configuration, headers and exit
//! codes; and what it gives to type works on real servers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use clap::Parser;
use clap::error::ErrorKind;
use outjet::cli::Cli;
use outjet::config::{Config, Sources};

use crate::harness::postgres::Session;
use crate::harness::{Nats, Postgres, World, drain};

const SOON: Duration = Duration::from_secs(60);

#[test]
fn guarantees_name_tests_that_exist() {
    let readme = readme();
    let lines = section(&readme, "What is guaranteed").lines();
    let rows = lines.filter(|line| line.starts_with("| ") && line.ends_with("` |"));
    let (mut found, mut missing) = (0, Vec::new());
    let mut code = String::new();
    read_all(&root().join("src"), &mut code);
    read_all(&root().join("tests"), &mut code);
    for row in rows {
        let tests = row.rsplit(" | ").next().unwrap_or_default();
        for test in spans(tests) {
            match code.contains(&format!("fn {test}(")) {
                true => found += 1,
                false => missing.push(test),
            }
        }
    }
    assert!(missing.is_empty(), "no such tests: {missing:?}");
    assert!(found > 8, "the table was not read: {found} tests");
}

/// Four words and more, joined: what nothing else between backticks looks like.
#[test]
fn tests_that_the_pages_name_exist() {
    let mut code = String::new();
    read_all(&root().join("src"), &mut code);
    read_all(&root().join("tests"), &mut code);
    for page in ["docs/losses.md", "docs/shared.md"] {
        let text = fs::read_to_string(root().join(page)).expect("the page");
        let is_name = |span: &&str| {
            span.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
                && span.matches('_').count() >= 3
                && !span.starts_with("outjet_")
                && !span.starts_with("pg_")
        };
        let prose = outside_blocks(&text);
        let named: Vec<&str> = spans(&prose).filter(is_name).collect();
        assert!(named.len() > 8, "{page} was not read: {named:?}");
        for test in named {
            assert!(code.contains(&format!("fn {test}(")), "{page}: {test}");
        }
    }
}

#[test]
fn every_feature_of_a_poller_names_tests_that_exist() {
    let page = fs::read_to_string(root().join("docs/coming-from-a-poller.md")).expect("the page");
    let mut code = String::new();
    read_all(&root().join("src"), &mut code);
    read_all(&root().join("tests"), &mut code);
    let rows = page.lines().filter(|line| line.starts_with("| "));
    let rows = rows.filter(|line| !line.starts_with("| A poller has"));
    let mut found = 0;
    for row in rows {
        let (_, tests) = row
            .trim_end_matches(" |")
            .rsplit_once(" | ")
            .expect("cells");
        assert!(spans(tests).count() > 0, "no test: {row}");
        for test in spans(tests) {
            assert!(
                code.contains(&format!("fn {test}(")),
                "no such test: {test}"
            );
            found += 1;
        }
    }
    assert!(found > 30, "the tables were not read: {found} tests");
}

#[test]
fn every_command_of_the_documentation_can_be_typed() {
    let mut pages = readme();
    let docs = fs::read_dir(root().join("docs")).expect("the pages");
    for page in docs.flatten() {
        pages += "\n";
        pages += &fs::read_to_string(page.path()).expect("a page");
    }
    let blocks = blocks(&pages, "");
    let typed = blocks.iter().flat_map(|block| block.lines());
    let typed = typed.map(|line| line.strip_prefix("$ ").unwrap_or(line));
    let prose = outside_blocks(&pages);
    let typed: BTreeSet<&str> = typed.filter(|line| line.starts_with("outjet ")).collect();
    let mentioned = spans(&prose).filter(|span| span.starts_with("outjet "));
    let commands: BTreeSet<&str> = mentioned.chain(typed.iter().copied()).collect();
    assert!(commands.len() > 10, "{commands:?}");
    for command in commands {
        let words = words(command);
        match Cli::try_parse_from(&words) {
            Ok(_) => {}
            // In prose a command may be named without what it is to be called with.
            Err(error)
                if error.kind() == ErrorKind::MissingRequiredArgument
                    && !typed.contains(command) => {}
            Err(error) => panic!("{command}\n{words:?}\n{error}"),
        }
    }
}

#[test]
fn configurations_of_the_readme_are_accepted_and_no_section_is_left_out() {
    let readme = readme();
    for yaml in blocks(&readme, "yaml") {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("outjet.yaml");
        fs::write(&file, yaml).expect("write the configuration");
        let loaded = Config::load(&Sources {
            file: Some(&file),
            searched: &[],
            environment: &BTreeMap::new(),
            overrides: &[],
        });
        if let Err(failure) = loaded {
            panic!("{yaml}\n{failure}");
        }
    }
    let every_key = fs::read_to_string(root().join("config/outjet.yaml")).expect("the defaults");
    let sections = every_key.lines().filter_map(|line| line.split_once(':'));
    let sections = sections.filter(|(key, _)| key.bytes().all(|byte| byte.is_ascii_lowercase()));
    let configuration = section(&readme, "Configuration");
    for (section, _) in sections {
        let row = format!("| `{section}` |");
        assert!(configuration.contains(&row), "{section} is not mentioned");
    }
}

#[test]
fn every_header_and_every_exit_code_is_in_the_readme() {
    let readme = readme();
    let consuming = section(&readme, "Consuming");
    let mut code = String::new();
    read_all(&root().join("src/event/format.rs"), &mut code);
    read_all(&root().join("src/sink/jetstream"), &mut code);
    let strings = code.split('"').skip(1).step_by(2);
    let ours = ["ce-", "Outjet-", "Nats-"];
    let headers = strings.filter(|text| {
        let begins = ours
            .iter()
            .any(|start| text.starts_with(start) && text.len() > start.len());
        begins && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    });
    for header in headers {
        assert!(consuming.contains(&format!("`{header}`")), "{header}");
    }
    let mut errors = String::new();
    read_all(&root().join("src/error.rs"), &mut errors);
    let codes = errors
        .lines()
        .filter_map(|line| line.trim().split_once(" = "));
    let codes = codes.filter_map(|(_, code)| code.strip_suffix(',')?.parse::<u8>().ok());
    let codes: Vec<u8> = codes.collect();
    assert!(codes.len() >= 7, "{codes:?}");
    for code in codes {
        assert!(readme.contains(&format!("| {code} |")), "exit code {code}");
    }
}

/// `scripts/snippets` runs it; here it compiles.
#[test]
fn snippet_in_rust_is_the_one_that_is_compiled() {
    let read = |path: &str| fs::read_to_string(root().join(path)).expect("read a file");
    let compiled = read("examples/snippets/rust.rs");
    let (_, compiled) = compiled
        .split_once("\n\n")
        .expect("what follows the purpose");
    let page = read("docs/producers.md");
    let written: Vec<_> = blocks(&page, "rust");
    assert_eq!(written, [compiled.trim_end()]);
}

/// The permissions are the README's and no others; so is the SQL.
#[tokio::test]
async fn sql_and_permissions_of_the_readme_suffice() {
    let readme = readme().replace('…', "secret");
    let users = blocks(&readme, "");
    let user = users
        .into_iter()
        .find(|block| block.contains("permissions:"));
    let user = user.expect("permissions of NATS");
    let nats = format!("authorization {{ users: [ {{ user: admin, password: admin }}\n{user} ] }}");
    let world = World::with(Postgres::builder(), Nats::builder().config(&nats)).await;
    let owner = database_with_a_shop(&world).await;
    let host = world.nats.url().replace("nats://", "");
    let call = |user: &str, arguments: &[&'static str]| {
        let nats_user = if user == "postgres" {
            "admin:admin"
        } else {
            "outjet:secret"
        };
        let call = world.outjet(arguments.iter().copied());
        call.env("DATABASE_URL", world.postgres.url_as(user, "app"))
            .env("NATS_URL", format!("nats://{nats_user}@{host}"))
    };
    let setup = call("postgres", &["setup"]).output().await;
    assert_eq!(setup.code, Some(0), "{setup:?}");

    let page = fs::read_to_string(root().join("docs/coming-from-a-poller.md")).expect("the page");
    let questions = blocks(&page, "sql");
    let blocks = blocks(&readme, "sql");
    let (grants, statements): (Vec<_>, Vec<_>) = blocks
        .iter()
        .partition(|block| block.contains("CREATE ROLE"));
    for grant in grants {
        owner.run(grant).await;
    }
    let check = call("outjet:secret", &["check"]).output().await;
    assert_eq!(check.code, Some(0), "{check:?}");
    let mut run = call("outjet:secret", &["run", "--log-format", "json"]).spawn();
    run.logged("leading", SOON).await;
    let shop = Session::connect(&world.postgres.url_as("shop", "app")).await;
    for statement in statements {
        let by_owner = statement.contains("partitions");
        let session = if by_owner { &owner } else { &shop };
        session.run(statement).await;
    }
    for question in questions {
        owner.run(question).await;
    }
    let published = shop.text("SELECT outbox.wait_published('60 s')").await;
    assert_eq!(published, "t");
    let admin = async_nats::ConnectOptions::with_user_and_password("admin".into(), "admin".into());
    let admin = admin.connect(world.nats.url()).await.expect("connect");
    let stored = drain::messages(&async_nats::jetstream::new(admin), "OUTBOX").await;
    assert_eq!(stored.len(), 4, "{stored:?}");
    assert_eq!(run.terminate(SOON).await, Some(0));
}

/// A database of its own, with what the README's application has.
async fn database_with_a_shop(world: &World) -> Session {
    let admin = world.postgres.connect().await;
    admin.run("CREATE DATABASE app").await;
    admin.run("CREATE ROLE shop LOGIN").await;
    let owner = Session::connect(&world.postgres.url_as("postgres", "app")).await;
    let sql = "CREATE TABLE orders (id int PRIMARY KEY, state text); GRANT ALL ON orders TO shop";
    owner.run(sql).await;
    owner
}

fn readme() -> String {
    fs::read_to_string(root().join("README.md")).expect("a README")
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What stands below a heading.
fn section<'a>(text: &'a str, heading: &str) -> &'a str {
    let (_, below) = text
        .split_once(&format!("\n## {heading}\n"))
        .expect("the heading");
    below.split("\n## ").next().unwrap_or_default()
}

/// The blocks of code that are marked so.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let between = text.split("\n```").skip(1).step_by(2);
    between
        .filter_map(|block| block.split_once('\n'))
        .filter(|(mark, _)| *mark == language)
        .map(|(_, block)| block)
        .collect()
}

fn outside_blocks(text: &str) -> String {
    text.split("\n```").step_by(2).collect()
}

/// What stands between backticks.
fn spans(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The words of a command as a shell splits them, up to a comment, a redirection or `&`.
fn words(command: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (number, part) in command.split('\'').enumerate() {
        if number % 2 == 1 {
            words.push(part.to_owned());
            continue;
        }
        for word in part.split_whitespace() {
            if ["#", ">", "&"].contains(&word) {
                return words;
            }
            words.push(word.to_owned());
        }
    }
    words
}

/// Appends the text of a file, or of all below a directory but this one.
fn read_all(path: &Path, text: &mut String) {
    if path.is_dir() {
        for entry in fs::read_dir(path).expect("list a directory").flatten() {
            read_all(&entry.path(), text);
        }
    } else if path.extension().is_some_and(|end| end == "rs") && !path.ends_with("docs.rs") {
        text.push_str(&fs::read_to_string(path).expect("read a source"));
    }
}

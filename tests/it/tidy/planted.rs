//! Files that break one rule each.

use super::source::{Source, arguments, links};
use super::*;

fn source(name: &str, text: &str) -> Source {
    Source {
        name: name.to_owned(),
        text: text.to_owned(),
        is_test: false,
    }
}

#[test]
fn a_file_without_purpose_or_without_end() {
    assert_eq!(
        opens_with_its_purpose(&source("src/a.rs", "use b;\n")).len(),
        1
    );
    let long = "//! x\n".repeat(FILE_LINES_MAX + 1);
    assert_eq!(has_a_readable_size(&source("src/a.rs", &long)).len(), 1);
    let wide = "x".repeat(LINE_COLUMNS_MAX + 1);
    assert_eq!(has_a_readable_size(&source("src/a.rs", &wide)).len(), 1);
    let fits = "x".repeat(LINE_COLUMNS_MAX);
    assert_eq!(has_a_readable_size(&source("src/a.rs", &fits)).len(), 0);
}

#[test]
fn a_function_of_too_many_lines_or_arguments() {
    let of = |lines: usize| format!("    pub fn f() {{\n{}    }}\n", "x;\n".repeat(lines - 2));
    assert_eq!(
        has_readable_functions(&source("src/a.rs", &of(71))).len(),
        1
    );
    assert_eq!(
        has_readable_functions(&source("src/a.rs", &of(70))).len(),
        0
    );
    for (declaration, expected) in [
        ("fn f() {", 0),
        ("fn f(&self) -> (u8, u8) {", 1),
        ("fn f(a: HashMap<u8, u8>, b: impl Fn(u8, u8) -> u8,) {", 2),
        (
            "fn f<T: Fn(u8) -> u8>( a: [u8; 2], (b, c): (u8, u8), d: u8, e: u8, f: u8 ) {",
            5,
        ),
    ] {
        assert_eq!(arguments(declaration), expected, "{declaration}");
    }
}

#[test]
fn a_mark_of_unfinished_work_and_an_unwrap() {
    let undone = ["// TO", "DO: later\n"].concat();
    assert_eq!(leaves_nothing_undone(&source("src/a.rs", &undone)).len(), 1);
    let text = "let a = b.unwrap();\n// c.unwrap()\n#[cfg(test)]\nmod tests {\n d.unwrap() }\n";
    assert_eq!(panics_with_a_reason(&source("src/a.rs", text)).len(), 1);
}

#[test]
fn a_name_that_says_nothing() {
    for (text, complaints) in [
        ("pub(crate) struct SlotManager {\n", 1),
        ("    pub async fn get_slot() {\n", 1),
        ("    let mut row_data = 1;\n", 1),
        ("    let database = information(\"data\");\n", 0),
    ] {
        assert_eq!(
            says_what_it_means(&source("src/a.rs", text)).len(),
            complaints,
            "{text}"
        );
    }
    assert_eq!(says_what_it_means(&source("src/pg/utils.rs", "")).len(), 1);
}

#[test]
fn an_import_across_a_border() {
    for (name, text, complaints) in [
        ("src/sink/mod.rs", "use crate::lsn::Lsn;\n", 1),
        (
            "src/sink/jetstream/append/ring.rs",
            "use super::super::super::window;\n",
            0,
        ),
        (
            "src/sink/jetstream/append/ring.rs",
            "use super::super::super::super::window;\n",
            1,
        ),
        (
            "src/pg/wire.rs",
            "use crate::{\n    lsn::Lsn,\n    event::{Event, Position},\n};\n",
            1,
        ),
        ("src/pg/wire.rs", "use crate::lead::window::Window;\n", 1),
        ("src/pg/wire.rs", "use crate::lead::window::Confirmed;\n", 0),
        ("src/lead/window.rs", "fn f() { crate::pg::decode(); }\n", 1),
        (
            "src/lead/window.rs",
            "// crate::pg\n#[cfg(test)]\nmod tests {\nuse crate::pg; }\n",
            0,
        ),
        ("src/lead/relay.rs", "use crate::config::Config;\n", 1),
        ("src/novelty.rs", "", 1),
        ("src/sink/mod.rs", "use crate::event::Event;\n", 0),
        ("src/sink/mod.rs", "use crate::event::route;\n", 0),
        ("src/sink/mod.rs", "use crate::event::assemble;\n", 1),
        ("src/event/lineage.rs", "use super::mapping::Plan;\n", 1),
        ("src/event/assemble.rs", "use super::mapping::Plan;\n", 0),
    ] {
        assert_eq!(
            keeps_to_its_border(&source(name, text)).len(),
            complaints,
            "{name} {text}"
        );
    }
}

#[test]
fn a_circle_of_imports() {
    let file = |name: &str, text: &str| source(&format!("src/{name}.rs"), text);
    let found = circles::circles(&[
        file("a", "use crate::b::B;\n"),
        file("b", "use super::c::{C, D};\n"),
        file("c", "mod deep;\n"),
        // One module in two files.
        file("c/deep", "use super::C;\nfn f() { crate::a::f(); }\n"),
        file("d", "use crate::a::A;\n"),
    ]);
    assert!(found.is_empty(), "{found:?}");
    let found = circles::circles(&[
        file("a", "use crate::b::B;\n"),
        file("b", "use super::c::{C, D};\n"),
        file("c", "fn f() { crate::a::f(); }\n"),
        file("d", "use crate::a::A;\n"),
    ]);
    assert_eq!(found, ["src/a.rs src/b.rs src/c.rs"]);
}

#[test]
fn a_clock_in_the_core() {
    for (text, complaints) in [
        ("let now = SystemTime::now();\n", 1),
        ("pub async fn f() {\n", 1),
        ("use std::time::Duration; // tokio\n", 0),
    ] {
        let found = is_pure_where_it_must_be(&source("src/lead/window.rs", text));
        assert_eq!(found.len(), complaints, "{text}");
    }
    assert!(is_pure_where_it_must_be(&source("src/lead/relay.rs", "async fn f() {\n")).is_empty());
}

#[test]
fn a_choice_by_chance() {
    let choice = "tokio::select! {\n() = a => {}\n}\n";
    assert_eq!(
        chooses_at_random(&source("src/lead/term.rs", choice)).len(),
        1
    );
    let ordered = "tokio::select! {\nbiased;\n() = a => {}\n}\n";
    assert!(chooses_at_random(&source("src/lead/term.rs", ordered)).is_empty());
    assert!(chooses_at_random(&source("src/command/run.rs", choice)).is_empty());
    let name = "Uuid::now_v7()\n";
    assert_eq!(
        chooses_at_random(&source("src/nats/requests.rs", name)).len(),
        1
    );
}

#[test]
fn a_clock_on_the_wall() {
    let text = "let due = SystemTime::now() + takeover_after;\n";
    assert_eq!(asks_no_time(&source("src/lead/term.rs", text)).len(), 1);
    assert!(asks_no_time(&source("src/watch/http.rs", text)).is_empty());
    let text = "let took = SystemTime::now().duration_since(began);\n";
    assert_eq!(asks_no_time(&source("src/watch/vitals.rs", text)).len(), 1);
    assert!(asks_no_time(&source("src/lead/term.rs", "Instant::now()\n")).is_empty());
}

#[test]
fn a_link_into_the_repository() {
    let text = "[a](docs/a.md#part) [b](https://b) [c](#c) [d](d.md \"title\")";
    assert_eq!(links(text), ["docs/a.md", "d.md"]);
}

//! Style and layering, held by tests: what a compiler does not see and a reviewer forgets.
//!
//! Each rule is a function from one source file to complaints, and is shown a file that breaks it.

mod circles;
mod planted;
mod source;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use source::{
    Source, arguments, declared, files_below, imports, links, pages, root, sources, within,
};

const FILE_LINES_MAX: usize = 700;
const LINE_COLUMNS_MAX: usize = 100;
const FUNCTION_LINES_MAX: usize = 70;
const ARGUMENTS_MAX: usize = 4;

/// What a module may import from the crate.
enum Border {
    /// These modules, and what is below them.
    Only(&'static [&'static str]),
    /// All but these.
    AllBut(&'static [&'static str]),
}

/// What a simulated world runs.
const SIMULATED: &[&str] = &[
    "backoff",
    "event",
    "guard",
    "lead",
    "nats",
    "net",
    "pg",
    "preflight",
    "sink",
];

/// The direction of dependencies, from the leaves up. The longest matching name counts; a module
/// that no line covers is a mistake, so that a new one is placed on purpose.
const BORDERS: &[(&str, Border)] = &[
    ("lsn", Border::Only(&[])),
    ("error", Border::Only(&[])),
    ("backoff", Border::Only(&[])),
    ("fault", Border::Only(&[])),
    ("net", Border::Only(&[])),
    ("tls", Border::Only(&[])),
    ("watch", Border::Only(&["error", "watch"])),
    ("event", Border::Only(&["event"])),
    ("event::format", Border::Only(&["event"])),
    (
        "event::mapping",
        Border::Only(&["event::mapping", "pg::pgoutput"]),
    ),
    ("event::route", Border::Only(&[])),
    // The only module that knows both pgoutput and events.
    (
        "event::assemble",
        Border::Only(&["event", "lsn", "pg::pgoutput"]),
    ),
    ("guard", Border::Only(&["event"])),
    (
        "lead",
        Border::AllBut(&["cli", "command", "config", "watch::http"]),
    ),
    ("lead::window", Border::Only(&["lsn"])),
    // What a slot sends; never what becomes of it. Of the window only the proof of storage.
    (
        "pg",
        Border::Only(&[
            "pg",
            "lsn",
            "error",
            "backoff",
            "net",
            "tls",
            "lead::window::Confirmed",
        ]),
    ),
    ("pg::pgoutput", Border::Only(&["pg::pgoutput", "lsn"])),
    // What is said to a server, and how; never what for.
    ("nats", Border::Only(&["nats", "error", "net", "tls"])),
    ("nats::wire", Border::Only(&["nats::wire"])),
    // A sink knows no LSN: it cannot acknowledge.
    (
        "sink",
        Border::Only(&[
            "sink", "event", "fault", "guard", "nats", "error", "backoff",
        ]),
    ),
    ("sink::jetstream::names", Border::Only(&["event"])),
    (
        "sink::jetstream::options",
        Border::Only(&[
            "event",
            "nats::Options",
            "sink::Kept",
            "sink::jetstream::names",
        ]),
    ),
    (
        "sink::jetstream::error",
        Border::Only(&[
            "error",
            "event",
            "nats",
            "sink::jetstream::error",
            "sink::jetstream::names",
            "sink::jetstream::options",
        ]),
    ),
    // Knows nothing of what is appended meanwhile.
    ("sink::jetstream::aside", Border::Only(BELOW_APPENDING)),
    ("sink::jetstream::read", Border::Only(BELOW_APPENDING)),
    (
        "lead::relay",
        Border::AllBut(&[
            "cli",
            "command",
            "config",
            "preflight",
            "lead::term",
            "watch::http",
        ]),
    ),
    (
        "preflight",
        Border::AllBut(&["cli", "command", "config", "lead", "watch"]),
    ),
    (
        "watch::sampler",
        Border::Only(&["error", "lsn", "pg", "watch"]),
    ),
    // For applications: knows SQL alone.
    ("producer", Border::Only(&[])),
    (
        "lead::retention",
        Border::Only(&["error", "pg", "watch::vitals"]),
    ),
    // Builds everybody's options, and is imported by commands alone.
    ("config", Border::AllBut(&["command", "watch"])),
    // Values are written as in the configuration.
    ("cli", Border::Only(&["cli", "config"])),
    ("command", Border::AllBut(&[])),
    ("lib", Border::AllBut(&[])),
    ("main", Border::AllBut(&[])),
    ("fuzzing", Border::AllBut(&["cli", "command"])),
];

/// Modules that only these and themselves import. The border of everybody else may name the room
/// that they are in: who gets events need not know what they are made of.
const ENTERED_BY: &[(&str, &[&str])] = &[
    ("event::assemble", &["command", "config", "fuzzing", "lead"]),
    ("event::format", &["config", "event::assemble", "fuzzing"]),
    (
        "event::mapping",
        &[
            "command",
            "config",
            "event::assemble",
            "fuzzing",
            "preflight",
        ],
    ),
    (
        "event::route",
        &["command", "config", "event::assemble", "fuzzing", "sink"],
    ),
];

/// What may be used by all of the sink.
const BELOW_APPENDING: &[&str] = &[
    "error",
    "event",
    "fault",
    "guard",
    "nats",
    "sink::At",
    "sink::Kept",
    "sink::Write",
    "sink::Written",
    "sink::jetstream::aside",
    "sink::jetstream::bucket",
    "sink::jetstream::client",
    "sink::jetstream::error",
    "sink::jetstream::headers",
    "sink::jetstream::messages",
    "sink::jetstream::names",
    "sink::jetstream::options",
    "sink::jetstream::read",
    "sink::jetstream::reply",
    "sink::jetstream::streams",
    "sink::jetstream::tail",
];

/// No async, no clock, no socket: what must be testable without any.
const PURE: &[&str] = &[
    "lsn",
    "lead::window",
    "lead::watermark",
    "sink::jetstream::append::ring",
    "sink::jetstream::append::lines",
    "sink::jetstream::append::memory",
    "sink::jetstream::append::places",
    "guard",
    "event",
    "nats::wire",
    "pg::pgoutput",
];

/// Pure but for the clock, which tests can pause.
const CLOCKED: &[&str] = &["backoff"];

/// What only an impure module says.
const IMPURE: &[&str] = &["async", "await", "net", "fs", "env", "thread"];

/// What tells the time.
const CLOCKS: &[&str] = &[
    "tokio",
    "Instant",
    "SystemTime",
    "now",
    "now_utc",
    "now_local",
];

/// Who may ask what time it is, each for what a person or a consumer is shown, or to tell the
/// server for how long it keeps a message. Everybody else only measures how long something takes:
/// a clock that jumps must end no term and free no slot.
const SHOWN_TIMES: &[&str] = &[
    "command::recover",
    "command::look::status",
    "pg::replication",
    "lead::relay",
    "lead::retention",
    "net",
    "watch::http",
    "watch::metrics::process",
    "watch::sampler",
    "watch::vitals",
];

/// Words that say nothing, or that mean something else in Postgres or NATS (STYLE).
const EMPTY_WORDS: &[&str] = &[
    "offset",
    "cursor",
    "checkpoint",
    "xlog",
    "info",
    "item",
    "items",
    "manager",
    "handler",
    "processor",
    "util",
    "utils",
    "common",
    "helper",
    "helpers",
    "data",
];

/// Words that are other people's names for their own things.
const THEIR_NAMES: &[&str] = &["XLogData", "XLOG_DATA", "server_info"];

#[test]
fn sources_keep_to_the_style() {
    let mut complaints = Vec::new();
    for file in ["src", "tests/it", "examples"]
        .into_iter()
        .flat_map(sources)
    {
        complaints.extend(opens_with_its_purpose(&file));
        complaints.extend(has_a_readable_size(&file));
        complaints.extend(has_readable_functions(&file));
        complaints.extend(leaves_nothing_undone(&file));
    }
    for file in sources("src") {
        complaints.extend(panics_with_a_reason(&file));
        complaints.extend(says_what_it_means(&file));
    }
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn modules_import_along_the_borders_only() {
    let files = sources("src");
    let complaints: Vec<String> = files.iter().flat_map(keeps_to_its_border).collect();
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let found = circles::circles(&sources("src"));
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

#[test]
fn the_core_is_pure() {
    let files = sources("src");
    let complaints: Vec<String> = files.iter().flat_map(is_pure_where_it_must_be).collect();
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn no_clocks_are_compared() {
    let files = sources("src");
    let complaints: Vec<String> = files.iter().flat_map(asks_no_time).collect();
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn nothing_is_left_to_chance() {
    let files = sources("src");
    let complaints: Vec<String> = files.iter().flat_map(chooses_at_random).collect();
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn links_in_the_documentation_lead_somewhere() {
    let mut broken = Vec::new();
    for page in pages() {
        let text = fs::read_to_string(&page).expect("read a page");
        let home = page.parent().expect("a page stands in a directory");
        let targets = links(&text)
            .into_iter()
            .filter(|target| !home.join(target).exists());
        broken.extend(targets.map(|target| format!("{}: {target}", page.display())));
    }
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
}

#[test]
fn scripts_can_be_called() {
    for script in files_below(&root().join("scripts"))
        .into_iter()
        .chain([root().join(".ci/run")])
    {
        if script.extension().is_none() {
            let name = script.display();
            let mode = fs::metadata(&script)
                .expect("a script")
                .permissions()
                .mode();
            assert_eq!(mode & 0o111, 0o111, "{name} is not executable");
            let text = fs::read_to_string(&script).expect("a script is text");
            assert!(
                text.starts_with("#!/usr/bin/env "),
                "{name} names no interpreter"
            );
        }
    }
}

fn opens_with_its_purpose(file: &Source) -> Vec<String> {
    match file.text.starts_with("//! ") {
        true => Vec::new(),
        false => vec![file.complaint(1, "does not open with //!")],
    }
}

fn has_a_readable_size(file: &Source) -> Vec<String> {
    let mut complaints = Vec::new();
    let lines = file.text.lines().count();
    if lines > FILE_LINES_MAX {
        complaints.push(file.complaint(lines, format!("more than {FILE_LINES_MAX} lines")));
    }
    for (index, line) in file.text.lines().enumerate() {
        if line.chars().count() > LINE_COLUMNS_MAX {
            let words = format!("more than {LINE_COLUMNS_MAX} columns");
            complaints.push(file.complaint(index + 1, words));
        }
    }
    complaints
}

fn has_readable_functions(file: &Source) -> Vec<String> {
    let lines: Vec<&str> = file.shipped().lines().collect();
    let mut complaints = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let Some(name) = declared(line, "fn") else {
            continue;
        };
        // rustfmt puts the closing brace under the first word.
        let indent = line.len() - line.trim_start().len();
        let end = format!("{}}}", " ".repeat(indent));
        let length = 1 + lines[index..]
            .iter()
            .position(|line| *line == end)
            .unwrap_or(0);
        let is_whole = !line.ends_with('}') && !line.ends_with(';');
        if is_whole && length > FUNCTION_LINES_MAX {
            let words = format!("{name} has {length} lines, more than {FUNCTION_LINES_MAX}");
            complaints.push(file.complaint(index + 1, words));
        }
        let block = lines[..index]
            .iter()
            .rfind(|line| !line.starts_with([' ', '}']));
        if block.is_some_and(|line| line.starts_with("impl") && line.contains(" for ")) {
            // Whoever made the trait has chosen the arguments.
            continue;
        }
        let arguments = arguments(&lines[index..].join(" "));
        if arguments > ARGUMENTS_MAX {
            let words = format!("{name} takes {arguments} arguments, more than {ARGUMENTS_MAX}");
            complaints.push(file.complaint(index + 1, words));
        }
    }
    complaints
}

fn leaves_nothing_undone(file: &Source) -> Vec<String> {
    // Put together here, so that this file passes its own rule.
    let marks = ["TO DO", "FIX ME", "dbg !", "todo !", "unimplemented !"];
    let marks = marks.map(|mark| mark.replace(' ', ""));
    let lines = file.text.lines().enumerate();
    let marked = lines.filter(|(_, line)| marks.iter().any(|mark| line.contains(mark)));
    marked
        .map(|(index, line)| file.complaint(index + 1, line.trim()))
        .collect()
}

fn panics_with_a_reason(file: &Source) -> Vec<String> {
    let lines = file.code().into_iter();
    let bare =
        lines.filter(|(_, line)| line.contains(".unwrap()") || line.contains(".expect(\"\")"));
    bare.map(|(number, line)| file.complaint(number, line.trim()))
        .collect()
}

fn says_what_it_means(file: &Source) -> Vec<String> {
    let mut complaints = Vec::new();
    let module = file.module();
    let stem = module.rsplit("::").next().unwrap_or("");
    complaints
        .extend(empty_word(stem).map(|word| file.complaint(1, format!("{word} in its name"))));
    for (number, line) in file.code() {
        for keyword in [
            "fn", "struct", "enum", "trait", "mod", "type", "const", "static", "let",
        ] {
            let Some(name) = declared(&line, keyword) else {
                continue;
            };
            if let Some(word) = empty_word(name) {
                complaints.push(file.complaint(number, format!("{word} in {name}")));
            }
            if keyword == "fn" && name.starts_with("get_") {
                complaints.push(file.complaint(number, format!("get_ in {name}")));
            }
        }
    }
    complaints
}

fn keeps_to_its_border(file: &Source) -> Vec<String> {
    let module = file.module();
    let covering = BORDERS.iter().filter(|(name, _)| within(&module, name));
    let Some((_, border)) = covering.max_by_key(|(name, _)| name.len()) else {
        let words = format!("the table in tests/it/tidy.rs has no border for {module}");
        return vec![file.complaint(1, words)];
    };
    let mut complaints = Vec::new();
    for (line, path) in imports(file) {
        let own = within(&path, &module) || module == "lib";
        let allowed = match border {
            Border::Only(names) => names.iter().any(|name| within(&path, name)),
            Border::AllBut(names) => !names.iter().any(|name| within(&path, name)),
        };
        let entered = ENTERED_BY.iter().all(|(inner, by)| {
            let may = by.iter().chain([inner]).any(|name| within(&module, name));
            may || !within(&path, inner)
        });
        if !(own || allowed) || !entered {
            complaints.push(file.complaint(line, format!("{module} must not import {path}")));
        }
    }
    complaints
}

fn is_pure_where_it_must_be(file: &Source) -> Vec<String> {
    let module = file.module();
    let belongs = |modules: &[&str]| modules.iter().any(|name| within(&module, name));
    let forbidden = match (belongs(PURE), belongs(CLOCKED)) {
        (true, _) => [IMPURE, CLOCKS].concat(),
        (false, true) => IMPURE.to_vec(),
        (false, false) => return Vec::new(),
    };
    let mut complaints = Vec::new();
    for (number, line) in file.code() {
        let mut words = line.split(|letter: char| !letter.is_alphanumeric() && letter != '_');
        if let Some(word) = words.find(|word| forbidden.contains(word)) {
            complaints.push(file.complaint(number, format!("{module} is pure, but says {word}")));
        }
    }
    complaints
}

/// What a simulated world runs must do the same again from the same seed.
fn chooses_at_random(file: &Source) -> Vec<String> {
    let module = file.module();
    if !SIMULATED.iter().any(|name| within(&module, name)) {
        return Vec::new();
    }
    let mut complaints = Vec::new();
    let mut chooses = false;
    for (number, line) in file.code() {
        let made_in_order = line.trim() == "biased;";
        if std::mem::replace(&mut chooses, line.contains("select! {")) && !made_in_order {
            complaints.push(file.complaint(number, "select! chooses at random"));
        }
        let by_chance = ["Uuid::now", "process::id()", "RandomState"];
        if by_chance.iter().any(|it| line.contains(it)) && module != "net" {
            complaints.push(file.complaint(number, format!("{module} leaves it to chance")));
        }
    }
    complaints
}

fn asks_no_time(file: &Source) -> Vec<String> {
    let module = file.module();
    let shows = SHOWN_TIMES.iter().any(|name| within(&module, name));
    let mut complaints = Vec::new();
    for (number, line) in file.code() {
        let asks = ["SystemTime::now", "now_utc", "now_local"]
            .iter()
            .any(|word| line.contains(word));
        // What passed by a clock on the wall may be anything.
        let measures = line.contains("SystemTime::now().duration_since(")
            && !line.contains("duration_since(UNIX_EPOCH");
        if (asks && !shows) || measures {
            complaints.push(file.complaint(number, format!("{module} asks what time it is")));
        }
    }
    complaints
}

/// A word without meaning in a name, if there is one.
fn empty_word(name: &str) -> Option<&'static str> {
    if THEIR_NAMES.contains(&name) {
        return None;
    }
    let mut words = vec![String::new()];
    let mut was_lower = false;
    for letter in name.chars() {
        if letter == '_' || (letter.is_uppercase() && was_lower) {
            words.push(String::new());
        }
        if letter != '_' {
            words.last_mut().expect("one").extend(letter.to_lowercase());
        }
        was_lower = letter.is_lowercase();
    }
    EMPTY_WORDS
        .iter()
        .find(|empty| words.iter().any(|word| word == *empty))
        .copied()
}

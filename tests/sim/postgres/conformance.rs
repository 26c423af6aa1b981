//! The rules of the model, played on a real server and on the model: what is seen of them must be
//! the same, but for times and for where in the log it is.

use std::collections::BTreeSet;
use std::fmt;
use std::pin::Pin;

use tokio::runtime::Builder;

use super::rules;
use super::stage::{Real, Stage};

/// A rule, on a slot of its own.
#[derive(Clone, Copy)]
pub(super) struct Rule {
    pub(super) name: &'static str,
    pub(super) play: Play,
}

pub(super) type Play = for<'a> fn(&'a mut Stage) -> Pin<Box<dyn Future<Output = ()> + 'a>>;

/// What differs from server to server, in the words of a rule. Compared are order and equality.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Mark {
    /// Where a record ends.
    End(u64),
    /// What was written up to now: behind the end of the last record, before the next.
    Written(u64),
    /// Where a record starts. It may be where another ends, or a page's header behind that.
    Start(u64),
    /// A place between those, or where one ends.
    Place(u64),
    /// A transaction's id.
    Xid(u64),
    /// A table's.
    Oid(u64),
}

use Mark::{End, Oid, Place, Start, Written, Xid};

const OPEN: char = '\u{2}';
const CLOSE: char = '\u{3}';

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, value) = match self {
            End(value) => ('e', value),
            Written(value) => ('w', value),
            Start(value) => ('s', value),
            Place(value) => ('p', value),
            Xid(value) => ('x', value),
            Oid(value) => ('o', value),
        };
        write!(f, "{OPEN}{kind}{value}{CLOSE}")
    }
}

impl Mark {
    fn read(text: &str) -> Option<Self> {
        let value = text.get(1..)?.parse().ok()?;
        Some(match text.as_bytes()[0] {
            b'e' => End(value),
            b'w' => Written(value),
            b's' => Start(value),
            b'p' => Place(value),
            b'x' => Xid(value),
            _ => Oid(value),
        })
    }

    fn lsn(self) -> Option<u64> {
        match self {
            End(lsn) | Written(lsn) | Start(lsn) => Some(lsn),
            Place(_) | Xid(_) | Oid(_) => None,
        }
    }
}

/// Text and marks, in turn.
fn parts(said: &str) -> impl Iterator<Item = (&str, Option<Mark>)> {
    said.split(CLOSE).map(|part| match part.split_once(OPEN) {
        Some((text, mark)) => (text, Mark::read(mark)),
        None => (part, None),
    })
}

/// Replaces marks by what can be compared.
fn normalised(said: &[String]) -> Vec<String> {
    let marks: Vec<Mark> = said
        .iter()
        .flat_map(|line| parts(line).filter_map(|(_, mark)| mark))
        .collect();
    let places = marks.iter().filter_map(|mark| Some((mark.lsn()?, *mark)));
    let places: BTreeSet<(u64, Mark)> = places.filter(|(lsn, _)| *lsn > 0).collect();
    let places: Vec<(u64, Mark)> = places.into_iter().collect();
    let mut names: Vec<Mark> = Vec::new();
    let mut word = |mark: Mark| match mark {
        Start(0) | End(0) | Place(0) | Written(0) => "0/0".to_owned(),
        End(lsn) | Written(lsn) | Start(lsn) => {
            let at = places
                .binary_search(&(lsn, mark))
                .expect("it is one of them");
            format!("#{}", at + 1)
        }
        Place(lsn) => {
            let before = places.partition_point(|(place, _)| *place < lsn);
            match places.get(before) {
                // What starts there may start there by chance.
                Some((place, End(_) | Written(_))) if *place == lsn => format!("#{}", before + 1),
                _ => format!("past #{before}"),
            }
        }
        Xid(_) | Oid(_) => {
            let known = names.iter().position(|name| *name == mark);
            let at = known.unwrap_or_else(|| {
                names.push(mark);
                names.len() - 1
            });
            format!("name {at}")
        }
    };
    let line = |line: &String| {
        let words = parts(line).map(|(text, mark)| match mark {
            Some(mark) => format!("{text}{}", word(mark)),
            None => text.to_owned(),
        });
        words.collect::<String>()
    };
    said.iter().map(line).collect()
}

fn on_model(major: u32, at: u32, rule: Rule) -> Vec<String> {
    let runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    runtime.expect("a runtime").block_on(async {
        let mut stage = Stage::of_model(major, at);
        (rule.play)(&mut stage).await;
        normalised(&stage.said)
    })
}

/// What was seen differently, and how much was seen.
fn difference(rule: Rule, real: &[String], model: &[String]) -> String {
    let same = real
        .iter()
        .zip(model)
        .take_while(|(real, model)| real == model);
    let at = same.count();
    if at == real.len() && at == model.len() {
        return String::new();
    }
    let from = at.saturating_sub(1);
    let some = |said: &[String]| {
        let lines = said.iter().skip(from).take(LINES);
        lines
            .map(|line| format!("    {line}\n"))
            .collect::<String>()
    };
    format!(
        "\n{}\n  real\n{}  model\n{}",
        rule.name,
        some(real),
        some(model)
    )
}

/// So many lines are shown of what differs, one of them before that.
const LINES: usize = 5;

async fn compare(major: u32) {
    let mut real = Real::start(major).await;
    let (mut seen, mut differences) = (0, String::new());
    for (at, rule) in (0..).zip(rules::rules()) {
        let mut stage = Stage::of_real(real, at).await;
        (rule.play)(&mut stage).await;
        let on_real = normalised(&stage.said);
        real = stage.into_real();
        let model = std::thread::spawn(move || on_model(major, at, rule));
        let model = model.join().expect("the model does not panic");
        seen += on_real.len();
        differences.push_str(&difference(rule, &on_real, &model));
    }
    assert!(differences.is_empty(), "Postgres {major}: {differences}");
    assert!(seen > 200, "{seen} lines were compared");
}

#[tokio::test]
async fn model_does_what_postgres_15_does() {
    compare(15).await;
}

#[tokio::test]
async fn model_does_what_postgres_18_does() {
    compare(18).await;
}

/// `MAJOR` names it.
#[tokio::test]
async fn model_does_what_another_postgres_does() {
    let major = crate::number("MAJOR").unwrap_or(17);
    compare(u32::try_from(major).expect("14 to 18")).await;
}

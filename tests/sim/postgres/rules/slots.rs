//! What a slot is, where streams of it begin, and what moves it.

use outjet::lsn::Lsn;

use crate::postgres::conformance::{Mark, Rule};
use crate::postgres::stage::{Stage, start};

pub(super) const RULES: &[Rule] = &[
    Rule {
        name: "a slot is made and dropped once, and streamed by one",
        play: |stage| Box::pin(one_of_each(stage)),
    },
    Rule {
        name: "what cannot be streamed is refused, and the session goes on",
        play: |stage| Box::pin(refusals(stage)),
    },
    Rule {
        name: "a stream begins at the slot or beyond it, never before",
        play: |stage| Box::pin(starts(stage)),
    },
    Rule {
        name: "the flush position moves the slot, forward only",
        play: |stage| Box::pin(confirming(stage)),
    },
    Rule {
        name: "what is beyond the log is confirmed all the same",
        play: |stage| Box::pin(beyond(stage)),
    },
    Rule {
        name: "a transaction is sent again unless its commit is before the confirmed position",
        play: |stage| Box::pin(boundaries(stage)),
    },
    Rule {
        name: "a slot is advanced by hand while it is free, forward only, and not beyond the log",
        play: |stage| Box::pin(advancing(stage)),
    },
    Rule {
        name: "a slot that is made again begins at the end of the log",
        play: |stage| Box::pin(made_again(stage)),
    },
    Rule {
        name: "a lost slot ends its session, and is refused from then on",
        play: |stage| Box::pin(losing(stage)),
    },
];

fn slot_made(said: Vec<String>) -> Vec<String> {
    // Where it begins is seen elsewhere.
    let row = |line: String| match line.starts_with("DataRow") {
        true => "DataRow".to_owned(),
        false => line,
    };
    said.into_iter().map(row).collect()
}

async fn one_of_each(stage: &mut Stage) {
    let create = "CREATE_REPLICATION_SLOT \"outjet\" LOGICAL pgoutput NOEXPORT_SNAPSHOT";
    let mut talk = stage.connect().await;
    for command in [
        create,
        "DROP_REPLICATION_SLOT \"outjet\"",
        "DROP_REPLICATION_SLOT \"outjet\"",
        &start("0/0", ""),
        create,
        create,
        "IDENTIFY_SYSTEM",
    ] {
        let said = talk.ask(command).await;
        stage.say_all(slot_made(said));
        stage.slot().await;
    }
    let mut holder = stage.stream().await;
    stage.slot().await;
    stage.say_all(talk.ask(&start("0/0", "")).await);
    stage.say_all(talk.ask("DROP_REPLICATION_SLOT \"outjet\"").await);
    stage.drop_slot().await;
    stage.create_slot().await;
    stage.write("1").await;
    stage.drain(&mut holder).await;
    stage.released_after(holder).await;
    stage.slot().await;
    stage.say_all(talk.start(&start("0/0", "")).await);
    stage.drain(&mut talk).await;
}

async fn refusals(stage: &mut Stage) {
    let mut talk = stage.connect().await;
    let none = start("0/0", "").replace("SLOT \"outjet\"", "SLOT \"none\"");
    let options = |options: &str| {
        let command = start("0/0", "");
        let (before, _) = command.split_once('(').expect("options");
        format!("{before}({options})")
    };
    for command in [
        none,
        options("proto_version '1'"),
        options("publication_names '\"outjet\"'"),
        options("proto_version '0', publication_names '\"outjet\"'"),
        options("proto_version '99', publication_names '\"outjet\"'"),
        start("0/0", ", odd 'true'"),
    ] {
        let said = talk.ask(&command).await;
        stage.say_all(said);
        stage.slot().await;
    }
    stage.say("a publication that does not exist is no reason");
    let other = start("0/0", "").replace("'\"outjet\"'", "'\"none\"'");
    stage.say_all(talk.start(&other).await);
    stage.drain(&mut talk).await;
    stage.slot().await;
}

/// Streams from there, and notes what is sent.
async fn stream_from(stage: &mut Stage, from: u64) {
    let mut talk = stage.connect().await;
    stage.say_all(talk.start(&start(Lsn::new(from), "")).await);
    stage.drain(&mut talk).await;
    stage.slot().await;
    stage.released_after(talk).await;
}

/// Three rows, each in a transaction of its own: where their commits begin and end.
async fn three(stage: &mut Stage) -> Vec<(u64, u64)> {
    for payload in ["1", "2", "3"] {
        stage.write(payload).await;
    }
    let mut talk = stage.stream().await;
    stage.drain(&mut talk).await;
    let commits = talk.commits.clone();
    stage.released_after(talk).await;
    commits
}

async fn starts(stage: &mut Stage) {
    let commits = three(stage).await;
    stage.say("from the end of the second");
    stream_from(stage, commits[1].1).await;
    stage.say("from the end of the last");
    stream_from(stage, commits[2].1).await;
    stage.say("from the start of the last");
    stream_from(stage, commits[2].0).await;
    stage.say("from the middle of its record");
    stream_from(stage, commits[2].0 + 8).await;
    stage.say("from the beginning");
    stream_from(stage, 1).await;
    stage.say("from far beyond");
    let mut talk = stage.connect().await;
    stage.say_all(talk.start(&start("FF/0", "")).await);
    stage.write("4").await;
    stage.drain(&mut talk).await;
    stage.slot().await;
    stage.released_after(talk).await;
    let mut talk = stage.stream().await;
    talk.status(commits[1].1, commits[1].1, true).await;
    stage.slot_of(&talk).await;
    stage.released_after(talk).await;
    stage.say("from before what is confirmed");
    stream_from(stage, commits[0].1).await;
}

async fn confirming(stage: &mut Stage) {
    let commits = three(stage).await;
    let mut talk = stage.stream().await;
    let mut confirm = async |stage: &mut Stage, write, flush| {
        talk.status(write, flush, true).await;
        stage.slot_of(&talk).await;
    };
    confirm(stage, 0, 0).await;
    stage.say("received");
    confirm(stage, commits[2].1, 0).await;
    stage.say("the second is confirmed");
    confirm(stage, commits[2].1, commits[1].1).await;
    stage.say("the first, and less");
    confirm(stage, commits[2].1, commits[0].1).await;
    confirm(stage, 1, 1).await;
    confirm(stage, 0, 0).await;
    stage.say("more than received");
    confirm(stage, 1, commits[2].1).await;
}

async fn beyond(stage: &mut Stage) {
    let mut talk = stage.stream().await;
    stage.write("1").await;
    stage.drain(&mut talk).await;
    let far = stage.written().await + 1_000_000;
    stage.say(format!("far is {}", Mark::Written(far)));
    talk.status(far, far, true).await;
    stage.write("2").await;
    stage.drain(&mut talk).await;
    stage.slot_of(&talk).await;
    stage.released_after(talk).await;
    stage.say("another session");
    stage.write("3").await;
    let mut talk = stage.stream().await;
    stage.drain(&mut talk).await;
}

async fn boundaries(stage: &mut Stage) {
    let commits = three(stage).await;
    for (at, place) in [
        ("the start", commits[1].0),
        ("the middle", commits[1].0 + 8),
        ("the end", commits[1].1),
    ] {
        stage.say(at);
        let mut talk = stage.stream().await;
        talk.status(place, place, true).await;
        stage.slot_of(&talk).await;
        stage.released_after(talk).await;
        let mut talk = stage.stream().await;
        stage.drain(&mut talk).await;
        stage.released_after(talk).await;
    }
    stage.say("messages");
    stage.signal("s").await;
    let mut talk = stage.connect().await;
    stage.say_all(talk.start(&start("0/0", ", messages 'true'")).await);
    stage.drain(&mut talk).await;
}

async fn advancing(stage: &mut Stage) {
    let commits = three(stage).await;
    stage.used().await;
    for (at, place) in [
        ("the end of the second", commits[1].1),
        ("the same", commits[1].1),
        ("the end of the first", commits[0].1),
        ("the middle of the third", commits[2].0 + 8),
    ] {
        stage.say(at);
        stage.advance_slot(place).await;
        stage.slot().await;
    }
    let mut talk = stage.stream().await;
    stage.drain(&mut talk).await;
    stage.say("while it is in use");
    stage.advance_slot(commits[2].1).await;
    stage.released_after(talk).await;
    stage.write("4").await;
    let end = stage.written().await;
    stage.say(format!("the log ends at {}", Mark::Written(end)));
    stage.advance_slot(end + 1_000_000).await;
    stage.slot().await;
    stage.write("5").await;
    let mut talk = stage.stream().await;
    stage.drain(&mut talk).await;
}

async fn made_again(stage: &mut Stage) {
    let mut talk = stage.stream().await;
    stage.write("1").await;
    stage.drain(&mut talk).await;
    stage.used().await;
    stage.released_after(talk).await;
    stage.write("2").await;
    stage.drop_slot().await;
    stage.write("3").await;
    stage.create_slot().await;
    stage.used().await;
    stage.slot().await;
    stage.write("4").await;
    let mut talk = stage.stream().await;
    stage.drain(&mut talk).await;
    stage.used().await;
}

async fn losing(stage: &mut Stage) {
    let mut talk = stage.stream().await;
    stage.write("1").await;
    stage.drain(&mut talk).await;
    let end = talk.commits[0].1;
    talk.status(end, end, true).await;
    stage.slot_of(&talk).await;
    stage.write("2").await;
    stage.drain(&mut talk).await;
    stage.lose_slot().await;
    // Before it there may be what was written to lose it.
    let said = talk.answer().await;
    let last = said.len().saturating_sub(2);
    stage.say_all(said[last..].to_vec());
    stage.released_after(talk).await;
    stage.slot().await;
    let mut talk = stage.connect().await;
    stage.say_all(talk.ask(&start("0/0", "")).await);
    stage.say_all(talk.ask("IDENTIFY_SYSTEM").await.drain(..1).collect());
    stage.advance_slot(end + 1_000_000).await;
    stage.drop_slot().await;
    stage.create_slot().await;
    stage.slot().await;
}

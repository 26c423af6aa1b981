//! How sessions end, and what is left of a slot then.

use std::time::Duration;

use tokio::time::Instant;

use crate::postgres::conformance::{Mark, Rule};
use crate::postgres::stage::{Stage, start};
use crate::postgres::talk::{Heard, Talk};

pub(super) const RULES: &[Rule] = &[
    Rule {
        name: "an operator ends sessions with a word",
        play: |stage| Box::pin(terminating(stage)),
    },
    Rule {
        name: "a walsender that nobody reads holds the slot until its last word is read",
        play: |stage| Box::pin(terminating_blocked(stage)),
    },
    Rule {
        name: "a client that is silent is asked, and dropped without a word",
        play: |stage| Box::pin(silence(stage)),
    },
    Rule {
        name: "a client ends the stream, or the session",
        play: |stage| Box::pin(finishing(stage)),
    },
    Rule {
        name: "a crash ends sessions without a word, and undoes what was confirmed",
        play: |stage| Box::pin(crashing(stage)),
    },
    Rule {
        name: "what is confirmed beyond a checkpoint that was decoded survives a crash",
        play: |stage| Box::pin(surviving(stage)),
    },
    Rule {
        name: "a transaction that stays open keeps the slot from being saved",
        play: |stage| Box::pin(kept_back(stage)),
    },
    Rule {
        name: "what is advanced by hand survives a crash after the next checkpoint",
        play: |stage| Box::pin(advanced(stage)),
    },
    Rule {
        name: "a shutdown waits until all is confirmed, and 17 remembers that",
        play: |stage| Box::pin(stopping(stage)),
    },
    Rule {
        name: "a shutdown waits for no client that is gone or that does not stream",
        play: |stage| Box::pin(stopping_alone(stage)),
    },
    Rule {
        name: "a standby that takes over has another timeline, and goes on with the slot",
        play: |stage| Box::pin(promoting(stage)),
    },
    Rule {
        name: "a standby that had no slot has none",
        play: |stage| Box::pin(promoting_without(stage)),
    },
];

async fn terminating(stage: &mut Stage) {
    let mut talk = stage.stream().await;
    stage.write("1").await;
    stage.drain(&mut talk).await;
    stage.terminate_walsender().await;
    stage.say_all(talk.answer().await);
    stage.released().await;
    stage.slot().await;
    let mut idle = stage.connect().await;
    let (client, _task) = stage.client().await;
    stage.terminate_sessions().await;
    stage.say_all(idle.answer().await);
    let failed = client.simple_query("").await.is_err();
    stage.say(format!("the other session is over: {failed}"));
}

async fn terminating_blocked(stage: &mut Stage) {
    let mut talk = stage.stream().await;
    let open = stage.begin().await;
    for _ in 0..20 {
        let row = stage.row(&format!("\"{}\"", "x".repeat(100_000)));
        stage.insert(open, row).await;
    }
    stage.commit(open).await;
    let begin = talk.next_asking().await.words();
    stage.say(begin);
    stage.until_blocked("WalSenderWriteData").await;
    stage.terminate_walsender().await;
    stage.until_blocked("ClientWrite").await;
    stage.slot().await;
    let said = talk.answer().await;
    stage.say_all(said[said.len() - 2..].to_vec());
    let committed = said.iter().any(|line| line.contains("Commit"));
    stage.say(format!("all of it was sent: {committed}"));
    stage.released().await;
}

const TIMEOUT: Duration = Duration::from_millis(1000);

/// The server counts from a moment before ours.
const EARLIER_MAX: Duration = Duration::from_millis(100);

/// What comes next, and after how many halves of the timeout.
async fn next(stage: &mut Stage, talk: &mut Talk, since: Instant) {
    let heard = talk.next_asking().await;
    let elapsed = since.elapsed() + EARLIER_MAX;
    let halves = elapsed.as_millis() / (TIMEOUT.as_millis() / 2);
    stage.say(format!("{} after {halves} halves", heard.words()));
}

async fn silence(stage: &mut Stage) {
    let timeout = TIMEOUT.as_millis().to_string();
    let parameters = [("wal_sender_timeout", timeout.as_str())];
    let mut talk = stage.try_connect(&parameters).await.expect("a session");
    let refused = talk.start(&start("0/0", "")).await;
    stage.say_all(refused);
    stage.drain(&mut talk).await;
    let since = Instant::now();
    next(stage, &mut talk, since).await;
    stage.say("it answers");
    talk.status(0, 0, false).await;
    let since = Instant::now();
    next(stage, &mut talk, since).await;
    next(stage, &mut talk, since).await;
    stage.released().await;
}

async fn finishing(stage: &mut Stage) {
    let mut talk = stage.stream().await;
    stage.write("1").await;
    stage.drain(&mut talk).await;
    talk.finish(b'c').await;
    stage.say_all(talk.answer().await);
    stage.slot().await;
    let said = talk.ask("IDENTIFY_SYSTEM").await;
    stage.say(format!("{} answers", said.len()));
    talk.finish(b'X').await;
    stage.say_all(talk.answer().await);
    let mut talk = stage.stream().await;
    stage.drain(&mut talk).await;
    talk.finish(b'X').await;
    while let Heard::Keepalive(_) = talk.next().await {}
    stage.say_all(talk.answer().await);
    stage.released().await;
}

/// Confirms everything, up to the end of the last commit.
async fn confirm(stage: &mut Stage, talk: &mut Talk) {
    let (_, end) = *talk.commits.last().expect("a commit");
    talk.status(end, end, true).await;
    stage.slot_of(talk).await;
}

async fn crashing(stage: &mut Stage) {
    let mut talk = stage.stream().await;
    stage.write("1").await;
    stage.drain(&mut talk).await;
    confirm(stage, &mut talk).await;
    let mut idle = stage.connect().await;
    let (open, row) = (stage.begin().await, stage.row("2"));
    stage.insert(open, row).await;
    stage.crash().await;
    let ended = |said: Vec<String>| said.last().cloned().unwrap_or_default();
    stage.say(ended(talk.answer().await));
    stage.say(ended(idle.answer().await));
    stage.slot().await;
    let mut talk = stage.stream().await;
    stage.drain(&mut talk).await;
    stage.used().await;
}

async fn surviving(stage: &mut Stage) {
    let mut talk = stage.stream().await;
    stage.write("1").await;
    stage.drain(&mut talk).await;
    stage.unpublished().await;
    stage.checkpoint().await;
    confirm(stage, &mut talk).await;
    stage.write("2").await;
    stage.drain(&mut talk).await;
    confirm(stage, &mut talk).await;
    stage.write("3").await;
    stage.drain(&mut talk).await;
    confirm(stage, &mut talk).await;
    stage.crash().await;
    stage.slot().await;
    let mut talk = stage.stream().await;
    stage.drain(&mut talk).await;
}

async fn kept_back(stage: &mut Stage) {
    stage.write("1").await;
    let (open, row) = (stage.begin().await, stage.row("2"));
    stage.insert(open, row).await;
    let mut talk = stage.stream().await;
    for payload in ["3", "4"] {
        stage.checkpoint().await;
        stage.write(payload).await;
        stage.drain(&mut talk).await;
        confirm(stage, &mut talk).await;
    }
    stage.crash().await;
    stage.slot().await;
    let mut talk = stage.stream().await;
    stage.drain(&mut talk).await;
    let (open, row) = (stage.begin().await, stage.row("5"));
    stage.insert(open, row).await;
    stage.checkpoint().await;
    stage.commit(open).await;
    stage.checkpoint().await;
    stage.write("6").await;
    stage.drain(&mut talk).await;
    confirm(stage, &mut talk).await;
    stage.crash().await;
    stage.slot().await;
}

async fn advanced(stage: &mut Stage) {
    stage.write("1").await;
    stage.write("2").await;
    let mut talk = stage.stream().await;
    stage.drain(&mut talk).await;
    let commits = talk.commits.clone();
    stage.released_after(talk).await;
    stage.advance_slot(commits[0].1).await;
    stage.slot().await;
    stage.crash().await;
    stage.slot().await;
    stage.advance_slot(commits[0].1).await;
    stage.checkpoint().await;
    stage.crash().await;
    stage.slot().await;
    stage.say("beyond a checkpoint");
    stage.write("3").await;
    let end = stage.written().await;
    stage.say(format!("the log ends at {}", Mark::Written(end)));
    stage.advance_slot(end).await;
    stage.crash().await;
    stage.slot().await;
}

async fn stopping(stage: &mut Stage) {
    let mut talk = stage.stream().await;
    stage.write("1").await;
    stage.drain(&mut talk).await;
    let mut idle = stage.connect().await;
    stage.unpublished().await;
    stage.drain(&mut talk).await;
    stage.begin_shutdown();
    stage.say_all(idle.answer().await);
    stage.say(talk.next_asking().await.words());
    let refused = stage.try_connect(&[]).await.err();
    stage.say(format!("{refused:?}"));
    let (_, end) = talk.commits[0];
    talk.status(talk.wal_end, end - 1, true).await;
    stage.say(talk.next().await.words());
    let all = talk.wal_end;
    talk.status(all, all, false).await;
    stage.say_all(talk.answer().await);
    stage.start_again().await;
    stage.say(format!("confirmed: {}", Mark::Written(all)));
    stage.slot().await;
    let mut talk = stage.stream().await;
    stage.drain(&mut talk).await;
    stage.used().await;
}

async fn stopping_alone(stage: &mut Stage) {
    let mut talk = stage.stream().await;
    stage.write("1").await;
    stage.drain(&mut talk).await;
    stage.begin_shutdown();
    stage.say(talk.next_asking().await.words());
    drop(talk);
    stage.start_again().await;
    stage.slot().await;
}

async fn promoting(stage: &mut Stage) {
    stage.write("1").await;
    stage.promote(true).await;
    stage.write("2").await;
    let mut talk = stage.connect().await;
    for command in ["IDENTIFY_SYSTEM", "TIMELINE_HISTORY 2"] {
        for line in talk.ask(command).await {
            let values = line.split('"').skip(1).step_by(2);
            let mut words = line
                .split_ascii_whitespace()
                .next()
                .unwrap_or("")
                .to_owned();
            for value in values.filter(|value| value.parse::<u64>().is_err()) {
                words.push(' ');
                words.push_str(without_lsn(value));
            }
            stage.say(words);
        }
    }
    stage.say_all(talk.start(&start("0/0", "")).await);
    stage.drain(&mut talk).await;
}

async fn promoting_without(stage: &mut Stage) {
    stage.write("1").await;
    stage.promote(false).await;
    stage.slot().await;
    let mut talk = stage.connect().await;
    stage.say_all(talk.ask(&start("0/0", "")).await);
    stage.write("2").await;
    stage.create_slot().await;
    stage.write("3").await;
    stage.say_all(talk.start(&start("0/0", "")).await);
    stage.drain(&mut talk).await;
}

/// Positions of the log differ.
fn without_lsn(value: &str) -> &str {
    match value.contains('/') {
        true => "X/X",
        false => value,
    }
}

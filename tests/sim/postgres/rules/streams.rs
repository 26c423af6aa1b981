//! What is sent of what was committed.

use crate::postgres::conformance::Rule;
use crate::postgres::stage::{Stage, start};

pub(super) const RULES: &[Rule] = &[
    Rule {
        name: "transactions come whole and in the order of their commits",
        play: |stage| Box::pin(order(stage)),
    },
    Rule {
        name: "what is not published or was rolled back is not sent",
        play: |stage| Box::pin(nothing(stage)),
    },
    Rule {
        name: "values come as text",
        play: |stage| Box::pin(values(stage)),
    },
    Rule {
        name: "messages come if they are wanted, also without a transaction",
        play: |stage| Box::pin(messages(stage)),
    },
    Rule {
        name: "a table that is taken out of the publication is not sent, and described again later",
        play: |stage| Box::pin(publishing(stage)),
    },
    Rule {
        name: "a table that was altered is described again",
        play: |stage| Box::pin(altering(stage)),
    },
    Rule {
        name: "what was written without the publication ends each session, or is passed over",
        play: |stage| Box::pin(unknown_publication(stage)),
    },
    Rule {
        name: "without the publication nothing is wrong while no table is written",
        play: |stage| Box::pin(publication_between(stage)),
    },
    Rule {
        name: "a large transaction comes whole",
        play: |stage| Box::pin(large(stage)),
    },
    Rule {
        name: "how far it has come is said to a client that has not said so itself",
        play: |stage| Box::pin(volunteering(stage)),
    },
    Rule {
        name: "a synchronous client hears of what is left out, whatever it has said",
        play: |stage| Box::pin(synchronous(stage)),
    },
    Rule {
        name: "a text that UTF-8 lacks ends each session at its row",
        play: |stage| Box::pin(untranslatable(stage)),
    },
];

async fn order(stage: &mut Stage) {
    let rows = ["1", "2", "3", "4", "5"].map(|payload| stage.row(payload));
    let [first, second, third, fourth, fifth] = rows;
    let (one, two, gone) = (
        stage.begin().await,
        stage.begin().await,
        stage.begin().await,
    );
    stage.insert(one, first).await;
    stage.insert(two, second).await;
    stage.insert(gone, third).await;
    stage.insert(one, fourth).await;
    stage.insert(two, fifth).await;
    stage.commit(two).await;
    stage.roll_back(gone).await;
    let mut talk = stage.stream().await;
    stage.drain(&mut talk).await;
    stage.say("the other is open");
    stage.commit(one).await;
    stage.drain(&mut talk).await;
    stage.write("6").await;
    stage.drain(&mut talk).await;
    drop(talk);
    stage.say("another session");
    stage.released().await;
    let mut talk = stage.stream().await;
    stage.drain(&mut talk).await;
    stage.slot().await;
}

async fn nothing(stage: &mut Stage) {
    let mut talk = stage.stream().await;
    stage.unpublished().await;
    stage.drain(&mut talk).await;
    stage.say("rolled back");
    let (gone, row) = (stage.begin().await, stage.row("1"));
    stage.insert(gone, row).await;
    stage.roll_back(gone).await;
    stage.drain(&mut talk).await;
    stage.say("nothing written");
    let nothing = stage.begin().await;
    stage.commit(nothing).await;
    stage.drain(&mut talk).await;
    stage.say("a message that is not wanted");
    let unwanted = stage.begin().await;
    stage.message(unwanted, "m").await;
    stage.commit(unwanted).await;
    stage.signal("s").await;
    stage.drain(&mut talk).await;
    stage.say("a message beside a row");
    let (beside, row) = (stage.begin().await, stage.row("2"));
    stage.message(beside, "m").await;
    stage.unpublished().await;
    stage.insert(beside, row).await;
    stage.message(beside, "n").await;
    stage.commit(beside).await;
    stage.drain(&mut talk).await;
}

async fn values(stage: &mut Stage) {
    let mut talk = stage.stream().await;
    let mut full = stage.row(r#"{"a": [1, "ü\n\"'"]}"#);
    let text = |text: &str| Some(text.to_owned());
    full.payload_raw = text("\\x00ff");
    full.content_type = text("");
    full.topic = text("a.b'c\\");
    full.headers = text("{}");
    full.tenant_id = text("zwölf\n");
    full.correlation_id = text("NULL");
    full.traceparent = text("\\N");
    full.dedup_key = text(" ");
    full.deliver_at = text("2026-01-01 00:00:00.000001+00");
    full.expires_at = text("infinity");
    let mut empty = stage.row("null");
    empty.payload = None;
    empty.aggregateid = String::new();
    let open = stage.begin().await;
    stage.insert(open, full).await;
    stage.insert(open, empty).await;
    stage.commit(open).await;
    stage.drain(&mut talk).await;
}

async fn messages(stage: &mut Stage) {
    let mut talk = stage.connect().await;
    let refused = talk.start(&start("0/0", ", messages 'true'")).await;
    stage.say_all(refused);
    let (open, row) = (stage.begin().await, stage.row("1"));
    stage.message(open, "before").await;
    stage.unpublished().await;
    stage.insert(open, row).await;
    stage.signal("in between").await;
    stage.message(open, "after").await;
    stage.commit(open).await;
    stage.drain(&mut talk).await;
    stage.say("alone");
    let open = stage.begin().await;
    stage.message(open, "alone").await;
    stage.commit(open).await;
    stage.drain(&mut talk).await;
    stage.say("rolled back");
    let gone = stage.begin().await;
    stage.message(gone, "gone").await;
    stage.signal("stays").await;
    stage.roll_back(gone).await;
    stage.drain(&mut talk).await;
}

async fn publishing(stage: &mut Stage) {
    let mut talk = stage.stream().await;
    stage.write("1").await;
    stage.set_published(false).await;
    stage.write("2").await;
    stage.drain(&mut talk).await;
    stage.say("published again");
    stage.set_published(true).await;
    stage.write("3").await;
    stage.write("4").await;
    stage.drain(&mut talk).await;
}

async fn altering(stage: &mut Stage) {
    let mut talk = stage.stream().await;
    stage.write("1").await;
    stage.alter_table().await;
    stage.write("2").await;
    stage.write("3").await;
    stage.drain(&mut talk).await;
}

async fn unknown_publication(stage: &mut Stage) {
    let mut talk = stage.stream().await;
    stage.write("1").await;
    stage.drain(&mut talk).await;
    stage.set_publication(false).await;
    let open = stage.begin().await;
    stage.message(open, "m").await;
    for payload in ["2", "3"] {
        let row = stage.row(payload);
        stage.insert(open, row).await;
    }
    stage.commit(open).await;
    stage.write("4").await;
    stage.set_publication(true).await;
    stage.write("5").await;
    stage.drain(&mut talk).await;
    if stage.major < 18 {
        stage.released().await;
        let said = talk.ask("IDENTIFY_SYSTEM").await;
        stage.say(format!("the session answers {} times", said.len()));
    }
    stage.released_after(talk).await;
    stage.say("another session");
    let mut talk = stage.stream().await;
    stage.drain(&mut talk).await;
    stage.released_after(talk).await;
    stage.say("beyond it");
    let to = stage.written().await;
    stage.advance_slot(to).await;
    stage.write("6").await;
    let mut talk = stage.stream().await;
    stage.drain(&mut talk).await;
}

async fn publication_between(stage: &mut Stage) {
    let mut talk = stage.stream().await;
    stage.write("1").await;
    stage.set_publication(false).await;
    stage.signal("s").await;
    stage.set_publication(true).await;
    stage.write("2").await;
    stage.drain(&mut talk).await;
    stage.say("another table is written");
    stage.set_publication(false).await;
    stage.unpublished().await;
    stage.set_publication(true).await;
    stage.write("3").await;
    stage.drain(&mut talk).await;
}

async fn untranslatable(stage: &mut Stage) {
    stage.move_to_windows().await;
    let mut talk = stage.stream().await;
    stage.write("1").await;
    stage.drain(&mut talk).await;
    let (open, row) = (stage.begin().await, stage.row("2"));
    stage.insert(open, row).await;
    stage.insert_untranslatable(open).await;
    stage.commit(open).await;
    stage.write("3").await;
    stage.drain(&mut talk).await;
    stage.released().await;
    let said = talk.ask("IDENTIFY_SYSTEM").await;
    stage.say(format!("the session answers {} times", said.len()));
    drop(talk);
    stage.say("at its beginning");
    let mut talk = stage.stream().await;
    let open = stage.begin().await;
    stage.insert_untranslatable(open).await;
    stage.commit(open).await;
    stage.drain(&mut talk).await;
    stage.slot().await;
    stage.released_after(talk).await;
    stage.leave_windows().await;
}

async fn large(stage: &mut Stage) {
    let mut talk = stage.stream().await;
    let open = stage.begin().await;
    for number in 0..100 {
        let row = stage.row(&format!("\"{number}{}\"", "x".repeat(400)));
        stage.insert(open, row).await;
    }
    stage.commit(open).await;
    stage.drain(&mut talk).await;
}

async fn volunteering(stage: &mut Stage) {
    let mut talk = stage.stream().await;
    stage.drain(&mut talk).await;
    talk.status(0, 0, false).await;
    stage.slot_of(&talk).await;
    for published in [false, true] {
        let written = stage.written().await;
        match published {
            true => stage.write("1").await,
            false => stage.unpublished().await,
        }
        let mut heard = String::new();
        while talk.wal_end <= written {
            heard = talk.next().await.words();
        }
        stage.say(heard);
    }
}

async fn synchronous(stage: &mut Stage) {
    stage.set_synchronous(true).await;
    let mut talk = stage.stream().await;
    stage.drain(&mut talk).await;
    let far = stage.written().await + 1_000_000;
    talk.status(far, 0, false).await;
    stage.slot_of(&talk).await;
    let written = stage.written().await;
    stage.unpublished().await;
    stage.write("1").await;
    let mut heard = String::new();
    while !heard.contains("Insert") {
        heard = talk.next().await.words();
        let old = heard.starts_with("Keepalive") && talk.wal_end <= written;
        if !old {
            stage.say(heard.clone());
        }
    }
    stage.set_synchronous(false).await;
}

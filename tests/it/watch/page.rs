//! The page at `/`, as a real browser shows it.

use std::sync::Arc;

use outjet::error::Problem;
use outjet::watch::http::{self, Site};
use outjet::watch::vitals::{State, Vitals};

use crate::delivery::{Delivery, SOON};
use crate::harness::stage::Writers;
use crate::harness::{Browser, Wait, until};

use super::{Copy, ask};

const EMIT: &str = "SELECT outbox.emit('order', '1', 'created', '{}') FROM generate_series(1, 5)";

async fn open(copy: &Copy) -> Browser {
    Browser::open(&format!("http://{}/", copy.address)).await
}

/// How many points a plot needs to be looked at; a test needs a few.
fn points() -> u32 {
    match std::env::var_os("OUTJET_SCREENSHOTS") {
        Some(_) => 75,
        None => 4,
    }
}

#[tokio::test]
async fn page_of_a_leader_shows_live_numbers_and_plots() {
    let delivery = Delivery::ready().await;
    let copy = Copy::run(&delivery).await;
    let mut page = open(&copy).await;
    page.until_text("state", |state| state == "Leading").await;
    page.until_text("published", |events| events == "0").await;
    delivery.session.run(EMIT).await;
    page.until_text("published", |events| events == "5").await;
    page.until_text("oldest", |oldest| oldest == "none").await;
    page.until_text("slot", |slot| slot == "outjet").await;
    page.until_text("holder", |holder| holder.starts_with("pid "))
        .await;
    page.until_text("nats", |nats| nats == "connected").await;
    let writers = Writers::start(&delivery.world.postgres.url(), 2).await;
    until("the plots have points", SOON * 2, async || {
        let drawn = page
            .evaluate("seen.filter(one => one.rate > 0).length")
            .await;
        Wait::ready_if(drawn.as_u64() >= Some(points().into()), drawn)
    })
    .await;
    for plot in ["rate", "lag"] {
        let line = format!("document.querySelector('#{plot} .stroke').getAttribute('d')");
        let line = page.evaluate(&line).await;
        let line = line.as_str().expect("a path");
        assert!(
            line.starts_with('M') && line.matches('L').count() > 2,
            "{plot}: {line}"
        );
        assert!(!line.contains("NaN"), "{plot}: {line}");
        let top = format!("document.querySelector('#{plot} .top').textContent");
        assert_ne!(page.evaluate(&top).await, "", "{plot}");
    }
    page.picture("leading").await;
    writers.finish().await;
    assert_eq!(page.text("what").await, "");
    assert_eq!(page.complaints(), [""; 0]);
    assert_eq!(page.evaluate("document.title").await, "Leading · outjet");
}

/// A text of a server may hold anything: here the name of a publication.
#[tokio::test]
async fn page_of_a_halted_copy_shows_problem_cause_and_fix_as_text() {
    let name = "<img src=x onerror=document.title=1>";
    let mut delivery = Delivery::ready().await;
    delivery.configure(&format!("postgres: {{publication: '{name}'}}"));
    let copy = Copy::run(&delivery).await;
    let mut page = open(&copy).await;
    page.until_text("state", |state| state == "Halted").await;
    let problem = page.until_text("what", |problem| !problem.is_empty()).await;
    assert!(problem.contains(name), "{problem}");
    let status = copy.status().await;
    assert_eq!(status["problem"]["problem"], problem);
    for (id, key) in [("cause", "cause"), ("fix", "fix")] {
        let shown = page.text(id).await;
        let said = status["problem"][key].as_str().expect("a text");
        assert_eq!(shown, said.replace('`', ""), "{id}");
    }
    let elements = page
        .evaluate("document.querySelectorAll('img, b *').length")
        .await;
    assert_eq!(elements, 0);
    page.until_text("slot", |slot| slot == "outjet").await;
    assert_eq!(page.evaluate("document.title").await, "Halted · outjet");
    assert_eq!(page.complaints(), [""; 0]);
    page.picture("halted").await;
}

#[tokio::test]
async fn page_of_a_standby_says_who_leads_and_goes_on_when_it_takes_over() {
    let delivery = Delivery::ready().await;
    let mut leader = Copy::run(&delivery).await;
    leader.until_probes([200, 200, 200, 200]).await;
    let standby = Copy::run(&delivery).await;
    let mut page = open(&standby).await;
    page.until_text("state", |state| state == "Standing by")
        .await;
    page.until_text("holder", |holder| holder.starts_with("pid "))
        .await;
    assert_eq!(page.text("published").await, "", "it has none");
    page.picture("standby").await;
    leader.outjet.kill().await;
    page.until_text("state", |state| state == "Leading").await;
    delivery.session.run(EMIT).await;
    page.until_text("published", |events| events == "5").await;
    assert_eq!(page.complaints(), [""; 0]);
}

#[tokio::test]
async fn page_names_what_holds_up_the_head_of_the_line_until_that_is_over() {
    // It must not give up the lead while it is looked at.
    let held = "publish: {ack_timeout: 1s}\npostgres: {takeover_after: 5m}";
    let mut delivery = Delivery::configured(held).await;
    let copy = Copy::run(&delivery).await;
    copy.until_probes([200, 200, 200, 200]).await;
    let mut page = open(&copy).await;
    page.until_text("state", |state| state == "Leading").await;
    delivery.world.nats.process().pause().await;
    delivery.session.run(EMIT).await;
    page.until_text("what", |problem| !problem.is_empty()).await;
    page.until_text("head", |head| head.ends_with("5 events in flight"))
        .await;
    page.until_text("nats", |nats| nats == "nothing gets through")
        .await;
    assert_eq!(copy.status().await["leader"], true);
    page.picture("held-up").await;
    delivery.world.nats.process().resume();
    page.until_text("oldest", |oldest| oldest == "none").await;
    page.until_text("what", str::is_empty).await;
}

#[tokio::test]
async fn page_names_what_the_stream_has_lost() {
    let vitals = Arc::new(Vitals::new(SOON));
    vitals.set(State::Streaming, None);
    vitals.gap(7, Problem::new("lost", "because of `this`", "do `that`"));
    let listener = http::listen(([127, 0, 0, 1], 0).into()).await;
    let listener = listener.expect("a port");
    let url = format!("http://{}/", listener.local_addr().expect("an address"));
    let looked = async {
        let mut page = Browser::open(&url).await;
        page.until_text("lost", |lost| lost == "lost").await;
        assert_eq!(page.text("lost-cause").await, "because of this");
        assert_eq!(page.text("lost-fix").await, "do that");
        let found = page.text("lost-at").await;
        assert!(found.ends_with("about 7 events in all"), "{found}");
        assert_eq!(page.text("what").await, "");
        assert_eq!(page.complaints(), [""; 0]);
    };
    tokio::select! {
        () = http::serve(listener, Site::new(vitals).into()) => unreachable!("it serves for ever"),
        () = looked => {}
    }
}

#[tokio::test]
async fn page_says_that_the_copy_no_longer_answers() {
    let delivery = Delivery::ready().await;
    let mut copy = Copy::run(&delivery).await;
    let mut page = open(&copy).await;
    page.until_text("state", |state| state == "Leading").await;
    copy.outjet.kill().await;
    page.until_text("state", |state| state == "No answer").await;
    page.until_text("since", |since| since.starts_with("for "))
        .await;
    assert_eq!(page.text("slot").await, "outjet", "what it said last");
    page.picture("silent").await;
}

#[tokio::test]
async fn page_is_one_file_that_may_load_nothing_else() {
    let delivery = Delivery::ready().await;
    let copy = Copy::run(&delivery).await;
    let answer = ask(copy.address, "GET", "/").await.expect("an answer");
    let (head, page) = answer.split_once("\r\n\r\n").expect("a body");
    let policy = head
        .lines()
        .find(|line| line.starts_with("content-security-policy: "));
    let policy = policy.expect("a policy");
    assert!(
        policy.contains("default-src 'none'; script-src 'sha256-"),
        "{policy}"
    );
    assert!(
        !policy.contains("unsafe") && !policy.contains('*'),
        "{policy}"
    );
    for marks in [
        "innerHTML",
        "outerHTML",
        "insertAdjacent",
        "document.write",
        "eval(",
    ] {
        assert!(!page.contains(marks), "{marks}");
    }
    let far = page.replace("http://www.w3.org/2000/svg", "");
    assert!(!far.contains("://") && !far.contains("@import") && !far.contains("src="));
    assert!(page.len() < 32 * 1024, "{} bytes", page.len());
}

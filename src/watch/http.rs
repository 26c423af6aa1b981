//! Answers to those who watch: a page, probes, metrics, status. Only reads; knows neither Postgres
//! nor NATS, and a slow client costs one connection of a few, for a while.

mod page;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::{debug, info};

use self::page::Page;
use super::vitals::{Reading, SlotSample, State, Vitals};
use crate::error::Problem;

/// Probes and a scraper or two need a handful.
const CONNECTIONS_MAX: usize = 64;

/// For a request and its answer, which take a few packets; who needs longer is gone.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);

/// Where accepting fails for want of files, it would fail at once again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";

/// What requests are answered from.
pub struct Site {
    vitals: Arc<Vitals>,
    registry: Registry,
    page: Page,
}

impl Site {
    /// Registers the metrics.
    pub fn new(vitals: Arc<Vitals>) -> Self {
        let mut registry = Registry::default();
        vitals.metrics.register(&mut registry);
        Self {
            vitals,
            registry,
            page: Page::default(),
        }
    }
}

/// Listens on an address.
pub async fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let listener = TcpListener::bind(address).await?;
    if let Ok(address) = listener.local_addr() {
        info!(%address, "answering HTTP");
    }
    Ok(listener)
}

/// Answers for ever. Dropping it ends all connections.
pub async fn serve(listener: TcpListener, site: Arc<Site>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let place = room.clone().acquire_owned().await;
        let accepted = listener.accept().await;
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, _)) => {
                let site = site.clone();
                connections.spawn(async move {
                    answer_all(stream, site).await;
                    drop(place);
                });
            }
            Err(error) => {
                debug!(%error, "a connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn answer_all(stream: TcpStream, site: Arc<Site>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer(&site, request.method(), request.uri().path());
        async move { Ok::<_, Infallible>(answer) }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new());
    builder.keep_alive(false);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_TIMEOUT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "a connection ended early"),
        Err(_) => debug!("a connection took too long"),
    }
}

fn answer(site: &Site, method: &Method, path: &str) -> Response<Full<Bytes>> {
    if method != Method::GET && method != Method::HEAD {
        let mut refused = respond(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET or HEAD\n".into());
        refused
            .headers_mut()
            .insert(ALLOW, "GET, HEAD".parse().expect("a header"));
        return refused;
    }
    let reading = site.vitals.read();
    match path {
        "/" => site.page.answer(),
        "/livez" | "/healthz" | "/health" => {
            probe(reading.alive, &reading, "the loop stands still")
        }
        "/readyz" | "/ready" => probe(reading.ready, &reading, "not ready"),
        "/leaderz" => probe(reading.leads(), &reading, "another copy may lead"),
        "/startupz" => probe(reading.started, &reading, "not found in order yet"),
        "/status" => respond(
            StatusCode::OK,
            JSON,
            format!("{:#}\n", status(site, &reading)),
        ),
        "/metrics" => metrics(site),
        _ => respond(StatusCode::NOT_FOUND, TEXT, "not found\n".into()),
    }
}

/// 200 or 503, with the state, and why not.
fn probe(good: bool, reading: &Reading, why: &str) -> Response<Full<Bytes>> {
    let state = reading.state.name();
    if good {
        return respond(StatusCode::OK, TEXT, format!("ok: {state}\n"));
    }
    let text = match &reading.problem {
        Some(problem) => format!("{state}: {problem}\n"),
        None => format!("{state}: {why}\n"),
    };
    respond(StatusCode::SERVICE_UNAVAILABLE, TEXT, text)
}

fn metrics(site: &Site) -> Response<Full<Bytes>> {
    let mut body = String::new();
    match text::encode(&mut body, &site.registry) {
        Ok(()) => respond(StatusCode::OK, OPENMETRICS, body),
        Err(error) => respond(StatusCode::INTERNAL_SERVER_ERROR, TEXT, error.to_string()),
    }
}

/// Fields are added, never renamed; docs/status.md says what each means.
fn status(site: &Site, reading: &Reading) -> Value {
    let metrics = &site.vitals.metrics;
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "state": reading.state.name(),
        "since": rfc3339(reading.since),
        "now": rfc3339(SystemTime::now()),
        "leader": reading.leads(),
        "problem": reading.problem.as_ref().map(problem),
        "gap": reading.gap.as_ref().map(|gap| json!({
            "events": gap.events,
            "at": rfc3339(gap.at),
            "problem": problem(&gap.problem),
        })),
        "record": reading.record.as_ref().map(|record| json!({
            "kept": record.kept,
            "term": record.term,
            "settled": record.settled,
            "confirmed": record.confirmed,
        })),
        "slot": reading.slot.as_ref().map(slot),
        "events": {
            "decoded": metrics.events_decoded.get(),
            "decoded_bytes": metrics.decoded_bytes.get(),
            "in_flight": metrics.events_in_flight.get(),
            "in_flight_bytes": metrics.in_flight_bytes.get(),
            "published": metrics.events_published.get(),
            "known": metrics.events_known.get(),
            "recorded": metrics.events_recorded.get(),
            "uncertain": metrics.events_uncertain.get(),
            "dead_lettered": metrics.events_dead_lettered.get(),
            "delayed": metrics.events_delayed.get(),
        },
        "transactions_decoded": metrics.transactions_decoded.get(),
        "oldest_unpublished": known(metrics.oldest_unpublished.get()),
        "last_published": known(metrics.last_published.get()),
        "last_wal_message": known(metrics.last_wal_message.get()),
        "nats_connected": reading.state == State::Streaming && metrics.nats_connected.get() == 1,
    })
}

fn problem(problem: &Problem) -> Value {
    json!({"problem": problem.problem, "cause": problem.cause, "fix": problem.fix})
}

fn slot(sample: &SlotSample) -> Value {
    json!({
        "name": sample.name,
        "exists": sample.exists,
        "active": sample.active,
        "leader": sample.leader,
        "wal_status": sample.wal_status,
        "lag_bytes": sample.lag_bytes,
        "retained_wal_bytes": sample.retained_wal_bytes,
        "safe_wal_bytes": sample.safe_wal_bytes,
        "lag_seconds": sample.lag.map(|lag| lag.as_secs_f64()),
        "pinned_wal_bytes": sample.pinned_wal_bytes,
        "inactive_since": sample.inactive_since.and_then(rfc3339),
        "invalidation_reason": sample.invalidation_reason,
        "spill": {"transactions": sample.spilled.0, "bytes": sample.spilled.1},
        "stream": {"transactions": sample.streamed.0, "bytes": sample.streamed.1},
        "at": rfc3339(sample.at),
    })
}

/// Seconds since 1970, of which 0 says that there is no such time.
fn known(seconds: f64) -> Option<String> {
    let since = Duration::try_from_secs_f64(seconds).ok()?;
    (!since.is_zero()).then(|| rfc3339(UNIX_EPOCH + since))?
}

fn rfc3339(time: SystemTime) -> Option<String> {
    OffsetDateTime::from(time).format(&Rfc3339).ok()
}

fn respond(status: StatusCode, content_type: &str, body: String) -> Response<Full<Bytes>> {
    let response = Response::builder()
        .status(status)
        .header(CONTENT_TYPE, content_type)
        .header(CACHE_CONTROL, "no-store")
        .body(Full::new(body.into()));
    response.expect("names and values that are fixed")
}

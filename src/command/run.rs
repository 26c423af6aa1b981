//! `outjet run`: leads or stands by until it is told to stop.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::set_up::setup;
use crate::cli;
use crate::config::{Config, Listen, LogFormat};
use crate::error::Failure;
use crate::lead::retention;
use crate::lead::term;
use crate::watch::http::{self, Site};
use crate::watch::log;
use crate::watch::sampler;
use crate::watch::systemd::Systemd;
use crate::watch::vitals::Vitals;

/// Runs until a signal, or until it halts if `--exit-on-halt` is given. `false`: a second signal
/// left work undone.
pub(super) async fn run(
    typed: &cli::Run,
    config: &Config,
    environment: &BTreeMap<String, String>,
    color: bool,
) -> Result<bool, Failure> {
    log::start(
        config.log.level.word(),
        log_format(config.log.format),
        color,
    );
    let options = options(typed, config, environment)?;
    let retention = config.retention_options()?;
    let signals = super::signals()?;
    info!(
        version = env!("CARGO_PKG_VERSION"),
        postgres = %options.params,
        nats = options.sink.nats.display(),
        stream = options.sink.stream.name,
        "starting"
    );
    let stop = CancellationToken::new();
    let setup_first = typed.setup;
    let before = async || match setup_first {
        true => {
            let out = &mut std::io::stderr();
            let setup = setup::setup_all(config, &options.params, false, out);
            super::unless_stalled(&options.params, Box::pin(setup)).await
        }
        false => Ok(()),
    };
    let work = term::run(&options, before, &stop);
    let slot = &options.preflight.slot;
    let systemd = Systemd::of(environment);
    tokio::select! {
        // First, so that an end that comes at once is told, too.
        biased;
        () = tell(systemd, &options.vitals, &stop) => unreachable!("it tells for ever"),
        end = work => end.map(|()| true),
        () = signals.watch(&stop) => Ok(false),
        () = answer(config.http.listen, &options.vitals) => unreachable!("it answers for ever"),
        () = sampler::run(&options.params, slot, &options.vitals) => {
            unreachable!("it looks for ever")
        }
        () = retention::run(&options.params, &retention, &options.vitals) => {
            unreachable!("it keeps house for ever")
        }
    }
}

async fn tell(systemd: Option<Systemd>, vitals: &Vitals, stop: &CancellationToken) {
    if let Some(systemd) = systemd {
        systemd.run(vitals, stop).await;
    }
    std::future::pending().await
}

/// Publishing matters more than being watched: an address that cannot be had is no reason to stop.
async fn answer(listen: Listen, vitals: &Arc<Vitals>) {
    if let Listen::At(address) = listen {
        match http::listen(address).await {
            Ok(listener) => http::serve(listener, Site::new(vitals.clone()).into()).await,
            Err(error) => warn_of_silence(address, &error),
        }
    }
    std::future::pending().await
}

fn warn_of_silence(address: SocketAddr, error: &std::io::Error) {
    let fix = "give each copy on a machine an http.listen of its own (OUTJET_HTTP__LISTEN), or off";
    warn!(%address, cause = %error, fix, "no HTTP: probes and metrics are not answered");
}

fn options(
    typed: &cli::Run,
    config: &Config,
    environment: &BTreeMap<String, String>,
) -> Result<term::Options, Failure> {
    let params = config.params(environment)?;
    Ok(term::Options {
        preflight: config.preflight_options(),
        assemble: config.assemble_options(&params.dbname)?,
        sink: config.sink_options(),
        relay: config.relay_options(),
        exit_on_halt: typed.exit_on_halt,
        vitals: Vitals::new(config.postgres.takeover_after).into(),
        halt_retry: config.postgres.halt_retry,
        params,
    })
}

fn log_format(format: LogFormat) -> log::Format {
    match format {
        LogFormat::Auto => log::Format::Auto,
        LogFormat::Text => log::Format::Text,
        LogFormat::Json => log::Format::Json,
    }
}

//! Where log lines go and how they look: to standard error, as text for people or JSON for
//! collectors.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::time::SystemTime;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Installs the log of the process. `level` holds for us; libraries only warn, and the NATS client
/// is silent: what it says of connections that were given up is no news. Call once.
pub fn start(level: &str, format: Format, color: bool) {
    let filter = EnvFilter::new(format!("warn,async_nats=off,outjet={level}"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_timer(SystemTime)
        .with_target(false);
    let json = match format {
        Format::Auto => !std::io::stderr().is_terminal(),
        Format::Text => false,
        Format::Json => true,
    };
    // A second log would be the caller's bug, and the first one then goes on.
    let _ = if json {
        log.json()
            .flatten_event(true)
            .with_current_span(false)
            .try_init()
    } else {
        log.with_ansi(color).try_init()
    };
}

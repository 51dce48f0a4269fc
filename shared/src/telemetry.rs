//! Start-up of logs. `DEVFLEET_LOG` filters (`info` when absent), `DEVFLEET_LOG_FORMAT=json` writes JSON lines.

use tracing_subscriber::EnvFilter;

/// Sends logs to standard error. A second call changes nothing, so tests may call it freely.
pub fn start() {
    let filter = EnvFilter::try_from_env("DEVFLEET_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let json = std::env::var("DEVFLEET_LOG_FORMAT").is_ok_and(|format| format == "json");
    let started = if json { builder.json().try_init() } else { builder.with_ansi(false).try_init() };
    drop(started);
}

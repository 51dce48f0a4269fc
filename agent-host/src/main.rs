//! Starts the host daemon: reads its settings, and stops it on SIGTERM or SIGINT. Or its watchdog, which stops by itself.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use devfleet_host::config::Config;
use devfleet_host::daemon;
use devfleet_host::freeze::watchdog::{self, Watch};

/// Carries out attempts on this machine's container engine, for a devfleet controller.
#[derive(Parser)]
#[command(name = "devfleet-host", version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Arguments {
    /// The settings; deploy/host.toml is a sample.
    #[arg(long, value_name = "FILE", required = true)]
    config: Option<PathBuf>,
    /// Check the settings and exit.
    #[arg(long)]
    check: bool,
    #[command(subcommand)]
    part: Option<Part>,
}

#[derive(Subcommand)]
enum Part {
    /// Freezes, and later kills, what a daemon that hangs or is dead cannot. Daemons start it themselves.
    Watchdog(Watch),
}

fn main() -> ExitCode {
    devfleet_shared::telemetry::start();
    match start(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("failed to {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: &Arguments) -> anyhow::Result<()> {
    if let Some(Part::Watchdog(watch)) = &arguments.part {
        return watchdog::run(watch).context("watch over the daemon");
    }
    let file = arguments.config.as_deref().unwrap_or(Path::new(""));
    let config = Config::load(file)?;
    if arguments.check {
        tracing::info!(file = %file.display(), "the settings are valid");
        return Ok(());
    }
    let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
    Ok(runtime.block_on(daemon::run_until_told(config))?)
}

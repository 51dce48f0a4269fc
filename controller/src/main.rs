//! Starts the controller.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser;
use devfleet_controller::config::Config;
use devfleet_controller::{files, server};
use devfleet_shared::clock::Clock;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

/// The devfleet controller.
#[derive(Parser)]
#[command(name = "devfleet-controller", version)]
struct Arguments {
    /// The configuration, a TOML file (docs/configuration.md).
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Check the configuration and end.
    #[arg(long)]
    check: bool,
    /// Where the first operator token is written when there is none yet.
    #[arg(long, value_name = "FILE")]
    bootstrap_token_file: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    devfleet_shared::telemetry::start();
    let config = Config::load(&arguments.config)?;
    if arguments.check {
        devfleet_shared::tls::install_provider();
        let files = files::open(&config).await.context("the files of the configuration cannot be opened")?;
        files.try_out().await.context("the files of the configuration cannot be used")?;
        info!(config = %arguments.config.display(), "the configuration is right");
        return Ok(());
    }
    let running = server::start(&config, Clock::system()).await.context("the controller cannot start")?;
    if let Some(path) = &arguments.bootstrap_token_file {
        server::bootstrap(&running, path).await?;
    }
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => {}
        interrupt = tokio::signal::ctrl_c() => interrupt?,
    }
    info!("stopping");
    running.stop().await;
    Ok(())
}

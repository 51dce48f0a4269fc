//! `devfleet store`: where decisions are kept. Works on the files of this machine, not through a controller.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use devfleet_shared::error::Chain;
use devfleet_shared::id::ControllerId;

use super::Session;
use super::exit::Exit;
use super::failure::CliError;
use super::shape::record;
use crate::config::Config;
use crate::store::SharedStore;
use crate::store::embedded::Embedded;
use crate::store::migrate::{Moved, migrate};
use crate::store::opening;
use crate::store::records::fleet;

#[derive(Debug, Subcommand)]
pub(super) enum StoreCommand {
    /// Move a single machine's store into the store of a fleet; its controller must not run
    Migrate(MigrateArgs),
    /// Say that the store was restored from a copy, before a controller starts on it: hosts then refuse controllers that
    /// still work on what was before
    Restored {
        /// The controller's configuration
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(super) struct MigrateArgs {
    /// The data directory of the controller that ran on one machine
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    /// The configuration of a controller of the fleet; its [store] must be empty
    #[arg(long, value_name = "FILE")]
    to_config: PathBuf,
}

pub(super) async fn run(command: StoreCommand, session: &Session) -> Result<Exit, CliError> {
    devfleet_shared::tls::install_provider();
    match command {
        StoreCommand::Migrate(args) => move_store(args, session).await,
        StoreCommand::Restored { config } => restored(&config, session).await,
    }
}

async fn restored(config: &Path, session: &Session) -> Result<Exit, CliError> {
    let config = Config::load(config).map_err(|error| CliError::Usage(Chain(&error).to_string()))?;
    let writer = ControllerId::random();
    let store = opening::open(&config, &writer, &session.clock).await.map_err(|error| failed(&error))?;
    let raised = fleet::raise_generation(&store).await.map_err(|error| failed(&error))?;
    let generation = raised.ok_or_else(|| CliError::Local {
        problem: "there is no fleet in this store".into(),
        advice: "restore the copy first, then say so".into(),
    })?;
    session.output.show(
        || record([("id", generation.id.to_string().into()), ("number", generation.number.into())]),
        || format!("the store has generation {} now; start the controllers", generation.number),
    )?;
    Ok(Exit::OK)
}

async fn move_store(args: MigrateArgs, session: &Session) -> Result<Exit, CliError> {
    let config = Config::load(&args.to_config).map_err(|error| CliError::Usage(Chain(&error).to_string()))?;
    let from = open_source(&args.from, session)?;
    let writer = ControllerId::random();
    let to = opening::open(&config, &writer, &session.clock).await.map_err(|error| failed(&error))?;
    session.output.wait_for("copying the store");
    let Moved { keys, bytes } = migrate(&from, &to).await.map_err(|error| failed(&error))?;
    session.output.waited();
    session.output.show(
        || record([("keys", (keys as u64).into()), ("bytes", (bytes as u64).into())]),
        || {
            format!(
                "{keys} keys ({bytes} bytes) were copied and read back. Copy the authority too, start the controllers with \
                 {}, and keep {} until the fleet works.",
                args.to_config.display(),
                args.from.display()
            )
        },
    )?;
    Ok(Exit::OK)
}

/// Opens the store that is to be moved. One that is not there is not made.
fn open_source(directory: &Path, session: &Session) -> Result<SharedStore, CliError> {
    let file = directory.join(opening::EMBEDDED_FILE);
    if !file.is_file() {
        let problem = format!("there is no store at {}", file.display());
        let advice = "name the controller's data_dir with --from".to_owned();
        return Err(CliError::Local { problem, advice });
    }
    Ok(Embedded::open(&file, session.clock.clone()).map_err(|error| failed(&error))?)
}

fn failed(error: &(dyn std::error::Error + 'static)) -> CliError {
    CliError::Local { problem: format!("cannot {}", Chain(error)), advice: String::new() }
}

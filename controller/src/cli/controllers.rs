//! `devfleet controllers`: which controllers run, and which one leads.

use clap::Subcommand;
use devfleet_proto::v1;

use super::exit::Exit;
use super::failure::CliError;
use super::shape::{self, list, record};
use super::{Session, render};

#[derive(Debug, Subcommand)]
pub(super) enum ControllersCommand {
    /// List the controllers that run: address, version, who leads and since when
    List,
}

pub(super) async fn run(command: ControllersCommand, session: &Session) -> Result<Exit, CliError> {
    let ControllersCommand::List = command;
    let connection = session.connect()?;
    let request = v1::ListControllersRequest {};
    let answer = connection.read(async || connection.fleet().list_controllers(request).await).await?;
    session.output.show(
        || record([("controllers", list(&answer.controllers, shape::fleet::controller))]),
        || render::fleet::controllers(&answer.controllers, session.now()),
    )?;
    Ok(Exit::OK)
}

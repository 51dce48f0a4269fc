//! `devfleet projects`: the repositories that devfleet knows.

use std::path::PathBuf;

use clap::Subcommand;
use devfleet_proto::v1;

use super::exit::Exit;
use super::failure::CliError;
use super::shape::{self, list, record};
use super::{Session, input, render};

#[derive(Debug, Subcommand)]
pub(super) enum ProjectsCommand {
    /// Create a project from its TOML file, or replace it
    Apply {
        /// The project's TOML; `-` reads standard input
        file: PathBuf,
    },
    /// List the projects
    List,
    /// Forget a project that has no open jobs
    Remove {
        /// The project's name
        name: String,
    },
}

pub(super) async fn run(command: ProjectsCommand, session: &Session) -> Result<Exit, CliError> {
    match command {
        ProjectsCommand::Apply { file } => apply(input::read(&file)?, session).await,
        ProjectsCommand::List => list_projects(session).await,
        ProjectsCommand::Remove { name } => remove(name, session).await,
    }?;
    Ok(Exit::OK)
}

async fn apply(toml: String, session: &Session) -> Result<(), CliError> {
    if toml.trim().is_empty() {
        return Err(CliError::Usage("the file is empty: docs/configuration.md shows what a project holds".into()));
    }
    let connection = session.connect()?;
    let mut jobs = connection.jobs();
    let answer = connection.write(jobs.apply_project(v1::ApplyProjectRequest { toml })).await?;
    let project = answer.project.unwrap_or_default();
    session.output.show(
        || record([("project", shape::jobs::project(&project)), ("created", answer.created.into())]),
        || {
            let verb = if answer.created { "created" } else { "replaced" };
            format!(
                "project {} {verb}\nHand in a job: devfleet submit --project {} --task \"...\"",
                project.name, project.name
            )
        },
    )
}

async fn list_projects(session: &Session) -> Result<(), CliError> {
    let connection = session.connect()?;
    let answer = connection.read(async || connection.jobs().list_projects(v1::ListProjectsRequest {}).await).await?;
    session.output.show(
        || record([("projects", list(&answer.projects, shape::jobs::project))]),
        || render::jobs::projects(&answer.projects, session.now()),
    )
}

async fn remove(name: String, session: &Session) -> Result<(), CliError> {
    let connection = session.connect()?;
    let mut jobs = connection.jobs();
    connection.write(jobs.remove_project(v1::RemoveProjectRequest { name: name.clone() })).await?;
    session.output.show(|| record([("removed", (&name).into())]), || format!("project {name} removed"))
}

//! `devfleet env` and `devfleet diff`: what a job runs in, and what it brought.

use clap::{Args, Subcommand};
use devfleet_proto::v1;

use super::exit::Exit;
use super::failure::CliError;
use super::output::Format;
use super::shape::{self, record};
use super::{Session, render};

#[derive(Debug, Subcommand)]
pub(super) enum EnvCommand {
    /// Show a job's proposal: environment, plan, agent, and the digest to approve
    Show(ShowArgs),
    /// Show what a changed CI configuration changed of the proposal that was approved
    Diff(DiffArgs),
    /// Derive the environment that a CI configuration stands for; needs no controller
    Derive(super::derive::DeriveArgs),
}

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// The job's id, or the beginning of it
    job: String,
    /// Show where each fact comes from, and what was left out
    #[arg(long, group = "part")]
    report: bool,
    /// Print the Dockerfile alone
    #[arg(long, group = "part")]
    dockerfile: bool,
    /// Print compose.yaml alone, to bring up the same environment by hand
    #[arg(long, group = "part")]
    compose: bool,
}

#[derive(Debug, Args)]
pub(super) struct DiffArgs {
    /// The job's id, or the beginning of it
    job: String,
}

pub(super) async fn run(command: EnvCommand, session: &Session) -> Result<Exit, CliError> {
    match command {
        EnvCommand::Show(args) => show(args, session).await,
        EnvCommand::Diff(args) => proposal_diff(args, session).await,
        EnvCommand::Derive(args) => super::derive::run(args, session).await,
    }
}

async fn proposal_diff(args: DiffArgs, session: &Session) -> Result<Exit, CliError> {
    let connection = session.connect()?;
    let request = v1::GetProposalDiffRequest { job: args.job };
    let diff = connection.read(async || connection.jobs().get_proposal_diff(request.clone()).await).await?;
    session.output.show(|| shape::jobs::proposal_diff(&diff), || render::proposal::diff(&diff))?;
    Ok(Exit::OK)
}

async fn show(args: ShowArgs, session: &Session) -> Result<Exit, CliError> {
    let connection = session.connect()?;
    let request = v1::GetProposalRequest { job: args.job.clone() };
    let proposal = connection.read(async || connection.jobs().get_proposal(request.clone()).await).await?;
    let dockerfile = proposal.recipe.as_ref().map(|recipe| recipe.dockerfile.as_str()).unwrap_or_default();
    if args.dockerfile {
        file(session, "dockerfile", dockerfile)?;
    } else if args.compose {
        file(session, "compose", &proposal.compose)?;
    } else if args.report {
        session.output.show(|| shape::jobs::report(&proposal), || render::proposal::report(&proposal))?;
    } else {
        session.output.show(|| shape::jobs::proposal(&proposal), || render::proposal::proposal(&proposal))?;
    }
    Ok(Exit::OK)
}

/// Prints a file: as it is, or as the only field of a record.
pub(super) fn file(session: &Session, name: &str, text: &str) -> Result<(), CliError> {
    match session.output.format() {
        Format::Table => session.output.content(text, str::to_owned),
        Format::Json | Format::Yaml => session.output.show(|| record([(name, text.into())]), String::new),
    }
}

pub(super) async fn diff(args: DiffArgs, session: &Session) -> Result<Exit, CliError> {
    let connection = session.connect()?;
    let request = v1::GetDiffRequest { job: args.job };
    let diff = connection.read(async || connection.jobs().get_diff(request.clone()).await).await?;
    if session.output.format() != Format::Table {
        session.output.show(|| shape::jobs::diff(&diff), String::new)?;
        return Ok(Exit::OK);
    }
    // A pipe gets the diff alone, so that `git apply` takes it.
    let heading = render::jobs::diff_heading(&diff);
    if session.output.is_terminal() {
        session.output.text(&format!("{heading}\n"))?;
    } else {
        session.output.note(&heading);
    }
    session.output.content(&diff.text, render::jobs::diff)?;
    if diff.truncated {
        session.output.note("the diff is longer than is kept: see the rest on the branch");
    }
    Ok(Exit::OK)
}

//! `devfleet approve`, `reject`, `cancel`: what people decide about a job.
//!
//! An approval always carries the digest of what was shown, so that a proposal that changed meanwhile is not approved.

use std::io::BufRead as _;

use clap::Args;
use devfleet_proto::v1;

use super::exit::Exit;
use super::failure::CliError;
use super::{Session, render, shape};

#[derive(Debug, Args)]
pub(super) struct ApproveArgs {
    /// The job's id, or the beginning of it
    job: String,
    /// Approve exactly this digest, as `devfleet env show` printed it
    #[arg(long, value_name = "DIGEST", conflicts_with = "yes")]
    digest: Option<String>,
    /// Approve what stands now without being asked, also on a terminal
    #[arg(long, short)]
    yes: bool,
}

#[derive(Debug, Args)]
pub(super) struct RejectArgs {
    /// The job's id, or the beginning of it
    job: String,
    /// Why; others see it at the job
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct CancelArgs {
    /// The job's id, or the beginning of it
    job: String,
}

pub(super) async fn approve(args: ApproveArgs, session: &Session) -> Result<Exit, CliError> {
    let connection = session.connect()?;
    let digest = match args.digest {
        Some(digest) => digest,
        None => {
            let request = v1::GetProposalRequest { job: args.job.clone() };
            let proposal = connection.read(async || connection.jobs().get_proposal(request.clone()).await).await?;
            if !args.yes && session.output.can_ask() {
                session.output.text(&render::proposal::proposal(&proposal))?;
                if !agreed()? {
                    session.output.note("not approved; the job waits on");
                    return Ok(Exit::OK);
                }
            }
            proposal.digest
        }
    };
    let request = v1::ApproveRequest { job: args.job, digest: digest.clone() };
    let mut jobs = connection.jobs();
    let job = connection.write(jobs.approve(request)).await?;
    show(session, &job, &format!("job {} approved\ndigest {digest}", job.id))
}

fn agreed() -> Result<bool, CliError> {
    let mut stderr = std::io::stderr();
    let asked = std::io::Write::write_all(&mut stderr, b"\nApprove this? [y/N] ");
    asked.map_err(CliError::Output)?;
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    read.map_err(|source| CliError::File { action: "read", path: "standard input".into(), source })?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

pub(super) async fn reject(args: RejectArgs, session: &Session) -> Result<Exit, CliError> {
    let connection = session.connect()?;
    let request = v1::RejectRequest { job: args.job, reason: args.reason.unwrap_or_default() };
    let mut jobs = connection.jobs();
    let job = connection.write(jobs.reject(request)).await?;
    show(session, &job, &format!("job {} rejected", job.id))
}

pub(super) async fn cancel(args: CancelArgs, session: &Session) -> Result<Exit, CliError> {
    let connection = session.connect()?;
    let mut jobs = connection.jobs();
    let job = connection.write(jobs.cancel(v1::CancelRequest { job: args.job })).await?;
    let text = if job.phase == "ended" {
        format!("job {} cancelled", job.id)
    } else {
        format!("job {} is being stopped: its environment is taken down", job.id)
    };
    show(session, &job, &text)
}

fn show(session: &Session, job: &v1::Job, done: &str) -> Result<Exit, CliError> {
    session.output.show(|| shape::jobs::job(job), || format!("{done}\n{}", render::jobs::next_step(job)))?;
    Ok(Exit::OK)
}

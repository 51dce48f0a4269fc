//! `devfleet jobs`: where jobs are.

use clap::Subcommand;
use devfleet_proto::v1;

use super::exit::Exit;
use super::failure::CliError;
use super::shape::{self, list, record};
use super::{Session, render, watch};

#[derive(Debug, Subcommand)]
pub(super) enum JobsCommand {
    /// List jobs, the newest first
    List {
        /// Only this project's
        #[arg(long, short, value_name = "NAME")]
        project: Option<String>,
        /// Only those that have not ended
        #[arg(long)]
        open: bool,
        /// How many at most
        #[arg(long, value_name = "NUMBER", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
    },
    /// Show one job: where it is, its attempts, its result
    Show {
        /// The job's id, or the beginning of it
        job: String,
    },
    /// Wait for a job's end, and exit by its outcome
    Watch {
        /// The job's id, or the beginning of it
        job: String,
    },
}

pub(super) async fn run(command: JobsCommand, session: &Session) -> Result<Exit, CliError> {
    let connection = session.connect()?;
    match command {
        JobsCommand::List { project, open, limit } => {
            let request = v1::ListJobsRequest { project: project.unwrap_or_default(), open, limit };
            let answer = connection.read(async || connection.jobs().list_jobs(request.clone()).await).await?;
            session.output.show(
                || record([("jobs", list(&answer.jobs, shape::jobs::job))]),
                || render::jobs::jobs(&answer.jobs, session.now()),
            )?;
            Ok(Exit::OK)
        }
        JobsCommand::Show { job } => {
            let request = v1::GetJobRequest { job };
            let job = connection.read(async || connection.jobs().get_job(request.clone()).await).await?;
            session.output.show(|| shape::jobs::job(&job), || render::jobs::job(&job, session.now()))?;
            Ok(Exit::OK)
        }
        JobsCommand::Watch { job } => watch::to_the_end(&connection, &job, session, watch::Show::EveryChange).await,
    }
}

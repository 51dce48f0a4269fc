//! `devfleet hosts` and `devfleet sweep`: the machines that run jobs.

use clap::{Args, Subcommand};
use devfleet_proto::v1;

use super::exit::Exit;
use super::failure::CliError;
use super::shape::{self, list, record};
use super::{Session, render};

#[derive(Debug, Subcommand)]
pub(super) enum HostsCommand {
    /// List the hosts with what is free on them
    List,
    /// Show one host: capacity, engine, problems
    Show {
        /// The host's name, its id, or the beginning of it
        host: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct SweepArgs {
    /// Only on this host [default: all connected hosts]
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// Say what would be removed and why, and remove nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(command: HostsCommand, session: &Session) -> Result<Exit, CliError> {
    let connection = session.connect()?;
    match command {
        HostsCommand::List => {
            let answer = connection.read(async || connection.fleet().list_hosts(v1::ListHostsRequest {}).await).await?;
            session.output.show(
                || record([("hosts", list(&answer.hosts, shape::fleet::host))]),
                || render::fleet::hosts(&answer.hosts, session.now()),
            )?;
        }
        HostsCommand::Show { host } => {
            let request = v1::GetHostRequest { host };
            let host = connection.read(async || connection.fleet().get_host(request.clone()).await).await?;
            session.output.show(|| shape::fleet::host(&host), || render::fleet::host(&host, session.now()))?;
        }
    }
    Ok(Exit::OK)
}

pub(super) async fn sweep(args: SweepArgs, session: &Session) -> Result<Exit, CliError> {
    let connection = session.connect()?;
    let request = v1::SweepRequest { host: args.host.unwrap_or_default(), dry_run: args.dry_run };
    session.output.wait_for("sweeping");
    let answer = connection.read(async || connection.patient_fleet().sweep(request.clone()).await).await?;
    session.output.waited();
    session.output.show(
        || record([("dry_run", args.dry_run.into()), ("hosts", list(&answer.hosts, shape::fleet::host_sweep))]),
        || render::fleet::sweep(&answer.hosts, args.dry_run),
    )?;
    let failed =
        answer.hosts.iter().any(|host| !host.error.is_empty() || host.objects.iter().any(|o| !o.error.is_empty()));
    Ok(if failed { Exit::FAILED } else { Exit::OK })
}

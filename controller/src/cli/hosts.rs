//! `devfleet hosts` and `devfleet sweep`: the machines that run jobs.

use std::collections::HashMap;

use clap::{Args, Subcommand, ValueEnum};
use devfleet_proto::v1;
use devfleet_shared::units::Span;

use super::connection::Connection;
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
    /// Give a host no new jobs; what runs there goes on
    Cordon(WhichArgs),
    /// Give a host no new jobs, and empty it until a deadline
    Drain {
        #[command(flatten)]
        which: WhichArgs,
        /// How long attempts that run may go on: 30m, 0s
        #[arg(long, value_name = "TIME", default_value = "30m")]
        deadline: Span,
        /// What becomes of those that have not finished by then
        #[arg(long, value_enum, value_name = "WHAT", default_value_t = Then::Requeue)]
        then: Then,
    },
    /// Give a host jobs again: ends cordon, drain and quarantine
    #[command(visible_alias = "uncordon")]
    Resume(WhichArgs),
    /// Change a host's labels, which projects may ask for (`host_labels`)
    Label {
        /// The host's name, its id, or the beginning of it
        host: String,
        /// NAME=VALUE sets a label, NAME- removes one
        #[arg(required = true, value_name = "LABEL")]
        labels: Vec<String>,
    },
    /// Take a host out of the fleet: its certificate is refused from then on
    Remove {
        #[command(flatten)]
        which: WhichArgs,
        /// Even if jobs run there: they start anew on other hosts
        #[arg(long)]
        force: bool,
    },
}

/// Which host, and why.
#[derive(Debug, Args)]
pub(super) struct WhichArgs {
    /// The host's name, its id, or the beginning of it
    host: String,
    /// Why, for those who wonder later
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    reason: String,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Then {
    /// Stop them; their jobs go to other hosts, and no attempt is charged
    Requeue,
    /// Let them go on
    Wait,
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
        HostsCommand::Remove { which, force } => return remove(which, force, &connection, session).await,
        change => {
            let host = changed(change, &connection).await?;
            session.output.show(
                || shape::fleet::host(&host),
                || format!("{}: {}", host.name, render::standing::wanted_or_labels(&host, session.now())),
            )?;
        }
    }
    Ok(Exit::OK)
}

/// Makes a change, which is safe to repeat, and returns the host as it is then.
async fn changed(change: HostsCommand, connection: &Connection) -> Result<v1::Host, CliError> {
    match change {
        HostsCommand::Cordon(WhichArgs { host, reason }) => {
            let request = v1::CordonHostRequest { host, reason };
            connection.read(async || connection.fleet().cordon_host(request.clone()).await).await
        }
        HostsCommand::Drain { which: WhichArgs { host, reason }, deadline, then } => {
            let then = match then {
                Then::Requeue => "requeue".to_owned(),
                Then::Wait => "wait".to_owned(),
            };
            let request = v1::DrainHostRequest { host, reason, deadline_seconds: deadline.0.as_secs(), then };
            connection.read(async || connection.fleet().drain_host(request.clone()).await).await
        }
        HostsCommand::Resume(WhichArgs { host, reason }) => {
            let request = v1::ResumeHostRequest { host, reason };
            connection.read(async || connection.fleet().resume_host(request.clone()).await).await
        }
        HostsCommand::Label { host, labels } => {
            let (set, remove) = parsed(&labels)?;
            let request = v1::LabelHostRequest { host, set, remove };
            connection.read(async || connection.fleet().label_host(request.clone()).await).await
        }
        HostsCommand::Show { host } => {
            let request = v1::GetHostRequest { host };
            connection.read(async || connection.fleet().get_host(request.clone()).await).await
        }
        HostsCommand::List | HostsCommand::Remove { .. } => Err(CliError::Usage("this changes no host".into())),
    }
}

/// Reads `NAME=VALUE` and `NAME-`.
fn parsed(labels: &[String]) -> Result<(HashMap<String, String>, Vec<String>), CliError> {
    let (mut set, mut remove) = (HashMap::new(), Vec::new());
    for label in labels {
        match (label.split_once('='), label.strip_suffix('-')) {
            (Some((name, value)), _) => drop(set.insert(name.to_owned(), value.to_owned())),
            (None, Some(name)) => remove.push(name.to_owned()),
            (None, None) => {
                return Err(CliError::Usage(format!("{label}: write NAME=VALUE to set a label, NAME- to remove one")));
            }
        }
    }
    Ok((set, remove))
}

async fn remove(which: WhichArgs, force: bool, connection: &Connection, session: &Session) -> Result<Exit, CliError> {
    let request = v1::RemoveHostRequest { host: which.host, reason: which.reason, force };
    let gone = connection.write(async { connection.fleet().remove_host(request).await }).await?;
    session.output.show(
        || record([("id", shape::text(&gone.host_id)), ("name", shape::text(&gone.name)), ("jobs", gone.jobs.into())]),
        || {
            let jobs = match gone.jobs {
                0 => String::new(),
                jobs => format!("; {jobs} of its jobs start anew on other hosts, once it cannot work on them any more"),
            };
            format!("{} ({}) was removed{jobs}", gone.name, render::short(&gone.host_id))
        },
    )?;
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

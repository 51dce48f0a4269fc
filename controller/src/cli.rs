//! The CLI: parses the command line, runs one command, and turns what went wrong into a message, a hint and a code.
//!
//! command ─▶ `connection` ─▶ controller ─▶ `shape` (for programs) or `render` (for people) ─▶ `output`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use devfleet_shared::clock::{Clock, Timestamp};

pub mod connection;
pub mod context;
pub mod exit;
pub mod failure;
pub mod harmless;
pub mod output;
pub mod render;
pub mod shape;

mod approval;
mod controllers;
mod derive;
mod doctor;
mod environments;
mod hosts;
mod input;
mod jobs;
mod lines;
mod logs;
mod projects;
mod settings;
mod stores;
mod submit;
mod tokens;
mod top;
mod up;
mod watch;

use connection::Connection;
use context::Context;
use exit::Exit;
use failure::CliError;
use output::{Format, Output};

const BEGIN: &str = "\
Begin on one machine with Docker:
  devfleet up                                    start everything, and write the context that the CLI uses
  devfleet projects apply project.toml           tell devfleet about a repository
  devfleet submit --project NAME --task \"...\"    hand in a job
  devfleet env show JOB                          read what would run
  devfleet approve JOB                           allow it
  devfleet logs -f JOB                           follow it
  devfleet diff JOB                              see the result";

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "devfleet", version, about = "Gives every coding-agent job its own throwaway computer")]
#[command(after_help = BEGIN, after_long_help = format!("{BEGIN}\n\n{}", exit::TABLE))]
#[command(arg_required_else_help = true, subcommand_required = true, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Globals {
    /// How results are printed: table, json, or yaml; streams print one value after another
    #[arg(long, short, global = true, value_enum, default_value_t = Format::Table, value_name = "FORMAT")]
    #[arg(hide_possible_values = true, help_heading = "Options of every command")]
    output: Format,
    /// Which controller to ask, and with which token [default: $DEVFLEET_CONTEXT, else
    /// ~/.config/devfleet/context.toml]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Options of every command")]
    context_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run devfleet on this machine: controller and host daemon, until Ctrl-C
    Up(up::UpArgs),
    /// Tell devfleet about repositories
    #[command(subcommand)]
    Projects(projects::ProjectsCommand),
    /// Hand in a job
    Submit(submit::SubmitArgs),
    /// See what became of jobs
    #[command(subcommand)]
    Jobs(jobs::JobsCommand),
    /// Read a job's log, or follow it
    Logs(logs::LogsArgs),
    /// Allow a job to run as proposed
    Approve(approval::ApproveArgs),
    /// Turn a proposal down; the job ends
    Reject(approval::RejectArgs),
    /// Stop a job and take its environment down
    Cancel(approval::CancelArgs),
    /// See the environment that was derived for a job
    #[command(subcommand)]
    Env(environments::EnvCommand),
    /// See what a job changed
    Diff(environments::DiffArgs),
    /// See and look after the machines that run jobs
    #[command(subcommand)]
    Hosts(hosts::HostsCommand),
    /// See the controllers that run
    #[command(subcommand)]
    Controllers(controllers::ControllersCommand),
    /// Let a machine join the fleet
    #[command(subcommand)]
    JoinToken(tokens::JoinTokenCommand),
    /// Give people and scripts access
    #[command(subcommand)]
    Tokens(tokens::TokensCommand),
    /// Remove what nobody owns on the hosts, now
    Sweep(hosts::SweepArgs),
    /// Move the store of a single machine into that of a fleet
    #[command(subcommand)]
    Store(stores::StoreCommand),
    /// Watch hosts, queue and jobs
    Top(top::TopArgs),
    /// Change how the fleet works while it runs
    #[command(subcommand)]
    Settings(settings::SettingsCommand),
    /// Check this machine, the controller and the hosts
    Doctor,
    /// Show who the controller takes you for
    Whoami,
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the version
    Version,
}

/// What every command has at hand.
struct Session {
    output: Output,
    context_path: PathBuf,
    clock: Clock,
}

impl Session {
    fn connect(&self) -> Result<Connection, CliError> {
        Connection::new(&Context::load(&self.context_path)?)
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }
}

/// Runs the command line of this process.
pub async fn main() -> ExitCode {
    let cli = Cli::parse();
    let context_path =
        cli.globals.context_file.clone().unwrap_or_else(|| context::default_path(|name| std::env::var(name).ok()));
    let session = Session { output: Output::new(cli.globals.output), context_path, clock: Clock::system() };
    let ended = run(cli.command, &session).await;
    session.output.waited();
    let exit = ended.unwrap_or_else(|error| {
        report(&session.output, &error);
        error.exit()
    });
    ExitCode::from(exit.0)
}

fn report(output: &Output, error: &CliError) {
    if error.exit() == Exit::OK {
        return;
    }
    output.note(&format!("{} {error}", output::Paint::Bad.on("error:")));
    let hint = error.hint();
    if !hint.is_empty() {
        output.note(&format!("{}  {hint}", output::Paint::Strong.on("hint:")));
    }
}

async fn run(command: Command, session: &Session) -> Result<Exit, CliError> {
    match command {
        Command::Up(args) => up::run(args, session).await,
        Command::Projects(command) => projects::run(command, session).await,
        Command::Submit(args) => submit::run(args, session).await,
        Command::Jobs(command) => jobs::run(command, session).await,
        Command::Logs(args) => logs::run(args, session).await,
        Command::Approve(args) => approval::approve(args, session).await,
        Command::Reject(args) => approval::reject(args, session).await,
        Command::Cancel(args) => approval::cancel(args, session).await,
        Command::Env(command) => environments::run(command, session).await,
        Command::Diff(args) => environments::diff(args, session).await,
        Command::Hosts(command) => hosts::run(command, session).await,
        Command::Controllers(command) => controllers::run(command, session).await,
        Command::JoinToken(command) => tokens::join(command, session).await,
        Command::Tokens(command) => tokens::run(command, session).await,
        Command::Sweep(args) => hosts::sweep(args, session).await,
        Command::Store(command) => stores::run(command, session).await,
        Command::Top(args) => top::run(args, session).await,
        Command::Settings(command) => settings::run(command, session).await,
        Command::Doctor => doctor::run(session).await,
        Command::Whoami => tokens::whoami(session).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "devfleet", &mut script);
            session.output.raw(&script)?;
            Ok(Exit::OK)
        }
        Command::Version => {
            let version = env!("CARGO_PKG_VERSION");
            session.output.show(|| shape::record([("version", version.into())]), || format!("devfleet {version}"))?;
            Ok(Exit::OK)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_and_option_says_what_it_is_for() {
        fn walk(command: &clap::Command) {
            for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
                assert!(argument.get_help().is_some(), "{} {}", command.get_name(), argument.get_id());
            }
            for inner in command.get_subcommands() {
                assert!(inner.get_about().is_some(), "{}", inner.get_name());
                walk(inner);
            }
        }
        walk(&Cli::command());
    }
}

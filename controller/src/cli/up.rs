//! `devfleet up`: controller and host daemon of one machine, as two child processes over the same TLS as in a fleet.
//!
//! settings ─▶ controller healthy ─▶ context ─▶ host joined and connected ─▶ ready line ─▶ both kept up until a signal

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::Session;
use super::exit::Exit;
use super::failure::CliError;
use super::output::Paint;
use super::shape::record;

mod bringing;
mod child;
mod settings;

use bringing::Ready;
use child::Child;
use settings::Settings;

#[derive(Debug, Args)]
pub(super) struct UpArgs {
    /// Where everything is kept [default: ~/.local/share/devfleet]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where the controller listens [default: 127.0.0.1:7443]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// How many environments this machine carries at once [default: 10]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    slots: Option<u32>,
    /// How many jobs run at once, everywhere [default: 5]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    max_running: Option<u32>,
    /// The Docker engine [default: unix:///var/run/docker.sock]
    #[arg(long, value_name = "URL")]
    engine: Option<String>,
}

pub(super) async fn run(args: UpArgs, session: &Session) -> Result<Exit, CliError> {
    let settings = Settings::prepare(&args, session)?;
    let [mut controller, mut host] = children(&settings)?;
    let stop = CancellationToken::new();
    let on_signal = until_signal()?;
    let started = tokio::select! {
        started = bringing::bring_up(&settings, &mut controller, &mut host, session) => started,
        () = on_signal => Err(CliError::Interrupted(" before devfleet was ready".into())),
    };
    session.output.waited();
    let told = started.and_then(|ready| tell(&settings, &ready, session));
    if let Err(error) = told {
        tokio::join!(controller.stop(), host.stop());
        return Err(error);
    }
    let on_signal = until_signal()?;
    tokio::join!(controller.keep(session, &stop), host.keep(session, &stop), async {
        on_signal.await;
        session.output.note("stopping; jobs that run go on, and the next `devfleet up` takes them up again");
        stop.cancel();
    });
    session.output.note("devfleet has stopped");
    Ok(Exit::OK)
}

fn children(settings: &Settings) -> Result<[Child; 2], CliError> {
    let controller = Child::new("controller", "devfleet-controller", settings)?
        .argument("--config")
        .argument(&settings.controller_file)
        .argument("--bootstrap-token-file")
        .argument(&settings.bootstrap_file);
    let host = Child::new("host", "devfleet-host", settings)?.argument("--config").argument(&settings.host_file);
    Ok([controller, host])
}

/// Waits for Ctrl-C or SIGTERM. Listens from the call on.
fn until_signal() -> Result<impl Future<Output = ()>, CliError> {
    let listen = |kind| {
        signal(kind).map_err(|error| CliError::Local {
            problem: format!("cannot listen for signals: {error}"),
            advice: "this is unusual; try again".into(),
        })
    };
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    Ok(async move {
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
    })
}

fn tell(settings: &Settings, ready: &Ready, session: &Session) -> Result<(), CliError> {
    let context = session.context_path.display().to_string();
    session.output.show(
        || {
            record([
                ("controller", (&settings.url).into()),
                ("host", (&ready.host).into()),
                ("slots", ready.slots.into()),
                ("problems", (&ready.problems).into()),
                ("context", (&context).into()),
                ("data_dir", settings.data_dir.display().to_string().into()),
            ])
        },
        || text(settings, ready, &context, std::env::var_os("DEVFLEET_CONTEXT").is_some()),
    )
}

fn text(settings: &Settings, ready: &Ready, context: &str, exported: bool) -> String {
    let state = if ready.problems.is_empty() {
        format!(
            "{} controller {}, host {} with {} slots",
            Paint::Good.on("devfleet is ready:"),
            settings.url,
            ready.host,
            ready.slots
        )
    } else {
        let problems = ready.problems.join("\n  ");
        format!("{}\n  {problems}", Paint::Attention.on("devfleet runs, but this host cannot take jobs yet:"))
    };
    let export = if exported { format!("  export DEVFLEET_CONTEXT={context}\n") } else { String::new() };
    format!(
        "{state}
context  {context}
logs     {}

Next, in another terminal:
{export}  devfleet projects apply FILE
  devfleet submit --project NAME --task \"...\"
  devfleet jobs list

Ctrl-C stops devfleet; jobs that run go on.
",
        settings.logs.display()
    )
}

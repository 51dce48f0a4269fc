//! `devfleet settings`: what operators change while the fleet runs.

use clap::{Subcommand, ValueEnum};
use devfleet_proto::v1;

use super::exit::Exit;
use super::failure::CliError;
use super::shape::record;
use super::{Session, render};

#[derive(Debug, Subcommand)]
pub(super) enum SettingsCommand {
    /// Show the settings, and who changed them last
    Show,
    /// Change a setting; jobs that run go on
    Set {
        /// The setting
        #[arg(value_enum)]
        setting: Setting,
        /// Its new value
        value: u64,
    },
    /// Return to the values of the controller's configuration
    Reset,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Setting {
    /// How many jobs may run in the fleet at once
    MaxRunning,
    /// After how many jobs in a row that failed through its fault a host gets no new ones; 0: never
    QuarantineAfter,
}

pub(super) async fn run(command: SettingsCommand, session: &Session) -> Result<Exit, CliError> {
    let connection = session.connect()?;
    let change = match command {
        SettingsCommand::Show => None,
        SettingsCommand::Set { setting: Setting::MaxRunning, value } => {
            Some(v1::SetSettingsRequest { max_running: Some(value), ..Default::default() })
        }
        SettingsCommand::Set { setting: Setting::QuarantineAfter, value } => {
            let quarantine_after = Some(u32::try_from(value).unwrap_or(u32::MAX));
            Some(v1::SetSettingsRequest { quarantine_after, ..Default::default() })
        }
        SettingsCommand::Reset => Some(v1::SetSettingsRequest { reset: true, ..Default::default() }),
    };
    let settings = match change {
        None => connection.read(async || connection.fleet().get_settings(v1::GetSettingsRequest {}).await).await?,
        Some(change) => connection.read(async || connection.fleet().set_settings(change).await).await?,
    };
    session.output.show(
        || {
            record([
                ("max_running", settings.max_running.into()),
                ("max_running_default", settings.max_running_default.into()),
                ("quarantine_after", u64::from(settings.quarantine_after).into()),
                ("quarantine_after_default", u64::from(settings.quarantine_after_default).into()),
                ("changed_by", settings.changed_by.clone().into()),
                ("changed_unix_ms", settings.changed_unix_ms.into()),
            ])
        },
        || text(&settings, session.now()),
    )?;
    Ok(Exit::OK)
}

fn text(settings: &v1::Settings, now: devfleet_shared::clock::Timestamp) -> String {
    let changed = match settings.changed_by.as_str() {
        "" => String::new(),
        by => format!("by {by}, {} ago", render::age(settings.changed_unix_ms, now)),
    };
    render::fields([
        ("max-running", format!("{} (configured: {})", settings.max_running, settings.max_running_default)),
        (
            "quarantine",
            format!(
                "after {} failed jobs (configured: {})",
                settings.quarantine_after, settings.quarantine_after_default
            ),
        ),
        ("changed", changed),
    ])
}

#[cfg(test)]
mod tests {
    use devfleet_shared::clock::Timestamp;

    use super::*;
    use crate::cli::output::paint;

    #[test]
    fn settings_say_what_counts_and_who_changed_it() {
        let mut settings = v1::Settings { max_running: 50, max_running_default: 5, ..v1::Settings::default() };
        assert_eq!(
            paint(&text(&settings, Timestamp(0)), false),
            "max-running:  50 (configured: 5)\nquarantine:   after 0 failed jobs (configured: 0)\n"
        );
        (settings.changed_by, settings.changed_unix_ms) = ("ada".into(), 1_000);
        assert!(paint(&text(&settings, Timestamp(61_000)), false).ends_with("changed:      by ada, 60s ago\n"));
    }
}

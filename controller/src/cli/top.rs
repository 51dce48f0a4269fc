//! `devfleet top`: hosts, queue and running jobs, live.
//!
//! controller ─ every interval ─▶ `Seen` ─▶ `board` (rows) ─▶ `draw`; keys change what is shown. A controller that is
//! away is said so and asked again. Without a terminal, and with `--once`: the tables, once, as text.

use std::time::Duration;

use clap::Args;
use devfleet_proto::v1;
use devfleet_shared::units::Span;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};

use super::connection::Connection;
use super::exit::Exit;
use super::failure::CliError;
use super::harmless::{harmless, one_line};
use super::output::Format;
use super::shape::{self, list, record};
use super::{Session, render};

mod board;
mod draw;
#[cfg(test)]
mod tests;

use board::{Seen, Sort, Tab};

/// How long keys are waited for at once.
const KEYS: Duration = Duration::from_millis(150);
/// The most open jobs that are asked for.
const JOBS: u32 = 1_000;

#[derive(Debug, Args)]
pub(super) struct TopArgs {
    /// Print the tables once; so it is too when the output is no terminal
    #[arg(long)]
    once: bool,
    /// How often to look
    #[arg(long, value_name = "TIME", default_value = "2s")]
    interval: Span,
}

/// What is on the screen.
#[derive(Debug, Clone, Default)]
struct Screen {
    seen: Seen,
    problem: Option<String>,
    tab: Tab,
    sort: Sort,
    scroll: usize,
}

impl Screen {
    /// Takes a key; `false`: the person wants to leave.
    fn on(&mut self, key: KeyCode, control: bool) -> bool {
        let columns = self.tab.columns().len();
        let at = Tab::ALL.iter().position(|tab| *tab == self.tab).unwrap_or(0);
        let mut turn = |to: usize| {
            self.tab = Tab::ALL[to % Tab::ALL.len()];
            (self.sort, self.scroll) = (Sort::default(), 0);
        };
        match key {
            KeyCode::Char('q') | KeyCode::Esc => return false,
            KeyCode::Char('c') if control => return false,
            KeyCode::Tab => turn(at + 1),
            KeyCode::BackTab => turn(at + Tab::ALL.len() - 1),
            KeyCode::Right => self.sort.column = (self.sort.column + 1) % columns,
            KeyCode::Left => self.sort.column = (self.sort.column + columns - 1) % columns,
            KeyCode::Char('r') => self.sort.reversed = !self.sort.reversed,
            KeyCode::Up => self.scroll = self.scroll.saturating_sub(1),
            KeyCode::Down => {
                let rows = board::rows(&self.seen, self.tab, self.sort).len();
                self.scroll = (self.scroll + 1).min(rows.saturating_sub(1));
            }
            _ => {}
        }
        true
    }

    fn learn(&mut self, looked: Result<Seen, CliError>) {
        match looked {
            Ok(seen) => (self.seen, self.problem) = (seen, None),
            Err(error) => self.problem = Some(one_line(&harmless(&error.to_string()), 200)),
        }
    }
}

pub(super) async fn run(args: TopArgs, session: &Session) -> Result<Exit, CliError> {
    if args.interval.0.is_zero() {
        return Err(CliError::Usage("--interval: write 1s or more".into()));
    }
    let connection = session.connect()?;
    if args.once || !session.output.is_terminal() || session.output.format() != Format::Table {
        let seen = look(&connection, session.clock.clone()).await?;
        session.output.show(
            || {
                record([
                    ("max_running", seen.settings.max_running.into()),
                    ("hosts", list(&seen.hosts, shape::fleet::host)),
                    ("jobs", list(&seen.jobs, shape::jobs::job)),
                ])
            },
            || text(&seen),
        )?;
        return Ok(Exit::OK);
    }
    let mut terminal = ratatui::try_init().map_err(CliError::Output)?;
    let ended = live(&mut terminal, &connection, session, args.interval.0).await;
    ratatui::restore();
    ended
}

async fn live(
    terminal: &mut ratatui::DefaultTerminal,
    connection: &Connection,
    session: &Session,
    interval: Duration,
) -> Result<Exit, CliError> {
    let (mut screen, mut looks) = (Screen::default(), FuturesUnordered::new());
    let mut due = tokio::time::interval(interval);
    due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut keys = tokio::task::spawn_blocking(next_key);
    loop {
        terminal.draw(|frame| draw::draw(frame, &screen)).map_err(CliError::Output)?;
        tokio::select! {
            _ = due.tick() => if looks.is_empty() {
                looks.push(look(connection, session.clock.clone()));
            },
            Some(looked) = looks.next() => screen.learn(looked),
            key = &mut keys => {
                if let Ok(Ok(Some((key, control)))) = key && !screen.on(key, control) {
                    return Ok(Exit::OK);
                }
                keys = tokio::task::spawn_blocking(next_key);
            }
        }
    }
}

/// Waits a moment for a key. A change of the terminal's size ends the wait too.
fn next_key() -> std::io::Result<Option<(KeyCode, bool)>> {
    if !event::poll(KEYS)? {
        return Ok(None);
    }
    Ok(match event::read()? {
        Event::Key(key) if key.kind == KeyEventKind::Press => {
            Some((key.code, key.modifiers.contains(KeyModifiers::CONTROL)))
        }
        _ => None,
    })
}

async fn look(connection: &Connection, clock: devfleet_shared::clock::Clock) -> Result<Seen, CliError> {
    let open = v1::ListJobsRequest { open: true, limit: JOBS, ..v1::ListJobsRequest::default() };
    let jobs = connection.read(async || connection.jobs().list_jobs(open.clone()).await).await?;
    let hosts = connection.read(async || connection.fleet().list_hosts(v1::ListHostsRequest {}).await).await?;
    let settings = connection.read(async || connection.fleet().get_settings(v1::GetSettingsRequest {}).await).await?;
    Ok(Seen { hosts: hosts.hosts, jobs: jobs.jobs, settings, at: clock.now() })
}

fn text(seen: &Seen) -> String {
    let mut out = format!("{}\n", board::summary(seen));
    for tab in Tab::ALL {
        let rows = board::rows(seen, tab, Sort::default());
        out.push_str(&render::heading(tab.name()));
        let rows = rows.into_iter().map(|row| row.into_iter().map(|cell| render::plain(cell.text)).collect());
        out.push_str(&render::columns(tab.columns(), rows, "none"));
    }
    out
}

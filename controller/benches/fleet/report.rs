//! What was measured, as a table with a verdict for each goal.

use std::fmt::Write as _;
use std::time::Duration;

use devfleet_shared::clock::Clock;

/// A goal that was met or missed.
struct Goal {
    what: String,
    met: bool,
}

/// Everything that was measured so far. It is kept also when a later part fails.
#[derive(Default)]
pub(crate) struct Report {
    rows: Vec<(String, String)>,
    goals: Vec<Goal>,
    /// Why the run ended early.
    pub(crate) broken: Option<String>,
}

impl Report {
    pub(crate) fn row(&mut self, what: impl Into<String>, found: impl Into<String>) {
        self.rows.push((what.into(), found.into()));
    }

    pub(crate) fn goal(&mut self, what: impl Into<String>, met: bool) {
        self.goals.push(Goal { what: what.into(), met });
    }

    /// Says whether all that was measured is as it is to be.
    pub(crate) fn all_met(&self) -> bool {
        self.broken.is_none() && self.goals.iter().all(|goal| goal.met)
    }

    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        let now = i64::try_from(Clock::system().now().0).unwrap_or_default();
        let now = jiff::Timestamp::from_millisecond(now).unwrap_or_default();
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load = load.split_whitespace().nth(1).unwrap_or("?").to_owned();
        let date = now.strftime("%Y-%m-%d");
        let _ = writeln!(
            text,
            "{date}; {cores} cores, all programs on one machine; load over the last 5 minutes at the end: {load}.\n"
        );
        let _ = writeln!(text, "| | |\n|---|---|");
        for (what, found) in &self.rows {
            let _ = writeln!(text, "| {what} | {found} |");
        }
        if let Some(why) = &self.broken {
            let _ = writeln!(text, "\nThe run broke off: {why}.");
        }
        let verdict = |goal: &Goal| format!("{}: {}", goal.what, if goal.met { "met" } else { "**missed**" });
        let verdicts: Vec<String> = self.goals.iter().map(verdict).collect();
        let _ = writeln!(text, "\nGoals: {}.", verdicts.join("; "));
        text
    }
}

/// Returns the value below which this part of all lies.
pub(crate) fn percentile(values: &mut [Duration], part: f64) -> Duration {
    values.sort_unstable();
    let place = ((values.len() as f64 * part).ceil() as usize).clamp(1, values.len().max(1));
    values.get(place - 1).copied().unwrap_or_default()
}

/// Writes a time for people.
pub(crate) fn shown(time: Duration) -> String {
    match time.as_millis() {
        0..10_000 => format!("{:.1} ms", time.as_secs_f64() * 1e3),
        _ => format!("{:.1} s", time.as_secs_f64()),
    }
}

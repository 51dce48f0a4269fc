//! What was measured, as a table with ratios, on the terminal and in `docs/benchmarks.md`.
//!
//! A ratio is taken within each round, where the ways ran right after one another, and the median of all rounds is
//! shown: so a machine that does other things meanwhile blurs it little.

use std::fmt::Write as _;
use std::time::Duration;

use devfleet_host::engine::EngineFacts;
use devfleet_shared::clock::Clock;

use crate::{Spans, WAYS};

/// What the ways are called, in the order of [`WAYS`].
const COLUMNS: [&str; WAYS.len()] = ["devfleet", "raw calls", "docker-compose"];

/// Seconds by way.
type Row = [f64; WAYS.len()];

/// Everything that was measured.
pub(crate) struct Measured {
    width: usize,
    up: Vec<Row>,
    down: Vec<Row>,
    both: Vec<Row>,
    wide: Vec<Row>,
}

impl Measured {
    pub(crate) fn new(width: usize) -> Measured {
        Measured { width, up: Vec::new(), down: Vec::new(), both: Vec::new(), wide: Vec::new() }
    }

    /// Takes a round of single environments in.
    pub(crate) fn single(&mut self, spans: [Spans; WAYS.len()]) {
        self.up.push(spans.map(|spans| spans.up.as_secs_f64()));
        self.down.push(spans.map(|spans| spans.down.as_secs_f64()));
        self.both.push(spans.map(|spans| (spans.up + spans.down).as_secs_f64()));
    }

    /// Takes a round of many at once in: how long all of them took together.
    pub(crate) fn wide(&mut self, spans: [Duration; WAYS.len()]) {
        self.wide.push(spans.map(|span| self.width as f64 / span.as_secs_f64()));
    }

    /// Renders the table, and the machine.
    pub(crate) fn table(&self, facts: &EngineFacts) -> String {
        let mut text = String::new();
        let now = i64::try_from(Clock::system().now().0).unwrap_or_default();
        let now = jiff::Timestamp::from_millisecond(now).unwrap_or_default();
        let _ = writeln!(
            text,
            "{}; {} cores, {} GiB; Docker {}, storage driver {}; {} rounds one at a time, {} rounds of {} at once.\n",
            now.strftime("%Y-%m-%d"),
            facts.cpus,
            (facts.memory_bytes + (1 << 29)) >> 30,
            facts.version,
            facts.storage_driver,
            self.up.len(),
            self.wide.len(),
            self.width,
        );
        let _ = writeln!(text, "| | {} | against raw calls | against docker-compose |", COLUMNS.join(" | "));
        let _ = writeln!(text, "|---|---|---|---|---|---|");
        for (name, rows) in [("up", &self.up), ("down", &self.down), ("**up and down**", &self.both)] {
            line(&mut text, &format!("one at a time, {name}"), "s", rows);
        }
        line(&mut text, &format!("**{} at once, throughput**", self.width), "/s", &self.wide);
        let verdict = |met| if met { "met" } else { "**missed**" };
        let _ = writeln!(
            text,
            "\nGoals: at most 1.15 times raw calls' time one at a time: {}; at least 0.9 times their throughput {} at once: \
             {}; at most 0.6 times docker-compose's time one at a time: {}.",
            verdict(ratio(&self.both, 1) <= 1.15),
            self.width,
            verdict(ratio(&self.wide, 1) >= 0.9),
            verdict(ratio(&self.both, 2) <= 0.6),
        );
        text
    }
}

fn line(text: &mut String, name: &str, unit: &str, rows: &[Row]) {
    let _ = write!(text, "| {name} |");
    for way in 0..WAYS.len() {
        let _ = write!(text, " {:.2} {unit} |", median(rows.iter().map(|row| row[way])));
    }
    let _ = writeln!(text, " {:.2} | {:.2} |", ratio(rows, 1), ratio(rows, 2));
}

/// Returns the median over the rounds of devfleet's value divided by another's.
fn ratio(rows: &[Row], way: usize) -> f64 {
    median(rows.iter().map(|row| row[0] / row[way]))
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        length => (values[(length - 1) / 2] + values[length / 2]) / 2.0,
    }
}

//! What was measured, as a table, on the terminal and in `docs/benchmarks.md`.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;

/// Where the last run's table stands in the document.
const BEGIN: &str = "<!-- last fleet run -->\n";
const END: &str = "<!-- end of last fleet run -->\n";

/// A fleet of one size.
pub(crate) struct Measured {
    pub(crate) hosts: usize,
    pub(crate) jobs: usize,
    /// Jobs that came from approval to a host.
    pub(crate) per_second: f64,
    /// Jobs that a bare etcd client could have written the decisions of.
    pub(crate) bare_per_second: f64,
    /// From submission to assignment, sorted.
    pub(crate) waits: Vec<Duration>,
    pub(crate) host_bytes: f64,
    pub(crate) job_bytes: f64,
    pub(crate) storm: Duration,
    pub(crate) host_failover: Duration,
    pub(crate) leader_failover: Duration,
}

impl Measured {
    fn wait(&self, share: f64) -> f64 {
        let last = self.waits.len().saturating_sub(1);
        self.waits.get((last as f64 * share).round() as usize).map_or(f64::NAN, |wait| wait.as_secs_f64() * 1e3)
    }
}

/// Renders all of them, and whether the goals are met.
pub(crate) fn render(rows: &[Measured]) -> String {
    let mut text = String::new();
    let today = jiff::Timestamp::now().strftime("%Y-%m-%d");
    let _ = writeln!(text, "{today}; controllers, etcd and simulated hosts on the same machine.\n");
    let _ = writeln!(
        text,
        "| | {} |",
        rows.iter().map(|row| format!("{} hosts", row.hosts)).collect::<Vec<_>>().join(" | ")
    );
    let _ = writeln!(text, "|---|{}", "---|".repeat(rows.len()));
    let mut line = |name: &str, cell: &dyn Fn(&Measured) -> String| {
        let _ = writeln!(text, "| {name} | {} |", rows.iter().map(cell).collect::<Vec<_>>().join(" | "));
    };
    line("jobs placed", &|row| row.jobs.to_string());
    line("placed in a second", &|row| format!("{:.0}", row.per_second));
    line("a bare etcd client, in a second", &|row| format!("{:.0}", row.bare_per_second));
    line("**ratio**", &|row| format!("{:.2}", row.per_second / row.bare_per_second));
    line("submission to assignment, p50", &|row| format!("{:.0} ms", row.wait(0.5)));
    line("**submission to assignment, p99**", &|row| format!("{:.0} ms", row.wait(0.99)));
    line("memory of the controllers, a host", &|row| format!("{:.0} KiB", row.host_bytes / 1024.0));
    line("memory of the controllers, a job", &|row| format!("{:.0} KiB", row.job_bytes / 1024.0));
    line("a controller is killed: all hosts back after", &|row| format!("{:.1} s", row.storm.as_secs_f64()));
    line("**a host is killed: its job is at another after**", &|row| {
        format!("{:.1} s", row.host_failover.as_secs_f64())
    });
    line("**the leader is killed: the next job is placed after**", &|row| {
        format!("{:.1} s", row.leader_failover.as_secs_f64())
    });
    let verdict = |met: bool| if met { "met" } else { "**missed**" };
    let all = |goal: fn(&Measured) -> bool| verdict(rows.iter().all(goal));
    let _ = writeln!(
        text,
        "\nGoals: at least 0.5 of the bare client's rate: {}; p99 under 100 ms: {}; a dead host's job elsewhere within 60 s: \
         {}; a dead leader replaced within 15 s: {}.",
        all(|row| row.per_second / row.bare_per_second >= 0.5),
        all(|row| row.wait(0.99) < 100.0),
        all(|row| row.host_failover <= Duration::from_secs(60)),
        all(|row| row.leader_failover <= Duration::from_secs(15)),
    );
    text
}

/// Prints the table, and keeps it in the document if that is wanted.
pub(crate) fn publish(table: &str) -> anyhow::Result<()> {
    println!("{table}");
    if std::env::var_os("DEVFLEET_BENCH_RECORD").is_none() {
        return Ok(());
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/benchmarks.md");
    let text = std::fs::read_to_string(&path).context("read docs/benchmarks.md")?;
    let (before, rest) = text.split_once(BEGIN).context("docs/benchmarks.md has lost its mark")?;
    let (_, after) = rest.split_once(END).context("docs/benchmarks.md has lost its end mark")?;
    std::fs::write(&path, format!("{before}{BEGIN}{table}{END}{after}")).context("write docs/benchmarks.md")
}

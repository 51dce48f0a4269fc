//! Keeps what a benchmark found in `docs/benchmarks.md`, between two marks, and prints it. The benchmarks of both programs
//! take this file in by its path.

use std::path::Path;

use anyhow::Context as _;

/// Prints a text, and with `DEVFLEET_BENCH_RECORD` set writes it between `<!-- last {name} -->` and `<!-- end of last {name} -->`.
#[expect(clippy::print_stdout, reason = "a benchmark talks to the terminal")]
pub(crate) fn publish(name: &str, found: &str) -> anyhow::Result<()> {
    println!("{found}");
    if std::env::var_os("DEVFLEET_BENCH_RECORD").is_none() {
        return Ok(());
    }
    let (begin, end) = (format!("<!-- last {name} -->\n"), format!("<!-- end of last {name} -->\n"));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/benchmarks.md");
    let text = std::fs::read_to_string(&path).context("read docs/benchmarks.md")?;
    let (before, rest) = text.split_once(&begin).with_context(|| format!("docs/benchmarks.md has lost {begin:?}"))?;
    let (_, after) = rest.split_once(&end).with_context(|| format!("docs/benchmarks.md has lost {end:?}"))?;
    std::fs::write(&path, format!("{before}{begin}{found}{end}{after}")).context("write docs/benchmarks.md")
}

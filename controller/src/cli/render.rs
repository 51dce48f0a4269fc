//! Text for people: pure functions of messages and of the moment, so that tests compare whole texts.

use comfy_table::{ContentArrangement, Table, presets};
use devfleet_shared::clock::Timestamp;

use super::output::Paint;

pub mod derivation;
pub mod fleet;
pub mod jobs;
pub mod proposal;
pub mod standing;

/// One cell of a table.
pub type Cell = (Paint, String);

/// Makes a cell without colour.
pub fn plain(text: impl Into<String>) -> Cell {
    (Paint::Plain, text.into())
}

/// Lays out rows in columns under a heading; says `nothing` when there are none.
pub fn table<const N: usize>(heading: [&str; N], rows: impl IntoIterator<Item = [Cell; N]>, nothing: &str) -> String {
    columns(&heading, rows.into_iter().map(Vec::from), nothing)
}

/// As [`table`], with a number of columns that is known at run time only.
pub fn columns(heading: &[&str], rows: impl IntoIterator<Item = Vec<Cell>>, nothing: &str) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(heading.iter().map(|name| Paint::Faint.on(name)));
    let mut empty = true;
    for row in rows {
        empty = false;
        let row = row.into_iter();
        table.add_row(row.map(|(paint, text)| paint.on(&super::harmless::harmless(&text.replace(['\n', '\t'], " ")))));
    }
    if empty {
        return format!("{nothing}\n");
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    // Cells at the end of a line that are empty leave no blanks behind.
    let empty = Paint::Plain.on("");
    table.lines().map(|line| line.replace(&empty, "").trim_end().to_owned() + "\n").collect()
}

/// Lays out named values, leaving out those that are empty; a value of several lines stands indented.
pub fn fields<'a>(values: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let mut out = String::new();
    for (name, value) in values {
        let value = value.trim_end();
        if value.is_empty() {
            continue;
        }
        let label = Paint::Faint.on(&format!("{name}:"));
        let gap = " ".repeat(13usize.saturating_sub(name.chars().count()));
        let indented = value.replace('\n', &format!("\n{}", " ".repeat(14)));
        out.push_str(&format!("{label}{gap}{indented}\n"));
    }
    out
}

/// Makes a heading over a block.
pub fn heading(text: &str) -> String {
    format!("\n{}\n", Paint::Strong.on(text))
}

/// Indents every line by two spaces.
pub fn indented(text: &str) -> String {
    text.trim_end().lines().map(|line| if line.is_empty() { "\n".to_owned() } else { format!("  {line}\n") }).collect()
}

/// Says how long ago something was: `12s`, `5m`, `3h`, `9d`; `-` when it never was.
pub fn age(unix_ms: u64, now: Timestamp) -> String {
    if unix_ms == 0 {
        return "-".into();
    }
    span(now.since(Timestamp(unix_ms)).as_secs())
}

/// Writes a span with its largest unit.
pub fn span(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7_199 => format!("{}m", seconds / 60),
        7_200..=172_799 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Writes bytes with the unit that suits them.
pub fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut amount = count as f64;
    let mut unit = 0;
    while amount >= 1024.0 && unit + 1 < units.len() {
        amount /= 1024.0;
        unit += 1;
    }
    let digits = if unit == 0 || amount >= 10.0 { 0 } else { 1 };
    format!("{amount:.digits$} {}", units[unit])
}

/// Writes a number that only its size matters of: `812`, `48k`, `1.2M`; `-` for none.
pub fn count(number: u64) -> String {
    match number {
        0 => "-".to_owned(),
        1..1_000 => number.to_string(),
        1_000..1_000_000 => format!("{}k", number / 1_000),
        _ => format!("{:.1}M", (number / 100_000) as f64 / 10.0),
    }
}

/// Shortens an id to the eight characters that people type.
pub fn short(id: &str) -> String {
    id.chars().take(8).collect()
}

/// Shortens a commit, or says that there is none.
pub fn commit(id: &str) -> String {
    id.chars().take(12).collect()
}

#[cfg(test)]
mod tests {
    use super::super::output::paint;
    use super::*;

    #[test]
    fn spans_ages_and_sizes_read_well() {
        assert_eq!([0, 119, 120, 7_199, 7_200, 172_800].map(span), ["0s", "119s", "2m", "119m", "2h", "2d"]);
        assert_eq!(age(0, Timestamp(5)), "-");
        assert_eq!(age(1_000, Timestamp(61_000)), "60s");
        let numbers = [0, 999, 1_000, 999_999, 1_000_000, 12_345_678];
        assert_eq!(numbers.map(count), ["-", "999", "1k", "999k", "1.0M", "12.3M"]);
        assert_eq!([0, 1023, 1536, 15 << 20, 4 << 30].map(bytes), ["0 B", "1023 B", "1.5 KiB", "15 MiB", "4.0 GiB"]);
    }

    #[test]
    fn columns_line_up_whatever_their_colours() {
        let rows = [[(Paint::Good, "yes".into()), plain("b")], [plain("x"), (Paint::Bad, "a\nb".into())]];
        assert_eq!(paint(&table(["FINE", "NAME"], rows, "none"), false), "FINE  NAME\nyes   b\nx     a b\n");
        assert_eq!(table(["A"], [], "no jobs"), "no jobs\n");
    }

    #[test]
    fn values_of_several_lines_stay_under_their_name() {
        let text = fields([("one", "1".to_owned()), ("none", String::new()), ("two", "a\nb\n".to_owned())]);
        assert_eq!(paint(&text, false), "one:          1\ntwo:          a\n              b\n");
    }
}

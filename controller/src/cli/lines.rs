//! Pieces of output, cut wherever the engine cut them, put together to lines that name their source.

use std::collections::BTreeMap;

use devfleet_proto::v1::LogRecord;
use devfleet_proto::v1::log_record::Channel;

use super::output::Paint;

/// A line is shown in parts when it is longer, in bytes.
const LONGEST_LINE: usize = 16 << 10;

type Origin = (String, String, i32);

/// Puts lines together.
#[derive(Debug, Default)]
pub(super) struct Lines {
    begun: BTreeMap<Origin, Vec<u8>>,
}

impl Lines {
    /// Takes one record and returns the lines that it completes.
    pub(super) fn push(&mut self, record: &LogRecord) -> Vec<String> {
        let (attempt, source) = (record.attempt.as_str(), record.source.as_str());
        match record.channel() {
            Channel::End => return self.end(Some(attempt)),
            Channel::Note => return shown(source, Paint::Faint, &record.data),
            Channel::Cut => return shown(source, Paint::Attention, &record.data),
            Channel::Out | Channel::Err | Channel::Unspecified => {}
        }
        let origin = (attempt.to_owned(), source.to_owned(), record.channel);
        let begun = self.begun.entry(origin).or_default();
        begun.extend_from_slice(&record.data);
        let whole = match begun.iter().rposition(|byte| *byte == b'\n') {
            Some(at) => at + 1,
            None if begun.len() > LONGEST_LINE => begun.len(),
            None => 0,
        };
        let complete: Vec<u8> = begun.drain(..whole).collect();
        shown(source, Paint::Plain, &complete)
    }

    /// Returns what is left of lines that were not completed, of one attempt or of all.
    pub(super) fn end(&mut self, attempt: Option<&str>) -> Vec<String> {
        let origins: Vec<Origin> =
            self.begun.keys().filter(|origin| attempt.is_none_or(|attempt| origin.0 == attempt)).cloned().collect();
        let rest = origins.into_iter().filter_map(|origin| self.begun.remove_entry(&origin));
        rest.flat_map(|((_, source, _), bytes)| shown(&source, Paint::Plain, &bytes)).collect()
    }
}

/// Makes lines of text; a carriage return ends one too, as progress bars use it.
fn shown(source: &str, paint: Paint, bytes: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    let lines = text.split('\n').flat_map(|line| {
        let line = line.trim_end_matches('\r');
        let parts: Vec<&str> = line.split('\r').filter(|part| !part.is_empty()).collect();
        if parts.is_empty() { vec![""] } else { parts }
    });
    let mut lines: Vec<String> = lines
        .map(|line| {
            let label = Paint::Faint.on(&format!("{source:>9} |"));
            if line.is_empty() { label } else { format!("{label} {}", paint.on(line)) }
        })
        .collect();
    // What stands behind the last line feed is not a line.
    if text.is_empty() || text.ends_with('\n') {
        lines.pop();
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::super::output::paint;
    use super::*;

    fn record(source: &str, channel: Channel, data: &[u8]) -> LogRecord {
        LogRecord {
            source: source.into(),
            channel: channel.into(),
            data: data.into(),
            attempt: "a3f91c20".into(),
            ..LogRecord::default()
        }
    }

    fn check(records: &[LogRecord], expected: &[&str]) {
        let mut lines = Lines::default();
        let mut shown: Vec<String> = records.iter().flat_map(|record| lines.push(record)).collect();
        shown.extend(lines.end(None));
        let shown: Vec<String> = shown.iter().map(|line| paint(line, false)).collect();
        assert_eq!(shown, expected);
    }

    #[test]
    fn pieces_become_lines_whatever_the_cuts() {
        let text = "grün\nzwei\n\ndrei";
        let expected = ["    agent | grün", "    agent | zwei", "    agent |", "    agent | drei"];
        for size in 1..text.len() {
            let pieces: Vec<_> =
                text.as_bytes().chunks(size).map(|piece| record("agent", Channel::Out, piece)).collect();
            check(&pieces, &expected);
        }
    }

    #[test]
    fn sources_and_channels_do_not_mix() {
        let records = [
            record("agent", Channel::Out, b"one "),
            record("agent", Channel::Err, b"warning\n"),
            record("devfleet", Channel::Note, b"waiting for redis"),
            record("agent", Channel::Out, b"line\n"),
        ];
        check(&records, &["    agent | warning", " devfleet | waiting for redis", "    agent | one line"]);
    }

    #[test]
    fn the_end_of_an_attempt_shows_what_was_begun_and_progress_bars_become_lines() {
        let records = [
            record("setup", Channel::Out, b" 10%\r 20%\r\ndone\r\nrest"),
            record("devfleet", Channel::End, b""),
            record("setup", Channel::Out, &[0xff, b'\n']),
        ];
        check(
            &records,
            &["    setup |  10%", "    setup |  20%", "    setup | done", "    setup | rest", "    setup | \u{fffd}"],
        );
    }

    #[test]
    fn a_line_without_end_is_shown_in_parts() {
        let mut lines = Lines::default();
        assert!(lines.push(&record("agent", Channel::Out, &[b'x'; LONGEST_LINE])).is_empty());
        assert_eq!(lines.push(&record("agent", Channel::Out, b"y")).len(), 1);
    }
}

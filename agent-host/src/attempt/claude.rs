//! Reading what Claude Code says of itself: `stream-json`, one JSON object per line, the last of them of type `result`.
//!
//! It succeeded if its exit status is 0, and there is a result, and the result is no error. The subtype does not tell:
//! an API error ends as `success` with `is_error`. Lines that are no JSON, too long, or of an unknown type are skipped.
//!
//! The tokens are its own account: each message tells what it used so far, in one line or several, and the result all.

use std::collections::VecDeque;

use serde::Deserialize;

/// The longest line that is looked at, in bytes.
const LINE_LIMIT: usize = 4 << 20;
/// How many messages are under way at once at most: one, and those of its subagents.
const RECENT: usize = 64;
/// How much of its own words goes into a message, in characters.
const WORDS_LIMIT: usize = 2_000;

/// What the last `result` event said.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Outcome {
    #[serde(default)]
    subtype: String,
    #[serde(default)]
    is_error: bool,
    #[serde(default)]
    result: Option<String>,
    #[serde(default)]
    errors: Vec<String>,
    #[serde(default)]
    api_error_status: Option<u16>,
    #[serde(default)]
    usage: Usage,
}

#[derive(Deserialize)]
struct Kind<'a> {
    #[serde(rename = "type", borrow)]
    kind: std::borrow::Cow<'a, str>,
}

/// A line of type `assistant`.
#[derive(Deserialize)]
struct Said {
    message: Message,
}

#[derive(Deserialize)]
struct Message {
    id: String,
    #[serde(default)]
    usage: Usage,
}

/// The provider's account of one message, or of all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Usage {
    input_tokens: u64,
    cache_creation_input_tokens: u64,
    output_tokens: u64,
}

impl Usage {
    /// Input, cache writes and output. Cache reads do not count (docs/cli.md).
    fn tokens(self) -> u64 {
        self.input_tokens.saturating_add(self.cache_creation_input_tokens).saturating_add(self.output_tokens)
    }
}

/// Reads the standard output of one run, in pieces of any size.
#[derive(Debug, Default)]
pub(super) struct Reader {
    line: Vec<u8>,
    too_long: bool,
    outcome: Option<Outcome>,
    /// Tokens of the messages that are told of no more.
    settled: u64,
    /// The newest messages, which further lines may tell of.
    recent: VecDeque<(String, u64)>,
}

impl Reader {
    /// Takes the next piece.
    pub(super) fn push(&mut self, piece: &[u8]) {
        let mut rest = piece;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            self.extend(&rest[..end]);
            self.end_line();
            rest = &rest[end + 1..];
        }
        self.extend(rest);
    }

    /// Returns how many tokens were used, as far as the run has told.
    pub(super) fn tokens(&self) -> u64 {
        let told = self.recent.iter().fold(self.settled, |sum, (_, tokens)| sum.saturating_add(*tokens));
        self.outcome.as_ref().map_or(0, |outcome| outcome.usage.tokens()).max(told)
    }

    /// Takes the end of the output.
    pub(super) fn end(&mut self) {
        self.end_line();
    }

    /// Says what is wrong with the run, in a sentence; `None`: it succeeded.
    pub(super) fn complaint(mut self, status: i64) -> Option<String> {
        self.end();
        let Some(outcome) = self.outcome else {
            return Some(format!("Claude Code ended with status {status} and without a result"));
        };
        if status == 0 && !outcome.is_error {
            return None;
        }
        let words = match outcome.result {
            Some(result) if !result.trim().is_empty() => result,
            _ if !outcome.errors.is_empty() => outcome.errors.join("; "),
            _ => format!("its result is {:?}", outcome.subtype),
        };
        let words: String = words.trim().chars().take(WORDS_LIMIT).collect();
        let http = outcome.api_error_status.map(|status| format!(" (the model's API answered {status})"));
        Some(format!("Claude Code ended with status {status}{}: {words}", http.unwrap_or_default()))
    }

    fn extend(&mut self, piece: &[u8]) {
        if self.too_long || self.line.len() + piece.len() > LINE_LIMIT {
            self.too_long = true;
            self.line.clear();
        } else {
            self.line.extend_from_slice(piece);
        }
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        self.too_long = false;
        let Ok(Kind { kind }) = serde_json::from_slice(&line) else { return };
        match &*kind {
            "result" => self.outcome = serde_json::from_slice(&line).ok().or_else(|| self.outcome.take()),
            "assistant" => {
                if let Ok(Said { message }) = serde_json::from_slice(&line) {
                    self.note(message);
                }
            }
            _ => {}
        }
    }

    /// Counts a message once, with the most that a line says of it.
    fn note(&mut self, Message { id, usage }: Message) {
        if let Some((_, tokens)) = self.recent.iter_mut().find(|(known, _)| *known == id) {
            *tokens = usage.tokens().max(*tokens);
            return;
        }
        self.recent.push_back((id, usage.tokens()));
        if self.recent.len() > RECENT {
            let (_, tokens) = self.recent.pop_front().unwrap_or_default();
            self.settled = self.settled.saturating_add(tokens);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const INIT: &str = r#"{"type":"system","subtype":"init","session_id":"s","model":"m","tools":["Bash"]}"#;
    const WORDS: &str = r#"{"message":{"content":[{"type":"text","text":"type result"}]},"type":"assistant"}"#;
    const GOOD: &str = r#"{"subtype":"success","is_error":false,"num_turns":2,"result":"Done.","type":"result"}"#;
    const REFUSED: &str = r#"{"is_error":true,"subtype":"success","api_error_status":402,"result":"API Error: 402 job budget exhausted","type":"result"}"#;
    const TURNS: &str = r#"{"type":"result","subtype":"error_max_turns","is_error":true,"errors":["Reached maximum number of turns (2)"]}"#;
    const BARE: &str = r#"{"type":"result","subtype":"error_during_execution","is_error":true}"#;

    fn complaint(lines: &[&str], status: i64) -> Option<String> {
        let mut reader = Reader::default();
        reader.push(lines.join("\n").as_bytes());
        reader.complaint(status)
    }

    #[test]
    fn success_is_status_zero_and_a_result_that_is_no_error() {
        assert_eq!(complaint(&[INIT, WORDS, GOOD], 0), None);
        assert_eq!(complaint(&["$ pip install", "\u{fffd}{", INIT, GOOD, ""], 0), None);
        assert_eq!(complaint(&[REFUSED, GOOD], 0), None, "the last result counts");
        let table = [
            (vec![INIT, WORDS], 0, "without a result"),
            (vec![INIT, WORDS], 143, "status 143 and without a result"),
            (vec![GOOD], 1, "status 1: Done."),
            (vec![INIT, REFUSED], 1, "(the model's API answered 402): API Error: 402 job budget exhausted"),
            (vec![INIT, REFUSED], 0, "API Error: 402"),
            (vec![TURNS], 1, "Reached maximum number of turns (2)"),
            (vec![BARE], 1, "error_during_execution"),
        ];
        for (lines, status, expected) in table {
            let complaint = complaint(&lines, status).expect("a complaint");
            assert!(complaint.contains(expected), "{complaint}");
        }
    }

    #[test]
    fn tokens_are_counted_once_for_each_message_and_the_result_has_the_last_word() {
        let said = |id: u32, output: u32| {
            format!(
                r#"{{"type":"assistant","message":{{"id":"msg_{id}","usage":{{"input_tokens":10,"cache_creation_input_tokens":200,"cache_read_input_tokens":9000,"output_tokens":{output}}}}}}}"#
            )
        };
        let mut reader = Reader::default();
        let mut tell = |line: &str| {
            reader.push(format!("{line}\n").as_bytes());
            reader.tokens()
        };
        assert_eq!(tell(INIT), 0);
        assert_eq!(tell(&said(1, 1)), 211);
        assert_eq!(tell(&said(1, 7)), 217, "another line about the same message");
        assert_eq!(tell(&said(2, 1)), 428);
        assert_eq!(tell(&said(1, 1)), 428, "what was told is not taken back");
        assert_eq!(tell(WORDS), 428, "without an account");
        let result = |output: u32| {
            format!(r#"{{"type":"result","subtype":"success","usage":{{"input_tokens":20,"output_tokens":{output}}}}}"#)
        };
        assert_eq!(tell(&result(4)), 428);
        assert_eq!(tell(&result(980)), 1_000);
        for id in 3..300 {
            tell(&said(id, 0));
        }
        assert_eq!(tell(INIT), 428 + 297 * 210, "however many there are");
        assert!(reader.recent.len() <= RECENT);
    }

    #[test]
    fn a_line_without_end_is_skipped_and_does_not_fill_memory() {
        let mut reader = Reader::default();
        for _ in 0..10 {
            reader.push(&vec![b'x'; 1 << 20]);
            assert!(reader.line.len() <= LINE_LIMIT);
        }
        reader.push(b"\n");
        reader.push(GOOD.as_bytes());
        assert_eq!(reader.complaint(0), None);
    }

    proptest! {
        #[test]
        fn how_the_output_is_cut_into_pieces_does_not_matter(cuts in prop::collection::vec(1..40usize, 0..40)) {
            let text = [INIT, WORDS, REFUSED, ""].join("\n");
            let mut reader = Reader::default();
            let mut rest = text.as_bytes();
            for cut in cuts {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                reader.push(piece);
                rest = after;
            }
            reader.push(rest);
            prop_assert_eq!(reader.complaint(1), complaint(&[INIT, WORDS, REFUSED, ""], 1));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let mut reader = Reader::default();
            reader.push(&bytes);
            prop_assert!(reader.complaint(1).is_some());
        }
    }
}

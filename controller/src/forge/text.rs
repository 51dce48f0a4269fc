//! Text that other people or agents wrote, made harmless before it reaches a forge.
//!
//! GitLab acts on text: a line that begins with `/` is a command of the token's user, `@name` notifies, `Closes #1`
//! closes, an HTML comment hides. [`neutral`] puts a zero-width space into each of these, so that it reads the same and
//! does nothing. It works the same in prose and in code, where an escape would show.

mod merge_request;

pub use merge_request::{MergeRequestFacts, VerificationFacts, merge_request_text};

/// What is put in. GitLab's patterns take it neither for white space nor for a letter.
const BREAK: char = '\u{200B}';

/// The words that close an issue in GitLab's default pattern, and those it does not know that look alike.
const CLOSING: [&str; 15] = [
    "close",
    "closes",
    "closed",
    "closing",
    "fix",
    "fixes",
    "fixed",
    "fixing",
    "resolve",
    "resolves",
    "resolved",
    "resolving",
    "implement",
    "implements",
    "implemented",
];

/// Makes a text say what it says and do nothing: no quick action, no mention, no reference that closes or links an
/// issue, no hidden comment, no character that hides or reorders others.
///
/// Doing it again changes nothing. Rules: GitLab's quick action extractor, user reference and issue closing patterns.
pub fn neutral(text: &str) -> String {
    let plain = plain(text);
    let broken = break_references(&plain);
    guard_lines(&broken)
}

/// Puts a break before each `/` that begins a line, within quotes and lists too.
pub(crate) fn guard_lines(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for (index, line) in text.split('\n').enumerate() {
        if index > 0 {
            safe.push('\n');
        }
        let markers =
            line.trim_start_matches(|c: char| c.is_whitespace() || ">-*+.)".contains(c) || c.is_ascii_digit());
        let (prefix, rest) = line.split_at(line.len() - markers.len());
        let at_start = prefix.is_empty() || prefix.ends_with(|c: char| c.is_whitespace() || c == '>');
        safe.push_str(prefix);
        if at_start && (rest.starts_with('/') || rest.starts_with("\\/")) {
            safe.push(BREAK);
        }
        safe.push_str(rest);
    }
    safe
}

/// Keeps a text within a number of bytes, cut between characters; what is cut is marked.
pub fn cap(text: &str, limit_bytes: usize) -> String {
    const MARK: &str = "… (cut)";
    if text.len() <= limit_bytes {
        return text.to_owned();
    }
    let wanted = limit_bytes.saturating_sub(MARK.len());
    let end = (0..=wanted).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    format!("{}{MARK}", &text[..end])
}

/// Makes a text one line of at most this many characters.
pub fn one_line(text: &str, limit_chars: usize) -> String {
    let joined = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if joined.chars().count() <= limit_chars {
        return joined;
    }
    joined.chars().take(limit_chars.saturating_sub(1)).chain(['…']).collect()
}

/// Ends every line with `\n` alone, and drops control characters and those that reorder text.
fn plain(text: &str) -> String {
    text.replace("\r\n", "\n")
        .replace(['\r', '\u{2028}', '\u{2029}'], "\n")
        .chars()
        .filter(|&c| c == '\n' || c == '\t' || !(c.is_control() || is_reordering(c)))
        .collect()
}

fn is_reordering(c: char) -> bool {
    matches!(c, '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}' | '\u{200E}' | '\u{200F}')
}

/// Breaks mentions, references, entities that would spell them, comments, and closing words.
fn break_references(text: &str) -> String {
    let mut safe = String::with_capacity(text.len() + text.len() / 16);
    let mut before = '\n';
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let (head, tail) = rest.split_at(c.len_utf8());
        safe.push_str(head);
        let word_begins = c.is_ascii_alphabetic() && !before.is_ascii_alphabetic();
        let breaks = match c {
            '@' => is_mention(before, tail),
            '#' => tail.starts_with(|next: char| next.is_ascii_digit()),
            '&' => is_entity(tail),
            '<' => tail.starts_with('!'),
            '[' => is_named_reference(tail),
            _ => word_begins && closes(rest),
        };
        if breaks {
            safe.push(BREAK);
        }
        before = c;
        rest = tail;
    }
    safe
}

/// GitLab's names follow an `@` that no ASCII letter, digit or `_` precedes.
fn is_mention(before: char, tail: &str) -> bool {
    let in_word = before.is_ascii_alphanumeric() || before == '_';
    !in_word && tail.starts_with(|next: char| !next.is_whitespace() && next != BREAK)
}

/// `&commat;` and `&#64;` are an `@` once they are rendered.
fn is_entity(tail: &str) -> bool {
    let name = tail.split(';').next().unwrap_or_default();
    name.len() < tail.len()
        && (2..=40).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'#')
}

/// `[issue:12]` and its like.
fn is_named_reference(tail: &str) -> bool {
    let name = tail.split(':').next().unwrap_or_default();
    name.len() < tail.len() && !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}

/// Says whether a closing word begins here, with an address or the key of another tracker behind it. (`#12` is broken
/// wherever it stands.)
fn closes(text: &str) -> bool {
    let end = text.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (word, tail) = text.split_at(end);
    if !CLOSING.contains(&word.to_ascii_lowercase().as_str()) && !word.eq_ignore_ascii_case("implementing") {
        return false;
    }
    let tail = tail.strip_prefix(':').unwrap_or(tail);
    let target = tail.trim_start();
    if target.len() == tail.len() {
        return false;
    }
    let target = ["issues ", "issue "]
        .iter()
        .find_map(|noun| {
            target.get(..noun.len()).filter(|found| found.eq_ignore_ascii_case(noun)).map(|_| &target[noun.len()..])
        })
        .unwrap_or(target)
        .trim_start();
    is_address(target) || is_key(target)
}

fn is_address(text: &str) -> bool {
    text.get(..4).is_some_and(|scheme| scheme.eq_ignore_ascii_case("http"))
}

/// `ABC-12`: a letter, letters, digits or `_`, a dash and a digit.
fn is_key(text: &str) -> bool {
    let Some((name, number)) = text.split_once('-') else { return false };
    name.starts_with(|first: char| first.is_ascii_alphabetic())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && number.starts_with(|digit: char| digit.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        assert_eq!(neutral(text).replace(BREAK, "·"), expected, "{text:?}");
    }

    #[test]
    fn lines_that_command_no_longer_do() {
        check("/close", "·/close");
        check("fine\n  /merge now\n", "fine\n  ·/merge now\n");
        check("a\r/close\r\n\r/assign me", "a\n·/close\n\n·/assign me");
        check("> /close\n>/close\n- /close\n1. /close", "> ·/close\n>·/close\n- ·/close\n1. ·/close");
        check("```\n/label x\n```", "```\n·/label x\n```");
        check("\\/close", "·\\/close");
        check("\u{0}/close\u{b}", "·/close");
        check("\u{2028}/close", "\n·/close");
        check("\u{a0}/close", "\u{a0}·/close");
        check("3/4 of it, see src/lib.rs", "3/4 of it, see src/lib.rs");
    }

    #[test]
    fn mentions_no_longer_notify() {
        check("@all and (@group/sub), é@x", "@·all and (@·group/sub), é@·x");
        check("mail sam@example.org", "mail sam@example.org");
        check("@\\_x \\@all @ home", "@·\\_x \\@·all @ home");
        check("&#64;all &commat;all &#x40;all a && b; c", "&·#·64;all &·commat;all &·#x40;all a && b; c");
    }

    #[test]
    fn nothing_closes_or_links_an_issue() {
        check("Closes #12, group/app#13 and #14", "Closes #·12, group/app#·13 and #·14");
        check("fixes: https://git.example.org/a/-/issues/1", "f·ixes: https://git.example.org/a/-/issues/1");
        check("Resolved issue ABC-12", "R·esolved issue ABC-12");
        check("éImplementing GL-5", "éI·mplementing GL-5");
        check("closes [issue:12]", "closes [·issue:12]");
        check("fix the well-known bug; a prefix https://x", "fix the well-known bug; a prefix https://x");
        check("# Heading\n#hash", "# Heading\n#hash");
    }

    #[test]
    fn nothing_hides() {
        check("<!-- devfleet:1 -->", "<·!-- devfleet:1 -->");
        check("a\u{202E}b\u{2066}c\u{7}d\te", "abcd\te");
    }

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(cap("short", 10), "short");
        let cut = cap(&"é".repeat(100), 50);
        assert!(cut.len() <= 50 && cut.ends_with("(cut)"), "{cut}");
        assert_eq!(one_line("a\n  b\tc", 9), "a b c");
        assert_eq!(one_line(&"é".repeat(300), 255).chars().count(), 255);
    }

    proptest! {
        #[test]
        fn neutral_texts_stay_as_they_are_and_never_begin_a_line_with_a_slash(
            text in "([ \\t\r\n/@#<!&;\\[:>*0-9a-z-]|Closes |https://|&#64;|\\PC|\u{2028}|\u{b}){0,60}"
        ) {
            let once = neutral(&text);
            prop_assert_eq!(&neutral(&once), &once);
            for line in once.split(['\n', '\r']) {
                prop_assert!(!line.trim_start().starts_with('/'), "{:?}", line);
            }
            prop_assert!(!once.contains("<!"), "{:?}", once);
            prop_assert_eq!(once.replace(BREAK, ""), plain(&text).replace(BREAK, ""));
        }
    }
}

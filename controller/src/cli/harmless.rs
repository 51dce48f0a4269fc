//! Text that came from an agent, a repository or an issue must not steer a terminal, nor read differently from what
//! it is: control characters are shown instead of obeyed, and so are marks that turn or hide text.

/// Makes control characters other than line feed and tab, bidirectional marks and invisible characters visible.
pub fn harmless(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' | '\t' => shown.push(character),
            // U+2400 and on are pictures of the C0 controls.
            '\u{0}'..='\u{1f}' => shown.extend(char::from_u32(0x2400 + u32::from(character))),
            '\u{7f}' => shown.push('\u{2421}'),
            '\u{80}'..='\u{9f}' => shown.push('\u{fffd}'),
            _ if misleads(character) => shown.push_str(&format!("<U+{:04X}>", u32::from(character))),
            _ => shown.push(character),
        }
    }
    shown
}

/// Puts a text on one line of at most `limit` characters, marking what was cut.
pub fn one_line(text: &str, limit: usize) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= limit {
        return line;
    }
    let mut short: String = line.chars().take(limit.saturating_sub(1)).collect();
    short.push('…');
    short
}

fn misleads(character: char) -> bool {
    matches!(character,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}' | '\u{2029}'
        | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
        | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_are_shown_and_not_obeyed() {
        assert_eq!(harmless("a\x1b[2Jb"), "a␛[2Jb");
        assert_eq!(harmless("\x1b]0;title\x07"), "␛]0;title␇");
        assert_eq!(harmless("\u{9b}31m"), "\u{fffd}31m");
        assert_eq!(harmless("back\x08\x7f\r"), "back␈␡␍");
        assert_eq!(harmless("kept:\n\ttabs, ümläuts, 日本, 👩‍💻"), "kept:\n\ttabs, ümläuts, 日本, 👩‍💻");
    }

    #[test]
    fn marks_that_turn_or_hide_text_are_named() {
        assert_eq!(harmless("if \u{202e}x\u{2066}"), "if <U+202E>x<U+2066>");
        assert_eq!(harmless("pay\u{200b}pal \u{e0041}"), "pay<U+200B>pal <U+E0041>");
    }

    #[test]
    fn long_titles_are_cut_and_marked() {
        assert_eq!(one_line("a  b\nc", 10), "a b c");
        assert_eq!(one_line("0123456789abc", 10), "012345678…");
    }
}

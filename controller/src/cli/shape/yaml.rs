//! A small YAML writer. It quotes whatever could be read as something else than the text it is.

use std::fmt::Write as _;

use super::Shape;

/// Writes a value as one YAML document, without the leading `---`.
pub fn to_yaml(shape: &Shape) -> String {
    let mut out = String::new();
    match shape {
        Shape::List(items) if !items.is_empty() => write_list(&mut out, items, 0),
        Shape::Record(fields) if !fields.is_empty() => write_record(&mut out, fields, 0, false),
        scalar => {
            write_scalar(&mut out, scalar, 0);
            out.push('\n');
        }
    }
    out
}

fn write_list(out: &mut String, items: &[Shape], indent: usize) {
    for item in items {
        let _ = write!(out, "{:indent$}-", "");
        match item {
            Shape::Record(fields) if !fields.is_empty() => {
                out.push(' ');
                write_record(out, fields, indent + 2, true);
            }
            other => write_value(out, other, indent),
        }
    }
}

fn write_record(out: &mut String, fields: &[(String, Shape)], indent: usize, mut begun: bool) {
    for (name, value) in fields {
        if !std::mem::take(&mut begun) {
            let _ = write!(out, "{:indent$}", "");
        }
        let key = if is_plain(name) { name.clone() } else { quoted(name) };
        let _ = write!(out, "{key}:");
        write_value(out, value, indent);
    }
}

/// Writes what stands behind `-` or `key:`, with the line's end.
fn write_value(out: &mut String, value: &Shape, indent: usize) {
    match value {
        Shape::List(items) if !items.is_empty() => {
            out.push('\n');
            write_list(out, items, indent + 2);
        }
        Shape::Record(fields) if !fields.is_empty() => {
            out.push('\n');
            write_record(out, fields, indent + 2, false);
        }
        scalar => {
            out.push(' ');
            write_scalar(out, scalar, indent + 2);
            out.push('\n');
        }
    }
}

fn write_scalar(out: &mut String, value: &Shape, indent: usize) {
    match value {
        Shape::Text(text) if is_plain(text) => out.push_str(text),
        Shape::Text(text) if indent > 0 && fits_block(text) => write_block(out, text, indent),
        Shape::Text(text) => out.push_str(&quoted(text)),
        Shape::List(_) => out.push_str("[]"),
        Shape::Record(_) => out.push_str("{}"),
        other => out.push_str(&other.to_json_line()),
    }
}

fn write_block(out: &mut String, text: &str, indent: usize) {
    out.push_str(if text.ends_with('\n') { "|" } else { "|-" });
    for line in text.strip_suffix('\n').unwrap_or(text).split('\n') {
        out.push('\n');
        if !line.is_empty() {
            let _ = write!(out, "{:indent$}{line}", "");
        }
    }
}

/// Says whether a text of several lines can stand as it is: nothing in it that needs an escape, and neither end in doubt.
fn fits_block(text: &str) -> bool {
    let body = text.strip_suffix('\n').unwrap_or(text);
    body.contains('\n')
        && !body.ends_with('\n')
        && !body.starts_with([' ', '\t', '\n'])
        && body.split('\n').all(|line| line.is_empty() || !line.trim().is_empty())
        && body.chars().all(|character| character == '\n' || !needs_escape(character))
}

fn is_plain(text: &str) -> bool {
    let reserved = ["null", "true", "false", "yes", "no", "on", "off", "y", "n"];
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'/'))
        && !reserved.contains(&text.to_ascii_lowercase().as_str())
}

fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            other if needs_escape(other) => {
                let _ = match u32::from(other) {
                    code @ 0..=0xffff => write!(out, "\\u{code:04x}"),
                    code => write!(out, "\\U{code:08x}"),
                };
            }
            other => out.push(other),
        }
    }
    out.push('"');
    out
}

fn needs_escape(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        || matches!(character, '\u{fffe}' | '\u{ffff}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::record;
    use super::*;

    #[test]
    fn a_document_reads_as_people_write_it() {
        let shape = record([
            ("id", "a3f91c20".into()),
            ("phase", "awaiting-approval".into()),
            ("moment", "2026-01-02T03:04:05Z".into()),
            ("plan", "1. read\n\n2. fix\n".into()),
            ("empty", Shape::List(vec![])),
            ("attempts", Shape::List(vec![record([("fence", 7.into()), ("nested", record([("a", Shape::Null)]))])])),
            ("list", Shape::List(vec!["no".into(), "x y".into()])),
        ]);
        let expected = r#"id: a3f91c20
phase: awaiting-approval
moment: "2026-01-02T03:04:05Z"
plan: |
  1. read

  2. fix
empty: []
attempts:
  - fence: 7
    nested:
      a: null
list:
  - "no"
  - "x y"
"#;
        assert_eq!(to_yaml(&shape), expected);
    }

    impl From<i32> for Shape {
        fn from(value: i32) -> Shape {
            Shape::Signed(i64::from(value))
        }
    }

    fn check_reads_back(shape: &Shape) {
        let yaml = to_yaml(shape);
        let back: serde_json::Value = serde_saphyr::from_str(&yaml).unwrap_or_else(|e| panic!("{e}\n{yaml}"));
        let expected: serde_json::Value = serde_json::from_str(&shape.to_json_line()).expect("valid JSON");
        assert_eq!(back, expected, "\n{yaml}");
    }

    #[test]
    fn texts_that_look_like_something_else_stay_texts() {
        for text in
            ["", "~", "null", "Yes", "0x1f", "1e3", "12", "- a", "a: b", "#c", "a #b", "{", "&a", "*a", "!t", "\t"]
        {
            check_reads_back(&record([("text", text.into())]));
        }
        for text in
            ["a\n b\n", "a\n", "\na\nb", "a\nb\n\n", " a\nb", "a\r\nb", "a\n \nb", "a\n\tb", "# a\nb", "---\nb\n..."]
        {
            check_reads_back(&record([("text", text.into())]));
            check_reads_back(&Shape::List(vec![text.into(), "next".into()]));
        }
    }

    fn any_shape() -> impl Strategy<Value = Shape> {
        let leaf = prop_oneof![
            Just(Shape::Null),
            any::<bool>().prop_map(Shape::Bool),
            any::<u32>().prop_map(Shape::from),
            any::<String>().prop_map(Shape::Text),
            "[a-z \n:#-]{0,20}".prop_map(Shape::Text),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Shape::List),
                prop::collection::btree_map("[a-z_]{1,8}|\\PC{1,4}", inner, 0..4)
                    .prop_map(|fields| Shape::Record(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn whatever_is_written_is_read_back(shape in any_shape()) {
            check_reads_back(&record([("root", shape)]));
        }
    }
}

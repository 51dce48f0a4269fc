//! YAML as GitLab reads it, into a small tree that knows its lines.
//!
//! GitLab reads with Psych: YAML 1.1 scalars (`yes`, `0755`, `1:30`), duplicate keys where the last one wins, and `<<`
//! that overrides what stands above it. A [`Budget`] bounds time and memory: an alias costs what it stands for.

use std::collections::{BTreeMap, BTreeSet};

use granit_parser::{Event, Parser, ScalarStyle, ScanError, Span};

use super::DerivationError;

/// The nesting that a document may have; GitLab's own limit is 100 as well.
pub(super) const MAX_DEPTH: usize = 100;
/// The bytes that one file may have.
pub(super) const MAX_FILE_BYTES: usize = 1024 * 1024;
/// What all values together may cost, in bytes: about 64 a value and its text.
const MAX_COST_BYTES: usize = 32 * 1024 * 1024;

/// How many keys that stand twice are worth telling.
const MAX_DUPLICATES: usize = 20;

/// Where a value stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Place {
    /// The index of the file.
    pub(super) file: usize,
    /// The line, from 1.
    pub(super) line: usize,
}

/// A value and its place.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) place: Place,
}

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Null,
    Bool(bool),
    /// A number, as Ruby would write it.
    Number(String),
    Text(String),
    List(Vec<Node>),
    Map(Map),
    /// `!reference [job, keyword]`, not yet resolved.
    Reference(Vec<String>),
}

/// A mapping that keeps the order of its keys.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Map {
    entries: Vec<(String, Node)>,
    index: BTreeMap<String, usize>,
}

impl Map {
    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        self.index.get(key).and_then(|at| self.entries.get(*at)).map(|(_, node)| node)
    }

    /// Sets a key. An existing key keeps its position, as in Ruby.
    pub(super) fn insert(&mut self, key: String, node: Node) {
        match self.index.get(&key).and_then(|at| self.entries.get_mut(*at)) {
            Some((_, old)) => *old = node,
            None => {
                self.index.insert(key.clone(), self.entries.len());
                self.entries.push((key, node));
            }
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.entries.iter().map(|(key, node)| (key.as_str(), node))
    }
}

impl Node {
    /// Returns the text of a scalar; that of null is empty.
    pub(super) fn text(&self) -> Option<String> {
        match &self.value {
            Value::Null => Some(String::new()),
            Value::Bool(value) => Some(value.to_string()),
            Value::Number(text) | Value::Text(text) => Some(text.clone()),
            Value::List(_) | Value::Map(_) | Value::Reference(_) => None,
        }
    }

    pub(super) fn map(&self) -> Option<&Map> {
        match &self.value {
            Value::Map(map) => Some(map),
            _ => None,
        }
    }

    pub(super) fn list(&self) -> Option<&[Node]> {
        match &self.value {
            Value::List(items) => Some(items),
            _ => None,
        }
    }

    /// Looks up a key of a mapping.
    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        self.map().and_then(|map| map.get(key))
    }

    pub(super) fn is_null(&self) -> bool {
        self.value == Value::Null
    }

    /// Returns the texts of a list of scalars, or of one scalar.
    pub(super) fn texts(&self) -> Vec<String> {
        match &self.value {
            Value::List(items) => items.iter().filter_map(Node::text).collect(),
            Value::Null => Vec::new(),
            _ => self.text().into_iter().collect(),
        }
    }

    /// What copying it costs, in bytes, and how deep it is.
    fn size(&self) -> (usize, usize) {
        let inner = |nodes: &mut dyn Iterator<Item = (usize, &Node)>| {
            nodes.fold((64, 1), |(cost, depth), (key, node)| {
                let (more, below) = node.size();
                (cost + key + more, depth.max(below + 1))
            })
        };
        match &self.value {
            Value::List(items) => inner(&mut items.iter().map(|node| (0, node))),
            Value::Map(map) => inner(&mut map.iter().map(|(key, node)| (key.len() * 2, node))),
            Value::Text(text) | Value::Number(text) => (64 + text.len(), 1),
            Value::Reference(path) => (64 + path.iter().map(String::len).sum::<usize>(), 1),
            Value::Null | Value::Bool(_) => (64, 1),
        }
    }
}

/// What may still be spent on values.
#[derive(Debug)]
pub(super) struct Budget {
    left_bytes: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { left_bytes: MAX_COST_BYTES }
    }
}

/// The budget is spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spent;

impl Spent {
    /// Says it to people.
    pub(super) fn in_file(self, file: &str) -> DerivationError {
        DerivationError::TooLarge {
            file: file.to_owned(),
            what: "the size of the configuration in bytes, with all anchors and includes put in,".to_owned(),
            limit: MAX_COST_BYTES,
        }
    }
}

impl Budget {
    pub(super) fn spend(&mut self, bytes: usize) -> Result<(), Spent> {
        self.left_bytes = self.left_bytes.checked_sub(bytes).ok_or(Spent)?;
        Ok(())
    }

    /// Copies a value, if that can be afforded.
    pub(super) fn copy(&mut self, node: &Node) -> Result<Node, Spent> {
        self.spend(node.size().0)?;
        Ok(node.clone())
    }
}

/// The documents of one file, and the keys that stand twice.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    pub(super) documents: Vec<Node>,
    pub(super) duplicates: Vec<(String, usize)>,
}

/// A file to parse.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) name: &'a str,
    pub(super) index: usize,
    pub(super) text: &'a str,
}

impl Source<'_> {
    fn invalid(&self, line: usize, problem: impl Into<String>) -> DerivationError {
        DerivationError::InvalidYaml { file: self.name.to_owned(), line, problem: problem.into() }
    }
}

/// Parses a file; a reader of more than two documents has no use for them.
pub(super) fn parse(source: Source<'_>, budget: &mut Budget) -> Result<Parsed, DerivationError> {
    if source.text.len() > MAX_FILE_BYTES {
        let what = "its size in bytes".to_owned();
        return Err(DerivationError::TooLarge { file: source.name.to_owned(), what, limit: MAX_FILE_BYTES });
    }
    let mut options = granit_parser::options! {
        block_nesting_limit: MAX_DEPTH,
        flow_nesting_limit: MAX_DEPTH,
    };
    options.set_emit_comments(false);
    let mut builder =
        Builder { source, budget, frames: Vec::new(), anchors: BTreeMap::new(), parsed: Parsed::default() };
    for event in Parser::new_from_str_with_options(source.text, options) {
        let (event, span) = event.map_err(|error: ScanError| source.invalid(error.marker().line(), error.info()))?;
        builder.take(event, span)?;
        if builder.parsed.documents.len() == 2 {
            break;
        }
    }
    Ok(builder.parsed)
}

/// A collection that is not complete yet.
struct Frame {
    value: Value,
    key: Option<(String, bool)>,
    /// The keys that stand in the mapping itself, not in what it merges.
    own: BTreeSet<String>,
    anchor: usize,
    line: usize,
}

struct Builder<'a> {
    source: Source<'a>,
    budget: &'a mut Budget,
    frames: Vec<Frame>,
    anchors: BTreeMap<usize, Node>,
    parsed: Parsed,
}

impl Builder<'_> {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), DerivationError> {
        let line = span.start.line();
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain && tag.as_ref().is_none_or(|tag| tag.suffix() != "str");
                let value = if plain { resolve(&text) } else { Value::Text(text.into_owned()) };
                let merge = plain && matches!(&value, Value::Text(text) if text == "<<");
                self.add(value, anchor, line, merge)
            }
            Event::Alias(id) => {
                let Some(node) = self.anchors.get(&id) else {
                    return Err(self.source.invalid(line, "the alias stands inside of what it refers to"));
                };
                let (cost, depth) = node.size();
                if depth + self.frames.len() > MAX_DEPTH {
                    return Err(self.source.invalid(line, format!("values are nested more than {MAX_DEPTH} deep")));
                }
                self.budget.spend(cost).map_err(|spent| spent.in_file(self.source.name))?;
                let value = node.value.clone();
                self.add(value, 0, line, false)
            }
            Event::SequenceStart(_, anchor, tag) => {
                let reference = tag.is_some_and(|tag| tag.suffix() == "reference");
                let value = if reference { Value::Reference(Vec::new()) } else { Value::List(Vec::new()) };
                self.frames.push(Frame { value, key: None, own: BTreeSet::new(), anchor, line });
                Ok(())
            }
            Event::MappingStart(_, anchor, _) => {
                let value = Value::Map(Map::default());
                self.frames.push(Frame { value, key: None, own: BTreeSet::new(), anchor, line });
                Ok(())
            }
            Event::SequenceEnd | Event::MappingEnd => match self.frames.pop() {
                Some(frame) => self.add(frame.value, frame.anchor, frame.line, false),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// Puts a complete value where it belongs.
    fn add(&mut self, value: Value, anchor: usize, line: usize, merge: bool) -> Result<(), DerivationError> {
        let node = Node { value, place: Place { file: self.source.index, line } };
        let text_len = match &node.value {
            Value::Text(text) | Value::Number(text) => text.len(),
            _ => 0,
        };
        let spent = self.budget.spend(64 + text_len);
        let spent = spent.and_then(|()| if anchor > 0 { self.budget.spend(node.size().0) } else { Ok(()) });
        spent.map_err(|spent| spent.in_file(self.source.name))?;
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        let Some(frame) = self.frames.last_mut() else {
            self.parsed.documents.push(node);
            return Ok(());
        };
        match &mut frame.value {
            Value::List(items) => items.push(node),
            Value::Reference(path) => match node.value {
                Value::Reference(more) => path.extend(more),
                _ => path.extend(node.text()),
            },
            Value::Map(map) => match frame.key.take() {
                None => match node.text() {
                    Some(key) => frame.key = Some((key, merge)),
                    None => return Err(self.source.invalid(line, "a key has to be plain text")),
                },
                Some((_, true)) if merges(&node) => merge_into(map, node),
                Some((key, _)) => {
                    if !frame.own.insert(key.clone()) && self.parsed.duplicates.len() < MAX_DUPLICATES {
                        self.parsed.duplicates.push((key.clone(), line));
                    }
                    map.insert(key, node);
                }
            },
            _ => {}
        }
        Ok(())
    }
}

/// Whether the value of `<<` can be merged; otherwise `<<` is a key like any other.
fn merges(node: &Node) -> bool {
    match &node.value {
        Value::Map(_) => true,
        Value::List(items) => !items.is_empty() && items.iter().all(|item| item.map().is_some()),
        _ => false,
    }
}

/// Merges as Psych does: over what stands above, and of a list the first one wins.
fn merge_into(map: &mut Map, node: Node) {
    match node.value {
        Value::Map(other) => {
            for (key, node) in other.entries {
                map.insert(key, node);
            }
        }
        Value::List(items) => items.into_iter().rev().for_each(|item| merge_into(map, item)),
        _ => {}
    }
}

/// Resolves a plain scalar by the rules of YAML 1.1, as Psych applies them.
fn resolve(text: &str) -> Value {
    match text.to_ascii_lowercase().as_str() {
        "" | "~" | "null" => return Value::Null,
        "yes" | "true" | "on" => return Value::Bool(true),
        "no" | "false" | "off" => return Value::Bool(false),
        _ => {}
    }
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let sign = if text.starts_with('-') { -1 } else { 1 };
    if !digits.starts_with(|first: char| first.is_ascii_digit() || first == '.') {
        return Value::Text(text.to_owned());
    }
    let number = sexagesimal(digits).or_else(|| integer(digits)).map(|value| (sign * value).to_string());
    match number.or_else(|| float(text)) {
        Some(number) => Value::Number(number),
        None => Value::Text(text.to_owned()),
    }
}

/// Reads `1:30` and `1:30:15`. Psych takes the first part for hours in both.
fn sexagesimal(digits: &str) -> Option<i64> {
    let parts: Vec<&str> = digits.split(':').collect();
    if !(2..=3).contains(&parts.len()) {
        return None;
    }
    let mut total: i64 = 0;
    for (at, part) in parts.iter().enumerate() {
        let tail_fits = at == 0 || (part.len() <= 2 && part.parse::<u8>().is_ok_and(|value| value < 60));
        let all_digits = part.bytes().all(|byte| byte.is_ascii_digit() || (at == 0 && byte == b'_'));
        if !tail_fits || !all_digits || !part.starts_with(|first: char| first.is_ascii_digit()) {
            return None;
        }
        let value: i64 = part.replace('_', "").parse().ok()?;
        let weight = [3600, 60, 1].get(at).copied()?;
        total = total.checked_add(value.checked_mul(weight)?)?;
    }
    Some(total)
}

/// Reads decimal, `0755`, `0b1` and `0x1f`, with `_` and `,` between digits.
fn integer(digits: &str) -> Option<i64> {
    let clean: String = digits.chars().filter(|digit| !matches!(digit, '_' | ',')).collect();
    let radix = |prefix: &str, radix: u32| {
        let rest = clean.strip_prefix(prefix)?;
        i64::from_str_radix(rest, radix).ok().filter(|_| !rest.starts_with(['+', '-']))
    };
    if let Some(value) = radix("0x", 16).or_else(|| radix("0b", 2)) {
        return Some(value);
    }
    if clean.len() > 1 && clean.starts_with('0') {
        return radix("0", 8);
    }
    let well_formed = digits.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'_' | b','));
    let separated = !digits.ends_with(['_', ',']) && !["__", ",,", "_,", ",_"].iter().any(|two| digits.contains(two));
    if well_formed && separated { clean.parse().ok() } else { None }
}

/// Reads `3.10`, `.5`, `1.` and `1.5e+3`; an exponent needs its sign and the point.
fn float(text: &str) -> Option<String> {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (text, None),
    };
    let (whole, fraction) = mantissa.split_once('.')?;
    let whole = whole.strip_prefix(['-', '+']).unwrap_or(whole);
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let whole_fits = whole.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'_' | b','));
    let exponent_fits =
        exponent.is_none_or(|text| text.starts_with(['+', '-']) && text.len() > 1 && digits(&text[1..]));
    if !whole_fits || !digits(fraction) || !exponent_fits || (whole.is_empty() && fraction.is_empty()) {
        return None;
    }
    let value: f64 = text.replace(['_', ','], "").parse().ok()?;
    Some(format!("{value:?}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Node {
        let source = Source { name: "ci.yml", index: 0, text };
        let mut parsed = parse(source, &mut Budget::default()).expect("it is YAML");
        parsed.documents.remove(0)
    }

    fn failure(text: &str) -> DerivationError {
        let source = Source { name: "ci.yml", index: 0, text };
        parse(source, &mut Budget::default()).expect_err("it is refused")
    }

    #[test]
    fn plain_scalars_are_read_as_ruby_reads_them() {
        let table = [
            ("yes", "true"),
            ("Off", "false"),
            ("~", ""),
            ("0755", "493"),
            ("089", "089"),
            ("1:30", "5400"),
            ("1:30:15", "5415"),
            ("1:75", "1:75"),
            ("3.10", "3.1"),
            ("1.", "1.0"),
            (".5", "0.5"),
            ("3.10.1", "3.10.1"),
            ("1e3", "1e3"),
            ("1.5e+3", "1500.0"),
            ("1_000", "1000"),
            ("1,000", "1000"),
            ("0x1f", "31"),
            ("0b101", "5"),
            ("-12", "-12"),
            ("0o17", "0o17"),
            ("12", "12"),
            ("node:20", "node:20"),
            ("2026-11-24", "2026-11-24"),
            ("1__0", "1__0"),
            (".", "."),
            ("-", "-"),
        ];
        for (written, meant) in table {
            let value = if written == "-" {
                resolve(written)
            } else {
                read(&format!("k: {written}")).get("k").expect("k").value.clone()
            };
            let node = Node { value, place: Place::default() };
            assert_eq!(node.text().as_deref(), Some(meant), "{written}");
        }
        assert_eq!(read("k: '3.10'").get("k").and_then(Node::text).as_deref(), Some("3.10"));
        assert_eq!(read("k: !!str 3.10").get("k").and_then(Node::text).as_deref(), Some("3.10"));
    }

    #[test]
    fn of_two_equal_keys_the_last_one_wins_and_both_are_reported() {
        let source = Source { name: "ci.yml", index: 0, text: "b: &m {x: 1}\na: {<<: *m, x: 2}\na: 3\n" };
        let parsed = parse(source, &mut Budget::default()).expect("it is YAML");
        assert_eq!(parsed.documents[0].get("a").and_then(Node::text).as_deref(), Some("3"));
        assert_eq!(parsed.duplicates, [("a".to_owned(), 3)], "a merged key is not one that stands twice");
    }

    #[test]
    fn merge_keys_override_what_stands_above_and_yield_to_what_stands_below() {
        let node = read("b: &b {x: base, y: base, z: base}\nj:\n  x: above\n  <<: *b\n  y: below\n");
        let job = node.get("j").expect("j");
        let text = |key: &str| job.get(key).and_then(Node::text).expect("text");
        assert_eq!((text("x"), text("y"), text("z")), ("base".into(), "below".into(), "base".into()));
        let node = read("a: &a {x: first}\nb: &b {x: second, y: second}\nj:\n  <<: [*a, *b]\n");
        let job = node.get("j").expect("j");
        assert_eq!(job.get("x").and_then(Node::text).as_deref(), Some("first"));
        assert_eq!(job.get("y").and_then(Node::text).as_deref(), Some("second"));
    }

    #[test]
    fn two_merge_keys_in_one_mapping_both_count() {
        let node = read("a: &a {x: 1}\nb: &b {y: 2}\nj:\n  <<: *a\n  <<: *b\n");
        let job = node.get("j").expect("j");
        assert!(job.get("x").is_some() && job.get("y").is_some());
    }

    #[test]
    fn references_are_kept_for_later() {
        let node = read("j:\n  script:\n    - !reference [.a, script]\n    - b\n");
        let script = node.get("j").and_then(|job| job.get("script")).and_then(Node::list).expect("script");
        assert_eq!(script[0].value, Value::Reference(vec![".a".into(), "script".into()]));
        assert_eq!((script[1].place.line, script[1].text().as_deref()), (4, Some("b")));
    }

    #[test]
    fn a_mistake_is_reported_with_its_line() {
        let DerivationError::InvalidYaml { line, .. } = failure("a: 1\nb: [1, 2\nc: 3\n") else { panic!("wrong kind") };
        assert!((2..=4).contains(&line), "{line}");
        assert!(matches!(failure("a: *nothing\n"), DerivationError::InvalidYaml { line: 1, .. }));
        assert!(matches!(failure("a: &a [*a]\n"), DerivationError::InvalidYaml { .. }));
    }

    #[test]
    fn alias_bombs_deep_nesting_and_large_files_are_refused() {
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..30 {
            let inner = vec![format!("*a{}", level - 1); 10].join(", ");
            bomb.push_str(&format!("a{level}: &a{level} [{inner}]\n"));
        }
        assert!(matches!(failure(&bomb), DerivationError::TooLarge { .. }));
        let mut tower = String::from("a0: &a0 [x]\n");
        for level in 1..200 {
            tower.push_str(&format!("a{level}: &a{level} [*a{}]\n", level - 1));
        }
        assert!(matches!(failure(&tower), DerivationError::InvalidYaml { .. }));
        assert!(matches!(failure(&"[".repeat(100_000)), DerivationError::InvalidYaml { .. }));
        assert!(matches!(failure(&"#".repeat(MAX_FILE_BYTES + 1)), DerivationError::TooLarge { .. }));
        let long = format!("a: &a {}\nb: [{}]\n", "x".repeat(500_000), vec!["*a"; 1000].join(", "));
        assert!(matches!(failure(&long), DerivationError::TooLarge { .. }));
    }

    /// Values of any shape, as JSON, which is YAML too.
    fn json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i32>().prop_map(Into::into),
            "\\PC{0,20}".prop_map(Into::into),
        ];
        leaf.prop_recursive(6, 64, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
                prop::collection::btree_map("[a-z]{1,6}", inner, 0..6)
                    .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
            ]
        })
    }

    fn same(node: &Node, json: &serde_json::Value) -> bool {
        match (&node.value, json) {
            (Value::Null, serde_json::Value::Null) => true,
            (Value::Bool(one), serde_json::Value::Bool(other)) => one == other,
            (Value::Number(one), serde_json::Value::Number(other)) => *one == other.to_string(),
            (Value::Text(one), serde_json::Value::String(other)) => one == other,
            (Value::List(one), serde_json::Value::Array(other)) => {
                one.len() == other.len() && one.iter().zip(other).all(|(node, json)| same(node, json))
            }
            (Value::Map(one), serde_json::Value::Object(other)) => {
                one.iter().count() == other.len()
                    && other.iter().all(|(key, json)| one.get(key).is_some_and(|node| same(node, json)))
            }
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn every_value_is_read_as_what_it_is(json in json()) {
            let compact = json.to_string();
            prop_assert!(same(&read(&compact), &json), "{compact}");
            let tall = serde_json::to_string_pretty(&json).expect("JSON");
            prop_assert!(same(&read(&tall), &json), "{tall}");
        }

        #[test]
        fn any_text_is_read_or_refused_at_one_of_its_lines(text in "[a-c &*<:?!|>{}\\[\\]'\"\\\\#,.~%@0-9\n-]{0,120}") {
            let parsed = || parse(Source { name: "ci.yml", index: 0, text: &text }, &mut Budget::default());
            match parsed() {
                Ok(parsed) => prop_assert!(parsed.documents.len() <= text.lines().count() + 1),
                Err(DerivationError::InvalidYaml { line, .. } | DerivationError::InvalidConfig { line, .. }) => {
                    prop_assert!((1..=text.lines().count() + 2).contains(&line), "line {line} of {text:?}");
                }
                Err(other) => prop_assert!(matches!(other, DerivationError::TooLarge { .. }), "{other}"),
            }
        }
    }
}

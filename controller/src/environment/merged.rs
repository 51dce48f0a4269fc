//! The CI configuration as one document, whether the forge merged it or we have to.
//!
//! ```text
//! Merged ─────────────────────────────────────────────────┐
//! Raw ─ includes (under the file) ─ extends ─ !reference ─┴─▶ Document
//! ```
//!
//! The order is GitLab's own (`Gitlab::Ci::Config`). Of a merged document `extends` is left alone: it has been applied.

mod extends;
mod includes;

use super::DerivationError;
use super::yaml::{Budget, Map, Node, Parsed, Place, Source, Value, parse};
use crate::forge::CiConfig;

/// The keys at the top that are no jobs.
const GLOBAL_KEYWORDS: [&str; 13] = [
    "after_script",
    "before_script",
    "cache",
    "default",
    "image",
    "include",
    "services",
    "spec",
    "stages",
    "types",
    "variables",
    "workflow",
    "component",
];

/// The merged configuration.
#[derive(Debug, Default)]
pub(super) struct Document {
    /// Global keywords and jobs.
    pub(super) root: Map,
    /// The file names that places refer to.
    pub(super) files: Vec<String>,
    /// What a person should know about how it was read.
    pub(super) notes: Vec<String>,
    /// Whether something was included that could not be read.
    pub(super) incomplete: bool,
    /// Whether the forge calls the configuration invalid.
    pub(super) flawed: bool,
}

impl Document {
    /// Says where a place is, for people: `.gitlab-ci.yml:12`.
    pub(super) fn place(&self, place: Place) -> String {
        format!("{}:{}", self.file(place), place.line)
    }

    /// The main file's name.
    pub(super) fn main(&self) -> String {
        self.file(Place::default()).to_owned()
    }

    fn file(&self, place: Place) -> &str {
        self.files.get(place.file).map_or("the CI configuration", String::as_str)
    }

    /// The jobs, hidden ones among them, in the order of the document.
    pub(super) fn jobs(&self) -> impl Iterator<Item = (&str, &Map)> {
        let jobs = self.root.iter().filter(|(name, _)| !GLOBAL_KEYWORDS.contains(name));
        jobs.filter_map(|(name, node)| node.map().map(|job| (name, job)))
    }

    /// Whether a key at the top is a keyword of GitLab's and no job.
    pub(super) fn is_keyword(&self, name: &str) -> bool {
        GLOBAL_KEYWORDS.contains(&name)
    }

    fn invalid(&self, place: Place, problem: String) -> DerivationError {
        DerivationError::InvalidConfig { file: self.file(place).to_owned(), line: place.line, problem }
    }
}

/// Reads a configuration.
pub(super) fn read(config: &CiConfig) -> Result<Document, DerivationError> {
    let mut document = merge(config)?;
    for flaw in super::check::flaws(&document) {
        document.flawed = true;
        let known = document.notes.iter().any(|note| note.contains(&flaw));
        if !known {
            document.notes.push(format!("GitLab would refuse the CI configuration: {flaw}"));
        }
    }
    Ok(document)
}

fn merge(config: &CiConfig) -> Result<Document, DerivationError> {
    let mut budget = Budget::default();
    match config {
        CiConfig::Merged { yaml, errors, warnings, files } => {
            let name = match files.as_slice() {
                [] => ".gitlab-ci.yml (merged)".to_owned(),
                [one] => format!("{one} (merged)"),
                [one, more @ ..] => format!("{one} (merged with {} more)", more.len()),
            };
            let mut document = Document { files: vec![name.clone()], ..Document::default() };
            document.flawed = !errors.is_empty();
            document
                .notes
                .extend(errors.iter().map(|text| format!("GitLab calls the CI configuration invalid: {text}")));
            document
                .notes
                .extend(warnings.iter().map(|text| format!("GitLab warns about the CI configuration: {text}")));
            let parsed = parse(Source { name: &name, index: 0, text: yaml }, &mut budget)?;
            document.root = content(parsed, &mut document)?;
            Ok(document)
        }
        CiConfig::Raw { path, files, notes } => {
            // Reading the includes says anew, with its line, what the forge could not read.
            let unread = |note: &&String| note.starts_with("include of ") && note.contains(" is not read");
            let notes = notes.iter().filter(|note| !unread(note) || note.contains("too ")).cloned().collect();
            let mut document = Document { notes, ..Document::default() };
            document.root = includes::read(path, files, &mut document, &mut budget)?;
            extends::apply(&mut document, &mut budget)?;
            Ok(document)
        }
    }
}

/// Takes the configuration out of a parsed file: after a header document with `spec:` it is the second one.
fn content(parsed: Parsed, document: &mut Document) -> Result<Map, DerivationError> {
    for (key, line) in &parsed.duplicates {
        document
            .notes
            .push(format!("the key `{key}` stands twice (the second time in line {line}); the last one counts"));
    }
    let mut documents = parsed.documents.into_iter();
    let first = documents.next();
    let header = first.as_ref().and_then(|node| node.get("spec")).cloned();
    let node = match (header, documents.next()) {
        (Some(spec), Some(mut second)) => {
            put_inputs(&mut second, &spec);
            Some(second)
        }
        _ => first,
    };
    match node {
        None => Ok(Map::default()),
        Some(Node { value: Value::Null, .. }) => Ok(Map::default()),
        Some(Node { value: Value::Map(map), .. }) => Ok(map),
        Some(node) => {
            let problem = "the configuration has to be a mapping of jobs, `job: {script: [...]}`".to_owned();
            Err(document.invalid(node.place, problem))
        }
    }
}

/// Puts the defaults of `spec:inputs` where `$[[ inputs.name ]]` stands. Inputs without a default stay as they are.
fn put_inputs(node: &mut Node, spec: &Node) {
    match &mut node.value {
        Value::Text(text) if text.contains("$[[") => *text = with_inputs(text, spec),
        Value::List(items) => items.iter_mut().for_each(|item| put_inputs(item, spec)),
        Value::Map(map) => {
            let entries: Vec<(String, Node)> = map.iter().map(|(key, node)| (key.to_owned(), node.clone())).collect();
            let mut renewed = Map::default();
            for (key, mut node) in entries {
                put_inputs(&mut node, spec);
                renewed.insert(with_inputs(&key, spec), node);
            }
            *map = renewed;
        }
        _ => {}
    }
}

fn with_inputs(text: &str, spec: &Node) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("$[[") {
        out.push_str(before);
        let Some((expression, tail)) = after.split_once("]]") else {
            out.push_str("$[[");
            rest = after;
            continue;
        };
        let name = expression.split('|').next().unwrap_or_default().trim();
        let input = name.strip_prefix("inputs.").and_then(|name| spec.get("inputs")?.get(name)?.get("default")?.text());
        match input {
            Some(default) => out.push_str(&default),
            None => out.push_str(&format!("$[[{expression}]]")),
        }
        rest = tail;
    }
    out.push_str(rest);
    out
}

//! Reads a CI configuration from a repository: the main file and what it includes from there, transitively.
//!
//! Nothing is merged here. What cannot be read (other projects, templates, variables in a path) is said in a note.

use std::collections::{BTreeSet, VecDeque};

use async_trait::async_trait;
use serde_json::Value;

use super::{CiConfig, ForgeError};

/// GitLab's own limit of included files.
const MAX_FILES: usize = 150;
/// The most text that is read altogether.
const MAX_BYTES: usize = 8 << 20;
/// The most `*` in a pattern: each multiplies the work.
const MAX_STARS: usize = 6;

/// The files of a repository at one commit.
#[async_trait]
pub(super) trait Files: Send + Sync {
    /// Reads a file; `None` if it does not exist.
    async fn read(&self, path: &str) -> Result<Option<Vec<u8>>, ForgeError>;
    /// Lists every path; `None` where that cannot be had.
    async fn list(&self) -> Result<Option<Vec<String>>, ForgeError>;
}

/// What one `include` entry asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Include {
    /// A path of this repository, without the slash before it.
    Local(String),
    /// A pattern of paths of this repository.
    Pattern(String),
    /// Something else, as people would name it.
    Elsewhere(String),
}

/// Reads the main file and all it includes from the same repository; `None` if there is no main file.
pub(super) async fn gather(main: &str, files: &dyn Files, notes: Vec<String>) -> Result<Option<CiConfig>, ForgeError> {
    let Some(text) = files.read(main).await? else { return Ok(None) };
    let mut gathered = Gathered { files: Vec::new(), seen: BTreeSet::from([main.to_owned()]), bytes: 0, notes };
    let mut waiting = gathered.take(main, &text);
    while let Some(include) = waiting.pop_front() {
        match include {
            Include::Elsewhere(what) => gathered.notes.push(format!("include of {what} is not read")),
            Include::Pattern(pattern) => match files.list().await? {
                Some(paths) => {
                    waiting.extend(paths.into_iter().filter(|path| matches(&pattern, path)).map(Include::Local))
                }
                None => gathered.notes.push(format!("include of {pattern} is not read: it is a pattern")),
            },
            Include::Local(path) if !gathered.seen.insert(path.clone()) => {}
            Include::Local(path) if gathered.is_full() => {
                gathered
                    .notes
                    .push(format!("include of {path} is not read: there are too many files, or too large ones"));
                break;
            }
            Include::Local(path) => match files.read(&path).await? {
                Some(text) => waiting.extend(gathered.take(&path, &text)),
                None => gathered.notes.push(format!("include of {path} is not read: the file does not exist")),
            },
        }
    }
    Ok(Some(CiConfig::Raw { path: main.to_owned(), files: gathered.files, notes: gathered.notes }))
}

struct Gathered {
    files: Vec<(String, String)>,
    seen: BTreeSet<String>,
    bytes: usize,
    notes: Vec<String>,
}

impl Gathered {
    fn is_full(&self) -> bool {
        self.files.len() > MAX_FILES || self.bytes > MAX_BYTES
    }

    /// Keeps a file and returns what it includes.
    fn take(&mut self, path: &str, bytes: &[u8]) -> VecDeque<Include> {
        let text = String::from_utf8_lossy(bytes).into_owned();
        self.bytes += text.len();
        let found = includes(&text).unwrap_or_else(|error| {
            self.notes.push(format!("the includes of {path} are not read: {error}"));
            Vec::new()
        });
        self.files.push((path.to_owned(), text));
        found.into()
    }
}

#[derive(Default, serde::Deserialize)]
struct Document {
    #[serde(default)]
    include: Value,
}

/// Finds what a file includes. A header document (`spec:`) before the configuration is read too, and has none.
fn includes(text: &str) -> Result<Vec<Include>, String> {
    let options = serde_saphyr::options! { duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::LastWins };
    let documents: Vec<Option<Document>> = serde_saphyr::from_multiple_with_options(text, options)
        .map_err(|error| error.to_string().lines().next().unwrap_or_default().to_owned())?;
    let values = documents.into_iter().flatten().map(|document| document.include);
    let entries = values.flat_map(|value| match value {
        Value::Array(entries) => entries,
        Value::Null => Vec::new(),
        entry => vec![entry],
    });
    Ok(entries.flat_map(|entry| include(&entry)).collect())
}

fn include(entry: &Value) -> Vec<Include> {
    if let Value::String(location) = entry {
        return vec![if location.contains("://") { Include::Elsewhere(location.clone()) } else { local(location) }];
    }
    if let Some(Value::String(location)) = entry.get("local") {
        return vec![local(location)];
    }
    let kinds = ["remote", "template", "component", "artifact", "project"];
    let found =
        kinds.iter().find_map(|kind| entry.get(kind).and_then(Value::as_str).map(|what| format!("{kind} {what}")));
    vec![Include::Elsewhere(found.unwrap_or_else(|| "an entry of unknown form".to_owned()))]
}

fn local(location: &str) -> Include {
    let path = location.trim_start_matches("./").trim_start_matches('/');
    if path.is_empty()
        || path.contains('$')
        || path.split('/').any(|part| part == "..")
        || path.matches('*').count() > MAX_STARS
    {
        Include::Elsewhere(location.to_owned())
    } else if path.contains('*') {
        Include::Pattern(path.to_owned())
    } else {
        Include::Local(path.to_owned())
    }
}

/// Matches a path with a pattern in which `*` stands for anything but `/`, and `**` for anything.
fn matches(pattern: &str, path: &str) -> bool {
    if let Some(rest) = pattern.strip_prefix("**") {
        let rest = rest.strip_prefix('/').unwrap_or(rest);
        return (0..=path.len()).filter(|&at| path.is_char_boundary(at)).any(|at| matches(rest, &path[at..]));
    }
    if let Some(rest) = pattern.strip_prefix('*') {
        let end = path.find('/').unwrap_or(path.len());
        return (0..=end).filter(|&at| path.is_char_boundary(at)).any(|at| matches(rest, &path[at..]));
    }
    match (pattern.chars().next(), path.chars().next()) {
        (None, None) => true,
        (Some(wanted), Some(found)) if wanted == found => {
            matches(&pattern[wanted.len_utf8()..], &path[found.len_utf8()..])
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &[Include]) {
        assert_eq!(includes(text).as_deref(), Ok(expected), "{text}");
    }

    #[test]
    fn every_form_of_include_is_understood() {
        let local = |path: &str| Include::Local(path.to_owned());
        let elsewhere = |what: &str| Include::Elsewhere(what.to_owned());
        check("include: /ci/a.yml\n", &[local("ci/a.yml")]);
        check("include: {local: ci/a.yml}\n", &[local("ci/a.yml")]);
        check("include: [a.yml, {local: /b.yml, rules: [{if: x}]}]\n", &[local("a.yml"), local("b.yml")]);
        check("include: https://x.example/a.yml\n", &[elsewhere("https://x.example/a.yml")]);
        check("include: [{project: g/p, file: a.yml}]\n", &[elsewhere("project g/p")]);
        check("include: [{template: Ruby.yml}]\n", &[elsewhere("template Ruby.yml")]);
        check("include: {local: \"$DIR/a.yml\"}\n", &[elsewhere("$DIR/a.yml")]);
        check("include: {local: ../a.yml}\n", &[elsewhere("../a.yml")]);
        check("include: {local: 'ci/**/*.yml'}\n", &[Include::Pattern("ci/**/*.yml".to_owned())]);
        check("include: 7\n", &[elsewhere("an entry of unknown form")]);
        check("test: {script: make}\n", &[]);
        check("", &[]);
    }

    #[test]
    fn what_else_stands_in_a_file_does_not_disturb() {
        let local = Include::Local("a.yml".to_owned());
        check("spec: {inputs: {x: {}}}\n---\ninclude: a.yml\n", std::slice::from_ref(&local));
        check(
            "a: &x {b: c}\nd: {<<: *x}\ne: !reference [a, b]\nvariables: {A: b}\nvariables: {C: d}\ninclude: a.yml\n",
            &[local],
        );
        assert!(includes("a: [\n").is_err());
    }

    #[test]
    fn patterns_match_as_gitlab_says() {
        assert!(matches("ci/*.yml", "ci/a.yml") && !matches("ci/*.yml", "ci/b/a.yml"));
        assert!(matches("ci/**/*.yml", "ci/a.yml") && matches("ci/**/*.yml", "ci/b/c/a.yml"));
        assert!(matches("ci/**.yml", "ci/b/a.yml") && !matches("ci/*.yml", "ci/a.yaml"));
    }
}

//! `include:` of files in the same repository. Each file lies over what it includes; of two includes the later wins.
//!
//! What lies elsewhere (`project`, `remote`, `template`, `component`) cannot be read here and is noted.

use std::collections::BTreeMap;

use super::super::DerivationError;
use super::super::yaml::{Budget, Map, Node, Source, Spent, Value, parse};
use super::{Document, content};

/// The includes that a configuration may have; GitLab's own limit is 150 as well.
const MAX_INCLUDES: usize = 150;
/// How deep includes may nest; GitLab allows more, but 150 includes cannot use it.
const MAX_NESTING: usize = 30;

/// Reads the main file with all that it includes.
pub(super) fn read(
    path: &str,
    files: &[(String, String)],
    document: &mut Document,
    budget: &mut Budget,
) -> Result<Map, DerivationError> {
    let files = files.iter().map(|(path, text)| (normal(path), text.as_str())).collect();
    let mut reading = Reading { files, document, budget, open: Vec::new(), count: 0 };
    let main = normal(path);
    if !reading.files.contains_key(&main) {
        return Err(DerivationError::NoJobs { file: main });
    }
    reading.file(&main)
}

struct Reading<'a> {
    files: BTreeMap<String, &'a str>,
    document: &'a mut Document,
    budget: &'a mut Budget,
    open: Vec<String>,
    count: usize,
}

impl Reading<'_> {
    fn file(&mut self, path: &str) -> Result<Map, DerivationError> {
        let text = self.files.get(path).copied().unwrap_or_default();
        let index = self.document.files.len();
        self.document.files.push(path.to_owned());
        let parsed = parse(Source { name: path, index, text }, self.budget)?;
        let own = content(parsed, self.document)?;
        let Some(include) = own.get("include").cloned() else { return Ok(own) };
        self.open.push(path.to_owned());
        let mut under = Map::default();
        let items = match include.value {
            Value::List(items) => items,
            _ => vec![include],
        };
        for item in items {
            for path in self.paths(&item)? {
                let included = self.file(&path)?;
                under = merge(under, &included, self.budget).map_err(|spent| spent.in_file(&path))?;
            }
        }
        self.open.pop();
        merge(under, &own, self.budget).map_err(|spent| spent.in_file(path))
    }

    /// Says which files one entry of `include:` stands for, and notes those that cannot be read.
    fn paths(&mut self, item: &Node) -> Result<Vec<String>, DerivationError> {
        let conditional = item.get("rules").is_some();
        let local = match item.text() {
            Some(text) if !text.starts_with("http://") && !text.starts_with("https://") => Some(text),
            Some(_) => None,
            None => item.get("local").and_then(Node::text),
        };
        let Some(local) = local.filter(|local| !local.is_empty()) else {
            self.unread(format!("`include` of {} is not read: it lies outside of the repository", elsewhere(item)));
            return Ok(Vec::new());
        };
        let pattern = normal(&local);
        let found: Vec<String> = match pattern.contains('*') {
            true => self.files.keys().filter(|path| matches(&pattern, path)).cloned().collect(),
            false => self.files.keys().filter(|path| **path == pattern).cloned().collect(),
        };
        if found.is_empty() {
            self.unread(format!("`include` of {pattern} is not read: the repository has no such file at this commit"));
        }
        if conditional && !found.is_empty() {
            self.document.notes.push(format!("`include` of {pattern} has rules; they are taken as met"));
        }
        let mut paths = Vec::new();
        for path in found {
            if self.open.contains(&path) || self.open.len() >= MAX_NESTING {
                let problem = format!(
                    "it is included by itself ({} -> {path}); remove one of these includes",
                    self.open.join(" -> ")
                );
                return Err(self.document.invalid(item.place, problem));
            }
            self.count += 1;
            if self.count > MAX_INCLUDES {
                let file = self.document.main();
                return Err(DerivationError::TooLarge {
                    file,
                    what: "the number of includes".to_owned(),
                    limit: MAX_INCLUDES,
                });
            }
            paths.push(path);
        }
        Ok(paths)
    }

    fn unread(&mut self, note: String) {
        self.document.incomplete = true;
        if !self.document.notes.contains(&note) {
            self.document.notes.push(note);
        }
    }
}

fn elsewhere(item: &Node) -> String {
    let part = |key: &str| item.get(key).map(|node| format!("{key} {}", node.texts().join(", ")));
    let found = ["project", "remote", "template", "component", "artifact"].iter().find_map(|key| part(key));
    found.or_else(|| item.text()).unwrap_or_else(|| "something that is no file".to_owned())
}

/// Lays one mapping over another: mappings merge, everything else replaces.
pub(super) fn merge(under: Map, over: &Map, budget: &mut Budget) -> Result<Map, Spent> {
    let mut merged = under;
    for (key, node) in over.iter() {
        let both = match (merged.get(key).map(|old| &old.value), &node.value) {
            (Some(Value::Map(old)), Value::Map(new)) => Some((old.clone(), new)),
            _ => None,
        };
        let value = match both {
            Some((old, new)) => {
                budget.spend(64)?;
                Node { value: Value::Map(merge(old, new, budget)?), place: node.place }
            }
            None => budget.copy(node)?,
        };
        merged.insert(key.to_owned(), value);
    }
    Ok(merged)
}

/// Paths are relative to the repository, with or without a leading slash.
fn normal(path: &str) -> String {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    parts.join("/")
}

/// Matches `*` within a directory and `**` across directories.
fn matches(pattern: &str, path: &str) -> bool {
    let pattern: Vec<&str> = pattern.split('/').collect();
    let path: Vec<&str> = path.split('/').collect();
    // `reached[n]`: the parts of the pattern so far can stand for the first n parts of the path.
    let mut reached = vec![false; path.len() + 1];
    reached[0] = true;
    for part in pattern {
        let mut next = vec![false; path.len() + 1];
        if part == "**" {
            let first = reached.iter().position(|yes| *yes).unwrap_or(path.len() + 1);
            next.iter_mut().skip(first).for_each(|yes| *yes = true);
        } else {
            for (at, name) in path.iter().enumerate() {
                next[at + 1] = reached[at] && part_matches(part, name);
            }
        }
        reached = next;
    }
    reached.last().copied().unwrap_or(false)
}

fn part_matches(pattern: &str, name: &str) -> bool {
    let mut pieces = pattern.split('*');
    let Some(mut rest) = pieces.next().and_then(|first| name.strip_prefix(first)) else { return false };
    let pieces: Vec<&str> = pieces.collect();
    let Some((last, middle)) = pieces.split_last() else { return rest.is_empty() };
    for piece in middle {
        match rest.find(piece) {
            Some(at) => rest = rest.get(at + piece.len()..).unwrap_or_default(),
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stays_in_its_directory_and_two_stars_do_not() {
        let table = [
            ("ci/*.yml", "ci/a.yml", true),
            ("ci/*.yml", "ci/x/a.yml", false),
            ("ci/**/*.yml", "ci/x/y/a.yml", true),
            ("ci/**/*.yml", "ci/a.yml", true),
            ("**.yml", "a.yml", true),
            ("ci/*", "ci/a.yaml", true),
            ("ci/a*b.yml", "ci/axxb.yml", true),
            ("ci/a*b.yml", "ci/axxc.yml", false),
            ("ci/*.yml", "other/a.yml", false),
        ];
        for (pattern, path, expected) in table {
            assert_eq!(matches(pattern, path), expected, "{pattern} {path}");
        }
    }
}

//! `extends` and `!reference`, for a file that the forge has not merged.
//!
//! `extends` merges mappings deeply and replaces lists; later parents win, own keys win over all. A reference is put in
//! after that. Both may refer to templates of an include that could not be read: then the job stays as it is, noted.

use std::collections::BTreeMap;

use super::super::DerivationError;
use super::super::yaml::{Budget, Map, Node, Place, Value};
use super::Document;
use super::includes::merge;

/// How many levels of `extends` GitLab follows (`MAX_NESTING_LEVELS`).
const MAX_LEVELS: usize = 10;
/// How many references GitLab follows from one to the next.
const MAX_REFERENCES: usize = 10;

/// Applies both to the whole document.
pub(super) fn apply(document: &mut Document, budget: &mut Budget) -> Result<(), DerivationError> {
    let names: Vec<String> = document.root.iter().map(|(name, _)| name.to_owned()).collect();
    let mut extending = Extending { document, budget, done: BTreeMap::new(), missing: Vec::new() };
    for name in &names {
        extending.job(name, &mut Vec::new())?;
    }
    let (done, mut missing) = (extending.done, extending.missing);
    for (name, node) in done {
        document.root.insert(name, node);
    }
    let mut root = Map::default();
    for (name, node) in document.root.iter() {
        let mut resolving = Resolving { document, budget, missing: &mut missing };
        root.insert(name.to_owned(), resolving.node(node, 0)?);
    }
    document.root = root;
    missing.dedup();
    document.notes.append(&mut missing);
    Ok(())
}

struct Extending<'a> {
    document: &'a Document,
    budget: &'a mut Budget,
    done: BTreeMap<String, Node>,
    missing: Vec<String>,
}

impl Extending<'_> {
    /// Makes the entry `name` with everything it extends; does nothing for one that extends nothing.
    fn job(&mut self, name: &str, path: &mut Vec<String>) -> Result<(), DerivationError> {
        let Some(node) = self.document.root.get(name) else { return Ok(()) };
        let (Some(own), Some(extends)) = (node.map(), node.get("extends")) else { return Ok(()) };
        if self.done.contains_key(name) {
            return Ok(());
        }
        let place = extends.place;
        path.push(name.to_owned());
        if path.len() > MAX_LEVELS {
            let problem =
                format!("`extends` goes over more than {MAX_LEVELS} levels ({}); shorten the chain", path.join(" -> "));
            return Err(self.document.invalid(place, problem));
        }
        let mut under = Map::default();
        for parent in extends.texts() {
            if path.contains(&parent) {
                let problem =
                    format!("`extends` goes in a circle ({} -> {parent}); remove one of these", path.join(" -> "));
                return Err(self.document.invalid(place, problem));
            }
            self.job(&parent, path)?;
            let base = self.done.get(&parent).or_else(|| self.document.root.get(&parent)).and_then(Node::map);
            let Some(base) = base else {
                self.missing.push(unknown(self.document, place, &format!("job {name:?} extends {parent:?}"))?);
                continue;
            };
            under = merge(under, base, self.budget).map_err(|spent| spent.in_file(&self.document.main()))?;
        }
        let merged = merge(under, own, self.budget).map_err(|spent| spent.in_file(&self.document.main()))?;
        self.done.insert(name.to_owned(), Node { value: Value::Map(merged), place: node.place });
        path.pop();
        Ok(())
    }
}

/// Something is named that is not there: a mistake, unless it may stand in a file that could not be read.
fn unknown(document: &Document, place: Place, what: &str) -> Result<String, DerivationError> {
    match document.incomplete {
        true => Ok(format!("{what}, which stands in no file that could be read")),
        false => Err(document.invalid(place, format!("{what}, which does not exist; add it, or correct the name"))),
    }
}

struct Resolving<'a> {
    document: &'a Document,
    budget: &'a mut Budget,
    missing: &'a mut Vec<String>,
}

impl Resolving<'_> {
    fn node(&mut self, node: &Node, followed: usize) -> Result<Node, DerivationError> {
        let spent = self.budget.spend(64);
        spent.map_err(|spent| spent.in_file(&self.document.main()))?;
        let value = match &node.value {
            Value::List(items) => {
                let items: Result<Vec<Node>, DerivationError> =
                    items.iter().map(|item| self.node(item, followed)).collect();
                Value::List(items?)
            }
            Value::Map(map) => {
                let mut resolved = Map::default();
                for (key, node) in map.iter() {
                    let node = self.node(node, followed)?;
                    resolved.insert(key.to_owned(), node);
                }
                Value::Map(resolved)
            }
            Value::Reference(path) => return self.reference(path, node.place, followed),
            Value::Text(text) => {
                self.budget.spend(text.len()).map_err(|spent| spent.in_file(&self.document.main()))?;
                Value::Text(text.clone())
            }
            other => other.clone(),
        };
        Ok(Node { value, place: node.place })
    }

    fn reference(&mut self, path: &[String], place: Place, followed: usize) -> Result<Node, DerivationError> {
        if followed >= MAX_REFERENCES {
            let problem = format!(
                "`!reference [{}]` goes in a circle, or over more than {MAX_REFERENCES} others",
                path.join(", ")
            );
            return Err(self.document.invalid(place, problem));
        }
        let mut target: Option<&Node> = None;
        for (at, key) in path.iter().enumerate() {
            target = if at == 0 { self.document.root.get(key) } else { target.and_then(|node| node.get(key)) };
        }
        match target {
            Some(target) => self.node(target, followed + 1),
            None => {
                let note =
                    unknown(self.document, place, &format!("`!reference [{}]` names something", path.join(", ")))?;
                self.missing.push(note);
                Ok(Node { value: Value::Null, place })
            }
        }
    }
}

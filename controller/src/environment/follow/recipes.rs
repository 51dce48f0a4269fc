//! The files that name commands: what a goal of a Makefile, a script of package.json and the like runs, as shell text.

use serde_json::Value;

/// How many steps are read on the way through goals that need other goals.
const MAX_STEPS: usize = 64;

/// The recipes of the goals of a Makefile with those that they need; its first goal if none is named.
pub(super) fn make(text: &str, args: &[&str]) -> Vec<String> {
    let text = text.replace("\\\n", " ");
    let rules = rules(&text, |line| line.strip_prefix('\t'), true);
    let mut wanted: Vec<String> = args
        .iter()
        .filter(|word| !word.starts_with('-') && !word.contains(['=', '$']))
        .map(|word| (*word).to_owned())
        .collect();
    wanted.extend(rules.first().filter(|_| wanted.is_empty()).map(|rule| rule.name.clone()));
    collect(&rules, wanted).into_iter().map(|line| with_values(&text, &line)).collect()
}

/// The recipes of a justfile.
pub(super) fn just(text: &str, args: &[&str]) -> Vec<String> {
    let rules = rules(text, |line| line.strip_prefix([' ', '\t']), false);
    let named = args.iter().find(|word| !word.starts_with('-')).map(|word| (*word).to_owned());
    collect(&rules, named.or_else(|| Some(rules.first()?.name.clone())).into_iter().collect())
}

/// The commands of a Taskfile.
pub(super) fn task(text: &str, args: &[&str]) -> Vec<String> {
    let Ok(document) = serde_saphyr::from_str::<Value>(text) else { return Vec::new() };
    let mut wanted: Vec<String> =
        args.iter().filter(|word| !word.starts_with('-')).map(|word| (*word).to_owned()).collect();
    let mut lines = Vec::new();
    let mut at = 0;
    while let Some(name) = wanted.get(at).cloned().filter(|_| at < MAX_STEPS) {
        at += 1;
        let Some(found) = document.get("tasks").and_then(|tasks| tasks.get(&name)) else { continue };
        let steps = found.get("cmds").or_else(|| found.get("cmd")).unwrap_or(found);
        let steps = steps.as_array().cloned().unwrap_or_else(|| vec![steps.clone()]);
        let needed = found.get("deps").and_then(Value::as_array).cloned().unwrap_or_default();
        wanted.extend(needed.iter().filter_map(|step| step.as_str().or(step.get("task")?.as_str()).map(str::to_owned)));
        for step in &steps {
            match (step.as_str().or_else(|| step.get("cmd")?.as_str()), step.get("task").and_then(Value::as_str)) {
                (Some(line), _) => lines.push(line.to_owned()),
                (None, Some(other)) if !wanted.iter().any(|known| known == other) => wanted.push(other.to_owned()),
                _ => {}
            }
        }
    }
    lines
}

/// A script of package.json.
pub(super) fn npm(text: &str, args: &[&str]) -> Vec<String> {
    let mut words = args.iter().filter(|word| !word.starts_with('-'));
    let name = match words.next() {
        Some(&("run" | "run-script")) => words.next(),
        Some(&("t" | "tst")) => Some(&"test"),
        other => other,
    };
    let Ok(document) = serde_json::from_str::<Value>(text) else { return Vec::new() };
    let found = name.and_then(|name| document.get("scripts")?.get(*name)?.as_str());
    found.map(str::to_owned).into_iter().collect()
}

/// A script of composer.json; `@name` is another one, `@php` is PHP.
pub(super) fn composer(text: &str, args: &[&str]) -> Vec<String> {
    let Ok(document) = serde_json::from_str::<Value>(text) else { return Vec::new() };
    let mut words = args.iter().filter(|word| !word.starts_with('-'));
    let name = match words.next() {
        Some(&("run" | "run-script")) => words.next(),
        other => other,
    };
    let mut wanted: Vec<String> = name.map(|name| (*name).to_owned()).into_iter().collect();
    let (mut lines, mut at) = (Vec::new(), 0);
    while let Some(name) = wanted.get(at).cloned().filter(|_| at < MAX_STEPS) {
        at += 1;
        let Some(found) = document.get("scripts").and_then(|scripts| scripts.get(&name)) else { continue };
        let steps = found.as_array().cloned().unwrap_or_else(|| vec![found.clone()]);
        for step in steps.iter().filter_map(Value::as_str) {
            match step.strip_prefix('@') {
                Some(rest) if rest.starts_with("php ") || rest.starts_with("composer ") => lines.push(rest.to_owned()),
                Some(rest) => wanted.push(rest.split(' ').next().unwrap_or_default().to_owned()),
                None => lines.push(step.to_owned()),
            }
        }
    }
    lines
}

struct Rule {
    name: String,
    needs: Vec<String>,
    lines: Vec<String>,
}

/// Reads `name: needs` and the indented lines below. In a justfile the name is followed by parameters.
fn rules(text: &str, recipe: impl Fn(&str) -> Option<&str>, several_names: bool) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    let mut open = 0;
    for line in text.lines() {
        if let Some(step) = recipe(line) {
            let step = step.trim().trim_start_matches(['@', '-', '+']).to_owned();
            let from = rules.len() - open;
            rules[from..].iter_mut().for_each(|rule| rule.lines.push(step.clone()));
        } else if let Some((names, needs)) = line.split_once(':').filter(|(_, rest)| !rest.starts_with(['=', ':'])) {
            let names: Vec<&str> = names.split_whitespace().take(if several_names { 16 } else { 1 }).collect();
            open = 0;
            if names.iter().any(|name| name.starts_with(['.', '#']) || name.contains(['%', '$', '=', '"'])) {
                continue;
            }
            let needs: Vec<String> = needs.split_whitespace().map(str::to_owned).collect();
            for name in names {
                rules.push(Rule {
                    name: name.trim_start_matches('@').to_owned(),
                    needs: needs.clone(),
                    lines: Vec::new(),
                });
                open += 1;
            }
        } else if !line.trim().is_empty() && !line.starts_with('#') {
            open = 0;
        }
    }
    rules
}

fn collect(rules: &[Rule], mut wanted: Vec<String>) -> Vec<String> {
    let (mut lines, mut at) = (Vec::new(), 0);
    while let Some(name) = wanted.get(at).cloned().filter(|_| at < MAX_STEPS) {
        at += 1;
        for rule in rules.iter().filter(|rule| rule.name == name) {
            lines.extend(rule.lines.iter().cloned());
            let new = rule.needs.iter().filter(|need| !wanted.contains(need)).cloned().collect::<Vec<_>>();
            wanted.extend(new);
        }
    }
    lines
}

/// Puts in the plain variables of a Makefile: `PYTHON ?= python3` into `$(PYTHON) -m pytest`.
fn with_values(text: &str, line: &str) -> String {
    let mut line = line.to_owned();
    for written in text.lines().filter(|written| !written.starts_with('\t')).take(500) {
        let Some((name, value)) = written.split_once('=') else { continue };
        let name = name.trim_end_matches(['?', ':', '+', ' ']).trim();
        if !name.is_empty()
            && !name.contains([' ', '$'])
            && !value.contains('$')
            && value.len() < 200
            && line.len() < 4_000
        {
            line = line.replace(&format!("$({name})"), value.trim()).replace(&format!("${{{name}}}"), value.trim());
        }
    }
    line
}

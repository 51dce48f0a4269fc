//! What a CI line starts in the repository: `make test`, `npm run lint`, `./ci/build.sh`. It is looked up in the files that
//! were read, so that the line is judged by what it does and not by its name. The line itself stays as CI has it.
//!
//! ```text
//! make check ─▶ Makefile: check: lint ─▶ tox        ./ci/test.sh ─▶ pytest -q
//! ```

mod recipes;

use std::collections::{BTreeMap, BTreeSet};

use super::shell::{self, Script, Unit};

/// How far calls are followed: a script may call `make`, whose goal may call a script.
const MAX_DEPTH: usize = 2;
/// How many commands one line may stand for.
const MAX_UNITS: usize = 200;
/// How many files of a repository are worth reading for this.
const MAX_FILES: usize = 24;

/// Follows the lines of one job, in order: `cd` counts.
#[derive(Debug)]
pub(super) struct Follower<'a> {
    files: &'a BTreeMap<String, String>,
    /// Where the shell stands in the repository; nowhere that is known after a `cd` to a variable.
    folder: Option<String>,
    /// What was looked for and was not among the files.
    missing: BTreeSet<String>,
}

impl<'a> Follower<'a> {
    pub(super) fn new(files: &'a BTreeMap<String, String>) -> Self {
        Self { files, folder: Some(String::new()), missing: BTreeSet::new() }
    }

    /// Begins another job: its shell stands at the top again.
    pub(super) fn start(&mut self) {
        self.folder = Some(String::new());
    }

    /// Cuts a text into units, each with what it stands for.
    pub(super) fn split(&mut self, text: &str) -> Script {
        let mut script = shell::split(text);
        for unit in &mut script.units {
            let mut inner = Vec::new();
            for words in &unit.commands {
                self.follow(words, MAX_DEPTH, &mut inner);
            }
            unit.inner = inner;
            self.walk(unit);
        }
        script
    }

    /// The files that would have to be read to follow further, the first of them; none if it would not help.
    pub(super) fn missing(self) -> Vec<String> {
        self.missing.into_iter().take(MAX_FILES).collect()
    }

    fn walk(&mut self, unit: &Unit) {
        for words in &unit.commands {
            let target = words.get(1).map(String::as_str).unwrap_or_default();
            match words.first().map(String::as_str) {
                Some("cd" | "pushd") => self.folder = self.folder.take().and_then(|folder| joined(&folder, target)),
                Some("popd") => self.folder = None,
                _ => {}
            }
        }
    }

    fn follow(&mut self, words: &[String], depth: usize, inner: &mut Vec<Unit>) {
        if depth == 0 || inner.len() >= MAX_UNITS {
            return;
        }
        for text in self.called(words) {
            for unit in shell::split(&text).units {
                if inner.len() >= MAX_UNITS {
                    return;
                }
                let commands = unit.commands.clone();
                inner.push(unit);
                for words in &commands {
                    self.follow(words, depth - 1, inner);
                }
            }
        }
    }

    /// The shell texts that a command runs out of the repository.
    fn called(&mut self, words: &[String]) -> Vec<String> {
        let bare: Vec<String> = shell::bare(words).into_iter().map(str::to_owned).collect();
        let Some(first) = bare.first() else { return Vec::new() };
        let name = shell::base_name(first).to_owned();
        let goals: Vec<&str> = bare.iter().skip(1).map(String::as_str).collect();
        if goals.iter().any(|word| matches!(*word, "-C" | "-f" | "--directory" | "--file" | "--prefix" | "--cwd")) {
            return Vec::new();
        }
        match name.as_str() {
            "make" | "gmake" => self.file("Makefile").map(|text| recipes::make(text, &goals)).unwrap_or_default(),
            "just" => self.file("justfile").map(|text| recipes::just(text, &goals)).unwrap_or_default(),
            "task" => self.file("Taskfile.yml").map(|text| recipes::task(text, &goals)).unwrap_or_default(),
            "npm" | "yarn" | "pnpm" => {
                self.file("package.json").map(|text| recipes::npm(text, &goals)).unwrap_or_default()
            }
            "composer" => self.file("composer.json").map(|text| recipes::composer(text, &goals)).unwrap_or_default(),
            _ => self.script(first).into_iter().collect(),
        }
    }

    /// A shell script of the repository.
    fn script(&mut self, written: &str) -> Option<String> {
        let path = written.replace("${CI_PROJECT_DIR}", "$CI_PROJECT_DIR");
        let path = match path.strip_prefix("$CI_PROJECT_DIR/") {
            Some(path) => joined("", path)?,
            None if path.ends_with(".sh") || path.starts_with("./") || path.contains('/') => {
                joined(self.folder.as_ref()?, &path)?
            }
            None => return None,
        };
        let shell = path.ends_with(".sh") || path.ends_with(".bash") || !shell::base_name(&path).contains('.');
        if !shell || path.starts_with("node_modules/") || path.starts_with("vendor/") || path.starts_with("venv/") {
            return None;
        }
        self.at(path).cloned().filter(|text| {
            !text.starts_with("#!")
                || text.lines().next().is_some_and(|line| line.ends_with("sh") || line.contains("sh "))
        })
    }

    fn file(&mut self, name: &str) -> Option<&'a String> {
        let path = joined(self.folder.as_ref()?, name)?;
        self.at(path)
    }

    fn at(&mut self, path: String) -> Option<&'a String> {
        let found = self.files.get(&path);
        if found.is_none() && self.missing.len() < MAX_FILES {
            self.missing.insert(path);
        }
        found
    }
}

/// A path below a folder of the repository; none if it leaves the repository or cannot be known.
fn joined(folder: &str, path: &str) -> Option<String> {
    let safe = |letter: char| letter.is_ascii_alphanumeric() || "/._-+@".contains(letter);
    if path.starts_with('/') || path.is_empty() || !path.chars().all(safe) {
        return None;
    }
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::super::purpose::{self, Purpose};
    use super::*;

    fn files(list: &[(&str, &str)]) -> BTreeMap<String, String> {
        list.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect()
    }

    #[test]
    fn a_line_is_judged_by_what_it_starts() {
        let files = files(&[
            (
                "Makefile",
                "PY ?= python3\nall: build\n\tgcc a.c\nci: lint\n\t@$(PY) -m pytest \\\n\t  -q\nlint:\n\truff check .\nship:\n\tdocker push x\nnothing:\n\techo no\n",
            ),
            (
                "package.json",
                "{\"scripts\": {\"test\": \"echo \\\"Error: no test specified\\\" && exit 1\", \"ci\": \"npm run style\", \"style\": \"eslint .\", \"all\": \"jest && npm run all\"}}",
            ),
            ("composer.json", "{\"scripts\": {\"qa\": [\"@cs\", \"@php vendor/bin/phpunit\"], \"cs\": \"phpcs\"}}"),
            ("ci/go.sh", "#!/bin/bash\nset -e\nmake ci\n"),
            ("ci/loop.sh", "./ci/loop.sh\n"),
            ("web/package.json", "{\"scripts\": {\"test\": \"vitest run\"}}"),
            ("justfile", "default: check\n\ncheck arg='x':\n    cargo test {{arg}}\n"),
            (
                "Taskfile.yml",
                "version: '3'\ntasks:\n  verify:\n    cmds: [{task: unit}, golangci-lint run]\n  unit:\n    cmds:\n      - go test ./...\n",
            ),
        ]);
        let table = [
            ("make ci", Purpose::Test),
            ("make lint", Purpose::Lint),
            ("make ship", Purpose::Forbidden(purpose::Ban::Docker)),
            ("make nothing", Purpose::Trivial),
            ("make unknown-goal", Purpose::Build),
            ("npm test", Purpose::Trivial),
            ("npm run ci", Purpose::Lint),
            ("yarn all", Purpose::Test),
            ("composer qa", Purpose::Test),
            ("./ci/go.sh", Purpose::Test),
            ("bash ci/loop.sh", Purpose::Other),
            ("$CI_PROJECT_DIR/ci/go.sh", Purpose::Test),
            ("cd web && npm test", Purpose::Test),
            ("cd $X && npm test", Purpose::Test),
            ("just", Purpose::Test),
            ("just check", Purpose::Test),
            ("task verify", Purpose::Test),
        ];
        for (text, expected) in table {
            let units = Follower::new(&files).split(text).units;
            let found = units.iter().map(purpose::of_unit).max().unwrap_or(Purpose::Trivial);
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn what_is_missing_is_named_and_stays_in_the_repository() {
        let known = files(&[("ci/a.sh", "./ci/b.sh\n")]);
        let mut follower = Follower::new(&known);
        for line in
            ["./ci/a.sh", "cd web", "make test", "../../etc/passwd.sh", "/usr/bin/x.sh", "./$X.sh", "bash ../ci/c.sh"]
        {
            follower.split(line);
        }
        assert_eq!(follower.missing(), ["ci/b.sh", "ci/c.sh", "web/Makefile"]);
    }

    #[test]
    fn following_is_bounded() {
        let calls = "./many.sh\n".repeat(5_000);
        let files = files(&[("many.sh", &calls)]);
        let units = Follower::new(&files).split("./many.sh").units;
        assert!(units[0].inner.len() <= MAX_UNITS, "{}", units[0].inner.len());
    }
}

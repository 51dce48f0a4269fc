//! The environment as a `compose.yaml`, for people: with the Dockerfile beside it, it brings up the same box.
//!
//! Every value is a double-quoted text with `$` doubled, so that neither YAML nor compose reads anything into it. There
//! is no `version:`: docker-compose 1.29 and compose 2 both take that for the Compose Specification.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use devfleet_shared::environment::{EnvironmentSpec, Recipe, ServiceSpec};

use super::variables::WORKSPACE;

/// Renders the file.
pub fn compose(environment: &EnvironmentSpec, recipe: &Recipe) -> String {
    let mut out = Yaml { text: String::new() };
    out.line(
        0,
        "# The environment that devfleet derived, for `docker compose up -d` and `docker compose exec devbox sh`.",
    );
    out.line(0, "# Put it into the repository's root, with the Dockerfile of the same environment beside it.");
    out.line(
        0,
        "# Where the CI image does not run as root, name its user: `DEVFLEET_USER=node docker compose up -d --build`.",
    );
    for file in &recipe.files {
        let name: String = file.name.chars().filter(|letter| !letter.is_control()).collect();
        out.line(0, &format!("# The Dockerfile also copies {name}, which has to lie here."));
    }
    out.line(0, "services:");
    devbox(&mut out, environment);
    for service in &environment.services {
        of_service(&mut out, service);
    }
    out.line(0, "networks:");
    out.line(1, "box: {}");
    out.text
}

fn devbox(out: &mut Yaml, environment: &EnvironmentSpec) {
    out.line(1, "devbox:");
    out.line(2, "build:");
    out.line(3, "context: \".\"");
    out.line(3, "dockerfile: \"Dockerfile\"");
    out.line(3, "args:");
    // The only value that compose itself is to fill in.
    out.line(4, "DEVFLEET_USER: \"${DEVFLEET_USER:-0}\"");
    if let Some(platform) = &environment.platform {
        out.pair(2, "platform", platform);
    }
    if let Some(user) = &environment.user {
        out.pair(2, "user", user);
    }
    out.pair(2, "working_dir", WORKSPACE);
    out.line(2, "init: true");
    out.list(2, "volumes", &[format!(".:{WORKSPACE}")]);
    let waits = ["sleep".to_owned(), "infinity".to_owned()];
    match environment.entrypoint.as_deref() {
        None => out.list(2, "command", &waits),
        Some(entrypoint) if is_none(entrypoint) => {
            out.list(2, "entrypoint", &waits);
            out.line(2, "command: []");
        }
        Some(entrypoint) => {
            out.list(2, "entrypoint", entrypoint);
            out.list(2, "command", &waits);
        }
    }
    out.map(2, "environment", &environment.variables);
    if !environment.services.is_empty() {
        let names: Vec<String> = environment.services.iter().map(|service| service.name.clone()).collect();
        out.list(2, "depends_on", &names);
    }
    // Services reach the steps as `build`, as they do in CI.
    out.network(&["build".to_owned()]);
}

fn of_service(out: &mut Yaml, service: &ServiceSpec) {
    out.line(1, &format!("{}:", quoted(&service.name)));
    out.pair(2, "image", &service.image);
    if let Some(platform) = &service.platform {
        out.pair(2, "platform", platform);
    }
    match service.entrypoint.as_deref() {
        None => {}
        // Compose knows no empty entrypoint that keeps the command: the command takes its place.
        Some(entrypoint) if is_none(entrypoint) => match service.command.as_deref() {
            Some(command) if !command.is_empty() => out.list(2, "entrypoint", command),
            _ => out.line(2, "entrypoint: []"),
        },
        Some(entrypoint) => out.list(2, "entrypoint", entrypoint),
    }
    let replaced = service.entrypoint.as_deref().is_some_and(is_none);
    match service.command.as_deref() {
        Some(command) if !replaced && !command.is_empty() => out.list(2, "command", command),
        Some(_) if replaced => out.line(2, "command: []"),
        _ => {}
    }
    out.map(2, "environment", &service.variables);
    out.network(&service.aliases);
}

/// `[]` and `[""]` both mean: no entrypoint.
fn is_none(entrypoint: &[String]) -> bool {
    entrypoint.iter().all(String::is_empty)
}

struct Yaml {
    text: String,
}

impl Yaml {
    fn line(&mut self, depth: usize, text: &str) {
        let _ = writeln!(self.text, "{:indent$}{text}", "", indent = depth * 2);
    }

    fn pair(&mut self, depth: usize, key: &str, value: &str) {
        self.line(depth, &format!("{key}: {}", quoted(value)));
    }

    fn list(&mut self, depth: usize, key: &str, items: &[String]) {
        self.line(depth, &format!("{key}:"));
        for item in items {
            self.line(depth + 1, &format!("- {}", quoted(item)));
        }
    }

    fn map(&mut self, depth: usize, key: &str, values: &BTreeMap<String, String>) {
        if values.is_empty() {
            return;
        }
        self.line(depth, &format!("{key}:"));
        for (name, value) in values {
            self.line(depth + 1, &format!("{}: {}", quoted(name), quoted(value)));
        }
    }

    fn network(&mut self, aliases: &[String]) {
        self.line(2, "networks:");
        if aliases.is_empty() {
            self.line(3, "box: {}");
            return;
        }
        self.line(3, "box:");
        self.list(4, "aliases", aliases);
    }
}

/// A double-quoted YAML text in which `$` stands for itself.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for letter in text.chars() {
        match letter {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            '$' => out.push_str("$$"),
            ' '..='~' => out.push(letter),
            letter if u32::from(letter) <= 0xFFFF => {
                let _ = write!(out, "\\u{:04X}", u32::from(letter));
            }
            letter => {
                let _ = write!(out, "\\U{:08X}", u32::from(letter));
            }
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environment::{AgentNeeds, recipe};

    #[test]
    fn values_are_quoted_against_yaml_and_compose() {
        let table = [
            ("plain", "\"plain\""),
            ("$HOME ${X} $$", "\"$$HOME $${X} $$$$\""),
            ("a\"b\\c", "\"a\\\"b\\\\c\""),
            ("line\nnext\u{7f}", "\"line\\nnext\\u007F\""),
            ("ü\u{1F600}", "\"\\u00FC\\U0001F600\""),
            ("yes", "\"yes\""),
            ("", "\"\""),
        ];
        for (text, expected) in table {
            assert_eq!(quoted(text), expected, "{text:?}");
        }
    }

    #[test]
    fn the_devbox_waits_whatever_the_entrypoint_is() {
        let table: [(Option<Vec<String>>, &str); 3] = [
            (None, "    command:\n      - \"sleep\"\n      - \"infinity\"\n"),
            (Some(vec![String::new()]), "    entrypoint:\n      - \"sleep\"\n      - \"infinity\"\n    command: []\n"),
            (
                Some(vec!["/init".into()]),
                "    entrypoint:\n      - \"/init\"\n    command:\n      - \"sleep\"\n      - \"infinity\"\n",
            ),
        ];
        for (entrypoint, expected) in table {
            let environment =
                EnvironmentSpec { image: "a".into(), entrypoint: entrypoint.clone(), ..EnvironmentSpec::default() };
            let text = compose(&environment, &recipe(&environment, &[], &AgentNeeds::default()));
            assert!(text.contains(expected), "{entrypoint:?}\n{text}");
        }
    }
}

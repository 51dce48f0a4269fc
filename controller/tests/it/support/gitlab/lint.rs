//! CI Lint of what is in the repository: scripted answers, or what can be said of a file without merging.

use axum::response::Response;
use serde_json::{Value, json};

use super::api::{message, reply};
use super::repository;
use super::server::Asked;
use super::state::Shared;

/// A scripted answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct LintAnswer {
    /// Whether GitLab calls it valid.
    pub(crate) valid: bool,
    /// What it has against it.
    pub(crate) errors: Vec<String>,
    /// What it warns of.
    pub(crate) warnings: Vec<String>,
    /// The merged document; `None` for `null`.
    pub(crate) merged_yaml: Option<String>,
    /// The included files: type and location.
    pub(crate) includes: Vec<(String, String)>,
}

impl LintAnswer {
    /// A valid configuration, merged so.
    pub(crate) fn merged(yaml: &str) -> Self {
        Self { valid: true, merged_yaml: Some(yaml.to_owned()), ..Self::default() }
    }

    /// A configuration that cannot be merged.
    pub(crate) fn unusable(error: &str) -> Self {
        Self { errors: vec![error.to_owned()], ..Self::default() }
    }

    fn document(&self) -> Value {
        let includes: Vec<Value> = self
            .includes
            .iter()
            .map(|(kind, location)| json!({"type": kind, "location": location, "blob": null, "raw": null, "extra": {}}))
            .collect();
        json!({
            "valid": self.valid,
            "errors": self.errors,
            "warnings": self.warnings,
            "merged_yaml": self.merged_yaml,
            "includes": if self.merged_yaml.is_some() { Value::Array(includes) } else { Value::Null },
        })
    }
}

pub(super) fn answer(shared: &Shared, id: u64, asked: &Asked) -> Response {
    let (git_dir, scripted) = {
        let mut state = shared.state();
        let project = state.project(id);
        (project.git_dir.clone(), project.lint.clone())
    };
    if repository::resolve(&git_dir, "refs/heads/main").is_none() {
        return message(404, "404 Repository Not Found");
    }
    let reference = asked.query.get("content_ref").or(asked.query.get("sha")).map_or("main", String::as_str);
    let Some(commit) = repository::resolve(&git_dir, reference) else {
        return message(404, "404 Commit Not Found");
    };
    let file = repository::read(&git_dir, &commit, ".gitlab-ci.yml");
    let text = file.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let found = scripted.unwrap_or_else(|| judge(&text));
    reply(200, &found.document())
}

/// Says of a file what GitLab would, as far as that goes without merging.
fn judge(text: &str) -> LintAnswer {
    if text.trim().is_empty() {
        return LintAnswer::unusable("Please provide content of .gitlab-ci.yml");
    }
    if text.contains("!reference") {
        return LintAnswer::unusable("the stand-in does not resolve !reference: script an answer with lint_answer");
    }
    let document: Value = match serde_saphyr::from_str(text) {
        Ok(document) => document,
        Err(error) => return LintAnswer::unusable(&format!("(<unknown>): {}", first_line(&error.to_string()))),
    };
    let Value::Object(entries) = document else {
        return LintAnswer::unusable("Invalid configuration format");
    };
    let extends = entries.values().any(|value| value.get("extends").is_some());
    if entries.contains_key("include") || extends {
        return LintAnswer::unusable(
            "the stand-in does not merge include or extends: script an answer with lint_answer",
        );
    }
    let visible = entries.iter().any(|(name, value)| {
        !name.starts_with('.') && (value.get("script").is_some() || value.get("trigger").is_some())
    });
    let mut answer = LintAnswer::merged(&format!("---\n{}", text.trim_start_matches("---\n")));
    if !visible {
        answer.valid = false;
        answer.errors.push("jobs config should contain at least one visible job".to_owned());
    }
    answer
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

//! What GitLab would refuse in a configuration that it has not looked at, as far as one file can tell.
//!
//! A configuration with such a flaw is still derived, as GitLab's own lint still merges it; the verdict says `invalid`.

use super::merged::Document;
use super::yaml::{Map, Node, Value};

/// The keywords that a job may have (`Gitlab::Ci::Config::Entry::Job`, `Bridge` and `Processable`).
const JOB_KEYWORDS: [&str; 43] = [
    "after_script",
    "allow_failure",
    "artifacts",
    "before_script",
    "cache",
    "coverage",
    "dast_configuration",
    "dependencies",
    "environment",
    "except",
    "extends",
    "hooks",
    "id_tokens",
    "identity",
    "image",
    "inherit",
    "inputs",
    "interruptible",
    "manual_confirmation",
    "needs",
    "only",
    "pages",
    "parallel",
    "publish",
    "release",
    "resource_group",
    "retry",
    "rules",
    "run",
    "script",
    "secrets",
    "services",
    "stage",
    "start_in",
    "tags",
    "timeout",
    "trigger",
    "variables",
    "when",
    "cell",
    "description",
    "execution_config",
    "pre_get_sources_script",
];
/// How many flaws are worth telling.
const MAX_FLAWS: usize = 10;

/// Finds the flaws of a configuration.
pub(super) fn flaws(document: &Document) -> Vec<String> {
    let mut flaws = Vec::new();
    for (name, node) in document.root.iter() {
        if name == "types" || node.map().is_none() && !document.is_keyword(name) && !name.starts_with('.') {
            flaws.push(format!("root config contains unknown keys: {name}"));
        }
    }
    let stages = stages(document);
    for (name, job) in document.jobs().filter(|(name, _)| !name.starts_with('.')) {
        of_job(document, name, job, stages.as_deref(), &mut flaws);
        if flaws.len() > MAX_FLAWS {
            break;
        }
    }
    flaws.truncate(MAX_FLAWS);
    flaws
}

fn of_job(document: &Document, name: &str, job: &Map, stages: Option<&[String]>, flaws: &mut Vec<String>) {
    let unknown: Vec<&str> =
        job.iter().map(|(key, _)| key).filter(|key| !JOB_KEYWORDS.contains(key)).take(MAX_FLAWS).collect();
    if !unknown.is_empty() {
        flaws.push(format!("jobs:{name} config contains unknown keys: {}", unknown.join(", ")));
    }
    let given = |key: &str| job.get(key).is_some_and(|node| !node.is_null());
    // A job may get its script from a template that could not be read.
    if !document.incomplete && !["script", "run", "trigger"].iter().any(|key| given(key)) {
        flaws.push(format!("jobs:{name} config should implement the script:, run:, or trigger: keyword"));
    }
    let both: Vec<&str> = ["only", "except"].into_iter().filter(|key| given("rules") && given(key)).collect();
    if !both.is_empty() {
        flaws.push(format!("jobs:{name} config key may not be used with `rules`: {}", both.join(", ")));
    }
    let stage = job.get("stage").and_then(Node::text).filter(|stage| !stage.is_empty());
    if let (Some(stages), Some(stage)) = (stages, stage)
        && !document.incomplete
        && !stages.contains(&stage)
    {
        flaws.push(format!(
            "jobs:{name}: chosen stage {stage} does not exist; available stages are {}",
            stages.join(", ")
        ));
    }
}

/// The stages that jobs may name; `None` if that cannot be told.
fn stages(document: &Document) -> Option<Vec<String>> {
    let mut stages = match document.root.get("stages").map(|node| (&node.value, node.texts())) {
        Some((Value::List(_), texts)) if !texts.is_empty() => texts,
        Some((Value::Null, _)) | None => vec!["build".into(), "test".into(), "deploy".into()],
        Some(_) => return None,
    };
    stages.extend([".pre".to_owned(), ".post".to_owned()]);
    Some(stages)
}

#[cfg(test)]
mod tests {
    use super::super::merged;
    use super::*;
    use crate::forge::CiConfig;

    #[test]
    fn flaws_are_those_that_gitlab_names() {
        let table: [(&str, &[&str]); 9] = [
            ("t: {script: x}", &[]),
            ("t: {scripts: x}", &["unknown keys: scripts", "should implement the script:"]),
            ("t: {type: test, script: x}", &["unknown keys: type"]),
            ("types: [a]\nt: {script: x}", &["root config contains unknown keys: types"]),
            ("t: {script: x, rules: [{if: $A}], only: [main]}", &["may not be used with `rules`: only"]),
            ("stages: [a]\nt: {stage: b, script: x}", &["chosen stage b does not exist"]),
            ("stages: [a]\nt: {stage: .post, script: x}", &[]),
            ("include: [{template: X.yml}]\nstages: [a]\nt: {stage: b}", &[]),
            ("t: {trigger: a/b}\n.h: {scripts: x}\nstray: text", &["unknown keys: stray"]),
        ];
        for (yaml, expected) in table {
            let config =
                CiConfig::Raw { path: "ci.yml".into(), files: vec![("ci.yml".into(), yaml.into())], notes: Vec::new() };
            let found = flaws(&merged::read(&config).expect("it can be read"));
            assert_eq!(found.len(), expected.len(), "{yaml}: {found:?}");
            for (flaw, part) in found.iter().zip(expected) {
                assert!(flaw.contains(part), "{yaml}: {flaw}");
            }
        }
    }
}

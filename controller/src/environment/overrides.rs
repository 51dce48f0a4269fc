//! What a repository says itself about the environment of its jobs: `.devfleet.toml`.
//!
//! text ─ parse ─▶ Overrides ─ apply(Derivation) ─▶ Derivation, each changed fact with its line in the file
//!
//! The file is read from the default branch alone, so that no other branch can change the box that its own work is
//! checked in. It is strict: whoever writes it learns of a mistake before a job runs.

mod reading;

use std::collections::BTreeMap;

use devfleet_shared::environment::{CacheSpec, EnvironmentSpec, ServiceSpec};
use serde::{Deserialize, Serialize};

use super::{Derivation, DerivationError, ReportLine, Verdict};

/// Where the file stands in a repository.
pub const OVERRIDES_FILE: &str = ".devfleet.toml";
/// How large the file may be, in bytes.
pub const OVERRIDES_BYTES: usize = 64 << 10;

/// A file that cannot be used. Each message says where, and what to write.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("use {OVERRIDES_FILE} of the default branch: line {line}, key `{key}`: {problem}")]
pub struct OverridesError {
    /// The line, from 1.
    pub line: usize,
    /// The key, as far as it is known.
    pub key: String,
    /// What is wrong, and what to write.
    pub problem: String,
}

/// What the file says. Lines are from 1.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Overrides {
    image: Option<(String, usize)>,
    services: Option<(Vec<ServiceSpec>, usize)>,
    setup: Option<(Vec<String>, usize)>,
    verify: Option<(Vec<String>, usize)>,
    caches: Option<(Vec<CacheSpec>, usize)>,
    /// What is carried along for later: nothing of it changes the environment.
    pub declared: Declared,
}

/// What a repository declares about its jobs beside their environment.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Declared {
    /// The parts of the repository, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub components: BTreeMap<String, Component>,
    /// How many tokens a job may use; `None`: the project's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_tokens: Option<u64>,
    /// The hosts that a job may reach, as `host` or `*.domain`; `None`: the project's own list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Vec<String>>,
}

impl Declared {
    /// Says whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A part of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Component {
    /// The paths that belong to it, relative to the repository; `**` and `*` as in git's own patterns.
    pub paths: Vec<String>,
    /// What it is, for people and models.
    #[serde(default)]
    pub description: String,
}

impl Overrides {
    /// Puts what the file says over what was derived. A file that names an image also helps where CI names none.
    ///
    /// # Errors
    /// What the derivation failed with, where the file does not help.
    pub fn apply(&self, derived: Result<Derivation, DerivationError>) -> Result<Derivation, DerivationError> {
        let mut derivation = match (derived, &self.image) {
            (Ok(derivation), _) => derivation,
            (Err(error), Some(_)) if is_about_the_image(&error) => without_ci(&error),
            (Err(error), _) => return Err(error),
        };
        let mut report = Report { lines: std::mem::take(&mut derivation.report) };
        let environment = &mut derivation.environment;
        if let Some((image, line)) = &self.image {
            environment.image.clone_from(image);
            // They belong to the image that CI names.
            (environment.entrypoint, environment.user) = (None, None);
            (environment.platform, environment.pull) = (None, None);
            // A person named it: nothing is guessed any more.
            derivation.confidence = derivation.confidence.max(0.9);
            derivation.verdict = Verdict::Derived;
            report.replace("image", image, *line);
        }
        if let Some((services, line)) = &self.services {
            report.forget("service ");
            for service in services {
                let value = format!("{} as {}", service.image, service.aliases.join(", "));
                report.add(&format!("service {}", service.name), &value, *line, "services");
            }
            if services.is_empty() {
                report.add("services", "(none)", *line, "services");
            }
            environment.services.clone_from(services);
            for service in &mut environment.services {
                // As for CI's own services: the job's public variables, and the service's own over them.
                let own = std::mem::replace(&mut service.variables, environment.variables.clone());
                service.variables.extend(own);
            }
        }
        for (name, wanted, field) in
            [("setup", &self.setup, &mut environment.setup), ("verify", &self.verify, &mut environment.verify)]
        {
            if let Some((commands, line)) = wanted {
                field.clone_from(commands);
                report.replace(name, &commands.join("; "), *line);
            }
        }
        if let Some((caches, line)) = &self.caches {
            report.forget("cache ");
            for cache in caches {
                report.add(&format!("cache {}", cache.path), &cache.key, *line, "caches");
            }
            environment.caches.clone_from(caches);
        }
        derivation.report = report.lines;
        derivation.notes.extend(self.notes());
        Ok(derivation)
    }

    fn notes(&self) -> Vec<String> {
        let parts = [
            ("image", self.image.is_some()),
            ("services", self.services.is_some()),
            ("setup", self.setup.is_some()),
            ("verify", self.verify.is_some()),
            ("caches", self.caches.is_some()),
        ];
        let named: Vec<&str> = parts.iter().filter(|(_, said)| *said).map(|(name, _)| *name).collect();
        let mut notes = Vec::new();
        if !named.is_empty() {
            notes.push(format!("{OVERRIDES_FILE} of the default branch replaces: {}", named.join(", ")));
        }
        if self.declared.budget_tokens.is_some() || self.declared.egress.is_some() {
            notes.push(format!(
                "budget and egress of {OVERRIDES_FILE} are part of what is approved; no host enforces them yet"
            ));
        }
        notes
    }
}

/// Says whether an image that is named elsewhere helps.
fn is_about_the_image(error: &DerivationError) -> bool {
    matches!(
        error,
        DerivationError::NoJobs { .. }
            | DerivationError::OnlyHidden { .. }
            | DerivationError::NoImage { .. }
            | DerivationError::UnresolvedImage { .. }
    )
}

fn without_ci(error: &DerivationError) -> Derivation {
    let environment =
        EnvironmentSpec { variables: BTreeMap::from([("CI".into(), "true".into())]), ..EnvironmentSpec::default() };
    let note = format!("nothing else is taken from the CI configuration (could not {error})");
    Derivation { environment, notes: vec![note], ..Derivation::default() }
}

struct Report {
    lines: Vec<ReportLine>,
}

impl Report {
    fn forget(&mut self, beginning: &str) {
        self.lines.retain(|line| !line.fact.starts_with(beginning));
    }

    fn replace(&mut self, fact: &str, value: &str, line: usize) {
        self.lines.retain(|known| known.fact != fact);
        self.add(fact, value, line, fact);
    }

    fn add(&mut self, fact: &str, value: &str, line: usize, keyword: &str) {
        self.lines.push(ReportLine {
            fact: fact.to_owned(),
            value: value.chars().take(200).collect(),
            file: format!("{OVERRIDES_FILE}:{line}"),
            job: String::new(),
            keyword: keyword.to_owned(),
        });
    }
}

#[cfg(test)]
mod tests;

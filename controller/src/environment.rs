//! From a project's CI configuration to the environment that its jobs get. Everything here is a decider.
//!
//! ```text
//! CiConfig ─ merged ─▶ Document ─ job, select ─▶ one job ─ commands, services, variables, caches ─▶ Derivation
//!                                                            EnvironmentSpec ─ recipe, compose ─▶ Dockerfile, compose.yaml
//! ```
//!
//! The rules are GitLab's and its runner's where they have any; `docs/derivation.md` names the rest.

mod caches;
mod check;
mod commands;
mod compose;
mod fallback;
mod follow;
mod gone;
mod images;
mod job;
mod language;
mod managers;
mod merged;
pub mod overrides;
mod purpose;
mod recipe;
mod report;
mod select;
mod services;
mod shell;
mod variables;
mod yaml;

use std::collections::BTreeMap;

use devfleet_shared::environment::{EnvironmentSpec, RecipeFile, ServiceSpec};
use serde::{Deserialize, Serialize};

pub use caches::kind as cache_kind;
pub use compose::compose;
pub use recipe::recipe;

use crate::forge::CiConfig;

/// The files of a repository that refine a derivation: version pins, lock files, and what says how it is built and tested.
pub const REPOSITORY_FILES: [&str; 38] = [
    ".devcontainer.json",
    ".devcontainer/devcontainer.json",
    ".go-version",
    ".java-version",
    ".node-version",
    ".nvmrc",
    ".php-version",
    ".python-version",
    ".ruby-version",
    ".tool-versions",
    "Cargo.lock",
    "Dockerfile",
    "Gemfile",
    "Gemfile.lock",
    "Makefile",
    "Pipfile.lock",
    "Taskfile.yml",
    "build.gradle",
    "build.gradle.kts",
    "composer.json",
    "composer.lock",
    "global.json",
    "go.mod",
    "go.sum",
    "gradle/wrapper/gradle-wrapper.properties",
    "justfile",
    "mix.lock",
    "package-lock.json",
    "package.json",
    "pnpm-lock.yaml",
    "poetry.lock",
    "pom.xml",
    "pyproject.toml",
    "requirements.txt",
    "rust-toolchain",
    "rust-toolchain.toml",
    "uv.lock",
    "yarn.lock",
];

/// How often [`followed`] is asked: a job's script, and what that starts.
pub const FOLLOWED_LEVELS: usize = 2;

/// What the derivation has to know beside the CI configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Context {
    /// The project's path: `team/app`.
    pub project_path: String,
    /// The branch that the repository names as its default.
    pub default_branch: String,
    /// The branch that the job starts from.
    pub base_branch: String,
    /// The commit that the job starts from.
    pub base_commit: String,
    /// Where the project's own images lie: `registry.example.com/team/app`.
    pub registry_prefix: Option<String>,
    /// Version pins and lock files that could be read, by path. May be empty.
    pub repository_files: BTreeMap<String, String>,
}

/// What an agent needs in the image.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AgentNeeds {
    /// Packages, by the names that the image's package manager uses.
    pub packages: Vec<String>,
    /// Files that go to `/usr/local/bin`, executable.
    pub files: Vec<RecipeFile>,
    /// Shell lines that run as root after the packages.
    pub install: Vec<String>,
}

/// An environment, and why it is this one.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Derivation {
    /// The environment.
    pub environment: EnvironmentSpec,
    /// The CI job that stands for the development environment.
    pub ci_job: String,
    /// The OS packages that CI installs before it runs; they go into the image.
    pub packages: Vec<String>,
    /// The other jobs that could have stood for it, the best first.
    pub alternatives: Vec<Alternative>,
    /// Lines of the CI file that do not run in the environment.
    pub dropped: Vec<Dropped>,
    /// Where every fact stands in the CI configuration.
    pub report: Vec<ReportLine>,
    /// What a person who approves should know.
    pub notes: Vec<String>,
    /// 0 to 1: how likely a person would have chosen the same.
    pub confidence: f64,
    /// How sure the choice is.
    #[serde(default)]
    pub verdict: Verdict,
    /// The image that CI names, variables put in. The environment's own is another one where this one is gone.
    #[serde(default)]
    pub written_image: String,
    /// What the project is written in, by the image, the packages and the commands.
    #[serde(default)]
    pub language: Option<String>,
    /// The language's version, as far as the image, the packages or the repository's pins say it.
    #[serde(default)]
    pub version: Option<String>,
    /// Services that only other test jobs have.
    #[serde(default)]
    pub optional_services: Vec<ServiceSpec>,
}

/// How an environment was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The CI configuration says it.
    #[default]
    Derived,
    /// The CI configuration says several things with equal right; one was taken, and the notes name the others.
    Ambiguous,
    /// The CI configuration does not say it; it was guessed from commands and from the repository's own files.
    Fallback,
    /// GitLab would refuse the CI configuration; what could be read of it was taken.
    Invalid,
}

impl Verdict {
    /// The name, as programs read it.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Derived => "derived",
            Verdict::Ambiguous => "ambiguous",
            Verdict::Fallback => "fallback",
            Verdict::Invalid => "invalid",
        }
    }
}

/// A job that was not chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alternative {
    /// The job's name.
    pub job: String,
    /// Its image.
    pub image: String,
    /// Its score; the chosen job has at least as much.
    pub score: i64,
}

/// A line that does not run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// The line or the command in it.
    pub line: String,
    /// Why.
    pub reason: String,
}

/// Where one fact stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportLine {
    /// What is known: `image`, `service postgres`, `setup`.
    pub fact: String,
    /// What it is.
    pub value: String,
    /// The file and the line in it.
    pub file: String,
    /// The job, `default`, or `(global)`.
    pub job: String,
    /// The keyword.
    pub keyword: String,
}

/// Why no environment can be derived. Each message says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DerivationError {
    /// The text is not YAML.
    #[error("read {file}: line {line}: {problem}; correct the file (GitLab's CI lint shows the place)")]
    InvalidYaml {
        /// The file.
        file: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong there.
        problem: String,
    },
    /// The text is YAML, but not a CI configuration.
    #[error("read {file}: line {line}: {problem}")]
    InvalidConfig {
        /// The file.
        file: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong there, and what to do.
        problem: String,
    },
    /// The configuration is larger than any real one.
    #[error(
        "read {file}: {what} is over the limit of {limit}; split the configuration or name an image in the project's settings"
    )]
    TooLarge {
        /// The file.
        file: String,
        /// What there is too much of.
        what: String,
        /// How much is allowed.
        limit: usize,
    },
    /// There is no job at all.
    #[error("find a job in {file}: it has none; add a job with `image:` and `script:` that runs the tests")]
    NoJobs {
        /// The file.
        file: String,
    },
    /// Every job is a template.
    #[error("find a job in {file}: all of them are hidden ({}); let a job without a leading dot extend one", .hidden.join(", "))]
    OnlyHidden {
        /// The file.
        file: String,
        /// The templates.
        hidden: Vec<String>,
    },
    /// No job has an image that could be a development environment.
    #[error("find an image: {detail}; set `image:` for the job that runs the tests, or under `default:`{hint}")]
    NoImage {
        /// What was found instead.
        detail: String,
        /// What the repository itself suggests, or nothing.
        hint: String,
    },
    /// An image's name cannot be known outside CI.
    #[error(
        "resolve {what} `{written}` of job {job:?}: it becomes `{resolved}`, which is no image name ({detail}); give the variables a value in the CI file, or name the image outright"
    )]
    UnresolvedImage {
        /// `image` or `service`.
        what: String,
        /// The job.
        job: String,
        /// As written.
        written: String,
        /// After the variables were put in.
        resolved: String,
        /// Which part is missing.
        detail: String,
    },
}

/// Names the files of the repository that the jobs start and that [`Context::repository_files`] does not hold: scripts, and what
/// goals are looked up in. What they start in turn is known when they have been read.
pub fn followed(config: &CiConfig, files: &BTreeMap<String, String>) -> Vec<String> {
    merged::read(config).map(|document| select::followed(&document, files)).unwrap_or_default()
}

/// Derives an environment from a project's CI configuration.
///
/// The same arguments give the same answer, in bounded time and memory whatever the configuration holds.
///
/// # Errors
/// Every [`DerivationError`] is for the people who own the CI file: trying again does not help.
pub fn derive(config: &CiConfig, context: &Context) -> Result<Derivation, DerivationError> {
    let document = merged::read(config)?;
    report::assemble(&document, context)
}

//! stub
use std::collections::BTreeMap;
use serde::{Deserialize, Serialize};
use devfleet_shared::environment::{EnvironmentSpec, Recipe, RecipeFile};
use crate::forge::CiConfig;
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
#[derive(Debug, thiserror::Error)]
#[error("derive")]
pub struct DerivationError;
pub fn derive(_c: &CiConfig, _x: &Context) -> Result<Derivation, DerivationError> { Err(DerivationError) }
pub fn recipe(_e: &EnvironmentSpec, _p: &[String], _a: &AgentNeeds) -> Recipe { Recipe::new(String::new(), vec![], String::new()) }
pub fn compose(_e: &EnvironmentSpec, _r: &Recipe) -> String { String::new() }

//! What an attempt needs from outside this host: the controller's word, and the repository's mirror and remote.
//!
//! Two small traits, so that every branch of an attempt's life can be tested without a server and without git.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use devfleet_shared::assignment::Assignment;
use devfleet_shared::attempt::Step;
use devfleet_shared::environment::PullPolicy;
use devfleet_shared::error::Chain;
use devfleet_shared::id::{AttemptId, Fence, JobId};
use devfleet_shared::secret::Secret;

use crate::engine::RegistryCredential;
use crate::mirror::{GitLogin, Imported, MirrorError, Mirrors};

/// In whose name an effect happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub attempt: AttemptId,
    /// The ownership epoch.
    pub fence: Fence,
}

impl Claim {
    /// Returns the claim that an assignment gives.
    pub fn of(assignment: &Assignment) -> Self {
        Self { job: assignment.job.clone(), attempt: assignment.attempt.clone(), fence: assignment.fence }
    }
}

/// The secrets of one attempt, in memory only.
#[derive(Debug, Clone, Default)]
pub struct Grant {
    /// The agent's secret variables.
    pub variables: BTreeMap<String, Secret>,
    /// CI variables from the forge, each for the steps that it names.
    pub step_variables: Vec<StepVariable>,
    /// For fetching and pushing; `None` where the remote needs no login.
    pub git: Option<GitLogin>,
    /// Logins by registry.
    pub registries: Vec<(String, RegistryCredential)>,
    /// When images are pulled.
    pub pull_policy: PullPolicy,
}

/// A secret variable for some steps.
#[derive(Debug, Clone)]
pub struct StepVariable {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: Secret,
    /// The steps that get it.
    pub steps: Vec<Step>,
}

impl Grant {
    /// Returns the secret variables of a step.
    pub fn variables_of(&self, step: Step) -> BTreeMap<String, Secret> {
        let named = self.step_variables.iter().filter(|variable| variable.steps.contains(&step));
        let mut variables: BTreeMap<String, Secret> =
            named.map(|variable| (variable.name.clone(), variable.value.clone())).collect();
        if step == Step::Agent {
            variables.extend(self.variables.clone());
        }
        variables
    }

    /// Returns every secret in it, for masking.
    pub fn secrets(&self) -> Vec<Secret> {
        self.named_secrets().into_iter().map(|(_, secret)| secret).collect()
    }

    /// Returns every secret in it, and what people call it.
    pub fn named_secrets(&self) -> Vec<(String, Secret)> {
        let variables = self.variables.iter().map(|(name, secret)| (format!("variable {name}"), secret.clone()));
        let git = self.git.iter().map(|login| ("the git credential".to_owned(), login.password.clone()));
        let registries = self.registries.iter();
        let registries = registries.map(|(of, login)| (format!("the login of registry {of}"), login.password.clone()));
        let of_steps = self.step_variables.iter();
        let of_steps = of_steps.map(|variable| (format!("CI variable {}", variable.name), variable.value.clone()));
        variables
            .chain(of_steps)
            .chain(git)
            .chain(registries)
            .filter(|(_, secret)| !secret.expose().is_empty())
            .collect()
    }
}

/// What the `verify` step showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verification {
    /// Whether it passed.
    pub passed: bool,
    /// How long it ran, in seconds.
    pub seconds: u64,
    /// The end of its output, masked; 4 KiB at most.
    pub output_tail: String,
}

/// What an attempt brings, and whether it asks for leave to push it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishRequest {
    /// In whose name.
    pub claim: Claim,
    /// The commit, 40 or 64 hex digits.
    pub commit: String,
    /// The change as a diff; 1 MiB at most.
    pub diff: String,
    /// The diff was longer.
    pub diff_truncated: bool,
    /// What `verify` showed; `None`: it did not run.
    pub verification: Option<Verification>,
    /// False: the diff is for people to see, and nothing is to be pushed.
    pub push: bool,
}

/// The controller's answer to a request to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leave {
    /// Push it.
    Granted,
    /// Do not, for this reason.
    Refused(String),
}

/// Why the controller did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControllerError {
    /// It cannot be reached, or cannot answer now.
    #[error("reach the controller: {detail}")]
    Unreachable {
        /// What was seen.
        detail: String,
    },
    /// Another fence owns the job, or the job has ended.
    #[error("act for this attempt: the controller gave the job to another attempt or ended it ({detail})")]
    Superseded {
        /// What the controller said.
        detail: String,
    },
    /// It refused, and would again.
    #[error("get the controller's consent: {detail}")]
    Refused {
        /// What the controller said.
        detail: String,
    },
}

/// The controller, as an attempt uses it. Calls are safe to repeat.
#[async_trait]
pub trait Controller: Send + Sync + 'static {
    /// Fetches the attempt's secrets.
    async fn get_grant(&self, claim: &Claim) -> Result<Grant, ControllerError>;
    /// Brings the diff, and asks for leave to push.
    async fn authorize_publish(&self, request: &PublishRequest) -> Result<Leave, ControllerError>;
}

/// Why the mirror or the remote failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CodeError {
    /// The whole chain, as a phrase that fits after "failed to".
    pub message: String,
    /// The same call may go well later.
    pub retryable: bool,
    /// Not a failure of the call: the bundle brings nothing beyond the base commit.
    pub no_change: bool,
}

/// The repository, as an attempt uses it. Calls are safe to repeat.
#[async_trait]
pub trait Code: Send + Sync + 'static {
    /// Returns a bare mirror on this host that has the base commit.
    async fn fetch(&self, assignment: &Assignment, login: Option<&GitLogin>) -> Result<PathBuf, CodeError>;
    /// Returns git's names of what stands at these paths of the base commit; what is not there is left out.
    async fn objects(&self, assignment: &Assignment, paths: &[String]) -> Result<BTreeMap<String, String>, CodeError>;
    /// Takes a bundle into the mirror, after checking it.
    async fn import(&self, assignment: &Assignment, bundle: &Path) -> Result<Imported, CodeError>;
    /// Pushes the commit as the attempt's branch, and nothing else.
    async fn push(&self, assignment: &Assignment, login: Option<&GitLogin>, commit: &str) -> Result<(), CodeError>;
}

impl From<MirrorError> for CodeError {
    fn from(error: MirrorError) -> Self {
        CodeError {
            message: Chain(&error).to_string(),
            retryable: error.is_retryable(),
            no_change: matches!(error, MirrorError::NoChange),
        }
    }
}

#[async_trait]
impl Code for Mirrors {
    async fn fetch(&self, assignment: &Assignment, login: Option<&GitLogin>) -> Result<PathBuf, CodeError> {
        let repository = &assignment.repository;
        Ok(Mirrors::fetch(self, &repository.url, login, &repository.base_commit).await?)
    }

    async fn objects(&self, assignment: &Assignment, paths: &[String]) -> Result<BTreeMap<String, String>, CodeError> {
        let repository = &assignment.repository;
        Ok(Mirrors::objects(self, &repository.url, &repository.base_commit, paths).await?)
    }

    async fn import(&self, assignment: &Assignment, bundle: &Path) -> Result<Imported, CodeError> {
        let repository = &assignment.repository;
        Ok(Mirrors::import(self, &repository.url, &repository.base_commit, bundle, &repository.work_branch).await?)
    }

    async fn push(&self, assignment: &Assignment, login: Option<&GitLogin>, commit: &str) -> Result<(), CodeError> {
        let repository = &assignment.repository;
        Ok(Mirrors::push(self, &repository.url, login, commit, &repository.work_branch).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agents_secrets_go_to_the_agent_alone_and_ci_variables_to_the_steps_they_name() {
        let variable = |name: &str, steps: &[Step]| StepVariable {
            name: name.into(),
            value: Secret::new(format!("canary-of-{name}")),
            steps: steps.to_vec(),
        };
        let grant = Grant {
            variables: BTreeMap::from([("KEY".to_owned(), Secret::new("canary-of-KEY"))]),
            step_variables: vec![variable("INDEX", &[Step::Setup]), variable("DSN", &[Step::Setup, Step::Verify])],
            ..Grant::default()
        };
        let names = |step| grant.variables_of(step).into_keys().collect::<Vec<_>>();
        assert_eq!(names(Step::Checkout), Vec::<String>::new());
        assert_eq!(names(Step::Setup), ["DSN", "INDEX"]);
        assert_eq!(names(Step::Agent), ["KEY"]);
        assert_eq!(names(Step::Verify), ["DSN"]);
        assert_eq!(names(Step::Collect), Vec::<String>::new());
        let masked: Vec<String> = grant.named_secrets().into_iter().map(|(name, _)| name).collect();
        assert_eq!(masked, ["variable KEY", "CI variable INDEX", "CI variable DSN"], "all of them are masked");
    }
}

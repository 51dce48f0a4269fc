//! A project: a repository, its forge, who may work on it, and what a job may use. Written by operators as TOML.
//!
//! Secrets stand in it by reference only; parsing is strict, and every complaint names the key and what to write.

use std::collections::BTreeMap;
use std::time::Duration;

use devfleet_shared::assignment::{AgentKind, Limits};
use devfleet_shared::attempt::Step;
use devfleet_shared::clock::Timestamp;
use devfleet_shared::environment::PullPolicy;
use devfleet_shared::id::{AgentName, ProjectName};
use devfleet_shared::secret::SecretRef;
use devfleet_shared::units::{ByteSize, Span};
use serde::{Deserialize, Serialize};

/// Priorities lie between this and its negative.
const PRIORITY_MOST: i32 = 100;

/// A project, as stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProjectRecord {
    /// What the operator wrote.
    pub config: ProjectConfig,
    /// When.
    pub updated: Timestamp,
}

/// What an operator writes about a project.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProjectConfig {
    /// Its name here.
    pub name: ProjectName,
    /// The git remote: a URL without credentials, or a path. For GitLab it may be left out.
    #[serde(default)]
    pub repository: String,
    /// Whether a person must approve each proposal.
    #[serde(default)]
    pub approval: Approval,
    /// The branch that jobs start from; the repository's default when absent.
    #[serde(default)]
    pub default_branch: Option<String>,
    /// The agent that jobs use unless they name one; may be left out if there is one agent.
    #[serde(default)]
    pub agent: Option<AgentName>,
    /// Where the CI configuration stands in the repository.
    #[serde(default = "default_ci_config")]
    pub ci_config: String,
    /// How often a job is tried when the machinery, not the work, fails.
    #[serde(default = "default_attempts")]
    pub max_attempts: u32,
    /// Its part of the fleet, in proportion to the weights of other projects.
    #[serde(default = "default_weight")]
    pub weight: u32,
    /// How many of its jobs may run at once; as many as the fleet allows when absent.
    #[serde(default)]
    pub max_running: Option<usize>,
    /// The greatest priority that a job may be submitted with.
    #[serde(default = "default_max_priority")]
    pub max_priority: i32,
    /// The labels that a host must have to run its jobs.
    #[serde(default)]
    pub host_labels: BTreeMap<String, String>,
    /// The container runtime that its environments run under: a name that the hosts' engines know, such as `runsc`.
    #[serde(default)]
    pub runtime: Option<String>,
    /// Where merge requests are opened.
    #[serde(default)]
    pub forge: ForgeConfig,
    /// The agents by name.
    pub agents: BTreeMap<AgentName, AgentConfig>,
    /// What a job may use.
    #[serde(default)]
    pub limits: LimitsConfig,
    /// Whether the repository may say itself what its environment is, in `.devfleet.toml` of its default branch.
    #[serde(default)]
    pub overrides: OverridesPolicy,
    /// CI variables that GitLab keeps outside of the file, and the steps that get each: `setup`, `agent`, `verify`.
    #[serde(default)]
    pub ci_variables: BTreeMap<String, Vec<Step>>,
    /// When images are pulled.
    #[serde(default)]
    pub pull: PullPolicy,
    /// Logins to image registries, by registry host.
    #[serde(default)]
    pub registries: BTreeMap<String, RegistryConfig>,
}

/// Who approves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Approval {
    /// A person, each time.
    #[default]
    Required,
    /// The project's operator did, once, by writing this.
    Auto,
}

/// Who says what the environment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OverridesPolicy {
    /// The repository's `.devfleet.toml` goes before its CI configuration.
    #[default]
    Allow,
    /// The CI configuration alone counts.
    Forbid,
}

/// The forge of a project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ForgeConfig {
    /// A plain git remote: merge requests are records that `devfleet diff` shows.
    Git {
        /// The user name, where the remote asks for one.
        #[serde(default)]
        username: Option<String>,
        /// The password.
        #[serde(default)]
        password: Option<SecretRef>,
    },
    /// A GitLab instance.
    Gitlab {
        /// Its address: `https://gitlab.example.com`.
        url: String,
        /// The project's path (`group/name`) or number.
        project: String,
        /// A token with the scopes `api` and `write_repository`.
        token: SecretRef,
    },
}

impl Default for ForgeConfig {
    fn default() -> Self {
        ForgeConfig::Git { username: None, password: None }
    }
}

/// An agent profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentConfig {
    /// How it is started and read.
    pub kind: AgentKind,
    /// The shell script that is the agent (`script`), or that replaces the usual call (`claude-code`).
    #[serde(default)]
    pub command: Option<String>,
    /// The agent's program on the hosts; it is copied into the image.
    #[serde(default)]
    pub binary: Option<String>,
    /// The SHA-256 of `binary`, as `sha256sum` prints it; read from the controller's own file when absent.
    #[serde(default)]
    pub binary_sha256: Option<String>,
    /// The model, for agents that have a choice.
    #[serde(default)]
    pub model: Option<String>,
    /// Operating system packages that the agent needs in the image.
    #[serde(default)]
    pub packages: Vec<String>,
    /// Variables that are not secret.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Secret variables by reference.
    #[serde(default)]
    pub secrets: BTreeMap<String, SecretRef>,
}

/// A login to an image registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistryConfig {
    /// The user name.
    pub username: String,
    /// The password.
    pub password: SecretRef,
}

/// What a job may use; what is left out has the default of docs/configuration.md.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitsConfig {
    /// Processors: `1.5`.
    pub cpus: Option<f64>,
    /// Memory: `4GiB`.
    pub memory: Option<ByteSize>,
    /// Room on the engine's disk: `10GiB`.
    pub disk: Option<ByteSize>,
    /// Processes in one container.
    pub pids: Option<u64>,
    /// Time for a whole attempt: `2h`.
    pub attempt: Option<Span>,
    /// Time for the step of this name.
    pub checkout: Option<Span>,
    /// Time for the step of this name.
    pub setup: Option<Span>,
    /// Time for the step of this name.
    pub agent: Option<Span>,
    /// Time for the step of this name.
    pub verify: Option<Span>,
    /// Time for the step of this name.
    pub collect: Option<Span>,
    /// Time for a service to accept connections.
    pub service_ready: Option<Span>,
    /// Size of what a job may bring home.
    pub bundle: Option<ByteSize>,
    /// Size of the log that is kept.
    pub log: Option<ByteSize>,
}

/// A project's TOML that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProjectError {
    /// It is not the TOML it should be.
    #[error("read the project: {0}")]
    Toml(String),
    /// A value makes no sense.
    #[error("use the project: `{key}`: {problem}")]
    Value {
        /// The key.
        key: String,
        /// What is wrong, and what to write.
        problem: String,
    },
}

impl ProjectConfig {
    /// Reads and checks a project's TOML.
    pub fn parse(text: &str) -> Result<Self, ProjectError> {
        let config: ProjectConfig = toml::from_str(text).map_err(|error| ProjectError::Toml(error.to_string()))?;
        config.validate()?;
        Ok(config)
    }

    fn validate(&self) -> Result<(), ProjectError> {
        let refuse = |key: &str, problem: &str| Err(ProjectError::Value { key: key.into(), problem: problem.into() });
        if self.agents.is_empty() {
            return refuse("agents", "name at least one agent: [agents.NAME] with `kind` and `command`");
        }
        if matches!(self.forge, ForgeConfig::Git { .. }) && self.repository.is_empty() {
            return refuse("repository", "say where the code is: a git URL or a path");
        }
        if self.repository.starts_with('-') || self.repository.contains(['\n', '\0']) {
            return refuse("repository", "write a git URL or a path");
        }
        if has_password(&self.repository) {
            return refuse("repository", "a password must not stand in the URL; name it with forge.password");
        }
        if let Some(agent) = &self.agent
            && !self.agents.contains_key(agent)
        {
            return refuse("agent", &format!("there is no [agents.{agent}]"));
        }
        if !(1..=10).contains(&self.max_attempts) {
            return refuse("max_attempts", "write a number from 1 to 10");
        }
        self.validate_scheduling()?;
        if let ForgeConfig::Gitlab { url, project, .. } = &self.forge {
            if !(url.starts_with("https://") || url.starts_with("http://")) {
                return refuse("forge.url", "write the address of the GitLab instance: https://gitlab.example.com");
            }
            if project.is_empty() {
                return refuse("forge.project", "write the project's path (group/name) or number");
            }
        }
        for (name, agent) in &self.agents {
            agent.validate(name)?;
        }
        self.validate_ci_variables()?;
        if self.limits.cpus.is_some_and(|cpus| !(0.01..=1024.0).contains(&cpus)) {
            return refuse("limits.cpus", "write a number of processors from 0.01 to 1024");
        }
        if self.limits.memory.is_some_and(|memory| memory.0 < 16 << 20) {
            return refuse("limits.memory", "write at least 16MiB");
        }
        Ok(())
    }

    fn validate_scheduling(&self) -> Result<(), ProjectError> {
        let refuse = |key: &str, problem: &str| Err(ProjectError::Value { key: key.into(), problem: problem.into() });
        if !(1..=1_000).contains(&self.weight) {
            return refuse("weight", "write a number from 1 to 1000");
        }
        if self.max_running == Some(0) {
            return refuse("max_running", "write 1 or more; with 0 no job of the project would ever start");
        }
        if !(-PRIORITY_MOST..=PRIORITY_MOST).contains(&self.max_priority) {
            return refuse("max_priority", "write a number from -100 to 100");
        }
        Ok(())
    }

    fn validate_ci_variables(&self) -> Result<(), ProjectError> {
        let refuse = |name: &str, problem: &str| {
            Err(ProjectError::Value { key: format!("ci_variables.{name}"), problem: problem.into() })
        };
        for (name, steps) in &self.ci_variables {
            if !is_variable_name(name) || name.starts_with("DEVFLEET_") {
                return refuse(name, "write the name of a CI variable: letters, digits and underscores");
            }
            if !matches!(self.forge, ForgeConfig::Gitlab { .. }) {
                return refuse(name, "only GitLab keeps CI variables; for a plain git remote use agents.NAME.secrets");
            }
            if steps.is_empty() || steps.iter().any(|step| matches!(step, Step::Checkout | Step::Collect)) {
                return refuse(name, "name the steps that get it: [\"setup\"], [\"agent\"], [\"verify\"] or several");
            }
        }
        Ok(())
    }

    /// Checks the priority that a job is submitted with: -100 to the project's `max_priority`.
    pub fn check_priority(&self, priority: i32) -> Result<(), ProjectError> {
        if (-PRIORITY_MOST..=self.max_priority.max(0)).contains(&priority) {
            return Ok(());
        }
        let most = self.max_priority.max(0);
        let problem = format!("{priority} is not allowed in project {}: use -{PRIORITY_MOST} to {most}", self.name);
        Err(ProjectError::Value { key: "priority".into(), problem })
    }

    /// Returns the agent to use: the one asked for, the project's default, or its only one.
    pub fn choose_agent(&self, wanted: Option<&AgentName>) -> Result<AgentName, ProjectError> {
        let names = || self.agents.keys().map(AgentName::as_str).collect::<Vec<_>>().join(", ");
        let chosen =
            wanted.or(self.agent.as_ref()).or_else(|| (self.agents.len() == 1).then(|| self.agents.keys().next())?);
        match chosen {
            Some(name) if self.agents.contains_key(name) => Ok(name.clone()),
            Some(name) => Err(ProjectError::Value {
                key: "agent".into(),
                problem: format!("project {} has no agent {name}; it has: {}", self.name, names()),
            }),
            None => Err(ProjectError::Value {
                key: "agent".into(),
                problem: format!("project {} has several agents, name one with --agent: {}", self.name, names()),
            }),
        }
    }

    /// Returns what a job may use.
    pub fn limits(&self) -> Limits {
        let wanted = &self.limits;
        let mut limits = Limits { runtime: self.runtime.clone(), ..Limits::default() };
        let resources = &mut limits.resources;
        set(&mut resources.cpu_millis, wanted.cpus.map(|cpus| (cpus * 1000.0) as u64));
        set(&mut resources.memory_bytes, wanted.memory.map(|size| size.0));
        set(&mut resources.disk_bytes, wanted.disk.map(|size| size.0));
        set(&mut limits.pids, wanted.pids);
        set(&mut limits.attempt, wanted.attempt.map(Duration::from));
        set(&mut limits.service_ready, wanted.service_ready.map(Duration::from));
        set(&mut limits.bundle_bytes, wanted.bundle.map(|size| size.0));
        set(&mut limits.log_bytes, wanted.log.map(|size| size.0));
        let steps = [wanted.checkout, wanted.setup, wanted.agent, wanted.verify, wanted.collect];
        for (step, span) in Step::ALL.into_iter().zip(steps) {
            if let Some(span) = span {
                limits.steps.insert(step, span.into());
            }
        }
        limits
    }
}

impl AgentConfig {
    fn validate(&self, name: &AgentName) -> Result<(), ProjectError> {
        let refuse = |key: &str, problem: &str| {
            Err(ProjectError::Value { key: format!("agents.{name}.{key}"), problem: problem.into() })
        };
        if self.kind == AgentKind::Script && self.command.as_ref().is_none_or(|command| command.trim().is_empty()) {
            return refuse("command", "a script agent needs the shell script that it is");
        }
        if self.command.as_ref().is_some_and(|command| command.len() > 64 << 10) {
            return refuse("command", "it is longer than 64 KiB; put the script into the repository or the image");
        }
        for variable in self.env.keys().chain(self.secrets.keys()) {
            if !is_variable_name(variable) {
                return refuse(
                    "env",
                    &format!("{variable:?} is not a variable name: use letters, digits and underscores"),
                );
            }
        }
        Ok(())
    }
}

/// Says whether a text can be the name of an environment variable in every shell.
pub fn is_variable_name(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn has_password(repository: &str) -> bool {
    repository
        .split_once("://")
        .and_then(|(_, rest)| rest.split('/').next())
        .and_then(|authority| authority.rsplit_once('@'))
        .is_some_and(|(user, _)| user.contains(':'))
}

fn set<T>(target: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *target = value;
    }
}

fn default_ci_config() -> String {
    ".gitlab-ci.yml".into()
}

fn default_weight() -> u32 {
    1
}

fn default_max_priority() -> i32 {
    10
}

fn default_attempts() -> u32 {
    2
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &str =
        "name = \"web\"\nrepository = \"/srv/web.git\"\n[agents.fix]\nkind = \"script\"\ncommand = \"make fix\"\n";

    fn check_refused(text: &str, needle: &str) {
        let error = ProjectConfig::parse(text).expect_err(text).to_string();
        assert!(error.contains(needle), "{error:?} does not say {needle:?}");
    }

    #[test]
    fn a_plain_project_has_sound_defaults() {
        let config = ProjectConfig::parse(PLAIN).expect("it is right");
        assert_eq!(config.approval, Approval::Required);
        assert_eq!(config.choose_agent(None).map(String::from).ok().as_deref(), Some("fix"));
        assert_eq!(config.limits(), Limits::default());
        assert_eq!(config.ci_config, ".gitlab-ci.yml");
    }

    #[test]
    fn what_is_wrong_is_named() {
        check_refused("name = \"Web\"", "project name");
        check_refused(&PLAIN.replace("kind = \"script\"", "kind = \"robot\""), "robot");
        check_refused(&PLAIN.replace("command = \"make fix\"", ""), "agents.fix.command");
        check_refused(&format!("tipo = 1\n{PLAIN}"), "tipo");
        check_refused(&PLAIN.replace("/srv/web.git", "https://me:secret@host/web.git"), "forge.password");
        check_refused(&PLAIN.replace("/srv/web.git", "--upload-pack=x"), "repository");
        check_refused(&format!("agent = \"other\"\n{PLAIN}"), "agents.other");
        check_refused(&format!("{PLAIN}secrets.KEY = \"plain-value\"\n"), "env://");
        check_refused(&format!("{PLAIN}[limits]\nmemory = \"1KiB\"\n"), "16MiB");
        check_refused(&format!("overrides = \"maybe\"\n{PLAIN}"), "maybe");
        check_refused(&format!("{PLAIN}[ci_variables]\nKEY = [\"setup\"]\n"), "only GitLab");
        let gitlab = format!(
            "{PLAIN}[forge]\nkind = \"gitlab\"\nurl = \"https://g\"\nproject = \"a/b\"\ntoken = \"env://T\"\n[ci_variables]\n"
        );
        assert!(ProjectConfig::parse(&format!("{gitlab}KEY = [\"setup\", \"verify\"]\n")).is_ok());
        check_refused(&format!("{gitlab}KEY = []\n"), "ci_variables.KEY");
        check_refused(&format!("{gitlab}KEY = [\"collect\"]\n"), "name the steps");
        check_refused(&format!("{gitlab}KEY = [\"deploy\"]\n"), "deploy");
        check_refused(&format!("{gitlab}\"A-B\" = [\"setup\"]\n"), "ci_variables.A-B");
        check_refused(
            &format!("{PLAIN}[forge]\nkind = \"gitlab\"\nurl = \"gitlab\"\nproject = \"a/b\"\ntoken = \"env://T\"\n"),
            "forge.url",
        );
    }

    #[test]
    fn limits_are_read_in_the_units_people_write() {
        let text = format!("{PLAIN}[limits]\ncpus = 1.5\nmemory = \"4GiB\"\nattempt = \"3h\"\nagent = \"90m\"\n");
        let limits = ProjectConfig::parse(&text).expect("it is right").limits();
        assert_eq!(limits.resources.cpu_millis, 1_500);
        assert_eq!(limits.resources.memory_bytes, 4 << 30);
        assert_eq!(limits.attempt, Duration::from_secs(3 * 3600));
        assert_eq!(limits.step(Step::Agent), Duration::from_secs(90 * 60));
    }

    #[test]
    fn several_agents_need_a_choice() {
        let text = format!("{PLAIN}[agents.other]\nkind = \"script\"\ncommand = \"x\"\n");
        let config = ProjectConfig::parse(&text).expect("it is right");
        assert!(config.choose_agent(None).expect_err("two agents").to_string().contains("fix, other"));
        assert!(config.choose_agent("none".parse().ok().as_ref()).is_err());
    }
}

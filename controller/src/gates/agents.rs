//! From an agent profile to how it is started and what its image needs.

use std::path::Path;

use devfleet_shared::assignment::{AgentKind, AgentSpec};
use devfleet_shared::environment::RecipeFile;
use devfleet_shared::id::{AgentName, Digest};

use crate::environment::AgentNeeds;
use crate::project::{AgentConfig, ProjectConfig};

/// Headless Claude Code: the task and the plan come over standard input, since together they may be longer than one
/// argument can be. Settings, hooks and servers of the repository are left out: it is untrusted input.
const CLAUDE_COMMAND: &str = r#"prompt() {
  printf '%s\n' "$DEVFLEET_TASK"
  [ -z "$DEVFLEET_PLAN" ] || printf '\nThis plan was approved, follow it:\n\n%s\n' "$DEVFLEET_PLAN"
}
prompt | claude --print --output-format stream-json --verbose --dangerously-skip-permissions --setting-sources user --strict-mcp-config"#;

/// Variables that every Claude Code gets: it is in a box, updates nothing and reports nothing. Its own sandbox stays
/// off: it needs bubblewrap, which needs rights that no step has, and without it Claude Code would not start.
const CLAUDE_VARIABLES: [(&str, &str); 4] = [
    ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1"),
    ("CLAUDE_CONFIG_DIR", "/tmp/claude"),
    ("DISABLE_AUTOUPDATER", "1"),
    ("IS_SANDBOX", "1"),
];

/// An agent that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The project does not have it (any more).
    #[error("use agent {0}: the project has no such agent any more")]
    NoSuchAgent(AgentName),
    /// Its program cannot be read here, and its digest is not written down.
    #[error("use agent {agent}: {path} cannot be read on the controller; put it there, or write `binary_sha256`")]
    Binary {
        /// The agent.
        agent: AgentName,
        /// The path.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The digest is none.
    #[error("use agent {agent}: `binary_sha256` must be the 64 hex digits that sha256sum prints")]
    BinaryDigest {
        /// The agent.
        agent: AgentName,
    },
}

/// Says how an agent is started, and what its image needs.
pub async fn prepare(name: &AgentName, project: &ProjectConfig) -> Result<(AgentSpec, AgentNeeds), AgentError> {
    let config = project.agents.get(name).ok_or_else(|| AgentError::NoSuchAgent(name.clone()))?;
    let files = match &config.binary {
        Some(path) => vec![binary(name, config, path).await?],
        None => vec![],
    };
    let needs = AgentNeeds { packages: config.packages.clone(), files, install: vec![] };
    Ok((spec(name, config), needs))
}

fn spec(name: &AgentName, config: &AgentConfig) -> AgentSpec {
    let mut variables = config.env.clone();
    let mut command = config.command.clone().unwrap_or_default();
    if config.kind == AgentKind::ClaudeCode {
        for (variable, value) in CLAUDE_VARIABLES {
            variables.entry(variable.to_owned()).or_insert_with(|| value.to_owned());
        }
        if command.trim().is_empty() {
            command = CLAUDE_COMMAND.to_owned();
        }
        if let Some(model) = &config.model {
            variables.entry("ANTHROPIC_MODEL".to_owned()).or_insert_with(|| model.clone());
        }
    }
    AgentSpec {
        name: name.clone(),
        kind: config.kind,
        command,
        variables,
        secrets: config.secrets.keys().cloned().collect(),
    }
}

async fn binary(name: &AgentName, config: &AgentConfig, path: &str) -> Result<RecipeFile, AgentError> {
    let digest = match &config.binary_sha256 {
        Some(hex) => format!("sha256:{hex}").parse().map_err(|_| AgentError::BinaryDigest { agent: name.clone() })?,
        None => file_digest(Path::new(path)).await.map_err(|source| AgentError::Binary {
            agent: name.clone(),
            path: path.to_owned(),
            source,
        })?,
    };
    let file_name = match config.kind {
        AgentKind::ClaudeCode => "claude".to_owned(),
        AgentKind::Script => {
            Path::new(path).file_name().map_or_else(|| name.to_string(), |file| file.to_string_lossy().into_owned())
        }
    };
    Ok(RecipeFile { name: file_name, host_path: path.to_owned(), digest })
}

async fn file_digest(path: &Path) -> std::io::Result<Digest> {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || Digest::of_reader(&mut std::fs::File::open(path)?))
        .await
        .map_err(std::io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project(agents: &str) -> ProjectConfig {
        ProjectConfig::parse(&format!("name = \"web\"\nrepository = \"/srv/web\"\n{agents}")).expect("it is right")
    }

    #[tokio::test]
    async fn claude_code_is_started_headless_without_the_repositorys_settings() {
        let project = project(
            "[agents.claude]\nkind = \"claude-code\"\nmodel = \"opus\"\nsecrets.ANTHROPIC_API_KEY = \"env://KEY\"\n",
        );
        let (spec, needs) = prepare(&"claude".parse().expect("a name"), &project).await.expect("it can be used");
        assert!(spec.command.contains("--output-format stream-json --verbose"));
        assert!(spec.command.contains("--setting-sources user --strict-mcp-config"));
        assert_eq!(spec.secrets, ["ANTHROPIC_API_KEY"]);
        assert_eq!(spec.variables.get("ANTHROPIC_MODEL").map(String::as_str), Some("opus"));
        assert!(!spec.variables.contains_key("CLAUDE_CODE_SUBPROCESS_ENV_SCRUB"), "it would ask for bubblewrap");
        assert!(needs.files.is_empty());
    }

    #[tokio::test]
    async fn a_binary_goes_into_the_image_by_its_digest() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "program").expect("written");
        let text = format!("[agents.a]\nkind = \"claude-code\"\nbinary = {:?}\n", file.path().display().to_string());
        let (_, needs) = prepare(&"a".parse().expect("a name"), &project(&text)).await.expect("it can be used");
        assert_eq!(needs.files[0].digest, Digest::of(b"program"));
        assert_eq!(needs.files[0].name, "claude");
        let missing = project("[agents.a]\nkind = \"claude-code\"\nbinary = \"/nonexistent\"\n");
        let error = prepare(&"a".parse().expect("a name"), &missing).await.expect_err("no file");
        assert!(error.to_string().contains("binary_sha256"));
    }
}

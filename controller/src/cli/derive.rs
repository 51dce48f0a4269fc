//! `devfleet env derive`: the environment that a CI configuration stands for, without a controller.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;

use super::exit::Exit;
use super::failure::CliError;
use super::shape::derivation as shape;
use super::{Session, environments, input, render};
use crate::environment::{self, AgentNeeds, Context, DerivationError};
use crate::forge::{CiConfig, folder};

/// Where GitLab looks for a configuration.
const MAIN: &str = ".gitlab-ci.yml";

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("configuration").required(true))]
pub(super) struct DeriveArgs {
    /// A document as GitLab's CI lint returns it in `merged_yaml`; `-` reads standard input
    #[arg(long, value_name = "FILE", group = "configuration")]
    merged: Option<PathBuf>,
    /// A file as it stands in a repository, or the repository's folder; local includes are read from there
    #[arg(long, value_name = "FILE|DIR", group = "configuration")]
    raw: Option<PathBuf>,
    /// The repository's folder: its version pins and lock files refine the result
    #[arg(long, value_name = "DIR")]
    repo: Option<PathBuf>,
    /// The project's path, for `CI_PROJECT_PATH` and the like: `team/app`
    #[arg(long, value_name = "PATH", default_value = "")]
    project: String,
    /// Where the project's own images lie, for `CI_REGISTRY_IMAGE`: `registry.example.com/team/app`
    #[arg(long, value_name = "NAME")]
    registry_image: Option<String>,
    /// The branch that CI runs for
    #[arg(long, value_name = "NAME", default_value = "main")]
    branch: String,
    /// Print the Dockerfile alone
    #[arg(long, group = "part")]
    dockerfile: bool,
    /// Print compose.yaml alone, to bring up the same environment by hand
    #[arg(long, group = "part")]
    compose: bool,
}

pub(super) async fn run(args: DeriveArgs, session: &Session) -> Result<Exit, CliError> {
    let repo = folder_of(&args)?;
    let config = config(&args, repo.as_deref()).await?;
    let context = Context {
        project_path: args.project.clone(),
        default_branch: args.branch.clone(),
        base_branch: args.branch.clone(),
        base_commit: String::new(),
        registry_prefix: args.registry_image.clone(),
        repository_files: repo.as_deref().map(|root| files_of(root, &config)).unwrap_or_default(),
    };
    let derived = match environment::derive(&config, &context) {
        Ok(derived) => derived,
        Err(error) => return refused(&args, &error, session),
    };
    let recipe = environment::recipe(&derived.environment, &derived.packages, &AgentNeeds::default());
    if args.dockerfile {
        environments::file(session, "dockerfile", &recipe.dockerfile)?;
    } else if args.compose {
        environments::file(session, "compose", &environment::compose(&derived.environment, &recipe))?;
    } else {
        let text = || render::derivation::derivation(&derived, &recipe);
        session.output.show(|| shape::derivation(&derived, &recipe), text)?;
    }
    Ok(if derived.verdict == environment::Verdict::Invalid { Exit::USAGE } else { Exit::OK })
}

/// What refines a derivation: the known files, and what the jobs start, two levels deep.
fn files_of(root: &Path, config: &CiConfig) -> BTreeMap<String, String> {
    let mut files = folder::texts(root, &environment::REPOSITORY_FILES);
    for _ in 0..environment::FOLLOWED_LEVELS {
        let wanted = environment::followed(config, &files);
        files.extend(folder::texts(root, &wanted.iter().map(String::as_str).collect::<Vec<_>>()));
    }
    files
}

/// There is no environment: programs still get the whole shape, with what is wrong in it.
fn refused(args: &DeriveArgs, error: &DerivationError, session: &Session) -> Result<Exit, CliError> {
    if args.dockerfile || args.compose || session.output.format() == super::output::Format::Table {
        return Err(CliError::Usage(error.to_string()));
    }
    session.output.show(|| shape::refusal(error), String::new)?;
    Ok(Exit::USAGE)
}

/// The repository: as named, or the folder that `--raw` names.
fn folder_of(args: &DeriveArgs) -> Result<Option<PathBuf>, CliError> {
    let named = args.repo.clone().or_else(|| args.raw.clone().filter(|path| path.is_dir()));
    match named {
        Some(path) if !path.is_dir() => {
            Err(CliError::Usage(format!("{} is no folder: name the repository's folder", path.display())))
        }
        named => Ok(named),
    }
}

async fn config(args: &DeriveArgs, repo: Option<&Path>) -> Result<CiConfig, CliError> {
    if let Some(path) = &args.merged {
        let yaml = input::read(path)?;
        return Ok(CiConfig::Merged {
            yaml,
            errors: Vec::new(),
            warnings: Vec::new(),
            files: vec![path.display().to_string()],
        });
    }
    let raw = args.raw.clone().unwrap_or_else(|| PathBuf::from("."));
    let (root, main) = match raw.is_dir() {
        true => (raw.clone(), MAIN.to_owned()),
        false => place_of(&raw, repo),
    };
    let read = folder::ci_config(&root, &main).await.map_err(|error| CliError::Usage(error.to_string()))?;
    read.ok_or_else(|| CliError::File {
        action: "read",
        path: root.join(&main),
        source: std::io::Error::from(std::io::ErrorKind::NotFound),
    })
}

/// The folder that a file's includes are read from, and the file's path in it: the repository if it lies there, else its own.
fn place_of(file: &Path, repo: Option<&Path>) -> (PathBuf, String) {
    let inside = repo.and_then(|repo| {
        let (repo, file) = (repo.canonicalize().ok()?, file.canonicalize().ok()?);
        Some((repo.clone(), file.strip_prefix(&repo).ok()?.to_string_lossy().into_owned()))
    });
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    inside.unwrap_or_else(|| (parent.to_owned(), name))
}
